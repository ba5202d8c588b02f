"""Values of a scan inside regions of interest."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.stats import trim_mean

from engine.patient.bone.calibration import MARGIN_MM, CalibrationPoint, Roi
from engine.patient.read.image import Image
from engine.types import rigid

#: Fewer voxels give no mean.
LEAST_VOXELS = 20


def calibration_point(name: str, values: np.ndarray, density: float) -> CalibrationPoint:
    """The point of HU `values` [n] (their mean without the tenth at either end) and a density in
    g/cm³."""
    return CalibrationPoint(
        name, float(trim_mean(values, 0.1)), density, 1.0, float(values.std()), len(values)
    )


def roi_values(image: Image, roi: Roi, name: str) -> np.ndarray:
    """HU inside a ball or cylinder, MARGIN_MM from its boundary (at most half its radius).
    Raises ValueError outside the image."""
    centre, axis = np.array(roi.centre_lps_mm), np.array(roi.axis, float)
    if np.linalg.norm(axis) < 1e-9:
        raise ValueError(f"{name}: axis {roi.axis} has no direction")
    axis /= np.linalg.norm(axis)
    half = 0.5 * roi.length_mm
    side = (
        np.sqrt(np.maximum(1.0 - axis**2, 0.0)) * roi.radius_mm
        if half
        else np.full(3, roi.radius_mm)
    )
    reach = side + half * np.abs(axis)
    corners = centre + np.stack(np.meshgrid(*[(-r, r) for r in reach], indexing="ij"), -1).reshape(
        -1, 3
    )
    index = rigid(np.linalg.inv(image.lps_from_index), corners)
    shape = np.array(image.values.shape)
    if (index < -0.5 - 1e-6).any() or (index > shape - 0.5 + 1e-6).any():
        ends = rigid(image.lps_from_index, np.array([[0.0, 0.0, 0.0], shape - 1.0]))
        box = " x ".join(f"{low:.0f}..{high:.0f}" for low, high in np.sort(ends, axis=0).T)
        raise ValueError(
            f"{name} at {tuple(roi.centre_lps_mm)} lies outside the image ({box} mm LPS), wholly or"
            " in part; move it"
        )
    low = np.clip(np.floor(index.min(axis=0)).astype(int), 0, shape - 1)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, 1, shape)
    box_index = np.stack(
        np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1
    )
    offset = rigid(image.lps_from_index, box_index.reshape(-1, 3)) - centre
    along = offset @ axis if half else np.zeros(len(offset))
    across = np.linalg.norm(offset - along[:, None] * axis, axis=1)
    keep = (across <= max(roi.radius_mm - MARGIN_MM, 0.5 * roi.radius_mm)) & (np.abs(along) <= half)
    values = image.values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].reshape(-1)[
        keep
    ]
    return _enough(values, name)


def label_values(
    image: Image, numbers: np.ndarray, wanted: tuple[int, ...], name: str
) -> np.ndarray:
    """HU of labels, MARGIN_MM and half a voxel from their boundary."""
    mask = np.isin(numbers, wanted)
    box = find_objects(mask.astype(np.uint8))
    if not box:
        raise ValueError(f"{name}: label {', '.join(map(str, wanted))} is not in the label image")
    part = np.pad(mask[box[0]], 1)
    depth = distance_transform_edt(part, sampling=image.voxel_mm)[1:-1, 1:-1, 1:-1]
    inside = depth > MARGIN_MM + 0.5 * float(np.sort(image.voxel_mm)[1])
    return _enough(image.values[box[0]][inside], name)


def _enough(values: np.ndarray, name: str) -> np.ndarray:
    if len(values) < LEAST_VOXELS:
        raise ValueError(
            f"{name}: {len(values)} voxels are left {MARGIN_MM} mm inside it, at least"
            f" {LEAST_VOXELS} are needed; enlarge it"
        )
    return np.asarray(values, float)
