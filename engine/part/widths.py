"""What is measured on a lattice: solid volume, widths of struts and pores, overhang."""

from __future__ import annotations

import numpy as np
import trimesh
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from engine.part import drawing, volume
from engine.types import Surface

#: The medial axis lies between neighbours whose nearest surface points are apart by so many times
#: their distance from the surface, and by almost three samples; their chord is right across it when
#: it is so many times the larger distance (see medial_widths) [M].
_OPENING, _APART, _ACROSS = 1.6, 2.9, 1.2


def solid_mm3(values: np.ndarray, h: float) -> float:
    """Of what is negative, samples near the level counted in part (linear within half a voxel),
    mm³."""
    return float(np.clip(0.5 - values / h, 0.0, 1.0).sum(dtype=float) * h**3)


def medial_widths(
    values: np.ndarray, h: float, where: np.ndarray | None = None, margin: int = 0
) -> dict[str, float | None]:
    """Width of what is negative, right across its medial axis, mm: 1st percentile, median and most;
    null where there is none. Axis points less than `margin` samples from the grid's border, or not
    in `where`, do not count.

    The axis lies between neighbouring samples whose nearest surface points are far apart (Hesselink
    and Roerdink 2008): _OPENING times their distance (2 is right across, 1.41 the bisector of a
    right angle) and three samples. The width is the chord between the two points on the contour, at
    least the sum of both distances. Not for bars along the grid's axes, whose contour has too few
    points around.
    """
    inside = values < 0
    width = _axis_widths(values, h, inside if where is None else inside & where)
    # chords are short where the pair does not lie right across the axis: the widest of the
    # neighbours is the width
    inner = tuple(slice(margin, n - margin) for n in values.shape)
    widest = ndimage.maximum_filter(width, 3)[inner][width[inner] > 0]
    if not len(widest):
        return {"p1_mm": None, "median_mm": None, "most_mm": None}
    return {
        "p1_mm": float(np.percentile(widest, 1)),
        "median_mm": float(np.median(widest)),
        "most_mm": float(widest.max()),
    }


def _axis_widths(values: np.ndarray, h: float, counted: np.ndarray) -> np.ndarray:
    """The width at the samples beside the medial axis, mm, 0 elsewhere and where not counted."""
    distance, feet = ndimage.distance_transform_edt(values < 0, return_indices=True)
    tree = cKDTree(marching_cubes(volume.off_level(values, h), 0.0, spacing=(h, h, h))[0])
    width = np.zeros(values.shape, np.float32)
    for k in range(3):
        step = np.eye(3, dtype=int)[k]
        here, there = (
            tuple(s if j == k else slice(None) for j in range(3))
            for s in (slice(0, -1), slice(1, None))
        )
        apart = np.sqrt(sum((f[here] - f[there]).astype(np.float32) ** 2 for f in feet))
        far = np.maximum(_OPENING * np.maximum(distance[here], distance[there]), _APART)
        pairs = np.argwhere((apart > far) & counted[here] & counted[there])
        (first, a), (second, b) = (tree.query((pairs + end * step) * h) for end in (0, 1))
        chord = np.linalg.norm(tree.data[a] - tree.data[b], axis=1)
        across = chord > _ACROSS * np.maximum(first, second)
        for end in (0, 1):
            at = tuple((pairs[across] + end * step).T)
            np.maximum.at(width, at, np.maximum(chord, first + second)[across])
    return width


def overhang(mesh: Surface, build: np.ndarray, critical_deg: float = 45.0) -> dict[str, float]:
    """What hangs over (drawing.overhanging): area, its share of the whole surface, and the
    widest such patch (diameter of a disc of its area): short spans carry themselves."""
    t = trimesh.Trimesh(mesh.points_mm, mesh.faces, process=False)
    down, area = drawing.overhanging(t, build, critical_deg), t.area_faces
    pairs = t.face_adjacency[down[t.face_adjacency].all(1)]
    labels = trimesh.graph.connected_component_labels(pairs, node_count=len(area))
    patches = np.bincount(labels[down], weights=area[down], minlength=1)
    return {
        "area_mm2": float(area[down].sum()),
        "share": float(area[down].sum() / area.sum()),
        "widest_patch_mm": float(2 * np.sqrt(patches.max() / np.pi)),
    }
