"""Femoral heads: a sphere on each femur of a label image, so that pelvic incidence and tilt can be
measured.

    surface    of the uppermost 80 mm of the femur's mask (labels.mask_surface)
    start      of 3000 spheres through four points within 40 mm (|p − c|² = r², linear in c and |c|²
               − r²), radius 15-35 mm, the one that has most surface within the tolerance τ
    refined    least squares of |p − c| − r over those points, Tukey's biweight of 2 τ, until it
               stands; τ = max(0.8 mm, 0.4 voxel)
    accepted   radius 18-30 mm; rms residual under τ; at least 45 % of the sphere's directions seen
               (the neck and the cut take the rest); no voxel of the femur on the image's border
               within r + 1 voxel of the centre

A head that is cut off by the field of view has no value: its sphere would be an extrapolation. Both
are needed, 120-230 mm apart and within 4 mm of each other's radius (adult heads are 40-56 mm wide
and 160-200 mm apart [M]). Largest error on analytic femurs: 0.07 mm at voxels of 1.5 mm, 0.28 mm at
3 mm (tests/patient/test_hips.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from engine.patient.alignment.measures import REGIONAL, SpineAlignment
from engine.patient.labels.pieces import Piece, pieces
from engine.patient.labels.surface import mask_surface
from engine.patient.labels.understand import Labels
from engine.types import PatientModel, rigid

RADIUS_MM = (18.0, 30.0)
COVERAGE = 0.45
APART_MM = (120.0, 230.0)
RADII_DIFFER_MM = 4.0
_PROXIMAL_MM = 80.0
_TRIALS = 3000
_NEAR_MM = 40.0
#: What rests on the femoral heads: these say where they come from.
_MEASURES = ("pelvic_incidence_deg", "pelvic_tilt_deg", "pi_minus_ll_deg", "l1_pelvic_angle_deg")


@dataclass(frozen=True)
class FemoralHead:
    """A fitted head, LPS mm. residual_mm: rms over its surface; coverage: share of the sphere's
    directions with surface."""

    centre_mm: np.ndarray
    radius_mm: float
    residual_mm: float
    coverage: float


def femoral_heads(labels: Labels) -> tuple[np.ndarray | None, str]:
    """Centres [2, 3] (left, right) fitted to the femurs of a label image, and the line that says
    how or why not.

    (None, "") where the image holds no femur.
    """
    sides = {side: labels.scheme.tissues.get(f"femur_{side}", ()) for side in ("left", "right")}
    there = pieces(
        labels.image.values,
        labels.image.lps_from_index,
        {side: numbers for side, numbers in sides.items() if numbers},
    )
    if not there:
        return None, ""
    found: dict[str, FemoralHead] = {}
    reasons = [
        f"{side}: the image holds no femur of that side" for side in sides if side not in there
    ]
    for side, piece in there.items():
        try:
            found[side] = fit_head(piece, labels.image.values.shape)
        except ValueError as error:
            reasons.append(f"{side}: {error}")
    if not reasons:
        reasons = _implausible(found)
    if reasons:
        return None, f"femoral heads: not fitted ({'; '.join(reasons)})"
    numbers = "/".join(str(piece.number) for piece in there.values())
    parts = [
        f"{side} r {h.radius_mm:.1f} mm, residual {h.residual_mm:.2f} mm, {h.coverage:.0%} covered"
        for side, h in found.items()
    ]
    return (
        np.stack([found[side].centre_mm for side in sides]),
        f"femoral heads: fitted to labels {numbers} ({'; '.join(parts)})",
    )


def fit_head(piece: Piece, shape: tuple[int, ...]) -> FemoralHead:
    """The head of one femur (module docstring); shape: of the image, whose border cuts.

    Raises: ValueError saying why there is no value.
    """
    points, cut = _proximal(piece, shape)
    voxel = np.linalg.norm(piece.lps_from_index[:3, :3], axis=0)
    tolerance = max(0.8, 0.4 * float(voxel.max()))
    sphere = _start(points, tolerance) if len(points) > 50 else None
    if sphere is None:
        raise ValueError(
            "no sphere of 15-35 mm is on"
            f" it{', and it is cut off by the border of the image' if len(cut) else ''}"
        )
    centre, radius, used = _refine(points, sphere, tolerance)
    if len(cut) and float(np.linalg.norm(cut - centre, axis=1).min()) < radius + float(voxel.max()):
        raise ValueError(
            f"the head is cut off by the image's border ({piece.cut_where}); scan or segment it"
            " whole, or give its centre"
        )
    if not RADIUS_MM[0] <= radius <= RADIUS_MM[1]:
        raise ValueError(
            f"the sphere has a radius of {radius:.1f} mm (a head has"
            f" {RADIUS_MM[0]:g}-{RADIUS_MM[1]:g}); a prosthesis, or no head"
        )
    offset = points[used] - centre
    residual = float(np.sqrt(np.mean((np.linalg.norm(offset, axis=1) - radius) ** 2)))
    coverage = _coverage(offset[np.abs(np.linalg.norm(offset, axis=1) - radius) < tolerance])
    if residual > tolerance or coverage < COVERAGE:
        raise ValueError(
            f"the surface is no sphere: residual {residual:.2f} mm (at most {tolerance:.2f}),"
            f" {coverage:.0%} of it seen (at least {COVERAGE:.0%})"
        )
    return FemoralHead(centre, radius, residual, coverage)


def heads_of(patient: PatientModel) -> np.ndarray | None:
    """The centres [2, 3] that a patient's source knows: fitted, given, or of the phantom; the
    left one (+x) first."""
    heads = patient.source.get("femoral_heads", {}).get(
        "centres_mm", patient.source.get("femoral_heads_mm")
    )
    return (
        None
        if heads is None
        else np.array(sorted(heads, key=lambda centre: -float(centre[0])), float)
    )


def with_head_source(alignment: SpineAlignment, line: str) -> SpineAlignment:
    """The same alignment, in which what rests on the femoral heads says where they come from, or
    why there are none."""
    measures = dict(alignment.measures)
    for key in ((REGIONAL, name) for name in _MEASURES):
        found = measures.get(key)
        if found is not None and found.status == "measured":
            measures[key] = replace(found, source=f"{found.source}; {line}")
        elif found is not None and "femoral heads" in found.reason:
            measures[key] = replace(found, reason=f"{found.reason} ({line})")
    return replace(alignment, measures=measures)


def _implausible(found: Mapping[str, FemoralHead]) -> list[str]:
    left, right = found["left"], found["right"]
    apart = float(np.linalg.norm(left.centre_mm - right.centre_mm))
    if not APART_MM[0] <= apart <= APART_MM[1]:
        return [
            f"the two centres are {apart:.0f} mm apart (expected {APART_MM[0]:g}-{APART_MM[1]:g})"
        ]
    if abs(left.radius_mm - right.radius_mm) > RADII_DIFFER_MM:
        return [
            f"radii of {left.radius_mm:.1f} and {right.radius_mm:.1f} mm are not of one pair (at"
            f" most {RADII_DIFFER_MM:g} apart)"
        ]
    return []


def _proximal(piece: Piece, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Surface points of the femur's upper end, and the centres of its voxels on the image's
    border (LPS)."""
    matrix = piece.lps_from_index
    start = np.array([s.start for s in piece.box], float)
    index = np.argwhere(piece.mask)
    height = rigid(matrix, index.astype(float))[:, 2]
    index = index[height > height.max() - _PROXIMAL_MM]
    low, high = index.min(axis=0), index.max(axis=0) + 1
    part = np.zeros(high - low, bool)
    part[tuple((index - low).T)] = True
    border = ((index + start == 0) | (index + start == np.array(shape) - 1)).any(axis=1)
    local = matrix.copy()
    local[:3, 3] = rigid(matrix, low.astype(float))
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    surface = mask_surface(part, local, max(1.0, 0.8 * float(voxel.min())))
    points = surface.points_mm
    # what closes the lower end is no bone's surface
    free = points[:, 2] > height.max() - _PROXIMAL_MM + 1.5 * float(voxel.max())
    return points[free], rigid(matrix, index[border].astype(float))


