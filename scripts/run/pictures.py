"""The pictures of a checked run's report: anatomy, the cage, footprints, cuts through the strain.

All in the segment frame; fem/report/render.py draws them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyvista as pv
from skimage.measure import find_contours

from engine import artifacts
from engine.page import Picture
from engine.types import Segment
from fem.report.render import render_all
from scripts.run.config import ARMS

#: The load case whose strain is cut through: it presses the cage hardest.
CUT_LOAD = "flexion"


class Shot(NamedTuple):
    """One picture: a job of fem/report/render.py, its title and what is to be seen."""

    name: str
    title: str
    seen: str
    job: dict[str, Any]


def draw(segment: Segment, folder: Path, arms: dict[str, Any]) -> tuple[list[Picture], list[str]]:
    """Draw them into <folder>/pictures; the pictures, and one line for each that failed.

    arms: of result.json; only those that are ok are cut through.
    """
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    bones = [
        _bone_file(body.surface, pictures / f"{body.name}.ply")
        for body in (segment.caudal, segment.cranial)
    ]
    try:
        shots = picture_shots(segment, folder, arms, bones)
        files, problems = render_all(render_jobs(shots, pictures))
    finally:
        for path in bones:
            path.unlink(missing_ok=True)
    drawn = [Picture(s.title, s.seen, files[s.name]) for s in shots if s.name in files]
    return drawn, list(problems)


def render_jobs(shots: Sequence[Shot], pictures: Path) -> list[dict[str, Any]]:
    """Jobs of fem/report/render.py; pictures: the folder that the PNGs go into."""
    return [{"name": s.name, "out": str(pictures / f"{s.name}.png"), **s.job} for s in shots]


def picture_shots(
    segment: Segment, folder: Path, arms: dict[str, Any], bones: list[Path]
) -> list[Shot]:
    """The pictures of a run. bones: surface files of the two vertebrae."""
    cuts = [
        shot
        for arm in ("stock", "conforming", "optimised")
        if arms.get(arm, {}).get("status", {}).get("code") == "ok"
        for shot in _cuts(folder, arm)
    ]
    return [*_anatomy(folder, bones), *_parts(folder), _footprints(segment, folder), *cuts]


def _anatomy(folder: Path, bones: list[Path]) -> Iterator[Shot]:
    surfaces = [{"path": str(path), "opacity": 0.35} for path in bones]
    surfaces.append({"path": str(_part(folder)), "color": "#8fb3c9", "opacity": 1.0})
    for name, side, view in (
        ("anatomy_left", "the left", [0, 10]),
        ("anatomy_front", "anterior", [90, 10]),
    ):
        title = f"Anatomy at the planned pose with the optimised cage, from {side}"
        job = {"kind": "anatomy", "surfaces": surfaces, "view": view}
        yield Shot(name, title, "Two vertebrae, half transparent, with the cage", job)


def _parts(folder: Path) -> Iterator[Shot]:
    part = _part(folder)
    title, seen = "The optimised cage as exported", "The cage alone, seen obliquely"
    yield Shot("part", title, seen, {"kind": "part", "path": str(part)})
    if (struts := part.with_name("lattice.stl")).exists():
        title = "The optimised cage with its lattice as struts"
        seen = "The cage alone, its lattice as printed geometry"
        yield Shot("lattice", title, seen, {"kind": "part", "path": str(struts)})


def _footprints(segment: Segment, folder: Path) -> Shot:
    curves = [
        {"label": arm, "points_mm": curve.tolist()}
        for arm in ARMS
        if (folder / "designs" / arm / "implant.npz").exists()
        for curve in footprint(folder / "designs" / arm)
    ]
    rim = segment.caudal.superior.rim_mm[:, :2].tolist()
    return Shot(
        "footprints",
        "Footprints on the caudal endplate, seen from above",
        "Outlines of all arms inside the endplate's rim",
        {"kind": "footprints", "curves": curves, "rim_mm": rim},
    )


def _cuts(folder: Path, arm: str) -> Iterator[Shot]:
    solution, centre = folder / "fem" / arm / "solution.vtu", middle(folder / "designs" / arm)
    for axis, plane in enumerate(("sagittal", "coronal")):
        title = f"{arm}: strain in {CUT_LOAD}, {plane} cut through the cage's middle"
        seen = f"Compressive strain in the bone of the {arm} arm, {plane} cut"
        where = {"load": CUT_LOAD, "plane": plane, "at_mm": float(centre[axis])}
        job = {"kind": "cut", "path": str(solution), **where}
        yield Shot(f"strain_{arm}_{plane}", title, seen, job)


def _part(folder: Path) -> Path:
    return folder / "designs" / "optimised" / "implant.stl"


def middle(design: Path) -> np.ndarray:
    """Centre [3] of a device's bounding box, mm; design: its folder."""
    low, high = artifacts.read_json(design / "design.json")["surface"]["bbox_mm"]
    return 0.5 * (np.asarray(low) + np.asarray(high))


def footprint(design: Path) -> list[np.ndarray]:
    """Outer contours [n, 2] of a device seen from above, x and y in mm; design: its folder."""
    field = artifacts.load_field(design / "implant.npz")
    curves = find_contours(
        np.pad(np.asarray(field.values).min(axis=2), 1, constant_values=5.0), 0.0
    )
    longest = max((len(c) for c in curves), default=0)
    return [
        np.asarray(field.origin_mm)[:2] + field.spacing_mm * (c - 1)
        for c in curves
        if len(c) > 0.45 * longest
    ]


def _bone_file(surface: Any, path: Path) -> Path:
    faces = np.column_stack([np.full(len(surface.faces), 3), surface.faces]).ravel()
    pv.PolyData(np.asarray(surface.points_mm, float), faces).save(str(path))
    return path
