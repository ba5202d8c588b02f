"""Moving the nodes of region interfaces onto the true surfaces, without inverting a tetrahedron.

A node between regions a and b belongs on D_a = D_b: Newton on f = (D_a − D_b)/2 along its gradient.
A node of three or more regions solves all its differences at once (truncated pseudo-inverse:
near-tangent surfaces give no runaway step). A node on a sharp edge or corner of one interface goes
to the point that is nearest to the tangent planes of its faces (quadratic error function, as in
dual contouring; Ju et al. 2002, doi 10.1145/566654.566586).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fem.mesh import tets as tt
from fem.mesh.regions import NAMES, VOID, RegionMap

#: Normals of an interface that are farther apart than this make an edge.
_SHARP_COSINE = np.cos(np.radians(35.0))
#: Eigenvalues below this share of the largest fix no direction [M].
_SINGULAR = 0.12
#: Rows of a Jacobian below this share of the largest singular value are left out [M].
_NEAR_TANGENT = 0.3


@dataclass(frozen=True)
class Interfaces:
    """Faces [f, 3] between different regions (or region and void), their labels [f, 2], and per
    node the labels around it (touches [n, 6] bool)."""

    faces: np.ndarray
    pair: np.ndarray
    touches: np.ndarray

    @property
    def nodes(self) -> np.ndarray:
        """Nodes of two labels or more."""
        return np.flatnonzero(self.touches.sum(1) > 1)


def interfaces(n_points: int, tets: np.ndarray, labels: np.ndarray) -> Interfaces:
    """The faces where the label changes."""
    faces, first, second = tt.face_pairs(tets)
    other = np.where(second >= 0, labels[second], VOID)
    differs = labels[first] != other
    pair = np.sort(np.stack([labels[first[differs]], other[differs]], 1), 1)
    touches = np.zeros((n_points, len(NAMES)), bool)
    for corner in range(4):
        touches[tets[:, corner], labels] = True
    touches[faces[second < 0].ravel(), VOID] = True
    return Interfaces(faces[differs], pair, touches)


def _limited(step: np.ndarray, limit: np.ndarray | float) -> np.ndarray:
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    return step * np.minimum(1.0, np.reshape(limit, (-1, 1)) / np.maximum(length, 1e-12))


def project(
    regions: RegionMap,
    points_mm: np.ndarray,
    touches: np.ndarray,
    limit_mm: np.ndarray | float,
    steps: int = 2,
) -> np.ndarray:
    """Nearest positions of points [n, 3] on the interfaces of their labels (touches [n, 6]), no
    farther than limit_mm, by Newton's method."""
    start, x = points_mm, points_mm.copy()
    count = touches.sum(1)
    for _ in range(steps):
        value, slope = regions.linearised(x)
        step = np.zeros_like(x)
        for k in range(2, int(count.max(initial=0)) + 1):
            rows = np.flatnonzero(count == k)
            if len(rows) == 0:
                continue
            label = np.argsort(~touches[rows], axis=1, kind="stable")[:, :k]
            d = np.take_along_axis(value[rows], label, 1)
            g = np.take_along_axis(slope[rows], label[:, :, None], 1)
            f, jac = 0.5 * (d[:, :1] - d[:, 1:]), 0.5 * (g[:, :1] - g[:, 1:])
            inverse = np.linalg.pinv(jac, rcond=_NEAR_TANGENT)
            step[rows] = -np.einsum("nij,nj->ni", inverse, f)
        x = start + _limited(x + _limited(step, limit_mm) - start, limit_mm)
    return x


