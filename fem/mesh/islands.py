"""What a labelled mesh must not have: spikes and specks of a region, islands, parts that hang on a
vertex or an edge."""

from __future__ import annotations

import logging

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from engine.types import BODIES, REGIONS
from fem.mesh import tets as tt
from fem.mesh.quality import MeshError
from fem.mesh.regions import NAMES, VOID

log = logging.getLogger("spinefit.fem")
#: Of island_mm3: a smaller part of a region, inside others, is a speck [M].
_SPECK = 0.15
#: Share of a bone that may be lost [M].
_BONE_LOSS = 0.15
#: Dropping what hangs can leave something else hanging.
_MOST_PASSES = 12


def note(lines: list[str], text: str) -> None:
    """Log what was done to a mesh, and add it to its lines."""
    log.info(text)
    lines.append(text)


def smooth_labels(tets: np.ndarray, labels: np.ndarray, passes: int = 4) -> np.ndarray:
    """Labels [m] where a tetrahedron has the label that three or four of its neighbours share: no
    spikes in the interfaces."""
    _, first, second = tt.face_pairs(tets)
    inner = second >= 0
    a, b = first[inner], second[inner]
    labels = labels.copy()
    for _ in range(passes):
        votes = np.zeros((len(labels), len(NAMES)), int)
        np.add.at(votes, (a, labels[b]), 1)
        np.add.at(votes, (b, labels[a]), 1)
        best = votes.argmax(1)
        change = (votes.max(1) >= 3) & (best != labels)
        # Not two neighbours at once: they would only swap.
        blocked = np.zeros(len(labels), bool)
        blocked[b[change[a] & change[b]]] = True
        change &= ~blocked
        if not change.any():
            break
        labels[change] = best[change]
    return labels


def drop_islands(
    points: np.ndarray, tets: np.ndarray, labels: np.ndarray, island_mm3: float, lines: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, tets, labels without what is not tied by faces to the largest component; specks
    inside another region take its label. What was done is added to `lines`.

    Raises MeshError when more than island_mm3 of a region other than bone would be lost, or more
    than 15 % of a bone (bone is cut loose by the crop box).
    """
    volume = tt.volumes(points, tets)
    labels = _without_specks(points, tets, labels, volume, _SPECK * island_mm3, lines)
    group = tt.components(tets)
    total = np.bincount(group, volume)
    region_total = np.bincount(labels, volume, minlength=VOID)
    for loose in np.flatnonzero(np.arange(len(total)) != total.argmax()):
        members = group == loose
        for region in np.unique(labels[members]):
            lost = volume[members & (labels == region)].sum()
            where = points[tets[members]].mean((0, 1)).round(1).tolist()
            bone = region < len(BODIES)
            most_mm3 = max(island_mm3, _BONE_LOSS * region_total[region]) if bone else island_mm3
            if lost > most_mm3:
                raise MeshError(
                    f"region {REGIONS[region]}: {lost:.0f} mm3 at {where} hang on nothing; it must"
                    " touch the rest"
                )
            note(lines, f"island of {REGIONS[region]}, {lost:.1f} mm3 at {where}, removed")
    keep = group == total.argmax()
    points, tets = tt.compact(points, tets[keep])
    return points, tets, labels[keep]


def _without_specks(
    points: np.ndarray,
    tets: np.ndarray,
    labels: np.ndarray,
    volume: np.ndarray,
    speck_mm3: float,
    lines: list[str],
) -> np.ndarray:
    """Labels where a part of a region smaller than speck_mm3 that others enclose has the label that
    it shares most faces with."""
    _, first, second = tt.face_pairs(tets)
    inner = second >= 0
    same = inner & (labels[first] == labels[np.maximum(second, 0)])
    graph = coo_matrix((np.ones(same.sum()), (first[same], second[same])), shape=(len(tets),) * 2)
    part = connected_components(graph, directed=False)[1]
    part_volume = np.bincount(part, volume)
    labels = labels.copy()
    a, b = first[inner & ~same], second[inner & ~same]
    for speck in np.flatnonzero(part_volume < speck_mm3):
        members = part == speck
        around = np.r_[labels[b[members[a]]], labels[a[members[b]]]]
        if len(around):
            old = labels[members][0]
            labels[members] = np.bincount(around, minlength=VOID).argmax()
            note(
                lines,
                f"speck of {REGIONS[old]}, {part_volume[speck]:.1f} mm3 at"
                f" {points[tets[members]].mean((0, 1)).round(1).tolist()}, given to"
                f" {REGIONS[labels[members][0]]}",
            )
    return labels


def without_hinges(
    points: np.ndarray,
    tets: np.ndarray,
    labels: np.ndarray,
    island_mm3: float,
    lines: list[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop what hangs on a vertex or edge only (bones that nearly touch), where MMG inverts
    tetrahedra or loops; and islands, as drop_islands does."""
    lost = 0.0
    for _ in range(_MOST_PASSES):
        points, tets, labels = drop_islands(points, tets, labels, island_mm3, lines)
        hanging = tt.hinges(tets)
        if not hanging.any():
            break
        lost += float(tt.volumes(points, tets[hanging]).sum())
        points, tets, labels = *tt.compact(points, tets[~hanging]), labels[~hanging]
    if lost:
        note(lines, f"{lost:.1f} mm3 that hung on vertices or edges only were dropped")
    return points, tets, labels
