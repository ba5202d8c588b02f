"""Where jobs stand, by what is on disk: for scripts/status.py, the sweep, and a job that is
started again."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from engine import artifacts
from scripts.run.stored import JOB_LOG, OUTCOME, busy

MANIFEST = "sweep.json"
#: Stages in their order, with the share of a job's time that they take where no finished job has
#: shown it.
STAGES = {
    "position search of the rivals": 0.2,
    "optimisation": 0.4,
    "engine, all arms": 0.05,
    "export": 0.05,
    "lattice": 0.01,
    "SfePy, all arms": 0.27,
    "report": 0.02,
}
_COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "killed": "yellow",
    "stopped": "yellow",
    "waiting": "dim",
}


@dataclass(frozen=True)
class JobState:
    """Where one job stands.

    status   done, failed, stopped (by a signal, saved), running, killed (begun, nobody at work, no
             last word), waiting
    text     what is on disk, or why it failed
    stages   seconds by stage that has ended; now: the stage that runs and when it began (s since
             1970); progress: of it, 0 to 1
    """

    status: str
    text: str
    stages: Mapping[str, float]
    now: tuple[str, float] | None = None
    progress: float = 0.0

    @property
    def seconds(self) -> float:
        """Spent, as far as it was kept (what a kill cut off was not)."""
        return sum(self.stages.values()) + (
            time.time() - self.now[1] if self.now and self.status == "running" else 0.0
        )


def read(folder: Path) -> JobState:
    """Where the job of a run folder stands."""
    times, outcome, at_work = (
        read_json(folder / "timings.json"),
        read_json(folder / OUTCOME),
        busy(folder),
    )
    now = times.get("now")
    asked, rows = _iterations(folder), _lines(folder / "history.jsonl")
    arms = sorted(p.parent.name for p in (folder / "fem").glob("*/arm.json"))
    positions = _lines(folder / "search.jsonl")
    parts = [
        f"{positions} positions of the rivals" if positions else "",
        f"{rows} of {asked} iterations" if rows else "",
        "all designs" if (folder / "optimisation.json").exists() else "",
        f"checked {', '.join(arms)}" if arms else "",
        "the report" if (folder / "report.html").exists() else "",
    ]
    text = ", ".join(p for p in parts if p) or "nothing computed yet"
    progress = min(rows / asked, 1.0) if now and now["stage"] == "optimisation" and asked else 0.0
    stages = times.get("seconds", {})
    running = (now["stage"], now["since"]) if now else None
    if at_work:
        return JobState(
            "running", f"{running[0]}: {text}" if running else text, stages, running, progress
        )
    if (
        not outcome
        and not (folder / "meta.json").exists()
        and (words := last_words(folder / JOB_LOG))
    ):
        return JobState(
            "failed", words, stages, running, progress
        )  # ended before it could write a word of its own
    if not outcome:
        return JobState(
            "killed" if (folder / "meta.json").exists() else "waiting",
            text,
            stages,
            running,
            progress,
        )
    words = {"done": outcome["reason"], "failed": outcome["reason"] or text}.get(
        outcome["status"], text
    )
    return JobState(outcome["status"], words, stages, running, progress)


def last_words(log: Path) -> str:
    """The last error in a job's output, or nothing."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(log.stat().st_size - 20_000, 0))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [
        line.removeprefix("error: ")
        for line in lines
        if re.match(r"error: |\w*(Error|Exception)\b.*: |spinefit cannot run", line)
    ]
    return " ".join(errors[-1].split()) if errors else ""


def commonest_failure(states: Mapping[str, JobState]) -> str | None:
    """Where no job is done and some have failed: how many, and the most frequent reason with one
    of its jobs; else None."""
    failed = {name: state.text for name, state in states.items() if state.status == "failed"}
    if not failed or any(s.status in ("done", "running") for s in states.values()):
        return None
    reasons = list(failed.values())
    most = max(dict.fromkeys(reasons), key=reasons.count)
    example = next(name for name, text in failed.items() if text == most)
    whole = (
        f"all {len(states)} jobs failed"
        if len(failed) == len(states)
        else f"no job is done, {len(failed)} of {len(states)} failed"
    )
    return f"{whole}; {reasons.count(most)} of them with: {most}   (see {example}/{JOB_LOG})"


def remaining_s(state: JobState, others: Sequence[JobState]) -> float | None:
    """Seconds that a job still takes: of each stage the median of the jobs that are done, less
    what it did; None while none is done."""
    known = [o.stages for o in others if o.status == "done"]
    if not known or state.status == "done":
        return None if state.status != "done" else 0.0
    usual = {
        s: statistics.median(k[s] for k in known if s in k)
        for s in STAGES
        if any(s in k for k in known)
    }
    left = 0.0
    for stage, seconds in usual.items():
        if state.now and stage == state.now[0]:
            spent = time.time() - state.now[1] if state.status == "running" else 0.0
            left += (
                seconds * (1.0 - state.progress)
                if state.progress
                else max(seconds - spent, 0.1 * seconds)
            )
        elif stage not in state.stages:
            left += seconds
    return left


def look(folder: Path) -> dict[str, JobState]:
    """Every job of a sweep by name; of another folder, the run folder that it is or those below.
    Raises ValueError when there is none."""
    if (folder / MANIFEST).exists():
        return {
            row["name"]: read(folder / row["name"])
            for row in artifacts.read_json(folder / MANIFEST)
        }
    found = (
        [folder]
        if (folder / "meta.json").exists()
        else sorted(p.parent for p in folder.glob("*/meta.json"))
    )
    if not found:
        raise ValueError(
            f"sweep={folder} holds no {MANIFEST} and no run folder; give the out= of"
            " scripts/optimize.py"
        )
    return {p.name: read(p) for p in found}


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = seconds / 60.0
    return f"{minutes:.1f} min" if minutes < 90.0 else f"{minutes / 60.0:.1f} h"


def table(folder: Path, states: Mapping[str, JobState]) -> Group:
    """One line a job, then the sum: how many of each kind, and when it will all be done at the
    present pace."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in (
        ("job", "left"),
        ("status", "left"),
        ("spent", "right"),
        ("left", "right"),
        ("", "left"),
    ):
        rows.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    every = list(states.values())
    total, known = 0.0, True
    for name, state in states.items():
        left = remaining_s(state, every)
        known &= left is not None or state.status in ("done", "failed")
        total += left or 0.0 if state.status != "failed" else 0.0
        shown = duration(left) if state.status not in ("done", "failed") else ""
        spent = duration(state.seconds) if state.seconds else ""
        rows.add_row(
            Text(name),
            Text(state.status, _COLOURS.get(state.status, "")),
            spent,
            shown,
            Text(state.text),
        )
    counts = {s: sum(e.status == s for e in every) for s in _COLOURS}
    line = f"{folder}: {len(every)} jobs: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    if counts["running"] and known and total:
        line += (
            f"; all in about {duration(total / counts['running'])} at {counts['running']} at a time"
        )
    return Group(rows, Text(line))


def read_json(path: Path) -> dict[str, Any]:
    try:
        return artifacts.read_json(path) if path.exists() else {}
    except (
        ValueError,
        OSError,
    ):  # being replaced, or damaged: whoever works on the folder will say so
        return {}


def _iterations(folder: Path) -> int | None:
    """That the configuration asks for."""
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text())["optimizer"]["iterations"] if path.exists() else None


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
