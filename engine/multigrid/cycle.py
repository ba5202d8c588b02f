"""One multigrid cycle: levels, smoother, balanced rigid motions of stiff bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from engine.elasticity import Grid, Links, apply_links, element_matrices, gather, scatter
from engine.multigrid.checks import check
from engine.multigrid.coarsest import coarsest_chain, solve_coarsest
from engine.multigrid.compiled import native_build, native_precondition
from engine.multigrid.levels import REPEAT_FROM, depth
from engine.multigrid.native import library
from engine.multigrid.system import (
    EMPTY,
    NOT_HELD,
    Bodies,
    Compiled,
    Hierarchy,
    Preconditioner,
    SolverSettings,
    System,
    operate,
    single_precision,
)
from engine.multigrid.transfer import coarsen_elements, coarsen_medium, prolong, restrict


def operate_coarse(k: Array, links: Links | None, u: Array) -> Array:
    """K u of a coarse level, stored element matrices k [24, 24, x, y, z]."""
    ue = gather(u)
    # a sum of 24 fused products over contiguous voxels; as an einsum it is a batch of tiny
    # products, three times slower
    force = k[None, :, 0] * ue[:, None, 0]
    for j in range(1, 24):
        force = force + k[None, :, j] * ue[:, None, j]
    out = scatter(force)
    return out if links is None else out + apply_links(links, u)


def _diagonal_blocks(k_blocks: Array) -> Array:
    """Nodal 3×3 blocks [3, 3, x+1, y+1, z+1] from the elements' diagonal blocks [8, 3, 3, x, y,
    z]."""
    flat = k_blocks.reshape(1, 72, *k_blocks.shape[3:])
    total = scatter(flat)[0]
    return total.reshape(3, 3, *total.shape[1:])


def _element_diagonal(k: Array) -> Array:
    """The eight 3×3 blocks [8, 3, 3, ...] on the diagonal of element matrices [24, 24, ...]."""
    return jnp.stack([k[3 * a : 3 * a + 3, 3 * a : 3 * a + 3] for a in range(8)])


def _inverse_3x3(m: Array) -> Array:
    """Closed-form inverse of symmetric semidefinite blocks [3, 3, ...].

    A direction without stiffness becomes its own unit vector: all three of a node that nothing
    touches, or those of a coarse node in which every fine node under it is fixed (beside a roller
    that no coarse plane meets, void behind it).
    """
    size = jnp.max(jnp.abs(m), axis=(0, 1), keepdims=True)
    dead = size == 0
    loose = jnp.stack([m[i, i] == 0 for i in range(3)])
    m = (
        m / jnp.where(dead, 1.0, size)
        + jnp.eye(3, dtype=m.dtype).reshape(3, 3, 1, 1, 1) * loose[:, None]
    )
    a, b, c = m[0], m[1], m[2]
    adjugate = jnp.stack(
        [jnp.cross(b, c, axis=0), jnp.cross(c, a, axis=0), jnp.cross(a, b, axis=0)], axis=1
    )
    determinant = jnp.sum(a * adjugate[:, 0], axis=0)
    return adjugate / determinant / jnp.where(dead, 1.0, size)


def _largest_eigenvalue(matvec: Callable[[Array], Array], inverse: Array) -> Array:
    """Largest eigenvalue of the block-Jacobi scaled operator: 20 power iterations, with a margin
    of 10 %."""
    index = jnp.arange(inverse[0].size, dtype=jnp.float32).reshape(1, *inverse.shape[1:])
    start = jnp.sin(12.9898 * index) + 0.1 * jnp.cos(78.233 * index)

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        v, _size = carry
        w = _block_multiply(inverse, matvec(v))
        size = jnp.linalg.norm(w)
        return (w / size, size), None

    (_, size), _ = jax.lax.scan(
        step, (start / jnp.linalg.norm(start), jnp.float32(1.0)), None, length=20
    )
    return 1.1 * size


def _block_multiply(blocks: Array, u: Array) -> Array:
    """Nodal 3×3 blocks [3, 3, ...] times nodal vectors [b, 3, ...]."""
    return jnp.stack([sum(blocks[i, j] * u[:, j] for j in range(3)) for i in range(3)], axis=1)


def _chebyshev(
    matvec: Callable[[Array], Array],
    inverse: Array,
    upper: Array,
    residual: Array,
    settings: SolverSettings,
) -> Array:
    """p(D⁻¹K) D⁻¹ r by the Chebyshev semi-iteration on [λ/ratio, λ]; costs degree − 1 products."""
    lower = upper / settings.eigenvalue_ratio
    theta, delta = 0.5 * (upper + lower), 0.5 * (upper - lower)
    sigma = theta / delta
    x = direction = _block_multiply(inverse, residual) / theta
    rho = 1.0 / sigma
    # Unrolled on purpose: XLA's CPU back-end (jax 0.10.2) can miscompile this body as a lax.scan,
    # with the components last in memory, in float32, for two or more right-hand sides
    # (docs/decisions.md); tests/verification compares a batch with its members.
    for _ in range(settings.smoother_degree - 1):
        residual = residual - matvec(direction)
        rho_next = 1.0 / (2.0 * sigma - rho)
        direction = rho_next * rho * direction + 2.0 * rho_next / delta * _block_multiply(
            inverse, residual
        )
        x, rho = x + direction, rho_next
    return x


@partial(jax.jit, static_argnames=("spacing_mm", "levels"))
def levels_of(system: System, spacing_mm: float, levels: int) -> tuple[Any, Any, Any]:
    """Of every level: the system in float32; inverse diagonal blocks and largest eigenvalues of all
    but the coarsest; element matrices of all but the finest."""
    single = replace(system, bodies=None)
    single = single_precision(single)
    diagonals = jnp.stack(
        [_element_diagonal(jnp.asarray(k, jnp.float32)) for k in element_matrices(spacing_mm)]
    )
    fields = jnp.stack([single.medium.lam, single.medium.mu, single.medium.kappa])
    blocks = _diagonal_blocks(
        jnp.einsum("mxyz,maij->aijxyz", fields, diagonals, precision="highest")
    )
    if single.free is not None:
        blocks = blocks * single.free[:, None] * single.free[None]
        blocks = (
            blocks
            + jnp.eye(3, dtype=blocks.dtype).reshape(3, 3, 1, 1, 1) * (1 - single.free)[:, None]
        )
    inverses = [_inverse_3x3(blocks)]
    eigenvalues = [_largest_eigenvalue(lambda v: operate(single, v, spacing_mm), inverses[0])]
    coarse: list[Array] = []
    for level in range(levels):
        k = coarsen_medium(single, spacing_mm) if level == 0 else coarsen_elements(coarse[-1])
        coarse.append(k)
        if level < levels - 1:
            links = None if single.links is None else single.links[level + 1]
            inverses.append(_inverse_3x3(_diagonal_blocks(_element_diagonal(k))))
            eigenvalues.append(_largest_eigenvalue(partial(operate_coarse, k, links), inverses[-1]))
    return single, (tuple(inverses), tuple(eigenvalues)), tuple(coarse)


def build(system: System, grid: Grid, compiled: bool = True) -> Preconditioner:
    """The preconditioner of a system: the compiled one on CPUs where it is available, unless
    compiled is False.

    Raises ValueError for what `check` refuses, and when the coarsest operator is not positive
    definite.
    """
    check(system, grid)
    if compiled and library.available():
        first = None if system.links is None else system.links[:1]
        single = replace(system, medium=single_precision(system.medium), links=first)
        status = int(native_build(single, grid.spacing_mm))
        if status:
            raise ValueError(NOT_HELD if status == 1 else EMPTY)
        return Compiled(single)
    levels = depth(grid.shape)
    single, (inverses, eigenvalues), coarse = levels_of(system, grid.spacing_mm, levels)
    links = None if system.links is None else system.links[levels]
    chain = coarsest_chain(np.asarray(coarse[-1], np.float64), links)
    return Hierarchy(
        single, inverses, eigenvalues, coarse[:-1], chain, _stiff_bodies(system, grid.spacing_mm)
    )


@partial(jax.jit, static_argnames=("spacing_mm", "settings"))
def precondition(
    preconditioner: Preconditioner,
    r: Float[Array, "b 3 x1 y1 z1"],
    spacing_mm: float,
    settings: SolverSettings,
) -> Float[Array, "b 3 x1 y1 z1"]:
    """M r in float32: one balanced cycle."""
    if isinstance(preconditioner, Hierarchy):
        return balanced_cycle(preconditioner, r, spacing_mm, settings)
    return native_precondition(preconditioner, r, spacing_mm, settings)


def rigid_motions(bodies: Array) -> Array:
    """The six rigid motions of every body [6 m, 3, x+1, y+1, z+1], float64: translations, then
    rotations about its centre scaled to half the grid's longest side. `bodies` as in System, with
    at least one body, not traced.
    """
    label = np.asarray(bodies)
    nodes = np.stack(
        np.meshgrid(*(np.arange(n, dtype=float) for n in label.shape), indexing="ij"), axis=-1
    )
    out = []
    for k in range(1, int(label.max()) + 1):
        mask = label == k
        r = (nodes - nodes[mask].mean(0)) / (0.5 * (max(label.shape) - 1))
        for motion in (
            *(np.broadcast_to(e, r.shape) for e in np.eye(3)),
            *(np.cross(e, r) for e in np.eye(3)),
        ):
            out.append(np.moveaxis(np.where(mask[..., None], motion, 0.0), -1, 0))
    return jnp.asarray(np.stack(out))


@partial(jax.jit, static_argnames="spacing_mm")
def _body_forces(system: System, w: Array, spacing_mm: float) -> tuple[Array, Array, Array]:
    w = w.astype(system.medium.mu.dtype)
    if system.free is not None:
        w = system.free * w
    kw = operate(system, w, spacing_mm)
    return w.astype(jnp.float32), kw.astype(jnp.float32), jnp.einsum("icxyz,jcxyz->ij", w, kw)


def _stiff_bodies(system: System, spacing_mm: float) -> Bodies | None:
    """The coarse space of system.bodies, in the precision of the medium (rigid motions of stiff
    bodies cancel in K W)."""
    if system.bodies is None or not np.any(np.asarray(system.bodies)):
        return None
    motion, force, gram = _body_forces(system, rigid_motions(system.bodies), spacing_mm)
    inverse = np.linalg.pinv(np.asarray(gram, np.float64), rcond=1e-12, hermitian=True)
    return Bodies(motion, force, jnp.asarray(inverse, jnp.float32))


def w_cycle(
    hierarchy: Hierarchy, residual: Array, spacing_mm: float, settings: SolverSettings
) -> Array:
    """One cycle on float32 residuals [b, ...]; symmetric up to rounding."""
    system = hierarchy.system

    def matvec_of(level: int) -> Callable[[Array], Array]:
        if level == 0:
            return lambda v: operate(system, v, spacing_mm)
        return partial(
            operate_coarse,
            hierarchy.coarse[level - 1],
            None if system.links is None else system.links[level],
        )

    def cycle(level: int, r: Array) -> Array:
        if level == len(hierarchy.block_inverse):
            return solve_coarsest(hierarchy.coarsest, r)
        matvec, inverse, upper = (
            matvec_of(level),
            hierarchy.block_inverse[level],
            hierarchy.eigenvalue[level],
        )
        x = _chebyshev(matvec, inverse, upper, r, settings)
        down = r - matvec(x)
        free = system.free[None] if level == 0 and system.free is not None else None
        right = restrict(down if free is None else free * down)
        below = cycle(level + 1, right)
        if REPEAT_FROM <= level + 1 < len(hierarchy.block_inverse):
            below = below + cycle(level + 1, right - matvec_of(level + 1)(below))
        correction = prolong(below)
        x = x + (correction if free is None else free * correction)
        return x + _chebyshev(matvec, inverse, upper, r - matvec(x), settings)

    return cycle(0, residual)


def balanced_cycle(
    hierarchy: Hierarchy, residual: Array, spacing_mm: float, settings: SolverSettings
) -> Array:
    """The cycle M, balanced with the coarse space of stiff bodies (Mandel 1993; "BNN" of Tang et
    al. 2009, table 1):

    P = Q + (I − Q K) M (I − K Q),   Q = W (Wᵀ K W)⁻¹ Wᵀ
    """
    if hierarchy.bodies is None:
        return w_cycle(hierarchy, residual, spacing_mm, settings)
    w, kw, inverse = hierarchy.bodies

    def along(rows: Array, f: Array) -> Array:
        return jnp.einsum("mcxyz,bcxyz->bm", rows, f) @ inverse

    first = along(w, residual)
    z = w_cycle(
        hierarchy, residual - jnp.einsum("bm,mcxyz->bcxyz", first, kw), spacing_mm, settings
    )
    return z + jnp.einsum("bm,mcxyz->bcxyz", first - along(kw, z), w)
