"""Which level is this? Whether vertebrae have the sizes and shapes of the levels that they are read
as.

Measured on each bone, in its own directions (cranial along the line of bodies, posterior towards
its processes)
    width, depth   chords of the body through its deepest point, left to right and front to back
    span           from the tip of one transverse process to the other's; height, length: along the
                   other two directions

A spine read as levels ℓ, all moved by s along the column, is judged by

    χ²(s) = min_g Σ_i [ (ln w_i/W(ℓ_i+s) − g)²/0.08² + (ln p_i/P(ℓ_i+s) − g)²/0.12² ] + g²/0.10²

with the means W (body width) and P (span) of TYPICAL and the person's own scale g. The spans tell
most: 60 mm in the middle thorax, 47 at T12, 71 at L1, 92 at L5. Measured at s = 0: 11 (T9-L5 of
VerSe004), 2.6 and 1.4 (L1-L5 of ct_totalsegmentator and of lumbar_meshes), 6.6 (L1-L5 of
spine_c1_coccyx), 3.5 (the phantom); one level off: 33, 11.5, 8.1, 16, 10. So a run that holds T12
or all of L1-L5 can be told from one a level away, two bones cannot; nothing tells L4-L5 from L3-L4
but names, or the sacrum.

A sacrum is no vertebra: it is much larger than the level above, or has no transverse processes. A
label that is read as the sacrum and has a vertebra's volume, height, length and span is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engine.patient.geometry.frames import unit
from engine.patient.geometry.levels import LEVELS
from engine.patient.labels.pieces import LARGEST_CUT_MM2, Piece
from engine.types import Finding, rigid

#: Mean width of the upper endplate, and mean span of the transverse processes, mm. [M] after
#: Panjabi et al. 1991 and 1992 (Spine 16:888, 16:861, 17:299), from compilations: the papers' own
#: tables were not read. The four spines above deviate by at most 12 %.
TYPICAL: dict[str, tuple[float, float]] = {
    "T1": (24.5, 75.3),
    "T2": (24.9, 69.4),
    "T3": (24.6, 60.8),
    "T4": (24.5, 60.0),
    "T5": (24.9, 60.2),
    "T6": (26.2, 61.2),
    "T7": (27.8, 60.3),
    "T8": (29.5, 60.2),
    "T9": (30.6, 60.2),
    "T10": (31.9, 58.4),
    "T11": (34.9, 52.2),
    "T12": (39.0, 46.9),
    "L1": (41.2, 71.2),
    "L2": (42.6, 76.1),
    "L3": (44.1, 85.7),
    "L4": (46.6, 79.4),
    "L5": (47.3, 92.5),
}
_WIDTH_SD, _SPAN_SD, _SCALE_SD = 0.08, 0.12, 0.10
#: A cervical vertebra's volume mm³ [M]: its body is too small for chords, so that only this is
#: asked of C3-C7.
_CERVICAL_MM3, _VOLUME_SD = 11e3, 0.35
#: χ² that a reading may lie above the best shift before it is doubted, and before it is refused:
#: likelihoods 1 : 7 and 1 : 55.
DOUBTED, REFUSED = 4.0, 8.0
#: Of two readings of one image the worse is dropped at this much more χ²: likelihoods 1 : 90.
DROPPED = 9.0
#: Two readings whose χ² differ by less are not told apart by sizes.
_TOLD_APART = 2.0
#: Levels whose sizes are known, in order.
_COLUMN = tuple(
    level for level in LEVELS if level in TYPICAL or level in ("C3", "C4", "C5", "C6", "C7")
)
#: A bone whose span is less than this many body widths, and its length less than as many depths,
#: has no processes: bodies alone.
_BODY_ALONE = 1.45


@dataclass(frozen=True)
class Shape:
    """Sizes of one bone, mm and mm³ (module docstring); whole: not cut by the image's border."""

    width_mm: float
    depth_mm: float
    span_mm: float
    length_mm: float
    height_mm: float
    volume_mm3: float
    whole: bool

    @property
    def bodies_only(self) -> bool:
        """Whether the label ends behind the body, so that its span says nothing."""
        narrow = self.span_mm < _BODY_ALONE * self.width_mm
        return narrow and self.length_mm < _BODY_ALONE * self.depth_mm


