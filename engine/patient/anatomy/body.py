"""A vertebral body's endplates and rims, found on the distance field in a box about it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import label, median_filter

from engine.patient.geometry.frames import endplate, unit
from engine.types import Endplate, VoxelField, rigid

#: Depth under the rim's plane at which the rim polygon is taken.
RIM_DEPTH_MM = 1.0
#: Directions in which the rim is looked for.
_ANGLES = 144
#: Rim points that make the posterior wall, of frames.RIM_POINTS.
_WALL_POINTS = 9
STEP_MM = 0.75
#: Half sizes of the box about the body in which endplates are looked for: left, posterior, up.
BOX_MM = (36.0, 30.0, 28.0)


def posterior_wall_mm(rims_mm: Sequence[np.ndarray]) -> float:
    """y of a body's posterior wall: mean over its rims [n, 3], in the vertebra's frame, of the most
    posterior eighth of their 72 points."""
    return float(np.mean([np.sort(rim[:, 1])[-_WALL_POINTS:].mean() for rim in rims_mm]))


class BodyBox:
    """The signed distance in a box about the body, axes along a vertebra's frame, and the body's
    extent in it."""

    def fitted_plane(self, flat: np.ndarray, height: np.ndarray) -> np.ndarray:
        """How a plane is fitted to heights (a + b·x + c·y)."""
        return _robust_plane(flat, height)

    def __init__(self, name: str, sdf: VoxelField, pose: np.ndarray) -> None:
        self.name, self.sdf, self.pose = name, sdf, pose
        self.axes = [np.arange(-half, half + STEP_MM / 2, STEP_MM) for half in BOX_MM]
        points = np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1)
        self.values = sdf.sample(rigid(pose, points))
        self.waist, self.wall_mm = self.body_section()

    def body_section(self) -> tuple[np.ndarray, float]:
        """The body's own section [x, y] at the level where it reaches least far back, and its
        posterior wall, y."""
        x, y, z = self.axes
        best: tuple[float, np.ndarray] | None = None
        # levels that cut an endplate's cavity (low or crushed bodies) show a ring, not the body:
        # its middle must be deep in bone
        solid = self.values[np.abs(x) < 3.0][:, np.abs(y) < 3.0].max(axis=(0, 1)) < -3.0
        near = np.abs(z) <= 10.0
        for level in np.flatnonzero(near & solid if (near & solid).any() else near):
            parts, _ = label(self.values[:, :, level] < 0.0)
            middle = parts[np.abs(x) < 5.0][:, np.abs(y) < 5.0]
            ids = np.bincount(middle[middle > 0]) if (middle > 0).any() else np.array([0])
            if ids.max() < 20:
                continue
            section = parts == int(np.argmax(ids))
            if section.sum() * STEP_MM**2 < 250.0:
                continue
            back = float(y[section.any(axis=0)].max())
            if best is None or back < best[0]:
                best = back, section
        if best is None:
            raise ValueError(
                f"{self.name}: no vertebral body is found; check the label or the surface, and its"
                " unit"
            )
        return best[1], best[0]

    def plate(self, side: str) -> Endplate:
        """The endplate of that side (module convention)."""
        sign = 1.0 if side == "superior" else -1.0
        columns, levels = self.values, self.axes[2]
        if side == "inferior":
            columns, levels = columns[:, :, ::-1], -levels[::-1]
        height, known = first_bone(columns, levels)
        x, y, _ = self.axes
        # the plane as outward height e = a + b·x + c·y (e = ±z), first through the middle of the
        # footprint
        inner = known & self.waist
        plane = self.fitted_plane(
            np.stack(np.meshgrid(x, y, indexing="ij"), -1)[inner], height[inner]
        )
        angle = np.linspace(0.0, 2.0 * np.pi, _ANGLES, endpoint=False)
        heights = VoxelField(
            np.where(known, height, -50.0)[..., None], np.array([x[0], y[0], 0.0]), STEP_MM
        )
        centre = np.array([0.0, float(y[self.waist.any(axis=0)].mean())])
        reach = _reach(self.waist, x, y, angle, centre)
        edge = reach
        for _ in range(8):
            radii = np.arange(0.0, 34.0, 0.375)
            flat = (
                centre
                + radii[None, :, None] * np.stack([np.cos(angle), np.sin(angle)], -1)[:, None, :]
            )
            above = heights.sample(
                np.concatenate([flat, np.zeros((*flat.shape[:2], 1))], -1)
            ) - _at(plane, flat)
            outside = flat[..., 1] > self.wall_mm + 4.0
            above[outside] = -50.0
            edge_index = _edge(above, radii, reach)
            edge = median_filter(radii[edge_index].astype(float), 5, mode="wrap")
            crest = _crest(above, flat, radii, edge)
            new = self.fitted_plane(crest[:, :2], crest[:, 2] + _at(plane, crest[:, :2]))
            moved = float(np.abs(new - plane).max())
            plane = new
            if moved < 1e-3:
                break
        radius = self._rim(plane, sign, centre, angle, edge)
        rim = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        rim3 = np.concatenate([rim, sign * _at(plane, rim)[:, None]], -1)
        point = np.array([*centre, sign * float(_at(plane, centre))])
        normal = unit(np.array([-plane[1], -plane[2], 1.0]) * np.array([1.0, 1.0, sign]))
        turn = self.pose[:3, :3]
        return endplate(
            rigid(self.pose, point),
            turn @ (sign * normal),
            turn[:, 0],
            rigid(self.pose, rim3),
            side,
        )

    def _rim(
        self,
        plane: np.ndarray,
        sign: float,
        centre: np.ndarray,
        angle: np.ndarray,
        edge: np.ndarray,
    ) -> np.ndarray:
        """Radius at which the section 1 mm under the plane leaves the bone, next to the rough
        edge."""
        near = np.linspace(-2.5, 2.5, 41)
        radii = np.maximum(edge[:, None] + near, 0.5)
        flat = centre + radii[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)[:, None, :]
        z = sign * (_at(plane, flat) - RIM_DEPTH_MM * np.sqrt(1.0 + plane[1] ** 2 + plane[2] ** 2))
        value = self.sdf.sample(rigid(self.pose, np.concatenate([flat, z[..., None]], -1)))
        exits = (value[:, :-1] <= 0.0) & (value[:, 1:] > 0.0)
        # the exit closest to the rough edge; none: the rough edge itself (median over neighbours
        # mends it)
        cost = np.where(exits, np.abs(near[:-1] + near[1:]), np.inf)
        k = np.argmin(cost, axis=1)
        rows = np.arange(len(angle))
        a, b = value[rows, k], value[rows, k + 1]
        found = exits.any(axis=1)
        share = np.where(found, -a / np.where(b - a == 0.0, 1.0, b - a), 0.0)
        radius = np.where(
            found, radii[rows, k] + share * (radii[rows, k + 1] - radii[rows, k]), edge
        )
        return _without_spurs(angle, radius)


def _without_spurs(angle: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Rim radius without what stands off a robust Fourier fit: spurs (osteophytes) and bites (a
    pedicle right under the rim).

    Order 6 follows a hollow posterior wall. The loss is convex (pseudo-Huber, 0.3 mm) and what
    stands off is faded out smoothly, d·(1 − (d/3 mm)²)², so that a slightly other surface gives a
    slightly other rim.
    """
    waves = [f(k * angle) for k in range(1, 7) for f in (np.cos, np.sin)]
    basis = np.column_stack([np.ones_like(angle), *waves])
    fit = radius
    weight = np.ones(len(angle))
    for _ in range(60):
        root = np.sqrt(weight)
        fit = basis @ np.linalg.lstsq(basis * root[:, None], radius * root, rcond=None)[0]
        weight = 1.0 / np.sqrt(1.0 + ((radius - fit) / 0.3) ** 2)
    off = radius - fit
    return np.asarray(fit + off * np.clip(1.0 - (off / 3.0) ** 2, 0.0, None) ** 2)


