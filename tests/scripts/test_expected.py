"""The expected time: of finished runs of the same size, else a rule that says it is one."""

from __future__ import annotations

from engine import artifacts
from scripts.console import composing
from scripts.run import expected
from scripts.run.configure import run_config
from scripts.run.folder import write_config


def finished(folder, seconds, *words):
    write_config(run_config(composing.compose("config", [*words, "out=x"]).settings)[0], folder)
    artifacts.write_json(folder / "outcome.json", {"status": "done"})
    artifacts.write_json(
        folder / "timings.json", {"seconds": {"optimisation": seconds, "report": 60.0}}
    )


def test_finished_runs_of_the_same_size_beside_it_say_how_long(tmp_path):
    for i, seconds in enumerate((540.0, 600.0, 9000.0)):
        finished(tmp_path / f"a{i}", seconds, "experiment=demo", f"seed={i}")
    finished(tmp_path / "larger", 90000.0, "experiment=demo", "solver=fine")
    asked = composing.compose("config", ["experiment=demo", "out=x"]).plain
    assert expected.of_run(asked, tmp_path / "new").startswith(
        "about 11 min (median of 3 finished runs"
    )


def test_without_one_it_is_called_a_rule_of_thumb_and_grows_with_the_size(tmp_path):
    small, large = (
        composing.compose("config", [*w, "out=x"]).plain
        for w in (["experiment=demo"], ["search=standard", "check=true"])
    )
    assert "rule of thumb" in expected.of_run(small, tmp_path / "x")
    seconds = [expected.seconds(config) for config in (small, large)]
    assert 60 < seconds[0] < 600 < seconds[1] < 10000, (
        "make demo takes 4 min with its check, a full run half an hour to an hour"
    )


def test_durations_are_in_words():
    assert [expected.duration(s) for s in (3, 44, 200, 9000)] == ["10 s", "40 s", "3 min", "2.5 h"]
