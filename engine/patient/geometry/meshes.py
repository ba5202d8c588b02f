"""Reading, checking, repairing and remeshing of triangle surfaces."""

from __future__ import annotations

import numpy as np
import pymeshlab

from engine.patient.geometry.distance import polydata, volume_mm3
from engine.types import Surface

#: What is read, mm: fragments and half vertebrae are for others to name.
SMALLEST_MM, LARGEST_MM = 15.0, 250.0
#: Openings wider than this are missing bone, not a defect of the file.
LARGEST_HOLE_MM = 12.0
#: A hole of more edges than this is not closed.
_MOST_HOLE_EDGES = 300
#: A second piece of more than this share of the area is an error, not a scrap.
_LARGEST_SCRAP = 0.2
#: Largest relative change of the volume by remeshing.
LARGEST_CHANGE = 0.02
#: MeshLab's filters that make a mesh manifold, in their order.
_CLEANING = """
    meshing_remove_duplicate_vertices
    meshing_remove_duplicate_faces
    meshing_remove_null_faces
    meshing_repair_non_manifold_edges
    meshing_repair_non_manifold_vertices
    meshing_remove_unreferenced_vertices
""".split()


def repair(name: str, surface: Surface, edge_mm: float) -> tuple[Surface, list[str]]:
    """Closed, oriented, isotropically remeshed surface with edges of about `edge_mm`, and what was
    repaired.

    Raises: ValueError when a hole is wider than LARGEST_HOLE_MM, when a second piece holds over
    20 % of the area, and when the result is still not a closed manifold or has another volume.
    """
    notes: list[str] = []
    surface, dropped = _largest_piece(name, surface)
    notes += dropped
    holes = _holes(surface)
    if holes and max(holes) > LARGEST_HOLE_MM:
        raise ValueError(
            f"{name}: the surface is open over {max(holes):.0f} mm (at most {LARGEST_HOLE_MM:.0f}"
            " mm is closed automatically); the bone is cut off or the segmentation has a gap:"
            " close it in the segmentation tool"
        )
    meshes = pymeshlab.MeshSet()
    meshes.add_mesh(pymeshlab.Mesh(surface.points_mm, surface.faces))
    notes += _mend(name, meshes, max(holes, default=0.0))
    original = abs(volume_mm3(_surface(meshes)))
    meshes.apply_filter(
        "meshing_isotropic_explicit_remeshing", iterations=5, targetlen=pymeshlab.PureValue(edge_mm)
    )
    result = _surface(meshes)
    if volume_mm3(result) < 0.0:
        result = Surface(result.points_mm, result.faces[:, ::-1].copy())
    if volume_mm3(surface) < 0.0:
        notes.append(f"{name}: triangles pointed inwards; turned outwards")
    change = _checked_change(name, result, original)
    notes.append(
        f"{name}: remeshed to {edge_mm:g} mm edges, {len(result.faces)} triangles; volume"
        f" {change:+.2%}, given back"
    )
    return _with_volume(result, original), notes


def _mend(name: str, meshes: pymeshlab.MeshSet, widest_hole_mm: float) -> list[str]:
    """Make the mesh manifold, close its holes and orient it, in place; what was done."""
    notes = []
    before = meshes.get_topological_measures()
    for step in _CLEANING:
        meshes.apply_filter(step)
    if before["non_two_manifold_edges"] or before["non_two_manifold_vertices"]:
        notes.append(
            f"{name}: {before['non_two_manifold_edges']} non-manifold edges and "
            f"{before['non_two_manifold_vertices']} vertices repaired"
        )
    opening = meshes.get_topological_measures()["boundary_edges"]
    if opening:
        meshes.apply_filter("meshing_close_holes", maxholesize=_MOST_HOLE_EDGES)
        notes.append(f"{name}: holes with {opening} edges closed (widest {widest_hole_mm:.1f} mm)")
    meshes.apply_filter("meshing_re_orient_faces_coherently")
    return notes


def _checked_change(name: str, surface: Surface, original_mm3: float) -> float:
    """Relative change of the volume by remeshing. Raises ValueError where the surface is no closed
    manifold or the change is too large."""
    closed = polydata(surface)
    if closed.n_open_edges or not closed.is_manifold:
        raise ValueError(
            f"{name}: after repair the surface still has {closed.n_open_edges} open or non-manifold"
            " edges; repair it in MeshLab or the segmentation tool"
        )
    change = volume_mm3(surface) / original_mm3 - 1.0 if original_mm3 > 0.0 else np.nan
    if not abs(change) < LARGEST_CHANGE:
        raise ValueError(
            f"{name}: remeshing changed the volume by {change:+.1%} (at most 2 %); mesh it finer"
        )
    return float(change)


def _with_volume(surface: Surface, volume: float) -> Surface:
    """The surface moved along its normals until it encloses `volume`: chords of a convex bone
    lose 0.3-0.6 % (0.02 mm)."""
    for _ in range(2):
        mesh = polydata(surface).compute_normals(
            cell_normals=False, split_vertices=False, consistent_normals=False
        )
        step = (volume - volume_mm3(surface)) / mesh.area
        surface = Surface(
            surface.points_mm + step * np.asarray(mesh.point_data["Normals"], float), surface.faces
        )
    return surface


def _surface(meshes: pymeshlab.MeshSet) -> Surface:
    mesh = meshes.current_mesh()
    return Surface(np.array(mesh.vertex_matrix()), np.array(mesh.face_matrix(), dtype=np.int64))


def _largest_piece(name: str, surface: Surface) -> tuple[Surface, list[str]]:
    """The piece of largest area; a second piece above 20 % of the area is an error, smaller ones
    are dropped."""
    mesh = polydata(surface).connectivity("all")
    region = np.asarray(mesh.cell_data["RegionId"])
    corner = surface.points_mm[surface.faces]
    area = 0.5 * np.linalg.norm(
        np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1
    )
    areas = np.bincount(region, weights=area)
    if len(areas) == 1:
        return surface, []
    order = np.argsort(areas)[::-1]
    second = areas[order[1]] / areas.sum()
    if second > _LARGEST_SCRAP:
        raise ValueError(
            f"{name}: the file holds {len(areas)} separate pieces, the second with {second:.0%} of"
            " the area; give one vertebra per file (inner surfaces of hollow bones removed)"
        )
    kept = surface.faces[region == order[0]]
    used, faces = np.unique(kept, return_inverse=True)
    share = 1.0 - areas[order[0]] / areas.sum()
    note = f"{name}: {len(areas) - 1} separate pieces dropped ({share:.1%} of the area)"
    return Surface(surface.points_mm[used], faces.reshape(-1, 3)), [note]


def _holes(surface: Surface) -> list[float]:
    """Widths (largest extent, mm) of the openings."""
    edges = polydata(surface).extract_feature_edges(
        boundary_edges=True, non_manifold_edges=False, feature_edges=False, manifold_edges=False
    )
    if edges.n_cells == 0:
        return []
    loops = edges.connectivity("all")
    region = np.asarray(loops.point_data["RegionId"])
    points = np.asarray(loops.points)
    return [float(np.linalg.norm(np.ptp(points[region == k], axis=0))) for k in np.unique(region)]
