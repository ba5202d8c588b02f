"""The forward model of the phantom against statics, linearity, symmetry and geometry."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import elasticity, forward, implants, mixture, multigrid
from engine.implants._abstract import DISC_MARGIN_MM
from engine.materials import SOFT, lame
from engine.scene import check_facets, largest_piece, prepare
from engine.sdf import FILL_WIDTH_VOXELS, fill
from engine.types import REGIONS
from objectives._abstract import principal_strains

#: Half the width of the fill's transition, in voxels.
HALF = FILL_WIDTH_VOXELS / 2
IMPLANT, GRAFT = REGIONS.index("implant"), REGIONS.index("graft")


def relative(a, b) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


# -- statics ---------------------------------------------------------------------------------------
def test_support_reaction_balances_the_applied_wrench(start):
    """Solved to a residual of 1e-10; the reaction is a sum over all rows of it, so 1e-7 leaves
    room for the lever arms."""
    reaction, applied = np.asarray(start.response.reaction), np.asarray(start.response.applied)
    for part in (slice(0, 3), slice(3, 6)):
        size = np.linalg.norm(applied[:, part], axis=1)
        assert np.all(np.linalg.norm(reaction[:, part] + applied[:, part], axis=1) < 1e-7 * size)


def test_basis_gives_every_load_case_back(bench, rodded, segment):
    """Nodal forces of the combination have each case's wrench as resultant, and five cases need
    only four solves."""
    scene, numerics = rodded
    forces = np.einsum("lr,rcxyz->lcxyz", scene.combination, scene.forces)
    got = elasticity.resultant(numerics.grid, forces)
    top, bottom = segment.cranial.superior.centre_mm, segment.caudal.inferior.centre_mm
    line = (bottom - top) / np.linalg.norm(bottom - top)
    assert scene.forces.shape[0] == 4
    cases = {
        "standing": (500, 0, 0, 0),
        "flexion": (1175, 7.5, 0, 0),
        "left_bending": (700, 0, 7.8, 0),
        "right_bending": (700, 0, -7.8, 0),
        "left_rotation": (720, 0, 0, 5.5),
    }
    for name, wrench in zip(numerics.loadcases, got, strict=True):
        preload, *moment = cases[name]
        force = preload * line
        expected = np.concatenate([force, 1000 * np.array(moment) + np.cross(top, force)])
        # sums over some thousand nodal forces
        assert np.abs(wrench[:3] - force).max() < 1e-9 * preload
        assert np.abs(wrench - expected).max() < 1e-9 * np.abs(expected).max()
    np.testing.assert_allclose(scene.applied, got, rtol=1e-9, atol=1e-6)


def test_follower_preload_alone_runs_through_both_endplate_centres(rodded, segment):
    """Its moment vanishes about either centre: it compresses without bending."""
    scene, numerics = rodded
    wrench = np.asarray(scene.applied)[numerics.loadcases.index("standing")]
    for point in (segment.cranial.superior.centre_mm, segment.caudal.inferior.centre_mm):
        assert np.abs(wrench[3:] - np.cross(point, wrench[:3])).max() < 1e-6


def test_double_load_gives_double_motion_and_fourfold_compliance(bench, start):
    double = bench.run(bench.initial(), scene=replace(bench.scene, forces=2 * bench.scene.forces))
    # two solves, each to 1e-10
    assert relative(double.response.motion, 2 * start.response.motion) < 1e-7
    assert relative(double.response.strain, 2 * start.response.strain) < 1e-7
    assert relative(double.response.compliance, 4 * start.response.compliance) < 1e-7


def test_work_of_one_load_on_another_is_reciprocal(bench, start):
    """Betti: f_rᵀ u_s = f_sᵀ u_r."""
    work = jnp.einsum("rcxyz,scxyz->rs", bench.scene.forces, start.displacement)
    assert relative(work, work.T) < 1e-8


def test_compliance_is_twice_the_stored_energy(bench, start):
    """fᵀu = uᵀKu, with foundation and links; here per basis load."""
    system, _, _ = forward.construct(
        bench.scene, bench.numerics, bench.family, bench.physical(bench.initial())
    )
    ku = multigrid.operate(system, start.displacement, bench.numerics.grid.spacing_mm)
    stored = jnp.einsum(
        "lr,rcxyz,scxyz,ls->l",
        bench.scene.combination,
        ku,
        start.displacement,
        bench.scene.combination,
    )
    assert relative(stored, start.response.compliance) < 1e-8


def test_compliance_is_positive_and_the_segment_moves_as_it_is_pushed(start):
    """Compression shortens, flexion tips forward (+x), left bending turns about +y, left
    rotation about +z."""
    response = start.response
    assert np.all(np.asarray(response.compliance) > 0)
    relative_motion = np.asarray(response.motion[:, 1] - response.motion[:, 0])
    assert relative_motion[response.case("standing"), 2] < 0
    free = relative_motion - relative_motion[response.case("standing")]
    for name, axis, sign in (
        ("flexion", 3, 1),
        ("left_bending", 4, 1),
        ("right_bending", 4, -1),
        ("left_rotation", 5, 1),
    ):
        row = free[response.case(name)]
        assert sign * row[axis] > 0
    with pytest.raises(ValueError, match="'walking' is not in this response; it has standing"):
        response.case("walking")


# -- symmetry --------------------------------------------------------------------------------------
def test_phantom_bends_left_as_it_bends_right(bench, start):
    """Anatomy, cage and grid are mirror images in x = 0 up to the resampling of the signed
    distances (1.5 mm samples)."""
    response = start.response
    left, right = response.case("left_bending"), response.case("right_bending")
    low, high = principal_strains(response.strain)
    bone = np.asarray(response.volume * response.near * response.fraction[:, :2].sum(-1))
    strained = (np.maximum(-np.asarray(low) / 0.0077, np.asarray(high) / 0.0070) * bone).sum(-1)
    assert strained[left] == pytest.approx(strained[right], rel=5e-3)
    # a threshold in the middle of the strains, so that volumes count and not only means
    ratio = np.maximum(-np.asarray(low) / 0.0077, np.asarray(high) / 0.0070)
    level = np.quantile(ratio[left][bone > 1], 0.8)
    volumes = [float(((ratio[i] > level) * bone).sum()) for i in (left, right)]
    assert volumes[0] > 1000
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)
    flip = np.array([-1, 1, 1, 1, -1, -1])  # mirror of translations and rotations in x = 0
    motion = np.asarray(response.motion)
    assert np.abs(motion[left] - flip * motion[right]).max() < 5e-3 * np.abs(motion[left]).max()
    assert float(response.compliance[left]) == pytest.approx(
        float(response.compliance[right]), rel=2e-3
    )


# -- geometry --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shares(bench):
    parameters = {k: jnp.asarray(g.initial) for k, g in bench.family.groups().items()}
    implant = bench.family.fields(parameters, bench.scene.anatomy)
    return implant, np.asarray(
        mixture.fractions(bench.scene, bench.numerics.grid.spacing_mm, implant)
    )


def test_fractions_are_shares_of_a_whole(shares):
    """What they leave to 1 is surrounding tissue: each within [0, 1], the sum too."""
    _, fractions = shares
    assert fractions.min() >= 0.0
    assert fractions.max() <= 1.0
    assert fractions.sum(-1).max() <= 1.0 + 1e-15 * len(REGIONS)
    present = fractions.sum((0, 1, 2))
    assert np.all(present > 1), dict(zip(REGIONS, present, strict=True))


def test_conforming_faces_leave_no_gap(bench):
    """Inside the footprint, bone and implant fill every voxel on the interface: fill(φ) + fill(−φ)
    = 1 exactly.

    On the full-endplate family, whose solid footprint is many voxels wide; the cage composes its
    faces alike.
    """
    anatomy, h = bench.scene.anatomy, bench.numerics.grid.spacing_mm
    family = implants.load("full_endplate", {})
    implant = family.fields({}, anatomy)
    fractions = np.asarray(mixture.fractions(bench.scene, h, implant))
    # where the disc-space body, which ends at the rounded rims, does not cut the part off first
    clear = (np.asarray(anatomy.rim) < -HALF * h - family.rim_inset_mm) & (
        np.asarray(anatomy.disc) < -HALF * h - DISC_MARGIN_MM
    )
    part = fractions[..., IMPLANT]
    face = clear & (part > 0.02) & (part < 0.98)
    assert face.sum() > 100
    total = fractions[..., :3].sum(-1)
    assert np.abs(total[face] - 1.0).max() < 1e-12
    # it can fail: a product of fills, as in bone·(1 − implant), leaves up to a quarter of the voxel
    # empty
    product = part + (1 - part) * np.maximum(
        fill(bench.scene.caudal, h), fill(bench.scene.cranial, h)
    )
    assert np.abs(product[face] - 1.0).max() > 0.2


def test_offset_face_opens_a_gap(bench):
    """Half a millimetre of standoff takes volume from the implant, and the bone doesn't grow
    into it."""
    parameters = {k: jnp.asarray(g.initial) for k, g in bench.family.groups().items()}
    parameters["offset_caudal"] = 0.5 + 0 * parameters["offset_caudal"]
    shares = []
    for p in ({k: jnp.asarray(g.initial) for k, g in bench.family.groups().items()}, parameters):
        implant = bench.family.fields(p, bench.scene.anatomy)
        shares.append(
            np.asarray(mixture.fractions(bench.scene, bench.numerics.grid.spacing_mm, implant))
        )
    lost = shares[0][..., IMPLANT].sum() - shares[1][..., IMPLANT].sum()
    gained = shares[1][..., 0].sum() - shares[0][..., 0].sum()
    assert lost > 1
    # bone takes nothing of what the implant gives up (the disc's remnant does)
    assert abs(gained) < 0.05 * lost


def test_bone_and_implant_volume_follow_the_offset(bench):
    """Sinking the caudal face by 0.5 mm takes from the bone what it gives to the implant."""
    base = {k: jnp.asarray(g.initial) for k, g in bench.family.groups().items()}
    sunk = {**base, "offset_caudal": -0.5 + 0 * base["offset_caudal"]}
    h = bench.numerics.grid.spacing_mm
    before, after = (
        np.asarray(
            mixture.fractions(bench.scene, h, bench.family.fields(p, bench.scene.anatomy))
        ).sum((0, 1, 2))
        for p in (base, sunk)
    )
    gained = after[IMPLANT] - before[IMPLANT]
    assert gained > 1
    assert after[0] - before[0] == pytest.approx(-gained, rel=0.05)


def test_derivative_at_a_conforming_face_is_that_of_sinking_it(bench):
    """At g = 0 φ_bone and −φ_implant tie all over the face. Against one-sided differences into
    the bone; max() would give bone half of its derivative and the disc's remnant, which is not
    there, the other half."""
    base = {k: jnp.asarray(g.initial) for k, g in bench.family.groups().items()}
    assert not np.any(base["offset_caudal"])

    def shares(t):
        p = {**base, "offset_caudal": base["offset_caudal"] - t}
        return mixture.fractions(
            bench.scene, bench.numerics.grid.spacing_mm, bench.family.fields(p, bench.scene.anatomy)
        )

    at, tangent = jax.jvp(shares, (0.0,), (1.0,))
    step = 1e-5
    difference = np.asarray((shares(step) - at) / step)
    assert np.abs(difference[..., 0]).max() > 0.1  # bone gives way
    wrong = np.abs(np.asarray(tangent) - difference) > 1e-3
    # the faces' own rims and the window's edge have other switches of max()
    assert wrong[..., 0].sum() <= 0.02 * (np.abs(difference[..., 0]) > 1e-3).sum()
    assert np.abs(np.asarray(tangent)[..., -1]).sum() < 0.02 * np.abs(difference[..., 0]).sum()


def test_fill_is_complementary_smooth_and_bounded():
    t = jnp.linspace(-3, 3, 1001)
    f = np.asarray(fill(t, 1.0))
    assert f.min() == 0.0 and f.max() == 1.0
    assert np.abs(f + np.asarray(fill(-t, 1.0)) - 1).max() <= 2.3e-16
    slope = np.diff(f) / np.diff(np.asarray(t))
    assert slope.max() <= 0.0
    assert (
        np.abs(np.diff(slope)).max() < 0.006 * 1.5 / HALF**2
    )  # no jump in slope: f'' is at most 1.5/w², steps of 0.006


def test_filled_sphere_volume_converges_with_second_order():
    """Σ fill·h³ of a sphere of 10 mm. The smeared shell has no first moment about the surface,
    so its error is that of curvature, (4π/5·w²)·r-like: O(h²), with w the half width."""
    radius, errors, rng = 10.0, [], np.random.default_rng(0)
    spacings = (2.0, 1.0, 0.5)
    for h in spacings:
        found = []
        for shift in rng.random(
            (40, 3)
        ):  # the mean over grid positions: one alone also has the error of sampling the shell
            x, y, z = np.meshgrid(*(np.arange(-14, 14, h) + h * s for s in shift), indexing="ij")
            found.append(
                float(np.asarray(fill(jnp.asarray(np.sqrt(x**2 + y**2 + z**2) - radius), h)).sum())
                * h**3
            )
        errors.append(np.mean(found) / (4 / 3 * np.pi * radius**3) - 1)
        # exact smeared volume: ∫ f dV = V + 4πr·∫ s² weight = V(1 + (3/5)(w/r)²) for this cubic
        # step
        predicted = 0.6 * (HALF * h / radius) ** 2
        assert errors[-1] == pytest.approx(predicted, rel=0.25)
    order = np.log2(errors[0] / errors[-1]) / 2
    print("errors", errors, "order", order)
    assert 1.8 < order < 2.2


# -- mixture ---------------------------------------------------------------------------------------
def layered(scene, axis: int, at: float):
    """Shares of bone below and disc remnant above a plane across `axis` that lies at `at`
    voxels."""
    shape = scene.e_caudal.shape
    share = np.clip(at - np.arange(shape[axis]), 0.0, 1.0)
    bone = np.broadcast_to(share.reshape([-1 if a == axis else 1 for a in range(3)]), shape)
    shares = np.zeros((*shape, len(REGIONS)))
    shares[..., REGIONS.index("caudal")], shares[..., REGIONS.index("remnant")] = bone, 1.0 - bone
    return replace(scene, e_caudal=jnp.full(shape, 900.0)), jnp.asarray(shares)


@pytest.mark.parametrize("at", [12.0, 12.1, 12.5, 12.9])
def test_layers_across_the_load_are_in_series_wherever_the_interface_lies(rodded, at):
    """Constrained compression of bone (900 MPa) under disc (4.2 MPa): Σ h/M over a column equals
    that of the layers.

    The part's share of the voxel is exact to 1 % (λ and μ are averaged apart); an arithmetic mean
    loses the half voxel.
    """
    scene, shares = layered(rodded[0], 2, at)
    body, strain_ratio = mixture.medium(
        scene, shares, jnp.ones(shares.shape[:3]), mixture.alloy("peek"), 0.3
    )
    m = np.asarray(body.lam + 2 * body.mu)[5, 5]
    layers = [
        lam + 2 * mu
        for lam, mu in (lame(900.0, 0.3), lame(SOFT["remnant"].e_mpa, SOFT["remnant"].poisson))
    ]
    exact = at / layers[0] + (m.size - at) / layers[1]
    assert (1 / m).sum() == pytest.approx(exact, rel=2e-3)
    if at % 1.0:
        arithmetic = np.sum(
            1
            / (
                np.asarray(shares)[5, 5, :, 0] * layers[0]
                + np.asarray(shares)[5, 5, :, 4] * layers[1]
            )
        )
        assert abs(arithmetic / exact - 1) > 3e-3
        # stress is shared: bone's strain there is what the mixture's stress makes of bone alone
        mixed = int(at)
        assert float(strain_ratio[5, 5, mixed]) == pytest.approx(
            float(body.mu[5, 5, mixed]) / lame(900.0, 0.3)[1], rel=1e-9
        )
        assert float(strain_ratio[5, 5, mixed]) < 0.1
    assert np.all(np.asarray(strain_ratio)[..., : int(at)] == pytest.approx(1.0, rel=1e-9))


def test_side_walls_take_the_geometric_mean(rodded):
    scene, shares = layered(rodded[0], 0, 8.5)
    body, _ = mixture.medium(scene, shares, jnp.ones(shares.shape[:3]), mixture.alloy("peek"), 0.3)
    soft = lame(SOFT["remnant"].e_mpa, SOFT["remnant"].poisson)[1]
    assert float(body.mu[8, 9, 9]) == pytest.approx(np.sqrt(lame(900.0, 0.3)[1] * soft), rel=1e-3)


def test_vertebrae_that_share_voxels_behind_the_disc_are_refused(rodded, segment):
    scene, numerics = rodded
    distance = {"caudal": np.asarray(scene.caudal), "cranial": np.asarray(scene.cranial)}
    points = numerics.grid.centres()
    check_facets(segment, distance, points, numerics.grid.spacing_mm)
    wall = max(
        segment.caudal.superior.rim_mm[:, 1].max(), segment.cranial.inferior.rim_mm[:, 1].max()
    )
    behind = (points[..., 1] > wall + 4.0) & (np.abs(points[..., 0]) < 8.0)
    fused = {k: np.where(behind, -1.0, d) for k, d in distance.items()}
    with pytest.raises(ValueError, match=r"facets fuse on a 3 mm grid.*three voxels apart"):
        check_facets(segment, fused, points, numerics.grid.spacing_mm)


def test_a_loose_piece_of_bone_is_left_out(rodded):
    scene, numerics = rodded
    h = numerics.grid.spacing_mm
    distance = np.asarray(scene.cranial).copy()
    kept = largest_piece("cranial", distance, h)
    far = np.unravel_index(np.argmax(distance), distance.shape)
    distance[far] = -0.5 * h
    assert distance[far] < 0
    cleaned = largest_piece("cranial", distance, h)
    assert cleaned[far] >= 0.5 * FILL_WIDTH_VOXELS * h
    mask = np.ones(distance.shape, bool)
    mask[far] = False
    assert np.array_equal(cleaned[mask], kept[mask])


# -- refusal ---------------------------------------------------------------------------------------
def test_unknown_bone_law_lists_the_known_ones(segment):
    with pytest.raises(ValueError, match="'iron' is unknown; choose one of morgan2003_vertebra"):
        prepare(segment, None, None, multigrid.SolverSettings(), "iron")


@pytest.mark.slow
def test_intact_segment_is_softer_than_any_cage_and_carries_no_rods(bench, start):
    """The reference of stress shielding; its own balance holds too."""
    scene, response, info = forward.with_reference(
        bench.scene, bench.numerics, implants.load("none", {})
    )
    assert float(np.max(info.relative_residual)) < 2e-10
    assert np.all(np.asarray(response.compliance) > np.asarray(start.response.compliance))
    assert (
        np.abs(np.asarray(response.reaction + response.applied)).max()
        < 1e-6 * np.abs(np.asarray(response.applied)).max()
    )
    energy = np.asarray(scene.reference_sed)
    assert energy.shape == np.asarray(response.strain).shape[:2]
    assert energy.min() >= 0.0
