"""The page of scripts/compare.py: one file, no network; every plot has its table, every point
leads to its run."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from engine import artifacts
from engine.page import (
    Cell,
    Figure,
    Line,
    Marked,
    Row,
    Table,
    figure,
    percent,
    render,
    script_json,
    text,
)
from scripts.comparison import tables
from scripts.comparison.plots import default_pair, plot_data, relative_points, report_link
from scripts.comparison.tables import CompareConfig, Found, Run, front, matrix, statistics
from scripts.comparison.view import devices

TEMPLATES = Path(__file__).parent / "templates"
RIVALS = ("stock", "conforming")
_SIGN = {"lower": -1.0, "higher": 1.0, "neither": 0.0}
#: Shades of the cross table, red, green and blue.
_BETTER, _WORSE = "0,114,178", "213,94,0"
#: Changes below this are not shaded, %; and the strongest shade.
_FAINTEST_PERCENT, _STRONGEST = 0.5, 0.45
#: Of a configuration key: values that are listed, and letters of each.
_VALUES_LISTED, _LETTERS_LISTED = 8, 200
#: Runs without numbers that a warning names.
_RUNS_NAMED = 5
#: A page may hold a hundred pictures: so wide, and of so many colours.
_PICTURE_WIDTH, _PICTURE_COLOURS = 420, 64
_SECONDS_PER_MINUTE = 60


def write(found: Found, config: CompareConfig) -> Path:
    """Write <out>/report.html. Raises ValueError when the runs' units differ."""
    out = Path(config.out)
    created = max(r.result.created for r in found.runs)
    html = render(
        "comparison.html.j2",
        TEMPLATES,
        title=config.title or f"Comparison of {len(found.runs)} runs",
        created=f"newest run begun {created}",
        warnings=_warnings(found),
        compared=_compared(found, out),
        cross={rival: _cross(found, rival) for rival in RIVALS},
        front=_front_table(found),
        statistics=_statistics(found, config.seed),
        view3d=config.view3d,
        devices=devices(found) if config.view3d else None,
        pictures=_pictures(found, out, config.pictures),
        files=_files(),
        plotly=Markup(get_plotlyjs()),
        data=script_json(plot_data(found, out)),
    )
    return artifacts.write_text(out / "report.html", html)


def _warnings(found: Found) -> list[str]:
    lines = (
        [f"{len(found.left_out)} runs are not in the comparison; see below why."]
        if found.left_out
        else []
    )
    patients = {r.patient for r in found.runs}
    if len(patients) < 2:
        lines.append("One patient only: nothing here says how another anatomy would do.")
    broken = [
        r.name for r in found.runs if r.value("optimised", next(iter(found.measures()))) is None
    ]
    if broken:
        lines.append(
            "No numbers for the optimised device of"
            f" {', '.join(broken[:_RUNS_NAMED])}{' …' if len(broken) > _RUNS_NAMED else ''}."
        )
    return lines


def _spaced(measure: str) -> str:
    return measure.replace("_", " ")


# -- what is compared ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Compared:
    """differing: None where all configuration keys are equal."""

    title: str
    runs: Table
    left_out: Sequence[str]
    differing: Table | None


def _compared(found: Found, out: Path) -> Compared:
    patients, seeds = ({getattr(r, name) for r in found.runs} for name in ("patient", "seed"))
    starts = ", ".join(map(str, sorted(seeds)))
    title = (
        f"{len(found.runs)} runs: {len(patients)} patients, {len(found.sets())} objective sets,"
        f" seeds {starts}"
    )
    head = ("run", "patient", "objectives", "seed", "search", "min")
    runs = Table(f"{len(found.runs)} runs", head, [_run_row(r, out) for r in found.runs])
    left_out = [f"{folder}: {why}" for folder, why in found.left_out]
    return Compared(title, runs, left_out, _differing(found))


def _run_row(run: Run, out: Path) -> Row:
    search = run.result.optimisation
    return (
        (_linked(run, out, run.name),),
        text(run.patient),
        text(run.objectives),
        str(run.seed),
        text(search.status.text if search else ""),
        f"{sum(run.result.timings_s.values()) / _SECONDS_PER_MINUTE:.1f}",
    )


def _linked(run: Run, out: Path, words: str) -> str | Marked:
    """The words, leading to the run's own page where there is one."""
    target = report_link(run, out)
    return words if target is None else Marked(words, "link", target)


def _differing(found: Found) -> Table | None:
    if not found.differing:
        return None
    rows = [
        ((Marked(key, "key"),), text(_counted(key, values)))
        for key, values in found.differing.items()
    ]
    caption = "Configuration keys in which the runs differ (runs); all others are equal"
    return Table(caption, ("key", "values"), rows)


def _counted(key: str, values: list[Any]) -> str:
    """Each value of a configuration key, and how many runs have it."""
    counts: dict[str, int] = {}
    for value in values:
        shown = _goals(value) if key == "study.goals" else json.dumps(value)
        counts[shown] = counts.get(shown, 0) + 1
    listed = ", ".join(
        f"{v if len(v) < _LETTERS_LISTED else v[: _LETTERS_LISTED - 3] + '…'} ({n})"
        for v, n in list(counts.items())[:_VALUES_LISTED]
    )
    return listed + (" …" if len(counts) > _VALUES_LISTED else "")


