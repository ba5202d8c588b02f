"""The 3-D section of the report: each arm's tetrahedra with what SfePy found in them, packed small,
for fem/report/viewer/viewer.js.

Per arm, little-endian and deflated: nodes uint16 [n, 3] (low + step·i), a gap to a multiple of 4
bytes, tetrahedra uint32 [m, 4], region uint8 [m], and per load case uint8 [m]: in bone, graft and
disc the compressive principal strain −ε_min in 1/255 of `strain_percent`, in the implant the von
Mises stress in 1/255 of `stress_mpa`. Values beyond either end are shown as the end. A node moves
by at most half a step (segment of 100 mm: 0.8 µm). Bone is coloured on the scale of
fem/report/colours.py, the rest is grey; a click reads both.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from engine.page import render, script_json
from engine.types import REGIONS
from fem.fields import loads_of, stored_name
from fem.report.colours import MOST_PERCENT, PLAIN, YIELD_PERCENT, hexadecimal, strain_table
from fem.report.letters import ENDS
from fem.report.result import Result
from fem.report.words import TEMPLATES, spaced

#: Arms in the order in which they are offered.
_ORDER = (
    "optimised",
    "conforming",
    "stock",
    "intact",
    "full_endplate",
    "conforming_central",
    "stock_central",
)
#: Regions in the reader's words.
_WORDS = {"remnant": "disc"}
#: Every how many colours of the table the legend's bar has a stop: 16 of 256.
_STOP_STEP = 17


def available(folder: Path, result: Result) -> list[str]:
    """Arms whose solution is there to be shown."""
    ok = [
        a
        for a, arm in result.arms.items()
        if arm.status.code == "ok" and (folder / "fem" / a / "solution.vtu").exists()
    ]
    return sorted(ok, key=lambda a: _ORDER.index(a) if a in _ORDER else len(_ORDER))


def scene(folder: Path, arms: Sequence[str]) -> dict[str, Any]:
    """What viewer.js reads. Raises ValueError when a solution is not one of ours, or the arms'
    load cases differ."""
    import pyvista as pv

    grids = {arm: pv.read(folder / "fem" / arm / "solution.vtu") for arm in arms}
    loads = {arm: loads_of(grid.cell_data.keys(), "strain_min") for arm, grid in grids.items()}
    if len({tuple(names) for names in loads.values()}) != 1 or not loads[arms[0]]:
        raise ValueError(
            f"the solutions of {', '.join(arms)} hold different load cases, or none: check the run"
            " again"
        )
    names = loads[arms[0]]
    stress = [
        np.percentile(_implant(grid, names), 99.5)
        for grid in grids.values()
        if len(_implant(grid, names))
    ]
    stress_mpa = float(np.ceil(max(stress, default=1.0) / 5.0) * 5.0)
    low = np.min([np.asarray(g.points).min(0) for g in grids.values()], axis=0)
    high = np.max([np.asarray(g.points).max(0) for g in grids.values()], axis=0)
    return {
        "regions": list(REGIONS),
        "loads": names,
        "strain_percent": MOST_PERCENT,
        "yield_percent": YIELD_PERCENT,
        "stress_mpa": stress_mpa,
        "low_mm": low.tolist(),
        "high_mm": high.tolist(),
        "colours": hexadecimal(strain_table()),
        "plain": PLAIN,
        "words": {r: _WORDS.get(r, r) for r in REGIONS},
        "letters": ENDS,
        "implant_mm": _implant_middle(grids),
        "arms": [
            {"name": arm, "label": spaced(arm)} | packed(grid, names, stress_mpa)
            for arm, grid in grids.items()
        ],
    }


def _implant(grid: Any, loads: Sequence[str]) -> np.ndarray:
    inside = np.asarray(grid.cell_data["region"]) == REGIONS.index("implant")
    return np.concatenate([_array(grid, name, "von_mises_mpa")[inside] for name in loads])


def _array(grid: Any, load: str, quantity: str) -> np.ndarray:
    return np.asarray(grid.cell_data[stored_name(grid.cell_data.keys(), load, quantity)])


def _implant_middle(grids: dict[str, Any]) -> list[float]:
    """Where a cut begins: the middle of the first arm's implant, or of the segment where none
    has one, mm."""
    for grid in grids.values():
        inside = np.flatnonzero(np.asarray(grid.cell_data["region"]) == REGIONS.index("implant"))
        if len(inside):
            points = np.asarray(grid.points)[
                np.asarray(grid.cells).reshape(-1, 5)[inside, 1:]
            ].reshape(-1, 3)
            return list(map(float, 0.5 * (points.min(0) + points.max(0))))
    points = np.asarray(next(iter(grids.values())).points)
    return list(map(float, 0.5 * (points.min(0) + points.max(0))))


def packed(grid: Any, loads: Sequence[str], stress_mpa: float) -> dict[str, Any]:
    """One arm: nodes, tets, low_mm, step_mm, data (base64)."""
    points, tets = np.asarray(grid.points, float), np.asarray(grid.cells).reshape(-1, 5)[:, 1:]
    region = np.asarray(grid.cell_data["region"]).astype(np.uint8)
    low, step = points.min(0), np.ptp(points, axis=0) / 65535.0
    parts = [np.round((points - low) / np.where(step > 0, step, 1.0)).astype("<u2").tobytes()]
    parts.append(b"\0" * (-len(parts[0]) % 4))
    parts += [tets.astype("<u4").tobytes(), region.tobytes()]
    metal = region == REGIONS.index("implant")
    for name in loads:
        share = np.where(
            metal,
            _array(grid, name, "von_mises_mpa") / stress_mpa,
            -100.0 * _array(grid, name, "strain_min") / MOST_PERCENT,
        )
        parts.append(np.round(255.0 * np.clip(share, 0.0, 1.0)).astype(np.uint8).tobytes())
    data = base64.b64encode(zlib.compress(b"".join(parts), 9)).decode()
    return {
        "nodes": len(points),
        "tets": len(tets),
        "low_mm": low.tolist(),
        "step_mm": step.tolist(),
        "data": data,
    }


# -- the section -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Viewer:
    """HTML of the section, and of the script that the page's end needs (empty where there is
    nothing to show)."""

    section: Markup
    script: Markup = Markup()


@dataclass(frozen=True)
class Choice:
    """One entry of a list, or one box to be ticked."""

    value: str
    words: str
    chosen: bool = False


@dataclass(frozen=True)
class Controls:
    """What the reader can choose, and the legend of the colours.

    stops         colours of the bar, from no strain to `most_percent`
    yield_place   where on the bar yield is marked, % of its length
    """

    arms: Sequence[Choice]
    beside: Sequence[Choice]
    fields: Sequence[Choice]
    bodies: Sequence[Choice]
    stops: str
    most_percent: str
    yield_percent: str
    yield_place: str


def viewer_section(folder: Path, result: Result) -> Viewer:
    arms = available(folder, result)
    if not arms:
        return _section(
            "No solution is in the run folder (keep.solutions), so that there is nothing to show in"
            " three dimensions."
        )
    try:
        data = scene(folder, arms)
    except (ValueError, KeyError, OSError) as error:
        return _section(
            f"Not shown in three dimensions: {error}. The pictures below show the arms."
        )
    data["words"] |= _levels(result)
    script = resources.files("fem.report").joinpath("viewer/viewer.min.js").read_text()
    return Viewer(
        _section(controls=_controls(data)).section,
        render("viewer_script.html.j2", TEMPLATES, data=script_json(data), script=Markup(script)),
    )


def _section(absence: str = "", controls: Controls | None = None) -> Viewer:
    return Viewer(render("viewer.html.j2", TEMPLATES, absence=absence, controls=controls))


def _levels(result: Result) -> dict[str, str]:
    """The vertebrae by their names, where the segment has any, e.g. "L4-L5"."""
    names = str(result.asked.get("segment", "")).split("-")
    return (
        dict(zip(("cranial", "caudal"), names, strict=True))
        if len(names) == 2 and all(names)
        else {}
    )


def _controls(data: dict[str, Any]) -> Controls:
    arms = [Choice(arm["name"], arm["label"]) for arm in data["arms"]]
    # the page opens with the second load case, where there is one
    opening = min(1, len(data["loads"]) - 1)
    fields = [
        Choice(str(i), f"strain in bone, {spaced(name)}", i == opening)
        for i, name in enumerate(data["loads"])
    ]
    # the disc hides the implant: it is there when it is asked for
    bodies = [Choice(r, data["words"][r], r != "remnant") for r in data["regions"]]
    return Controls(
        arms,
        [Choice("", "nothing", True), *arms],
        [*fields, Choice("", "plain")],
        bodies,
        ",".join(data["colours"][::_STOP_STEP]),
        f"{data['strain_percent']:.2f}",
        f"{data['yield_percent']:.2f}",
        f"{100.0 * data['yield_percent'] / data['strain_percent']:.1f}",
    )
