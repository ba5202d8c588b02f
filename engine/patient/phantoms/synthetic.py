"""CT scans of a patient model whose every voxel, landmark and calibration rod is known.

Bone's HU comes from its apparent density field by the inverse of the usual chain

    ρ_ash = 0.6 ρ_app,   ρ_QCT = (ρ_ash − 0.079) / 0.877   [M],   HU = (ρ_QCT − intercept) / slope

so that low apparent densities (under 0.13 g/cm³) lie below water, as marrow fat makes them.

Image formation     HU = box(voxel) ∗ Gaussian(psf_fwhm_mm) ∗ object + white noise, not below −1024
    bone            painted on a subdivided voxel grid (≤ 0.4 mm), convolved there with the
                    Gaussian, averaged over each voxel: nothing is aliased, whatever the voxel size
    everything else HU_b + (HU_t − HU_b)·Φ(−d/σ), d the distance to the tissue's boundary, σ² =
        mean(voxel²)/12 + σ_psf²: the
                    same blur in closed form
Labels: voxels that are bone by half or more of their volume (before blur), VerSe numbers, sacrum
26.

Scene, in LPS as on a scanner's table: discs, an aorta with blood, an elliptic torso of muscle under
fat, air, and under the back a water-equivalent slab with rods of known K2HPO4 density along z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import ndtr

from engine.materials import qct_of_apparent
from engine.patient.alignment.disc import measure
from engine.patient.geometry.distance import surface_sdf, volume_mm3
from engine.patient.geometry.frames import inverse, rotation, vertebra_frame
from engine.patient.geometry.levels import VERSE
from engine.patient.read.image import Image
from engine.types import Endplate, PatientModel, VoxelField, rigid

#: Largest edge of the cells that bone is painted on.
CELL_MM = 0.4
_SACRUM_LABEL = 26
#: The truth's core of a body: a cylinder of this radius and half height about its centre.
_CORE_MM = 7.0
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
#: LPS direction of each anatomical letter.
_LETTERS = {
    "L": (0, 1.0),
    "R": (0, -1.0),
    "P": (1, 1.0),
    "A": (1, -1.0),
    "S": (2, 1.0),
    "I": (2, -1.0),
}


class ScanSpec(BaseModel):
    """What is scanned and how. HU of soft tissues: usual values of unenhanced CT at 120 kV [M]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    voxel_mm: tuple[float, float, float] = Field(
        default=(0.8, 0.8, 1.0), description="left-right, antero-posterior, cranio-caudal"
    )
    orientation: str = Field(
        default="LPS", description="where index i, j, k grow to, e.g. LPS, LAS, RAS, PIR"
    )
    rotation_deg: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 0.0), description="of the voxel grid in LPS, Rz·Ry·Rx"
    )
    extent: Literal["torso", "spine"] = Field(
        default="torso", description="torso: with skin and calibration rods; spine: bones alone"
    )
    margin_mm: float = Field(default=12.0, ge=0.0, le=100.0, description="beyond the vertebrae")
    psf_fwhm_mm: float = Field(default=0.9, ge=0.0, le=4.0)
    noise_hu: float = Field(default=0.0, ge=0.0, le=200.0)
    seed: int = Field(default=0, ge=0)
    slope_g_cm3_per_hu: float = Field(default=0.8e-3, ge=0.3e-3, le=2.0e-3)
    intercept_g_cm3: float = Field(default=-0.004, ge=-0.1, le=0.1)
    disc_hu: float = Field(default=90.0, ge=0.0, le=200.0)
    muscle_hu: float = Field(default=55.0, ge=0.0, le=120.0)
    fat_hu: float = Field(default=-100.0, ge=-150.0, le=-50.0)
    blood_hu: float = Field(
        default=45.0, ge=20.0, le=400.0, description="above some 80 it is contrast-enhanced"
    )
    slab_hu: float = Field(default=5.0, ge=-100.0, le=150.0)
    fat_mm: float = Field(default=18.0, ge=2.0, le=60.0)
    rods_g_cm3: tuple[float, ...] = Field(
        default=(0.0, 0.05, 0.10, 0.15, 0.20), min_length=2, description="K2HPO4"
    )
    sacrum_g_cm3: tuple[float, float] = Field(
        default=(0.16, 0.70), description="apparent density of core and outer 1.5 mm"
    )

    @field_validator("voxel_mm")
    @classmethod
    def _voxels(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0.15 <= v <= 10.0 for v in value):
            raise ValueError(f"voxel_mm={value}: each must be 0.15 to 10 mm")
        return value

    @field_validator("orientation")
    @classmethod
    def _orientation(cls, value: str) -> str:
        if len(value) != 3 or sorted(_LETTERS.get(c, (9, 0.0))[0] for c in value) != [0, 1, 2]:
            raise ValueError(
                f"orientation={value!r}: one letter of each of L/R, P/A and S/I is needed, such as"
                " LPS or PIR"
            )
        return value

    def hu(self, qct_g_cm3: Any) -> Any:
        """HU of a K2HPO4-equivalent density."""
        return (qct_g_cm3 - self.intercept_g_cm3) / self.slope_g_cm3_per_hu


