"""An image in patient coordinates, and what every image must be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

#: Larger images are refused before their voxels are read (4 GB as int16).
MAX_VOXELS = 2_000_000_000
#: More shear than this is resampled: spread over the axes by the SVD it would move the ends of a
#: 300 mm image by 0.4 mm.
LARGEST_ROUNDING_DEG = 0.3
#: Label images sheared more than this are refused, and so is what `orthogonal` is asked to repair.
LARGEST_REPAIR_DEG = 3.0
#: Gantries tilt by up to 30°; more than this is a damaged header.
LARGEST_TILT_DEG = 45.0
#: HU of air outside the field of view: the least of a 12-bit CT.
PADDING_HU = -1024


@dataclass(frozen=True)
class Image:
    """A scan or a label image.

    values [i, j, k]        HU where modality is "CT" (rescaled); arbitrary units for "MR"; whole
                            numbers for labels
    lps_from_index [4, 4]   index → LPS mm; its columns are perpendicular, their lengths the voxel
                            size
    modality                "CT" | "MR" | "SEG" | "unknown" (NIfTI and NRRD do not say)
    notes                   what was repaired or assumed, one line each
    source                  path, sha256 of what was read, scanner settings; never a personal tag
    """

    values: np.ndarray
    lps_from_index: np.ndarray
    modality: str
    notes: tuple[str, ...]
    source: dict[str, Any]

    @property
    def voxel_mm(self) -> np.ndarray:
        """Voxel size along i, j, k."""
        return np.asarray(np.linalg.norm(self.lps_from_index[:3, :3], axis=0))


def orthogonal(
    lps_from_index: np.ndarray, shape: tuple[int, ...] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Index → LPS mm [4, 4] with its directions D replaced by the nearest rotation or reflection,
    U·Vᵀ of D = U·S·Vᵀ.

    Voxel sizes are kept, and so is the place of the image's centre where `shape` is given (else of
    its first voxel). The line that comes with it is empty for an error below 1e-4 (0.04 mm over 400
    mm).

    Raises: ValueError for a degenerate matrix and for axes sheared by more than 3°.
    """
    matrix = np.array(lps_from_index, float)
    _check_affine(matrix)
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    direction = matrix[:3, :3] / voxel
    off = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if off > np.sin(np.radians(LARGEST_REPAIR_DEG)):
        raise ValueError(
            f"the image's axes are sheared by {np.degrees(np.arcsin(min(off, 1.0))):.1f}° (at most"
            " 3°; gantry tilt?); resample it to perpendicular axes"
        )
    u, _, vt = np.linalg.svd(direction)
    result = matrix.copy()
    result[:3, :3] = (u @ vt) * voxel
    centre = np.zeros(3) if shape is None else (np.array(shape[:3], float) - 1.0) / 2.0
    result[:3, 3] += (matrix[:3, :3] - result[:3, :3]) @ centre
    if off < 1e-4:
        return result, []
    return result, [
        f"direction cosines were not orthonormal (by {off:.1e}); replaced by the nearest rotation"
    ]


def resample_to(
    image: Image,
    lps_from_index: np.ndarray,
    shape: tuple[int, ...],
    order: int = 1,
    fill: float = 0.0,
) -> Image:
    """The image on another grid: v'(i') = v(A⁻¹·A'·i'), splines of `order` (0 nearest, 1 linear, 3
    cubic).

    A voxel reaches half its size beyond its centre; what lies outside every voxel is `fill`. Keeps
    the type of the values (whole numbers are rounded), modality, notes and source.
    """
    source = np.asarray(image.values)
    if order > 1:
        source = spline_filter(source, order, output=np.float32, mode="nearest")
    step = np.linalg.inv(image.lps_from_index) @ lps_from_index
    limit = np.array(source.shape, float)[:, None, None] - 0.5 + 1e-6
    kind = image.values.dtype
    # slice by slice: the coordinates of a whole CT would take 2 GB
    result = np.empty(shape, kind, order="F")
    i, j = np.meshgrid(
        np.arange(shape[0], dtype=float), np.arange(shape[1], dtype=float), indexing="ij"
    )
    plane = step[:3, 0, None, None] * i + step[:3, 1, None, None] * j + step[:3, 3, None, None]
    for k in range(shape[2]):
        index = plane + step[:3, 2, None, None] * k
        inside = ((index > -0.5 - 1e-6) & (index < limit)).all(axis=0)
        sampled = np.full(shape[:2], float(fill))
        if inside.any():
            sampled[inside] = map_coordinates(
                source, index[:, inside], float, order=order, mode="nearest", prefilter=False
            )
        if kind.kind in "iu":
            info = np.iinfo(kind)
            sampled = np.clip(np.rint(sampled), info.min, info.max)
        result[:, :, k] = sampled
    return Image(result, np.array(lps_from_index, float), image.modality, image.notes, image.source)


# -- what every image must be ----------------------------------------------------------------------


def check_size(shape: tuple[int, ...], place: str, max_voxels: int) -> None:
    """Raises ValueError where `shape` holds more than max_voxels voxels."""
    count = int(np.prod([int(n) for n in shape], dtype=object))
    if count > max_voxels:
        size = " x ".join(str(n) for n in shape)
        raise ValueError(
            f"{place}: {size} = {count:.3g} voxels, at most {max_voxels:.3g} are read; crop it"
            " around the spine"
        )


