"""The voxel elements against closed forms and against the plain element-matrix product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import plain_elements as plain
import pytest

from engine import elasticity
from engine.elasticity import Grid, Links, Medium, element_matrices
from engine.multigrid import SolverSettings, System, build, solve

H = 1.7
SHAPE = (5, 4, 6)
#: 3 × 9 × 9 × 13 = 3159 unknowns: the smallest that still has a coarse level.
SOLVABLE = (8, 8, 12)


def corner_positions(h: float) -> np.ndarray:
    return h * np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)


def tensor(voigt: np.ndarray) -> np.ndarray:
    """Strain tensor of Voigt strain (engineering shear)."""
    a, b, c, d, e, f = voigt
    return np.array([[a, d / 2, e / 2], [d / 2, b, f / 2], [e / 2, f / 2, c]])


def random_medium(shape: tuple[int, int, int], seed: int = 0) -> Medium:
    """λ, μ over six decades and κ in every third voxel."""
    rng = np.random.default_rng(seed)
    lam, mu = (10.0 ** rng.uniform(-1, 5, shape) for _ in range(2))
    kappa = 10.0 ** rng.uniform(0, 3, shape) * (rng.uniform(size=shape) < 0.3)
    return Medium(*(jnp.asarray(f) for f in (lam, mu, kappa)))


def uniform(shape: tuple[int, int, int], e: float, nu: float) -> Medium:
    lam, mu = plain.lame(e, nu)
    return Medium(jnp.full(shape, lam), jnp.full(shape, mu), jnp.zeros(shape))


def nodal(grid: Grid, gradient: np.ndarray, shift: np.ndarray | float = 0.0) -> np.ndarray:
    """u(x) = G x + shift at the nodes, [3, x+1, y+1, z+1]."""
    return np.moveaxis(grid.nodes() @ gradient.T + shift, -1, 0)


# -- one element -----------------------------------------------------------------------------------
def test_element_matrices_are_symmetric_and_leave_exactly_the_six_rigid_motions_free():
    k_lam, k_mu, k_kappa = element_matrices(H)
    for k in (k_lam, k_mu, k_kappa):
        assert np.abs(k - k.T).max() < 1e-15 * np.abs(k).max()  # quadrature sums round by an ε
    values = np.linalg.eigvalsh(k_lam + k_mu)
    # float64 eigenvalues of a 24×24 matrix are good to about 24 ε of the largest; an hourglass mode
    # would be a seventh
    assert np.sum(np.abs(values) < 1e-13 * values[-1]) == 6
    assert values[6] > 1e-3 * values[-1]
    x = corner_positions(H)
    for axis in range(3):
        shift, turn = np.tile(np.eye(3)[axis], 8), np.cross(np.eye(3)[axis], x).ravel()
        for motion in (shift, turn):
            assert np.abs((k_lam + k_mu) @ motion).max() < 1e-13 * values[-1] * np.abs(motion).max()


def test_constant_strain_has_exactly_its_energy():
    lam, mu = plain.lame(350.0, 0.31)
    k_lam, k_mu, _ = element_matrices(H)
    rng = np.random.default_rng(1)
    for voigt in (*np.eye(6), rng.normal(size=6)):
        eps = tensor(voigt)
        u = (corner_positions(H) @ eps).ravel()
        stress = lam * np.trace(eps) * np.eye(3) + 2 * mu * eps
        # closed form; 1e-12 is 24 products in float64 with room
        assert 0.5 * u @ (lam * k_lam + mu * k_mu) @ u == pytest.approx(
            0.5 * H**3 * np.sum(stress * eps), rel=1e-12
        )


def test_foundation_carries_the_lumped_mass():
    k_kappa = element_matrices(H)[2]
    shift = np.tile([0.3, -1.0, 2.0], 8)
    assert shift @ k_kappa @ shift == pytest.approx(H**3 * (0.3**2 + 1 + 4), rel=1e-14)


# -- the operator ----------------------------------------------------------------------------------
def test_apply_is_the_plain_element_product():
    medium, rng = random_medium(SHAPE), np.random.default_rng(2)
    u = rng.normal(size=(3, 3, *(n + 1 for n in SHAPE)))
    plain_out = plain.plain_product((medium.lam, medium.mu, medium.kappa), u, H)
    fast = np.asarray(elasticity.apply(medium, jnp.asarray(u), H))
    # the butterflies and the 24×24 product round differently, by some ε of the stiffest neighbour
    assert np.abs(fast - plain_out).max() < 1e-12 * np.abs(plain_out).max()
    # and each right-hand side alone gives the same
    for b in range(3):
        alone = np.asarray(elasticity.apply(medium, jnp.asarray(u[b : b + 1]), H))
        assert np.abs(fast[b] - alone[0]).max() < 1e-13 * np.abs(alone).max()


def test_apply_is_the_plain_product_where_the_medium_is_uniform_and_soft_beside_stiff():
    """Contrast 1e7: the soft node's own rows are right too, not only those of the stiff ones."""
    lam = np.full(SHAPE, 1e-2)
    lam[:2] = 1e5
    u = np.random.default_rng(3).normal(size=(1, 3, *(n + 1 for n in SHAPE)))
    fields = (lam, 0.7 * lam, 0 * lam)
    plain_out = plain.plain_product(fields, u, H)[:, :, 3:]
    fast = np.asarray(elasticity.apply(Medium(*map(jnp.asarray, fields)), jnp.asarray(u), H))[
        :, :, 3:
    ]
    assert np.abs(fast - plain_out).max() < 1e-12 * np.abs(plain_out).max()


