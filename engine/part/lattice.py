"""A graded relative density made into geometry that can be printed: a network of struts inside the
part's outline.

    solid where g(x) < t(ρ(x))

with g the cell's level function and t(ρ) its level (engine/part/cells.py), so that the local solid
fraction is ρ. A printer makes struts thicker than the file says: they gain Δ_v where they stand
along the build direction b and Δ_h where they lie across it [S80]. Between, by the surface's normal
n, half of it on each side [M]:

    Δ(n) = Δ_v + (Δ_h − Δ_v)|n·b|

The exported surface lies Δ/2 inside the wanted one; the as-built prediction grows the exported one
again, by its own distances and normals, and all figures are measured on both.

Limits: ρ is raised where struts would be thinner than strut_mm as built or print_mm in the file;
where pores would be narrower than pore_mm the part is solid. What no ball of powder_mm can leave is
filled, and what hangs on nothing is removed (engine/part/powder.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import trimesh
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from engine.part import surface, volume
from engine.part.cells import GAIN_MM, level, level_function, widths
from engine.part.powder import leaving_share, loose_pieces, made_solid, trapped
from engine.part.widths import medial_widths, overhang, solid_mm3
from engine.types import Surface, VoxelField

log = logging.getLogger(__name__)

#: A fine field is only known to be a distance this near to its surface.
_BAND_MM = 0.45
#: |∇g| on the level, in radians, on average over both cells: g / _SLOPE is roughly a distance [M].
_SLOPE = 1.4
#: Balls of powder whose way out is told of, mm.
_BALLS_MM = (0.1, 0.2, 0.3)
#: Edges of the collapsed surface in voxels, and how often the collapse is tried with more of the
#: surface left as it is [M].
_EDGE_VOXELS, _COLLAPSES = 2.2, 5


class LatticeSettings(BaseModel):
    """Lengths in mm. Defaults: DOMAIN §Manufacture (struts 0.3 as built [M], 0.2 printed and
    tested [S79], pores 0.3-1.0 [S81])."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    realise: bool = True
    cell: Literal["gyroid", "diamond"] = "gyroid"
    cell_mm: float = Field(1.75, ge=0.5, le=6.0)
    strut_mm: float = Field(0.3, ge=0.1, le=2.0)
    print_mm: float = Field(0.2, ge=0.05, le=2.0)
    pore_mm: float = Field(0.3, ge=0.05, le=2.0)
    powder_mm: float = Field(0.2, ge=0.02, le=1.0)
    gain_mm: tuple[float, float] | None = None
    build: Literal["auto", "+x", "-x", "+y", "-y", "+z", "-z"] = "auto"
    voxel_mm: float = Field(0.12, ge=0.03, le=0.3)

    @model_validator(mode="after")
    def _check(self) -> LatticeSettings:
        if self.voxel_mm > self.cell_mm / 12 + 1e-9:
            raise ValueError(
                f"voxel_mm={self.voxel_mm:g} is too coarse for cell_mm={self.cell_mm:g}; give at"
                f" most {self.cell_mm / 12:.3f}"
            )
        if self.gain_mm is not None and not 0.0 <= self.gain_mm[0] <= self.gain_mm[1] <= 0.5:
            raise ValueError(
                f"gain_mm={list(self.gain_mm)} must be [along, across the build direction], 0 <="
                " along <= across <= 0.5 mm"
            )
        low, high = density_range(self)
        if not low < high:
            raise ValueError(
                f"a {self.cell} with cell_mm={self.cell_mm:g} has struts of"
                f" strut_mm={self.strut_mm:g} (file: {self.print_mm:g}) from a relative density of"
                f" {low:.2f}, and pores of pore_mm={self.pore_mm:g} up to {high:.2f}: nothing is"
                " left between; raise cell_mm, or lower strut_mm or pore_mm"
            )
        return self

    @property
    def gain(self) -> tuple[float, float]:
        return GAIN_MM[self.cell] if self.gain_mm is None else self.gain_mm


@dataclass(frozen=True)
class Lattice:
    """The printable surface (None where the whole part is solid) and what was measured."""

    surface: Surface | None
    figures: dict[str, Any]


def density_range(settings: LatticeSettings) -> tuple[float, float]:
    """Relative densities whose as-built struts are at least strut_mm (exported ones print_mm,
    wherever they point) and pores pore_mm."""
    density, strut, pore = widths(settings.cell).T
    thick = max(settings.strut_mm, settings.print_mm + settings.gain[1]) / settings.cell_mm
    wide = settings.pore_mm / settings.cell_mm
    low = float(np.interp(thick, strut, density)) if thick <= strut[-1] else 1.0
    high = float(np.interp(-wide, -pore, density)) if wide <= pore[0] else 0.0
    return low, high


