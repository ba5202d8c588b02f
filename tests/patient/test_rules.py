"""Published target rules against values worked out by hand, and the spread of a demand over
levels."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from engine.patient.alignment.demand import LevelLimit, distribute
from engine.patient.alignment.measures import SpineAlignment
from engine.patient.alignment.rules import (
    LEVEL_NORMS_ALL_DEG,
    LEVEL_NORMS_DEG,
    RULES,
    RuleTarget,
    compare_rules,
)
from engine.patient.alignment.scores import gap_points, roussouly_type, schwab_modifier
from engine.patient.alignment.spine import spine_alignment
from engine.patient.phantoms.lumbar import LumbarSpec, exact_plates, femoral_heads_mm

#: PI 52, SS 40, LL 50.5, L4-S1 34.3.
SPEC = LumbarSpec()


def aligned(posture: str = "standing", **given: object) -> SpineAlignment:
    plates, base = exact_plates(SPEC)
    options: dict = {"femoral_heads_mm": femoral_heads_mm(SPEC)} | given
    return spine_alignment(plates, base, posture=posture, **options)


@pytest.fixture(scope="module")
def targets() -> dict[str, RuleTarget]:
    return {target.rule: target for target in compare_rules(aligned(), age=70.0)}


@pytest.mark.parametrize(
    ("rule", "ll", "change"),
    [
        ("gap_ideal", 61.24, 10.74),  # 0.62·52 + 29
        ("gap_aligned", 50.5, 0.0),  # in 47.24 … 72.24
        ("schwab", 50.5, 0.0),  # in 42 … 62
        ("hasegawa2016", 48.0, -2.5),  # 32.9 + 31.2 − 16.1
        ("lehuec2016", 55.2, 4.7),  # 23.4 + 31.8
        ("lafage_age", 41.5, -9.0),  # 52 − (7.5 + 3)
        ("pi_steps", 61.0, 10.5),  # 52 + 9
        ("level_norms", 50.9, 0.4),  # PI 45-55: 0.9 + 6.2 + 8.9 + 13.1 + 21.8
    ],
)
def test_targets_by_hand(
    targets: dict[str, RuleTarget], rule: str, ll: float, change: float
) -> None:
    asked = targets[rule]
    assert asked.status == "computed"
    assert asked.ll_deg == pytest.approx(ll, abs=1e-6)
    assert asked.change_deg == pytest.approx(change, abs=1e-6)


def test_other_targets_by_hand(targets: dict[str, RuleTarget]) -> None:
    assert targets["gap_ideal"].others["sacral_slope_deg"] == pytest.approx(39.68)
    assert targets["gap_ideal"].l4_s1_range_deg == pytest.approx((30.62, 48.992))
    assert targets["gap_ideal"].l4_s1_change_deg == pytest.approx(0.0, abs=1e-9)
    assert targets["lehuec2016"].others["pelvic_tilt_deg"] == pytest.approx(16.94)
    assert targets["lafage_age"].others["pelvic_tilt_deg"] == pytest.approx(25.0)
    assert targets["level_norms"].l4_s1_deg == pytest.approx(34.9)
    assert targets["l1pa"].others["l1_pelvic_angle_deg"] == pytest.approx(5.0)
    assert targets["l1pa"].status == targets["roussouly"].status == "no lordosis"
    assert "type 3" in targets["roussouly"].reason


def test_a_range_asks_for_its_nearer_end() -> None:
    given = aligned(femoral_heads_mm=None, pi_deg=80.0)
    asked = {target.rule: target for target in compare_rules(given)}
    assert asked["schwab"].ll_deg == pytest.approx(70.0) and asked[
        "schwab"
    ].change_deg == pytest.approx(19.5, abs=1e-6)
    assert asked["pi_steps"].ll_deg == pytest.approx(75.0)  # 80 − 5


def test_what_cannot_be_computed_says_why() -> None:
    asked = {target.rule: target for target in compare_rules(aligned(femoral_heads_mm=None))}
    assert set(asked) == set(RULES)
    for rule in ("gap_ideal", "schwab", "hasegawa2016", "pi_steps", "l1pa"):
        assert (
            asked[rule].status == "not computed"
            and asked[rule].ll_deg is None
            and "femoral heads" in asked[rule].reason
        ), rule
    assert "age" in asked["hasegawa2016"].reason
    # the norms need no PI: then those of all subjects
    assert (
        asked["level_norms"].ll_deg == pytest.approx(50.5)
        and asked["level_norms"].status == "computed"
    )
    with pytest.raises(ValueError, match="age=400"):
        compare_rules(aligned(), age=400.0)


def test_supine_is_said() -> None:
    asked = compare_rules(aligned("supine"), age=70.0)
    assert all(
        "standing adds 13" in target.reason for target in asked if target.status == "computed"
    )
    assert all(
        "standing adds" not in target.reason
        for target in compare_rules(aligned("standing"), age=70.0)
    )
    json.dumps([target.as_dict() for target in asked])


def test_norms_are_the_published_table() -> None:
    # S66 table 2: the groups' ratios (%) follow from the degrees
    ratios = [
        (0.1, 9.3, 18.2, 24.8, 47.7),
        (1.8, 12.1, 17.5, 25.8, 42.7),
        (4.3, 13.0, 18.5, 25.0, 39.2),
    ]
    for (_, levels), published in zip(LEVEL_NORMS_DEG, ratios, strict=True):
        total = sum(levels.values())
        assert [100.0 * v / total for v in levels.values()] == pytest.approx(published, abs=0.25)
    assert sum(LEVEL_NORMS_ALL_DEG.values()) == pytest.approx(50.5)
    assert all(a < b for (a, _), (b, _) in pairwise(LEVEL_NORMS_DEG))


@pytest.mark.parametrize(
    ("part", "points"),
    [
        ("pelvic_version", {-15.1: 3, -15.0: 2, -7.1: 2, -7.0: 0, 5.0: 0, 5.1: 1}),
        ("relative_lordosis", {-25.1: 3, -25.0: 2, -14.1: 2, -14.0: 0, 11.0: 0, 11.1: 3}),
        ("distribution", {39.9: 2, 40.0: 1, 49.9: 1, 50.0: 0, 80.0: 0, 80.1: 3}),
        ("spinopelvic", {-7.1: 1, -7.0: 0, 10.0: 0, 10.1: 1, 18.0: 1, 18.1: 3}),
        ("age", {59.0: 0, 60.0: 1}),
    ],
)
def test_gap_points_at_their_bounds(part: str, points: dict[float, int]) -> None:
    assert {value: gap_points(part, value) for value in points} == points


def test_modifiers_and_types_at_their_bounds() -> None:
    modifiers = [schwab_modifier("PI-LL", v) for v in (-20.0, 9.9, 10.0, 20.0, 20.1)]
    assert modifiers == ["0", "0", "+", "+", "++"]
    assert [roussouly_type(ss, "L5") for ss in (34.9, 35.0, 45.0, 45.1)] == ["1", "3", "3", "4"]
    assert roussouly_type(30.0, "L4-L5") == "2" and roussouly_type(30.0, None) is None


# -- the spread over levels ------------------------------------------------------------------------


def _asks(change_deg: float, ll_deg: float) -> RuleTarget:
    return RuleTarget("by_hand", "", "", "", "computed", ll_deg=ll_deg, change_deg=change_deg)


def test_demand_goes_where_it_is_lacking() -> None:
    # norms of all, target 50.5: L4-L5 lacks 12.7 − 6.7 = 6, L5-S1 21.6 − 18.6 = 3; 6° are spread 2
    # : 1
    spread = distribute(_asks(6.0, 50.5), ["L4-L5", "L5-S1"], {"L4-L5": 6.7, "L5-S1": 18.6})
    assert spread.levels_deg == pytest.approx({"L4-L5": 4.0, "L5-S1": 2.0})
    assert spread.shortfall_deg == 0.0 and not spread.notes


def test_limits_hand_on_and_what_is_left_is_said() -> None:
    measured = {"L4-L5": 6.7, "L5-S1": 18.6}
    tight = {"L4-L5": LevelLimit(angle_deg=3.0), "L5-S1": LevelLimit(angle_deg=8.0)}
    spread = distribute(_asks(6.0, 50.5), list(measured), measured, tight)
    assert (
        spread.levels_deg == pytest.approx({"L4-L5": 3.0, "L5-S1": 3.0})
        and spread.shortfall_deg == 0.0
    )
    more = distribute(_asks(15.0, 50.5), list(measured), measured, tight)
    assert more.levels_deg == pytest.approx({"L4-L5": 3.0, "L5-S1": 8.0})
    assert more.shortfall_deg == pytest.approx(4.0) and any(
        "cannot be had" in note for note in more.notes
    )


def test_a_level_that_lacks_nothing_takes_only_what_others_cannot() -> None:
    measured = {"L4-L5": 6.7, "L5-S1": 30.0}
    assert distribute(_asks(6.0, 50.5), list(measured), measured).levels_deg == pytest.approx(
        {"L4-L5": 6.0, "L5-S1": 0.0}
    )
    assert distribute(_asks(10.0, 50.5), list(measured), measured).levels_deg == pytest.approx(
        {"L4-L5": 8.0, "L5-S1": 2.0}
    )


def test_too_much_lordosis_is_taken_back() -> None:
    spread = distribute(_asks(-6.0, 50.5), ["L4-L5", "L5-S1"], {"L4-L5": 18.7, "L5-S1": 24.6})
    assert spread.levels_deg == pytest.approx({"L4-L5": -4.0, "L5-S1": -2.0})
    far = distribute(_asks(-20.0, 50.5), ["L4-L5"], {"L4-L5": 18.7})
    assert far.levels_deg["L4-L5"] == pytest.approx(-8.0) and far.shortfall_deg == pytest.approx(
        -12.0
    )


def test_rims_limit_the_angle() -> None:
    # a rim 17 mm from the middle that may move by 1 mm: 1/17 rad = 3.37°; the least of the three
    # counts
    third = np.degrees(1.0 / 17.0)
    spread = LevelLimit(opens_mm=1.0, closes_mm=2.0)
    assert spread.largest_deg() == pytest.approx(third) and spread.limited_by() == "ligament"
    spread = LevelLimit(opens_mm=2.0, closes_mm=1.0)
    assert spread.largest_deg() == pytest.approx(third) and spread.limited_by() == "disc space"
    assert LevelLimit().largest_deg() == pytest.approx(8.0) and LevelLimit().limited_by() == "angle"
    assert LevelLimit(opens_mm=-1.0).largest_deg() == 0.0


@pytest.mark.parametrize(("before", "change"), [(0.0, 8.0), (12.0, 8.0), (18.0, -8.0)])
def test_no_rim_moves_further_than_its_room(before: float, change: float) -> None:
    """The exact height of a rim, 2r·sin(θ/2) above or below the middle (alignment.py), against
    the bound r·Δ."""
    radius = 17.0
    moved = abs(
        2.0
        * radius
        * (np.sin(np.radians(before + change) / 2.0) - np.sin(np.radians(before) / 2.0))
    )
    allowed = LevelLimit(angle_deg=20.0, opens_mm=moved, opens_at_mm=radius).largest_deg()
    assert 0.98 * abs(change) < allowed <= abs(change) + 1e-9


def test_what_is_wanted_is_told_apart_from_what_is_given() -> None:
    # 15° on levels that lack 2 : 1 would be 10 and 5; their limits are 3 and 8
    measured = {"L4-L5": 6.7, "L5-S1": 18.6}
    tight = {"L4-L5": LevelLimit(angle_deg=3.0), "L5-S1": LevelLimit(angle_deg=8.0)}
    spread = distribute(_asks(15.0, 50.5), list(measured), measured, tight)
    assert spread.wanted_deg == pytest.approx({"L4-L5": 10.0, "L5-S1": 5.0})
    assert sum(spread.wanted_deg.values()) - sum(spread.levels_deg.values()) == pytest.approx(
        spread.shortfall_deg
    )
    assert any("L4-L5 is at its limit of 3.0° (angle)" in note for note in spread.notes)


@pytest.mark.parametrize(("seed", "change"), [(0, 3.0), (1, 17.0), (2, -9.0), (3, 40.0)])
def test_spread_and_shortfall_add_up(seed: int, change: float) -> None:
    rng = np.random.default_rng(seed)
    measured = {
        level: norm + float(rng.normal(0.0, 5.0)) for level, norm in LEVEL_NORMS_ALL_DEG.items()
    }
    limits = {level: LevelLimit(angle_deg=float(rng.uniform(1.0, 8.0))) for level in measured}
    spread = distribute(_asks(change, 55.0), list(measured), measured, limits)
    assert sum(spread.levels_deg.values()) + spread.shortfall_deg == pytest.approx(change, abs=1e-5)
    assert all(
        abs(part) <= limits[level].largest_deg() + 1e-9 for level, part in spread.levels_deg.items()
    )
    assert all(part * change >= 0.0 for part in spread.levels_deg.values())
    assert sum(spread.wanted_deg.values()) == pytest.approx(change)


def test_bad_demands_are_refused() -> None:
    with pytest.raises(ValueError, match="gives no change"):
        distribute(RuleTarget("l1pa", "", "", "", "no lordosis"), ["L4-L5"], {"L4-L5": 10.0})
    with pytest.raises(ValueError, match="'T12-L1' has no norm"):
        distribute(_asks(5.0, 50.0), ["T12-L1"], {"T12-L1": 1.0})
    with pytest.raises(ValueError, match="at least one"):
        distribute(_asks(5.0, 50.0), [], {})
