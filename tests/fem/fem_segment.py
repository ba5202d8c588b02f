"""A small analytic segment: two elliptic-cylinder vertebrae with concave endplates, a conforming
ring cage."""

from __future__ import annotations

import numpy as np
from skimage.measure import marching_cubes

from engine.types import (
    AlignmentPlan,
    Boundary,
    Design,
    Endplate,
    LoadCase,
    Patch,
    Segment,
    SegmentAlignment,
    Surface,
    Vertebra,
    VoxelField,
    Wrench,
)

HALF = (22.0, 16.0)
BODY_MM = 24.0
DISC_MM = 9.0
CONCAVE_MM = 2.0
#: The box that is meshed: 4 mm beyond the bones.
CROP_MM = np.array(
    [
        [-HALF[0] - 4.0, -HALF[1] - 4.0, -BODY_MM - 4.0],
        [HALF[0] + 4.0, HALF[1] + 4.0, DISC_MM + BODY_MM + 4.0],
    ]
)


def ellipse(x, y, a, b):
    """First-order signed distance to an elliptic cylinder."""
    rho = np.sqrt((x / a) ** 2 + (y / b) ** 2) + 1e-9
    slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2) / rho + 1e-9
    return (rho - 1.0) / slope


def dish(x, y):
    return CONCAVE_MM * np.clip(1.0 - (x / HALF[0]) ** 2 - (y / HALF[1]) ** 2, 0.0, 1.0)


def surface_of(field: VoxelField) -> Surface:
    v, f, _, _ = marching_cubes(
        field.values, 0.0, spacing=(field.spacing_mm,) * 3, gradient_direction="descent"
    )
    points = v + field.origin_mm
    a, b, c = (points[f[:, i]] for i in range(3))
    if np.einsum("ij,ij->", a, np.cross(b, c)) < 0:
        f = f[:, ::-1]
    return Surface(points, np.ascontiguousarray(f))


def sampled(function, low, high, spacing) -> VoxelField:
    size = np.ceil((np.array(high) - low) / spacing).astype(int) + 1
    empty = VoxelField(np.zeros(size), np.array(low, float), spacing)
    p = empty.points()
    return VoxelField(function(p[..., 0], p[..., 1], p[..., 2]), empty.origin_mm, spacing)


def endplate(z, up) -> Endplate:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    rim = np.stack([HALF[0] * np.cos(t), HALF[1] * np.sin(t), np.full_like(t, z)], -1)
    return Endplate(
        np.array([0.0, 0.0, z]), np.array([0.0, 0.0, up]), rim, np.array([1.0, 0, 0]), *HALF
    )


def vertebra(name, bottom, top) -> Vertebra:
    def distance(x, y, z):
        return np.maximum.reduce(
            [ellipse(x, y, *HALF), z - (top - dish(x, y)), (bottom + dish(x, y)) - z]
        )

    low, high = [-30.0, -24.0, bottom - 8.0], [30.0, 24.0, top + 8.0]
    sdf = sampled(distance, low, high, 1.0)
    density = sampled(lambda x, y, z: 0.15 + 0.25 * (distance(x, y, z) > -1.5), low, high, 1.0)
    return Vertebra(
        name, surface_of(sdf), sdf, density, endplate(top, 1.0), endplate(bottom, -1.0), {}
    )


def make_segment() -> Segment:
    caudal = vertebra("L5", -BODY_MM, 0.0)
    cranial = vertebra("L4", DISC_MM, DISC_MM + BODY_MM)
    disc = sampled(
        lambda x, y, z: np.maximum.reduce([ellipse(x, y, *HALF), -3.0 - z, z - DISC_MM - 3.0]),
        [-30.0, -24.0, -10.0],
        [30.0, 24.0, DISC_MM + 10.0],
        1.0,
    )
    zero = SegmentAlignment(*[0.0] * 9)
    plan = AlignmentPlan("keep", "test", zero, zero, np.eye(4))
    return Segment("L4-L5", "analytic", caudal, cranial, disc, plan, np.eye(4), "phantom")


def make_design(segment: Segment, material: str = "ti6al4v") -> Design:
    low, high, h = [-22.0, -18.0, -10.0], [22.0, 18.0, DISC_MM + 10.0], 0.5

    def bones(x, y, z):
        p = np.stack([x, y, z], -1)
        return np.maximum(-segment.caudal.sdf.sample(p), -segment.cranial.sdf.sample(p))

    def slab(z):
        return np.maximum(-6.0 - z, z - DISC_MM - 6.0)

    implant = sampled(
        lambda x, y, z: np.maximum.reduce(
            [ellipse(x, y, 15, 11), -ellipse(x, y, 9, 6), bones(x, y, z), slab(z)]
        ),
        low,
        high,
        h,
    )
    window = sampled(lambda x, y, z: np.maximum(ellipse(x, y, 9, 6), slab(z)), low, high, h)
    return Design("conforming", "test_ring", material, implant, window, None)


def layer(body, plate: Endplate, depth=4.0) -> Patch:
    return Patch(
        body,
        "layer",
        plate.centre_mm,
        plate.normal,
        plate.axis_left,
        plate.half_width_mm,
        plate.half_depth_mm,
        depth,
    )


def make_boundary(segment: Segment, links=()) -> Boundary:
    point = segment.cranial.superior.centre_mm
    cases = (
        LoadCase(
            "compression", Wrench(np.array([0, 0, -500.0]), np.zeros(3), point), 500.0, "test"
        ),
        LoadCase(
            "flexion",
            Wrench(np.array([0, 0, -400.0]), np.array([7500.0, 0, 0]), point),
            400.0,
            "test",
        ),
        LoadCase(
            "torsion",
            Wrench(np.array([30.0, -20.0, 0]), np.array([0, 0, 5000.0]), point),
            0.0,
            "test",
        ),
    )
    return Boundary(
        layer("caudal", segment.caudal.inferior),
        1000.0,
        layer("cranial", segment.cranial.superior),
        (
            layer("caudal", segment.caudal.superior, 8.0),
            layer("cranial", segment.cranial.inferior, 8.0),
        ),
        links,
        cases,
    )
