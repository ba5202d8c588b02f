"""The tissues of a synthetic scan, in LPS as on a scanner's table: discs, an aorta with blood, an
elliptic torso of muscle under fat, air, and under the back a water-equivalent slab with rods of
known K2HPO4 density along z; and what is known of all that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from engine.materials import qct_of_apparent
from engine.patient.alignment.disc import measure
from engine.patient.geometry.distance import volume_mm3
from engine.patient.geometry.frames import inverse, vertebra_frame
from engine.patient.geometry.levels import VERSE
from engine.patient.phantoms.scan_spec import ScanSpec
from engine.types import Endplate, PatientModel, rigid

#: VerSe's numbers; it gives T13 the 28.
LABELS = {**VERSE, "T13": 28}
SACRUM_LABEL = 26
AIR_HU = -1000.0
#: The truth's core of a body: a cylinder of this radius and half height about its centre, deeper
#: under the surface than any shell.
_CORE_MM, _CORE_DEPTH_MM = 7.0, 4.0
#: Least half width and half depth of the torso with its skin; where it must be larger for the bones
#: it has this share of their box and this much more. Muscle behind the most posterior bone. All mm.
_TORSO_MM, _TORSO_SHARE, _TORSO_MORE_MM, _BEHIND_BONE_MM = (165.0, 110.0), 0.75, 30.0, 12.0
#: How far tissues and rods go on beyond the bones along z.
_TORSO_BEYOND_MM, _RODS_BEYOND_MM, _VESSEL_BEYOND_MM = 500.0, 200.0, 300.0
#: Endplates farther apart have a missing level between them, and no disc.
_FARTHEST_DISC_MM = 25.0
#: How far a disc goes on into both bones.
_DISC_INTO_BONE_MM = 4.0
#: The aorta: radius, and its axis left of and before the bodies.
_AORTA_MM, _AORTA_LEFT_MM, _AORTA_BEFORE_MM = 9.0, 8.0, 15.0
#: The slab: its half sizes, its middle behind the skin; the rods in it: half their span, largest
#: radius, and radius per distance.
_SLAB_HALF_MM, _SLAB_BEHIND_MM = (105.0, 12.0), 16.0
_RODS_HALF_SPAN_MM, _ROD_MM, _ROD_SHARE = 80.0, 9.0, 0.4


@dataclass(frozen=True)
class Tissue:
    """A body by its (approximate) signed distance in LPS and a box that holds it."""

    hu: float
    low: np.ndarray
    high: np.ndarray
    distance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Torso:
    """An elliptic cylinder of muscle along z that holds every bone; fat lies around it."""

    x_mm: float
    y_mm: float
    half_width_mm: float
    half_depth_mm: float
    ends_mm: tuple[float, float]

    def grown(self, by_mm: float, hu: float) -> Tissue:
        """The torso with both half axes longer by so much."""
        p, q = self.half_width_mm + by_mm, self.half_depth_mm + by_mm

        def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
            return _elliptic(x - self.x_mm, y - self.y_mm, p, q) + 0.0 * z

        return Tissue(
            hu,
            np.array([self.x_mm - p, self.y_mm - q, self.ends_mm[0]]),
            np.array([self.x_mm + p, self.y_mm + q, self.ends_mm[1]]),
            distance,
        )


def scene(
    patient: PatientModel, spec: ScanSpec, low: np.ndarray, high: np.ndarray
) -> tuple[list[Tissue], dict[str, Any]]:
    """Tissues in the order they are painted (the first fills everything), and what is known of
    them, for bones in the LPS box from `low` to `high`."""
    torso = _torso(spec, low, high)
    line = _aorta_line(patient)
    back = torso.y_mm + torso.half_depth_mm + spec.fat_mm
    bed = np.array([torso.x_mm, back + _SLAB_BEHIND_MM])
    rods = _rods(spec, bed, (low[2] - _RODS_BEYOND_MM, high[2] + _RODS_BEYOND_MM))
    tissues = [
        Tissue(AIR_HU, low, high, lambda x, y, z: x),
        torso.grown(spec.fat_mm, spec.fat_hu),
        torso.grown(0.0, spec.muscle_hu),
        *_discs(patient, spec.disc_hu),
        _tube(line, _AORTA_MM, spec.blood_hu),
        _slab(bed, np.array(_SLAB_HALF_MM), torso.ends_mm, spec.slab_hu),
        *(
            _tube(np.array(rod["axis_mm"]), rod["radius_mm"], rod["hu"], extend=False)
            for rod in rods
        ),
    ]
    aorta = {"line_mm": line.tolist(), "radius_mm": _AORTA_MM, "hu": spec.blood_hu}
    return tissues, _truth(patient, spec, rods, aorta)


def _torso(spec: ScanSpec, low: np.ndarray, high: np.ndarray) -> _Torso:
    """Wide enough for the widest bone, deep enough for the deepest."""
    width, depth = _TORSO_MM
    a = max(width, _TORSO_SHARE * (high[0] - low[0]) + _TORSO_MORE_MM) - spec.fat_mm
    b = max(depth, _TORSO_SHARE * (high[1] - low[1]) + _TORSO_MORE_MM) - spec.fat_mm
    middle = 0.5 * (low + high)
    ends = low[2] - _TORSO_BEYOND_MM, high[2] + _TORSO_BEYOND_MM
    return _Torso(middle[0], high[1] + _BEHIND_BONE_MM - b, a, b, ends)


def _discs(patient: PatientModel, hu: float) -> list[Tissue]:
    """A disc between every two neighbouring endplates that no missing level parts."""
    below = [vertebra.superior for vertebra in patient.vertebrae[1:]]
    if patient.sacrum is not None:
        below.append(patient.sacrum.superior)
    discs = []
    for vertebra, lower in zip(patient.vertebrae, below, strict=False):
        upper = vertebra.inferior
        if np.linalg.norm(upper.centre_mm - lower.centre_mm) < _FARTHEST_DISC_MM:
            discs.append(_disc(upper, lower, hu))
    return discs


def _aorta_line(patient: PatientModel) -> np.ndarray:
    """Points [n, 3] of the aorta's axis: left of and before the middle of each body."""
    points = []
    for vertebra in patient.vertebrae:
        superior, inferior = vertebra.superior, vertebra.inferior
        half_depth = 0.5 * (superior.half_depth_mm + inferior.half_depth_mm)
        own = np.array([_AORTA_LEFT_MM, -(half_depth + _AORTA_BEFORE_MM), 0.0])
        points.append(rigid(vertebra_frame(superior, inferior), own))
    return np.array(points)


