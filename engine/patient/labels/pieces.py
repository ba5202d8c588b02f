"""The bones of a label map as pieces: size, place, cuts and contacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import binary_fill_holes, find_objects, gaussian_filter, label

from engine.patient.geometry.distance import surface_sdf
from engine.patient.geometry.frames import unit
from engine.types import Surface, rigid

#: More of a bone than this on the image's border, and it is cut.
LARGEST_CUT_MM2 = 30.0
#: From the middle of the lowest mobile body to the sacrum: half a body and a disc are 25-35 mm; a
#: level between adds as much.
FAR_FROM_SACRUM_MM = 48.0
#: A body's column is what lies within this of the line of bodies.
COLUMN_MM = 12.0
#: Faces between two labels count to the bodies within this of the line between their centres, in
#: front and beside, mm.
_BODY_MM = 30.0


@dataclass(frozen=True)
class Piece:
    """One label of the image: the voxels of its bounding box and what the gate measures on them.

    mask             [i, j, k] bool: the largest fragment, filled
    lps_from_index   [4, 4] of the box
    body_mm          deep point of the body
    centroid_mm      of the whole mask
    fragments        how many there are, the second's share of the voxels, voxels of all smaller
                     ones
    hole_share       of cavities that were filled
    cut_mm2          area on the image's border
    cut_where        where that is, in words
    box              the slices of the label image that `mask` was cut from
    """

    level: str
    number: int
    mask: np.ndarray
    lps_from_index: np.ndarray
    volume_mm3: float
    body_mm: np.ndarray
    centroid_mm: np.ndarray
    fragments: tuple[int, float, int] = (1, 0.0, 0)
    hole_share: float = 0.0
    cut_mm2: float = 0.0
    cut_where: str = ""
    box: tuple[slice, ...] = field(default=(), repr=False)

    def corners_mm(self) -> np.ndarray:
        """The box's corner voxels [8, 3], LPS."""
        ends = [(0.0, float(n) - 1.0) for n in self.mask.shape]
        return rigid(
            self.lps_from_index, np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
        )


def pieces(
    values: np.ndarray,
    lps_from_index: np.ndarray,
    numbers: Mapping[str, tuple[int, ...]],
    boxes: list[tuple[slice, ...] | None] | None = None,
) -> dict[str, Piece]:
    """The pieces of the levels in `numbers` (level → its label numbers) that the image has, in that
    order.

    boxes   scipy's find_objects(values), where it is known
    """
    boxes = find_objects(values) if boxes is None else boxes
    result = {}
    for level, group in numbers.items():
        there = [box for n in group if n <= len(boxes) and (box := boxes[n - 1]) is not None]
        if there:
            box = tuple(
                slice(min(b[a].start for b in there), max(b[a].stop for b in there))
                for a in range(3)
            )
            result[level] = _piece(level, group, values, box, lps_from_index)
    return result


def _piece(
    level: str,
    group: tuple[int, ...],
    values: np.ndarray,
    box: tuple[slice, ...],
    matrix: np.ndarray,
) -> Piece:
    mask = np.isin(values[box], group)
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    fragments, count = label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(fragments.ravel())[1:]
    largest = int(np.argmax(sizes))
    second = float(np.sort(sizes)[-2]) / float(sizes.sum()) if count > 1 else 0.0
    mask = fragments == largest + 1
    filled = binary_fill_holes(mask)
    cut, where = 0.0, ""
    for axis in range(3):
        face = float(np.prod(voxel)) / voxel[axis]
        for side, name, on_border in (
            (0, "first", box[axis].start == 0),
            (-1, "last", box[axis].stop == values.shape[axis]),
        ):
            area = float(np.take(mask, side, axis=axis).sum()) * face if on_border else 0.0
            if area > cut:
                cut, where = area, f"{name} slice of axis {axis}"
    local = matrix.copy()
    local[:3, 3] = rigid(matrix, np.array([float(s.start) for s in box]))
    return Piece(
        level=level,
        number=group[0],
        mask=filled,
        lps_from_index=local,
        volume_mm3=float(filled.sum()) * float(np.prod(voxel)),
        body_mm=_deepest(filled, voxel, local),
        centroid_mm=rigid(local, np.argwhere(filled).mean(axis=0)),
        fragments=(count, second, int(sizes.sum() - sizes[largest])),
        hole_share=float((filled & ~mask).sum()) / float(filled.sum()),
        cut_mm2=cut,
        cut_where=where,
        box=box,
    )


