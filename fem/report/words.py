"""How the report's sections name arms, measures and states, and in which order."""

from __future__ import annotations

from pathlib import Path

from engine.page import Line, Marked
from fem.report.result import ARMS, FLOORS, Result, Status

#: The report's own templates.
TEMPLATES = Path(__file__).parent / "templates"


def spaced(name: str) -> str:
    """A key in words: yielded_bone → yielded bone."""
    return name.replace("_", " ")


def with_unit(name: str, unit: str) -> Line:
    """A measure in words with its unit, which a plain ratio ("1") has none of."""
    return spaced(name) if unit in ("", "1") else (f"{spaced(name)} ", Marked(unit, "unit"))


def status_line(status: Status) -> tuple[str | Marked, ...]:
    """What became of an arm, a load case or a search: bad news in colour, and why."""
    word = spaced(status.code)
    shown = word if status.code == "ok" else Marked(word, "bad")
    return (shown, f": {status.text}") if status.text else (shown,)


def arm_name(arm: str, result: Result) -> str:
    return result.arms[arm].label or spaced(arm)


def arm_names(arms: list[str], result: Result) -> tuple[str, ...]:
    return tuple(arm_name(arm, result) for arm in arms)


def arm_order(result: Result) -> list[str]:
    """The devices, the floors, and then whatever else the run has."""
    known = [arm for arm in (*ARMS, *FLOORS) if arm in result.arms]
    return known + [arm for arm in result.arms if arm not in known]
