"""Voxel elements against exact solutions: zero modes, manufactured solution, Q1/P0, bending.

The orders stated are measured ones.
"""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import plain_elements as plain
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from unit_cube import (
    SIZES,
    cube,
    held_on_all_faces,
    orders,
    solved,
    strain,
    voigt,
)

from engine import elasticity
from engine.elasticity import Grid, Medium, element_matrices

GAUSS = np.array(list(product((-1.0, 1.0), repeat=3))) / np.sqrt(3)


# -- zero modes ------------------------------------------------------------------------------------
def test_a_heterogeneous_structure_has_the_six_rigid_motions_and_no_seventh():
    """K r = 0 for three translations and three rotations only.

    K grows with the moduli, so its eigenvalues are at least those of the structure made of the
    softest voxel throughout (Courant-Fischer). The mean dilatation alone has hourglass modes; the
    fully integrated μ term must hold them (Hughes 1980). With μ at the centre too, the fields
    (−1)^(i+j) f(k) and their kin are free: the test sees them.
    """
    shape, h = (4, 3, 3), 1.7
    rng = np.random.default_rng(0)
    mu, nu = 10.0 ** rng.uniform(0, 3, shape), rng.uniform(0.0, 0.49, shape)
    lam = 2 * mu * nu / (1 - 2 * nu)
    x = Grid(shape, (3.0, -1.0, 2.0), h).nodes()
    motions = np.stack(
        [np.broadcast_to(e, x.shape) for e in np.eye(3)] + [np.cross(e, x) for e in np.eye(3)]
    )
    medium = Medium(*(jnp.asarray(f) for f in (lam, mu, 0 * mu)))
    rigid = np.asarray(elasticity.apply(medium, jnp.asarray(np.moveaxis(motions, -1, 1)), h))
    matrix = plain.assembled((lam, mu, 0 * mu), h).toarray()
    # rounding of some ten products of the stiffest voxel's row with motions of up to ~10 mm
    assert np.abs(rigid).max() < 1e-14 * np.abs(matrix).sum(1).max() * np.abs(motions).max()
    values = np.linalg.eigvalsh(matrix)
    one = np.ones(shape)
    softest = np.linalg.eigvalsh(
        plain.assembled((lam.min() * one, mu.min() * one, 0 * one), h).toarray()
    )
    print("zero modes", values[:7] / mu.min() / h, softest[6] / mu.min() / h)
    assert np.abs(values[:6]).max() < 1e-13 * values[-1]
    assert values[6] > softest[6] * (1 - 1e-9)
    assert (
        softest[6] > 0.05 * mu.min() * h
    )  # measured 0.13: the first torsion or bending mode of a 4 × 3 × 3 block
    centre = elasticity.strain_matrix(elasticity.shape_gradients(np.zeros(3), h))
    reduced = h**3 * centre.T @ np.diag([2.0, 2, 2, 1, 1, 1]) @ centre
    values = np.linalg.eigvalsh(
        plain.assembled(
            (lam, mu, 0 * mu), h, matrices=(element_matrices(h)[0], reduced, 0 * reduced)
        ).toarray()
    )
    assert np.sum(np.abs(values) < 1e-13 * values[-1]) >= 6 + 12


# -- manufactured solution -------------------------------------------------------------------------
def smooth(x):
    """A displacement, λ and μ without symmetry, at one point."""
    a, b, c = x
    u = jnp.stack(
        [
            jnp.sin(2 * a + b) * jnp.cos(c),
            jnp.cos(3 * b - a) + 0.3 * jnp.sin(2 * c * a),
            jnp.exp(0.5 * a) * jnp.sin(2 * c + 0.7 * b),
        ]
    )
    return u, 2.0 + jnp.sin(2 * a + b - c), 1.0 + 0.5 * jnp.cos(a - 2 * b + 3 * c)


