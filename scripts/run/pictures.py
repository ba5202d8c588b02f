"""The pictures of a checked run's report: anatomy, the cage, footprints, cuts through the strain.

All in the segment frame; fem/report/render.py draws them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        jobs, titles = picture_jobs(segment, folder, arms, bones)
        files, problems = render_all(jobs)
    finally:
        for path in bones:
            path.unlink(missing_ok=True)
    return [
        Picture(*titles[job["name"]], files[job["name"]]) for job in jobs if job["name"] in files
    ], list(problems)


def picture_jobs(
    segment: Segment, folder: Path, arms: dict[str, Any], bones: list[Path]
) -> tuple[list[dict[str, Any]], dict[str, tuple[str, str]]]:
    """Jobs of fem/report/render.py, and by name the title and what is to be seen.

    bones: surface files of the two vertebrae.
    """
    pictures = folder / "pictures"
    part = folder / "designs" / "optimised" / "implant.stl"
    jobs: list[dict[str, Any]] = []
    titles: dict[str, tuple[str, str]] = {}

    def add(name: str, title: str, seen: str, **job: Any) -> None:
        jobs.append({"name": name, "out": str(pictures / f"{name}.png"), **job})
        titles[name] = (title, seen)

    surfaces = [{"path": str(path), "opacity": 0.35} for path in bones]
    surfaces.append({"path": str(part), "color": "#8fb3c9", "opacity": 1.0})
    for name, side, view in (
        ("anatomy_left", "the left", [0, 10]),
        ("anatomy_front", "anterior", [90, 10]),
    ):
        add(
            name,
            f"Anatomy at the planned pose with the optimised cage, from {side}",
            "Two vertebrae, half transparent, with the cage",
            kind="anatomy",
            surfaces=surfaces,
            view=view,
        )
    add(
        "part",
        "The optimised cage as exported",
        "The cage alone, seen obliquely",
        kind="part",
        path=str(part),
    )
    if (struts := part.with_name("lattice.stl")).exists():
        add(
            "lattice",
            "The optimised cage with its lattice as struts",
            "The cage alone, its lattice as printed geometry",
            kind="part",
            path=str(struts),
        )
    curves = [
        {"label": arm, "points_mm": curve.tolist()}
        for arm in ARMS
        if (folder / "designs" / arm / "implant.npz").exists()
        for curve in footprint(folder / "designs" / arm)
    ]
    rim = segment.caudal.superior.rim_mm[:, :2].tolist()
    add(
        "footprints",
        "Footprints on the caudal endplate, seen from above",
        "Outlines of all arms inside the endplate's rim",
        kind="footprints",
        curves=curves,
        rim_mm=rim,
    )
    for arm in ("stock", "conforming", "optimised"):
        if arms.get(arm, {}).get("status", {}).get("code") != "ok":
            continue
        solution, centre = folder / "fem" / arm / "solution.vtu", middle(folder / "designs" / arm)
        for axis, plane in enumerate(("sagittal", "coronal")):
            add(
                f"strain_{arm}_{plane}",
                f"{arm}: strain in {CUT_LOAD}, {plane} cut through the cage's middle",
                f"Compressive strain in the bone of the {arm} arm, {plane} cut",
                kind="cut",
                path=str(solution),
                load=CUT_LOAD,
                plane=plane,
                at_mm=float(centre[axis]),
            )
    return jobs, titles


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
