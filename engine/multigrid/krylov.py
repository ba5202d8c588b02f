"""Conjugate gradients for several right-hand sides; `solve` and its adjoint."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from engine.elasticity import Medium, apply_links, energy_pairing
from engine.multigrid.compiled import native_pairing, native_solve
from engine.multigrid.cycle import balanced_cycle
from engine.multigrid.system import (
    STALL_ITERATIONS,
    Compiled,
    Hierarchy,
    Preconditioner,
    SolveInfo,
    SolverSettings,
    System,
    operate,
    touched,
)
from engine.types import SolverStatus


# -- Krylov ----------------------------------------------------------------------------------------
def _run(
    system: System,
    hierarchy: Preconditioner,
    b: Array,
    start: Array,
    spacing_mm: float,
    settings: SolverSettings,
) -> tuple[Array, SolveInfo]:
    one = native_solve if isinstance(hierarchy, Compiled) else _conjugate_gradients
    return one(system, hierarchy, b, start, spacing_mm, settings)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("spacing_mm", "settings"))
def _conjugate_gradients(
    system: System,
    hierarchy: Hierarchy,
    b: Array,
    start: Array,
    spacing_mm: float,
    settings: SolverSettings,
) -> tuple[Array, SolveInfo]:
    """Flexible (Polak-Ribière) CG on all right-hand sides at once; a converged one simply rests."""

    def dot(p: Array, q: Array) -> Array:
        return jnp.sum(p * q, axis=(1, 2, 3, 4))

    def spread_out(a: Array) -> Array:
        return a[:, None, None, None, None]

    def precondition(r: Array) -> Array:
        size = jnp.sqrt(dot(r, r))
        size = jnp.where(size > 0, size, 1.0)
        return balanced_cycle(
            hierarchy, (r / spread_out(size)).astype(jnp.float32), spacing_mm, settings
        ).astype(r.dtype) * spread_out(size)

    goal = settings.tolerance * jnp.sqrt(dot(b, b))
    tiny = jnp.finfo(b.dtype).tiny

    def unfinished(carry: tuple[Any, ...]) -> Array:
        _, r, _, _, _, n, _, since = carry
        going = jnp.any(jnp.sqrt(dot(r, r)) > goal)
        return going & (n < settings.max_iterations) & (jnp.max(since) < STALL_ITERATIONS)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        # the preconditioner and the operator stand here once each: they are most of what XLA has to
        # compile
        x, r, r_last, p, rz_last, n, best, since = carry
        active = jnp.sqrt(dot(r, r)) > goal
        z = precondition(r)
        rz = dot(r, z)
        beta = jnp.where(
            jnp.abs(rz_last) > tiny,
            dot(z, r - r_last) / jnp.where(jnp.abs(rz_last) > tiny, rz_last, 1.0),
            0.0,
        )
        p = z + spread_out(jnp.maximum(beta, 0.0)) * p
        kp = operate(system, p, spacing_mm)
        pkp = dot(p, kp)
        alpha = jnp.where(active & (pkp > tiny), dot(r, p) / jnp.where(pkp > tiny, pkp, 1.0), 0.0)
        r_next = r - spread_out(alpha) * kp
        size = jnp.sqrt(dot(r_next, r_next))
        better = size < 0.98 * best
        return (
            x + spread_out(alpha) * p,
            r_next,
            r,
            p,
            rz,
            n + 1,
            jnp.where(better, size, best),
            jnp.where(better | ~active, 0, since + 1),
        )

    start = jnp.where(
        spread_out(goal) > 0, start, 0.0
    )  # nothing answers a load of nothing, whatever the warm start
    r = b - operate(system, start, spacing_mm)
    size = jnp.sqrt(dot(r, r))
    zero = jnp.zeros_like(size)
    carry = (
        start,
        r,
        r,
        jnp.zeros_like(r),
        zero,
        jnp.zeros((), jnp.int32),
        size,
        jnp.zeros(b.shape[0], jnp.int32),
    )
    x, _, _, _, _, n, _, since = jax.lax.while_loop(unfinished, step, carry)
    x = x * touched(system.medium)
    true = b - operate(system, x, spacing_mm)
    norm = jnp.sqrt(dot(b, b))
    relative = jnp.sqrt(dot(true, true)) / jnp.where(norm > 0, norm, 1.0)
    return x, SolveInfo(n, relative, since >= STALL_ITERATIONS)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def solve(
    spacing_mm: float,
    settings: SolverSettings,
    system: System,
    b: Float[Array, "b 3 x1 y1 z1"],
    hierarchy: Preconditioner,
    start: Float[Array, "b 3 x1 y1 z1"],
    adjoint_start: Float[Array, "b 3 x1 y1 z1"],
    probe: Float[Array, "3"],
) -> tuple[Array, SolveInfo]:
    """Displacements u with K u = b, all right-hand sides at once, and how it went.

    `start` warm-starts the solve and `adjoint_start` that of the backward pass. Neither changes the
    result beyond the tolerance, so their cotangents are free to carry the adjoint out: the
    cotangent of `adjoint_start` *is* the adjoint solution λ (next time's warm start) and that of
    `probe` is (iterations, largest true residual, λᵀ(b − K u)).

    The last one corrects a functional for the residual of the solve: J(u) + λᵀ(b − K u) is wrong by
    second order in both residuals only (Pierce & Giles 2000, SIAM Rev. 42:247), so that loose
    solves leave line searches clean.
    """
    return _run(system, hierarchy, b, start, spacing_mm, settings)


def _solve_forward(
    spacing_mm: float,
    settings: SolverSettings,
    system: System,
    b: Array,
    hierarchy: Preconditioner,
    start: Array,
    adjoint_start: Array,
    probe: Array,
) -> tuple[Any, Any]:
    out = _run(system, hierarchy, b, start, spacing_mm, settings)
    return out, (system, hierarchy, b, out[0], adjoint_start)


def _solve_backward(
    spacing_mm: float, settings: SolverSettings, kept: Any, cotangent: Any
) -> tuple[Any, ...]:
    system, hierarchy, b, u, adjoint_start = kept
    ubar = cotangent[0]
    if system.free is not None:
        ubar = system.free * ubar
    adjoint, info = _run(system, hierarchy, ubar, adjoint_start, spacing_mm, settings)
    free_u, free_a = (
        (u, adjoint) if system.free is None else (system.free * u, system.free * adjoint)
    )
    if isinstance(hierarchy, Compiled):
        pairing = native_pairing(system.medium.mu, free_u, free_a, spacing_mm)
    else:
        pairing = energy_pairing(free_u, free_a, spacing_mm)
    held = sum(
        jnp.sum(f * g)
        for f, g in zip(
            (system.medium.lam, system.medium.mu, system.medium.kappa), pairing, strict=True
        )
    )
    if system.links is not None:
        held = held + jnp.sum(free_a * apply_links(system.links[0], free_u))
    correction = jnp.sum(free_a * b) - held
    sensitivity = Medium(*(-g for g in pairing))
    nothing = partial(jax.tree.map, _zero_cotangent)
    system_bar = System(
        sensitivity, nothing(system.free), nothing(system.links), nothing(system.bodies)
    )
    probe = jnp.stack(
        [info.iterations.astype(u.dtype), jnp.max(info.relative_residual), correction]
    )
    return system_bar, adjoint, nothing(hierarchy), jnp.zeros_like(u), adjoint, probe


def _zero_cotangent(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


solve.defvjp(_solve_forward, _solve_backward)


def statuses(
    info: SolveInfo, settings: SolverSettings, names: tuple[str, ...]
) -> list[SolverStatus]:
    """What the solve says of each right-hand side, in words."""
    out = []
    for i, name in enumerate(names):
        relative, n = float(np.asarray(info.relative_residual)[i]), int(info.iterations)
        if not np.isfinite(relative):
            code, text = (
                "failed",
                f"{name}: the residual is not finite; check the moduli for NaN or zero",
            )
        elif relative <= 2 * settings.tolerance:
            code, text = "ok", f"{name}: converged"
        elif bool(np.asarray(info.stalled)[i]):
            code, text = (
                "stagnated",
                (
                    f"{name}: no progress in {STALL_ITERATIONS} iterations; usually walls thinner"
                    " than two voxels"
                ),
            )
        else:
            code, text = (
                "max_iterations",
                f"{name}: not converged in {n} iterations; raise solver.max_iterations",
            )
        out.append(SolverStatus(code, text, n, relative))
    return out
