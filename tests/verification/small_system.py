"""A small system with every feature of the solver, and its assembled matrix."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import plain_elements as plain
import pytest

from engine import elasticity, multigrid
from engine.elasticity import Grid, Links, Medium
from engine.multigrid import SolverSettings, System

GRID = Grid((8, 8, 12), (0.0, 0.0, 0.0), 2.0)
NODES = tuple(n + 1 for n in GRID.shape)
SETTINGS = SolverSettings(tolerance=1e-10)
KINDS = ("foundation and link", "fixed and link")


@dataclass(frozen=True)
class Small:
    """A small system with every feature, its preconditioner and its matrix."""

    system: System
    hierarchy: multigrid.Hierarchy
    matrix: object
    load: np.ndarray


def small_system(kind: str) -> Small:
    """Two blocks of 1e5 MPa joined by a soft layer (1 MPa) in a surrounding of 0.1 MPa, a link past
    it; two coarse levels.

    Held by a foundation, or by fixed degrees of freedom that pass through the Galerkin chain.
    """
    e, nu = np.full(GRID.shape, 0.1), 0.3
    e[1:7, 1:7, :5], e[1:7, 1:7, 5:7], e[1:7, 1:7, 7:] = 1e5, 1.0, 1e5
    e *= np.random.default_rng(0).uniform(0.7, 1.3, e.shape)
    lam, mu = plain.lame(e, nu)
    kappa = np.zeros(GRID.shape)
    free = None
    if kind == "foundation and link":
        kappa[1:7, 1:7, 0] = 1e3
    else:
        free = np.ones((3, *NODES))
        free[:, :, :, 0] = 0.0
        free[0, :, 4, 0] = 1.0
    rows, stiffness = [], np.diag([1e3, 1e3, 1e3, 1e5, 1e5, 1e5])
    for low in (slice(1, 4), slice(8, 11)):
        volume = np.zeros(GRID.shape)
        volume[2:6, 4:7, low] = 8.0
        patch = elasticity.nodal_patch(GRID, volume, "block")
        dense = np.zeros((6, int(np.prod(NODES)), 3))
        dense[:, patch.node] = patch.average(np.array([8.0, 12.0, 12.0]))
        rows.append(dense)
    every = np.concatenate(rows)
    node = np.flatnonzero(np.abs(every).max(axis=(0, 2)) > 0)
    links = Links(
        jnp.asarray(node),
        jnp.asarray(every[:, node]),
        jnp.asarray(np.block([[stiffness, -stiffness], [-stiffness, stiffness]])),
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("engine.multigrid.levels.MAX_PLANE_UNKNOWNS", 27)
        assert multigrid.depth(GRID.shape) == 2
        medium = Medium(*(jnp.asarray(f) for f in (lam, mu, kappa)))
        system = System(
            medium,
            None if free is None else jnp.asarray(free),
            multigrid.coarsen_links(links, GRID.shape, 2),
        )
        hierarchy = multigrid.build(system, GRID, compiled=False)
    matrix = plain.assembled((lam, mu, kappa), GRID.spacing_mm, links)
    load = np.zeros((3, 3, *NODES))
    volume = np.zeros(GRID.shape)
    volume[1:7, 1:7, 10:] = 1.0
    top = elasticity.nodal_patch(GRID, 8 * volume, "top")
    wrenches = np.array(
        [[0, 0, -500.0, 0, 0, 0], [0, 0, -100, 7500, 0, 0], [30, 0, 0, 0, 2000, 5000]]
    )
    load[:] = elasticity.spread(GRID, top, top.centre_mm, wrenches)
    return Small(system, hierarchy, matrix, load)


def masked(small: Small, u: np.ndarray) -> np.ndarray:
    return u if small.system.free is None else u * np.asarray(small.system.free)