def first_bone(columns: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height [x, y] at which a column is first bone coming from its far (outer) end, and where
    there is one."""
    inside = columns[:, :, ::-1] < 0.0
    index = len(z) - 1 - np.argmax(inside, axis=2)
    known = inside.any(axis=2) & (index < len(z) - 1)
    index = np.minimum(index, len(z) - 2)
    rows, cols = np.indices(index.shape)
    low, high = columns[rows, cols, index], columns[rows, cols, index + 1]
    share = np.clip(-low / np.where(high - low == 0.0, 1.0, high - low), 0.0, 1.0)
    return z[index] + share * STEP_MM, known


def _reach(
    section: np.ndarray, x: np.ndarray, y: np.ndarray, angle: np.ndarray, centre: np.ndarray
) -> np.ndarray:
    """Radius of the waist's section in each direction."""
    field = VoxelField(section.astype(float)[..., None], np.array([x[0], y[0], 0.0]), STEP_MM)
    radii = np.arange(0.0, 34.0, 0.5)
    flat = centre + radii[None, :, None] * np.stack([np.cos(angle), np.sin(angle)], -1)[:, None, :]
    inside = field.sample(np.concatenate([flat, np.zeros((*flat.shape[:2], 1))], -1)) > 0.5
    return np.asarray(radii[np.argmin(inside, axis=1)])


def _at(plane: np.ndarray, flat: np.ndarray) -> np.ndarray:
    return np.asarray(plane[0] + flat[..., 0] * plane[1] + flat[..., 1] * plane[2])


def _edge(above: np.ndarray, radii: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Index of the last radius of the endplate: it falls 1 mm under the plane there, seen from
    0.7 of the waist."""
    high = above > -RIM_DEPTH_MM
    result = np.zeros(len(above), int)
    for row, limit in enumerate(reach):
        k = int(np.searchsorted(radii, 0.7 * limit))
        while k < len(radii) - 1 and not high[row, k] and radii[k] < limit:
            k += 1
        if not high[row, k] and high[row, :k].any():
            k = int(
                np.flatnonzero(high[row, :k])[-1]
            )  # a rounded-off edge: it falls away further in
        while k < len(radii) - 1 and high[row, k + 1]:
            k += 1
        result[row] = k
    return result


def _crest(above: np.ndarray, flat: np.ndarray, radii: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Highest point (x, y, height over the plane) of each direction in the outer 30 % of the
    endplate."""
    smooth = (np.roll(above, 1, axis=1) + above + np.roll(above, -1, axis=1)) / 3.0
    outer = (radii >= 0.7 * edge[:, None]) & (radii <= edge[:, None] - STEP_MM)
    k = np.argmax(np.where(outer, smooth, -np.inf), axis=1)
    rows = np.arange(len(above))
    return np.column_stack([flat[rows, k], smooth[rows, k]])


def _robust_plane(flat: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Plane (a, b, c) of height = a + b·x + c·y of least pseudo-Huber loss, 0.5 mm."""
    basis = np.column_stack([np.ones(len(flat)), flat])
    weight = np.ones(len(flat))
    plane = np.zeros(3)
    for _ in range(40):
        root = np.sqrt(weight)
        plane = np.linalg.lstsq(basis * root[:, None], height * root, rcond=None)[0]
        weight = 1.0 / np.sqrt(1.0 + ((height - basis @ plane) / 0.5) ** 2)
    return np.asarray(plane)
