"""Sharp edges survive the contouring, smooth faces stay where they are."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from test_surface import cage, sphere

from engine.part import contour, surface
from engine.types import VoxelField

H = 0.5


def box(half=(6.0, 4.0, 3.0), turn_rad=0.3, h=H):
    """A box turned about z, as the (not quite distance) maximum of its six planes."""
    axes = [np.arange(-9.0, 9.0 + h / 2, h)] * 3
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    c, s = np.cos(turn_rad), np.sin(turn_rad)
    local = points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    return (
        VoxelField(np.max(np.abs(local) - np.array(half), axis=-1), np.full(3, -9.0), h),
        np.array(half),
        c,
        s,
    )


def test_a_turned_box_keeps_its_edges_and_volume():
    field, half, c, s = box()
    sharp, soft = contour.dual_contour(field)
    local = sharp.points_mm @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    overshoot = np.max(np.abs(local) - half, axis=-1)
    assert np.abs(overshoot).max() < 0.25 * H and np.sqrt(np.mean(overshoot**2)) < 0.03 * H
    # on an edge two of the three |x_i| - half_i vanish: as many such vertices as 4·(2·6+2·4+2·3) mm
    # of edge ask for
    on_edge = np.sum(np.abs(np.abs(local) - half) < 0.1 * H, axis=-1) >= 2
    assert on_edge.sum() > 0.7 * 8 * half.sum() / H
    truth = 8 * half.prod()

    def off(points):
        return abs(trimesh.Trimesh(points, sharp.faces, process=False).volume / truth - 1)

    assert off(sharp.points_mm) < 0.003 < off(soft)  # what marching cubes would chamfer


def test_a_sphere_has_no_creases_and_a_cage_has():
    ball = sphere(radius=6.0)
    sharp, soft = contour.dual_contour(ball)
    assert not contour.creases(ball, soft)[0].any()
    np.testing.assert_array_equal(sharp.points_mm, soft)
    field = cage()
    _, soft = contour.dual_contour(field)
    assert 0.02 < contour.creases(field, soft)[0].mean() < 0.4


@pytest.mark.parametrize("shift", [0.0, 0.013, 0.1, 0.25, 0.37])
def test_the_dual_surface_is_closed_and_manifold_for_any_place_of_the_grid(shift):
    sharp, _ = contour.dual_contour(cage(shift=shift))
    found = surface.check(sharp)
    assert found["watertight"] and found["manifold"] and found["volume_mm3"] > 0
