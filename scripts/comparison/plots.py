"""What the plots of a comparison's page are made of, for scripts/comparison/templates/plots.js."""

from __future__ import annotations

import os
from itertools import permutations, product
from pathlib import Path
from typing import Any

from scripts.comparison import tables
from scripts.comparison.tables import Found, Run, arms_of, front
from scripts.run.config import FLOORS

#: Okabe and Ito's colours, told apart by the colour-blind.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#882255")
#: Arms beside the optimised one, and the mark of each.
_RIVALS = {
    "stock": "square-open",
    "conforming": "diamond-open",
    "intact": "x-thin-open",
    "full_endplate": "cross-thin-open",
}

Point = tuple[float, float]


def report_link(run: Run, out: Path) -> str | None:
    """Where the run's own page is, seen from the folder `out`; None where it has none."""
    report = run.folder / "report.html"
    return os.path.relpath(report, out) if report.exists() else None


def default_pair(found: Found) -> tuple[str, str]:
    """The two measures that most runs minimise; else the first two there are."""
    names = list(found.measures())
    uses = sorted(names, key=lambda m: -sum(m in r.minimised for r in found.runs))
    return (uses[0], uses[1]) if len(uses) > 1 else (uses[0], uses[0])


def relative_points(found: Found, x: str, y: str) -> list[Point | None]:
    """Each run's optimised device in two measures, as shares of the stock arm's values: patients
    differ by more than their implants do."""
    return [_pair(_of_stock(run, x), _of_stock(run, y)) for run in found.runs]


def plot_data(found: Found, out: Path) -> dict[str, Any]:
    """All runs, their histories, and the fronts of every pair of measures."""
    measures, sets = found.measures(), found.sets()
    return {
        "measures": {k: {"unit": u, "better": b} for k, (u, b) in measures.items()},
        "sets": sets,
        "colours": {s: _COLOURS[i % len(_COLOURS)] for i, s in enumerate(sets)},
        "rivals": _RIVALS,
        "floors": list(FLOORS),
        "runs": [_run(run, measures, out) for run in found.runs],
        "fronts": _fronts(found),
        "pair": default_pair(found),
        "relative": len({r.patient for r in found.runs}) > 1,
    }


def _run(run: Run, measures: dict[str, tuple[str, str]], out: Path) -> dict[str, Any]:
    arms = [arm for arm in arms_of(run) if arm in ("optimised", *_RIVALS)]
    return {
        "name": run.name,
        "patient": run.patient,
        "set": run.objectives,
        "seed": run.seed,
        "link": report_link(run, out),
        "arms": {arm: {m: run.value(arm, m) for m in measures} for arm in arms},
        "history": [
            [h["iteration"], h.get("seconds"), h["objective"], h["violation"]] for h in run.history
        ],
    }


def _fronts(found: Found) -> dict[str, list[int]]:
    """relative|x|y → the runs on the front, relative: 1 as shares of the stock arm, 0 as
    measured."""
    measures = found.measures()
    fronts = {}
    for relative, (x, y) in product((False, True), permutations(measures, 2)):
        points = (
            relative_points(found, x, y)
            if relative
            else [_pair(r.value("optimised", x), r.value("optimised", y)) for r in found.runs]
        )
        fronts[f"{int(relative)}|{x}|{y}"] = front(points, (measures[x][1], measures[y][1]))
    return fronts


def _pair(a: float | None, b: float | None) -> Point | None:
    return None if a is None or b is None else (a, b)


def _of_stock(run: Run, measure: str) -> float | None:
    change = tables.change_percent(run, measure, "stock")
    return None if change is None else 1.0 + change / 100.0
