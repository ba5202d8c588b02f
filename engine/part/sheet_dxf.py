"""A sheet as DXF, to be worked with: the part at 1:1 in mm, the sheet round it scaled to match."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from engine.part.drawing import Sheet
from engine.part.layers import LAYERS

logging.getLogger("ezdxf").setLevel(logging.WARNING)  # it tells of every glyph
_DIMENSION_STYLE = "SPINEFIT"


def write_dxf(page: Sheet, path: Path | str) -> Path:
    """The sheet as DXF R2010 in mm, the part at 1:1. Raises ValueError when the file does not
    pass ezdxf's audit."""
    document = _document(page.scale)
    space, k = document.modelspace(), 1.0 / page.scale
    for layer, xy in page.lines:
        space.add_lwpolyline((k * xy).tolist(), dxfattribs={"layer": layer})
    for curves in page.hatches:
        hatch = space.add_hatch(dxfattribs={"layer": "HATCH"})
        hatch.set_pattern_fill("ANSI31", scale=0.4 * k)
        for c in curves:
            hatch.paths.add_polyline_path((k * c).tolist(), is_closed=True)
    for first, second, at, direction, _ in page.dimensions:
        _add_dimension(space, k * first, k * second, k * at, direction)
    for text in page.texts:
        _add_text(space, k, *text)
    if (audit := document.audit()).has_errors:
        raise ValueError(f"the DXF does not pass its audit: {audit.errors[0].message}")
    stream = io.StringIO()
    document.write(stream)
    return artifacts.write_text(path, stream.getvalue())


def _document(scale: float) -> Any:
    """An empty document with the layers and the style of dimensions of a sheet at that scale."""
    import ezdxf

    ezdxf.options.write_fixed_meta_data_for_testing = True  # no time stamps, no random identifiers
    document = ezdxf.new("R2010", setup=True, units=ezdxf.units.MM)
    for name, (width, dashes, colour) in LAYERS.items():
        document.layers.add(
            name,
            color=colour,
            linetype="CONTINUOUS" if dashes is None else "DASHED",
            lineweight=int(100 * width),
        )
    style = document.dimstyles.duplicate_entry("EZDXF", _DIMENSION_STYLE)
    style.dxf.update(
        {
            "dimtxt": 2.8 / scale,
            "dimasz": 2.0 / scale,
            "dimexe": 1.5 / scale,
            "dimexo": 1.0 / scale,
            "dimgap": 0.8 / scale,
            "dimdec": 2,
            "dimlfac": 1.0,
            "dimtad": 1,
            "dimscale": 1.0,
        }
    )
    return document


def _add_dimension(
    space: Any, first: np.ndarray, second: np.ndarray, at: float, direction: str
) -> None:
    space.add_linear_dim(
        base=(0, at) if direction == "x" else (at, 0),
        p1=first.tolist(),
        p2=second.tolist(),
        angle=0 if direction == "x" else 90,
        dimstyle=_DIMENSION_STYLE,
        dxfattribs={"layer": "DIM"},
    ).render()


def _add_text(
    space: Any,
    k: float,
    layer: str,
    x: float,
    y: float,
    height: float,
    words: str,
    align: str,
    degrees: float,
) -> None:
    """A text of Sheet.texts, in mm of paper, k mm of the part each."""
    from ezdxf.enums import TextEntityAlignment

    side = {
        "left": TextEntityAlignment.LEFT,
        "center": TextEntityAlignment.CENTER,
        "right": TextEntityAlignment.RIGHT,
    }
    text = space.add_text(
        words, height=k * height, rotation=degrees, dxfattribs={"layer": layer, "style": "OpenSans"}
    )
    text.set_placement((k * x, k * y), align=side[align])
