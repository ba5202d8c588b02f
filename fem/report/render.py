"""Pictures for the report, drawn off-screen in a child process: a crash of VTK cannot take the run
with it.

    python -m fem.report.render job.json

A job is a dict {"kind": …, "out": "picture.png", …}; files are read from disk (PLY, STL, VTU).
    anatomy     surfaces: [{path, color?, opacity?}], view? (degrees azimuth, elevation)
    part        path, view?
    cut         path (VTU of fem.solve), load, plane "sagittal"|"coronal"|"axial", at_mm?, outline?
                (surface file): compressive strain of the bone on the scale of fem/report/colours.py
    footprints  curves: [{label, points_mm [n, 2|3]}], rim_mm? [n, 2|3]     (matplotlib)

All in the segment frame (x left, y posterior, z cranial; mm), with letters for its directions.
Pictures with axes have them in frame coordinates, and keep in the PNG's Description (JSON) where on
the picture they are: `pixels` [left, top, right, bottom] from the upper left corner, `horizontal`
and `vertical` {axis, from_mm, to_mm} from left to right and top to bottom.
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

from fem.fields import stored_name
from fem.report.colours import MOST_PERCENT, PLAIN, YIELD_PERCENT, strain_table
from fem.report.letters import draw_compass, frame_label, mark_sides, view_axes

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
_DPI = 150
BONE, PART, GREY = "#e8dcc0", "#8fb3c9", "#4a4a4a"
#: Colour, line style and width per arm: distinguishable without colour, too. Arms that may share an
#: outline (a stock and a conforming cage at one position) differ in width, the wide one below.
ARM_STYLES = {
    "stock": ("#9a9a9a", "-", 5.0),
    "stock_central": ("#c9c9c9", "-", 5.0),
    "conforming": ("#c4660f", "-.", 2.0),
    "conforming_central": ("#c4660f", ":", 2.0),
    "optimised": ("#1f5fa8", "-", 2.0),
}


class RenderError(RuntimeError):
    """A picture could not be drawn; the text says why."""


# -- in the run's process --------------------------------------------------------------------------
def render(job: dict[str, Any], timeout_s: float = 180.0) -> Path:
    """Draw one picture in a child process. Raises RenderError (bad job, VTK crash, time-out,
    blank picture)."""
    from engine import (
        artifacts,
    )  # not at the top: it brings JAX, which the child process has no use for

    out = Path(job["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = artifacts.write_json(Path(folder) / "job.json", {**job, "out": str(out.resolve())})
        try:
            done = subprocess.run(
                [sys.executable, "-m", "fem.report.render", str(path)],
                capture_output=True,
                text=True,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )
        except subprocess.TimeoutExpired as error:
            raise RenderError(f"{out.name}: no picture within {timeout_s:.0f} s") from error
    if done.returncode < 0:
        raise RenderError(
            f"{out.name}: VTK died with signal {-done.returncode}; `python scripts/doctor.py`"
            " says why"
        )
    if done.returncode or not out.is_file():
        words = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [
            f"exit {done.returncode}"
        ]
        raise RenderError(f"{out.name}: {words[0]}")
    return out


def render_all(jobs: Sequence[dict[str, Any]]) -> tuple[dict[str, Path], list[str]]:
    """Draw all jobs; returns {name: picture} by job["name"] and one line per picture that failed
    (also logged)."""
    pictures: dict[str, Path] = {}
    problems: list[str] = []
    for job in jobs:
        try:
            pictures[job["name"]] = render(job)
        except RenderError as error:
            log.warning("picture missing: %s", error)
            problems.append(f"picture missing: {error}")
    return pictures, problems


# -- in the child process --------------------------------------------------------------------------
def _plotter(size: Sequence[int] = (1100, 850)) -> Any:
    import pyvista as pv

    plotter: Any = pv.Plotter(off_screen=True, window_size=list(size), lighting="light kit")
    plotter.set_background("white")
    plotter.enable_parallel_projection()
    return plotter


def _look(plotter: Any, azimuth_deg: float, elevation_deg: float) -> None:
    """Camera from `azimuth` (0: from the left, 90: from anterior) and elevation above the
    endplate plane."""
    towards, _, up = view_axes(azimuth_deg, elevation_deg)
    plotter.view_vector(tuple(towards), viewup=tuple(up))
    plotter.reset_camera()


def _surface(path: str, smooth: bool = True) -> Any:
    import pyvista as pv

    mesh = pv.read(path)
    if not isinstance(mesh, pv.PolyData):
        mesh = mesh.extract_surface(algorithm="dataset_surface")
    mesh = mesh.clean()
    if not mesh.n_cells:
        raise RenderError(f"{path} has no faces")
    # Normals are split at sharp edges, so that curved faces look smooth and edges stay edges.
    return mesh.compute_normals(
        split_vertices=smooth, feature_angle=35.0, auto_orient_normals=False
    )


def _picture(plotter: Any) -> tuple[np.ndarray, np.ndarray]:
    """The drawn pixels [rows, columns, 3], white margins cut off, and where they lie: left,
    right, bottom, top in mm along the page's right and up, from the frame's origin. Raises
    RenderError when there is nothing."""
    image: Any = np.asarray(plotter.screenshot(None, return_img=True))[..., :3]
    camera = plotter.camera
    towards = np.asarray(camera.position) - camera.focal_point
    right = np.cross(camera.up, towards)
    right /= np.linalg.norm(right)
    up = np.cross(towards, right) / np.linalg.norm(towards)
    focus, pixel_mm = np.asarray(camera.focal_point), 2.0 * camera.parallel_scale / image.shape[0]
    plotter.close()
    drawn = np.any(image < 250, axis=-1)
    if not drawn.any() or image.std() < 1.0:
        raise RenderError("the picture is blank")
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    pad = 12
    top, left = max(rows[0] - pad, 0), max(columns[0] - pad, 0)
    bottom, end = min(rows[-1] + pad, image.shape[0]), min(columns[-1] + pad, image.shape[1])
    across = focus @ right + pixel_mm * (np.array([left, end]) - 0.5 * image.shape[1])
    upward = focus @ up - pixel_mm * (np.array([bottom, top]) - 0.5 * image.shape[0])
    return np.ascontiguousarray(image[top:bottom, left:end]), np.concatenate([across, upward])


def _save(plotter: Any, job: dict[str, Any], view: Sequence[float]) -> None:
    """The picture with a compass in its corner; job letters=false: the picture alone."""
    image, _ = _picture(plotter)
    if not job.get("letters", True):
        from matplotlib.image import imsave

        imsave(job["out"], image)
        return
    compass_px, (rows, columns) = 130, image.shape[:2]
    wide, tall = (
        columns + compass_px,
        max(rows, compass_px),
    )  # the picture at its own pixels, the compass to its left
    figure = _figure(wide / _DPI, tall / _DPI)
    axes = figure.add_axes((compass_px / wide, 1.0 - rows / tall, columns / wide, rows / tall))
    axes.imshow(image)
    axes.set_axis_off()
    _, right, up = view_axes(*view)
    draw_compass(figure.add_axes((0.0, 0.0, compass_px / wide, compass_px / tall)), right, up)
    figure.savefig(job["out"])


def _figure(width: float, height: float) -> Any:
    """A matplotlib figure in inches, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def anatomy(job: dict[str, Any]) -> None:
    """Vertebrae half-transparent, the cage opaque between them."""
    plotter = _plotter()
    for item in job["surfaces"]:
        opacity = float(item.get("opacity", 1.0))
        plotter.add_mesh(
            _surface(item["path"]),
            color=item.get("color", BONE),
            opacity=opacity,
            smooth_shading=True,
            specular=0.2,
        )
    view = job.get("view", (50.0, 18.0))
    _look(plotter, *view)
    _save(plotter, job, view)


