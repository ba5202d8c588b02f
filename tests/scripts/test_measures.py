"""What stands between a solver's response and the numbers of result.json, with known answers."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from engine.materials import YIELD_STRAIN_COMPRESSION
from engine.patient import PlanConfig, phantom_segment
from engine.types import Response, SolverStatus
from fem.verify import Check
from objectives.problem import goal
from scripts.run import measures
from scripts.run.measures import achieved, agreement, measures_of, weighted_percentile

CASES = ("standing", "flexion")


@pytest.fixture(scope="module")
def segment():
    return phantom_segment(spacing_mm=1.5, plan_config=PlanConfig(spacing_mm=1.5))


def moved(*, caudal=(0.0,) * 6, cranial=(0.0,) * 6, cases=CASES) -> Response:
    """A response whose endplates move like this in its first case, and not at all in the others."""
    motion = np.zeros((len(cases), 2, 6))
    motion[0] = caudal, cranial
    return Response(*(None,) * 7, motion, *(None,) * 5, loadcases=cases)


# -- alignment -------------------------------------------------------------------------------------
def test_no_motion_is_the_plan(segment):
    found, planned = asdict(achieved(segment, moved())), asdict(segment.plan.planned)
    assert found == pytest.approx(planned, abs=1e-6)


def test_two_degrees_of_flexion_take_two_degrees_of_lordosis(segment):
    """x is the patient's left, y posterior, z up: turning about +x lifts the back and lowers the
    front."""
    flexed = achieved(segment, moved(cranial=(0, 0, 0, np.radians(2.0), 0, 0)))
    planned = segment.plan.planned
    assert flexed.lordosis_deg == pytest.approx(planned.lordosis_deg - 2.0, abs=1e-6)
    assert flexed.height_anterior_mm < planned.height_anterior_mm
    assert flexed.height_posterior_mm > planned.height_posterior_mm


def test_turning_to_the_side_is_coronal_and_turning_on_the_axis_is_axial(segment):
    planned = segment.plan.planned
    aside = achieved(segment, moved(cranial=(0, 0, 0, 0, np.radians(1.5), 0)))
    assert abs(aside.coronal_deg - planned.coronal_deg) == pytest.approx(1.5, abs=1e-2)
    assert aside.lordosis_deg == pytest.approx(planned.lordosis_deg, abs=1e-2)
    about = achieved(segment, moved(cranial=(0, 0, 0, 0, 0, np.radians(1.5))))
    assert abs(about.axial_deg - planned.axial_deg) == pytest.approx(1.5, abs=1e-2)


def test_a_millimetre_up_is_a_millimetre_of_height(segment):
    """All three heights and nothing else; along the disc space's own axis by its cosine."""
    planned = segment.plan.planned
    risen = achieved(segment, moved(cranial=(0, 0, 1.0, 0, 0, 0)))
    for name in ("height_anterior_mm", "height_middle_mm", "height_posterior_mm"):
        assert getattr(risen, name) - getattr(planned, name) == pytest.approx(1.0, abs=0.02)
    assert risen.lordosis_deg == pytest.approx(planned.lordosis_deg, abs=1e-9)


def test_what_the_caudal_endplate_does_counts_against_it(segment):
    """Both moving alike is no change of alignment; the caudal one alone is the opposite of the
    cranial one alone."""
    shift = (0.3, -0.4, 0.5, 0, 0, 0)
    both = asdict(achieved(segment, moved(caudal=shift, cranial=shift)))
    assert both == pytest.approx(asdict(segment.plan.planned), abs=1e-9)
    turn = (0, 0, 0, np.radians(1.0), 0, 0)
    extended = achieved(segment, moved(caudal=turn))
    gain = extended.lordosis_deg - segment.plan.planned.lordosis_deg
    assert gain == pytest.approx(1.0, abs=1e-6)


