"""Between levels: prolongation, restriction, Galerkin coarsening of materials, elements and
links."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from jax import Array
from jaxtyping import Float

from engine.elasticity import CORNERS, Links, child_interpolation, element_matrices, gather
from engine.multigrid.system import System


def prolong(c: Float[Array, "b c x y z"]) -> Float[Array, "b c x2 y2 z2"]:
    """Trilinear interpolation from n+1 to 2n+1 nodes along every axis."""
    for axis in (2, 3, 4):
        low, high = (jax.lax.slice_in_dim(c, i, c.shape[axis] - 1 + i, axis=axis) for i in (0, 1))
        last = jax.lax.slice_in_dim(c, c.shape[axis] - 1, c.shape[axis], axis=axis)
        pairs = jnp.stack([low, 0.5 * (low + high)], axis=axis + 1)
        shape = (*c.shape[:axis], 2 * (c.shape[axis] - 1), *c.shape[axis + 1 :])
        c = jnp.concatenate([pairs.reshape(shape), last], axis=axis)
    return c


def restrict(f: Float[Array, "b c x2 y2 z2"]) -> Float[Array, "b c x y z"]:
    """The transpose of `prolong`."""
    for axis in (2, 3, 4):
        even = jax.lax.slice_in_dim(f, 0, f.shape[axis], 2, axis)
        odd = 0.5 * jax.lax.slice_in_dim(f, 1, f.shape[axis], 2, axis)
        low, high = [(0, 0)] * 5, [(0, 0)] * 5
        low[axis], high[axis] = (0, 1), (1, 0)
        f = even + jnp.pad(odd, low) + jnp.pad(odd, high)
    return f


def _children(field: Array) -> Array:
    """Voxel fields [..., x, y, z] as [8, ..., x/2, y/2, z/2], in the order of CORNERS."""
    return jnp.stack([field[..., i::2, j::2, k::2] for i, j, k in CORNERS])


def coarsen_medium(system: System, spacing_mm: float) -> Array:
    """Element matrices of the first coarse level, [24, 24, x/2, y/2, z/2], straight from the
    fields."""
    matrices = jnp.asarray(np.stack(element_matrices(spacing_mm)), jnp.float32)
    transfer = jnp.asarray(child_interpolation(), jnp.float32)
    medium = system.medium
    fields = _children(jnp.stack([medium.lam, medium.mu, medium.kappa]).astype(jnp.float32))
    if system.free is None:
        table = jnp.einsum("cji,mjk,ckl->cmil", transfer, matrices, transfer, precision="highest")
        return jnp.einsum("cmxyz,cmil->ilxyz", fields, table, precision="highest")
    free = _children(gather(system.free[None].astype(jnp.float32))[0])

    def add(total: Array, child: tuple[Array, Array, Array]) -> tuple[Array, None]:
        field, mask, p = child
        k = (
            jnp.einsum("mxyz,mij->ijxyz", field, matrices, precision="highest")
            * mask[:, None]
            * mask[None]
        )
        return total + jnp.einsum("ji,jkxyz,kl->ilxyz", p, k, p, precision="highest"), None

    zero = jnp.zeros((24, 24, *fields.shape[2:]), jnp.float32)
    return jax.lax.scan(add, zero, (fields, free, transfer))[0]


def coarsen_elements(k: Array) -> Array:
    """Galerkin coarse element matrices of stored fine ones, [24, 24, x, y, z]."""
    transfer = jnp.asarray(child_interpolation(), k.dtype)

    def add(total: Array, child: tuple[Array, Array]) -> tuple[Array, None]:
        fine, p = child
        return total + jnp.einsum("ji,jkxyz,kl->ilxyz", p, fine, p, precision="highest"), None

    shape = tuple(n // 2 for n in k.shape[2:])
    return jax.lax.scan(add, jnp.zeros((24, 24, *shape), k.dtype), (_children(k), transfer))[0]


def coarsen_links(links: Links, shape: tuple[int, int, int], levels: int) -> tuple[Links, ...]:
    """The links on every level: W_{l+1} = W_l P, exact. `shape` is the finest grid's voxels."""
    out = [links]
    for _ in range(levels):
        last = out[-1]
        shape = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
        p = scipy.sparse.kron(
            scipy.sparse.kron(_interpolation(shape[0]), _interpolation(shape[1])),
            _interpolation(shape[2]),
        ).tocsr()
        weight = np.moveaxis(np.asarray(last.weight), -1, 1)  # [q, 3, n]
        coarse = (
            scipy.sparse.csr_matrix(weight.reshape(-1, weight.shape[-1])) @ p[np.asarray(last.node)]
        )
        node = np.unique(coarse.indices[coarse.data != 0])
        dense = coarse[:, node].toarray().reshape(*weight.shape[:2], -1)
        out.append(Links(node, np.moveaxis(dense, 1, -1), last.stiffness))
    return tuple(out)


def _interpolation(coarse: int) -> scipy.sparse.csr_matrix:
    """Linear interpolation [2n+1, n+1] along one axis from n coarse voxels."""
    even = np.arange(coarse + 1)
    row = np.concatenate([2 * even, 2 * even[:-1] + 1, 2 * even[:-1] + 1])
    value = np.concatenate([np.ones(coarse + 1), np.full(2 * coarse, 0.5)])
    return scipy.sparse.csr_matrix((value, (row, np.concatenate([even, even[:-1], even[1:]]))))