def test_operator_with_foundation_and_links_is_symmetric_and_positive():
    medium, rng = random_medium(SHAPE, 4), np.random.default_rng(4)
    root = rng.normal(size=(6, 6))
    links = Links(
        jnp.asarray(rng.choice(200, 30, replace=False)),
        jnp.asarray(rng.normal(size=(6, 30, 3))),
        jnp.asarray(1e3 * root @ root.T),
    )
    u, v = rng.normal(size=(2, 1, 3, *(n + 1 for n in SHAPE)))
    ku, kv = (np.asarray(elasticity.apply(medium, jnp.asarray(w), H, links)) for w in (u, v))
    size = np.linalg.norm(ku) * np.linalg.norm(v)
    assert abs(np.vdot(v, ku) - np.vdot(u, kv)) < 1e-13 * size
    assert np.vdot(u, ku) > 0
    matrix = plain.assembled((medium.lam, medium.mu, medium.kappa), H, links)
    assert np.abs(matrix @ u.ravel() - ku.ravel()).max() < 1e-12 * np.abs(ku).max()


def test_energy_pairing_is_the_derivative_of_the_operator():
    """vᵀK(m)u is linear in m, so a difference of any size is exact up to round-off."""
    rng = np.random.default_rng(5)
    medium, change = random_medium(SHAPE, 6), random_medium(SHAPE, 7)
    u, v = (jnp.asarray(w) for w in rng.normal(size=(2, 2, 3, *(n + 1 for n in SHAPE))))
    pairing = elasticity.energy_pairing(u, v, H)
    for part in range(3):
        moved = Medium(
            *(
                m + c if i == part else m
                for i, (m, c) in enumerate(zip(fields(medium), fields(change), strict=True))
            )
        )
        difference = jnp.vdot(v, elasticity.apply(moved, u, H)) - jnp.vdot(
            v, elasticity.apply(medium, u, H)
        )
        expected = jnp.vdot(pairing[part], fields(change)[part])
        scale = float(jnp.sum(jnp.abs(pairing[part]) * fields(change)[part]))
        assert abs(float(difference - expected)) < 1e-11 * scale


def fields(medium: Medium) -> tuple[jax.Array, ...]:
    return medium.lam, medium.mu, medium.kappa


