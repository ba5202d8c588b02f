"""The linear solve: conjugate gradients in float64, preconditioned by one float32 multigrid cycle.

    finest level     matrix-free (engine.elasticity.apply)
    coarser levels   exact element-wise Galerkin operators, K_c = Σ_children (D P)ᵀ K (D P), stored per element;
                     supports (D zeroes fixed degrees of freedom) and links are inside the chain, or the coarsest
                     operator would keep rigid-body modes that the fine one lacks (docs/decisions.md)
    smoother         Chebyshev polynomial on the 3×3 block-Jacobi scaled operator
    cycle            V on the finest and the first coarse level, W below (REPEAT_FROM)
    coarsest level   exact: block-tridiagonal Cholesky along the longest axis, factored on the host (LAPACK inside compiled
                     loops dead-locks on small CPU back-ends)
    stiff bodies     the vertebrae's rigid motions, balanced (`_balanced`)

Compiled (engine/multigrid.cc) all right-hand sides are one block (docs/decisions.md, 44); in XLA each is solved by itself.
`solve` is differentiable in the medium and the right-hand side by the implicit function theorem, never through the
iterations: with K λ = ū, the cotangents are b̄ = λ and m̄_e = −λᵀ (∂K/∂m_e) u.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from jax import Array
from jaxtyping import Float
from scipy.ndimage import label

from engine import native
from engine.elasticity import (
    CORNERS,
    Grid,
    Links,
    Medium,
    apply,
    apply_links,
    child_interpolation,
    element_matrices,
    energy_pairing,
    gather,
    scatter,
)
from engine.types import SolverStatus

#: Coarsest level: unknowns in one plane across its longest axis, and planes.
MAX_PLANE_UNKNOWNS, MAX_PLANES = 500, 48
#: Levels from here on are visited twice in a cycle (W), the ones before once: they are a tenth of the work (multigrid.cc has the same).
REPEAT_FROM = 2
#: A relative residual above this is no solution: neither a measure nor a gradient is taken from it.
UNSOLVED = 1e-3
#: The solve gives up when a right-hand side has not bettered its best residual by 2 % in so many iterations.
STALL_ITERATIONS = 40


@dataclass(frozen=True)
class SolverSettings:
    """Tolerance on ‖b − K u‖/‖b‖ (true residual), iteration limit and the smoother's degree."""

    tolerance: float = 1e-6
    max_iterations: int = 200
    smoother_degree: int = 4
    eigenvalue_ratio: float = 20.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class System:
    """The operator: materials, free degrees of freedom [3, x+1, y+1, z+1] (1 free, 0 fixed) or None, links per level.

    bodies [x+1, y+1, z+1], or None: number of the stiff body that a node belongs to, from 1, 0 for none; their rigid
    motions are treated exactly by the preconditioner (see `_balanced`).
    """

    medium: Medium
    free: Array | None
    links: tuple[Links, ...] | None
    bodies: Array | None = None


class Chain(NamedTuple):
    """K = L D Lᵀ + Wᵀ S W of the coarsest level by planes: inverse [p, m, m] of D, step [p, m, m] = D_k⁻¹ B_k (last one zero),
    and of the links (Woodbury) Z = T⁻¹Wᵀ [n, q], core = (1 + S W Z)⁻¹ S [q, q]; both None without links."""

    inverse: Array
    step: Array
    z: Array | None
    core: Array | None


class Bodies(NamedTuple):
    """The coarse space of stiff bodies: W [m, 3, …], K W, and (Wᵀ K W)⁻¹ [m, m]."""

    motion: Array
    force: Array
    inverse: Array


class Hierarchy(NamedTuple):
    """The preconditioner of one medium; everything float32."""

    system: System
    block_inverse: tuple[Array, ...]
    eigenvalue: tuple[Array, ...]
    coarse: tuple[Array, ...]
    coarsest: Chain
    bodies: Bodies | None = None


class Compiled(NamedTuple):
    """The preconditioner of engine/multigrid.cc: the system it is built from, its medium float32, links of the finest level only.

    The levels themselves live on the other side, which keeps the last one by content: the backward pass and a next solve
    with the same preconditioner find it again.
    """

    system: System


Preconditioner = Hierarchy | Compiled


class SolveInfo(NamedTuple):
    """Iterations of the batch, true relative residual and best-residual stall flag per right-hand side."""

    iterations: Array
    relative_residual: Array
    stalled: Array

    def worst(self) -> float:
        """The largest true relative residual, on the host."""
        return float(np.max(np.asarray(self.relative_residual)))


# -- transfer ------------------------------------------------------------------------------------------------
def prolong(c: Float[Array, "b c x y z"]) -> Float[Array, "b c x2 y2 z2"]:
    """Trilinear interpolation from n+1 to 2n+1 nodes along every axis."""
    for axis in (2, 3, 4):
        low, high = (jax.lax.slice_in_dim(c, i, c.shape[axis] - 1 + i, axis=axis) for i in (0, 1))
        last = jax.lax.slice_in_dim(c, c.shape[axis] - 1, c.shape[axis], axis=axis)
        pairs = jnp.stack([low, 0.5 * (low + high)], axis=axis + 1)
        shape = (*c.shape[:axis], 2 * (c.shape[axis] - 1), *c.shape[axis + 1 :])
        c = jnp.concatenate([pairs.reshape(shape), last], axis=axis)
    return c


