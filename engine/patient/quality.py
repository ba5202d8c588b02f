"""The quality gate: what is wrong with a segmentation, found before anything is built on it.

Each finding has a code, a severity and a place. "stop" findings end the job unless the user accepts their code
(`source.accept=[leak]`), which is recorded in the bundle. What only concerns a level outside the treated segment leaves that level
out instead.

    code         found by                                                                        stop at (warning at)
    absent       the level has no voxel                                                          in the segment
    fragments    second largest piece (26-connected) over the level's voxels                     20 % (2 %)
    truncated    area of the mask on the image's border                                          30 mm² (any)
    holes        cavities inside the mask over its volume (they are filled)                      15 % (3 %)
    flipped      most posterior elements lie in front of their bodies                            yes
    order        a body is not below the one above it, along z                                   yes
    misnumbered  consecutive numbers one body too far apart, or a gap in the numbers without     yes
    missing      a gap in the numbers with a gap in the spine: the level isn't segmented         (warning)
    spacing      distance of neighbouring bodies over that of the next pairs                     > 1.6 or < 0.6
    leak         share of a body's column (12 mm about the line of bodies) that is nearer to     6 % (2 %)
                 the neighbour's body
    contact      area in which two neighbouring bodies touch (facets often do; they are parted)  400 mm² (50 mm²)
    volume       a level's volume over the mean of its neighbours'                               1.8, 0.5 (1.35, 0.7)
    transition   L6 or T13; four lumbar levels above a sacrum; the last level isn't on it        (warning)
    coarse       largest voxel edge                                                              5 mm (2 mm)

The limits are ours [M]: neighbouring lumbar volumes differ by under 20 %, bodies stand 25-45 mm apart; TotalSegmentator's maintainers
speak of 1-2 % of cases with mixed neighbours (issue 291). A mirrored image (left for right) cannot be found from bones: they are
symmetric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.ndimage import binary_fill_holes, find_objects, gaussian_filter, label

from engine.patient.levels import LEVELS
from engine.patient.schemes import Scheme
from engine.types import Finding, rigid

LARGEST_CUT_MM2 = 30.0
_COLUMN_MM = 12.0
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


@dataclass(frozen=True)
class Piece:
    """One label of the image: the voxels of its bounding box and what the gate measures on them.

    mask [i, j, k] bool, largest piece, filled     lps_from_index [4, 4] of the box
    body_mm   deep point of the body               centroid_mm of the whole mask
    cut_mm2   area on the image's border           where the border was touched, in words
    """

    level: str
    number: int
    mask: np.ndarray
    lps_from_index: np.ndarray
    volume_mm3: float
    body_mm: np.ndarray
    centroid_mm: np.ndarray
    fragments: tuple[int, float, int] = (1, 0.0, 0)
    hole_share: float = 0.0
    cut_mm2: float = 0.0
    cut_where: str = ""
    box: tuple[slice, ...] = field(default=(), repr=False)


def pieces(values: np.ndarray, lps_from_index: np.ndarray, numbers: Mapping[str, tuple[int, ...]]) -> dict[str, Piece]:
    """The pieces of the levels in `numbers` (level → its label numbers) that the image has, in that order."""
    boxes = find_objects(values)
    result = {}
    for level, group in numbers.items():
        there = [boxes[n - 1] for n in group if n <= len(boxes) and boxes[n - 1] is not None]
        if there:
            box = tuple(slice(min(b[a].start for b in there), max(b[a].stop for b in there)) for a in range(3))
            result[level] = _piece(level, group, values, box, lps_from_index)
    return result


def _piece(level: str, group: tuple[int, ...], values: np.ndarray, box: tuple[slice, ...], matrix: np.ndarray) -> Piece:
    mask = np.isin(values[box], group)
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    found, count = label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(found.ravel())[1:]
    largest = int(np.argmax(sizes))
    second = float(np.sort(sizes)[-2]) / float(sizes.sum()) if count > 1 else 0.0
    mask = found == largest + 1
    filled = binary_fill_holes(mask)
    cut, where = 0.0, ""
    for axis in range(3):
        face = float(np.prod(voxel)) / voxel[axis]
        for side, name, on_border in ((0, "first", box[axis].start == 0), (-1, "last", box[axis].stop == values.shape[axis])):
            area = float(np.take(mask, side, axis=axis).sum()) * face if on_border else 0.0
            if area > cut:
                cut, where = area, f"{name} slice of axis {axis}"
    local = matrix.copy()
    local[:3, 3] = rigid(matrix, np.array([float(s.start) for s in box]))
    return Piece(
        level=level,
        number=group[0],
        mask=filled,
        lps_from_index=local,
        volume_mm3=float(filled.sum()) * float(np.prod(voxel)),
        body_mm=_deepest(filled, voxel, local),
        centroid_mm=rigid(local, np.argwhere(filled).mean(axis=0)),
        fragments=(count, second, int(sizes.sum() - sizes[largest])),
        hole_share=float((filled & ~mask).sum()) / float(filled.sum()),
        cut_mm2=cut,
        cut_where=where,
        box=box,
    )


def _deepest(mask: np.ndarray, voxel: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The peak of the mask blurred by 7 mm: the body is a vertebra's thickest part (as anatomy.body_centre)."""
    stride = np.maximum(np.round(2.0 / voxel).astype(int), 1)
    coarse = mask[:: stride[0], :: stride[1], :: stride[2]].astype(np.float32)
    blurred = gaussian_filter(coarse, 7.0 / (voxel * stride), mode="constant")
    return rigid(matrix, np.array(np.unravel_index(int(np.argmax(blurred)), blurred.shape)) * stride)