@dataclass(frozen=True)
class _Tissue:
    """A body by its (approximate) signed distance in LPS and a box that holds it."""

    hu: float
    low: np.ndarray
    high: np.ndarray
    distance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Bone:
    name: str
    label: int
    sdf: VoxelField
    apparent: VoxelField


def synthetic_ct(
    patient: PatientModel, spec: ScanSpec | None = None
) -> tuple[Image, Image, dict[str, Any]]:
    """CT (HU, float32), label image (uint8) and truth of a patient (module docstring).

    truth   JSON-able: "spec"; "density_line" (slope, intercept); "vertebrae" by name (label,
            volume, endplates, mean density and HU in a cylinder 14 mm wide and high about its
            centre); "alignment" by pair; "rods" (density, HU, axis, radius), "aorta", "tissues_hu";
            "shape", "lps_from_index", "labelled_mm3"
    Memory: about 10 bytes a voxel.
    Raises: ValueError for a patient without vertebrae or with a level that VerSe has no number for.
    """
    spec = spec or ScanSpec()
    bones = _bones(patient, spec)
    low, high = _bone_box(bones)
    tissues, truth = _scene(patient, spec, low, high)
    matrix, shape = _grid(spec, *_extent(spec, tissues, low, high))
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    psf = spec.psf_fwhm_mm / _FWHM
    values = np.full(shape, tissues[0].hu, np.float32)
    sigma = float(np.sqrt((voxel**2).mean() / 12.0 + psf**2))
    for tissue in tissues[1:]:
        _paint(values, matrix, tissue, sigma)
    labels, share = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    added = [
        _rendered(bone, spec, values, matrix, voxel, psf) for bone in bones
    ]  # all against the bare background
    for bone, (box, change, cover) in zip(bones, added, strict=True):
        values[box] += change
        more = (cover >= 0.5) & (cover > share[box])
        labels[box][more], share[box][more] = bone.label, cover[more]
    if spec.noise_hu:
        rng = np.random.default_rng(spec.seed)
        for plane in values:  # plane by plane: float64 noise of the whole would double the memory
            plane += rng.normal(0.0, spec.noise_hu, plane.shape).astype(np.float32)
            np.maximum(plane, -1024.0, out=plane)  # as scanners store it
    source = {"kind": "synthetic", "patient": patient.name}
    truth |= {
        "spec": spec.model_dump(mode="json"),
        "shape": list(shape),
        "lps_from_index": matrix.tolist(),
    }
    truth["labelled_mm3"] = {
        bone.name: float((labels == bone.label).sum() * np.prod(voxel)) for bone in bones
    }
    return Image(values, matrix, "CT", (), source), Image(labels, matrix, "SEG", (), source), truth


