"""The report's tables of arms side by side: in short, alignment, all measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.page import Cell, Line, Marked, Row, Table, number, percent
from fem.report.evidence import mesh_errors
from fem.report.result import ARMS, Alignment, Arm, Measure, Reached, Result, Status, reached
from fem.report.words import arm_names, arm_order, spaced, status_line, with_unit

#: Below this a best device is not marked: one device has no rival.
_FEWEST_RIVALS = 2


# -- in short --------------------------------------------------------------------------------------
def short_table(result: Result) -> Table | None:
    """Stock and optimised device, and how much of what could be gained was; None where they cannot
    be compared."""
    rows = [_reached_row(row) for row in reached(result)]
    if not rows:
        return None
    head = ("measure (lower is better)", "stock", "optimised", "change", "floor", "reached share")
    caption = (
        "Reached share = (stock − optimised)/(stock − floor): how much of what any implant could"
        " gain was gained. The floor is the lower of the intact segment and a rigid full-endplate"
        " cage."
    )
    return Table(caption, head, rows)


def _reached_row(row: Reached) -> Row:
    floor = f"{number(row.floor)} ({spaced(row.floor_arm)})" if row.floor_arm else "—"
    change = None if row.reduction is None else -row.reduction
    share = "—" if row.share_of_reachable is None else f"{100 * row.share_of_reachable:.0f} %"
    name = with_unit(row.measure, row.unit)
    return (name, number(row.stock), number(row.optimised), percent(change), floor, share)


# -- alignment -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AlignmentSection:
    """plan: the rule and its source, where one is known."""

    plan: str
    table: Table
    notes: Sequence[str]


def alignment_section(result: Result) -> AlignmentSection | None:
    """Measured, planned, and what each arm achieves; None where it was not part of the run."""
    part = result.alignment
    if part is None:
        return None
    arms = [arm for arm in arm_order(result) if result.arms[arm].alignment is not None]
    rows = []
    for name in Alignment.model_fields:
        plan = getattr(part.planned, name)
        row: list[Line] = [
            _with_ending(name),
            _tenths(getattr(part.measured, name)),
            _tenths(plan),
        ]
        row += [_achieved(getattr(result.arms[arm].alignment, name), plan) for arm in arms]
        rows.append(row)
    caption = f"Achieved under {part.load_case} load; in brackets the difference from the plan."
    head = ("", "measured", "planned", *arm_names(arms, result))
    plan_words = f"{part.rule} {part.source}" if part.rule or part.source else ""
    return AlignmentSection(plan_words, Table(caption, head, rows), part.notes)


def _achieved(value: float | None, plan: float | None) -> Line:
    if value is None or plan is None:
        return _tenths(value)
    return (f"{_tenths(value)} ", Marked(f"({value - plan:+.1f})".replace("-", "−"), "unit"))


def _tenths(value: float | None) -> str:
    """Degrees and millimetres of an alignment: a tenth is finer than anyone measures."""
    return "—" if value is None else f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")


def _with_ending(name: str) -> Line:
    """A name whose ending is its unit: lordosis_deg → lordosis °."""
    stem, _, unit = name.rpartition("_")
    return (f"{spaced(stem)} ", Marked("°" if unit == "deg" else unit, "unit"))


# -- all measures ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class MeasureDetail:
    """A measure by load case; table: None where it has no load cases."""

    name: Line
    description: str
    table: Table | None


@dataclass(frozen=True)
class ArmsSection:
    table: Table
    notes: Sequence[str]
    details: Sequence[MeasureDetail]


def arms_section(result: Result, folder: Path) -> ArmsSection:
    """Every measure of every arm, with the error of its mesh where the run knows it."""
    order, errors = arm_order(result), mesh_errors(result, folder)
    states = [status_line(Status(code=result.arms[arm].status.code)) for arm in order]
    rows: list[Row] = [("status", *states)]
    details = []
    for name in dict.fromkeys(name for arm in order for name in result.arms[arm].measures):
        measures = {arm: result.arms[arm].measures.get(name) for arm in order}
        first = next(m for m in measures.values() if m is not None)
        best = _best(measures, first.better)
        cells = [
            _value_cell(result.arms[arm], m, best if arm in ARMS else None, errors.get((arm, name)))
            for arm, m in measures.items()
        ]
        rows.append((with_unit(name, first.unit), *cells))
        details.append(_by_load(name, first, measures, result))
    caption = (
        "SfePy on the exported surfaces. Bold: best of the devices. “no result”: see the status"
        " further down."
    )
    if errors:
        caption += " ±: error of the mesh (Credibility, mesh convergence)."
    notes = [f"{spaced(arm)}: {note}" for arm in order for note in result.arms[arm].notes]
    table = Table(caption, ("measure", *arm_names(order, result)), rows)
    return ArmsSection(table, notes, [d for d in details if d.table or d.description])


def _best(measures: dict[str, Measure | None], better: str) -> float | None:
    """The best value of the devices; None where they have no two different ones."""
    rivals = [
        m.value
        for arm, m in measures.items()
        if arm in ARMS and m is not None and m.value is not None
    ]
    if len(set(rivals)) < _FEWEST_RIVALS or better == "neither":
        return None
    return min(rivals) if better == "lower" else max(rivals)


def _value_cell(
    arm: Arm, measure: Measure | None, best: float | None, error_percent: float | None
) -> Cell:
    if arm.status.code in ("failed", "not_run"):
        return Cell("no result", "none")
    if measure is None or measure.value is None:
        return Cell("—", "none")
    look: Literal["", "best"] = "best" if best is not None and measure.value == best else ""
    shown = number(measure.value)
    if error_percent is None:
        return Cell(shown, look)
    return Cell((f"{shown} ", Marked(f"± {error_percent:.1f} %", "unit")), look)


def _by_load(
    name: str, first: Measure, measures: dict[str, Measure | None], result: Result
) -> MeasureDetail:
    loads = dict.fromkeys(load for m in measures.values() if m is not None for load in m.per_load)
    rows = [
        (load, *(number(m.per_load.get(load)) if m else "—" for m in measures.values()))
        for load in loads
    ]
    head = ("load case", *arm_names(list(measures), result))
    table = Table(first.description, head, rows) if rows else None
    return MeasureDetail(with_unit(name, first.unit), first.description, table)
