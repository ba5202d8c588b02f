"""Label images: which levels they hold, and the surface of each.

Mask to surface without shrinking: the mask's signed distance (to voxel faces, by half a voxel) is
interpolated to an isotropic grid, blurred by 0.8 voxel, and cut at the level that encloses exactly
the mask's volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, map_coordinates

from engine.patient.geometry.distance import isosurface, polydata, volume_mm3
from engine.patient.geometry.levels import LEVELS
from engine.patient.labels import identity
from engine.patient.labels.orientation import sides, turned
from engine.patient.labels.pieces import Piece, pieces
from engine.patient.labels.quality import gate
from engine.patient.labels.resampling import undone
from engine.patient.read.image import Image
from engine.patient.read.names import level_of
from engine.patient.read.schemes import (
    Scheme,
    as_given,
    custom,
    label_map_line,
    named,
    readings,
    some,
)
from engine.types import Finding, Surface, VoxelField, rigid

#: Levels that are read by default: what lumbar alignment is measured on.
LUMBAR = ("T12", "T13", "L1", "L2", "L3", "L4", "L5", "L6")


@dataclass(frozen=True)
class Labels:
    """A label image that has been understood: its scheme, the pieces that are read, and what the
    gate found.

    pieces   mobile levels cranial to caudal, then "S1" where there is a sacrum; those that the gate
             leaves out are not in it
    """

    image: Image
    scheme: Scheme
    pieces: dict[str, Piece]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def tissue(self, name: str) -> np.ndarray | None:
        """Mask [i, j, k] of another structure of the scheme ("aorta", "femur_left", …); None
        where the image has none."""
        numbers = self.scheme.tissues.get(name, ())
        mask = np.isin(self.image.values, numbers) if numbers else None
        return mask if mask is not None and mask.any() else None


def understand(
    image: Image,
    segment: tuple[str, str],
    *,
    scheme: str = "auto",
    label_map: Mapping[str, int] | None = None,
    levels: str = "lumbar",
    accept: tuple[str, ...] = (),
) -> Labels:
    """The vertebrae of a label image and the findings of the quality gate (quality.py); nothing is
    raised for those.

    levels   "segment" (its two), "lumbar" (also T12-L6 and the sacrum) or "all"

    What the numbers mean: label_map, scheme, the names that the file carries, or the one scheme
    that explains the numbers, their order and the sizes of the bones (identity.py). Labels that
    were resampled with interpolation are mended first (resampling.py).

    Raises: ValueError where several schemes remain, or none, with the line that chooses one; for an
    unknown scheme, and one that does not fit the numbers or the names.
    """
    image, mended = undone(_compact(image))
    values, matrix = image.values, image.lps_from_index
    objects = _Objects(values, matrix)
    chosen, how = _scheme(objects, image, scheme, label_map)
    there = chosen.levels(set(objects.heights_mm))
    wanted = {"segment": segment, "lumbar": (*LUMBAR, *segment), "all": (*LEVELS, "T13")}[levels]
    # for the identity of the levels also their neighbours are measured
    near = {*wanted, *LUMBAR, "T10", "T11"}
    every = objects.pieces(chosen, [level for level in there if level in near])
    clues = identity.evidence(every, objects.parts(chosen))
    found = {k: p for k, p in every.items() if k in wanted or (k == "S1" and levels != "segment")}
    about = [
        *identity.findings(every, clues, how),
        *identity.rib_findings(every, objects.ribs(chosen)),
    ]
    about += [*turned(every), *sides(image, chosen, every)]
    if mended:
        about.append(Finding("resampled", "warning", "", mended))
    elif image.source.get("interpolated"):
        text = (
            "the labels hold values between whole numbers, as interpolation leaves them; they were"
            " rounded"
        )
        about.append(Finding("resampled", "warning", "", text))
    findings = gate(found, chosen, values, segment, image.voxel_mm, accept, about)
    if not set(segment) <= set(
        there
    ):  # the gate has named it; say what the whole image holds, not only what is read
        listing = ", ".join(f"{level} ({chosen.vertebrae[level]})" for level in there)
        listing = listing or f"the numbers {some(sorted(objects.heights_mm))}, no level among them"
        findings = [f if f.code != "absent" else _absent(f, chosen, listing) for f in findings]
    out = {finding.level for finding in findings if finding.severity == "left out"}
    kept = {level: piece for level, piece in found.items() if level not in out}
    notes = (*image.notes, f"labels read as {chosen.title}: {how}")
    return Labels(image, chosen, kept, tuple(findings), notes)


def _compact(image: Image) -> Image:
    """The image with contiguous int16 values, or int32 where they need it."""
    kind = np.int32 if image.values.max(initial=0) > 32000 else np.int16
    return replace(image, values=np.ascontiguousarray(image.values, kind))


class _Objects:
    """The labelled objects of an image: where they are, and the pieces of a reading's levels,
    each cut out once."""

    def __init__(self, values: np.ndarray, matrix: np.ndarray) -> None:
        self._values, self._matrix, self._boxes = values, matrix, find_objects(values)
        self._made: dict[tuple[int, ...], Piece] = {}
        self.centres_mm: dict[int, np.ndarray] = {}
        self.heights_mm: dict[int, float] = {}
        self.volumes_mm3: dict[int, float] = {}
        voxel = abs(float(np.linalg.det(matrix[:3, :3])))
        for number, box in enumerate(self._boxes, start=1):
            if box is not None:
                there = np.argwhere(values[box] == number)
                index = there.mean(axis=0) + [s.start for s in box]
                self.centres_mm[number] = matrix[:3, :3] @ index + matrix[:3, 3]
                self.heights_mm[number] = float(self.centres_mm[number][2])
                self.volumes_mm3[number] = len(there) * voxel

    def piece(self, level: str, group: tuple[int, ...]) -> Piece:
        if group not in self._made:
            made = pieces(self._values, self._matrix, {level: group}, self._boxes)
            self._made[group] = made[level]
        return replace(self._made[group], level=level)

    def pieces(self, scheme: Scheme, levels: Sequence[str]) -> dict[str, Piece]:
        """Pieces of the levels, and "S1" last where the image has a sacrum."""
        result = {level: self.piece(level, (scheme.vertebrae[level],)) for level in levels}
        if sacrum := tuple(n for n in scheme.sacrum if n in self.heights_mm):
            result["S1"] = self.piece("S1", sacrum)
        return result

    def parts(self, scheme: Scheme) -> list[Piece]:
        """The sacrum's numbers one by one."""
        return [self.piece("S1", (n,)) for n in scheme.sacrum if n in self.heights_mm]

    def ribs(self, scheme: Scheme) -> dict[int, np.ndarray]:
        """Points (LPS) of both sides' ribs by number."""
        result = {}
        for k in range(1, 13):
            numbers = [
                n for side in ("left", "right") for n in scheme.tissues.get(f"rib_{side}_{k}", ())
            ]
            points = [
                np.argwhere(self._values[box] == n) + [s.start for s in box]
                for n in numbers
                if n <= len(self._boxes) and (box := self._boxes[n - 1]) is not None
            ]
            if points:
                result[k] = rigid(self._matrix, np.concatenate(points).astype(float))
        return result

    def other_axis(self) -> str:
        """The axis of the image, in words, along which the numbers are levels, where they are
        none along z; "" where there is none."""
        for axis, words in ((2, "foot-head"), (0, "left-right"), (1, "front-back")):
            for sign in (-1.0, 1.0):
                places = {
                    number: sign * float(centre[axis]) for number, centre in self.centres_mm.items()
                }
                # a row of bones is long along its own axis, so that no order across it is taken for
                # one
                if np.ptp(list(places.values())) > 80.0 and any(
                    len(s.levels(set(places))) > 2 for s in readings(places)
                ):
                    return words
        return ""

    def map_line(self) -> str:
        """A ready source.label_map for what could be vertebrae: the lowest bone L5, or the
        sacrum where it is far the largest."""
        bones = {n: z for n, z in self.heights_mm.items() if 4e3 < self.volumes_mm3[n] < 4e5}
        order = sorted(bones or self.heights_mm, key=lambda n: self.heights_mm[n])
        large = len(order) > 1 and self.volumes_mm3[order[0]] > 1.8 * self.volumes_mm3[order[1]]
        line = label_map_line({n: self.heights_mm[n] for n in order}, "S1" if large else "L5")
        lowest = "the sacrum" if large else "L5"
        return (
            f"{line} (if the lowest of them, {order[0]}, is {lowest}; from head to foot:"
            f" {some(order[::-1])})"
        )


