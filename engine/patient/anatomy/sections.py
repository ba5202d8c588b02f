"""A vertebra cut into sections, and what is measured on a section."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label
from skimage.measure import find_contours, points_in_poly

from engine.patient.anatomy.body import posterior_wall_mm
from engine.patient.geometry.frames import inverse, unit, vertebra_frame
from engine.types import Surface, Vertebra, VoxelField, rigid

SIDES = {"left": 1.0, "right": -1.0}
#: The bony ring ends where the endplate lies this far under the ring's crest.
RING_DROP_MM = 0.3
SECTION_MM = 0.4
WINDOW_MM = 24.0
FLARE_MM = 1.5


class SectionedBone:
    """A vertebra in its own frame, with its distance at hand."""

    def __init__(self, vertebra: Vertebra) -> None:
        self.vertebra, self.name = vertebra, vertebra.name
        self.pose = vertebra_frame(vertebra.superior, vertebra.inferior)
        self.to_own = inverse(self.pose)
        # in double precision once: sample() would convert the whole field at each call
        self.field = VoxelField(
            np.asarray(vertebra.sdf.values, float), vertebra.sdf.origin_mm, vertebra.sdf.spacing_mm
        )
        self.points = rigid(self.to_own, vertebra.surface.points_mm)
        rims = [
            rigid(self.to_own, plate.rim_mm) for plate in (vertebra.superior, vertebra.inferior)
        ]
        self.wall_mm = posterior_wall_mm(rims)
        self.front_mm = float(np.mean([rim[:, 1].min() for rim in rims]))
        self.half_width_mm = max(vertebra.superior.half_width_mm, vertebra.inferior.half_width_mm)

    def phi(self, own: np.ndarray) -> np.ndarray:
        """Signed distance at points of the own frame."""
        return self.field.sample(rigid(self.pose, own))

    def pedicle_line(self, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Entry, target and their direction, own frame. Raises ValueError where the pedicle has
        no axis."""
        if side not in self.vertebra.pedicles:
            raise ValueError(f"{self.name}: no {side} pedicle axis was found")
        entry, target = rigid(self.to_own, self.vertebra.pedicles[side])
        return entry, target, unit(target - entry)


def enclosing_outline(
    values: np.ndarray,
    origin: tuple[float, float],
    step: float,
    seed: tuple[float, float],
    inside_negative: bool,
) -> np.ndarray | None:
    """Outline [n, 2] of the region {values < 0} (or > 0) that holds `seed`; None where it
    reaches the border or the seed is out."""
    field_ = values if inside_negative else -values
    index = tuple(round((s - o) / step) for s, o in zip(seed, origin, strict=True))
    parts, _ = label(field_ < 0.0)
    region = parts == parts[index]
    if (
        parts[index] == 0
        or region[0].any()
        or region[-1].any()
        or region[:, 0].any()
        or region[:, -1].any()
    ):
        return None
    # other regions are pushed away so that the contour is this region's alone; the outer one is the
    # largest
    alone = np.where((field_ < 0.0) & ~region, 1e-3, field_)
    loops = [np.asarray(origin) + step * loop for loop in find_contours(alone, 0.0)]
    around = [loop[:-1] for loop in loops if len(loop) > 8 and points_in_poly([seed], loop)[0]]
    return max(around, key=outline_area_mm2, default=None)


def outline_area_mm2(flat: np.ndarray) -> float:
    x, y = flat.T
    return 0.5 * abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()))


def largest_circle_mm(flat: np.ndarray) -> float:
    """Diameter of the largest circle within a closed polygon, to 0.1 mm."""
    low, high = flat.min(axis=0), flat.max(axis=0)
    points = np.stack(
        np.meshgrid(*(np.arange(a, b, 0.2) for a, b in zip(low, high, strict=True)), indexing="ij"),
        -1,
    ).reshape(-1, 2)
    points = points[points_in_poly(points, flat)]
    start, edge = flat, np.roll(flat, -1, axis=0) - flat
    offset = points[:, None] - start
    t = np.clip(
        (offset * edge).sum(axis=-1) / np.maximum((edge * edge).sum(axis=-1), 1e-12), 0.0, 1.0
    )
    return 2.0 * float(np.linalg.norm(offset - t[..., None] * edge, axis=-1).min(axis=1).max())


def outline_chord_mm(flat: np.ndarray, through: np.ndarray, axis: int) -> float:
    """Length of the chord of a closed polygon along `axis` (0 or 1) through a point inside it."""
    ends = np.roll(flat, -1, axis=0)
    a, b = flat[:, 1 - axis] - through[1 - axis], ends[:, 1 - axis] - through[1 - axis]
    cut = (a < 0.0) != (b < 0.0)
    at = (
        flat[cut, axis]
        + a[cut] / (a[cut] - b[cut]) * (ends[cut, axis] - flat[cut, axis])
        - through[axis]
    )
    if not ((at > 0.0).any() and (at < 0.0).any()):
        raise ValueError("the section's centroid lies outside of it; it is no oval")
    return float(at[at > 0.0].min() - at[at < 0.0].max())


def vertex_normals(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Outward unit normal and area share of each vertex."""
    points, faces = surface.points_mm, surface.faces
    a, b, c = (points[faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    normals, areas = np.zeros_like(points), np.zeros(len(points))
    for k in range(3):
        np.add.at(normals, faces[:, k], cross)
        np.add.at(areas, faces[:, k], np.linalg.norm(cross, axis=1) / 6.0)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12), areas


def length_through_mm(bone: SectionedBone, point: np.ndarray, axis: int, reach_mm: float) -> float:
    """Length of the bone along `axis` through a point of the own frame. Raises ValueError where
    that is not bone or has no end."""
    t = np.arange(0.0, reach_mm, 0.25)
    total = 0.0
    for sign in (1.0, -1.0):
        line = np.repeat(point[None], len(t), axis=0)
        line[:, axis] += sign * t
        value = bone.phi(line)
        out = np.flatnonzero(value > 0.0)
        if value[0] >= 0.0 or not len(out):
            raise ValueError(
                f"{bone.name}: the section at mid-height has no clear border along {'xy'[axis]}; it"
                " is no closed body"
            )
        k = int(out[0])
        total += 0.25 * (k - value[k] / (value[k] - value[k - 1]))
    return float(total)