# -- the part --------------------------------------------------------------------------------------
class _Asked(NamedTuple):
    """What is asked for, on the lattice's grid: the outline there, its signed distance, the
    relative density, what is inside and where that is struts (bool), and the densities that struts
    may have."""

    fine: VoxelField
    outside: np.ndarray
    density: np.ndarray
    inside: np.ndarray
    struts: np.ndarray
    low: float
    high: float


class _Solids(NamedTuple):
    """Signed distances of the solid in the file and as printed; void that was filled and pieces
    that were removed (bool)."""

    exported: np.ndarray
    printed: np.ndarray
    filled: np.ndarray
    loose: np.ndarray


def realise(
    outline: VoxelField, density: VoxelField, settings: LatticeSettings, build: np.ndarray
) -> Lattice:
    """The lattice inside an outline (signed distance, mm) of that relative density, to be printed
    along `build` (unit vector).

    Raises ValueError when the grids differ, and surface.ExportError when no clean surface comes
    out.
    """
    if np.asarray(outline.values).shape != np.asarray(density.values).shape:
        raise ValueError(
            f"density grid {np.asarray(density.values).shape} is not the outline's"
            f" {np.asarray(outline.values).shape}"
        )
    asked = _asked(outline, density, settings)
    figures = _figures_of_asked(asked, settings, build)
    if figures["solid"]:
        return Lattice(None, figures)
    solids = _solids(asked, settings, build)
    mesh, dropped_mm3 = _mesh(solids.exported, asked.fine, settings.voxel_mm)
    figures |= _figures_of_printed(asked, solids, mesh, dropped_mm3, settings, build)
    figures["as_built_density"] = figures["as_built_mm3"] / figures["outline_mm3"]
    return Lattice(mesh, figures)


def _asked(outline: VoxelField, density: VoxelField, settings: LatticeSettings) -> _Asked:
    low, high = density_range(settings)
    fine = _fine(outline, settings.voxel_mm)
    outside = np.asarray(fine.values, np.float32)
    wanted = np.clip(_sampled(density, fine), 0.0, 1.0)
    inside = outside < 0
    return _Asked(fine, outside, wanted, inside, inside & (wanted <= high), low, high)


def _figures_of_asked(
    asked: _Asked, settings: LatticeSettings, build: np.ndarray
) -> dict[str, Any]:
    raised = asked.struts & (asked.density < asked.low)
    return {
        "cell": settings.cell,
        "cell_mm": settings.cell_mm,
        "voxel_mm": settings.voxel_mm,
        "build_direction": build.tolist(),
        "gain_mm": list(settings.gain),
        "density_range": [asked.low, asked.high],
        "outline_mm3": solid_mm3(asked.outside, settings.voxel_mm),
        "asked_density": float(asked.density[asked.inside].mean()),
        "lattice_share": float(asked.struts.sum() / asked.inside.sum()),
        "raised_share": float(raised.sum() / asked.inside.sum()),
        "solid": not asked.struts.any(),
    }


def _solids(asked: _Asked, settings: LatticeSettings, build: np.ndarray) -> _Solids:
    """The wanted solid thinned by half the printer's gain, and grown by it again; without trapped
    powder and loose pieces."""
    h, outside = settings.voxel_mm, asked.outside
    target = _distance(_internal(asked, settings), h)
    exported = _distance(target + _half_gain(target, h, settings.gain, build), h)
    built = exported - _half_gain(exported, h, settings.gain, build)
    part, printed = np.maximum(outside, exported), np.maximum(outside, built)
    filled = trapped(printed, outside, h, settings.powder_mm)
    part, printed = (made_solid(filled, values, outside, h) for values in (part, printed))
    loose = loose_pieces(part, outside, h)
    return _Solids(
        np.where(loose, 0.1 * h, part),
        np.where(loose & (part > -h), np.maximum(printed, 0.1 * h), printed),
        filled,
        loose,
    )


def _figures_of_printed(
    asked: _Asked,
    solids: _Solids,
    mesh: Surface,
    dropped_mm3: float,
    settings: LatticeSettings,
    build: np.ndarray,
) -> dict[str, Any]:
    h, inside = settings.voxel_mm, asked.inside
    checked = surface.check(mesh)
    clear = asked.outside < -settings.cell_mm / 4  # cut struts at the faces are sharp
    lattice = asked.struts & clear
    density = np.where(asked.struts, np.maximum(asked.density, asked.low), 1.0)
    return {
        "target_density": float(density[inside].mean()),
        "as_built_mm3": solid_mm3(solids.printed, h),
        "exported_mm3": checked["volume_mm3"],
        "filled_mm3": float((solids.filled & inside).sum() * h**3),
        "loose_mm3": float(solids.loose.sum() * h**3) + dropped_mm3,
        "exported": {
            "strut": medial_widths(solids.exported, h, lattice),
            "pore": medial_widths(-solids.exported, h, lattice),
        },
        "as_built": {
            "strut": medial_widths(solids.printed, h, lattice),
            "pore": medial_widths(-solids.printed, h, lattice),
        },
        "powder": [
            {"ball_mm": d, "leaves": leaving_share(solids.printed, asked.outside, h, d)}
            for d in sorted({*_BALLS_MM, settings.powder_mm})
        ],
        "overhang": overhang(mesh, build),
        "surface": checked,
    }


