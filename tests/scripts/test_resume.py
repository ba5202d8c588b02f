"""An interrupted and resumed run equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from rich.progress import Progress

from engine import artifacts
from engine.patient import PlanConfig, phantom_segment
from objectives import study as studies
from scripts import pipeline
from tests.scripts.test_config import composed


class StopAfter:
    """Stands for a signal that comes in while iteration `count` runs."""

    signal_name = "SIGTERM"

    def __init__(self, count: int | None) -> None:
        self.left = count

    def __bool__(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left <= 0


@pytest.fixture(scope="module")
def study():
    segment = phantom_segment(spacing_mm=1.5, plan_config=PlanConfig(spacing_mm=1.5))
    # a bound that is violated at first, so that multipliers and penalty are part of what must survive
    config = composed("solver.spacing_mm=3.5", "objectives.goals.4.bound=2000")
    return studies.make(segment, config.study), config


def optimise(study, folder, stop, iterations=4):
    made, config = study
    folder.mkdir(exist_ok=True)
    settings = config.optimizer.model_copy(update={"iterations": iterations, "multiplier_every": 2, "rebuild_every": 2})
    run = config.model_copy(update={"optimizer": settings, "keep": pipeline.KeepConfig(states=10)})
    with Progress(disable=True) as bar:
        return pipeline._optimise(made, run, studies.default_pose(made), folder, _Quiet(bar), stop)[0]


class _Quiet:
    """A progress bar that takes the note field and prints nothing."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.console = bar, bar.console

    def add_task(self, *args, **kwargs):
        return self.bar.add_task(*args, **kwargs)

    def update(self, *args, **kwargs):
        self.bar.update(*args, **kwargs)


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(study, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    best = optimise(study, whole, StopAfter(None))
    with pytest.raises(pipeline.Stopped, match="resume=true"):
        optimise(study, parts, StopAfter(3))
    assert (parts / "state_00003.npz").exists() and not (parts / "state_00004.npz").exists()
    again = optimise(study, parts, StopAfter(None))
    for k in best:
        assert np.array_equal(best[k], again[k]), k
    with np.load(whole / "state_00004.npz") as a, np.load(parts / "state_00004.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name
    first, second = (artifacts.read_jsonl(f / "history.jsonl") for f in (whole, parts))
    assert [r["iteration"] for r in second] == [0, 1, 2, 3]
    assert [r["objective"] for r in first] == [r["objective"] for r in second]
    assert any(r["violation"] > 0 for r in first)
    assert len({r["objective"] for r in first}) == 4
