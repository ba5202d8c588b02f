"""Image intake. Synthetic images hold a linear function of the place in LPS, so every voxel's value
is known from its position; a wrong order, flip, transpose, spacing, rescale or shear shows as a
wrong value at a given point.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from engine.patient.read.image import Image, orthogonal, resample_to
from engine.patient.read.images import read_image, read_labels
from tests.patient.conftest import needs_data

CT, ENHANCED_CT, SECONDARY = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "7"))
#: Row and column direction of an oblique scan.
OBLIQUE = Rotation.from_euler("xyz", [12.0, -8.0, 20.0], degrees=True).as_matrix()[:, :2].T
SHAPE = (14, 11, 9)  # columns, rows, slices
PIXEL = (0.7, 0.9)  # between rows, between columns
ORIGIN = np.array([-31.0, 17.0, -240.0])


def linear(points: np.ndarray) -> np.ndarray:
    """HU as a function of LPS mm [..., 3]."""
    return points @ np.array([11.0, -7.0, 5.0]) + 1500.0


def grid(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij"), -1)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def sample(image: Image, points: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(image.lps_from_index)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    return map_coordinates(np.asarray(image.values, float), index.T, order=1, mode="nearest")


def inner_points(matrix: np.ndarray, shape: tuple[int, ...], count: int = 200) -> np.ndarray:
    """Points inside an image, at least a voxel from its border."""
    index = np.random.default_rng(3).uniform(1.0, np.array(shape) - 2.0, (count, 3))
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def meta(sop_class: str, sop: str) -> FileMetaDataset:
    out = FileMetaDataset()
    out.MediaStorageSOPClassUID, out.MediaStorageSOPInstanceUID = UID(sop_class), UID(sop)
    out.TransferSyntaxUID = ExplicitVRLittleEndian
    return out


def blank(sop_class: str = CT, modality: str = "CT") -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.file_meta = meta(sop_class, ds.SOPInstanceUID)
    ds.Modality = modality
    ds.PatientName, ds.PatientID = "Doe^Jane", "Q77"
    ds.StudyInstanceUID = ds.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.ReferringPhysicianName = (
        "",
        "20240203",
        "101010",
        "",
        "",
    )
    ds.PatientBirthDate, ds.PatientSex = "19610417", "F"
    return ds


def pixels(ds: Dataset, stored: np.ndarray, signed: bool, bits: int = 16) -> None:
    """Stored values [..., row, column]."""
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
        16,
        bits,
        bits - 1,
        int(signed),
    )
    info = np.iinfo(np.int16 if signed else np.uint16)
    assert stored.min() >= info.min and stored.max() < min(info.max, 2**bits)
    ds.PixelData = stored.astype(info.dtype).tobytes()


def series(
    folder: Path,
    *,
    shape: tuple[int, int, int] = SHAPE,
    axes: np.ndarray = OBLIQUE,
    step: np.ndarray | None = None,
    rescale: Callable[[int], tuple[float, float]] = lambda k: (1.0, -1024.0),
    uid: str | None = "1.2.826.0.1.3680043.8.498.2",
    content: Callable[[np.ndarray], np.ndarray] = linear,
    signed: bool = False,
    bits: int = 16,
    names: Callable[[int], str] = lambda n: f"IM{n:04d}",
    edit: Callable[[Dataset, int], None] = lambda ds, k: None,
) -> np.ndarray:
    """Write a series, file names and InstanceNumbers in another order than the slices; its index
    → LPS matrix."""
    folder.mkdir(parents=True, exist_ok=True)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = axes[0] * PIXEL[1], axes[1] * PIXEL[0]
    matrix[:3, 2] = 2.5 * np.cross(*axes) if step is None else step
    matrix[:3, 3] = ORIGIN
    hu = content(grid(matrix, shape))
    shuffled = np.random.default_rng(1).permutation(shape[2])
    for k in range(shape[2]):
        ds = blank()
        if uid:
            ds.SeriesInstanceUID = uid
        ds.SeriesNumber, ds.InstanceNumber, ds.SeriesDescription = (
            4,
            int(shuffled[k]) + 1,
            "Spine bone",
        )
        ds.Manufacturer, ds.ManufacturerModelName, ds.KVP, ds.ConvolutionKernel = (
            "Acme",
            "Tunnel 3",
            120,
            ["B60s", "2"],
        )
        ds.SliceThickness, ds.XRayTubeCurrent, ds.PatientPosition = 2.5, 200 + k, "HFS"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.ImagePositionPatient = [float(f"{v:.9g}") for v in matrix[:3, 3] + matrix[:3, 2] * k]
        ds.ImageOrientationPatient = [float(f"{v:.12g}") for v in axes.ravel()]
        ds.PixelSpacing = list(PIXEL)
        slope, intercept = rescale(k)
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "HU"
        pixels(ds, np.rint((hu[:, :, k].T - intercept) / slope), signed, bits)
        edit(ds, k)
        ds.save_as(folder / names(int(shuffled[k])), enforce_file_format=True)
    return matrix


def file_of(folder: Path, k: int) -> Path:
    """The file of slice k (as `series` writes them)."""
    return folder / f"IM{int(np.random.default_rng(1).permutation(SHAPE[2])[k]):04d}"


# -- DICOM: order, place and values ----------------------------------------------------------------


def test_oblique_series_with_a_rescale_per_slice_is_exact(tmp_path: Path) -> None:
    """Stored values are rounded to the slope, so HU are within slope/2 = 1; a neighbour's
    rescale would be off by > 20."""
    matrix = series(tmp_path, rescale=lambda k: (1.0 + k % 2, -1024.0 - 20 * k))
    image = read_image(tmp_path)
    assert image.modality == "CT" and image.values.dtype == np.int16 and image.values.shape == SHAPE
    np.testing.assert_allclose(image.lps_from_index, matrix, atol=1e-5)
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=1.01)
    np.testing.assert_allclose(image.voxel_mm, [0.9, 0.7, 2.5], atol=1e-6)
    source = image.source
    assert (
        source["files"] == SHAPE[2]
        and source["KVP"] == 120.0
        and source["ConvolutionKernel"] == "B60s\\2"
    )
    assert (
        source["Manufacturer"] == "Acme"
        and source["XRayTubeCurrent"] == [200.0, 208.0]
        and source["ContrastBolusAgent"] == "no"
    )
    assert source["slice_spacing_mm"] == pytest.approx(2.5, abs=1e-5)
    assert "1.2.826" not in repr(source)  # hashes only
    assert image.notes == ()


def test_fractional_slopes_give_float32(tmp_path: Path) -> None:
    matrix = series(tmp_path, rescale=lambda k: (0.25, -1024.5))
    image = read_image(tmp_path)
    assert image.values.dtype == np.float32
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=0.126)


def test_values_beyond_int16_widen(tmp_path: Path) -> None:
    matrix = series(
        tmp_path, content=lambda p: 60.0 * linear(p) + 50000.0, rescale=lambda k: (2.0, -20000.0)
    )
    image = read_image(tmp_path)
    assert image.values.dtype == np.int32 and image.values.max() > 40000
    expected = 60.0 * linear(grid(matrix, SHAPE)) + 50000.0
    np.testing.assert_allclose(image.values, expected, atol=1.01)


def test_sha256_follows_the_pixels_and_the_place_not_the_files(tmp_path: Path) -> None:
    series(tmp_path / "a")
    series(
        tmp_path / "b", names=lambda n: f"slice{99 - n}.dcm", rescale=lambda k: (1.0, -2000.0)
    )  # the same HU
    series(tmp_path / "c", step=2.6 * np.cross(*OBLIQUE), content=lambda p: 0.0 * p[..., 0])
    series(tmp_path / "d", content=lambda p: 0.0 * p[..., 0])
    a, b, c, d = (read_image(tmp_path / name).source["sha256"] for name in "abcd")
    assert a == b and len({a, c, d}) == 3


def test_bits_beyond_the_stored_ones_are_ignored(tmp_path: Path) -> None:
    def overlay(ds: Dataset, k: int) -> None:  # as overlays in the high bits of old scanners
        ds.PixelData = (np.frombuffer(ds.PixelData, np.uint16) | 0x4000).tobytes()

    matrix = series(tmp_path, bits=12, edit=overlay)
    np.testing.assert_allclose(read_image(tmp_path).values, linear(grid(matrix, SHAPE)), atol=0.51)


def test_missing_slices_are_named(tmp_path: Path) -> None:
    series(tmp_path, axes=np.eye(3)[:2])
    file_of(tmp_path, 3).unlink()
    file_of(tmp_path, 6).unlink()
    # slices at −240 + 2.5·k
    with pytest.raises(ValueError, match=r"2 of 9 slices are missing, at -232\.50, -225\.00 mm"):
        read_image(tmp_path)


def test_unequal_spacing_is_refused_with_its_tolerance_and_rounded_positions_are_not(
    tmp_path: Path,
) -> None:
    def shift(by: float) -> Callable[[Dataset, int], None]:
        def edit(ds: Dataset, k: int) -> None:
            ds.ImagePositionPatient = [
                *ds.ImagePositionPatient[:2],
                round(float(ds.ImagePositionPatient[2]) + by * (k % 2), 4),
            ]

        return edit

    series(tmp_path / "rounded", axes=np.eye(3)[:2], edit=shift(0.05))
    assert read_image(tmp_path / "rounded").source["slice_spacing_mm"] == pytest.approx(
        2.5, abs=0.01
    )
    series(tmp_path / "uneven", axes=np.eye(3)[:2], edit=shift(0.8))
    with pytest.raises(ValueError, match=r"unequal slice spacing.*at most 10% of the spacing"):
        read_image(tmp_path / "uneven")


def test_duplicates_with_the_same_content_go_and_others_are_refused(tmp_path: Path) -> None:
    matrix = series(tmp_path, axes=np.eye(3)[:2])
    copy = pydicom.dcmread(file_of(tmp_path, 2))
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    copy.save_as(tmp_path / "IM0100")
    image = read_image(tmp_path)
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=0.51)
    assert any("1 duplicate" in line and "-235.00" in line for line in image.notes)
    stored = np.frombuffer(copy.PixelData, np.uint16).copy()
    stored[5] += 1
    copy.PixelData = stored.tobytes()
    copy.save_as(tmp_path / "IM0100")
    with pytest.raises(
        ValueError, match=r"two slices at -235\.00 mm .* differ in content .*IM0100"
    ):
        read_image(tmp_path)


@pytest.mark.parametrize("tilt_deg", [1.0, 17.0, -25.0])
def test_gantry_tilt_is_resampled(tmp_path: Path, tilt_deg: float) -> None:
    """Linear interpolation of a linear function is exact: 1 HU for two roundings. Spread over
    the axes by an SVD, 17° would displace the corners by millimetres (7 HU/mm along y)."""
    step = 2.5 * np.array([0.0, np.tan(np.radians(tilt_deg)), 1.0])
    shape = (14, 16, 9)
    matrix = series(tmp_path, axes=np.eye(3)[:2], step=step, shape=shape)
    image = read_image(tmp_path)
    axes = image.lps_from_index[:3, :3] / image.voxel_mm
    np.testing.assert_allclose(axes, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(image.voxel_mm, [0.9, 0.7, 2.5], atol=1e-6)
    points = inner_points(matrix, shape)
    if abs(tilt_deg) < 2.0:
        assert np.abs(sample(image, points) - linear(points)).max() < 1.01
    # in a slice's plane nothing of another slice (or of the padding) mixes in
    index = np.random.default_rng(5).integers([2, 2, 0], [12, 14, 9], (300, 3))
    points = index @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.abs(sample(image, points) - linear(points)).max() < 1.01
    assert any(f"{abs(tilt_deg):.2f}°" in line and "resampled" in line for line in image.notes)
    assert (image.values == -1024).any()


def test_orientation_that_is_nearly_orthonormal_is_repaired(tmp_path: Path) -> None:
    axes = OBLIQUE.copy()
    axes[1] = axes[1] * 1.001 + 0.004 * axes[0]
    matrix = series(tmp_path, axes=axes, step=2.5 * np.cross(*OBLIQUE))
    image = read_image(tmp_path)
    found = image.lps_from_index[:3, :3] / image.voxel_mm
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-9)
    assert np.abs(grid(image.lps_from_index, SHAPE) - grid(matrix, SHAPE)).max() < 0.05
    assert any("ImageOrientationPatient" in line for line in image.notes)


def test_padding_in_either_sign_becomes_air(tmp_path: Path) -> None:
    """−2000 stored in a signed image, written as unsigned 63536 in the tag (seen in the field)."""

    def pad(ds: Dataset, k: int) -> None:
        stored = np.frombuffer(ds.PixelData, np.int16).copy()
        stored[:7] = -2000
        ds.PixelData = stored.tobytes()
        ds.add_new(0x00280120, "US", 63536)

    matrix = series(tmp_path, signed=True, rescale=lambda k: (1.0, 0.0), edit=pad)
    image = read_image(tmp_path)
    expected = linear(grid(matrix, SHAPE))
    expected[:7, 0, :] = -1024
    np.testing.assert_allclose(image.values, expected, atol=0.51)
    assert any("padding" in line and "-2000 HU" in line for line in image.notes)


def test_padding_that_could_be_tissue_stays(tmp_path: Path) -> None:
    def pad(ds: Dataset, k: int) -> None:
        ds.add_new(0x00280120, "SS", 0)

    matrix = series(
        tmp_path,
        signed=True,
        rescale=lambda k: (1.0, 0.0),
        content=lambda p: np.round(linear(p), -2),
        edit=pad,
    )
    image = read_image(tmp_path)
    expected = np.round(linear(grid(matrix, SHAPE)), -2)
    assert (expected == 0).any()
    np.testing.assert_allclose(image.values, expected, atol=0.01)
    assert any("tissue" in line for line in image.notes)


def test_ct_without_a_rescale_is_refused(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        if k == 4:
            del ds.RescaleIntercept

    series(tmp_path, edit=edit)
    with pytest.raises(ValueError, match=r"without RescaleSlope and RescaleIntercept"):
        read_image(tmp_path)


# -- DICOM: which series ---------------------------------------------------------------------------


def test_several_series_are_listed_and_chosen(tmp_path: Path) -> None:
    other = "1.2.826.0.1.3680043.8.498.3"

    def soft(ds: Dataset, k: int) -> None:
        ds.SeriesNumber, ds.SeriesDescription = 7, "Spine soft"

    series(tmp_path / "x" / "one")
    series(
        tmp_path / "x" / "two",
        uid=other,
        content=lambda p: -linear(p),
        rescale=lambda k: (1.0, -2024.0),
        edit=soft,
    )
    with pytest.raises(
        ValueError,
        match=(
            r"2 series; set source\.series=.*1: CT Spine bone, 9 slices 14 x 11, 0\.9 x 0\.7 x 2\.5"
            r" mm.*2: CT"
        ),
    ) as e:
        read_image(tmp_path)
    assert other in str(e.value)
    by = [read_image(tmp_path, series=s) for s in ("2", other, "7", "soft")]
    assert len({image.source["sha256"] for image in by}) == 1
    assert read_image(tmp_path, series="1").source["sha256"] != by[0].source["sha256"]
    for wrong in ("Spine", "3", "brain"):
        with pytest.raises(ValueError, match=r"source\.series=.* fits (2|none) of the 2 series"):
            read_image(tmp_path, series=wrong)


def test_echoes_in_one_series_are_parted(tmp_path: Path) -> None:
    def echo(te: int) -> Callable[[Dataset, int], None]:
        def edit(ds: Dataset, k: int) -> None:
            ds.Modality, ds.EchoTime = "MR", te

        return edit

    series(tmp_path / "a", edit=echo(20))
    matrix = series(tmp_path / "b", content=lambda p: 2.0 * linear(p), edit=echo(90))
    image = read_image(tmp_path, series="2")
    assert image.modality == "MR"
    np.testing.assert_allclose(image.values, 2.0 * linear(grid(matrix, SHAPE)), atol=0.51)


def test_no_series_uid_and_a_folder_with_everything_else(tmp_path: Path) -> None:
    matrix = series(tmp_path, uid=None)
    (tmp_path / "README.txt").write_text("not an image " * 30)
    (tmp_path / "empty").touch()
    report = blank("1.2.840.10008.5.1.4.1.1.88.67", "SR")
    report.save_as(tmp_path / "dose", enforce_file_format=True)

    def scout(ds: Dataset, k: int) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    series(tmp_path / "scout", uid=None, shape=(14, 11, 2), edit=scout)
    series(tmp_path / "other", uid=None, shape=(20, 11, 1))
    capture = blank(SECONDARY)
    pixels(capture, np.zeros((8, 8)), False)
    capture.save_as(tmp_path / "capture", enforce_file_format=True)
    image = read_image(tmp_path)
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=0.51)
    told = " | ".join(image.notes)
    for part in (
        "no SeriesInstanceUID: 9",
        "2 skipped: not DICOM",
        "1 skipped: SR",
        "2 skipped: localizer",
        "screen capture",
        "single image",
    ):
        assert part in told, (part, told)


def test_folders_without_a_series(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no DICOM file"):
        read_image(tmp_path)
    (tmp_path / "notes.txt").write_text("x" * 500)
    with pytest.raises(ValueError, match=r"no DICOM file \(1 other"):
        read_image(tmp_path)
    blank("1.2.840.10008.5.1.4.1.1.88.67", "SR").save_as(
        tmp_path / "dose", enforce_file_format=True
    )
    with pytest.raises(ValueError, match=r"no CT or MR slices .*SR object"):
        read_image(tmp_path)
    series(tmp_path / "one", shape=(14, 11, 1))
    with pytest.raises(ValueError, match="a single slice"):
        read_image(tmp_path / "one" / "IM0000")


# -- DICOM: multi-frame, compressed, damaged, large ------------------------------------------------


def commas(file: Path, keys: tuple[str, ...]) -> None:
    """Rewrite the decimal strings of a file with commas, as a writer under a comma locale does."""
    ds = pydicom.dcmread(file)
    for key in keys:
        value = ds[key].value
        several = value if isinstance(value, pydicom.multival.MultiValue) else [value]
        text = "\\".join(str(v) for v in several).replace(".", ",").encode()
        ds._dict[ds[key].tag] = RawDataElement(
            ds[key].tag, "DS", 0, text + b" " * (len(text) % 2), 0, False, True
        )
    ds.save_as(file)


def test_decimal_commas_are_read(tmp_path: Path) -> None:
    series(tmp_path / "points")
    matrix = series(
        tmp_path / "commas", edit=lambda ds, k: setattr(ds, "RescaleIntercept", "-1024.0")
    )
    keys = (
        "PixelSpacing",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "SliceThickness",
        "RescaleIntercept",
        "RescaleSlope",
    )
    for file in (tmp_path / "commas").iterdir():
        commas(file, keys)
        assert b"0,7" in file.read_bytes()
    image, points = read_image(tmp_path / "commas"), read_image(tmp_path / "points")
    np.testing.assert_allclose(image.lps_from_index, matrix, atol=1e-6)
    np.testing.assert_array_equal(image.values, points.values)
    assert image.source["SliceThickness"] == 2.5 and image.source["Manufacturer"] == "Acme"
    assert "decimal commas in the numbers of 9 files read as decimal points" in image.notes
    for file in (tmp_path / "commas").iterdir():
        file.write_bytes(file.read_bytes().replace(b"0,7\\0,9", b"0,7.0.9"))
    with pytest.raises(
        ValueError, match="9 skipped: picture whose PixelSpacing can't be read as numbers"
    ):
        read_image(tmp_path / "commas")


def test_a_series_uid_for_each_slice(tmp_path: Path) -> None:
    """One series after an anonymiser that made new UIDs for every file; two localizers beside it
    stay out."""

    def own(ds: Dataset, k: int) -> None:
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid()

    matrix = series(tmp_path / "own", edit=own)
    image = read_image(tmp_path / "own")
    np.testing.assert_allclose(image.lps_from_index, matrix, atol=1e-6)
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=0.51)
    line = (
        "every slice has a SeriesInstanceUID of its own: 9 slices grouped by modality, settings,"
        " size and direction"
    )
    assert line in image.notes and "SeriesInstanceUID_sha256" not in image.source
    series(tmp_path / "twice", edit=own)
    series(tmp_path / "twice" / "more", edit=own, content=lambda points: linear(points) + 50.0)
    with pytest.raises(
        ValueError, match=r"two slices at .* differ in content .*several acquisitions in one series"
    ):
        read_image(tmp_path / "twice")
    series(tmp_path / "real")
    for k in range(3):  # single slices with UIDs of their own beside a real series are no series
        series(tmp_path / "real" / f"scout{k}", shape=(14, 11, 1), edit=own)
    assert read_image(tmp_path / "real").values.shape == SHAPE


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    matrix = series(tmp_path / "store" / "slices")
    study = tmp_path / "study"
    study.mkdir()
    (study / "series").symlink_to(tmp_path / "store" / "slices", target_is_directory=True)
    (study / "again").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "loop").symlink_to(study, target_is_directory=True)
    (study / "gone").symlink_to(tmp_path / "nowhere")
    image = read_image(study)
    np.testing.assert_allclose(image.lps_from_index, matrix, atol=1e-6)
    assert image.values.shape == SHAPE and not any("duplicate" in line for line in image.notes)
    files = tmp_path / "files"
    files.mkdir()
    for file in (tmp_path / "store" / "slices").iterdir():
        (files / file.name).symlink_to(file)
    assert read_image(files).source["sha256"] == image.source["sha256"]


def test_what_lies_beside_slices_is_no_matter(tmp_path: Path) -> None:
    series(tmp_path)
    index = blank("1.2.840.10008.1.3.10", "")
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    for name, content in (
        ("Thumbs.db", b"\xd0\xcf"),
        (".DS_Store", b"Bud1"),
        ("report.pdf", b"%PDF-1.4"),
        ("._IM0001", b"\x00\x05"),
    ):
        (tmp_path / name).write_bytes(content)
    image = read_image(tmp_path)
    assert image.values.shape == SHAPE
    assert "1 skipped: DICOMDIR" in image.notes and "2 skipped: not DICOM" in image.notes
    with pytest.raises(
        ValueError, match=r"DICOMDIR is the index of a folder .*give the folder that it is in"
    ):
        read_image(tmp_path / "DICOMDIR")


def enhanced(path: Path, matrix: np.ndarray, shape: tuple[int, int, int]) -> None:
    """An enhanced CT: frames shuffled, each with its own rescale."""
    ds = blank(ENHANCED_CT)
    ds.SeriesInstanceUID, ds.ImageType = generate_uid(), ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames = shape[2]
    shared = Dataset()
    measures, plane, details = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(PIXEL), 2.5
    plane.ImageOrientationPatient = [float(f"{v:.12g}") for v in OBLIQUE.ravel()]
    details.KVP = 100
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = (
        Sequence([measures]),
        Sequence([plane]),
    )
    shared.CTXRayDetailsSequence = Sequence([details])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    hu, frames, groups = linear(grid(matrix, shape)), [], []
    for k in np.random.default_rng(2).permutation(shape[2]):
        group, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [
            float(f"{v:.9g}") for v in matrix[:3, 3] + matrix[:3, 2] * k
        ]
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = (
            1,
            -1024 - 10 * int(k),
            "HU",
        )
        group.PlanePositionSequence, group.PixelValueTransformationSequence = (
            Sequence([position]),
            Sequence([transform]),
        )
        groups.append(group)
        frames.append(np.rint(hu[:, :, k].T + 1024 + 10 * k))
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    pixels(ds, np.array(frames), False)
    ds.save_as(path, enforce_file_format=True)


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    matrix = series(tmp_path / "for_its_matrix")
    enhanced(tmp_path / "multi.dcm", matrix, SHAPE)
    image = read_image(tmp_path / "multi.dcm")
    np.testing.assert_allclose(image.lps_from_index, matrix, atol=1e-5)
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=0.51)
    assert (
        image.source["KVP"] == 100.0
        and image.source["files"] == 1
        and image.source["SliceThickness"] == 2.5
    )


def test_compressed_is_the_same_image(tmp_path: Path) -> None:
    def compress(ds: Dataset, k: int) -> None:
        ds.compress(RLELossless, generate_instance_uid=False)

    series(tmp_path / "plain")
    series(tmp_path / "rle", edit=compress)
    plain, rle = read_image(tmp_path / "plain"), read_image(tmp_path / "rle")
    assert (
        np.array_equal(plain.values, rle.values) and plain.source["sha256"] == rle.source["sha256"]
    )


def test_a_compression_without_decoder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mark(ds: Dataset, k: int) -> None:
        ds.file_meta.TransferSyntaxUID = JPEGLSLossless
        ds.PixelData = pydicom.encaps.encapsulate([ds.PixelData])
        ds["PixelData"].VR = "OB"

    series(tmp_path, edit=mark)
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(
        ValueError,
        match=(
            r"no decoder for the transfer syntax JPEG-LS Lossless.*pip install pylibjpeg"
            r" pylibjpeg-libjpeg"
        ),
    ):
        read_image(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_named(tmp_path: Path, compressed: bool) -> None:
    def compress(ds: Dataset, k: int) -> None:
        if compressed:
            ds.compress(RLELossless, generate_instance_uid=False)

    series(tmp_path, edit=compress)
    file = file_of(tmp_path, 5)
    whole = file.read_bytes()
    for kept in (len(whole) - 60, 700):
        file.write_bytes(whole[:kept])
        with pytest.raises(
            ValueError, match=rf"of 9 in alphabetical order \({file.name}\).*cut short"
        ):
            read_image(tmp_path)


def test_large_images_are_refused_before_their_pixels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path / "dicom")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr("engine.patient.read.dicom.pixels.pixel_array", never)
    with pytest.raises(ValueError, match=r"14 x 11 x 9 = 1\.39e\+03 voxels, at most 1e\+03"):
        read_image(tmp_path / "dicom", max_voxels=1000)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((2000, 2000, 2000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "huge.nii").write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(ValueError, match=r"2000 x 2000 x 2000 = 8e\+09 voxels, at most 2e\+09"):
        read_image(tmp_path / "huge.nii")


def test_memory_stays_near_the_image(tmp_path: Path) -> None:
    """512 x 512 x 300 may take 2 GB; at this rate it takes 0.24 GB (int16: 0.157)."""
    shape = (256, 256, 40)
    series(tmp_path, shape=shape, axes=np.eye(3)[:2], content=lambda p: np.full(p.shape[:-1], 40.0))
    read_image(tmp_path)  # modules loaded
    tracemalloc.start()
    image = read_image(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.values.nbytes == 2 * np.prod(shape)
    assert peak < 1.5 * image.values.nbytes + 2e6


# -- DICOM: privacy --------------------------------------------------------------------------------

SECRETS = {
    "PatientName": "Quenneville^Odalys",
    "PatientID": "ZX81-4711",
    "OtherPatientIDs": "OTHERID9",
    "PatientBirthDate": "19530929",
    "StudyDate": "20230611",
    "AcquisitionDateTime": "20230611113344",
    "InstitutionName": "Klinikum Nordhafen",
    "InstitutionAddress": "Deichweg 12",
    "StationName": "STATIONX7",
    "ReferringPhysicianName": "Brandtner^Ilse",
    "PerformingPhysicianName": "Vollrath^Uwe",
    "OperatorsName": "Kesselring",
    "AccessionNumber": "ACC889900",
    "StudyID": "STUDY55",
    "PatientComments": "fell off a horse",
    "ImageComments": "wheezes loudly",
    "StudyDescription": "Odalys follow-up",
    "ProtocolName": "Quenneville protocol",
    "PatientAddress": "Gorsestrasse",
    "DeviceSerialNumber": "SER123987",
    "RequestedProcedureDescription": "for Dr Brandtner",
}


def personal(ds: Dataset, k: int) -> None:
    for key, value in SECRETS.items():
        setattr(ds, key, value)
    ds.SeriesDescription = "Odalys Quenneville spine"
    ds.ManufacturerModelName = "Nordhafen Special"
    ds.ConvolutionKernel = "quenneville"
    ds.SeriesNumber = 4711
    item = Dataset()
    item.PatientID, item.PatientName = "NESTED42", "Nestor"
    ds.OtherPatientIDsSequence = Sequence([item])
    block = ds.private_block(0x0029, "HIDDEN CREATOR", create=True)
    block.add_new(1, "LO", "privatevalue")


def assert_no_secret(text: str, folder: Path) -> None:
    text = text.replace(str(folder), "").lower()
    more = ["nested42", "nestor", "hidden", "privatevalue"]
    for word in [
        w for value in SECRETS.values() for w in re.findall(r"\w+", value.lower()) if len(w) > 3
    ] + more:
        assert word not in text, (word, text)


def test_no_personal_tag_gets_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    named = tmp_path / "named"
    series(named, edit=personal, names=lambda n: f"Quenneville_{n:03d}.dcm")
    image = read_image(named)
    assert_no_secret(repr(image.source) + repr(image.notes), named)
    assert (
        image.source["Manufacturer"] == "Acme" and image.source["ConvolutionKernel"] == "(withheld)"
    )

    def refused(path: Path = named, **options: Any) -> str:
        with pytest.raises(ValueError) as error:
            read_image(path, **options)
        assert error.value.__cause__ is None
        assert_no_secret(str(error.value), named)
        return str(error.value)

    assert "(withheld)" in refused(series="Quenneville, Odalys")
    files = sorted(named.iterdir())
    assert "a single slice" in refused(files[0])
    kept = [file.read_bytes() for file in files]
    # differing duplicate, damaged values in number tags, missing slice, missing rescale,
    # truncation, another series
    ds = pydicom.dcmread(files[0])
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(named / "Odalys.dcm")
    assert "differ in content" in refused() and "file 1 of 10" in refused()
    (named / "Odalys.dcm").unlink()
    files[3].write_bytes(kept[3].replace(b"-1024", b"Nesto"))
    assert "without RescaleSlope" in refused()
    files[3].write_bytes(kept[3][:-50])
    assert "cut short" in refused()
    files[3].write_bytes(kept[3][:500])
    assert "file 4 of 9" in refused()
    files[3].write_bytes(kept[3])
    inner = int(np.random.default_rng(1).permutation(SHAPE[2])[4])
    files[inner].unlink()
    assert "1 of 9 slices are missing" in refused()
    files[inner].write_bytes(kept[inner])
    series(named / "more", uid="1.2.826.0.1.3680043.8.498.9", edit=personal)
    assert "2 series" in refused() and "CT (withheld)" in refused()
    assert not caplog.records and not [w for w in recwarn if "pydicom" in str(w.filename)]


# -- segmentations ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A CT and its DICOM segmentation: segments 1 and 3 … of which the last slices are empty.
    (file, matrix, labels)"""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    folder = tmp_path_factory.mktemp("seg")
    matrix = series(folder / "ct")
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 3:8, 1:4] = 1
    labels[7:12, 2:9, 4:7] = 2
    sources = sorted(
        (pydicom.dcmread(p) for p in (folder / "ct").iterdir()),
        key=lambda d: np.dot(d.ImagePositionPatient, np.cross(*OBLIQUE)),
    )
    described = [
        hd.seg.SegmentDescription(
            segment_number=n,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=(
                codes.SCT.LumbarVertebra if hasattr(codes.SCT, "LumbarVertebra") else codes.SCT.Bone
            ),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for n, name in ((1, "L4"), (2, "Jane L5"))
    ]
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(labels.transpose(2, 1, 0)),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Acme",
        manufacturer_model_name="M",
        software_versions="1",
        device_serial_number="1",
    )
    segmentation.save_as(folder / "seg.dcm")
    return folder / "seg.dcm", matrix, labels