def shape(piece: Piece, up: np.ndarray) -> Shape:
    """The sizes of one bone; `up` [3] is cranial at its level."""
    points = rigid(piece.lps_from_index, np.argwhere(piece.mask).astype(float))
    back = points.mean(axis=0) - piece.body_mm
    back = back - (back @ up) * up
    # a body without its arch has no posterior direction of its own: the patient's is taken
    back = (
        unit(back) if np.linalg.norm(back) > 2.0 else unit(np.array([0.0, 1.0, 0.0]) - up[1] * up)
    )
    left = np.cross(back, up)
    offset = points - piece.body_mm

    def extent(axis: np.ndarray) -> float:
        low, high = np.quantile(offset @ axis, (0.001, 0.999))
        return float(high - low)

    def chord(axis: np.ndarray) -> float:
        return _reach(piece, axis) + _reach(piece, -axis)

    return Shape(
        width_mm=chord(left),
        depth_mm=chord(back),
        span_mm=extent(left),
        length_mm=extent(back),
        height_mm=extent(up),
        volume_mm3=len(points) * abs(float(np.linalg.det(piece.lps_from_index[:3, :3]))),
        whole=piece.cut_mm2 <= LARGEST_CUT_MM2,
    )


def _reach(piece: Piece, direction: np.ndarray) -> float:
    """How far the bone reaches from its deepest point along a direction, mm."""
    steps = np.arange(0.0, 120.0, 0.5)
    places = piece.body_mm + steps[:, None] * direction
    index = np.rint(rigid(np.linalg.inv(piece.lps_from_index), places)).astype(int)
    there = ((index >= 0) & (index < piece.mask.shape)).all(axis=1)
    there[there] = piece.mask[tuple(index[there].T)]
    return float(steps[np.argmin(there)]) if not there.all() else float(steps[-1])


def shapes(bones: Mapping[str, Piece]) -> dict[str, Shape]:
    """The sizes of all pieces, cranial direction from each to its neighbours in the mapping's
    order (cranial to caudal)."""
    names = list(bones)
    result = {}
    for k, level in enumerate(names):
        near = names[max(k - 1, 0) : k + 2]
        apart = bones[near[0]].body_mm - bones[near[-1]].body_mm
        up = unit(apart) if np.linalg.norm(apart) > 1.0 else np.array([0.0, 0.0, 1.0])
        result[level] = shape(bones[level], up)
    return result


def misfit(sizes: Mapping[str, Shape], shift: int = 0, clipped: float = 9.0) -> float | None:
    """χ² of the sizes read as their levels moved by `shift` caudally, widths' terms at most
    `clipped`.

    None where a level has no typical size, or none is whole.
    """
    rows = []
    for level, size in sizes.items():
        if level not in _COLUMN or not size.whole:
            continue
        at = _COLUMN.index(level) + shift
        if not 0 <= at < len(_COLUMN):
            return None
        if _COLUMN[at] not in TYPICAL:
            rows.append((np.log(size.volume_mm3 / _CERVICAL_MM3), _VOLUME_SD))
            continue
        width, span = TYPICAL[_COLUMN[at]]
        if size.width_mm > 0.0:  # 0 where the deepest point lies outside of the mask
            rows.append((np.log(size.width_mm / width), _WIDTH_SD))
        if not size.bodies_only and size.span_mm > 0.0:
            rows.append((np.log(size.span_mm / span), _SPAN_SD))
    if not rows:
        return None
    value, weight = np.array([r for r, _ in rows]), np.array([1.0 / sd**2 for _, sd in rows])
    scale = float((weight @ value) / (weight.sum() + 1.0 / _SCALE_SD**2))
    terms = weight * (value - scale) ** 2
    # a chord that misses the body (a fractured one's deepest point lies off its centre) is an
    # outlier, not a level
    terms = np.where(weight > 1.01 / _SPAN_SD**2, np.minimum(terms, clipped), terms)
    return float(terms.sum()) + (scale / _SCALE_SD) ** 2


def moved(level: str, shift: int) -> str:
    """The level `shift` places caudal of one."""
    return _COLUMN[_COLUMN.index(level) + shift]


def vertebra_like(size: Shape, others: list[Shape]) -> bool:
    """Whether a bone that is read as the sacrum has the sizes of the vertebrae above it (module
    docstring)."""
    if not others or size.bodies_only:
        return False

    def ratio(name: str) -> float:
        return float(getattr(size, name) / np.median([getattr(other, name) for other in others]))

    processes = size.span_mm / size.width_mm
    return (
        0.55 < ratio("volume_mm3") < 1.6
        and 0.7 < ratio("height_mm") < 1.4
        and 0.7 < ratio("span_mm") < 1.3
        and 0.75 < ratio("length_mm") < 1.3
        # of a sacrum that the image cuts off the upper part is left: wide alae round a wide chord
        and processes >= (1.25 if size.whole else 1.5)
    )


