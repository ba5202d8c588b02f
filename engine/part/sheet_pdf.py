"""A sheet as PDF, to be read: true to scale on paper."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from engine.part.drawing import SHEET_MM, Sheet
from engine.part.layers import LAYERS, dimension_ends, dimension_lines, dimension_text

logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph
_POINTS_PER_MM = 72 / 25.4
#: Size of the letters of a dimension, mm; of other texts, in heights of their capitals.
_DIMENSION_MM, _LETTERS_PER_HEIGHT = 2.8, 1.25


def write_pdf(page: Sheet, path: Path | str, title: str) -> Path:
    """The sheet on paper, true to scale, with text that can be searched."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SHEET_MM[0] / 25.4, SHEET_MM[1] / 25.4))
    FigureCanvasPdf(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, SHEET_MM[0]), ylim=(0, SHEET_MM[1]))
    axes.axis("off")
    for layer, xy in page.lines:
        _line(axes, layer, xy)
    for curves in page.hatches:
        _hatch(axes, curves)
    for dimension in page.dimensions:
        _dimension(axes, *dimension)
    for _, x, y, height, words, align, degrees in page.texts:
        axes.text(
            x,
            y,
            words,
            fontsize=_LETTERS_PER_HEIGHT * height * _POINTS_PER_MM,
            ha=align,
            va="baseline",
            rotation=degrees,
            parse_math=False,
        )
    stream = io.BytesIO()
    # no dates: the same part, the same bytes
    metadata = {"Title": title, "Creator": "spinefit", "CreationDate": None, "Producer": None}
    with rc_context({"pdf.fonttype": 42, "font.family": "DejaVu Sans", "hatch.linewidth": 0.35}):
        figure.savefig(stream, format="pdf", metadata=metadata)
    return artifacts.write_bytes(path, stream.getvalue())


def _line(axes: Any, layer: str, xy: np.ndarray) -> None:
    width, dashes, _ = LAYERS[layer]
    axes.plot(
        *xy.T,
        color="black",
        lw=width * _POINTS_PER_MM,
        ls="-" if dashes is None else (0, dashes),
        solid_joinstyle="round",
    )


def _hatch(axes: Any, curves: list[np.ndarray]) -> None:
    """One region: outer curves turn left, holes right."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    codes = [
        code
        for c in curves
        for code in (Curve.MOVETO, *[Curve.LINETO] * (len(c) - 1), Curve.CLOSEPOLY)
    ]
    corners = np.concatenate([np.vstack([c, c[:1]]) for c in curves])
    axes.add_patch(
        PathPatch(Curve(corners, codes), facecolor="none", edgecolor="0.35", hatch="////", lw=0.0)
    )


def _dimension(
    axes: Any, first: np.ndarray, second: np.ndarray, at: float, direction: str, length: float
) -> None:
    """A dimension with its extension lines, heads and number (see Sheet.dimensions)."""
    for piece in dimension_lines(first, second, at, direction):
        _line(axes, "DIM", piece)
    a, b = dimension_ends(first, second, at, direction)
    for tip, other in ((a, b), (b, a)):
        head = {
            "arrowstyle": "-|>,head_length=0.5,head_width=0.15",
            "lw": 0.0,
            "color": "black",
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.annotate("", tuple(tip), tuple(other), arrowprops=head)
    middle = dimension_text(first, second, at, direction)
    axes.text(
        float(middle[0]),
        float(middle[1]),
        f"{length:.2f}",
        fontsize=_DIMENSION_MM * _POINTS_PER_MM,
        ha="center" if direction == "x" else "right",
        va="bottom" if direction == "x" else "center",
        rotation=0 if direction == "x" else 90,
    )
