"""PARDISO."""

from __future__ import annotations

import time
from collections.abc import Callable

import pypardiso
import scipy.sparse as sp

from scripts.benchmarks.answer import Answer, cores
from scripts.benchmarks.voxel_model import Model, assembled_system, spread


def pardiso_solver(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    def solve() -> Answer:
        started = time.perf_counter()
        k, b, moving = assembled_system(m, element)
        upper = sp.triu(k.tocsr(), format="csr")
        del k
        assembled = time.perf_counter()
        pardiso = pypardiso.PyPardisoSolver(mtype=2, size_limit_storage=0)
        pardiso.factorize(upper)
        factored = time.perf_counter()
        x = pardiso.solve(upper, b)
        solved = time.perf_counter()
        return Answer(
            spread(m, moving, x),
            factored - started,
            solved - factored,
            assembled - started,
            threads=cores(),
        )

    return solve
