"""The plan of a segment: where the cranial vertebra shall stand, and why.

Rules
    keep      the pose as scanned
    explicit  the pose asked for, component by component (what is not given stays as scanned)
    norms     towards the published norm of the level, by no more than stated limits; where bones would collide (the
              facets mostly), the whole correction is backed off in steps of a tenth, and each step is noted

Collision: depth to which a bone dips into the other, at its own surface points. It may not exceed
`collision_mm`, or what the scan itself already shows (segmented bones often touch).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.patient.alignment import cranial_pose, measure
from engine.patient.frames import inferior_frame, inverse, move_endplate, superior_frame
from engine.patient.segment import build_segment
from engine.types import AlignmentPlan, PatientModel, Segment, SegmentAlignment, Vertebra, rigid

#: Disc angle (standing, S66) and middle disc height (S69) by level. S66 reports the level's share of the lordosis.
NORMS: dict[str, tuple[float, float]] = {
    "L1-L2": (1.2, 10.0),
    "L2-L3": (5.9, 11.6),
    "L3-L4": (9.1, 12.5),
    "L4-L5": (12.7, 13.8),
    "L5-S1": (21.6, 13.0),
}
_PARTS = ("lordosis_deg", "coronal_deg", "axial_deg", "height_middle_mm", "listhesis_mm", "lateral_mm")


class Limits(BaseModel):
    """Largest change that rule `norms` makes to each component."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lordosis_deg: float = Field(default=8.0, ge=0.0, le=20.0)
    height_mm: float = Field(default=4.0, ge=0.0, le=8.0)
    coronal_deg: float = Field(default=10.0, ge=0.0, le=20.0)
    #: axial rotation and lateral slip are left by default: the facets guide them, a cage does not set them
    axial_deg: float = Field(default=0.0, ge=0.0, le=15.0)
    listhesis_mm: float = Field(default=6.0, ge=0.0, le=15.0)
    lateral_mm: float = Field(default=0.0, ge=0.0, le=15.0)
    #: slips of the endplates' centres below this are anatomy and noise, and are left
    slip_tolerance_mm: float = Field(default=2.0, ge=0.0, le=5.0)


