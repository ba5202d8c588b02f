"""One colour scale for bone strain, in pictures and viewer: −ε_min, %, from 0 to twice yield.

    0 %                light cream: bone that carries nothing
    yield              marked on every colour bar (engine.materials.YIELD_STRAIN_COMPRESSION)
    2 × yield and on   nearly black

The table is matplotlib's magma turned round and cut at both ends: its lightness falls evenly, so
that order shows in grey print and to the colour-blind. Disc, graft and implant carry no bone
strain: they are grey.
"""

from __future__ import annotations

import numpy as np

from engine.materials import YIELD_STRAIN_COMPRESSION

YIELD_PERCENT = 100.0 * YIELD_STRAIN_COMPRESSION
#: Where the scale ends; higher strain has the last colour.
MOST_PERCENT = 2.0 * YIELD_PERCENT
#: By region (engine.types.REGIONS); bone where no strain is shown.
PLAIN = {
    "caudal": "#d9cfb8",
    "cranial": "#e3dac6",
    "implant": "#8d959b",
    "graft": "#b9b4b0",
    "remnant": "#d4d8da",
}
_FIRST, _LAST = 0.99, 0.08


def strain_table() -> np.ndarray:
    """RGB [256, 3] in 0..1, from no strain to `MOST_PERCENT`."""
    import matplotlib

    return np.asarray(matplotlib.colormaps["magma"](np.linspace(_FIRST, _LAST, 256)))[:, :3]


def hexadecimal(table: np.ndarray) -> list[str]:
    """RGB [n, 3] in 0..1 as #rrggbb."""
    return ["#{:02x}{:02x}{:02x}".format(*(round(255 * float(c)) for c in row)) for row in table]
