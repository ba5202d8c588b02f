"""The table of a spine's measures while it is filled: each number with its unit, its standing and
its source."""

from __future__ import annotations

from engine.patient.alignment.measures import REGIONAL, Measure
from engine.patient.alignment.scores import STANDING_ADDS_DEG

#: Measured against gravity, for which LPS z stands.
_VERTICAL = ("sacral_slope_deg", "pelvic_tilt_deg", "apex")
_UNITS = {"_deg": "deg", "_mm": "mm", "_percent": "%"}


class Table:
    """Measures by (place, name), in the order in which they are put."""

    def __init__(self, posture: str) -> None:
        self.posture = posture
        self.measures: dict[tuple[str, str], Measure] = {}

    def put(
        self,
        place: str,
        name: str,
        value: float | str,
        *,
        reason: str = "",
        status: str = "measured",
        source: str = "",
    ) -> None:
        """Enter a value. Its unit is the name's ending; source and reason have defaults."""
        if not source:
            source = f"endplates of this scan ({self.posture})"
            if name in _VERTICAL:
                source += "; LPS z of the scan stands for the vertical"
        if not reason and self.posture == "supine" and name in STANDING_ADDS_DEG:
            reason = (
                f"supine: standing adds {STANDING_ADDS_DEG[name]:g}° in the mean of one cohort"
                " [S67]"
            )
        number = float(value) if not isinstance(value, str) else value
        self.measures[place, name] = Measure(number, _unit(name), status, None, reason, source)

    def lack(self, place: str, name: str, reason: str) -> None:
        """Enter that a measure is not measurable, and why."""
        self.measures[place, name] = Measure(None, _unit(name), "not measurable", None, reason)

    def regional(self, name: str) -> float | None:
        """A regional number that was entered; None where there is none."""
        entry = self.measures.get((REGIONAL, name))
        return entry.value if entry is not None and isinstance(entry.value, float) else None


def _unit(name: str) -> str:
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")
