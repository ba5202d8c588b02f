"""How a sheet's layers and dimensions are drawn, in PDF and DXF alike."""

from __future__ import annotations

import numpy as np

#: layer → line width mm, dashes (in widths), DXF colour
LAYERS: dict[str, tuple[float, tuple[float, float] | None, int]] = {
    "VISIBLE": (0.5, None, 7),
    "HIDDEN": (0.18, (6.0, 4.0), 8),
    "DIM": (0.18, None, 5),
    "HATCH": (0.13, None, 8),
    "CUT": (0.35, (12.0, 3.0), 1),
    "CUT_ARROW": (0.35, None, 1),
    "TEXT": (0.18, None, 7),
    "FRAME": (0.35, None, 7),
    "KEY": (0.25, None, 3),
}


def dimension_text(first: np.ndarray, second: np.ndarray, at: float, direction: str) -> np.ndarray:
    """Where a dimension's number stands on the sheet [2]: above the middle of a level line; left
    of an upright one, off its middle, where sections run, centred on that place and read from
    the right."""
    a, b = dimension_ends(first, second, at, direction)
    return 0.5 * (a + b) + [0, 1.0] if direction == "x" else a + 0.35 * (b - a) - [1.0, 0]


def dimension_ends(
    first: np.ndarray, second: np.ndarray, at: float, direction: str
) -> tuple[np.ndarray, np.ndarray]:
    k = 1 if direction == "x" else 0
    ends = [p.copy() for p in (first, second)]
    for e in ends:
        e[k] = at
    return ends[0], ends[1]


def dimension_lines(
    first: np.ndarray, second: np.ndarray, at: float, direction: str
) -> list[np.ndarray]:
    """The dimension line and its two extension lines (1 mm off the part, 1.5 mm past the line)."""
    a, b = dimension_ends(first, second, at, direction)
    k = 1 if direction == "x" else 0
    out = [np.stack([a, b])]
    for point, end in ((first, a), (second, b)):
        way = np.sign(end[k] - point[k]) or 1.0
        start, stop = point.copy(), end.copy()
        start[k] += way * 1.0
        stop[k] += way * 1.5
        out.append(np.stack([start, stop]))
    return out