def restrict(f: Float[Array, "b c x2 y2 z2"]) -> Float[Array, "b c x y z"]:
    """The transpose of `prolong`."""
    for axis in (2, 3, 4):
        even = jax.lax.slice_in_dim(f, 0, f.shape[axis], 2, axis)
        odd = 0.5 * jax.lax.slice_in_dim(f, 1, f.shape[axis], 2, axis)
        low, high = [(0, 0)] * 5, [(0, 0)] * 5
        low[axis], high[axis] = (0, 1), (1, 0)
        f = even + jnp.pad(odd, low) + jnp.pad(odd, high)
    return f


def _children(field: Array) -> Array:
    """Voxel fields [..., x, y, z] as [8, ..., x/2, y/2, z/2], in the order of CORNERS."""
    return jnp.stack([field[..., i::2, j::2, k::2] for i, j, k in CORNERS])


def _coarsen_medium(system: System, spacing_mm: float) -> Array:
    """Element matrices of the first coarse level, [24, 24, x/2, y/2, z/2], straight from the fields."""
    matrices = jnp.asarray(np.stack(element_matrices(spacing_mm)), jnp.float32)
    transfer = jnp.asarray(child_interpolation(), jnp.float32)
    medium = system.medium
    fields = _children(jnp.stack([medium.lam, medium.mu, medium.kappa]).astype(jnp.float32))
    if system.free is None:
        table = jnp.einsum("cji,mjk,ckl->cmil", transfer, matrices, transfer, precision="highest")
        return jnp.einsum("cmxyz,cmil->ilxyz", fields, table, precision="highest")
    free = _children(gather(system.free[None].astype(jnp.float32))[0])

    def add(total: Array, child: tuple[Array, Array, Array]) -> tuple[Array, None]:
        field, mask, p = child
        k = jnp.einsum("mxyz,mij->ijxyz", field, matrices, precision="highest") * mask[:, None] * mask[None]
        return total + jnp.einsum("ji,jkxyz,kl->ilxyz", p, k, p, precision="highest"), None

    zero = jnp.zeros((24, 24, *fields.shape[2:]), jnp.float32)
    return jax.lax.scan(add, zero, (fields, free, transfer))[0]


