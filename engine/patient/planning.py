"""The plan of a segment: where the cranial vertebra shall stand, and why.

Rules
    keep         the pose as scanned
    explicit     the pose asked for, component by component (what is not given stays as scanned)
    norms        towards the published norms of the level [S66, S69]
    gap_ideal …  (LORDOSIS_RULES) towards the lumbar lordosis that a named rule of rules.py asks of
                 this patient: what it lacks is spread over `levels`, and this segment takes its
                 share; all but the lordosis as in norms

The target of a rule is that of plan_target.py. Where bones would collide (the facets mostly), the
whole correction is backed off in steps of a tenth, and each step is noted.

Collision: depth to which a bone dips into the other, at its own surface points. It may not exceed
`collision_mm`, or what the scan itself already shows (segmented bones often touch).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from engine.patient.alignment.disc import POSE_COMPONENTS, cranial_pose, measure
from engine.patient.alignment.measures import SpineAlignment
from engine.patient.geometry.frames import inferior_frame, inverse, move_endplate, superior_frame
from engine.patient.plan_settings import PlanConfig
from engine.patient.plan_target import Target, target_pose
from engine.patient.segment import build_segment
from engine.types import (
    AlignmentPlan,
    LevelDemand,
    PatientModel,
    Segment,
    SegmentAlignment,
    Vertebra,
    rigid,
)

#: Depth added to the overlap that the scan itself shows, mm: the grid's own accuracy [M].
_OVERLAP_TOLERANCE_MM = 0.05
#: Shares of the correction that are tried, the whole first.
_SHARES = (np.arange(10, -1, -1) / 10.0).tolist()


def plan(
    patient: PatientModel,
    segment_name: str,
    config: PlanConfig | None = None,
    alignment: SpineAlignment | None = None,
    age: float | None = None,
) -> Segment:
    """The segment (e.g. "L4-L5") of the patient at its planned pose.

    alignment   of this patient, with PI where it is known; None: measured here, with the hips of
                `patient.source` if it has them
    age         years, which some rules need

    Raises: ValueError for a segment that the patient does not have, targets or levels given with a
    rule that does not read them, a named rule whose lordosis, PI or age is not known, and a pose at
    which bones collide.
    """
    config = config or PlanConfig()
    cranial, caudal = pair(patient, segment_name)
    measured = measure(cranial, caudal)
    target = target_pose(patient, segment_name, config, measured, alignment, age)
    reached = _clear_pose(segment_name, (cranial, caudal), measured, target, config)
    to_segment = inverse(superior_frame(caudal))
    aligned = AlignmentPlan(
        rule=config.rule,
        source=target.source,
        measured=measured,
        planned=_moved_alignment(cranial, caudal, reached.motion),
        cranial_motion=to_segment @ reached.motion @ inverse(to_segment),
        notes=(*target.notes, *reached.notes),
        demands=reached.demands,
    )
    return build_segment(
        segment_name,
        patient.name,
        cranial,
        caudal,
        reached.motion,
        aligned,
        config.spacing_mm,
        patient.density_source,
        tuple(_warnings(patient)),
        config.posterior_reach_mm,
    )


def pair(patient: PatientModel, segment_name: str) -> tuple[Vertebra, Vertebra]:
    """(cranial, caudal) vertebra of a segment name. Raises ValueError naming what there is."""
    names = [vertebra.name for vertebra in patient.vertebrae]
    there = [f"{a}-{b}" for a, b in pairwise(names)]
    if segment_name not in there:
        raise ValueError(
            f"segment {segment_name!r} is not in this patient; it has {', '.join(there) or 'none'}"
        )
    at = there.index(segment_name)
    return patient.vertebrae[at], patient.vertebrae[at + 1]


def collision_mm(cranial: Vertebra, caudal: Vertebra, motion: np.ndarray) -> float:
    """How deep (mm, ≥ 0) one bone dips into the other, the cranial one moved by `motion` in the
    patient frame."""
    upper = rigid(motion, cranial.surface.points_mm)
    lower = rigid(inverse(motion), caudal.surface.points_mm)
    return max(0.0, -float(caudal.sdf.sample(upper).min()), -float(cranial.sdf.sample(lower).min()))


class _Reached(NamedTuple):
    """Motion of the cranial vertebra in the patient frame [4, 4], what to note of it, and the
    demands as far as it meets them."""

    motion: np.ndarray
    notes: tuple[str, ...]
    demands: tuple[LevelDemand, ...]


def _clear_pose(
    segment_name: str,
    pair: tuple[Vertebra, Vertebra],
    measured: SegmentAlignment,
    target: Target,
    config: PlanConfig,
) -> _Reached:
    """The target, or as much of it as the bones allow. Raises ValueError where they collide."""
    cranial, caudal = pair
    scanned_overlap = collision_mm(cranial, caudal, np.eye(4))
    allowed = max(config.collision_mm, scanned_overlap + _OVERLAP_TOLERANCE_MM)
    backs_off = config.rule not in ("keep", "explicit")
    depth, notes = 0.0, []
    for share in _SHARES if backs_off else [1.0]:
        motion = _motion(cranial, caudal, _blend(measured, target.alignment, share))
        depth = collision_mm(cranial, caudal, motion)
        if depth <= allowed:
            break
        notes.append(f"{share:.0%} of the correction: bones would collide by {depth:.2f} mm")
    else:
        raise ValueError(
            f"at the planned pose of {segment_name} the bones collide by {depth:.2f} mm (allowed"
            f" {allowed:.2f}); raise plan.height_middle_mm, lower plan.lordosis_deg or the slip"
            " correction, or use plan.rule=norms, which backs off by itself"
        )
    if share == 1.0:
        return _Reached(motion, (), target.demands)
    notes.append(
        f"backed off to {share:.0%} of the correction, where the bones are clear of each other"
    )
    demands = _backed_off(target.demands, segment_name, share)
    notes += [
        f"lordosis: {demand.given_deg:+.1f}° of {demand.wanted_deg:+.1f}° wanted"
        for demand in demands
        if demand.level == segment_name
    ]
    return _Reached(motion, tuple(notes), demands)


def _backed_off(
    demands: Iterable[LevelDemand], segment_name: str, share: float
) -> tuple[LevelDemand, ...]:
    """The demands, that on the planned segment met by `share` of what was to be given."""
    backed = []
    for demand in demands:
        if demand.level == segment_name:
            given = share * demand.given_deg
            demand = replace(
                demand,
                given_deg=given,
                limit_deg=abs(given),
                limited_by="collision",
                shortfall_deg=demand.wanted_deg - given,
            )
        backed.append(demand)
    return tuple(backed)


def _warnings(patient: PatientModel) -> list[str]:
    """What to beware of in a simulation of this patient."""
    warnings = []
    if patient.repairs:
        warnings.append(f"{len(patient.repairs)} repairs on the way in; see the bundle")
    if patient.density_source.startswith("assumed"):
        why = "no CT of this patient was read"
        if patient.source.get("kind") == "ct":
            why = "the CT is not calibrated (calibration=linear, phantom or phantomless)"
        warnings.append(f"density is {patient.density_source}: {why}; tissue measures are relative")
    if patient.density_source.startswith("ct:"):
        warnings.append(
            "density is the CT's; solver.bone_law=morgan2003_vertebra (the default) reads weak bone"
            " some 2.5 times stiffer than kopperdahl2002, which leaves the thin cortex too soft"
            " (3.7 for 12 GPa): compare both"
        )
    warnings.append(
        "facet joints, processes and ligaments are left out of the simulation and carry no load"
    )
    if patient.posture in ("unknown", "supine"):
        warnings.append(
            f"posture of the scan is {patient.posture}: angles are not those of standing (S67)"
        )
    return warnings


def _blend(start: SegmentAlignment, end: SegmentAlignment, share: float) -> dict[str, float]:
    a, b = asdict(start), asdict(end)
    return {part: a[part] + share * (b[part] - a[part]) for part in POSE_COMPONENTS}


def _motion(cranial: Vertebra, caudal: Vertebra, target: dict[str, float]) -> np.ndarray:
    """Motion of the cranial vertebra in the patient frame that brings the alignment to `target`."""
    return superior_frame(caudal) @ cranial_pose(**target) @ inverse(inferior_frame(cranial))


def _moved_alignment(cranial: Vertebra, caudal: Vertebra, motion: np.ndarray) -> SegmentAlignment:
    moved = (move_endplate(motion, cranial.superior), move_endplate(motion, cranial.inferior))
    return measure(moved, (caudal.superior, caudal.inferior))
