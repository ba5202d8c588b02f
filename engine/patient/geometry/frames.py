"""Frames of endplates and vertebrae, and rigid motion of everything that has a position.

Every frame is a 4×4 matrix that takes its own coordinates to the frame its vertebra is given in;
its axes are x left, y posterior, z cranial (right-handed), as LPS.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.types import Endplate, Surface, Vertebra, rigid

#: Corners of a rim polygon, at equal angles about the endplate's centre.
RIM_POINTS = 72


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length one. Raises ValueError for a vector without direction."""
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length < 1e-12:
        raise ValueError(f"a direction is needed; given {vector}, which has none")
    return np.asarray(vector, float) / length


def frame(origin: np.ndarray, cranial: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Frame with z along `cranial` and x along `left` made perpendicular to it."""
    z = unit(cranial)
    x = unit(left - (left @ z) * z)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2], matrix[:3, 3] = x, np.cross(z, x), z, origin
    return matrix


def rotation(axis: int, angle_rad: float) -> np.ndarray:
    """Right-handed rotation [3, 3] about coordinate axis 0, 1 or 2."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i], matrix[j, j], matrix[i, j], matrix[j, i] = c, c, -s, s
    return matrix


def superior_frame(vertebra: Vertebra) -> np.ndarray:
    """Frame of the superior endplate: the segment frame, when the vertebra is the caudal one."""
    plate = vertebra.superior
    return frame(plate.centre_mm, plate.normal, plate.axis_left)


def inferior_frame(vertebra: Vertebra) -> np.ndarray:
    """Frame of the inferior endplate, z cranial (against its outward normal)."""
    plate = vertebra.inferior
    return frame(plate.centre_mm, -plate.normal, plate.axis_left)


def vertebra_frame(superior: Endplate, inferior: Endplate) -> np.ndarray:
    """Frame of a vertebra: origin between the endplates' centres, z their mean normal, x their
    mean left axis."""
    return frame(
        0.5 * (superior.centre_mm + inferior.centre_mm),
        superior.normal - inferior.normal,
        superior.axis_left + inferior.axis_left,
    )


def endplate(
    plane_point: np.ndarray, cranial: np.ndarray, left: np.ndarray, rim_mm: np.ndarray, side: str
) -> Endplate:
    """Endplate from a plane (point, normal turned cranially), the left axis and a rim polygon in
    polar order.

    Everything is projected onto the plane. The centre is the polygon's area centroid; the half axes
    are half the rim's extents along the left axis and across it; the rim is resampled at
    `RIM_POINTS` equal angles about the centre, starting at the left and counter-clockwise seen from
    above. side "superior" | "inferior" turns `normal`.
    """
    up = unit(cranial)
    x = unit(left - (left @ up) * up)
    y = np.cross(up, x)
    flat = np.stack([(rim_mm - plane_point) @ x, (rim_mm - plane_point) @ y], -1)
    centroid = polygon_centroid(flat)
    centre = plane_point + centroid[0] * x + centroid[1] * y
    polar = flat - centroid
    angle = np.arctan2(polar[:, 1], polar[:, 0])
    order = np.argsort(angle)
    wanted = np.linspace(0.0, 2.0 * np.pi, RIM_POINTS, endpoint=False)
    radius = np.interp(
        wanted, angle[order], np.linalg.norm(polar, axis=1)[order], period=2.0 * np.pi
    )
    u, v = radius * np.cos(wanted), radius * np.sin(wanted)
    rim = centre + u[:, None] * x + v[:, None] * y
    normal = up if side == "superior" else -up
    return Endplate(centre, normal, rim, x, 0.5 * float(np.ptp(u)), 0.5 * float(np.ptp(v)))


def polygon_centroid(flat: np.ndarray) -> np.ndarray:
    """Area centroid [2] of a closed polygon [n, 2]."""
    x, y = flat.T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    return np.array(
        [((x + np.roll(x, -1)) * cross).sum(), ((y + np.roll(y, -1)) * cross).sum()]
    ) / (3 * cross.sum())


def move_endplate(matrix: np.ndarray, plate: Endplate) -> Endplate:
    """The endplate under a rigid motion."""
    turn = matrix[:3, :3]
    return replace(
        plate,
        centre_mm=rigid(matrix, plate.centre_mm),
        normal=turn @ plate.normal,
        rim_mm=rigid(matrix, plate.rim_mm),
        axis_left=turn @ plate.axis_left,
    )


def move_surface(matrix: np.ndarray, surface: Surface) -> Surface:
    """The surface under a rigid motion."""
    return Surface(rigid(matrix, surface.points_mm), surface.faces)


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a rigid motion."""
    result = np.eye(4)
    result[:3, :3] = matrix[:3, :3].T
    result[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return result