def _coarsen_elements(k: Array) -> Array:
    """Galerkin coarse element matrices of stored fine ones, [24, 24, x, y, z]."""
    transfer = jnp.asarray(child_interpolation(), k.dtype)

    def add(total: Array, child: tuple[Array, Array]) -> tuple[Array, None]:
        fine, p = child
        return total + jnp.einsum("ji,jkxyz,kl->ilxyz", p, fine, p, precision="highest"), None

    shape = tuple(n // 2 for n in k.shape[2:])
    return jax.lax.scan(add, jnp.zeros((24, 24, *shape), k.dtype), (_children(k), transfer))[0]


def coarsen_links(links: Links, shape: tuple[int, int, int], levels: int) -> tuple[Links, ...]:
    """The links on every level: W_{l+1} = W_l P, exact. `shape` is the finest grid's voxels."""
    out = [links]
    for _ in range(levels):
        last = out[-1]
        shape = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
        p = scipy.sparse.kron(scipy.sparse.kron(_interpolation(shape[0]), _interpolation(shape[1])), _interpolation(shape[2])).tocsr()
        weight = np.moveaxis(np.asarray(last.weight), -1, 1)  # [q, 3, n]
        coarse = scipy.sparse.csr_matrix(weight.reshape(-1, weight.shape[-1])) @ p[np.asarray(last.node)]
        node = np.unique(coarse.indices[coarse.data != 0])
        dense = coarse[:, node].toarray().reshape(*weight.shape[:2], -1)
        out.append(Links(node, np.moveaxis(dense, 1, -1), last.stiffness))
    return tuple(out)


def _interpolation(coarse: int) -> scipy.sparse.csr_matrix:
    """Linear interpolation [2n+1, n+1] along one axis from n coarse voxels."""
    even = np.arange(coarse + 1)
    row = np.concatenate([2 * even, 2 * even[:-1] + 1, 2 * even[:-1] + 1])
    value = np.concatenate([np.ones(coarse + 1), np.full(2 * coarse, 0.5)])
    return scipy.sparse.csr_matrix((value, (row, np.concatenate([even, even[:-1], even[1:]]))))


# -- levels --------------------------------------------------------------------------------------------------
def _small_enough(shape: tuple[int, ...]) -> bool:
    """Whether a grid of so many voxels can be the coarsest level."""
    short, middle, long = sorted(n + 1 for n in shape)
    return 3 * short * middle <= MAX_PLANE_UNKNOWNS and long <= MAX_PLANES


def depth(shape: tuple[int, int, int]) -> int:
    """Number of coarsenings, at least one: as few as make the coarsest level small enough for the direct solver.

    Raises ValueError when the shape cannot be halved that often (see `padded_shape`).
    """
    level, (x, y, z) = 0, shape
    while level == 0 or not _small_enough((x, y, z)):
        if x % 2 or y % 2 or z % 2:
            raise ValueError(
                f"a grid of {shape} voxels cannot be coarsened {level + 1} times; pad it with engine.multigrid.padded_shape"
            )
        level, x, y, z = level + 1, x // 2, y // 2, z // 2
    return level


def padded_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The smallest shape that holds `shape` and can be coarsened until the coarsest level is small."""
    for level in range(1, 12):
        unit = 2**level
        coarse = [-(-n // unit) for n in shape]
        if _small_enough(tuple(coarse)):
            return tuple(int(n * unit) for n in coarse)  # type: ignore[return-value]
    raise ValueError(f"a grid of {shape} voxels is too large for this solver")


def operate(system: System, u: Array, spacing_mm: float) -> Array:
    """K u with fixed degrees of freedom held: D K D u + (1 − D) u."""
    links = None if system.links is None else system.links[0]
    if system.free is None:
        return apply(system.medium, u, spacing_mm, links)
    free = system.free.astype(u.dtype)
    return free * apply(system.medium, free * u, spacing_mm, links) + (1 - free) * u


def touched(medium: Medium) -> Float[Array, "x1 y1 z1"]:
    """1 on the nodes of voxels that hold material, else 0. The others have no displacement; it is reported as zero."""
    return (scatter(jnp.repeat((medium.mu > 0)[None, None].astype(jnp.float32), 8, axis=1))[0, 0] > 0).astype(jnp.float64)


def _operate_coarse(k: Array, links: Links | None, u: Array) -> Array:
    ue = gather(u)
    # a sum of 24 fused products over contiguous voxels; as an einsum it is a batch of tiny products, three times slower
    force = k[None, :, 0] * ue[:, None, 0]
    for j in range(1, 24):
        force = force + k[None, :, j] * ue[:, None, j]
    out = scatter(force)
    return out if links is None else out + apply_links(links, u)


def _diagonal_blocks(k_blocks: Array) -> Array:
    """Nodal 3×3 blocks [3, 3, x+1, y+1, z+1] from the elements' diagonal blocks [8, 3, 3, x, y, z]."""
    flat = k_blocks.reshape(1, 72, *k_blocks.shape[3:])
    total = scatter(flat)[0]
    return total.reshape(3, 3, *total.shape[1:])


def _element_diagonal(k: Array) -> Array:
    """The eight 3×3 blocks [8, 3, 3, ...] on the diagonal of element matrices [24, 24, ...]."""
    return jnp.stack([k[3 * a : 3 * a + 3, 3 * a : 3 * a + 3] for a in range(8)])


def _inverse_3x3(m: Array) -> Array:
    """Closed-form inverse of symmetric semidefinite blocks [3, 3, ...].

    A direction without stiffness becomes its own unit vector: all three of a node that nothing touches, or those of a coarse
    node in which every fine node under it is fixed (beside a roller that no coarse plane meets, void behind it).
    """
    size = jnp.max(jnp.abs(m), axis=(0, 1), keepdims=True)
    dead = size == 0
    loose = jnp.stack([m[i, i] == 0 for i in range(3)])
    m = m / jnp.where(dead, 1.0, size) + jnp.eye(3, dtype=m.dtype).reshape(3, 3, 1, 1, 1) * loose[:, None]
    a, b, c = m[0], m[1], m[2]
    adjugate = jnp.stack([jnp.cross(b, c, axis=0), jnp.cross(c, a, axis=0), jnp.cross(a, b, axis=0)], axis=1)
    determinant = jnp.sum(a * adjugate[:, 0], axis=0)
    return adjugate / determinant / jnp.where(dead, 1.0, size)


def _largest_eigenvalue(matvec: Callable[[Array], Array], inverse: Array) -> Array:
    """Largest eigenvalue of the block-Jacobi scaled operator: 20 power iterations, with a margin of 10 %."""
    index = jnp.arange(inverse[0].size, dtype=jnp.float32).reshape(1, *inverse.shape[1:])
    start = jnp.sin(12.9898 * index) + 0.1 * jnp.cos(78.233 * index)

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        v, _size = carry
        w = _block_multiply(inverse, matvec(v))
        size = jnp.linalg.norm(w)
        return (w / size, size), None

    (_, size), _ = jax.lax.scan(step, (start / jnp.linalg.norm(start), jnp.float32(1.0)), None, length=20)
    return 1.1 * size


def _block_multiply(blocks: Array, u: Array) -> Array:
    return jnp.stack([sum(blocks[i, j] * u[:, j] for j in range(3)) for i in range(3)], axis=1)


def _chebyshev(
    matvec: Callable[[Array], Array], inverse: Array, upper: Array, residual: Array, settings: SolverSettings
) -> Array:
    """p(D⁻¹K) D⁻¹ r by the Chebyshev semi-iteration on [λ/ratio, λ]; costs degree − 1 products."""
    lower = upper / settings.eigenvalue_ratio
    theta, delta = 0.5 * (upper + lower), 0.5 * (upper - lower)
    sigma = theta / delta
    x = direction = _block_multiply(inverse, residual) / theta
    rho = 1.0 / sigma
    # Unrolled on purpose: as a lax.scan, and with the components last in memory, this body was miscompiled by XLA's CPU
    # back-end (jax 0.10.2) in float32 for two or more right-hand sides. With components first it has not been seen again;
    # tests/verification compares a batch with its members.
    for _ in range(settings.smoother_degree - 1):
        residual = residual - matvec(direction)
        rho_next = 1.0 / (2.0 * sigma - rho)
        direction = rho_next * rho * direction + 2.0 * rho_next / delta * _block_multiply(inverse, residual)
        x, rho = x + direction, rho_next
    return x


@partial(jax.jit, static_argnames=("spacing_mm", "levels"))
def _levels(system: System, spacing_mm: float, levels: int) -> tuple[Any, Any, Any]:
    single = replace(system, bodies=None)
    single = _single(single)
    diagonals = jnp.stack([_element_diagonal(jnp.asarray(k, jnp.float32)) for k in element_matrices(spacing_mm)])
    fields = jnp.stack([single.medium.lam, single.medium.mu, single.medium.kappa])
    blocks = _diagonal_blocks(jnp.einsum("mxyz,maij->aijxyz", fields, diagonals, precision="highest"))
    if single.free is not None:
        blocks = blocks * single.free[:, None] * single.free[None]
        blocks = blocks + jnp.eye(3, dtype=blocks.dtype).reshape(3, 3, 1, 1, 1) * (1 - single.free)[:, None]
    inverses = [_inverse_3x3(blocks)]
    eigenvalues = [_largest_eigenvalue(lambda v: operate(single, v, spacing_mm), inverses[0])]
    coarse: list[Array] = []
    for level in range(levels):
        k = _coarsen_medium(single, spacing_mm) if level == 0 else _coarsen_elements(coarse[-1])
        coarse.append(k)
        if level < levels - 1:
            links = None if single.links is None else single.links[level + 1]
            inverses.append(_inverse_3x3(_diagonal_blocks(_element_diagonal(k))))
            eigenvalues.append(_largest_eigenvalue(partial(_operate_coarse, k, links), inverses[-1]))
    return single, (tuple(inverses), tuple(eigenvalues)), tuple(coarse)


def build(system: System, grid: Grid, compiled: bool = True) -> Preconditioner:
    """The preconditioner of a system: the compiled one on CPUs where it is available, unless compiled is False.

    Raises ValueError for what `check` refuses, and when the coarsest operator is not positive definite.
    """
    check(system, grid)
    if compiled and native.available():
        first = None if system.links is None else system.links[:1]
        single = replace(system, medium=_single(system.medium), links=first)
        status = int(_native_build(single, grid.spacing_mm))
        if status:
            raise ValueError(_NOT_HELD if status == 1 else _EMPTY)
        return Compiled(single)
    levels = depth(grid.shape)
    single, (inverses, eigenvalues), coarse = _levels(system, grid.spacing_mm, levels)
    links = None if system.links is None else system.links[levels]
    chain = _chain(np.asarray(coarse[-1], np.float64), links)
    return Hierarchy(single, inverses, eigenvalues, coarse[:-1], chain, _stiff_bodies(system, grid.spacing_mm))


def check(system: System, grid: Grid, forces: Array | None = None) -> None:
    """Refuse what no solver can answer. Raises ValueError that names it and its place in mm:

    moduli that are not finite or negative, no material at all, forces on nodes that no material touches, and pieces of
    material (connected by faces, edges or corners) that no foundation, fixed unknown or link holds.
    """
    fields = [np.asarray(f) for f in (system.medium.lam, system.medium.mu, system.medium.kappa)]
    wrong = ~np.all(np.isfinite(fields), axis=0) | (fields[1] < 0) | (fields[2] < 0)
    if wrong.any():
        raise ValueError(
            f"moduli must be finite and not negative; {int(wrong.sum())} voxels are not, {_place(wrong, grid)}; "
            "check the density and its law"
        )
    solid = fields[1] > 0
    if not solid.any():
        raise ValueError(_EMPTY)
    if forces is not None:
        loaded = np.any(np.asarray(forces) != 0, axis=(0, 1)) & (np.asarray(touched(system.medium)) == 0)
        if loaded.any():
            raise ValueError(
                f"{int(loaded.sum())} loaded nodes touch no material, {_place(loaded, grid, 0.0)}; move the load patch onto bone"
            )
    pieces, count = label(solid, np.ones((3, 3, 3)))
    holding = fields[2] > 0
    held_nodes = np.zeros(tuple(n + 1 for n in solid.shape), bool)
    if system.free is not None:
        held_nodes |= np.any(np.asarray(system.free) == 0, axis=0)
    if system.links is not None:
        first = system.links[0]
        held_nodes.ravel()[np.asarray(first.node)[np.any(np.asarray(first.weight) != 0, axis=(0, 2))]] = True
    x, y, z = solid.shape
    for i, j, k in CORNERS:
        holding = holding | held_nodes[i : i + x, j : j + y, k : k + z]
    loose = sorted(set(range(1, count + 1)) - set(np.unique(pieces[holding]).tolist()))
    if loose:
        told = [f"{int((pieces == n).sum())} voxels {_place(pieces == n, grid)}" for n in loose[:5]]
        raise ValueError(
            f"{len(loose)} piece{'s' * (len(loose) > 1)} of material held by nothing: {'; '.join(told)}{'; …' * (len(loose) > 5)}; "
            "the structure is not held: check the support patch, or drop small pieces with engine.multigrid.without_islands"
        )


def without_islands(medium: Medium, grid: Grid, below_mm3: float) -> tuple[Medium, list[str]]:
    """The medium without its pieces (connected by nodes) smaller than a volume, and a line for each that was dropped."""
    solid = np.asarray(medium.mu) > 0
    pieces, count = label(solid, np.ones((3, 3, 3)))
    volume = np.bincount(pieces.ravel(), minlength=count + 1) * grid.spacing_mm**3
    small = [n for n in range(1, count + 1) if volume[n] < below_mm3]
    keep = jnp.asarray(~np.isin(pieces, small))
    lines = [f"dropped an island of {volume[n]:.1f} mm³ {_place(pieces == n, grid)}" for n in small]
    return Medium(*(f * keep for f in (medium.lam, medium.mu, medium.kappa))), lines


def _place(mask: np.ndarray, grid: Grid, shift: float = 0.5) -> str:
    centre = np.asarray(grid.origin_mm) + grid.spacing_mm * (np.argwhere(mask).mean(0) + shift)
    return f"round ({', '.join(f'{v:.1f}' for v in centre)}) mm"


_NOT_HELD = (
    "the structure is not held: its coarsest stiffness matrix is not positive definite; "
    "check the support patch and that the bodies are connected to it"
)
_EMPTY = "there is no material in the domain (every modulus is zero or not finite); check the masks and the grid's extent"


@jax.jit
def _single(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, tree)


def _native_arguments(single: System) -> tuple[Array, ...]:
    """The system as engine/multigrid.cc takes it: λ, μ, κ, fixed unknowns, bodies, links; absent parts have no entries."""
    m, none = single.medium, jnp.zeros((0,), jnp.uint8)
    fixed = none if single.free is None else (single.free == 0).astype(jnp.uint8)
    label = none if single.bodies is None else single.bodies.astype(jnp.uint8)
    if single.links is None:
        links: tuple[Array, ...] = (jnp.zeros(0, jnp.int32), jnp.zeros((0, 0, 3)), jnp.zeros((0, 0)))
    else:
        first = single.links[0]
        links = (jnp.asarray(first.node, jnp.int32), jnp.asarray(first.weight, jnp.float64), jnp.asarray(first.stiffness, jnp.float64))
    return (*(f.astype(jnp.float32) for f in (m.lam, m.mu, m.kappa)), fixed, label, *links)


def _native_attributes(spacing_mm: float, field: Array) -> dict[str, Any]:
    x, y, z = field.shape
    return {"spacing": np.float64(spacing_mm), "levels": np.int64(depth((x, y, z)))}


@partial(jax.jit, static_argnames="spacing_mm")
def _native_build(single: System, spacing_mm: float) -> Array:
    call = jax.ffi.ffi_call("spinefit_build", jax.ShapeDtypeStruct((1,), jnp.int32))
    return call(*_native_arguments(single), **_native_attributes(spacing_mm, single.medium.mu))[0]


def _native_solve(
    system: System, preconditioner: Compiled, b: Array, start: Array, spacing_mm: float, settings: SolverSettings
) -> tuple[Array, SolveInfo]:
    m, count = system.medium, b.shape[0]
    outputs = (
        jax.ShapeDtypeStruct(b.shape, jnp.float64), jax.ShapeDtypeStruct((count,), jnp.int32),
        jax.ShapeDtypeStruct((count,), jnp.float64), jax.ShapeDtypeStruct((count,), jnp.bool_),
    )  # fmt: skip
    x, iterations, residual, stalled = jax.ffi.ffi_call("spinefit_solve", outputs)(
        *_native_arguments(preconditioner.system), *(f.astype(jnp.float64) for f in (m.lam, m.mu, m.kappa)), b, start,
        **_native_attributes(spacing_mm, m.mu),
        tolerance=np.float64(settings.tolerance), limit=np.int64(settings.max_iterations), stall=np.int64(STALL_ITERATIONS),
        degree=np.int64(settings.smoother_degree), ratio=np.float64(settings.eigenvalue_ratio),
    )  # fmt: skip
    return x, SolveInfo(jnp.max(iterations), residual, stalled)


def _native_pairing(mu: Array, u: Array, v: Array, spacing_mm: float) -> tuple[Array, Array, Array]:
    """elasticity.energy_pairing, zero outside of what the solve stores (from each column's first to its last voxel of material)."""
    shape = jax.ShapeDtypeStruct(mu.shape, jnp.float64)
    lam, own, kappa = jax.ffi.ffi_call("spinefit_pairing", (shape,) * 3)(mu.astype(jnp.float64), u, v, spacing=np.float64(spacing_mm))
    return lam, own, kappa


@partial(jax.jit, static_argnames=("spacing_mm", "settings"))
def precondition(
    preconditioner: Preconditioner, r: Float[Array, "b 3 x1 y1 z1"], spacing_mm: float, settings: SolverSettings
) -> Float[Array, "b 3 x1 y1 z1"]:
    """M r in float32: one balanced cycle."""
    if isinstance(preconditioner, Hierarchy):
        return _balanced(preconditioner, r, spacing_mm, settings)
    return jax.ffi.ffi_call("spinefit_precondition", jax.ShapeDtypeStruct(r.shape, jnp.float32))(
        *_native_arguments(preconditioner.system), r.astype(jnp.float32),
        **_native_attributes(spacing_mm, preconditioner.system.medium.mu),
        degree=np.int64(settings.smoother_degree), ratio=np.float64(settings.eigenvalue_ratio),
    )  # fmt: skip


def rigid_motions(bodies: Array) -> Array:
    """The six rigid motions of every body [6 m, 3, x+1, y+1, z+1], float64: translations, then rotations about its centre
    scaled to half the grid's longest side. `bodies` as in System, with at least one body, not traced."""
    label = np.asarray(bodies)
    nodes = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in label.shape), indexing="ij"), axis=-1)
    out = []
    for k in range(1, int(label.max()) + 1):
        mask = label == k
        r = (nodes - nodes[mask].mean(0)) / (0.5 * (max(label.shape) - 1))
        for motion in (*(np.broadcast_to(e, r.shape) for e in np.eye(3)), *(np.cross(e, r) for e in np.eye(3))):
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
    """The coarse space of system.bodies, in the precision of the medium (rigid motions of stiff bodies cancel in K W)."""
    if system.bodies is None or not np.any(np.asarray(system.bodies)):
        return None
    motion, force, gram = _body_forces(system, rigid_motions(system.bodies), spacing_mm)
    inverse = np.linalg.pinv(np.asarray(gram, np.float64), rcond=1e-12, hermitian=True)
    return Bodies(motion, force, jnp.asarray(inverse, jnp.float32))