def test_dicom_segmentation(segmented: tuple[Path, np.ndarray, np.ndarray]) -> None:
    file, matrix, labels = segmented
    for path in (file, file.parent):  # alone, or found beside its CT
        image = read_labels(path)
        assert image.modality == "SEG" and image.values.dtype == np.int16
        assert image.source["segments"] == {
            1: "L4",
            2: "L5",
        }  # "Jane L5": the patient is called Jane, the level is no secret
        inverse = np.linalg.inv(matrix) @ image.lps_from_index
        for number in (1, 2):  # empty slices are not stored: compare by place
            index = np.argwhere(image.values == number) @ inverse[:3, :3].T + inverse[:3, 3]
            expected = np.argwhere(labels == number)
            assert sorted(map(tuple, np.rint(index).astype(int))) == sorted(map(tuple, expected))
            assert np.abs(index - np.rint(index)).max() < 1e-4
    scan = read_image(file.parent)
    assert scan.source["FrameOfReferenceUID_sha256"] == image.source["FrameOfReferenceUID_sha256"]
    with pytest.raises(ValueError, match=r"no CT or MR slices .*segmentation"):
        read_image(file)


def test_two_segmentations_and_a_damaged_one(
    segmented: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    whole = segmented[0].read_bytes()
    (tmp_path / "1.dcm").write_bytes(whole)
    (tmp_path / "2.dcm").write_bytes(whole)
    with pytest.raises(
        ValueError, match=r"2 DICOM segmentations \(file 1 of 2.*give one as a file"
    ):
        read_labels(tmp_path)
    (tmp_path / "1.dcm").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"the segmentation \(the file\) can't be read"):
        read_labels(tmp_path / "1.dcm")


