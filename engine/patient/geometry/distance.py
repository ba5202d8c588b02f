"""Signed distances on grids, from closed triangle surfaces and back.

Within 1.2 mm of the surface the distance to the triangles is exact (closest of the triangles that
hold the four nearest samples of the surface); to band_mm it is the distance to samples at most
0.35 mm apart (error under 0.3²/(2·1.2) = 0.04 mm); farther out it is the lattice distance to the
band plus the band's own, an upper bound that is 0.1 mm off in the mean and 1 mm at most. The sign
comes from a scan-line stencil of the surface, not from normals, so that thin sheets and sharp edges
are right.

There are two routines for the distance to a triangle surface, on purpose: this one, and
fem.mesh.regions.SurfaceDistance, which takes VTK's. They share no code, so that an error of one
does not pass into the finite-element check of what the other has made.
"""

from __future__ import annotations

import numpy as np
import pyvista as pv
import vtk
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes
from vtk.util.numpy_support import vtk_to_numpy

from engine.types import Surface, VoxelField

#: Margin of every vertebra's field around its bone (types.VoxelField asks for at least 6 mm).
MARGIN_MM = 8.0
#: Distances good to 0.05 mm up to this distance from the surface.
BAND_MM = 3.0
#: The distance to the triangles themselves is taken up to here.
_EXACT_MM = 1.2
#: Largest distance between neighbouring samples of the surface.
_SAMPLE_MM = 0.35
#: How many of a point's nearest samples say which triangles are tried.
_NEAREST_SAMPLES = 4


def polydata(surface: Surface) -> pv.PolyData:
    """The surface for VTK."""
    faces = np.column_stack([np.full(len(surface.faces), 3), surface.faces]).ravel()
    return pv.PolyData(np.ascontiguousarray(surface.points_mm, float), faces)


def grid_around(
    points_mm: np.ndarray, spacing_mm: float, margin_mm: float
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Origin (a multiple of the spacing) and shape of the grid that holds the points with that
    margin."""
    low = np.floor((points_mm.min(axis=0) - margin_mm) / spacing_mm) * spacing_mm
    count = np.ceil((points_mm.max(axis=0) + margin_mm - low) / spacing_mm).astype(int) + 1
    return low, (int(count[0]), int(count[1]), int(count[2]))


def surface_sdf(
    surface: Surface, spacing_mm: float, margin_mm: float = MARGIN_MM, band_mm: float = BAND_MM
) -> VoxelField:
    """Signed distance to a closed surface, negative inside, on a grid `margin_mm` larger than the
    surface.

    Error: module docstring.
    Raises: ValueError when the surface is not closed, as nothing is then inside.
    """
    mesh = polydata(surface)
    if mesh.n_open_edges:
        raise ValueError(
            f"the surface has {mesh.n_open_edges} open edges; close it before asking for a distance"
        )
    origin, shape = grid_around(surface.points_mm, spacing_mm, margin_mm)
    inside = _inside(mesh, origin, spacing_mm, shape)
    # lattice distance to the other side is within one cell diagonal of the true distance
    coarse = (
        np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside))
        * spacing_mm
    )
    band = coarse <= band_mm + 0.9 * spacing_mm
    exact = _distance_to(surface, origin + spacing_mm * np.argwhere(band))
    distance = np.where(inside[band], -exact, exact)
    values = np.empty(shape)
    values[band] = distance
    if not band.all():
        away, nearest = distance_transform_edt(~band, return_indices=True)
        far = ~band
        from_band = np.abs(values[tuple(axis[far] for axis in nearest)])
        values[far] = np.where(inside[far], -1.0, 1.0) * (from_band + away[far] * spacing_mm)
    return VoxelField(values.astype(np.float32), origin, spacing_mm)


def _distance_to(surface: Surface, points: np.ndarray) -> np.ndarray:
    """Unsigned distance of points to the surface (accuracy: module docstring)."""
    samples, owner = _samples(surface)
    tree = cKDTree(samples)
    distance, _ = tree.query(points)
    near = np.flatnonzero(distance < _EXACT_MM + _SAMPLE_MM)
    candidates = np.sort(owner[tree.query(points[near], k=_NEAREST_SAMPLES)[1]], axis=1)
    best = np.full(len(near), np.inf)
    for column in range(candidates.shape[1]):
        fresh = (
            np.ones(len(near), bool)
            if column == 0
            else candidates[:, column] != candidates[:, column - 1]
        )
        triangle = surface.points_mm[surface.faces[candidates[fresh, column]]]
        best[fresh] = np.minimum(best[fresh], _triangle_distance(points[near[fresh]], triangle))
    distance[near] = best
    return np.asarray(distance)


def _samples(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Points on the triangles at most `_SAMPLE_MM` apart, and the triangle of each."""
    corner = surface.points_mm[surface.faces]
    longest = np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=2).max(axis=1)
    parts = np.maximum(np.ceil(longest / _SAMPLE_MM).astype(int), 1)
    points, owner = [], []
    for n in np.unique(parts):
        which = np.flatnonzero(parts == n)
        i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        keep = i + j < n
        # centroids of the n² sub-triangles' upright half: inside the triangle, none shared with a
        # neighbour
        u, v = (i[keep] + 1 / 3) / n, (j[keep] + 1 / 3) / n
        weight = np.stack([1.0 - u - v, u, v], axis=-1)
        points.append(np.einsum("sc,tcx->tsx", weight, corner[which]).reshape(-1, 3))
        owner.append(np.repeat(which, keep.sum()))
    return np.concatenate(points), np.concatenate(owner)


