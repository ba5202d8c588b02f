"""The SfePy check against analytic answers."""

from __future__ import annotations

from dataclasses import replace

import meshio
import numpy as np
import pytest
from fem_blocks import INTACT, boundary, box, slab, uniform_segment

from engine.materials import BONE_LAWS, SOFT, lattice_modulus_ratio
from engine.types import Design, Link, VoxelField
from fem.elastic import operators as el
from fem.mesh.build import TetMesh
from fem.solution import write_vtu
from fem.solve import FemSettings, moduli, solve
from scripts.evidence.variations import rescaled

LAW = BONE_LAWS["morgan2003_vertebra"]


def bar(n=2, length=40.0, width=8.0, cells=10, split=20.0) -> TetMesh:
    """A square bar along z from 0: caudal bone below `split`, cranial bone above."""
    side = np.linspace(-width / 2, width / 2, n + 1)
    return box(
        [side, side, np.linspace(0, length, cells + 1)], lambda c: np.where(c[:, 2] < split, 0, 1)
    )


def bar_boundary(cases, length=40.0, kappa=1e9, links=()):
    near = (slab("caudal", 20.0, 1.0, 4.0), slab("cranial", length, 1.0, 4.0))
    return boundary(
        slab("caudal", 0.0, -1.0, 4.0), slab("cranial", length, 1.0, 4.0), near, cases, links, kappa
    )


def test_a_linear_displacement_gives_its_uniform_strain_and_no_inner_force():
    """Patch test on a mesh with displaced inner nodes: strain of u = G x is sym(G), and (K u)
    vanishes inside."""
    mesh = bar(n=3, cells=6)
    inner = (
        (np.abs(mesh.points_mm[:, :2]) < 3.9).all(1)
        & (mesh.points_mm[:, 2] > 0.1)
        & (mesh.points_mm[:, 2] < 39.9)
    )
    points = mesh.points_mm.copy()
    points[inner] += np.random.default_rng(1).normal(scale=0.3, size=(inner.sum(), 3))
    d = el.discretise(TetMesh(points, mesh.tets, mesh.labels))
    gradient = np.array([[1.0, 2.0, -0.5], [0.3, -0.7, 0.9], [0.2, 0.4, 0.6]]) * 1e-3
    u = d.nodes_mm @ gradient.T
    expected = [
        gradient[0, 0],
        gradient[1, 1],
        gradient[2, 2],
        gradient[0, 1] + gradient[1, 0],
        gradient[0, 2] + gradient[2, 0],
        gradient[1, 2] + gradient[2, 1],
    ]
    assert np.allclose(el.strains(d, u), expected, atol=1e-12)
    uniform = np.ones(d.weight_mm3.shape)
    matrix = el.stiffness(d, 3.0 * uniform, 2.0 * uniform)
    force = np.abs((matrix @ u.ravel()).reshape(-1, 3)).max(1)
    low, high = d.nodes_mm.min(0) + 1e-6, d.nodes_mm.max(0) - 1e-6
    free = ((d.nodes_mm > low) & (d.nodes_mm < high)).all(1)
    assert free.sum() > 50 and force[~free].max() > 1e-3
    assert force[free].max() < 1e-12 * np.abs(matrix.data).max()


def test_layers_in_series_shorten_by_the_sum_of_their_compliances(monkeypatch):
    """Two bones under axial force, ν = 0 (no lateral misfit): δ = F/A Σ L_i/E_i, and F/A E the
    strain in each."""
    monkeypatch.setitem(BONE_LAWS, "without_contraction", replace(LAW, poisson=0.0))
    segment = uniform_segment((0.3, 0.8))
    mesh = bar(cells=20)
    response, status, field = solve(
        segment,
        INTACT,
        mesh,
        bar_boundary([("pull", (0, 0, 100.0), (0, 0, 0), (0, 0, 40.0))]),
        FemSettings(bone_law="without_contraction", sample_all=True),
    )
    assert status[0].code == "ok"
    e = LAW.modulus_mpa(np.array([0.3, 0.8]))
    z = mesh.points_mm[:, 2]
    section = [field.displacement_mm[0, np.isclose(z, h), 2].mean() for h in (10.0, 30.0)]
    assert section[1] - section[0] == pytest.approx(
        100.0 / 64.0 * (10.0 / e[0] + 10.0 / e[1]), rel=1e-4
    )
    for modulus, height in zip(e, (10.0, 30.0), strict=True):
        here = np.abs(response.position[:, 2] - height) < 1.5
        assert np.allclose(response.strain[0, here, 2], 100.0 / 64.0 / modulus, rtol=2e-3)


