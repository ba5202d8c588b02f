"""Scores, types and grades by their published bounds: GAP, SRS-Schwab, Roussouly, Meyerding,
Genant."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

#: What standing adds to a recumbent measure, difference of the means [S67].
STANDING_ADDS_DEG = {"lumbar_lordosis_deg": 13.0, "l4_s1_lordosis_deg": 4.4}
#: Slips below this are anatomy and noise, and have no grade.
SLIP_TOLERANCE_MM = 2.0
#: Percent of the endplate's depth, below which a slip is of the grade.
_MEYERDING = ((25.0, "I"), (50.0, "II"), (75.0, "III"))
_GAP: dict[str, tuple[tuple[float, int], ...]] = {
    # (upper bound, points); the last step is open
    "pelvic_version": ((-15.0, 3), (-7.0, 2), (5.0, 0), (np.inf, 1)),
    "relative_lordosis": ((-25.0, 3), (-14.0, 2), (11.0, 0), (np.inf, 3)),
    "distribution": ((40.0, 2), (50.0, 1), (80.0, 0), (np.inf, 3)),
    "spinopelvic": ((-7.0, 1), (10.0, 0), (18.0, 1), (np.inf, 3)),
}


def gap_ideal_slope_deg(pi_deg: float) -> float:
    """Ideal SS = 0.59·PI + 9 [S60]."""
    return 0.59 * pi_deg + 9.0


def gap_ideal_lordosis_deg(pi_deg: float) -> float:
    """Ideal LL = 0.62·PI + 29 [M]."""
    return 0.62 * pi_deg + 29.0


def gap_points(part: str, value: float) -> int:
    """Points of one part of the GAP score [M]: "pelvic_version", "relative_lordosis" (measured
    less ideal, degrees), "distribution" (percent), "spinopelvic" (degrees) or "age" (years)."""
    if part == "age":
        return int(value >= 60.0)
    for (bound, points), (_, following) in pairwise(_GAP[part]):
        if value <= bound:  # a bound itself belongs to the step with fewer points
            return points if value < bound else min(points, following)
    return _GAP[part][-1][1]


def gap_most(part: str) -> int:
    """Most points that a part can give."""
    return 1 if part == "age" else max(points for _, points in _GAP[part])


def schwab_modifier(part: str, value_deg: float) -> str:
    """SRS-Schwab "0", "+" or "++": part "PI-LL" at 10 and 20°, "PT" at 20 and 30° [S59]."""
    low, high = {"PI-LL": (10.0, 20.0), "PT": (20.0, 30.0)}[part]
    return "0" if value_deg < low else "+" if value_deg <= high else "++"


def roussouly_type(sacral_slope_deg: float, apex: str | None) -> str | None:
    """Type "1" … "4" by SS, below 35° by the apex (L5: 1, else 2) [S68]; None where that is
    needed and not known."""
    if sacral_slope_deg < 35.0:
        return None if apex is None else "1" if apex in ("L5", "L5-S1") else "2"
    return "3" if sacral_slope_deg <= 45.0 else "4"


def meyerding(slip_percent: float, slip_mm: float) -> str:
    """Grade of a slip: I < 25, II < 50, III < 75, IV ≤ 100 %, V beyond [M]; "retro" where it is
    backwards; "none" < 2 mm."""
    if abs(slip_mm) < SLIP_TOLERANCE_MM:
        return "none"
    size = abs(slip_percent)
    grade = next((grade for below, grade in _MEYERDING if size < below), None)
    grade = grade or ("IV" if size <= 100.0 else "V")
    return f"{grade} retro" if slip_percent < 0.0 else grade


def height_loss_grade(loss_percent: float) -> str:
    """Genant's grade of the largest height loss: mild from 20, moderate from 25, severe over 40
    % [M]."""
    if loss_percent < 20.0:
        return "none"
    if loss_percent < 25.0:
        return "mild"
    return "moderate" if loss_percent <= 40.0 else "severe"
