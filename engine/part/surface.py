"""Signed distance → closed, checked triangle surface → printable files.

`extract` contours the trilinear field (dual contouring, which keeps edges sharp; marching cubes
where that gives no clean surface), remeshes to even triangles, pulls the vertices back onto the
zero level, and takes the first variant that passes `check`. Coordinates are float32 values, so that
the binary STL holds the very same surface that was checked (and that the finite-element mesh is
built from).

Units: mm. Volume is kept within 1 % of the contour.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import meshio
import numpy as np
import pymeshlab
import trimesh
from scipy import ndimage

from engine.part import meshfiles
from engine.part.contour import creases, dual_contour, gradient
from engine.part.meshfiles import PartLabel
from engine.part.volume import (
    crossing,
    isosurface_of,
    meshset,
    off_level,
    single_precision,
    surface_problem,
    volume_mm3,
)
from engine.types import Surface, VoxelField

log = logging.getLogger(__name__)

#: Relative volume change that the extraction may cause.
VOLUME_TOLERANCE = 0.01
#: Relative volume that keeping the edges sharp may add over marching cubes' chamfers (a 1 mm grid:
#: 2 %).
SHARP_TOLERANCE = 0.04
#: Islands below this share of the largest body are removed (logged); larger ones are kept and
#: counted.
ISLAND_SHARE = 0.01


class ExportError(ValueError):
    """The part cannot be exported as it is; the text says what was found and where to look."""


# -- field → triangles -----------------------------------------------------------------------------
def _prepare(sdf: VoxelField) -> tuple[np.ndarray, np.ndarray, float]:
    """Values (finite, somewhere negative, positive at the grid's border), origin and spacing."""
    values, h = np.asarray(sdf.values, float), float(sdf.spacing_mm)
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise ExportError(f"the signed distance has {count} samples that are not finite")
    if not (values < 0).any():
        raise ExportError("the part is empty: its signed distance is nowhere negative")
    border = [values[0], values[-1], values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]]
    if any((face < 0).any() for face in border):
        raise ExportError(
            "the part touches the border of its grid and would be cut open there; pad the field"
        )
    return values, np.asarray(sdf.origin_mm, float), h


def _drop_islands(values: np.ndarray, h: float) -> np.ndarray:
    """Remove solid crumbs, and fill closed voids that no powder could leave, both below
    ISLAND_SHARE; log each."""
    for sign, what in ((1.0, "island"), (-1.0, "closed void")):
        labels, count = ndimage.label(values < 0 if sign > 0 else values >= 0)
        if count <= 1:
            continue
        sizes = np.bincount(labels.ravel())[1:]
        small = np.flatnonzero(sizes < ISLAND_SHARE * sizes.max()) + 1
        for label in small:
            where = ndimage.center_of_mass(labels == label)
            size_mm3 = sizes[label - 1] * h**3
            log.warning(
                "surface: removed one %s of about %.2f mm³ at voxel (%.0f, %.0f, %.0f)",
                what,
                size_mm3,
                *where,
            )
        values = np.where(np.isin(labels, small), sign * 1e-1 * h, values)
    return values


def _current(meshes: pymeshlab.MeshSet) -> Surface:
    mesh = meshes.current_mesh()
    return Surface(single_precision(mesh.vertex_matrix()), mesh.face_matrix().astype(np.int64))


def _remesh(surface: Surface, edge_mm: float, deviation_mm: float, feature_deg: float) -> Surface:
    """Even triangles of about edge_mm that stay within deviation_mm of the input."""
    meshes = meshset(surface)
    meshes.meshing_isotropic_explicit_remeshing(
        iterations=8,
        targetlen=pymeshlab.PureValue(edge_mm),
        featuredeg=feature_deg,
        checksurfdist=True,
        maxsurfdist=pymeshlab.PureValue(deviation_mm),
    )
    return _current(meshes)


def _untangle(sharp: Surface, soft_mm: np.ndarray) -> Surface:
    """Give up the sharpness of the vertices whose faces cross others; each round takes in their
    neighbours."""
    surface = Surface(single_precision(sharp.points_mm), sharp.faces)
    for _ in range(5):
        bad = crossing(surface)
        if not bad.any():
            break
        touched = np.unique(surface.faces[bad])
        points = surface.points_mm.copy()
        points[touched] = soft_mm[touched]
        surface = Surface(single_precision(points), surface.faces)
    return surface


def _project(surface: Surface, field: VoxelField, limit_mm: float) -> Surface:
    """Two Newton steps per vertex onto the zero level, each no longer than limit_mm; creases,
    which the interpolated field has blurred, stay."""
    points = surface.points_mm
    creased, _ = creases(field, points)
    for _ in range(2):
        slope = gradient(field, points, 0.5 * field.spacing_mm)
        step = np.clip(
            -field.sample(points) / np.maximum(np.sum(slope**2, axis=-1), 0.5), -limit_mm, limit_mm
        )
        points = points + (step * ~creased)[:, None] * slope
    return Surface(single_precision(points), surface.faces)