def test_linear_field_is_recovered_exactly_in_strain_and_stress():
    grid = Grid(SHAPE, (1.0, -2.0, 3.0), H)
    gradient = 1e-3 * np.random.default_rng(8).normal(size=(3, 3))
    u = jnp.asarray(nodal(grid, gradient, 5.0))[None]
    eps = np.asarray(elasticity.strain(u, H))
    sym = (gradient + gradient.T) / 2
    voigt = np.array([sym[0, 0], sym[1, 1], sym[2, 2], 2 * sym[0, 1], 2 * sym[0, 2], 2 * sym[1, 2]])
    assert np.abs(eps - voigt).max() < 1e-14  # differences of ~5 mm over 1.7 mm: a few ε
    medium = random_medium(SHAPE, 9)
    sigma = np.asarray(elasticity.stress(medium, jnp.asarray(eps)))
    lam, mu = np.asarray(medium.lam)[..., None], np.asarray(medium.mu)[..., None]
    expected = lam * np.trace(sym) * np.array([1, 1, 1, 0, 0, 0]) + mu * voigt * np.array(
        [2, 2, 2, 1, 1, 1]
    )
    np.testing.assert_allclose(sigma[0], expected, rtol=1e-9, atol=1e-14 * float(lam.max()))


# -- boundary-value problems -----------------------------------------------------------------------
def test_patch_test_uniform_strain_under_prescribed_displacements():
    """All boundary nodes follow u = G x through System.free; the inner ones must, whatever G
    (six strains at once)."""
    grid = Grid(SOLVABLE, (0.0, 0.0, 0.0), 2.0)
    inner = np.zeros([n + 1 for n in SOLVABLE])
    inner[1:-1, 1:-1, 1:-1] = 1.0
    system = System(
        uniform(SOLVABLE, 1000.0, 0.3), jnp.asarray(np.broadcast_to(inner, (3, *inner.shape))), None
    )
    gradients = np.random.default_rng(10).normal(size=(2, 3, 3))
    exact = jnp.asarray(np.stack([nodal(grid, g) for g in gradients]))
    held = (1 - system.free) * exact
    load = -system.free * elasticity.apply(system.medium, held, 2.0)
    settings = SolverSettings(tolerance=1e-12)
    zero = jnp.zeros_like(load)
    u, info = solve(2.0, settings, system, load, build(system, grid), zero, zero, jnp.zeros(3))
    assert float(info.relative_residual.max()) < 2e-12
    # error ≤ condition number (~1e2 on eight voxels) × residual × displacements (~20 mm)
    assert np.abs(np.asarray(u + held - exact)).max() < 1e-8
    assert np.abs(np.asarray(u)[:, :, 0]).max() == 0.0


def test_bimaterial_bar_in_series_is_exact_without_poisson():
    """ν = 0: compliance C = L₁/(E₁A) + L₂/(E₂A); bilinear elements hold the two uniform states
    exactly."""
    h, shape = 1.0, (2, 3, 6)
    e = np.full(shape, 900.0)
    e[:, :, 2:] = 15.0
    matrix = plain.assembled((0 * e, e / 2, 0 * e), h)
    grid = Grid(shape, (0.0,) * 3, h)
    z = grid.nodes()[..., 2]
    size = z.size
    bottom = np.flatnonzero(z.ravel() == 0)
    fixed = np.concatenate([bottom + axis * size for axis in range(3)])
    area, force = 6.0, 12.0
    share = np.zeros_like(z)
    wx, wy = (np.r_[0.5, np.ones(n - 1), 0.5] for n in shape[:2])
    share[:, :, -1] = wx[:, None] * wy[None]
    load = np.zeros((3, *z.shape))
    load[2] = force * share / area
    u = plain.solved(matrix, load.ravel(), fixed, 0.0).reshape(3, *z.shape)
    exact = force / area * np.where(z <= 2, z / 900.0, 2 / 900.0 + (z - 2) / 15.0)
    # direct solve in float64 at contrast 60
    assert np.abs(u[2] - exact).max() < 1e-12
    assert np.vdot(load, u) == pytest.approx(force**2 / area * (2 / 900.0 + 4 / 15.0), rel=1e-12)


