"""GAP, SRS-Schwab and Roussouly: scores and types of a measured alignment."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

#: What standing adds to a recumbent measure, difference of the means [S67].
STANDING_ADDS_DEG = {"lumbar_lordosis_deg": 13.0, "l4_s1_lordosis_deg": 4.4}
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
