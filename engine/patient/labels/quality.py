"""The quality gate: what is wrong with a segmentation, found before anything is built on it.

Each finding has a code, a severity and a place. "stop" findings end the job unless the user accepts
their code (`source.accept=[leak]`), which is recorded in the bundle. What only concerns levels
outside the treated segment leaves these out instead, and, where it puts the count in doubt,
whatever lies beyond them.

    code         found by                                                                        stop
        at (warning at)
    absent       the level has no voxel                                                          in
        the segment
    fragments    second largest piece (26-connected) over the level's voxels                     20
        % (2 %)
    truncated    area of the mask on the image's border                                          30
        mm² (any)
    holes        cavities inside the mask over its volume (they are filled)                      15
        % (3 %)
    identity     the bones have not the sizes of the levels that they are read as (identity.py)  χ²
        8 (4)
    turned       upside down, along another axis, or turned about the long axis (orientation.py) 60°
                 (35°)
    flipped      the processes lie in front of the bodies (orientation.py)                       135°
    mirrored     organs or named sides contradict the image's left (orientation.py)              yes
    resampled    the labels were interpolated, and were mended (resampling.py)                   (warning)
    displaced    HU rises more across the labels' edges if they are moved (placement.py)         3
        mm, 1.5 voxels
    hu           a CT's values are no HU, or went through a window (hounsfield.py)               with
        a calibration
    contrast     contrast agent in the aorta: bone reads too dense (hounsfield.py)               (warning)
    scale        the scale of a CT's HU could not be checked, or in part only (hounsfield.py)    (warning)
    metal        metal or cement in the vertebrae: left out of the density (hounsfield.py)       (warning)
    heads        femoral heads given by hand make an unusual pelvis (given.py)                   (warning)
    measure      the treated segment's own height, slip or angle is unusual (plausible.py)       (warning)
    sides        what tells left from right, or that nothing does (orientation.py)               (note)
    beyond       a level lies beyond one whose count is in doubt                                 (left
        out)
    order        a body is not below the one above it, along z                                   yes
    misnumbered  consecutive numbers one body too far apart, or a gap in the numbers without     yes
    missing      a gap in the numbers with a gap in the spine: the level isn't segmented         (warning)
    spacing      distance of neighbouring bodies over that of the next pairs                     >
        1.6 or < 0.6
    leak         share of a body's column (12 mm about the line of bodies) that is nearer to     6 %
        (2 %)
                 the neighbour's body
    contact      area in which two neighbouring bodies touch (facets often do; they are parted)  400
        mm² (50 mm²)
    bridge       … of the treated segment: they are fused, or leak                               100
        mm²
    volume       a level's volume over the mean of its neighbours'                               1.8,
        0.5 (1.35, 0.7)
    transition   L6 or T13; four lumbar levels above a sacrum; the last level isn't on it        (warning)
    coarse       largest voxel edge                                                              5
        mm (2 mm)

The limits are ours [M]: neighbouring lumbar volumes differ by under 20 %, bodies stand 25-45 mm
apart; TotalSegmentator's maintainers speak of 1-2 % of cases with mixed neighbours (issue 291).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from engine.patient.geometry.levels import LEVELS
from engine.patient.labels.pieces import (
    COLUMN_MM,
    FAR_FROM_SACRUM_MM,
    LARGEST_CUT_MM2,
    Piece,
    body_contact,
    posterior_direction,
)
from engine.patient.read.schemes import Scheme
from engine.types import Finding, rigid

_LIMITS = {
    # code: (warning above, stop above)
    "fragments": (0.02, 0.20),
    "truncated": (0.0, LARGEST_CUT_MM2),
    "holes": (0.03, 0.15),
    "leak": (0.02, 0.06),
    "contact": (50.0, 400.0),
    "coarse": (2.05, 5.0),
}
#: Findings that concern one level only: outside the segment that level is left out.
_LOCAL = ("absent", "fragments", "truncated", "holes", "volume", "leak")


#: Stops that change a label's sizes.
_SPOILS_SIZES = ("leak", "volume", "fragments", "spacing", "contact", "holes")


def gate(
    found: Mapping[str, Piece],
    scheme: Scheme,
    values: np.ndarray,
    segment: tuple[str, str],
    voxel_mm: np.ndarray,
    accept: Iterable[str] = (),
    about: Iterable[Finding] = (),
) -> list[Finding]:
    """All findings (module docstring), those of accepted codes marked so.

    found   pieces of the mobile levels, cranial to caudal, and "S1" last where the image has a
            sacrum
    about   findings on the image as a whole that others made (identity, mirrored, resampled)
    """
    findings = [*_image(voxel_mm), *about]
    for level in segment:
        if level not in found:
            names = ", ".join(found) or "none"
            findings.append(
                Finding(
                    "absent",
                    "stop",
                    level,
                    f"the mask holds no {level} (scheme {scheme.name}); it holds {names}",
                )
            )
    for piece in found.values():
        findings += _single(piece)
    mobile = [piece for level, piece in found.items() if level != "S1"]
    pairs = [*_column(mobile, found.get("S1"), values, segment), *_spacing(mobile)]
    if any(finding.code == "turned" and finding.severity == "stop" for finding in findings):
        pairs = [pair for pair in pairs if pair[0].code != "order"]  # one cause, said once
    findings += _family(mobile)
    findings += _transition(mobile, found.get("S1"))
    every = [*findings, *(finding for finding, _ in pairs)]
    if any(finding.severity == "stop" and finding.code in _SPOILS_SIZES for finding in every):
        # sizes of spoilt labels say nothing of levels: the cause is named, not its effect
        sized = [
            f
            for f in every
            if f.code == "identity" and f.severity == "stop" and "have the sizes of" in f.text
        ]
        every = [f if f not in sized else replace(f, severity="warning") for f in every]
    result = []
    for finding in accepted(every, accept):
        if finding.severity == "stop" and finding.code in _LOCAL and finding.level not in segment:
            finding = replace(finding, severity="left out")
        result.append(finding)
    return _beside(result, pairs, [piece.level for piece in mobile], segment)


def accepted(findings: Iterable[Finding], accept: Iterable[str]) -> list[Finding]:
    """The findings, stops of accepted codes marked so. Raises ValueError for codes that cannot
    be accepted."""
    codes = set(accept)
    if unknown := codes - set(_CODES):
        raise ValueError(
            f"source.accept names {', '.join(sorted(unknown))}; findings are {', '.join(_CODES)}"
        )
    return [
        replace(f, severity="accepted") if f.severity == "stop" and f.code in codes else f
        for f in findings
    ]


def _beside(
    findings: list[Finding],
    pairs: list[tuple[Finding, tuple[str, str]]],
    order: list[str],
    segment: tuple[str, str],
) -> list[Finding]:
    """The findings, where stops on a pair beside the segment leave out its farther level and, as
    its count is in doubt, all beyond."""
    levels_of = {id(finding): levels for finding, levels in pairs}
    treated = [order.index(level) for level in segment if level in order]
    result: list[Finding] = []
    gone: dict[str, str] = {}
    for finding in findings:
        levels = levels_of.get(id(finding))
        needed = (
            levels is not None
            and set(levels) & set(segment)
            and not ("S1" in levels and "S1" not in segment)
        )
        if finding.severity != "stop" or levels is None or not treated or needed:
            result.append(finding)
            continue
        at = [order.index(level) for level in levels if level in order]
        both = finding.code == "order"  # which of the two is in the wrong place is not known
        if at and max(at) < min(treated):
            beyond = order[: max(at) + both][::-1]
        elif "S1" in levels:
            beyond = ["S1"]
        else:
            beyond = [*order[min(at) + (not both) :], "S1"]
        result.append(replace(finding, severity="left out", level=beyond[0]))
        gone |= {level: f"{finding.code} of {'-'.join(levels)}" for level in beyond[1:]}
    said = {finding.level for finding in result if finding.severity == "left out"}
    rest = [
        Finding(
            "beyond",
            "left out",
            level,
            f"lies beyond what is in doubt ({why}), so that its count is too",
        )
        for level, why in gone.items()
        if level not in said
    ]
    return [*result, *rest]


_CODES = (
    "fragments",
    "truncated",
    "holes",
    "identity",
    "turned",
    "flipped",
    "mirrored",
    "order",
    "misnumbered",
    "missing",
    "spacing",
    "leak",
    "contact",
    "bridge",
    "volume",
    "transition",
    "coarse",
    "resampled",
    "displaced",
    "metal",
)


def stops(findings: Iterable[Finding]) -> str:
    """One line of all findings that stop the job and how to go on; empty where there is none."""
    lines = [finding for finding in findings if finding.severity == "stop"]
    if not lines:
        return ""
    codes = ",".join(sorted({finding.code for finding in lines} & set(_CODES)))
    remedy = (
        f"; correct the segmentation, or go on with source.accept=[{codes}] (it is recorded)"
        if codes
        else ""
    )
    return (
        "; ".join(
            f"{finding.code}: {finding.level + ': ' if finding.level else ''}{finding.text}"
            for finding in lines
        )
        + remedy
    )


def _graded(
    code: str, value: float, level: str, text: str, place: np.ndarray | None = None
) -> list[Finding]:
    warn, stop = _LIMITS[code]
    if value <= warn:
        return []
    return [Finding(code, "stop" if value > stop else "warning", level, text, _place(place))]


def _place(point: np.ndarray | None) -> tuple[float, float, float] | None:
    return None if point is None else (float(point[0]), float(point[1]), float(point[2]))


def _image(voxel_mm: np.ndarray) -> list[Finding]:
    size = " × ".join(f"{v:.2f}" for v in voxel_mm)
    return _graded(
        "coarse",
        float(voxel_mm.max()),
        "",
        f"voxels of {size} mm; endplates and facets are blurred above 2 mm",
    )


def _single(piece: Piece) -> list[Finding]:
    result = []
    count, share, voxels = piece.fragments
    if count > 1:
        text = (
            f"in {count} pieces, the second with {share:.1%} of the voxels; {voxels} voxels of"
            " smaller pieces removed"
        )
        found = _graded("fragments", share, piece.level, text, piece.centroid_mm)
        result += found or [Finding("fragments", "note", piece.level, text)]
    text = (
        f"cut off by the image's border ({piece.cut_mm2:.0f} mm² on the {piece.cut_where}); a whole"
        " vertebra is needed"
    )
    if piece.level == "S1":
        # only its upper endplate is read, and the sacrum is nearly always cut
        if piece.cut_mm2 > 0.0:
            result.append(
                Finding(
                    "truncated",
                    "note",
                    "S1",
                    f"touches the image's border ({piece.cut_mm2:.0f} mm²)",
                )
            )
    else:
        result += _graded("truncated", piece.cut_mm2, piece.level, text, piece.centroid_mm)
        text = f"cavities of {piece.hole_share:.1%} of the volume inside the mask are filled"
        result += _graded("holes", piece.hole_share, piece.level, text, piece.centroid_mm)
    return result


#: A finding and the two levels that it concerns.
_Paired = tuple[Finding, tuple[str, str]]


def _column(
    mobile: list[Piece], sacrum: Piece | None, values: np.ndarray, segment: tuple[str, str]
) -> list[_Paired]:
    result: list[_Paired] = []
    facets = []
    whole = [
        piece for piece in mobile if piece.cut_mm2 <= LARGEST_CUT_MM2
    ]  # the deepest point of half a body isn't its centre
    for upper, lower in pairwise(whole):
        offset = upper.body_mm - lower.body_mm
        gap = float(np.linalg.norm(offset))
        both = (upper.level, lower.level)
        if offset[2] <= 0.25 * gap:
            text = (
                f"{lower.level} is not below {upper.level} (bodies {offset[2]:.0f} mm apart in"
                f" height of {gap:.0f} mm)"
            )
            result.append(
                (Finding("order", "stop", lower.level, text, _place(lower.body_mm)), both)
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
            (Finding("order", "stop", "S1", text, _place(sacrum.body_mm)), (whole[-1].level, "S1"))
        )
    return result


#: The segment's own bodies joined by more bone than this are fused (mm²): in none of the public
#: data do bodies touch at all.
BRIDGE_MM2 = 100.0


def _joined(upper: Piece, lower: Piece, values: np.ndarray, treated: bool) -> list[Finding]:
    """Bodies that touch: fused by bone, and where; or one label leaks into the other."""
    areas, across, between = body_contact(upper, lower, values)
    areas, across = areas[between], across[between]
    bodies_mm2 = float(areas.sum())
    if bodies_mm2 <= _LIMITS["contact"][0]:
        return []
    centre = np.average(across, axis=0, weights=areas)
    away = float(np.linalg.norm(centre))
    ahead = -float(centre @ posterior_direction(upper, lower.body_mm - upper.body_mm))
    where = "across the middle"
    if away > 5.0:
        where = (
            "in front" if ahead > 0.7 * away else "at the side" if ahead > -0.5 * away else "behind"
        )
    place = _place(0.5 * (upper.body_mm + lower.body_mm) + centre)
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
    return _graded("contact", bodies_mm2, upper.level, text, np.array(place))


def _spacing(mobile: list[Piece]) -> list[_Paired]:
    result: list[_Paired] = []
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
        usual = float(np.median(around)) if around else 33.0
        ratio = gaps[k] / usual
        low, high = (0.6, 1.6) if around else (0.45, 2.0)
        pair = f"{upper.level} and {lower.level}"
        apart = f"stand {gaps[k]:.0f} mm apart, neighbouring pairs {usual:.0f} mm"
        if steps[k] > 1 and ratio > 0.75 * steps[k]:
            said = (
                "missing",
                "warning",
                f"{', '.join(_between(upper.level, lower.level))} between {pair} is not segmented",
            )
        elif steps[k] > 1:
            said = (
                "misnumbered",
                "stop",
                (
                    f"numbers jump over {', '.join(_between(upper.level, lower.level))}, but {pair}"
                    f" {apart}"
                ),
            )
        elif ratio > high:
            said = (
                "misnumbered",
                "stop",
                f"{pair} {apart}: a level between them has no label, or is numbered wrongly",
            )
        elif ratio < low:
            said = ("spacing", "stop", f"{pair} {apart}: one vertebra under two labels?")
        else:
            continue
        code, severity, text = said
        place = _place(0.5 * (upper.body_mm + lower.body_mm))
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
        column = (away < COLUMN_MM) & (along > -0.5 * length)
        share = float((column & (along > 0.62 * length)).sum()) / max(float(column.sum()), 1.0)
        text = (
            f"{share:.1%} of its column lies on the side of {other.level}'s body: the label leaks"
            " into its neighbour"
        )
        result += _graded("leak", share, own.level, text, own.body_mm + 0.8 * length * axis)
    return result


def _family(mobile: list[Piece]) -> list[Finding]:
    """Volumes beside the neighbours' (whole vertebrae only)."""
    result = []
    whole = [piece for piece in mobile if piece.cut_mm2 <= LARGEST_CUT_MM2]
    for k, piece in enumerate(whole):
        near = [whole[m].volume_mm3 for m in (k - 1, k + 1) if 0 <= m < len(whole)]
        if len(near) < 2 or max(near) > 1.5 * min(near):
            # one fractured neighbour is not taken for the rule
            near = [
                whole[m].volume_mm3
                for m in (k - 3, k - 2, k - 1, k + 1, k + 2, k + 3)
                if 0 <= m < len(whole)
            ]
        if not near:
            continue
        ratio = piece.volume_mm3 / float(np.median(near))
        if 0.7 <= ratio <= 1.35:
            continue
        severity = "warning" if 0.5 <= ratio <= 1.8 else "stop"
        why = "part missing" if ratio < 1.0 else "two bones, or a leak"
        text = f"{piece.volume_mm3 / 1000.0:.0f} cm³ is {ratio:.2f} times its neighbours: {why}?"
        result.append(Finding("volume", severity, piece.level, text, _place(piece.centroid_mm)))
    return result


def _transition(mobile: list[Piece], sacrum: Piece | None) -> list[Finding]:
    result = []
    for piece in mobile:
        if piece.level in ("L6", "T13"):
            text = (
                f"the mask holds {piece.level}: transitional anatomy; level names and norms need a"
                " human eye"
            )
            result.append(
                Finding("transition", "warning", piece.level, text, _place(piece.body_mm))
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
                "missing", "warning" if sure else "stop", last.level, text, _place(last.body_mm)
            ),
        ]
    if last.level == "L4":
        text = (
            "the level above the sacrum is L4: four lumbar vertebrae (sacralised L5?) or a"
            " missing L5"
        )
        result.append(Finding("transition", "warning", "L4", text, _place(last.body_mm)))
    elif last.level not in ("L5", "L6"):
        text = f"the mask holds a sacrum, but nothing between it and {last.level}"
        result.append(Finding("missing", "warning", last.level, text, _place(last.body_mm)))
    return result
