"""The devices of two runs side by side in three dimensions, on the page of scripts/compare.py;
drawn by its Plotly, cameras coupled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from engine import artifacts
from engine.page import script_json
from engine.part import surface
from engine.patient import load_segment
from engine.types import Surface
from scripts.comparison.tables import Found

#: Triangles of a device and of a vertebra: enough to see the shape, and a hundred devices stay a
#: few megabytes.
DEVICE_FACES, BONE_FACES = 1600, 1800
ARMS = ("optimised", "conforming", "stock")


@dataclass(frozen=True)
class Devices:
    """runs: their names, in the order of `parts`, which is what templates/devices.js reads."""

    runs: Sequence[str]
    arms: Sequence[str]
    parts: Markup


def devices(found: Found) -> Devices:
    data = collected(found)
    return Devices([run["name"] for run in data["runs"]], ARMS, script_json(data))


def collected(found: Found) -> dict[str, Any]:
    """Shapes by their content, and which of them each run shows: seeds share rivals, runs of a
    patient its vertebrae. Runs without parts are left out."""
    shapes: dict[str, dict[str, list[float] | list[int]]] = {}
    bones: dict[str, list[str]] = {}
    runs = []
    for run in found.runs:
        parts = {}
        for arm in ARMS:
            path = run.folder / "designs" / arm / "implant.stl"
            if path.exists():
                name = artifacts.sha256_file(path)[:12]
                if name not in shapes:
                    shapes[name] = _plain(surface.read(path), DEVICE_FACES)
                parts[arm] = name
        if not parts or not (run.folder / "segment").is_dir():
            continue
        if run.patient not in bones:
            segment = load_segment(run.folder / "segment")
            bones[run.patient] = []
            for v in (segment.caudal, segment.cranial):
                name = f"{run.patient} {v.name}"
                shapes[name] = _plain(v.surface, BONE_FACES)
                bones[run.patient].append(name)
        runs.append(
            {
                "name": f"{run.patient}, {run.objectives}, seed {run.seed}",
                "bones": bones[run.patient],
                "parts": parts,
            }
        )
    return {"shapes": shapes, "runs": runs}


def _plain(full: Surface, faces: int) -> dict[str, list[float] | list[int]]:
    """Vertices in mm (to 0.01) and triangles, flat."""
    few = surface.decimated(full, faces)
    return {
        "p": np.round(np.asarray(few.points_mm), 2).ravel().tolist(),
        "f": np.asarray(few.faces).ravel().tolist(),
    }
