"""What the machine must have, checked in child processes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

APT = "sudo apt-get install -y libgl1 libopengl0 libegl1"
REINSTALL = (
    "run `make setup` again (or: .venv/bin/pip install -c scripts/constraints.txt -e '.[dev]')"
)
MODULES = (
    "hydra jax jaxtyping lxml matplotlib meshio mmgpy networkx nibabel numpy optax pyamg pydantic "
    "pypardiso rich scipy sfepy skimage trimesh"
).split()
FILTERS = (
    "meshing_isotropic_explicit_remeshing",
    "meshing_decimation_quadric_edge_collapse",
    "meshing_close_holes",
    "meshing_repair_non_manifold_edges",
    "compute_selection_by_self_intersections_per_face",
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what was checked, what was found, what to do."""

    name: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}\n    do: {self.advice}"


def in_child(code: str, timeout_s: float = 180.0) -> str | None:
    """Run Python code in a child process; None when it worked, else its last words (or the
    signal)."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:.0f} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"the process was killed by signal {-done.returncode}" + (
            " (segmentation fault)" if done.returncode == -11 else ""
        )
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit status {done.returncode}"


def python_version() -> list[Finding]:
    """Python 3.11 or newer."""
    if sys.version_info >= (3, 11):  # noqa: UP036 (run before the installation too)
        return []
    return [
        Finding(
            "python",
            f"{sys.version.split()[0]} is too old; 3.11 is needed",
            "make setup PYTHON=python3.11",
        )
    ]


def imports() -> list[Finding]:
    """Every package that the code imports, without importing the ones that may crash."""
    findings = []
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:  # an import may fail in any way: report it, go on to the next
            findings.append(
                Finding(f"import {module}", f"{type(error).__name__}: {error}", REINSTALL)
            )
    return findings


def pymeshlab_filters() -> list[Finding]:
    """pymeshlab drops filters (remeshing, decimation, STL) with no error when libOpenGL is
    absent."""
    code = f"""
import pymeshlab as ml, tempfile, os, sys
known = set(ml.filter_list())
missing = [f for f in {FILTERS!r} if f not in known]
if missing: sys.exit('filters missing: ' + ', '.join(missing))
s = ml.MeshSet(verbose=False); s.create_cube()
with tempfile.TemporaryDirectory() as d:
    path = os.path.join(d, 'cube.stl'); s.save_current_mesh(path)
    if not os.path.getsize(path): sys.exit('STL saving wrote nothing')
"""
    problem = in_child(code)
    return [Finding("pymeshlab", problem, f"{APT}; then {REINSTALL}")] if problem else []


def offscreen_rendering() -> list[Finding]:
    """VTK renders a picture without a screen (it dies with a segmentation fault when libEGL is
    absent)."""
    code = """
import sys, pyvista as pv
p = pv.Plotter(off_screen=True, window_size=(64, 64)); p.add_mesh(pv.Sphere(), color='red')
if p.screenshot(None, return_img=True).std() < 1: sys.exit('the picture is blank')
"""
    problem = in_child(code)
    return (
        [Finding("VTK off-screen", problem, f"{APT} (pictures of the report need it)")]
        if problem
        else []
    )


def direct_solver() -> list[Finding]:
    """PARDISO factorises and solves a small symmetric positive definite system."""
    code = """
import sys, numpy as np, scipy.sparse as sp
from pypardiso import PyPardisoSolver
n = 200; a = sp.diags([-np.ones(n - 1), 2.1 * np.ones(n), -np.ones(n - 1)], [-1, 0, 1]).tocsr()
x = np.sin(np.arange(n)); s = PyPardisoSolver(mtype=2); u = sp.triu(a).tocsr()
s.factorize(u); error = np.abs(s.solve(u, a @ x).ravel() - x).max()
if not error < 1e-10: sys.exit(f'wrong solution, error {error:.1e}')
"""
    problem = in_child(code)
    return (
        [Finding("PARDISO", problem, f"{REINSTALL}; MKL needs an x86-64 processor")]
        if problem
        else []
    )


def jax_float64() -> list[Finding]:
    """JAX computes in float64 when asked to."""
    code = """
import sys, jax; jax.config.update('jax_enable_x64', True)
import jax.numpy as jnp
y = jax.jit(lambda x: (x + 1e-12) - x)(jnp.ones(3))
if y.dtype != 'float64' or not 0.9e-12 < float(y[0]) < 1.1e-12: sys.exit(f'got {y.dtype} {y[0]}')
"""
    problem = in_child(code)
    advice = f"unset JAX_ENABLE_X64 and JAX_PLATFORMS, or {REINSTALL}"
    return [Finding("JAX float64", problem, advice)] if problem else []


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    python_version,
    imports,
    pymeshlab_filters,
    offscreen_rendering,
    direct_solver,
    jax_float64,
)


def check() -> list[Finding]:
    """All findings; empty when everything works. Takes about 10 s."""
    return [finding for one in CHECKS for finding in one()]


def require() -> None:
    """Stop (SystemExit, status 1) with the list of findings, if there are any."""
    findings = check()
    if findings:
        raise SystemExit(
            "spinefit cannot run here:\n" + "\n".join(f"- {finding}" for finding in findings)
        )
