"""A mask's surface moved to where the CT shows the bone's edge: blocky masks of 1 to 3 mm become
smooth surfaces of the same volume.

Along the outward normal at points of the surface, HU at the offset s are modelled as bone that ends
at e:

    step          HU(s) = A + B·Φ((e − s)/σ),                                      B > 0
    step + shell  HU(s) = A + B·Φ((e − s)/σ) + C·exp(−½·((e − ½t − s)/σ)²),        C > 0, t = 0.6 mm

    σ² = Σ n_i²·v_i²/12 + σ_psf²    blur of the voxel v along the normal n, and of the scanner (FWHM
                                    0.9 mm)

A, B, C by weighted least squares for each e of a grid (variable projection); misfits are averaged
over neighbours that face the same way, and the mask is the prior (standard deviation half of its
voxel). The step places an edge precisely but, where there is a shell, too far out; with the shell
it is unbiased but loose: e is the step's, less the difference of the two averaged over 6 mm.

What is not taken from HU is the mean of e over 25 mm of surface that faces the same way, and the
volume: where the edge of a shell thinner than the voxel lies in absolute terms depends on the shell
that one believes in, so there the mask is believed.

Left as the mask has it: where another bone, or the other side of this one, is within a millimetre
or so (facet joints, thin laminae). After the cortical bone mapping of Treece et al. (Med Image Anal
2010), which fits the same model for thickness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter
from scipy.spatial import cKDTree
from scipy.special import ndtr

from engine.patient.geometry.distance import isosurface, polydata, surface_sdf, volume_mm3
from engine.patient.read.image import Image
from engine.types import Surface, VoxelField, rigid

#: Distance between samples of a profile.
_STEP_MM = 0.3
_SHELL_MM = 0.6
_PSF_MM = 0.9 / np.sqrt(8.0 * np.log(2.0))
#: Reach of the average of shell against step, and of the mean that stays the mask's.
_WIDE_MM, _REGION_MM = 6.0, 25.0
#: Misfit that an edge must explain to count, in squares of the residual per sample.
_CONTRAST = 25.0
#: Less of the surface than this decided by HU: the mask's surface is kept.
_LEAST_SHARE = 0.3


@dataclass(frozen=True)
class Refined:
    """The surface and how far it moved along its normals: rms, largest, and the share of it that
    HU decided."""

    surface: Surface
    rms_mm: float
    largest_mm: float
    share: float


def refine_surface(
    surface: Surface, scan: Image, others: Image, label_mm: float, toward: np.ndarray | None = None
) -> Refined:
    """The surface of a mask, placed by HU (module docstring).

    surface    closed, LPS; its volume is kept within 0.1 %
    scan       CT that holds it with a few voxels around
    others     nonzero where other bones are labelled
    label_mm   largest voxel edge of the mask
    toward     unit vector: only what faces it moves (within some 55°); for a label that ends inside
               bone elsewhere, as an S1 alone does

    Raises: ValueError where HU decide less than 30 % of the surface (no contrast, or not the scan
    of this mask).
    """
    volume = volume_mm3(surface)
    hu = _Interpolated(scan, surface)
    first = field = surface_sdf(surface, float(np.clip(0.7 * label_mm, 0.7, 1.0)))
    share, current = 0.0, surface
    for _ in range(2):
        points, normals = _points(current, float(np.clip(0.6 * label_mm, 0.9, 1.5)))
        wanted = (
            np.ones(len(points))
            if toward is None
            else np.clip((normals @ toward - 0.55) / 0.2, 0.0, 1.0)
        )
        moved, sure = _edge(points, normals, field, hu, others, label_mm)
        share = float((sure > 0.5)[wanted > 0.5].mean()) if (wanted > 0.5).any() else 0.0
        if share < _LEAST_SHARE:
            raise ValueError(
                f"HU decide {100 * share:.0f} % of the surface (at least {100 * _LEAST_SHARE:.0f} %"
                " are needed)"
            )
        current, field = _moved(field, points, wanted * moved, volume)
    total = first.sample(current.points_mm)  # what the two passes did together
    return Refined(current, float(np.sqrt(np.mean(total**2))), float(np.abs(total).max()), share)


class _Interpolated:
    """HU between voxels by cubic splines (linear ones would place an edge by where it lies
    between two voxels)."""

    def __init__(self, scan: Image, surface: Surface) -> None:
        to_index = np.linalg.inv(scan.lps_from_index)
        index = rigid(to_index, surface.points_mm)
        low = np.maximum(np.floor(index.min(axis=0) - 8.0 / scan.voxel_mm - 3.0), 0.0).astype(int)
        high = np.ceil(index.max(axis=0) + 8.0 / scan.voxel_mm + 4.0).astype(int)
        part = np.asarray(
            scan.values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], np.float32
        )
        self.coefficients = spline_filter(part, order=3, mode="nearest", output=np.float32)
        self.to_index = to_index.copy()
        self.to_index[:3, 3] -= low
        self.voxel_mm = scan.voxel_mm
        self.directions = scan.lps_from_index[:3, :3] / scan.voxel_mm

    def sample(self, points_mm: np.ndarray) -> np.ndarray:
        index = rigid(self.to_index, points_mm.reshape(-1, 3)).T
        found = map_coordinates(self.coefficients, index, order=3, prefilter=False, mode="nearest")
        return np.asarray(found.reshape(points_mm.shape[:-1]), float)

    def blur_mm(self, normals: np.ndarray) -> np.ndarray:
        along = ((normals @ self.directions) ** 2 * self.voxel_mm**2).sum(axis=1)
        return np.asarray(
            np.sqrt(along / 12.0 + _PSF_MM**2 + 0.04)
        )  # 0.04: spline and lattice, as measured on phantoms


def _points(surface: Surface, gap_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """One vertex of the surface in each cube of that size, and its outward normal."""
    mesh = polydata(surface).compute_normals(
        cell_normals=False,
        point_normals=True,
        split_vertices=False,
        auto_orient_normals=False,
        consistent_normals=False,
    )
    _, chosen = np.unique(
        np.floor(surface.points_mm / gap_mm).astype(int), axis=0, return_index=True
    )
    return surface.points_mm[chosen], np.asarray(mesh.point_data["Normals"], float)[chosen]


def _edge(
    points: np.ndarray,
    normals: np.ndarray,
    field: VoxelField,
    hu: _Interpolated,
    others: Image,
    label_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """How far along its normal each point is to move, mm, and how sure that is, 0..1."""
    reach = float(np.clip(2.5 * hu.voxel_mm.max(), 3.0, 6.0))
    s = np.arange(-reach, reach + 1e-9, _STEP_MM)
    places = points[:, None] + s[:, None] * normals[:, None]
    weight = _usable(places, s, field, others)
    inner, outer = (_STEP_MM * (weight * side).sum(axis=1) for side in (s < 0.0, s > 0.0))
    seen = (inner >= 1.5) & (outer >= 1.0)
    weight = weight * np.exp(-0.5 * (s / (0.6 * reach)) ** 2)
    most = min(label_mm, 2.5)
    grid = np.linspace(-most, most, 25)
    step, shell, flat = _misfits(hu.sample(places), weight, s, grid, hu.blur_mm(normals))
    noise2 = max(float(np.median(shell.min(axis=1) / weight.sum(axis=1))), 100.0)
    near = _Neighbours(points, normals, label_mm, 24)
    good = (seen & (near.mean(flat - step.min(axis=1)) > _CONTRAST * noise2)).astype(float)
    prior = (grid / (0.5 * label_mm)) ** 2

    def place(misfit: np.ndarray) -> np.ndarray:
        cost = (
            np.minimum((misfit - misfit.min(axis=1, keepdims=True)) / noise2, 50.0) * good[:, None]
        )
        return _lowest(near.mean(cost) + prior, grid)

    by_step = place(step)
    excess = _Neighbours(points, normals, _WIDE_MM, 200).mean(by_step - place(shell), good)
    found = by_step - excess
    sure = near.mean(good)
    return sure * (found - _regional(found, good, points, normals)), sure


def _usable(places: np.ndarray, s: np.ndarray, field: VoxelField, others: Image) -> np.ndarray:
    """1 where a profile [point, sample] is still in this bone, or in what is around it; 0 beyond
    another surface."""
    depth = field.sample(places.reshape(-1, 3)).reshape(places.shape[:2])
    index = rigid(np.linalg.inv(others.lps_from_index), places.reshape(-1, 3)).T
    bone = (
        map_coordinates(
            np.asarray(others.values, np.float32), index, order=1, mode="constant"
        ).reshape(depth.shape)
        > 0.25
    )
    # the other side of a thin place: going in, the depth does not grow as it should
    stop = np.where(s < -0.5, depth > 0.7 * s, (s > 0.0) & (bone | ((s > 0.5) & (depth < 0.6 * s))))
    blocked_out = np.maximum.accumulate(stop & (s > 0.0), axis=1)
    blocked_in = np.maximum.accumulate((stop & (s < 0.0))[:, ::-1], axis=1)[:, ::-1]
    return (~(blocked_out | blocked_in)).astype(float)


def _misfits(
    y: np.ndarray, weight: np.ndarray, s: np.ndarray, grid: np.ndarray, blur: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted squared residual [point, e] of both models (a constant's where no edge of the
    right sign fits), [point] of a constant."""
    total = np.maximum(weight.sum(axis=1), 1e-9)

    def centred(a: np.ndarray) -> np.ndarray:
        return a - ((weight * a).sum(axis=1) / total)[:, None]

    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("nm,nm,nm->n", weight, a, b)

    y = centred(y)
    flat = dot(y, y)
    step, shell = np.empty((len(y), len(grid))), np.empty((len(y), len(grid)))
    for k, e in enumerate(grid):
        p = centred(ndtr((e - s) / blur[:, None]))
        g = centred(np.exp(-0.5 * ((e - 0.5 * _SHELL_MM - s) / blur[:, None]) ** 2))
        pp, pg, gg, py, gy = dot(p, p) + 1e-9, dot(p, g), dot(g, g) + 1e-9, dot(p, y), dot(g, y)
        step[:, k] = flat - np.maximum(py, 0.0) ** 2 / pp
        det = np.maximum(pp * gg - pg**2, 1e-6 * pp * gg)
        b, c = (py * gg - gy * pg) / det, (gy * pp - py * pg) / det
        shell[:, k] = np.where(c > 0.0, flat - b * py - c * gy, step[:, k])
    return step, shell, flat