def _goals(goals: list[dict[str, Any]]) -> str:
    """A set of goals in few words."""
    words = []
    for g in goals:
        kind = g.get("kind", "minimise")
        what = f"× {g.get('weight', 1.0):g}" if kind == "minimise" else f"{kind} {g['bound']:g}"
        words.append(_spaced(f"{g['objective']} {what}"))
    return "; ".join(words)


# -- what was optimised, and what that did ---------------------------------------------------------
def _cross(found: Found, against: str) -> Table | None:
    """Objective sets by measures; None where no run has both arms."""
    measures, changes = found.measures(), matrix(found, against)
    if not any(changes.values()):
        return None
    rows: list[Row] = []
    for name, cells in changes.items():
        goals = frozenset.union(*(r.minimised for r in found.runs if r.objectives == name))
        row = [
            _change_cell(*cells[measure], better, measure in goals)
            if measure in cells
            else Cell("—", "none")
            for measure, (_, better) in measures.items()
        ]
        rows.append((name, *row))
    caption = (
        f"Median change of the optimised device against the {against} arm of the same run, as SfePy"
        " measures it. ● minimised by that objective set; without ● it was not. Blue: better,"
        " orange: worse (volume of metal: neither)."
    )
    return Table(caption, ("optimised for", *map(_spaced, measures)), rows)


def _change_cell(change_percent: float, runs: int, better: str, minimised: bool) -> Cell:
    good = _SIGN[better] * change_percent
    colour = _BETTER if good > 0 else _WORSE
    strength = min(abs(good) / 100, _STRONGEST)
    shade = "" if abs(good) < _FAINTEST_PERCENT else f"rgba({colour},{strength:.2f})"
    mark = " ●" if minimised else ""
    return Cell(f"{percent(change_percent / 100)}{mark}", "", shade, f"{runs} runs")


# -- trade-offs ------------------------------------------------------------------------------------
def _front_table(found: Found) -> Table:
    x, y = default_pair(found)
    better = (found.measures()[x][1], found.measures()[y][1])
    points = relative_points(found, x, y)
    rows: list[Row] = []
    for i in front(points, better):
        run, point = found.runs[i], points[i]
        assert point is not None
        shares = (percent(v - 1.0) for v in point)
        rows.append((run.name, text(run.patient), text(run.objectives), *shares))
    head = ("run", "patient", "objectives", _spaced(x), _spaced(y))
    caption = "Not dominated among all optimised devices, as change against the stock arm"
    return Table(caption, head, rows)


# -- objective sets against each other -------------------------------------------------------------
def _statistics(found: Found, seed: int) -> Table | None:
    """None where there is one objective set, or no patient that two of them share."""
    rows = [_statistics_row(r) for r in statistics(found, seed)]
    head = (
        "optimised devices",
        "measure",
        "patients (runs)",
        "change",
        "95 %, patients",
        "95 %, patients and seeds",
        "rank biserial",
        "p",
        "p (Holm)",
    )
    return Table("How the optimised devices differ", head, rows) if rows else None


def _statistics_row(r: dict[str, Any]) -> Row:
    return (
        f"{r['second']} against {r['first']}",
        text(_spaced(r["measure"])),
        f"{r['patients']} ({r['seeds_second']}, {r['seeds_first']})",
        percent(r["change_percent"] / 100),
        _interval(r["low_percent"], r["high_percent"]),
        _interval(r["cluster_low_percent"], r["cluster_high_percent"]),
        "—" if r["rank_biserial"] is None else f"{r['rank_biserial']:+.2f}",
        "too few" if r["p"] is None else f"{r['p']:.3g}",
        "—" if r["p_holm"] is None else f"{r['p_holm']:.3g}",
    )


def _interval(low_percent: float | None, high_percent: float | None) -> str:
    if low_percent is None or high_percent is None:
        return "too few"
    return f"{percent(low_percent / 100)} to {percent(high_percent / 100)}"


# -- the devices, the tables -----------------------------------------------------------------------
def _pictures(found: Found, out: Path, name: str) -> list[Figure]:
    shown = []
    for run in found.runs if name != "none" else ():
        if (path := run.folder / "pictures" / f"{name}.png").exists():
            words = f"{run.objectives}, {run.patient}, seed {run.seed}"
            title: Line = (_linked(run, out, "report"), f": {words}")
            shown.append(figure(_small(path), title, f"Optimised device of {words}"))
    return shown


def _small(path: Path) -> bytes:
    """The picture as a smaller PNG with few colours."""
    from PIL import Image

    with Image.open(path) as picture:
        size = (_PICTURE_WIDTH, round(picture.height * _PICTURE_WIDTH / picture.width))
        small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.quantize(_PICTURE_COLOURS).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _files() -> list[str]:
    return [
        "measures.csv, measures.parquet: " + ", ".join(tables.COLUMNS),
        "loads.csv, loads.parquet: the same by load case",
        "statistics.csv, statistics.parquet: the table above",
        "summary.md: what each set did, patient by patient",
    ]
