"""pyamg."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyamg

from scripts.benchmarks.answer import Answer
from scripts.benchmarks.voxel_model import Model, assembled_system, spread


def pyamg_solver(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    def solve() -> Answer:
        started = time.perf_counter()
        k, b, moving = assembled_system(m, element)
        assembled = time.perf_counter()
        modes = _rigid_modes(m.points_mm[moving]) * m.free[moving].ravel()[:, None]
        # the fastest of those tried: its defaults take twice as long, and a dense pseudo-inverse on
        # the coarsest level more
        hierarchy = pyamg.smoothed_aggregation_solver(
            k,
            B=modes,
            smooth="energy",
            strength=("symmetric", {"theta": 0.05}),
            max_coarse=100,
            coarse_solver="splu",
        )
        ready = time.perf_counter()
        residuals: list[float] = []
        x = hierarchy.solve(b, tol=tolerance, maxiter=2000, accel="cg", residuals=residuals)
        solved = time.perf_counter()
        note = (
            f"{len(hierarchy.levels)} levels, operator complexity"
            f" {hierarchy.operator_complexity():.2f}"
        )
        return Answer(
            spread(m, moving, x),
            ready - started,
            solved - ready,
            assembled - started,
            iterations=len(residuals) - 1,
            note=note,
        )

    return solve


def _rigid_modes(points_mm: np.ndarray) -> np.ndarray:
    """Three translations and three rotations [3 n, 6]."""
    r = points_mm - points_mm.mean(0)
    r = r / np.abs(r).max()
    turns = np.stack([np.cross(axis, r) for axis in np.eye(3)], axis=-1)
    return np.concatenate([np.broadcast_to(np.eye(3), (len(r), 3, 3)), turns], axis=2).reshape(
        -1, 6
    )
