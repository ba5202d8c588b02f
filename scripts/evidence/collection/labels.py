"""The collection's label images: numbers that mean several things, names, and labels that are
wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from scripts.evidence.collection.base import (
    VERSE,
    Base,
    Input,
    Recipe,
    mask,
    read,
    refused,
    segment_mask,
)

#: Level → number: SPIDER's (counted from the foot), TotalSegmentator's of version 2 and 1.
UP = {"L5": 1, "L4": 2, "L3": 3, "L2": 4, "L1": 5}
TS2 = {"L5": 27, "L4": 28, "L3": 29, "L2": 30, "L1": 31, "S1": 25}
TS1 = {"L5": 18, "L4": 19, "L3": 20, "L2": 21, "L1": 22, "S1": 92}
#: Numbers of no scheme, and the map that the reader prints for them.
_BIG = {level: 100 + n for level, n in VERSE.items()}
_BIG_MAP = "source.label_map={L1: 120, L2: 121, L3: 122, L4: 123, L5: 124, S1: 126}"


# -- which level is this ---------------------------------------------------------------------------
def _numbers(numbers: dict[str, int], *more: str) -> Recipe:
    """The good labels under other numbers."""
    return lambda base, place: segment_mask(
        base.write(base.numbered(numbers), place / "l.nii.gz"), *more
    )


def _with_canal_and_discs(base: Base, place: Path) -> list[str]:
    """SPIDER's numbers with discs (201 and up) and the canal (100)."""
    values = base.numbered(UP)
    centres = [np.argwhere(values == n).mean(axis=0) for n in (1, 2, 3, 4, 5)]
    for n in range(4):
        middle = np.rint((centres[n] + centres[n + 1]) / 2).astype(int)
        box = tuple(slice(c - w, c + w) for c, w in zip(middle, (12, 8, 2), strict=True))
        values[box][values[box] == 0] = 202 + n
    values[2:6, 2:6, 20:60] = 100
    return segment_mask(base.write(values, place / "l.nii.gz"))


def _chest(base: Base, place: Path) -> list[str]:
    """Thoracic bones of VerSe004 under version 1's numbers T5-T12: its four lowest twice, the
    second time moved up by their length."""
    image = nib.as_closest_canonical(
        nib.load(base.data / "verse004_mask/sub-verse004_seg-vert_msk.nii.gz")
    )
    values = np.asarray(image.dataobj).astype(int)
    centres = {k: np.argwhere(values == k).mean(axis=0) for k in (16, 20)}
    step = np.rint(centres[16] - centres[20]).astype(int)
    shape = np.array(values.shape) + [60, 60, int(step[2]) + 5]
    out = np.zeros(shape, np.uint8)
    v1 = {"T12": 23, "T11": 24, "T10": 25, "T9": 26, "T8": 27, "T7": 28, "T6": 29, "T5": 30}
    copies = {19: ("T12", "T8"), 18: ("T11", "T7"), 17: ("T10", "T6"), 16: ("T9", "T5")}
    for k, names in copies.items():
        points = np.argwhere(values == k) + [30, 30, 0]
        for name, shift in zip(names, (np.zeros(3, int), step), strict=True):
            there = points + shift
            there = there[((there >= 0) & (there < shape)).all(axis=1)]
            there = there[out[tuple(there.T)] == 0]
            out[tuple(there.T)] = v1[name]
    nib.save(nib.Nifti1Image(out, image.affine), place / "l.nii.gz")
    return mask(place / "l.nii.gz")


def _table_of_names(names: dict[int, str], numbers: dict[str, int], *more: str) -> Recipe:
    """A NIfTI whose extension (Caret's XML) names the numbers."""

    def make(base: Base, place: Path) -> list[str]:
        image = nib.Nifti1Image(base.numbered(numbers), base.values[1])
        rows = "".join(f'<Label Key="{n}"><![CDATA[{name}]]></Label>' for n, name in names.items())
        table = f"<VolumeInformation><LabelTable>{rows}</LabelTable></VolumeInformation>"
        text = f'<?xml version="1.0"?><CaretExtension>{table}</CaretExtension>'
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
        nib.save(image, place / "l.nii.gz")
        return segment_mask(place / "l.nii.gz", *more)

    return make


