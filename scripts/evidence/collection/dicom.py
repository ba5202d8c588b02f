"""The collection's DICOM: series, segmentations and contours as scanners and exports leave them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom

from scripts.evidence.collection.base import LINE, Base, case, read, refused
from scripts.evidence.scan.cases import Case


def dicom(base: Base) -> list[Case]:
    """DICOM series, segmentations and contours."""

    def series(
        change: Callable[[list[Path], Path], None] | None = None,
    ) -> Callable[[Path], list[str]]:
        def make(place: Path) -> list[str]:
            shutil.copytree(base.made / "dicom", place / "dicom")
            if change is not None:
                change(sorted((place / "dicom").iterdir()), place)
            return base.scan(place / "dicom")

        return make

    def each(edit: Callable[[pydicom.Dataset, int], None]) -> Callable[[list[Path], Path], None]:
        def change(files: list[Path], place: Path) -> None:
            for n, file in enumerate(files):
                slice_ = pydicom.dcmread(file)
                edit(slice_, n)
                slice_.save_as(file)

        return change

    def commas(files: list[Path], place: Path) -> None:
        from pydicom.dataelem import RawDataElement

        for file in files:
            slice_ = pydicom.dcmread(file)
            for key in (
                "PixelSpacing",
                "ImagePositionPatient",
                "SliceThickness",
                "ImageOrientationPatient",
            ):
                value = slice_[key].value
                parts = (
                    value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
                )
                text = "\\".join(map(str, parts)).replace(".", ",").encode()
                text += b" " * (len(text) % 2)
                tag = slice_[key].tag
                slice_._dict[tag] = RawDataElement(tag, "DS", len(text), text, 0, False, True)  # type: ignore[arg-type]
            slice_.save_as(file)

    def other_spacing(slice_: pydicom.Dataset, n: int) -> None:
        if n < 3:
            slice_.PixelSpacing = [1.0, 1.0]

    def own_uid(slice_: pydicom.Dataset, n: int) -> None:
        slice_.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(n)])

    def two_series(slice_: pydicom.Dataset, n: int) -> None:
        if n % 2:
            slice_.SeriesInstanceUID += ".1"

    def half(files: list[Path], place: Path) -> None:
        whole = files[20].read_bytes()
        files[20].write_bytes(whole[: len(whole) // 2])

    def linked(place: Path) -> list[str]:
        shutil.copytree(base.made / "dicom", place / "elsewhere" / "series")
        (place / "dicom").mkdir()
        os.symlink(place / "elsewhere" / "series", place / "dicom" / "link")
        return base.scan(place / "dicom")

    def crowded(files: list[Path], place: Path) -> None:
        for name, content in (
            ("Thumbs.db", b"x" * 300),
            (".DS_Store", b"y" * 300),
            ("report.pdf", b"%PDF-1.4\n" + b"z" * 400),
        ):
            (place / "dicom" / name).write_bytes(content)

    def segmentation(
        names: dict[int, str], label: Callable[[str], str]
    ) -> Callable[[Path], list[str]]:
        def make(place: Path) -> list[str]:
            import highdicom as hd
            from pydicom.sr.codedict import codes

            files = sorted((base.made / "dicom").iterdir())
            source = [pydicom.dcmread(file) for file in files]
            source.sort(key=lambda d: float(d.ImagePositionPatient[2]))
            labels = base.values[0]
            frames = np.zeros((len(source), source[0].Rows, source[0].Columns), np.uint8)
            descriptions = []
            for n, (number, level) in enumerate(names.items(), start=1):
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
            made = hd.seg.Segmentation(
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
            made.save_as(place / "seg.dcm")
            return base.scan(base.made / "dicom", mask=place / "seg.dcm")

        return make

    def as_mri(*more: str) -> Callable[[Path], list[str]]:
        return lambda place: [
            "source=mri",
            f"source.path={base.made / 'dicom'}",
            f"source.mask={base.labels}",
            "plan=keep",
            *more,
        ]

    return [
        case("DICOM", "as it is", read(density=True), series()),
        case("DICOM", "decimal commas", read(said="comma", density=True), series(commas)),
        case(
            "DICOM",
            "one series UID per slice",
            read(said="UID", density=True),
            series(each(own_uid)),
        ),
        case("DICOM", "two series interleaved", refused("2 series"), series(each(two_series))),
        case(
            "DICOM",
            "slices of other pixel spacing",
            refused("2 series"),
            series(each(other_spacing)),
        ),
        case("DICOM", "cut off in the middle", refused("cut short"), series(half)),
        case(
            "DICOM",
            "a slice missing",
            refused("missing"),
            series(lambda files, place: files[20].unlink()),
        ),
        case("DICOM", "behind a linked folder", read(density=True), linked),
        case("DICOM", "among Thumbs.db, .DS_Store, PDF", read(density=True), series(crowded)),
        case(
            "DICOM",
            "SEG without empty frames, named",
            read(said="names that the file carries"),
            segmentation({23: "L4", 24: "L5"}, lambda level: f"{level} vertebra"),
        ),
        case(
            "DICOM",
            "SEG without names",
            refused("numbers say no level|no segment is named"),
            segmentation({23: "L4", 24: "L5"}, lambda level: "bone"),
        ),
        case("DICOM", "CT given as MRI", refused("give source=ct"), as_mri()),
        case(
            "DICOM",
            "MRI asked for density",
            refused("geometry only"),
            lambda place: [
                "source=mri",
                f"source.path={base.ct}",
                f"source.mask={base.labels}",
                *LINE,
            ],
        ),
        case("DICOM", "empty folder", refused("holds no"), lambda place: base.scan(_empty(place))),
    ]


def _empty(place: Path) -> Path:
    (place / "nothing").mkdir()
    return place / "nothing"
