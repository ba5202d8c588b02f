"""From closed surfaces in LPS to a checked PatientModel: fields, anatomy, order, distance, overlap.

Neighbours that overlap a little (facets of segmented bones often do) are parted along their
mid-surface: φ_a ← max(φ_a, (φ_a − φ_b + gap)/2) and the same for b, so that `gap` stays open where
they met.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from engine.patient.anatomy.sacrum import sacrum_endplate
from engine.patient.anatomy.vertebra import Anatomy, anatomy, body_centre
from engine.patient.bone.assumed import BoneProfile, assumed_density
from engine.patient.geometry.distance import isosurface, surface_sdf, volume_mm3
from engine.patient.geometry.frames import inverse, unit, vertebra_frame
from engine.patient.geometry.levels import follow
from engine.patient.geometry.meshes import repair
from engine.patient.stages import Stages
from engine.types import Finding, PatientModel, Sacrum, Surface, Vertebra, VoxelField, rigid

#: Largest overlap of two neighbouring bones that is parted; more is an error.
OVERLAP_MM3 = 500.0
OVERLAP_DEPTH_MM = 3.0
#: Joint space left where overlapping bones are parted (two facet cartilages are 1-2 mm).
PARTED_GAP_MM = 0.5
_FAR_MM = 75.0


#: Density of a level, given the signed distance and the anatomy that were found: the field and what
#: was done.
DensityOf = Callable[[str, VoxelField, Anatomy], tuple[VoxelField, list[str]]]


def assemble(
    name: str,
    surfaces: dict[str, Surface],
    spacing_mm: float,
    edge_mm: float,
    density: BoneProfile | DensityOf,
    posture: str,
    repairs: list[str],
    source: dict[str, Any],
    *,
    density_source: str | None = None,
    required: tuple[str, ...] | None = None,
    sacrum: Surface | None = None,
    findings: tuple[Finding, ...] = (),
    stages: Stages | None = None,
) -> PatientModel:
    """Patient of the given surfaces (LPS mm, cranial to caudal).

    density     the assumed profile, or the function that maps a scan's density (then
                `density_source` says what it is)
    required    levels without which there is no patient (default: all); others that fail are left
                out, with a note
    sacrum      its surface, of which the superior endplate is found

    Raises: ValueError when required neighbours overlap, are far apart or in the wrong order, or a
    vertebra is upside down.
    """
    stages = stages or Stages()
    required = tuple(surfaces) if required is None else required
    surfaces = dict(surfaces)
    fields = {
        level: _field_of(level, surface, spacing_mm, stages) for level, surface in surfaces.items()
    }
    centres = {level: body_centre(field) for level, field in fields.items()}

    def leave_out(level: str, error: ValueError) -> None:
        if level in required:
            raise error
        repairs.append(f"{level} is left out: {error}")
        surfaces.pop(level)

    for upper, lower in pairwise(list(surfaces)):
        if upper not in surfaces or not follow(upper, lower):
            continue
        try:
            # beside the treated pair only alignment is measured, which parted facets do not touch
            ease = 1.0 if {upper, lower} <= set(required) else 2.5
            if _check_neighbours(upper, lower, fields, centres, ease):
                _part(upper, lower, surfaces, fields, edge_mm, repairs, stages, ease)
        except ValueError as error:
            leave_out(upper if lower in required else lower, error)
    up = (
        unit(centres[next(iter(surfaces))] - centres[list(surfaces)[-1]])
        if len(surfaces) > 1
        else np.array([0.0, 0.0, 1.0])
    )
    found: dict[str, Anatomy] = {}
    for level in list(surfaces):
        try:
            found[level] = anatomy(
                level, surfaces[level], fields[level], _up(level, list(surfaces), centres, up)
            )
            _check_upright(level, found[level])
        except ValueError as error:
            leave_out(level, error)
    vertebrae = []
    for level, surface in list(surfaces.items()):
        made = found[level]
        if isinstance(density, BoneProfile):
            values = assumed_density(fields[level], made.superior, made.inferior, density)
        else:
            try:
                values, lines = density(level, fields[level], made)
            except ValueError as error:
                leave_out(level, ValueError(f"density of {level}: {error}"))
                continue
            repairs += lines
        vertebrae.append(
            Vertebra(
                level,
                surface,
                fields[level],
                values,
                made.superior,
                made.inferior,
                made.pedicles,
                made.landmarks,
            )
        )
    if isinstance(density, BoneProfile):
        density_source = f"assumed:{density.name}"
    assert density_source is not None
    base = None if sacrum is None else _sacrum(sacrum, vertebrae, repairs, stages)
    return PatientModel(
        name, tuple(vertebrae), density_source, posture, tuple(repairs), source, base, findings
    )


def _sacrum(
    surface: Surface, vertebrae: list[Vertebra], repairs: list[str], stages: Stages
) -> Sacrum | None:
    above = vertebrae[-1] if vertebrae and vertebrae[-1].name in ("L5", "L6") else None
    up = unit(vertebrae[0].superior.centre_mm - vertebrae[-1].inferior.centre_mm)
    try:
        field = _field_of("S1", surface, 1.0, stages)
        plate, landmarks = sacrum_endplate(
            surface, field, up, None if above is None else above.inferior
        )
    except ValueError as error:
        repairs.append(f"the sacrum is left out: {error}")
        return None
    return Sacrum(surface, plate, landmarks)


def _up(
    level: str, levels: list[str], centres: dict[str, np.ndarray], overall: np.ndarray
) -> np.ndarray:
    """Cranial direction at a level: between its neighbours' bodies, as a curved spine has no
    single one."""
    at = levels.index(level)
    near = levels[max(at - 1, 0) : at + 2]
    return unit(centres[near[0]] - centres[near[-1]]) if len(near) > 1 else overall


def _field_of(level: str, surface: Surface, spacing_mm: float, stages: Stages) -> VoxelField:
    def make() -> tuple[dict[str, np.ndarray], list[str]]:
        field = surface_sdf(surface, spacing_mm)
        return {"values": field.values, "origin_mm": field.origin_mm}, []

    arrays, _ = stages.run(f"distance_{level}", (surface, spacing_mm), make)
    return VoxelField(arrays["values"], arrays["origin_mm"], spacing_mm)


def overlap_mm3(a: VoxelField, b: VoxelField) -> float:
    """Volume inside both bodies, counted on the grid of `a`."""
    inside = np.asarray(a.values) < 0.0
    points = a.origin_mm + a.spacing_mm * np.argwhere(inside)
    return float((b.sample(points) < 0.0).sum()) * a.spacing_mm**3


def _check_neighbours(
    upper: str,
    lower: str,
    fields: dict[str, VoxelField],
    centres: dict[str, np.ndarray],
    ease: float = 1.0,
) -> bool:
    """Whether the two overlap. Raises ValueError when they are not neighbours in order and in
    one frame."""
    offset = centres[upper] - centres[lower]
    apart = float(np.linalg.norm(offset))
    if apart > _FAR_MM:
        raise ValueError(
            f"{upper} and {lower} are {apart:.0f} mm apart (bodies, at most {_FAR_MM:.0f}); they"
            " are not in one frame, or a level between them is missing"
        )
    shared = overlap_mm3(fields[upper], fields[lower])
    if shared > ease * OVERLAP_MM3:
        raise ValueError(
            f"{upper} and {lower} overlap by {shared:.0f} mm³ (at most {ease * OVERLAP_MM3:.0f} are"
            " parted automatically); part them in the segmentation tool, or check that the files"
            " are two different levels in one frame"
        )
    if offset[2] < 0.5 * apart:
        raise ValueError(
            f"{upper} is not above {lower}: its body lies {offset[2]:.0f} mm higher of {apart:.0f}"
            " mm apart; check the level names, the file's axes (source.axes) or the image's"
            " orientation"
        )
    return shared > 0.0


def _part(
    upper: str,
    lower: str,
    surfaces: dict[str, Surface],
    fields: dict[str, VoxelField],
    edge_mm: float,
    repairs: list[str],
    stages: Stages,
    ease: float = 1.0,
) -> None:
    """Part two overlapping bones along their mid-surface (module docstring), in place.

    Raises: ValueError when one dips deeper than OVERLAP_DEPTH_MM into the other.
    """
    a, b = fields[upper], fields[lower]
    shared = overlap_mm3(a, b)
    depth = max(
        -float(b.sample(surfaces[upper].points_mm).min()),
        -float(a.sample(surfaces[lower].points_mm).min()),
    )
    if depth > ease * OVERLAP_DEPTH_MM:
        raise ValueError(
            f"{upper} and {lower} overlap {depth:.1f} mm deep (at most {ease * OVERLAP_DEPTH_MM:g}"
            " mm is parted automatically); part them in the segmentation tool"
        )
    removed = []
    for level, own, other in ((upper, a, b), (lower, b, a)):

        def make(
            level: str = level, own: VoxelField = own, other: VoxelField = other
        ) -> tuple[dict[str, np.ndarray], list[str]]:
            values = np.asarray(own.values, float)
            split = 0.5 * (values - other.sample(own.points()) + PARTED_GAP_MM)
            parted = isosurface(
                VoxelField(np.maximum(values, split), own.origin_mm, own.spacing_mm)
            )
            surface, _ = repair(level, parted, edge_mm)
            return {
                "points_mm": surface.points_mm,
                "faces": surface.faces,
                "volume_mm3": np.array(volume_mm3(parted)),
            }, []

        arrays, _ = stages.run(
            f"parted_{level}",
            (surfaces[upper], surfaces[lower], own.spacing_mm, edge_mm, PARTED_GAP_MM),
            make,
        )
        removed.append(
            (
                level,
                volume_mm3(surfaces[level]) - float(arrays["volume_mm3"]),
                Surface(arrays["points_mm"], arrays["faces"]),
            )
        )
    for level, _, surface in removed:
        surfaces[level] = surface
        fields[level] = _field_of(level, surface, fields[level].spacing_mm, stages)
    repairs.append(
        f"{upper} and {lower} overlapped by {shared:.0f} mm³, {depth:.1f} mm deep; parted along the"
        f" mid-surface with a {PARTED_GAP_MM:g} mm gap ({removed[0][1]:.0f} and {removed[1][1]:.0f}"
        " mm³ removed)"
    )


def _check_upright(level: str, found: Anatomy) -> None:
    """Pedicles spring from the upper half of a thoracic or lumbar body."""
    to_own = inverse(vertebra_frame(found.superior, found.inferior))
    height = np.mean(
        [rigid(to_own, found.landmarks[f"pedicle_isthmus_{side}"])[2] for side in ("left", "right")]
    )
    if height < 0.0:
        raise ValueError(
            f"{level} stands upside down (its pedicles spring {-height:.1f} mm below the middle of"
            " the body); the levels are swapped, or source.axes is wrong"
        )