# -- NIfTI, NRRD, MetaImage ------------------------------------------------------------------------


def nifti(path: Path, values: np.ndarray, lps: np.ndarray, sform: int = 1, qform: int = 0) -> Path:
    image = nib.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    image.set_sform(image.affine, sform)
    image.set_qform(image.affine if qform else None, qform)
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def oblique() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [12.0, -8.0, 20.0], degrees=True).as_matrix() * [
        0.9,
        0.7,
        2.5,
    ]
    matrix[:3, 3] = ORIGIN
    return matrix


@pytest.mark.parametrize("flip", [False, True])
def test_every_format_puts_the_values_in_the_same_place(
    tmp_path: Path, oblique: np.ndarray, flip: bool
) -> None:
    """`flip`: a left-handed matrix, as NIfTI may have (ITK too)."""
    matrix = oblique @ np.diag([-1.0, 1.0, 1.0, 1.0]) if flip else oblique
    values = np.rint(linear(grid(matrix, SHAPE))).astype(np.int16)
    nifti(tmp_path / "a.nii.gz", values, matrix)
    itk = sitk.GetImageFromArray(values.T)
    itk.SetSpacing([0.9, 0.7, 2.5])
    itk.SetOrigin([float(v) for v in matrix[:3, 3]])
    itk.SetDirection((matrix[:3, :3] / [0.9, 0.7, 2.5]).ravel().tolist())
    for name in ("b.nrrd", "c.mha", "d.mhd"):
        sitk.WriteImage(itk, str(tmp_path / name))
    for name in ("a.nii.gz", "b.nrrd", "c.mha", "d.mhd"):
        image = read_image(tmp_path / name)
        assert image.modality == "unknown" and image.values.shape == SHAPE and image.notes == (), (
            name,
            image.notes,
        )
        points = inner_points(matrix, SHAPE)
        assert np.abs(sample(image, points) - linear(points)).max() < 0.51, name
        np.testing.assert_allclose(image.lps_from_index, matrix, atol=2e-4)
        assert len(image.source["sha256"]) == 64


