"""The table at the end of a run: what it says of figures that are known."""

from __future__ import annotations

import pytest
import yaml

from engine import artifacts
from scripts.run import verdict


def measure(value, better="lower", unit="mm³", **loads):
    return {"value": value, "unit": unit, "better": better, "per_load": loads}


GOALS = {
    "yielded_bone": {"objective": "yielded_bone", "kind": "minimise", "scale": 200.0},
    "implant_stress": {
        "objective": "implant_stress",
        "kind": "at_most",
        "bound": 1.0,
        "scale": 0.25,
    },
    "graft_volume": {
        "objective": "graft_volume",
        "kind": "at_least",
        "bound": 500.0,
        "scale": 250.0,
    },
}
ARMS = {
    "stock": {
        "yielded_bone": measure(600.0, flexion=500.0, left_bending=636.0),
        "implant_stress": measure(0.16, unit="1"),
        "graft_volume": measure(700.0, "higher"),
        "gap": measure(0.0),
    },
    "optimised": {
        "yielded_bone": measure(510.0, flexion=300.0, left_bending=923.0),
        "implant_stress": measure(0.586, unit="1"),
        "graft_volume": measure(400.0, "higher"),
        "gap": measure(0.0),
    },
}


def test_better_worse_and_kept_are_told_apart():
    lines = verdict.table("checked", ARMS, GOALS)
    text = "\n".join(lines)
    assert "−15 %, better" in text
    assert "kept: at most 1" in text, "a stress that rises within its limit is no loss"
    assert "BROKEN: at least 500" in text
    assert lines[-1] == "but worse in left bending: yielded bone 636 → 923 (+45.1 %)", (
        "what the mean hides"
    )
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("ours", "theirs", "better", "said"),
    [
        (90.0, 100.0, "lower", "−10 %, better"),
        (90.0, 100.0, "higher", "−10 %, worse"),
        (110.0, 100.0, "neither", "+10 %"),
        (100.5, 100.0, "lower", "same"),
        (0.0, 0.0, "lower", "same"),
        (1.0, 0.0, "lower", "worse"),
        (-5.0, -10.0, "lower", "+50 %, worse"),
    ],
)
def test_the_sign_of_better_is_the_measures_own(ours, theirs, better, said):
    arms = {"stock": {"x": measure(theirs, better)}, "optimised": {"x": measure(ours, better)}}
    assert verdict.judged("x", arms, None) == said


def test_an_arm_without_a_result_is_said():
    assert verdict.judged("x", {"stock": {"x": measure(1.0)}}, None) == "no result"
    assert verdict.table("checked", {"stock": {}}, {}) == ["checked: no arm has a result"]


def test_a_run_shows_its_check_or_else_the_searchs_own_figures(tmp_path):
    assert verdict.of_folder(tmp_path) == []
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"study": {"goals": list(GOALS.values())}})
    )
    arm = {"status": "ok", "measures": {"yielded_bone": 500.0, "implant_stress": 0.2}}
    artifacts.write_json(
        tmp_path / "engine.json",
        {"arms": {"stock": arm, "optimised": arm | {"measures": {"yielded_bone": 400.0}}}},
    )
    lines = verdict.of_folder(tmp_path)
    assert "not yet checked" in lines[0] and any(
        "mm³" in line and "−20 %, better" in line for line in lines
    )
    ok, failed = {"code": "ok", "text": ""}, {"code": "failed", "text": "no mesh"}
    arms = {"stock": {"status": failed}, "optimised": {"status": ok, "measures": ARMS["optimised"]}}
    artifacts.write_json(
        tmp_path / "result.json", {"arms": arms, "optimisation": {"status": {"code": "ok"}}}
    )
    lines = verdict.of_folder(tmp_path)
    assert lines[0] == "checked in SfePy" and lines[-1] == "stock: no mesh"
