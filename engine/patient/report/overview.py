"""Pictures and files to look at a segment: an overview PNG and VTP/VTI files for ParaView."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyvista as pv

from engine.patient.geometry.distance import polydata
from engine.patient.segment import disc_surface
from engine.types import Segment, Vertebra, VoxelField

#: A renderer that takes longer than this hangs, s [M].
_PATIENCE_S = 120
_RENDER = """
import sys, pyvista as pv
folder, target = sys.argv[1], sys.argv[2]
p = pv.Plotter(off_screen=True, shape=(1, 3), window_size=(1800, 700))
parts = [(n, pv.read(f"{folder}/{n}.vtp")) for n in ("caudal", "cranial", "disc", "anatomy")]
views = [((1, 0, 0), "left side"), ((0, 1, 0.1), "from behind"), ((0.8, -1, 0.8), "from in front")]
for k, (view, title) in enumerate(views):
    p.subplot(0, k)
    for name, mesh in parts:
        if name == "anatomy":
            p.add_mesh(mesh, color="crimson", line_width=4)
        else:
            colour = {"caudal": "#c9d6e8", "cranial": "#e8dcc0", "disc": "#e08a8a"}[name]
            p.add_mesh(mesh, color=colour, opacity=1.0 if k == 2 else 0.5, smooth_shading=True)
    middle = (0, 18, 4)
    p.camera_position = [tuple(200 * a + b for a, b in zip(view, middle)), middle, (0, 0, 1)]
    p.camera.parallel_projection = True
    p.camera.parallel_scale = 60
    p.add_text(title, font_size=9)
p.screenshot(target)
"""


def write_overview(segment: Segment, folder: str | Path) -> list[Path]:
    """caudal.vtp, cranial.vtp (with the density at the surface), disc.vtp, anatomy.vtp, fields as
    VTI, and overview.png; all in the segment frame at the planned pose.

    The picture is rendered in a process of its own: where no off-screen renderer works, the files
    are still there and the picture's path is not among the results.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for name, body in (("caudal", segment.caudal), ("cranial", segment.cranial)):
        mesh = polydata(body.surface)
        mesh["density_g_cm3"] = body.density.sample(body.surface.points_mm)
        files.append(_save(mesh, target / f"{name}.vtp"))
        files.append(
            _save(
                _image(body.sdf, {"sdf_mm": body.sdf, "density_g_cm3": body.density}),
                target / f"{name}.vti",
            )
        )
    files.append(
        _save(
            polydata(disc_surface(segment.caudal.superior, segment.cranial.inferior)),
            target / "disc.vtp",
        )
    )
    files.append(_save(_lines((segment.caudal, segment.cranial)), target / "anatomy.vtp"))
    picture = target / "overview.png"
    command = [sys.executable, "-c", _RENDER, str(target), str(picture)]
    rendered = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
    return [*files, picture] if rendered.returncode == 0 and picture.is_file() else files


def _save(mesh: pv.DataSet, path: Path) -> Path:
    mesh.save(path)
    return path


def _image(grid: VoxelField, fields: dict[str, VoxelField]) -> pv.ImageData:
    image = pv.ImageData(
        dimensions=grid.values.shape,
        spacing=(grid.spacing_mm,) * 3,
        origin=tuple(float(o) for o in grid.origin_mm),
    )
    for name, field in fields.items():
        image[name] = np.asarray(field.values, np.float32).ravel(order="F")
    return image


def _lines(bodies: tuple[Vertebra, ...]) -> pv.PolyData:
    """Rims, endplate normals and pedicle axes as lines."""
    parts = []
    for body in bodies:
        for plate in (body.superior, body.inferior):
            parts.append(pv.lines_from_points(plate.rim_mm, close=True))
            parts.append(pv.Line(plate.centre_mm, plate.centre_mm + 6.0 * plate.normal))
        parts += [pv.Line(*axis) for axis in body.pedicles.values()]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.append_polydata(part)
    return merged
