"""A spine's alignment as measured: values, standard errors, what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from engine.types import SegmentAlignment

#: Place of the values that belong to no level.
REGIONAL = "regional"
POSTURES = ("supine", "standing", "phantom", "unknown")


@dataclass(frozen=True)
class Measure:
    """One value. status "measured" | "given" | "not measurable"; `reason` says why not, or what
    to beware of."""

    value: float | str | None
    unit: str
    status: str
    standard_error: float | None = None
    reason: str = ""
    source: str = ""


@dataclass(frozen=True)
class SpineAlignment:
    """All measures by (place, name): place "L4-L5", "L4" or "regional"; the unit is the name's
    ending.

    segments   SegmentAlignment by disc; for L5-S1 its segmental lordosis ends at S1's superior
               endplate
    """

    posture: str
    segments: dict[str, SegmentAlignment]
    measures: dict[tuple[str, str], Measure] = field(default_factory=dict)

    def measure(self, name: str, place: str = REGIONAL) -> Measure:
        """The measure. Raises ValueError naming what there is at that place."""
        if (place, name) not in self.measures:
            there = [key for where, key in self.measures if where == place]
            raise ValueError(
                f"no measure {name!r} at {place!r}; there is {', '.join(there) or 'nothing'}"
            )
        return self.measures[place, name]

    def value(self, name: str, place: str = REGIONAL) -> float:
        """The number. Raises ValueError, with the reason, where it could not be measured or is a
        word."""
        entry = self.measure(name, place)
        if not isinstance(entry.value, int | float):
            raise ValueError(
                f"{name} of {place} is {entry.value or 'not measurable'}:"
                f" {entry.reason or 'a word, no number'}"
            )
        return float(entry.value)

    def table(self) -> list[dict[str, Any]]:
        """One JSON-able row per measure: place, name, value, unit, status, standard_error,
        reason, source."""
        return [
            {"place": place, "name": name, **asdict(entry)}
            for (place, name), entry in self.measures.items()
        ]

    def with_errors(self, errors: Mapping[tuple[str, str], float]) -> SpineAlignment:
        """The same with standard errors (of `standard_errors`) at the measures that have one."""
        measures = {
            key: (
                replace(entry, standard_error=errors[key])
                if key in errors and entry.status == "measured"
                else entry
            )
            for key, entry in self.measures.items()
        }
        return replace(self, measures=measures)
