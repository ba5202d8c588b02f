"""Repair of the last slivers, in turns until none is left: by moving nodes (each bad tetrahedron's
nodes try positions that raise the worst angle around them, interior nodes freely, others along
their interfaces), and by collapsing edges.

An edge a→b may collapse when b lies on every interface that a lies on, both have no neighbours in
common but round the edge (the link condition: the mesh stays a mesh), every tetrahedron around
keeps an angle that is better than the worst was, and no region changes by more than 2 % of what is
around. After Klingner and Shewchuk 2007, Aggressive tetrahedral mesh improvement.
"""

from __future__ import annotations

import numpy as np

from fem.mesh import tets as tt
from fem.mesh.regions import NAMES, RegionMap
from fem.mesh.snap import interfaces, project

#: Share of the volume around an edge by which its collapse may change a region.
_MOST_CHANGE = 0.02
#: Positions that a node tries in a sweep.
_TRIES = 24
#: Their reach over the mean edge around: in the first sweep, and its ratio of one sweep to the
#: one before it [M].
_REACH, _REACH_RATIO = 0.35, 0.85
#: A node is left where the worst angle around it is this far above the aim, degrees.
_MARGIN_DEG = 1.0


def _stars(tets: np.ndarray, nodes: np.ndarray) -> dict[int, np.ndarray]:
    """The tetrahedra around each of `nodes`."""
    hit = np.isin(tets, nodes)
    owner, corner = np.nonzero(hit)
    node = tets[owner, corner]
    order = np.argsort(node, kind="stable")
    node, owner = node[order], owner[order]
    start = np.searchsorted(node, nodes)
    end = np.searchsorted(node, nodes, side="right")
    return {int(n): owner[s:e] for n, s, e in zip(nodes, start, end, strict=True)}


def repair(
    regions: RegionMap,
    points_mm: np.ndarray,
    tets: np.ndarray,
    labels: np.ndarray,
    aim_deg: float,
    rounds: int = 4,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Raise the angles below aim_deg. Returns points, tets, labels and a line of what was
    reached."""
    random = np.random.default_rng(seed)
    x, start, collapsed = points_mm, tt.angle_or_inversion(points_mm, tets), 0
    for turn in range(rounds):
        x = _nodes_moved(regions, x, tets, labels, aim_deg, random)
        if turn == rounds - 1 or (tt.angle_or_inversion(x, tets) >= aim_deg).all():
            break
        x, tets, labels, count = edges_collapsed(x, tets, labels, aim_deg)
        collapsed += count
        if not count:
            break
    end = tt.angle_or_inversion(x, tets)
    text = (
        f"sliver repair: {(start < aim_deg).sum()} tetrahedra below {aim_deg:g} deg, worst"
        f" {start.min():.1f}; then {(end < aim_deg).sum()}, worst {end.min():.1f} ({collapsed}"
        " edges collapsed)"
    )
    return x, tets, labels, text


def _nodes_moved(
    regions: RegionMap,
    points_mm: np.ndarray,
    tets: np.ndarray,
    labels: np.ndarray,
    aim_deg: float,
    random: np.random.Generator,
    sweeps: int = 12,
) -> np.ndarray:
    """The points, with nodes of tetrahedra below aim_deg at the best of random positions around
    them (one of which is the mean of their neighbours)."""
    x = points_mm.copy()
    around = interfaces(len(x), tets, labels)
    kinds = around.touches.sum(1)
    for sweep in range(sweeps):
        angle = tt.angle_or_inversion(x, tets)
        bad = np.flatnonzero(angle < aim_deg)
        if len(bad) == 0:
            break
        nodes = np.unique(tets[bad])
        stars = _stars(tets, nodes)
        reach = _REACH * _REACH_RATIO**sweep
        for node in random.permutation(nodes):
            ring = stars[int(node)]
            worst = tt.angle_or_inversion(x, tets[ring]).min()
            if worst >= aim_deg + _MARGIN_DEG:
                continue
            edge = np.cbrt(np.abs(tt.volumes(x, tets[ring])).mean() * 6.0 * np.sqrt(2.0))
            trial = x[node] + random.normal(size=(_TRIES, 3)) * edge * reach * random.uniform(
                0.1, 1.0, (_TRIES, 1)
            )
            others = np.unique(tets[ring])
            trial[0] = 0.5 * (x[node] + x[others[others != node]].mean(0))
            if kinds[node] > 1:
                touches = np.repeat(around.touches[node][None], _TRIES, 0)
                trial = project(regions, trial, touches, edge)
            local = np.repeat(x[tets[ring]][None], _TRIES, 0)
            where = tets[ring] == node
            local[:, where] = trial[:, None]
            flat = local.reshape(-1, 3)
            cells = np.arange(len(flat)).reshape(-1, 4)
            score = tt.angle_or_inversion(flat, cells).reshape(_TRIES, -1).min(1)
            best = int(score.argmax())
            if score[best] > worst:
                x[node] = trial[best]
    return x


def edges_collapsed(
    x: np.ndarray, tets: np.ndarray, labels: np.ndarray, aim_deg: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Points, tets, labels with an edge of each tetrahedron below aim_deg collapsed where one may
    be, and how many were."""
    touches = interfaces(len(x), tets, labels).touches
    tets, alive = tets.copy(), np.ones(len(tets), bool)
    angle = tt.angle_or_inversion(x, tets)
    bad = np.flatnonzero(angle < aim_deg)
    bad = bad[np.argsort(angle[bad])]
    count = 0
    for cell in bad:
        if not alive[cell] or tt.angle_or_inversion(x, tets[cell][None])[0] >= aim_deg:
            continue
        ring = np.flatnonzero(alive & np.isin(tets, tets[cell]).any(1))
        best: tuple[float, int, int] | None = None
        for i in range(4):
            for j in range(4):
                a, b = int(tets[cell, i]), int(tets[cell, j])
                if i != j and (touches[a] <= touches[b]).all():
                    score = _score(x, tets[ring], labels[ring], a, b)
                    if score is not None and (best is None or score > best[0]):
                        best = score, a, b
        if best is not None:
            _, a, b = best
            mine = ring[(tets[ring] == a).any(1)]
            alive[mine[(tets[mine] == b).any(1)]] = False
            tets[mine] = np.where(tets[mine] == a, b, tets[mine])
            count += 1
    points, kept = tt.compact(x, tets[alive])
    return points, kept, labels[alive], count


def _score(x: np.ndarray, tets: np.ndarray, labels: np.ndarray, a: int, b: int) -> float | None:
    """The worst angle in degrees around node a after its collapse into b; None where that is not
    allowed. tets: all that have a node of the bad one."""
    has_a, has_b = (tets == a).any(1), (tets == b).any(1)
    gone, stays = has_a & has_b, has_a & ~has_b
    common = np.intersect1d(tets[has_a], tets[has_b])
    if len(common) != len(np.unique(tets[gone])):
        return None
    moved = np.where(tets[stays] == a, b, tets[stays])
    if not len(moved):
        return None
    worst = float(tt.angle_or_inversion(x, moved).min())
    if worst <= float(tt.angle_or_inversion(x, tets[has_a]).min()):
        return None
    before = np.bincount(labels[has_a], tt.volumes(x, tets[has_a]), minlength=len(NAMES))
    after = np.bincount(labels[stays], tt.volumes(x, moved), minlength=len(NAMES))
    return worst if np.abs(after - before).max() <= _MOST_CHANGE * before.sum() else None
