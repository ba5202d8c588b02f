"""Pictures for the report, drawn off-screen in a child process: a crash of VTK cannot take the run with it.

    python -m fem.render job.json

A job is a dict {"kind": …, "out": "picture.png", …}; files are read from disk (PLY, STL, VTU).
    anatomy     surfaces: [{path, color?, opacity?}], view? (degrees azimuth, elevation)
    part        path, view?; optional field from a VTU is drawn with `cut`
    cut         path (VTU), field, plane "sagittal"|"coronal"|"axial", at_mm?, limits? [lo, hi], label?,
                outline? (surface file), scale? (multiplies the field)
    footprints  curves: [{label, points_mm [n, 2|3], style?}], rim_mm? [n, 2|3]     (matplotlib)

All in the segment frame (x left, y posterior, z cranial; mm).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
BONE, PART, GREY = "#e8dcc0", "#8fb3c9", "#4a4a4a"
CMAP = "cividis"
#: Colour and line style per arm: distinguishable without colour, too.
ARM_STYLES = {
    "stock": ("#8c8c8c", "--"),
    "stock_central": ("#bfbfbf", ":"),
    "conforming": ("#d98032", "-."),
    "conforming_central": ("#e8b98a", ":"),
    "optimised": ("#1f5fa8", "-"),
}


class RenderError(RuntimeError):
    """A picture could not be drawn; the text says why."""


# -- in the run's process ----------------------------------------------------------------------------------
def render(job: dict[str, Any], timeout_s: float = 180.0) -> Path:
    """Draw one picture in a child process. Raises RenderError (bad job, VTK crash, time-out, blank picture)."""
    from engine import artifacts  # not at the top: it brings JAX, which the child process has no use for

    out = Path(job["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = artifacts.write_json(Path(folder) / "job.json", {**job, "out": str(out.resolve())})
        try:
            done = subprocess.run(
                [sys.executable, "-m", "fem.render", str(path)],
                capture_output=True,
                text=True,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )
        except subprocess.TimeoutExpired as error:
            raise RenderError(f"{out.name}: no picture within {timeout_s:.0f} s") from error
    if done.returncode < 0:
        raise RenderError(f"{out.name}: VTK died with signal {-done.returncode}; `python scripts/doctor.py` says why")
    if done.returncode or not out.is_file():
        words = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [f"exit {done.returncode}"]
        raise RenderError(f"{out.name}: {words[0]}")
    return out


def render_all(jobs: Sequence[dict[str, Any]]) -> tuple[dict[str, Path], list[str]]:
    """Draw all jobs; returns {name: picture} by job["name"] and one line per picture that failed (also logged)."""
    pictures: dict[str, Path] = {}
    problems: list[str] = []
    for job in jobs:
        try:
            pictures[job["name"]] = render(job)
        except RenderError as error:
            log.warning("picture missing: %s", error)
            problems.append(f"picture missing: {error}")
    return pictures, problems


# -- in the child process ----------------------------------------------------------------------------------
def _plotter(size: Sequence[int] = (1100, 850)) -> Any:
    import pyvista as pv

    plotter: Any = pv.Plotter(off_screen=True, window_size=list(size), lighting="light kit")
    plotter.set_background("white")
    plotter.enable_parallel_projection()
    return plotter


def _look(plotter: Any, azimuth_deg: float, elevation_deg: float, zoom: float = 1.0) -> None:
    """Camera from `azimuth` (0: from the left, 90: from anterior) and elevation above the endplate plane."""
    az, el = np.radians([azimuth_deg, elevation_deg])
    # from the left means from +x, from anterior from -y
    direction = np.array([np.cos(el) * np.cos(az), -np.cos(el) * np.sin(az), np.sin(el)])
    up = (0.0, 0.0, 1.0) if abs(elevation_deg) < 80 else (0.0, -1.0, 0.0)
    plotter.view_vector(tuple(direction), viewup=up)
    plotter.reset_camera()
    plotter.camera.zoom(zoom)


def _surface(path: str, smooth: bool = True) -> Any:
    import pyvista as pv

    mesh = pv.read(path)
    if not isinstance(mesh, pv.PolyData):
        mesh = mesh.extract_surface(algorithm="dataset_surface")
    mesh = mesh.clean()
    if not mesh.n_cells:
        raise RenderError(f"{path} has no faces")
    # Normals are split at sharp edges, so that curved faces look smooth and edges stay edges.
    return mesh.compute_normals(split_vertices=smooth, feature_angle=35.0, auto_orient_normals=False)


def _picture(plotter: Any) -> np.ndarray:
    """The drawn pixels [rows, columns, 3], white margins cut off. Raises RenderError when there is nothing."""
    image: Any = np.asarray(plotter.screenshot(None, return_img=True))[..., :3]
    plotter.close()
    drawn = np.any(image < 250, axis=-1)
    if not drawn.any() or image.std() < 1.0:
        raise RenderError("the picture is blank")
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    pad = 12
    return np.ascontiguousarray(
        image[max(rows[0] - pad, 0) : rows[-1] + pad, max(columns[0] - pad, 0) : columns[-1] + pad]
    )


def _save(plotter: Any, out: str) -> None:
    from matplotlib.image import imsave

    imsave(out, _picture(plotter))


def anatomy(job: dict[str, Any]) -> None:
    """Vertebrae half-transparent, the cage opaque between them."""
    plotter = _plotter()
    for item in job["surfaces"]:
        opacity = float(item.get("opacity", 1.0))
        plotter.add_mesh(
            _surface(item["path"]), color=item.get("color", BONE), opacity=opacity, smooth_shading=True, specular=0.2
        )
    _look(plotter, *job.get("view", (50.0, 18.0)))
    _save(plotter, job["out"])


def part(job: dict[str, Any]) -> None:
    """The cage alone, its sharp edges drawn."""
    plotter = _plotter((1000, 750))
    mesh = _surface(job["path"])
    plotter.add_mesh(mesh, color=job.get("color", PART), smooth_shading=True, specular=0.3)
    edges = mesh.clean().extract_feature_edges(feature_angle=40.0, boundary_edges=False, manifold_edges=False)
    if edges.n_cells:
        plotter.add_mesh(edges, color="#26363f", line_width=1.5)
    _look(plotter, *job.get("view", (60.0, 35.0)))
    _save(plotter, job["out"])


#: Plane → normal, camera (azimuth, elevation), which side is which in the picture.
PLANES = {
    "sagittal": ((1.0, 0.0, 0.0), (0.0, 0.0), "anterior on the left"),
    "coronal": ((0.0, 1.0, 0.0), (90.0, 0.0), "patient's left on the right"),
    "axial": ((0.0, 0.0, 1.0), (90.0, 90.0), "anterior up, patient's left on the left"),
}


def cut(job: dict[str, Any]) -> None:
    """A plane cut through a solution, coloured by a field."""
    import pyvista as pv

    if job["plane"] not in PLANES:
        raise RenderError(f"plane {job['plane']!r} is unknown; one of {', '.join(PLANES)}")
    grid = pv.read(job["path"])
    name = job["field"]
    if name not in grid.cell_data and name not in grid.point_data:
        raise RenderError(f"{job['path']} has no field {name!r}; it has {', '.join(grid.array_names)}")
    normal, view, sides = PLANES[job["plane"]]
    axis = int(np.argmax(normal))
    origin = np.zeros(3)
    origin[axis] = job.get("at_mm", 0.0)
    section = grid.slice(normal=normal, origin=origin)
    if not section.n_cells:
        low, high = grid.bounds[2 * axis : 2 * axis + 2]
        raise RenderError(f"the {job['plane']} plane at {origin[axis]} mm misses the mesh ({low:.1f} … {high:.1f} mm)")
    data = section.cell_data if name in section.cell_data else section.point_data
    data["_shown"] = np.asarray(data[name], float) * float(job.get("scale", 1.0))
    limits = job.get("limits") or [float(v) for v in np.nanpercentile(data["_shown"], [1, 99])]
    plotter = _plotter((1100, 950))
    plotter.add_mesh(
        section, scalars="_shown", clim=limits, cmap=CMAP, lighting=False, nan_color="#dddddd", show_scalar_bar=False
    )
    _region_lines(plotter, section)
    if job.get("outline"):
        line = pv.read(job["outline"]).slice(normal=normal, origin=origin)
        if line.n_cells:
            plotter.add_mesh(line, color="#d00000", line_width=3)
    _look(plotter, *view)
    where = f"{job['plane']} cut at {'xyz'[axis]} = {origin[axis]:.1f} mm ({sides})"
    _with_colour_bar(_picture(plotter), limits, job.get("label", name), where, job["out"])


def _with_colour_bar(image: np.ndarray, limits: Sequence[float], label: str, title: str, out: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 6.4 * image.shape[0] / image.shape[1] + 1.0), dpi=140)
    axes.imshow(image)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    colours = plt.cm.ScalarMappable(plt.Normalize(limits[0], limits[1]), CMAP)
    figure.colorbar(colours, ax=axes, orientation="horizontal", extend="both", fraction=0.05, pad=0.02, label=label)
    figure.savefig(out, bbox_inches="tight")
    plt.close(figure)


def _region_lines(plotter: Any, section: Any) -> None:
    """Thin black lines between materials, where the mesh carries a `region` array."""
    if "region" not in section.cell_data:
        return
    for value in np.unique(section.cell_data["region"]):
        body = section.extract_cells(np.flatnonzero(section.cell_data["region"] == value))
        edges = body.extract_surface(algorithm="dataset_surface").extract_feature_edges(
            boundary_edges=True, feature_edges=False, manifold_edges=False, non_manifold_edges=False
        )
        if edges.n_cells:
            plotter.add_mesh(edges, color="black", line_width=1.5)


def footprints(job: dict[str, Any]) -> None:
    """Outlines of the arms on the caudal endplate, seen from above (anterior up, the patient's left on the left)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 5.2), dpi=150)
    if job.get("rim_mm") is not None:
        rim = np.asarray(job["rim_mm"], float)
        axes.fill(-rim[:, 0], -rim[:, 1], color=BONE, alpha=0.6, zorder=0)
        axes.plot(*_closed(rim), color="#7a6a45", lw=1.5, label="endplate rim")
    named: set[str] = set()
    for curve in job["curves"]:
        points = np.asarray(curve["points_mm"], float)
        color, style = ARM_STYLES.get(curve["label"], (GREY, "-"))
        label = "_" if curve["label"] in named else curve["label"].replace("_", " ")
        named.add(curve["label"])
        axes.plot(*_closed(points), style, color=color, lw=2, label=label)
    axes.set_aspect("equal")
    axes.set_xlabel("← left    right →   [mm]")
    axes.set_ylabel("← posterior    anterior →   [mm]")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=3, fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(job["out"], bbox_inches="tight")
    plt.close(figure)


def _closed(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ring = np.vstack([points, points[:1]])
    return -ring[:, 0], -ring[:, 1]


def main(path: str) -> int:
    """Draw the job of that JSON file; 0 when the picture was written, else 1 with the reason on stderr."""
    kinds = {"anatomy": anatomy, "part": part, "cut": cut, "footprints": footprints}
    job = json.loads(Path(path).read_text())
    try:
        if job.get("kind") not in kinds:
            raise RenderError(f"picture kind {job.get('kind')!r} is unknown; one of {', '.join(kinds)}")
        kinds[job["kind"]](job)
    except (RenderError, OSError, KeyError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
