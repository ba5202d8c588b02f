"""The shape of an endplate: depth, tilt, concavity, how much of it is whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.patient.anatomy.body import STEP_MM, first_bone
from engine.patient.anatomy.sections import RING_DROP_MM, SectionedBone, outline_area_mm2
from engine.patient.geometry.frames import inferior_frame, inverse, superior_frame
from engine.types import rigid

_MAP_MM = 1.0


@dataclass(frozen=True)
class EndplateShape:
    """Relief of one endplate.

    x_mm [n], y_mm [m]      grid in the endplate's frame (left, posterior), origin at its centre
    height_mm [n, m]        outward height over the rim plane, NaN outside the rim
    concavity_mm            depth of the deepest point under the rim plane, at concavity_place_mm
                            [3]
    concavity_offset_mm     that place, left and posterior of the endplate's centre
    rim_height_range_mm     5th and 95th percentile of the crest's height over the plane
    ring_width_mm           None where the endplate is too flat for a ring to end
    area_mm2                inside the rim, on its plane
    """

    x_mm: np.ndarray
    y_mm: np.ndarray
    height_mm: np.ndarray
    concavity_mm: float
    concavity_place_mm: np.ndarray
    concavity_offset_mm: tuple[float, float]
    rim_height_range_mm: tuple[float, float]
    ring_width_mm: float | None
    area_mm2: float


# -- endplates -------------------------------------------------------------------------------------


def endplate_shape(bone: SectionedBone, side: str) -> EndplateShape:
    plate = getattr(bone.vertebra, side)
    matrix = superior_frame(bone.vertebra) if side == "superior" else inferior_frame(bone.vertebra)
    sign = 1.0 if side == "superior" else -1.0
    rim = rigid(inverse(matrix), plate.rim_mm)[:, :2]
    levels = np.arange(-12.0, 4.6, STEP_MM)

    def heights(flat: np.ndarray) -> np.ndarray:
        columns = np.concatenate(
            [
                np.broadcast_to(flat[:, :, None, :], (*flat.shape[:2], len(levels), 2)),
                np.empty((*flat.shape[:2], len(levels), 1)),
            ],
            -1,
        )
        columns[..., 2] = sign * levels
        height, known = first_bone(bone.field.sample(rigid(matrix, columns)), levels)
        return np.where(known, height, np.nan)

    low, high = np.floor(rim.min(axis=0) / _MAP_MM), np.ceil(rim.max(axis=0) / _MAP_MM)
    x, y = (_MAP_MM * np.arange(low[k], high[k] + 1.0) for k in range(2))
    flat = np.stack(np.meshgrid(x, y, indexing="ij"), -1)
    share = _share(flat, rim)
    height = np.where(share <= 1.0, heights(flat), np.nan)
    inner = np.where(share <= 0.8, height, np.nan)
    if np.isfinite(inner).sum() < 0.7 * (share <= 0.8).sum():
        raise ValueError(
            f"{bone.name}: under a third of the {side} endplate's plane lies no bone; the plate"
            " does not fit the surface"
        )
    i, j = np.unravel_index(int(np.nanargmin(inner)), inner.shape)
    place = rigid(matrix, np.array([x[i], y[j], sign * height[i, j]]))
    # the ring, by direction
    radius = np.hypot(rim[:, 0], rim[:, 1])
    shares = np.linspace(0.0, 1.0, 61)
    relief = heights(shares[None, :, None] * rim[:, None, :])
    outer = np.where((shares >= 0.7) & np.isfinite(relief), relief, -np.inf)
    at = np.argmax(outer, axis=1)
    crest = outer[np.arange(len(rim)), at]
    fallen = (relief < crest[:, None] - RING_DROP_MM) & (np.arange(len(shares)) < at[:, None])
    ends = len(shares) - 1 - np.argmax(fallen[:, ::-1], axis=1)
    widths = ((1.0 - shares[ends]) * radius)[fallen.any(axis=1)]
    low_crest, high_crest = np.percentile(crest[np.isfinite(crest)], [5.0, 95.0])
    return EndplateShape(
        x_mm=x,
        y_mm=y,
        height_mm=height,
        concavity_mm=float(-height[i, j]),
        concavity_place_mm=place,
        concavity_offset_mm=(float(x[i]), float(y[j])),
        rim_height_range_mm=(float(low_crest), float(high_crest)),
        ring_width_mm=(
            float(np.median(widths))
            if len(widths) >= 0.5 * len(rim) and -height[i, j] > 2.0 * RING_DROP_MM
            else None
        ),
        area_mm2=outline_area_mm2(rim),
    )


def _share(flat: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Distance from the centre as a share of the rim's radius in that direction."""
    angle = np.arctan2(rim[:, 1], rim[:, 0])
    order = np.argsort(angle)
    radius = np.hypot(rim[:, 0], rim[:, 1])[order]
    limit = np.interp(
        np.arctan2(flat[..., 1], flat[..., 0]), angle[order], radius, period=2.0 * np.pi
    )
    return np.asarray(np.hypot(flat[..., 0], flat[..., 1]) / limit)
