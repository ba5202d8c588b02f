"""Label images whose values are not whole (interpolated masks), and those that hold not all of the
scan (cropped masks).
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from engine.patient.read.images import read_image, read_labels
from tests.patient.mask_files import AFFINE, BOXES, SHAPE, mask_of, refused, save


def resampled(values: np.ndarray, factor: float, order: int) -> np.ndarray:
    """Linear (1) or Catmull-Rom cubic (3) interpolation along each axis: both keep the insides of
    labels.
    """
    for axis in range(3):
        count = values.shape[axis]
        at = np.arange(1.5, count - 2.5, 1.0 / factor)
        t = at - np.floor(at)
        cubic = (
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            0.5 * (t**3 - t**2),
        )
        weights = (0 * t, 1 - t, t, 0 * t) if order == 1 else cubic
        matrix = np.zeros((len(at), count))
        for shift, weight in enumerate(weights, start=-1):
            matrix[np.arange(len(at)), np.floor(at).astype(int) + shift] += weight
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    return values.astype(np.float32)


@pytest.mark.parametrize("order", [1, 3])
def test_interpolated_labels_are_read_as_such(tmp_path: Path, order: int) -> None:
    """A cube of 20 voxels resampled by 1.3: its inside is whole, its rim is not; a cubic also goes
    below 0.
    """
    labels = np.zeros((30, 30, 30))
    labels[5:25, 5:25, 5:25] = 24.0
    fine = resampled(labels, 1.3, order)
    assert (order == 3) == bool(fine.min() < -0.5)
    image = read_labels(save(tmp_path / "fine.nii.gz", fine))
    assert image.source["interpolated"] is True
    np.testing.assert_array_equal(image.values, np.maximum(np.rint(fine), 0))
    assert any("resampled with interpolation" in line for line in image.notes)
    whole = read_labels(save(tmp_path / "rounded.nii.gz", np.rint(fine).astype(np.int16)))
    np.testing.assert_array_equal(whole.values, image.values)
    assert ("interpolated" in whole.source) == (
        order == 3
    )  # below 0 gives it away; rounded rims are for the gate to find


def test_scans_are_no_interpolated_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(40.0, 300.0, (20, 20, 20))
    for values in (
        hu.astype(np.float32),
        np.rint(hu).astype(np.float32),
        np.rint(hu * 2).astype(np.float32) / 2,
        np.rint(hu).astype(np.int16),
    ):
        refused(save(tmp_path / "ct.nii.gz", values), "this is an image, not a label mask")
    windowed = np.clip(np.rint(hu / 10), -20, 20).astype(np.int16)  # of few kinds, but half below 0
    refused(save(tmp_path / "ct.nii.gz", windowed), "values go from -20 to 20; this is an image")


def cropped(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The mask of a structure cut to its box, and its affine (RAS)."""
    box = BOXES[name]
    affine = AFFINE.copy()
    affine[:3, 3] = AFFINE[:3, :3] @ [s.start for s in box]
    return mask_of(name, 24)[box], affine


def test_labels_cropped_to_what_they_hold_get_the_scans_extent(tmp_path: Path) -> None:
    scan = read_image(
        save(tmp_path / "ct.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    )
    values, affine = cropped("vertebrae_L5")
    file = save(tmp_path / "labels.nii.gz", values, affine)
    placed = read_labels(file, scan)
    np.testing.assert_array_equal(placed.values, mask_of("vertebrae_L5", 24))
    np.testing.assert_array_equal(placed.lps_from_index, scan.lps_from_index)
    turned = nib.as_closest_canonical(nib.load(file)).as_reoriented(
        np.array([[2, 1], [0, -1], [1, 1]])
    )  # other axes, the same lattice
    nib.save(turned, tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(
        read_labels(tmp_path / "turned.nii.gz", scan).values, placed.values
    )
    for like in (None, scan):  # no scan, or one on another lattice
        shifted = affine.copy()
        shifted[0, 3] += 0.4 if like else 0.0
        alone = read_labels(save(tmp_path / "shifted.nii.gz", values, shifted), like)
        np.testing.assert_array_equal(alone.values, np.pad(values, 1))
        assert any(
            "the scan's border is not known (the labels are cropped to what they hold)" in line
            for line in alone.notes
        )
        np.testing.assert_allclose(
            alone.lps_from_index @ [1, 1, 1, 1], np.diag([-1, -1, 1, 1]) @ shifted[:, 3], atol=1e-5
        )


def test_labels_that_end_at_one_side_are_left_to_the_gate(tmp_path: Path) -> None:
    scan = read_image(
        save(tmp_path / "ct.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    )
    cut = mask_of("vertebrae_L5", 24)[:, :, :9]
    image = read_labels(save(tmp_path / "cut.nii.gz", cut), scan)
    np.testing.assert_array_equal(image.values, cut)