def deflection(order: int, cells: int = 12) -> np.ndarray:
    """Tip deflection and rotation of a clamped bar under a tip force and under a tip moment,
    over beam theory."""
    length, width, force, moment = 60.0, 6.0, 10.0, 400.0
    segment = uniform_segment((0.5, 0.5), ((0, 0, 4.0), (0, 0, length - 2.0)))
    mesh = bar(n=2, length=length, width=width, cells=cells * 2, split=30.0)
    near = (slab("caudal", 4.0, 1.0, 4.0), slab("cranial", length, 1.0, 4.0))
    cases = [
        ("force", (0, force, 0), (0, 0, 0), (0, 0, length - 2.0)),
        ("moment", (0, 0, 0), (moment, 0, 0), (0, 0, length - 2.0)),
    ]
    where = boundary(slab("caudal", 0.0, -1.0, 5.0), slab("cranial", length, 1.0, 4.0), near, cases)
    response, status, _ = solve(segment, INTACT, mesh, where, FemSettings(order=order))
    assert [s.code for s in status] == ["ok", "ok"]
    e = LAW.modulus_mpa(0.5)
    span = length - 2.0 - 5.0
    inertia, area = width**4 / 12.0, width**2
    shear = e / (2.0 * 1.3) * area * 5.0 / 6.0
    bending = force * span**3 / (3.0 * e * inertia) + force * span / shear
    return np.array(
        [
            response.motion[0, 1, 1] / bending,
            response.motion[1, 1, 3] / (moment * span / (e * inertia)),
        ]
    )


def test_quadratic_tetrahedra_bend_as_the_beam_and_linear_ones_are_too_stiff():
    """Timoshenko within 2 % on two cells across; linear tetrahedra lose more than 8 % on the
    same mesh."""
    quadratic, linear = deflection(2), deflection(1)
    assert np.abs(quadratic - 1.0).max() < 0.02, quadratic
    assert (linear < 0.92).all(), linear


@pytest.fixture(scope="module")
def twisted():
    """A bar under an oblique wrench whose point is off the patch, on a soft foundation."""
    segment = uniform_segment((0.3, 0.6))
    cases = [
        ("a", (30.0, -20.0, -100.0), (500.0, -300.0, 200.0), (7.0, -3.0, 55.0)),
        ("b", (0.0, 0.0, 0.0), (0.0, 0.0, 900.0), (0.0, 0.0, 0.0)),
    ]
    return segment, bar(), bar_boundary(cases, kappa=100.0)


def test_applied_force_and_moment_are_the_wrench(twisted):
    response, _, _ = solve(*twisted[:1], INTACT, *twisted[1:])
    for k, case in enumerate(twisted[2].loadcases):
        w = case.wrench
        expected = np.concatenate([w.force_n, w.moment_nmm + np.cross(w.point_mm, w.force_n)])
        assert np.allclose(response.applied[k], expected, atol=1e-9 * np.linalg.norm(expected))


def test_support_balances_the_load_and_compliance_is_twice_the_energy(twisted):
    response, _, _ = solve(*twisted[:1], INTACT, *twisted[1:], FemSettings(sample_all=True))
    assert (
        np.abs(response.reaction + response.applied).max() < 1e-6 * np.abs(response.applied).max()
    )
    energy = np.einsum("q,lqv,lqv->l", response.volume, response.strain, response.stress)
    # The rest of fᵀu is stored in the foundation, so the bar's own part is below it, and most of it
    # here.
    assert (energy < response.compliance).all() and (energy > 0.3 * response.compliance).all()


