"""From closed surfaces in LPS to a checked PatientModel: fields, anatomy, order, distance, overlap.

Neighbours that overlap a little (facets of segmented bones often do) are parted along their
mid-surface: φ_a ← max(φ_a, (φ_a − φ_b + gap)/2) and the same for b, so that `gap` stays open where
they met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
#: Beside the treated pair only alignment is measured, which parted facets do not touch: there the
#: overlap may be so many times as large and as deep.
UNTREATED_EASE = 2.5
#: Bodies of neighbours are closer than this.
_FAR_MM = 75.0

#: Density of a level, given its signed distance and its anatomy: the field and what was done.
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
    surfaces = dict(surfaces)
    fields = {
        level: _field_of(level, surface, spacing_mm, stages) for level, surface in surfaces.items()
    }
    spine = _Spine(
        surfaces,
        fields,
        {level: body_centre(field) for level, field in fields.items()},
        tuple(surfaces) if required is None else required,
        repairs,
        stages,
    )
    spine.part_neighbours(edge_mm)
    anatomies = spine.anatomies()
    vertebrae = spine.vertebrae(anatomies, density)
    if isinstance(density, BoneProfile):
        density_source = f"assumed:{density.name}"
    assert density_source is not None
    base = None if sacrum is None else _sacrum(sacrum, vertebrae, repairs, stages)
    return PatientModel(
        name, tuple(vertebrae), density_source, posture, tuple(repairs), source, base, findings
    )


@dataclass(frozen=True)
class _Spine:
    """The levels that are still in, cranial to caudal, while they are put together.

    Surfaces and fields are replaced where neighbours are parted, and a level that fails is taken
    out of `surfaces`, unless it is required; `repairs` is told of both.
    """

    surfaces: dict[str, Surface]
    fields: dict[str, VoxelField]
    centres: dict[str, np.ndarray]
    required: tuple[str, ...]
    repairs: list[str]
    stages: Stages

    def leave_out(self, level: str, error: ValueError) -> None:
        """Go on without a level. Raises the error where the level is required."""
        if level in self.required:
            raise error
        self.repairs.append(f"{level} is left out: {error}")
        self.surfaces.pop(level)

    def part_neighbours(self, edge_mm: float) -> None:
        """Check each pair of neighbours, and part those that overlap."""
        for upper, lower in pairwise(list(self.surfaces)):
            if upper not in self.surfaces or not follow(upper, lower):
                continue
            ease = 1.0 if {upper, lower} <= set(self.required) else UNTREATED_EASE
            try:
                if _check_neighbours(upper, lower, self.fields, self.centres, ease):
                    self._part(upper, lower, edge_mm, ease)
            except ValueError as error:
                self.leave_out(upper if lower in self.required else lower, error)

    def _part(self, upper: str, lower: str, edge_mm: float, ease: float) -> None:
        """Part two overlapping bones along their mid-surface (module docstring).

        Raises: ValueError when one dips deeper than OVERLAP_DEPTH_MM into the other.
        """
        a, b = self.fields[upper], self.fields[lower]
        shared = overlap_mm3(a, b)
        depth = max(
            -float(b.sample(self.surfaces[upper].points_mm).min()),
            -float(a.sample(self.surfaces[lower].points_mm).min()),
        )
        if depth > ease * OVERLAP_DEPTH_MM:
            raise ValueError(
                f"{upper} and {lower} overlap {depth:.1f} mm deep (at most"
                f" {ease * OVERLAP_DEPTH_MM:g} mm is parted automatically); part them in the"
                " segmentation tool"
            )
        pair = self.surfaces[upper], self.surfaces[lower]
        parted = {
            upper: _parted(upper, a, b, pair, edge_mm, self.stages),
            lower: _parted(lower, b, a, pair, edge_mm, self.stages),
        }
        removed = {
            level: volume_mm3(self.surfaces[level]) - volume
            for level, (_, volume) in parted.items()
        }
        for level, (surface, _) in parted.items():
            self.surfaces[level] = surface
            self.fields[level] = _field_of(
                level, surface, self.fields[level].spacing_mm, self.stages
            )
        self.repairs.append(
            f"{upper} and {lower} overlapped by {shared:.0f} mm³, {depth:.1f} mm deep; parted"
            f" along the mid-surface with a {PARTED_GAP_MM:g} mm gap ({removed[upper]:.0f} and"
            f" {removed[lower]:.0f} mm³ removed)"
        )

    def anatomies(self) -> dict[str, Anatomy]:
        """The anatomy of each level that has one and stands upright."""
        levels = list(self.surfaces)
        overall = (
            unit(self.centres[levels[0]] - self.centres[levels[-1]])
            if len(levels) > 1
            else np.array([0.0, 0.0, 1.0])
        )
        result: dict[str, Anatomy] = {}
        for level in levels:
            try:
                up = _up(level, list(self.surfaces), self.centres, overall)
                result[level] = anatomy(level, self.surfaces[level], self.fields[level], up)
                _check_upright(level, result[level])
            except ValueError as error:
                self.leave_out(level, error)
        return result

    def vertebrae(
        self, anatomies: dict[str, Anatomy], density: BoneProfile | DensityOf
    ) -> list[Vertebra]:
        """The vertebrae of the levels whose density is known."""
        result = []
        for level, surface in list(self.surfaces.items()):
            own, field = anatomies[level], self.fields[level]
            if isinstance(density, BoneProfile):
                values = assumed_density(field, own.superior, own.inferior, density)
            else:
                try:
                    values, notes = density(level, field, own)
                except ValueError as error:
                    self.leave_out(level, ValueError(f"density of {level}: {error}"))
                    continue
                self.repairs.extend(notes)
            plates = own.superior, own.inferior
            result.append(
                Vertebra(level, surface, field, values, *plates, own.pedicles, own.landmarks)
            )
        return result


def _parted(
    level: str,
    own: VoxelField,
    other: VoxelField,
    pair: tuple[Surface, Surface],
    edge_mm: float,
    stages: Stages,
) -> tuple[Surface, float]:
    """Surface of a bone parted from another, remeshed, and the volume mm³ before remeshing; `pair`:
    the two bones' surfaces, cranial first."""

    def make() -> tuple[dict[str, np.ndarray], list[str]]:
        values = np.asarray(own.values, float)
        split = 0.5 * (values - other.sample(own.points()) + PARTED_GAP_MM)
        rest = isosurface(VoxelField(np.maximum(values, split), own.origin_mm, own.spacing_mm))
        surface, _ = repair(level, rest, edge_mm)
        volume = np.array(volume_mm3(rest))
        return {
            "points_mm": surface.points_mm,
            "faces": surface.faces,
            "volume_mm3": volume,
        }, []

    key = (*pair, own.spacing_mm, edge_mm, PARTED_GAP_MM)
    arrays, _ = stages.run(f"parted_{level}", key, make)
    return Surface(arrays["points_mm"], arrays["faces"]), float(arrays["volume_mm3"])


def _sacrum(
    surface: Surface, vertebrae: list[Vertebra], repairs: list[str], stages: Stages
) -> Sacrum | None:
    """The sacrum with its endplate, searched under L5 or L6 where that is there; None, with a note
    in `repairs`, where it has none."""
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
    ease: float,
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


def _check_upright(level: str, own: Anatomy) -> None:
    """Raises ValueError for a vertebra upside down: pedicles spring from the upper half of a
    thoracic or lumbar body."""
    to_own = inverse(vertebra_frame(own.superior, own.inferior))
    height = np.mean(
        [rigid(to_own, own.landmarks[f"pedicle_isthmus_{side}"])[2] for side in ("left", "right")]
    )
    if height < 0.0:
        raise ValueError(
            f"{level} stands upside down (its pedicles spring {-height:.1f} mm below the middle of"
            " the body); the levels are swapped, or source.axes is wrong"
        )
