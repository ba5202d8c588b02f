"""Shapes: polygons, blends, series and Bernstein surfaces against their closed forms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from engine.sdf import bernstein, fourier, polygon_distance, smooth_max
from engine.types import Patch, VoxelField


def test_polygon_distance_of_a_rectangle_is_exact_in_both_orientations():
    corners = np.array([[-3.0, -2.0], [3.0, -2.0], [3.0, 2.0], [-3.0, 2.0]])
    points = np.random.default_rng(0).uniform(-6, 6, (500, 2))
    q = np.abs(points) - [3.0, 2.0]
    exact = np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)
    for polygon in (corners, corners[::-1]):
        np.testing.assert_allclose(polygon_distance(polygon, points), exact, atol=1e-12)


def test_polygon_distance_handles_a_concave_outline():
    """An L: the notch is outside."""
    polygon = np.array([[0, 0], [4, 0], [4, 1], [1, 1], [1, 4], [0, 4]], float)
    got = polygon_distance(polygon, np.array([[2.0, 2.0], [0.5, 0.5], [3.0, 0.5], [5.0, 0.5]]))
    np.testing.assert_allclose(got, [1.0, -0.5, -0.5, 1.0], atol=1e-12)


def test_smooth_max_is_exact_away_from_the_edge_and_never_below_the_maximum():
    a, b = (jnp.asarray(v) for v in np.random.default_rng(1).uniform(-3, 3, (2, 1000)))
    blended, sharp = np.asarray(smooth_max(a, b, 0.6)), np.maximum(a, b)
    apart = np.abs(np.asarray(a - b)) > 0.6
    np.testing.assert_array_equal(blended[apart], sharp[apart])
    assert np.all(blended >= sharp)
    assert (blended - sharp).max() <= 0.25 * 0.6 + 1e-15


def test_fourier_is_its_series():
    rng = np.random.default_rng(2)
    c, angle = rng.normal(size=7), rng.uniform(0, 2 * np.pi, 50)
    exact = c[0] + sum(
        c[2 * k - 1] * np.cos(k * angle) + c[2 * k] * np.sin(k * angle) for k in (1, 2, 3)
    )
    np.testing.assert_allclose(
        fourier(jnp.asarray(c), jnp.cos(angle), jnp.sin(angle)), exact, atol=1e-13
    )


def test_bernstein_reproduces_planes_interpolates_corners_and_stays_within_its_control_points():
    rng = np.random.default_rng(3)
    u, v = rng.uniform(-1, 1, (2, 200))
    s, t = np.meshgrid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 3), indexing="ij")
    plane = bernstein(jnp.asarray(0.3 + 2 * s - t), jnp.asarray(u), jnp.asarray(v))
    np.testing.assert_allclose(plane, 0.3 + 2 * u - v, atol=1e-13)
    control = rng.normal(size=(4, 3))
    values = np.asarray(bernstein(jnp.asarray(control), jnp.asarray(u), jnp.asarray(v)))
    assert control.min() <= values.min() and values.max() <= control.max()
    corner = bernstein(
        jnp.asarray(control), jnp.asarray([-1.0, 1.0, 5.0]), jnp.asarray([1.0, -1.0, -5.0])
    )
    np.testing.assert_allclose(corner, [control[0, -1], control[-1, 0], control[-1, 0]], atol=1e-13)


def test_voxel_field_samples_linear_functions_exactly_and_holds_the_nearest_value_outside():
    origin, h = np.array([1.0, -2.0, 3.0]), 0.5
    grid = origin + h * np.stack(
        np.meshgrid(np.arange(5), np.arange(6), np.arange(7), indexing="ij"), -1
    )
    field = VoxelField(grid @ np.array([1.0, 2.0, -3.0]), origin, h)
    np.testing.assert_array_equal(field.points(), grid)
    inside = origin + np.random.default_rng(4).uniform(0, 1, (50, 3)) * h * np.array([4, 5, 6])
    np.testing.assert_allclose(field.sample(inside), inside @ [1.0, 2.0, -3.0], atol=1e-12)
    assert field.sample((origin - 10.0)[None])[0] == pytest.approx(field.values[0, 0, 0])


def test_capsule_patch_is_a_ramp_around_its_axis():
    patch = Patch(
        "caudal", "capsule", np.zeros(3), end_mm=np.array([0, 10.0, 0]), radius_mm=4.0, ramp_mm=1.5
    )
    points = np.array(
        [[0, 5, 0], [3, 5, 0], [4, 5, 0], [0, 14, 0], [5, 5, 0], [0, -4.375, 0]], float
    )
    np.testing.assert_allclose(patch.weight(points), [1, 1, 0.5, 0.5, 0, 0.25], atol=1e-12)
    with pytest.raises(ValueError, match="'ball' is unknown; expected 'layer' or 'capsule'"):
        Patch("caudal", "ball", np.zeros(3)).weight(points)
