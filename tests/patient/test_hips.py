"""Femoral heads: centres of analytic femurs, what is cut off or no head has no value, and the
real pelvis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.patient.alignment.spine import spine_alignment
from engine.patient.anatomy.hips import femoral_heads, heads_of, with_head_source
from engine.patient.geometry.frames import rotation
from engine.patient.labels.understand import Labels, understand
from engine.patient.phantoms.lumbar import LumbarSpec, exact_plates
from engine.patient.phantoms.lumbar import femoral_heads_mm as exact_heads
from engine.patient.prepare import femoral_heads_of
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from engine.patient.read.schemes import SCHEMES
from engine.patient.sources import AlignmentConfig
from engine.types import PatientModel, rigid

#: Left and right centre, LPS; both femurs are the same but mirrored.
CENTRES = np.array([[88.3, 4.1, 10.7], [-86.2, 6.9, 13.4]])
RADII = (24.0, 22.5)


def _capsule(p: np.ndarray, a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    axis = b - a
    t = np.clip((p - a) @ axis / (axis @ axis), 0.0, 1.0)
    return np.linalg.norm(p - a - t[..., None] * axis, axis=-1) - radius


def _femur(p: np.ndarray, centre: np.ndarray, radius: float, out: float) -> np.ndarray:
    """Head, a neck 15 mm thick and 45 mm long (inclination 128°, anteversion 12°), trochanter
    and shaft."""
    turn = np.radians(12.0)
    end = centre + np.array([out * 36.0 * np.cos(turn), 36.0 * np.sin(turn), -28.0])
    shaft_end = end + np.array([-out * 4.0, 0.0, -140.0])
    trochanter = end + np.array([out * 8.0, 4.0, 14.0])
    parts = [
        _capsule(p, centre, end, 15.0),
        _capsule(p, end, shaft_end, 15.5),
        np.linalg.norm(p - trochanter, axis=-1) - 16.0,
    ]
    return np.minimum(np.linalg.norm(p - centre, axis=-1) - radius, np.minimum.reduce(parts))


def _labels(
    voxel_mm: float,
    *,
    bottom_mm: float = -70.0,
    top_mm: float = 60.0,
    radii: tuple[float, float] = RADII,
    tilt: float = 6.0,
) -> Labels:
    """A label image of two femurs (75, 76), voxels where the centre is in bone, axes tilted
    against the patient's."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(1, np.radians(tilt)) @ rotation(0, np.radians(-tilt)) * voxel_mm
    size = np.array([330.0, 130.0, top_mm - bottom_mm])
    shape = np.ceil(size / voxel_mm).astype(int)
    # the grid's middle lies between the heads, at heights bottom … top
    middle = np.array([1.3, 10.4, 0.5 * (top_mm + bottom_mm)])
    matrix[:3, 3] = middle - matrix[:3, :3] @ (0.5 * (shape - 1))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    p = index @ matrix[:3, :3].T + matrix[:3, 3]
    values = np.zeros(shape, np.int16)
    for number, centre, radius, out in zip((75, 76), CENTRES, radii, (1.0, -1.0), strict=True):
        own = np.abs(p[..., 0] - centre[0]) < 85.0
        values[own] = np.where(_femur(p[own], centre, radius, out) < 0.0, number, values[own])
    return Labels(Image(values, matrix, "SEG", (), {}), SCHEMES["totalsegmentator"], {}, (), ())


# half a voxel of staircase on a sphere of 5000 mm² averages out: a fraction of a voxel is left,
# mostly along the neck
@pytest.mark.parametrize(("voxel_mm", "within_mm"), [(1.5, 0.5), (3.0, 1.0)])
def test_centres_of_analytic_femurs(voxel_mm: float, within_mm: float) -> None:
    heads, line = femoral_heads(_labels(voxel_mm))
    assert heads is not None, line
    off = np.linalg.norm(heads - CENTRES, axis=1)
    assert off.max() < within_mm
    assert "labels 75/76" in line and "residual" in line


def test_at_one_mm() -> None:
    heads, line = femoral_heads(_labels(1.0, tilt=0.0, bottom_mm=-45.0, top_mm=45.0))
    assert heads is not None and np.linalg.norm(heads - CENTRES, axis=1).max() < 0.4, line


# head tops at +34.7 and +35.9 mm, bottoms at −13 and −9; the image ends somewhere in them, or just
# short of the neck
@pytest.mark.parametrize("bottom_mm", [-12.0, 0.0, 12.0, 22.0])
def test_a_head_cut_by_the_field_of_view_has_no_value(bottom_mm: float) -> None:
    heads, line = femoral_heads(_labels(2.0, bottom_mm=bottom_mm, tilt=0.0))
    assert heads is None and "cut off by the image's border" in line, line


def test_cut_below_the_heads_is_no_loss() -> None:
    heads, line = femoral_heads(_labels(2.0, bottom_mm=-22.0, tilt=0.0))
    assert heads is not None and np.linalg.norm(heads - CENTRES, axis=1).max() < 0.7, line


