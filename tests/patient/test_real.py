"""Two real L4-L5: plausible, upright, left on the left. Skipped by name where the data is
absent."""

from __future__ import annotations

import numpy as np
import pytest

from engine.patient import PlanConfig, from_mask, from_surfaces, measure, plan
from engine.patient.geometry.distance import volume_mm3
from engine.patient.planning import collision_mm
from engine.types import PatientModel
from tests.patient.conftest import needs_data


def _plausible(patient: PatientModel) -> None:
    upper, lower = patient.vertebrae
    for body in patient.vertebrae:
        # LPS: processes behind (+y), superior endplate above, left pedicle on the left (+x)
        assert body.landmarks["spinous_tip"][1] > body.landmarks["body_centre"][1] + 40.0
        assert body.superior.centre_mm[2] > body.inferior.centre_mm[2] + 15.0
        assert body.pedicles["left"][0][0] > body.pedicles["right"][0][0] + 20.0
        for plate in (body.superior, body.inferior):
            # a lumbar endplate; its rim sits on the bone (section 1 mm below the rim's plane)
            assert 19.0 < plate.half_width_mm < 31.0 and 13.0 < plate.half_depth_mm < 22.0
            below = plate.rim_mm - plate.normal
            assert np.median(np.abs(body.sdf.sample(below))) < 0.3
        for side in ("left", "right"):
            entry, target = body.pedicles[side]
            isthmus = body.landmarks[f"pedicle_isthmus_{side}"]
            path = isthmus + np.linspace(0.0, 1.0, 30)[:, None] * (target - isthmus)
            assert body.sdf.sample(path).max() < -2.0  # a screw of 4 mm fits
            assert entry[1] > target[1]
    assert collision_mm(upper, lower, np.eye(4)) < 0.05


def test_vhm_l4_l5() -> None:
    patient = from_surfaces(needs_data("lumbar_meshes"), "L4-L5", levels="segment", spacing_mm=1.0)
    _plausible(patient)
    found = measure(*patient.vertebrae)
    # the meshes are symmetrised: no coronal, axial or lateral misalignment
    assert (
        abs(found.coronal_deg) < 0.3 and abs(found.axial_deg) < 0.3 and abs(found.lateral_mm) < 0.5
    )
    assert 5.0 < found.lordosis_deg < 12.0 and 8.0 < found.height_middle_mm < 13.0
    assert any("ALS" in line for line in patient.repairs)
    segment = plan(patient, "L4-L5", PlanConfig(spacing_mm=1.5))
    # S66's L4-L5, all subjects, from superior to superior endplate; in the segment frame the caudal
    # one's normal is z
    normal = segment.cranial.superior.normal
    assert np.degrees(np.arctan2(normal[1], normal[2])) == pytest.approx(12.7, abs=0.05)


def test_verse004_l4_l5() -> None:
    path = needs_data("verse004_mask/sub-verse004_seg-vert_msk.nii.gz")
    patient = from_mask(path, "L4-L5", spacing_mm=1.0)
    _plausible(patient)
    found = measure(*patient.vertebrae)
    assert 5.0 < found.lordosis_deg < 14.0 and 4.0 < found.height_middle_mm < 9.0
    # label voxels · 2.0003 mm³, less what parting the touching facets took (0.3 %)
    for body, volume in zip(patient.vertebrae, (59973.0, 58243.0), strict=True):
        assert volume_mm3(body.surface) == pytest.approx(volume, rel=0.015)