def test_an_nrrd_in_ras_or_without_a_space(tmp_path: Path) -> None:
    values = np.arange(6 * 5 * 4, dtype=np.int16)
    header = (
        "NRRD0004\ntype: short\ndimension: 3\n{}\nsizes: 6 5 4\nspace directions: (1,0,0) (0,1,0)"
        " (0,0,2)\nendian: little\nencoding: raw\nspace origin: (1,2,3)\n\n"
    )
    for name, space, sign in (
        ("ras", "space: right-anterior-superior", -1.0),
        ("none", "space dimension: 3", 1.0),
    ):
        (tmp_path / f"{name}.nrrd").write_bytes(header.format(space).encode() + values.tobytes())
        image = read_image(tmp_path / f"{name}.nrrd")
        np.testing.assert_allclose(image.lps_from_index[:3, 3], [sign, 2 * sign, 3.0])
        np.testing.assert_allclose(np.diag(image.lps_from_index)[:3], [sign, sign, 2.0])
        assert image.values[1, 2, 3] == 1 + 2 * 6 + 3 * 30
        assert any("no orientation" in line for line in image.notes) == (name == "none")


def test_nifti_scaling_units_and_orientation_codes(tmp_path: Path, oblique: np.ndarray) -> None:
    values = np.rint(linear(grid(oblique, SHAPE)))
    stored_values = np.rint((values + 1024.0) / 0.5).astype(
        np.int16
    )  # nibabel writes them as they are once a slope is set
    scaled = nib.Nifti1Image(stored_values, np.diag([-1.0, -1.0, 1.0, 1.0]) @ oblique)
    scaled.header.set_slope_inter(0.5, -1024)
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    image = read_image(tmp_path / "scaled.nii.gz")
    assert image.values.dtype == np.float32
    np.testing.assert_allclose(image.values, values, atol=1e-3)

    metres = oblique.copy()
    metres[:3] /= 1000.0
    stored = nib.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]) @ metres)
    stored.header.set_xyzt_units("meter")
    nib.save(stored, tmp_path / "metres.nii")
    image = read_image(tmp_path / "metres.nii")
    np.testing.assert_allclose(image.lps_from_index, oblique, atol=1e-3)
    assert any("meter" in line for line in image.notes)

    image = read_image(nifti(tmp_path / "codes.nii", values.astype(np.int16), oblique, sform=0))
    assert any(
        "no orientation is stored" in line and "left and right" in line for line in image.notes
    )

    both = nib.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]) @ oblique)
    moved = both.affine.copy()
    moved[:3, 3] += [0.0, 3.0, 4.0]
    both.set_sform(both.affine, 1)
    both.set_qform(moved, 1)
    nib.save(both, tmp_path / "both.nii")
    image = read_image(tmp_path / "both.nii")
    assert any("differ by up to 5.00 mm; the sform is used" in line for line in image.notes)
    np.testing.assert_allclose(image.lps_from_index, oblique, atol=1e-4)


