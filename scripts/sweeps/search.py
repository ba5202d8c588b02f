"""The search of scripts/tune.py: ask Optuna, run a job, tell; all state is in search.db and the run
folders.

A trial's folder is named by the hash of its configuration, so a proposal that was tried before
costs nothing, and a trial that a killed search has left running is taken up from its checkpoint
before anything new is asked for. A trial is ended early when, after prune.after iterations, each
target that history.jsonl holds stands worse than the given percentile of the finished trials stood
at that iteration. (Optuna's own pruners know one target only.)
"""

from __future__ import annotations

import csv
import io
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import optuna
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine import artifacts
from scripts.console.overrides import quoted, understood
from scripts.console.wrong import Wrong, lines_of
from scripts.run import configure, job
from scripts.run.config import ARMS, FLOORS, LauncherConfig
from scripts.run.stored import OUTCOME
from scripts.sweeps import grid, launchers
from scripts.sweeps.launchers import Command, Job

log = logging.getLogger("spinefit")


class Range(BaseModel):
    """A parameter between two numbers; whole ones where both are whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _check(self) -> Range:
        self.distribution()
        return self

    def distribution(self) -> BaseDistribution:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, self.log, int(self.step or 1))
        return FloatDistribution(
            float(self.low),
            float(self.high),
            self.log,
            None if self.step is None else float(self.step),
        )


class Target(BaseModel):
    """One measure of one arm in result.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    measure: str
    arm: str = "optimised"
    direction: Literal["minimise", "maximise"] = "minimise"

    @field_validator("arm")
    @classmethod
    def _known(cls, arm: str) -> str:
        if arm not in (*ARMS, *FLOORS):
            raise ValueError(f"{arm!r} is unknown; choose among {', '.join((*ARMS, *FLOORS))}")
        return arm


class Prune(BaseModel):
    """See the module's docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    after: int = Field(5, ge=1)
    least: int = Field(4, ge=1)
    percentile: float = Field(50.0, gt=0, lt=100)


class TuneConfig(BaseModel):
    """See conf/tune.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    out: str
    base: tuple[str, ...] = ()
    space: dict[str, Range | tuple[bool | int | float | str, ...]] = Field(min_length=1)
    targets: tuple[Target, ...] = Field(min_length=1)
    trials: int = Field(20, ge=1)
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    seed: int = Field(0, ge=0)
    prune: Prune | None = Prune()
    launcher: LauncherConfig = LauncherConfig()

    def distributions(self) -> dict[str, BaseDistribution]:
        return {
            k: v.distribution() if isinstance(v, Range) else CategoricalDistribution(v)
            for k, v in self.space.items()
        }

    def identity(self) -> str:
        """Of the question that is asked; how many trials, and where they run, may change."""
        return artifacts.digest(self.model_dump(mode="json", include={"base", "space", "targets"}))


