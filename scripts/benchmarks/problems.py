"""Benchmark problems: moduli on a voxel grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

TITANIUM_MPA, PAD_MPA, SHELL_MPA, DISC_MPA, BONE_MPA = 110_000.0, 2500.0, 3000.0, 4.0, 500.0


# -- problems --------------------------------------------------------------------------------------
def make_problem(
    name: str, unknowns: int, *, contrast: float = 1e4, seed: int = 0, mode: str = "force"
) -> dict[str, Any]:
    """A problem of about so many unknowns: what np.savez takes.

    anatomy    two vertebral bodies (100-1000 MPa, shell), a disc, a titanium ring in it; half of
               the box is void
    box        dense, every voxel's modulus log-uniform in [10 GPa / contrast, 10 GPa]
    gyroid     a titanium gyroid, walls of 4 voxels in periods of 32, partly filled voxels at its
               faces, between two bone blocks
    """
    if name not in _BUILDERS or mode not in ("force", "displacement"):
        raise ValueError(
            f"problem {name!r}, mode {mode!r}: choose one of {', '.join(_BUILDERS)}, and force or"
            " displacement"
        )
    across, tried = max(4, round((unknowns / 3) ** (1 / 3))), set[int]()
    while across not in tried:
        tried.add(across)
        modulus, spacing_mm = _BUILDERS[name](across, contrast, np.random.default_rng(seed))
        solid = modulus > 0.0
        touched = np.pad(solid, 1)
        for axis in range(3):
            low, high = (
                np.take(touched, range(i, touched.shape[axis] - 1 + i), axis) for i in (0, 1)
            )
            touched = low | high
        across = max(4, round(across * (unknowns / (3 * touched[..., 1:].sum())) ** (1 / 3)))
    part, _ = ndimage.label(solid)
    kept = (
        part == np.bincount(part.ravel())[1:].argmax() + 1
    )  # by faces: two bodies that share but an edge hinge on it
    if not (kept[..., 0].any() and kept[..., -1].any()):
        raise ValueError(
            f"{name} of {unknowns} unknowns does not reach from bottom to top; ask for more"
            " unknowns"
        )
    # ParOSol keeps GPa in single precision: everybody gets numbers that it can hold
    modulus = 1e3 * (np.where(kept, modulus, 0.0) / 1e3).astype(np.float32).astype(np.float64)
    return {
        "modulus": modulus,
        "poisson": 0.3,
        "spacing_mm": spacing_mm,
        "mode": mode,
        "name": name,
    }


def _anatomy(across: int, contrast: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    h = 60.0 / across
    shape = (across, round(0.8 * across), across)
    x, y, z = np.meshgrid(*((np.arange(n) + 0.5) * h for n in shape), indexing="ij")
    rho = np.hypot((x - 30.0) / 24.0, (y - shape[1] * h / 2) / 19.2)
    disc = np.abs(z - 30.0) < 4.5
    bone = (rho < 1.0) & ~disc
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 3.0 / h)
    e = np.where(bone, 10 ** (2.5 + np.clip(texture / texture.std(), -2.5, 2.5) / 5), 0.0)
    e[bone & ~ndimage.binary_erosion(bone, iterations=max(1, round(1.0 / h)), border_value=1)] = (
        SHELL_MPA
    )
    e[disc & (rho < 0.95)] = DISC_MPA
    e[disc & (rho > 0.45) & (rho < 0.70)] = TITANIUM_MPA
    return _with_pads(e, max(2, round(2.0 / h))), h


def _box(across: int, contrast: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    return 1e4 * contrast ** -rng.random((across,) * 3), 1.0


def _gyroid(across: int, contrast: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    period, wall = 32.0, 4.0
    shape = (across, across, round(1.5 * across))
    a, b, c = np.meshgrid(
        *(2 * np.pi * (np.arange(n) + 0.5) / period for n in shape), indexing="ij"
    )
    g = np.sin(a) * np.cos(b) + np.sin(b) * np.cos(c) + np.sin(c) * np.cos(a)
    slope = np.sqrt(
        (np.cos(a) * np.cos(b) - np.sin(c) * np.sin(a)) ** 2
        + (np.cos(b) * np.cos(c) - np.sin(a) * np.sin(b)) ** 2
        + (np.cos(c) * np.cos(a) - np.sin(b) * np.sin(c)) ** 2
    ) * (2 * np.pi / period)
    filled = np.clip(0.5 + wall / 2 - np.abs(g) / slope, 0.0, 1.0)
    e = TITANIUM_MPA * np.where(filled > 0.05, filled, 0.0)
    block = round(across * 0.375)
    e[..., :block] = e[..., -block:] = BONE_MPA
    return _with_pads(e, 2), 0.1


def _with_pads(e: np.ndarray, layers: int) -> np.ndarray:
    """The outermost layers at bottom and top, where solid, become flat stiff pads."""
    for end in (slice(0, layers), slice(e.shape[2] - layers, None)):
        e[..., end] = np.where(e[..., end] > 0.0, PAD_MPA, 0.0)
    return e


_BUILDERS: dict[str, Callable[[int, float, np.random.Generator], tuple[np.ndarray, float]]] = {
    "anatomy": _anatomy,
    "box": _box,
    "gyroid": _gyroid,
}