def sheared(angle_deg: float) -> np.ndarray:
    matrix = np.diag([1.0, 1.0, 2.0, 1.0])
    matrix[:3, 2] = 2.0 * np.array(
        [0.0, np.sin(np.radians(angle_deg)), np.cos(np.radians(angle_deg))]
    )
    matrix[:3, 3] = ORIGIN
    return matrix


def test_sheared_nifti(tmp_path: Path) -> None:
    """A scan is resampled; labels only up to 3°, to the nearest voxel: each within half a voxel,
    volume kept to 2 %."""
    shape = (20, 30, 16)
    matrix = sheared(10.0)
    image = read_image(
        nifti(tmp_path / "scan.nii", np.rint(linear(grid(matrix, shape))).astype(np.int16), matrix)
    )
    assert any("10.00°" in line for line in image.notes)
    assert (
        image.values.min() == np.rint(linear(grid(matrix, shape))).min()
    )  # padded with the least value
    points = grid(matrix, shape)[2:-2, 3:-3].reshape(-1, 3)
    assert np.abs(sample(image, points) - linear(points)).max() < 1.01
    labels = np.zeros(shape, np.uint8)
    labels[5:15, 8:20, 3:12] = 4
    with pytest.raises(ValueError, match=r"sheared by 10\.0° \(at most 3°; gantry tilt\?\)"):
        read_labels(nifti(tmp_path / "labels10.nii", labels, matrix))
    matrix = sheared(2.0)
    image = read_labels(nifti(tmp_path / "labels2.nii", labels, matrix))
    assert any("nearest voxel" in line for line in image.notes)
    place = grid(image.lps_from_index, image.values.shape)[image.values == 4]
    assert len(place) * np.prod(image.voxel_mm) == pytest.approx(
        (labels > 0).sum() * 2.0 * np.cos(np.radians(2.0)), rel=0.02
    )
    expected = grid(matrix, shape)[labels == 4]
    assert np.linalg.norm(place.mean(axis=0) - expected.mean(axis=0)) < 0.1