def _merge(surface: Surface, distance_mm: float) -> Surface:
    """Vertices closer than distance_mm become one: needles of a few micrometres are no use to a
    mesher."""
    meshes = meshset(surface)
    meshes.meshing_merge_close_vertices(threshold=pymeshlab.PureValue(distance_mm))
    meshes.meshing_remove_duplicate_faces()
    meshes.meshing_remove_null_faces()
    meshes.meshing_remove_unreferenced_vertices()
    return _current(meshes)


def _decimate(surface: Surface, edge_mm: float) -> Surface:
    """As many triangles as even ones of edge_mm would be."""
    area = trimesh.Trimesh(surface.points_mm, surface.faces, process=False).area
    return decimated(surface, max(200, int(area / (np.sqrt(3) / 4 * edge_mm**2))))


def decimated(surface: Surface, faces: int, keep: np.ndarray | None = None) -> Surface:
    """About so many triangles, by quadric edge collapse, not checked; keep [f] (bool): faces
    that stay as they are and do not count."""
    meshes = meshset(surface, keep)
    if keep is not None:
        meshes.compute_selection_by_condition_per_face(condselect="fq < 0.5")
    meshes.meshing_decimation_quadric_edge_collapse(
        targetfacenum=faces,
        selected=keep is not None,
        preservenormal=True,
        preservetopology=True,
        optimalplacement=True,
        qualitythr=0.5,
    )
    return _current(meshes)


def _variants(
    values: np.ndarray, origin: np.ndarray, h: float, edge_mm: float
) -> Iterator[tuple[str, Surface, float]]:
    """Candidates, best first, each with the volume in mm³ of the contour that it came from."""
    field = VoxelField(values, origin, h)
    plain_mm3 = volume_mm3(isosurface_of(values, origin, h))
    # A shift of the level by about a hundredth of a voxel undoes the rare ambiguous cell.
    for shift in (0.0, 0.013, -0.013, 0.029, -0.029):
        sharp = _untangle(*dual_contour(VoxelField(values + shift * h, origin, h)))
        checked = check(sharp)
        if (
            surface_problem(checked)
            or abs(checked["volume_mm3"] / plain_mm3 - 1.0) > SHARP_TOLERANCE
        ):
            continue  # remeshing does not mend it
        for feature_deg, factor in ((30.0, 1.0), (40.0, 0.75)):
            even = _remesh(sharp, factor * edge_mm, 0.2 * h, feature_deg)
            best = _project(even, field, 0.3 * h)
            yield (
                "sharp, remeshed, projected and merged",
                _merge(best, 0.02 * edge_mm),
                checked["volume_mm3"],
            )
            yield "sharp, remeshed and projected", best, checked["volume_mm3"]
            yield "sharp and remeshed", even, checked["volume_mm3"]
    for shift in (0.0, 0.013, -0.013):
        raw = isosurface_of(off_level(values + shift * h, h), origin, h)
        for feature_deg, factor in ((30.0, 1.0), (45.0, 0.75)):
            even = _remesh(raw, factor * edge_mm, 0.25 * h, feature_deg)
            yield "remeshed and projected", _project(even, field, 0.3 * h), plain_mm3
            yield "remeshed", even, plain_mm3
        yield "decimated", _decimate(raw, edge_mm), plain_mm3
        yield "marching cubes", raw, plain_mm3


def extract(sdf: VoxelField, target_edge_mm: float = 0.8) -> Surface:
    """The zero level of a signed distance (mm, negative inside) as a closed, self-intersection-free
    surface.

    Volume within 1 % of the field's. Crumbs and closed voids below 1 % of the body are removed,
    with a log line; more than one component is logged, not refused (`check` counts them). Raises
    ExportError when the part is empty, reaches the grid's border, is not finite, or when no variant
    of the surface passes; the text says what was found.
    """
    if not target_edge_mm > 0:
        raise ExportError(f"target_edge_mm={target_edge_mm} must be positive")
    values, origin, h = _prepare(sdf)
    values = _drop_islands(values, h)
    tried: list[str] = []
    for name, surface, volume in _variants(values, origin, h, target_edge_mm):
        checked = check(surface)
        change = checked["volume_mm3"] / volume - 1.0
        problem = surface_problem(checked) or (
            f"volume changed by {change:+.2%}" if abs(change) > VOLUME_TOLERANCE else ""
        )
        if not problem:
            if tried:
                log.info("surface: took '%s' after %s", name, "; ".join(tried))
            if checked["components"] > 1:
                log.warning("surface: the part has %d separate components", checked["components"])
            return surface
        tried.append(f"{name}: {problem}")
    raise ExportError(
        f"no clean surface found ({'; '.join(tried)}); the part is probably thinner than a voxel"
        f" ({h} mm) somewhere: use a finer grid or a larger minimum wall"
    )


