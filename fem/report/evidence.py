"""Evidence about a run's numbers, as scripts/validation.py leaves it in the run's folder:
sensitivity, mesh convergence, both solvers on random designs.

A record of another run (another configuration) or a damaged one is not used; what stands in its
place names the command that makes it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine import artifacts
from engine.page import Line, Marked
from fem.report.result import Evidence, Result, Status


class RunEvidence(BaseModel):
    """What every record says of itself. `run`: the run's configuration (SHA-256)."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    run: str
    command: str
    created: str
    version: str
    seconds: float


class SensitivityRow(BaseModel):
    """One arm under one variation: measure → value, and its change from the nominal in per cent."""

    variation: str
    arm: str
    status: Status
    value: dict[str, float | None]
    change_percent: dict[str, float | None]


class Ranking(BaseModel):
    """Whether the order of the arms in one measure holds under every variation.

    nominal        arms, best first; gap_percent: of each but the first, to the one before
    failed         variations with another order; first_failed: with another best arm;
                   alone_failed: variations of the best arm alone in which it loses
    mesh_percent   change by another mesh alone
    """

    measure: str
    nominal: list[str]
    gap_percent: list[float | None]
    rows: int
    failed: list[str]
    first_failed: list[str]
    alone_failed: list[str]
    incomplete: list[str]
    mesh_percent: float | None


class SensitivityEvidence(RunEvidence):
    """scripts/evidence/sensitivity.py."""

    arms: list[str]
    measures: dict[str, dict[str, str]]
    rows: list[SensitivityRow]
    ranking: list[Ranking]
    notes: list[str] = Field(default_factory=list)


class MeshError(BaseModel):
    """A quantity on three meshes, and its discretisation error as configured."""

    arm: str
    quantity: str
    values: list[float]
    order: float | None
    limit: float | None
    error_percent: float


class ConvergenceEvidence(RunEvidence):
    """scripts/evidence/convergence.py."""

    tetrahedra: dict[str, list[int]]
    estimates: list[MeshError]
    failed: list[str] = Field(default_factory=list)


class SolverAgreement(BaseModel):
    """A quantity by both solvers on the same designs."""

    quantity: str
    designs: int
    spearman: float
    bias_percent: float
    spread_percent: float


class DesignsEvidence(RunEvidence):
    """scripts/evidence/designs.py."""

    statistics: list[SolverAgreement]


E = TypeVar("E", bound=RunEvidence)


@dataclass(frozen=True)
class Reading(Generic[E]):
    """The record, or None and the line that says why there is none and how to make it."""

    record: E | None
    absence: Line = ""


def read_evidence(kind: type[E], name: str, result: Result, folder: Path) -> Reading[E]:
    """<folder>/<name>.json, where it is a record of this very run."""
    path = folder / f"{name}.json"
    command = Marked(
        f"python scripts/validation.py {name} {shlex.quote(f'run={folder}')}",
        "code",
    )
    if not path.exists():
        return Reading(None, ("Not run for this folder: ", command))
    try:
        record = kind.model_validate(artifacts.read_json(path))
    except (ValueError, ValidationError) as error:
        why = str(error).splitlines()[0]
        return Reading(None, (f"{path.name} cannot be read ({why}); run again: ", command))
    if record.run != result.hashes.get("configuration"):
        words = f"{path.name} is of a run of another configuration and not shown; run again: "
        return Reading(None, (words, command))
    return Reading(record)


def origin(record: RunEvidence | Evidence) -> Line:
    """When, with which version, in what time and by which command the record came to be."""
    words = f"{record.created}, {record.version}, {record.seconds:.0f} s: "
    return (words, Marked(record.command, "code"))


def mesh_errors(result: Result, folder: Path) -> dict[tuple[str, str], float]:
    """By arm and measure: the discretisation error in per cent, of those that the run's
    convergence evidence covers."""
    record = read_evidence(ConvergenceEvidence, "convergence", result, folder).record
    return (
        {} if record is None else {(e.arm, e.quantity): e.error_percent for e in record.estimates}
    )
