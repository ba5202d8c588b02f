"""Regional alignment on exact endplates: closed forms, invariance, what cannot be measured,
standard errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.patient.alignment.measures import SpineAlignment
from engine.patient.alignment.scores import height_loss_grade, meyerding
from engine.patient.alignment.spine import spine_alignment, standard_errors
from engine.patient.geometry.frames import move_endplate, rotation
from engine.patient.phantoms.lumbar import (
    DISCS,
    LumbarSpec,
    exact_plates,
    femoral_heads_mm,
    fractured,
    lumbar_truth,
    scoliotic,
)
from engine.patient.phantoms.phantom import PhantomSpec
from engine.types import PatientModel

NORMAL = LumbarSpec()
#: Everything at once; PI and SS away from the default.
ODD = scoliotic(fractured(NORMAL, "L2", 0.3), -16.0).model_copy(
    update={
        "listhesis_mm": (0.0, 0.0, -3.0, 6.0, 0.0),
        "lateral_mm": (0.0, 3.0, 0.0, 0.0, 0.0),
        "sacral_slope_deg": 33.0,
        "pi_deg": 61.0,
    }
)
#: What is measured against LPS z, with all that follows from it; everything else is the patient's
#: own.
AGAINST_GRAVITY = {
    "sacral_slope_deg",
    "pelvic_tilt_deg",
    "apex",
    "schwab_pt",
    "roussouly",
    "gap_pelvic_version_deg",
    "gap_pelvic_version_points",
    "gap_score",
}


def aligned(spec: LumbarSpec, **given: object) -> SpineAlignment:
    plates, base = exact_plates(spec)
    options: dict = {"femoral_heads_mm": femoral_heads_mm(spec), "posture": "phantom"} | given
    return spine_alignment(plates, base, **options)


@pytest.mark.parametrize("spec", [NORMAL, ODD], ids=["normal", "odd"])
def test_exact_endplates_give_the_truth(spec: LumbarSpec) -> None:
    measured = aligned(spec)
    for key, exact in lumbar_truth(spec).items():
        place, name = key.split(".")
        assert measured.value(name, place) == pytest.approx(exact, abs=1e-9), key


def test_only_what_is_against_gravity_turns_with_the_scan() -> None:
    turned = ODD.model_copy(
        update={"rotation_deg": (20.0, -12.0, 15.0), "translation_mm": (5.0, 60.0, -300.0)}
    )
    here, there = aligned(ODD, age=64), aligned(turned, age=64)
    for key, measured in here.measures.items():
        if key[1] in AGAINST_GRAVITY:
            continue
        other = there.measures[key]
        assert other.status == measured.status, key
        assert other.value == (
            pytest.approx(measured.value, abs=1e-8)
            if isinstance(measured.value, float)
            else measured.value
        ), key
    assert abs(here.value("sacral_slope_deg") - there.value("sacral_slope_deg")) > 15.0


def test_levels_add_up_to_the_lordosis() -> None:
    for spec in (NORMAL, ODD):
        measured = aligned(spec)
        total = sum(measured.value("level_lordosis_deg", disc) for disc in DISCS)
        assert total == pytest.approx(measured.value("lumbar_lordosis_deg"), abs=1e-9)
        assert sum(
            measured.value("lordosis_share_percent", disc) for disc in DISCS
        ) == pytest.approx(100.0, abs=1e-8)
    # the default is S66: 1.2/5.9/9.1/12.7/21.6°
    norm = [aligned(NORMAL).value("level_lordosis_deg", disc) for disc in DISCS]
    assert norm == pytest.approx([1.2, 5.9, 9.1, 12.7, 21.6], abs=1e-9)


def test_l5_s1_ends_at_s1() -> None:
    # planar: L5's superior to S1's superior = L5's wedge + the disc angle = 8.0 + 13.6
    assert aligned(NORMAL).segments["L5-S1"].segmental_lordosis_deg == pytest.approx(21.6, abs=1e-9)


def test_cobb_of_a_planar_curve_is_the_sum_of_its_discs() -> None:
    flat = NORMAL.model_copy(
        update={
            "lordosis_deg": (0.0,) * 5,
            "body_wedge_deg": (0.0,) * 5,
            "sacral_slope_deg": 0.0,
            "coronal_deg": (0.0, 8.0, 9.0, -6.0, -3.0),
        }
    )
    measured = aligned(flat)
    assert measured.value("cobb_deg") == pytest.approx(17.0, abs=1e-9)
    # open to the left at L2-L3 and L3-L4: convex to the left between L2 and L4 (L1-L2 is parallel:
    # either end will do)
    assert measured.measure("cobb_side").value == "left"
    assert measured.measure("cobb_ends").value in ("L1-L4", "L2-L4")
    assert measured.measure("cobb_apex").value in ("L2-L3", "L3", "L3-L4")
    mirrored = aligned(flat.model_copy(update={"coronal_deg": tuple(-c for c in flat.coronal_deg)}))
    assert (
        mirrored.value("cobb_deg") == pytest.approx(17.0, abs=1e-9)
        and mirrored.measure("cobb_side").value == "right"
    )


@pytest.mark.parametrize(
    ("slip", "grade"), [(1.5, "none"), (6.0, "I"), (10.0, "II"), (-6.0, "I retro")]
)
def test_slip_of_equal_endplates_is_the_listhesis(slip: float, grade: str) -> None:
    # parallel discs of equal endplates: the posterior rims slip as the centres do, over the rim's
    # own depth
    spec = NORMAL.model_copy(
        update={
            "lordosis_deg": (0.0,) * 5,
            "body_wedge_deg": (0.0,) * 5,
            "depth_mm": (34.0,) * 5,
            "width_mm": (48.0,) * 5,
            "listhesis_mm": (0.0, 0.0, 0.0, slip, 0.0),
        }
    )
    measured = aligned(spec)
    depth = 2.0 * exact_plates(spec)[0]["L5"][0].half_depth_mm
    assert measured.value("slip_posterior_mm", "L4-L5") == pytest.approx(slip, abs=1e-9)
    assert measured.value("slip_mm", "L4-L5") == pytest.approx(slip, abs=1e-9)
    assert measured.value("slip_percent", "L4-L5") == pytest.approx(100.0 * slip / depth, abs=1e-9)
    assert measured.measure("meyerding", "L4-L5").value == grade


def test_a_deeper_endplate_is_no_slip() -> None:
    # L5 6 mm deeper than L4, centre over centre, nothing has slipped: the posterior rims are 3 mm
    # apart less what the notch (9 % of the depth) takes; it moves the centroid too, by under a
    # third of that
    flat = {
        "lordosis_deg": (0.0,) * 5,
        "body_wedge_deg": (0.0,) * 5,
        "depth_mm": (34.0, 34.0, 34.0, 34.0, 40.0),
    }
    measured = aligned(NORMAL.model_copy(update=flat))
    assert measured.value("slip_posterior_mm", "L4-L5") == pytest.approx(3.0 - 0.09 * 6.0, abs=0.2)
    assert (
        measured.value("slip_mm", "L4-L5") == 0.0
        and measured.measure("meyerding", "L4-L5").value == "none"
    )


def test_grades_at_their_bounds() -> None:
    assert [meyerding(p, 5.0) for p in (24.9, 25.0, 50.0, 75.0, 100.0, 101.0)] == (
        "I II III IV IV V".split()
    )
    assert [height_loss_grade(p) for p in (19.9, 20.0, 25.0, 40.0, 41.0)] == (
        "none mild moderate moderate severe".split()
    )


def test_wedge_fracture_is_read() -> None:
    measured = aligned(fractured(NORMAL, "L2", 0.35))
    # on the rim the body is 1 mm deeper and 0.3 mm shorter in front than at the ellipse's ends: 2 %
    # in the loss
    assert measured.value("loss_anterior_percent", "L2") == pytest.approx(35.0, abs=3.0)
    assert measured.measure("height_loss_grade", "L2").value == "moderate"
    assert measured.measure("height_loss_grade", "L3").value == "none"


def test_central_height_counts_the_cavities(mild: PatientModel) -> None:
    measured = spine_alignment(mild.vertebrae, None, posture="phantom")
    spec = PhantomSpec()
    # between the cavities' floors, 9 columns within 4.2 mm: there the dish is (1 − ρ²)² of its
    # depth, 6 % less in the mean
    exact = spec.body_height_mm - 2.0 * spec.concavity_mm
    assert exact - 0.1 < measured.value("height_central_mm", "L4") < exact + 0.5
    assert measured.value("height_middle_mm", "L4") == pytest.approx(spec.body_height_mm, abs=0.1)


def test_what_is_not_in_the_scan_is_not_measured() -> None:
    plates, base = exact_plates(NORMAL)
    two_levels = spine_alignment({"L4": plates["L4"], "L5": plates["L5"]}, None, posture="supine")
    for name in (
        "lumbar_lordosis_deg",
        "sacral_slope_deg",
        "pelvic_incidence_deg",
        "gap_score",
        "schwab_sva",
        "roussouly",
    ):
        measured = two_levels.measure(name)
        assert measured.status == "not measurable" and measured.value is None and measured.reason, (
            name
        )
    with pytest.raises(ValueError, match="L1's superior endplate is not in the scan"):
        two_levels.value("lumbar_lordosis_deg")
    assert list(two_levels.segments) == ["L4-L5"]
    # a level that is missing in between leaves the disc out, not the region
    gap = spine_alignment({k: plates[k] for k in ("L1", "L2", "L4", "L5")}, base, posture="supine")
    assert list(gap.segments) == ["L1-L2", "L4-L5", "L5-S1"]
    assert gap.value("lumbar_lordosis_deg") == pytest.approx(50.5, abs=1e-9)
    assert "standing adds 13" in gap.measure("lumbar_lordosis_deg").reason
    assert "LPS z" in gap.measure("sacral_slope_deg").source


def test_incidence_can_be_given() -> None:
    measured = aligned(NORMAL, femoral_heads_mm=None, pi_deg=52.0)
    assert measured.measure("pelvic_incidence_deg").status == "given"
    assert measured.value("pelvic_tilt_deg") == pytest.approx(12.0, abs=1e-9)
    with pytest.raises(ValueError, match="both femoral heads and pi_deg"):
        aligned(NORMAL, pi_deg=52.0)
    with pytest.raises(ValueError, match="pi_deg=150"):
        aligned(NORMAL, femoral_heads_mm=None, pi_deg=150.0)


def test_order_of_the_femoral_heads_does_not_matter() -> None:
    swapped = aligned(ODD, femoral_heads_mm=femoral_heads_mm(ODD)[::-1])
    assert swapped.value("pelvic_incidence_deg") == pytest.approx(61.0, abs=1e-9)
    assert swapped.measure("cobb_side").value == aligned(ODD).measure("cobb_side").value == "right"


def test_bad_input_is_refused_in_words() -> None:
    plates, base = exact_plates(NORMAL)
    with pytest.raises(ValueError, match="no vertebra was given"):
        spine_alignment({}, base, posture="supine")
    with pytest.raises(ValueError, match="posture='lying'"):
        spine_alignment(plates, base, posture="lying")
    with pytest.raises(ValueError, match="shape"):
        spine_alignment(plates, base, posture="supine", femoral_heads_mm=np.zeros(3))
    with pytest.raises(ValueError, match="not above"):
        spine_alignment({"L4": plates["L5"], "L5": plates["L4"]}, None, posture="supine")


def test_table_is_json_and_complete() -> None:
    measured = aligned(ODD, age=64)
    rows = json.loads(json.dumps(measured.table()))
    assert len(rows) == len(measured.measures)
    for row in rows:
        assert (row["value"] is None) == (row["status"] == "not measurable"), row
        assert row["value"] is None or row["source"], row


def test_standard_errors_of_tilted_endplates() -> None:
    # each endplate tilted by σ about x, independently, in the planar spine: SE(SS) = σ, SE(LL) =
    # SE(disc) = √2·σ; 400 draws know a standard deviation to 1/√800 = 3.5 %, and three of those are
    # allowed
    sigma, draws = 1.5, 400
    rng = np.random.default_rng(4)
    plates, base = exact_plates(NORMAL)

    def tilted(plate):
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(0, np.radians(sigma * rng.normal()))
        matrix[:3, 3] = plate.centre_mm - matrix[:3, :3] @ plate.centre_mm
        return move_endplate(matrix, plate)

    redrawn = {
        level: [(tilted(a), tilted(b)) for _ in range(draws)] for level, (a, b) in plates.items()
    }
    errors = standard_errors(
        redrawn, [tilted(base) for _ in range(draws)], femoral_heads_mm=femoral_heads_mm(NORMAL)
    )
    assert errors["regional", "sacral_slope_deg"] == pytest.approx(sigma, rel=0.11)
    assert errors["regional", "lumbar_lordosis_deg"] == pytest.approx(
        np.sqrt(2.0) * sigma, rel=0.11
    )
    assert errors["L3-L4", "lordosis_deg"] == pytest.approx(np.sqrt(2.0) * sigma, rel=0.11)
    # PT is S1's centre against the hips: no tilt of an endplate moves it
    assert errors["regional", "pelvic_tilt_deg"] == pytest.approx(0.0, abs=1e-9)
    shown = aligned(NORMAL).with_errors(errors)
    assert (
        shown.measure("lumbar_lordosis_deg").standard_error
        == errors["regional", "lumbar_lordosis_deg"]
    )
    assert shown.measure("gap_score").standard_error is None
    with pytest.raises(ValueError, match="same number"):
        standard_errors({"L4": redrawn["L4"][:5], "L5": redrawn["L5"][:4]})


def test_scores_by_hand() -> None:
    # PI 52, SS 40, LL 50.5, L4-S1 34.3: PI−LL 1.5 (0), PT 12 (0); RPV 40 − 39.68 = 0.32 (0), RLL
    # 50.5 − 61.24 = −10.74 (0), LDI 67.9 (0), age 64 (1); SS 35-45: Roussouly 3. The apex: leans
    # −40, −18.4, −5.7 (L4), +2.4 (L3 inferior)
    measured = aligned(NORMAL, age=64)
    assert (measured.measure("schwab_pi_ll").value, measured.measure("schwab_pt").value) == (
        "0",
        "0",
    )
    assert measured.value("gap_pelvic_version_deg") == pytest.approx(0.32, abs=1e-9)
    assert measured.value("gap_relative_lordosis_deg") == pytest.approx(-10.74, abs=1e-9)
    points = [
        measured.value(f"gap_{part}_points")
        for part in ("pelvic_version", "relative_lordosis", "distribution", "age")
    ]
    assert points == [0.0, 0.0, 0.0, 1.0]
    assert (
        measured.measure("gap_score").status == "not measurable"
        and "1 points so far, at most 3 more" in measured.measure("gap_score").reason
    )
    assert measured.measure("roussouly").value == "3" and measured.measure("apex").value == "L3-L4"


def test_l1_pelvic_angle_is_that_of_the_points() -> None:
    plates, base = exact_plates(NORMAL)
    hips = femoral_heads_mm(NORMAL).mean(axis=0)
    to_l1 = 0.5 * (plates["L1"][0].centre_mm + plates["L1"][1].centre_mm) - hips
    to_s1 = base.centre_mm - hips
    angle = np.degrees(np.arccos(to_l1 @ to_s1 / np.linalg.norm(to_l1) / np.linalg.norm(to_s1)))
    assert aligned(NORMAL).value("l1_pelvic_angle_deg") == pytest.approx(angle, abs=1e-9)
