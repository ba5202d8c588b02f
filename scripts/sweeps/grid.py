"""A sweep: every combination of some overrides, each a job in a folder of its own below one sweep
folder.

    sweep.json             the jobs of the last command: name (its folder), overrides, hash of the
                           configuration
    <job>/                 a run folder (scripts/run/design.py); its name says what was swept and
                           ends with the configuration's hash

So a changed configuration, or a patient prepared anew, is another folder, the same command finds
its jobs again, and what is there decides what is left to do: done jobs are skipped, interrupted and
killed ones go on from their checkpoint, what failed for a passing reason is tried again, what
failed for good is named (launcher.retry_failed=true tries that too).
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from engine import artifacts
from scripts.console import composing, machine
from scripts.console.overrides import key_of, quoted, shell_line, understood
from scripts.console.wrong import Wrong, lines_of
from scripts.run import arms as studies
from scripts.run import configure, job, standing
from scripts.run.config import LauncherConfig, RunConfig
from scripts.run.folder import digest
from scripts.run.opened import open_segment, set_up_jax
from scripts.run.stored import JOB_LOG, OUTCOME, busy
from scripts.sweeps import launchers
from scripts.sweeps.launchers import Command

log = logging.getLogger("spinefit")


@dataclass(frozen=True)
class Planned:
    """One job of a sweep. key: hash of its configuration and of its patient's planned segment."""

    command: Command
    config: RunConfig
    key: str


@dataclass(frozen=True)
class Sweep:
    """All jobs, checked; nothing started yet."""

    folder: Path
    jobs: tuple[Planned, ...]
    launcher: LauncherConfig


def plan(arguments: Sequence[str]) -> Sweep:
    """The jobs of `optimize.py -m <arguments>`: all composed and checked before any starts; they
    check and report where not told otherwise.

    Raises Wrong naming all that is wrong in any of them.
    """
    combinations, swept = _combinations(understood(arguments, sweep=True))
    problems = _Problems(len(combinations))
    composed, launcher = _composed(combinations, swept, problems)
    segments = _segments(composed, problems)
    problems.raise_all()
    jobs: dict[str, Planned] = {}  # the same configuration twice is one job
    for one in composed:
        segment = segments[one.config.patient.model_dump_json()]
        planned = _planned(one, artifacts.digest((job.key(one.config), segment)))
        jobs[planned.key] = planned
    return Sweep(Path(composed[0].config.out), tuple(jobs.values()), launcher)


class _Problems:
    """What is wrong in a sweep's jobs: each problem with those that have it."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.who = jobs, dict[str, list[str]]()

    def add(self, problem: str, who: str) -> None:
        self.who.setdefault(problem, []).append(who)

    def raise_all(self) -> None:
        """Raises Wrong with a line on each problem, where there is one."""
        if self.who:
            raise Wrong(f"{_some(who, self.jobs)}: {what}" for what, who in self.who.items())


@dataclass(frozen=True)
class _Composed:
    """A combination of overrides, those of them that are swept, and its configuration."""

    overrides: list[str]
    swept: list[str]
    config: RunConfig


def _combinations(arguments: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Every combination, and the keys that are swept. Raises ValueError for keys that a sweep gives
    its jobs itself."""
    given = {key_of(a) for a in arguments}
    if "out" not in given:
        raise ValueError(
            "out=<folder of the whole sweep> is missing; the same command with the same folder goes"
            " on where it was"
        )
    if "resume" in given:
        raise ValueError(
            "resume=… is not for sweeps: they always go on with what is in their folder"
        )
    combinations, swept = composing.expand(
        [*arguments, *([] if "check" in given else ["check=true"])]
    )
    if "out" in swept:
        quotes = shell_line("optimize.py", ["-m", quoted("out", "a,b")])
        raise ValueError(
            "out=… is one folder for the whole sweep, its jobs get folders of their own in it; "
            f"a name with a comma is given in quotes: {quotes}"
        )
    return combinations, swept


def _composed(
    combinations: Sequence[list[str]], swept: Sequence[str], problems: _Problems
) -> tuple[list[_Composed], LauncherConfig]:
    """The configurations of those that are right, and the launcher."""
    launcher, composed = LauncherConfig(), list[_Composed]()
    for overrides in combinations:
        mine = [o for o in overrides if key_of(o) in swept]
        try:
            config, launcher, _ = configure.composed(overrides)
            composed.append(_Composed(overrides, mine, config))
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            for problem in lines_of(error):
                problems.add(problem, " ".join(mine) or "the job")
    return composed, launcher


def _segments(composed: Sequence[_Composed], problems: _Problems) -> dict[str, str]:
    """Hash of each patient's planned segment, by its configuration."""
    patients = {c.config.patient.model_dump_json(): c.config.patient for c in composed}
    segments: dict[str, str] = {}
    for name, patient in patients.items():
        try:
            segment = open_segment(patient)
            segments[name] = digest(segment)
            theirs = {
                c.config.study.model_dump_json(): c.config.study
                for c in composed
                if c.config.patient == patient
            }
            for study in theirs.values():  # every device must find a place in every patient
                studies.make(segment, study)
        except (ValueError, OSError) as error:
            who = patient.bundle or f"phantom {patient.phantom}"
            problems.add("; ".join(lines_of(error)), who)
    return segments


