"""An analytic L4-L5 whose landmarks, frames, endplates and angles are known exactly.

Each vertebra is an implicit function in its own frame (origin at the body's centre, x left, y
posterior, z up): a waisted elliptic body with a posterior notch, flat bony rims around concave
endplates, pedicles, laminae, articular, transverse and spinous processes, joined by smooth booleans
and turned into a true signed distance. The caudal vertebra sits with its superior endplate's frame
as the origin; the cranial one is posed by the asked alignment; its inferior articular processes are
hollowed so that `facet_gap_mm` stays open to the caudal vertebra, as in a joint.

Endplate convention (that of anatomy/vertebra.py): the plane through the flat bony rim; the rim
polygon is the body's section 1 mm under that plane, projected onto it; the centre is the polygon's
area centroid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.patient.alignment.disc import cranial_pose, measure
from engine.patient.bone.assumed import BoneProfile, assumed_density
from engine.patient.geometry.distance import isosurface, surface_sdf
from engine.patient.geometry.frames import (
    RIM_POINTS,
    endplate,
    frame,
    inverse,
    move_endplate,
    move_surface,
    rotation,
)
from engine.patient.phantoms.shapes import box, capsule, ellipse, smooth_max, smooth_min
from engine.types import (
    Endplate,
    PatientModel,
    SegmentAlignment,
    Surface,
    Vertebra,
    VoxelField,
    rigid,
)

#: Depth under the rim plane at which the rim polygon is taken (see anatomy/body.py).
RIM_DEPTH_MM = 1.0
#: Rounding of the body's edge; the rim is exactly flat inwards of it.
EDGE_MM = 1.5
#: The body is this share narrower at its waist than at its endplates.
WAIST = 0.07
#: The hollow of the posterior wall: a cylinder of this radius (share of the width) that cuts this
#: deep (share of the depth), blended over NOTCH_BLEND_MM.
NOTCH_RADIUS, NOTCH_DEPTH, NOTCH_BLEND_MM = 0.34, 0.09, 4.0
#: The endplate's dish: half axes as shares of the body's, and its centre's y.
DISH_HALF_AXES, DISH_CENTRE_Y_MM = (0.78, 0.74), -0.5
#: Width, depth and height of the body beside which the posterior elements are drawn, mm.
DRAWN_SIZE_MM = (50.0, 35.0, 27.0)


class PhantomSpec(BaseModel):
    """What the phantom is asked to be. Alignment as `SegmentAlignment` defines it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lordosis_deg: float = Field(default=6.0, ge=-10.0, le=20.0)
    height_middle_mm: float = Field(default=8.0, ge=4.0, le=16.0)
    coronal_deg: float = Field(default=2.0, ge=-10.0, le=10.0)
    axial_deg: float = Field(default=0.0, ge=-8.0, le=8.0)
    listhesis_mm: float = Field(default=0.0, ge=-6.0, le=8.0)
    lateral_mm: float = Field(default=0.0, ge=-5.0, le=5.0)
    concavity_mm: float = Field(default=1.75, ge=0.0, le=3.0)
    width_mm: float = Field(default=50.0, ge=38.0, le=62.0)
    depth_mm: float = Field(default=35.0, ge=27.0, le=44.0)
    body_height_mm: float = Field(default=27.0, ge=22.0, le=34.0)
    body_wedge_deg: float = Field(
        default=4.0, ge=0.0, le=10.0, description="of each body, taller in front"
    )
    facet_gap_mm: float = Field(default=1.5, ge=0.8, le=3.0)
    trabecular_g_cm3: float = Field(
        default=0.11, ge=0.05, le=0.35, description="normal 0.18, osteopenic 0.12"
    )
    texture: float = Field(
        default=0.08, ge=0.0, le=0.25, description="relative deviation of the core's seeded texture"
    )
    seed: int = Field(default=0, ge=0)
    rotation_deg: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 0.0), description="of the patient, Rz·Ry·Rx"
    )
    translation_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spacing_mm: float = Field(default=0.75, ge=0.5, le=1.5)


Point = tuple[float, float, float]


class Process(NamedTuple):
    """A capsule of the posterior elements beside a body of DRAWN_SIZE_MM, mm: x from the midline
    (the other side mirrors it), y behind the posterior wall, z above the body's middle.

    squash < 1 stretches it along that axis (shapes.capsule); blend_mm: of its joint with the others
    """

    start: Point
    end: Point
    radius_mm: float
    blend_mm: float
    squash: Point = (1.0, 1.0, 1.0)