def _rods(spec: ScanSpec, bed: np.ndarray, ends: tuple[float, float]) -> list[dict[str, Any]]:
    """Density, HU, axis and radius of the rods, side by side in the slab whose middle is `bed`
    (x, y)."""
    spread = np.linspace(-_RODS_HALF_SPAN_MM, _RODS_HALF_SPAN_MM, len(spec.rods_g_cm3))
    radius = min(_ROD_MM, _ROD_SHARE * (spread[1] - spread[0]))
    rods = []
    for x, density in zip(spread, spec.rods_g_cm3, strict=True):
        axis = np.array([[bed[0] + x, bed[1], end] for end in ends])
        rods.append(
            {
                "density_g_cm3": density,
                "hu": float(spec.hu(density)),
                "axis_mm": axis.tolist(),
                "radius_mm": radius,
            }
        )
    return rods


def _truth(
    patient: PatientModel, spec: ScanSpec, rods: list[dict[str, Any]], aorta: dict[str, Any]
) -> dict[str, Any]:
    """What is known of the scene (synthetic.synthetic_ct)."""
    tissues = ("disc", "muscle", "fat", "blood", "slab")
    truth = {
        "density_line": {
            "slope_g_cm3_per_hu": spec.slope_g_cm3_per_hu,
            "intercept_g_cm3": spec.intercept_g_cm3,
        },
        "tissues_hu": {name: getattr(spec, f"{name}_hu") for name in tissues} | {"air": AIR_HU},
        "rods": rods,
        "aorta": aorta,
        "vertebrae": {v.name: _vertebra_truth(v, spec) for v in patient.vertebrae},
        "alignment": {
            f"{u.name}-{v.name}": asdict(measure(u, v)) for u, v in pairwise(patient.vertebrae)
        },
    }
    if patient.sacrum is not None:
        truth["sacrum"] = {
            "label": SACRUM_LABEL,
            "superior": _plate_truth(patient.sacrum.superior),
        }
    return truth


def _vertebra_truth(vertebra: Any, spec: ScanSpec) -> dict[str, Any]:
    own = rigid(
        inverse(vertebra_frame(vertebra.superior, vertebra.inferior)), vertebra.density.points()
    )
    inside = (np.hypot(own[..., 0], own[..., 1]) < _CORE_MM) & (np.abs(own[..., 2]) < _CORE_MM)
    apparent = np.asarray(vertebra.density.values)[
        inside & (np.asarray(vertebra.sdf.values) < -_CORE_DEPTH_MM)
    ]
    return {
        "label": LABELS[vertebra.name],
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


def _disc(upper: Endplate, lower: Endplate, hu: float) -> Tissue:
    """Elliptic loft between two endplates and some way into both bones, which are painted over
    it."""
    axis = upper.centre_mm - lower.centre_mm
    height = float(np.linalg.norm(axis))
    axis = axis / height
    left = lower.axis_left - (lower.axis_left @ axis) * axis
    left /= np.linalg.norm(left)
    back = np.cross(axis, left)
    start, into = lower.centre_mm, _DISC_INTO_BONE_MM

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
    return Tissue(hu, ends.min(axis=0) - reach, ends.max(axis=0) + reach, distance)


def _tube(line: np.ndarray, radius: float, hu: float, extend: bool = True) -> Tissue:
    """Tube about a polyline; `extend` carries it on past its ends along z, as vessels go."""
    if extend:
        line = line[np.argsort(line[:, 2])]
        line = np.concatenate(
            [
                line[:1] - [0.0, 0.0, _VESSEL_BEYOND_MM],
                line,
                line[-1:] + [0.0, 0.0, _VESSEL_BEYOND_MM],
            ]
        )

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

    return Tissue(hu, line.min(axis=0) - radius, line.max(axis=0) + radius, distance)


def _slab(centre: np.ndarray, half: np.ndarray, ends: tuple[float, float], hu: float) -> Tissue:
    """Box about `centre` [2] with half sizes `half` [2] in x and y, along z between `ends`."""

    def distance(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (
            np.maximum(np.abs(x - centre[0]) - half[0], np.abs(y - centre[1]) - half[1]) + 0.0 * z
        )

    low, high = centre - half, centre + half
    return Tissue(hu, np.array([*low, ends[0]]), np.array([*high, ends[1]]), distance)
