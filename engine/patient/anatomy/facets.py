"""Facet joints and the tips of the processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from engine.patient.anatomy.sections import FLARE_MM, SIDES, SectionedBone, vertex_normals
from engine.patient.geometry.frames import unit
from engine.types import Vertebra, VoxelField, rigid

#: A joint's two surfaces are closer than this (cartilage 1-2 mm a side at most, and open joints)
#: [M].
FACET_GAP_MM = 4.0
_FACET_MM2 = 20.0


@dataclass(frozen=True)
class Facet:
    """One joint surface: normal out of this bone, gap to the neighbour (area mean, 5th
    percentile)."""

    centre_mm: np.ndarray
    normal: np.ndarray
    area_mm2: float
    gap_mean_mm: float
    gap_least_mm: float
    sagittal_plane_deg: float


# -- facets and processes --------------------------------------------------------------------------


def facet(bone: SectionedBone, other: Vertebra | None, word: str, side: str) -> Facet:
    if other is None:
        raise ValueError(
            f"{bone.name}: needs the vertebra {word}; a facet cannot be told from its process on"
            " one bone alone"
        )
    own, sign = bone.points, SIDES[side]
    candidates = np.flatnonzero((own[:, 1] > bone.wall_mm + 2.0) & (sign * own[:, 0] > 5.0))
    points = bone.vertebra.surface.points_mm[candidates]
    field_ = VoxelField(
        np.asarray(other.sdf.values, float), other.sdf.origin_mm, other.sdf.spacing_mm
    )
    gap = field_.sample(points)
    near = gap < FACET_GAP_MM
    candidates, points, gap = candidates[near], points[near], gap[near]
    steps = 0.5 * np.eye(3)
    slope = np.stack(
        [field_.sample(points + step) - field_.sample(points - step) for step in steps], axis=-1
    )
    normals, areas = vertex_normals(bone.vertebra.surface)
    facing = np.einsum("ij,ij->i", normals[candidates], slope) < -0.5
    candidates, gap = candidates[facing], gap[facing]
    if len(gap):
        # cartilages are of even thickness: what gapes more than that over the least gap is the
        # joint's flared edge
        even = gap < np.percentile(gap, 5.0) + FLARE_MM
        candidates, gap = candidates[even], gap[even]
    patch = _largest_patch(bone.vertebra.surface.faces, candidates, areas)
    area = float(areas[candidates[patch]].sum())
    if area < _FACET_MM2:
        raise ValueError(
            f"{bone.name}: only {area:.0f} mm² of the {side} side lie within {FACET_GAP_MM:g} mm of"
            f" {other.name} and face it (at least {_FACET_MM2:g}); the joint is wide open, cut off"
            " or removed"
        )
    vertices, gap = candidates[patch], gap[patch]
    weight = areas[vertices] / area
    normal = unit(weight @ normals[vertices])
    flat = bone.to_own[:3, :3] @ normal
    return Facet(
        centre_mm=weight @ bone.vertebra.surface.points_mm[vertices],
        normal=normal,
        area_mm2=area,
        gap_mean_mm=float(weight @ gap),
        gap_least_mm=float(np.percentile(gap, 5.0)),
        sagittal_plane_deg=float(np.degrees(np.arctan2(abs(flat[1]), abs(flat[0])))),
    )


def _largest_patch(faces: np.ndarray, vertices: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Indices into `vertices` of the largest patch that the mesh's edges connect."""
    if not len(vertices):
        return np.zeros(0, int)
    place = np.full(len(areas), -1)
    place[vertices] = np.arange(len(vertices))
    edges = place[np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])]
    edges = edges[(edges >= 0).all(axis=1)]
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(vertices), len(vertices)))
    count, which = connected_components(graph, directed=False)
    size = np.bincount(which, weights=areas[vertices], minlength=count)
    return np.flatnonzero(which == int(np.argmax(size)))


def process_tips(bone: SectionedBone) -> dict[str, Callable[[], np.ndarray]]:
    """Extreme points of the processes: how to find each."""
    own, surface = bone.points, bone.vertebra.surface.points_mm
    behind = own[:, 1] > bone.wall_mm + 4.0

    def extreme(where: np.ndarray, score: np.ndarray) -> np.ndarray:
        if not where.any():
            raise ValueError(f"{bone.name}: no bone is there; the posterior elements are cut off")
        return np.asarray(surface[int(np.argmax(np.where(where, score, -np.inf)))])

    def spinous() -> np.ndarray:
        found = bone.vertebra.landmarks.get("spinous_tip")
        return (
            extreme(behind, own[:, 1] - 0.5 * np.abs(own[:, 0]))
            if found is None
            else np.asarray(found, float)
        )

    def transverse(sign: float) -> np.ndarray:
        # the process may spring from the pedicle, level with the posterior wall
        tip = extreme((own[:, 1] > bone.wall_mm - 5.0) & (sign * own[:, 0] > 0.0), sign * own[:, 0])
        reach = sign * rigid(bone.to_own, tip)[0]
        if reach < bone.half_width_mm + 4.0:
            raise ValueError(
                f"{bone.name}: no transverse process; nothing reaches more than {reach:.0f} mm from"
                f" the midline, the body itself {bone.half_width_mm:.0f} mm"
            )
        return tip

    def articular(sign: float, up: float) -> np.ndarray:
        lateral = sign * own[:, 0]
        return extreme(
            behind & (lateral > 5.0) & (lateral < bone.half_width_mm + 4.0), up * own[:, 2]
        )

    makers: dict[str, Callable[[], np.ndarray]] = {"spinous_tip": spinous}
    for side, sign in SIDES.items():
        makers[f"transverse_{side}"] = partial(transverse, sign)
        makers[f"superior_articular_{side}"] = partial(articular, sign, 1.0)
        makers[f"inferior_articular_{side}"] = partial(articular, sign, -1.0)
    return makers
