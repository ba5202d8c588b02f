"""The public scans and labels are read as they are."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from engine.patient.read.image import resample_to
from engine.patient.read.images import read_image, read_labels
from tests.patient.conftest import needs_data
from tests.patient.linear_images import (
    grid,
)


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
