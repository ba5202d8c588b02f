"""The plan of a segment: where the cranial vertebra shall stand, and why.

Rules
    keep         the pose as scanned
    explicit     the pose asked for, component by component (what is not given stays as scanned)
    norms        towards the published norms of the level [S66, S69]
    gap_ideal …  (LORDOSIS_RULES) towards the lumbar lordosis that a named rule of rules.py asks of
                 this patient: what it lacks is spread over `levels`, and this segment takes its
                 share; all but the lordosis as in norms

S66's norm is from superior to superior endplate, so that it holds the cranial body's wedge w
(regional.py). What is planned is
    disc angle = norm − w            (norms)
    disc angle = measured + share    (named rule)
by no more than `limits` and what ligaments and disc space allow (rules.LevelLimit). Where bones
would collide (the facets mostly), the whole correction is backed off in steps of a tenth, and each
step is noted.

Collision: depth to which a bone dips into the other, at its own surface points. It may not exceed
`collision_mm`, or what the scan itself already shows (segmented bones often touch).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.patient.alignment.demand import LevelLimit, distribute
from engine.patient.alignment.disc import cranial_pose, measure, midsagittal
from engine.patient.alignment.measures import SpineAlignment
from engine.patient.alignment.rules import RULES, RuleTarget, compare_rules, level_norms_deg
from engine.patient.alignment.spine import spine_alignment
from engine.patient.geometry.frames import (
    frame,
    inferior_frame,
    inverse,
    move_endplate,
    superior_frame,
)
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

#: Anterior, middle and posterior disc height by level, mm [S69].
HEIGHT_NORMS_MM: dict[str, tuple[float, float, float]] = {
    "L1-L2": (10.8, 10.0, 7.3),
    "L2-L3": (13.1, 11.6, 8.6),
    "L3-L4": (15.2, 12.5, 9.1),
    "L4-L5": (18.1, 13.8, 10.1),
    "L5-S1": (18.7, 13.0, 8.5),
}
LordosisRule = Literal[
    "gap_ideal", "gap_aligned", "schwab", "hasegawa2016", "lehuec2016", "lafage_age", "pi_steps"
]
#: Rules of rules.py that set a lumbar lordosis; equations and sources are there.
LORDOSIS_RULES: tuple[str, ...] = get_args(LordosisRule)
_PARTS = (
    "lordosis_deg",
    "coronal_deg",
    "axial_deg",
    "height_middle_mm",
    "listhesis_mm",
    "lateral_mm",
)


class Limits(BaseModel):
    """Largest change that `norms` and the named rules make to each component. Ours [M] but for
    the ligaments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lordosis_deg: float = Field(default=8.0, ge=0.0, le=20.0)
    height_mm: float = Field(default=4.0, ge=0.0, le=8.0)
    coronal_deg: float = Field(default=10.0, ge=0.0, le=20.0)
    #: axial rotation and lateral slip are left by default: the facets guide them, a cage does not
    #: set them
    axial_deg: float = Field(default=0.0, ge=0.0, le=15.0)
    listhesis_mm: float = Field(default=6.0, ge=0.0, le=15.0)
    lateral_mm: float = Field(default=0.0, ge=0.0, le=15.0)
    #: slips of the endplates' centres below this are anatomy and noise, and are left
    slip_tolerance_mm: float = Field(default=2.0, ge=0.0, le=5.0)
    #: stretch at which the anterior and the posterior longitudinal ligament turn stiff [S8]; 1:
    #: cut, as the anterior one is for an ALIF
    anterior_ligament_strain: float = Field(default=0.12, ge=0.0, le=1.0)
    posterior_ligament_strain: float = Field(default=0.11, ge=0.0, le=1.0)
    #: the rim that closes stays this high, or as it was scanned where that is less
    rim_height_mm: float = Field(default=5.0, ge=0.0, le=12.0)


