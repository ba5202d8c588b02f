"""The collection's label images: numbers that mean several things, names, and labels that are
wrong."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from scripts.evidence.collection.base import VERSE, Base, case, read, refused
from scripts.evidence.scan.cases import Case

UP = {"L5": 1, "L4": 2, "L3": 3, "L2": 4, "L1": 5}
TS2 = {"L5": 27, "L4": 28, "L3": 29, "L2": 30, "L1": 31, "S1": 25}
TS1 = {"L5": 18, "L4": 19, "L3": 20, "L2": 21, "L1": 22, "S1": 92}


def levels(base: Base) -> list[Case]:
    """Which level is this: numbers that mean several things, names, maps."""

    def numbers(numbers: dict[str, int], *more: str):  # type: ignore[no-untyped-def]
        return lambda place: base.mask(
            base.write(base.numbered(numbers), place / "l.nii.gz"), *more
        )

    def full(place: Path) -> list[str]:
        values = base.numbered(UP)
        at = [np.argwhere(values == n).mean(axis=0) for n in (1, 2, 3, 4, 5)]
        for n in range(4):
            middle = np.rint((at[n] + at[n + 1]) / 2).astype(int)
            box = tuple(slice(c - w, c + w) for c, w in zip(middle, (12, 8, 2), strict=True))
            values[box][values[box] == 0] = 202 + n
        values[2:6, 2:6, 20:60] = 100
        return base.mask(base.write(values, place / "l.nii.gz"))

    def chest(place: Path) -> list[str]:
        """Thoracic bones of VerSe004 under version 1's numbers T5-T12."""
        image = nib.as_closest_canonical(
            nib.load(base.data / "verse004_mask/sub-verse004_seg-vert_msk.nii.gz")
        )
        values = np.asarray(image.dataobj).astype(int)
        centres = {k: np.argwhere(values == k).mean(axis=0) for k in (16, 20)}
        step = np.rint(centres[16] - centres[20]).astype(int)
        shape = np.array(values.shape) + [60, 60, int(step[2]) + 5]
        out = np.zeros(shape, np.uint8)
        v1 = {"T12": 23, "T11": 24, "T10": 25, "T9": 26, "T8": 27, "T7": 28, "T6": 29, "T5": 30}
        for k, names in {
            19: ("T12", "T8"),
            18: ("T11", "T7"),
            17: ("T10", "T6"),
            16: ("T9", "T5"),
        }.items():
            points = np.argwhere(values == k) + [30, 30, 0]
            for name, shift in zip(names, (np.zeros(3, int), step), strict=True):
                there = points + shift
                there = there[((there >= 0) & (there < shape)).all(axis=1)]
                there = there[out[tuple(there.T)] == 0]
                out[tuple(there.T)] = v1[name]
        nib.save(nib.Nifti1Image(out, image.affine), place / "l.nii.gz")
        return ["source=mask", f"source.path={place / 'l.nii.gz'}", "plan=keep"]

    def named(names: dict[int, str], numbers: dict[str, int], *more: str):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            image = nib.Nifti1Image(base.numbered(numbers), base.values[1])
            rows = "".join(
                f'<Label Key="{n}"><![CDATA[{name}]]></Label>' for n, name in names.items()
            )
            table = f"<VolumeInformation><LabelTable>{rows}</LabelTable></VolumeInformation>"
            text = f'<?xml version="1.0"?><CaretExtension>{table}</CaretExtension>'
            image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
            nib.save(image, place / "l.nii.gz")
            return base.mask(place / "l.nii.gz", *more)

        return make

    def slicer(names: dict[str, str], *more: str):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            import SimpleITK as sitk

            base.write(base.numbered({"L4": 1, "L5": 2}), place / "l.nii.gz")
            image = sitk.ReadImage(str(place / "l.nii.gz"))
            for n, (level, name) in enumerate(names.items()):
                image.SetMetaData(f"Segment{n}_ID", f"Segment_{n}")
                image.SetMetaData(f"Segment{n}_Name", name)
                image.SetMetaData(f"Segment{n}_LabelValue", str({"L4": 1, "L5": 2}[level]))
                image.SetMetaData(f"Segment{n}_Layer", "0")
            sitk.WriteImage(image, str(place / "s.seg.nrrd"))
            return base.mask(place / "s.seg.nrrd", *more)

        return make

    def erased(*gone: str):  # type: ignore[no-untyped-def]
        kept = {level: n for level, n in VERSE.items() if level not in gone}
        return lambda place: [
            "source=mask",
            f"source.path={base.write(base.numbered(kept), place / 'l.nii.gz')}",
            "plan=keep",
        ]

    def six(place: Path) -> list[str]:
        values = base.numbered({level: n + 1 if n < 25 else n for level, n in VERSE.items()})
        return [
            "source=mask",
            f"source.path={base.write(values, place / 'l.nii.gz')}",
            "plan=keep",
            "segment=L4-L5",
        ]

    big = {level: 100 + n for level, n in VERSE.items()}
    map_ = "source.label_map={L1: 120, L2: 121, L3: 122, L4: 123, L5: 124, S1: 126}"
    return [
        case("level", "VerSe numbers", read(), numbers(VERSE)),
        case("level", "SPIDER's, vertebrae alone", read(said="mobile vertebra"), numbers(UP)),
        case("level", "SPIDER's, with canal and discs", read(), full),
        case(
            "level",
            "SPIDER's, without L5",
            refused("source.labels=vertebrae_mr.*source.labels=spider"),
            numbers({"L4": 2, "L3": 3}),
        ),
        case("level", "TotalSegmentator 2", read(), numbers(TS2)),
        case("level", "TotalSegmentator 1", read(), numbers(TS1)),
        case("level", "TotalSegmentator 1, a chest", refused("L4 is absent.*T12 \\(23\\)"), chest),
        case(
            "level",
            "TotalSegmentator vertebrae_mr",
            read(),
            numbers({"S1": 1, "L5": 2, "L4": 3, "L3": 4, "L2": 5, "L1": 6}),
        ),
        case(
            "level",
            "TotalSpineSeg",
            read(),
            numbers({"L1": 41, "L2": 42, "L3": 43, "L4": 44, "L5": 45, "S1": 50}),
        ),
        case(
            "level", "Ogo", read(), numbers({"S1": 5, "L5": 6, "L4": 7, "L3": 8, "L2": 9, "L1": 10})
        ),
        case(
            "level",
            "1 to 5 from the head",
            refused("absent|sizes of"),
            numbers({"L1": 1, "L2": 2, "L3": 3, "L4": 4, "L5": 5}),
        ),
        case(
            "level",
            "numbers of no scheme",
            refused("source.label_map=\\{L1: 120.*S1: 126\\}"),
            numbers(big),
        ),
        case("level", "the same with the map that was printed", read(), numbers(big, map_)),
        case(
            "level",
            "names in the NIfTI's table",
            read(said="names that the file carries"),
            named({7: "vertebrae_L4", 9: "vertebrae_L5"}, {"L4": 7, "L5": 9}),
        ),
        case(
            "level",
            "names against source.labels",
            refused("24 is 'vertebrae_L4', not L5"),
            named({24: "vertebrae_L4", 23: "vertebrae_L3"}, VERSE, "source.labels=verse"),
        ),
        case(
            "level",
            ".seg.nrrd with names",
            read(said="names that the file carries"),
            slicer({"L4": "L4 vertebra", "L5": "L5 vertebra"}),
        ),
        case(
            "level",
            ".seg.nrrd without names",
            refused("numbers say no level.*source.label_map="),
            slicer({"L4": "Segment_1", "L5": "Segment_2"}),
        ),
        case(
            "level",
            "L5 given as the sacrum",
            refused("shape of a mobile vertebra"),
            numbers(
                VERSE, "source.levels=lumbar", "source.label_map={L3: 21, L4: 22, L5: 23, S1: 24}"
            ),
        ),
        case(
            "level",
            "L1-L5 given as T9-L1",
            refused("sizes of L1..L5"),
            numbers(
                VERSE,
                "segment=T12-L1",
                "source.levels=all",
                "source.label_map={T9: 20, T10: 21, T11: 22, T12: 23, L1: 24}",
            ),
        ),
        case("level", "six lumbar vertebrae", read(said="L6: transitional", bones="L3-L4"), six),
        case("level", "L3 without a label, L4-L5 asked", read(said="not segmented"), erased("L3")),
        case(
            "level",
            "L5 without a label, L3-L4 asked",
            read("L3-L4", said="L5 is not segmented|four lumbar"),
            lambda place: [*erased("L5")(place), "segment=L3-L4"],
        ),
    ]