def gate(
    found: Mapping[str, Piece],
    scheme: Scheme,
    values: np.ndarray,
    segment: tuple[str, str],
    voxel_mm: np.ndarray,
    accept: Iterable[str] = (),
) -> list[Finding]:
    """All findings (module docstring), those of accepted codes marked so.

    found   pieces of the mobile levels, cranial to caudal, and "S1" last where the image has a sacrum
    """
    findings = [*_image(voxel_mm)]
    for level in segment:
        if level not in found:
            names = ", ".join(found) or "none"
            findings.append(Finding("absent", "stop", level, f"the mask holds no {level} (scheme {scheme.name}); it holds {names}"))
    for piece in found.values():
        findings += _single(piece)
    mobile = [piece for level, piece in found.items() if level != "S1"]
    findings += _flipped(mobile)
    findings += _column(mobile, found.get("S1"), values)
    findings += _family(mobile)
    findings += _transition(mobile, found.get("S1"))
    accepted = set(accept)
    unknown = accepted - set(_CODES)
    if unknown:
        raise ValueError(f"source.accept names {', '.join(sorted(unknown))}; findings are {', '.join(_CODES)}")
    result = []
    for finding in findings:
        if finding.severity == "stop" and finding.code in accepted and finding.code != "absent":
            finding = replace(finding, severity="accepted")
        elif finding.severity == "stop" and finding.code in _LOCAL and finding.level not in segment:
            finding = replace(finding, severity="left out")
        result.append(finding)
    return result


_CODES = (
    "fragments", "truncated", "holes", "flipped", "order", "misnumbered", "missing", "spacing", "leak", "contact", "volume", "transition",
    "coarse",
)  # fmt: skip


def stops(findings: Iterable[Finding]) -> str:
    """One line of all findings that stop the job and how to go on; empty where there is none."""
    lines = [finding for finding in findings if finding.severity == "stop"]
    if not lines:
        return ""
    codes = ",".join(sorted({finding.code for finding in lines if finding.code != "absent"}))
    remedy = f"; correct the segmentation, or go on with source.accept=[{codes}] (it is recorded)" if codes else ""
    return "; ".join(f"{finding.code}: {finding.level + ': ' if finding.level else ''}{finding.text}" for finding in lines) + remedy


def _graded(code: str, value: float, level: str, text: str, place: np.ndarray | None = None) -> list[Finding]:
    warn, stop = _LIMITS[code]
    if value <= warn:
        return []
    return [Finding(code, "stop" if value > stop else "warning", level, text, _place(place))]


def _place(point: np.ndarray | None) -> tuple[float, float, float] | None:
    return None if point is None else (float(point[0]), float(point[1]), float(point[2]))


def _image(voxel_mm: np.ndarray) -> list[Finding]:
    size = " × ".join(f"{v:.2f}" for v in voxel_mm)
    return _graded("coarse", float(voxel_mm.max()), "", f"voxels of {size} mm; endplates and facets are blurred above 2 mm")