def cantilever_ratio(n: int) -> float:
    """Tip deflection over Timoshenko's, of a beam 8:1, n elements high, one wide (ν = 0: plane),
    uniform end shear."""
    height, length, e = 1.0, 8.0, 100.0
    h = height / n
    shape = (8 * n, 1, n)
    zero = np.zeros(shape)
    matrix = plain.assembled((zero, zero + e / 2, zero), h)
    grid = Grid(shape, (0.0,) * 3, h)
    nodes = grid.nodes()
    size = nodes[..., 0].size
    root = np.flatnonzero(nodes[..., 0].ravel() == 0)
    fixed = np.concatenate([root + axis * size for axis in range(3)])
    load = np.zeros((3, *nodes.shape[:3]))
    load[2, -1] = np.outer([0.5, 0.5], np.r_[0.5, np.ones(n - 1), 0.5]) / n
    u = plain.solved(matrix, load.ravel(), fixed, 0.0)
    inertia, area = h * height**3 / 12, h * height
    bending, shear = (
        length**3 / (3 * e * inertia),
        length / (5 / 6 * e / 2 * area),
    )  # Cowper's k = 5/6 at ν = 0
    return float(load.ravel() @ u / (bending + shear))


def test_cantilever_approaches_timoshenko_with_second_order():
    """Parasitic shear of the trilinear element in bending adds (G/E)(h/H)² = 1/(2n²) to the bending
    energy at ν = 0, so the deflection falls short by that share; nothing else is left but the
    clamp's warping restraint (< 0.2 %).
    """
    rows = (2, 4, 8)
    ratios = np.array([cantilever_ratio(n) for n in rows])
    predicted = 1 / (1 + 0.5 / np.array(rows) ** 2)
    np.testing.assert_allclose(ratios, predicted, rtol=4e-3)
    order = np.log2((ratios[1] - ratios[0]) / (ratios[2] - ratios[1]))
    assert 1.8 < order < 2.2
    limit = ratios[2] + (ratios[2] - ratios[1]) / 3
    assert limit == pytest.approx(1.0, abs=3e-3)


def bonded_block_stiffness(k: int, nu: float, full: bool = False) -> float:
    """Force for a unit compression of a 4×4×2 block between bonded rigid plates, k elements per
    unit length."""
    h, shape = 1.0 / k, (4 * k, 4 * k, 2 * k)
    lam, mu = plain.lame(1.0, nu)
    one = np.ones(shape)
    matrices = plain.fully_integrated(h) if full else None
    matrix = plain.assembled((lam * one, mu * one, 0 * one), h, matrices=matrices)
    z = Grid(shape, (0.0,) * 3, h).nodes()[..., 2].ravel()
    low, high = np.flatnonzero(z == 0), np.flatnonzero(np.isclose(z, 2.0))
    fixed = np.concatenate([nodes + axis * z.size for nodes in (low, high) for axis in range(3)])
    values = np.zeros(len(fixed))
    values[-len(high) :] = -1.0
    u = plain.solved(matrix, np.zeros(3 * z.size), fixed, values)
    return float(u @ matrix @ u)


def test_nearly_incompressible_block_does_not_lock():
    """A disc-like block at ν = 0.4999. The corner singularity of the bonded edge costs 15 % on two
    elements over the height and 4 % on four (fine grid: eight); the fully integrated element is two
    hundred times too stiff.
    """
    fine = bonded_block_stiffness(4, 0.4999)
    coarse, middle = (bonded_block_stiffness(k, 0.4999) for k in (1, 2))
    assert coarse == pytest.approx(fine, rel=0.18)
    assert middle == pytest.approx(fine, rel=0.05)
    assert bonded_block_stiffness(1, 0.4999, full=True) > 100 * fine
    # and it does not turn stiffer without bound as ν → 1/2
    assert bonded_block_stiffness(1, 0.499999) == pytest.approx(coarse, rel=0.02)
    # at ν = 0 the two elements are the same
    assert bonded_block_stiffness(1, 0.0, full=True) == pytest.approx(
        bonded_block_stiffness(1, 0.0), rel=1e-12
    )