def _check_affine(matrix: np.ndarray) -> None:
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or voxel.min() < 1e-3 or voxel.max() > 100.0:
        raise ValueError(
            f"the image's affine is degenerate (voxel sizes {_figures(voxel)} mm); repair its"
            " header"
        )
    volume = abs(float(np.linalg.det(matrix[:3, :3] / voxel)))
    if volume < 0.1:
        raise ValueError(
            f"the image's affine is degenerate (its axes span {volume:.2g} of a box); repair its"
            " header"
        )


def _figures(voxel: np.ndarray) -> str:
    return " x ".join(f"{v:.4g}" for v in voxel)


def place_of(image: Image) -> str:
    """The path that an image was read from."""
    return str(image.source["path"])


def shear_deg(matrix: np.ndarray) -> float:
    """Largest departure of two axes from the right angle."""
    direction = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    cosines = np.abs((direction.T @ direction)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0.0, 1.0))))


def upright_image(image: Image, order: int, max_voxels: int) -> Image:
    """The image on perpendicular axes; raises for what has no place or values that aren't
    numbers."""
    place = place_of(image)
    values = image.values
    try:
        _check_affine(image.lps_from_index)
        if values.dtype.kind == "f":
            bad = int(values.size - np.count_nonzero(np.isfinite(values)))
            if bad:
                raise ValueError(
                    f"holds {bad} values that are no numbers (NaN or infinite); fill them and save"
                    " it again"
                )
        shear = shear_deg(image.lps_from_index)
        if shear <= LARGEST_ROUNDING_DEG:
            matrix, lines = orthogonal(image.lps_from_index, values.shape)
            return replace(image, lps_from_index=matrix, notes=(*image.notes, *lines))
        if shear > LARGEST_TILT_DEG:
            raise ValueError(
                f"the image's axes are sheared by {shear:.1f}° (at most {LARGEST_TILT_DEG:.0f}°);"
                " repair its header"
            )
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    matrix, shape = _perpendicular(image.lps_from_index, values.shape)
    check_size(shape, place, max_voxels)
    fill = (
        0.0 if order == 0 else float(PADDING_HU) if image.modality == "CT" else float(values.min())
    )
    how = "nearest voxel" if order == 0 else "linear"
    line = (
        f"the slices are sheared by {shear:.2f}° (gantry tilt): resampled ({how}) onto"
        f" perpendicular axes with the same voxel size, padded with {fill:g}"
    )
    upright = resample_to(image, matrix, shape, order, fill)
    return replace(upright, notes=(*image.notes, line))


def _perpendicular(
    matrix: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Perpendicular grid that covers a sheared one: the two axes nearest to the right angle stay,
    the third becomes their normal.

    The step along the normal is the old slices' distance, so that the new slices lie in the old
    ones' planes: a gantry tilt is then undone by shifts within the slices, without blur across
    them.
    """
    axes = matrix[:3, :3]
    unit = axes / np.linalg.norm(axes, axis=0)
    pairs = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    a, b, c = min(pairs, key=lambda p: abs(float(unit[:, p[0]] @ unit[:, p[1]])))
    new = np.zeros((3, 3))
    new[:, a] = axes[:, a]
    new[:, b] = axes[:, b] - unit[:, a] * (unit[:, a] @ axes[:, b])
    normal = np.cross(new[:, a], new[:, b])
    normal /= np.linalg.norm(normal)
    new[:, c] = normal * (normal @ axes[:, c])
    corners = np.stack(np.meshgrid(*[(0.0, n - 1.0) for n in shape], indexing="ij"), -1).reshape(
        -1, 3
    )
    index = corners @ (np.linalg.inv(new) @ axes).T
    low = np.floor(index.min(axis=0) + 1e-6)
    high = np.ceil(index.max(axis=0) - 1e-6)
    result = matrix.copy()
    result[:3, :3] = new
    result[:3, 3] += new @ low
    return result, tuple(int(n) for n in high - low + 1)


def around(image: Image, points_mm: np.ndarray, margin_mm: float = 0.0) -> Image:
    """The part of an image that holds points [n, 3] (LPS) and a margin; its voxels are a view."""
    inverse = np.linalg.inv(image.lps_from_index)
    index = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    pad, shape = margin_mm / image.voxel_mm, np.array(image.values.shape)
    low = np.clip(np.floor(index.min(axis=0) - pad), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(index.max(axis=0) + pad) + 1, low + 1, shape).astype(int)
    matrix = image.lps_from_index.copy()
    matrix[:3, 3] += matrix[:3, :3] @ low
    part = image.values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return replace(image, values=part, lps_from_index=matrix)


def on_grid(labels: Image, image: Image) -> np.ndarray:
    """Labels on the grid of an image (nearest voxel), as they are where that is their own."""
    same = labels.values.shape == image.values.shape and np.allclose(
        labels.lps_from_index, image.lps_from_index, atol=1e-3
    )
    return (
        labels.values
        if same
        else resample_to(labels, image.lps_from_index, image.values.shape, order=0).values
    )
