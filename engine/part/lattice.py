"""A graded relative density made into geometry that can be printed: a network of struts inside the
part's outline.

    solid where g(x) < t(ρ(x)),     x in units of the cell / 2π
    gyroid   g = sin x cos y + sin y cos z + sin z cos x
    diamond  g = sin x sin y sin z + sin x cos y cos z + cos x sin y cos z + cos x cos y sin z

t(ρ) is the quantile of g over one cell, so that the local solid fraction is ρ. What a printer makes
of it is thicker than what it is told: struts gain Δ_v where they stand along the build direction b
and Δ_h where they lie across it [S80]. Between, by the surface's normal n, Δ(n) = Δ_v + (Δ_h −
Δ_v)|n·b|, half of it on each side [M]. The exported surface lies Δ/2 inside the wanted one; the
as-built prediction grows the exported one again, by its own distances and normals, and what is said
is measured on both.

Limits: ρ is raised where struts would be thinner than strut_mm as built or print_mm in the file;
where pores would be narrower than pore_mm the part is solid. What no ball of powder_mm can leave is
filled, and what hangs on nothing is removed.

Reference values: the level 0 halves the cell, its area is 3.09 (gyroid) and 3.84 (diamond) squared
cells a cell.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import trimesh
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from engine.part import drawing, surface, volume
from engine.types import Surface, VoxelField

log = logging.getLogger(__name__)

#: Gain of printed struts along and across the build direction, mm [S80].
GAIN_MM = {"gyroid": (0.013, 0.199), "diamond": (0.0075, 0.105)}
#: Rows of density, narrowest strut, narrowest pore, as shares of the cell's size.
_WIDTHS = {
    "gyroid": [
        (0.1, 0.158, 0.675),
        (0.15, 0.204, 0.643),
        (0.2, 0.237, 0.583),
        (0.25, 0.271, 0.575),
        (0.3, 0.306, 0.517),
        (0.4, 0.367, 0.48),
        (0.5, 0.423, 0.424),
        (0.6, 0.483, 0.368),
        (0.7, 0.518, 0.308),
        (0.75, 0.575, 0.272),
        (0.8, 0.583, 0.237),
        (0.85, 0.643, 0.204),
        (0.9, 0.656, 0.158),
        (0.95, 0.684, 0.095),
    ],
    "diamond": [
        (0.1, 0.072, 0.571),
        (0.15, 0.132, 0.539),
        (0.2, 0.173, 0.51),
        (0.25, 0.208, 0.483),
        (0.3, 0.239, 0.456),
        (0.4, 0.298, 0.403),
        (0.5, 0.351, 0.351),
        (0.6, 0.403, 0.298),
        (0.7, 0.456, 0.239),
        (0.75, 0.483, 0.208),
        (0.8, 0.51, 0.173),
        (0.85, 0.539, 0.132),
        (0.9, 0.571, 0.072),
    ],
}
_OPENING = 1.6
#: A fine field is only known to be a distance this near to its surface.
_BAND_MM = 0.45


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


# -- the cell --------------------------------------------------------------------------------------
def level_function(cell: str, x: Any, y: Any, z: Any) -> np.ndarray:
    """g at phases x, y, z (radians, broadcast)."""
    sx, cx, sy, cy, sz, cz = np.sin(x), np.cos(x), np.sin(y), np.cos(y), np.sin(z), np.cos(z)
    if cell == "gyroid":
        return np.asarray(sx * cy + sy * cz + sz * cx)
    return np.asarray(sx * (sy * sz + cy * cz) + cx * (sy * cz + cy * sz))


@lru_cache
def _quantiles(cell: str) -> tuple[np.ndarray, np.ndarray]:
    """Relative densities and their levels."""
    phase = (np.arange(64) + 0.5) / 64 * 2 * np.pi
    share = np.linspace(0.0, 1.0, 401)
    return share, np.quantile(
        level_function(cell, *np.meshgrid(phase, phase, phase, indexing="ij", sparse=True)), share
    )


def level(cell: str, density: Any) -> np.ndarray:
    """t(ρ): the level below which a share ρ of the cell lies."""
    return np.interp(density, *_quantiles(cell))


def widths(cell: str) -> np.ndarray:
    """Rows [density, narrowest strut, narrowest pore] of the cell, as shares of its size: medial
    axis, 1st percentile, on a grid of 96 samples a cell; tests/surface/test_lattice.py measures
    them again."""
    return np.asarray(_WIDTHS[cell])


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
    low, high = density_range(settings)
    fine = _fine(outline, settings.voxel_mm)
    outside = np.asarray(fine.values, np.float32)
    wanted = np.clip(_sampled(density, fine), 0.0, 1.0)
    inside = outside < 0
    struts = inside & (wanted <= high)
    raised = struts & (wanted < low)
    asked = float(wanted[inside].mean())
    figures: dict[str, Any] = {
        "cell": settings.cell,
        "cell_mm": settings.cell_mm,
        "voxel_mm": settings.voxel_mm,
        "build_direction": build.tolist(),
        "gain_mm": list(settings.gain),
        "density_range": [low, high],
        "outline_mm3": _volume(outside, settings.voxel_mm),
        "asked_density": asked,
        "lattice_share": float(struts.sum() / inside.sum()),
        "raised_share": float(raised.sum() / inside.sum()),
        "solid": not struts.any(),
    }
    if not struts.any():
        return Lattice(None, figures)
    h = settings.voxel_mm
    target = _distance(_internal(fine, wanted, settings, low, high), h)
    exported = _distance(target + _half_gain(target, h, settings.gain, build), h)
    built = exported - _half_gain(exported, h, settings.gain, build)
    part, printed = np.maximum(outside, exported), np.maximum(outside, built)
    filled = _trapped(printed, outside, h, settings.powder_mm)
    part, printed = (_with(filled, values, outside, h) for values in (part, printed))
    loose = loose_pieces(part, outside, h)
    part, printed = (
        np.where(loose, 0.1 * h, part),
        np.where(loose & (part > -h), np.maximum(printed, 0.1 * h), printed),
    )
    mesh, dropped = _mesh(part, fine, h)
    found = surface.check(mesh)
    clear = outside < -settings.cell_mm / 4  # cut struts at the faces are sharp
    lattice = struts & clear
    figures |= {
        "target_density": float(np.where(struts, np.maximum(wanted, low), 1.0)[inside].mean()),
        "as_built_mm3": _volume(printed, h),
        "exported_mm3": found["volume_mm3"],
        "filled_mm3": float((filled & inside).sum() * h**3),
        "loose_mm3": float(loose.sum() * h**3) + dropped,
        "exported": {
            "strut": medial_widths(part, h, lattice),
            "pore": medial_widths(-part, h, lattice),
        },
        "as_built": {
            "strut": medial_widths(printed, h, lattice),
            "pore": medial_widths(-printed, h, lattice),
        },
        "powder": [
            {"ball_mm": d, "leaves": _leaving(printed, outside, h, d)}
            for d in sorted({0.1, 0.2, 0.3, settings.powder_mm})
        ],
        "overhang": overhang(mesh, build),
        "surface": found,
    }
    figures["as_built_density"] = figures["as_built_mm3"] / figures["outline_mm3"]
    return Lattice(mesh, figures)


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


def _internal(
    fine: VoxelField, wanted: np.ndarray, settings: LatticeSettings, low: float, high: float
) -> np.ndarray:
    """A field, negative in struts and where the part is solid; roughly a distance, mm."""
    middle = np.asarray(fine.origin_mm) + 0.5 * fine.spacing_mm * (np.array(fine.values.shape) - 1)
    phase = [
        2
        * np.pi
        / settings.cell_mm
        * (
            np.asarray(fine.origin_mm)[k]
            - middle[k]
            + fine.spacing_mm * np.arange(fine.values.shape[k])
        )
        for k in range(3)
    ]
    g = level_function(settings.cell, *np.meshgrid(*phase, indexing="ij", sparse=True)).astype(
        np.float32
    )
    strut = (
        (g - level(settings.cell, np.clip(wanted, low, high))).astype(np.float32)
        * settings.cell_mm
        / (2 * np.pi * 1.4)
    )
    steepness = np.sqrt(sum(d**2 for d in np.gradient(wanted, fine.spacing_mm)))
    solid = (high - wanted) / np.maximum(steepness, 0.2)
    inner = np.minimum(strut, np.clip(solid, -_BAND_MM, _BAND_MM)).astype(np.float32)
    return np.where(
        np.asarray(fine.values) < _BAND_MM, inner, np.float32(_BAND_MM)
    )  # nothing to do where there is no part


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


# -- what must not be ------------------------------------------------------------------------------
def _outer(void: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Components of a mask that reach the room around the part."""
    labels, _ = ndimage.label(np.pad(void, 1, constant_values=True))
    free = np.unique(labels[np.pad(outside > 0, 1, constant_values=True) & (labels > 0)])
    found: np.ndarray = np.isin(labels, free)[1:-1, 1:-1, 1:-1] & void
    return found


