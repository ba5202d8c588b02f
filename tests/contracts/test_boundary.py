"""Rods and supports: beams against the formulas of every textbook, and what a link may and may
not hold."""

from __future__ import annotations

import numpy as np
import pytest

from engine import loadcases
from engine.boundary import BoundarySettings, beam_stiffness, boundary

E, NU, D, L = 112000.0, 0.33, 5.5, 37.0
AREA, INERTIA = np.pi * D**2 / 4, np.pi * D**4 / 64
#: A direction with nothing special about it, and the three axes.
DIRECTIONS = [
    np.array(v) / np.linalg.norm(v)
    for v in ([1.0, 2.0, -0.7], [1.0, 0, 0], [0, 1.0, 0], [0, 0, -1.0])
]


@pytest.fixture(params=range(4), ids=["oblique", "x", "y", "-z"])
def beam(request):
    axis = DIRECTIONS[request.param]
    start = np.array([3.0, -8.0, 20.0])
    k = beam_stiffness(start, start + L * axis, D, E, NU)
    across = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    return k, axis, across / np.linalg.norm(across), start


def tip(k: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Motion of the free end of the beam, clamped at its start."""
    return np.linalg.solve(k[6:, 6:], load)


def test_beam_is_symmetric_semidefinite_and_lets_rigid_motions_go(beam):
    k, axis, _, start = beam
    assert np.abs(k - k.T).max() < 1e-12 * np.abs(k).max()
    for i in range(3):
        e = np.eye(3)[i]
        shift = np.concatenate([e, [0, 0, 0], e, [0, 0, 0]])
        turn = np.concatenate([np.cross(e, start), e, np.cross(e, start + L * axis), e])
        # rows mix N and N·mm up to 4EI/L
        assert np.abs(k @ shift).max() < 1e-10 * np.abs(k).max()
        assert np.abs(k @ turn).max() < 1e-10 * np.abs(k).max() * L
    values = np.linalg.eigvalsh((k + k.T) / 2)
    assert np.sum(values > 1e-9 * values[-1]) == 6
    assert values[0] > -1e-9 * values[-1]


def test_cantilever_under_tip_force_is_p_l3_over_3ei(beam):
    k, axis, across, _ = beam
    motion = tip(k, np.concatenate([10.0 * across, np.zeros(3)]))
    np.testing.assert_allclose(
        motion[:3], 10 * L**3 / (3 * E * INERTIA) * across, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        motion[3:], 10 * L**2 / (2 * E * INERTIA) * np.cross(axis, across), rtol=1e-9, atol=1e-12
    )


def test_cantilever_under_tip_moment_is_m_l2_over_2ei(beam):
    k, axis, across, _ = beam
    motion = tip(k, np.concatenate([np.zeros(3), 500.0 * across]))
    np.testing.assert_allclose(motion[3:], 500 * L / (E * INERTIA) * across, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        motion[:3], 500 * L**2 / (2 * E * INERTIA) * np.cross(across, axis), rtol=1e-9, atol=1e-12
    )


def test_torsion_is_t_l_over_gj_and_tension_n_l_over_ea(beam):
    k, axis, _, _ = beam
    shear = E / 2 / (1 + NU)
    motion = tip(k, np.concatenate([100.0 * axis, 700.0 * axis]))
    np.testing.assert_allclose(motion[:3], 100 * L / (E * AREA) * axis, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        motion[3:], 700 * L / (shear * 2 * INERTIA) * axis, rtol=1e-9, atol=1e-12
    )


def test_beam_without_length_is_refused():
    with pytest.raises(ValueError, match="no length; check the pedicle axes"):
        beam_stiffness(np.ones(3), np.ones(3), D, E, NU)


@pytest.fixture(scope="module")
def held(segment):
    case = loadcases.make(
        "standing", {"kind": "follower_moment", "preload_n": 500, "source": "test"}, segment
    )
    return boundary(segment, [case], True, BoundarySettings())


def test_rods_link_cranial_to_caudal_pedicles_on_both_sides(held, segment):
    assert [link.name for link in held.links] == ["rod_left", "rod_right"]
    for link, side in zip(held.links, ("left", "right"), strict=True):
        assert (link.patch_a.body, link.patch_b.body) == ("cranial", "caudal")
        np.testing.assert_allclose(link.point_a_mm, segment.cranial.pedicles[side].mean(0))
        np.testing.assert_allclose(link.point_b_mm, segment.caudal.pedicles[side].mean(0))
        assert np.sign(link.point_a_mm[0]) == (1 if side == "left" else -1), "x points left"
    assert boundary(segment, list(held.loadcases), False, BoundarySettings()).links == ()


def test_rod_is_symmetric_semidefinite_with_six_free_motions(held):
    """The condensed chain screw-rod-screw resists every relative motion and no common one."""
    for link in held.links:
        k = link.stiffness
        np.testing.assert_array_equal(k, k.T)
        scale = np.diag(
            np.tile([1.0] * 3 + [20.0] * 3, 2) ** -1.0
        )  # rotations at 20 mm, so that units compare
        values = np.linalg.eigvalsh(scale @ k @ scale)
        assert np.sum(np.abs(values) < 1e-9 * values[-1]) == 6
        assert np.sum(values > 1e-6 * values[-1]) == 6
        for i in range(3):
            e = np.eye(3)[i]
            turn = np.concatenate(
                [np.cross(e, link.point_a_mm), e, np.cross(e, link.point_b_mm), e]
            )
            shift = np.concatenate([e, 0 * e, e, 0 * e])
            for motion in (turn, shift):
                assert (
                    np.abs(scale @ k @ motion).max()
                    < 1e-9 * np.abs(scale @ k).max() * np.abs(motion).max()
                )


def test_rod_is_softer_than_a_straight_beam_between_its_anchors(held):
    """Screws and offset heads add compliance: the axial stiffness is below EA/L of the rod
    alone."""
    s = BoundarySettings()
    for link in held.links:
        axis = link.point_a_mm - link.point_b_mm
        length = np.linalg.norm(axis)
        motion = np.concatenate([axis / length, np.zeros(9)])
        straight = s.rod_e_mpa * np.pi * s.rod_diameter_mm**2 / 4 / length
        assert 0 < motion @ link.stiffness @ motion < straight


def test_rods_are_mirror_images(held):
    """The phantom is symmetric: the two links differ by the reflection in x = 0 (translations
    −x, rotations −y −z)."""
    flip = np.tile([-1, 1, 1, 1, -1, -1], 2).astype(float)
    left, right = (link.stiffness for link in held.links)
    # pedicle axes are found by marching in steps of 0.05 mm
    assert np.abs(left - flip[:, None] * right * flip[None]).max() < 0.02 * np.abs(left).max()


def test_patches_weigh_between_nothing_and_all_and_hold_bone(held, segment):
    for patch in (
        held.support,
        held.load,
        *held.near,
        *(p for link in held.links for p in (link.patch_a, link.patch_b)),
    ):
        body = getattr(segment, patch.body)
        points = body.sdf.points()[::2, ::2, ::2]
        weight = patch.weight(points)
        assert weight.min() >= 0 and weight.max() == 1.0
        bone = (weight * (body.sdf.values[::2, ::2, ::2] < 0)).sum() * (
            2 * body.sdf.spacing_mm
        ) ** 3
        assert bone > 300, "mm³"
    assert held.support.body == "caudal" and held.load.body == "cranial"
    assert [p.body for p in held.near] == ["caudal", "cranial"]


def test_layer_patch_lies_under_its_endplate(held, segment):
    plate = segment.cranial.superior
    below, above = (plate.centre_mm + s * plate.normal for s in (-2.0, 3.0))
    assert (
        held.load.weight(below) == 1.0 and held.load.weight(above) > 0
    )  # above is air: the bone's volume ends it
    assert held.load.weight(plate.centre_mm - 9.0 * plate.normal) == 0.0
    assert held.load.weight(plate.centre_mm + 1.5 * plate.half_width_mm * plate.axis_left) == 0.0


@pytest.mark.parametrize(
    "change",
    [{"patch_depth_mm": 0.5}, {"foundation_mpa_per_mm2": 0}, {"rod": 5}, {"rod_poisson": 0.5}],
)
def test_settings_out_of_range_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        BoundarySettings(**change)