def _scheme(
    objects: _Objects, image: Image, wanted: str, label_map: Mapping[str, int] | None
) -> tuple[Scheme, str]:
    """What the numbers mean, and how that is known (see `understand`)."""
    numbers = set(objects.heights_mm)
    carried = {
        int(n): str(name)
        for n, name in (image.source.get("segments") or {}).items()
        if int(n) in numbers
    }
    if label_map:
        against = _against(custom(label_map), carried)
        return custom(label_map), "as given by source.label_map" + (
            f", against the file's own names{against}" if against else ""
        )
    names = named(carried)
    if wanted != "auto":
        given = as_given(wanted, numbers)
        if names is not None and (words := _against(given, carried)):
            raise ValueError(
                f"source.labels={wanted} contradicts the names that the file carries{words}; leave"
                " source.labels out (names win), or say what each number is by"
                " source.label_map={level: number, …}"
            )
        return given, "as given by source.labels"
    if names is not None:
        read = ", ".join(f"{n} {carried[n]!r}" for n in sorted(names.vertebrae.values())[:12])
        return names, f"names that the file carries ({read})"
    if image.source.get("numbers_mean_nothing"):
        listing = ", ".join(f"{n} {name!r}" for n, name in sorted(carried.items())[:12])
        raise ValueError(
            f"{image.source.get('path')}: a {image.source.get('format')} numbers its segments 1, 2,"
            " 3, so that numbers say no level, and no segment is named after one"
            f" ({listing or 'no names'}); rename them (L4, L5, …), or give {objects.map_line()}"
        )
    fitting = readings(objects.heights_mm)
    if not fitting:
        if along := objects.other_axis():
            raise ValueError(
                f"turned: the numbers {some(sorted(numbers))} follow each other along the image's"
                f" {along} axis, not from head to foot: axes are exchanged or reversed in its"
                " affine; correct it, or export the image again"
            )
        raise ValueError(
            f"no label scheme explains the numbers {some(sorted(numbers))} and their order from"
            " head to foot (is the image upside down, or are levels mixed up?); say what they are"
            f" by {objects.map_line()}"
        )
    # schemes that give these numbers the same levels are one reading
    unique: dict[tuple[tuple[str, int], ...], Scheme] = {}
    for each in fitting:
        unique.setdefault(tuple(_meaning(each, numbers)), each)
    fitting = list(unique.values())
    if len(fitting) == 1:
        return fitting[0], f"the numbers {some(sorted(numbers))} and their order"
    return _by_bones(objects, fitting)


