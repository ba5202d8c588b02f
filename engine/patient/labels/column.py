"""The column of bodies: what neighbouring levels say of each other's place, number and border.

The codes and limits of its findings are listed in quality.py.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from engine.patient.geometry.levels import LEVELS
from engine.patient.labels.limits import LIMITS, graded, place_of
from engine.patient.labels.pieces import (
    COLUMN_MM,
    FAR_FROM_SACRUM_MM,
    LARGEST_CUT_MM2,
    Piece,
    body_contact,
    posterior_direction,
)
from engine.types import Finding, rigid

#: The segment's own bodies joined by more bone than this are fused (mm²): in none of the public
#: data do bodies touch at all.
BRIDGE_MM2 = 100.0
#: A contact nearer to the line of bodies than this is across their middle (mm); others are in front
#: or at the side by the least share of their distance that points forward.
_MIDDLE_MM, _IN_FRONT_AT_SIDE = 5.0, (0.7, -0.5)
#: Distance of neighbouring bodies where no other pair says what is usual [M].
USUAL_GAP_MM = 33.0
#: Distance of two bodies over the usual one, below and above which it is doubted: where
#: neighbouring pairs say what is usual, and where they don't.
_GAP_RATIOS, _GAP_RATIOS_ALONE = (0.6, 1.6), (0.45, 2.0)
#: Share of the distance of n steps from which the n − 1 levels between are taken to be there, but
#: not labelled.
_GAP_OF_MISSING = 0.75
#: A body is below another where it is lower by this share of their distance.
_LEAST_DROP = 0.25
#: Along the line to the neighbour's body, as a share of their distance: where a body's column
#: begins, and from where it is on the neighbour's side.
_COLUMN_START, _NEIGHBOURS_SIDE = -0.5, 0.62
#: A finding and the two levels that it concerns.
PairFinding = tuple[Finding, tuple[str, str]]


def column_findings(
    mobile: list[Piece], sacrum: Piece | None, values: np.ndarray, segment: tuple[str, str]
) -> list[PairFinding]:
    """The findings "order", "contact", "bridge" and "leak" of neighbouring bodies.

    mobile    bones cranial to caudal     values    [i, j, k] of the label image
    """
    result: list[PairFinding] = []
    facets = []
    # the deepest point of half a body isn't its centre
    whole = [piece for piece in mobile if piece.cut_mm2 <= LARGEST_CUT_MM2]
    for upper, lower in pairwise(whole):
        offset = upper.body_mm - lower.body_mm
        gap = float(np.linalg.norm(offset))
        both = (upper.level, lower.level)
        if offset[2] <= _LEAST_DROP * gap:
            text = (
                f"{lower.level} is not below {upper.level} (bodies {offset[2]:.0f} mm apart in"
                f" height of {gap:.0f} mm)"
            )
            result.append(
                (Finding("order", "stop", lower.level, text, place_of(lower.body_mm)), both)
            )
            continue
        result += [
            (finding, both) for finding in _joined(upper, lower, values, set(both) == set(segment))
        ]
        areas, _, between = body_contact(upper, lower, values)
        if (behind := float(areas[~between].sum())) > 0.0:
            facets.append(f"{upper.level}-{lower.level} {behind:.0f} mm²")
        result += [(finding, (finding.level, finding.level)) for finding in _leak(upper, lower)]
    if facets:
        text = f"facet joints without a gap in the mask: {', '.join(facets)}; neighbours are parted"
        result.append((Finding("contact", "note", "", text), ("", "")))
    if sacrum is not None and whole and sacrum.body_mm[2] > whole[-1].body_mm[2]:
        text = f"the sacrum is not below {whole[-1].level}"
        result.append(
            (
                Finding("order", "stop", "S1", text, place_of(sacrum.body_mm)),
                (whole[-1].level, "S1"),
            )
        )
    return result


def _joined(upper: Piece, lower: Piece, values: np.ndarray, treated: bool) -> list[Finding]:
    """Bodies that touch: fused by bone, and where; or one label leaks into the other."""
    areas, across, between = body_contact(upper, lower, values)
    areas, across = areas[between], across[between]
    bodies_mm2 = float(areas.sum())
    if bodies_mm2 <= LIMITS["contact"][0]:
        return []
    centre = np.average(across, axis=0, weights=areas)
    away = float(np.linalg.norm(centre))
    ahead = -float(centre @ posterior_direction(upper, lower.body_mm - upper.body_mm))
    where = "across the middle"
    if away > _MIDDLE_MM:
        front, side = (share * away for share in _IN_FRONT_AT_SIDE)
        where = "in front" if ahead > front else "at the side" if ahead > side else "behind"
    place = place_of(0.5 * (upper.body_mm + lower.body_mm) + centre)
    pair = f"{upper.level}-{lower.level}"
    if treated and bodies_mm2 > BRIDGE_MM2:
        text = (
            f"the bodies of {pair} are joined {where} by {bodies_mm2:.0f} mm² of bone: the levels"
            " are fused (bony bridge, syndesmophyte, DISH, block vertebra), or one label leaks"
            " into the other. A fused level does not move and takes no cage: choose another"
            " segment, part the labels where the surgeon will, or go on with"
            " source.accept=[bridge]"
        )
        return [Finding("bridge", "stop", upper.level, text, place)]
    text = (
        f"the bodies of {pair} touch {where} over {bodies_mm2:.0f} mm²: fused, or one leaks into"
        " the other"
    )
    return graded("contact", bodies_mm2, upper.level, text, np.array(place))


def spacing(mobile: list[Piece]) -> list[PairFinding]:
    """The findings "missing", "misnumbered" and "spacing" of neighbouring bodies' distances."""
    result: list[PairFinding] = []
    gaps = [float(np.linalg.norm(a.body_mm - b.body_mm)) for a, b in pairwise(mobile)]
    cut = {piece.level for piece in mobile if piece.cut_mm2 > LARGEST_CUT_MM2}
    steps = [len(_between(upper.level, lower.level)) + 1 for upper, lower in pairwise(mobile)]
    for k, (upper, lower) in enumerate(pairwise(mobile)):
        if upper.level in cut or lower.level in cut:
            continue
        beside = [m for m in (k - 2, k - 1, k + 1, k + 2) if 0 <= m < len(gaps)]
        around = [
            gaps[m] / steps[m] for m in beside if not {mobile[m].level, mobile[m + 1].level} & cut
        ]
        usual = float(np.median(around)) if around else USUAL_GAP_MM
        ratio = gaps[k] / usual
        low, high = _GAP_RATIOS if around else _GAP_RATIOS_ALONE
        pair, between = f"{upper.level} and {lower.level}", _between(upper.level, lower.level)
        apart = f"stand {gaps[k]:.0f} mm apart, neighbouring pairs {usual:.0f} mm"
        code, severity = "misnumbered", "stop"
        if steps[k] > 1 and ratio > _GAP_OF_MISSING * steps[k]:
            code, severity = "missing", "warning"
            text = f"{', '.join(between)} between {pair} is not segmented"
        elif steps[k] > 1:
            text = f"numbers jump over {', '.join(between)}, but {pair} {apart}"
        elif ratio > high:
            text = f"{pair} {apart}: a level between them has no label, or is numbered wrongly"
        elif ratio < low:
            code, text = "spacing", f"{pair} {apart}: one vertebra under two labels?"
        else:
            continue
        place = place_of(0.5 * (upper.body_mm + lower.body_mm))
        result.append(
            (Finding(code, severity, lower.level, text, place), (upper.level, lower.level))
        )
    return result


