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
from scripts.console import machine
from scripts.console.overrides import key_of, quoted, shell_line, understood
from scripts.console.wrong import lines_of
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
    arguments = understood(arguments, sweep=True)
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
    combinations, swept = configure.expand(
        [*arguments, *([] if "check" in given else ["check=true"])]
    )
    if "out" in swept:
        quotes = shell_line("optimize.py", ["-m", quoted("out", "a,b")])
        raise ValueError(
            "out=… is one folder for the whole sweep, its jobs get folders of their own in it; "
            f"a name with a comma is given in quotes: {quotes}"
        )
    launcher, composed = LauncherConfig(), list[tuple[list[str], list[str], RunConfig]]()
    problems: dict[str, list[str]] = {}
    for overrides in combinations:
        mine = [o for o in overrides if key_of(o) in swept]
        try:
            config, launcher, _ = configure.composed(overrides)
            composed.append((overrides, mine, config))
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            for problem in lines_of(error):
                problems.setdefault(problem, []).append(" ".join(mine) or "the job")
    patients: dict[str, str] = {}
    for patient, given_as in {
        c.patient.model_dump_json(): c.patient for _, _, c in composed
    }.items():
        try:
            segment = open_segment(given_as)
            patients[patient] = digest(segment)
            theirs = {
                c.study.model_dump_json(): c.study for _, _, c in composed if c.patient == given_as
            }
            for study in theirs.values():  # every device must find a place in every patient
                studies.make(segment, study)
        except (ValueError, OSError) as error:
            problems.setdefault("; ".join(lines_of(error)), []).append(
                given_as.bundle or f"phantom {given_as.phantom}"
            )
    if problems:
        raise configure.Wrong(
            f"{_some(who, len(combinations))}: {what}" for what, who in problems.items()
        )
    jobs: dict[str, Planned] = {}  # the same configuration twice is one job
    for overrides, mine, config in composed:
        key = artifacts.digest((job.key(config), patients[config.patient.model_dump_json()]))
        folder = Path(config.out) / _name(mine, key)
        own = [o for o in overrides if key_of(o) != "out" and not o.startswith("launcher")]
        if "budget.wall_time_h" not in map(
            key_of, own
        ):  # the job's folder may hold an earlier one, which this line no longer asks for
            own.append(quoted("budget.wall_time_h", config.budget.wall_time_h))
        command = Command(folder.name, folder, (*own, quoted("out", folder), "resume=true"))
        jobs[key] = Planned(
            command, config.model_copy(update={"out": str(folder), "resume": True}), key
        )
    return Sweep(Path(composed[0][2].out), tuple(jobs.values()), launcher)


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


def left(sweep: Sweep) -> tuple[list[Planned], dict[str, str]]:
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
            and not launchers.passing(before["exit"])
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
    todo, skipped = left(sweep)
    for name, why in skipped.items():
        log.info("%s: %s", name, why)
    for planned in todo:
        if (state := standing.read(planned.command.folder)).status not in ("waiting",):
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
            _kept(command, code)
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


def _kept(command: Command, code: int) -> None:
    """The outcome of a job that ended before it could write one itself: with what it said last."""
    if (
        code in (job.DONE, job.STOPPED)
        or launchers.passing(code)
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