def _slicer(names: dict[str, str]) -> Recipe:
    """3D Slicer's .seg.nrrd, whose header names the segments."""

    def make(base: Base, place: Path) -> list[str]:
        import SimpleITK as sitk

        base.write(base.numbered({"L4": 1, "L5": 2}), place / "l.nii.gz")
        image = sitk.ReadImage(str(place / "l.nii.gz"))
        for n, (level, name) in enumerate(names.items()):
            image.SetMetaData(f"Segment{n}_ID", f"Segment_{n}")
            image.SetMetaData(f"Segment{n}_Name", name)
            image.SetMetaData(f"Segment{n}_LabelValue", str({"L4": 1, "L5": 2}[level]))
            image.SetMetaData(f"Segment{n}_Layer", "0")
        sitk.WriteImage(image, str(place / "s.seg.nrrd"))
        return segment_mask(place / "s.seg.nrrd")

    return make


def _erased(level: str, *more: str) -> Recipe:
    """VerSe's labels without a level."""
    kept = {name: n for name, n in VERSE.items() if name != level}
    return lambda base, place: mask(base.write(base.numbered(kept), place / "l.nii.gz"), *more)


def _six_lumbar(base: Base, place: Path) -> list[str]:
    values = base.numbered({level: n + 1 if n < 25 else n for level, n in VERSE.items()})
    return mask(base.write(values, place / "l.nii.gz"), "segment=L4-L5")


_NAMED = read(note="names that the file carries")
#: Numbers that mean several things, names, maps.
LEVEL = (
    Input("VerSe numbers", read(), _numbers(VERSE)),
    Input("SPIDER's, vertebrae alone", read(note="mobile vertebra"), _numbers(UP)),
    Input("SPIDER's, with canal and discs", read(), _with_canal_and_discs),
    Input(
        "SPIDER's, without L5",
        refused("source.labels=vertebrae_mr.*source.labels=spider"),
        _numbers({"L4": 2, "L3": 3}),
    ),
    Input("TotalSegmentator 2", read(), _numbers(TS2)),
    Input("TotalSegmentator 1", read(), _numbers(TS1)),
    Input("TotalSegmentator 1, a chest", refused("L4 is absent.*T12 \\(23\\)"), _chest),
    Input(
        "TotalSegmentator vertebrae_mr",
        read(),
        _numbers({"S1": 1, "L5": 2, "L4": 3, "L3": 4, "L2": 5, "L1": 6}),
    ),
    Input(
        "TotalSpineSeg",
        read(),
        _numbers({"L1": 41, "L2": 42, "L3": 43, "L4": 44, "L5": 45, "S1": 50}),
    ),
    Input("Ogo", read(), _numbers({"S1": 5, "L5": 6, "L4": 7, "L3": 8, "L2": 9, "L1": 10})),
    Input(
        "1 to 5 from the head",
        refused("absent|sizes of"),
        _numbers({"L1": 1, "L2": 2, "L3": 3, "L4": 4, "L5": 5}),
    ),
    Input(
        "numbers of no scheme",
        refused("source.label_map=\\{L1: 120.*S1: 126\\}"),
        _numbers(_BIG),
    ),
    Input("the same with the map that was printed", read(), _numbers(_BIG, _BIG_MAP)),
    Input(
        "names in the NIfTI's table",
        _NAMED,
        _table_of_names({7: "vertebrae_L4", 9: "vertebrae_L5"}, {"L4": 7, "L5": 9}),
    ),
    Input(
        "names against source.labels",
        refused("24 is 'vertebrae_L4', not L5"),
        _table_of_names({24: "vertebrae_L4", 23: "vertebrae_L3"}, VERSE, "source.labels=verse"),
    ),
    Input(".seg.nrrd with names", _NAMED, _slicer({"L4": "L4 vertebra", "L5": "L5 vertebra"})),
    Input(
        ".seg.nrrd without names",
        refused("numbers say no level.*source.label_map="),
        _slicer({"L4": "Segment_1", "L5": "Segment_2"}),
    ),
    Input(
        "L5 given as the sacrum",
        refused("shape of a mobile vertebra"),
        _numbers(
            VERSE, "source.levels=lumbar", "source.label_map={L3: 21, L4: 22, L5: 23, S1: 24}"
        ),
    ),
    Input(
        "L1-L5 given as T9-L1",
        refused("sizes of L1..L5"),
        _numbers(
            VERSE,
            "segment=T12-L1",
            "source.levels=all",
            "source.label_map={T9: 20, T10: 21, T11: 22, T12: 23, L1: 24}",
        ),
    ),
    Input("six lumbar vertebrae", read(note="L6: transitional", bones="L3-L4"), _six_lumbar),
    Input("L3 without a label, L4-L5 asked", read(note="not segmented"), _erased("L3")),
    Input(
        "L5 without a label, L3-L4 asked",
        read("L3-L4", note="L5 is not segmented|four lumbar"),
        _erased("L5", "segment=L3-L4"),
    ),
)


