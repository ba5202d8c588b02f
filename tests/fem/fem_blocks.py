"""Boxes of tetrahedra with an analytic answer: regular meshes of bars, and a segment of uniform
bone around them."""

from __future__ import annotations

import numpy as np

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
from fem.mesh import tets as tt
from fem.mesh.build import TetMesh

INTACT = Design("intact", "none", "ti6al4v", None, None, None)


def box(axes, label_of) -> TetMesh:
    """Six tetrahedra per cell of a rectilinear grid; label_of(centres) → labels, negative ones
    dropped."""
    points, tets = tt.bricks(axes)
    labels = np.asarray(label_of(points[tets].mean(1)), int)
    keep = labels >= 0
    points, tets = tt.compact(points, tets[keep])
    return TetMesh(points, tets, labels[keep])


def uniform_segment(density=(0.5, 0.5), centre=((0, 0, -50.0), (0, 0, 50.0))) -> Segment:
    """Two vertebrae that are only densities and endplate centres: what the solver reads of a
    segment."""
    grid = VoxelField(np.full((2, 2, 2), -1.0), np.zeros(3), 1.0)
    empty = Surface(np.zeros((0, 3)), np.zeros((0, 3), int))
    bodies = []
    for rho, c in zip(density, centre, strict=True):
        plate = Endplate(
            np.array(c, float),
            np.array([0, 0, 1.0]),
            np.zeros((0, 3)),
            np.array([1.0, 0, 0]),
            50.0,
            50.0,
        )
        field = VoxelField(np.full((2, 2, 2), rho), np.zeros(3), 1.0)
        bodies.append(Vertebra("L", empty, grid, field, plate, plate, {}))
    zero = SegmentAlignment(*[0.0] * 9)
    plan = AlignmentPlan("keep", "test", zero, zero, np.eye(4))
    return Segment("bar", "bar", bodies[0], bodies[1], grid, plan, np.eye(4), "phantom")


def slab(body, z, up, depth, half=200.0) -> Patch:
    """Layer of the given depth inside the plane at height z."""
    normal, left = np.array([0.0, 0.0, up]), np.array([1.0, 0.0, 0.0])
    return Patch(
        body, "layer", np.array([0.0, 0.0, z]), normal, left, half, half, depth, ramp_mm=1e-6
    )


def boundary(support, load, near, cases, links=(), kappa=1e9) -> Boundary:
    loads = tuple(
        LoadCase(n, Wrench(np.array(f, float), np.array(m, float), np.array(p, float)), 0.0, "test")
        for n, f, m, p in cases
    )
    return Boundary(support, kappa, load, near, tuple(links), loads)