def _fine(outline: VoxelField, h: float) -> VoxelField:
    """The outline on a finer grid about the part."""
    values = np.asarray(outline.values)
    where = np.argwhere(values < outline.spacing_mm)
    origin = np.asarray(outline.origin_mm, float)
    low = np.maximum(where.min(0) - 1, 0) * outline.spacing_mm + origin
    high = np.minimum(where.max(0) + 1, np.array(values.shape) - 1) * outline.spacing_mm + origin
    shape = np.floor((high - low) / h + 1e-6).astype(int) + 1
    empty = VoxelField(np.empty(shape, np.float32), low, h)
    return VoxelField(_sampled(outline, empty), low, h)


def _sampled(field: VoxelField, on: VoxelField) -> np.ndarray:
    """A field, trilinear, at the samples of another grid."""
    first_mm = np.asarray(on.origin_mm, float) - np.asarray(field.origin_mm, float)
    axes = [
        (first_mm[k] + on.spacing_mm * np.arange(on.values.shape[k])) / field.spacing_mm
        for k in range(3)
    ]
    out = np.asarray(field.values, np.float32)
    for k, at in enumerate(axes):  # trilinear interpolation is one axis at a time
        first = np.clip(np.floor(at).astype(int), 0, out.shape[k] - 2)
        part = (
            (np.clip(at, 0, out.shape[k] - 1) - first)
            .astype(np.float32)
            .reshape([-1 if j == k else 1 for j in range(3)])
        )
        out = np.take(out, first, axis=k) * (1 - part) + np.take(out, first + 1, axis=k) * part
    return out


def _internal(asked: _Asked, settings: LatticeSettings) -> np.ndarray:
    """A field, negative in struts and where the part is solid; roughly a distance, mm."""
    fine, wanted = asked.fine, asked.density
    origin, shape = np.asarray(fine.origin_mm), fine.values.shape
    middle = origin + 0.5 * fine.spacing_mm * (np.array(shape) - 1)
    phase = [
        2
        * np.pi
        / settings.cell_mm
        * (origin[k] - middle[k] + fine.spacing_mm * np.arange(shape[k]))
        for k in range(3)
    ]
    g = level_function(settings.cell, *np.meshgrid(*phase, indexing="ij", sparse=True)).astype(
        np.float32
    )
    threshold = level(settings.cell, np.clip(wanted, asked.low, asked.high))
    strut = (g - threshold).astype(np.float32) * settings.cell_mm / (2 * np.pi * _SLOPE)
    steepness = np.sqrt(sum(d**2 for d in np.gradient(wanted, fine.spacing_mm)))
    solid = (asked.high - wanted) / np.maximum(steepness, 0.2)
    inner = np.minimum(strut, np.clip(solid, -_BAND_MM, _BAND_MM)).astype(np.float32)
    # nothing to do where there is no part
    return np.where(np.asarray(fine.values) < _BAND_MM, inner, np.float32(_BAND_MM))


def _distance(values: np.ndarray, h: float) -> np.ndarray:
    """Signed distance to the zero level of a field near it (clipped at _BAND_MM), from its
    contour's vertices and their normals."""
    padded = np.pad(volume.off_level(values, h), 1, mode="edge")
    points, _, normals, _ = marching_cubes(
        padded, 0.0, spacing=(h, h, h), gradient_direction="ascent"
    )
    points = points - h
    negative = values < 0
    crossing = np.zeros(values.shape, bool)
    for k in range(3):
        change = np.diff(negative, axis=k)
        crossing[tuple(slice(0, -1) if j == k else slice(None) for j in range(3))] |= change
        crossing[tuple(slice(1, None) if j == k else slice(None) for j in range(3))] |= change
    near = ndimage.distance_transform_edt(~crossing) * h < _BAND_MM + h
    at = np.argwhere(near) * h
    length, nearest = cKDTree(points).query(at, workers=-1)
    flat = np.abs(np.einsum("ij,ij->i", at - points[nearest], normals[nearest]))
    # the plane through the nearest vertex, where that lies almost below the point; its distance,
    # farther out
    length = np.where(length < 1.5 * h, np.maximum(flat, length - 0.25 * h), length)
    out = np.full(values.shape, _BAND_MM, np.float32)
    out[near] = np.minimum(length, _BAND_MM)
    return np.where(negative, -out, out)


