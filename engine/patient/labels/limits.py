"""From where a finding of the quality gate warns, and from where it stops (quality.py)."""

from __future__ import annotations

import numpy as np

from engine.patient.labels.pieces import LARGEST_CUT_MM2
from engine.types import Finding

#: Finding's code → warning above, stop above.
LIMITS = {
    "fragments": (0.02, 0.20),
    "truncated": (0.0, LARGEST_CUT_MM2),
    "holes": (0.03, 0.15),
    "leak": (0.02, 0.06),
    "contact": (50.0, 400.0),
    "coarse": (2.05, 5.0),
}


def graded(
    code: str, value: float, level: str, text: str, place: np.ndarray | None = None
) -> list[Finding]:
    """The finding of a measure, "warning" or "stop" by its limits; none below them. place: LPS
    mm."""
    warn, stop = LIMITS[code]
    if value <= warn:
        return []
    return [Finding(code, "stop" if value > stop else "warning", level, text, place_of(place))]


def place_of(point: np.ndarray | None) -> tuple[float, float, float] | None:
    """A place in a finding's form."""
    return None if point is None else (float(point[0]), float(point[1]), float(point[2]))
