"""What the sensitivity study's rows say: changes from nominal, and where the order of the arms is
another; as a record, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scripts.console.markdown import table
from scripts.evidence.variations import ARMS, NOMINAL, VARIATIONS, Variation

#: Share of tetrahedra more or fewer that tells a retried mesh.
RETRIED = 0.25


def summary(
    rows: Sequence[dict[str, Any]], variations: Sequence[Variation] = VARIATIONS
) -> dict[str, Any]:
    """Record of the study: `rows` (measure values and change from nominal in per cent, null where
    there is none), `measures` (unit, better, description), `seconds` of all arms' meshes and
    solves, `notes` on meshes that were retried finer (not to be compared with the others), and
    `ranking` per measure whose direction means something:

        nominal        arms, best first; gap_percent between each and the next
        failed         variations (all arms changed alike) in which that order is another;
                       incomplete: an arm has no result there
        first_failed   those in which another arm is the best
        alone_failed   positions in which the first arm, moved alone, falls behind the best of the
                       others where they were planned
        mesh_percent   largest change by another mesh
    """
    lookup = _Lookup({(r["arm"], r["variation"]): r for r in rows})
    known: dict[str, dict[str, Any]] = {}
    for r in rows:
        for name, m in r["measures"].items():
            known.setdefault(name, {k: m[k] for k in ("unit", "better", "description")})
    every = [
        {
            "variation": v.name,
            "kind": v.kind,
            "arm": arm,
            "status": {"code": row["status"], "text": row["text"]},
            "tetrahedra": row["tetrahedra"],
            "value": {m: lookup.value(arm, v.name, m) for m in known},
            "change_percent": {m: lookup.change_percent(arm, v.name, m) for m in known},
        }
        for v in variations
        for arm in ARMS
        if (row := lookup.rows.get((arm, v.name))) is not None
    ]
    ranking = [
        row
        for m, a in known.items()
        if a["better"] != "neither" and (row := _ranking(m, a["better"], variations, lookup))
    ]
    return {
        "seconds": sum(r["seconds"] for r in rows),
        "notes": _retried(every, lookup),
        "arms": list(ARMS),
        "measures": known,
        "rows": every,
        "ranking": ranking,
    }


@dataclass(frozen=True)
class _Lookup:
    """Rows by (arm, variation), and numbers of them; None where there is none."""

    rows: dict[tuple[str, str], dict[str, Any]]

    def value(self, arm: str, variation: str, measure: str) -> float | None:
        row = self.rows.get((arm, variation))
        if row is None or measure not in row["measures"]:
            return None
        return float(row["measures"][measure]["value"])

    def change_percent(self, arm: str, variation: str, measure: str) -> float | None:
        """From nominal."""
        now, nominal = self.value(arm, variation, measure), self.value(arm, NOMINAL, measure)
        if now is None or nominal is None or abs(nominal) < 1e-12:
            return None
        return 100.0 * (now / nominal - 1.0)


def _retried(rows: Sequence[dict[str, Any]], lookup: _Lookup) -> list[str]:
    """A note on each mesh that has RETRIED more or fewer tetrahedra than the nominal one."""
    notes = []
    for r in rows:
        nominal = lookup.rows.get((r["arm"], NOMINAL))
        usual = None if nominal is None else nominal["tetrahedra"]
        if usual and r["tetrahedra"] and abs(r["tetrahedra"] / usual - 1.0) > RETRIED:
            notes.append(
                f"{r['arm']}, {r['variation']}: {r['tetrahedra']} tetrahedra where the nominal mesh"
                f" has {usual} (retried finer): the change is partly the mesh's"
            )
    return notes


def _ranking(
    measure: str, better: str, variations: Sequence[Variation], lookup: _Lookup
) -> dict[str, Any] | None:
    """A row of `summary`'s ranking; None where an arm has no nominal value."""
    sign = 1.0 if better == "lower" else -1.0

    def costs(variation: str) -> dict[str, float] | None:
        """Lower is better; None where an arm has no number."""
        values = {arm: lookup.value(arm, variation, measure) for arm in ARMS}
        if None in values.values():
            return None
        return {arm: sign * v for arm, v in values.items() if v is not None}

    nominal = costs(NOMINAL)
    if nominal is None:
        return None
    changed = [v.name for v in variations if v.name != NOMINAL]
    order = sorted(nominal, key=nominal.__getitem__)
    first, second = order[:2]
    complete = {name: of for name in changed if (of := costs(name)) is not None}
    orders = {name: sorted(c, key=c.__getitem__) for name, c in complete.items()}
    alone = {
        v.name: own
        for v in variations
        if v.kind == "position" and (own := lookup.value(first, v.name, measure)) is not None
    }
    meshes = [
        abs(c)
        for v in variations
        if v.kind == "mesh"
        for arm in ARMS
        if (c := lookup.change_percent(arm, v.name, measure)) is not None
    ]
    return {
        "measure": measure,
        "nominal": order,
        "gap_percent": [
            100.0 * abs(nominal[b] / nominal[a] - 1.0) if nominal[a] else None
            for a, b in pairwise(order)
        ],
        "rows": len(complete),
        "failed": [n for n, o in orders.items() if o != order],
        "first_failed": [n for n, o in orders.items() if o[0] != first],
        "alone_failed": [n for n, own in alone.items() if sign * own > nominal[second]],
        "incomplete": [n for n in changed if n not in complete],
        "mesh_percent": max(meshes, default=None),
    }


