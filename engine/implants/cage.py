"""Interbody cage whose faces are the patient's own endplates.

    φ = max( outline(x, y), rim + inset, disc, g_caudal − φ_caudal, g_cranial − φ_cranial )

The footprint is a smooth closed curve inside the superellipse that the access corridor lets
through:

    q(u, v) = ((u/a)⁴ + (v'/b)⁴)^¼ = s(θ),   s(θ) = s_lo + (s_hi − s_lo)·σ(F(θ)),   v' = v − c u²/2

with (u, v) the plane turned by the yaw and moved to the cage's position, a, b the corridor's half
length and half width, c the bend of a banana-shaped cage (it is inserted along its own arc) and F a
Fourier series: whatever the parameters, the cage fits through the corridor. The graft chamber is
that curve moved in by the wall (true distance); the wall takes at most 3/4 of the circle that fits
inside about the middle, so that the chamber stays one hole. The offset maps g (Bernstein surfaces)
let a face stand off (g > 0) or sit in the prepared endplate (g < 0). A lattice's relative density
is a Bernstein surface over the footprint inside a solid rim. By default a face may not stand off: a
gap of less than half a millimetre unloads bone in the voxels but is lost in the tetrahedra, so no
check could confirm it.

With faces: stock the same footprint has the plane or domed faces of a catalogue device instead,
seated by `seat`:

    z_± = z₀ + t·(x, y) ± ( H/2 − (y − y₀)·tan(w/2) + d (1 − min(q, 1)²) )
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.implants._abstract import Anatomy, Group, ImplantFields
from engine.implants._stock import Footprint, stock_faces
from engine.materials import IMPLANTS, implant_material
from engine.sdf import bernstein, fourier, smooth_max

OUTLINE_RANGE = (0.45, 1.0)
#: Of the circle that fits into the outline about the cage's middle, so that the graft chamber stays
#: open and in one piece.
LARGEST_WALL_SHARE = 0.75
_OUTLINE_TERMS, _WALL_TERMS = 11, 5
_CONTROL = (4, 3)
_BLEND_MM = 0.3
_CURVE_POINTS = 192


class Settings(BaseModel):
    """Corridor, position limits (from the centre of the disc space) and shape limits. Angles in
    degrees, lengths in mm."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    approach: str
    material: str = "ti6al4v"
    rods: bool = False
    pair: bool = False
    faces: Literal["conforming", "stock"] = "conforming"
    length_mm: float = Field(gt=5, le=60)
    width_mm: float = Field(gt=5, le=45)
    x_mm: tuple[float, float]
    y_mm: tuple[float, float]
    yaw_deg: tuple[float, float]
    start_x_mm: float = 0.0
    start_y_mm: float = 0.0
    start_yaw_deg: float = 0.0
    bend_per_mm: tuple[float, float] = (0.0, 0.0)
    rim_inset_mm: float = Field(1.0, ge=0, le=10)
    wall_mm: tuple[float, float] = (2.0, 6.0)
    start_wall_mm: float = 3.0
    offset_mm: tuple[float, float] = (-0.5, 0.0)
    relative_density: tuple[float, float] = (0.2, 1.0)
    start_relative_density: float = 0.6
    solid_rim_mm: float = Field(1.0, ge=0, le=5)
    edge_blend_mm: float = Field(0.6, gt=0, le=3)

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if self.material not in IMPLANTS:
            raise ValueError(
                f"material={self.material!r} is unknown; choose one of {', '.join(IMPLANTS)}"
            )
        for name in (
            "x_mm",
            "y_mm",
            "yaw_deg",
            "bend_per_mm",
            "wall_mm",
            "offset_mm",
            "relative_density",
        ):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(
                    f"{name}=[{low}, {high}] is not an interval; give the lower bound first"
                )
        if self.wall_mm[0] < 0.5:
            raise ValueError(
                f"wall_mm={self.wall_mm[0]} is thinner than the 0.5 mm that can be printed;"
                " raise it"
            )
        if not self.wall_mm[0] <= self.start_wall_mm <= self.wall_mm[1]:
            raise ValueError(
                f"start_wall_mm={self.start_wall_mm:g} is outside wall_mm={list(self.wall_mm)}"
            )
        if not 0.05 <= self.relative_density[0] <= self.relative_density[1] <= 1.0:
            raise ValueError(f"relative_density={self.relative_density} must lie in [0.05, 1]")
        return self


