"""One solver on one problem, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
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
from scripts.benchmarks.peers.amg import pyamg_solver
from scripts.benchmarks.peers.direct import pardiso_solver
from scripts.benchmarks.peers.jaxfem import jaxfem_solver, jaxfem_tolerant_solver
from scripts.benchmarks.peers.own import engine_solver
from scripts.benchmarks.peers.parosol import parosol_solver
from scripts.benchmarks.peers.sfepy import sfepy_solver
from scripts.benchmarks.voxel_model import Model, element_matrices, model
from scripts.console.places import ROOT

PETSC = "3.26.1"


# -- run -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Solver:
    prepare: Callable[[Model, float, str], Callable[[], Answer]]
    package: str
    foreign: bool


SOLVERS = {
    "engine": _Solver(engine_solver, "jax", False),
    "pardiso": _Solver(pardiso_solver, "pypardiso", False),
    "pyamg": _Solver(pyamg_solver, "pyamg", False),
    "sfepy": _Solver(sfepy_solver, "sfepy", False),
    "jaxfem": _Solver(jaxfem_solver, "jax-fem", True),
    "jaxfem_tol": _Solver(jaxfem_tolerant_solver, "jax-fem", True),
    "parosol": _Solver(parosol_solver, "parosol-py", True),
}


def run(
    solver: str, problem: dict[str, Any], tolerance: float, element: str = "engine"
) -> dict[str, Any]:
    """Solve in this process, which must be a fresh one for peak_mb to mean anything; the fields of
    the JSON file.

    status: "ok", "residual above tolerance", "failed: …" or "not installed: …".
    """
    chosen = SOLVERS[solver]
    element = (
        "engine" if solver == "engine" else element if solver in ("pardiso", "pyamg") else "full"
    )
    m = model(problem)
    out: dict[str, Any] = {
        "solver": solver,
        "version": None,
        "element": element,
        "mode": m.mode,
        "unknowns": int(m.free.sum()),
        "tolerance": tolerance,
        "iterations": None,
        "assembly_s": None,
        "setup_s": None,
        "solve_s": None,
        "total_s": None,
        "compile_s": None,
        "relative_residual": None,
        "compliance": None,
        "peak_mb": None,
        "import_mb": None,
        "threads": None,
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
    taken = asdict(answer)
    u = taken.pop("u")
    residual, compliance = (
        judge if m.free.sum() < ASSEMBLED_BELOW or element != "engine" else judge_matrix_free
    )(m, u, element)
    fine = residual <= 1.05 * tolerance
    return (
        out
        | taken
        | {
            "total_s": answer.setup_s + answer.solve_s,
            "relative_residual": residual,
            "compliance": compliance,
            "peak_mb": answer.peak_mb or peak,
            "import_mb": None if answer.peak_mb else out["import_mb"],
            "status": "ok" if fine else "residual above tolerance",
        }
    )


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
