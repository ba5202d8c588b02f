"""The plan reaches its target, says what it gave up, and refuses what cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from engine.patient import PlanConfig, measure, plan, truth
from engine.patient.frames import inverse, vertebra_frame
from engine.patient.planning import Limits
from engine.types import PatientModel, Segment, Surface, VoxelField, rigid
from tests.patient.conftest import MILD


@pytest.fixture(scope="module")
def segment(skewed: PatientModel) -> Segment:
    # a rotated scan: whatever depends on the scanner's axes shows
    return plan(skewed, "L4-L5", PlanConfig(rule="explicit", lordosis_deg=9.0, coronal_deg=-4.0, spacing_mm=1.0))


def test_explicit_plan_is_reached(segment: Segment) -> None:
    planned = measure(segment.cranial, segment.caudal)
    assert planned.lordosis_deg == pytest.approx(9.0, abs=1e-6)
    assert planned.coronal_deg == pytest.approx(-4.0, abs=1e-6)
    assert planned.height_middle_mm == pytest.approx(segment.plan.measured.height_middle_mm, abs=1e-6)
    assert planned.axial_deg == pytest.approx(segment.plan.measured.axial_deg, abs=1e-6)


def test_segment_frame(segment: Segment, skewed: PatientModel) -> None:
    plate = segment.caudal.superior
    assert np.abs(plate.centre_mm).max() < 1e-9
    assert np.allclose(plate.normal, [0.0, 0.0, 1.0]) and np.allclose(plate.axis_left, [1.0, 0.0, 0.0])
    # posterior is +y: the spinous process lies there; and LPS comes back
    assert segment.caudal.landmarks["spinous_tip"][1] > 40.0
    back = rigid(segment.lps_from_segment, segment.caudal.surface.points_mm)
    assert np.allclose(back, skewed.vertebrae[1].surface.points_mm)


def test_fields_follow_their_bone(segment: Segment, skewed: PatientModel) -> None:
    """On the body and the pedicles; facets and processes are taken off the fields (not off the surface)."""
    for body in (segment.caudal, segment.cranial):
        own = inverse(vertebra_frame(body.superior, body.inferior))
        wall = max(rigid(own, plate.rim_mm)[:, 1].max() for plate in (body.superior, body.inferior))
        points = body.surface.points_mm
        front = rigid(own, points)[:, 1] < wall + 2.0
        assert 0.3 < front.mean() < 0.9
        # on the surface the carried distance is nil; cubic resampling of a 1 mm field costs 0.1 mm at sharp edges
        error = np.abs(body.sdf.sample(points[front], order=3))
        assert np.median(error) < 0.03 and np.percentile(error, 99) < 0.2
        for axis in body.pedicles.values():
            assert body.sdf.sample(axis[0] + np.linspace(0.2, 1.0, 9)[:, None] * (axis[1] - axis[0])).max() < 0.0
        bone = body.sdf.points()[np.asarray(body.sdf.values) < 0.0]
        behind = rigid(own, bone)[:, 1] > wall + 3.5
        level = np.mean([rigid(own, axis)[:, 2].mean() for axis in body.pedicles.values()])
        assert behind.sum() > 500
        assert np.abs(rigid(own, bone)[behind, 2] - level).max() < 10.5


def test_vertebrae_are_far_apart_behind_the_disc(segment: Segment) -> None:
    """No facet is left to fuse on a grid: the gap there is over four voxels of 2 mm."""
    wall = max(p.rim_mm[:, 1].max() for p in (segment.caudal.superior, segment.cranial.inferior)) + 4.0
    bone = segment.caudal.sdf.points()[np.asarray(segment.caudal.sdf.values) < 0.0]
    assert segment.cranial.sdf.sample(bone[bone[:, 1] > wall]).min() > 7.0


def test_motion_takes_scan_to_plan(segment: Segment, skewed: PatientModel) -> None:
    in_segment = np.linalg.inv(segment.lps_from_segment)
    scanned = rigid(in_segment, skewed.vertebrae[0].inferior.centre_mm)
    assert np.allclose(rigid(segment.plan.cranial_motion, scanned), segment.cranial.inferior.centre_mm)


def test_disc_fills_the_space_between_the_rims(segment: Segment) -> None:
    lower, upper = segment.caudal.superior, segment.cranial.inferior
    for share in (0.2, 0.5, 0.8):
        ring = lower.rim_mm + share * (upper.rim_mm - lower.rim_mm)
        assert np.abs(segment.disc.sample(ring)).max() < 0.3
    # no gap to the bone in the middle, where both endplates are hollow
    line = lower.centre_mm + np.linspace(0.0, 1.0, 60)[:, None] * (upper.centre_mm - lower.centre_mm)
    line = np.concatenate([line - [0.0, 0.0, 1.0], line + [0.0, 0.0, 1.0]])
    union = np.minimum(
        np.minimum(segment.disc.sample(line), segment.caudal.sdf.sample(line)), segment.cranial.sdf.sample(line)
    )
    assert union.max() < 0.0


def test_norms_are_limited_and_said(mild: PatientModel) -> None:
    segment = plan(mild, "L4-L5", PlanConfig(limits=Limits(height_mm=2.0, lordosis_deg=1.0), spacing_mm=1.5))
    assert segment.plan.planned.height_middle_mm == pytest.approx(MILD.height_middle_mm + 2.0, abs=1e-6)
    assert segment.plan.planned.coronal_deg == pytest.approx(0.0, abs=1e-6)
    assert any("limited to +2.0" in note for note in segment.plan.notes)


def test_norms_back_off_from_a_collision(mild: PatientModel) -> None:
    # a bony bridge 2 mm behind-below the cranial bone: going to more lordosis runs into it, staying does not
    upper, lower = mild.vertebrae
    tip = upper.landmarks["spinous_tip"] + np.array([0.0, -4.0, -9.5])
    ball = np.linalg.norm(lower.sdf.points() - (tip + [0.0, 0.0, -3.0]), axis=-1) - 3.0
    blocked = VoxelField(np.minimum(lower.sdf.values, ball), lower.sdf.origin_mm, lower.sdf.spacing_mm)
    patient = replace(mild, vertebrae=(upper, replace(lower, sdf=blocked)))
    limits = Limits(height_mm=0.0)
    free = plan(mild, "L4-L5", PlanConfig(limits=limits, spacing_mm=1.5))
    backed = plan(patient, "L4-L5", PlanConfig(limits=limits, spacing_mm=1.5))
    assert any("backed off" in note for note in backed.plan.notes)
    assert MILD.lordosis_deg - 1e-6 <= backed.plan.planned.lordosis_deg < free.plan.planned.lordosis_deg


def test_keep_keeps(mild: PatientModel) -> None:
    segment = plan(mild, "L4-L5", PlanConfig(rule="keep", spacing_mm=1.5))
    assert np.allclose(segment.plan.cranial_motion, np.eye(4), atol=1e-9)
    assert segment.plan.planned.lordosis_deg == pytest.approx(truth(MILD).lordosis_deg)


def test_colliding_plan_is_refused(mild: PatientModel) -> None:
    with pytest.raises(ValueError, match=r"collide by \d+\.\d+ mm.*raise\s+plan.height_middle_mm"):
        plan(mild, "L4-L5", PlanConfig(rule="explicit", lordosis_deg=30.0))


def test_plan_settings_are_checked(mild: PatientModel) -> None:
    with pytest.raises(ValueError, match=r"plan.lordosis_deg is read by plan.rule=explicit only"):
        plan(mild, "L4-L5", PlanConfig(rule="norms", lordosis_deg=5.0))
    with pytest.raises(ValueError, match="needs at least one of"):
        plan(mild, "L4-L5", PlanConfig(rule="explicit"))
    with pytest.raises(ValueError, match="it has L4-L5"):
        plan(mild, "L3-L4")
    with pytest.raises(ValidationError, match="height_middle_mm"):
        PlanConfig(rule="explicit", height_middle_mm=99.0)


def test_assumed_density_is_flagged(mild: PatientModel) -> None:
    assumed = plan(replace(mild, density_source="assumed:x", posture="supine"), "L4-L5", PlanConfig(spacing_mm=1.5))
    assert any("no CT" in line for line in assumed.warnings) and any("supine" in line for line in assumed.warnings)


def test_swapped_vertebrae_are_refused(mild: PatientModel) -> None:
    upper, lower = mild.vertebrae
    with pytest.raises(ValueError, match="not above"):
        measure(lower, upper)
    assert isinstance(upper.surface, Surface)
