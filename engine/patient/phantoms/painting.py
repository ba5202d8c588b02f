"""Tissues and bones painted on the voxels of a scan, blurred as a scanner blurs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import ndtr

from engine.materials import qct_of_apparent
from engine.patient.phantoms.scan_spec import ScanSpec
from engine.patient.phantoms.scene import Tissue
from engine.types import VoxelField, rigid

#: Largest edge of the cells that bone is painted on.
CELL_MM = 0.4
#: How many standard deviations of the blur are painted around a body.
_BLUR_REACH = 4.0
#: Voxels of a tissue and layers of a bone's cells that are held at once.
_SLAB_VOXELS, _SLAB_CELLS = 2_000_000, 16


@dataclass(frozen=True)
class Bone:
    """A bone to be painted: its label, and its signed distance and apparent density g/cm³."""

    name: str
    label: int
    sdf: VoxelField
    apparent: VoxelField


def inside_box(sdf: VoxelField) -> tuple[np.ndarray, np.ndarray]:
    """Box of the samples within one spacing of the body."""
    index = np.argwhere(np.asarray(sdf.values) < sdf.spacing_mm)
    low = sdf.origin_mm + sdf.spacing_mm * index.min(axis=0)
    return low, sdf.origin_mm + sdf.spacing_mm * index.max(axis=0)


def box_corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Corners [8, 3] of a box."""
    return np.array(
        [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    )


def _index_box(
    matrix: np.ndarray, low: np.ndarray, high: np.ndarray, pad: np.ndarray, shape: Sequence[int]
) -> tuple[slice, ...]:
    """Index range of an LPS box, clipped to the grid."""
    index = rigid(np.linalg.inv(matrix), box_corners(low, high))
    first = np.clip(np.floor(index.min(axis=0) - pad), 0, shape).astype(int)
    last = np.clip(np.ceil(index.max(axis=0) + pad) + 1, first, shape).astype(int)
    return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))


def _positions(matrix: np.ndarray, axes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """x, y and z [i, j, k] of the grid of these index values along each axis."""
    i, j, k = np.ix_(*axes)
    return [
        (matrix[r, 0] * i + matrix[r, 1] * j + matrix[r, 2] * k + matrix[r, 3]).astype(np.float32)
        for r in range(3)
    ]


def paint(values: np.ndarray, matrix: np.ndarray, tissue: Tissue, sigma: float) -> None:
    """The tissue over what is there, blurred by sigma (in place, slab by slab)."""
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    box = _index_box(
        matrix, tissue.low, tissue.high, np.ceil(_BLUR_REACH * sigma / voxel), values.shape
    )
    plane = max((box[1].stop - box[1].start) * (box[2].stop - box[2].start), 1)
    step = max(_SLAB_VOXELS // plane, 1)
    for start in range(box[0].start, box[0].stop, step):
        part = (slice(start, min(start + step, box[0].stop)), box[1], box[2])
        x, y, z = _positions(matrix, [np.arange(s.start, s.stop) for s in part])
        cover = ndtr(np.clip(tissue.distance(x, y, z) / -sigma, -6.0, 6.0).astype(np.float32))
        values[part] += cover * (np.float32(tissue.hu) - values[part])


def rendered(
    bone: Bone,
    spec: ScanSpec,
    background: np.ndarray,
    matrix: np.ndarray,
    voxel: np.ndarray,
    psf: float,
) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    """Box of the image, what the bone adds to the background's HU there, and its share of each
    voxel."""
    low, high = inside_box(bone.sdf)
    pad = np.ceil(_BLUR_REACH * psf / voxel) + 1
    box = _index_box(matrix, low, high, pad, background.shape)
    parts = np.ceil(voxel / CELL_MM).astype(int)
    cell = voxel / parts
    axes = [
        s.start - 0.5 + (np.arange((s.stop - s.start) * n) + 0.5) / n
        for s, n in zip(box, parts, strict=True)
    ]
    under = background[box].astype(np.float32)
    shape = tuple(len(axis) for axis in axes)
    change, cover = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    width = float(cell.mean())
    for start in range(0, shape[0], _SLAB_CELLS):
        rows = slice(start, start + _SLAB_CELLS)
        points = np.stack(_positions(matrix, [axes[0][rows], axes[1], axes[2]]), axis=-1).reshape(
            -1, 3
        )
        distance = bone.sdf.sample(points)
        near = np.flatnonzero(distance < 0.5 * width)
        if not len(near):
            continue
        share = np.clip(0.5 - distance[near] / width, 0.0, 1.0)  # the cell's own partial volume
        hu = spec.hu(qct_of_apparent(bone.apparent.sample(points[near])))
        index = rigid(np.linalg.inv(matrix), points[near]) - [s.start for s in box]
        soft = map_coordinates(under, index.T, order=1, mode="nearest")
        cover[rows].reshape(-1)[near] = share
        change[rows].reshape(-1)[near] = share * (hu - soft)
    if psf > 0.0:
        change = gaussian_filter(change, psf / cell, mode="constant")
    return box, _averaged(change, parts), _averaged(cover, parts)


def _averaged(fine: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Mean over blocks of parts cells."""
    i, j, k = (n // p for n, p in zip(fine.shape, parts, strict=True))
    return np.asarray(fine.reshape(i, parts[0], j, parts[1], k, parts[2]).mean(axis=(1, 3, 5)))
