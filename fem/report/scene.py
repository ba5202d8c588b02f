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
import json
import zlib
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from engine.types import REGIONS
from fem.fields import loads_of, stored_name
from fem.report.colours import MOST_PERCENT, PLAIN, YIELD_PERCENT, hexadecimal, strain_table
from fem.report.letters import ENDS
from fem.report.result import Result

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
            {"name": arm, "label": arm.replace("_", " ")} | packed(grid, names, stress_mpa)
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
def viewer_section(folder: Path, result: Result) -> tuple[str, str]:
    """HTML of the section, and the script that the page's end needs (empty where there is
    nothing to show)."""
    arms = available(folder, result)
    if not arms:
        return (
            (
                "<p>No solution is in the run folder (keep.solutions), so that there is nothing to"
                " show in three dimensions.</p>"
            ),
            "",
        )
    try:
        data = scene(folder, arms)
    except (ValueError, KeyError, OSError) as error:
        return (
            (
                f"<p>Not shown in three dimensions: {escape(str(error))}. The pictures below show"
                " the arms.</p>"
            ),
            "",
        )
    data["words"] |= _levels(result)
    script = resources.files("fem.report").joinpath("viewer/viewer.min.js").read_text()
    text = json.dumps(data, allow_nan=False).replace("</", "<\\/")
    return (
        _controls(data),
        (
            '<script type="application/json"'
            f' id="viewer-data">{text}</script>\n<script>{script}</script>'
        ),
    )


def _levels(result: Result) -> dict[str, str]:
    """The vertebrae by their names, where the segment has any, e.g. "L4-L5"."""
    names = str(result.asked.get("segment", "")).split("-")
    return (
        dict(zip(("cranial", "caudal"), names, strict=True))
        if len(names) == 2 and all(names)
        else {}
    )


def _controls(data: dict[str, Any]) -> str:
    def options(pairs: Sequence[tuple[str, str]], chosen: str = "") -> str:
        return "".join(
            f'<option value="{escape(v)}"{" selected" if v == chosen else ""}>{escape(t)}</option>'
            for v, t in pairs
        )

    arms = [(a["name"], a["label"]) for a in data["arms"]]
    fields = [
        (str(i), f"strain in bone, {name.replace('_', ' ')}")
        for i, name in enumerate(data["loads"])
    ]
    box = '<label><input type="checkbox" name="body" value="{}"{}> {}</label> '
    # the disc hides the implant: it is there when it is asked for
    bodies = "".join(
        box.format(r, "" if r == "remnant" else " checked", data["words"][r])
        for r in data["regions"]
    )
    views = "".join(
        f'<button type="button" data-view="{v}">{v}</button> '
        for v in ("oblique", "anterior", "left", "cranial")
    )
    stops = ",".join(data["colours"][::17])
    most, limit = f"{data['strain_percent']:.2f}", f"{data['yield_percent']:.2f}"
    words = (
        f"Colours: compressive strain in bone from 0 to {most} per cent, yield marked at {limit};"
        " disc, graft and implant are grey"
    )
    share = 100.0 * data["yield_percent"] / data["strain_percent"]
    mark = f'style="left:{share:.1f}%"'
    legend = (
        f'<div class="legend" role="img" aria-label="{words}">'
        f'<div class="bar" style="background:linear-gradient(90deg,{stops})"><i {mark}></i></div>'
        f'<div class="yield"><span>0</span><span {mark}>yield {limit} %</span>'
        f"<span>≥ {most} % compressive strain in bone</span></div></div>"
    )
    cuts = options(
        [("none", "nothing"), ("x", "x (sagittal)"), ("y", "y (coronal)"), ("z", "z (axial)")]
    )
    fallback = (
        "<noscript><p>Without scripts there is no view in three dimensions; the pictures below show"
        " the same.</p></noscript>"
    )
    return f"""<style>{_CSS}</style>{fallback}<div id="viewer"><div class="stage">
<fieldset><legend>What is shown</legend>
<label>arm <select name="arm">{options(arms)}</select></label>
<label>beside it <select name="beside">{options([("", "nothing"), *arms])}</select></label>
<label>colour <select name="field">{options([*fields, ("", "plain")], "1" if len(fields) > 1 else "0")}</select></label>
<span>{bodies}</span></fieldset>
<fieldset><legend>How</legend>
<label>cut across <select name="cut">{cuts}</select></label>
<label>at <input type="range" name="at" min="1" max="99" value="50"></label>
<label>bone opacity <input type="range" name="opacity" min="10" max="100" value="100"></label>
<label>exploded <input type="range" name="explode" min="0" max="100" value="0"></label>
<span>{views}</span></fieldset>
<div class="picture"><canvas tabindex="0" aria-label="Segment with the implant in three dimensions; what it shows is said below.
Arrow keys turn it, plus and minus zoom, 1 to 4 are the views, a click reads a value."></canvas></div>{legend}</div>
<p role="status" class="quiet"></p>
<p class="quiet">Drag to turn, wheel to zoom, click to read a value. Keys on the picture: arrows, + and −, 1 to 4. x to the patient's left,
y to the back, z up (mm, segment frame); the compass has L R A P S I; bone is what the check meshed, cut off where its model ends:
facets and processes are not part of it.</p></div>"""


_CSS = """
#viewer fieldset{border:1px solid var(--line);margin:.3rem 0;padding:.2rem .6rem;display:flex;flex-wrap:wrap;gap:.3rem 1rem;
align-items:center}
#viewer legend{color:#4d565e;font-size:.85rem}#viewer label{white-space:nowrap;font-size:.9rem}#viewer canvas{display:block;width:100%;
border:1px solid var(--line);touch-action:pan-y}#viewer canvas:focus-visible,#viewer button:focus-visible{outline:3px solid var(--accent)}
#viewer .bar{height:14px;position:relative}#viewer .bar i{position:absolute;top:-3px;bottom:-3px;width:3px;background:#00a0ff}
#viewer .picture{position:relative;overflow:hidden}#viewer .letter{position:absolute;pointer-events:none;color:#1b1f23}
#viewer .letter i{position:absolute;height:1px;background:#1b1f23;transform-origin:0 0}
#viewer .letter span{position:absolute;transform:translate(-50%,-50%);font-weight:700;font-size:.9rem}
#viewer .yield{position:relative;font-size:.8rem;color:#4d565e;height:1.2em}
#viewer .yield span{position:absolute;transform:translateX(-50%)}#viewer .yield span:first-child{transform:none}
#viewer .yield span:last-child{transform:none;right:0}
@media print{#viewer fieldset,#viewer p.quiet:last-child{display:none}}
"""
