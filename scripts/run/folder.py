"""The folder of a run: opened, resumed, tidied."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from engine import artifacts
from engine.patient import save_segment
from engine.types import Segment
from scripts.run import stored
from scripts.run.config import BudgetConfig, RunConfig

log = logging.getLogger("spinefit")


def digest(value: Any) -> str:
    """SHA-256 of a dataclass with everything in it."""
    total = hashlib.sha256()

    def add(part: Any) -> None:
        if is_dataclass(part) and not isinstance(part, type):
            for f in fields(part):
                total.update(f.name.encode())
                add(getattr(part, f.name))
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        elif isinstance(part, np.ndarray):
            total.update(
                f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes()
            )
        else:
            total.update(repr(part).encode())

    add(value)
    return total.hexdigest()


class OtherRun(ValueError):
    """The folder is not this run's: nothing may be written into it."""


def open_run(config: RunConfig, segment: Segment, made: dict[str, Any] | None = None) -> Path:
    """Create the run folder, or open it again with resume=true, the same configuration and the same
    patient.

    A folder in which nothing has been computed yet is begun anew. Raises OtherRun when the folder
    holds another run, the same one without resume=true, or something else.
    """
    folder = Path(config.out)
    meta = folder / "meta.json"
    patient = digest(segment)
    state = stored.kind(folder)
    if state == "run":
        before = artifacts.read_json(meta)
        if before.get("segment", patient) != patient:
            raise OtherRun(
                f"the patient has changed since {folder} was begun (prepared again?); choose"
                " another out="
            )
        if before["identity"] != config.identity():
            raise OtherRun(
                f"{folder} holds a run of another configuration; choose another out=, or restore"
                f" {folder}/config.yaml"
            )
    if refused := stored.refusal(folder, config.resume):
        raise OtherRun(refused)
    if state == "run":
        log.info("resuming %s", folder)
        if (folder / "config.yaml").exists() and _written(folder) != config:
            write_config(config, folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # meta.json first: with it, a folder that was cut off here counts as a run in which nothing is
    # computed yet
    head = {
        "identity": config.identity(),
        "segment": patient,
        "versions": artifacts.versions(),
        "created": _now(),
        **(made or {}),
    }
    artifacts.write_json(meta, head)
    write_config(config, folder)
    save_segment(segment, folder / "segment")
    return folder


def write_config(config: RunConfig, folder: Path) -> None:
    """config.yaml: what a start with resume=true goes on with."""
    artifacts.write_text(
        folder / "config.yaml",
        yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True),
    )


def _written(folder: Path) -> RunConfig | None:
    """config.yaml, or None where it no longer is one (edited by hand)."""
    try:
        return read_config(folder)
    except ValueError:
        return None


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder. Raises ValueError when it is none."""
    settings = stored.configuration(folder)
    if settings is None:
        raise ValueError(
            f"{folder} is not a run folder (no config.yaml); give the `out` of scripts/optimize.py"
        )
    return RunConfig(**settings)


# -- design stage ----------------------------------------------------------------------------------
def designed(folder: Path, budget: BudgetConfig) -> bool:
    """The designs are there, and this budget would not carry the search any further."""
    if not (folder / "optimisation.json").exists():
        return False
    end = artifacts.read_json(folder / "optimisation.json")
    return end["code"] != "wall_time" or end["seconds"] >= budget.seconds


def tidy(folder: Path, config: RunConfig) -> None:
    """Of a finished run, delete what only its making needed: checkpoints (unless a larger budget
    can go on from them), and the solutions and meshes of the arms that `keep.solutions` does not
    name."""
    if designed(folder, BudgetConfig()):
        for path in folder.glob("state_*.npz"):
            path.unlink(missing_ok=True)
    if (folder / "report.html").exists():
        for path in folder.glob("fem/*/"):
            if path.name not in config.keep.solutions:
                for file in (*path.glob("**/solution.vtu"), *path.glob("mesh.npz")):
                    file.unlink(missing_ok=True)


# -- bookkeeping -----------------------------------------------------------------------------------
class Clock:
    """Wall times and peak memory (of the largest process) of the stages, kept in timings.json
    (times add up over resumes), with the stage that runs now and when it began."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "timings.json"
        self.stage = ""

    def forget(self, *stages: str) -> None:
        """Begin these stages from zero: they are done anew, not gone on with."""
        if self.path.exists():
            table = artifacts.read_json(self.path)
            kept = {
                kind: {k: v for k, v in values.items() if k not in stages}
                for kind, values in table.items()
                if kind != "now"
            }
            artifacts.write_json(self.path, kept)

    def __call__(self, stage: str) -> Clock:
        self.stage = stage
        return self

    def __enter__(self) -> None:
        log.info("%s …", self.stage)
        self.begun = time.perf_counter()
        artifacts.write_json(
            self.path, self._table() | {"now": {"stage": self.stage, "since": time.time()}}
        )

    def _table(self) -> dict[str, Any]:
        return (
            artifacts.read_json(self.path) if self.path.exists() else {"seconds": {}, "peak_mb": {}}
        )

    def __exit__(self, *_: object) -> None:
        table = self._table()
        table.pop("now", None)
        spent = time.perf_counter() - self.begun
        table["seconds"][self.stage] = table["seconds"].get(self.stage, 0.0) + spent
        peak = max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        table["peak_mb"][self.stage] = peak / 1024  # of the largest single process
        artifacts.write_json(self.path, table)
        log.info("%s: %.0f s", self.stage, spent)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
