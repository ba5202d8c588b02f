"""The coarsest level, factorised by planes; links by Woodbury."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from jax import Array

from engine.elasticity import CORNERS, Links
from engine.multigrid.system import NOT_HELD, Chain


def coarsest_chain(k: np.ndarray, links: Links | None) -> Chain:
    """Factors of the coarsest operator, element matrices k [24, 24, x, y, z]. Raises ValueError
    when it is not held."""
    matrix = sparse_matrix(k)
    nodes = tuple(n + 1 for n in k.shape[2:])
    order = _plane_order(nodes)
    planes = max(nodes)
    m = matrix.shape[0] // planes
    ordered = matrix[order][:, order].tocsr()
    block = [slice(i * m, (i + 1) * m) for i in range(planes)]
    inverse, step = np.zeros((planes, m, m)), np.zeros((planes, m, m))
    schur = ordered[block[0], block[0]].toarray()
    for i in range(planes):
        try:
            factor = scipy.linalg.cho_factor(schur)
            pivot = np.diag(factor[0]) ** 2 / np.maximum(ordered.diagonal()[block[i]], 1e-300)
            if pivot.min() < 1e-7:
                raise np.linalg.LinAlgError
        except np.linalg.LinAlgError as error:
            raise ValueError(NOT_HELD) from error
        inverse[i] = scipy.linalg.cho_solve(factor, np.eye(m))
        if i + 1 < planes:
            off = ordered[block[i], block[i + 1]].toarray()
            step[i] = scipy.linalg.cho_solve(factor, off)
            schur = ordered[block[i + 1], block[i + 1]].toarray() - off.T @ step[i]
    inverse = 0.5 * (inverse + inverse.transpose(0, 2, 1))
    if links is None:
        return Chain(jnp.asarray(inverse, jnp.float32), jnp.asarray(step, jnp.float32), None, None)
    rows = link_rows(links, nodes)
    z = _back_and_forth(inverse, step, rows[:, order].reshape(len(rows), planes, m))
    z_natural = np.empty_like(rows)
    z_natural[:, order] = z.reshape(len(rows), -1)
    stiffness = np.asarray(links.stiffness, np.float64)
    core = np.linalg.solve(np.eye(len(rows)) + stiffness @ (rows @ z_natural.T), stiffness)
    return Chain(
        *(jnp.asarray(a, jnp.float32) for a in (inverse, step, z_natural.T, 0.5 * (core + core.T)))
    )


def sparse_matrix(k: np.ndarray) -> scipy.sparse.csr_matrix:
    """The assembled matrix of stored element matrices [24, 24, x, y, z]; unknowns ordered [3,
    x+1, y+1, z+1]."""
    shape = k.shape[2:]
    nodes = tuple(n + 1 for n in shape)
    number = np.arange(np.prod(nodes)).reshape(nodes)
    corner = [number[i : i + shape[0], j : j + shape[1], m : m + shape[2]] for i, j, m in CORNERS]
    dof = np.stack([c + axis * number.size for c in corner for axis in range(3)]).reshape(24, -1)
    row, column = (
        np.broadcast_to(dof[:, None], (24, 24, dof.shape[1])),
        np.broadcast_to(dof[None], (24, 24, dof.shape[1])),
    )
    size = 3 * number.size
    matrix = scipy.sparse.coo_matrix(
        (k.ravel(), (row.ravel(), column.ravel())), shape=(size, size)
    ).tocsr()
    diagonal = matrix.diagonal()
    empty = diagonal <= 1e-12 * diagonal.max()
    return (
        matrix + scipy.sparse.diags(np.where(empty, diagonal.max(), 0.0)) if empty.any() else matrix
    )


def link_rows(links: Links, nodes: tuple[int, ...]) -> np.ndarray:
    """W [q, n] dense, unknowns ordered [3, nodes]."""
    spread = np.zeros((len(links.weight), 3, int(np.prod(nodes))))
    spread[:, :, np.asarray(links.node)] = np.moveaxis(np.asarray(links.weight), -1, 1)
    return spread.reshape(len(spread), -1)


def _plane_order(nodes: tuple[int, ...]) -> np.ndarray:
    """Unknown numbers [3, nodes] sorted plane by plane along the longest axis."""
    number = np.arange(3 * int(np.prod(nodes))).reshape(3, *nodes)
    return np.moveaxis(number, 1 + int(np.argmax(nodes)), 0).ravel()


def _back_and_forth(inverse: np.ndarray, step: np.ndarray, r: np.ndarray) -> np.ndarray:
    """T⁻¹ r on the host, r [b, p, m]."""
    y = r.copy()
    for i in range(1, len(inverse)):
        y[:, i] -= y[:, i - 1] @ step[i - 1]
    x = np.einsum("bpm,pnm->bpn", y, inverse)
    for i in range(len(inverse) - 2, -1, -1):
        x[:, i] -= x[:, i + 1] @ step[i].T
    return x


def solve_coarsest(chain: Chain, r: Array) -> Array:
    """K⁻¹ r of the coarsest level, r [b, 3, x, y, z]: y_k = r_k − E_{k−1}ᵀ y_{k−1}, x_k = D_k⁻¹
    y_k − E_k x_{k+1}."""
    axis = 2 + int(np.argmax(r.shape[2:]))
    moved = jnp.moveaxis(r, axis, 0)
    planes = moved.reshape(moved.shape[0], r.shape[0], -1)

    def forth(before: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        right, step = given
        y = right - before
        return y @ step, y

    _, y = jax.lax.scan(forth, jnp.zeros_like(planes[0]), (planes, chain.step))
    middle = jnp.einsum("pbm,pnm->pbn", y, chain.inverse)

    def back(after: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        x, step = given
        x = x - after @ step.T
        return x, x

    _, x = jax.lax.scan(back, jnp.zeros_like(planes[0]), (middle, chain.step), reverse=True)
    out = jnp.moveaxis(x.reshape(moved.shape), 0, axis)
    if chain.z is None or chain.core is None:
        return out
    along = r.reshape(r.shape[0], -1) @ chain.z
    return out - ((along @ chain.core) @ chain.z.T).reshape(r.shape)
