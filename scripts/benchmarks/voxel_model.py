"""The discrete problem that every solver gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

FORCE_N, DISPLACEMENT_MM = 1000.0, -0.1
CORNERS = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
#: VTK's order of a hexahedron's corners, which SfePy and jax-fem share, in CORNERS.
HEXAHEDRON = [0, 4, 6, 2, 1, 5, 7, 3]


# -- the discrete problem --------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """Solid voxels and their nodes, numbered with z fastest, and what is prescribed there.

    voxels [x, y, z] MPa; modulus [m]; cells [m, 8] in the order of CORNERS; index [n, 3] place in
    the grid of nodes; free [n, 3]; value [n, 3] mm, 0 where free; force [n, 3] N.
    """

    voxels: np.ndarray
    poisson: float
    spacing_mm: float
    mode: str
    modulus: np.ndarray
    cells: np.ndarray
    index: np.ndarray
    free: np.ndarray
    value: np.ndarray
    force: np.ndarray

    @property
    def points_mm(self) -> np.ndarray:
        return self.index * self.spacing_mm

    @property
    def pressure_mpa(self) -> float:
        return FORCE_N / (np.count_nonzero(self.voxels[..., -1]) * self.spacing_mm**2)

    def lame(self) -> tuple[np.ndarray, np.ndarray]:
        """λ, μ [m], MPa."""
        nu = self.poisson
        return self.modulus * nu / ((1 + nu) * (1 - 2 * nu)), self.modulus / (2 * (1 + nu))

    def dense(self, field: np.ndarray) -> np.ndarray:
        """A nodal field [n, 3] as [3, x+1, y+1, z+1], zero at nodes of no solid voxel: the
        engine's layout."""
        out = np.zeros((3, *(n + 1 for n in self.voxels.shape)), field.dtype)
        out[:, *self.index.T] = field.T
        return out


def model(problem: dict[str, Any]) -> Model:
    """The problem's nodes, elements, supports and loads. Raises ValueError when nothing is held
    or loaded."""
    voxels, mode = np.asarray(problem["modulus"], np.float64), str(problem["mode"])
    if not (voxels[..., 0].any() and voxels[..., -1].any()) or mode not in (
        "force",
        "displacement",
    ):
        raise ValueError(
            f"mode {mode!r}, and solid voxels in the lowest and the highest layer? one of the two"
            " is missing"
        )
    nodes = tuple(n + 1 for n in voxels.shape)
    corner = np.argwhere(voxels > 0.0)
    number = np.stack([np.ravel_multi_index(tuple((corner + c).T), nodes) for c in CORNERS], axis=1)
    used = np.zeros(np.prod(nodes), bool)
    used[number] = True
    cells = (np.cumsum(used) - 1)[number].astype(np.int32)
    index = np.stack(np.unravel_index(np.flatnonzero(used), nodes), axis=1)
    free, value, force = np.ones(index.shape, bool), np.zeros(index.shape), np.zeros(index.shape)
    free[index[:, 2] == 0] = False
    top = index[:, 2] == voxels.shape[2]
    if mode == "displacement":
        free[top, 2], value[top, 2] = False, DISPLACEMENT_MM
    else:
        above = cells[corner[:, 2] == voxels.shape[2] - 1][:, CORNERS[:, 2] == 1]
        force[:, 2] = -FORCE_N / above.size * np.bincount(above.ravel(), minlength=len(index))
    spacing_mm, poisson = float(problem["spacing_mm"]), float(problem["poisson"])
    return Model(
        voxels, poisson, spacing_mm, mode, voxels[voxels > 0.0], cells, index, free, value, force
    )


def element_matrices(element: str, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """K_λ, K_μ [24, 24] for unit λ, μ: "engine" (mean dilatation) or "full" (2×2×2 points for
    both)."""
    if element == "engine":
        from engine.elasticity import element_matrices as of_engine

        return of_engine(spacing_mm)[:2]
    if element != "full":
        raise ValueError(f"element {element!r} is unknown; choose engine or full")
    signs, k_lam, k_mu = 2.0 * CORNERS - 1.0, np.zeros((24, 24)), np.zeros((24, 24))
    for point in signs / np.sqrt(3.0):
        factor = 1.0 + signs * point
        gradient = (
            signs / (4.0 * spacing_mm) * factor[:, [1, 0, 0]] * factor[:, [2, 2, 1]]
        )  # ∂N_a/∂x_c
        symmetric = np.einsum("ai,cj->acij", gradient, np.eye(3))
        strain = (symmetric + symmetric.swapaxes(2, 3)).reshape(24, 9) / 2
        weight = spacing_mm**3 / 8
        k_lam += weight * np.outer(gradient.ravel(), gradient.ravel())
        k_mu += weight * 2.0 * strain @ strain.T
    return k_lam, k_mu


def stiffness(m: Model, element: str) -> sp.bsr_matrix:
    """K of all nodes in 3×3 blocks, no supports: summed into the 27 neighbours of each node, so
    nothing is sorted."""
    k_lam, k_mu = element_matrices(element, m.spacing_mm)
    lam, mu = (field[:, None, None] for field in m.lame())
    block, column = np.zeros((len(m.index), 27, 3, 3)), np.full((len(m.index), 27), -1, np.int32)
    for a in range(8):
        for b in range(8):
            slot = int(13 + (CORNERS[b] - CORNERS[a]) @ (9, 3, 1))
            rows, part = m.cells[:, a], np.s_[3 * a : 3 * a + 3, 3 * b : 3 * b + 3]
            block[rows, slot] += lam * k_lam[part] + mu * k_mu[part]
            column[rows, slot] = m.cells[:, b]
    there = column >= 0
    pointer = np.concatenate([[0], np.cumsum(there.sum(1))])
    return sp.bsr_matrix((block[there], column[there], pointer), shape=(m.index.size, m.index.size))


def reduced(m: Model, k: sp.bsr_matrix) -> tuple[sp.bsr_matrix, np.ndarray, np.ndarray]:
    """K and b of u − value on the nodes that can move, [n] bool third.

    A fixed component of such a node keeps its diagonal and nothing else.
    """
    moving = np.any(m.free, axis=1)
    row = np.repeat(np.arange(len(moving)), np.diff(k.indptr))
    kept = moving[row] & moving[k.indices]
    row, column = row[kept], k.indices[kept]
    mask = m.free[row][:, :, None] & m.free[column][:, None, :]
    mask |= (row == column)[:, None, None] & np.eye(3, dtype=bool)
    number = np.cumsum(moving) - 1
    pointer = np.concatenate([[0], np.cumsum(np.bincount(number[row]))])
    size = 3 * int(moving.sum())
    matrix = sp.bsr_matrix(
        (k.data[kept] * mask, number[column].astype(np.int32), pointer), shape=(size, size)
    )
    return matrix, (right_hand_side(m, k) * m.free)[moving].ravel(), moving


def right_hand_side(m: Model, k: sp.bsr_matrix) -> np.ndarray:
    return m.force - (k @ m.value.ravel()).reshape(-1, 3)


def assembled_system(m: Model, element: str) -> tuple[sp.bsr_matrix, np.ndarray, np.ndarray]:
    return reduced(m, stiffness(m, element))


def spread(m: Model, moving: np.ndarray, x: np.ndarray) -> np.ndarray:
    u = m.value.copy()
    u[moving] += x.reshape(-1, 3)
    return u
