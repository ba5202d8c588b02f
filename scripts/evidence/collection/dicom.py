"""The collection's DICOM: series, segmentations and contours as scanners and exports leave them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom

from scripts.evidence.collection.base import LINE, Base, Input, Recipe, read, refused

#: What is changed in the files of a series, one a slice from below, which lie in <folder>/dicom.
Change = Callable[[list[Path], Path], None]


def _series(change: Change | None = None) -> Recipe:
    """The good series, changed."""

    def make(base: Base, place: Path) -> list[str]:
        shutil.copytree(base.folder / "dicom", place / "dicom")
        if change is not None:
            change(sorted((place / "dicom").iterdir()), place)
        return base.scan(place / "dicom")

    return make


def _each(edit: Callable[[pydicom.Dataset, int], None]) -> Change:
    """Every slice edited, given its number."""

    def change(files: list[Path], place: Path) -> None:
        for n, file in enumerate(files):
            slice_ = pydicom.dcmread(file)
            edit(slice_, n)
            slice_.save_as(file)

    return change


def _decimal_commas(slice_: pydicom.Dataset, n: int) -> None:
    from pydicom.dataelem import RawDataElement

    for key in "PixelSpacing ImagePositionPatient SliceThickness ImageOrientationPatient".split():
        value = slice_[key].value
        several = hasattr(value, "__iter__") and not isinstance(value, str)
        parts = value if several else [value]
        text = "\\".join(map(str, parts)).replace(".", ",").encode()
        text += b" " * (len(text) % 2)
        tag = slice_[key].tag
        # pydicom refuses such a value in its public interface
        slice_._dict[tag] = RawDataElement(tag, "DS", len(text), text, 0, False, True)  # type: ignore[arg-type]


def _other_spacing(slice_: pydicom.Dataset, n: int) -> None:
    if n < 3:
        slice_.PixelSpacing = [1.0, 1.0]


def _own_uid(slice_: pydicom.Dataset, n: int) -> None:
    slice_.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(n)])


def _two_uids(slice_: pydicom.Dataset, n: int) -> None:
    if n % 2:
        slice_.SeriesInstanceUID += ".1"


def _cut_short(files: list[Path], place: Path) -> None:
    whole = files[20].read_bytes()
    files[20].write_bytes(whole[: len(whole) // 2])


def _crowded(files: list[Path], place: Path) -> None:
    for name, content in (
        ("Thumbs.db", b"x" * 300),
        (".DS_Store", b"y" * 300),
        ("report.pdf", b"%PDF-1.4\n" + b"z" * 400),
    ):
        (place / "dicom" / name).write_bytes(content)


def _linked(base: Base, place: Path) -> list[str]:
    shutil.copytree(base.folder / "dicom", place / "elsewhere" / "series")
    (place / "dicom").mkdir()
    os.symlink(place / "elsewhere" / "series", place / "dicom" / "link")
    return base.scan(place / "dicom")


def _empty(base: Base, place: Path) -> list[str]:
    (place / "nothing").mkdir()
    return base.scan(place / "nothing")


def _segmentation(label: Callable[[str], str]) -> Recipe:
    """L4 and L5 as a DICOM SEG without its empty frames; label(level): the segment's name."""

    def make(base: Base, place: Path) -> list[str]:
        import highdicom as hd
        from pydicom.sr.codedict import codes

        files = sorted((base.folder / "dicom").iterdir())
        source = [pydicom.dcmread(file) for file in files]
        source.sort(key=lambda d: float(d.ImagePositionPatient[2]))
        labels = base.values[0]
        frames = np.zeros((len(source), source[0].Rows, source[0].Columns), np.uint8)
        descriptions = []
        for n, (number, level) in enumerate({23: "L4", 24: "L5"}.items(), start=1):
            frames[(labels == number).transpose(2, 1, 0)] = n
            descriptions.append(
                hd.seg.SegmentDescription(
                    segment_number=n,
                    segment_label=label(level),
                    segmented_property_category=codes.SCT.Tissue,
                    segmented_property_type=codes.SCT.Bone,
                    algorithm_type="MANUAL",
                )
            )
        segmentation = hd.seg.Segmentation(
            source_images=source,
            pixel_array=frames,
            segmentation_type="BINARY",
            segment_descriptions=descriptions,
            series_instance_uid=hd.UID(),
            series_number=99,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="x",
            manufacturer_model_name="x",
            software_versions="1",
            device_serial_number="1",
            omit_empty_frames=True,
        )
        segmentation.save_as(place / "seg.dcm")
        return base.scan(base.folder / "dicom", mask=place / "seg.dcm")

    return make


def _ct_as_mri(base: Base, place: Path) -> list[str]:
    scan = base.folder / "dicom"
    return ["source=mri", f"source.path={scan}", f"source.mask={base.labels}", "plan=keep"]


def _density_of_mri(base: Base, place: Path) -> list[str]:
    return ["source=mri", f"source.path={base.ct}", f"source.mask={base.labels}", *LINE]


#: DICOM series, segmentations and contours.
DICOM = (
    Input("as it is", read(density=True), _series()),
    Input("decimal commas", read(note="comma", density=True), _series(_each(_decimal_commas))),
    Input("one series UID per slice", read(note="UID", density=True), _series(_each(_own_uid))),
    Input("two series interleaved", refused("2 series"), _series(_each(_two_uids))),
    Input("slices of other pixel spacing", refused("2 series"), _series(_each(_other_spacing))),
    Input("cut off in the middle", refused("cut short"), _series(_cut_short)),
    Input(
        "a slice missing",
        refused("missing"),
        _series(lambda files, place: files[20].unlink()),
    ),
    Input("behind a linked folder", read(density=True), _linked),
    Input("among Thumbs.db, .DS_Store, PDF", read(density=True), _series(_crowded)),
    Input(
        "SEG without empty frames, named",
        read(note="names that the file carries"),
        _segmentation(lambda level: f"{level} vertebra"),
    ),
    Input(
        "SEG without names",
        refused("numbers say no level|no segment is named"),
        _segmentation(lambda level: "bone"),
    ),
    Input("CT given as MRI", refused("give source=ct"), _ct_as_mri),
    Input("MRI asked for density", refused("geometry only"), _density_of_mri),
    Input("empty folder", refused("holds no"), _empty),
)
