"""DICOM series: values and place of every voxel, whatever the files' order, rescale, padding, bits
or compression; damaged, foreign and large ones are refused.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import JPEGLSLossless, RLELossless

from engine.patient.read.images import read_image
from tests.patient.dicom_files import (
    OBLIQUE,
    commas,
    enhanced,
    file_of,
    series,
)
from tests.patient.linear_images import (
    SHAPE,
    grid,
    linear,
)


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


def test_an_enhanced_multi_frame_ct_is_read(tmp_path: Path) -> None:
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