def _lowest(cost: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Minimum over the grid, refined by a parabola."""
    k = np.clip(cost.argmin(axis=1), 1, len(grid) - 2)
    rows = np.arange(len(cost))
    left, middle, right = cost[rows, k - 1], cost[rows, k], cost[rows, k + 1]
    share = np.clip(
        0.5 * (left - right) / np.maximum(left - 2.0 * middle + right, 1e-12), -0.5, 0.5
    )
    return np.asarray(grid[k] + share * (grid[1] - grid[0]))


class _Neighbours:
    """Gaussian averages over points within twice the radius, weighted by how far they face the
    same way."""

    def __init__(
        self, points: np.ndarray, normals: np.ndarray, radius_mm: float, most: int
    ) -> None:
        most = min(most, len(points))
        distance, index = cKDTree(points).query(
            points, k=most, distance_upper_bound=2.0 * radius_mm
        )
        there = np.isfinite(distance)
        self.index = np.where(there, index, 0)
        facing = np.clip(np.einsum("nkc,nc->nk", normals[self.index], normals), 0.0, 1.0) ** 2
        self.weight = (
            np.where(there, np.exp(-0.5 * (np.where(there, distance, 0.0) / radius_mm) ** 2), 0.0)
            * facing
        )

    def mean(self, values: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
        weight = self.weight if share is None else self.weight * share[self.index]
        total = np.maximum(weight.sum(axis=1), 1e-9)
        if values.ndim == 1:
            return np.asarray((weight * values[self.index]).sum(axis=1) / total)
        return np.asarray(np.einsum("nk,nkg->ng", weight, values[self.index]) / total[:, None])


def _regional(
    values: np.ndarray, share: np.ndarray, points: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Mean over some 25 mm of surface that faces the same way (every n-th point stands for its
    neighbours)."""
    points = points - points.mean(axis=0)
    few = np.arange(0, len(points), max(len(points) // 2000, 1))
    few = few[share[few] > 0.0]
    result = np.zeros(len(points))
    for start in range(0, len(points), 2000):
        rows = slice(start, start + 2000)
        square = (
            (points[rows] ** 2).sum(axis=1)[:, None]
            + (points[few] ** 2).sum(axis=1)
            - 2.0 * points[rows] @ points[few].T
        )
        weight = (
            np.exp(-0.5 * square / _REGION_MM**2)
            * np.clip(normals[rows] @ normals[few].T, 0.0, 1.0) ** 2
        )
        result[rows] = (weight * values[few]).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-9)
    return result


def _moved(
    field: VoxelField, points: np.ndarray, along: np.ndarray, volume: float
) -> tuple[Surface, VoxelField]:
    """The distance less the movement, at the level that encloses the volume (still a distance
    near the surface), and its surface."""
    values = np.array(field.values, float)
    near = np.argwhere(np.abs(values) < 4.0)
    distance, index = cKDTree(points).query(field.origin_mm + field.spacing_mm * near, k=8)
    weight = 1.0 / (distance + 0.3) ** 2
    values[tuple(near.T)] -= (weight * along[index]).sum(axis=1) / weight.sum(axis=1)
    moved = VoxelField(values, field.origin_mm, field.spacing_mm)
    result = isosurface(moved)
    for _ in range(3):
        values = values - (volume - volume_mm3(result)) / polydata(result).area
        moved = VoxelField(values, field.origin_mm, field.spacing_mm)
        result = isosurface(moved)
    return result, moved