def part(job: dict[str, Any]) -> None:
    """The cage alone, its sharp edges drawn."""
    plotter = _plotter((1000, 750))
    mesh = _surface(job["path"])
    plotter.add_mesh(mesh, color=job.get("color", PART), smooth_shading=True, specular=0.3)
    edges = mesh.clean().extract_feature_edges(
        feature_angle=40.0, boundary_edges=False, manifold_edges=False
    )
    if edges.n_cells:
        plotter.add_mesh(edges, color="#26363f", line_width=1.5)
    view = job.get("view", (60.0, 35.0))
    _look(plotter, *view)
    _save(plotter, job, view)


#: Plane → its normal's axis, camera (azimuth, elevation).
PLANES = {"sagittal": (0, (0.0, 0.0)), "coronal": (1, (90.0, 0.0)), "axial": (2, (90.0, 90.0))}


def cut(job: dict[str, Any]) -> None:
    """A plane cut through a solution: compressive strain in the bone, disc, graft and implant
    plain."""
    import pyvista as pv
    from matplotlib.colors import ListedColormap

    if job["plane"] not in PLANES:
        raise RenderError(f"plane {job['plane']!r} is unknown; one of {', '.join(PLANES)}")
    grid = pv.read(job["path"])
    name = stored_name(grid.cell_data.keys(), job["load"], "strain_min")
    axis, view = PLANES[job["plane"]]
    origin = np.zeros(3)
    origin[axis] = job.get("at_mm", 0.0)
    section = grid.slice(normal=np.eye(3)[axis], origin=origin)
    if not section.n_cells:
        low, high = grid.bounds[2 * axis : 2 * axis + 2]
        raise RenderError(
            f"the {job['plane']} plane at {origin[axis]} mm misses the mesh ({low:.1f} …"
            f" {high:.1f} mm)"
        )
    section.cell_data["_shown"] = -100.0 * np.asarray(section.cell_data[name], float)
    plotter = _plotter((1100, 950))
    regions = (
        np.asarray(section.cell_data["region"])
        if "region" in section.cell_data
        else np.zeros(section.n_cells, int)
    )
    shown = []
    for k, (region, colour) in enumerate(PLAIN.items()):
        here: Any = regions == k
        if not here.any():
            continue
        body = section.extract_cells(here)
        if region in ("caudal", "cranial"):
            look = {
                "scalars": "_shown",
                "clim": (0.0, MOST_PERCENT),
                "cmap": ListedColormap(strain_table()),
            }
        else:
            look = {"color": colour}
            shown.append((region, colour))
        plotter.add_mesh(body, lighting=False, show_scalar_bar=False, **look)
    _region_lines(plotter, section)
    if job.get("outline"):
        line = pv.read(job["outline"]).slice(normal=np.eye(3)[axis], origin=origin)
        if line.n_cells:
            plotter.add_mesh(line, color="#d00000", line_width=3)
    _look(plotter, *view)
    image, extent = _picture(plotter)
    title = (
        f"{job['load'].replace('_', ' ')}: {job['plane']} cut at {'xyz'[axis]} ="
        f" {origin[axis]:.1f} mm"
    )
    _cut_figure(image, extent, view, title, shown, job["out"])


