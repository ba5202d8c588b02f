"""Where the plan's rule puts the cranial vertebra, before bones are asked whether they collide.

What is planned is
    disc angle = norm − w            rule norms; w: wedge of the cranial body
    disc angle = measured + share    a named rule of rules.py
by no more than `limits` and what ligaments and disc space allow (demand.LevelLimit). S66's norm is
from superior to superior endplate, so that it holds the cranial body's wedge w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from engine.patient.alignment.demand import LevelLimit, distribute
from engine.patient.alignment.disc import POSE_COMPONENTS, midsagittal
from engine.patient.alignment.measures import SpineAlignment
from engine.patient.alignment.rules import (
    HEIGHT_NORMS_MM,
    RULES,
    RuleTarget,
    compare_rules,
    level_norms_deg,
)
from engine.patient.alignment.spine import spine_alignment
from engine.patient.geometry.frames import frame, inverse, move_endplate
from engine.patient.plan_settings import Limits, PlanConfig, check_explicit, check_plan
from engine.types import LevelDemand, PatientModel, SegmentAlignment

#: Changes that are cut by less than this are not noted, degrees or mm.
_NOTED = 0.05


@dataclass(frozen=True)
class Target:
    """A target pose, where it is from, what to note of it, and the demand on each treated
    level."""

    alignment: SegmentAlignment
    source: str
    notes: tuple[str, ...] = ()
    demands: tuple[LevelDemand, ...] = ()


class _Case(NamedTuple):
    """The patient, the spine's alignment, and what limits its levels."""

    patient: PatientModel
    alignment: SpineAlignment
    limits: Limits


def target_pose(
    patient: PatientModel,
    name: str,
    config: PlanConfig,
    measured: SegmentAlignment,
    alignment: SpineAlignment | None,
    age: float | None,
) -> Target:
    """The target of segment `name`, as `config.rule` sets it.

    measured    of this segment
    alignment   of the spine; None: measured here where the rule needs it

    Raises: ValueError as `check_plan` and `check_explicit` do, and where a named rule lacks an
    input or a level.
    """
    check_plan(config, name)
    if config.rule == "keep":
        return Target(measured, "pose as scanned")
    if config.rule == "explicit":
        return _explicit_target(config, measured)
    case = _Case(patient, alignment or _measured_spine(patient), config.limits)
    if config.rule == "norms":
        source = "published norms [S66, S69]"
        demands, notes = _norm_demand(case, name)
    else:
        rule = _rule_target(config.rule, case.alignment, age)
        source = f"{rule.title}: {rule.equation} {rule.source}; heights [S69]"
        demands, notes = _rule_demands(case, name, config.levels or (name,), rule)
    given_deg = next(demand.given_deg for demand in demands if demand.level == name)
    pose, pose_notes = _towards_norms(name, measured, config.limits)
    pose = replace(pose, lordosis_deg=measured.lordosis_deg + given_deg)
    return Target(pose, source, (*notes, *pose_notes), tuple(demands))


def _explicit_target(config: PlanConfig, measured: SegmentAlignment) -> Target:
    given = {
        part: getattr(config, part) for part in POSE_COMPONENTS if getattr(config, part) is not None
    }
    if not config.as_meant:
        check_explicit(given, measured)
    notes = tuple(f"{part} set to {value:g}" for part, value in given.items())
    return Target(replace(measured, **given), "given explicitly", notes)


def _measured_spine(patient: PatientModel) -> SpineAlignment:
    heads = patient.source.get("femoral_heads_mm")
    return spine_alignment(
        patient.vertebrae,
        patient.sacrum,
        femoral_heads_mm=None if heads is None else np.asarray(heads, float),
        posture=patient.posture,
    )


