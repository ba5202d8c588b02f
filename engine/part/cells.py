"""The lattice's cells: level functions, their levels by relative density, and how wide their struts
and pores are.

    gyroid   g = sin x cos y + sin y cos z + sin z cos x
    diamond  g = sin x sin y sin z + sin x cos y cos z + cos x sin y cos z + cos x cos y sin z

x in units of the cell / 2π; solid where g < t(ρ), the quantile of g over one cell, so that the
solid fraction is ρ. Reference values: the level 0 halves the cell, its area is 3.09 (gyroid) and
3.84 (diamond) squared cells a cell.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

#: Gain of printed struts along and across the build direction, mm [S80].
GAIN_MM = {"gyroid": (0.013, 0.199), "diamond": (0.0075, 0.105)}
#: Triples of density, narrowest strut, narrowest pore, as shares of the cell's size.
_WIDTHS = {
    "gyroid": """
        0.1 0.158 0.675   0.15 0.204 0.643   0.2 0.237 0.583   0.25 0.271 0.575
        0.3 0.306 0.517   0.4 0.367 0.48   0.5 0.423 0.424   0.6 0.483 0.368
        0.7 0.518 0.308   0.75 0.575 0.272   0.8 0.583 0.237   0.85 0.643 0.204
        0.9 0.656 0.158   0.95 0.684 0.095
    """,
    "diamond": """
        0.1 0.072 0.571   0.15 0.132 0.539   0.2 0.173 0.51   0.25 0.208 0.483
        0.3 0.239 0.456   0.4 0.298 0.403   0.5 0.351 0.351   0.6 0.403 0.298
        0.7 0.456 0.239   0.75 0.483 0.208   0.8 0.51 0.173   0.85 0.539 0.132
        0.9 0.571 0.072
    """,
}


def level_function(cell: str, x: Any, y: Any, z: Any) -> np.ndarray:
    """g at phases x, y, z (radians, broadcast)."""
    sx, cx, sy, cy, sz, cz = np.sin(x), np.cos(x), np.sin(y), np.cos(y), np.sin(z), np.cos(z)
    if cell == "gyroid":
        return np.asarray(sx * cy + sy * cz + sz * cx)
    return np.asarray(sx * (sy * sz + cy * cz) + cx * (sy * cz + cy * sz))


@lru_cache
def _quantiles(cell: str) -> tuple[np.ndarray, np.ndarray]:
    """Relative densities and their levels."""
    phase = (np.arange(64) + 0.5) / 64 * 2 * np.pi
    share = np.linspace(0.0, 1.0, 401)
    return share, np.quantile(
        level_function(cell, *np.meshgrid(phase, phase, phase, indexing="ij", sparse=True)), share
    )


def level(cell: str, density: Any) -> np.ndarray:
    """t(ρ): the level below which a share ρ of the cell lies."""
    return np.interp(density, *_quantiles(cell))


def widths(cell: str) -> np.ndarray:
    """Rows [density, narrowest strut, narrowest pore] of the cell, as shares of its size: medial
    axis, 1st percentile, on a grid of 96 samples a cell; tests/surface/test_lattice.py measures
    them again."""
    return np.array(_WIDTHS[cell].split(), float).reshape(-1, 3)
