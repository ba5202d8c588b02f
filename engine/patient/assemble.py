"""From closed surfaces in LPS to a checked PatientModel: fields, anatomy, order, distance, overlap.

Neighbours that overlap a little (facets of segmented bones often do) are parted along their mid-surface:
φ_a ← max(φ_a, (φ_a − φ_b + gap)/2) and the same for b, so that `gap` stays open where they met.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from engine.patient.anatomy import Anatomy, anatomy, body_centre
from engine.patient.bone import BoneProfile, assumed_density
from engine.patient.distance import isosurface, surface_sdf, volume_mm3
from engine.patient.frames import inverse, unit, vertebra_frame
from engine.patient.meshes import repair
from engine.types import PatientModel, Surface, Vertebra, VoxelField, rigid

#: Largest overlap of two neighbouring bones that is parted; more is an error.
OVERLAP_MM3 = 500.0
OVERLAP_DEPTH_MM = 3.0
#: Joint space left where overlapping bones are parted (two facet cartilages are 1-2 mm).
PARTED_GAP_MM = 0.5
_FAR_MM = 75.0


def assemble(
    name: str,
    surfaces: dict[str, Surface],
    spacing_mm: float,
    edge_mm: float,
    profile: BoneProfile,
    posture: str,
    repairs: list[str],
    source: dict[str, Any],
) -> PatientModel:
    """Patient of the given surfaces (LPS mm, cranial to caudal), with assumed density.

    Raises: ValueError when neighbours overlap, are far apart or in the wrong order, or a vertebra is upside down.
    """
    fields = {level: surface_sdf(surface, spacing_mm) for level, surface in surfaces.items()}
    centres = {level: body_centre(field) for level, field in fields.items()}
    levels = list(surfaces)
    surfaces = dict(surfaces)
    for upper, lower in pairwise(levels):
        if _check_neighbours(upper, lower, fields, centres):
            _part(upper, lower, surfaces, fields, edge_mm, repairs)
    up = unit(centres[levels[0]] - centres[levels[-1]])
    vertebrae = []
    for level in levels:
        found = anatomy(level, surfaces[level], fields[level], up)
        _check_upright(level, found)
        vertebrae.append(
            Vertebra(
                name=level,
                surface=surfaces[level],
                sdf=fields[level],
                density=assumed_density(fields[level], found.superior, found.inferior, profile),
                superior=found.superior,
                inferior=found.inferior,
                pedicles=found.pedicles,
                landmarks=found.landmarks,
            )
        )
    return PatientModel(name, tuple(vertebrae), f"assumed:{profile.name}", posture, tuple(repairs), source)


def overlap_mm3(a: VoxelField, b: VoxelField) -> float:
    """Volume inside both bodies, counted on the grid of `a`."""
    inside = np.asarray(a.values) < 0.0
    points = a.origin_mm + a.spacing_mm * np.argwhere(inside)
    return float((b.sample(points) < 0.0).sum()) * a.spacing_mm**3


def _check_neighbours(upper: str, lower: str, fields: dict[str, VoxelField], centres: dict[str, np.ndarray]) -> bool:
    """Whether the two overlap. Raises ValueError when they are not neighbours in order and in one frame."""
    offset = centres[upper] - centres[lower]
    apart = float(np.linalg.norm(offset))
    if apart > _FAR_MM:
        raise ValueError(
            f"{upper} and {lower} are {apart:.0f} mm apart (bodies, at most {_FAR_MM:.0f}); they are not in one frame, "
            "or a level between them is missing"
        )
    shared = overlap_mm3(fields[upper], fields[lower])
    if shared > OVERLAP_MM3:
        raise ValueError(
            f"{upper} and {lower} overlap by {shared:.0f} mm³ (at most {OVERLAP_MM3:.0f} are parted automatically); "
            "part them in the segmentation tool, or check that the files are two different levels in one frame"
        )
    if offset[2] < 0.5 * apart:
        raise ValueError(
            f"{upper} is not above {lower}: its body lies {offset[2]:.0f} mm higher of {apart:.0f} mm apart; check the "
            "level names, the file's axes (source.axes) or the image's orientation"
        )
    return shared > 0.0


def _part(
    upper: str,
    lower: str,
    surfaces: dict[str, Surface],
    fields: dict[str, VoxelField],
    edge_mm: float,
    repairs: list[str],
) -> None:
    """Part two overlapping bones along their mid-surface (module docstring), in place.

    Raises: ValueError when one dips deeper than OVERLAP_DEPTH_MM into the other.
    """
    a, b = fields[upper], fields[lower]
    shared = overlap_mm3(a, b)
    depth = max(-float(b.sample(surfaces[upper].points_mm).min()), -float(a.sample(surfaces[lower].points_mm).min()))
    if depth > OVERLAP_DEPTH_MM:
        raise ValueError(
            f"{upper} and {lower} overlap {depth:.1f} mm deep (at most {OVERLAP_DEPTH_MM:g} mm is parted "
            "automatically); "
            "part them in the segmentation tool"
        )
    removed = []
    for level, own, other in ((upper, a, b), (lower, b, a)):
        values = np.asarray(own.values, float)
        split = 0.5 * (values - other.sample(own.points()) + PARTED_GAP_MM)
        parted = isosurface(VoxelField(np.maximum(values, split), own.origin_mm, own.spacing_mm))
        removed.append(volume_mm3(surfaces[level]) - volume_mm3(parted))
        surfaces[level], _ = repair(level, parted, edge_mm)
        fields[level] = surface_sdf(surfaces[level], own.spacing_mm)
    repairs.append(
        f"{upper} and {lower} overlapped by {shared:.0f} mm³, {depth:.1f} mm deep; parted along the mid-surface with a "
        f"{PARTED_GAP_MM:g} mm gap ({removed[0]:.0f} and {removed[1]:.0f} mm³ removed)"
    )


def _check_upright(level: str, found: Anatomy) -> None:
    """Pedicles spring from the upper half of a thoracic or lumbar body."""
    to_own = inverse(vertebra_frame(found.superior, found.inferior))
    height = np.mean([rigid(to_own, found.landmarks[f"pedicle_isthmus_{side}"])[2] for side in ("left", "right")])
    if height < 0.0:
        raise ValueError(
            f"{level} stands upside down (its pedicles spring {-height:.1f} mm below the middle of the body); the "
            "levels are swapped, or source.axes is wrong"
        )