class PlanConfig(BaseModel):
    """How the target is set. The components are read by rule `explicit` only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["norms", "keep", "explicit"] = "norms"
    limits: Limits = Limits()
    collision_mm: float = Field(default=0.3, ge=0.0, le=2.0)
    lordosis_deg: float | None = Field(default=None, ge=-15.0, le=35.0)
    coronal_deg: float | None = Field(default=None, ge=-20.0, le=20.0)
    axial_deg: float | None = Field(default=None, ge=-20.0, le=20.0)
    height_middle_mm: float | None = Field(default=None, ge=2.0, le=22.0)
    listhesis_mm: float | None = Field(default=None, ge=-20.0, le=20.0)
    lateral_mm: float | None = Field(default=None, ge=-20.0, le=20.0)
    spacing_mm: float = Field(default=0.75, ge=0.4, le=2.0, description="of the segment's fields")
    #: of the arch, what lies this far above and below the pedicles is simulated; facets and processes are not
    posterior_reach_mm: float = Field(default=10.0, ge=8.0, le=20.0)


def plan(patient: PatientModel, segment_name: str, config: PlanConfig | None = None) -> Segment:
    """The segment (e.g. "L4-L5") of the patient at its planned pose.

    Raises: ValueError for a segment that the patient does not have, for explicit targets given with another rule,
    and for a pose at which bones collide.
    """
    config = config or PlanConfig()
    cranial, caudal = pair(patient, segment_name)
    measured = measure(cranial, caudal)
    wanted, source, notes = _target(config, segment_name, measured)
    scanned_overlap = collision_mm(cranial, caudal, np.eye(4))
    allowed = max(config.collision_mm, scanned_overlap + 0.05)
    steps = np.arange(10, -1, -1) / 10.0 if config.rule == "norms" else np.array([1.0])
    motion, depth = np.eye(4), 0.0
    for share in steps:
        motion = _motion(cranial, caudal, _blend(measured, wanted, float(share)))
        depth = collision_mm(cranial, caudal, motion)
        if depth <= allowed:
            break
        notes.append(f"{share:.0%} of the correction: bones would collide by {depth:.2f} mm")
    else:
        raise ValueError(
            f"at the planned pose of {segment_name} the bones collide by {depth:.2f} mm (allowed {allowed:.2f}); raise "
            "plan.height_middle_mm, lower plan.lordosis_deg or the slip correction, or use plan.rule=norms, "
            "which backs off by itself"
        )
    if config.rule == "norms" and share < 1.0:
        notes.append(f"backed off to {share:.0%} of the correction, where the bones are clear of each other")
    planned = _moved_alignment(cranial, caudal, motion)
    to_segment = inverse(superior_frame(caudal))
    alignment = AlignmentPlan(
        rule=config.rule,
        source=source,
        measured=measured,
        planned=planned,
        cranial_motion=to_segment @ motion @ inverse(to_segment),
        notes=tuple(notes),
    )
    warnings = list(patient.repairs and (f"{len(patient.repairs)} repairs on the way in; see the bundle",))
    if patient.density_source.startswith("assumed"):
        warnings.append(
            f"density is {patient.density_source}: no CT of this patient was read; tissue measures are relative"
        )
    warnings.append("facet joints, processes and ligaments are left out of the simulation and carry no load")
    if patient.posture in ("unknown", "supine"):
        warnings.append(f"posture of the scan is {patient.posture}: angles are not those of standing (S67)")
    return build_segment(
        segment_name,
        patient.name,
        cranial,
        caudal,
        motion,
        alignment,
        config.spacing_mm,
        patient.density_source,
        tuple(warnings),
        config.posterior_reach_mm,
    )


def pair(patient: PatientModel, segment_name: str) -> tuple[Vertebra, Vertebra]:
    """(cranial, caudal) vertebra of a segment name. Raises ValueError naming what there is."""
    names = [vertebra.name for vertebra in patient.vertebrae]
    there = [f"{a}-{b}" for a, b in pairwise(names)]
    if segment_name not in there:
        raise ValueError(f"segment {segment_name!r} is not in this patient; it has {', '.join(there) or 'none'}")
    at = there.index(segment_name)
    return patient.vertebrae[at], patient.vertebrae[at + 1]


def collision_mm(cranial: Vertebra, caudal: Vertebra, motion: np.ndarray) -> float:
    """How deep (mm, ≥ 0) one bone dips into the other, the cranial one moved by `motion` in the patient frame."""
    upper = rigid(motion, cranial.surface.points_mm)
    lower = rigid(inverse(motion), caudal.surface.points_mm)
    return max(0.0, -float(caudal.sdf.sample(upper).min()), -float(cranial.sdf.sample(lower).min()))


def _target(config: PlanConfig, name: str, measured: SegmentAlignment) -> tuple[SegmentAlignment, str, list[str]]:
    given = {part: getattr(config, part) for part in _PARTS if getattr(config, part) is not None}
    if given and config.rule != "explicit":
        raise ValueError(f"plan.{next(iter(given))} is read by plan.rule=explicit only; given rule={config.rule}")
    if config.rule == "keep":
        return measured, "pose as scanned", []
    if config.rule == "explicit":
        if not given:
            raise ValueError(f"plan.rule=explicit needs at least one of {', '.join(_PARTS)}")
        return replace(measured, **given), "given explicitly", [f"{k} set to {v:g}" for k, v in given.items()]
    if name not in NORMS:
        raise ValueError(f"no norm is known for {name}; use plan.rule=keep or explicit (norms: {', '.join(NORMS)})")
    limits = config.limits
    angle, height = NORMS[name]
    notes = [f"norm of {name}: disc angle {angle:g}° [S66], middle disc height {height:g} mm [S69]"]
    changes = {
        "lordosis_deg": (angle - measured.lordosis_deg, limits.lordosis_deg),
        # a disc that is already taller than the norm is not compressed
        "height_middle_mm": (max(height - measured.height_middle_mm, 0.0), limits.height_mm),
        "coronal_deg": (-measured.coronal_deg, limits.coronal_deg),
        "axial_deg": (-measured.axial_deg, limits.axial_deg),
        "listhesis_mm": (_slip(measured.listhesis_mm, limits.slip_tolerance_mm), limits.listhesis_mm),
        "lateral_mm": (_slip(measured.lateral_mm, limits.slip_tolerance_mm), limits.lateral_mm),
    }
    target = {}
    for part, (change, most) in changes.items():
        limited = float(np.clip(change, -most, most))
        if abs(change) > most + 0.05:
            notes.append(f"{part}: change of {change:+.1f} limited to {limited:+.1f}")
        target[part] = getattr(measured, part) + limited
    return replace(measured, **target), "published norms [S66, S69]", notes


def _slip(slip_mm: float, tolerance_mm: float) -> float:
    return -float(np.sign(slip_mm)) * max(abs(slip_mm) - tolerance_mm, 0.0)


def _blend(start: SegmentAlignment, end: SegmentAlignment, share: float) -> dict[str, float]:
    a, b = asdict(start), asdict(end)
    return {part: a[part] + share * (b[part] - a[part]) for part in _PARTS}


def _motion(cranial: Vertebra, caudal: Vertebra, target: dict[str, float]) -> np.ndarray:
    """Motion of the cranial vertebra in the patient frame that brings the alignment to `target`."""
    return superior_frame(caudal) @ cranial_pose(**target) @ inverse(inferior_frame(cranial))


def _moved_alignment(cranial: Vertebra, caudal: Vertebra, motion: np.ndarray) -> SegmentAlignment:
    moved = (move_endplate(motion, cranial.superior), move_endplate(motion, cranial.inferior))
    return measure(moved, (caudal.superior, caudal.inferior))
