"""Conjugate gradients for several right-hand sides; `solve` and its adjoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

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

#: A residual counts as bettered when it falls below this share of the least one so far (see
#: STALL_ITERATIONS; native/block_cg.h has the same).
_PROGRESS = 0.98


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


class _Carry(NamedTuple):
    """One iteration's state: iterate, residual and the one before it, direction, rᵀz of the last
    direction, iterations, least residual norm and iterations since it fell by _PROGRESS. Per
    right-hand side all but the iterations."""

    x: Array
    r: Array
    r_last: Array
    p: Array
    rz_last: Array
    n: Array
    best: Array
    since: Array


def _dot(p: Array, q: Array) -> Array:
    """pᵀq of each right-hand side [b]."""
    return jnp.sum(p * q, axis=(1, 2, 3, 4))


def _spread_out(a: Array) -> Array:
    """One number per right-hand side [b], to be multiplied by nodal fields."""
    return a[:, None, None, None, None]


@dataclass(frozen=True, eq=False)
class _Iteration:
    """Flexible (Polak-Ribière) conjugate gradients: goal [b] is the residual norm to reach."""

    system: System
    hierarchy: Hierarchy
    spacing_mm: float
    settings: SolverSettings
    goal: Array

    def unfinished(self, carry: _Carry) -> Array:
        going = jnp.any(jnp.sqrt(_dot(carry.r, carry.r)) > self.goal)
        return (
            going
            & (carry.n < self.settings.max_iterations)
            & (jnp.max(carry.since) < STALL_ITERATIONS)
        )

    def precondition(self, r: Array) -> Array:
        """M r, its float32 scaled by the residual's norm."""
        size = jnp.sqrt(_dot(r, r))
        size = jnp.where(size > 0, size, 1.0)
        return balanced_cycle(
            self.hierarchy,
            (r / _spread_out(size)).astype(jnp.float32),
            self.spacing_mm,
            self.settings,
        ).astype(r.dtype) * _spread_out(size)

    def step(self, carry: _Carry) -> _Carry:
        # the preconditioner and the operator stand here once each: they are most of what XLA has to
        # compile
        x, r, r_last, p, rz_last, n, best, since = carry
        tiny = jnp.finfo(r.dtype).tiny
        active = jnp.sqrt(_dot(r, r)) > self.goal
        z = self.precondition(r)
        rz = _dot(r, z)
        beta = jnp.where(
            jnp.abs(rz_last) > tiny,
            _dot(z, r - r_last) / jnp.where(jnp.abs(rz_last) > tiny, rz_last, 1.0),
            0.0,
        )
        p = z + _spread_out(jnp.maximum(beta, 0.0)) * p
        kp = operate(self.system, p, self.spacing_mm)
        pkp = _dot(p, kp)
        alpha = jnp.where(active & (pkp > tiny), _dot(r, p) / jnp.where(pkp > tiny, pkp, 1.0), 0.0)
        r_next = r - _spread_out(alpha) * kp
        size = jnp.sqrt(_dot(r_next, r_next))
        better = size < _PROGRESS * best
        return _Carry(
            x + _spread_out(alpha) * p,
            r_next,
            r,
            p,
            rz,
            n + 1,
            jnp.where(better, size, best),
            jnp.where(better | ~active, 0, since + 1),
        )


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
    goal = settings.tolerance * jnp.sqrt(_dot(b, b))
    iteration = _Iteration(system, hierarchy, spacing_mm, settings, goal)
    # nothing answers a load of nothing, whatever the warm start
    start = jnp.where(_spread_out(goal) > 0, start, 0.0)
    r = b - operate(system, start, spacing_mm)
    size = jnp.sqrt(_dot(r, r))
    zero = jnp.zeros_like(size)
    carry = _Carry(
        start,
        r,
        r,
        jnp.zeros_like(r),
        zero,
        jnp.zeros((), jnp.int32),
        size,
        jnp.zeros(b.shape[0], jnp.int32),
    )
    end = jax.lax.while_loop(iteration.unfinished, iteration.step, carry)
    x = end.x * touched(system.medium)
    true = b - operate(system, x, spacing_mm)
    norm = jnp.sqrt(_dot(b, b))
    relative = jnp.sqrt(_dot(true, true)) / jnp.where(norm > 0, norm, 1.0)
    return x, SolveInfo(end.n, relative, end.since >= STALL_ITERATIONS)


# -- solve and its adjoint -------------------------------------------------------------------------
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
    internal = sum(
        jnp.sum(f * g)
        for f, g in zip(
            (system.medium.lam, system.medium.mu, system.medium.kappa), pairing, strict=True
        )
    )
    if system.links is not None:
        internal = internal + jnp.sum(free_a * apply_links(system.links[0], free_u))
    correction = jnp.sum(free_a * b) - internal
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
    n = int(info.iterations)
    relative, stalled = np.asarray(info.relative_residual), np.asarray(info.stalled)
    return [
        SolverStatus(
            *_verdict(name, float(relative[i]), bool(stalled[i]), n, settings),
            n,
            float(relative[i]),
        )
        for i, name in enumerate(names)
    ]


def _verdict(
    name: str, relative: float, stalled: bool, iterations: int, settings: SolverSettings
) -> tuple[str, str]:
    """Code and text for one right-hand side."""
    if not np.isfinite(relative):
        return "failed", f"{name}: the residual is not finite; check the moduli for NaN or zero"
    if relative <= 2 * settings.tolerance:
        return "ok", f"{name}: converged"
    if stalled:
        return (
            "stagnated",
            f"{name}: no progress in {STALL_ITERATIONS} iterations; usually walls thinner"
            " than two voxels",
        )
    return (
        "max_iterations",
        f"{name}: not converged in {iterations} iterations; raise solver.max_iterations",
    )
