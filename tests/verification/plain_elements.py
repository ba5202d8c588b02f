"""The plain way to the voxel operator, for comparison: loops over corners, 24×24 products, SciPy's
sparse matrices.

Nothing here is fast and nothing is shared with engine.elasticity but the element matrices, which
have tests of their own. Unknowns are numbered as in a flattened [3, x+1, y+1, z+1] field.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla

from engine.elasticity import element_matrices


def unknowns(shape: tuple[int, int, int]) -> np.ndarray:
    """Numbers of each voxel's unknowns [voxels, 24], corner-major with z fastest."""
    nodes = tuple(n + 1 for n in shape)
    number = np.arange(np.prod(nodes)).reshape(nodes)
    nx, ny, nz = shape
    corners = [
        number[i : i + nx, j : j + ny, k : k + nz].ravel() for i, j, k in product((0, 1), repeat=3)
    ]
    return np.stack(
        [corner + axis * number.size for corner in corners for axis in range(3)], axis=1
    )


def element_sum(fields, spacing_mm, matrices=None) -> np.ndarray:
    """Element matrices [voxels, 24, 24] of λ, μ, κ fields."""
    matrices = element_matrices(spacing_mm) if matrices is None else matrices
    return sum(
        np.asarray(f, float).ravel()[:, None, None] * k
        for f, k in zip(fields, matrices, strict=True)
    )


def plain_product(fields, u, spacing_mm) -> np.ndarray:
    """K u by gather, a 24×24 product per voxel, and scatter, for u [b, 3, x+1, y+1, z+1]."""
    index, k = unknowns(fields[0].shape), element_sum(fields, spacing_mm)
    out = np.zeros((len(u), u[0].size))
    for b, flat in enumerate(np.asarray(u).reshape(len(u), -1)):
        np.add.at(out[b], index, np.einsum("eij,ej->ei", k, flat[index]))
    return out.reshape(u.shape)


def assembled(fields, spacing_mm, links=None, matrices=None) -> sp.csc_matrix:
    """K as a sparse matrix."""
    shape = fields[0].shape
    index, k = unknowns(shape), element_sum(fields, spacing_mm, matrices)
    rows, columns = np.repeat(index, 24, axis=1).ravel(), np.tile(index, (1, 24)).ravel()
    size = 3 * int(np.prod([n + 1 for n in shape]))
    matrix = sp.coo_matrix((k.ravel(), (rows, columns)), shape=(size, size)).tocsc()
    if links is None:
        return matrix
    w = np.zeros((len(links.weight), 3, size // 3))
    w[:, :, np.asarray(links.node)] = np.moveaxis(np.asarray(links.weight), -1, 1)
    w = sp.csc_matrix(w.reshape(len(w), -1))
    return (matrix + w.T @ sp.csc_matrix(np.asarray(links.stiffness)) @ w).tocsc()


def solved(matrix, force, fixed, values) -> np.ndarray:
    """u of K u = force with u[fixed] = values, by SuperLU."""
    u = np.zeros(matrix.shape[0])
    u[fixed] = values
    free = np.setdiff1d(np.arange(len(u)), fixed)
    u[free] = spla.spsolve(matrix[free][:, free], (force - matrix @ u)[free])
    return u


def fully_integrated(spacing_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same element matrices with the λ term at all eight Gauss points: the element that
    locks."""
    _, k_mu, k_kappa = element_matrices(spacing_mm)
    k_lam = np.zeros((24, 24))
    corners = 2.0 * np.array(list(product((0, 1), repeat=3))) - 1.0
    for gauss in corners / np.sqrt(3):
        divergence = np.empty((8, 3))
        for c in range(3):
            a, b = (d for d in range(3) if d != c)
            divergence[:, c] = (
                corners[:, c]
                * (1 + corners[:, a] * gauss[a])
                * (1 + corners[:, b] * gauss[b])
                / 4
                / spacing_mm
            )
        k_lam += spacing_mm**3 / 8 * np.outer(divergence, divergence)
    return k_lam, k_mu, k_kappa


def lame(e: float, nu: float) -> tuple[float, float]:
    return e * nu / (1 + nu) / (1 - 2 * nu), e / 2 / (1 + nu)
