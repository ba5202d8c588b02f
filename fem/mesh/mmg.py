"""MMG in a process of its own: it can loop without end or crash on odd input, and must not take the
run with it.

python -m fem.mesh.mmg in.npz out.npz
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def remesh_apart(
    points: np.ndarray,
    tets: np.ndarray,
    refs: np.ndarray,
    size_mm: np.ndarray,
    options: dict[str, float],
    timeout_s: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MMG3D with references per tetrahedron and the size field [n] in mm. Returns points, tets,
    references.

    Raises RuntimeError when MMG fails, crashes or takes longer than timeout_s.
    """
    with tempfile.TemporaryDirectory(prefix="spinefit-mmg-") as folder:
        input_path, output_path = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(
            input_path,
            points=points,
            tets=tets,
            refs=refs,
            size=size_mm,
            options=json.dumps(options),
        )
        try:
            done = subprocess.run(
                [sys.executable, "-m", "fem.mesh.mmg", str(input_path), str(output_path)],
                cwd=Path(__file__).resolve().parents[2],
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"it did not end within {timeout_s:g} s") from error
        if done.returncode or not output_path.exists():
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise RuntimeError(f"exit {done.returncode}: {last}")
        with np.load(output_path) as result:
            return result["points"], result["tets"], result["refs"]


def die_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it ends, however it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _main(input_path: str, output_path: str) -> None:
    from mmgpy import MmgMesh3D

    die_with_parent()
    with np.load(input_path) as data:
        mesh = MmgMesh3D()
        mesh.set_mesh_size(vertices=len(data["points"]), tetrahedra=len(data["tets"]))
        mesh.set_vertices(np.ascontiguousarray(data["points"]))
        mesh.set_tetrahedra(data["tets"].astype(np.int32), data["refs"].astype(np.int64))
        mesh.set_field("metric", np.ascontiguousarray(data["size"][:, None]))
        options = json.loads(str(data["options"]))
    mesh.remesh(verbose=-1, **options)
    tets, refs = mesh.get_tetrahedra_with_refs()
    np.savez(
        output_path,
        points=mesh.get_vertices(),
        tets=np.asarray(tets, np.int64),
        refs=np.asarray(refs, np.int64),
    )


if __name__ == "__main__":
    _main(*sys.argv[1:3])