def test_orthogonal_keeps_the_centre_and_refuses_shear() -> None:
    matrix = sheared(0.25)
    fixed, notes = orthogonal(matrix, (101, 101, 101))
    np.testing.assert_allclose(
        grid(fixed, (101,) * 3)[50, 50, 50], grid(matrix, (101,) * 3)[50, 50, 50], atol=1e-9
    )
    axes = fixed[:3, :3] / np.linalg.norm(fixed[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert len(notes) == 1 and "not orthonormal (by 4.4e-03)" in notes[0]
    assert orthogonal(fixed)[1] == []
    with pytest.raises(ValueError, match=r"sheared by 4\.0°"):
        orthogonal(sheared(4.0))


def test_resampling_of_a_linear_image_is_exact_and_nothing_reaches_beyond_the_voxels(
    oblique: np.ndarray,
) -> None:
    image = Image(
        linear(grid(oblique, SHAPE)).astype(np.float32), oblique, "CT", ("as read",), {"path": "x"}
    )
    other = np.eye(4)
    other[:3, :3] *= 0.8
    other[:3, 3] = grid(oblique, SHAPE)[7, 5, 4] - 8.0
    shape = (20, 20, 20)
    inverse = np.linalg.inv(oblique) @ other
    index = grid(inverse, shape)
    inside = ((index >= 0) & (index <= np.array(SHAPE) - 1.0)).all(axis=-1)
    outside = ((index < -0.51) | (index > np.array(SHAPE) - 0.49)).any(axis=-1)
    assert 300 < inside.sum() < inside.size - 300
    for order, tolerance in ((1, 1e-3), (3, 20.0)):
        found = resample_to(image, other, shape, order, -1024.0)
        assert np.abs(found.values - linear(grid(other, shape)))[inside].max() < tolerance
        assert (found.values[outside] == -1024.0).all()
        assert found.modality == "CT" and found.notes == ("as read",)
    same = resample_to(image, oblique, SHAPE, 1, -1024.0)
    np.testing.assert_allclose(
        same.values, image.values, atol=1e-3
    )  # rounding at the border must not give padding


def test_what_is_no_scan(tmp_path: Path, oblique: np.ndarray) -> None:
    def refused(path: Path, text: str, read: Callable[[Path], Image] = read_image) -> None:
        with pytest.raises(ValueError, match=text) as error:
            read(path)
        assert "\n" not in str(error.value)

    refused(tmp_path / "absent.nii", "is no file or folder")
    (tmp_path / "text.nii").write_text("not an image")
    refused(tmp_path / "text.nii", "not a readable NIfTI")
    (tmp_path / "text.nii.gz").write_text("not an image")
    refused(tmp_path / "text.nii.gz", "not a readable NIfTI")
    (tmp_path / "text.mha").write_text("not an image")
    refused(tmp_path / "text.mha", "not a readable MHA")
    (tmp_path / "text.png").write_text("not an image")
    refused(tmp_path / "text.png", "is no image that is read here")
    for name in ("empty.nii", "empty.nrrd"):
        (tmp_path / name).touch()
        refused(tmp_path / name, "is empty")
    values = np.rint(linear(grid(oblique, SHAPE))).astype(np.int16)
    whole = nifti(
        tmp_path / "cut.nii.gz",
        np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16),
        oblique,
    )
    whole.write_bytes(whole.read_bytes()[:-700])
    refused(whole, "cut short")
    refused(nifti(tmp_path / "2d.nii", values[:, :, 0], oblique), "single slice")
    refused(nifti(tmp_path / "thin.nii", values[:, :, :1], oblique), "single slice")
    refused(nifti(tmp_path / "4d.nii", np.stack([values, values], -1), oblique), "several volumes")
    one = read_image(nifti(tmp_path / "4d1.nii", values[..., None], oblique))
    np.testing.assert_array_equal(one.values, values)
    holes = values.astype(np.float32)
    holes[1, 2, 3] = np.nan
    refused(nifti(tmp_path / "nan.nii", holes, oblique), "1 values that are no numbers")
    refused(
        nifti(tmp_path / "nanlabels.nii", np.where(np.isnan(holes), holes, 1), oblique),
        "not whole numbers",
        read_labels,
    )
    flat = oblique.copy()
    flat[:3, 2] = 0.0
    parallel = oblique.copy()
    parallel[:3, 2] = parallel[:3, 1]
    for name, matrix in (("flat", flat), ("parallel", parallel)):
        file = tmp_path / f"{name}.nii"
        nifti(file, values, oblique)
        raw = bytearray(file.read_bytes())
        raw[280:328] = (
            (np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix)[:3].astype("<f4").tobytes()
        )  # srow_x, y, z
        file.write_bytes(raw)
        refused(file, "affine is degenerate")
    refused(
        nifti(tmp_path / "half.nii", values / np.float32(2.0), oblique),
        "not whole numbers; this is an image, not a label mask",
        read_labels,
    )
    refused(tmp_path / "4d1.nii", "not a label mask", read_labels)
    many = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    refused(nifti(tmp_path / "many.nii", many, oblique), "1386 different values", read_labels)
    with pytest.raises(ValueError, match=r"source\.series=2 is for DICOM"):
        read_image(tmp_path / "many.nii", series="2")


def test_labels_keep_their_numbers(tmp_path: Path, oblique: np.ndarray) -> None:
    labels = np.zeros(SHAPE)
    labels[3:6, 3:6, 3:6] = 24.0
    labels[7:9, 3:6, 3:6] = 40000.0
    image = read_labels(nifti(tmp_path / "float.nii.gz", labels, oblique))
    assert image.values.dtype == np.int32 and image.modality == "SEG"
    np.testing.assert_array_equal(image.values, labels)


# -- real data -------------------------------------------------------------------------------------


def test_shared_dicom_series_lies_on_its_segmentation() -> None:
    """20 slices without SeriesInstanceUID, JPEG 2000; its published segmentation is LAS: T11 and
    T12 must lie on bone."""
    scan = read_image(needs_data("ct_totalsegmentator/dicom"))
    labels = read_labels(needs_data("ct_totalsegmentator/example_seg_dicom.nii.gz"))
    assert (
        scan.values.shape == (512, 512, 20)
        and scan.values.dtype == np.int16
        and scan.modality == "CT"
    )
    assert any("no SeriesInstanceUID" in line for line in scan.notes)
    assert (
        scan.source["KVP"] == 120.0
        and scan.source["Manufacturer"] == "SIEMENS"
        and scan.source["ContrastBolusAgent"] == "yes"
    )
    on = resample_to(scan, labels.lps_from_index, labels.values.shape, 0, -1024.0)
    np.testing.assert_array_equal(
        on.values, scan.values[:, ::-1]
    )  # the same grid, its rows from the back
    for number in (32, 33):  # T12, T11 (TotalSegmentator)
        bone = on.values[labels.values == number].mean()
        mirrored = on.values[::-1][labels.values == number].mean()
        assert 150.0 < bone < 500.0 and bone > mirrored + 50.0


def test_every_shared_nifti_is_read() -> None:
    files = sorted(needs_data("ct_totalsegmentator").parent.rglob("*.nii*"))
    assert len(files) >= 10
    for file in files:
        scan = read_image(file)
        stored: Any = nib.load(file)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ stored.affine
        assert np.abs(grid(scan.lps_from_index - affine, scan.values.shape)).max() < 0.05, file.name
        is_labels = "seg" in file.name
        if is_labels:
            labels = read_labels(file)
            np.testing.assert_array_equal(labels.values, scan.values)