def open_study(config: TuneConfig) -> optuna.Study:
    """The search of <out>/search.db, new or gone on with. Raises ValueError when it asks another
    question."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    tried = _asked(_database(config)) if (Path(config.out) / "search.db").exists() else 0
    seed = config.seed + tried  # a search that goes on must not propose what it began with
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    study = _database(config, samplers[config.sampler]())
    before = study.user_attrs.get("identity")
    if before is not None and before != config.identity():
        raise ValueError(
            f"{config.out} holds a search with another base, space or targets; choose another out="
        )
    study.set_user_attr("identity", config.identity())
    return study


def _database(
    config: TuneConfig, sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    # escaped, as in any URL: SQLAlchemy would read the ? of a folder's name, Optuna its {…}
    url = f"sqlite:///{quote(str((Path(config.out) / 'search.db').resolve()))}"
    return optuna.create_study(
        storage=url,
        study_name="spinefit",
        load_if_exists=True,
        sampler=sampler,
        directions=[
            "minimize" if t.direction == "minimise" else "maximize" for t in config.targets
        ],
    )


def overrides(config: TuneConfig, params: dict[str, Any]) -> list[str]:
    """Of one proposal, for scripts/optimize.py."""
    return [*understood(config.base), *(quoted(k, v) for k, v in params.items()), "check=true"]


def planned(config: TuneConfig, params: dict[str, Any]) -> grid.Planned:
    """The job of one proposal. Raises ValueError when it cannot be one."""
    return grid.plan([*overrides(config, params), quoted("out", Path(config.out) / "trials")]).jobs[
        0
    ]


def corners_of(config: TuneConfig) -> None:
    """Both ends of every range and each choice must be a valid run. Raises ValueError with all
    that is wrong."""
    problems = {}
    ends = {k: (v.low, v.high) if isinstance(v, Range) else v for k, v in config.space.items()}
    first = {k: v[0] for k, v in ends.items()}
    for key, values in ends.items():
        for value in values:
            try:
                configure.composed([*overrides(config, first | {key: value}), "out=x"])
            except Exception as error:  # Hydra's and ours
                for problem in lines_of(error):
                    problems[problem] = f"space: {key}={value}: {problem}"
    if problems:
        raise Wrong(problems.values())


# -- the search ------------------------------------------------------------------------------------
def run(config: TuneConfig) -> int:
    """Search until there are config.trials trials; returns the exit code (0 done, 1 no trial has a
    result, 130 interrupted). Raises ValueError for a wrong space."""
    corners_of(config)
    study, stop = open_study(config), threading.Event()
    artifacts.write_text(
        Path(config.out) / "tune.yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
    )
    jobs, threads = launchers.share(config.launcher, config.trials)
    taken_up = [t for t in study.trials if t.state == TrialState.RUNNING]
    if study.trials:
        log.info(
            "%s: %d trials there, %d of them cut off and taken up",
            config.out,
            len(study.trials),
            len(taken_up),
        )
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        _search(config, study, taken_up, (jobs, threads), stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    summary(config, study)
    if stop.is_set():
        return job.STOPPED
    if any(t.state == TrialState.COMPLETE for t in study.trials):
        return job.DONE
    _say_commonest_failure(study)
    return 1


#: What came of a trial: its state (RUNNING: cut off), its values, and what there is to say.
_Answer = tuple[TrialState, list[float] | None, str]


def _search(
    config: TuneConfig,
    study: optuna.Study,
    taken_up: list[FrozenTrial],
    share: tuple[int, int],
    stop: threading.Event,
) -> None:
    """Trials that were cut off, then new ones, until there are enough or `stop` is set. share: jobs
    at a time, and threads of each."""
    jobs, threads = share
    with ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future[_Answer], FrozenTrial | optuna.Trial] = {}
        while not stop.is_set():
            while len(waiting) < jobs and (taken_up or _asked(study) < config.trials):
                trial = taken_up.pop(0) if taken_up else study.ask(config.distributions())
                params = dict(trial.params)
                waiting[pool.submit(_attempt, config, study, params, threads, stop)] = trial
            if not waiting:
                break
            for future in wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).done:
                _tell(config, study, waiting.pop(future), future)
        # those still at work are told to save; what is not finished stays RUNNING in the database,
        # and is taken up next time
        for future in list(waiting):
            _tell(config, study, waiting.pop(future), future)


def _say_commonest_failure(study: optuna.Study) -> None:
    reasons = [
        str(t.user_attrs.get("text", "")) for t in study.trials if t.state == TrialState.FAIL
    ]
    if reasons:
        most = max(dict.fromkeys(reasons), key=reasons.count)
        log.error(
            "error: no trial has a result, %d failed; %d of them with: %s",
            len(reasons),
            reasons.count(most),
            most,
        )


def _asked(study: optuna.Study) -> int:
    return sum(t.state != TrialState.WAITING for t in study.get_trials(deepcopy=False))


def _tell(
    config: TuneConfig,
    study: optuna.Study,
    trial: Any,
    future: Future[_Answer],
) -> None:
    state, values, text = future.result()
    if state == TrialState.RUNNING:
        return
    optuna.Trial(study, trial._trial_id).set_user_attr(
        "text", text
    )  # also of one that another process had asked for
    study.tell(trial.number, values, state)
    shown = (
        f"{dict(zip([t.measure for t in config.targets], values, strict=True))}" if values else text
    )
    log.info(
        "trial %d (%s): %s %s",
        trial.number,
        ", ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items()
        ),
        state.name.lower(),
        shown,
    )


def _attempt(
    config: TuneConfig,
    study: optuna.Study,
    params: dict[str, Any],
    threads: int,
    stop: threading.Event,
) -> _Answer:
    """Run one trial's job."""
    try:
        this = planned(config, params)
    except ValueError as error:
        return TrialState.FAIL, None, "; ".join(lines_of(error))
    folder = this.command.folder
    for _ in range(config.launcher.retries + 1):
        if job.finished(this.config):
            break
        code, pruned = _watched(config, study, this.command, threads, stop)
        if pruned:
            return TrialState.PRUNED, None, f"{pruned} ({folder.name})"
        if stop.is_set():
            return TrialState.RUNNING, None, ""
        if not launchers.is_transient(code):
            break
    if not job.finished(this.config):
        outcome = (
            artifacts.read_json(folder / OUTCOME)
            if (folder / OUTCOME).exists()
            else {"reason": f"see {folder}/job.log"}
        )
        return TrialState.FAIL, None, outcome["reason"]
    arms = artifacts.read_json(folder / "result.json")["arms"]
    values = [_value(arms, t) for t in config.targets]
    missing = [
        f"{t.arm}.{t.measure}" for t, v in zip(config.targets, values, strict=True) if v is None
    ]
    if missing:
        return TrialState.FAIL, None, f"no {', '.join(missing)} in {folder}/result.json"
    return TrialState.COMPLETE, [float(v) for v in values if v is not None], folder.name


