"""What is typed by hand is held against the anatomy, and refused with the reading that would
fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.patient.alignment.given import check_heads, check_incidence
from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom
from engine.patient.plan_settings import PlanConfig, check_explicit
from engine.patient.planning import plan
from engine.types import PatientModel, SegmentAlignment

SPEC = LumbarSpec(spacing_mm=2.0, translation_mm=(30.0, 120.0, -400.0))


@pytest.fixture(scope="module")
def spine() -> PatientModel:
    return lumbar_phantom(SPEC)


@pytest.fixture(scope="module")
def heads(spine: PatientModel) -> np.ndarray:
    return np.asarray(spine.source["femoral_heads_mm"], float)


def test_the_right_heads_pass(spine: PatientModel, heads: np.ndarray) -> None:
    assert check_heads(heads, spine) == []
    assert check_heads(heads[::-1], spine) == []


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        (lambda h: h * [-1.0, -1.0, 1.0], "RAS"),
        (lambda h: h * [1.0, -1.0, 1.0], "y with the other sign"),
        (lambda h: 0.1 * h, "centimetres"),
        (lambda h: h[:, [0, 2, 1]], "y and z exchanged"),
    ],
)
def test_a_slip_is_named_with_the_ready_line(
    spine: PatientModel, heads: np.ndarray, slip: object, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        check_heads(slip(heads), spine)  # type: ignore[operator]
    line = str(error.value).split("'alignment.femoral_heads_mm=")[1].rstrip("'")
    assert np.allclose(np.array(json.loads(line)), heads, atol=0.06)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (lambda h: np.stack([h[0], h[0] + [5.0, 0.0, 0.0]]), "5 mm apart"),
        (lambda h: np.stack([h[0], h[0] + [0.0, 170.0, 0.0]]), "not a left and a right one"),
        (lambda h: h + [0.0, 0.0, 250.0], "above"),
        (lambda h: h + [90.0, 0.0, 0.0], "left of the sacrum's"),
    ],
)
def test_points_that_are_no_hips_are_refused(
    spine: PatientModel, heads: np.ndarray, points: object, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check_heads(points(heads), spine)  # type: ignore[operator]


def test_an_incidence_must_fit_the_sacrum_and_the_heads() -> None:
    assert check_incidence(52.0, 40.0, 52.4) == []
    (finding,) = check_incidence(28.0, 40.0)
    assert finding.severity == "warning" and "pelvic tilt of -12" in finding.text
    (same,) = check_incidence(40.0, 40.0)
    assert "is the measured sacral slope" in same.text
    with pytest.raises(ValueError, match="no pelvic incidence"):
        check_incidence(12.0, None)
    with pytest.raises(ValueError, match="pelvic tilt of -35"):
        check_incidence(25.0, 60.0)
    with pytest.raises(ValueError, match="femoral heads give 61"):
        check_incidence(45.0, 40.0, 61.0)


def test_a_kyphotic_disc_may_be_set_right() -> None:
    kyphotic = SegmentAlignment(
        **dict.fromkeys(SegmentAlignment.__dataclass_fields__, 0.0)
        | {
            "lordosis_deg": -8.0,
            "listhesis_mm": 5.0,
        }
    )
    check_explicit({"lordosis_deg": 9.0}, kyphotic)
    with pytest.raises(ValueError, match="with the other sign"):
        check_explicit({"listhesis_mm": -5.0}, kyphotic)
    with pytest.raises(ValueError, match="away from it"):
        check_explicit({"lordosis_deg": -12.0}, kyphotic)


def test_a_turned_sign_in_the_plan_is_named(mild: PatientModel) -> None:
    with pytest.raises(ValueError, match=r"with the other sign, plan.lordosis_deg=12"):
        plan(mild, "L4-L5", PlanConfig(rule="explicit", lordosis_deg=-12.0))
    with pytest.raises(ValueError, match=r"plan.height_middle_mm=20 is a change of"):
        plan(mild, "L4-L5", PlanConfig(rule="explicit", height_middle_mm=20.0))
