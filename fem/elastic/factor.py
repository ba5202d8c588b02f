"""The linear solve: K u = f with K = A + Σ Wᵀ C W, A sparse symmetric positive, W a few dense rows.

PARDISO's Cholesky on the upper triangle of A (one factorisation, all right-hand sides) with the
links by the Woodbury identity u = A⁻¹f − A⁻¹Wᵀ (1 + C W A⁻¹ Wᵀ)⁻¹ C W A⁻¹ f, which keeps the dense
blocks of the links out of the factor; without the links' rows in A it must be regular, so bodies
that only links join take the blocks assembled. Smoothed aggregation with 3×3 blocks and rigid-body
modes, and conjugate gradients on K, is the fallback.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from engine.types import SolverStatus

log = logging.getLogger("spinefit.fem")


@dataclass(frozen=True)
class LinkRows:
    """rows [r, dofs] sparse, stiffness [r, r] symmetric: adds rowsᵀ stiffness rows to the
    matrix."""

    rows: sp.csr_matrix
    stiffness: np.ndarray


@dataclass(frozen=True)
class Solution:
    """u [dofs, l] (NaN columns where failed), a status per column, name of the solver, seconds."""

    u: np.ndarray
    status: list[SolverStatus]
    solver: str
    seconds: float


def assembled(a: sp.csr_matrix, links: list[LinkRows]) -> sp.csr_matrix:
    """A + Σ WᵀCW as one sparse matrix (dense blocks over the nodes of the links' patches)."""
    for link in links:
        a = a + link.rows.T @ sp.csr_matrix(link.stiffness) @ link.rows
    return sp.csr_matrix(a)


def apply(a: sp.csr_matrix, links: list[LinkRows], u: np.ndarray) -> np.ndarray:
    """K u."""
    out = a @ u
    for link in links:
        out += link.rows.T @ (link.stiffness @ (link.rows @ u))
    return out


def solve_linear(
    a: sp.csr_matrix,
    f: np.ndarray,
    links: list[LinkRows],
    modes: np.ndarray,
    *,
    solver: str,
    max_direct_dofs: int,
    tolerance: float,
    max_iterations: int,
    joined: bool,
) -> Solution:
    """Solve for all columns of f [dofs, l].

    solver: "auto" (direct up to max_direct_dofs, else amg; amg when direct fails), "direct" or
    "amg". joined: the bodies are connected without the links (Woodbury is then safe).
    """
    if solver not in ("auto", "direct", "amg"):
        raise ValueError(f"solver {solver!r} is unknown; choose auto, direct or amg")
    if not joined:
        a, links = assembled(a, links), []
    clock = time.perf_counter()
    reason = ""
    if solver == "direct" or (solver == "auto" and len(f) <= max_direct_dofs):
        try:
            u = _direct(a, f, links)
            iterations = np.zeros(f.shape[1], int)
            result = _judge(a, links, u, f, iterations, "pardiso, Cholesky", tolerance, clock)
            if solver == "direct" or all(s.code == "ok" for s in result.status):
                return result
            reason = f"; pardiso left {result.status[0].text}"
        except (ImportError, RuntimeError, ValueError, MemoryError) as error:
            reason = f"; pardiso failed: {type(error).__name__} {error}"
            if solver == "direct":
                log.error("direct solve%s", reason)
                return _failed(f, "pardiso" + reason, clock)
    elif solver == "auto":
        reason = f"; {len(f)} unknowns above max_direct_dofs={max_direct_dofs}"
    if reason:
        log.warning("smoothed aggregation takes over%s", reason)
    u, iterations = _amg(a, f, links, modes, tolerance, max_iterations)
    return _judge(
        a, links, u, f, iterations, "pyamg, smoothed aggregation" + reason, tolerance, clock
    )


def _failed(f: np.ndarray, text: str, clock: float) -> Solution:
    status = [SolverStatus("failed", text) for _ in range(f.shape[1])]
    return Solution(np.full(f.shape, np.nan), status, text, time.perf_counter() - clock)


@cache
def _point_to_mkl() -> None:
    """PyPardiso searches the whole tree of libraries for MKL at every solver it makes (0.6 s),
    unless it is told."""
    libraries = (Path(sys.prefix) / "lib").glob("libmkl_rt*")
    shortest_first = sorted(libraries, key=lambda path: len(path.name))
    if shortest_first:
        os.environ.setdefault("PYPARDISO_MKL_RT", str(shortest_first[0]))


class Factor:
    """PARDISO's factor of symmetric A: Cholesky (mtype 2), or LDLᵀ with pivots where A is not
    `definite` (mtype −2); links by Woodbury; a context that gives the memory back.

    Raises: RuntimeError when PARDISO fails.
    """

    def __init__(self, a: sp.csr_matrix, links: list[LinkRows], definite: bool = True) -> None:
        from pypardiso import PyPardisoSolver
        from pypardiso.pardiso_wrapper import PyPardisoError

        class Pardiso(PyPardisoSolver):
            """Without the parent's test of sameness, which hashes the matrix at every solve."""

            def _is_already_factorized(self, matrix: sp.csr_matrix) -> bool:
                return matrix is upper

        self._a, self._links = a, links
        self._upper = upper = sp.csr_matrix(sp.triu(a, format="csr"))
        upper.sort_indices()
        _point_to_mkl()
        # size_limit_storage=0: keep a hash instead of a copy of the matrix
        self._pardiso = Pardiso(mtype=2 if definite else -2, size_limit_storage=0)
        try:
            self._pardiso.factorize(upper)
        except PyPardisoError as error:  # not a RuntimeError: it would take the whole check with it
            self._pardiso.free_memory(everything=True)
            raise RuntimeError(str(error)) from error
        if links:
            self._w = sp.vstack([link.rows for link in links]).tocsr()
            self._c = sp.block_diag([link.stiffness for link in links]).toarray()
            self._z = self._inverse(self._w.T.toarray())
            self._core = np.eye(len(self._c)) + self._c @ (self._w @ self._z)

    def _inverse(self, b: np.ndarray) -> np.ndarray:
        from pypardiso.pardiso_wrapper import PyPardisoError

        try:
            return np.asarray(self._pardiso.solve(self._upper, np.asfortranarray(b)))
        except PyPardisoError as error:
            raise RuntimeError(str(error)) from error

    def once(self, f: np.ndarray) -> np.ndarray:
        """(A + Σ WᵀCW)⁻¹ f [dofs, l] to the factor's accuracy."""
        y = self._inverse(f)
        return (
            y
            if not self._links
            else y - self._z @ np.linalg.solve(self._core, self._c @ (self._w @ y))
        )

    def solve(self, f: np.ndarray) -> np.ndarray:
        """The same, refined once where there are links."""
        u = self.once(f)
        return u if not self._links else u + self.once(f - apply(self._a, self._links, u))

    def __enter__(self) -> Factor:
        return self

    def __exit__(self, *_: object) -> None:
        self._pardiso.free_memory(everything=True)


def _direct(a: sp.csr_matrix, f: np.ndarray, links: list[LinkRows]) -> np.ndarray:
    with Factor(a, links) as factor:
        return factor.solve(f)


def _amg(
    a: sp.csr_matrix,
    f: np.ndarray,
    links: list[LinkRows],
    modes: np.ndarray,
    tolerance: float,
    max_iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Conjugate gradients on K, preconditioned by a smoothed-aggregation V-cycle of A (3×3
    blocks, six modes)."""
    import pyamg

    block = sp.bsr_matrix(a, blocksize=(3, 3))
    hierarchy = pyamg.smoothed_aggregation_solver(block, B=modes, max_coarse=500)
    cycle = hierarchy.aspreconditioner(cycle="V")
    operator = sp.linalg.LinearOperator(a.shape, matvec=lambda x: apply(a, links, x.ravel()))
    u, counts = np.zeros(f.shape), np.zeros(f.shape[1], int)
    for k in range(f.shape[1]):
        steps = [0]

        def count(_: Any, steps: list[int] = steps) -> None:
            steps[0] += 1

        u[:, k], _ = sp.linalg.cg(
            operator,
            f[:, k],
            rtol=0.5 * tolerance,
            atol=0.0,
            maxiter=max_iterations,
            M=cycle,
            callback=count,
        )
        counts[k] = steps[0]
    return u, counts


def _judge(
    a: sp.csr_matrix,
    links: list[LinkRows],
    u: np.ndarray,
    f: np.ndarray,
    iterations: np.ndarray,
    solver: str,
    tolerance: float,
    clock: float,
) -> Solution:
    """True relative residual per column; columns that are not finite are marked failed and
    emptied."""
    size = np.maximum(np.linalg.norm(f, axis=0), 1e-300)
    residual = np.linalg.norm(f - apply(a, links, u), axis=0) / size
    status = []
    for k, r in enumerate(residual):
        if not np.isfinite(u[:, k]).all() or not r < 0.1:
            status.append(
                SolverStatus(
                    "failed", f"{solver}: no solution; is a body held by nothing?", 0, float(r)
                )
            )
            u[:, k] = np.nan
        elif r > tolerance:
            code = "max_iterations" if iterations[k] else "stagnated"
            text = (
                f"{solver}: residual {r:.1e} above {tolerance:.1e}; raise max_iterations or use the"
                " direct solver"
            )
            status.append(SolverStatus(code, text, int(iterations[k]), float(r)))
        else:
            status.append(SolverStatus("ok", solver, int(iterations[k]), float(r)))
    return Solution(u, status, solver, time.perf_counter() - clock)
