"""The compiled solver called through JAX's foreign-function interface."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.multigrid.levels import REPEAT_FROM, depth
from engine.multigrid.system import STALL_ITERATIONS, Compiled, SolveInfo, SolverSettings, System


def native_arguments(single: System) -> tuple[Array, ...]:
    """The system as engine/multigrid/native/solver.cc takes it: λ, μ, κ, fixed unknowns,
    bodies, links; absent parts have no entries."""
    m, none = single.medium, jnp.zeros((0,), jnp.uint8)
    fixed = none if single.free is None else (single.free == 0).astype(jnp.uint8)
    label = none if single.bodies is None else single.bodies.astype(jnp.uint8)
    if single.links is None:
        links: tuple[Array, ...] = (
            jnp.zeros(0, jnp.int32),
            jnp.zeros((0, 0, 3)),
            jnp.zeros((0, 0)),
        )
    else:
        first = single.links[0]
        links = (
            jnp.asarray(first.node, jnp.int32),
            jnp.asarray(first.weight, jnp.float64),
            jnp.asarray(first.stiffness, jnp.float64),
        )
    return (*(f.astype(jnp.float32) for f in (m.lam, m.mu, m.kappa)), fixed, label, *links)


def native_attributes(spacing_mm: float, field: Array) -> dict[str, Any]:
    """The grid's spacing, and the number of levels that its shape needs."""
    x, y, z = field.shape
    return {"spacing": np.float64(spacing_mm), "levels": np.int64(depth((x, y, z)))}


def cycle_attributes(settings: SolverSettings) -> dict[str, Any]:
    """What one multigrid cycle is told: the smoother, and the levels visited twice."""
    return {
        "degree": np.int64(settings.smoother_degree),
        "ratio": np.float64(settings.eigenvalue_ratio),
        "repeat_from": np.int64(REPEAT_FROM),
    }


@partial(jax.jit, static_argnames="spacing_mm")
def native_build(single: System, spacing_mm: float) -> Array:
    call = jax.ffi.ffi_call("spinefit_build", jax.ShapeDtypeStruct((1,), jnp.int32))
    return call(*native_arguments(single), **native_attributes(spacing_mm, single.medium.mu))[0]


def native_solve(
    system: System,
    preconditioner: Compiled,
    b: Array,
    start: Array,
    spacing_mm: float,
    settings: SolverSettings,
) -> tuple[Array, SolveInfo]:
    m, count = system.medium, b.shape[0]
    outputs = (
        jax.ShapeDtypeStruct(b.shape, jnp.float64),
        jax.ShapeDtypeStruct((count,), jnp.int32),
        jax.ShapeDtypeStruct((count,), jnp.float64),
        jax.ShapeDtypeStruct((count,), jnp.bool_),
    )
    x, iterations, residual, stalled = jax.ffi.ffi_call("spinefit_solve", outputs)(
        *native_arguments(preconditioner.system),
        *(f.astype(jnp.float64) for f in (m.lam, m.mu, m.kappa)),
        b,
        start,
        **native_attributes(spacing_mm, m.mu),
        tolerance=np.float64(settings.tolerance),
        limit=np.int64(settings.max_iterations),
        stall=np.int64(STALL_ITERATIONS),
        **cycle_attributes(settings),
    )
    return x, SolveInfo(jnp.max(iterations), residual, stalled)


def native_precondition(
    preconditioner: Compiled, r: Array, spacing_mm: float, settings: SolverSettings
) -> Array:
    """M r in float32 of right-hand sides [b, 3, x+1, y+1, z+1]: one balanced cycle."""
    call = jax.ffi.ffi_call("spinefit_precondition", jax.ShapeDtypeStruct(r.shape, jnp.float32))
    return call(
        *native_arguments(preconditioner.system),
        r.astype(jnp.float32),
        **native_attributes(spacing_mm, preconditioner.system.medium.mu),
        **cycle_attributes(settings),
    )


def native_pairing(mu: Array, u: Array, v: Array, spacing_mm: float) -> tuple[Array, Array, Array]:
    """elasticity.energy_pairing, zero outside of what the solve stores (from each column's first
    to its last voxel of material)."""
    shape = jax.ShapeDtypeStruct(mu.shape, jnp.float64)
    lam, own, kappa = jax.ffi.ffi_call("spinefit_pairing", (shape,) * 3)(
        mu.astype(jnp.float64), u, v, spacing=np.float64(spacing_mm)
    )
    return lam, own, kappa