def _triangle_distance(p: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    """Distance of each point [n, 3] to its triangle [n, 3, 3]."""
    result = np.full(len(p), np.inf)
    inside = np.ones(len(p), bool)
    normal = np.cross(triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0])
    for k in range(3):
        a, b = triangle[:, k], triangle[:, (k + 1) % 3]
        edge, offset = b - a, p - a
        length2 = np.maximum(np.einsum("ij,ij->i", edge, edge), 1e-30)
        t = np.clip(np.einsum("ij,ij->i", offset, edge) / length2, 0.0, 1.0)
        result = np.minimum(result, np.linalg.norm(offset - t[:, None] * edge, axis=1))
        inside &= np.einsum("ij,ij->i", np.cross(edge, offset), normal) >= 0.0
    size = np.linalg.norm(normal, axis=1)
    height = np.abs(np.einsum("ij,ij->i", p - triangle[:, 0], normal)) / np.maximum(size, 1e-30)
    return np.where(inside & (size > 1e-12), height, result)


def _inside(
    mesh: pv.PolyData, origin: np.ndarray, spacing_mm: float, shape: tuple[int, int, int]
) -> np.ndarray:
    """Which grid samples lie inside a closed surface (scan lines, VTK's polygon stencil)."""
    image = pv.ImageData(dimensions=shape, spacing=(spacing_mm,) * 3, origin=tuple(origin))
    stencil = vtk.vtkPolyDataToImageStencil()
    stencil.SetInputData(mesh)
    stencil.SetOutputOrigin(image.origin)
    stencil.SetOutputSpacing(image.spacing)
    stencil.SetOutputWholeExtent(image.extent)
    stencil.SetTolerance(0.0)
    to_image = vtk.vtkImageStencilToImage()
    to_image.SetInputConnection(stencil.GetOutputPort())
    to_image.SetInsideValue(1)
    to_image.SetOutsideValue(0)
    to_image.SetOutputScalarTypeToUnsignedChar()
    to_image.Update()
    flat = vtk_to_numpy(to_image.GetOutput().GetPointData().GetScalars())
    return flat.reshape(shape, order="F").astype(bool)


def isosurface(field: VoxelField, level: float = 0.0) -> Surface:
    """Closed triangle surface {field = level}, normals towards larger values (outward for a signed
    distance).

    Raises: ValueError when the surface leaves the grid.
    """
    values = np.asarray(field.values, np.float32)
    border = min(
        float(np.take(values, side, axis=axis).min()) for axis in range(3) for side in (0, -1)
    )
    if border <= level:
        raise ValueError("the body touches the border of its grid; enlarge the margin")
    points, faces, _, _ = marching_cubes(
        values, level, spacing=(field.spacing_mm,) * 3, gradient_direction="ascent"
    )
    surface = Surface(points.astype(float) + field.origin_mm, faces.astype(np.int64))
    return (
        surface
        if volume_mm3(surface) > 0
        else Surface(surface.points_mm, surface.faces[:, ::-1].copy())
    )


def volume_mm3(surface: Surface) -> float:
    """Enclosed volume, positive with outward normals (divergence theorem)."""
    a, b, c = (surface.points_mm[surface.faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c))) / 6.0
