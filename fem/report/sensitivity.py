"""Sensitivity in a report: does the order of the arms hold when bone, loads, position or mesh are
others?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.page import Cell, Line, Row, Table, number, percent, text
from fem.report.evidence import (
    Ranking,
    SensitivityEvidence,
    SensitivityRow,
    origin,
    read_evidence,
)
from fem.report.result import Result
from fem.report.words import spaced, with_unit


@dataclass(frozen=True)
class Changes:
    """One measure under every variation."""

    measure: Line
    table: Table


@dataclass(frozen=True)
class Sensitivity:
    """The evidence, or the line that says why there is none."""

    absence: Line
    origin: Line = ""
    ranking: Table | None = None
    changes: Sequence[Changes] = ()
    notes: Sequence[str] = ()


def sensitivity(result: Result, folder: Path) -> Sensitivity:
    reading = read_evidence(SensitivityEvidence, "sensitivity", result, folder)
    record = reading.record
    if record is None:
        return Sensitivity(reading.absence)
    unsolved = [
        f"{r.arm}, {r.variation}: {r.status.text}" for r in record.rows if r.status.code != "ok"
    ]
    return Sensitivity(
        "",
        origin(record),
        _ranking(record.ranking),
        [
            Changes(with_unit(measure, about.get("unit", "")), _changes(measure, record))
            for measure, about in record.measures.items()
        ],
        [*unsolved, *record.notes],
    )


# -- the order of the arms -------------------------------------------------------------------------
def _ranking(rankings: Sequence[Ranking]) -> Table:
    head = (
        "measure",
        "order, best first (gap to the one before)",
        "order holds in",
        "another order in",
        "best arm, moved alone, loses in",
        "another mesh alone",
    )
    caption = "Does the order of the arms hold when bone, loads, position or mesh are others?"
    return Table(caption, head, list(map(_ranking_row, rankings)))


def _ranking_row(r: Ranking) -> Row:
    failed = "; ".join(
        name if name in r.first_failed else f"{name} (best arm the same)" for name in r.failed
    )
    return (
        spaced(r.measure),
        text(_order(r)),
        f"{r.rows - len(r.failed)} of {r.rows}",
        text(failed or "—"),
        text("; ".join(r.alone_failed) or "—"),
        "—" if r.mesh_percent is None else f"{r.mesh_percent:.1f} %",
    )


def _order(r: Ranking) -> str:
    """The arms, best first, each with its gap to the one before; a gap below that of another mesh
    is not resolved."""
    first, *rest = map(spaced, r.nominal)
    order = first
    for arm, gap in zip(rest, r.gap_percent, strict=True):
        if gap is None:
            order += f", {arm} (—)"
            continue
        below = r.mesh_percent is not None and gap < r.mesh_percent
        order += f", {arm} ({gap:.1f} %" + (", below the mesh's)" if below else ")")
    return order


# -- the changes of a measure ----------------------------------------------------------------------
def _changes(measure: str, record: SensitivityEvidence) -> Table:
    """The nominal's values, then each variation's change from them."""
    by_place = {(row.arm, row.variation): row for row in record.rows}
    rows: list[Row] = []
    for variation in dict.fromkeys(row.variation for row in record.rows):
        shown = _change if rows else _value
        cells = [shown(by_place.get((arm, variation)), measure) for arm in record.arms]
        rows.append((variation, *cells))
    head = ("", *map(spaced, record.arms))
    return Table("first line: value; then change from it", head, rows)


def _value(row: SensitivityRow | None, measure: str) -> Line | Cell:
    value = row.value.get(measure) if row else None
    return Cell("no result", "none") if value is None else number(value)


def _change(row: SensitivityRow | None, measure: str) -> Line | Cell:
    if row is None or row.value.get(measure) is None:
        return Cell("no result", "none")
    change = row.change_percent.get(measure)
    return percent(None if change is None else change / 100.0)