def solid_piece(level: str, surface: Surface, spacing_mm: float = 1.5) -> Piece:
    """The piece of a closed surface (LPS), on a grid of its own: for checks that ask for sizes
    and shapes alone."""
    field = surface_sdf(surface, spacing_mm)
    mask = np.asarray(field.values) < 0.0
    matrix = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    matrix[:3, 3] = field.origin_mm
    voxel = np.full(3, spacing_mm)
    centroid = rigid(matrix, np.argwhere(mask).mean(axis=0))
    return Piece(
        level,
        0,
        mask,
        matrix,
        float(mask.sum()) * spacing_mm**3,
        _deepest(mask, voxel, matrix),
        centroid,
    )


def _deepest(mask: np.ndarray, voxel: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The peak of the mask blurred by 7 mm: the body is a vertebra's thickest part (as
    anatomy.vertebra.body_centre)."""
    stride = np.maximum(np.round(2.0 / voxel).astype(int), 1)
    coarse = mask[:: stride[0], :: stride[1], :: stride[2]].astype(np.float32)
    blurred = gaussian_filter(coarse, 7.0 / (voxel * stride), mode="constant")
    return rigid(
        matrix, np.array(np.unravel_index(int(np.argmax(blurred)), blurred.shape)) * stride
    )


def contact_faces(upper: Piece, lower: Piece, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n, 3] (LPS) and areas [n] (mm²) of the voxel faces between two labels."""
    low = [max(max(a.start, b.start) - 1, 0) for a, b in zip(upper.box, lower.box, strict=True)]
    high = [min(a.stop, b.stop) + 1 for a, b in zip(upper.box, lower.box, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return np.zeros((0, 3)), np.zeros(0)
    part = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    matrix = upper.lps_from_index
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    start = np.array(low, float) - [s.start for s in upper.box]
    points, areas = [], []
    for axis in range(3):
        first = np.take(part, range(part.shape[axis] - 1), axis=axis)
        second = np.take(part, range(1, part.shape[axis]), axis=axis)
        faces = ((first == upper.number) & (second == lower.number)) | (
            (first == lower.number) & (second == upper.number)
        )
        points.append(rigid(matrix, np.argwhere(faces) + start + 0.5 * (np.arange(3) == axis)))
        areas.append(np.full(len(points[-1]), float(np.prod(voxel)) / voxel[axis]))
    return np.concatenate(points), np.concatenate(areas)


def body_contact(
    upper: Piece, lower: Piece, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxel faces between two labels: areas [n] (mm²), places across the line of bodies [n, 3]
    (mm), and which are between bodies [n].

    Between bodies: within 18 mm of the line, or in front and beside within 30 mm; what lies behind
    are facet joints.
    """
    points, areas = contact_faces(upper, lower, values)
    line = lower.body_mm - upper.body_mm
    offset = points - upper.body_mm
    across = offset - (offset @ line / (line @ line))[:, None] * line
    away = np.linalg.norm(across, axis=1)
    behind = across @ posterior_direction(upper, line)
    size = float(np.clip(np.linalg.norm(line) / 38.0, 0.6, 1.1))  # of a child, or in the thorax
    return areas, across, (away < 18.0 * size) | ((away < _BODY_MM * size) & (behind < 8.0 * size))


def posterior_direction(piece: Piece, line: np.ndarray) -> np.ndarray:
    """Unit vector from the body to its arch, perpendicular to the line of bodies."""
    arch = piece.centroid_mm - piece.body_mm
    return unit(arch - (arch @ line / (line @ line)) * line)