def test_the_rotation_is_about_the_cranial_endplate_not_about_the_origin(segment):
    """Its centre stays where it is, so that the height in the middle hardly changes."""
    turned = achieved(segment, moved(cranial=(0, 0, 0, np.radians(3.0), 0, 0)))
    planned = segment.plan.planned
    assert turned.height_middle_mm == pytest.approx(planned.height_middle_mm, abs=0.15)
    assert turned.listhesis_mm == pytest.approx(planned.listhesis_mm, abs=0.5)
    assert Rotation.from_rotvec([np.radians(3.0), 0, 0]).apply([0, 30.0, 0])[2] > 1.5


def test_alignment_is_read_standing_else_in_the_first_case(segment):
    lowered = (0, 0, -1.0, 0, 0, 0)
    response = moved(cranial=lowered, cases=("flexion", "standing"))
    assert achieved(segment, response).height_middle_mm == pytest.approx(
        segment.plan.planned.height_middle_mm, abs=1e-6
    )
    response = moved(cranial=lowered, cases=("flexion", "rotation_left"))
    drop = segment.plan.planned.height_middle_mm - achieved(segment, response).height_middle_mm
    assert drop == pytest.approx(1.0, abs=0.02)


# -- both solvers ----------------------------------------------------------------------------------
def test_the_agreement_compares_stiffness_and_measures_as_engine_over_sfepy():
    response = replace(moved(), compliance=np.array([4.0, 10.0]))
    engine = {"compliance_nmm": [2.0, 12.5], "measures": {"yielded_bone": 90.0, "extra": 1.0}}
    of_sfepy = {name: {"value": v, "unit": "u"} for name, v in (("yielded_bone", 100.0),)}
    first, second, bone = agreement(response, engine, of_sfepy)
    assert (first["load_case"], first["engine"], first["sfepy"]) == ("standing", 0.5, 0.25)
    assert first["gap_rel"] == pytest.approx(1.0)  # twice as stiff
    assert second["gap_rel"] == pytest.approx(-0.2)
    assert (bone["quantity"], bone["engine"], bone["sfepy"]) == ("yielded_bone", 90.0, 100.0)
    assert bone["gap_rel"] == pytest.approx(-0.1)


def test_a_gap_from_nothing_is_not_a_number_and_not_an_error():
    response = replace(moved(), compliance=np.array([1.0, 1.0]))
    engine = {"compliance_nmm": [1.0, 1.0], "measures": {"yielded_bone": 3.0}}
    *_, bone = agreement(response, engine, {"yielded_bone": {"value": 0.0, "unit": "mm³"}})
    assert bone["gap_rel"] is None


# -- measures --------------------------------------------------------------------------------------
def block(strain_zz: float = -0.004, stress_zz: float = -40.0) -> Response:
    """Four samples of 10 mm³: bone near, bone far (weight 0), implant, graft, pressed along z in
    the second case only."""
    strain, stress = np.zeros((2, 4, 6)), np.zeros((2, 4, 6))
    strain[1, :, 2], stress[1, :, 2] = strain_zz, stress_zz
    fraction = np.zeros((4, 5))
    fraction[[0, 1, 2, 3], [0, 1, 2, 3]] = 1.0
    return Response(
        position=np.zeros((4, 3)),
        volume=np.full(4, 10.0),
        fraction=fraction,
        near=np.array([1.0, 0.0, 0.0, 0.0]),
        strain=strain,
        stress=stress,
        relative_density=np.ones(4),
        motion=np.zeros((2, 2, 6)),
        compliance=np.array([1.0, 2.0]),
        reaction=np.zeros((2, 6)),
        applied=np.zeros((2, 6)),
        fatigue_mpa=np.full(4, 100.0),
        loadcases=CASES,
    )


def study(*names: str) -> SimpleNamespace:
    every = [goal({"objective": name, "kind": "minimise", "scale": 1.0}) for name in names]
    return SimpleNamespace(goals=tuple(every))


def test_bone_beyond_yield_is_counted_near_the_implant_only():
    """0.4 % is within yield; twice the compressive yield strain is all of the one near sample."""
    within = measures_of(study(), "stock", block())["yielded_bone_sharp"]
    assert YIELD_STRAIN_COMPRESSION > 0.004 and within["value"] == 0.0
    beyond = block(strain_zz=-2.0 * YIELD_STRAIN_COMPRESSION)
    measure = measures_of(study(), "stock", beyond)["yielded_bone_sharp"]
    assert measure["per_load"] == {"standing": 0.0, "flexion": 10.0}
    assert measure["value"] == 5.0 and measure["unit"] == "mm³"  # the mean over the load cases


