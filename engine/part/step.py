"""The part as STEP, for CAD: a closed solid of flat faces (AP214, mm), few enough to be opened.

The exported surface is decimated (quadric edge collapse, topology kept) to the fewest faces whose
vertices stay within `deviation_mm` of it; the deviation that was reached is returned. Needs the
extra `step` (OpenCASCADE through cadquery-ocp).
"""

from __future__ import annotations

import re
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pymeshlab
import trimesh

from engine import artifacts
from engine.types import Surface

#: Numbers of faces that are tried, fewest first.
_MOST_FACES = (600, 1000, 1600, 2600, 4200, 6800)
#: Gap that sewing closes, and relative difference of volume allowed between mesh and solid.
_SEWING_MM, _VOLUME_TOLERANCE = 1e-4, 1e-3


def decimated(surface: Surface, deviation_mm: float = 0.05) -> tuple[trimesh.Trimesh, float]:
    """A closed mesh of fewer faces, and the largest distance of its face centres and vertices from
    the surface, mm.

    Raises ValueError when not even the finest trial stays closed and within deviation_mm.
    """
    fine = trimesh.Trimesh(np.asarray(surface.points_mm, float), surface.faces, process=False)
    reached = np.inf
    for faces in (*(n for n in _MOST_FACES if n < len(fine.faces)), len(fine.faces)):
        meshes = pymeshlab.MeshSet()
        meshes.add_mesh(pymeshlab.Mesh(fine.vertices, fine.faces.astype(np.int32)))
        if faces < len(fine.faces):
            meshes.meshing_decimation_quadric_edge_collapse(
                targetfacenum=faces,
                preservetopology=True,
                preservenormal=True,
                optimalplacement=True,
                planarquadric=True,
            )
        fewer = meshes.current_mesh()
        mesh = trimesh.Trimesh(fewer.vertex_matrix(), fewer.face_matrix(), process=False)
        if not (mesh.is_watertight and mesh.is_winding_consistent):
            continue
        reached = _deviation(mesh, fine)
        if reached <= deviation_mm and abs(mesh.volume / fine.volume - 1.0) < 0.01:
            return mesh, reached
    raise ValueError(
        f"no closed mesh within {deviation_mm:g} mm of the surface was found (best {reached:.3f}"
        " mm); allow more deviation_mm"
    )


def _deviation(coarse: trimesh.Trimesh, fine: trimesh.Trimesh) -> float:
    """Largest distance of the coarse mesh's vertices and face centres from the fine one, and of
    the fine one's vertices from the coarse."""
    import pyvista as pv

    def poly(m: trimesh.Trimesh) -> pv.PolyData:
        return pv.PolyData(
            np.asarray(m.vertices, float),
            np.column_stack([np.full(len(m.faces), 3), m.faces]).ravel(),
        )

    there = pv.PolyData(
        np.concatenate([coarse.vertices, coarse.triangles_center])
    ).compute_implicit_distance(poly(fine))
    back = pv.PolyData(np.asarray(fine.vertices, float)).compute_implicit_distance(poly(coarse))
    return float(max(np.abs(d["implicit_distance"]).max() for d in (there, back)))


def write_step(
    surface: Surface, path: Path | str, name: str, deviation_mm: float = 0.05
) -> tuple[Path, float, int]:
    """Write the solid; returns the path, the deviation reached (mm) and the number of faces.

    Raises ValueError when the extra is missing, the surface cannot be decimated, or OpenCASCADE
    finds no valid solid of its volume.
    """
    try:
        import_module("OCP")
    except ImportError as error:
        raise ValueError("STEP needs OpenCASCADE: pip install 'spinefit[step]'") from error
    mesh, reached = decimated(surface, deviation_mm)
    text = _step_text(_solid(mesh), name)
    return artifacts.write_text(path, text), reached, len(mesh.faces)


def _solid(mesh: trimesh.Trimesh) -> Any:
    """OpenCASCADE's solid (TopoDS_Solid) of a closed mesh. Raises ValueError when it is not valid
    or of another volume."""
    from OCP.BRepBuilderAPI import (
        BRepBuilderAPI_MakeFace,
        BRepBuilderAPI_MakePolygon,
        BRepBuilderAPI_MakeSolid,
        BRepBuilderAPI_Sewing,
    )
    from OCP.BRepCheck import BRepCheck_Analyzer
    from OCP.gp import gp_Pnt
    from OCP.TopAbs import TopAbs_SHELL
    from OCP.TopExp import TopExp_Explorer
    from OCP.TopoDS import TopoDS

    corners = [gp_Pnt(*map(float, p)) for p in mesh.vertices]
    sewing = BRepBuilderAPI_Sewing(_SEWING_MM)
    for a, b, c in mesh.faces:
        wire = BRepBuilderAPI_MakePolygon(corners[a], corners[b], corners[c], True).Wire()
        sewing.Add(BRepBuilderAPI_MakeFace(wire, True).Face())
    sewing.Perform()
    shells = TopExp_Explorer(sewing.SewedShape(), TopAbs_SHELL)
    if not shells.More():
        raise ValueError(
            "OpenCASCADE could not sew the faces to a shell; allow another deviation_mm"
        )
    solid = BRepBuilderAPI_MakeSolid(TopoDS.Shell(shells.Current())).Solid()
    volume_mm3 = _signed_volume_mm3(solid)
    off = abs(abs(volume_mm3) / mesh.volume - 1.0)
    if not BRepCheck_Analyzer(solid).IsValid() or off > _VOLUME_TOLERANCE:
        raise ValueError(
            f"OpenCASCADE's solid is not valid or has {volume_mm3:.1f} mm³ instead of"
            f" {mesh.volume:.1f}"
        )
    return solid


def _step_text(solid: Any, name: str) -> str:
    """The STEP file of a solid, without a time stamp: the same part, the same bytes."""
    from OCP.IFSelect import IFSelect_RetDone
    from OCP.Interface import Interface_Static
    from OCP.STEPControl import STEPControl_AsIs, STEPControl_Writer

    writer = STEPControl_Writer()
    Interface_Static.SetCVal_s("write.step.unit", "MM")
    Interface_Static.SetCVal_s("write.step.product.name", name)
    if writer.Transfer(solid, STEPControl_AsIs) != IFSelect_RetDone:
        raise ValueError("OpenCASCADE could not translate the solid to STEP")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "part.step"
        if writer.Write(str(file)) != IFSelect_RetDone:
            raise ValueError("OpenCASCADE could not write the STEP file")
        text = re.sub(r"(FILE_NAME\('[^']*',)'[^']*'", r"\1''", file.read_text(), count=1)
    # nor a count of the parts that this process wrote
    return re.sub(rf"'{re.escape(name)} \d+'", f"'{name}'", text)


def _signed_volume_mm3(shape: Any) -> float:
    """Of a solid; negative where its faces point inward."""
    from OCP.BRepGProp import BRepGProp
    from OCP.GProp import GProp_GProps

    properties = GProp_GProps()
    BRepGProp.VolumeProperties_s(shape, properties)
    return float(properties.Mass())


def read_volume_mm3(path: Path | str) -> float:
    """Volume of the solid in a STEP file. Raises ValueError when it is none."""
    from OCP.IFSelect import IFSelect_RetDone
    from OCP.STEPControl import STEPControl_Reader

    reader = STEPControl_Reader()
    if reader.ReadFile(str(path)) != IFSelect_RetDone or not reader.TransferRoots():
        raise ValueError(f"{path} is no STEP file that can be read")
    return abs(_signed_volume_mm3(reader.OneShape()))
