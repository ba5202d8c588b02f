"""The search over configurations finds a known minimum and a known Pareto front, ends hopeless
trials, and survives being killed."""

from __future__ import annotations

import csv
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from optuna.trial import TrialState

from scripts.console.places import ROOT
from scripts.console.wrong import Wrong
from scripts.run import job
from scripts.sweeps import launchers
from scripts.sweeps import search as sweeps_search
from scripts.sweeps.launchers import Command
from scripts.sweeps.search import Prune, Target, TuneConfig

#: Stands for scripts/optimize.py: x → two measures, (x − 3)² and (x − 5)², approached over ten
#: iterations.
PROGRAM = """
    import json, os, signal, sys, time
    given = dict(a.split("=", 1) for a in sys.argv[1:])
    folder, x = given["out"], float(given["x"])
    values = {"near_three": (x - 3.0) ** 2, "near_five": (x - 5.0) ** 2}
    if x > 9.5: sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    slow = os.path.exists(os.path.join(os.path.dirname(folder), "slow"))
    with open(os.path.join(folder, "history.jsonl"), "w") as history:
        for n in range(10):
            terms = {k: v * (1.0 + 1.0 / (n + 1)) for k, v in values.items()}
            history.write(json.dumps({"iteration": n, "terms": terms}) + chr(10)); history.flush()
            time.sleep(0.3 if slow else 0.0)
    measures = {k: {"value": v} for k, v in values.items()}
    def write(name, content):
        json.dump(content, open(os.path.join(folder, name), "w"))

    write("result.json", {"arms": {"optimised": {"measures": measures}}})
    write("outcome.json", {"status": "done", "reason": "", "exit": 0})
"""


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A search whose jobs are the program above: config(**changes)."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    monkeypatch.setattr(launchers, "PROGRAM", str(program))

    def planned(config, params):
        folder = Path(config.out) / "trials" / f"{params['x']:.4f}"
        return SimpleNamespace(
            command=Command(folder.name, folder, (f"x={params['x']}", f"out={folder}")),
            config=folder,
        )

    def finished(folder):
        return (folder / "outcome.json").exists()

    monkeypatch.setattr(sweeps_search, "planned", planned)
    monkeypatch.setattr(sweeps_search, "corners_of", lambda _: None)
    monkeypatch.setattr(job, "finished", finished)

    def config(**changes):
        given = {
            "out": str(tmp_path / "search"),
            "space": {"x": {"low": 0.0, "high": 9.0}},
            "prune": None,
            "trials": 8,
            "targets": [{"measure": "near_three"}],
            "launcher": {"jobs": 2, "memory_gb_per_job": 0.2},
        }
        return TuneConfig(**(given | changes))

    return config


def trials(config):
    return sweeps_search.open_study(config).trials


def test_it_finds_the_minimum_and_writes_what_it_found(search):
    config = search(trials=20, seed=1)
    assert sweeps_search.run(config) == job.DONE
    best = yaml.safe_load((Path(config.out) / "best.yaml").read_text())
    assert len(best) == 1 and best[0]["values"]["optimised.near_three"] < 0.3
    rows = list(csv.DictReader(open(Path(config.out) / "trials.csv")))
    assert len(rows) == 20 and all(
        float(r["optimised.near_three"]) == pytest.approx((float(r["x"]) - 3.0) ** 2) for r in rows
    )


def test_two_targets_give_the_pareto_front(search):
    """Between 3 and 5 every x is a trade; outside, none is."""
    config = search(
        trials=16,
        targets=[{"measure": "near_three"}, {"measure": "near_five"}],
        sampler="random",
        seed=3,
    )
    sweeps_search.run(config)
    study = sweeps_search.open_study(config)
    inside = {t.number for t in study.trials if 3.0 <= t.params["x"] <= 5.0}
    front = {t.number for t in study.best_trials}
    assert inside and inside <= front
    assert len(front - inside) <= 2, "at most one beyond each end, where nothing nearer was tried"


def test_a_search_goes_on_where_it_was_and_takes_up_what_was_cut_off(search):
    config = search(trials=5)
    study = sweeps_search.open_study(config)
    cut = study.ask(config.distributions())  # as a killed search leaves it
    assert sweeps_search.run(config) == job.DONE
    first = trials(config)
    assert len(first) == 5 and all(t.state == TrialState.COMPLETE for t in first)
    assert first[cut.number].params == cut.params
    sweeps_search.run(search(trials=7))
    after = trials(config)
    assert len(after) == 7 and [t.params for t in after[:5]] == [t.params for t in first]
    assert len({t.params["x"] for t in after}) == 7, "it does not propose again what it began with"
    with pytest.raises(ValueError, match="another base, space or targets"):
        sweeps_search.open_study(search(space={"x": {"low": 0.0, "high": 8.0}}))