def _half_gain(
    distance: np.ndarray, h: float, gain: tuple[float, float], build: np.ndarray
) -> np.ndarray:
    """Δ(n)/2 of the surface near each sample, by the distance's own direction there."""
    slope = [ndimage.gaussian_filter(d, 1.0) for d in np.gradient(distance, h)]
    size = np.sqrt(sum(d**2 for d in slope))
    along = np.abs(sum(b * d for b, d in zip(build, slope, strict=True))) / np.maximum(size, 0.1)
    return (0.5 * (gain[0] + (gain[1] - gain[0]) * np.clip(along, 0.0, 1.0))).astype(np.float32)


# -- the surface -----------------------------------------------------------------------------------
def _mesh(part: np.ndarray, fine: VoxelField, h: float) -> tuple[Surface, float]:
    """The closed surface and the volume of crumbs that only the triangles knew of, mm³."""
    raw, dropped_mm3 = _whole(_isosurface(part, fine, h))
    untouched_mm, problem = np.empty((0, 3)), ""
    for _ in range(_COLLAPSES):
        fewer = _fewer(raw, _EDGE_VOXELS * h, untouched_mm)
        # twice: near ties come out one way or the other
        crossing = volume.crossing(fewer) | volume.crossing(fewer)
        problem = (
            volume.surface_problem(surface.check(fewer))
            if not crossing.any()
            else f"{int(crossing.sum())} faces intersect"
        )
        change = volume.volume_mm3(fewer) / volume.volume_mm3(raw) - 1.0
        if not problem and abs(change) < surface.VOLUME_TOLERANCE:
            return fewer, dropped_mm3
        if not crossing.any():
            break
        crossed = fewer.points_mm[fewer.faces[crossing]].mean(axis=1)
        untouched_mm = np.concatenate([untouched_mm, crossed])
    log.warning(
        "lattice: %s with fewer triangles; all %d are kept",
        problem or f"volume changed by {change:+.2%}",
        len(raw.faces),
    )
    if problem := volume.surface_problem(surface.check(raw)):
        raise surface.ExportError(
            f"the lattice has no clean surface: {problem}; try another voxel_mm or cell_mm"
        )
    return raw, dropped_mm3


def _isosurface(part: np.ndarray, fine: VoxelField, h: float) -> Surface:
    """The zero level, moved out by what flat triangles cut off what is round: some per cent of a
    strut's volume, put back as a shift of a few micrometres."""
    padded, origin = np.pad(part, 1, constant_values=h), np.asarray(fine.origin_mm) - h
    first = volume.isosurface_of(volume.off_level(padded, h), origin, h)
    area = trimesh.Trimesh(first.points_mm, first.faces, process=False).area
    shift = (solid_mm3(part, h) - volume.volume_mm3(first)) / area
    return volume.isosurface_of(volume.off_level(padded - shift, h), origin, h)


def _fewer(raw: Surface, edge_mm: float, untouched_mm: np.ndarray) -> Surface:
    """About as many triangles as even ones of edge_mm would be, by quadric edge collapse;
    those within 1 mm of the points untouched_mm [n, 3] stay."""
    mesh = trimesh.Trimesh(raw.points_mm, raw.faces, process=False)
    near = np.zeros(len(raw.faces), bool)
    if len(untouched_mm):
        near = cKDTree(untouched_mm).query(mesh.triangles_center)[0] < 1.0
    return surface.decimated(
        raw, int(mesh.area_faces[~near].sum() / (np.sqrt(3) / 4 * edge_mm**2)), keep=near
    )


def _whole(raw: Surface) -> tuple[Surface, float]:
    """Without closed voids and crumbs (under ISLAND_SHARE of the largest body)."""
    mesh = trimesh.Trimesh(raw.points_mm, raw.faces, process=False)
    labels = trimesh.graph.connected_component_labels(
        mesh.face_adjacency, node_count=len(mesh.faces)
    )
    a, b, c = (raw.points_mm[raw.faces[:, k]] for k in range(3))
    volumes = np.bincount(labels, weights=np.einsum("ij,ij->i", a, np.cross(b, c)) / 6.0)
    keep = volumes > surface.ISLAND_SHARE * volumes.max()
    faces = raw.faces[keep[labels]]
    used, index = np.unique(faces, return_inverse=True)
    return Surface(raw.points_mm[used], index.reshape(-1, 3)), float(np.abs(volumes[~keep]).sum())
