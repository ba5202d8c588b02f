"""ParOSol."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from parosol_py.hdf5_io import write_parosol_input
from parosol_py.runner import build_parosol_command, packaged_executable, run_parosol

from scripts.benchmarks.answer import Answer, Watched, cores
from scripts.benchmarks.voxel_model import DISPLACEMENT_MM, Model


def parosol_solver(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    """ParOSol by its command, on all cores."""
    # two threads of one core count as one slot
    os.environ.setdefault("OMPI_MCA_rmaps_base_oversubscribe", "1")

    def solve() -> Answer:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            file = _written(m, Path(folder) / "in.h5")
            command = build_parosol_command(
                executable=packaged_executable(),
                input_file=file.name,
                outputs=(),
                tolerance=tolerance,
                mpi_processes=cores(),
            )
            with Watched(folder) as watched:
                run = run_parosol(command, cwd=folder)
            if run.returncode:
                raise RuntimeError(
                    f"parosol returned {run.returncode}: {(run.stderr or run.stdout)[-300:]}"
                )
            with h5py.File(file) as h5:
                place = np.rint(h5["Mesh/Coordinates"][:] / m.spacing_mm).astype(int)
                answer = h5["Solution/disp"][:]
        total_s = time.perf_counter() - started
        lines = run.stdout.splitlines()
        solve_s = float(next(x.split()[-1] for x in lines if x.startswith("#  Solving:")))
        note = f"MPI, {cores()} processes; setup_s holds its start and its files"
        return Answer(
            _in_our_order(m, place, answer * _unit(m)),
            total_s - solve_s,
            solve_s,
            iterations=run.summary.iterations,
            threads=cores(),
            peak_mb=watched.mb(),
            note=note,
        )

    return solve


def _unit(m: Model) -> float:
    """What its numbers are multiples of, as its file holds float32: loads of a quarter face,
    displacements of DISPLACEMENT_MM."""
    return m.pressure_mpa * m.spacing_mm**2 / 4 if m.mode == "force" else -DISPLACEMENT_MM


def _written(m: Model, path: Path) -> Path:
    """The problem as its HDF5."""
    fixed, loaded = np.argwhere(~m.free), np.argwhere(m.force)
    return write_parosol_input(
        path,
        stiffness_gpa_xyz=m.voxels / 1e3,
        fixed_displacement_coordinates=np.column_stack([m.index[fixed[:, 0]], fixed[:, 1]]),
        fixed_displacement_values=np.rint(m.value[tuple(fixed.T)] / _unit(m)),
        loaded_node_coordinates=np.column_stack([m.index[loaded[:, 0]], loaded[:, 1]]),
        loaded_node_values=np.rint(m.force[tuple(loaded.T)] / _unit(m)),
        voxel_size_mm=m.spacing_mm,
        poisson_ratio=m.poisson,
    )


def _in_our_order(m: Model, place: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Nodal values [n, 3] of its nodes, which lie at `place` [n, 3], in the model's order."""
    nodes = tuple(n + 1 for n in m.voxels.shape)
    u = np.zeros(m.index.shape)
    order = np.searchsorted(
        np.ravel_multi_index(tuple(m.index.T), nodes), np.ravel_multi_index(tuple(place.T), nodes)
    )
    u[order] = values
    return u
