"""Plots of a run's history, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

#: One look per line, distinguishable without colour.
STYLES = ("-", "--", "-.", ":")
#: Size of a panel, inches.
_WIDTH, _HEIGHT = 4.2, 3.2
#: From so many iterations on the lines have no dots.
_DOTS_BELOW = 30
#: Positive values that span more than this factor are drawn on a logarithmic axis.
_LOGARITHMIC_SPAN = 50


class _Panel(NamedTuple):
    """One plot: values by the name of their line; None leaves a gap. logarithmic: it may be so
    where its values ask for it."""

    title: str
    lines: Mapping[str, Sequence[float | None]]
    logarithmic: bool = True


def convergence(history: list[dict[str, Any]]) -> bytes | None:
    """Objective, terms and constraint violation over the iterations; None when there is nothing to
    draw.

    Reads from each record: iteration, objective, terms {name: number}, violation; what is missing
    is left out, and null (a step that failed) leaves a gap.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [record for record in history if "iteration" in record]
    if not records:
        return None
    steps = [record["iteration"] for record in records]
    panels = _panels(records)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(_WIDTH * len(panels), _HEIGHT), dpi=120, squeeze=False
    )
    for ax, panel in zip(axes[0], panels, strict=True):
        _draw(ax, steps, panel)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    plt.close(figure)
    return stream.getvalue()


def _panels(records: list[dict[str, Any]]) -> list[_Panel]:
    objective = [record.get("objective") for record in records]
    panels = [_Panel("objective", {"objective": objective}, logarithmic=False)]
    terms = [record.get("terms") or {} for record in records]
    if names := list(dict.fromkeys(name for term in terms for name in term)):
        panels.append(_Panel("terms", {name: [term.get(name) for term in terms] for name in names}))
    violation = [record.get("violation") for record in records]
    if any(value is not None for value in violation):
        panels.append(_Panel("constraint violation", {"violation": violation}))
    return panels


def _draw(ax: Any, steps: list[int], panel: _Panel) -> None:
    for i, (name, values) in enumerate(panel.lines.items()):
        shown = np.array([np.nan if value is None else float(value) for value in values])
        dots = "." if len(steps) < _DOTS_BELOW else ""
        ax.plot(steps, shown, STYLES[i % len(STYLES)], marker=dots, label=name)
    if panel.logarithmic and _spans_decades(panel.lines):
        ax.set_yscale("log")
    if len(panel.lines) > 1:
        ax.legend(fontsize=7, frameon=False)
    ax.set_title(panel.title, fontsize=10)
    ax.set_xlabel("iteration")
    ax.grid(alpha=0.3)
    ax.xaxis.get_major_locator().set_params(integer=True)


def _spans_decades(lines: Mapping[str, Sequence[float | None]]) -> bool:
    values = np.array([v for line in lines.values() for v in line if v is not None], float)
    return bool(
        len(values) and (values > 0).all() and values.max() > _LOGARITHMIC_SPAN * values.min()
    )