#: The other elements are blended to the pedicle in this order.
PEDICLE = Process((14.5, -8.0, 4.0), (18.5, 13.0, 4.0), 4.8, 2.5, squash=(1.0, 1.0, 0.78))
LAMINA = Process((17.0, 13.0, 1.0), (0.0, 26.0, -4.0), 3.6, 4.0, squash=(1.0, 1.0, 0.45))
SUPERIOR_ARTICULAR = Process((18.5, 12.0, 3.0), (20.5, 16.0, 20.0), 4.8, 3.0)
INFERIOR_ARTICULAR = Process((14.5, 17.5, -5.0), (14.5, 21.5, -19.0), 5.0, 3.0)
TRANSVERSE = Process((18.0, 9.0, 4.5), (37.0, 14.0, 6.5), 4.0, 3.0)
#: The spinous process: a rounded box.
SPINOUS_CENTRE, SPINOUS_HALF_MM = (0.0, 38.0, -7.5), (3.4, 14.0, 8.5)
SPINOUS_ROUNDING_MM, SPINOUS_BLEND_MM = 2.6, 4.0
#: The pedicle's axis aims at this far before its front end.
TARGET_BEFORE_PEDICLE_MM = 14.0


@dataclass(frozen=True)
class Shape:
    """Implicit vertebra in its own frame: negative inside, about a distance near the surface."""

    spec: PhantomSpec

    def rim_plane(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Point and outward normal of the superior (+1) or inferior (−1) rim plane."""
        tilt = 0.5 * np.radians(self.spec.body_wedge_deg)
        # taller in front: the superior plane falls towards the back, so its normal leans back
        return np.array([0.0, 0.0, 0.5 * side * self.spec.body_height_mm]), np.array(
            [0.0, np.sin(tilt), side * np.cos(tilt)]
        )

    def dish_mm(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Depth of the endplate's dish under the rim plane."""
        a, b = 0.5 * self.spec.width_mm, 0.5 * self.spec.depth_mm
        along_x, along_y = DISH_HALF_AXES
        rho2 = (x / (along_x * a)) ** 2 + ((y - DISH_CENTRE_Y_MM) / (along_y * b)) ** 2
        return self.spec.concavity_mm * np.clip(1.0 - rho2, 0.0, None) ** 2

    def body(self, p: np.ndarray) -> np.ndarray:
        """The vertebral body alone at points [..., 3]."""
        spec = self.spec
        x, y, z = np.moveaxis(p, -1, 0)
        a, b, h = 0.5 * spec.width_mm, 0.5 * spec.depth_mm, spec.body_height_mm
        waist = 1.0 - WAIST * np.clip(1.0 - (2.0 * z / h) ** 2, 0.0, 1.0)
        side = ellipse(x / waist, y / waist, a, b) * waist
        notch_radius = NOTCH_RADIUS * spec.width_mm
        notch = notch_radius - np.hypot(x, y - (b + notch_radius - NOTCH_DEPTH * spec.depth_mm))
        value = smooth_max(side, notch, NOTCH_BLEND_MM)
        for which in (1, -1):
            point, normal = self.rim_plane(which)
            offset = p - point
            dish = self.dish_mm(offset[..., 0], offset[..., 1])
            value = smooth_max(value, offset @ normal + dish, EDGE_MM)
        return value

    def __call__(self, p: np.ndarray) -> np.ndarray:
        """The whole vertebra at points [..., 3]."""
        spec = self.spec
        drawn = np.array(DRAWN_SIZE_MM)
        scale = np.array([spec.width_mm, spec.depth_mm, spec.body_height_mm]) / drawn
        wall = 0.5 * drawn[1] * scale[1]
        q = p.copy()
        q[..., 0] = np.abs(q[..., 0])

        def at(point: Point) -> np.ndarray:
            x, y, z = point
            return np.array([x * scale[0], wall + y, z * scale[2]])

        def drawn_at(part: Process) -> np.ndarray:
            return capsule(q, at(part.start), at(part.end), part.radius_mm, part.squash)

        posterior = drawn_at(PEDICLE)
        for part in (LAMINA, SUPERIOR_ARTICULAR, INFERIOR_ARTICULAR, TRANSVERSE):
            posterior = smooth_min(posterior, drawn_at(part), part.blend_mm)
        spinous = box(q - at(SPINOUS_CENTRE), np.array(SPINOUS_HALF_MM), SPINOUS_ROUNDING_MM)
        posterior = smooth_min(posterior, spinous, SPINOUS_BLEND_MM)
        return smooth_min(self.body(p), posterior, PEDICLE.blend_mm)

    def plate(self, side: str) -> Endplate:
        """The exact endplate (module convention), from the body's own section."""
        point, outward = self.rim_plane(1 if side == "superior" else -1)
        up = outward if side == "superior" else -outward
        left = np.array([1.0, 0.0, 0.0])
        y = np.cross(up, left)
        angles = np.linspace(0.0, 2.0 * np.pi, 4 * RIM_POINTS, endpoint=False)
        rays = np.cos(angles)[:, None] * left + np.sin(angles)[:, None] * y
        low, high = (
            np.full(len(rays), 0.3 * self.spec.depth_mm),
            np.full(len(rays), self.spec.width_mm),
        )
        for _ in range(40):
            middle = 0.5 * (low + high)
            out = self.body(point - RIM_DEPTH_MM * outward + middle[:, None] * rays) > 0.0
            low, high = np.where(out, low, middle), np.where(out, middle, high)
        return endplate(point, up, left, point + low[:, None] * rays, side)

    def pedicle(self, side: str) -> np.ndarray:
        """Axis [2, 3]: entry on the posterior cortex in line with the pedicle, target in the
        body."""
        sx = self.spec.width_mm / DRAWN_SIZE_MM[0]
        sz = self.spec.body_height_mm / DRAWN_SIZE_MM[2]
        wall = 0.5 * self.spec.depth_mm
        front, rear = (
            np.array([x * sx, wall + y, z * sz]) for x, y, z in (PEDICLE.start, PEDICLE.end)
        )
        along = (rear - front) / np.linalg.norm(rear - front)
        steps = np.arange(0.0, 40.0, 0.05)
        inside = self(rear + steps[:, None] * along) < 0.0
        axis = np.array(
            [rear + steps[int(np.argmin(inside))] * along, front - TARGET_BEFORE_PEDICLE_MM * along]
        )
        return axis * (1.0 if side == "left" else np.array([-1.0, 1.0, 1.0]))

    def surface(
        self, spacing_mm: float, keep_off: tuple[VoxelField, np.ndarray] | None = None
    ) -> Surface:
        """Closed surface; `keep_off` = (distance of another bone, its frame from here) opens the
        facet gap."""
        reach = np.array(
            [0.5 * self.spec.width_mm + 20.0, 0.0, 0.5 * self.spec.body_height_mm + 22.0]
        )
        low = np.array([-reach[0], -0.5 * self.spec.depth_mm - 3.0, -reach[2]])
        high = np.array([reach[0], 0.5 * self.spec.depth_mm + 60.0, reach[2]])
        axes = [np.arange(a, b + spacing_mm, spacing_mm) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        values = self(points)
        if keep_off is not None:
            other, matrix = keep_off
            near = np.abs(values) < 8.0
            gap = self.spec.facet_gap_mm - other.sample(rigid(matrix, points[near]))
            values[near] = smooth_max(values[near], gap, 0.6)
        return isosurface(VoxelField(values, low, spacing_mm))


def phantom(spec: PhantomSpec | None = None, profile: BoneProfile | None = None) -> PatientModel:
    """The phantom patient, L4 and L5, in LPS. Alignment and endplates are exact, not measured (see
    `truth`).

    `profile` gives the shells and gradients of the density; the core's mean density is the spec's
    own.
    """
    spec = spec or PhantomSpec()
    profile = (profile or BoneProfile()).model_copy(
        update={"trabecular_g_cm3": spec.trabecular_g_cm3}
    )
    shape = Shape(spec)
    lps = global_motion(spec)
    sup = shape.plate("superior")
    own = inverse(plate_frame(sup))  # vertebra frame → caudal superior endplate's frame
    poses = {"L5": lps @ own, "L4": lps @ _cranial(shape, spec)}
    lower = shape.surface(spec.spacing_mm)
    sdf5 = surface_sdf(move_surface(poses["L5"], lower), spec.spacing_mm)
    upper = shape.surface(spec.spacing_mm, (sdf5, poses["L4"]))
    sdf4 = surface_sdf(move_surface(poses["L4"], upper), spec.spacing_mm)
    caudal = vertebra_of("L5", shape, lower, sdf5, poses["L5"], spec, profile)
    cranial = vertebra_of("L4", shape, upper, sdf4, poses["L4"], spec, profile)
    return PatientModel(
        name=f"phantom_{spec.seed}",
        vertebrae=(cranial, caudal),
        density_source="phantom",
        posture="phantom",
        repairs=(),
        source={"kind": "phantom", "spec": spec.model_dump(mode="json")},
    )


def truth(spec: PhantomSpec) -> SegmentAlignment:
    """The exact alignment of the phantom of that spec."""
    shape = Shape(spec)
    upper = _cranial(shape, spec)
    lower = inverse(plate_frame(shape.plate("superior")))
    plates = [
        (move_endplate(m, shape.plate("superior")), move_endplate(m, shape.plate("inferior")))
        for m in (upper, lower)
    ]
    return measure(plates[0], plates[1])


def global_motion(spec: PhantomSpec) -> np.ndarray:
    """LPS from the caudal superior endplate's frame [4, 4]."""
    return motion_of(spec.rotation_deg, spec.translation_mm)


def motion_of(rotation_deg: Sequence[float], translation_mm: Sequence[float]) -> np.ndarray:
    """Rz·Ry·Rx about the origin, then the translation [4, 4]."""
    rx, ry, rz = (rotation(axis, np.radians(angle)) for axis, angle in enumerate(rotation_deg))
    matrix = np.eye(4)
    matrix[:3, :3] = rz @ ry @ rx
    matrix[:3, 3] = translation_mm
    return matrix


def plate_frame(plate: Endplate, up: float = 1.0) -> np.ndarray:
    return frame(plate.centre_mm, up * plate.normal, plate.axis_left)


def _cranial(shape: Shape, spec: PhantomSpec) -> np.ndarray:
    """The cranial vertebra's frame in the caudal superior endplate's frame, as the spec asks."""
    pose = cranial_pose(
        spec.lordosis_deg,
        spec.coronal_deg,
        spec.axial_deg,
        spec.height_middle_mm,
        spec.listhesis_mm,
        spec.lateral_mm,
    )
    return pose @ inverse(plate_frame(shape.plate("inferior"), up=-1.0))


def vertebra_of(
    name: str,
    shape: Shape,
    surface: Surface,
    sdf: VoxelField,
    pose: np.ndarray,
    spec: PhantomSpec,
    profile: BoneProfile,
) -> Vertebra:
    """The vertebra of a shape posed by `pose`, LPS from its own frame (`sdf` is in LPS), with exact
    endplates, pedicle axes and landmarks."""
    superior, inferior = (
        move_endplate(pose, shape.plate(side)) for side in ("superior", "inferior")
    )
    density = assumed_density(sdf, superior, inferior, profile, texture_of(spec, name))
    _, spinous_y, spinous_z = SPINOUS_CENTRE
    tip = np.array(
        [
            0.0,
            0.5 * spec.depth_mm + (spinous_y + SPINOUS_HALF_MM[1]),
            spinous_z * spec.body_height_mm / DRAWN_SIZE_MM[2],
        ]
    )
    return Vertebra(
        name=name,
        surface=move_surface(pose, surface),
        sdf=sdf,
        density=density,
        superior=superior,
        inferior=inferior,
        pedicles={side: rigid(pose, shape.pedicle(side)) for side in ("left", "right")},
        landmarks={"body_centre": rigid(pose, np.zeros(3)), "spinous_tip": rigid(pose, tip)},
    )


def texture_of(spec: PhantomSpec, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Smooth relative deviation by position in the vertebra's frame: 24 seeded plane waves of
    8-25 mm."""
    rng = np.random.default_rng([spec.seed, ord(name[-1])])
    direction = rng.normal(size=(24, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    waves = direction * (2.0 * np.pi / rng.uniform(8.0, 25.0, size=(24, 1)))
    phase = rng.uniform(0.0, 2.0 * np.pi, size=24)

    def deviation(own: np.ndarray) -> np.ndarray:
        total = sum(np.cos(own @ wave + shift) for wave, shift in zip(waves, phase, strict=True))
        return np.asarray(np.clip(spec.texture * np.sqrt(2.0 / len(waves)) * total, -0.5, 0.5))

    return deviation
