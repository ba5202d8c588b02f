"""What a solver answers, and how it is judged."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.voxel_model import Model, right_hand_side, stiffness
from scripts.console.places import ROOT

PEERS = ROOT / ".cache" / "peers"
#: Above so many unknowns the engine's answer is judged without a matrix.
ASSEMBLED_BELOW = 2_000_000
NOT_INSTALLED = "not installed: run python -m scripts.peers install"


# -- solvers ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answer:
    """u [n, 3] mm and what it took; None where it cannot be told."""

    u: np.ndarray
    setup_s: float
    solve_s: float
    assembly_s: float | None = None
    compile_s: float | None = None
    iterations: int | None = None
    threads: int = 1
    peak_mb: float | None = None
    note: str = ""


def cores() -> int:
    return len(os.sched_getaffinity(0))


class Watched:
    """Peak memory of all processes that work in a folder: ru_maxrss of a child starts with its
    parent's, and MPI has several."""

    def __init__(self, folder: str) -> None:
        self.folder, self.done, self.peak_kb = (
            os.path.realpath(folder),
            threading.Event(),
            dict[str, int](),
        )

    def __enter__(self) -> Watched:
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.1):
            for process in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if os.readlink(f"/proc/{process}/cwd") == self.folder:
                        status = Path(f"/proc/{process}/status").read_text()
                        self.peak_kb[process] = int(status.split("VmHWM:")[1].split()[0])
                except (OSError, IndexError):  # it ended meanwhile
                    continue

    def mb(self) -> float:
        return sum(self.peak_kb.values()) / 1024


def judge(m: Model, u: np.ndarray, element: str) -> tuple[float, float]:
    """‖b − K u‖/‖b‖ over the free degrees of freedom, and the compliance in N·mm: f·u, or
    reaction · u where u is prescribed."""
    k = stiffness(m, element)
    inner = (k @ u.ravel()).reshape(-1, 3)
    residual = np.linalg.norm((m.force - inner)[m.free]) / np.linalg.norm(
        right_hand_side(m, k)[m.free]
    )
    return float(residual), float(np.sum((m.force if m.mode == "force" else inner * ~m.free) * u))


def judge_matrix_free(m: Model, u: np.ndarray, element: str) -> tuple[float, float]:
    """`judge` for sizes whose matrix does not fit: K u by engine.elasticity.apply, JAX code that
    the compiled solver does not use."""
    import jax.numpy as jnp

    from engine.elasticity import Medium, apply

    nu = m.poisson
    lam, mu = m.voxels * (nu / ((1 + nu) * (1 - 2 * nu))), m.voxels / (2 * (1 + nu))
    medium = Medium(jnp.asarray(lam), jnp.asarray(mu), jnp.zeros(lam.shape))
    inner = np.asarray(apply(medium, jnp.asarray(m.dense(u))[None], m.spacing_mm))[0][
        :, *m.index.T
    ].T
    if m.mode != "force":
        raise ValueError(
            "displacement mode is judged by the assembled matrix only; ask for fewer unknowns"
        )
    residual = np.linalg.norm((m.force - inner)[m.free]) / np.linalg.norm(m.force[m.free])
    return float(residual), float(np.sum(m.force * u))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