# -- labels that are wrong -------------------------------------------------------------------------
#: The labels [x, y, z] changed; the good patient says how its axes run.
Change = Callable[[Base, np.ndarray], np.ndarray]


def _changed(change: Change, *more: str) -> Recipe:
    return lambda base, place: mask(
        base.write(change(base, base.values[0].copy()), place / "l.nii.gz"), *more
    )


def _swapped(a: int, b: int) -> Change:
    return lambda base, values: np.where(values == a, b, np.where(values == b, a, values)).astype(
        np.int16
    )


def _without(number: int) -> Change:
    return lambda base, values: np.where(values == number, 0, values).astype(np.int16)


def _leaking(base: Base, values: np.ndarray) -> np.ndarray:
    """The upper third of L5 belongs to L4."""
    inside = np.argwhere(values == 24)
    values[tuple(inside[inside[:, 2] > np.quantile(inside[:, 2], 0.67)].T)] = 23
    return values


def _bridged(base: Base, values: np.ndarray) -> np.ndarray:
    """10 mm of bone in front of the disc L4-L5, split between the labels."""

    def front(number: int) -> np.ndarray:
        points = np.argwhere(values == number)
        ahead = (
            points[:, 1] > np.quantile(points[:, 1], 0.7)
            if base.values[1][1, 1] > 0
            else points[:, 1] < np.quantile(points[:, 1], 0.3)
        )
        return np.asarray(points[ahead].mean(axis=0))

    start, end = front(23), front(24)
    for t in np.linspace(0, 1, 200):
        c = np.rint(start + t * (end - start)).astype(int)
        box = tuple(slice(c[k] - w, c[k] + w) for k, w in enumerate((8, 4, 2)))
        values[box][values[box] == 0] = 23 if t < 0.5 else 24
    return values


def _cut_above(base: Base, values: np.ndarray) -> np.ndarray:
    """The image ends in the middle of L1."""
    middle = int(np.argwhere(values == 20)[:, 2].mean())
    return values[:, :, :middle] if base.values[1][2, 2] > 0 else values


def _interpolated(numbers: dict[str, int], order: int, rounded: bool) -> Recipe:
    """Resampled to 1 mm by splines of that order, as if the labels were grey values."""

    def make(base: Base, place: Path) -> list[str]:
        values, affine = base.numbered(numbers).astype(np.float32), base.values[1].copy()
        size_mm = np.linalg.norm(affine[:3, :3], axis=0)
        fine = ndimage.zoom(values, size_mm / 1.0, order=order)
        affine[:3, :3] *= (np.array(values.shape) - 1.0) / (np.array(fine.shape) - 1.0)
        fine = np.rint(fine).astype(np.int16) if rounded else fine.astype(np.float32)
        nib.save(nib.Nifti1Image(fine, affine), place / "l.nii.gz")
        return segment_mask(place / "l.nii.gz")

    return make


_INTERPOLATED = read(note="resampled with interpolation")
#: Leaks, swaps, bridges, resampling; what the segment does not need does not stop it.
GATE = (
    Input("L5 leaks into L4", refused("leak|volume|contact|bridge"), _changed(_leaking)),
    Input("L4 and L5 swapped", refused("order|not below"), _changed(_swapped(23, 24))),
    Input("L1 and L2 swapped, L4-L5 asked", read(note="order"), _changed(_swapped(20, 21))),
    Input("L1 cut by the border, L4-L5 asked", read(), _changed(_cut_above)),
    Input("a bony bridge in front of L4-L5", refused("joined in front.*fused"), _changed(_bridged)),
    Input(
        "the same, L2-L3 asked",
        read("L2-L3", note="touch in front"),
        _changed(_bridged, "segment=L2-L3"),
    ),
    Input("L4 empty", refused("L4 is absent"), _changed(_without(23))),
    Input("resampled linearly, VerSe numbers", _INTERPOLATED, _interpolated(VERSE, 1, True)),
    Input("resampled linearly, TotalSegmentator's", _INTERPOLATED, _interpolated(TS2, 1, True)),
    Input(
        "resampled linearly, not rounded",
        read(note="interpolation"),
        _interpolated(VERSE, 1, False),
    ),
    Input("resampled to the nearest", read(), _interpolated(VERSE, 0, True)),
)
