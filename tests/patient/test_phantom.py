"""The phantom is what it says: distances, density, alignment, joints."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from engine.materials import BONE_LAWS
from engine.patient import BoneProfile, PhantomSpec, measure, truth
from engine.patient.alignment.disc import cranial_pose
from engine.patient.bone.assumed import assumed_density, density_of_modulus, posterior_share
from engine.patient.geometry.distance import isosurface, surface_sdf, volume_mm3
from engine.types import PatientModel, Surface, VoxelField
from tests.patient.conftest import MILD, SKEWED


@pytest.mark.parametrize("spec", [MILD, SKEWED], ids=["mild", "skewed"])
def test_truth_is_the_spec(spec: PhantomSpec) -> None:
    found = truth(spec)
    for key in (
        "lordosis_deg",
        "coronal_deg",
        "axial_deg",
        "height_middle_mm",
        "listhesis_mm",
        "lateral_mm",
    ):
        assert getattr(found, key) == pytest.approx(getattr(spec, key), abs=1e-9), key
    # a disc that opens in front is taller in front
    assert found.height_anterior_mm > found.height_middle_mm > found.height_posterior_mm


def test_alignment_does_not_depend_on_how_the_patient_lies(skewed: PatientModel) -> None:
    found, exact = measure(*skewed.vertebrae), truth(SKEWED)
    for key in found.__dataclass_fields__:
        assert getattr(found, key) == pytest.approx(getattr(exact, key), abs=1e-9), key


@pytest.mark.parametrize(
    ("part", "moved"),
    [
        # x left, y posterior, z up: where a point of the cranial endplate goes for a positive
        # component
        ("lordosis_deg", ([0.0, -10.0, 0.0], 2, 1.0)),
        ("coronal_deg", ([10.0, 0.0, 0.0], 2, 1.0)),
        ("axial_deg", ([0.0, -10.0, 0.0], 0, 1.0)),
        ("listhesis_mm", ([0.0, 0.0, 0.0], 1, -1.0)),
        ("lateral_mm", ([0.0, 0.0, 0.0], 0, 1.0)),
    ],
)
def test_signs(part: str, moved: tuple[list[float], int, float]) -> None:
    point, axis, sign = moved
    neutral = dict.fromkeys(
        ("lordosis_deg", "coronal_deg", "axial_deg", "listhesis_mm", "lateral_mm"), 0.0
    )
    start = cranial_pose(**neutral, height_middle_mm=8.0)
    end = cranial_pose(**(neutral | {part: 3.0}), height_middle_mm=8.0)
    change = (end - start)[:3, :3] @ np.array(point) + (end - start)[:3, 3]
    assert sign * change[axis] > 0.3


def test_joints_stay_open(mild: PatientModel) -> None:
    upper, lower = mild.vertebrae
    gap = float(lower.sdf.sample(upper.surface.points_mm).min())
    # 1.5 mm asked; carved on a 1 mm grid with a 0.6 mm rounding that only widens it
    assert MILD.facet_gap_mm - 0.15 < gap < MILD.facet_gap_mm + 1.5


def test_field_is_a_distance_near_the_surface(mild: PatientModel) -> None:
    # |∇φ| = 1: median over the band, as kinks (medial axis) are no error
    field = mild.vertebrae[1].sdf
    values = np.asarray(field.values, float)
    slope = np.linalg.norm(np.gradient(values, field.spacing_mm), axis=0)
    assert np.median(np.abs(slope[np.abs(values) < 2.0] - 1.0)) < 0.02
    border = min(
        float(np.take(values, side, axis=axis).min()) for axis in range(3) for side in (0, -1)
    )
    assert border > 6.0  # types.VoxelField asks for 6 mm of margin


def test_sphere_distance_is_exact() -> None:
    axes = np.meshgrid(*[np.arange(-16.0, 16.5, 0.5)] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    sphere = isosurface(VoxelField(radius - 10.0, np.full(3, -16.0), 0.5))
    field = surface_sdf(sphere, 0.75)
    exact = np.linalg.norm(field.points(), axis=-1) - 10.0
    near = np.abs(exact) < 3.0
    # the marching-cubes sphere itself is off by 0.5²/(8·10) = 0.003 mm; the distance to samples by
    # 0.04 mm
    assert np.abs(field.values - exact)[near].max() < 0.05
    assert volume_mm3(sphere) == pytest.approx(4.0 / 3.0 * np.pi * 1000.0, rel=2e-3)


def test_open_surface_has_no_distance() -> None:
    with pytest.raises(ValueError, match="3 open edges"):
        surface_sdf(Surface(np.eye(3) * 10.0, np.array([[0, 1, 2]])), 1.0)


def test_shell_stiffness_is_kept_through_the_law() -> None:
    # a flat wall: ∫(E − E_core) over depth must be (E_shell − E_core)·t, whatever the smearing
    profile = BoneProfile(endplate_gradient=0.0, posterior_gradient=0.0)
    core = float(BONE_LAWS["morgan2003_vertebra"].modulus_mpa(np.array(profile.trabecular_g_cm3)))
    superior, inferior = _slab_plates()
    x = np.arange(-45.0, 45.1, 0.05)
    depth = 40.0 - np.abs(x)
    field = VoxelField(np.tile(-depth[:, None, None], (1, 3, 3)), np.array([-45.0, 0.0, 0.0]), 0.05)
    density = assumed_density(field, superior, inferior, profile).values[:, 1, 1]
    modulus = np.asarray(BONE_LAWS["morgan2003_vertebra"].modulus_mpa(density.astype(float)))
    wall = (depth > 0) & (depth < 3.0) & (x > 0)
    integral = float(((modulus - core)[wall]).sum() * 0.05)
    assert integral == pytest.approx(
        (profile.wall_e_mpa - core) * profile.wall_thickness_mm, rel=0.03
    )


def test_density_is_assumed_bone(mild: PatientModel) -> None:
    body = mild.vertebrae[1]
    values, inside = np.asarray(body.density.values), np.asarray(body.sdf.values) < 0.0
    points = body.sdf.points()
    core = (np.asarray(body.sdf.values) < -3.0) & (
        posterior_share(points, body.superior, body.inferior) < 0.01
    )
    assert values[core].mean() == pytest.approx(MILD.trabecular_g_cm3, rel=0.1)
    behind = inside & (posterior_share(points, body.superior, body.inferior) == 1.0)
    # never stiffer behind than the published 3500 MPa
    assert values[behind].max() <= float(density_of_modulus(3500.0)) + 1e-6
    # continued outside: the nearest bone's density, so that sampling at the surface is not diluted
    outside = (np.asarray(body.sdf.values) > 0.0) & (np.asarray(body.sdf.values) < 1.0)
    assert values[outside].min() > 0.1


def test_seed_gives_the_texture() -> None:
    from engine.patient.phantoms.phantom import texture_of

    points = np.random.default_rng(0).normal(size=(200, 3)) * 10.0
    first, again, other = (texture_of(PhantomSpec(seed=s), "L4")(points) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.05


def test_spec_out_of_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="height_middle_mm"):
        PhantomSpec(height_middle_mm=40.0)
    with pytest.raises(ValidationError, match="lordosis"):
        PhantomSpec(lordosis=5.0)  # type: ignore[call-arg]


def _slab_plates():
    """Endplates far above and below x = ±40, y = ±60, so that only the side wall counts at z =
    0."""
    from engine.patient.geometry.frames import endplate

    angle = np.linspace(0.0, 2.0 * np.pi, 72, endpoint=False)
    plates = []
    for side, z in (("superior", 30.0), ("inferior", -30.0)):
        rim = np.stack([40.0 * np.cos(angle), 60.0 * np.sin(angle), np.full(72, z)], -1)
        plates.append(
            endplate(
                np.array([0.0, 0.0, z]),
                np.array([0.0, 0.0, 1.0]),
                np.array([1.0, 0.0, 0.0]),
                rim,
                side,
            )
        )
    return plates
