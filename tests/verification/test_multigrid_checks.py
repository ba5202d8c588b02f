"""What the solver refuses, what it says of a solve, and the shapes that it takes."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from small_system import GRID, NODES

from engine import multigrid
from engine.elasticity import Medium
from engine.multigrid import SolveInfo, SolverSettings, System


@pytest.mark.parametrize("compiled", [False, True])
def test_a_structure_that_is_not_held_is_refused(compiled):
    one = jnp.ones(GRID.shape)
    loose = System(Medium(100 * one, 100 * one, 0 * one), None, None)
    with pytest.raises(ValueError, match=r"held by nothing.*check the support patch"):
        multigrid.build(loose, GRID, compiled)
    if not compiled:
        return
    # held, but by a single point: it can still turn (the oracle's coarsest matrix is float32 and
    # does not see it)
    free = jnp.ones((3, *NODES)).at[:, 0, 0, 0].set(0.0)
    with pytest.raises(ValueError, match=r"not held.*check the support patch"):
        multigrid.build(replace(loose, free=free), GRID, compiled)


def test_an_empty_domain_is_refused():
    nothing = jnp.zeros(GRID.shape)
    with pytest.raises(ValueError, match=r"no material in the domain.*check the masks"):
        multigrid.build(System(Medium(nothing, nothing, nothing), None, None), GRID)


def block(**changes) -> System:
    """A block of 4 × 8 × 8 voxels, held at its bottom by a foundation; the rest of the grid is
    empty."""
    e = np.zeros(GRID.shape)
    e[:4, :, :8] = 100.0
    kappa = np.zeros(GRID.shape)
    kappa[:4, :, 0] = 1.0
    fields = {"lam": e, "mu": e.copy(), "kappa": kappa} | changes
    return System(Medium(*(jnp.asarray(fields[k]) for k in ("lam", "mu", "kappa"))), None, None)


def test_what_no_solver_can_answer_is_refused_with_its_place():
    multigrid.check(block(), GRID)
    nan = np.asarray(block().medium.mu).copy()
    nan[2, 2, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"finite.*1 voxels are not, round \(5\.0, 5\.0, 5\.0\) mm.*law"
    ):
        multigrid.check(block(mu=nan), GRID)
    island = np.asarray(block().medium.mu).copy()
    island[6, 6, 9:11] = 5.0
    with pytest.raises(
        ValueError,
        match=(
            r"1 piece of .* held by nothing: 2 voxels round \(13\.0, 13\.0, 20\.0\)"
            r" mm.*without_islands"
        ),
    ):
        multigrid.build(block(mu=island), GRID)
    forces = np.zeros((1, 3, *NODES))
    forces[0, 2, 8, 8, 12] = 1.0
    with pytest.raises(
        ValueError, match=r"1 loaded nodes touch no material, round \(16\.0, 16\.0, 24\.0\) mm"
    ):
        multigrid.check(block(), GRID, jnp.asarray(forces))
    with pytest.raises(ValueError, match="held by nothing: 256 voxels"):
        multigrid.check(block(kappa=np.zeros(GRID.shape)), GRID)


def test_islands_below_a_volume_are_dropped_and_listed():
    island = np.asarray(block().medium.mu).copy()
    island[6, 6, 9:11], island[7, 0, 0] = 5.0, 5.0  # 16 and 8 mm³
    cleaned, lines = multigrid.without_islands(block(mu=island).medium, GRID, below_mm3=20.0)
    assert len(lines) == 2 and "16.0 mm³ round (13.0, 13.0, 20.0) mm" in " ".join(lines)
    multigrid.check(System(cleaned, None, None), GRID)
    assert len(multigrid.without_islands(block(mu=island).medium, GRID, below_mm3=10.0)[1]) == 1


def test_shapes_that_cannot_be_coarsened_are_refused_and_padding_repairs_them():
    with pytest.raises(ValueError, match="padded_shape"):
        multigrid.depth((21, 24, 32))
    for shape in ((21, 24, 32), (13, 11, 12), (63, 40, 17), (100, 90, 120)):
        padded = multigrid.padded_shape(shape)
        assert all(p >= n for p, n in zip(padded, shape, strict=True))
        assert multigrid.depth(padded) >= 1
    assert multigrid.depth((4, 4, 4)) == 1  # a two-grid method at least


def test_statuses_say_what_happened():
    settings = SolverSettings(tolerance=1e-6)
    info = SolveInfo(
        np.int32(57), np.array([1e-7, 3e-3, np.nan, 3e-3]), np.array([False, False, False, True])
    )
    got = multigrid.statuses(info, settings, ("a", "b", "c", "d"))
    assert [s.code for s in got] == ["ok", "max_iterations", "failed", "stagnated"]
    for status, name in zip(got, "abcd", strict=True):
        assert status.text.startswith(f"{name}: ") and status.iterations == 57
    assert "max_iterations" in got[1].text and got[1].relative_residual == 3e-3
