"""Calculation verification in a report: solver, balance, meshes, mesh convergence, and the other
solver on the same designs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.page import Line, Marked, Row, Table, number, percent, text
from fem.report.evidence import ConvergenceEvidence, origin, read_evidence
from fem.report.result import Agreement, Arm, Result
from fem.report.words import arm_name, arm_names, arm_order, spaced, status_line


@dataclass(frozen=True)
class Convergence:
    """What the meshes of the run show, or the line that says why nothing does. table: None where
    no quantity was estimated."""

    absence: Line
    origin: Line = ""
    meshes: str = ""
    table: Table | None = None
    failures: Sequence[str] = ()


@dataclass(frozen=True)
class Folded:
    """A table behind its title."""

    title: str
    table: Table


@dataclass(frozen=True)
class Calculation:
    """solver by arm; solver_by_load and mesh: None where the result holds none."""

    solver: Table
    solver_by_load: Folded | None
    mesh: Folded | None
    convergence: Convergence
    agreement: Sequence[Folded]


def calculation(result: Result, folder: Path) -> Calculation:
    order = arm_order(result)
    return Calculation(
        _solver(order, result),
        _solver_by_load(order, result),
        _mesh(order, result),
        _convergence(result, folder),
        [_agreement(arm, result) for arm in order if result.arms[arm].agreement],
    )


# -- solver and mesh -------------------------------------------------------------------------------
def _solver(order: list[str], result: Result) -> Table:
    rows = [_solver_row(arm_name(arm, result), result.arms[arm]) for arm in order]
    head = ("arm", "status", "load cases", "residual", "force error", "moment error")
    caption = "Solver status; largest relative residual and balance error over the load cases"
    return Table(caption, head, rows)


def _solver_row(name: str, arm: Arm) -> Row:
    residuals = [s.relative_residual for s in arm.solver.values()]
    force, moment = (arm.balance.force_rel, arm.balance.moment_rel) if arm.balance else (None, None)
    return (
        name,
        text(status_line(arm.status)),
        text(_load_cases(arm)),
        number(max((r for r in residuals if r is not None), default=None)),
        number(force),
        number(moment),
    )


def _load_cases(arm: Arm) -> Line:
    """The load cases that were not solved well, or that all were."""
    parts: list[str | Marked] = []
    for load, status in arm.solver.items():
        if status.code != "ok":
            parts += [f"{'; ' if parts else ''}{load}: ", *status_line(status)]
    return tuple(parts) or ("all ok" if arm.solver else "—")


def _solver_by_load(order: list[str], result: Result) -> Folded | None:
    loads = dict.fromkeys(load for arm in order for load in result.arms[arm].solver)
    rows: list[Row] = []
    for load in loads:
        states = [result.arms[arm].solver.get(load) for arm in order]
        rows.append((load, *(text((s.text or s.code) if s else "—") for s in states)))
    table = Table("What the solver said", ("load case", *arm_names(order, result)), rows)
    return Folded("Solver by load case", table) if rows else None


def _mesh(order: list[str], result: Result) -> Folded | None:
    keys = dict.fromkeys(key for arm in order for key in result.arms[arm].mesh)
    if not keys:
        return None
    rows = [(key, *(number(result.arms[arm].mesh.get(key)) for arm in order)) for key in keys]
    counts = "; ".join(
        f"{arm_name(arm, result)}: {number(n)}"
        for arm in order
        if (n := result.arms[arm].mesh.get("tetrahedra"))
    )
    table = Table("Tetrahedral mesh", ("", *arm_names(order, result)), rows)
    return Folded(f"Meshes, tetrahedra: {counts}", table)


# -- mesh convergence ------------------------------------------------------------------------------
def _convergence(result: Result, folder: Path) -> Convergence:
    reading = read_evidence(ConvergenceEvidence, "convergence", result, folder)
    record = reading.record
    if record is None:
        return Convergence(reading.absence)
    rows = [
        (
            spaced(e.arm),
            text(spaced(e.quantity)),
            " / ".join(map(number, e.values)),
            number(e.order),
            number(e.limit),
            f"{e.error_percent:.1f} %",
        )
        for e in record.estimates
    ]
    meshes = "; ".join(
        f"{spaced(arm)}: {', '.join(map(str, n))} tetrahedra"
        for arm, n in record.tetrahedra.items()
    )
    head = (
        "arm",
        "quantity",
        "values, as configured and finer",
        "order",
        "limit",
        "error as configured",
    )
    caption = (
        "Three meshes; error by Richardson's estimate where they converge in order, else the"
        " largest difference"
    )
    table = Table(caption, head, rows) if rows else None
    return Convergence("", origin(record), meshes, table, record.failed)


# -- the other solver ------------------------------------------------------------------------------
def _agreement(arm: str, result: Result) -> Folded:
    quantities = result.arms[arm].agreement
    gaps = [abs(q.gap_rel) for q in quantities if q.gap_rel is not None]
    worst = percent(max(gaps, default=None)).lstrip("+")
    title = f"{arm_name(arm, result)}: voxel engine against SfePy, largest gap {worst}"
    head = ("quantity", "load case", "unit", "engine", "SfePy", "gap")
    return Folded(title, Table("gap = engine/SfePy − 1", head, list(map(_gap_row, quantities))))


def _gap_row(q: Agreement) -> Row:
    words = (q.quantity, text(q.load_case or "all"), text(q.unit))
    return (*words, number(q.engine), number(q.sfepy), percent(q.gap_rel))