@jax.jit
@jax.vmap
def _smooth_batch(x):
    def gradient(x):
        return jax.jacfwd(lambda y: smooth(y)[0])(x)

    def sigma(x):
        _, lam, mu = smooth(x)
        grad = gradient(x)
        return lam * jnp.trace(grad) * jnp.eye(3) + mu * (grad + grad.T)

    u, lam, mu = smooth(x)
    return u, gradient(x), -jnp.einsum("ijj->i", jax.jacfwd(sigma)(x)), lam, mu


def smooth_at(points: np.ndarray) -> list[np.ndarray]:
    """u, its gradient, f = −div σ, λ and μ at points [..., 3]; in batches of one size, which is
    compiled once."""
    flat = points.reshape(-1, 3)
    padded = np.resize(flat, (-(-len(flat) // 4096), 4096, 3))
    batches = zip(*(_smooth_batch(batch) for batch in padded), strict=True)
    return [
        np.concatenate(part)[: len(flat)].reshape(*points.shape[:-1], *part[0].shape[1:])
        for part in batches
    ]


def manufactured_errors(n: int) -> tuple[float, float, float, float]:
    """L², H¹ seminorm, centre strain (root mean square and largest), all relative to the exact
    field's."""
    grid, h = cube(n), 1.0 / n
    index, free = plain.unknowns(grid.shape), held_on_all_faces(n)
    _, middle, _, lam, mu = smooth_at(grid.centres())
    medium = Medium(jnp.asarray(lam), jnp.asarray(mu), jnp.zeros(grid.shape))
    # two Gauss points along each axis, for the load and for the norms: [voxel, point, ...]
    exact, gradient, force, _, _ = smooth_at(grid.centres().reshape(-1, 1, 3) + 0.5 * h * GAUSS)
    corners = 2.0 * np.array(elasticity.CORNERS) - 1.0
    values = np.prod(1 + corners * GAUSS[:, None], axis=-1) / 8  # [point, corner]
    slopes = np.stack([elasticity.shape_gradients(g, h) for g in GAUSS])  # [point, corner, axis]
    nodal_force = np.einsum("ga,egc->eac", values, force) * h**3 / 8
    load = np.bincount(index.ravel(), nodal_force.ravel()).reshape(free.shape)
    u = solved(medium, h, free, np.moveaxis(smooth_at(grid.nodes())[0], -1, 0), load)
    local = u.ravel()[index].reshape(-1, 8, 3)
    error = np.einsum("ga,eac->egc", values, local) - exact
    slope_error = np.einsum("gad,eac->egcd", slopes, local) - gradient
    strain_error = strain(u, h) - voigt(middle)
    size = np.linalg.norm(voigt(middle)) / n**1.5
    return (
        float(np.linalg.norm(error) / np.linalg.norm(exact)),
        float(np.linalg.norm(slope_error) / np.linalg.norm(gradient)),
        float(np.linalg.norm(strain_error) / n**1.5 / size),
        float(np.linalg.norm(strain_error, axis=-1).max() / size),
    )


def test_manufactured_solution_converges_with_the_orders_of_trilinear_elements():
    """−div(λ (div u) I + 2 μ ε(u)) = f with smooth λ, μ (one value per voxel), u given on the whole
    boundary.

        ‖u − u_h‖ = O(h²),   |u − u_h|₁ = O(h),   ε(u_h) − ε(u) at the voxels' centres = O(h²)

    The first two are a-priori estimates (Ciarlet 1978, Strang & Fix 1973: one value per voxel and
    two Gauss points for f leave them), the last is superconvergence on uniform grids (Barlow 1976;
    Zlámal 1978): the strains that `elasticity.strain` reports are one order better than the
    gradient of the field they come from. Measured: 2.00, 1.00, 2.00; on 24³ cells 0.09 %, 3.3 % and
    0.08 %.
    """
    found = np.array([manufactured_errors(n) for n in SIZES])
    rates = orders(found)
    print("manufactured", found, rates)
    for column, order in enumerate((2, 1, 2)):
        assert rates[:, column] == pytest.approx(order, abs=0.1)
    # the largest strain error too: measured 1.92, 1.96 and 0.14 % on the finest grid
    assert rates[-1, 3] > 1.8
    assert found[-1, 3] < 2e-3


# -- near incompressibility ------------------------------------------------------------------------
def mixed_q1p0(
    shape: tuple[int, int, int], h: float, mu: np.ndarray
) -> tuple[sp.csc_matrix, sp.csr_matrix]:
    """A (∫ 2 μ ε:ε) and B (∫_e div u) of trilinear displacements and one pressure per voxel, from
    the 1-D matrices.

    ∫ ∂_iN_a ∂_jN_b is a product over the axes of mass, slope and mixed matrices of linear functions
    on [0, h].
    """
    mass, slope, mixed = (
        h / 6 * np.array([[2, 1], [1, 2]]),
        np.array([[1, -1], [-1, 1]]) / h,
        np.array([[-1, -1], [1, 1]]) / 2,
    )

    def integral(i: int, j: int) -> np.ndarray:
        factors = [
            slope if i == j == c else mixed if c == i else mixed.T if c == j else mass
            for c in range(3)
        ]
        return np.kron(np.kron(factors[0], factors[1]), factors[2])

    k = np.zeros((8, 3, 8, 3))
    divergence = np.zeros((8, 3))
    for i, j in product(range(3), repeat=2):
        k[:, i, :, j] += integral(j, i)
        k[:, i, :, i] += integral(j, j)
    for i in range(3):
        lines = [np.array([-1.0, 1.0]) if c == i else np.full(2, h / 2) for c in range(3)]
        divergence[:, i] = np.kron(np.kron(lines[0], lines[1]), lines[2])
    index, cells = plain.unknowns(shape), int(np.prod(shape))
    size = index.max() + 1
    blocks = (mu.reshape(-1, 1, 1) * k.reshape(24, 24)).ravel()
    a = sp.csc_matrix(
        (blocks, (np.repeat(index, 24, axis=1).ravel(), np.tile(index, (1, 24)).ravel())),
        shape=(size, size),
    )
    rows = np.repeat(np.arange(cells), 24)
    return a, sp.csr_matrix(
        (np.tile(divergence.ravel(), cells), (rows, index.ravel())), shape=(cells, size)
    )


def test_element_is_the_mixed_q1p0_element():
    """[A Bᵀ; B −V/λ] (u, p) = (f, 0), p = λ·(mean of div u): the same u and p as from the condensed
    element matrices.

    (Equivalence of reduced integration and mixed methods, Malkus & Hughes 1978.) Cantilevered
    layers of ν = 0.3 and ν₁; the mixed form also has ν₁ = 1/2, 1/λ = 0, which the engine's
    approaches like 1 − 2ν₁: nothing locks on the way.
    """
    shape, h = (4, 3, 6), 0.5
    soft = np.zeros(shape, bool)
    soft[:, :, 2:4] = True
    mu = np.where(soft, 3.0, 400.0)
    a, b = mixed_q1p0(shape, h, mu)
    nodes = Grid(shape, (0.0,) * 3, h).nodes()
    size = nodes[..., 0].size
    free = np.flatnonzero(np.tile(nodes[..., 2].ravel() > 0, 3))
    force = np.zeros((3, *nodes.shape[:3]))
    force[:, :, :, -1] = np.array([1.0, 0.4, -2.0])[:, None, None]
    force = force.ravel()
    fixed = np.setdiff1d(np.arange(3 * size), free)

    def mixed(nu: float) -> tuple[np.ndarray, np.ndarray]:
        compliance = np.where(
            soft, (1 - 2 * nu) / (2 * mu * nu), (1 - 0.6) / (2 * mu * 0.3)
        ).ravel()
        block = sp.bmat(
            [[a[free][:, free], b[:, free].T], [b[:, free], -sp.diags(h**3 * compliance)]],
            format="csc",
        )
        found = spla.spsolve(block, np.concatenate([force[free], np.zeros(len(compliance))]))
        u = np.zeros(3 * size)
        u[free] = found[: len(free)]
        return u, found[len(free) :]

    limit, gaps = mixed(0.5)[0], []
    for nu in (0.49, 0.499, 0.4999):
        lam = 2 * mu * np.where(soft, nu / (1 - 2 * nu), 0.3 / 0.4)
        u = plain.solved(plain.assembled((lam, mu, 0 * mu), h), force, fixed, 0.0)
        reference, pressure = mixed(nu)
        # two direct solves at contrast ~1e3·1e4 round by ~1e-16·1e6
        assert np.abs(u - reference).max() < 1e-9 * np.abs(u).max()
        eps = strain(u.reshape(3, *nodes.shape[:3]), h)
        assert (
            np.abs(lam * eps[..., :3].sum(-1) - pressure.reshape(shape)).max()
            < 1e-7 * np.abs(pressure).max()
        )
        gaps.append(np.abs(u - limit).max() / np.abs(limit).max())
    print("gaps to nu = 1/2", gaps)
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.2) and gaps[1] / gaps[2] == pytest.approx(
        10, rel=0.05
    )


def bending_ratio(n: int, nu: float, full: bool = False) -> float:
    """Compliance over the exact one of a beam 2 × ½ × 1 (n elements high) under end tractions σ_x =
    E κ z.

    Exact: u = κ (x z, −ν y z, −(x² + ν (z² − y²))/2); u_x = 0 at x = 0 and u_y = 0 at y = 0 are
    planes of symmetry.
    """
    h, shape = 1.0 / n, (2 * n, n // 2, n)
    lam, mu = plain.lame(1.0, nu)
    one = np.ones(shape)
    matrix = plain.assembled(
        (lam * one, mu * one, 0 * one), h, matrices=plain.fully_integrated(h) if full else None
    )
    x, _, z = np.moveaxis(Grid(shape, (0.0, 0.0, -0.5), h).nodes(), -1, 0)
    number = np.arange(x.size).reshape(x.shape)
    fixed = np.concatenate(
        [number[0].ravel(), x.size + number[:, 0].ravel(), 2 * x.size + number[0, 0, [n // 2]]]
    )
    mass = (
        h
        / 6
        * (np.diag(np.r_[2.0, np.full(n - 1, 4.0), 2.0]) + np.eye(n + 1, k=1) + np.eye(n + 1, k=-1))
    )
    width = h * np.r_[0.5, np.ones(shape[1] - 1), 0.5]
    force = np.zeros((3, *x.shape))
    force[0, -1] = np.outer(width, mass @ z[0, 0])  # consistent with the linear traction
    u = plain.solved(matrix, force.ravel(), fixed, 0.0)
    return float(force.ravel() @ u / (2.0 * 0.5 / 12))


@pytest.mark.parametrize("nu", [0.0, 0.3, 0.49, 0.499, 0.4999])
def test_pure_bending_does_not_lock_near_incompressibility(nu):
    """The nodal values of the exact u cost, with z' the height above the voxel's middle and n
    voxels over the height,

        2 μ (1 + ν²) z'²  instead of  E z'²      (ε_z has no part linear in z, the mean dilatation
                                                 sees no z')
        G (x'² + ν² y'²)                         (parasitic shear of −(x² − ν y²)/2)

    so that C/C_exact = 1/(1 + c/n²) with c = (1 − 2ν + 3ν²)/(2 (1 + ν)): 1/2 at ν = 0, 1/4 at ν →
    1/2, no locking.
    """
    c = (1 - 2 * nu + 3 * nu**2) / (2 * (1 + nu))
    rows = np.array([4, 8])
    ratio = np.array([bending_ratio(n, nu) for n in rows])
    shortfall, locked = (1 / ratio - 1) * rows**2 / c, bending_ratio(4, nu, full=True)
    print(
        "bending",
        nu,
        ratio,
        "shortfall over predicted",
        shortfall,
        orders(1 - ratio),
        "fully integrated",
        locked,
    )
    # the end x = L, where tractions leave the nodes free to do better, takes a few per cent of that
    # (less as h → 0)
    assert shortfall == pytest.approx(1.0, abs=0.1)
    assert shortfall[1] == pytest.approx(1.0, abs=0.04)
    if nu >= 0.49:
        assert locked < 0.9 and ratio[0] > 0.98
