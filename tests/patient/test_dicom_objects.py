"""DICOM segmentations and structure sets as writers leave them: empty frames left out, overlaps,
fractions, label maps, contours.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from engine.patient.read.dicom.rtstruct import even_odd
from engine.patient.read.image import Image
from engine.patient.read.images import read_image, read_labels
from tests.patient.dicom_files import OBLIQUE, blank, series

SHAPE = (14, 12, 16)  # columns, rows, slices
NAMES = {1: "L4", 2: "L5"}
UPPER, LOWER = np.s_[2:8, 3:9, 9:13], np.s_[3:9, 3:9, 4:8]


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Image, list[Dataset]]:
    """An oblique CT: its folder, its image, its slices in the order of the image."""
    folder = tmp_path_factory.mktemp("ct")
    series(folder, shape=SHAPE)
    slices = sorted(
        (pydicom.dcmread(p) for p in folder.iterdir()),
        key=lambda d: np.dot(d.ImagePositionPatient, np.cross(*OBLIQUE)),
    )
    return folder, read_image(folder), slices


def bones() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[UPPER], labels[LOWER] = 1, 2
    return labels


def segmentation(
    path: Path,
    slices: list[Dataset],
    pixels: np.ndarray,
    kind: str = "BINARY",
    names: dict[int, str] = NAMES,
    meanings: dict[int, str] | None = None,
    **options: Any,
) -> Path:
    """pixels [slice, row, column], or [slice, row, column, segment] where segments overlap."""
    described = []
    for number, name in names.items():
        meaning = (meanings or {}).get(number)
        what = codes.SCT.Bone if meaning is None else Code(str(number), "99TEST", meaning)
        described.append(
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=codes.SCT.AnatomicalStructure,
                segmented_property_type=what,
                algorithm_type="MANUAL",
            )
        )
    hd.seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(pixels),
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Acme",
        manufacturer_model_name="M",
        software_versions="1",
        device_serial_number="1",
        **options,
    ).save_as(path)
    return path


def stacked(values: np.ndarray) -> np.ndarray:
    """[column, row, slice, …] → [slice, row, column, …]."""
    return values.swapaxes(0, 2)


def assert_bones_in_place(image: Image, scan: Image) -> None:
    """The labels are `bones` on the scan's lattice, whichever slices the image holds."""
    inverse = np.linalg.inv(scan.lps_from_index) @ image.lps_from_index
    for number in NAMES:
        index = np.argwhere(image.values == number) @ inverse[:3, :3].T + inverse[:3, 3]
        assert sorted(map(tuple, np.rint(index).astype(int))) == sorted(
            map(tuple, np.argwhere(bones() == number))
        )
        np.testing.assert_allclose(index, np.rint(index), atol=1e-4)


def refused(path: Path, text: str, like: Image | None = None) -> None:
    with pytest.raises(ValueError, match=text) as error:
        read_labels(path, like)
    assert "\n" not in str(error.value)


# -- segmentations ---------------------------------------------------------------------------------