def _single(piece: Piece) -> list[Finding]:
    result = []
    count, share, voxels = piece.fragments
    if count > 1:
        text = f"in {count} pieces, the second with {share:.1%} of the voxels; {voxels} voxels of smaller pieces removed"
        found = _graded("fragments", share, piece.level, text, piece.centroid_mm)
        result += found or [Finding("fragments", "note", piece.level, text)]
    text = f"cut off by the image's border ({piece.cut_mm2:.0f} mm² on the {piece.cut_where}); a whole vertebra is needed"
    if piece.level == "S1":
        # only its upper endplate is read, and the sacrum is nearly always cut
        if piece.cut_mm2 > 0.0:
            result.append(Finding("truncated", "note", "S1", f"touches the image's border ({piece.cut_mm2:.0f} mm²)"))
    else:
        result += _graded("truncated", piece.cut_mm2, piece.level, text, piece.centroid_mm)
        text = f"cavities of {piece.hole_share:.1%} of the volume inside the mask are filled"
        result += _graded("holes", piece.hole_share, piece.level, text, piece.centroid_mm)
    return result


def _flipped(mobile: list[Piece]) -> list[Finding]:
    whole = [piece for piece in mobile if piece.cut_mm2 <= LARGEST_CUT_MM2]
    behind = [float((piece.centroid_mm - piece.body_mm)[1]) for piece in whole]
    if whole and sum(b < 0.0 for b in behind) > 0.5 * len(behind):
        return [Finding("flipped", "stop", "", "the processes lie in front of the bodies; the image's orientation (affine) is wrong")]
    return []


def _column(mobile: list[Piece], sacrum: Piece | None, values: np.ndarray) -> list[Finding]:
    result = []
    facets = []
    whole = [piece for piece in mobile if piece.cut_mm2 <= LARGEST_CUT_MM2]  # the deepest point of half a body isn't its centre
    for upper, lower in pairwise(whole):
        offset = upper.body_mm - lower.body_mm
        gap = float(np.linalg.norm(offset))
        if offset[2] <= 0.25 * gap:
            text = f"{lower.level} is not below {upper.level} (bodies {offset[2]:.0f} mm apart in height of {gap:.0f} mm)"
            result.append(Finding("order", "stop", lower.level, text, _place(lower.body_mm)))
            continue
        bodies, all_of_it = _touching(upper, lower, values)
        pair = f"{upper.level}-{lower.level}"
        text = f"the bodies of {pair} touch over {bodies:.0f} mm²: fused, or one leaks into the other"
        result += _graded("contact", bodies, upper.level, text, 0.5 * (upper.body_mm + lower.body_mm))
        if all_of_it > bodies:
            facets.append(f"{pair} {all_of_it - bodies:.0f} mm²")
        result += _leak(upper, lower)
    if facets:
        result.append(Finding("contact", "note", "", f"facet joints without a gap in the mask: {', '.join(facets)}; neighbours are parted"))
    result += _spacing(mobile)
    if sacrum is not None and whole and sacrum.body_mm[2] > whole[-1].body_mm[2]:
        result.append(Finding("order", "stop", "S1", f"the sacrum is not below {whole[-1].level}", _place(sacrum.body_mm)))
    return result


def _spacing(mobile: list[Piece]) -> list[Finding]:
    result = []
    gaps = [float(np.linalg.norm(a.body_mm - b.body_mm)) for a, b in pairwise(mobile)]
    cut = {piece.level for piece in mobile if piece.cut_mm2 > LARGEST_CUT_MM2}
    steps = [len(_between(upper.level, lower.level)) + 1 for upper, lower in pairwise(mobile)]
    for k, (upper, lower) in enumerate(pairwise(mobile)):
        if upper.level in cut or lower.level in cut:
            continue
        beside = [m for m in (k - 2, k - 1, k + 1, k + 2) if 0 <= m < len(gaps)]
        around = [gaps[m] / steps[m] for m in beside if not {mobile[m].level, mobile[m + 1].level} & cut]
        usual = float(np.median(around)) if around else 33.0
        ratio = gaps[k] / usual
        low, high = (0.6, 1.6) if around else (0.45, 2.0)
        pair = f"{upper.level} and {lower.level}"
        apart = f"stand {gaps[k]:.0f} mm apart, neighbouring pairs {usual:.0f} mm"
        if steps[k] > 1 and ratio > 0.75 * steps[k]:
            found = ("missing", "warning", f"{', '.join(_between(upper.level, lower.level))} between {pair} is not segmented")
        elif steps[k] > 1:
            found = ("misnumbered", "stop", f"numbers jump over {', '.join(_between(upper.level, lower.level))}, but {pair} {apart}")
        elif ratio > high:
            found = ("misnumbered", "stop", f"{pair} {apart}: a level between them has no label, or is numbered wrongly")
        elif ratio < low:
            found = ("spacing", "stop", f"{pair} {apart}: one vertebra under two labels?")
        else:
            continue
        code, severity, text = found
        result.append(Finding(code, severity, lower.level, text, _place(0.5 * (upper.body_mm + lower.body_mm))))
    return result


