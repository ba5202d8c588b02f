"""The segment: two vertebrae carried into the segment frame, and the disc space between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.patient.geometry.distance import MARGIN_MM, grid_around, surface_sdf, volume_mm3
from engine.patient.geometry.frames import (
    inverse,
    move_endplate,
    move_surface,
    superior_frame,
    vertebra_frame,
)
from engine.types import AlignmentPlan, Endplate, Segment, Surface, Vertebra, VoxelField, rigid

#: How far the disc body reaches past the rim planes, mm, and its outline there as a share of the
#: rim, to fill the endplates' cavities [M].
_CAPS = ((4.0, 0.55), (2.5, 0.80), (1.2, 0.95))
#: Distance behind the posterior wall from which on the arch is taken off, mm [M].
_BEHIND_WALL_MM = 3.0
#: Rims nearer to each other than this leave no disc space, mm [M].
_LEAST_GAP_MM = 0.2


def build_segment(
    name: str,
    patient: str,
    cranial: Vertebra,
    caudal: Vertebra,
    motion: np.ndarray,
    alignment: AlignmentPlan,
    spacing_mm: float,
    density_source: str,
    warnings: tuple[str, ...],
    posterior_reach_mm: float = 10.0,
) -> Segment:
    """Segment with the cranial vertebra moved by `motion` (patient frame) and all in the segment
    frame.

    Facets and processes are taken off both vertebrae (`without_processes`); the surfaces keep them.
    """
    lps = superior_frame(caudal)
    lower, upper = (
        without_processes(carry(vertebra, matrix, spacing_mm), posterior_reach_mm)
        for vertebra, matrix in ((caudal, inverse(lps)), (cranial, inverse(lps) @ motion))
    )
    return Segment(
        name=name,
        patient=patient,
        caudal=lower,
        cranial=upper,
        disc=disc_field(lower.superior, upper.inferior, spacing_mm),
        plan=alignment,
        lps_from_segment=lps,
        density_source=density_source,
        warnings=warnings,
    )


def without_processes(vertebra: Vertebra, reach_mm: float) -> Vertebra:
    """The vertebra with its body and pedicles, and of the arch what lies within `reach_mm` of the
    pedicles' level.

        φ ← max(φ, min(y − y_wall − 3 mm, |z − z_pedicle| − reach))      in the vertebra's own frame

    Facets, laminae beyond and processes carry nothing where neither facet contact nor ligaments are
    modelled. The facets' gap of a fraction of a millimetre would fuse on any grid (ten times too
    stiff in extension [M]), and such loose appendages double the solvers' iterations [M].
    """
    own = inverse(vertebra_frame(vertebra.superior, vertebra.inferior))
    wall = max(
        float(rigid(own, plate.rim_mm)[:, 1].max())
        for plate in (vertebra.superior, vertebra.inferior)
    )
    level = float(np.mean([rigid(own, axis)[:, 2].mean() for axis in vertebra.pedicles.values()]))
    point = rigid(own, vertebra.sdf.points())
    beyond = np.minimum(
        point[..., 1] - wall - _BEHIND_WALL_MM, np.abs(point[..., 2] - level) - reach_mm
    )
    values = np.maximum(np.asarray(vertebra.sdf.values, float), beyond).astype(np.float32)
    return replace(vertebra, sdf=replace(vertebra.sdf, values=values))


def carry(vertebra: Vertebra, matrix: np.ndarray, spacing_mm: float) -> Vertebra:
    """The vertebra under a rigid motion, its fields on a new axis-parallel grid with MARGIN_MM
    around the bone.

    The distance is interpolated by cubic splines, the density trilinearly.
    """
    surface = move_surface(matrix, vertebra.surface)
    origin, shape = grid_around(surface.points_mm, spacing_mm, MARGIN_MM)
    empty = VoxelField(np.empty(shape, np.float32), origin, spacing_mm)
    where = rigid(inverse(matrix), empty.points())
    return Vertebra(
        name=vertebra.name,
        surface=surface,
        sdf=VoxelField(vertebra.sdf.sample(where, order=3).astype(np.float32), origin, spacing_mm),
        density=VoxelField(vertebra.density.sample(where).astype(np.float32), origin, spacing_mm),
        superior=move_endplate(matrix, vertebra.superior),
        inferior=move_endplate(matrix, vertebra.inferior),
        pedicles={side: rigid(matrix, axis) for side, axis in vertebra.pedicles.items()},
        landmarks={key: rigid(matrix, point) for key, point in vertebra.landmarks.items()},
    )


def disc_field(lower: Endplate, upper: Endplate, spacing_mm: float) -> VoxelField:
    """Signed distance of the disc-space body: the loft between the caudal superior and the cranial
    inferior rim.

    It goes on past both rim planes, ever narrower, by 4 mm: concave endplates are filled, bone wins
    where they meet.
    """
    return surface_sdf(disc_surface(lower, upper), spacing_mm)


def disc_surface(lower: Endplate, upper: Endplate) -> Surface:
    """The loft as a closed surface: rings of the rims' points, rim to rim, and a fan at either end.

    Raises: ValueError when the rims cross, so that there is no disc space.
    """
    gap = (upper.rim_mm - lower.rim_mm) @ lower.normal
    if gap.min() <= _LEAST_GAP_MM:
        raise ValueError(
            f"the rims of the two endplates come within {gap.min():.1f} mm of each other at the"
            " planned pose; raise plan.height_middle_mm or lower the planned angles"
        )
    rings = [_ring(lower, -depth, scale) for depth, scale in _CAPS]
    rings += [lower.rim_mm + share * (upper.rim_mm - lower.rim_mm) for share in (0.0, 0.5, 1.0)]
    rings += [_ring(upper, -depth, scale) for depth, scale in reversed(_CAPS)]
    n, m = len(rings[0]), len(rings)
    points = np.concatenate([*rings, rings[0].mean(axis=0)[None], rings[-1].mean(axis=0)[None]])
    i, j = np.arange(n), (np.arange(n) + 1) % n
    faces = [np.stack([np.full(n, n * m), j, i], axis=-1)]
    for k in range(m - 1):
        a, b, c, d = k * n + i, k * n + j, (k + 1) * n + j, (k + 1) * n + i
        faces += [np.stack([a, b, c], axis=-1), np.stack([a, c, d], axis=-1)]
    faces.append(np.stack([np.full(n, n * m + 1), (m - 1) * n + i, (m - 1) * n + j], axis=-1))
    surface = Surface(points, np.concatenate(faces))
    return surface if volume_mm3(surface) > 0.0 else Surface(points, surface.faces[:, ::-1].copy())


def _ring(plate: Endplate, along_normal_mm: float, scale: float) -> np.ndarray:
    return (
        plate.centre_mm + scale * (plate.rim_mm - plate.centre_mm) + along_normal_mm * plate.normal
    )
