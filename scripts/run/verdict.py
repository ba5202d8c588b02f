"""The end of a run on the screen: its measures by arm, and whether the optimised part is better or
worse than the stock cage.

Of a measure that a goal minimises, and of those no goal names, the sign of (optimised −
stock)/|stock| decides; less than 1 % is the same. Of a constraint only its bound decides: a stress
that rises within its limit is no loss. A measure that is better on the whole and worse in a load
case is named with that case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.run import stored

#: Arms in their order, with what the table calls them.
_ARMS = {
    "intact": "intact",
    "full_endplate": "rim to rim",
    "stock": "stock",
    "conforming": "conforming",
    "optimised": "optimised",
}
_SAME = 0.01
_WIDTH = 100
#: Of a load case: changes smaller than this share of the measure are not named.
_CASE = 0.05


def of_folder(folder: Path) -> list[str]:
    """Lines of at most 100 columns: of result.json where the run is checked, else of the search's
    own engine.json; [] of neither."""
    if (folder / "result.json").exists():
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        arms = {name: arm.get("measures", {}) for name, arm in result["arms"].items()}
        failed = [
            f"{name}: {arm['status']['text']}"
            for name, arm in result["arms"].items()
            if arm["status"]["code"] != "ok"
        ]
        head = "checked in SfePy" + (
            ""
            if result["optimisation"]["status"]["code"] != "max_iterations"
            else "; no feasible design"
        )
        return table(head, arms, goals_of(folder)) + [line[:_WIDTH] for line in failed]
    if (folder / "engine.json").exists():
        return table("voxel engine, not yet checked", _of_engine(folder), goals_of(folder))
    return []


def goals_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The goals of a run's configuration by measure."""
    config = stored.configuration(folder) or {}
    return {str(goal["objective"]): goal for goal in (config.get("study") or {}).get("goals", ())}


def _of_engine(folder: Path) -> dict[str, dict[str, Any]]:
    """engine.json in the form of result.json."""
    import objectives

    def measure(name: str, value: float) -> dict[str, Any]:
        objective = objectives.load(name)
        return {"value": value, "unit": objective.unit, "better": objective.better}

    found = json.loads((folder / "engine.json").read_text(encoding="utf-8"))["arms"]
    return {
        arm: {k: measure(k, v) for k, v in of["measures"].items()}
        for arm, of in found.items()
        if of["status"] == "ok"
    }


def table(
    head: str, arms: Mapping[str, Mapping[str, Any]], goals: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Measures by arm, the change against stock and what it means, then what is worse in a load
    case."""
    shown = [arm for arm in _ARMS if arms.get(arm)]
    names = list(dict.fromkeys([*goals, *(name for arm in shown for name in arms[arm])]))
    names = [name for name in names if any(name in arms[arm] for arm in shown)]
    if not names:
        return [f"{head}: no arm has a result"]
    unit = {name: next(arms[a][name]["unit"] for a in shown if name in arms[a]) for name in names}
    rows = [["measure", "unit", *(_ARMS[a] for a in shown), "against stock"]]
    for name in names:
        cells = [_figure(arms[a][name]["value"]) if name in arms[a] else "–" for a in shown]
        rows.append(
            [
                name.replace("_", " "),
                "" if unit[name] == "1" else unit[name],
                *cells,
                judged(name, arms, goals.get(name)),
            ]
        )
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(wide) - 1
    lines = [
        "  ".join(
            c.ljust(w) if i in (0, 1, last) else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    ]
    return [head, *(line.rstrip()[:_WIDTH] for line in lines), *_cases(names, arms, goals)]


def judged(name: str, arms: Mapping[str, Mapping[str, Any]], goal: Mapping[str, Any] | None) -> str:
    """`−15.0 %, better` of the optimised arm against stock; of a constraint whether its bound is
    kept."""
    mine, theirs = (arms.get(arm, {}).get(name) for arm in ("optimised", "stock"))
    if mine is None or mine["value"] is None:
        return "no result"
    value = float(mine["value"])
    if goal is not None and goal["kind"] in ("at_most", "at_least"):
        bound, most = float(goal["bound"]), goal["kind"] == "at_most"
        # the search accepts a violation of optimizer.feasible (1 %) of the goal's scale
        slack = 0.01 * float(goal.get("scale") or 1.0)
        kept = value <= bound + slack if most else value >= bound - slack
        return f"{'kept' if kept else 'BROKEN'}: {'at most' if most else 'at least'} {bound:g}"
    if theirs is None or theirs["value"] is None:
        return ""
    change, better = _change(value, float(theirs["value"])), mine.get("better", "lower")
    if change is None:
        return (
            "same"
            if value == 0
            else ("worse" if better == "lower" else "better" if better == "higher" else "")
        )
    if abs(change) < _SAME:
        return "same"
    word = (
        ""
        if better == "neither"
        else ", better"
        if (change < 0) == (better == "lower")
        else ", worse"
    )
    return f"{_percent(change)}{word}"


def _cases(
    names: Sequence[str],
    arms: Mapping[str, Mapping[str, Any]],
    goals: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Of each goal that is minimised and better or the same on the whole: the load case in which it
    is worst against stock."""
    lines = []
    for name in names:
        if goals.get(name, {}).get("kind") != "minimise" or "worse" in judged(
            name, arms, goals[name]
        ):
            continue
        mine, theirs = (
            arms.get(arm, {}).get(name, {}).get("per_load") or {} for arm in ("optimised", "stock")
        )
        least = _CASE * abs(float(arms.get("stock", {}).get(name, {}).get("value") or 0.0))
        worse = {
            c: (theirs[c], mine[c])
            for c in mine
            if c in theirs and mine[c] - theirs[c] > max(least, _SAME * abs(theirs[c]))
        }
        if worse:
            case = max(worse, key=lambda c: worse[c][1] - worse[c][0])
            before, after = worse[case]
            change = _change(after, before)
            shown = f" ({_percent(change)})" if change is not None else ""
            more = f", and in {len(worse) - 1} more" if len(worse) > 1 else ""
            text = (
                f"but worse in {case.replace('_', ' ')}: {name.replace('_', ' ')} {_figure(before)}"
                f" → {_figure(after)}{shown}{more}"
            )
            lines.append(text[:_WIDTH])
    return lines


def _change(value: float, base: float) -> float | None:
    return None if abs(base) < 1e-12 else (value - base) / abs(base)


def _percent(change: float) -> str:
    return f"{'+' if change > 0 else '−'}{abs(100 * change):.3g} %"


def _figure(value: float | None) -> str:
    """Three figures, whole numbers from a hundred on, no exponents."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return (
        "0.000" if abs(value) < 5e-4 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.4f}"
    )