def test_samples_per_cell_and_per_quadrature_point_hold_the_same_integrals(twisted):
    qp = solve(*twisted[:1], INTACT, *twisted[1:], FemSettings(sample_all=True, quadrature=2))[0]
    cell = solve(
        *twisted[:1],
        INTACT,
        *twisted[1:],
        FemSettings(sample_all=True, quadrature=2, sample="cell"),
    )[0]
    assert len(qp.volume) == 4 * len(cell.volume)
    for name in ("strain", "stress"):
        a = np.einsum("q,lqv->lv", qp.volume, getattr(qp, name))
        b = np.einsum("q,lqv->lv", cell.volume, getattr(cell, name))
        assert np.abs(a - b).max() < 1e-6 * np.abs(a).max()  # samples are kept in single precision
    assert np.allclose(qp.volume @ qp.fraction, cell.volume @ cell.fraction)
    assert qp.near.sum() > 0 and np.allclose(qp.volume @ qp.near, cell.volume @ cell.near)


def test_only_near_bone_implant_and_graft_are_sampled_by_default(twisted):
    response = solve(*twisted[:1], INTACT, *twisted[1:], FemSettings(quadrature=2))[0]
    assert (response.near > 0).all() and 0 < len(response.volume) < 4 * len(twisted[1].tets)


def link_stiffness(k_axial=800.0, k_shear=300.0, k_bend=2.0e5, k_twist=1.0e5, arm=30.0):
    """A 12×12 spring between two coincident-frame points `arm` apart along z: no energy in rigid
    motions."""
    c = np.diag([k_shear, k_shear, k_axial, k_bend, k_bend, k_twist])
    # relative motion of b seen from a: u_b − u_a − θ_a × (p_b − p_a), θ_b − θ_a
    cross = np.array([[0.0, arm, 0.0], [-arm, 0.0, 0.0], [0.0, 0.0, 0.0]])
    t = np.zeros((6, 12))
    t[:3, :3], t[:3, 3:6], t[:3, 6:9] = -np.eye(3), -cross, np.eye(3)
    t[3:, 3:6], t[3:, 9:] = -np.eye(3), np.eye(3)
    return t.T @ c @ t, c


def two_blocks():
    """Two stiff bone blocks 20 mm apart that touch nothing else."""
    side = np.linspace(-6, 6, 4)
    z = np.array([0.0, 5, 10, 30, 35, 40])
    return box([side, side, z], lambda c: np.where(c[:, 2] < 10, 0, np.where(c[:, 2] > 30, 1, -1)))


def test_bodies_joined_only_by_a_link_move_by_its_compliance():
    """Relative motion of the reference points = C⁻¹ (F, M about p_b): the blocks only add their
    own mean motions."""
    segment = uniform_segment((2.0, 2.0), ((0, 0, 5.0), (0, 0, 35.0)))
    stiffness, c = link_stiffness()
    whole = (slab("caudal", 10.0, 1.0, 10.0), slab("cranial", 40.0, 1.0, 10.0))
    link = Link("rod", *whole, np.array([0.0, 0, 5.0]), np.array([0.0, 0, 35.0]), stiffness)
    cases = [
        ("f", (10.0, 5.0, -40.0), (0, 0, 0), (0, 0, 35.0)),
        ("m", (0, 0, 0), (900.0, -500.0, 300.0), (0, 0, 35.0)),
    ]
    where = boundary(slab("caudal", 0.0, -1.0, 5.0), whole[1], whole, cases, [link])
    response, status, _ = solve(segment, INTACT, two_blocks(), where)
    assert [s.code for s in status] == ["ok", "ok"]
    for k, case in enumerate(where.loadcases):
        a, b = response.motion[k]
        relative = np.concatenate([b[:3] - a[:3] - np.cross(a[3:], [0, 0, 30.0]), b[3:] - a[3:]])
        expected = np.linalg.solve(c, np.concatenate([case.wrench.force_n, case.wrench.moment_nmm]))
        assert np.allclose(relative, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()), (
            relative,
            expected,
        )
    assert (
        np.abs(response.reaction + response.applied).max() < 1e-6 * np.abs(response.applied).max()
    )


