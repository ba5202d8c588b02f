"""What a system must be before it is solved: held, not empty, without islands."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.ndimage import label

from engine.elasticity import CORNERS, Grid, Medium
from engine.multigrid.system import EMPTY, System, touched


def check(system: System, grid: Grid, forces: Array | None = None) -> None:
    """Refuse what no solver can answer. Raises ValueError that names it and its place in mm:

    moduli that are not finite or negative, no material at all, forces on nodes that no material
    touches, and pieces of material (connected by faces, edges or corners) that no foundation, fixed
    unknown or link holds.
    """
    fields = [np.asarray(f) for f in (system.medium.lam, system.medium.mu, system.medium.kappa)]
    wrong = ~np.all(np.isfinite(fields), axis=0) | (fields[1] < 0) | (fields[2] < 0)
    if wrong.any():
        raise ValueError(
            f"moduli must be finite and not negative; {int(wrong.sum())} voxels are not,"
            f" {_place(wrong, grid)}; check the density and its law"
        )
    solid = fields[1] > 0
    if not solid.any():
        raise ValueError(EMPTY)
    if forces is not None:
        loaded = np.any(np.asarray(forces) != 0, axis=(0, 1)) & (
            np.asarray(touched(system.medium)) == 0
        )
        if loaded.any():
            raise ValueError(
                f"{int(loaded.sum())} loaded nodes touch no material, {_place(loaded, grid, 0.0)};"
                " move the load patch onto bone"
            )
    pieces, count = label(solid, np.ones((3, 3, 3)))
    supported = np.unique(pieces[_supported(system)]).tolist()
    loose = sorted(set(range(1, count + 1)) - set(supported))
    if loose:
        places = [
            f"{int((pieces == n).sum())} voxels {_place(pieces == n, grid)}" for n in loose[:5]
        ]
        raise ValueError(
            f"{len(loose)} piece{'s' * (len(loose) > 1)} of material held by nothing:"
            f" {'; '.join(places)}{'; …' * (len(loose) > 5)}; the structure is not held: check the"
            " support patch, or drop small pieces with engine.multigrid.checks.without_islands"
        )


def _supported(system: System) -> np.ndarray:
    """The voxels [x, y, z] with a foundation, or with a node that is fixed or carries a link."""
    voxels = np.asarray(system.medium.kappa) > 0
    x, y, z = voxels.shape
    nodes = np.zeros((x + 1, y + 1, z + 1), bool)
    if system.free is not None:
        nodes |= np.any(np.asarray(system.free) == 0, axis=0)
    if system.links is not None:
        first = system.links[0]
        nodes.ravel()[
            np.asarray(first.node)[np.any(np.asarray(first.weight) != 0, axis=(0, 2))]
        ] = True
    for i, j, k in CORNERS:
        voxels = voxels | nodes[i : i + x, j : j + y, k : k + z]
    return voxels


def without_islands(medium: Medium, grid: Grid, below_mm3: float) -> tuple[Medium, list[str]]:
    """The medium without its pieces (connected by nodes) smaller than a volume, and a line for
    each that was dropped."""
    solid = np.asarray(medium.mu) > 0
    pieces, count = label(solid, np.ones((3, 3, 3)))
    volume = np.bincount(pieces.ravel(), minlength=count + 1) * grid.spacing_mm**3
    small = [n for n in range(1, count + 1) if volume[n] < below_mm3]
    keep = jnp.asarray(~np.isin(pieces, small))
    lines = [f"dropped an island of {volume[n]:.1f} mm³ {_place(pieces == n, grid)}" for n in small]
    return Medium(*(f * keep for f in (medium.lam, medium.mu, medium.kappa))), lines


def _place(mask: np.ndarray, grid: Grid, shift: float = 0.5) -> str:
    centre = np.asarray(grid.origin_mm) + grid.spacing_mm * (np.argwhere(mask).mean(0) + shift)
    return f"round ({', '.join(f'{v:.1f}' for v in centre)}) mm"
