"""The cases of scripts/scan_study.py and how they are run: every number comes from
scripts/prepare_patient.py, as a user would start it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from scripts.console.overrides import quoted
from scripts.console.places import ROOT
from scripts.evidence.data import data_folder

#: HU → density where a set of cases asks for none: 0.8 mg/cm³ a HU.
LINE = (
    "calibration=linear",
    "calibration.slope_g_cm3_per_hu=0.0008",
    "calibration.intercept_g_cm3=0",
)
#: Turn of a patient in the scanner: 20° about an oblique axis.
TURN_DEG = (12.0, 11.0, 13.0)


class CaseSetConfig(BaseModel):
    """Settings of a set of cases; conf/scan_study.yaml says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str | None = None
    cases: tuple[str, ...] | None = None
    workers: int = Field(default=2, ge=1, le=64)
    draws: int = Field(default=0, ge=0, le=500)
    out: str = "runs/scan_study"

    def folder(self) -> Path:
        """The public test data. Raises ValueError where it is not."""
        return data_folder(self.data)


@dataclass(frozen=True)
class Case:
    """One patient to prepare.

    make    given a folder: writes the patient's input there, if it has to be made, and returns the
            overrides that read it
    facts   what the table needs of it
    """

    name: str
    make: Callable[[Path], list[str]]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseResult:
    """What came of a case: its folder, exit code, wall time, largest resident memory, and its
    errors or its last line."""

    case: Case
    out: Path
    code: int
    seconds: float
    peak_mb: float
    message: str

    def json(self, name: str) -> Any:
        """A table that the run wrote."""
        return json.loads((self.out / name).read_text())

    def measures(self, unit: Sequence[str] = ("deg", "mm")) -> dict[str, float]:
        """The alignment by "place.name": what could be measured, in these units."""
        rows = self.json("alignment.json")["measures"]
        return {
            f"{r['place']}.{r['name']}": r["value"]
            for r in rows
            if r["unit"] in unit and r["status"] == "measured"
        }


class CaseSet(NamedTuple):
    """Cases that answer one question, and the Markdown table and record of what came of them."""

    cases: Callable[[CaseSetConfig], list[Case]]
    tabulate: Callable[[Sequence[CaseResult]], tuple[str, Any]]


def run(what: str, case_set: CaseSet, config: CaseSetConfig) -> str:
    """The tables of a set of cases as Markdown, also written to <out>/<what>.md. Raises ValueError
    for a case that does not exist."""
    from engine import (
        artifacts,
    )  # slow, and this module also serves commands that have not yet said what they will do

    cases = case_set.cases(config)
    if config.cases is not None:
        if unknown := set(config.cases) - {case.name for case in cases}:
            raise ValueError(
                f"cases={sorted(unknown)}: unknown; there are"
                f" {', '.join(case.name for case in cases)}"
            )
        cases = [case for case in cases if case.name in config.cases]
    place = Path(config.out).resolve() / what
    with ThreadPoolExecutor(config.workers if what != "size" else 1) as pool:
        results = list(
            pool.map(lambda case: _run(case, place / slug(case.name), config.draws), cases)
        )
    text, record = case_set.tabulate(results)
    artifacts.write_json(place.with_suffix(".json"), record)
    artifacts.write_text(place.with_suffix(".md"), text)
    return text


def slug(name: str) -> str:
    """A folder's name that Hydra takes without quotes."""
    return "_".join("".join(c if c.isascii() and c.isalnum() else " " for c in name).split())


def _run(case: Case, place: Path, draws: int) -> CaseResult:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    words = [*case.make(place), quoted("alignment.draws", draws), quoted("out", place / "out")]
    started = time.perf_counter()
    with (place / "log.txt").open("w") as log:
        command = [sys.executable, str(ROOT / "scripts" / "prepare_patient.py"), *words]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=place)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    lines = [line for line in (place / "log.txt").read_text().splitlines() if line.strip()]
    print(f"{case.name}: exit {process.returncode}, {seconds:.0f} s", file=sys.stderr, flush=True)
    peak_mb = usage.ru_maxrss / 1024.0
    return CaseResult(case, place / "out", process.returncode, seconds, peak_mb, _message(lines))


def _message(lines: Sequence[str]) -> str:
    """The errors, or the last line."""
    error = [line for line in lines if line.startswith("error: ")]
    return "; ".join(error) if error else " ".join(lines[-1:])


def failures(results: Sequence[CaseResult]) -> str:
    """A paragraph on each case that did not end well; empty where all did."""
    lines = [
        f"{r.case.name} ended with exit code {r.code}: {r.message}\n" for r in results if r.code
    ]
    return "\n".join(["", *lines]) if lines else ""
