"""ParOSol."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.benchmarks.answer import Answer, Watched, cores
from scripts.benchmarks.voxel_model import DISPLACEMENT_MM, Model


def parosol_solver(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    import h5py
    from parosol_py.hdf5_io import write_parosol_input
    from parosol_py.runner import build_parosol_command, packaged_executable, run_parosol

    os.environ.setdefault(
        "OMPI_MCA_rmaps_base_oversubscribe", "1"
    )  # two threads of one core count as one slot

    def solve() -> Answer:
        started = time.perf_counter()
        # its file holds float32: loads in units of a quarter face, displacements in units of
        # DISPLACEMENT_MM
        unit = m.pressure_mpa * m.spacing_mm**2 / 4 if m.mode == "force" else -DISPLACEMENT_MM
        fixed, loaded = np.argwhere(~m.free), np.argwhere(m.force)
        with tempfile.TemporaryDirectory() as folder:
            file = write_parosol_input(
                Path(folder) / "in.h5",
                stiffness_gpa_xyz=m.voxels / 1e3,
                fixed_displacement_coordinates=np.column_stack([m.index[fixed[:, 0]], fixed[:, 1]]),
                fixed_displacement_values=np.rint(m.value[tuple(fixed.T)] / unit),
                loaded_node_coordinates=np.column_stack([m.index[loaded[:, 0]], loaded[:, 1]]),
                loaded_node_values=np.rint(m.force[tuple(loaded.T)] / unit),
                voxel_size_mm=m.spacing_mm,
                poisson_ratio=m.poisson,
            )
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
        solve_s = float(
            next(
                line.split()[-1]
                for line in run.stdout.splitlines()
                if line.startswith("#  Solving:")
            )
        )
        nodes = tuple(n + 1 for n in m.voxels.shape)
        u = np.zeros(m.index.shape)
        order = np.searchsorted(
            np.ravel_multi_index(tuple(m.index.T), nodes),
            np.ravel_multi_index(tuple(place.T), nodes),
        )
        u[order] = answer * unit
        note = f"MPI, {cores()} processes; setup_s holds its start and its files"
        return Answer(
            u,
            total_s - solve_s,
            solve_s,
            iterations=run.summary.iterations,
            threads=cores(),
            peak_mb=watched.mb(),
            note=note,
        )

    return solve