def test_a_segmentation_is_read_alone_or_beside_its_ct(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    folder, _, slices = ct
    shutil.copytree(folder, tmp_path / "ct")
    names = {1: "L4", 2: "Jane L5"}
    file = segmentation(tmp_path / "seg.dcm", slices, stacked(bones()), names=names)
    scan = read_image(tmp_path)
    for path in (file, tmp_path):
        image = read_labels(path)
        assert image.modality == "SEG" and image.values.dtype == np.int16
        # "Jane L5": the patient is called Jane, the level is not personal
        assert image.source["segments"] == {1: "L4", 2: "L5"}
        assert_bones_in_place(image, scan)
        frames = [i.source["FrameOfReferenceUID_sha256"] for i in (scan, image)]
        assert frames[0] == frames[1]
    with pytest.raises(ValueError, match=r"no CT or MR slices .*segmentation"):
        read_image(file)


def test_two_segmentations_and_a_damaged_one_are_refused(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    file = segmentation(tmp_path / "1.dcm", ct[2], stacked(bones()))
    shutil.copy(file, tmp_path / "2.dcm")
    refused(tmp_path, r"2 DICOM segmentations \(file 1 of 2.*give one as a file")
    file.write_bytes(file.read_bytes()[:-20])
    refused(file, r"the segmentation \(the file\) can't be read")


def test_the_end_of_the_stored_frames_is_not_the_end_of_the_scan(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    _, scan, slices = ct
    file = segmentation(tmp_path / "seg.dcm", slices, stacked(bones()))
    assert pydicom.dcmread(file).NumberOfFrames == 8  # of 16: the empty ones are left out
    placed = read_labels(file, scan)
    np.testing.assert_array_equal(placed.values, bones())
    np.testing.assert_array_equal(placed.lps_from_index, scan.lps_from_index)
    assert placed.source["segments"] == NAMES and placed.source["numbers_mean_nothing"] is True
    alone = read_labels(file)
    assert alone.values.shape == (*SHAPE[:2], 11)  # slices 4 to 12, and an empty one at each end
    assert any(
        "the scan's border is not known (a DICOM-SEG leaves empty frames out)" in line
        for line in alone.notes
    )
    assert_bones_in_place(alone, scan)


def test_a_bone_at_the_scans_end_still_touches_it(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    _, scan, slices = ct
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 3:9, :4], labels[3:9, 3:9, 6:9] = 2, 1
    image = read_labels(segmentation(tmp_path / "seg.dcm", slices, stacked(labels)), scan)
    np.testing.assert_array_equal(image.values, labels)
    assert image.values[:, :, 0].any()


def test_a_small_overlap_of_segments_is_parted_and_a_large_one_refused(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    """Slicer's export: 1 of 144 voxels shared is parted, half a bone is not, and the outline of the
    body is no rival.
    """
    _, scan, slices = ct
    names = {1: "body", 2: "L5", 3: "L4"}
    masks = np.zeros((*SHAPE, 3), np.uint8)
    masks[1:12, 1:11, 1:15, 0], masks[..., 1], masks[..., 2] = 1, bones() == 2, bones() == 1
    masks[UPPER[0].start, UPPER[1].start, 8, 2] = masks[
        UPPER[0].start + 1, UPPER[1].start, 7, 2
    ] = 1  # the second lies in L5
    image = read_labels(
        segmentation(tmp_path / "seg.dcm", slices, stacked(masks), names=names), scan
    )
    upper, lower = masks[..., 2] > 0, masks[..., 1] > 0
    np.testing.assert_array_equal(image.values == 3, upper)
    np.testing.assert_array_equal(image.values == 2, lower & ~upper)
    np.testing.assert_array_equal(image.values == 1, (masks[..., 0] > 0) & ~upper & ~lower)
    assert any(
        "L4 and L5 overlap in 1 voxels, 0.69% of the smaller: they stay with L4" in line
        for line in image.notes
    )
    masks[LOWER[0], LOWER[1], 6:8, 2] = 1
    refused(
        segmentation(tmp_path / "seg.dcm", slices, stacked(masks), names=names),
        "L4 and L5 overlap in 72 voxels, 50.00%",
    )


def test_fractions_of_0_and_1_are_binary(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    _, scan, slices = ct
    masks = np.stack([bones() == 1, bones() == 2], -1).astype(np.float32)
    options = {"fractional_type": "PROBABILITY", "max_fractional_value": 255}
    image = read_labels(
        segmentation(tmp_path / "seg.dcm", slices, stacked(masks), "FRACTIONAL", **options), scan
    )
    np.testing.assert_array_equal(image.values, bones())
    masks[5, 5, 10, 0] = 0.5
    refused(
        segmentation(tmp_path / "seg.dcm", slices, stacked(masks), "FRACTIONAL", **options),
        "is fractional, not one label per voxel",
    )


@pytest.mark.parametrize("background", [None, 9])
def test_a_label_map_is_read_whatever_its_background_is(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]], background: int | None
) -> None:
    _, scan, slices = ct
    file = segmentation(tmp_path / "seg.dcm", slices, stacked(bones()), "LABELMAP")
    if background is not None:  # PS3.3 C.8.20.2: the padding value is what isn't segmented
        ds = pydicom.dcmread(file)
        stored = np.frombuffer(ds.PixelData, np.uint8).copy()
        stored[stored == 0] = background
        ds.PixelData, ds.PixelPaddingValue = stored.tobytes(), background
        ds.save_as(file)
    image = read_labels(file, scan)
    np.testing.assert_array_equal(image.values, bones())
    assert image.source["segments"] == NAMES


def test_a_code_names_the_level_where_the_label_does_not(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    """The patient is called Jane Doe: a personal word is withheld, the level that the label names
    is not.
    """
    _, scan, slices = ct
    names, meanings = {1: "Segment_1", 2: "L5 of Doe"}, {1: "L4 vertebra", 2: "Bone"}
    image = read_labels(
        segmentation(
            tmp_path / "seg.dcm", slices, stacked(bones()), names=names, meanings=meanings
        ),
        scan,
    )
    assert image.source["segments"] == {1: "L4 vertebra", 2: "L5"}
    image = read_labels(
        segmentation(tmp_path / "seg.dcm", slices, stacked(bones()), names={1: "L4", 2: "Jane's"}),
        scan,
    )
    assert image.source["segments"] == {1: "L4", 2: "(withheld)"}


def test_labels_are_read_beside_the_slices_of_their_scan(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    """A folder with a DICOM series and masks, or with one label image, is asked for its labels."""
    folder, scan, _ = ct
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.lps_from_index
    for place, names in (("one", {0: "labels"}), ("masks", {1: "vertebrae_L4", 2: "vertebrae_L5"})):
        shutil.copytree(folder, tmp_path / place)
        for number, name in names.items():
            values = bones() if number == 0 else (bones() == number).astype(np.uint8)
            nib.save(nib.Nifti1Image(values, ras), tmp_path / place / f"{name}.nii.gz")
        np.testing.assert_array_equal(read_labels(tmp_path / place).values, bones())
        np.testing.assert_array_equal(read_image(tmp_path / place).values, scan.values)


# -- structure sets --------------------------------------------------------------------------------


def structures(
    path: Path, scan: Image, rois: dict[str, list[tuple[int, list[tuple[float, float]]]]]
) -> Path:
    """rois: name → [(slice, corners (column, row))]."""
    ds = blank("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT")
    ds.SeriesInstanceUID = generate_uid()
    frame = Dataset()
    frame.FrameOfReferenceUID = ds.FrameOfReferenceUID
    ds.ReferencedFrameOfReferenceSequence = Sequence([frame])
    ds.StructureSetROISequence, ds.ROIContourSequence = Sequence(), Sequence()
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = (
            number,
            name,
            ds.FrameOfReferenceUID,
        )
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence()
        for place, corners in contours:
            points = (
                np.array([(*corner, place) for corner in corners]) @ scan.lps_from_index[:3, :3].T
                + scan.lps_from_index[:3, 3]
            )
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = (
                "CLOSED_PLANAR",
                len(points),
            )
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
            drawn.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    ds.save_as(path, enforce_file_format=True)
    return path


def square(low: float, high: float) -> list[tuple[float, float]]:
    return [(low, low), (high, low), (high, high), (low, high)]


def test_contours_become_labels_on_the_scans_grid(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    """L5 has a hole (a contour within), L4 one by a keyhole; the body's outline is left out."""
    folder, scan, _ = ct
    keyhole = [*square(1.5, 9.5), (1.5, 1.5), *square(3.5, 6.5)[::-1], (3.5, 6.5), (1.5, 1.5)]
    rois = {
        "External": [(k, square(0.5, 11.5)) for k in range(1, 15)],
        "L5": [
            item for k in range(3, 7) for item in ((k, square(1.5, 9.5)), (k, square(3.5, 6.5)))
        ],
        "L4 vertebra": [(k, keyhole) for k in range(8, 12)],
    }
    file = structures(tmp_path / "rt.dcm", scan, rois)
    expected = np.zeros(SHAPE, np.int16)
    for number, start in ((2, 3), (3, 8)):
        expected[2:10, 2:10, start : start + 4] = number
        expected[4:7, 4:7, start : start + 4] = 0
    image = read_labels(file, scan)
    np.testing.assert_array_equal(image.values, expected)
    np.testing.assert_allclose(image.lps_from_index, scan.lps_from_index, atol=1e-9)
    assert (
        image.source["segments"] == {2: "L5", 3: "L4 vertebra"}
        and image.source["numbers_mean_nothing"] is True
    )
    assert image.source["FrameOfReferenceUID_sha256"] == scan.source["FrameOfReferenceUID_sha256"]
    assert any("1 regions not read: External" in line for line in image.notes)
    refused(
        file,
        r"RTSTRUCT \(contours; the file\) needs the scan.*3D Slicer.*dcmrtstruct2nii convert "
        r"-r.*plastimatch convert --input",
    )
    both = tmp_path / "both"
    both.mkdir()
    for n, source in enumerate([file, *folder.iterdir()]):
        (both / f"{n}.dcm").write_bytes(source.read_bytes())
    np.testing.assert_array_equal(read_labels(both).values, expected)  # the scan is found beside it
    assert any("1 skipped: RTSTRUCT (contours)" in line for line in read_image(both).notes)


def test_contours_that_do_not_fit_are_refused(
    tmp_path: Path, ct: tuple[Path, Image, list[Dataset]]
) -> None:
    scan = ct[1]

    def bad(
        text: str, rois: dict[str, list[tuple[int, list[tuple[float, float]]]]], like: Image = scan
    ) -> None:
        refused(structures(tmp_path / "rt.dcm", scan, rois), text, like)

    bad(
        r"no contours of a region named after a vertebra.*it holds PTV, Cord",
        {"PTV": [(3, square(2, 5))], "Cord": [(3, square(2, 5))]},
    )
    bad(
        r"L4: 2 of the 5 slices between its first and last contour have none",
        {"L4": [(k, square(2, 5)) for k in (3, 5, 7)]},
    )
    bad(
        r"L4: its contours reach beyond the scan", {"L4": [(k, square(2, 5)) for k in (14, 15, 16)]}
    )
    bad(r"L4: its contours reach beyond the scan", {"L4": [(k, square(2, 25)) for k in (4, 5)]})
    shifted = scan.lps_from_index.copy()
    shifted[:3, 3] += 0.4 * shifted[:3, 2]
    other = Image(scan.values, shifted, "CT", (), scan.source)
    bad(
        r"its contours lie 0\.4 slices beside the scan's",
        {"L4": [(k, square(2, 5)) for k in (4, 5)]},
        other,
    )
    bad(
        "L4 and L4 vertebra are both L4",
        {"L4": [(4, square(2, 5))], "L4 vertebra": [(5, square(2, 5))]},
    )
    bad(
        "L4 and L5 overlap in 9 voxels, 100.00%",
        {"L4": [(4, square(1.5, 4.5))], "L5": [(4, square(1.5, 4.5))]},
    )


def test_the_even_odd_rule_holds_on_a_circle_and_a_star() -> None:
    angle = np.linspace(0.0, 2.0 * np.pi, 400, endpoint=False)
    i, j = np.meshgrid(np.arange(60), np.arange(50), indexing="ij")
    circle = np.stack([30.3 + 17.7 * np.cos(angle), 24.6 + 17.7 * np.sin(angle)], axis=-1)
    np.testing.assert_array_equal(
        even_odd([circle], (60, 50)), np.hypot(i - 30.3, j - 24.6) < 17.7 * np.cos(np.pi / 800)
    )
    corner = np.pi / 2 + np.arange(5) * 4.0 * np.pi / 5.0
    star = even_odd(
        [np.stack([30.3 + 20 * np.cos(corner), 24.6 + 20 * np.sin(corner)], axis=-1)], (60, 50)
    )
    assert not star[30, 25] and star[30, 40]  # the pentagon in the middle is crossed twice
