"""The compiled solver against the one in JAX, its oracle, and its block of right-hand sides."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import plain_elements as plain
import pytest
from small_system import GRID, NODES, SETTINGS, masked

from engine import elasticity, multigrid
from engine.elasticity import Grid, Medium
from engine.multigrid import SolverSettings, System
from engine.multigrid.compiled import native_pairing


def test_compiled_cycle_is_the_cycle_of_the_oracle(small, monkeypatch):
    """Same algorithm, other code (engine/multigrid/native/solver.cc): M r agrees to float32
    times the smoother's sensitivity to λ_max, which the two estimate from other starting vectors
    (1 % apart at most)."""
    monkeypatch.setattr("engine.multigrid.levels.MAX_PLANE_UNKNOWNS", 27)
    bodies = np.zeros(NODES, np.uint8)
    bodies[1:8, 1:8, :6], bodies[1:8, 1:8, 7:] = 1, 2
    system = replace(small.system, bodies=jnp.asarray(bodies))
    rng = np.random.default_rng(4)
    r = jnp.asarray(masked(small, rng.normal(size=(2, 3, *NODES))), jnp.float32)
    oracle, compiled = (multigrid.build(system, GRID, flag) for flag in (False, True))
    a, b = (
        np.asarray(multigrid.precondition(m, r, GRID.spacing_mm, SolverSettings()), float)
        for m in (oracle, compiled)
    )
    assert np.abs(a - b).max() < 0.02 * np.abs(a).max()
    # and in the norm that matters: how fast each of them reduces the error
    zero = jnp.zeros(r.shape)
    zero, load = (
        zero[:1],
        jnp.asarray(masked(small, small.load))[:1],
    )  # of several loads the compiled solve makes a block
    counts = [
        int(
            multigrid.solve(GRID.spacing_mm, SETTINGS, system, load, m, zero, zero, jnp.zeros(3))[
                1
            ].iterations
        )
        for m in (oracle, compiled)
    ]
    assert abs(counts[0] - counts[1]) <= 2


def test_compiled_w_cycle_is_that_of_the_oracle(monkeypatch):
    """With three coarsenings the second coarse level is visited twice; one visit gives another
    cycle and needs more iterations. The compiled solve is told where that begins (repeat_from)."""
    w = multigrid.REPEAT_FROM
    monkeypatch.setattr("engine.multigrid.levels.MAX_PLANE_UNKNOWNS", 27)
    grid = Grid((16, 16, 24), (0.0, 0.0, 0.0), 1.0)
    assert multigrid.depth(grid.shape) == 3
    rng = np.random.default_rng(6)
    e = np.where(rng.random((4, 4, 6)) < 0.5, 1e3, 1.0).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    lam, mu = plain.lame(e, 0.3)
    kappa = np.zeros(e.shape)
    kappa[..., 0] = 10.0
    system = System(Medium(*map(jnp.asarray, (lam, mu, kappa))), None, None)
    r = jnp.asarray(rng.normal(size=(2, 3, 17, 17, 25)), jnp.float32)
    found = {}
    for name, compiled, repeat in (
        ("oracle", False, w),
        ("compiled", True, w),
        ("V-cycle", False, 99),
        ("compiled V-cycle", True, 99),
    ):
        for place in ("cycle", "compiled"):
            monkeypatch.setattr(f"engine.multigrid.{place}.REPEAT_FROM", repeat)
        jax.clear_caches()
        m = multigrid.build(system, grid, compiled)
        z = np.asarray(multigrid.precondition(m, r, grid.spacing_mm, SolverSettings()), float)
        load, zero = jnp.asarray(r[:1], float), jnp.zeros((1, *r.shape[1:]))
        found[name] = (
            z,
            int(
                multigrid.solve(
                    grid.spacing_mm, SETTINGS, system, load, m, zero, zero, jnp.zeros(3)
                )[1].iterations
            ),
        )
    off, other = (np.abs(found["oracle"][0] - found[k][0]).max() for k in ("compiled", "V-cycle"))
    v_off = np.abs(found["V-cycle"][0] - found["compiled V-cycle"][0]).max()
    print({k: v[1] for k, v in found.items()}, off / np.abs(found["oracle"][0]).max(), other / off)
    assert off < 0.02 * np.abs(found["oracle"][0]).max() and off < 0.5 * other
    assert v_off < 0.02 * np.abs(found["V-cycle"][0]).max() and v_off < 0.5 * other
    assert (
        abs(found["oracle"][1] - found["compiled"][1]) <= 1
        and found["compiled"][1] < found["V-cycle"][1]
    )


def test_block_takes_dependent_empty_and_equal_loads_and_needs_fewer_iterations(small):
    """Two loads, their sum, nothing (from a warm start), twice the first, the first again, a
    warm one: each as if by itself."""
    first, second = jnp.asarray(masked(small, small.load))[:2]
    loads = jnp.stack([first, second, first + second, 0 * first, 2 * first, first, second])
    zero, hierarchy = jnp.zeros(loads.shape), multigrid.build(small.system, GRID)

    def solved(b, start):
        return multigrid.solve(
            GRID.spacing_mm,
            SETTINGS,
            small.system,
            b,
            hierarchy,
            start,
            jnp.zeros_like(b),
            jnp.zeros(3),
        )

    alone = [solved(b[None], zero[:1]) for b in (first, second)]
    u, info = solved(loads, zero.at[6].set(alone[1][0][0]).at[3].set(alone[0][0][0]))
    x, y = alone[0][0][0], alone[1][0][0]
    for got, expected in zip(u, (x, y, x + y, 0 * x, 2 * x, x, y), strict=True):
        assert float(jnp.abs(got - expected).max()) < 1e-7 * float(jnp.abs(x).max())
    assert np.all(np.asarray(info.relative_residual) < 2 * SETTINGS.tolerance)
    assert not np.any(np.asarray(info.stalled))
    assert int(info.iterations) <= min(int(a[1].iterations) for a in alone)


def test_block_keeps_a_load_that_is_not_a_number_to_itself(small):
    loads = jnp.asarray(masked(small, small.load))[:2]
    zero, hierarchy = jnp.zeros(loads.shape), multigrid.build(small.system, GRID)
    u, info = multigrid.solve(
        GRID.spacing_mm,
        SETTINGS,
        small.system,
        loads.at[0, 0, 3, 3, 3].set(jnp.nan),
        hierarchy,
        zero,
        zero,
        jnp.zeros(3),
    )
    assert [s.code for s in multigrid.statuses(info, SETTINGS, ("broken", "whole"))] == [
        "failed",
        "ok",
    ]
    assert np.all(np.isfinite(np.asarray(u)[1]))


def test_compiled_sensitivities_are_those_of_the_oracle():
    """vᵀ ∂K/∂(λ, μ, κ) u of every voxel; zero before the first and after the last voxel of
    material in a column."""
    rng = np.random.default_rng(8)
    mu = rng.uniform(1.0, 2.0, GRID.shape)
    mu[0], mu[3, 4, :4], mu[5, 5, 6], mu[2, 2] = 0.0, 0.0, 0.0, 0.0
    u, v = (jnp.asarray(rng.normal(size=(3, 3, *NODES))) for _ in range(2))
    solid = mu > 0
    run = np.maximum.accumulate(solid, 2) & np.maximum.accumulate(solid[..., ::-1], 2)[..., ::-1]
    got = native_pairing(jnp.asarray(mu), u, v, GRID.spacing_mm)
    for mine, oracle in zip(got, elasticity.energy_pairing(u, v, GRID.spacing_mm), strict=True):
        expected = np.where(run, np.asarray(oracle), 0.0)
        assert np.abs(np.asarray(mine) - expected).max() < 1e-12 * np.abs(expected).max()


def test_compiled_solve_in_a_void_domain_equals_the_oracle(small):
    """Columns are stored as runs; here some are empty, some start late, and one has a hole in
    its middle."""
    keep = np.ones(GRID.shape)
    keep[0], keep[:, -1], keep[6:, :, 9:], keep[3:5, 3:5, 2:4] = 0, 0, 0, 0
    given = small.system.medium
    medium = Medium(
        *(jnp.asarray(np.asarray(f) * keep) for f in (given.lam, given.mu, given.kappa))
    )
    system = replace(small.system, medium=medium, links=None)
    load = np.array(masked(small, small.load))
    load *= np.asarray(multigrid.touched(medium))
    load, zero = jnp.asarray(load), jnp.zeros(load.shape)
    u = [
        multigrid.solve(
            GRID.spacing_mm,
            SETTINGS,
            system,
            load,
            multigrid.build(system, GRID, flag),
            zero,
            zero,
            jnp.zeros(3),
        )
        for flag in (False, True)
    ]
    assert float(jnp.abs(u[0][0] - u[1][0]).max()) < 1e-7 * float(jnp.abs(u[0][0]).max())
    assert np.all(np.asarray(u[1][0])[:, :, np.asarray(multigrid.touched(medium)) == 0] == 0)


def test_compiled_solve_says_when_it_stagnates():
    """A load on a node that no material touches can be carried by nothing."""
    e = np.full(GRID.shape, 100.0)
    e[6:] = 0
    kappa = np.zeros(GRID.shape)
    kappa[:6, :, 0] = 10.0
    system = System(Medium(*map(jnp.asarray, (e, e, kappa))), None, None)
    load = np.zeros((2, 3, *NODES))
    load[0, 2, 3, 3, -1], load[1, 2, -1, 3, -1] = 1.0, 1.0
    zero, hierarchy = jnp.zeros(load.shape), multigrid.build(system, GRID)
    _, info = multigrid.solve(
        GRID.spacing_mm,
        SolverSettings(),
        system,
        jnp.asarray(load),
        hierarchy,
        zero,
        zero,
        jnp.zeros(3),
    )
    got = multigrid.statuses(info, SolverSettings(), ("carried", "lost"))
    assert [s.code for s in got] == ["ok", "stagnated"]
    assert got[1].relative_residual == pytest.approx(1.0)