def _start(points: np.ndarray, tolerance: float) -> tuple[np.ndarray, float] | None:
    """The sphere through four points that has most surface on it."""
    rng = np.random.default_rng(0)
    p = points[rng.choice(len(points), min(len(points), 1200), replace=False)]
    near = np.linalg.norm(p[:, None] - p, axis=-1) < _NEAR_MM
    first = rng.integers(len(p), size=_TRIALS)
    four = np.stack(
        [
            first,
            *(np.argmax(rng.random((_TRIALS, len(p))) * near[first], axis=1) for _ in range(3)),
        ],
        axis=1,
    )
    corner = p[four]  # [t, 4, 3]
    system = 2.0 * (corner[:, 1:] - corner[:, :1])
    side = (corner[:, 1:] ** 2).sum(axis=-1) - (corner[:, :1] ** 2).sum(axis=-1)
    good = np.abs(np.linalg.det(system)) > 1e3  # four points of a plane have no sphere
    centres = np.linalg.solve(system[good], side[good][..., None])[..., 0]
    radii = np.linalg.norm(corner[good, 0] - centres, axis=1)
    plausible = (radii > 15.0) & (radii < 35.0)
    best: tuple[int, np.ndarray, float] | None = None
    for centre, radius in zip(centres[plausible], radii[plausible], strict=True):
        count = int((np.abs(np.linalg.norm(p - centre, axis=1) - radius) < tolerance).sum())
        if best is None or count > best[0]:
            best = count, centre, float(radius)
    return None if best is None else best[1:]


def _refine(
    points: np.ndarray, sphere: tuple[np.ndarray, float], tolerance: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """Centre, radius and which points are on it."""
    centre, radius = sphere
    for _ in range(40):
        used = np.abs(np.linalg.norm(points - centre, axis=1) - radius) < 2.0 * tolerance
        offset = points[used] - centre
        distance = np.linalg.norm(offset, axis=1)
        misfit = distance - radius
        root = np.clip(1.0 - (misfit / (2.0 * tolerance)) ** 2, 0.0, None)
        # d|p − c|/dc = −(p − c)/|p − c|
        basis = np.column_stack([offset / distance[:, None], np.ones(len(offset))])
        step = np.linalg.lstsq(basis * root[:, None], misfit * root, rcond=None)[0]
        centre, radius = centre + step[:3], radius + float(step[3])
        if float(np.abs(step).max()) < 1e-4:
            break
    return centre, radius, used


def _coverage(offset: np.ndarray) -> float:
    """Share of 400 even directions (Fibonacci's spiral) that have a point within 10°."""
    k = np.arange(400) + 0.5
    z, turn = 1.0 - k / 200.0, np.pi * (1.0 + np.sqrt(5.0)) * k
    flat = np.sqrt(1.0 - z**2)
    even = np.stack([flat * np.cos(turn), flat * np.sin(turn), z], axis=1)
    return float(
        (
            (even @ (offset / np.linalg.norm(offset, axis=1, keepdims=True)).T).max(axis=1)
            > np.cos(np.radians(10.0))
        ).mean()
    )
