"""Images that hold a linear function of the place in LPS, so that every voxel's value is known from
its position: a wrong order, flip, transpose, spacing, rescale or shear shows as a wrong value at a
given point.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from engine.patient.read.image import Image

SHAPE = (14, 11, 9)  # columns, rows, slices
ORIGIN = np.array([-31.0, 17.0, -240.0])


def linear(points: np.ndarray) -> np.ndarray:
    """HU as a function of LPS mm [..., 3]."""
    return points @ np.array([11.0, -7.0, 5.0]) + 1500.0


def grid(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """LPS [..., 3] of the centres of all voxels."""
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij"), -1)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def sample(image: Image, points: np.ndarray) -> np.ndarray:
    """Values of an image at points [n, 3] in LPS, linear between voxels."""
    inverse = np.linalg.inv(image.lps_from_index)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    return map_coordinates(np.asarray(image.values, float), index.T, order=1, mode="nearest")


def inner_points(matrix: np.ndarray, shape: tuple[int, ...], count: int = 200) -> np.ndarray:
    """Points inside an image, at least a voxel from its border."""
    index = np.random.default_rng(3).uniform(1.0, np.array(shape) - 2.0, (count, 3))
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def oblique() -> np.ndarray:
    """Index → LPS of a turned grid with voxels of 0.9 × 0.7 × 2.5 mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [12.0, -8.0, 20.0], degrees=True).as_matrix() * [
        0.9,
        0.7,
        2.5,
    ]
    matrix[:3, 3] = ORIGIN
    return matrix


def sheared(angle_deg: float) -> np.ndarray:
    """Index → LPS of 1 × 1 × 2 mm voxels whose slices are shifted along y."""
    matrix = np.diag([1.0, 1.0, 2.0, 1.0])
    matrix[:3, 2] = 2.0 * np.array(
        [0.0, np.sin(np.radians(angle_deg)), np.cos(np.radians(angle_deg))]
    )
    matrix[:3, 3] = ORIGIN
    return matrix


def nifti(path: Path, values: np.ndarray, lps: np.ndarray, sform: int = 1, qform: int = 0) -> Path:
    """Write values [i, j, k] with their index → LPS matrix and orientation codes."""
    image = nib.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    image.set_sform(image.affine, sform)
    image.set_qform(image.affine if qform else None, qform)
    nib.save(image, path)
    return path