def _meaning(scheme: Scheme, numbers: set[int]) -> list[tuple[str, int]]:
    """The levels that a scheme gives to numbers, "S1" for the sacrum's."""
    levels = [
        (level, number) for level, number in sorted(scheme.vertebrae.items()) if number in numbers
    ]
    return [*levels, *(("S1", number) for number in scheme.sacrum if number in numbers)]


def _against(scheme: Scheme, carried: Mapping[int, str]) -> str:
    """Where names and a scheme disagree: " (24 is 'L4', not L5; …)"; "" where they do not."""
    levels = {number: level for level, number in scheme.vertebrae.items()} | dict.fromkeys(
        scheme.sacrum, "S1"
    )
    wrong = [
        f"{number} is {name!r}, not {levels[number]}"
        for number, name in sorted(carried.items())
        if number in levels and level_of(name) not in (None, levels[number])
    ]
    return f" ({'; '.join(wrong[:6])})" if wrong else ""


def _by_bones(objects: _Objects, fitting: list[Scheme]) -> tuple[Scheme, str]:
    """Of several schemes that explain the numbers the one that the bones fit. Raises ValueError
    where more than one remains, or none."""
    numbers = set(objects.heights_mm)
    clues = {}
    for scheme in fitting:
        mobile = [
            level
            for level in scheme.levels(numbers)
            if objects.volumes_mm3[scheme.vertebrae[level]] > 2e3
        ]
        clues[scheme.name] = identity.evidence(
            objects.pieces(scheme, mobile), objects.parts(scheme)
        )
    sound = [s for s in fitting if not clues[s.name].doubts]
    best = min((value for s in sound if (value := clues[s.name].own) is not None), default=0.0)

    def worse(scheme: Scheme, measure: str) -> bool:
        own = getattr(clues[scheme.name], measure)
        least = min(
            (v for s in sound if (v := getattr(clues[s.name], measure)) is not None), default=0.0
        )
        return own is not None and own > least + identity.DROPPED

    left = [s for s in sound if not worse(s, "own") and not worse(s, "plain")] or sound
    read = {s.name: _read_as(s, numbers) for s in fitting}
    if len(left) == 1:
        own, least = clues[left[0].name].own, clues[left[0].name].best
        if own is not None and least is not None and own - least > identity.REFUSED:
            left = []
    if len(left) == 1:
        dropped = []
        for s in fitting:
            if s is not left[0]:
                why = (
                    clues[s.name].doubts
                    or f"the bones' sizes: χ² {clues[s.name].own:.0f} against {best:.0f}"
                )
                dropped.append(f"not {s.name} ({read[s.name]}): {why}")
        return (
            left[0],
            (
                f"the numbers {some(sorted(numbers))}, their order, and the bones;"
                f" {'; '.join(dropped)}"
            ),
        )
    if not left:
        listing = "; ".join(
            f"{s.name} ({read[s.name]}): {clues[s.name].doubts or 'the sizes of other levels'}"
            for s in fitting
        )
        raise ValueError(
            f"no reading of the numbers {some(sorted(numbers))} fits the bones: {listing}; say what"
            f" they are by {objects.map_line()}"
        )
    lines = "; or ".join(f"source.labels={s.name} ({read[s.name]})" for s in left)
    raise ValueError(
        f"the numbers {some(sorted(numbers))} can be read as several label schemes, and the bones'"
        f" sizes do not decide: give {lines}"
    )


