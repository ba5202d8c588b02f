"""The 3-D section of the report: each arm's tetrahedra with what SfePy found in them, packed small, for fem/viewer/viewer.js.

Per arm, little-endian and deflated: nodes uint16 [n, 3] (low + step·i), a gap to a multiple of 4 bytes, tetrahedra uint32 [m, 4], region
uint8 [m], and per load case uint8 [m]: in bone, graft and disc the compressive principal strain −ε_min in 1/255 of `strain_percent`,
in the implant the von Mises stress in 1/255 of `stress_mpa`. Values beyond either end are shown as the end. A node moves by at most half
a step (segment of 100 mm: 0.8 µm).
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

from engine.materials import YIELD_STRAIN_COMPRESSION
from engine.types import REGIONS
from fem.result import Result

#: Arms in the order in which they are offered.
_ORDER = ("optimised", "conforming", "stock", "intact", "full_endplate", "conforming_central", "stock_central")
#: Twice the strain at which bone yields in compression.
_STRAIN_PERCENT = 200.0 * YIELD_STRAIN_COMPRESSION


def available(folder: Path, result: Result) -> list[str]:
    """Arms whose solution is there to be shown."""
    ok = [a for a, arm in result.arms.items() if arm.status.code == "ok" and (folder / "fem" / a / "solution.vtu").exists()]
    return sorted(ok, key=lambda a: _ORDER.index(a) if a in _ORDER else len(_ORDER))


def scene(folder: Path, arms: Sequence[str]) -> dict[str, Any]:
    """What viewer.js reads. Raises ValueError when a solution is not one of ours, or the arms' load cases differ."""
    import pyvista as pv

    grids = {arm: pv.read(folder / "fem" / arm / "solution.vtu") for arm in arms}
    loads = {arm: [name.rsplit(":", 1)[0] for name in grid.cell_data if name.endswith(":strain_min")] for arm, grid in grids.items()}
    if len({tuple(names) for names in loads.values()}) != 1 or not loads[arms[0]]:
        raise ValueError(f"the solutions of {', '.join(arms)} hold different load cases, or none: check the run again")
    names = loads[arms[0]]
    stress = [np.percentile(_implant(grid, names), 99.5) for grid in grids.values() if len(_implant(grid, names))]
    stress_mpa = float(np.ceil(max(stress, default=1.0) / 5.0) * 5.0)
    low = np.min([np.asarray(g.points).min(0) for g in grids.values()], axis=0)
    high = np.max([np.asarray(g.points).max(0) for g in grids.values()], axis=0)
    return {
        "regions": list(REGIONS), "loads": names, "strain_percent": _STRAIN_PERCENT, "yield_percent": 100.0 * YIELD_STRAIN_COMPRESSION,
        "stress_mpa": stress_mpa, "low_mm": low.tolist(), "high_mm": high.tolist(), "colours": colours(),
        "arms": [{"name": arm, "label": arm.replace("_", " ")} | packed(grid, names, stress_mpa) for arm, grid in grids.items()],
    }  # fmt: skip


def _implant(grid: Any, loads: Sequence[str]) -> np.ndarray:
    inside = np.asarray(grid.cell_data["region"]) == REGIONS.index("implant")
    return np.concatenate([np.asarray(grid.cell_data[f"{name}:von_mises_mpa"])[inside] for name in loads])


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
        share = np.where(metal, np.asarray(grid.cell_data[f"{name}:von_mises_mpa"]) / stress_mpa,
                         -100.0 * np.asarray(grid.cell_data[f"{name}:strain_min"]) / _STRAIN_PERCENT)  # fmt: skip
        parts.append(np.round(255.0 * np.clip(share, 0.0, 1.0)).astype(np.uint8).tobytes())
    data = base64.b64encode(zlib.compress(b"".join(parts), 9)).decode()
    return {"nodes": len(points), "tets": len(tets), "low_mm": low.tolist(), "step_mm": step.tolist(), "data": data}


def colours() -> list[str]:
    """256 colours from low to high: perceptually uniform, told apart by the colour-blind (viridis)."""
    import matplotlib

    table = matplotlib.colormaps["viridis"]
    return ["#{:02x}{:02x}{:02x}".format(*(round(255 * c) for c in table(i / 255)[:3])) for i in range(256)]


