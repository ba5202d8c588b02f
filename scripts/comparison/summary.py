"""A comparison in Markdown, to be kept beside a paper or in a repository: what each objective
set did, in all and patient by patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.comparison.tables import Found, change_percent, matrix, statistics
from scripts.console.markdown import table

RIVALS = ("conforming", "stock")


def markdown(found: Found, seed: int) -> str:
    """Runs, both cross matrices, the goals patient by patient, and the statistics of what any
    set minimises."""
    runs = found.runs
    patients, seeds = sorted({r.patient for r in runs}), sorted({r.seed for r in runs})
    goals = [m for m in found.measures() if any(m in r.minimised for r in runs)]
    parts = [
        f"{len(runs)} runs: {len(patients)} patients ({', '.join(patients)}), objective sets"
        f" {', '.join(found.sets())}, {len(seeds)} starts each; {len(found.left_out)} runs left"
        " out. SfePy's values on the exported surfaces.\n"
    ]
    for rival in RIVALS:
        if any(matrix(found, rival).values()):
            parts.append(
                f"Median change of the optimised device against the {rival} arm of the same run;"
                " **bold**: minimised by it.\n"
            )
            parts.append(_cross(found, rival))
    for measure in goals:
        mine = _by_patient(found, measure)
        if mine:
            parts.append(
                f"{_words(measure)}, against the conforming arm, patient by patient (median of the"
                " starts, least to most):\n"
            )
            parts.append(mine)
    rows = [
        (
            f"{r['second']} against {r['first']}",
            _words(r["measure"]),
            f"{r['patients']} ({r['seeds_second']}, {r['seeds_first']})",
            _percent(r["change_percent"]),
            _interval(r["low_percent"], r["high_percent"]),
            "—" if r["rank_biserial"] is None else f"{r['rank_biserial']:+.2f}",
        )
        for r in statistics(found, seed)
        if r["measure"] in goals
    ]
    if rows:
        parts.append(
            "Optimised devices against each other, paired by patient (Hodges-Lehmann change, BCa"
            " interval over patients):\n"
        )
        parts.append(
            table(("sets", "measure", "patients (runs)", "change", "95 %", "rank biserial"), rows)
        )
    return "\n".join(parts)


def _cross(found: Found, rival: str) -> str:
    measures, cells = found.measures(), matrix(found, rival)
    rows = []
    for name, row in cells.items():
        goals = frozenset.union(*(r.minimised for r in found.runs if r.objectives == name))
        said = [_percent(row[m][0]) if m in row else "—" for m in measures]
        rows.append(
            (name, *(f"**{s}**" if m in goals else s for m, s in zip(measures, said, strict=True)))
        )
    return table(("optimised for", *map(_words, measures)), rows)


def _by_patient(found: Found, measure: str) -> str:
    patients, rows = sorted({r.patient for r in found.runs}), []
    for name in found.sets():
        cells = []
        for patient in patients:
            values = [
                c
                for r in found.runs
                if (r.patient, r.objectives) == (patient, name)
                and (c := change_percent(r, measure, "conforming")) is not None
            ]
            cells.append(_spread(values))
        rows.append((name, *cells))
    return (
        table(("optimised for", *patients), rows)
        if any(c != "—" for row in rows for c in row[1:])
        else ""
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "—"
    if len(values) == 1:
        return _percent(values[0])
    return (
        f"{_percent(float(np.median(values)))} ({_percent(min(values))} to {_percent(max(values))})"
    )


def _percent(value: float) -> str:
    return f"{value:+.1f} %" if abs(value) < 100 else f"{value:+.0f} %"


def _interval(low: float | None, high: float | None) -> str:
    return "too few" if low is None or high is None else f"{_percent(low)} to {_percent(high)}"


def _words(measure: str) -> str:
    return measure.replace("_", " ")