def _read_as(scheme: Scheme, numbers: set[int]) -> str:
    """ "L1 20 … L5 24, sacrum 26" of a reading."""
    levels = scheme.levels(numbers)
    ends = levels if len(levels) < 3 else [levels[0], levels[-1]]
    text = " … ".join(f"{level} {scheme.vertebrae[level]}" for level in ends)
    sacrum = sorted(set(scheme.sacrum) & numbers)
    return text + (f", sacrum {sacrum[0]}" if sacrum else "")


def _absent(finding: Finding, scheme: Scheme, listing: str) -> Finding:
    number = scheme.vertebrae.get(finding.level)
    text = (
        f"{finding.level} is absent{'' if number is None else f' (label {number})'}; the image"
        f" holds {listing}, read as {scheme.title}; choose a segment among them, or say what the"
        " numbers are by source.label_map={level: number, …}"
    )
    return Finding(finding.code, finding.severity, finding.level, text)


def mask_surface(mask: np.ndarray, matrix: np.ndarray, target_mm: float | None = None) -> Surface:
    """Closed surface in LPS of a voxel mask, enclosing the mask's volume (module docstring).

    matrix maps the mask's indices to LPS. Error: volume within 0.1 % before remeshing.
    """
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    fine = target_mm or max(0.5, 0.8 * float(voxel.min()))
    pad = np.ceil(4.0 / voxel).astype(int) + 1
    padded = np.pad(mask, [(int(p), int(p)) for p in pad])
    outside = distance_transform_edt(~padded, sampling=voxel)
    inside = distance_transform_edt(padded, sampling=voxel)
    half = 0.5 * float(voxel.min())
    distance = np.where(padded, half - inside, outside - half)
    shape = np.floor((np.array(padded.shape) - 1) * voxel / fine).astype(int) + 1
    index = np.stack(np.meshgrid(*[np.arange(n) * fine for n in shape], indexing="ij"), axis=0)
    smooth = map_coordinates(distance, index / voxel[:, None, None, None], order=1, mode="nearest")
    smooth = gaussian_filter(smooth, 0.8 * float(voxel.max()) / fine / 2.0 + 0.4)
    count = float(mask.sum()) * float(np.prod(voxel)) / fine**3
    level = float(np.partition(smooth.ravel(), int(count))[int(count)])
    surface = isosurface(VoxelField(smooth - level, np.zeros(3), fine))
    for _ in range(
        2
    ):  # counting voxels is 0.5 % off the enclosed volume; |∇φ| ≈ 1 gives the correction
        missing = count * fine**3 - volume_mm3(surface)
        level += missing / polydata(surface).area
        surface = isosurface(VoxelField(smooth - level, np.zeros(3), fine))
    to_lps = matrix.copy()
    to_lps[:3, :3] = matrix[:3, :3] / voxel
    start = rigid(matrix, -pad.astype(float))
    to_lps[:3, 3] = start
    faces = surface.faces if np.linalg.det(to_lps[:3, :3]) > 0 else surface.faces[:, ::-1].copy()
    return Surface(rigid(to_lps, surface.points_mm), faces)