def _between(upper: str, lower: str) -> list[str]:
    """Regular levels between two (L6 and T13 are not missed)."""
    regular = [level for level in LEVELS if level not in ("L6", "S1")]
    if upper not in regular or lower not in regular:
        return []
    return regular[regular.index(upper) + 1 : regular.index(lower)]


def contact_faces(upper: Piece, lower: Piece, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n, 3] (LPS) and areas [n] (mm²) of the voxel faces between two labels."""
    low = [max(max(a.start, b.start) - 1, 0) for a, b in zip(upper.box, lower.box, strict=True)]
    high = [min(a.stop, b.stop) + 1 for a, b in zip(upper.box, lower.box, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return np.zeros((0, 3)), np.zeros(0)
    part = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    matrix = upper.lps_from_index
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    start = np.array(low, float) - [s.start for s in upper.box]
    points, areas = [], []
    for axis in range(3):
        first = np.take(part, range(part.shape[axis] - 1), axis=axis)
        second = np.take(part, range(1, part.shape[axis]), axis=axis)
        faces = ((first == upper.number) & (second == lower.number)) | ((first == lower.number) & (second == upper.number))
        points.append(rigid(matrix, np.argwhere(faces) + start + 0.5 * (np.arange(3) == axis)))
        areas.append(np.full(len(points[-1]), float(np.prod(voxel)) / voxel[axis]))
    return np.concatenate(points), np.concatenate(areas)


def _touching(upper: Piece, lower: Piece, values: np.ndarray) -> tuple[float, float]:
    """Area (mm²) of voxel faces between two labels: within 18 mm of the line between their bodies, and in all."""
    points, areas = contact_faces(upper, lower, values)
    line = lower.body_mm - upper.body_mm
    offset = points - upper.body_mm
    away = np.linalg.norm(offset - (offset @ line / (line @ line))[:, None] * line, axis=1)
    return float(areas[away < 18.0].sum()), float(areas.sum())


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
        column = (away < _COLUMN_MM) & (along > -0.5 * length)
        share = float((column & (along > 0.62 * length)).sum()) / max(float(column.sum()), 1.0)
        text = f"{share:.1%} of its column lies on the side of {other.level}'s body: the label leaks into its neighbour"
        result += _graded("leak", share, own.level, text, own.body_mm + 0.8 * length * axis)
    return result


def _family(mobile: list[Piece]) -> list[Finding]:
    """Volumes beside the neighbours' (whole vertebrae only)."""
    result = []
    whole = [piece for piece in mobile if piece.cut_mm2 <= LARGEST_CUT_MM2]
    for k, piece in enumerate(whole):
        near = [whole[m].volume_mm3 for m in (k - 1, k + 1) if 0 <= m < len(whole)]
        if not near:
            continue
        ratio = piece.volume_mm3 / float(np.mean(near))
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
            text = f"the mask holds {piece.level}: transitional anatomy; level names and norms need a human eye"
            result.append(Finding("transition", "warning", piece.level, text, _place(piece.body_mm)))
    if sacrum is None or not mobile:
        return result
    last = mobile[-1]
    if last.level == "L4":
        text = "the level above the sacrum is L4: four lumbar vertebrae (sacralised L5?) or a missing L5"
        result.append(Finding("transition", "warning", "L4", text, _place(last.body_mm)))
    elif last.level not in ("L5", "L6"):
        text = f"the mask holds a sacrum, but nothing between it and {last.level}"
        result.append(Finding("missing", "warning", last.level, text, _place(last.body_mm)))
    return result
