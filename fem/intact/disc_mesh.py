"""Hexahedra of a patient's intact disc, nucleus and rings of annulus, between the two bones'
endplates.

A point of the disc has coordinates (x, y) in the unit circle and t ∈ [0, 1] from the caudal to the
cranial bone:

    P = (1 − t) B_caudal(x, y) + t B_cranial(x, y)
    B = c + ρ (rim(θ) − c) + h(ρ, θ) n,   ρ (cos θ, sin θ) = (x, y)

c, n and rim are the fitted endplate's; θ runs from the patient's left to the back in both. h is
where the ray along n meets the bone's own surface (signed distance 0), smoothed over the grid;
beside the rounded rim it is taken over from the last place inside that has one. The circle is a
square core in layers that turn round towards it (an O-grid); the nucleus is the inner part, moved
back by nucleus_back of the disc's half depth, and each ring of annulus is one element thick.
Boundary between both: ρ = √nucleus_share.

The cartilage endplates belong to the disc here; bulging of the wall in the given pose is left out
(straight from rim to rim).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from engine.types import Endplate, Segment, Vertebra
from fem.intact.hyperelastic import jacobians

#: How far the bone may lie off the fitted endplate, and the steps in which it is looked for, mm.
_REACH_MM, _STEP_MM = 6.0, 0.1
#: Radii and angles of the grid on which the bone's height is sampled; smoothing in cells of it.
_RADII, _ANGLES, _SMOOTHING = 41, 96, (1.0, 2.0)


@dataclass(frozen=True)
class DiscSettings:
    """around: elements round the circumference, a multiple of 4; rings of annulus; layers from
    bone to bone; nucleus_share of the area and nucleus_back of the half depth: 0.43 and 0 are
    lumbar_meshes' own L4-L5 (Remus 2021 [S16])."""

    around: int = 40
    rings: int = 4
    layers: int = 6
    nucleus_share: float = 0.43
    nucleus_back: float = 0.0

    def __post_init__(self) -> None:
        if self.around < 8 or self.around % 4:
            raise ValueError(f"around={self.around} must be a multiple of 4, at least 8")
        if self.rings < 1 or self.layers < 1:
            raise ValueError(f"rings={self.rings} and layers={self.layers} must be at least 1")
        if not 0.2 <= self.nucleus_share <= 0.7:
            raise ValueError(f"nucleus_share={self.nucleus_share:g} must lie in [0.2, 0.7]")
        if not 0.0 <= self.nucleus_back <= 0.2:
            raise ValueError(f"nucleus_back={self.nucleus_back:g} must lie in [0, 0.2]")


@dataclass(frozen=True)
class DiscMesh:
    """points_mm [n, 3], hexes [m, 8] (VTK's order), group [m]: 0 nucleus, 1… rings of annulus
    from inside; nodes on either bone."""

    points_mm: np.ndarray
    hexes: np.ndarray
    group: np.ndarray
    caudal_nodes: np.ndarray
    cranial_nodes: np.ndarray


def disc_mesh(segment: Segment, settings: DiscSettings = DiscSettings()) -> DiscMesh:
    """The disc at the segment's planned pose. Raises ValueError where the bones leave no room
    between them (the text says where)."""
    plane, quads, group = circle_mesh(settings)
    ends = [
        _on_bone(v, e, plane)
        for v, e in (
            (segment.caudal, segment.caudal.superior),
            (segment.cranial, segment.cranial.inferior),
        )
    ]
    t = np.linspace(0.0, 1.0, settings.layers + 1)[:, None, None]
    points = ((1 - t) * ends[0] + t * ends[1]).reshape(-1, 3)
    n = len(plane)
    below = (quads[None] + n * np.arange(settings.layers)[:, None, None]).reshape(-1, 4)
    hexes, groups = np.concatenate([below, below + n], axis=1), np.tile(group, settings.layers)
    bad = (jacobians(points[hexes]) <= 0.0).any(axis=1)
    if bad.any():
        where = points[hexes[bad]].mean((0, 1))
        raise ValueError(
            f"{int(bad.sum())} of {len(hexes)} elements of the disc are inverted, about"
            f" {np.round(where, 1).tolist()} mm: the endplates touch or cross there at the planned"
            " pose; plan more height, or look at the endplates"
        )
    return DiscMesh(points, hexes, groups, np.arange(n), np.arange(n) + settings.layers * n)