def build(settings: dict[str, Any]) -> Cage:
    """The cage family of these settings. Raises ValueError (pydantic) naming every wrong key or
    value."""
    return Cage(Settings(**settings))


@dataclass(frozen=True)
class Cage:
    """See the module's docstring."""

    settings: Settings

    @property
    def material(self) -> str:
        return self.settings.material

    @property
    def rods(self) -> bool:
        return self.settings.rods

    def groups(self) -> dict[str, Group]:
        s = self.settings
        pose = np.array(
            [s.start_x_mm, s.start_y_mm, np.deg2rad(s.start_yaw_deg), np.mean(s.bend_per_mm)]
        )
        low, high = (
            np.array([s.x_mm[i], s.y_mm[i], np.deg2rad(s.yaw_deg[i]), s.bend_per_mm[i]])
            for i in (0, 1)
        )
        outline = np.zeros(_OUTLINE_TERMS)
        outline[0] = 2.5
        wall = np.zeros(_WALL_TERMS)
        share = (s.start_wall_mm - s.wall_mm[0]) / max(s.wall_mm[1] - s.wall_mm[0], 1e-9)
        wall[0] = np.log(np.clip(share, 0.02, 0.98) / (1 - np.clip(share, 0.02, 0.98)))
        groups = {
            "pose": Group(pose, low, high, "mm, mm, rad, 1/mm"),
            "outline": Group(
                outline, _box(_OUTLINE_TERMS, -4.0, -1.5), _box(_OUTLINE_TERMS, 4.0, 1.5), "1"
            ),
            "wall": Group(wall, _box(_WALL_TERMS, -4.0, -1.5), _box(_WALL_TERMS, 4.0, 1.5), "1"),
        }
        if s.faces == "stock":
            low = np.array([4.0, 0.0, 0.0, -5.0, -0.6, -0.6])
            high = np.array([22.0, 0.6, 3.0, 25.0, 0.6, 0.6])
            groups["seat"] = Group(
                np.array([10.0, 0.1, 0.0, 5.0, 0.0, 0.0]), low, high, "mm, rad, mm, mm, 1, 1"
            )
            return groups
        for face in ("offset_caudal", "offset_cranial"):
            zero, one = np.zeros(_CONTROL), np.ones(_CONTROL)
            start = np.clip(zero, *s.offset_mm)
            groups[face] = Group(start, s.offset_mm[0] * one, s.offset_mm[1] * one, "mm")
        if implant_material(s.material).lattice:
            one = np.ones(_CONTROL)
            groups["density"] = Group(
                np.clip(s.start_relative_density, *s.relative_density) * one,
                s.relative_density[0] * one,
                s.relative_density[1] * one,
                "1",
            )
        return groups

    def fields(self, parameters: dict[str, Array], anatomy: Anatomy) -> ImplantFields:
        s = self.settings
        # the outline does not vary along z: evaluate it once per column of a regular grid
        columns = (
            anatomy.points_mm[:, :, :1, :2]
            if anatomy.points_mm.ndim == 4
            else anatomy.points_mm[..., :2]
        )
        plane = columns - anatomy.centre_mm[:2]
        outline, window, u, v = self.outline_and_window(parameters, plane[..., 0], plane[..., 1])
        if s.pair:
            mirror = self.outline_and_window(parameters, -plane[..., 0], plane[..., 1])
            here = outline <= mirror[0]
            outline, window, u, v = (
                jnp.where(here, a, b) for a, b in zip((outline, window, u, v), mirror, strict=True)
            )
        if s.faces == "stock":
            top, bottom = stock_faces(
                parameters["seat"], plane[..., 0], plane[..., 1], parameters["pose"][1], u, v
            )
            z = anatomy.points_mm[..., 2]
            caudal, cranial = bottom - z, z - top
        else:
            caudal = bernstein(parameters["offset_caudal"], u, v) - anatomy.caudal
            cranial = bernstein(parameters["offset_cranial"], u, v) - anatomy.cranial
        prism = smooth_max(outline, anatomy.rim + s.rim_inset_mm, s.edge_blend_mm)
        faces = jnp.maximum(jnp.maximum(caudal, cranial), anatomy.disc)
        solid = jnp.maximum(prism, faces)
        chamber = jnp.maximum(window, anatomy.rim + s.rim_inset_mm + s.wall_mm[0])
        implant = jnp.maximum(solid, -chamber)
        if "density" in parameters:
            inner = bernstein(parameters["density"], u, v)
            rim = jax.nn.sigmoid((outline + s.solid_rim_mm) / 0.25)
            density = inner + (1.0 - inner) * rim
        else:
            density = jnp.ones_like(outline)
        return ImplantFields(
            implant, jnp.maximum(chamber, anatomy.disc), jnp.broadcast_to(density, implant.shape)
        )

    def outline_and_window(
        self, parameters: dict[str, Array], x: Array, y: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Outline and window distances and the normalised coordinates u/a, v'/b of plane points
        about the centre."""
        s, bend = self.settings, parameters["pose"][3]
        a, b = s.length_mm / 2, s.width_mm / 2
        outline, un, vn, u, v, cosine, sine = self._outline(parameters, x, y)

        def curve(angle: Array) -> tuple[Array, Array]:
            """The outline's point in that direction, in u and v."""
            cosine, sine = jnp.cos(angle), jnp.sin(angle)
            reach = _scale(parameters, cosine, sine) / _superellipse(cosine, sine)
            u, v = a * reach * cosine, b * reach * sine
            return u, v + _arc(bend, a, u)

        depth, inradius = _depth(curve, u, v, _arc(bend, a, 0.0))
        wall = s.wall_mm[0] + (s.wall_mm[1] - s.wall_mm[0]) * jax.nn.sigmoid(
            fourier(parameters["wall"], cosine, sine)
        )
        wall = -smooth_max(-wall, -LARGEST_WALL_SHARE * inradius, _BLEND_MM)
        return outline, jnp.where(outline < 0, wall - depth, wall + depth), un, vn

    def _outline(self, parameters: dict[str, Array], x: Array, y: Array) -> tuple[Array, ...]:
        """First-order distance to the outline, (u/a, v'/b), (u, v) in mm, and cosine and sine of
        the former's direction."""
        s, pose = self.settings, parameters["pose"]
        a, b = s.length_mm / 2, s.width_mm / 2

        def level(x: Array, y: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
            dx, dy = x - pose[0], y - pose[1]
            u = jnp.cos(pose[2]) * dx + jnp.sin(pose[2]) * dy
            v = -jnp.sin(pose[2]) * dx + jnp.cos(pose[2]) * dy
            un, vn = u / a, (v - _arc(pose[3], a, u)) / b
            radius = jnp.sqrt(un**2 + vn**2 + 1e-3)
            cosine, sine = un / radius, vn / radius
            return (_superellipse(un, vn), _scale(parameters, cosine, sine)), (
                un,
                vn,
                u,
                v,
                cosine,
                sine,
            )

        one, zero = jnp.ones_like(x), jnp.zeros_like(x)
        (q, scale), (q_x, scale_x), rest = jax.jvp(level, (x, y), (one, zero), has_aux=True)
        _, (q_y, scale_y), _ = jax.jvp(level, (x, y), (zero, one), has_aux=True)
        # the gradient where the point's ray meets the outline: ∇q is constant along the ray and ∇s
        # falls with 1/q, so that the distance stays smooth in the middle
        out = q / scale
        norm = jnp.sqrt((q_x - out * scale_x) ** 2 + (q_y - out * scale_y) ** 2 + (0.05 / a) ** 2)
        return ((q - scale) / norm, *rest)

    def footprint(self, pose: np.ndarray) -> Footprint:
        """The points under the undesigned cage at a pose [4] (x, y in mm, yaw in rad, bend in
        1/mm)."""
        s = self.settings
        size = float(np.hypot(s.length_mm, s.width_mm))
        reach = 0.5 * size + abs(float(pose[0])) + abs(float(pose[1]))
        axis = np.arange(-reach, reach + 0.5, 1.0)
        x, y = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
        initial = {k: jnp.asarray(g.initial) for k, g in self.groups().items()}
        parameters = initial | {"pose": jnp.asarray(pose)}

        def blade(x: np.ndarray) -> list[np.ndarray]:
            outline = self._outline(parameters, jnp.asarray(x), jnp.asarray(y))[:3]
            return [np.asarray(f) for f in outline]

        outline, u, v = blade(x)
        if s.pair:
            mirror = blade(-x)
            here = outline <= mirror[0]
            both = zip((outline, u, v), mirror, strict=True)
            outline, u, v = (np.where(here, a, b) for a, b in both)
        inside = outline < 0
        return Footprint(x[inside], y[inside], u[inside], v[inside], pose[1], s.rim_inset_mm)

    def describe(self) -> dict[str, Any]:
        s = self.settings
        return {
            "approach": s.approach,
            "corridor_length_mm": s.length_mm,
            "corridor_width_mm": s.width_mm,
            "parts": 2 if s.pair else 1,
            "faces": s.faces,
            "rods": s.rods,
        }


def _arc(bend: Array, a: float, u: Any) -> Array:
    """The bent cage's middle line v(u), its mean over the length at v = 0."""
    return 0.5 * bend * (u**2 - a**2 / 3)


def _scale(parameters: dict[str, Array], cosine: Array, sine: Array) -> Array:
    low, high = OUTLINE_RANGE
    return low + (high - low) * jax.nn.sigmoid(fourier(parameters["outline"], cosine, sine))


def _superellipse(u: Array, v: Array) -> Array:
    return (u**4 + v**4 + 1e-6) ** 0.25


def _depth(curve: Any, u: Array, v: Array, middle_v: Array) -> tuple[Array, Array]:
    """Distance of points to a closed curve(angle) → (u, v), mm, and the radius of the circle that
    fits about (0, middle_v).

    The nearest of _CURVE_POINTS, then Newton steps along the curve. The foot is held while
    differentiating: the distance does not depend on it to first order.
    """
    angles = jnp.linspace(-jnp.pi, jnp.pi, _CURVE_POINTS, endpoint=False)
    points_u, points_v = curve(angles)
    squared = (u[..., None] - points_u) ** 2 + (v[..., None] - points_v) ** 2
    angle, spacing = angles[jnp.argmin(squared, axis=-1)], 2 * jnp.pi / _CURVE_POINTS
    one = jnp.ones_like(angle)

    def along(angle: Array) -> tuple[Any, Any]:
        return jax.jvp(curve, (angle,), (one,))

    for _ in range(4):
        ((foot_u, foot_v), (first_u, first_v)), (_, (second_u, second_v)) = jax.jvp(
            along, (angle,), (one,)
        )
        du, dv = u - foot_u, v - foot_v
        square = first_u**2 + first_v**2
        bend = jnp.maximum(square - du * second_u - dv * second_v, 0.02 * square)
        angle = angle + jnp.clip(
            (du * first_u + dv * first_v) / bend, -0.5 * spacing, 0.5 * spacing
        )
    foot_u, foot_v = curve(jax.lax.stop_gradient(angle))
    inradius = jnp.sqrt(jnp.min(points_u**2 + (points_v - middle_v) ** 2))
    return jnp.sqrt((u - foot_u) ** 2 + (v - foot_v) ** 2 + 1e-6), inradius


def _box(terms: int, first: float, others: float) -> np.ndarray:
    return np.array([first, *([others] * (terms - 1))])
