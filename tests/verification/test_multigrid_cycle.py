"""The levels of the preconditioner and its cycle against their definitions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_system import GRID, NODES, masked

from engine import multigrid
from engine.elasticity import Grid
from engine.multigrid import SolverSettings, coarsest
from engine.multigrid.cycle import levels_of, operate_coarse, w_cycle


# -- transfer --------------------------------------------------------------------------------------
def test_restriction_is_the_transpose_of_prolongation():
    rng = np.random.default_rng(0)
    c, f = (
        jnp.asarray(rng.normal(size=(2, 3, 4, 3, 5))),
        jnp.asarray(rng.normal(size=(2, 3, 7, 5, 9))),
    )
    left, right = jnp.vdot(multigrid.prolong(c), f), jnp.vdot(c, multigrid.restrict(f))
    assert abs(float(left - right)) < 1e-13 * float(jnp.linalg.norm(c) * jnp.linalg.norm(f))


def test_prolongation_keeps_trilinear_fields():
    coarse, fine = Grid((3, 2, 4), (1.0,) * 3, 2.0), Grid((6, 4, 8), (1.0,) * 3, 1.0)

    def field(grid: Grid) -> jax.Array:
        x, y, z = np.moveaxis(grid.nodes(), -1, 0)
        return jnp.asarray((2 + x * y * z - 3 * x * z + y)[None, None])

    assert float(jnp.abs(multigrid.prolong(field(coarse)) - field(fine)).max()) < 1e-12


# -- Galerkin --------------------------------------------------------------------------------------
def test_every_coarse_operator_is_p_transposed_k_p_of_the_assembled_matrix(small):
    """With fixed degrees of freedom and links in the chain: the bug of docs/decisions.md (a
    coarsest operator with rigid modes that the finest lacks) fails here."""
    rng = np.random.default_rng(1)
    _, _, coarse = levels_of(small.system, GRID.spacing_mm, 2)
    for level in (1, 2):
        shape = tuple(n // 2**level + 1 for n in GRID.shape)
        c = rng.normal(size=(2, 3, *shape))
        fine = jnp.asarray(c)
        for _ in range(level):
            fine = multigrid.prolong(fine)
        ku = (small.matrix @ masked(small, np.asarray(fine)).reshape(2, -1).T).T.reshape(
            2, 3, *NODES
        )
        expected = jnp.asarray(masked(small, ku))
        for _ in range(level):
            expected = multigrid.restrict(expected)
        got = operate_coarse(
            coarse[level - 1], small.system.links[level], jnp.asarray(c, jnp.float32)
        )
        # stored and multiplied in float32: 24 products and 8 children, ε = 6e-8
        assert float(jnp.abs(got - expected).max() / jnp.abs(expected).max()) < 3e-6
        links = small.system.links[level]
        rows = coarsest.link_rows(links, shape)
        dense = (
            coarsest.sparse_matrix(np.asarray(coarse[level - 1], float)).toarray()
            + rows.T @ np.asarray(links.stiffness) @ rows
        )
        assert np.abs(dense @ c[0].ravel() - np.asarray(expected[0]).ravel()).max() < 3e-6 * float(
            jnp.abs(expected).max()
        )


def test_coarsest_solve_is_the_inverse_of_its_matrix(small):
    """By planes and with the links by Woodbury, against the dense inverse; factors in float32 at
    contrast 1e6."""
    levels = len(small.hierarchy.block_inverse)
    _, _, coarse = levels_of(small.system, GRID.spacing_mm, levels)
    nodes = tuple(n // 2**levels + 1 for n in GRID.shape)
    # as stiff as the blocks, or they would do nothing beside them
    links = replace(
        small.system.links[levels], stiffness=1e4 * small.system.links[levels].stiffness
    )
    chain = coarsest.coarsest_chain(np.asarray(coarse[-1], float), links)
    rows = coarsest.link_rows(links, nodes)
    spring = rows.T @ np.asarray(links.stiffness) @ rows
    dense = coarsest.sparse_matrix(np.asarray(coarse[-1], float)).toarray()
    r = (np.random.default_rng(5).normal(size=(2, len(rows))) @ rows).reshape(2, 3, *nodes)
    expected, loose = (np.linalg.solve(k, r.reshape(2, -1).T).T for k in (dense + spring, dense))
    got = np.asarray(coarsest.solve_coarsest(chain, jnp.asarray(r, jnp.float32))).reshape(2, -1)
    assert np.abs(got - expected).max() < 1e-3 * np.abs(loose).max()
    # it can fail: without the links the answer is another one
    assert np.abs(loose - expected).max() > 1e-2 * np.abs(loose).max()


def test_links_are_weaker_than_nothing_without_their_coarse_part(small):
    """The check above can fail: dropping the link's coarse rows changes the coarse product by
    far more than 3e-6."""
    _, _, coarse = levels_of(small.system, GRID.spacing_mm, 2)
    # a relative motion of the two blocks: the lower half moves
    c = np.zeros((1, 3, 5, 5, 7), np.float32)
    c[:, 2, :, :, :3] = 1.0
    with_links = operate_coarse(coarse[0], small.system.links[1], jnp.asarray(c))
    without = operate_coarse(coarse[0], None, jnp.asarray(c))
    assert float(jnp.abs(with_links - without).max()) > 10.0


# -- cycle -----------------------------------------------------------------------------------------
@partial(jax.jit, static_argnums=2)
def cycle(hierarchy: multigrid.Hierarchy, r: jax.Array, spacing_mm: float) -> jax.Array:
    return w_cycle(hierarchy, r, spacing_mm, SolverSettings())


@pytest.fixture(scope="module")
def cycled(small):
    """Residuals of unit norm and what one cycle makes of them, as a batch."""
    rng = np.random.default_rng(2)
    r = masked(small, rng.normal(size=(3, 3, *NODES)))
    r = jnp.asarray(
        r / np.linalg.norm(r.reshape(3, -1), axis=1)[:, None, None, None, None], jnp.float32
    )
    return r, cycle(small.hierarchy, r, GRID.spacing_mm)


def test_v_cycle_is_symmetric_up_to_float32(cycled):
    r, z = (np.asarray(a, float).reshape(3, -1) for a in cycled)
    gram = r @ z.T
    size = np.linalg.norm(z, axis=1)
    # ⟨r_i, M r_j⟩ = ⟨r_j, M r_i⟩ to float32's 6e-8, grown by some tens of operations
    assert np.abs(gram - gram.T).max() < 3e-6 * size.max()
    assert np.all(np.linalg.eigvalsh((gram + gram.T) / 2) > 0)


def test_v_cycle_of_a_batch_is_that_of_each_right_hand_side(small, cycled):
    """Guards a miscompilation of lax.scan in float32 by XLA on CPU (jax 0.10.2), in which every
    right-hand side of a batch but the first comes out wrong. See engine/multigrid/cycle.py."""
    r, together = cycled
    for b in range(1, 3):
        # the same program with this right-hand side in front
        first = cycle(small.hierarchy, jnp.roll(r, -b, axis=0), GRID.spacing_mm)[0]
        # equal up to float32 rounding times a few stages, were the compiler to treat the places
        # differently
        assert float(jnp.abs(together[b] - first).max()) < 1e-5 * float(jnp.abs(first).max())