def test_links_by_woodbury_and_assembled_agree_and_the_link_carries_load(twisted, monkeypatch):
    segment, mesh, base = twisted
    stiffness, _ = link_stiffness(8000.0, 3000.0, 2e6, 1e6)
    link = Link(
        "rod", base.support, base.load, np.array([0.0, 0, 5.0]), np.array([0.0, 0, 35.0]), stiffness
    )
    where = bar_boundary(
        [
            (c.name, c.wrench.force_n, c.wrench.moment_nmm, c.wrench.point_mm)
            for c in base.loadcases
        ],
        kappa=100.0,
        links=[link],
    )
    woodbury = solve(segment, INTACT, mesh, where)[0]
    monkeypatch.setattr("fem.solve.components", lambda tets: np.array([0, 1]))
    dense = solve(segment, INTACT, mesh, where)[0]
    free = solve(segment, INTACT, mesh, base)[0]
    assert np.allclose(woodbury.motion, dense.motion, rtol=1e-7, atol=1e-10)
    assert (woodbury.compliance < 0.99 * free.compliance).any()


def test_the_iterative_fallback_gives_the_direct_answer_and_says_so(twisted):
    direct = solve(*twisted[:1], INTACT, *twisted[1:])[0]
    response, status, _ = solve(
        *twisted[:1], INTACT, *twisted[1:], FemSettings(max_direct_dofs=10, tolerance=1e-9)
    )
    assert all(
        s.code == "ok" and "above max_direct_dofs=10" in s.text and s.iterations > 0 for s in status
    )
    assert np.allclose(response.motion, direct.motion, rtol=1e-5, atol=1e-8)


def test_a_body_that_floats_fails_and_gives_no_numbers():
    """Two blocks without a link: the cranial one is held by nothing."""
    segment = uniform_segment((2.0, 2.0), ((0, 0, 5.0), (0, 0, 35.0)))
    whole = (slab("caudal", 10.0, 1.0, 10.0), slab("cranial", 40.0, 1.0, 10.0))
    where = boundary(
        slab("caudal", 0.0, -1.0, 5.0),
        whole[1],
        whole,
        [("f", (10.0, 0, 0), (0, 0, 0), (0, 0, 35.0))],
    )
    response, status, _ = solve(segment, INTACT, two_blocks(), where, FemSettings(solver="direct"))
    assert status[0].code == "failed"
    assert np.isnan(response.motion).all() and np.isnan(response.compliance).all()
    assert np.isnan(response.strain).all() and np.isnan(response.reaction).all()


