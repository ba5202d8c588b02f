"""Axes that are not perpendicular are repaired or resampled; resampling keeps the place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.patient.read.image import Image, orthogonal, resample_to
from engine.patient.read.images import read_image, read_labels
from tests.patient.dicom_files import (
    OBLIQUE,
    series,
)
from tests.patient.linear_images import (
    SHAPE,
    grid,
    inner_points,
    linear,
    nifti,
    oblique,
    sample,
    sheared,
)


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


def test_a_sheared_scan_is_resampled_and_sheared_labels_up_to_3_degrees(tmp_path: Path) -> None:
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


def test_resampling_of_a_linear_image_is_exact_and_nothing_reaches_beyond_the_voxels() -> None:
    turned = oblique()
    image = Image(
        linear(grid(turned, SHAPE)).astype(np.float32), turned, "CT", ("as read",), {"path": "x"}
    )
    other = np.eye(4)
    other[:3, :3] *= 0.8
    other[:3, 3] = grid(turned, SHAPE)[7, 5, 4] - 8.0
    shape = (20, 20, 20)
    inverse = np.linalg.inv(turned) @ other
    index = grid(inverse, shape)
    inside = ((index >= 0) & (index <= np.array(SHAPE) - 1.0)).all(axis=-1)
    outside = ((index < -0.51) | (index > np.array(SHAPE) - 0.49)).any(axis=-1)
    assert 300 < inside.sum() < inside.size - 300
    for order, tolerance in ((1, 1e-3), (3, 20.0)):
        found = resample_to(image, other, shape, order, -1024.0)
        assert np.abs(found.values - linear(grid(other, shape)))[inside].max() < tolerance
        assert (found.values[outside] == -1024.0).all()
        assert found.modality == "CT" and found.notes == ("as read",)
    same = resample_to(image, turned, SHAPE, 1, -1024.0)
    np.testing.assert_allclose(
        same.values, image.values, atol=1e-3
    )  # rounding at the border must not give padding
