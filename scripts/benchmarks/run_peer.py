"""One solver on one problem, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from typing import Any

from scripts.benchmarks.answer import (
    ASSEMBLED_BELOW,
    NOT_INSTALLED,
    PEERS,
    Answer,
    judge,
    judge_matrix_free,
    peak_mb,
)
from scripts.benchmarks.voxel_model import Model, element_matrices, model
from scripts.console.places import ROOT

PETSC = "3.26.1"


# -- run -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Solver:
    """module, name   the function that prepares it, in scripts/benchmarks/peers/
    package        whose version is told
    foreign        it has a Python of its own (`install`)
    """

    module: str
    name: str
    package: str
    foreign: bool = False

    def prepare(self, m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
        """What solves the problem; the solver is imported here. Raises ImportError or OSError where
        it is not installed."""
        module = import_module(f"scripts.benchmarks.peers.{self.module}")
        prepare: Callable[[Model, float, str], Callable[[], Answer]] = getattr(module, self.name)
        return prepare(m, tolerance, element)


SOLVERS = {
    "engine": _Solver("own", "engine_solver", "jax"),
    "pardiso": _Solver("direct", "pardiso_solver", "pypardiso"),
    "pyamg": _Solver("amg", "pyamg_solver", "pyamg"),
    "sfepy": _Solver("sfepy", "sfepy_solver", "sfepy"),
    "jaxfem": _Solver("jaxfem", "jaxfem_solver", "jax-fem", foreign=True),
    "jaxfem_tol": _Solver("jaxfem", "jaxfem_tolerant_solver", "jax-fem", foreign=True),
    "parosol": _Solver("parosol", "parosol_solver", "parosol-py", foreign=True),
}
#: Fields of a result that are None until they are known.
_LATER = (
    "iterations assembly_s setup_s solve_s total_s compile_s relative_residual compliance peak_mb"
    " import_mb threads"
).split()


def run(
    solver: str, problem: dict[str, Any], tolerance: float, element: str = "engine"
) -> dict[str, Any]:
    """Solve in this process, which must be a fresh one for peak_mb to mean anything; the fields of
    the JSON file.

    status: "ok", "residual above tolerance", "failed: …" or "not installed: …".
    """
    chosen = SOLVERS[solver]
    if solver not in ("pardiso", "pyamg"):  # the others have one element each
        element = "engine" if solver == "engine" else "full"
    m = model(problem)
    out: dict[str, Any] = {
        "solver": solver,
        "version": None,
        "element": element,
        "mode": m.mode,
        "unknowns": int(m.free.sum()),
        "tolerance": tolerance,
        **dict.fromkeys(_LATER),
        "status": "",
        "note": "",
    }
    try:
        element_matrices(element, m.spacing_mm)  # the engine's import is not the solver's time
        solve = chosen.prepare(m, tolerance, element)
        out |= {"version": metadata.version(chosen.package), "import_mb": peak_mb()}
    except (ImportError, OSError) as error:  # OSError: gmsh without its system libraries
        return out | {
            "status": NOT_INSTALLED if chosen.foreign else f"failed: {error}",
            "note": str(error)[:300],
        }
    try:
        answer = solve()
        peak = peak_mb()
    except Exception as error:  # a peer may fail in any way; the benchmark's table says how
        return out | {
            "status": f"failed: {type(error).__name__} {error}"[:500],
            "peak_mb": peak_mb(),
        }
    return out | _judged(answer, m, element, tolerance, peak, out["import_mb"])


def _judged(
    answer: Answer, m: Model, element: str, tolerance: float, peak: float, import_mb: float
) -> dict[str, Any]:
    """An answer's fields of the result."""
    taken = asdict(answer)
    u = taken.pop("u")
    assembled = m.free.sum() < ASSEMBLED_BELOW or element != "engine"
    residual, compliance = (judge if assembled else judge_matrix_free)(m, u, element)
    return taken | {
        "total_s": answer.setup_s + answer.solve_s,
        "relative_residual": residual,
        "compliance": compliance,
        "peak_mb": answer.peak_mb or peak,
        "import_mb": None if answer.peak_mb else import_mb,
        "status": "ok" if residual <= 1.05 * tolerance else "residual above tolerance",
    }


def install() -> int:
    """jax-fem, parosol-py and what they need, into a virtual environment of their own; returns an
    exit status.

    jax-fem names no dependencies. PETSc has no wheel: it is compiled (a C compiler and make; about
    15 minutes on two cores) without MPI, Fortran and C++ on MKL's BLAS. gmsh, which jax-fem
    imports, wants libGLU, libXcursor, libXft and libXinerama.
    """
    python = str(PEERS / "bin" / "python")
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--no-input",
        "-c",
        str(ROOT / "scripts" / "constraints.txt"),
    ]
    petsc = "--with-mpi=0 --with-fc=0 --with-cxx=0 --with-x=0 --with-debugging=0 COPTFLAGS=-O3"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEERS)], check=True)
    subprocess.run([*pip, "parosol-py==0.1.26"], check=True)
    subprocess.run(
        [*pip, "jax-fem==0.0.11", "jax", "meshio", "gmsh", "fenics-basix", "pyfiglet", "mkl"],
        check=True,
    )
    blas = next((PEERS / "lib").glob("libmkl_rt.so*"))
    environment = os.environ | {"PETSC_CONFIGURE_OPTIONS": f"{petsc} --with-blaslapack-lib={blas}"}
    subprocess.run([*pip, f"petsc=={PETSC}"], check=True, env=environment)
    subprocess.run([*pip, f"petsc4py=={PETSC}"], check=True, env=environment)
    return 0