# -- checking --------------------------------------------------------------------------------------
def check(surface: Surface) -> dict[str, Any]:
    """What a printer and a mesher ask of a surface.

    Keys: watertight, manifold (each edge has two faces, each vertex one fan), self_intersections
    (faces), components, volume_mm3, area_mm2, bbox_mm [2][3], min_edge_mm, vertices, faces.
    """
    points = np.asarray(surface.points_mm, float)
    if not np.isfinite(points).all():
        raise ExportError("the surface has vertices that are not finite")
    mesh = trimesh.Trimesh(points, surface.faces, process=False)
    meshes = meshset(surface)
    topology = meshes.get_topological_measures()
    edges = points[surface.faces] - points[np.roll(surface.faces, -1, axis=1)]
    return {
        "watertight": bool(mesh.is_watertight and mesh.is_winding_consistent),
        "manifold": bool(
            topology["is_mesh_two_manifold"] and topology["non_two_manifold_vertices"] == 0
        ),
        "self_intersections": int(crossing(surface).sum()),
        "components": int(topology["connected_components_number"]),
        "volume_mm3": float(mesh.volume),
        "area_mm2": float(mesh.area),
        "bbox_mm": [points.min(axis=0).tolist(), points.max(axis=0).tolist()],
        "min_edge_mm": float(np.sqrt((edges**2).sum(axis=-1)).min()),
        "vertices": len(points),
        "faces": len(surface.faces),
    }


# -- files -----------------------------------------------------------------------------------------
def export(
    surface: Surface, folder: Path | str, name: str, label: PartLabel | None = None
) -> dict[str, Path]:
    """Write <name>.stl (binary) and <name>.3mf, both in mm in the segment frame, read both back and
    compare.

    label: whose part it is, for the 3MF's metadata. Returns {"stl": path, "3mf": path}. Raises
    ExportError when the surface is not printable or when a file read back is not watertight or
    differs in volume by more than 1e-4; nothing is left behind then.
    """
    checked = check(surface)
    if problem := surface_problem(checked):
        raise ExportError(f"{name}: {problem}; not written")
    folder = Path(folder)
    paths = {"stl": folder / f"{name}.stl", "3mf": folder / f"{name}.3mf"}
    try:
        meshfiles.write_stl(surface, paths["stl"], name, "segment")
        meshfiles.write_3mf(surface, paths["3mf"], name, label)
        for path in paths.values():
            _compare(read(path), checked, path)
    except ExportError:
        for path in paths.values():
            path.unlink(missing_ok=True)
        raise
    return paths


def read(path: Path | str) -> Surface:
    """Read a triangle mesh (STL, 3MF, PLY) in mm, joining equal vertices. Raises ExportError
    when it can't be read."""
    try:
        mesh = trimesh.load(path, force="mesh")
    except Exception as error:  # the readers raise anything on a damaged file
        raise ExportError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
        raise ExportError(f"{path} holds no triangles")
    mesh.merge_vertices()
    return Surface(np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64))


def _compare(back: Surface, wanted: dict[str, Any], path: Path) -> None:
    checked = check(back)
    if problem := surface_problem(checked):
        raise ExportError(f"{path.name} read back: {problem}")
    change = checked["volume_mm3"] / wanted["volume_mm3"] - 1.0
    if abs(change) > 1e-4:
        raise ExportError(f"{path.name} read back: volume differs by {change:+.2e}, allowed 1e-4")
    if checked["components"] != wanted["components"]:
        raise ExportError(
            f"{path.name} read back: {checked['components']} components, expected"
            f" {wanted['components']}"
        )


def write_density_vtu(
    path: Path | str, sdf: VoxelField, relative_density: VoxelField | None
) -> Path:
    """The lattice's relative density inside the part (1 = solid; None: solid throughout) as VTU for
    ParaView.

    One hexahedron per voxel whose centre is inside; cell data `relative_density` and
    `signed_distance_mm`. Raises ExportError when no voxel is inside or the two fields' grids
    differ.
    """
    inside = np.argwhere(np.asarray(sdf.values) < 0)
    if not len(inside):
        raise ExportError("the part is empty: no voxel to write")
    if relative_density is not None and relative_density.values.shape != sdf.values.shape:
        raise ExportError(
            f"density grid {relative_density.values.shape} is not the part's {sdf.values.shape}"
        )
    corner = np.array(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]]
    )
    shape = np.array(sdf.values.shape) + 1
    index = np.ravel_multi_index(np.moveaxis(inside[:, None] + corner, -1, 0), tuple(shape))
    used, cells = np.unique(index, return_inverse=True)
    points = sdf.origin_mm + sdf.spacing_mm * (
        np.stack(np.unravel_index(used, tuple(shape)), axis=-1) - 0.5
    )
    at = tuple(inside.T)
    density = (
        np.ones(len(inside))
        if relative_density is None
        else np.asarray(relative_density.values, float)[at]
    )
    mesh = meshio.Mesh(
        points,
        [("hexahedron", cells.reshape(-1, 8))],
        cell_data={
            "relative_density": [density],
            "signed_distance_mm": [np.asarray(sdf.values, float)[at]],
        },
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    meshio.write(path, mesh)
    return path