def circle_mesh(s: DiscSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [n, 2] of the unit circle's mesh, quads [m, 4] (turning left), group [m]."""
    side = s.around // 4
    edge = np.sqrt(s.nucleus_share)
    core = 0.62 * edge
    # core: between a square and a circle, so that neither its corners nor its sides make bad
    # elements
    u = np.linspace(-1.0, 1.0, side + 1)
    x, y = np.meshgrid(u, u, indexing="ij")
    square = np.stack([x, y], -1) / np.sqrt(2.0)
    disc = np.stack([x * np.sqrt(1 - y**2 / 2), y * np.sqrt(1 - x**2 / 2)], -1)
    points = [core * (0.5 * square + 0.5 * disc).reshape(-1, 2)]
    at = np.arange((side + 1) ** 2).reshape(side + 1, side + 1)
    quads = [np.stack([at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]], -1).reshape(-1, 4)]
    group = [np.zeros(side * side, int)]
    # the core's boundary, turning left from the corner (-1, -1), and the same angles on every
    # circle
    loop = np.concatenate([at[:-1, 0], at[-1, :-1], at[:0:-1, -1], at[0, :0:-1]])
    corner = points[0][loop]
    angle = -0.75 * np.pi + 2 * np.pi * np.arange(s.around) / s.around
    turn = np.stack([np.cos(angle), np.sin(angle)], -1)
    between = max(1, round((edge - core) / (2 * core / side)))
    inside = [(1 - w) * corner + w * edge * turn for w in np.arange(1, between + 1) / between]
    rings = [(edge + (1 - edge) * k / s.rings) * turn for k in range(1, s.rings + 1)]
    before = loop
    for k, ring in enumerate([*inside, *rings]):
        now = sum(len(p) for p in points) + np.arange(s.around)
        points.append(ring)
        quads.append(np.stack([before, now, np.roll(now, -1), np.roll(before, -1)], -1))
        group.append(np.full(s.around, max(0, k + 1 - between)))
        before = now
    flat = np.concatenate(points)
    back = s.nucleus_back * np.clip((1 - np.hypot(*flat.T)) / (1 - edge), 0.0, 1.0)
    return (
        flat + np.stack([np.zeros(len(flat)), back], -1),
        np.concatenate(quads),
        np.concatenate(group),
    )


@dataclass(frozen=True)
class _Rim:
    """The fitted endplate's rim about its centre: radius_mm over angle_rad (ascending), from the
    patient's left to the back; back [3]: unit vector in its plane."""

    back: np.ndarray
    angle_rad: np.ndarray
    radius_mm: np.ndarray

    @staticmethod
    def of(plate: Endplate) -> _Rim:
        back = np.array([0.0, 1.0, 0.0]) - plate.axis_left[1] * plate.axis_left
        back -= (back @ plate.normal) * plate.normal
        back /= np.linalg.norm(back)
        off = plate.rim_mm - plate.centre_mm
        angle = np.arctan2(off @ back, off @ plate.axis_left)
        radius = np.hypot(off @ back, off @ plate.axis_left)
        order = np.argsort(angle)
        return _Rim(back, angle[order], radius[order])

    def radius_at(self, angle_rad: np.ndarray) -> np.ndarray:
        return np.interp(angle_rad, self.angle_rad, self.radius_mm, period=2 * np.pi)


def _heights(vertebra: Vertebra, plate: Endplate, rim: _Rim) -> np.ndarray:
    """The bone's height h in mm over the endplate's plane on a polar grid [_RADII, _ANGLES], along
    each ray from the middle outwards. Raises ValueError where the middle has no bone near it."""
    rho = np.linspace(0.0, 1.0, _RADII)
    theta = np.linspace(-np.pi, np.pi, _ANGLES + 1)[:-1]
    radius = rim.radius_at(theta)
    left, behind = (rho[:, None] * radius * f(theta) for f in (np.cos, np.sin))
    foot = plate.centre_mm + left[..., None] * plate.axis_left + behind[..., None] * rim.back
    steps = np.arange(-_REACH_MM, _REACH_MM + 1e-9, _STEP_MM)
    inside = (
        np.asarray(vertebra.sdf.sample(foot[..., None, :] + steps[:, None] * plate.normal)) < 0.0
    )
    some: np.ndarray = np.any(inside, axis=-1)
    # the surface is half a step beyond the outermost sample in bone; a ray beside the body has none
    outermost = steps[len(steps) - 1 - inside[..., ::-1].argmax(-1)]
    height = np.where(some, outermost + 0.5 * _STEP_MM, np.nan)
    if not bool(np.all(some[: _RADII // 2])):
        raise ValueError(
            f"{vertebra.name}: no bone within {_REACH_MM:g} mm of the fitted endplate's middle;"
            " look at the endplate"
        )
    for k in range(1, len(rho)):
        height[k] = np.where(np.isnan(height[k]), height[k - 1], height[k])
    height = gaussian_filter(height, _SMOOTHING, mode=("nearest", "wrap"))
    height[0] = height[0].mean()
    return height


def _on_bone(vertebra: Vertebra, plate: Endplate, plane: np.ndarray) -> np.ndarray:
    """Points [n, 3] on the bone's surface of points (x, y) [n, 2] of the unit circle."""
    rim = _Rim.of(plate)
    height = _heights(vertebra, plate, rim)
    rho, theta = np.hypot(*plane.T), np.arctan2(plane[:, 1], plane[:, 0])
    column = (theta + np.pi) / (2 * np.pi) * _ANGLES
    first, share = np.floor(column).astype(int) % _ANGLES, column % 1.0
    profile = (1 - share) * height[:, first] + share * height[:, (first + 1) % _ANGLES]
    row = np.clip(rho, 0.0, 1.0) * (_RADII - 1)
    low = np.minimum(row.astype(int), _RADII - 2)
    which = np.arange(len(plane))
    h = (1 - (row - low)) * profile[low, which] + (row - low) * profile[low + 1, which]
    radius = rim.radius_at(theta)
    return np.asarray(
        plate.centre_mm
        + (rho * radius * np.cos(theta))[:, None] * plate.axis_left
        + (rho * radius * np.sin(theta))[:, None] * rim.back
        + h[:, None] * plate.normal
    )