def sharp_targets(
    regions: RegionMap, points_mm: np.ndarray, around: Interfaces, limit_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of exactly two labels on a sharp edge of their interface, and where they belong.

    Minimises Σ_f (n_f·(x − p_f))² over the node's faces, p_f the projected face centres and n_f the
    surface normals there.
    """
    centre = points_mm[around.faces].mean(1)
    touches = np.zeros((len(centre), around.touches.shape[1]), bool)
    np.put_along_axis(touches, around.pair, True, 1)
    p = project(regions, centre, touches, limit_mm[around.faces].mean(1))
    slope = regions.linearised(p)[1]
    rows = np.arange(len(p))
    n = slope[rows, around.pair[:, 0]] - slope[rows, around.pair[:, 1]]
    n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
    size = len(points_mm)
    node = around.faces.ravel()
    face = np.repeat(rows, 3)
    matrix, rhs = np.zeros((size, 3, 3)), np.zeros((size, 3))
    mean, weight = np.zeros((size, 3)), np.zeros(size)
    np.add.at(weight, node, 1.0)
    np.add.at(mean, node, p[face])
    mean /= np.maximum(weight, 1.0)[:, None]
    np.add.at(matrix, node, n[face][:, :, None] * n[face][:, None, :])
    np.add.at(rhs, node, n[face] * np.einsum("ij,ij->i", n[face], p[face] - mean[node])[:, None])
    average = np.zeros((size, 3))
    np.add.at(average, node, n[face])
    average /= np.maximum(np.linalg.norm(average, axis=1, keepdims=True), 1e-9)
    lowest = np.ones(size)
    np.minimum.at(lowest, node, np.einsum("ij,ij->i", n[face], average[node]))
    sharp = np.flatnonzero(
        (around.touches.sum(1) == 2) & (lowest < _SHARP_COSINE**0.5) & (weight > 2)
    )
    value, vector = np.linalg.eigh(matrix[sharp])
    keep = value > _SINGULAR * value[:, -1:]
    inverse = np.where(keep, 1.0 / np.where(keep, value, 1.0), 0.0)
    local = np.einsum("nji,nj->ni", vector, rhs[sharp])
    target = mean[sharp] + np.einsum("nij,nj->ni", vector, inverse * local)
    # Along the directions that no plane fixes, stay where the node is.
    free = np.einsum("nji,nj->ni", vector, points_mm[sharp] - mean[sharp]) * ~keep
    target += np.einsum("nij,nj->ni", vector, free)
    return sharp, points_mm[sharp] + _limited(target - points_mm[sharp], limit_mm[sharp])


def move(
    points_mm: np.ndarray,
    tets: np.ndarray,
    target_mm: np.ndarray,
    floor: float,
    by_angle: bool = False,
    tries: int = 7,
) -> tuple[np.ndarray, np.ndarray]:
    """Move points towards their targets as far as every tetrahedron keeps its quality ≥ min(floor,
    0.9·before): shape_quality, or with by_angle the smallest dihedral angle in degrees
    (tets.angle_or_inversion).

    Halves the step of the nodes of a tetrahedron that would fall below, at last leaves them.
    Returns the new points and the share of the step that each made.
    """
    step = target_mm - points_mm
    share = np.ones(len(points_mm))
    quality = tt.angle_or_inversion if by_angle else tt.shape_quality
    before = quality(points_mm, tets)
    allowed = np.minimum(floor, before - 0.1 * np.abs(before))
    active = np.flatnonzero((np.abs(step).max(1) > 1e-9)[tets].any(1))
    check = active
    for attempt in range(tries + 8):
        trial = points_mm + share[:, None] * step
        low = check[quality(trial, tets[check]) < allowed[check]]
        if len(low) == 0:
            return trial, share
        culprits = np.unique(tets[low])
        share[culprits] = 0.5 * share[culprits] if attempt < tries else 0.0
        changed = np.zeros(len(points_mm), bool)
        changed[culprits] = True
        check = active[changed[tets[active]].any(1)]
    share[:] = 0.0
    return points_mm.copy(), share


def snap(
    regions: RegionMap,
    points_mm: np.ndarray,
    tets: np.ndarray,
    labels: np.ndarray,
    size_mm: np.ndarray,
    rounds: int,
    floor: float,
    smooth: float = 0.5,
    by_angle: bool = False,
) -> np.ndarray:
    """Interface nodes onto the surfaces, the others and the interface nodes' tangential position
    smoothed.

    size_mm [n] is the local edge length; no node moves farther than 0.8 of it in a round.
    """
    around = interfaces(len(points_mm), tets, labels)
    on = around.nodes
    inner = around.touches.sum(1) == 1
    graph = tt.node_graph(tets, len(points_mm))
    # On an interface average only over neighbours with the same labels or more, so that curves stay
    # curves.
    i, j = graph.nonzero()
    superset = (around.touches[i] <= around.touches[j]).all(1)
    keep = inner[i] | superset
    graph.data[:] = keep
    graph.eliminate_zeros()
    degree = np.maximum(np.asarray(graph.sum(1)).ravel(), 1.0)
    lonely = np.asarray(graph.sum(1)).ravel() < 2
    lonely |= around.touches[:, VOID] & inner  # the outer nodes of a void layer stay
    x = points_mm
    for turn in range(rounds):
        target = x.copy()
        if smooth > 0.0 and turn < rounds - 1:
            target += smooth * ((graph @ x) / degree[:, None] - x)
            target[lonely] = x[lonely]
        steps = 2 if turn < rounds - 1 else 3
        target[on] = project(regions, target[on], around.touches[on], 0.8 * size_mm[on], steps)
        sharp, corner = sharp_targets(regions, x, around, 0.8 * size_mm)
        target[sharp] = corner
        x, _ = move(x, tets, target, floor, by_angle)
    return x


def relabel(
    regions: RegionMap,
    points_mm: np.ndarray,
    tets: np.ndarray,
    labels: np.ndarray,
    size_mm: float,
    passes: int = 3,
) -> tuple[np.ndarray, int]:
    """Change labels at the interfaces where that lowers the energy

        E = Σ_faces area·[labels differ] + (8/size) Σ_tets V·D_label(centroid)

    so that tetrahedra on the wrong side of a surface, and flat ones that hold back a node of a
    jagged interface or triple curve, change region (flat ones at no cost in volume). Returns the
    labels and the number changed.
    """
    around = interfaces(len(points_mm), tets, labels)
    near = np.flatnonzero((around.touches.sum(1) > 1)[tets].any(1))
    value = regions.distances(points_mm[tets[near]].mean(1))
    volume = tt.volumes(points_mm, tets[near])
    faces, first, second = tt.face_pairs(tets)
    triangle = points_mm[faces]
    area = 0.5 * np.linalg.norm(
        np.cross(triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]), axis=1
    )
    inner = second >= 0
    a, b, area = first[inner], second[inner], area[inner]
    row = np.full(len(tets), -1)
    row[near] = np.arange(len(near))
    labels, total = labels.copy(), 0
    for _ in range(passes):
        shared = np.zeros((len(near), len(NAMES)))
        for mine, other in ((a, b), (b, a)):
            use = row[mine] >= 0
            np.add.at(shared, (row[mine[use]], labels[other[use]]), area[use])
        energy = -shared + 8.0 / size_mm * volume[:, None] * value
        energy[shared <= 0.0] = np.inf
        current = labels[near]
        now = (
            -shared[np.arange(len(near)), current]
            + 8.0 / size_mm * volume * value[np.arange(len(near)), current]
        )
        best = energy.argmin(1)
        gain = now - energy[np.arange(len(near)), best]
        change = np.zeros(len(tets))
        change[near] = np.where((best != current) & (gain > 1e-3 * size_mm**2), gain, 0.0)
        # Of two neighbours only the one with more to gain.
        loses = change[a] < change[b]
        blocked = np.zeros(len(tets), bool)
        both = (change[a] > 0) & (change[b] > 0)
        blocked[a[both & loses]] = True
        blocked[b[both & ~loses]] = True
        flip = (change[near] > 0) & ~blocked[near]
        if not flip.any():
            break
        labels[near[flip]] = best[flip]
        total += int(flip.sum())
    return labels, total