def _bones(patient: PatientModel, spec: ScanSpec) -> list[_Bone]:
    if not patient.vertebrae:
        raise ValueError("the patient has no vertebrae; nothing to scan")
    unknown = [v.name for v in patient.vertebrae if v.name not in VERSE and v.name != "T13"]
    if unknown:
        raise ValueError(
            f"VerSe has no number for {', '.join(unknown)}; levels are {', '.join(VERSE)}, T13"
        )
    bones = [
        _Bone(v.name, {**VERSE, "T13": 28}[v.name], v.sdf, v.density) for v in patient.vertebrae
    ]
    if patient.sacrum is not None:
        sdf = surface_sdf(patient.sacrum.surface, 1.0)
        core, shell = spec.sacrum_g_cm3
        depth = -np.asarray(sdf.values, float)
        apparent = (core + (shell - core) * np.clip(2.0 - depth, 0.0, 1.0)).astype(np.float32)
        bones.append(
            _Bone("S1", _SACRUM_LABEL, sdf, VoxelField(apparent, sdf.origin_mm, sdf.spacing_mm))
        )
    return bones


def _bone_box(bones: Sequence[_Bone]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for bone in bones:
        a, b = _inside_box(bone.sdf)
        low, high = np.minimum(low, a), np.maximum(high, b)
    return low, high


def _inside_box(sdf: VoxelField) -> tuple[np.ndarray, np.ndarray]:
    """Box of the samples within one spacing of the body."""
    index = np.argwhere(np.asarray(sdf.values) < sdf.spacing_mm)
    return sdf.origin_mm + sdf.spacing_mm * index.min(
        axis=0
    ), sdf.origin_mm + sdf.spacing_mm * index.max(axis=0)


def _scene(
    patient: PatientModel, spec: ScanSpec, low: np.ndarray, high: np.ndarray
) -> tuple[list[_Tissue], dict[str, Any]]:
    """Tissues in the order they are painted (the first fills everything), and what is known of
    them."""
    # a torso that holds every bone with 12 mm of muscle around: wide enough for the widest, deep
    # enough for the deepest
    middle = 0.5 * (low + high)
    a = max(165.0, 0.75 * (high[0] - low[0]) + 30.0) - spec.fat_mm
    b = max(110.0, 0.75 * (high[1] - low[1]) + 30.0) - spec.fat_mm
    cx, cy = middle[0], high[1] + 12.0 - b
    z0, z1 = low[2] - 500.0, high[2] + 500.0

    def ellipse(grow: float, hu: float) -> _Tissue:
        p, q = a + grow, b + grow

        def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
            return _elliptic(x - cx, y - cy, p, q) + 0.0 * z

        return _Tissue(hu, np.array([cx - p, cy - q, z0]), np.array([cx + p, cy + q, z1]), distance)

    tissues = [
        _Tissue(-1000.0, low, high, lambda x, y, z: x),
        ellipse(spec.fat_mm, spec.fat_hu),
        ellipse(0.0, spec.muscle_hu),
    ]
    plates = [(v.superior, v.inferior) for v in patient.vertebrae]
    below = [upper for upper, _ in plates[1:]] + (
        [patient.sacrum.superior] if patient.sacrum is not None else []
    )
    for (_, upper), lower in zip(plates, below, strict=False):
        if (
            np.linalg.norm(upper.centre_mm - lower.centre_mm) < 25.0
        ):  # else a level is missing between them
            tissues.append(_disc(upper, lower, spec.disc_hu))
    line = np.array(
        [
            rigid(
                vertebra_frame(*p),
                np.array([8.0, -(0.5 * (p[0].half_depth_mm + p[1].half_depth_mm) + 15.0), 0.0]),
            )
            for p in plates
        ]
    )
    radius = 9.0
    tissues.append(_tube(line, radius, spec.blood_hu))
    back = cy + b + spec.fat_mm
    tissues.append(
        _slab(np.array([cx, back + 16.0]), np.array([105.0, 12.0]), (z0, z1), spec.slab_hu)
    )
    rods = []
    spread = np.linspace(-80.0, 80.0, len(spec.rods_g_cm3))
    rod_radius = min(9.0, 0.4 * (spread[1] - spread[0]))
    for x, density in zip(spread, spec.rods_g_cm3, strict=True):
        axis = np.array(
            [[cx + x, back + 16.0, low[2] - 200.0], [cx + x, back + 16.0, high[2] + 200.0]]
        )
        tissues.append(_tube(axis, rod_radius, float(spec.hu(density)), extend=False))
        rods.append(
            {
                "density_g_cm3": density,
                "hu": float(spec.hu(density)),
                "axis_mm": axis.tolist(),
                "radius_mm": rod_radius,
            }
        )
    truth = {
        "density_line": {
            "slope_g_cm3_per_hu": spec.slope_g_cm3_per_hu,
            "intercept_g_cm3": spec.intercept_g_cm3,
        },
        "tissues_hu": (
            {
                name: getattr(spec, f"{name}_hu")
                for name in ("disc", "muscle", "fat", "blood", "slab")
            }
            | {"air": -1000.0}
        ),
        "rods": rods,
        "aorta": {"line_mm": line.tolist(), "radius_mm": radius, "hu": spec.blood_hu},
        "vertebrae": {v.name: _vertebra_truth(v, spec) for v in patient.vertebrae},
        "alignment": {
            f"{u.name}-{v.name}": asdict(measure(u, v)) for u, v in pairwise(patient.vertebrae)
        },
    }
    if patient.sacrum is not None:
        truth["sacrum"] = {
            "label": _SACRUM_LABEL,
            "superior": _plate_truth(patient.sacrum.superior),
        }
    return tissues, truth


def _vertebra_truth(vertebra: Any, spec: ScanSpec) -> dict[str, Any]:
    own = rigid(
        inverse(vertebra_frame(vertebra.superior, vertebra.inferior)), vertebra.density.points()
    )
    inside = (np.hypot(own[..., 0], own[..., 1]) < _CORE_MM) & (np.abs(own[..., 2]) < _CORE_MM)
    apparent = np.asarray(vertebra.density.values)[
        inside & (np.asarray(vertebra.sdf.values) < -4.0)
    ]  # deeper than any shell
    return {
        "label": {**VERSE, "T13": 28}[vertebra.name],
        "volume_mm3": volume_mm3(vertebra.surface),
        "core_apparent_g_cm3": float(apparent.mean()) if len(apparent) else None,
        "core_hu": float(np.mean(spec.hu(qct_of_apparent(apparent)))) if len(apparent) else None,
        "superior": _plate_truth(vertebra.superior),
        "inferior": _plate_truth(vertebra.inferior),
    }


def _plate_truth(plate: Endplate) -> dict[str, Any]:
    return {
        "centre_mm": plate.centre_mm.tolist(),
        "normal": plate.normal.tolist(),
        "half_width_mm": plate.half_width_mm,
        "half_depth_mm": plate.half_depth_mm,
    }


def _elliptic(x: np.ndarray, y: np.ndarray, a: Any, b: Any) -> np.ndarray:
    """First-order distance to an ellipse of half axes a and b; at its centre, where that is 0/0,
    the lesser half axis."""
    value = np.hypot(x / a, y / b)
    slope = np.hypot(x / a**2, y / b**2)
    return np.asarray(
        (value - 1.0) * np.where(value > 1e-3, value / np.maximum(slope, 1e-9), np.minimum(a, b))
    )


def _disc(upper: Endplate, lower: Endplate, hu: float) -> _Tissue:
    """Elliptic loft between two endplates, 4 mm into both bones (which are painted over it)."""
    axis = upper.centre_mm - lower.centre_mm
    height = float(np.linalg.norm(axis))
    axis = axis / height
    left = lower.axis_left - (lower.axis_left @ axis) * axis
    left /= np.linalg.norm(left)
    back = np.cross(axis, left)
    start, into = lower.centre_mm, 4.0

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        dx, dy, dz = x - start[0], y - start[1], z - start[2]
        t = dx * axis[0] + dy * axis[1] + dz * axis[2]
        share = np.clip(t / height, 0.0, 1.0)
        a = lower.half_width_mm + share * (upper.half_width_mm - lower.half_width_mm)
        b = lower.half_depth_mm + share * (upper.half_depth_mm - lower.half_depth_mm)
        u, v = (dx * way[0] + dy * way[1] + dz * way[2] for way in (left, back))
        side = _elliptic(u, v, a, b)
        return np.asarray(np.maximum(side, np.abs(t - 0.5 * height) - 0.5 * height - into))

    reach = max(lower.half_width_mm, upper.half_width_mm) + into
    ends = np.stack([lower.centre_mm, upper.centre_mm])
    return _Tissue(hu, ends.min(axis=0) - reach, ends.max(axis=0) + reach, distance)


def _tube(line: np.ndarray, radius: float, hu: float, extend: bool = True) -> _Tissue:
    """Tube about a polyline; `extend` carries it on past its ends along z, as vessels go."""
    if extend:
        line = line[np.argsort(line[:, 2])]
        line = np.concatenate([line[:1] - [0.0, 0.0, 300.0], line, line[-1:] + [0.0, 0.0, 300.0]])

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        best: Any = np.inf
        for start, end in pairwise(line):
            d = end - start
            px, py, pz = x - start[0], y - start[1], z - start[2]
            t = np.clip((px * d[0] + py * d[1] + pz * d[2]) / (d @ d), 0.0, 1.0)
            best = np.minimum(
                best, (px - t * d[0]) ** 2 + (py - t * d[1]) ** 2 + (pz - t * d[2]) ** 2
            )
        return np.sqrt(best) - radius

    return _Tissue(hu, line.min(axis=0) - radius, line.max(axis=0) + radius, distance)


def _slab(centre: np.ndarray, half: np.ndarray, ends: tuple[float, float], hu: float) -> _Tissue:
    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (
            np.maximum(np.abs(x - centre[0]) - half[0], np.abs(y - centre[1]) - half[1]) + 0.0 * z
        )

    low, high = centre - half, centre + half
    return _Tissue(hu, np.array([*low, ends[0]]), np.array([*high, ends[1]]), distance)


def _extent(
    spec: ScanSpec, tissues: Sequence[_Tissue], low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """LPS box that is scanned: the levels with their margin, in plane also the torso and the
    slab."""
    a, b = low - spec.margin_mm, high + spec.margin_mm
    if spec.extent == "torso":
        for tissue in tissues[1:]:
            a[:2], b[:2] = (
                np.minimum(a[:2], tissue.low[:2] - 5.0),
                np.maximum(b[:2], tissue.high[:2] + 5.0),
            )
    return a, b


def _grid(
    spec: ScanSpec, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """LPS from index and shape of the grid of that orientation that holds the box."""
    turn = rotation(2, np.radians(spec.rotation_deg[2])) @ rotation(
        1, np.radians(spec.rotation_deg[1])
    )
    turn = turn @ rotation(0, np.radians(spec.rotation_deg[0]))
    columns, steps = [], []
    for letter in spec.orientation:
        axis, sign = _LETTERS[letter]
        columns.append(sign * turn[:, axis])
        steps.append(spec.voxel_mm[axis])
    directions, voxel = np.stack(columns, axis=1), np.array(steps)
    corners = np.array(
        [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    )
    along = corners @ directions
    first, last = along.min(axis=0), along.max(axis=0)
    shape = np.ceil((last - first) / voxel).astype(int) + 1
    matrix = np.eye(4)
    matrix[:3, :3] = directions * voxel
    matrix[:3, 3] = directions @ first
    return matrix, (int(shape[0]), int(shape[1]), int(shape[2]))


def _index_box(
    matrix: np.ndarray, low: np.ndarray, high: np.ndarray, pad: np.ndarray, shape: Sequence[int]
) -> tuple[slice, ...]:
    """Index range of an LPS box, clipped to the grid."""
    corners = np.array(
        [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
    )
    index = rigid(np.linalg.inv(matrix), corners)
    first = np.clip(np.floor(index.min(axis=0) - pad), 0, shape).astype(int)
    last = np.clip(np.ceil(index.max(axis=0) + pad) + 1, first, shape).astype(int)
    return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))


def _positions(matrix: np.ndarray, axes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """x, y and z [i, j, k] of the grid of these index values along each axis."""
    i, j, k = np.ix_(*axes)
    return [
        (matrix[r, 0] * i + matrix[r, 1] * j + matrix[r, 2] * k + matrix[r, 3]).astype(np.float32)
        for r in range(3)
    ]


def _paint(values: np.ndarray, matrix: np.ndarray, tissue: _Tissue, sigma: float) -> None:
    """The tissue over what is there, blurred by sigma (in place, in slabs of 2 million voxels)."""
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    box = _index_box(matrix, tissue.low, tissue.high, np.ceil(4.0 * sigma / voxel), values.shape)
    plane = max((box[1].stop - box[1].start) * (box[2].stop - box[2].start), 1)
    step = max(2_000_000 // plane, 1)
    for start in range(box[0].start, box[0].stop, step):
        part = (slice(start, min(start + step, box[0].stop)), box[1], box[2])
        x, y, z = _positions(matrix, [np.arange(s.start, s.stop) for s in part])
        cover = ndtr(np.clip(tissue.distance(x, y, z) / -sigma, -6.0, 6.0).astype(np.float32))
        values[part] += cover * (np.float32(tissue.hu) - values[part])


def _rendered(
    bone: _Bone,
    spec: ScanSpec,
    background: np.ndarray,
    matrix: np.ndarray,
    voxel: np.ndarray,
    psf: float,
) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    """Box of the image, what the bone adds to the background's HU there, and its share of each
    voxel."""
    low, high = _inside_box(bone.sdf)
    pad = np.ceil(4.0 * psf / voxel) + 1
    box = _index_box(matrix, low, high, pad, background.shape)
    parts = np.ceil(voxel / CELL_MM).astype(int)
    cell = voxel / parts
    axes = [
        s.start - 0.5 + (np.arange((s.stop - s.start) * n) + 0.5) / n
        for s, n in zip(box, parts, strict=True)
    ]
    under = background[box].astype(np.float32)
    shape = tuple(len(axis) for axis in axes)
    change, cover = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    width = float(cell.mean())
    for start in range(0, shape[0], 16):
        rows = slice(start, start + 16)
        points = np.stack(_positions(matrix, [axes[0][rows], axes[1], axes[2]]), axis=-1).reshape(
            -1, 3
        )
        distance = bone.sdf.sample(points)
        near = np.flatnonzero(distance < 0.5 * width)
        if not len(near):
            continue
        share = np.clip(0.5 - distance[near] / width, 0.0, 1.0)  # the cell's own partial volume
        hu = spec.hu(qct_of_apparent(bone.apparent.sample(points[near])))
        index = rigid(np.linalg.inv(matrix), points[near]) - [s.start for s in box]
        soft = map_coordinates(under, index.T, order=1, mode="nearest")
        cover[rows].reshape(-1)[near] = share
        change[rows].reshape(-1)[near] = share * (hu - soft)
    if psf > 0.0:
        change = gaussian_filter(change, psf / cell, mode="constant")
    return box, _averaged(change, parts), _averaged(cover, parts)


def _averaged(fine: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Mean over blocks of parts cells."""
    i, j, k = (n // p for n, p in zip(fine.shape, parts, strict=True))
    return np.asarray(fine.reshape(i, parts[0], j, parts[1], k, parts[2]).mean(axis=(1, 3, 5)))