def _chain(k: np.ndarray, links: Links | None) -> Chain:
    """Factors of the coarsest operator, element matrices k [24, 24, x, y, z]. Raises ValueError when it is not held."""
    matrix = _sparse(k)
    nodes = tuple(n + 1 for n in k.shape[2:])
    order = _plane_order(nodes)
    planes = max(nodes)
    m = matrix.shape[0] // planes
    ordered = matrix[order][:, order].tocsr()
    block = [slice(i * m, (i + 1) * m) for i in range(planes)]
    inverse, step = np.zeros((planes, m, m)), np.zeros((planes, m, m))
    schur = ordered[block[0], block[0]].toarray()
    for i in range(planes):
        try:
            factor = scipy.linalg.cho_factor(schur)
            pivot = np.diag(factor[0]) ** 2 / np.maximum(ordered.diagonal()[block[i]], 1e-300)
            if pivot.min() < 1e-7:
                raise np.linalg.LinAlgError
        except np.linalg.LinAlgError as error:
            raise ValueError(_NOT_HELD) from error
        inverse[i] = scipy.linalg.cho_solve(factor, np.eye(m))
        if i + 1 < planes:
            off = ordered[block[i], block[i + 1]].toarray()
            step[i] = scipy.linalg.cho_solve(factor, off)
            schur = ordered[block[i + 1], block[i + 1]].toarray() - off.T @ step[i]
    inverse = 0.5 * (inverse + inverse.transpose(0, 2, 1))
    if links is None:
        return Chain(jnp.asarray(inverse, jnp.float32), jnp.asarray(step, jnp.float32), None, None)
    rows = _link_rows(links, nodes)
    z = _back_and_forth(inverse, step, rows[:, order].reshape(len(rows), planes, m))
    z_natural = np.empty_like(rows)
    z_natural[:, order] = z.reshape(len(rows), -1)
    stiffness = np.asarray(links.stiffness, np.float64)
    core = np.linalg.solve(np.eye(len(rows)) + stiffness @ (rows @ z_natural.T), stiffness)
    return Chain(*(jnp.asarray(a, jnp.float32) for a in (inverse, step, z_natural.T, 0.5 * (core + core.T))))