def _planned(one: _Composed, key: str) -> Planned:
    """The job of a configuration, in a folder of its own."""
    folder = Path(one.config.out) / _name(one.swept, key)
    own = [o for o in one.overrides if key_of(o) != "out" and not o.startswith("launcher")]
    if "budget.wall_time_h" not in map(key_of, own):
        # the folder may hold an earlier job with a budget that this line does not ask for
        own.append(quoted("budget.wall_time_h", one.config.budget.wall_time_h))
    command = Command(folder.name, folder, (*own, quoted("out", folder), "resume=true"))
    config = one.config.model_copy(update={"out": str(folder), "resume": True})
    return Planned(command, config, key)


def _some(names: Sequence[str], of: int) -> str:
    if len(names) == of > 1:
        return f"all {of} jobs"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _name(swept: Sequence[str], key: str) -> str:
    """objectives-balanced_seed-1_1a2b3c4d: the last part of each key, the last part of a path,
    and the hash of the whole configuration; no character that a command line or Hydra would take
    for its own."""
    parts = []
    for override in swept:
        name, value = override.lstrip("+").split("=", 1)
        short = Path(value).name if "/" in value else value
        parts.append(f"{name.rsplit('.', 1)[-1]}-{short}")
    text = re.sub(r"[^\w.-]+", "-", "_".join(parts)).strip("-_.") or "run"
    return f"{text[:100]}_{key[:8]}"


def remaining(sweep: Sweep) -> tuple[list[Planned], dict[str, str]]:
    """The jobs that are still to do, and why each of the others is not."""
    todo, skipped = [], {}
    for planned in sweep.jobs:
        folder = planned.command.folder
        before = artifacts.read_json(folder / OUTCOME) if (folder / OUTCOME).exists() else {}
        if job.finished(planned.config):
            skipped[planned.command.name] = "done"
        elif busy(folder):
            skipped[planned.command.name] = "another process works on it"
        elif (
            before.get("status") == "failed"
            and not launchers.is_transient(before["exit"])
            and not sweep.launcher.retry_failed
        ):
            skipped[planned.command.name] = f"failed for good: {before['reason']}"
        else:
            todo.append(planned)
    return todo, skipped


def run(sweep: Sweep) -> int:
    """Run what is left. SIGINT or SIGTERM: running jobs save and end. Returns the exit code: 0
    all done, 1 not all, 130 interrupted."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(sweep.folder / standing.MANIFEST, [row_of(p) for p in sweep.jobs])
    todo, skipped = remaining(sweep)
    for name, why in skipped.items():
        log.info("%s: %s", name, why)
    for planned in todo:
        if (state := standing.read(planned.command.folder)).status != "waiting":
            log.info("%s: %s, found %s", planned.command.name, state.status, state.text)
    stop, codes = threading.Event(), dict[str, int]()
    before = {
        number: signal.signal(number, lambda *_: _stop(stop))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        for command, code in (
            launchers.launch(sweep.launcher, [p.command for p in todo], stop) if todo else ()
        ):
            codes[command.name] = code
            _keep_outcome(command, code)
            state = standing.read(command.folder)
            if code == job.STOPPED and state.status == "waiting":  # it never began
                continue
            what = (
                f", exit code {code}, {state.text} (see {command.folder}/job.log)"
                if code
                else f" in {state.seconds / 60:.1f} min"
            )
            log.info(
                "[%d of %d] %s: %s%s",
                len(skipped) + len(codes),
                len(sweep.jobs),
                command.name,
                state.status,
                what,
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    states = {p.command.name: standing.read(p.command.folder).status for p in sweep.jobs}
    counts = {s: list(states.values()).count(s) for s in dict.fromkeys(states.values())}
    log.info("%s: %s", sweep.folder, ", ".join(f"{n} {s}" for s, n in counts.items()))
    if stop.is_set():
        return job.STOPPED
    failure = standing.commonest_failure(
        {p.command.name: standing.read(p.command.folder) for p in sweep.jobs}
    )
    if failure is not None:
        log.error("error: %s", failure)
    return 0 if set(states.values()) == {"done"} else 1


def _keep_outcome(command: Command, code: int) -> None:
    """The outcome of a job that ended before it could write one itself: with what it said last."""
    if (
        code in (job.DONE, job.STOPPED)
        or launchers.is_transient(code)
        or (command.folder / OUTCOME).exists()
    ):
        return
    reason = (
        standing.last_words(command.folder / JOB_LOG)
        or f"ended with code {code}; its last words are in {JOB_LOG}"
    )
    artifacts.write_json(
        command.folder / OUTCOME, {"status": "failed", "reason": reason, "exit": code}
    )


def _stop(stop: threading.Event) -> None:
    if not stop.is_set():
        log.info("\nstopping: the running jobs save and end")
    stop.set()


def row_of(planned: Planned) -> dict[str, Any]:
    return {
        "name": planned.command.name,
        "key": planned.key,
        "overrides": list(planned.command.overrides),
    }


def main(arguments: Sequence[str]) -> int:
    """`optimize.py -m`: check everything, then run what is left. Raises as `plan` does."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    machine.require()
    set_up_jax()
    return run(plan(arguments))
