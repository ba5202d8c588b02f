"""The promise of the cage family: whatever its parameters, it fits through the corridor."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from engine import implants

SETTINGS = {
    "approach": "test",
    "length_mm": 30,
    "width_mm": 12,
    "x_mm": (-8, 8),
    "y_mm": (-13, 10),
    "yaw_deg": (-60, 60),
    "bend_per_mm": (-0.035, 0.035),
}
X, Y = (
    a.ravel() for a in np.meshgrid(np.arange(-30, 30, 0.5), np.arange(-30, 30, 0.5), indexing="ij")
)


@pytest.fixture(scope="module")
def cage():
    return implants.load("cage", SETTINGS)


def footprint(cage, parameters):
    return tuple(
        np.asarray(f) for f in cage.outline_and_window(parameters, jnp.asarray(X), jnp.asarray(Y))
    )


def drawn(cage, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        k: g.lower + rng.uniform(size=g.lower.shape) * (g.upper - g.lower)
        for k, g in cage.groups().items()
    }


@pytest.mark.parametrize("seed", range(6))
def test_footprint_stays_inside_the_corridor_bent_along_its_own_arc(cage, seed):
    p = drawn(cage, seed)
    outline = footprint(cage, p)[0]
    x0, y0, yaw, bend = p["pose"]
    u = np.cos(yaw) * (X - x0) + np.sin(yaw) * (Y - y0)
    v = -np.sin(yaw) * (X - x0) + np.cos(yaw) * (Y - y0) - 0.5 * bend * (u**2 - 15.0**2 / 3)
    inside = outline < 0
    assert inside.sum() * 0.25 > 0.2 * 30 * 12  # at least OUTLINE_RANGE's smaller footprint, mm²
    assert np.abs(u[inside]).max() <= 15.0 and np.abs(v[inside]).max() <= 6.0
    assert np.all(outline[(np.abs(u) > 15.0) | (np.abs(v) > 6.0)] > 0)


def test_yaw_turns_the_cage_and_position_moves_it(cage):
    p = {k: g.initial for k, g in cage.groups().items()}
    p["pose"] = np.array([5.0, -4.0, np.deg2rad(30), 0.0])
    outline = footprint(cage, p)[0]
    inside = outline < 0
    centre = np.array([X[inside].mean(), Y[inside].mean()])
    np.testing.assert_allclose(centre, [5.0, -4.0], atol=0.1)  # grid of 0.5 mm
    spread = np.cov(X[inside], Y[inside])
    axis = np.linalg.eigh(spread)[1][:, -1]
    assert np.rad2deg(np.arctan2(axis[1], axis[0])) % 180 == pytest.approx(30, abs=1)


@pytest.mark.parametrize("seed", range(6))
def test_wall_is_as_thick_as_its_bounds_say(cage, seed):
    """The true distance from the chamber to the outside: at least the least wall, or 3/4 of what
    fits into a narrow cage."""
    axis = np.arange(-18, 18, 0.2)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    p = drawn(cage, seed)
    p["pose"][:2] = 0.0
    outline, window = (
        np.asarray(f).reshape(x.shape)
        for f in cage.outline_and_window(p, jnp.asarray(x.ravel()), jnp.asarray(y.ravel()))[:2]
    )
    wall = ndimage.distance_transform_edt(outline < 0) * 0.2
    inradius = wall.ravel()[np.hypot(x, y).argmin()]
    least = wall[window < 0].min()
    assert min(2.0, 0.75 * inradius) - 0.3 < least < 6.1


def test_window_is_a_distance_near_its_boundary(cage):
    """In the first 0.2 mm, for drawn parameters: the contour keeps an edge only where both sides
    are distances."""
    for seed in range(4):
        p = drawn(cage, seed)
        p["pose"][:2] = 0.0
        axis = np.arange(-17, 17, 0.15)
        x, y = np.meshgrid(axis, axis, indexing="ij")
        window = np.asarray(
            cage.outline_and_window(p, jnp.asarray(x.ravel()), jnp.asarray(y.ravel()))[1]
        ).reshape(x.shape)
        slope = np.hypot(*np.gradient(window, 0.15))
        assert np.quantile(np.abs(slope[np.abs(window) < 0.2] - 1), 0.9) < 0.4


@pytest.mark.parametrize("width_mm", [9.0, 12.0, 18.0])
def test_the_graft_chamber_is_one_hole_whatever_the_parameters(width_mm):
    """A wall of 6 mm in a cage of 9 mm would close the chamber in its middle and leave webs that
    cannot be printed."""
    cage = implants.load("cage", {**SETTINGS, "width_mm": width_mm, "wall_mm": (2.0, 6.0)})
    x, y = (
        a.ravel()
        for a in np.meshgrid(np.arange(-17, 17, 0.16), np.arange(-17, 17, 0.16), indexing="ij")
    )
    for seed in range(8):
        p = drawn(cage, seed)
        p["pose"][:2] = 0.0
        outline, window = (
            np.asarray(f) for f in cage.outline_and_window(p, jnp.asarray(x), jnp.asarray(y))[:2]
        )
        pieces, count = ndimage.label((window < 0).reshape(213, 213), np.ones((3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert count >= 1 and sizes.max() > 0.98 * sizes.sum(), (
            sizes
        )  # a radial spike of the last seeds is under 1 %
        assert (window < 0).sum() > 0.04 * (outline < 0).sum()
        assert np.all(outline[window < 0] < 0)


def test_outline_is_about_a_distance_near_the_boundary(cage):
    """First order: its gradient is 1 within 25 % in the first 1.5 mm on either side, or fill
    would misjudge volumes."""
    p = {k: g.initial for k, g in cage.groups().items()}
    outline = footprint(cage, p)[0].reshape(120, 120)
    slope = np.hypot(*np.gradient(outline, 0.5))
    near = np.abs(outline) < 1.5
    assert np.quantile(np.abs(slope[near] - 1), 0.95) < 0.25


def test_pair_is_mirrored(cage):
    pair = implants.load(
        "cage",
        {
            **SETTINGS,
            "pair": True,
            "length_mm": 20,
            "width_mm": 9,
            "start_x_mm": 7.5,
            "yaw_deg": (60, 120),
            "start_yaw_deg": 90,
        },
    )
    points = np.stack([X, Y, 0 * X], -1).reshape(120, 120, 1, 3) + [0.25, 0.25, 0]
    far = jnp.full((120, 120, 1), 50.0)
    anatomy = implants.Anatomy(jnp.asarray(points), far, far, -far, -far, jnp.zeros(3))
    implant = np.asarray(
        pair.fields({k: jnp.asarray(g.initial) for k, g in pair.groups().items()}, anatomy).implant
    )[..., 0]
    np.testing.assert_allclose(implant, implant[::-1], atol=1e-9)
    part = implant < 0
    assert part[60:].sum() > 100 and not part[59:61].any()