def _sparse(k: np.ndarray) -> scipy.sparse.csr_matrix:
    """The assembled matrix of stored element matrices [24, 24, x, y, z]; unknowns ordered [3, x+1, y+1, z+1]."""
    shape = k.shape[2:]
    nodes = tuple(n + 1 for n in shape)
    number = np.arange(np.prod(nodes)).reshape(nodes)
    corner = [number[i : i + shape[0], j : j + shape[1], m : m + shape[2]] for i, j, m in CORNERS]
    dof = np.stack([c + axis * number.size for c in corner for axis in range(3)]).reshape(24, -1)
    row, column = np.broadcast_to(dof[:, None], (24, 24, dof.shape[1])), np.broadcast_to(dof[None], (24, 24, dof.shape[1]))
    size = 3 * number.size
    matrix = scipy.sparse.coo_matrix((k.ravel(), (row.ravel(), column.ravel())), shape=(size, size)).tocsr()
    diagonal = matrix.diagonal()
    empty = diagonal <= 1e-12 * diagonal.max()
    return matrix + scipy.sparse.diags(np.where(empty, diagonal.max(), 0.0)) if empty.any() else matrix


def _link_rows(links: Links, nodes: tuple[int, ...]) -> np.ndarray:
    """W [q, n] dense, unknowns ordered [3, nodes]."""
    spread = np.zeros((len(links.weight), 3, int(np.prod(nodes))))
    spread[:, :, np.asarray(links.node)] = np.moveaxis(np.asarray(links.weight), -1, 1)
    return spread.reshape(len(spread), -1)


