"""The solver benchmark: the engine and other people's solvers on the same voxel elasticity problem,
each in a fresh process.

    python -m scripts.peers install                                       the foreign ones, into
        .cache/peers
    python -m scripts.peers SOLVER PROBLEM.npz TOLERANCE OUT.json [engine|full]

    engine       engine.multigrid, on all cores (or the GPU that JAX finds)
    pardiso      MKL's Cholesky (mtype 2, upper triangle) of the assembled matrix, all cores
    pyamg        smoothed aggregation (energy), 3×3 blocks, six rigid-body modes, conjugate
                 gradients; one core
    sfepy        Q1 hexahedra, dw_lin_elastic, Newton and ls.auto_direct: what SfePy does when told
                 nothing else
    jaxfem       HEX8, its solver with no options: BiCGStab with Jacobi, stopped at its own 1e-10
                 whatever TOLERANCE says
    jaxfem_tol   the same stopped at TOLERANCE, by the `custom_solver` hook
    parosol      voxel elements, geometric multigrid and conjugate gradients; MPI on all cores

A problem: modulus [x, y, z] MPa (0 = void, no element), one Poisson's ratio, spacing_mm, mode.
Nodes under solid voxels at z = 0 are fixed. mode "force": FORCE_N in −z as a uniform pressure on
the solid voxels at the top; "displacement": u_z = DISPLACEMENT_MM at their top nodes, free
sideways. Trilinear hexahedra; element "full" integrates with 2×2×2 points, "engine" is
engine.elasticity's (mean dilatation); the foreign codes are always "full".

Every answer is judged here, outside its time: ‖b − K u‖/‖b‖ over the free degrees of freedom in
float64, with K assembled by `stiffness` for the same element.

Time: import, reading and judging are left out; so is compilation, apart in compile_s. setup_s holds
mesh, assembly (assembly_s, where it can be told apart) and factorisation or hierarchy; total_s =
setup_s + solve_s. Memory: peak_mb when the answer is there, import_mb of it before the work began;
parosol: its processes alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from scripts.benchmarks.answer import PEERS
from scripts.benchmarks.run_peer import SOLVERS, install, run
from scripts.console.places import ROOT


def main(arguments: list[str]) -> int:
    """See the module's docstring. The foreign solvers go on in their own Python, by exec: same
    process, same limits."""
    if arguments == ["install"]:
        return install()
    if len(arguments) not in (4, 5) or arguments[0] not in SOLVERS:
        print(
            f"usage: python -m scripts.peers install | {{{','.join(SOLVERS)}}} PROBLEM.npz"
            " TOLERANCE OUT.json [engine|full]"
        )
        return 2
    solver, out = arguments[0], Path(arguments[3])
    if (
        SOLVERS[solver].foreign
        and Path(sys.prefix).resolve() != PEERS.resolve()
        and (PEERS / "bin" / "python").exists()
    ):
        python = str(PEERS / "bin" / "python")
        os.execve(
            python,
            [python, "-m", "scripts.peers", *arguments],
            os.environ | {"PYTHONPATH": str(ROOT)},
        )
    with np.load(arguments[1]) as problem:
        result = run(solver, dict(problem), float(arguments[2]), *arguments[4:])
    out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