class PlanConfig(BaseModel):
    """How the target is set. The components are read by rule `explicit` only, `levels` by the
    named rules only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["norms", "keep", "explicit"] | LordosisRule = "norms"
    levels: tuple[str, ...] | None = Field(
        default=None,
        description="treated, over which a rule's demand is spread; null: this segment",
    )
    limits: Limits = Limits()
    collision_mm: float = Field(default=0.3, ge=0.0, le=2.0)
    lordosis_deg: float | None = Field(default=None, ge=-15.0, le=35.0)
    coronal_deg: float | None = Field(default=None, ge=-20.0, le=20.0)
    axial_deg: float | None = Field(default=None, ge=-20.0, le=20.0)
    height_middle_mm: float | None = Field(default=None, ge=2.0, le=22.0)
    listhesis_mm: float | None = Field(default=None, ge=-20.0, le=20.0)
    lateral_mm: float | None = Field(default=None, ge=-20.0, le=20.0)
    #: explicit components that are far from the scan's are meant so (`check_explicit`)
    as_meant: bool = False
    spacing_mm: float = Field(default=0.75, ge=0.4, le=2.0, description="of the segment's fields")
    #: of the arch, what lies this far above and below the pedicles is simulated; facets and
    #: processes are not
    posterior_reach_mm: float = Field(default=10.0, ge=8.0, le=20.0)


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
    wanted, source, notes, demands = _target(
        patient, segment_name, config, measured, alignment, age
    )
    backs_off = config.rule not in ("keep", "explicit")
    scanned_overlap = collision_mm(cranial, caudal, np.eye(4))
    allowed = max(config.collision_mm, scanned_overlap + 0.05)
    steps = np.arange(10, -1, -1) / 10.0 if backs_off else np.array([1.0])
    motion, depth, share = np.eye(4), 0.0, 1.0
    for share in steps.tolist():
        motion = _motion(cranial, caudal, _blend(measured, wanted, share))
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
    if share < 1.0:
        notes.append(
            f"backed off to {share:.0%} of the correction, where the bones are clear of each other"
        )
        demands = [
            _backed_off(demand, share) if demand.level == segment_name else demand
            for demand in demands
        ]
        notes += [
            f"lordosis: {d.given_deg:+.1f}° of {d.wanted_deg:+.1f}° wanted"
            for d in demands
            if d.level == segment_name
        ]
    planned = _moved_alignment(cranial, caudal, motion)
    to_segment = inverse(superior_frame(caudal))
    made = AlignmentPlan(
        rule=config.rule,
        source=source,
        measured=measured,
        planned=planned,
        cranial_motion=to_segment @ motion @ inverse(to_segment),
        notes=tuple(notes),
        demands=tuple(demands),
    )
    warnings = list(
        patient.repairs and (f"{len(patient.repairs)} repairs on the way in; see the bundle",)
    )
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
    return build_segment(
        segment_name,
        patient.name,
        cranial,
        caudal,
        motion,
        made,
        config.spacing_mm,
        patient.density_source,
        tuple(warnings),
        config.posterior_reach_mm,
    )


def check_plan(config: PlanConfig, segment_name: str) -> None:
    """What can be refused before a patient is read. Raises ValueError for targets or levels
    given with a rule that does not read them, an explicit plan without targets, and a segment
    for which the rule has no norm."""
    given = [part for part in _PARTS if getattr(config, part) is not None]
    if given and config.rule != "explicit":
        raise ValueError(
            f"plan.{given[0]} is read by plan.rule=explicit only; given rule={config.rule}"
        )
    if config.levels is not None and config.rule not in LORDOSIS_RULES:
        raise ValueError(
            f"plan.levels is read by {', '.join(LORDOSIS_RULES)} only; given rule={config.rule}:"
            " leave it out"
        )
    if config.rule == "explicit" and not given:
        raise ValueError(f"plan.rule=explicit needs at least one of {', '.join(_PARTS)}")
    if config.rule not in ("keep", "explicit") and segment_name not in HEIGHT_NORMS_MM:
        raise ValueError(
            f"no norm is known for {segment_name}; use plan.rule=keep or explicit (norms:"
            f" {', '.join(HEIGHT_NORMS_MM)})"
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


def _target(
    patient: PatientModel,
    name: str,
    config: PlanConfig,
    measured: SegmentAlignment,
    alignment: SpineAlignment | None,
    age: float | None,
) -> tuple[SegmentAlignment, str, list[str], list[LevelDemand]]:
    """Target, where it is from, notes, and the demand on each treated level."""
    given = {part: getattr(config, part) for part in _PARTS if getattr(config, part) is not None}
    check_plan(config, name)
    if config.rule == "keep":
        return measured, "pose as scanned", [], []
    if config.rule == "explicit":
        if not config.as_meant:
            check_explicit(given, measured)
        return (
            replace(measured, **given),
            "given explicitly",
            [f"{k} set to {v:g}" for k, v in given.items()],
            [],
        )
    if alignment is None:
        heads = patient.source.get("femoral_heads_mm")
        heads_mm = None if heads is None else np.asarray(heads, float)
        alignment = spine_alignment(
            patient.vertebrae, patient.sacrum, femoral_heads_mm=heads_mm, posture=patient.posture
        )
    if config.rule == "norms":
        source = "published norms [S66, S69]"
        demands, notes = _norm_demand(patient, alignment, name, config.limits)
    else:
        target = _rule_target(config.rule, alignment, age)
        source = f"{target.title}: {target.equation} {target.source}; heights [S69]"
        demands, notes = _rule_demands(patient, alignment, name, config, target)
    lordosis = measured.lordosis_deg + next(
        demand.given_deg for demand in demands if demand.level == name
    )
    limits, height = config.limits, HEIGHT_NORMS_MM[name][1]
    notes.append(f"norm of {name}: middle disc height {height:g} mm [S69]")
    changes = {
        # a disc that is already taller than the norm is not compressed
        "height_middle_mm": (max(height - measured.height_middle_mm, 0.0), limits.height_mm),
        "coronal_deg": (-measured.coronal_deg, limits.coronal_deg),
        "axial_deg": (-measured.axial_deg, limits.axial_deg),
        "listhesis_mm": (
            _slip(measured.listhesis_mm, limits.slip_tolerance_mm),
            limits.listhesis_mm,
        ),
        "lateral_mm": (_slip(measured.lateral_mm, limits.slip_tolerance_mm), limits.lateral_mm),
    }
    parts = {"lordosis_deg": lordosis}
    for part, (change, most) in changes.items():
        limited = float(np.clip(change, -most, most))
        if abs(change) > most + 0.05:
            notes.append(f"{part}: change of {change:+.1f} limited to {limited:+.1f}")
        parts[part] = getattr(measured, part) + limited
    return replace(measured, **parts), source, notes, demands


#: Change of the scanned pose that one operation makes at one level at most [M], and the unit of
#: each component.
LARGEST_CHANGE = {
    "lordosis_deg": (18.0, "°"),
    "coronal_deg": (15.0, "°"),
    "axial_deg": (12.0, "°"),
    "height_middle_mm": (9.0, " mm"),
    "listhesis_mm": (12.0, " mm"),
    "lateral_mm": (10.0, " mm"),
}


def check_explicit(given: Mapping[str, float], measured: SegmentAlignment) -> None:
    """Raises ValueError for explicit plan components that no operation reaches from the scanned
    pose, or that look like a slip.

    A slip: a sign turned (the change would be twice as small, and at least 8 less, with the other
    one; a kyphosis made larger; a slip turned over), or a component of another unit.
    `plan.as_meant=true` goes on.
    """
    wrong = []
    for part, value in given.items():
        now, (most, unit) = getattr(measured, part), LARGEST_CHANGE[part]
        change, turned = value - now, -value - now
        lordotic = part == "lordosis_deg" and value > 0.0 > now  # a kyphotic disc set right
        away = abs(change) > 2.0 * abs(turned) and abs(change) - abs(turned) > 8.0
        away |= part == "lordosis_deg" and value < -2.0 and change < 0.0
        away |= part == "listhesis_mm" and abs(now) > 2.0 and abs(turned) < 0.3
        if part != "height_middle_mm" and away and not lordotic:
            wrong.append(
                f"plan.{part}={value:g} is a change of {change:+.1f}{unit} from the scan's"
                f" {now:.1f}, away from it; with the other sign, plan.{part}={-value:g}, it is"
                f" {turned:+.1f}"
            )
        elif abs(change) > most:
            wrong.append(
                f"plan.{part}={value:g} is a change of {change:+.1f}{unit} from the scan's"
                f" {now:.1f} (at most {most:g})"
            )
        elif part == "height_middle_mm" and change < -3.0:
            wrong.append(
                f"plan.{part}={value:g} closes a disc that is {now:.1f} mm high by {-change:.1f} mm"
            )
    if wrong:
        raise ValueError("; ".join(wrong) + "; correct it, or go on with plan.as_meant=true")


def _norm_demand(
    patient: PatientModel, alignment: SpineAlignment, name: str, limits: Limits
) -> tuple[list[LevelDemand], list[str]]:
    """What the level lacks of S66's norm, of the patient's PI group where PI is known."""
    pi = _pi_deg(alignment)
    norm = level_norms_deg(pi)[name]
    measured, wedge = _level_deg(alignment, name), alignment.value("wedge_deg", name.split("-")[0])
    wanted = norm - measured
    limit = _level_limit(patient, alignment, name, wanted >= 0.0, limits)
    most = limit.largest_deg()
    given = float(np.clip(wanted, -most, most))
    group = "all subjects, as PI is not known" if pi is None else f"the group of PI {pi:.0f}°"
    notes = [
        f"norm of {name}: {norm:g}° from superior to superior endplate ({group}) [S66], less"
        f" {wedge:.1f}° of {name.split('-')[0]}'s wedge: disc angle {norm - wedge:.1f}°"
    ]
    if abs(wanted) > most + 0.05:
        notes.append(
            f"lordosis_deg: change of {wanted:+.1f} limited to {given:+.1f} ({limit.limited_by()})"
        )
    return [
        LevelDemand(name, measured, wanted, given, most, limit.limited_by(), wanted - given)
    ], notes


def _rule_target(rule: str, alignment: SpineAlignment, age: float | None) -> RuleTarget:
    """What the named rule asks of the patient. Raises ValueError saying what is missing and
    where to give it."""
    target = next(target for target in compare_rules(alignment, age) if target.rule == rule)
    lordosis = alignment.measure("lumbar_lordosis_deg")
    if not isinstance(lordosis.value, float):
        raise ValueError(
            f"plan.rule={rule} needs the whole lumbar lordosis, which is not measurable:"
            f" {lordosis.reason}; give a source with L1 to L5 and the sacrum (levels=lumbar), or"
            " use plan.rule=norms"
        )
    if target.status != "computed":
        give = []
        if _pi_deg(alignment) is None:
            give.append("alignment.pi_deg=… or alignment.femoral_heads_mm=[[x,y,z],[x,y,z]]")
        if age is None and "age" in RULES[rule].needs:
            give.append("alignment.age=…")
        raise ValueError(
            f"plan.rule={rule} ({target.equation}) cannot be computed: {target.reason}; give"
            f" {' and '.join(give)}, or use plan.rule=norms"
        )
    return target


def _rule_demands(
    patient: PatientModel,
    alignment: SpineAlignment,
    name: str,
    config: PlanConfig,
    target: RuleTarget,
) -> tuple[list[LevelDemand], list[str]]:
    """The rule's demand spread over the treated levels. Raises ValueError for levels without
    `name`, or not measured."""
    levels = config.levels or (name,)
    if name not in levels:
        raise ValueError(
            f"plan.levels={list(levels)} does not hold the planned segment {name}; add it, or plan"
            " one of them"
        )
    there = [level for level in alignment.segments if level in HEIGHT_NORMS_MM]
    for level in levels:
        if level not in there:
            raise ValueError(
                f"plan.levels: {level!r} was not measured or has no norm; choose among"
                f" {', '.join(there)}"
            )
    assert target.change_deg is not None and target.ll_deg is not None  # LL was measured
    limits = {
        level: _level_limit(patient, alignment, level, target.change_deg >= 0.0, config.limits)
        for level in levels
    }
    measured = {level: _level_deg(alignment, level) for level in levels}
    found = distribute(target, levels, measured, limits, level_norms_deg(_pi_deg(alignment)))
    ll = alignment.value("lumbar_lordosis_deg")
    notes = [
        f"{target.title}: LL {target.ll_deg:.1f}° asked, {ll:.1f}° measured;"
        f" {target.change_deg:+.1f}° over {', '.join(levels)}"
    ]
    notes += [note for note in (target.reason, *found.notes) if note]
    if len(levels) > 1:
        notes.append(
            f"{name} takes its share only; the rule is met when the other treated levels get theirs"
        )
    demands = []
    for level in levels:
        wanted, given, limit = found.wanted_deg[level], found.levels_deg[level], limits[level]
        demands.append(
            LevelDemand(
                level,
                measured[level],
                wanted,
                given,
                limit.largest_deg(),
                limit.limited_by(),
                wanted - given,
            )
        )
    return demands, notes


def _pi_deg(alignment: SpineAlignment) -> float | None:
    found = alignment.measure("pelvic_incidence_deg").value
    return found if isinstance(found, float) else None


def _level_deg(alignment: SpineAlignment, level: str) -> float:
    """Superior-to-superior lordosis in the segment's own planes, where the plan acts: disc angle
    + wedge of the cranial body."""
    return alignment.segments[level].lordosis_deg + alignment.value(
        "wedge_deg", level.split("-")[0]
    )


def _level_limit(
    patient: PatientModel,
    alignment: SpineAlignment,
    level: str,
    opens_in_front: bool,
    limits: Limits,
) -> LevelLimit:
    """What this patient's disc can give to more (or less) lordosis, once its middle height is
    planned.

    The ligament runs from mid-body to mid-body over the opening rim and was as long as a disc of
    norm height asks [S69]: a collapsed disc leaves it slack. With a the opening rim's height, h the
    planned rise, B half of both bodies' heights there
        opens = (1 + ε)·(B + max(a, norm)) − B − (a + h)
    A ligament that shortened with the disc, or osteophytes, allow less: no image tells.
    """
    disc, (cranial, caudal) = alignment.segments[level], level.split("-")
    anterior, middle, posterior = HEIGHT_NORMS_MM[level]
    rise = min(max(middle - disc.height_middle_mm, 0.0), limits.height_mm)
    plates = {body.name: body.superior for body in patient.vertebrae} | (
        {} if patient.sacrum is None else {"S1": patient.sacrum.superior}
    )
    plate = plates[caudal]
    front_y, back_y = midsagittal(
        move_endplate(inverse(frame(plate.centre_mm, plate.normal, plate.axis_left)), plate)
    )
    front = (
        disc.height_anterior_mm,
        -front_y,
        anterior,
        "height_anterior_mm",
        limits.anterior_ligament_strain,
    )
    back = (
        disc.height_posterior_mm,
        back_y,
        posterior,
        "height_posterior_mm",
        limits.posterior_ligament_strain,
    )
    (height, opens_at, norm, name, strain), (closing, closes_at, *_) = (
        (front, back) if opens_in_front else (back, front)
    )
    # S1's own half is taken as its neighbour's
    bodies = float(
        np.mean([alignment.value(name, body) for body in (cranial, caudal) if body != "S1"])
    )
    return LevelLimit(
        angle_deg=limits.lordosis_deg,
        opens_mm=max((1.0 + strain) * (bodies + max(height, norm)) - bodies - (height + rise), 0.0),
        closes_mm=max(closing + rise - min(closing, limits.rim_height_mm), 0.0),
        opens_at_mm=opens_at,
        closes_at_mm=closes_at,
    )


def _backed_off(demand: LevelDemand, share: float) -> LevelDemand:
    given = share * demand.given_deg
    return replace(
        demand,
        given_deg=given,
        limit_deg=abs(given),
        limited_by="collision",
        shortfall_deg=demand.wanted_deg - given,
    )


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
