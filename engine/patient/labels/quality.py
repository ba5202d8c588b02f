"""The quality gate: what is wrong with a segmentation, found before anything is built on it.

Each finding has a code, a severity and a place. "stop" findings end the job unless the user accepts
their code (`source.accept=[leak]`), which is recorded in the bundle. What only concerns levels
outside the treated segment leaves these out instead, and, where it puts the count in doubt,
whatever lies beyond them.

The codes, what finds each, and from where it stops (warns):

Of one level (below)
    absent: the level has no voxel. Stops in the segment.
    fragments: second largest piece (26-connected) over the level's voxels. 20 % (2 %).
    truncated: area of the mask on the image's border. 30 mm² (any).
    holes: cavities inside the mask over its volume; they are filled. 15 % (3 %).
    volume: a level's volume over the mean of its neighbours'. 1.8, 0.5 (1.35, 0.7).
    coarse: largest voxel edge. 5 mm (2 mm).

Of neighbouring levels (column.py)
    order: a body is not below the one above it, along z. Stops.
    misnumbered: consecutive numbers one body too far apart, or a gap in the numbers without a gap
        in the spine. Stops.
    missing: a gap in the numbers with a gap in the spine: the level isn't segmented. (Warns.)
    spacing: distance of neighbouring bodies over that of the next pairs. > 1.6 or < 0.6.
    leak: share of a body's column (12 mm about the line of bodies) that is nearer to the
        neighbour's body. 6 % (2 %).
    contact: area in which two neighbouring bodies touch (facets often do; they are parted).
        400 mm² (50 mm²).
    bridge: the same of the treated segment: they are fused, or leak. 100 mm².
    transition: L6 or T13; four lumbar levels above a sacrum; the last level isn't on it. (Warns.)
    beyond: a level lies beyond one whose count is in doubt. Left out.

Of the image as a whole
    identity: the bones have not the sizes of the levels that they are read as (identity.py). By χ²,
        8 (4).
    turned: upside down, along another axis, or turned about the long axis (orientation.py).
        60° (35°).
    flipped: the processes lie in front of the bodies (orientation.py). 135°.
    mirrored: organs or named sides contradict the image's left (orientation.py). Stops.
    sides: what tells left from right, or that nothing does (orientation.py). (Note.)
    resampled: the labels were interpolated, and were mended (resampling.py). (Warns.)

Of the scan, and of what is measured
    displaced: HU rises more across the labels' edges if they are moved (placement.py). 3 mm,
        1.5 voxels.
    hu: a CT's values are no HU, or went through a window (hounsfield.py). Stops with a calibration.
    contrast: contrast agent in the aorta: bone reads too dense (hounsfield.py). (Warns.)
    scale: the scale of a CT's HU could not be checked, or in part only (hounsfield.py). (Warns.)
    metal: metal or cement in the vertebrae: left out of the density (hounsfield.py). (Warns.)
    heads: femoral heads given by hand make an unusual pelvis (given.py). (Warns.)
    measure: the treated segment's own height, slip or angle is unusual (plausible.py). (Warns.)

The limits are ours [M]: neighbouring lumbar volumes differ by under 20 %, bodies stand 25-45 mm
apart; TotalSegmentator's maintainers speak of 1-2 % of cases with mixed neighbours (issue 291).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from engine.patient.labels.column import PairFinding, column_findings, spacing, transition
from engine.patient.labels.limits import graded, place_of
from engine.patient.labels.pieces import LARGEST_CUT_MM2, Piece
from engine.patient.read.schemes import Scheme
from engine.types import Finding

#: Codes that the user may accept.
_CODES = tuple(
    "fragments truncated holes identity turned flipped mirrored order misnumbered missing spacing"
    " leak contact bridge volume transition coarse resampled displaced metal".split()
)
#: Findings that concern one level only: outside the segment that level is left out.
_LOCAL = ("absent", "fragments", "truncated", "holes", "volume", "leak")
#: Stops that change a label's sizes.
_SPOILS_SIZES = ("leak", "volume", "fragments", "spacing", "contact", "holes")
#: A level's volume over its neighbours': within the first no finding, within the second a warning.
_USUAL_VOLUMES, _WARNED_VOLUMES = (0.7, 1.35), (0.5, 1.8)
#: Two neighbours whose volumes differ by more than this factor are no rule: more are asked.
_ONE_SPOILT = 1.5


def gate(
    bones: Mapping[str, Piece],
    scheme: Scheme,
    values: np.ndarray,
    segment: tuple[str, str],
    voxel_mm: np.ndarray,
    accept: Iterable[str] = (),
    about: Iterable[Finding] = (),
) -> list[Finding]:
    """All findings (module docstring), those of accepted codes marked so.

    bones   pieces of the mobile levels, cranial to caudal, and "S1" last where the image has a
            sacrum
    about   findings on the image as a whole that others made (identity, mirrored, resampled)
    """
    findings = [*_voxel_size(voxel_mm), *about, *_absent(bones, scheme, segment)]
    for piece in bones.values():
        findings += _single(piece)
    mobile = [piece for level, piece in bones.items() if level != "S1"]
    sacrum = bones.get("S1")
    pairs = [*column_findings(mobile, sacrum, values, segment), *spacing(mobile)]
    if any(finding.code == "turned" and finding.severity == "stop" for finding in findings):
        pairs = [pair for pair in pairs if pair[0].code != "order"]  # one cause, named once
    findings += [*_volumes(mobile), *transition(mobile, sacrum)]
    every = _causes_first([*findings, *(finding for finding, _ in pairs)])
    graded_findings = []
    for finding in mark_accepted(every, accept):
        if finding.severity == "stop" and finding.code in _LOCAL and finding.level not in segment:
            finding = replace(finding, severity="left out")
        graded_findings.append(finding)
    return _beside(graded_findings, pairs, [piece.level for piece in mobile], segment)


def _absent(bones: Mapping[str, Piece], scheme: Scheme, segment: tuple[str, str]) -> list[Finding]:
    """Stops for levels of the segment that the labels lack."""
    names = ", ".join(bones) or "none"
    return [
        Finding(
            "absent",
            "stop",
            level,
            f"the mask holds no {level} (scheme {scheme.name}); it holds {names}",
        )
        for level in segment
        if level not in bones
    ]


def _causes_first(findings: list[Finding]) -> list[Finding]:
    """The findings, a stop for the sizes of other levels made a warning where a label is spoilt:
    its sizes say nothing of levels, and the cause is named, not its effect."""
    if not any(f.severity == "stop" and f.code in _SPOILS_SIZES for f in findings):
        return findings
    return [
        replace(f, severity="warning")
        if f.code == "identity" and f.severity == "stop" and "have the sizes of" in f.text
        else f
        for f in findings
    ]


def mark_accepted(findings: Iterable[Finding], accept: Iterable[str]) -> list[Finding]:
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
    pairs: list[PairFinding],
    order: list[str],
    segment: tuple[str, str],
) -> list[Finding]:
    """The findings, where stops on a pair beside the segment leave out its farther level and, as
    its count is in doubt, all beyond.

    findings   those of `pairs` as the same objects, unless another severity was given them
    order      the mobile levels, cranial to caudal
    """
    levels_of = {id(finding): levels for finding, levels in pairs}
    treated = [order.index(level) for level in segment if level in order]
    result: list[Finding] = []
    doubtful: dict[str, str] = {}
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
        doubtful |= {level: f"{finding.code} of {'-'.join(levels)}" for level in beyond[1:]}
    named = {finding.level for finding in result if finding.severity == "left out"}
    rest = [
        Finding(
            "beyond",
            "left out",
            level,
            f"lies beyond what is in doubt ({why}), so that its count is too",
        )
        for level, why in doubtful.items()
        if level not in named
    ]
    return [*result, *rest]


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


def _voxel_size(voxel_mm: np.ndarray) -> list[Finding]:
    """The finding "coarse"."""
    size = " × ".join(f"{v:.2f}" for v in voxel_mm)
    return graded(
        "coarse",
        float(voxel_mm.max()),
        "",
        f"voxels of {size} mm; endplates and facets are blurred above 2 mm",
    )


def _single(piece: Piece) -> list[Finding]:
    """The findings "fragments", "truncated" and "holes" of one bone."""
    result = []
    count, share, voxels = piece.fragments
    if count > 1:
        text = (
            f"in {count} pieces, the second with {share:.1%} of the voxels; {voxels} voxels of"
            " smaller pieces removed"
        )
        by_share = graded("fragments", share, piece.level, text, piece.centroid_mm)
        result += by_share or [Finding("fragments", "note", piece.level, text)]
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
        result += graded("truncated", piece.cut_mm2, piece.level, text, piece.centroid_mm)
        text = f"cavities of {piece.hole_share:.1%} of the volume inside the mask are filled"
        result += graded("holes", piece.hole_share, piece.level, text, piece.centroid_mm)
    return result


def _volumes(mobile: list[Piece]) -> list[Finding]:
    """The finding "volume": a bone's beside its neighbours' (whole vertebrae only)."""
    result = []
    whole = [piece for piece in mobile if piece.cut_mm2 <= LARGEST_CUT_MM2]
    for k, piece in enumerate(whole):
        near = [whole[m].volume_mm3 for m in (k - 1, k + 1) if 0 <= m < len(whole)]
        if len(near) < 2 or max(near) > _ONE_SPOILT * min(near):
            # one fractured neighbour is not taken for the rule
            near = [
                whole[m].volume_mm3
                for m in (k - 3, k - 2, k - 1, k + 1, k + 2, k + 3)
                if 0 <= m < len(whole)
            ]
        if not near:
            continue
        ratio = piece.volume_mm3 / float(np.median(near))
        if _USUAL_VOLUMES[0] <= ratio <= _USUAL_VOLUMES[1]:
            continue
        severity = "warning" if _WARNED_VOLUMES[0] <= ratio <= _WARNED_VOLUMES[1] else "stop"
        why = "part missing" if ratio < 1.0 else "two bones, or a leak"
        text = f"{piece.volume_mm3 / 1000.0:.0f} cm³ is {ratio:.2f} times its neighbours: {why}?"
        result.append(Finding("volume", severity, piece.level, text, place_of(piece.centroid_mm)))
    return result
