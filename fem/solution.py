"""A solution's fields, for viewing, and their file for ParaView."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import meshio
import numpy as np
import pyvista as pv
from vtkmodules.vtkIOXML import vtkXMLUnstructuredGridWriter

from fem.elastic.invariants import principal, von_mises
from fem.fields import array_name
from fem.mesh.build import TetMesh


@dataclass(frozen=True)
class FemField:
    """All load cases' fields on one mesh; with contact, the implant's nodes in it are its own.

    displacement_mm [l, n, 3]   at the mesh's points
    strain, stress [l, m, 6]    volume averages per tetrahedron, Voigt, engineering shear; MPa
    e_mpa [m]                   Young's modulus, volume average per tetrahedron
    figures                     unknowns, seconds, memory
    contact                     per load case touching share, pressures, opening
    interface                   with contact: its triangles and what is on them
    """

    loadcases: tuple[str, ...]
    mesh: TetMesh
    displacement_mm: np.ndarray
    strain: np.ndarray
    stress: np.ndarray
    e_mpa: np.ndarray
    figures: dict[str, float]
    contact: tuple[dict[str, float], ...] = ()
    interface: meshio.Mesh | None = None


def write_vtu(path: Path | str, field: FemField) -> None:
    """Write one .vtu for ParaView: per load case `<name>_displacement_mm` on points (use Warp By
    Vector), and on cells min and max principal strain, von Mises stress, strain energy density;
    `region` and `e_mpa` once. Fields are rounded to float32: they are for looking at."""
    mesh = field.mesh
    grid = pv.UnstructuredGrid({pv.CellType.TETRA: mesh.tets}, mesh.points_mm)
    cells = {"region": mesh.labels.astype(np.int32), "e_mpa": field.e_mpa}
    points = {}
    for k, name in enumerate(field.loadcases):
        strain, stress = field.strain[k], field.stress[k]
        values = principal(strain, 0.5)
        mises = von_mises(principal(stress, 1.0))
        points[array_name(name, "displacement_mm")] = field.displacement_mm[k]
        cells[array_name(name, "strain_min")] = values[:, 0]
        cells[array_name(name, "strain_max")] = values[:, 2]
        cells[array_name(name, "von_mises_mpa")] = mises
        cells[array_name(name, "sed_mpa")] = 0.5 * (strain * stress).sum(-1)
    for data, kept in ((points, grid.point_data), (cells, grid.cell_data)):
        for name, values in data.items():
            kept[name] = values.astype(np.float32) if values.dtype.kind == "f" else values
    with tempfile.NamedTemporaryFile(
        prefix=".solution.", suffix=".vtu", dir=Path(path).parent, delete=False
    ) as stream:
        pass
    writer = vtkXMLUnstructuredGridWriter()
    writer.SetFileName(stream.name)
    writer.SetInputData(grid)
    writer.SetDataModeToAppended()
    writer.EncodeAppendedDataOff()  # a third larger as text
    if not writer.Write():
        raise OSError(f"{path} could not be written; is the disk full?")
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)