def sacrum_doubts(bones: Mapping[str, Piece], parts: list[Piece]) -> str:
    """Why what is read as the sacrum is none, or a level is one; "" where nothing speaks against
    it.

    bones   mobile levels cranial to caudal, then "S1" where there is one
    parts   the pieces of the sacrum's several numbers
    """
    mobile = {level: piece for level, piece in bones.items() if level != "S1"}
    sizes = shapes(bones)
    above = [sizes[level] for level in mobile if sizes[level].whole][-3:]
    last = next(reversed(mobile), None)
    if "S1" in bones:
        size = sizes["S1"]
        if vertebra_like(size, above):
            return (
                "the label read as the sacrum has the shape of a mobile vertebra"
                f" ({size.volume_mm3 / 1e3:.0f} cm³, transverse processes {size.span_mm:.0f} mm"
                f" apart on a body {size.width_mm:.0f} mm wide)"
            )
        if len(parts) > 1 and above and all(part.cut_mm2 <= LARGEST_CUT_MM2 for part in parts):
            ordered = sorted(parts, key=lambda part: -part.body_mm[2])
            stacked = {f"part {k}": part for k, part in enumerate(ordered)}
            each = [shape for shape in shapes(stacked).values() if _some_vertebra(shape, above)]
            if len(each) > 1:
                volumes = " and ".join(f"{size.volume_mm3 / 1e3:.0f}" for size in each)
                return (
                    f"the sacrum would be {len(each)} separate bones in a row, {volumes} cm³ each,"
                    " of a vertebra's shape"
                )
    elif last is not None and len(mobile) > 1:
        size, others = (
            sizes[last],
            [sizes[level] for level in mobile if level != last and sizes[level].whole][-3:],
        )
        if others:
            volume = size.volume_mm3 / float(np.median([other.volume_mm3 for other in others]))
            height = size.height_mm / float(np.median([other.height_mm for other in others]))
            if volume > 1.8 and height > 1.5:
                return (
                    f"the label read as {last} has the shape of a sacrum ({volume:.1f} times the"
                    " volume of the levels above)"
                )
    return ""


def _some_vertebra(size: Shape, others: list[Shape]) -> bool:
    volume = size.volume_mm3 / float(np.median([other.volume_mm3 for other in others]))
    processes = size.span_mm >= 1.2 * size.width_mm or size.length_mm >= 1.9 * size.depth_mm
    return 0.4 < volume < 1.8 and processes


@dataclass(frozen=True)
class Evidence:
    """What bones' sizes say of a reading: its χ² (plain: without clipping), the best shift's,
    and the lines for the report."""

    own: float | None
    plain: float | None
    best: float | None
    shift: int
    doubts: str
    lines: tuple[str, ...]


def evidence(bones: Mapping[str, Piece], parts: list[Piece] | None = None) -> Evidence:
    """What speaks for and against the levels of `bones` (cranial to caudal, "S1" last); parts:
    of a sacrum of several numbers."""
    mobile = {level: piece for level, piece in bones.items() if level != "S1"}
    sizes = shapes(mobile)
    own = misfit(sizes)
    every = {
        shift: value for shift in range(-12, 13) if (value := misfit(sizes, shift)) is not None
    }
    # a shift that stays put is preferred where nothing is better by half a unit
    best = min(every, key=lambda shift: every[shift] + 0.5 * (shift != 0)) if every else 0
    doubts = sacrum_doubts(bones, parts or [])
    lines = () if own is None else _size_lines(sizes, own, every, "S1" in bones)
    return Evidence(own, misfit(sizes, clipped=np.inf), every.get(best), best, doubts, lines)


