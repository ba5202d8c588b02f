"""Surface meshes from files, in millimetres whatever unit they were written in."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pyvista as pv

from engine.patient.geometry.meshes import LARGEST_MM, SMALLEST_MM
from engine.patient.read.files import content
from engine.types import Surface

READABLE = (".stl", ".ply", ".obj", ".vtp", ".vtk", ".off")
UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4, "um": 1e-3}
#: A vertebra's (or sacrum's) largest extent in each unit: 30-250 mm, inches and centimetres parted
#: at 5.
_EXTENTS = {
    "m": (0.03, 0.25),
    "inch": (1.5, 5.0),
    "cm": (5.0, 25.0),
    "mm": (30.0, 250.0),
    "um": (3e4, 2.5e5),
}
_WORDS = {
    "m": "metres",
    "inch": "inches",
    "cm": "centimetres",
    "mm": "millimetres",
    "um": "micrometres",
}


def read_surface(path: Path, unit: str) -> tuple[Surface, list[str]]:
    """The triangles of a file in mm, checked to be a vertebra by size.

    Raises: ValueError for an unreadable or empty file, NaN coordinates, or a size that speaks for
    another unit.
    """
    if path.suffix.lower() not in READABLE:
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'this kind'}; give one of {', '.join(READABLE)}"
        )
    if unit not in UNITS_MM:
        raise ValueError(f"source.unit={unit!r} is unknown; choose one of {', '.join(UNITS_MM)}")
    what = content(path)  # raises for what may not be read
    if _has_decimal_commas(path):
        raise ValueError(
            f"{path}: its numbers have decimal commas (12,5 for 12.5); export it with decimal"
            " points"
        )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # VTK's; what it could not read is empty, which is said below
        try:
            mesh = pv.read(path)
        except Exception as error:  # meshio's and VTK's own kinds
            raise ValueError(
                f"{path}: not a readable {path.suffix[1:].upper()} file"
                f" ({' '.join(str(error).split())})"
            ) from error
    if isinstance(mesh, pv.UnstructuredGrid):
        mesh = mesh.extract_surface(algorithm="dataset_surface")
    if not isinstance(mesh, pv.PolyData) or mesh.n_points == 0 or mesh.n_cells == 0:
        really = f" (it is {what.foreign})" if what.foreign and "surface" not in what.kind else ""
        raise ValueError(f"{path}: holds no triangles{really}; export the vertebra's surface again")
    bad = int((~np.isfinite(np.asarray(mesh.points))).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{path}: {bad} of {mesh.n_points} vertices are NaN or infinite; export the surface"
            " again"
        )
    mesh = mesh.triangulate().clean()
    extent = float(np.ptp(np.asarray(mesh.points, float), axis=0).max())
    if not SMALLEST_MM <= extent * UNITS_MM[unit] <= LARGEST_MM or _better_unit(extent, unit):
        raise ValueError(f"{path}: {_size_advice(extent, unit)}")
    points = np.asarray(mesh.points, float) * UNITS_MM[unit]
    faces = mesh.faces.reshape(-1, 4)[:, 1:].astype(np.int64)
    return Surface(points, faces), []


def _has_decimal_commas(path: Path) -> bool:
    """Whether coordinates of a text file are written as 12,5: some readers would take 12 for it,
    without a word."""
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    return (
        b"\0" not in head
        and re.search(rb"^[ \t]*(vertex[ \t]+|v[ \t]+)?[-+]?\d+,\d", head, re.MULTILINE) is not None
    )


def _better_unit(extent: float, unit: str) -> bool:
    """Whether another unit makes a vertebra of what would be of a doubtful size: inches read as
    cm are 30-40 mm."""
    usual = [name for name, mm in UNITS_MM.items() if 60.0 <= extent * mm <= 130.0]
    return not 40.0 <= extent * UNITS_MM[unit] <= 160.0 and any(name != unit for name in usual)


def _size_advice(extent: float, unit: str) -> str:
    """What to do about a file whose largest extent, in its own lengths, makes no vertebra when
    read in `unit`."""
    other = next((name for name, (low, high) in _EXTENTS.items() if low <= extent < high), unit)
    if other != unit:
        return (
            f"largest extent {extent * UNITS_MM[unit]:.3g} mm; it looks like {_WORDS[other]}, set"
            f" source.unit={other} (then {extent * UNITS_MM[other]:.0f} mm)"
        )
    return (
        f"largest extent {extent * UNITS_MM[unit]:.3g} mm; expected one vertebra of 40-150 mm:"
        f" check source.unit={unit} and that the file holds a single vertebra"
    )