def markdown(record: dict[str, Any]) -> str:
    """Changes from nominal in per cent, stock / conforming / optimised, and where the order of
    the arms is another."""
    measures, rows = record["measures"], record["rows"]
    of = {(r["arm"], r["variation"]): r for r in rows}
    names = list(dict.fromkeys(r["variation"] for r in rows))

    def cells(variation: str, measure: str) -> str:
        return " / ".join(_cell(of.get((arm, variation)), measure) for arm in record["arms"])

    head = ("", *(f"{m.replace('_', ' ')}, {a['unit']}" for m, a in measures.items()))
    text = "Changes in per cent, " + " / ".join(record["arms"]) + " (first line: values).\n\n"
    text += table(head, [(name, *(cells(name, m) for m in measures)) for name in names])
    text += "\n" + table(
        (
            "measure",
            "order, best first (gap to the one before)",
            "order holds in",
            "another order in",
            "by another mesh",
        ),
        [
            (
                r["measure"].replace("_", " "),
                _order(r),
                f"{r['rows'] - len(r['failed'])} of {r['rows']}",
                "; ".join(
                    n + ("" if n in r["first_failed"] else " (best arm the same)")
                    for n in r["failed"]
                )
                or "none",
                "—" if r["mesh_percent"] is None else f"{r['mesh_percent']:.1f} %",
            )
            for r in record["ranking"]
        ],
    )
    alone = [
        f"- {r['measure'].replace('_', ' ')}: {r['nominal'][0]}, moved alone, is behind a rival in"
        " place: " + "; ".join(r["alone_failed"])
        for r in record["ranking"]
        if r["alone_failed"]
    ]
    alone += [f"- {note}" for note in record["notes"]]
    failed = [
        f"- {r['arm']}, {r['variation']}: no result: {r['status']['text']}"
        for r in rows
        if r["status"]["code"] != "ok"
    ]
    return text + "".join(f"\n{line}" for line in (*alone, *failed)) + "\n"


def _cell(row: dict[str, Any] | None, measure: str) -> str:
    if row is None or row["value"][measure] is None:
        return "no result"
    change = row["change_percent"][measure]
    return (
        f"{row['value'][measure]:.4g}"
        if row["variation"] == NOMINAL
        else "—"
        if change is None
        else f"{change:+.1f}"
    )


def _order(row: dict[str, Any]) -> str:
    first, *rest = row["nominal"]
    shown = first
    for arm, gap in zip(rest, row["gap_percent"], strict=True):
        unresolved = (
            ", below the mesh's"
            if gap is not None and row["mesh_percent"] is not None and gap < row["mesh_percent"]
            else ""
        )
        shown += f", {arm} ({'—' if gap is None else f'{gap:.1f} %'}{unresolved})"
    return shown


def draw(record: dict[str, Any], path: Path) -> Path | None:
    """Changes by variation and arm, one panel a measure that has a direction; crosses: another
    order of the arms. None: no row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in record["rows"] if r["variation"] != NOMINAL]
    names = list(dict.fromkeys(r["variation"] for r in rows))
    ranking = {r["measure"]: r for r in record["ranking"]}
    if not names or not ranking:
        return None
    columns = min(4, len(ranking))
    lines = -(-len(ranking) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(3.6 * columns + 1.2, (0.3 * len(names) + 1.2) * lines),
        squeeze=False,
        sharey=True,
    )
    for axis, (measure, rank) in zip(axes.flat, ranking.items(), strict=False):
        for k, (arm, mark) in enumerate(zip(record["arms"], "so^", strict=True)):
            points = [
                (r["change_percent"][measure], names.index(r["variation"]) + 0.22 * (k - 1))
                for r in rows
                if r["arm"] == arm and r["change_percent"][measure] is not None
            ]
            if points:
                axis.plot(*np.array(points).T, mark, label=arm, ms=5, alpha=0.85)
        for name in rank["failed"]:
            axis.axhspan(names.index(name) - 0.5, names.index(name) + 0.5, color="0.88", zorder=0)
        axis.axvline(0.0, color="0.5", lw=1)
        axis.set(
            title=measure.replace("_", " "), yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5)
        )
        axis.set_yticklabels(names)
        axis.grid(axis="x", color="0.9")
    for axis in list(axes.flat)[len(ranking) :]:
        axis.set_visible(False)
    axes[0][0].legend(fontsize=8)
    figure.supxlabel(
        "change from nominal, %  (grey: the arms are in another order there)", fontsize=10
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
