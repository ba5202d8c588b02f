"""The engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from engine import multigrid
from engine.elasticity import Grid, Medium
from scripts.benchmarks.answer import Answer, cores, peak_mb
from scripts.benchmarks.voxel_model import Model


def engine_solver(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    """The engine's multigrid: solved twice, as the first solve compiles."""
    jax.config.update("jax_enable_x64", True)

    def solve() -> Answer:
        # another matrix first, or the second solve would find its hierarchy
        first = _solved(m, tolerance, 1.001)
        peak = peak_mb()
        again = _solved(m, tolerance, 1.0)
        compile_s = max(0.0, first.setup_s + first.solve_s - again.setup_s - again.solve_s)
        return replace(again, compile_s=compile_s, peak_mb=peak)

    return solve


def _solved(m: Model, tolerance: float, scale: float) -> Answer:
    """One solve with every modulus times `scale`."""
    started = time.perf_counter()
    x, y, z = m.voxels.shape
    shape = multigrid.padded_shape((x, y, z))
    grid = Grid(shape, (0.0, 0.0, 0.0), m.spacing_mm)
    medium = _medium(m, scale, shape)
    free = _dense(m, m.free.astype(float), shape)
    system = multigrid.System(medium, free, None)
    load, zero = _dense(m, m.force, shape)[None], jnp.zeros((1, 3, *(n + 1 for n in shape)))
    given = _dense(m, m.value, shape)[None]
    if m.mode == "displacement":
        load = load - multigrid.operate(replace(system, free=None), given, m.spacing_mm)
    preconditioner = multigrid.build(system, grid)
    jax.block_until_ready(preconditioner)
    ready = time.perf_counter()
    settings = multigrid.SolverSettings(tolerance=tolerance)
    u, info = multigrid.solve(
        m.spacing_mm, settings, system, load * free, preconditioner, zero, zero, jnp.zeros(3)
    )
    jax.block_until_ready(u)
    solved = time.perf_counter()
    return Answer(
        np.asarray(u + given)[0][:, *m.index.T].T,
        ready - started,
        solved - ready,
        iterations=int(info.iterations),
        threads=cores(),
        note=jax.default_backend(),
    )


def _medium(m: Model, scale: float, shape: tuple[int, ...]) -> Medium:
    """λ, μ and nothing else on the engine's padded grid."""
    pad = [(0, big - n) for big, n in zip(shape, m.voxels.shape, strict=True)]
    solid, nu = scale * np.pad(m.voxels, pad), m.poisson
    fields = (solid * (nu / ((1 + nu) * (1 - 2 * nu))), solid / (2 * (1 + nu)), 0.0 * solid)
    return Medium(*(jnp.asarray(f) for f in fields))


def _dense(m: Model, field: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """A nodal field [n, 3] as [3, x, y, z] on the engine's padded grid."""
    pad = [(0, big - n) for big, n in zip(shape, m.voxels.shape, strict=True)]
    return jnp.asarray(np.pad(m.dense(field), [(0, 0), *pad]))