def _ball_room(part: np.ndarray, h: float, ball_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the centre of a ball may be, and distance to solid."""
    room = (
        ndimage.distance_transform_edt(np.pad(part >= 0, 2, constant_values=True))[2:-2, 2:-2, 2:-2]
        * h
        - 0.5 * h
    )
    return room >= 0.5 * ball_mm, room


def _trapped(part: np.ndarray, outside: np.ndarray, h: float, ball_mm: float) -> np.ndarray:
    """Void that no powder could leave: closed off, or behind a neck that a ball of ball_mm does
    not pass."""
    void = part >= 0
    closed = void & ~_outer(void, outside)
    centres, _ = _ball_room(part, h, ball_mm)
    held = centres & ~_outer(centres, outside)
    if held.any():
        held = ndimage.distance_transform_edt(~held) * h <= 0.5 * ball_mm + h
    return closed | (held & void & (outside < 0))


def _with(filled: np.ndarray, values: np.ndarray, outside: np.ndarray, h: float) -> np.ndarray:
    """The field with that void made solid, and no surface left between the two."""
    deep = filled | (ndimage.binary_dilation(filled) & (values < 0))
    return np.where(deep, np.maximum(outside, -h), values)


def _leaving(part: np.ndarray, outside: np.ndarray, h: float, ball_mm: float) -> float:
    """Of the places where a ball of ball_mm has room inside the part, the share from which it
    can leave."""
    centres, _ = _ball_room(part, h, ball_mm)
    inside = centres & (outside < 0)
    return float((_outer(centres, outside) & inside).sum() / max(inside.sum(), 1))


def loose_pieces(part: np.ndarray, outside: np.ndarray, h: float) -> np.ndarray:
    """Solid that does not hang together with any of the outline's bodies (each keeps its largest
    piece)."""
    bodies, count = ndimage.label(outside < 0)
    labels, _ = ndimage.label(part < 0)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = []
    for body in range(1, count + 1):
        mine = np.unique(labels[(bodies == body) & (labels > 0)])
        if len(mine):
            keep.append(int(mine[np.argmax(sizes[mine])]))
    return (labels > 0) & ~np.isin(labels, keep)


def _mesh(part: np.ndarray, fine: VoxelField, h: float) -> tuple[Surface, float]:
    """The closed surface and the volume of crumbs that only the triangles knew of, mm³."""
    padded = np.pad(part, 1, constant_values=h)
    first = volume.isosurface_of(volume.off_level(padded, h), np.asarray(fine.origin_mm) - h, h)
    # flat triangles cut off what is round: some per cent of a strut's volume, put back as a shift
    # of a few micrometres
    area = trimesh.Trimesh(first.points_mm, first.faces, process=False).area
    lost = (_volume(part, h) - volume.volume_mm3(first)) / area
    raw, dropped = _whole(
        volume.isosurface_of(volume.off_level(padded - lost, h), np.asarray(fine.origin_mm) - h, h)
    )
    left_mm = np.empty((0, 3))
    for _ in range(5):
        found = _fewer(raw, 2.2 * h, left_mm)
        crossing = volume.crossing(found) | volume.crossing(
            found
        )  # near ties come out one way or the other
        problem = (
            volume.surface_problem(surface.check(found))
            if not crossing.any()
            else f"{int(crossing.sum())} faces intersect"
        )
        change = volume.volume_mm3(found) / volume.volume_mm3(raw) - 1.0
        if not problem and abs(change) < surface.VOLUME_TOLERANCE:
            return found, dropped
        if not crossing.any():
            break
        left_mm = np.concatenate([left_mm, found.points_mm[found.faces[crossing]].mean(axis=1)])
    log.warning(
        "lattice: %s with fewer triangles; all %d are kept",
        problem or f"volume changed by {change:+.2%}",
        len(raw.faces),
    )
    if problem := volume.surface_problem(surface.check(raw)):
        raise surface.ExportError(
            f"the lattice has no clean surface: {problem}; try another voxel_mm or cell_mm"
        )
    return raw, dropped


def _fewer(raw: Surface, edge_mm: float, left_mm: np.ndarray) -> Surface:
    """About as many triangles as even ones of edge_mm would be, by quadric edge collapse;
    untouched within 1 mm of the points left_mm."""
    mesh = trimesh.Trimesh(raw.points_mm, raw.faces, process=False)
    near = np.zeros(len(raw.faces), bool)
    if len(left_mm):
        near = cKDTree(left_mm).query(mesh.triangles_center)[0] < 1.0
    return surface.fewer(
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


# -- measuring -------------------------------------------------------------------------------------
def _volume(values: np.ndarray, h: float) -> float:
    """Of what is negative, samples near the level counted in part (linear within half a voxel),
    mm³."""
    return float(np.clip(0.5 - values / h, 0.0, 1.0).sum(dtype=float) * h**3)


def medial_widths(
    values: np.ndarray, h: float, where: np.ndarray | None = None, margin: int = 0
) -> dict[str, float | None]:
    """Width of what is negative, right across its medial axis, mm: 1st percentile, median and most;
    null where there is none. Axis points less than `margin` samples from the grid's border, or not
    in `where`, do not count.

    The axis lies between neighbouring samples whose nearest surface points are far apart (Hesselink
    and Roerdink 2008): _OPENING times their distance (2 is right across, 1.41 the bisector of a
    right angle) and three samples. The width is the chord between the two points on the contour, at
    least the sum of both distances. Not for bars along the grid's axes, whose contour has too few
    points around.
    """
    inside = values < 0
    distance, feet = ndimage.distance_transform_edt(inside, return_indices=True)
    counted = inside if where is None else inside & where
    tree = cKDTree(marching_cubes(volume.off_level(values, h), 0.0, spacing=(h, h, h))[0])
    width = np.zeros(values.shape, np.float32)
    for k in range(3):
        here, there = (
            tuple(s if j == k else slice(None) for j in range(3))
            for s in (slice(0, -1), slice(1, None))
        )
        apart = np.sqrt(sum((f[here] - f[there]).astype(np.float32) ** 2 for f in feet))
        far = np.maximum(_OPENING * np.maximum(distance[here], distance[there]), 2.9)
        pairs = np.argwhere((apart > far) & counted[here] & counted[there])
        (first, a), (second, b) = (
            tree.query((pairs + end * np.eye(3, dtype=int)[k]) * h) for end in (0, 1)
        )
        chord = np.linalg.norm(tree.data[a] - tree.data[b], axis=1)
        across = chord > 1.2 * np.maximum(first, second)
        for end in (0, 1):
            np.maximum.at(
                width,
                tuple((pairs[across] + end * np.eye(3, dtype=int)[k]).T),
                np.maximum(chord, first + second)[across],
            )
    # chords are short where the pair does not lie right across the axis: the widest of the
    # neighbours is the width
    inner = tuple(slice(margin, n - margin) for n in values.shape)
    found = ndimage.maximum_filter(width, 3)[inner][width[inner] > 0]
    if not len(found):
        return {"p1_mm": None, "median_mm": None, "most_mm": None}
    return {
        "p1_mm": float(np.percentile(found, 1)),
        "median_mm": float(np.median(found)),
        "most_mm": float(found.max()),
    }


def overhang(mesh: Surface, build: np.ndarray, critical_deg: float = 45.0) -> dict[str, float]:
    """What hangs over (drawing.overhanging): area, its share of the whole surface, and the
    widest such patch (diameter of a disc of its area): short spans carry themselves."""
    t = trimesh.Trimesh(mesh.points_mm, mesh.faces, process=False)
    down, area = drawing.overhanging(t, build, critical_deg), t.area_faces
    pairs = t.face_adjacency[down[t.face_adjacency].all(1)]
    labels = trimesh.graph.connected_component_labels(pairs, node_count=len(area))
    patches = np.bincount(labels[down], weights=area[down], minlength=1)
    return {
        "area_mm2": float(area[down].sum()),
        "share": float(area[down].sum() / area.sum()),
        "widest_patch_mm": float(2 * np.sqrt(patches.max() / np.pi)),
    }