# -- the section ---------------------------------------------------------------------------------------------
def viewer_section(folder: Path, result: Result) -> tuple[str, str]:
    """HTML of the section, and the script that the page's end needs (empty where there is nothing to show)."""
    arms = available(folder, result)
    if not arms:
        return "<p>No solution is in the run folder (keep.solutions), so that there is nothing to show in three dimensions.</p>", ""
    try:
        data = scene(folder, arms)
    except (ValueError, KeyError, OSError) as error:
        return f"<p>Not shown in three dimensions: {escape(str(error))}. The pictures below show the arms.</p>", ""
    script = resources.files("fem").joinpath("viewer/viewer.min.js").read_text()
    text = json.dumps(data, allow_nan=False).replace("</", "<\\/")
    return _controls(data), f'<script type="application/json" id="viewer-data">{text}</script>\n<script>{script}</script>'


def _controls(data: dict[str, Any]) -> str:
    def options(pairs: Sequence[tuple[str, str]], chosen: str = "") -> str:
        return "".join(f'<option value="{escape(v)}"{" selected" if v == chosen else ""}>{escape(t)}</option>' for v, t in pairs)

    arms = [(a["name"], a["label"]) for a in data["arms"]]
    fields = [(str(i), f"{name.replace('_', ' ')}: strain, stress") for i, name in enumerate(data["loads"])]
    box = '<label><input type="checkbox" name="body" value="{}" checked> {}</label> '
    bodies = "".join(box.format(r, "disc" if r == "remnant" else r) for r in data["regions"])
    views = "".join(f'<button type="button" data-view="{v}">{v}</button> ' for v in ("oblique", "anterior", "left", "cranial"))
    stops = ",".join(data["colours"][::17])
    most, limit, stress = f"{data['strain_percent']:.2f}", f"{data['yield_percent']:.2f}", f"{data['stress_mpa']:.0f}"
    words = (f"Colours: compressive strain in bone from 0 to {most} per cent, yield at {limit}; von Mises stress in the implant from 0 to "
             f"{stress} MPa")  # fmt: skip
    share = 100.0 * data["yield_percent"] / data["strain_percent"]
    legend = (f'<div class="legend" role="img" aria-label="{words}"><div class="bar" style="background:linear-gradient(90deg,{stops})">'
              f'<i style="left:{share:.1f}%"></i></div><div class="ends"><span>bone: 0</span><span>yield {limit} %</span>'
              f'<span>≥ {most} % compressive strain</span></div><div class="ends"><span>implant: 0</span>'
              f'<span>≥ {stress} MPa von Mises</span></div></div>')  # fmt: skip
    cuts = options([("none", "nothing"), ("x", "x (sagittal)"), ("y", "y (coronal)"), ("z", "z (axial)")])
    fallback = "<noscript><p>Without scripts there is no view in three dimensions; the pictures below show the same.</p></noscript>"
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
<div><canvas tabindex="0" aria-label="Segment with the implant in three dimensions; what it shows is said below. Arrow keys turn it, plus
and minus zoom, 1 to 4 are the views, a click reads a value."></canvas></div>{legend}</div>
<p role="status" class="quiet"></p>
<p class="quiet">Drag to turn, wheel to zoom, click to read a value. Keys on the picture: arrows, + and −, 1 to 4. x to the patient's left,
y to the back, z up; bone is what the check meshed.</p></div>"""


_CSS = """
#viewer fieldset{border:1px solid var(--line);margin:.3rem 0;padding:.2rem .6rem;display:flex;flex-wrap:wrap;gap:.3rem 1rem;
align-items:center}
#viewer legend{color:#4d565e;font-size:.85rem}#viewer label{white-space:nowrap;font-size:.9rem}#viewer canvas{display:block;width:100%;
border:1px solid var(--line);touch-action:pan-y}#viewer canvas:focus-visible,#viewer button:focus-visible{outline:3px solid var(--accent)}
#viewer .bar{height:14px;position:relative}#viewer .bar i{position:absolute;top:-3px;bottom:-3px;width:2px;background:#d00000}
#viewer .ends{display:flex;justify-content:space-between;font-size:.8rem;color:#4d565e}
@media print{#viewer fieldset,#viewer p.quiet:last-child{display:none}}
"""
