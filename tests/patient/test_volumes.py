"""NIfTI, NRRD and MetaImage: every format puts values in the same place, and what is no scan is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from engine.patient.read.image import Image
from engine.patient.read.images import read_image, read_labels
from tests.patient.linear_images import (
    SHAPE,
    grid,
    inner_points,
    linear,
    nifti,
    oblique,
    sample,
)


@pytest.mark.parametrize("flip", [False, True])
def test_every_format_puts_the_values_in_the_same_place(tmp_path: Path, flip: bool) -> None:
    """`flip`: a left-handed matrix, as NIfTI may have (ITK too)."""
    turned = oblique()
    matrix = turned @ np.diag([-1.0, 1.0, 1.0, 1.0]) if flip else turned
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


def test_an_nrrd_in_ras_is_turned_and_one_without_a_space_is_noted(tmp_path: Path) -> None:
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


def test_niftis_scaling_units_and_orientation_codes_are_applied(tmp_path: Path) -> None:
    turned = oblique()
    values = np.rint(linear(grid(turned, SHAPE)))
    stored_values = np.rint((values + 1024.0) / 0.5).astype(
        np.int16
    )  # nibabel writes them as they are once a slope is set
    scaled = nib.Nifti1Image(stored_values, np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned)
    scaled.header.set_slope_inter(0.5, -1024)
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    image = read_image(tmp_path / "scaled.nii.gz")
    assert image.values.dtype == np.float32
    np.testing.assert_allclose(image.values, values, atol=1e-3)

    metres = turned.copy()
    metres[:3] /= 1000.0
    stored = nib.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]) @ metres)
    stored.header.set_xyzt_units("meter")
    nib.save(stored, tmp_path / "metres.nii")
    image = read_image(tmp_path / "metres.nii")
    np.testing.assert_allclose(image.lps_from_index, turned, atol=1e-3)
    assert any("meter" in line for line in image.notes)

    image = read_image(nifti(tmp_path / "codes.nii", values.astype(np.int16), turned, sform=0))
    assert any(
        "no orientation is stored" in line and "left and right" in line for line in image.notes
    )

    both = nib.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned)
    moved = both.affine.copy()
    moved[:3, 3] += [0.0, 3.0, 4.0]
    both.set_sform(both.affine, 1)
    both.set_qform(moved, 1)
    nib.save(both, tmp_path / "both.nii")
    image = read_image(tmp_path / "both.nii")
    assert any("differ by up to 5.00 mm; the sform is used" in line for line in image.notes)
    np.testing.assert_allclose(image.lps_from_index, turned, atol=1e-4)


def refused(path: Path, text: str, read: Callable[[Path], Image] = read_image) -> None:
    with pytest.raises(ValueError, match=text) as error:
        read(path)
    assert "\n" not in str(error.value)


def whole_values() -> np.ndarray:
    return np.rint(linear(grid(oblique(), SHAPE))).astype(np.int16)


def test_files_that_hold_no_image_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.nii", "is no file or folder")
    for name, text in (
        ("text.nii", "not a readable NIfTI"),
        ("text.nii.gz", "not a readable NIfTI"),
        ("text.mha", "not a readable MHA"),
        ("text.png", "is no image that is read here"),
    ):
        (tmp_path / name).write_text("not an image")
        refused(tmp_path / name, text)
    for name in ("empty.nii", "empty.nrrd"):
        (tmp_path / name).touch()
        refused(tmp_path / name, "is empty")
    noise = np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16)
    file = nifti(tmp_path / "cut.nii.gz", noise, oblique())
    file.write_bytes(file.read_bytes()[:-700])
    refused(file, "cut short")
    nifti(tmp_path / "whole.nii", whole_values(), oblique())
    with pytest.raises(ValueError, match=r"source\.series=2 is for DICOM"):
        read_image(tmp_path / "whole.nii", series="2")


def test_an_image_has_three_axes_and_finite_values(tmp_path: Path) -> None:
    values, matrix = whole_values(), oblique()
    refused(nifti(tmp_path / "2d.nii", values[:, :, 0], matrix), "single slice")
    refused(nifti(tmp_path / "thin.nii", values[:, :, :1], matrix), "single slice")
    refused(nifti(tmp_path / "4d.nii", np.stack([values, values], -1), matrix), "several volumes")
    one = read_image(nifti(tmp_path / "4d1.nii", values[..., None], matrix))
    np.testing.assert_array_equal(one.values, values)
    holes = values.astype(np.float32)
    holes[1, 2, 3] = np.nan
    refused(nifti(tmp_path / "nan.nii", holes, matrix), "1 values that are no numbers")


@pytest.mark.parametrize("how", ["flat", "parallel"])
def test_a_degenerate_affine_is_refused(tmp_path: Path, how: str) -> None:
    matrix = oblique()
    matrix[:3, 2] = 0.0 if how == "flat" else matrix[:3, 1]
    file = nifti(tmp_path / f"{how}.nii", whole_values(), oblique())
    raw = bytearray(file.read_bytes())
    rows = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix)[:3]
    raw[280:328] = rows.astype("<f4").tobytes()  # srow_x, y, z
    file.write_bytes(raw)
    refused(file, "affine is degenerate")


def test_scans_are_no_labels(tmp_path: Path) -> None:
    values, matrix = whole_values(), oblique()
    holes = np.ones(SHAPE, np.float32)
    holes[1, 2, 3] = np.nan
    many = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    for labels, text in (
        (holes, "not whole numbers"),
        (values / np.float32(2.0), "not whole numbers; this is an image, not a label mask"),
        (values, "not a label mask"),
        (many, "1386 different values"),
    ):
        refused(nifti(tmp_path / "scan.nii", labels, matrix), text, read_labels)


def test_labels_keep_their_numbers(tmp_path: Path) -> None:
    turned = oblique()
    labels = np.zeros(SHAPE)
    labels[3:6, 3:6, 3:6] = 24.0
    labels[7:9, 3:6, 3:6] = 40000.0
    image = read_labels(nifti(tmp_path / "float.nii.gz", labels, turned))
    assert image.values.dtype == np.int32 and image.modality == "SEG"
    np.testing.assert_array_equal(image.values, labels)
