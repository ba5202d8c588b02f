"""Structures in boxes of one small grid, as masks in NIfTI files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from engine.patient.read.image import Image
from engine.patient.read.images import read_labels

SHAPE = (16, 14, 20)
AFFINE = np.diag([-0.9, -0.7, 1.5, 1.0])  # RAS; LPS is 0.9, 0.7, 1.5 mm
#: Place of each structure: L4 and L5 over each other, a sacrum below, a femur beside it.
BOXES = {
    "vertebrae_L4": np.s_[4:10, 3:9, 12:17],
    "vertebrae_L5": np.s_[4:10, 3:9, 6:11],
    "sacrum": np.s_[4:10, 4:10, 1:5],
    "femur_left": np.s_[12:15, 2:5, 1:6],
}


def mask_of(name: str, value: float = 1) -> np.ndarray:
    values = np.zeros(SHAPE, np.float32 if value != int(value) else np.uint8)
    values[BOXES[name]] = value
    return values


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def refused(path: Path, text: str, like: Image | None = None) -> None:
    with pytest.raises(ValueError, match=text) as error:
        read_labels(path, like)
    assert "\n" not in str(error.value)
