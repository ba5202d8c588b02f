"""Finite-strain elasticity: consistent tangents, objectivity, closed forms, what is refused.

Closed forms and their limits are in scripts/evidence/hyperelastic.py; here the fast ones.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fem.intact.hyperelastic import Body, Fibres, Solid
from scripts.evidence.hyperelastic import FIBRES, bar, bricks8, tube

CURVE = Fibres((0.004, 0.021, 0.045, 0.094, 0.25), (0.0, 7.0, 20.0, 35.0, 51.0), 0.08)


def two_materials(order: int) -> Body:
    points, cells = bricks8((2, 2, 2))
    directions = np.random.default_rng(1).normal(size=(4, 2, 3))
    solids = {0: Solid(0.2, 180.0, c20=0.2, c30=6.0, mixed=True), 1: Solid(0.18, 2.25, c01=0.045)}
    return Body(points, cells, np.repeat([0, 1], 4), solids, {1: (CURVE, directions)}, order)


@pytest.mark.parametrize("order", [1, 2])
def test_the_tangent_is_symmetric_and_the_forces_derivative(order: int) -> None:
    body, random = two_materials(order), np.random.default_rng(0)
    x = 0.02 * random.normal(size=body.size)
    direction = random.normal(size=body.size)
    body.forces(x)
    tangent = body.tangent()
    h = 1e-6
    difference = (body.forces(x + h * direction) - body.forces(x - h * direction)) / (2.0 * h)
    assert np.abs(tangent @ direction - difference).max() < 1e-5 * np.abs(difference).max()
    assert abs(tangent - tangent.T).max() < 1e-9 * abs(tangent).max()


@pytest.mark.parametrize("order", [1, 2])
def test_a_turned_body_is_free_of_forces_and_a_deformed_one_in_balance(order: int) -> None:
    body = two_materials(order)
    turn = Rotation.from_rotvec([0.3, 0.5, -0.8]).as_matrix()
    x = np.zeros(body.size)
    x[: body.dofs] = (body.nodes_mm @ turn.T - body.nodes_mm).ravel()
    assert np.abs(body.forces(x)).max() < 1e-12
    x[: body.dofs] += 0.02 * np.random.default_rng(2).normal(size=body.dofs)
    forces = body.forces(x)[: body.dofs].reshape(-1, 3)
    now = body.nodes_mm + x[: body.dofs].reshape(-1, 3)
    assert np.abs(forces).max() > 1e-3
    assert np.abs(forces.sum(0)).max() < 1e-12 * len(forces) * np.abs(forces).max()
    assert np.abs(np.cross(now, forces).sum(0)).max() < 1e-11 * len(forces) * np.abs(forces).max()


@pytest.mark.parametrize("stretch", [0.8, 1.3])
def test_an_incompressible_bar_follows_the_closed_form(stretch: float) -> None:
    got, exact = bar(stretch, 1)
    assert got == pytest.approx(exact, rel=5e-4)


def test_fibres_pull_along_themselves_in_tension_only() -> None:
    got, exact = bar(1.05, 1, FIBRES)
    plain = bar(1.05, 1)[0]
    assert got == pytest.approx(exact, rel=5e-4)
    assert got - plain == pytest.approx(0.08 * 17.5, rel=0.02)  # 17.5 MPa at 5 %
    assert bar(0.95, 1, FIBRES)[0] == pytest.approx(bar(0.95, 1)[0], rel=1e-12)


@pytest.mark.parametrize(("order", "limit"), [(1, 5e-3), (2, 6e-3)])
def test_a_blown_up_tube_does_not_lock(order: int, limit: float) -> None:
    """K/μ = 1e4; straight edges leave 0.5 % with two elements through the wall."""
    got, exact = tube(2, order)
    assert got == pytest.approx(exact, rel=limit)


def test_the_mean_pressure_is_the_reactions() -> None:
    """A block squeezed on all sides by 0.1 %: p = −K (J − 1)."""
    points, cells = bricks8((2, 2, 2))
    body = Body(points, cells, np.zeros(len(cells), int), {0: Solid(0.2, 100.0, mixed=True)})
    x = np.zeros(body.size)
    x[: body.dofs] = (-1e-3 * body.nodes_mm).ravel()
    x[body.pressures[0]] = 100.0 * (1.0 - 0.999**3)
    assert np.abs(body.forces(x)[body.pressures[0]]).max() < 1e-12
    assert body.pressure(x, 0) == pytest.approx(100.0 * (1.0 - 0.999**3), rel=1e-12)
    top = np.flatnonzero(points[:, 2] > 1.0 - 1e-9)
    assert body.forces(x)[3 * top + 2].sum() == pytest.approx(
        -100.0 * (1.0 - 0.999**3) * 0.999**2, rel=1e-9
    )


def test_an_inverted_element_gives_no_forces() -> None:
    body = two_materials(1)
    x = np.zeros(body.size)
    x[: body.dofs] = (-1.5 * body.nodes_mm * [0.0, 0.0, 1.0]).ravel()
    assert np.isnan(body.forces(x)).all()


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (lambda: Solid(0.0, 1.0), "must be positive"),
        (lambda: Fibres((0.1, 0.0), (0.0, 1.0), 0.1), "must ascend"),
        (lambda: Fibres((0.0, 0.1), (1.0, 2.0), 0.1), "must start at 0"),
        (
            lambda: Body(*bricks8((1, 1, 1)), np.zeros(1, int), {0: Solid(1.0, 1.0)}, order=3),
            "order=3",
        ),
        (
            lambda: Body(*bricks8((1, 1, 1)), np.ones(1, int), {0: Solid(1.0, 1.0)}),
            r"groups \[1\] have no solid",
        ),
        (
            lambda: Body(
                bricks8((1, 1, 1))[0],
                np.array([[0, 4, 2, 6, 1, 5, 7, 3]]),
                np.zeros(1, int),
                {0: Solid(1.0, 1.0)},
            ),
            "inverted",
        ),
    ],
)
def test_what_cannot_be_is_refused(what: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        what()  # type: ignore[operator]
