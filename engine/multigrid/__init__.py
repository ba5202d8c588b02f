"""The linear solve: conjugate gradients in float64, preconditioned by one float32 multigrid cycle.

    finest level     matrix-free (engine.elasticity.apply)
    coarser levels   exact element-wise Galerkin operators, K_c = Σ_children (D P)ᵀ K (D P), stored
                     per element; supports (D zeroes fixed degrees of freedom) and links are inside
                     the chain, or the coarsest operator would keep rigid-body modes that the fine
                     one lacks (docs/decisions.md)
    smoother         Chebyshev polynomial on the 3×3 block-Jacobi scaled operator
    cycle            V on the finest and the first coarse level, W below (REPEAT_FROM)
    coarsest level   exact: block-tridiagonal Cholesky along the longest axis, factored on the host
                     (LAPACK inside compiled loops dead-locks on small CPU back-ends)
    stiff bodies     the vertebrae's rigid motions, balanced (`cycle.balanced_cycle`)

Compiled (engine/multigrid/native/solver.cc) all right-hand sides are one block
(docs/decisions.md, 44); in XLA each is solved by itself. `solve` is differentiable in the medium
and the right-hand side by the implicit function theorem, never through the iterations: with K λ =
ū, the cotangents are b̄ = λ and m̄_e = −λᵀ (∂K/∂m_e) u.
"""

from engine.multigrid.checks import check, without_islands
from engine.multigrid.cycle import REPEAT_FROM, build, precondition, rigid_motions
from engine.multigrid.krylov import solve, statuses
from engine.multigrid.levels import depth, padded_shape
from engine.multigrid.system import (
    STALL_ITERATIONS,
    UNSOLVED,
    Compiled,
    Hierarchy,
    Preconditioner,
    SolveInfo,
    SolverSettings,
    System,
    operate,
    touched,
)
from engine.multigrid.transfer import coarsen_links, prolong, restrict

__all__ = [
    "REPEAT_FROM",
    "STALL_ITERATIONS",
    "UNSOLVED",
    "Compiled",
    "Hierarchy",
    "Preconditioner",
    "SolveInfo",
    "SolverSettings",
    "System",
    "build",
    "check",
    "coarsen_links",
    "depth",
    "operate",
    "padded_shape",
    "precondition",
    "prolong",
    "restrict",
    "rigid_motions",
    "solve",
    "statuses",
    "touched",
    "without_islands",
]