def test_what_is_no_head_is_named() -> None:
    labels = _labels(2.0)
    one = replace(
        labels,
        image=replace(
            labels.image, values=np.where(labels.image.values == 76, 0, labels.image.values)
        ),
    )
    assert femoral_heads(one) == (
        None,
        "femoral heads: not fitted (right: the image holds no femur of that side)",
    )
    heads, line = femoral_heads(
        _labels(2.0, radii=(24.0, 15.0))
    )  # a stem without a head, on the right
    assert heads is None and "right:" in line and "left:" not in line, line
    none = replace(labels, image=replace(labels.image, values=np.zeros((4, 4, 4), np.int16)))
    assert femoral_heads(none) == (None, "")
    block = np.zeros_like(labels.image.values)
    half = block.shape[0] // 2
    block[5 : 5 + 22, 10:32, 10:32], block[half + 40 : half + 62, 10:32, 10:32] = 76, 75
    heads, line = femoral_heads(replace(labels, image=replace(labels.image, values=block)))
    assert heads is None and "femoral heads: not fitted" in line, line


def test_pelvic_incidence_from_fitted_heads() -> None:
    """Heads of the analytic spine (PI 52°) voxelised at 2 mm and fitted: an axis 0.5 mm off is
    0.3° of 100 mm."""
    spec = LumbarSpec()
    plates, base = exact_plates(spec)
    exact = exact_heads(spec)
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = exact.min(axis=0) - [90.0, 50.0, 70.0]
    shape = np.ceil((exact.max(axis=0) + [90.0, 60.0, 40.0] - matrix[:3, 3]) / 2.0).astype(int)
    p = (
        np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) * 2.0
        + matrix[:3, 3]
    )
    values = np.zeros(shape, np.int16)
    for number, centre, out in zip((75, 76), exact, (1.0, -1.0), strict=True):
        values[_femur(p, centre, 24.0, out) < 0.0] = number
    labels = Labels(Image(values, matrix, "SEG", (), {}), SCHEMES["totalsegmentator"], {}, (), ())
    heads, line = femoral_heads(labels)
    assert heads is not None, line
    found = with_head_source(
        spine_alignment(plates, base, femoral_heads_mm=heads, posture="phantom"), line
    )
    assert found.value("pelvic_incidence_deg") == pytest.approx(spec.pi_deg, abs=0.4)
    assert "fitted to labels 75/76" in found.measure("pelvic_incidence_deg").source
    missing = with_head_source(
        spine_alignment(plates, base, posture="phantom"), "femoral heads: not fitted (left: cut)"
    )
    assert "left: cut" in missing.measure("pelvic_incidence_deg").reason
    assert "left: cut" not in missing.measure("lumbar_lordosis_deg").reason


def test_given_values_win() -> None:
    patient = PatientModel(
        "a",
        (),
        "assumed:x",
        "supine",
        (),
        {"femoral_heads": {"how": "fitted", "centres_mm": CENTRES.tolist()}},
    )
    fitted, how = femoral_heads_of(AlignmentConfig(), patient)
    assert np.array_equal(fitted, CENTRES) and how == "fitted"
    given = ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert femoral_heads_of(AlignmentConfig(femoral_heads_mm=given), patient) == (
        given,
        "femoral heads: given by alignment.femoral_heads_mm",
    )
    assert femoral_heads_of(AlignmentConfig(pi_deg=50.0), patient) == (None, "")
    unfitted = replace(patient, source={"femoral_heads": {"how": "not fitted (left: cut off)"}})
    assert femoral_heads_of(AlignmentConfig(), unfitted) == (None, "not fitted (left: cut off)")
    found = heads_of(replace(patient, source={"femoral_heads_mm": CENTRES[::-1].tolist()}))
    assert found is not None and np.array_equal(found, CENTRES)  # left first


def test_real_pelvis(data_dir: Path) -> None:
    """TotalSegmentator --fast, 3 mm, cut below the heads: both found, level to 5 mm, in their
    sockets (labels 77, 78)."""
    image = read_labels(data_dir / "ct_totalsegmentator" / "example_seg_fast_force_split.nii.gz")
    labels = understand(image, ("L4", "L5"))
    heads, line = femoral_heads(labels)
    assert heads is not None, line
    assert heads[0, 0] > 60.0 > -60.0 > heads[1, 0]
    assert np.abs(heads[0, 1:] - heads[1, 1:]).max() < 5.0
    for head, number in zip(heads, (77, 78), strict=True):
        socket = rigid(
            labels.image.lps_from_index, np.argwhere(labels.image.values == number).astype(float)
        )
        away = np.linalg.norm(socket - head, axis=1)
        near = away < 36.0
        # a ball in its socket: the socket's nearest bone is one radius and a joint space away, all
        # round its inside
        assert 20.0 < np.percentile(away, 0.5) < 31.0 and near.sum() > 100
    whole = read_labels(data_dir / "ct_totalsegmentator" / "totalseg.nii.gz")
    assert femoral_heads(understand(whole, ("L4", "L5"))) == (None, "")  # vertebrae and S1 only
