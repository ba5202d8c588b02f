"""Density mapped from a CT against bodies whose density is known.

The ball: radius 15 mm, a core of ρ_QCT = 0.15 and a shell of 0.5 mm of 1.0 g/cm³ (42 % of its
mineral) in soft tissue of 40 HU, scanned with a PSF of 1 mm FWHM; drawn here on cells of 0.25 mm,
apart from the code under test. Asked for before it was written: core within 1 %, mineral content ∫ρ
dV within 2 % at voxels up to 1.5 mm and 4 % at 3 mm.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from engine.materials import BONE_LAWS, qct_of_apparent
from engine.patient.anatomy.vertebra import anatomy
from engine.patient.bone.assumed import BoneProfile
from engine.patient.bone.calibration import Calibration
from engine.patient.bone.ct_density import ct_density
from engine.patient.bone.trabecular import l1_band, trabecular
from engine.patient.geometry.distance import surface_sdf
from engine.patient.geometry.frames import rotation, vertebra_frame
from engine.patient.labels.surface import mask_surface
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.image import Image
from engine.patient.read.images import read_image, read_labels
from engine.types import PatientModel, Vertebra, VoxelField, rigid
from tests.patient.conftest import needs_data

LINE = Calibration("linear", 0.8e-3, -0.004)
RADIUS, SHELL_MM, CORE, SHELL, SOFT_HU = 15.0, 0.5, 0.15, 1.0, 40.0
VOLUME, INNER = (4.0 / 3.0 * np.pi * r**3 for r in (RADIUS, RADIUS - SHELL_MM))
MINERAL_G = (CORE * INNER + SHELL * (VOLUME - INNER)) / 1000.0
CENTRE = np.array([12.3, -45.6, 78.9])


def ball_ct(
    voxel_mm: float,
    psf_mm: float = 1.0,
    noise_hu: float = 0.0,
    turned: bool = True,
    shell: float = SHELL,
) -> Image:
    """Scan of the ball (module docstring) on a grid that is turned and not centred."""
    parts = round(voxel_mm / 0.25)
    cell, n = voxel_mm / parts, int(np.ceil(2.0 * (RADIUS + 8.0) / voxel_mm))
    axis = (np.arange(n * parts) + 0.5) * cell - 0.5 * n * voxel_mm
    x, y, z = np.meshgrid(axis + 0.13, axis + 0.27, axis - 0.21, indexing="ij", sparse=True)
    d = np.sqrt(x * x + y * y + z * z) - RADIUS
    outer, inner = (np.clip(0.5 - (d + depth) / cell, 0.0, 1.0) for depth in (0.0, SHELL_MM))
    hu = (
        SOFT_HU * (1.0 - outer)
        + float(LINE.hu(shell)) * (outer - inner)
        + float(LINE.hu(CORE)) * inner
    )
    hu = gaussian_filter(hu, psf_mm / 2.3548 / cell)
    values = hu.reshape(n, parts, n, parts, n, parts).mean(axis=(1, 3, 5))
    values += np.random.default_rng(0).normal(0.0, noise_hu, values.shape)
    values[0, 0, 0] = -1000.0
    turn = rotation(2, 0.4) @ rotation(0, -0.3) if turned else np.eye(3)
    matrix = np.eye(4)
    matrix[:3, :3] = turn * voxel_mm
    matrix[:3, 3] = CENTRE + turn @ (np.array([0.13, 0.27, -0.21]) + 0.5 * voxel_mm * (1 - n))
    return Image(values.astype(np.float32), matrix, "CT", (), {})


def ball_sdf(spacing_mm: float = 0.75) -> VoxelField:
    n = int(np.ceil(2 * (RADIUS + 8.0) / spacing_mm)) + 1
    empty = VoxelField(np.zeros((n, n, n)), CENTRE - 0.5 * (n - 1) * spacing_mm, spacing_mm)
    return replace(
        empty, values=(np.linalg.norm(empty.points() - CENTRE, axis=-1) - RADIUS).astype(np.float32)
    )


def measured(field: VoxelField) -> tuple[float, float]:
    """Mean ρ_QCT of the core deeper than 6 mm, and mineral content in g, by 200 000 points in
    the true ball."""
    points = np.random.default_rng(1).uniform(-RADIUS, RADIUS, (400_000, 3))
    radius = np.linalg.norm(points, axis=1)
    inside = radius < RADIUS
    rho = qct_of_apparent(field.sample(CENTRE + points[inside]))
    return float(rho[radius[inside] < RADIUS - 6.0].mean()), float(rho.mean()) * VOLUME / 1000.0


@pytest.mark.parametrize(("voxel_mm", "tolerance"), [(0.7, 0.02), (1.5, 0.02), (3.0, 0.04)])
def test_core_and_mineral_content_are_kept(voxel_mm: float, tolerance: float) -> None:
    field, notes = ct_density(ball_sdf(), ball_ct(voxel_mm), LINE, shell="ct")
    core, mineral = measured(field)
    print(f"{voxel_mm} mm: core {core / CORE - 1:+.4f}, mineral {mineral / MINERAL_G - 1:+.4f}")
    assert core == pytest.approx(CORE, rel=0.01)
    assert mineral == pytest.approx(MINERAL_G, rel=tolerance)  # measured: -0.6, -0.1, -0.5 %
    assert "soft tissue 40 HU" in " ".join(notes)


def test_without_partial_volume_treatment_the_shell_is_lost() -> None:
    """What the treatment is for: sampling the CT at the bone's points loses a tenth of the
    mineral at 1.5 mm, or more."""
    image = ball_ct(1.5, turned=False)
    plain = VoxelField(LINE.density_g_cm3(image.values), image.lps_from_index[:3, 3], 1.5)
    points = np.random.default_rng(2).uniform(-RADIUS, RADIUS, (200_000, 3))
    points = points[np.linalg.norm(points, axis=1) < RADIUS]
    assert plain.sample(CENTRE + points).mean() * VOLUME / 1000.0 < 0.9 * MINERAL_G


def test_a_uniform_body_is_found_exactly_up_to_its_surface() -> None:
    """Shell of the core's density: 0.15 within 5 % at every sample, outermost included, and
    within 0.5 % in the mean."""
    sdf = ball_sdf()
    field, _ = ct_density(sdf, ball_ct(1.5, shell=CORE), LINE, shell="ct")
    rho = qct_of_apparent(np.asarray(field.values, float))
    assert abs(rho - CORE).max() < 0.05 * CORE  # drawn on cells of 0.25 mm, undone on 0.5
    assert rho[np.asarray(sdf.values) <= 0.0].mean() == pytest.approx(CORE, rel=0.005)


def test_coarse_samples_hold_cell_means_and_noise_averages_out() -> None:
    """Samples 1.5 mm apart on a scan of 0.7 mm: 2 %. Noise of 30 HU (0.024 g/cm³) on every
    voxel: core and content within 1 %."""
    image = ball_ct(0.7)
    _, mineral = measured(ct_density(ball_sdf(1.5), image, LINE, shell="ct")[0])
    assert mineral == pytest.approx(MINERAL_G, rel=0.025)
    core, mineral = measured(
        ct_density(ball_sdf(), ball_ct(1.5, noise_hu=30.0), LINE, shell="ct")[0]
    )
    assert core == pytest.approx(CORE, rel=0.01) and mineral == pytest.approx(MINERAL_G, rel=0.02)


def test_a_wrong_blur_costs_little_a_wrong_background_more() -> None:
    """PSF 0.5 or 2 mm taken for 1: mineral within 3 %. 40 HU of background wrong: 4 % of
    mineral, the other way."""
    for psf in (0.5, 2.0):
        _, mineral = measured(ct_density(ball_sdf(), ball_ct(1.5), LINE, shell="ct", psf_mm=psf)[0])
        assert mineral == pytest.approx(MINERAL_G, rel=0.035), psf
    _, more = measured(ct_density(ball_sdf(), ball_ct(1.5), LINE, shell="ct", soft_hu=0.0)[0])
    _, less = measured(ct_density(ball_sdf(), ball_ct(1.5), LINE, shell="ct", soft_hu=80.0)[0])
    assert 0.02 < more / MINERAL_G - 1.0 < 0.06 and -0.06 < less / MINERAL_G - 1.0 < -0.02


def test_bone_outside_the_scan_and_scans_without_hu_are_refused() -> None:
    image = ball_ct(1.5, turned=False)
    cut = Image(image.values[:, :, 12:], image.lps_from_index @ _shift(12), "CT", (), {})
    cut.values[0, 0, 0] = -1000.0
    # 12 voxels of 1.5 mm from 23.25 mm under the centre: the cap under −5.46 mm (grid offset 0.21)
    # is outside
    h = RADIUS - 5.46
    share = 100.0 * h * h * (3.0 * RADIUS - h) / (4.0 * RADIUS**3)
    with pytest.raises(ValueError, match="of the bone lies outside the image") as caught:
        ct_density(ball_sdf(0.5), cut, LINE, shell="ct")
    # half a sample spacing of the section there, 613 mm², is 1.1 % of the ball
    assert float(str(caught.value).split(" %")[0]) == pytest.approx(share, abs=1.1)
    with pytest.raises(ValueError, match="MRI gives geometry only"):
        ct_density(ball_sdf(), replace(image, modality="MR"), LINE)
    with pytest.raises(ValueError, match="choose ct, assumed or auto"):
        ct_density(ball_sdf(), image, LINE, shell="thick")
    with pytest.raises(ValueError, match="endplate"):
        ct_density(ball_sdf(), image, LINE, shell="auto")


def _shift(k: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[2, 3] = k
    return matrix


def test_marrow_below_zero_is_floored_and_told() -> None:
    """HU − 200 everywhere in the bone: ρ_QCT of −0.1 and below is less than no bone; the note
    gives the volume."""
    image = ball_ct(1.5, shell=CORE)
    low = Image(
        np.where(image.values > 0, image.values - 330.0, image.values),
        image.lps_from_index,
        "CT",
        (),
        {},
    )
    field, notes = ct_density(ball_sdf(), low, LINE, shell="ct", soft_hu=SOFT_HU - 330.0)
    assert field.values.min() == 0.0
    line = next(n for n in notes if "below zero apparent" in n)
    said = float(line.split("% (")[1].split(" mm³")[0])
    assert said == pytest.approx(VOLUME, rel=0.05)


# -- a whole vertebra ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def scanned(mild: PatientModel) -> tuple[Vertebra, Image, Calibration, ScanSpec]:
    spec = ScanSpec(extent="spine", voxel_mm=(0.9, 0.9, 1.0))
    image, _, _ = synthetic_ct(_alone(mild.vertebrae[1]), spec)
    return (
        mild.vertebrae[1],
        image,
        Calibration("linear", spec.slope_g_cm3_per_hu, spec.intercept_g_cm3),
        spec,
    )


def test_a_vertebra_comes_back_from_its_scan(
    scanned: tuple[Vertebra, Image, Calibration, ScanSpec],
) -> None:
    """Apparent density of the phantom's L5 or L4: mean within 1 %, core within 1 %; of the
    texture 0.01 g/cm³ rms; E within 4 %."""
    vertebra, image, line, _ = scanned
    field, notes = ct_density(
        vertebra.sdf,
        image,
        line,
        shell="auto",
        superior=vertebra.superior,
        inferior=vertebra.inferior,
    )
    bone, deep = (np.asarray(vertebra.sdf.values) < limit for limit in (0.0, -4.0))
    found, true = np.asarray(field.values, float), np.asarray(vertebra.density.values, float)
    print(
        f"mean {found[bone].mean() / true[bone].mean() - 1:+.4f}, core"
        f" {found[deep].mean() / true[deep].mean() - 1:+.4f}"
    )
    assert found[bone].mean() == pytest.approx(true[bone].mean(), rel=0.01)
    assert found[deep].mean() == pytest.approx(true[deep].mean(), rel=0.01)
    assert np.std(found[deep] - true[deep]) < 0.01
    law = BONE_LAWS["morgan2003_vertebra"]
    assert law.modulus_mpa(found[bone]).mean() == pytest.approx(
        law.modulus_mpa(true[bone]).mean(), rel=0.04
    )
    assert any("as scanned" in n for n in notes)


def test_an_assumed_shell_keeps_the_profiles_stiffness(
    scanned: tuple[Vertebra, Image, Calibration, ScanSpec],
) -> None:
    """3 mm voxels: on the wall at mid-height ∫(E − E_core) over depth is 12000·0.4 − E_core·0.4
    N/mm, as the profile has it."""
    vertebra, _, line, spec = scanned
    image, _, _ = synthetic_ct(
        _alone(vertebra), ScanSpec(**{**spec.model_dump(), "voxel_mm": (3.0, 3.0, 3.0)})
    )
    plates = {"superior": vertebra.superior, "inferior": vertebra.inferior}
    field, notes = ct_density(vertebra.sdf, image, line, profile=BoneProfile(), **plates)
    assert any("assumed" in n for n in notes)
    pose = vertebra_frame(vertebra.superior, vertebra.inferior)
    law = BONE_LAWS["morgan2003_vertebra"]
    width = np.linspace(-0.4, 0.4, 5) * vertebra.superior.half_width_mm
    got = []
    for x in width:  # rays from inside to the front wall
        y = -np.linspace(0.0, 30.0, 3001)
        ray = rigid(pose, np.stack([np.full_like(y, x), y, np.zeros_like(y)], -1))
        depth = -vertebra.sdf.sample(ray)
        near = (depth >= 0.0) & (depth <= 2.0) & (y < -8.0)
        e = law.modulus_mpa(field.sample(ray[near]))
        core = float(
            law.modulus_mpa(field.sample(ray[(depth > 3.4) & (depth < 3.8) & (y < -8.0)])).mean()
        )
        order = np.argsort(depth[near])
        got.append(np.trapezoid(e[order] - core, depth[near][order]) / (0.4 * (12000.0 - core)))
    assert np.mean(got) == pytest.approx(1.0, abs=0.08), got  # a grid of 1 mm across a ramp of 2 mm


def _alone(vertebra: Vertebra) -> PatientModel:
    return PatientModel("one", (vertebra,), "phantom", "phantom", (), {})


def test_trabecular_hu_of_a_known_core(
    scanned: tuple[Vertebra, Image, Calibration, ScanSpec],
) -> None:
    """Mean of the truth's HU at the same voxels, within 1.5 HU; region clear of the shell: no
    voxel far above the mean."""
    vertebra, image, line, spec = scanned
    found = trabecular(image, vertebra, line)
    pose = vertebra_frame(vertebra.superior, vertebra.inferior)
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 4000), np.sqrt(rng.uniform(0, 1, 4000))
    w = 0.5 * (vertebra.superior.half_width_mm + vertebra.inferior.half_width_mm)
    d = 0.5 * (vertebra.superior.half_depth_mm + vertebra.inferior.half_depth_mm)
    own = np.stack(
        [
            0.6 * w * radius * np.cos(angle),
            -0.15 * d + 0.45 * d * radius * np.sin(angle),
            rng.uniform(-5, 5, 4000),
        ],
        -1,
    )
    truth = spec.hu(qct_of_apparent(vertebra.density.sample(rigid(pose, own))))
    assert found.mean_hu == pytest.approx(truth.mean(), abs=1.5)
    assert found.sd_hu == pytest.approx(truth.std(), rel=0.3)
    assert found.volume_mm3 == pytest.approx(found.n * 0.81) and found.se_hu == pytest.approx(
        found.sd_hu / np.sqrt(found.n)
    )
    assert found.vbmd_g_cm3 == pytest.approx(line.density_g_cm3(found.mean_hu))
    assert trabecular(image, vertebra).vbmd_g_cm3 is None
    shifted = Image(image.values, _shift(500) @ image.lps_from_index, "CT", (), {})
    with pytest.raises(ValueError, match="only 0 voxels"):
        trabecular(shifted, vertebra)


def test_a_sclerotic_half_is_no_uniform_bone(
    scanned: tuple[Vertebra, Image, Calibration, ScanSpec],
) -> None:
    vertebra, image, line, _ = scanned
    assert not any("no uniform" in note for note in trabecular(image, vertebra, line).notes)
    axes = np.meshgrid(*[np.arange(n) for n in image.values.shape], indexing="ij")
    lps = rigid(image.lps_from_index, np.stack(axes, -1).reshape(-1, 3)).reshape(
        *image.values.shape, 3
    )
    own = (lps - vertebra.landmarks["body_centre"]) @ vertebra.superior.normal
    half = Image(image.values + 300.0 * (own > 0.0), image.lps_from_index, "CT", (), image.source)
    found = trabecular(half, vertebra, line)
    assert found.sd_hu > 120.0 and any(
        "SD of 1" in note and "no measure of bone quality" in note for note in found.notes
    )


def test_bands_of_l1() -> None:
    assert (
        "likely" in l1_band(110.0)
        and "not excluded" in l1_band(111.0)
        and "unlikely" in l1_band(161.0)
    )
    assert "excluded" in l1_band(201.0)
    assert all(
        "120 kV" in l1_band(h) and "contrast" in l1_band(h) and "no diagnosis" in l1_band(h)
        for h in (50.0, 130.0, 180.0, 250.0)
    )


def test_published_bone_mineral_density_of_verse004() -> None:
    """70.7 mg/cm³ in the table of 10.1101/2025.04.19.649449 (phantomless), here of L2 alone: within
    5 %.

    The table's column of levels (T11, T12, L2, L3) is taken for those averaged. It has no volume;
    the label image's own volume and mineral content (53.75 cm³, 10.63 g) are compared with the
    field's instead: the image is zero outside its labels.
    """
    image = read_image(needs_data("l2_density_fe/sub-verse004_0000_vertebra_21_im.nii.gz"))
    labels = read_labels(needs_data("l2_density_fe/sub-verse004_0000_vertebra_21_seg.nii.gz"))
    mask = (labels.values > 0) & (labels.values < 5)
    surface = mask_surface(mask, labels.lps_from_index)
    sdf = surface_sdf(surface, 1.0)
    found = anatomy("L2", surface, sdf, np.array([0.0, 0.0, 1.0]))
    line = Calibration("linear", 1.0e-3, 0.0, source="the image is in mg/cm³")
    field, _ = ct_density(sdf, image, line, soft_hu=0.0, psf_mm=0.0, shell="ct")
    bone = np.asarray(sdf.values) <= 0.0
    mineral = float(qct_of_apparent(np.asarray(field.values, float)[bone]).sum()) / 1000.0
    assert bone.sum() == pytest.approx(mask.sum(), rel=0.01)
    assert mineral == pytest.approx(float(image.values[mask].sum()) / 1e6, rel=0.03)
    vertebra = Vertebra(
        "L2", surface, sdf, field, found.superior, found.inferior, found.pedicles, found.landmarks
    )
    core = trabecular(image, vertebra, line)
    print(
        f"vBMD {1e3 * (core.vbmd_g_cm3 or 0):.1f} mg/cm³ over {core.volume_mm3:.0f} mm³, mineral"
        f" {mineral:.2f} g"
    )
    assert core.vbmd_g_cm3 == pytest.approx(0.070707, rel=0.05)
