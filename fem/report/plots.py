"""Plots of a run's history, as PNG bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

#: One look per line, distinguishable without colour.
STYLES = ("-", "--", "-.", ":")


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
    names = list(dict.fromkeys(name for record in records for name in record.get("terms") or {}))
    panels = [("objective", {"objective": [record.get("objective") for record in records]})]
    if names:
        panels.append(
            (
                "terms",
                {
                    name: [(record.get("terms") or {}).get(name) for record in records]
                    for name in names
                },
            )
        )
    if any(record.get("violation") is not None for record in records):
        panels.append(
            ("constraint violation", {"violation": [record.get("violation") for record in records]})
        )

    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.2), dpi=120, squeeze=False
    )
    for ax, (title, lines) in zip(axes[0], panels, strict=True):
        for i, (name, values) in enumerate(lines.items()):
            shown = np.array([np.nan if value is None else float(value) for value in values])
            ax.plot(
                steps,
                shown,
                STYLES[i % len(STYLES)],
                marker="." if len(steps) < 30 else "",
                label=name,
            )
        finite = np.array([v for values in lines.values() for v in values if v is not None], float)
        if (
            title != "objective"
            and len(finite)
            and (finite > 0).all()
            and finite.max() > 50 * finite.min()
        ):
            ax.set_yscale("log")
        if len(lines) > 1:
            ax.legend(fontsize=7, frameon=False)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("iteration")
        ax.grid(alpha=0.3)
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    plt.close(figure)
    return stream.getvalue()
