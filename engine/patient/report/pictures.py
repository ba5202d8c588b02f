"""Pictures of a prepared patient: the mask under the gate, slices with outlines, alignment drawn on
the endplates, a 3D view.

Sagittal slices follow the spine: x at each height is that of the line through the bodies, so that a
curved spine is cut in its middle.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import map_coordinates

from engine.patient.anatomy.hips import heads_of
from engine.patient.geometry.distance import polydata
from engine.patient.labels.understand import Labels
from engine.patient.read.image import Image
from engine.types import Endplate, Finding, PatientModel, Vertebra, rigid

_DPI = 110
#: Distance of the samples in a cut, mm.
_STEP_MM = 0.6
#: A renderer that takes longer than this hangs, s [M].
_PATIENCE_S = 180
_MARK = {
    "stop": "#c00000",
    "left out": "#b35900",
    "accepted": "#7a4fbf",
    "warning": "#b35900",
    "note": "#1f5fa8",
}


def gate_picture(labels: Labels, scan: Image | None, path: Path) -> Path:
    """The mask from the side and from behind (each level its colour, the scan under it),
    findings numbered at their places."""
    pieces = list(labels.pieces.values())
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(1, 2)
    image = labels.image
    middle = rigid(image.lps_from_index, np.argwhere(image.values != 0).mean(axis=0))
    centres = (
        np.array([piece.body_mm for piece in pieces]) if pieces else middle[None]
    )  # no level was understood: what is there
    for ax, across, title in (
        (axes[0], 1, "from the left side: cut through the bodies"),
        (axes[1], 0, "from in front: cut through the bodies"),
    ):
        plane, extent = _curved_plane(image, centres, across)
        if scan is not None:
            grey = _sample(scan, plane, order=1, outside=float(scan.values.min()))
            low, high = np.percentile(grey, [2.0, 99.5])
            ax.imshow(grey, cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower")
        cut = _sample(image, plane, order=0, outside=0.0)
        shown = np.ma.masked_where(cut == 0, cut % 10)
        ax.imshow(
            shown,
            cmap="tab10",
            vmin=0,
            vmax=9,
            alpha=0.45 if scan is not None else 0.9,
            extent=extent,
            origin="lower",
            interpolation="none",
        )
        for piece in pieces:
            ax.text(
                piece.body_mm[across],
                piece.body_mm[2],
                piece.level,
                color="white",
                ha="center",
                va="center",
                weight="bold",
            )
        ax.set_title(title, fontsize=10)
        ax.set_ylabel("z, mm")
    axes[0].set_xlabel("y, mm (posterior is on the right)")
    axes[1].set_xlabel("x, mm (the patient's left is on the right)")
    _mark(axes, [f for f in labels.findings if f.place_mm is not None])
    return _save(figure, path)


def _mark(axes: np.ndarray, findings: list[Finding]) -> None:
    for number, finding in enumerate(findings, start=1):
        assert finding.place_mm is not None
        x, y, z = finding.place_mm
        for ax, across in zip(axes, (y, x), strict=True):
            ax.plot(across, z, "o", ms=15, mfc="none", mec=_MARK[finding.severity], mew=2)
            ax.annotate(
                f"{number} {finding.code}",
                (across, z),
                (9, 9),
                textcoords="offset points",
                color=_MARK[finding.severity],
                weight="bold",
            )


def slices_picture(
    patient: PatientModel, scan: Image | None, pair: tuple[Vertebra, Vertebra], path: Path
) -> Path:
    """Sagittal and coronal cuts through the bodies and an axial cut through the upper body of
    the segment, with the model's outlines."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    axes = figure.subplots(1, 3)
    centres = np.array([body.landmarks["body_centre"] for body in patient.vertebrae])
    every = np.concatenate([body.surface.points_mm for body in patient.vertebrae])
    box = np.array([every.min(axis=0) - 12.0, every.max(axis=0) + 12.0])
    planes = [_plane_in(box, centres, 1), _plane_in(box, centres, 0), _axial(pair[0])]
    titles = (
        "sagittal, along the bodies",
        "coronal, along the bodies (patient's left on the right)",
        f"axial, {pair[0].name}",
    )
    for ax, (plane, extent), title in zip(axes, planes, titles, strict=True):
        if scan is not None:
            grey = _sample(scan, plane, order=1, outside=float(scan.values.min()))
            low, high = (
                (-150.0, 700.0)
                if scan.modality == "CT"
                else tuple(np.percentile(grey, [2.0, 99.5]))
            )
            ax.imshow(grey, cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower")
        else:
            ax.set_facecolor("#20252b")
        for k, body in enumerate(patient.vertebrae):
            value = body.sdf.sample(plane)
            grid = (
                np.linspace(extent[0], extent[1], plane.shape[1]),
                np.linspace(extent[2], extent[3], plane.shape[0]),
            )
            if value.min() < 0.0 < value.max():
                ax.contour(
                    *grid,
                    value,
                    levels=[0.0],
                    colors=[matplotlib.colormaps["tab10"](k % 10)],
                    linewidths=1.3,
                )
        ax.set_title(title, fontsize=10)
        ax.set_aspect("equal")
    for ax, name in zip(axes, ("y", "x", "x"), strict=True):
        ax.set_xlabel(f"{name}, mm")
    axes[0].set_ylabel("z, mm")
    return _save(figure, path)


def alignment_picture(patient: PatientModel, path: Path) -> Path:
    """Endplates and bodies from the side and from in front, with the angle between neighbouring
    endplates at each disc."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(1, 2)
    plates = [(body.name, body.superior, body.inferior) for body in patient.vertebrae]
    for ax, across, title in (
        (axes[0], 1, "sagittal"),
        (axes[1], 0, "coronal (patient's left on the right)"),
    ):
        for body in patient.vertebrae:
            rim = [
                np.concatenate([plate.rim_mm, plate.rim_mm[:1]])
                for plate in (body.superior, body.inferior)
            ]
            for edge in rim:
                ax.plot(edge[:, across], edge[:, 2], color="#5b6770", lw=0.8)
            ends = [_ends(plate, across) for plate in (body.superior, body.inferior)]
            outline = np.array([ends[0][0], ends[0][1], ends[1][1], ends[1][0], ends[0][0]])
            ax.fill(outline[:, 0], outline[:, 1], color="#c9d6e8", alpha=0.7, zorder=0)
            centre = outline[:4].mean(axis=0)
            ax.text(*centre, body.name, ha="center", va="center", weight="bold")
        if patient.sacrum is not None:
            ends0 = _ends(patient.sacrum.superior, across)
            ax.plot(*np.array(ends0).T, color="#1f5fa8", lw=2.5)
            ax.text(*(np.array(ends0).mean(axis=0) + [0.0, -9.0]), "S1", ha="center", weight="bold")
        heads = heads_of(patient)
        if heads is not None:
            ax.plot(heads[:, across], heads[:, 2], "o", ms=13, mfc="none", mec="#1f5fa8", mew=1.5)
            ax.text(
                *(heads[:, [across, 2]].mean(axis=0) + [0.0, -14.0]),
                "femoral heads",
                ha="center",
                color="#1f5fa8",
            )
        below = (
            [*plates[1:], ("S1", patient.sacrum.superior, None)]
            if patient.sacrum is not None
            else plates[1:]
        )
        for (_, _, upper), (_, lower, _) in zip(plates, below, strict=False):
            a, b = (np.subtract(*_ends(plate, across)[::-1]) for plate in (upper, lower))
            angle = np.degrees(np.arctan2(a[0] * b[1] - a[1] * b[0], a @ b))
            at = 0.5 * (upper.centre_mm + lower.centre_mm)
            shift = 34.0 if across == 1 else 36.0
            ax.text(
                at[across] - shift,
                at[2],
                f"{abs(angle):.0f}°",
                color="#b35900",
                ha="right",
                va="center",
            )
        ax.set_title(title)
        ax.set_aspect("equal")
        ax.set_xlabel("y, mm (posterior on the right)" if across == 1 else "x, mm")
        ax.set_ylabel("z, mm")
    return _save(figure, path)


def _ends(plate: Endplate, across: int) -> list[np.ndarray]:
    """The two ends of an endplate in the drawing's plane (across, z)."""
    rim = plate.rim_mm
    first, last = rim[np.argmin(rim[:, across])], rim[np.argmax(rim[:, across])]
    return [first[[across, 2]], last[[across, 2]]]


_SCENE = """
import sys, json, pyvista as pv
job = json.load(open(sys.argv[1]))
p = pv.Plotter(off_screen=True, shape=(1, 3), window_size=(1650, 900))
meshes = [(name, pv.read(file)) for name, file in job["meshes"]]
bounds = pv.merge([m for _, m in meshes]).bounds
c = [(bounds[2 * k] + bounds[2 * k + 1]) / 2 for k in range(3)]
# each view is 550 pixels wide and 900 high
wide, high = max(bounds[3] - bounds[2], bounds[1] - bounds[0]), bounds[5] - bounds[4]
size = max(high, 900 / 550 * wide) / 2 * 1.08
colours = ["#c9d6e8", "#e8dcc0", "#cfe3cf", "#e6cfd8", "#d9d2ea", "#d7e0dc"]
left, behind, front = (1, 0, 0.05), (0, 1, 0.1), (0.7, -1, 0.4)
views = [(left, "left side"), (behind, "from behind"), (front, "from in front")]
for k, (view, name) in enumerate(views):
    p.subplot(0, k)
    for n, (label, mesh) in enumerate(meshes):
        p.add_mesh(mesh, color="#b9a98f" if label == "S1" else colours[n % 6], smooth_shading=True)
    for label, file in job["structures"]:
        colour = "#e0a33a" if label in ("canal", "cord") else "#d98080"
        p.add_mesh(pv.read(file), color=colour, smooth_shading=True)
    for line in job["lines"]:
        mesh = pv.lines_from_points(line, close=True) if len(line) > 2 else pv.Line(*line)
        p.add_mesh(mesh, color="crimson", line_width=3)
    p.camera_position = [tuple(600 * a + b for a, b in zip(view, c)), tuple(c), (0, 0, 1)]
    p.camera.parallel_projection = True
    p.camera.parallel_scale = size
    p.add_text(name, font_size=9)
p.screenshot(sys.argv[2])
"""


def scene_picture(patient: PatientModel, folder: Path, path: Path) -> Path | None:
    """The model in 3D; None where no off-screen renderer works. Rendered in a process of its
    own: a crash stays there."""
    folder.mkdir(parents=True, exist_ok=True)
    meshes, lines = [], []
    for body in patient.vertebrae:
        polydata(body.surface).save(folder / f"{body.name}.vtp")
        meshes.append((body.name, str(folder / f"{body.name}.vtp")))
        lines += [
            body.superior.rim_mm.tolist(),
            body.inferior.rim_mm.tolist(),
            *(axis.tolist() for axis in body.pedicles.values()),
        ]
    if patient.sacrum is not None:
        polydata(patient.sacrum.surface).save(folder / "S1.vtp")
        meshes.append(("S1", str(folder / "S1.vtp")))
        lines.append(patient.sacrum.superior.rim_mm.tolist())
    structures = []
    for name, surface in patient.structures.items():
        polydata(surface).save(folder / f"{name}.vtp")
        structures.append((name, str(folder / f"{name}.vtp")))
    job = folder / ".scene.json"
    job.write_text(
        json.dumps({"meshes": meshes, "lines": lines, "structures": structures}), encoding="utf-8"
    )
    command = [sys.executable, "-c", _SCENE, str(job), str(path)]
    rendered = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
    job.unlink()
    return path if rendered.returncode == 0 and path.is_file() else None


def _curved_plane(
    image: Image, centres: np.ndarray, across: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    size = np.array(image.values.shape, float) - 1.0
    corners = np.stack(np.meshgrid(*[(0.0, s) for s in size], indexing="ij"), -1).reshape(-1, 3)
    corners = corners @ image.lps_from_index[:3, :3].T + image.lps_from_index[:3, 3]
    low = np.maximum(corners.min(axis=0), centres.min(axis=0) - 90.0)
    high = np.minimum(corners.max(axis=0), centres.max(axis=0) + 90.0)
    return _plane_in(np.array([low, high]), centres, across)


def _plane_in(
    box: np.ndarray, centres: np.ndarray, across: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Points [rows (z), columns, 3] of the cut along the bodies; `across` is the axis of its
    columns (1: sagittal, 0: coronal)."""
    low, high = box
    z = np.arange(low[2], high[2], _STEP_MM)
    u = np.arange(low[across], high[across], _STEP_MM)
    order = np.argsort(centres[:, 2])
    through = np.interp(z, centres[order, 2], centres[order, 1 - across])
    points = np.empty((len(z), len(u), 3))
    points[..., across], points[..., 2] = u[None, :], z[:, None]
    points[..., 1 - across] = through[:, None]
    return points, (float(u[0]), float(u[-1]), float(z[0]), float(z[-1]))


def _axial(body: Vertebra) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    centre = body.landmarks["body_centre"]
    isthmus = np.mean([body.pedicles[side].mean(axis=0) for side in ("left", "right")], axis=0)
    u = np.arange(-55.0, 55.0, _STEP_MM)
    v = np.arange(-40.0, 75.0, _STEP_MM)
    points = np.empty((len(v), len(u), 3))
    points[..., 0], points[..., 1], points[..., 2] = (
        centre[0] + u[None, :],
        centre[1] + v[:, None],
        isthmus[2],
    )
    return points, (centre[0] + u[0], centre[0] + u[-1], centre[1] + v[0], centre[1] + v[-1])


def _sample(image: Image, points: np.ndarray, order: int, outside: float) -> np.ndarray:
    inverse = np.linalg.inv(image.lps_from_index)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    flat = map_coordinates(
        image.values,
        index.reshape(-1, 3).T,
        order=order,
        mode="constant",
        cval=outside,
        output=np.float32,
    )
    return np.asarray(flat).reshape(points.shape[:-1])


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return path