def gate(base: Base) -> list[Case]:
    """Labels that are wrong: leaks, swaps, bridges, resampling; what the segment does not need
    does not stop it."""

    def changed(change, *more: str):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            path = base.write(change(base.values[0].copy()), place / "l.nii.gz")
            return ["source=mask", f"source.path={path}", "plan=keep", *more]

        return make

    def swapped(a: int, b: int):  # type: ignore[no-untyped-def]
        return lambda values: np.where(values == a, b, np.where(values == b, a, values)).astype(
            np.int16
        )

    def leaking(values: np.ndarray) -> np.ndarray:
        inside = np.argwhere(values == 24)
        values[tuple(inside[inside[:, 2] > np.quantile(inside[:, 2], 0.67)].T)] = 23
        return values

    def bridged(values: np.ndarray) -> np.ndarray:
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

    def cut_above(values: np.ndarray) -> np.ndarray:
        middle = int(np.argwhere(values == 20)[:, 2].mean())
        return values[:, :, :middle] if base.values[1][2, 2] > 0 else values

    def interpolated(numbers: dict[str, int], how: int, whole: bool):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            values, affine = base.numbered(numbers).astype(np.float32), base.values[1].copy()
            size = np.linalg.norm(affine[:3, :3], axis=0)
            found = ndimage.zoom(values, size / 1.0, order=how)
            affine[:3, :3] *= (np.array(values.shape) - 1.0) / (np.array(found.shape) - 1.0)
            found = np.rint(found).astype(np.int16) if whole else found.astype(np.float32)
            nib.save(nib.Nifti1Image(found, affine), place / "l.nii.gz")
            return base.mask(place / "l.nii.gz")

        return make

    return [
        case("labels", "L5 leaks into L4", refused("leak|volume|contact|bridge"), changed(leaking)),
        case("labels", "L4 and L5 swapped", refused("order|not below"), changed(swapped(23, 24))),
        case(
            "labels", "L1 and L2 swapped, L4-L5 asked", read(said="order"), changed(swapped(20, 21))
        ),
        case("labels", "L1 cut by the border, L4-L5 asked", read(), changed(cut_above)),
        case(
            "labels",
            "a bony bridge in front of L4-L5",
            refused("joined in front.*fused"),
            changed(bridged),
        ),
        case(
            "labels",
            "the same, L2-L3 asked",
            read("L2-L3", said="touch in front"),
            changed(bridged, "segment=L2-L3"),
        ),
        case(
            "labels",
            "L4 empty",
            refused("L4 is absent"),
            changed(lambda v: np.where(v == 23, 0, v).astype(np.int16)),
        ),
        case(
            "labels",
            "resampled linearly, VerSe numbers",
            read(said="resampled with interpolation"),
            interpolated(VERSE, 1, True),
        ),
        case(
            "labels",
            "resampled linearly, TotalSegmentator's",
            read(said="resampled with interpolation"),
            interpolated(TS2, 1, True),
        ),
        case(
            "labels",
            "resampled linearly, not rounded",
            read(said="interpolation"),
            interpolated(VERSE, 1, False),
        ),
        case("labels", "resampled to the nearest", read(), interpolated(VERSE, 0, True)),
    ]
