"""How long a run will take, before it begins: by finished runs of the same size beside it, else by
a rule of thumb that says it is one."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.run import stored

#: Seconds on two cores of a 2.1 GHz server with the embedded phantom, each at the grid or mesh
#: given: one position of a rival and one iteration at 2 mm, one arm in SfePy on fem=demo; and what
#: does not depend on any of them (imports, checks of the machine, export, report).
_POSITION_S, _ITERATION_S, _ARM_S, _REST_S = 3.0, 6.0, 22.0, 45.0
#: SfePy's time of an arm over that of fem=demo, by the mesh's finest edge in mm.
_MESH = {3.0: 1.0, 2.0: 2.5, 1.5: 6.0}
_MOST = 40


def duration(seconds: float) -> str:
    """`40 s`, `4 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of a run's configuration (as in config.yaml, or composed): what its time goes with."""
    study, fem = config.get("study", config), config.get("fem") or {}
    search, solver = study.get("search") or {}, study.get("solver") or {}
    mesh = fem.get("mesh") or {}
    return (
        solver.get("spacing_mm"),
        tuple(search.get(k) for k in ("spacing_mm", "x", "y", "yaw", "refine")),
        (config.get("optimizer") or {}).get("iterations"),
        mesh.get("size_fine_mm"),
        tuple(fem.get("arms") or ()),
        bool(config.get("check")),
    )


def of_run(config: Mapping[str, Any], folder: Path) -> str:
    """The expected time of a run as a phrase, with how it was found."""
    if found := _beside(config, folder):
        return (
            f"about {duration(statistics.median(found))} (median of {len(found)} finished runs of"
            f" this size in {folder.parent})"
        )
    return (
        f"about {duration(seconds(config))} (rule of thumb for two cores, wrong by a factor of two"
        f" either way; no finished run of this size in {folder.parent})"
    )


def _beside(config: Mapping[str, Any], folder: Path) -> list[float]:
    """Seconds of the newest finished runs of this size beside the folder."""
    try:
        ends = sorted(folder.parent.glob("*/outcome.json"), key=os.path.getmtime, reverse=True)[
            :_MOST
        ]
        done = [
            p.parent
            for p in ends
            if p.parent != folder and json.loads(p.read_text()).get("status") == "done"
        ]
        same = [p for p in done if size(stored.configuration(p) or {}) == size(config)]
        times = [
            sum(json.loads((p / "timings.json").read_text())["seconds"].values()) for p in same
        ]
    except (OSError, ValueError, KeyError):
        return []
    return [t for t in times if t > 0]


def seconds(config: Mapping[str, Any]) -> float:
    """By the rule of thumb: positions, iterations and arms at their grid's and mesh's cost (voxels:
    the inverse cube of the spacing)."""
    spacing_mm, (search_mm, *counts, refine), iterations, fine_mm, arms, check = size(config)
    x, y, yaw = (c or 1 for c in counts)
    trials = 2 * (x * y * yaw + (refine or 0))
    total = _REST_S + trials * _POSITION_S * (2.0 / (search_mm or 2.0)) ** 3
    total += (iterations or 0) * _ITERATION_S * (2.0 / (spacing_mm or 2.0)) ** 3
    if check:
        nearest = min(_MESH, key=lambda mm: abs(mm - (fine_mm or 2.0)))
        total += len(arms) * _ARM_S * _MESH[nearest]
    return total