def _plane_order(nodes: tuple[int, ...]) -> np.ndarray:
    """Unknown numbers [3, nodes] sorted plane by plane along the longest axis."""
    number = np.arange(3 * int(np.prod(nodes))).reshape(3, *nodes)
    return np.moveaxis(number, 1 + int(np.argmax(nodes)), 0).ravel()


def _back_and_forth(inverse: np.ndarray, step: np.ndarray, r: np.ndarray) -> np.ndarray:
    """T⁻¹ r on the host, r [b, p, m]."""
    y = r.copy()
    for i in range(1, len(inverse)):
        y[:, i] -= y[:, i - 1] @ step[i - 1]
    x = np.einsum("bpm,pnm->bpn", y, inverse)
    for i in range(len(inverse) - 2, -1, -1):
        x[:, i] -= x[:, i + 1] @ step[i].T
    return x


def _solve_coarsest(chain: Chain, r: Array) -> Array:
    """K⁻¹ r of the coarsest level, r [b, 3, x, y, z]: y_k = r_k − E_{k−1}ᵀ y_{k−1}, x_k = D_k⁻¹ y_k − E_k x_{k+1}."""
    axis = 2 + int(np.argmax(r.shape[2:]))
    moved = jnp.moveaxis(r, axis, 0)
    planes = moved.reshape(moved.shape[0], r.shape[0], -1)

    def forth(before: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        right, step = given
        y = right - before
        return y @ step, y

    _, y = jax.lax.scan(forth, jnp.zeros_like(planes[0]), (planes, chain.step))
    middle = jnp.einsum("pbm,pnm->pbn", y, chain.inverse)

    def back(after: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        x, step = given
        x = x - after @ step.T
        return x, x

    _, x = jax.lax.scan(back, jnp.zeros_like(planes[0]), (middle, chain.step), reverse=True)
    out = jnp.moveaxis(x.reshape(moved.shape), 0, axis)
    if chain.z is None or chain.core is None:
        return out
    along = r.reshape(r.shape[0], -1) @ chain.z
    return out - ((along @ chain.core) @ chain.z.T).reshape(r.shape)


def _cycle(hierarchy: Hierarchy, residual: Array, spacing_mm: float, settings: SolverSettings) -> Array:
    """One cycle on float32 residuals [b, ...]; symmetric up to rounding."""
    system = hierarchy.system

    def matvec_of(level: int) -> Callable[[Array], Array]:
        if level == 0:
            return lambda v: operate(system, v, spacing_mm)
        return partial(_operate_coarse, hierarchy.coarse[level - 1], None if system.links is None else system.links[level])

    def cycle(level: int, r: Array) -> Array:
        if level == len(hierarchy.block_inverse):
            return _solve_coarsest(hierarchy.coarsest, r)
        matvec, inverse, upper = matvec_of(level), hierarchy.block_inverse[level], hierarchy.eigenvalue[level]
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


def _balanced(hierarchy: Hierarchy, residual: Array, spacing_mm: float, settings: SolverSettings) -> Array:
    """The cycle M, balanced with the coarse space of stiff bodies (Mandel 1993; "BNN" of Tang et al. 2009, table 1):

        P = Q + (I − Q K) M (I − K Q),   Q = W (Wᵀ K W)⁻¹ Wᵀ
    """
    if hierarchy.bodies is None:
        return _cycle(hierarchy, residual, spacing_mm, settings)
    w, kw, inverse = hierarchy.bodies

    def along(rows: Array, f: Array) -> Array:
        return jnp.einsum("mcxyz,bcxyz->bm", rows, f) @ inverse

    first = along(w, residual)
    z = _cycle(hierarchy, residual - jnp.einsum("bm,mcxyz->bcxyz", first, kw), spacing_mm, settings)
    return z + jnp.einsum("bm,mcxyz->bcxyz", first - along(kw, z), w)


# -- Krylov --------------------------------------------------------------------------------------------------
def _run(
    system: System, hierarchy: Preconditioner, b: Array, start: Array, spacing_mm: float, settings: SolverSettings
) -> tuple[Array, SolveInfo]:
    one = _native_solve if isinstance(hierarchy, Compiled) else _conjugate_gradients
    return one(system, hierarchy, b, start, spacing_mm, settings)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("spacing_mm", "settings"))
def _conjugate_gradients(
    system: System, hierarchy: Hierarchy, b: Array, start: Array, spacing_mm: float, settings: SolverSettings
) -> tuple[Array, SolveInfo]:
    """Flexible (Polak-Ribière) CG on all right-hand sides at once; a converged one simply rests."""

    def dot(p: Array, q: Array) -> Array:
        return jnp.sum(p * q, axis=(1, 2, 3, 4))

    def spread_out(a: Array) -> Array:
        return a[:, None, None, None, None]

    def precondition(r: Array) -> Array:
        size = jnp.sqrt(dot(r, r))
        size = jnp.where(size > 0, size, 1.0)
        return _balanced(
            hierarchy, (r / spread_out(size)).astype(jnp.float32), spacing_mm, settings
        ).astype(r.dtype) * spread_out(size)

    goal = settings.tolerance * jnp.sqrt(dot(b, b))
    tiny = jnp.finfo(b.dtype).tiny

    def unfinished(carry: tuple[Any, ...]) -> Array:
        _, r, _, _, _, n, _, since = carry
        going = jnp.any(jnp.sqrt(dot(r, r)) > goal)
        return going & (n < settings.max_iterations) & (jnp.max(since) < STALL_ITERATIONS)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        # the preconditioner and the operator stand here once each: they are most of what XLA has to compile
        x, r, r_last, p, rz_last, n, best, since = carry
        active = jnp.sqrt(dot(r, r)) > goal
        z = precondition(r)
        rz = dot(r, z)
        beta = jnp.where(jnp.abs(rz_last) > tiny, dot(z, r - r_last) / jnp.where(jnp.abs(rz_last) > tiny, rz_last, 1.0), 0.0)
        p = z + spread_out(jnp.maximum(beta, 0.0)) * p
        kp = operate(system, p, spacing_mm)
        pkp = dot(p, kp)
        alpha = jnp.where(active & (pkp > tiny), dot(r, p) / jnp.where(pkp > tiny, pkp, 1.0), 0.0)
        r_next = r - spread_out(alpha) * kp
        size = jnp.sqrt(dot(r_next, r_next))
        better = size < 0.98 * best
        return (
            x + spread_out(alpha) * p, r_next, r, p, rz, n + 1,
            jnp.where(better, size, best), jnp.where(better | ~active, 0, since + 1),
        )  # fmt: skip

    start = jnp.where(spread_out(goal) > 0, start, 0.0)  # nothing answers a load of nothing, whatever the warm start
    r = b - operate(system, start, spacing_mm)
    size = jnp.sqrt(dot(r, r))
    zero = jnp.zeros_like(size)
    carry = (start, r, r, jnp.zeros_like(r), zero, jnp.zeros((), jnp.int32), size, jnp.zeros(b.shape[0], jnp.int32))
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

    `start` warm-starts the solve and `adjoint_start` that of the backward pass. Neither changes the result beyond
    the tolerance, so their cotangents are free to carry the adjoint out: the cotangent of `adjoint_start` *is* the
    adjoint solution λ (next time's warm start) and that of `probe` is (iterations, largest true residual, λᵀ(b − K u)).

    The last one corrects a functional for the residual of the solve: J(u) + λᵀ(b − K u) is wrong by second order in both
    residuals only (Pierce & Giles 2000, SIAM Rev. 42:247), so that loose solves leave line searches clean.
    """
    return _run(system, hierarchy, b, start, spacing_mm, settings)


def _solve_forward(
    spacing_mm: float, settings: SolverSettings, system: System, b: Array, hierarchy: Preconditioner, start: Array,
    adjoint_start: Array, probe: Array,
) -> tuple[Any, Any]:  # fmt: skip
    out = _run(system, hierarchy, b, start, spacing_mm, settings)
    return out, (system, hierarchy, b, out[0], adjoint_start)


def _solve_backward(spacing_mm: float, settings: SolverSettings, kept: Any, cotangent: Any) -> tuple[Any, ...]:
    system, hierarchy, b, u, adjoint_start = kept
    ubar = cotangent[0]
    if system.free is not None:
        ubar = system.free * ubar
    adjoint, info = _run(system, hierarchy, ubar, adjoint_start, spacing_mm, settings)
    free_u, free_a = (u, adjoint) if system.free is None else (system.free * u, system.free * adjoint)
    if isinstance(hierarchy, Compiled):
        pairing = _native_pairing(system.medium.mu, free_u, free_a, spacing_mm)
    else:
        pairing = energy_pairing(free_u, free_a, spacing_mm)
    held = sum(jnp.sum(f * g) for f, g in zip((system.medium.lam, system.medium.mu, system.medium.kappa), pairing, strict=True))
    if system.links is not None:
        held = held + jnp.sum(free_a * apply_links(system.links[0], free_u))
    correction = jnp.sum(free_a * b) - held
    sensitivity = Medium(*(-g for g in pairing))
    nothing = partial(jax.tree.map, _zero_cotangent)
    system_bar = System(sensitivity, nothing(system.free), nothing(system.links), nothing(system.bodies))
    probe = jnp.stack([info.iterations.astype(u.dtype), jnp.max(info.relative_residual), correction])
    return system_bar, adjoint, nothing(hierarchy), jnp.zeros_like(u), adjoint, probe


def _zero_cotangent(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


solve.defvjp(_solve_forward, _solve_backward)


def statuses(info: SolveInfo, settings: SolverSettings, names: tuple[str, ...]) -> list[SolverStatus]:
    """What the solve says of each right-hand side, in words."""
    out = []
    for i, name in enumerate(names):
        relative, n = float(np.asarray(info.relative_residual)[i]), int(info.iterations)
        if not np.isfinite(relative):
            code, text = "failed", f"{name}: the residual is not finite; check the moduli for NaN or zero"
        elif relative <= 2 * settings.tolerance:
            code, text = "ok", f"{name}: converged"
        elif bool(np.asarray(info.stalled)[i]):
            code, text = "stagnated", f"{name}: no progress in {STALL_ITERATIONS} iterations; usually walls thinner than two voxels"
        else:
            code, text = "max_iterations", f"{name}: not converged in {n} iterations; raise solver.max_iterations"
        out.append(SolverStatus(code, text, n, relative))
    return out