def _value(arms: dict[str, Any], target: Target) -> float | None:
    measure = (arms.get(target.arm) or {}).get("measures", {}).get(target.measure)
    return None if measure is None else measure["value"]


def _watched(
    config: TuneConfig, study: optuna.Study, command: Command, threads: int, stop: threading.Event
) -> tuple[int, str]:
    """The job's exit code, and why it was ended early (or nothing)."""
    task, code = Job(command, threads, config.launcher.grace_s), list[int]()
    thread = threading.Thread(target=lambda: code.append(task()))
    thread.start()
    why, seen = "", 0
    while thread.is_alive():
        thread.join(0.5)
        if stop.is_set():
            task.stop()
        elif config.prune is not None and not (command.folder / "optimisation.json").exists():
            rows = artifacts.read_jsonl(command.folder / "history.jsonl")
            if len(rows) > seen:
                seen = len(rows)
                others = [
                    artifacts.read_jsonl(
                        Path(config.out) / "trials" / t.user_attrs["text"] / "history.jsonl"
                    )
                    for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                ]
                why = hopeless(rows, others, config.targets, config.prune)
                if why:
                    task.stop()
    return (code[0] if code else 1), why


def hopeless(
    rows: Sequence[dict[str, Any]],
    others: Sequence[Sequence[dict[str, Any]]],
    targets: Sequence[Target],
    prune: Prune,
) -> str:
    """Why a trial with this history may end early, or nothing. Compares the best value so far of
    each target of the optimised arm that every history holds with those of the others at the
    same iteration."""
    n = len(rows)
    if n < prune.after:
        return ""
    peers = [o[:n] for o in others if len(o) >= n]
    if len(peers) < prune.least:
        return ""
    said = []
    for target in targets:
        if target.arm != "optimised" or any(
            target.measure not in r["terms"] for r in (rows[0], *(p[0] for p in peers))
        ):
            continue
        sign = 1.0 if target.direction == "minimise" else -1.0
        mine, theirs = (
            sign * np.array([min(sign * r["terms"][target.measure] for r in h) for h in group])
            for group in ([rows], peers)
        )
        limit = float(np.percentile(sign * theirs, prune.percentile))
        if sign * mine[0] <= limit:
            return ""
        said.append(f"{target.measure} {mine[0]:.4g}, others {sign * limit:.4g}")
    return f"after {n} iterations {'; '.join(said)}" if said else ""


def summary(config: TuneConfig, study: optuna.Study) -> None:
    """trials.csv (every trial), best.yaml (the best one, or the Pareto front, as overrides), and
    the same on the screen."""
    stream = io.StringIO()
    names = [f"{t.arm}.{t.measure}" for t in config.targets]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", *config.space, *names, "folder_or_reason"])
    for t in study.trials:
        values, params = t.values or [""] * len(names), [t.params.get(k, "") for k in config.space]
        writer.writerow(
            [t.number, t.state.name.lower(), *params, *values, t.user_attrs.get("text", "")]
        )
    artifacts.write_text(Path(config.out) / "trials.csv", stream.getvalue())
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    best = study.best_trials if complete else []
    front = [
        {
            "trial": t.number,
            "folder": t.user_attrs["text"],
            "values": dict(zip(names, t.values, strict=True)),
            "overrides": overrides(config, t.params),
        }
        for t in best
    ]
    artifacts.write_text(Path(config.out) / "best.yaml", yaml.safe_dump(front, sort_keys=False))
    counts = {s.name.lower(): sum(t.state == s for t in study.trials) for s in TrialState}
    log.info("%s: %s", config.out, ", ".join(f"{n} {s}" for s, n in counts.items() if n))
    for entry in front:
        values = ", ".join(f"{k} {v:.4g}" for k, v in entry["values"].items())
        log.info(
            "  %s: %s   %s", "best" if len(front) == 1 else "not dominated", values, entry["folder"]
        )
