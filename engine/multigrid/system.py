"""The linear system K u = b on a voxel grid, what preconditions it and what a solve reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from engine.elasticity import Links, Medium, apply, scatter

#: A relative residual above this is no solution: neither a measure nor a gradient is taken from it.
UNSOLVED = 1e-3
#: The solve gives up when a right-hand side has not bettered its best residual by 2 % in so many
#: iterations.
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
    """The operator: materials, free degrees of freedom [3, x+1, y+1, z+1] (1 free, 0 fixed) or
    None, links per level.

    bodies [x+1, y+1, z+1], or None: number of the stiff body that a node belongs to, from 1, 0 for
    none; the preconditioner treats their rigid motions exactly (see `cycle.balanced_cycle`).
    """

    medium: Medium
    free: Array | None
    links: tuple[Links, ...] | None
    bodies: Array | None = None


class Chain(NamedTuple):
    """K = L D Lᵀ + Wᵀ S W of the coarsest level by planes: inverse [p, m, m] of D, step [p, m, m] =
    D_k⁻¹ B_k (last one zero), and of the links (Woodbury) Z = T⁻¹Wᵀ [n, q], core = (1 + S W Z)⁻¹ S
    [q, q]; both None without links.
    """

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
    """The preconditioner of engine/multigrid/native/solver.cc: the system it is built from, its
    medium float32, links of the finest level only.

    The levels themselves live on the other side, which keeps the last one by content: the backward
    pass and a next solve with the same preconditioner find it again.
    """

    system: System


Preconditioner = Hierarchy | Compiled


class SolveInfo(NamedTuple):
    """Iterations of the batch, true relative residual and best-residual stall flag per
    right-hand side."""

    iterations: Array
    relative_residual: Array
    stalled: Array

    def worst(self) -> float:
        """The largest true relative residual, on the host."""
        return float(np.max(np.asarray(self.relative_residual)))


def operate(system: System, u: Array, spacing_mm: float) -> Array:
    """K u with fixed degrees of freedom held: D K D u + (1 − D) u."""
    links = None if system.links is None else system.links[0]
    if system.free is None:
        return apply(system.medium, u, spacing_mm, links)
    free = system.free.astype(u.dtype)
    return free * apply(system.medium, free * u, spacing_mm, links) + (1 - free) * u


def touched(medium: Medium) -> Float[Array, "x1 y1 z1"]:
    """1 on the nodes of voxels that hold material, else 0. The others have no displacement; it
    is reported as zero."""
    return (
        scatter(jnp.repeat((medium.mu > 0)[None, None].astype(jnp.float32), 8, axis=1))[0, 0] > 0
    ).astype(jnp.float64)


NOT_HELD = (
    "the structure is not held: its coarsest stiffness matrix is not positive definite; "
    "check the support patch and that the bodies are connected to it"
)
EMPTY = (
    "there is no material in the domain (every modulus is zero or not finite); check the masks and"
    " the grid's extent"
)


@jax.jit
def single_precision(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, tree)