def test_a_failed_trial_is_told_with_its_reason_and_the_search_goes_on(search):
    config = search(space={"x": [9.9, 4.0]}, trials=4, sampler="random", seed=0)
    sweeps_search.run(config)
    by_x = {t.params["x"]: t for t in trials(config)}
    assert by_x[9.9].state == TrialState.FAIL and "job.log" in by_x[9.9].user_attrs["text"]
    assert by_x[4.0].state == TrialState.COMPLETE


def test_hopeless_trials_end_early(search):
    prune = {"after": 3, "least": 3, "percentile": 50.0}
    config = search(
        space={"x": {"low": 0.0, "high": 9.0}},
        trials=5,
        prune=prune,
        launcher={"jobs": 1, "memory_gb_per_job": 0.2},
    )
    study = sweeps_search.open_study(config)
    for x in (3.1, 3.2, 3.3, 8.0, 3.0):
        study.enqueue_trial({"x": x})
    (Path(config.out) / "trials").mkdir(parents=True)
    (Path(config.out) / "trials" / "slow").write_text("")
    sweeps_search.run(config)
    found = {t.params["x"]: t for t in trials(config)}
    assert [found[x].state.name for x in (3.1, 3.2, 3.3, 3.0)] == ["COMPLETE"] * 4
    assert found[8.0].state == TrialState.PRUNED and "near_three" in found[8.0].user_attrs["text"]
    assert not (Path(config.out) / "trials" / "8.0000" / "result.json").exists()


def history(*values, name="m"):
    return [{"terms": {name: v}} for v in values]


@pytest.mark.parametrize(
    ("mine", "direction", "ends"),
    [
        (history(9, 9, 9), "minimise", True),  # the others' best so far: 1, 2, 3; their median 2
        (history(9, 2, 9), "minimise", False),  # its best so far counts
        (history(9, 9), "minimise", False),  # too early
        (history(9, 9, 9), "maximise", False),
        (history(0, 0, 0), "maximise", True),
        (
            history(9, 9, 9, name="other"),
            "minimise",
            False,
        ),  # not in the history: no ground to end it
    ],
)
def test_a_trial_is_hopeless_when_it_stands_worse_than_the_others_did(mine, direction, ends):
    others = [history(5, 1, 1, 0), history(5, 2, 2, 0), history(5, 3, 3, 0), history(5)]
    target = Target(measure="m", direction=direction)
    if direction == "maximise":
        others = [history(1, 1, 1), history(2, 2, 2), history(3, 3, 3)]
    why = sweeps_search.hopeless(mine, others, [target], Prune(after=3, least=3, percentile=50.0))
    assert bool(why) == ends
    assert not sweeps_search.hopeless(mine, others[:2], [target], Prune(after=3, least=3)), (
        "too few to compare with"
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"space": {}}, "space"),
        ({"space": {"x": {"low": 2.0, "high": 1.0}}}, "space"),
        ({"targets": [{"measure": "m", "arm": "best"}]}, "conforming_central"),
        ({"sampler": "cma"}, "nsga2"),
        ({"prune": {"percentile": 120}}, "percentile"),
        ({"tirals": 3}, "tirals"),
    ],
)
def test_a_wrong_search_is_refused(tmp_path, changes, named):
    with pytest.raises(ValueError, match=named):
        TuneConfig(
            **({"out": str(tmp_path), "space": {"x": [1]}, "targets": [{"measure": "m"}]} | changes)
        )


def test_every_end_of_the_space_must_be_a_valid_run(tmp_path):
    space = {"solver.spacing_mm": {"low": 1.0, "high": 9.0}, "objectives": ["balanced", "nonsense"]}
    config = TuneConfig(out=str(tmp_path), space=space, targets=[{"measure": "yielded_bone"}])
    with pytest.raises(Wrong) as caught:
        sweeps_search.corners_of(config)
    text = str(caught.value)
    assert "solver.spacing_mm=9.0" in text and "nonsense" in text and "spacing_mm=1.0" not in text


def test_the_real_command_checks_its_space_against_the_real_configuration(tmp_path):
    """tune.py itself, under its own @hydra.main: the corners of the space are composed, what is
    wrong is named before any trial."""
    line = [
        sys.executable,
        str(ROOT / "scripts" / "tune.py"),
        f"out={tmp_path / 'search'}",
        'base=["solver=coarse","fem=demo"]',
        "space={implant.settings.length_mm:{low:26.0,high:340.0},objectives:[balanced,nonesuch]}",
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == job.FAILED, done.stderr[-2000:]
    errors = [row for row in done.stderr.splitlines() if row.startswith("error: ")]
    assert any("objectives=nonesuch" in row for row in errors) and any(
        "length_mm=340.0" in row for row in errors
    ), done.stderr[-2000:]
    assert "GlobalHydra" not in done.stderr and not (tmp_path / "search" / "trials").exists()