def _towards_norms(
    name: str, measured: SegmentAlignment, limits: Limits
) -> tuple[SegmentAlignment, list[str]]:
    """The measured pose with all but its lordosis brought towards the norm, within the limits."""
    height = HEIGHT_NORMS_MM[name][1]
    notes = [f"norm of {name}: middle disc height {height:g} mm [S69]"]
    tolerance = limits.slip_tolerance_mm
    changes = {
        # a disc that is already taller than the norm is not compressed
        "height_middle_mm": (max(height - measured.height_middle_mm, 0.0), limits.height_mm),
        "coronal_deg": (-measured.coronal_deg, limits.coronal_deg),
        "axial_deg": (-measured.axial_deg, limits.axial_deg),
        "listhesis_mm": (_back(measured.listhesis_mm, tolerance), limits.listhesis_mm),
        "lateral_mm": (_back(measured.lateral_mm, tolerance), limits.lateral_mm),
    }
    parts = {}
    for part, (change, most) in changes.items():
        limited = float(np.clip(change, -most, most))
        if abs(change) > most + _NOTED:
            notes.append(f"{part}: change of {change:+.1f} limited to {limited:+.1f}")
        parts[part] = getattr(measured, part) + limited
    return replace(measured, **parts), notes


def _back(slip_mm: float, tolerance_mm: float) -> float:
    """Change that takes a slip back to the tolerance."""
    return -float(np.sign(slip_mm)) * max(abs(slip_mm) - tolerance_mm, 0.0)


# -- norms -----------------------------------------------------------------------------------------
def _norm_demand(case: _Case, name: str) -> tuple[list[LevelDemand], list[str]]:
    """What the level lacks of S66's norm, of the patient's PI group where PI is known."""
    alignment, body = case.alignment, name.split("-")[0]
    pi = _pi_deg(alignment)
    norm = level_norms_deg(pi)[name]
    measured, wedge = _level_deg(alignment, name), alignment.value("wedge_deg", body)
    wanted = norm - measured
    limit = _level_limit(case, name, wanted >= 0.0)
    most = limit.largest_deg()
    given = float(np.clip(wanted, -most, most))
    group = "all subjects, as PI is not known" if pi is None else f"the group of PI {pi:.0f}°"
    notes = [
        f"norm of {name}: {norm:g}° from superior to superior endplate ({group}) [S66], less"
        f" {wedge:.1f}° of {body}'s wedge: disc angle {norm - wedge:.1f}°"
    ]
    if abs(wanted) > most + _NOTED:
        notes.append(
            f"lordosis_deg: change of {wanted:+.1f} limited to {given:+.1f} ({limit.limited_by()})"
        )
    return [_demand(name, measured, wanted, given, limit)], notes


# -- named rules -----------------------------------------------------------------------------------
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
    case: _Case, name: str, levels: tuple[str, ...], target: RuleTarget
) -> tuple[list[LevelDemand], list[str]]:
    """The rule's demand spread over the treated levels. Raises ValueError for levels without
    `name`, or not measured."""
    alignment = case.alignment
    _check_levels(name, levels, alignment)
    assert target.change_deg is not None and target.ll_deg is not None  # LL was measured
    limits = {level: _level_limit(case, level, target.change_deg >= 0.0) for level in levels}
    measured = {level: _level_deg(alignment, level) for level in levels}
    spread = distribute(target, levels, measured, limits, level_norms_deg(_pi_deg(alignment)))
    ll = alignment.value("lumbar_lordosis_deg")
    notes = [
        f"{target.title}: LL {target.ll_deg:.1f}° asked, {ll:.1f}° measured;"
        f" {target.change_deg:+.1f}° over {', '.join(levels)}"
    ]
    notes += [note for note in (target.reason, *spread.notes) if note]
    if len(levels) > 1:
        notes.append(
            f"{name} takes its share only; the rule is met when the other treated levels get theirs"
        )
    demands = [
        _demand(
            level,
            measured[level],
            spread.wanted_deg[level],
            spread.levels_deg[level],
            limits[level],
        )
        for level in levels
    ]
    return demands, notes


def _check_levels(name: str, levels: tuple[str, ...], alignment: SpineAlignment) -> None:
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