def test_tension_and_compression_have_each_their_yield():
    """Between both yield strains: tension yields, compression does not."""
    pulled = measures_of(study(), "stock", block(strain_zz=+0.0072))["yielded_bone_sharp"]
    pressed = measures_of(study(), "stock", block(strain_zz=-0.0072))["yielded_bone_sharp"]
    assert (pulled["value"], pressed["value"]) == (5.0, 0.0)


def test_percentiles_are_of_the_worst_case_and_compressive_strain_is_positive():
    found = measures_of(study(), "stock", block())
    assert found["bone_strain_p99"]["per_load"]["flexion"] == pytest.approx(0.4)  # per cent
    assert found["bone_strain_p99"]["value"] == pytest.approx(0.4)
    assert found["implant_von_mises_p99"]["value"] == pytest.approx(40.0)


def test_the_intact_segment_has_no_measure_of_a_device():
    bone, *_ = np.eye(5)
    intact = replace(block(), fraction=np.tile(bone, (4, 1)))
    found = measures_of(study(), "intact", intact)
    assert not {"implant_stress", "implant_volume", "graft_volume", "implant_von_mises_p99"} & set(
        found
    )
    assert "yielded_bone" in found


def test_an_objective_is_measured_with_the_settings_that_the_run_asked_for():
    """The same response, another setting, another value; what was not asked for has defaults."""
    strained = block(strain_zz=-0.0075)
    plain = measures_of(study("yielded_bone"), "stock", strained)["yielded_bone"]
    default = measures_of(study(), "stock", strained)["yielded_bone"]
    assert plain == default
    settings = {"half_width": 0.8}
    wide = {"objective": "yielded_bone", "kind": "minimise", "scale": 1.0, "settings": settings}
    asked = SimpleNamespace(goals=(goal(wide),))
    other = measures_of(asked, "stock", strained)["yielded_bone"]
    assert other["value"] != pytest.approx(default["value"], rel=1e-3)


@pytest.mark.parametrize(("percent", "expected"), [(50.0, 2.0), (75.0, 2.0), (75.1, 9.0)])
def test_a_percentile_weighs_by_volume(percent, expected):
    """1, 2 and 9 with weights 1, 2, 1: half of the weight lies at or below 2, and up to 75 %."""
    values, weight = np.array([9.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0])
    assert weighted_percentile(values, weight, percent) == expected


def test_a_percentile_of_no_volume_is_an_error():
    with pytest.raises(ValueError, match="no volume"):
        weighted_percentile(np.array([1.0, 2.0]), np.zeros(2), 99.0)


def test_a_response_without_bone_near_has_no_strain_of_it_and_the_rest_is_given(caplog):
    far = replace(block(), near=np.zeros(4))
    found = measures_of(study(), "stock", far)
    assert "bone_strain_p99" not in found and "yielded_bone_sharp" not in found
    assert "no bone near the disc space" in caplog.text
    assert found["implant_von_mises_p99"]["value"] == pytest.approx(40.0)


# -- one arm ---------------------------------------------------------------------------------------
def test_an_arm_without_a_solution_has_a_status_and_no_number(tmp_path):
    failed = SolverStatus("failed", "no mesh")
    nothing = Check(failed, None, (), {}, ("a note",), (0.0, 0.0), {})
    cases = tuple(SimpleNamespace(name=name) for name in CASES)
    given = SimpleNamespace(boundary=SimpleNamespace(loadcases=cases), goals=())
    engine = {"status": "ok", "residual": 1e-7, "notes": ["from the engine"]}
    arm = measures.arm_result(given, "stock", nothing, engine, tmp_path, ())
    assert arm["status"] == {"code": "failed", "text": "no mesh"}
    assert arm["notes"] == ["a note", "from the engine"]
    assert "measures" not in arm and "alignment" not in arm and "agreement" not in arm
