"""An interrupted and resumed run equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from engine import artifacts, optimize
from engine.forward import Warm
from engine.patient import PlanConfig, phantom_segment
from scripts.run import arms as studies
from scripts.run import design, search
from scripts.run.config import BudgetConfig, KeepConfig
from scripts.run.folder import designed
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
    # a bound that is violated at first, so that multipliers and penalty are part of what must
    # survive
    config = composed("solver.spacing_mm=3.5", "objectives.goals.4.bound=2000")
    return studies.make(segment, config.study), config


@pytest.fixture(autouse=True, scope="module")
def prepared_once():
    """What a grid holds before any design is the same for every search here."""
    with pytest.MonkeyPatch.context() as patch:
        made, prepare = {}, studies.prepare
        patch.setattr(
            studies,
            "prepare",
            lambda s, spacing: made.get(spacing) or made.setdefault(spacing, prepare(s, spacing)),
        )
        yield


def optimise(study, folder, stop, iterations=4, wall_time_h=None, **settings):
    """Best parameters, and how the search ended."""
    made, config = study
    folder.mkdir(exist_ok=True)
    settings = config.optimizer.model_copy(
        update={"iterations": iterations, "multiplier_every": 2, "rebuild_every": 2, **settings}
    )
    budget = BudgetConfig(wall_time_h=wall_time_h)
    run = config.model_copy(
        update={"optimizer": settings, "keep": KeepConfig(states=10), "budget": budget}
    )
    with Progress(disable=True) as bar:
        return design.optimise(made, run, studies.default_pose(made), folder, _Quiet(bar), stop)


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
    best, end = optimise(study, whole, StopAfter(None))
    assert (end["code"], end["iterations"]) == ("iterations", 4)
    with pytest.raises(design.Stopped, match="resume=true"):
        optimise(study, parts, StopAfter(3))
    assert (parts / "state_00003.npz").exists() and not (parts / "state_00004.npz").exists()
    # the newest checkpoint damaged: the one before it is taken, and its iteration done again
    artifacts.write_bytes(
        parts / "state_00003.npz", (parts / "state_00003.npz").read_bytes()[:5000]
    )
    again, _ = optimise(study, parts, StopAfter(None))
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


def test_out_of_time_it_ends_with_the_best_so_far_and_goes_on_with_more(study, tmp_path):
    best, end = optimise(study, tmp_path / "a", StopAfter(None), iterations=3, wall_time_h=1e-6)
    assert (end["code"], end["iterations"], end["best_iteration"]) == ("wall_time", 1, 0)
    assert not designed(tmp_path / "a", BudgetConfig()), "no designs yet"
    artifacts.write_json(tmp_path / "a" / "optimisation.json", end)
    assert designed(tmp_path / "a", BudgetConfig(wall_time_h=1e-6))
    assert not designed(tmp_path / "a", BudgetConfig(wall_time_h=1.0))
    best, end = optimise(study, tmp_path / "a", StopAfter(None), iterations=3, wall_time_h=1.0)
    whole, other = optimise(study, tmp_path / "b", StopAfter(None), iterations=3)
    assert end["code"] == other["code"] == "iterations"
    assert all(np.array_equal(best[k], whole[k]) for k in whole)


@pytest.mark.parametrize(
    ("iteration", "best", "patience", "over"),
    [
        (3, 2, 2, False),
        (4, 2, 2, False),
        (5, 2, 2, True),
        (5, 2, None, False),
        (9, 8, 2, True),
        (0, -1, 1, False),
    ],
)
def test_the_search_ends_when_its_patience_or_its_iterations_are_spent(
    iteration, best, patience, over
):
    """Of iterations 3 and 4 none was better than 2: with a patience of two that is enough. Nine
    is all."""
    settings = optimize.OptimizerSettings(iterations=9, patience=patience)
    warm = Warm(jnp.zeros(1), jnp.zeros(1), jnp.zeros(3))
    state = optimize.start({"x": np.zeros(1)}, 0, warm, settings)
    assert (
        optimize.exhausted(
            state._replace(iteration=jnp.asarray(iteration), best_iteration=jnp.asarray(best)),
            settings,
        )
        is over
    )


def test_a_gradient_that_is_not_finite_ends_the_search_and_keeps_the_best(
    study, tmp_path, monkeypatch
):
    from objectives.problem import Problem

    true, at = Problem.gradient, {"iteration": 2, "history": tmp_path / "history.jsonl"}

    def poisoned(self, *arguments):
        evaluation, value, gradient, warm = true(self, *arguments)
        now = len(artifacts.read_jsonl(at["history"])) == at["iteration"]
        return (
            evaluation,
            value,
            {k: v * np.nan for k, v in gradient.items()} if now else gradient,
            warm,
        )

    monkeypatch.setattr(Problem, "gradient", poisoned)
    best, end = optimise(study, tmp_path, StopAfter(None))
    assert end["code"] == "failed" and "not finite" in end["text"] and end["iterations"] == 2
    assert all(np.isfinite(v).all() for v in best.values())
    at |= {"iteration": 0, "history": tmp_path / "at once" / "history.jsonl"}
    with pytest.raises(FloatingPointError):
        optimise(study, tmp_path / "at once", StopAfter(None))


def test_a_seed_scatters_the_start_within_the_bounds_and_none_is_the_rival(study):
    from dataclasses import replace

    made, _ = study
    pose = studies.default_pose(made)
    first = search.start(made, pose)
    seeded = [
        search.start(replace(made, config=made.config.model_copy(update={"seed": n})), pose)
        for n in (1, 1, 2)
    ]
    assert all(np.array_equal(seeded[0][k], seeded[1][k]) for k in first), (
        "the same seed, the same start"
    )
    assert any(not np.array_equal(seeded[0][k], seeded[2][k]) for k in first)
    for begin in seeded:
        assert all((v >= 0).all() and (v <= 1).all() for v in begin.values())
        assert any(np.abs(begin[k] - first[k]).max() > 0.05 for k in first)