def test_moduli_follow_law_lattice_and_tissue():
    mesh = box(
        [np.array([0, 4.0]), np.array([0, 4.0]), np.arange(0.0, 21.0, 4.0)],
        lambda c: (c[:, 2] // 4).astype(int),
    )
    d = el.discretise(mesh, 1)
    rho = VoxelField(np.full((2, 2, 2), 0.3), np.zeros(3), 30.0)
    solid = VoxelField(np.full((2, 2, 2), -1.0), np.zeros(3), 30.0)
    design = Design("optimised", "box", "ti6al4v", solid, solid, rho)
    segment = uniform_segment((0.2, 0.4))
    e, poisson, relative = moduli(segment, design, d, "morgan2003_vertebra")
    expected = [
        LAW.modulus_mpa(0.2),
        LAW.modulus_mpa(0.4),
        112000.0 * lattice_modulus_ratio(0.3),
        SOFT["graft"].e_mpa,
        SOFT["remnant"].e_mpa,
    ]
    for label, value in enumerate(expected):
        assert np.allclose(e[d.labels == label], value)
    assert np.allclose(relative[d.labels == 2], 0.3) and (relative[d.labels != 2] == 1.0).all()
    assert np.allclose(poisson[d.labels == 2], 0.33)
    wrong = Design(
        "optimised",
        "box",
        "ti6al4v",
        solid,
        solid,
        VoxelField(np.full((2, 2, 2), -0.1), np.zeros(3), 30.0),
    )
    with pytest.raises(ValueError, match="relative density"):
        moduli(segment, wrong, d, "morgan2003_vertebra")


def test_the_bone_factor_scales_bone_and_nothing_else():
    mesh = box(
        [np.array([0, 4.0]), np.array([0, 4.0]), np.arange(0.0, 21.0, 4.0)],
        lambda c: (c[:, 2] // 4).astype(int),
    )
    d = el.discretise(mesh, 1)
    solid = VoxelField(np.full((2, 2, 2), -1.0), np.zeros(3), 30.0)
    design = Design("optimised", "box", "ti6al4v", solid, solid, None)
    segment = uniform_segment((0.2, 0.4))
    one, half = (
        moduli(segment, design, d, "morgan2003_vertebra", bone_factor=f)[0] for f in (1.0, 0.5)
    )
    bone = np.isin(d.labels, [0, 1])
    assert np.allclose(half[bone], 0.5 * one[bone]) and np.array_equal(half[~bone], one[~bone])
    with pytest.raises(ValueError, match=r"bone_factor=0\.0"):
        FemSettings(bone_factor=0.0)
    with pytest.raises(ValueError, match="test blocks are no bone"):
        FemSettings(bone_factor=0.7, blocks_mpa=2e5)


def test_a_rescaled_response_is_that_of_rescaled_loads(twisted):
    segment, mesh, base = twisted
    wrenches = [
        replace(
            c,
            wrench=replace(
                c.wrench, force_n=1.2 * c.wrench.force_n, moment_nmm=1.2 * c.wrench.moment_nmm
            ),
        )
        for c in base.loadcases
    ]
    once, _, _ = solve(segment, INTACT, mesh, base, FemSettings(quadrature=2))
    more, _, _ = solve(
        segment, INTACT, mesh, replace(base, loadcases=tuple(wrenches)), FemSettings(quadrature=2)
    )
    scaled = rescaled(once, 1.2)
    for name in ("strain", "stress", "motion", "compliance", "reaction", "applied"):
        a, b = np.asarray(getattr(scaled, name)), np.asarray(getattr(more, name))
        # strains and stresses are kept in single precision
        assert np.abs(a - b).max() < 2e-6 * np.abs(b).max(), name
    assert rescaled(replace(once, reference_sed=np.ones(3)), 1.2).reference_sed == pytest.approx(
        1.44 * np.ones(3)
    )


def test_an_empty_patch_and_a_missing_near_patch_are_named(twisted):
    segment, mesh, base = twisted
    away = boundary(
        slab("caudal", -100.0, -1.0, 4.0),
        base.load,
        base.near,
        [("f", (1, 0, 0), (0, 0, 0), (0, 0, 0))],
    )
    with pytest.raises(ValueError, match="layer patch of the caudal"):
        solve(segment, INTACT, mesh, away)
    one = boundary(base.support, base.load, base.near[:1], [("f", (1, 0, 0), (0, 0, 0), (0, 0, 0))])
    with pytest.raises(ValueError, match="near has no patch of the cranial"):
        solve(segment, INTACT, mesh, one)


def test_the_written_file_reads_back_with_its_fields(twisted, tmp_path):
    segment, mesh, where = twisted
    _, _, field = solve(segment, INTACT, mesh, where)
    write_vtu(tmp_path / "field.vtu", field)
    back = meshio.read(tmp_path / "field.vtu")
    assert np.allclose(back.point_data["a_displacement_mm"], field.displacement_mm[0])
    for name in ("strain_min", "strain_max", "von_mises_mpa", "sed_mpa"):
        assert np.isfinite(back.cell_data[f"b_{name}"][0]).all()
    assert set(np.unique(back.cell_data["region"][0])) == {0, 1}
    # torsion: pure shear, principal strains opposite, von Mises √3 τ
    lowest, highest = back.cell_data["b_strain_min"][0], back.cell_data["b_strain_max"][0]
    middle = np.abs(mesh.points_mm[mesh.tets].mean(1)[:, 2] - 12.0) < 2.0
    assert np.allclose(lowest[middle].mean(), -highest[middle].mean(), rtol=0.05)