def _between(upper: str, lower: str) -> list[str]:
    """Regular levels between two (L6 and T13 are not missed)."""
    regular = [level for level in LEVELS if level not in ("L6", "S1")]
    if upper not in regular or lower not in regular:
        return []
    return regular[regular.index(upper) + 1 : regular.index(lower)]


def _leak(upper: Piece, lower: Piece) -> list[Finding]:
    """Share of each body's column that lies nearer to the neighbour's body."""
    result = []
    for own, other in ((upper, lower), (lower, upper)):
        points = rigid(own.lps_from_index, np.argwhere(own.mask).astype(float))
        axis = other.body_mm - own.body_mm
        length = float(np.linalg.norm(axis))
        axis = axis / length
        along = (points - own.body_mm) @ axis
        away = np.linalg.norm(points - own.body_mm - along[:, None] * axis, axis=1)
        column = (away < COLUMN_MM) & (along > _COLUMN_START * length)
        share = float((column & (along > _NEIGHBOURS_SIDE * length)).sum()) / max(
            float(column.sum()), 1.0
        )
        text = (
            f"{share:.1%} of its column lies on the side of {other.level}'s body: the label leaks"
            " into its neighbour"
        )
        result += graded("leak", share, own.level, text, own.body_mm + 0.8 * length * axis)
    return result


def transition(mobile: list[Piece], sacrum: Piece | None) -> list[Finding]:
    """The finding "transition", and "missing" of levels above the sacrum."""
    result = []
    for piece in mobile:
        if piece.level in ("L6", "T13"):
            text = (
                f"the mask holds {piece.level}: transitional anatomy; level names and norms need a"
                " human eye"
            )
            result.append(
                Finding("transition", "warning", piece.level, text, place_of(piece.body_mm))
            )
    if sacrum is None or not mobile:
        return result
    last = mobile[-1]
    points = rigid(sacrum.lps_from_index, np.argwhere(sacrum.mask).astype(float))
    near = float(np.linalg.norm(points - last.body_mm, axis=1).min())
    if near > FAR_FROM_SACRUM_MM and last.cut_mm2 <= LARGEST_CUT_MM2:
        what = (
            "L5 is not segmented"
            if last.level == "L4"
            else f"a level between {last.level} and the sacrum has no label"
        )
        text = (
            f"the sacrum begins {near:.0f} mm from the middle of {last.level}'s body (usually"
            f" 25-35): {what}"
        )
        sure = last.level == "L4" or last.level not in ("L5", "L6")
        return [
            *result,
            Finding(
                "missing", "warning" if sure else "stop", last.level, text, place_of(last.body_mm)
            ),
        ]
    if last.level == "L4":
        text = (
            "the level above the sacrum is L4: four lumbar vertebrae (sacralised L5?) or a"
            " missing L5"
        )
        result.append(Finding("transition", "warning", "L4", text, place_of(last.body_mm)))
    elif last.level not in ("L5", "L6"):
        text = f"the mask holds a sacrum, but nothing between it and {last.level}"
        result.append(Finding("missing", "warning", last.level, text, place_of(last.body_mm)))
    return result