def _size_lines(
    sizes: Mapping[str, Shape], own: float, every: Mapping[int, float], with_sacrum: bool
) -> tuple[str, ...]:
    """What the sizes of whole bones say, for the report: a line, or none.

    own, every   χ² as read, and by shift
    """
    whole = [level for level in sizes if sizes[level].whole and level in _COLUMN]
    if not whole:
        return ()
    width = [sizes[level].width_mm for level in whole]
    span = [sizes[level].span_mm for level in whole]
    names = f"{whole[0]}..{whole[-1]}" if len(whole) > 1 else whole[0]
    what = f"bodies {min(width):.0f}-{max(width):.0f} mm wide"
    if not sizes[whole[0]].bodies_only:
        what += f", processes {min(span):.0f}-{max(span):.0f} mm apart"
    line = f"sizes of {names} ({what}) against typical ones: χ² {own:.1f}"
    neighbours = [(every[shift], shift) for shift in (-1, 1) if shift in every]
    if neighbours:
        value, shift = min(neighbours)
        line += f", one level {'up' if shift < 0 else 'down'} {value:.1f}"
        if value - own < _TOLD_APART and not with_sacrum:
            line += " (sizes do not tell it from that: the count rests on numbers or names alone)"
    return (line,)


def ribs_at(bones: Mapping[str, Piece], ribs: Mapping[int, np.ndarray]) -> dict[int, str]:
    """The level at which the head of each rib lies, of those whose own or next level is whole.

    ribs   number 1..12 → points [n, 3] (LPS) of both sides' labels
    """
    mobile = {
        level: piece
        for level, piece in bones.items()
        if level != "S1" and piece.cut_mm2 <= LARGEST_CUT_MM2
    }
    if len(mobile) < 2:
        return {}
    bodies = np.array([piece.body_mm for piece in mobile.values()])
    up = unit(bodies[0] - bodies[-1])
    heights = bodies @ up
    spacing = float(np.median(-np.diff(heights)))
    result = {}
    for number, points in ribs.items():
        # the head: the twentieth of the rib that is nearest to the line of bodies
        at = np.interp(points @ up, heights[::-1], np.arange(len(bodies))[::-1])
        axis = bodies[np.rint(at).astype(int)]
        away = np.linalg.norm(points - axis - ((points - axis) @ up)[:, None] * up, axis=1)
        head = points[away <= np.quantile(away, 0.05)].mean(axis=0)
        offset = np.abs(heights - head @ up)
        if offset.min() < 0.6 * spacing and away.min() < 40.0:
            result[number] = list(mobile)[int(np.argmin(offset))]
    return result


def rib_findings(bones: Mapping[str, Piece], ribs: Mapping[int, np.ndarray]) -> list[Finding]:
    """A warning where most ribs' heads lie a level or more off the vertebra of their number,
    else a note; none without ribs."""
    at = ribs_at(bones, ribs)
    # the head of rib k stands at the upper border of Tk, and so may be nearer to the level above
    off = {k: LEVELS.index(level) - LEVELS.index(f"T{k}") for k, level in at.items()}
    if not off:
        return []
    listing = ", ".join(f"rib {k} at {at[k]}" for k in sorted(at))
    wrong = [k for k, d in off.items() if d not in (-1, 0)]
    if len(wrong) > 0.5 * len(off):
        text = f"ribs and vertebrae disagree ({listing}): the levels, or the ribs' numbers, are off"
        return [Finding("identity", "warning", "", text)]
    return [Finding("identity", "note", "", f"ribs agree with the levels: {listing}")]


def findings(bones: Mapping[str, Piece], clues: Evidence, how: str) -> list[Finding]:
    """The finding "identity": stop where bones contradict their levels, else a note that says
    what they are believed to be and why."""
    mobile = [level for level in bones if level != "S1"]
    if not mobile:
        return []
    names = f"{mobile[0]}..{mobile[-1]}" if len(mobile) > 1 else mobile[0]
    names += " and sacrum" if "S1" in bones else ""
    why = "; ".join((how, *clues.lines))
    if clues.doubts:
        text = (
            f"{clues.doubts}: the levels are not {names} ({why}); give source.label_map, or names"
        )
        return [Finding("identity", "stop", "", text)]
    if (
        clues.own is not None
        and clues.best is not None
        and clues.shift
        and clues.own - clues.best > DOUBTED
    ):
        typical = [level for level in mobile if level in _COLUMN]
        other = f"{moved(typical[0], clues.shift)}..{moved(typical[-1], clues.shift)}"
        severity = "stop" if clues.own - clues.best > REFUSED else "warning"
        text = (
            f"the bones read as {names} have the sizes of {other} (χ² {clues.best:.1f} against"
            f" {clues.own:.1f}; {why}); give source.label_map or the right names, or go on with"
            " source.accept=[identity]"
        )
        return [Finding("identity", severity, "", text)]
    return [Finding("identity", "note", "", f"levels are {names}: {why}")]