# -- one level -------------------------------------------------------------------------------------
def _demand(
    level: str, measured_deg: float, wanted_deg: float, given_deg: float, limit: LevelLimit
) -> LevelDemand:
    return LevelDemand(
        level=level,
        measured_deg=measured_deg,
        wanted_deg=wanted_deg,
        given_deg=given_deg,
        limit_deg=limit.largest_deg(),
        limited_by=limit.limited_by(),
        shortfall_deg=wanted_deg - given_deg,
    )


def _pi_deg(alignment: SpineAlignment) -> float | None:
    incidence = alignment.measure("pelvic_incidence_deg").value
    return incidence if isinstance(incidence, float) else None


def _level_deg(alignment: SpineAlignment, level: str) -> float:
    """Superior-to-superior lordosis in the segment's own planes, where the plan acts: disc angle
    + wedge of the cranial body."""
    wedge = alignment.value("wedge_deg", level.split("-")[0])
    return alignment.segments[level].lordosis_deg + wedge


class _Rim(NamedTuple):
    """The anterior or the posterior rim of a disc.

    height_mm        of the disc there, as scanned
    from_middle_mm   distance from the middle, about which the disc turns
    norm_mm          disc height of the norm there [S69]
    bodies_mm        height of the vertebral bodies there, mean of the two
    strain           at which the ligament over this rim turns stiff
    """

    height_mm: float
    from_middle_mm: float
    norm_mm: float
    bodies_mm: float
    strain: float


def _level_limit(case: _Case, level: str, opens_in_front: bool) -> LevelLimit:
    """What this patient's disc can give to more (or less) lordosis, once its middle height is
    planned.

    The ligament runs from mid-body to mid-body over the opening rim and was as long as a disc of
    norm height asks [S69]: a collapsed disc leaves it slack. With a the opening rim's height, h the
    planned rise, B half of both bodies' heights there
        opens = (1 + ε)·(B + max(a, norm)) − B − (a + h)
    A ligament that shortened with the disc, or osteophytes, allow less: no image tells.
    """
    limits, middle = case.limits, HEIGHT_NORMS_MM[level][1]
    rise = min(max(middle - case.alignment.segments[level].height_middle_mm, 0.0), limits.height_mm)
    front, back = _rims(case, level)
    opening, closing = (front, back) if opens_in_front else (back, front)
    bodies, height, norm = opening.bodies_mm, opening.height_mm, opening.norm_mm
    stretched = (1.0 + opening.strain) * (bodies + max(height, norm))
    return LevelLimit(
        angle_deg=limits.lordosis_deg,
        opens_mm=max(stretched - bodies - (height + rise), 0.0),
        closes_mm=max(closing.height_mm + rise - min(closing.height_mm, limits.rim_height_mm), 0.0),
        opens_at_mm=opening.from_middle_mm,
        closes_at_mm=closing.from_middle_mm,
    )


def _rims(case: _Case, level: str) -> tuple[_Rim, _Rim]:
    """Anterior and posterior rim of the disc, on the caudal endplate."""
    patient, limits, alignment = case.patient, case.limits, case.alignment
    disc, (cranial, caudal) = alignment.segments[level], level.split("-")
    anterior_mm, _, posterior_mm = HEIGHT_NORMS_MM[level]
    plates = {body.name: body.superior for body in patient.vertebrae}
    if patient.sacrum is not None:
        plates["S1"] = patient.sacrum.superior
    plate = plates[caudal]
    front_y, back_y = midsagittal(
        move_endplate(inverse(frame(plate.centre_mm, plate.normal, plate.axis_left)), plate)
    )

    def bodies_mm(name: str) -> float:
        # S1's own half is taken as its neighbour's
        own = [alignment.value(name, body) for body in (cranial, caudal) if body != "S1"]
        return float(np.mean(own))

    return (
        _Rim(
            disc.height_anterior_mm,
            -front_y,
            anterior_mm,
            bodies_mm("height_anterior_mm"),
            limits.anterior_ligament_strain,
        ),
        _Rim(
            disc.height_posterior_mm,
            back_y,
            posterior_mm,
            bodies_mm("height_posterior_mm"),
            limits.posterior_ligament_strain,
        ),
    )