def _cut_figure(
    image: np.ndarray,
    extent: np.ndarray,
    view: Sequence[float],
    title: str,
    plain: list[tuple[str, str]],
    out: str,
) -> None:
    """The cut on axes in frame coordinates, with letters, the colour bar with its yield mark,
    and what is plain."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.patches import Patch

    figure = _figure(6.4, min(5.6 * image.shape[0] / image.shape[1] + 1.7, 9.0))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    _, right, up = view_axes(*view)
    along, upward = int(np.argmax(np.abs(right))), int(np.argmax(np.abs(up)))
    signs = np.array([right[along], right[along], up[upward], up[upward]])
    axes.imshow(image, extent=tuple(np.sign(signs) * extent))
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=frame_label(along), ylabel=frame_label(upward))
    axes.tick_params(labelsize=8)
    mark_sides(axes, right, up)
    scale = ScalarMappable(Normalize(0.0, MOST_PERCENT), ListedColormap(strain_table()))
    bar = figure.colorbar(
        scale, ax=axes, orientation="horizontal", extend="max", fraction=0.05, pad=0.02
    )
    bar.set_label("compressive strain in bone (−ε_min), %", fontsize=9)
    bar.ax.axvline(YIELD_PERCENT, color="#00a0ff", lw=2.5)
    bar.set_ticks([0.0, 0.5 * YIELD_PERCENT, YIELD_PERCENT, 1.5 * YIELD_PERCENT, MOST_PERCENT])
    bar.set_ticklabels(
        [f"{v:.2f}" + (" yield" if v == YIELD_PERCENT else "") for v in bar.get_ticks()], fontsize=8
    )
    if plain:
        names = {"remnant": "disc"}
        handles = [
            Patch(facecolor=c, edgecolor="black", lw=0.5, label=names.get(r, r)) for r, c in plain
        ]
        handles.insert(0, Patch(facecolor="none", label="no bone strain:"))
        figure.legend(
            handles=handles,
            loc="outside lower center",
            fontsize=8,
            ncols=len(handles),
            frameon=False,
        )
    _save_with_frame(figure, axes, along, upward, out)


def _save_with_frame(figure: Any, axes: Any, along: int, upward: int, out: str) -> None:
    """Save, with the place of the axes and their ends in mm in the PNG's Description (see the
    module docstring)."""
    figure.canvas.draw()
    box, tall = axes.get_window_extent(), figure.canvas.get_width_height()[1]
    place = {
        "pixels": [box.x0, tall - box.y1, box.x1, tall - box.y0],
        "horizontal": dict(
            zip(
                ("axis", "from_mm", "to_mm"),
                ("xyz"[along], *map(float, axes.get_xlim())),
                strict=True,
            )
        ),
        "vertical": dict(
            zip(
                ("axis", "from_mm", "to_mm"),
                ("xyz"[upward], *map(float, axes.get_ylim()[::-1])),
                strict=True,
            )
        ),
    }
    figure.savefig(out, metadata={"Description": json.dumps(place)})


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
    """Outlines of the arms on the caudal endplate, seen from above (anterior up, the patient's
    left on the left)."""
    figure = _figure(6.4, 5.8)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    if job.get("rim_mm") is not None:
        rim = _closed(np.asarray(job["rim_mm"], float))
        axes.fill(*rim, color=BONE, alpha=0.6, zorder=0)
        axes.plot(*rim, color="#7a6a45", lw=1.5, label="endplate rim")
    named: set[str] = set()
    for curve in job["curves"]:
        color, style, width = ARM_STYLES.get(curve["label"], (GREY, "-", 2.0))
        label = "_" if curve["label"] in named else curve["label"].replace("_", " ")
        named.add(curve["label"])
        # the wide ones below, so that what has the same outline shows on it
        axes.plot(
            *_closed(np.asarray(curve["points_mm"], float)),
            style,
            color=color,
            lw=width,
            label=label,
            zorder=10 - width,
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.invert_xaxis()
    axes.invert_yaxis()
    axes.set(xlabel=frame_label(0), ylabel=frame_label(1))
    _, right, up = view_axes(90.0, 90.0)
    mark_sides(axes, right, up)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncol=3,
        fontsize=8,
        frameon=False,
        handlelength=3.5,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _save_with_frame(figure, axes, 0, 1, job["out"])


def _closed(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ring = np.vstack([points, points[:1]])
    return ring[:, 0], ring[:, 1]


def main(path: str) -> int:
    """Draw the job of that JSON file; 0 when the picture was written, else 1 with the reason on
    stderr."""
    kinds = {"anatomy": anatomy, "part": part, "cut": cut, "footprints": footprints}
    job = json.loads(Path(path).read_text())
    try:
        if job.get("kind") not in kinds:
            raise RenderError(
                f"picture kind {job.get('kind')!r} is unknown; one of {', '.join(kinds)}"
            )
        kinds[job["kind"]](job)
    except (RenderError, OSError, KeyError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