def test_fully_integrated_oracle_is_the_textbook_element():
    """The element that locks must itself be right: same energy in constant strain, six zero
    modes."""
    k_lam, k_mu, _ = plain.fully_integrated(H)
    rng = np.random.default_rng(11)
    u = (corner_positions(H) @ tensor(rng.normal(size=6))).ravel()
    assert u @ k_lam @ u == pytest.approx(u @ element_matrices(H)[0] @ u, rel=1e-12)
    assert np.sum(np.abs(np.linalg.eigvalsh(k_lam + k_mu)) < 1e-12) == 6


# -- patches ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def patch_on_grid():
    grid = Grid((7, 6, 5), (-3.0, 4.0, 10.0), H)
    rng = np.random.default_rng(12)
    volume = rng.uniform(0, 1, grid.shape) * H**3
    volume[:, :, 3:] = 0.0
    volume[:2] = 0.0
    return grid, elasticity.nodal_patch(grid, volume, "test")


def test_spread_is_statically_equivalent(patch_on_grid):
    grid, patch = patch_on_grid
    point = np.array([11.0, -7.0, 2.0])
    wrenches = np.random.default_rng(13).normal(size=(4, 6)) * [500, 500, 500, 7500, 7500, 7500]
    forces = elasticity.spread(grid, patch, point, wrenches)
    x = grid.nodes()
    for f, wrench in zip(np.moveaxis(forces, 1, -1), wrenches, strict=True):
        total = np.concatenate([f.sum((0, 1, 2)), np.cross(x - point, f).sum((0, 1, 2))])
        assert np.abs(total - wrench).max() < 1e-10 * np.abs(wrench).max()
    about_origin = elasticity.resultant(grid, forces)
    expected = np.concatenate(
        [wrenches[:, :3], wrenches[:, 3:] + np.cross(point, wrenches[:, :3])], axis=1
    )
    np.testing.assert_allclose(about_origin, expected, rtol=1e-10, atol=1e-7)
    outside = np.ones(int(np.prod([n + 1 for n in grid.shape])), bool)
    outside[patch.node] = False
    assert not np.any(forces.reshape(4, 3, -1)[:, :, outside])


def test_average_of_a_rigid_motion_is_that_motion(patch_on_grid):
    grid, patch = patch_on_grid
    point, rng = np.array([1.0, 20.0, -5.0]), np.random.default_rng(14)
    shift, turn = rng.normal(size=(2, 3))
    x = grid.nodes().reshape(-1, 3)[patch.node]
    u = shift + np.cross(turn, x - point)
    motion = np.einsum("mnc,nc->m", patch.average(point), u)
    np.testing.assert_allclose(motion, np.concatenate([shift, turn]), rtol=1e-11, atol=1e-12)


def test_average_is_the_least_squares_motion(patch_on_grid):
    """Of any field, the weighted residual is orthogonal to every rigid motion."""
    grid, patch = patch_on_grid
    x = grid.nodes().reshape(-1, 3)[patch.node]
    u = np.random.default_rng(15).normal(size=x.shape)
    motion = np.einsum("mnc,nc->m", patch.average(patch.centre_mm), u)
    rest = patch.weight_mm3[:, None] * (u - motion[:3] - np.cross(motion[3:], x - patch.centre_mm))
    scale = (patch.weight_mm3[:, None] * np.abs(u)).sum()
    assert np.abs(rest.sum(0)).max() < 1e-12 * scale
    assert np.abs(np.cross(x - patch.centre_mm, rest).sum(0)).max() < 1e-11 * scale


def test_empty_patch_is_refused_by_name():
    grid = Grid((7, 6, 5), (0.0,) * 3, H)
    with pytest.raises(ValueError, match=r"'endplate'.*expected at least 20 voxels"):
        elasticity.nodal_patch(grid, np.zeros(grid.shape), "endplate")
