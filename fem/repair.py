"""Repair of the last slivers by moving nodes: each bad tetrahedron's nodes try positions that raise the worst angle
around them. Interior nodes move freely, nodes of one smooth interface along it (and back onto it), others stay.
"""

from __future__ import annotations

import numpy as np

from fem import tets as tt
from fem.regions import RegionMap
from fem.snap import interfaces, project


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
    sweeps: int = 12,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Raise the angles below aim_deg. Returns points, tets, labels and a line of what was reached."""
    x = points_mm.copy()
    random = np.random.default_rng(seed)
    around = interfaces(len(x), tets, labels)
    kinds = around.touches.sum(1)
    start = tt.angle_or_inversion(x, tets)
    for sweep in range(sweeps):
        angle = tt.angle_or_inversion(x, tets)
        bad = np.flatnonzero(angle < aim_deg)
        if len(bad) == 0:
            break
        nodes = np.unique(tets[bad])
        stars = _stars(tets, nodes)
        reach = 0.35 * 0.85**sweep
        for node in random.permutation(nodes):
            ring = stars[int(node)]
            worst = tt.angle_or_inversion(x, tets[ring]).min()
            if worst >= aim_deg + 1.0:
                continue
            edge = np.cbrt(np.abs(tt.volumes(x, tets[ring])).mean() * 6.0 * np.sqrt(2.0))
            tries = 24
            trial = x[node] + random.normal(size=(tries, 3)) * edge * reach * random.uniform(0.1, 1.0, (tries, 1))
            others = np.unique(tets[ring])
            trial[0] = 0.5 * (x[node] + x[others[others != node]].mean(0))
            if kinds[node] > 1:
                touches = np.repeat(around.touches[node][None], tries, 0)
                trial = project(regions, trial, touches, edge)
            local = np.repeat(x[tets[ring]][None], tries, 0)
            where = tets[ring] == node
            local[:, where] = trial[:, None]
            flat = local.reshape(-1, 3)
            cells = np.arange(len(flat)).reshape(-1, 4)
            score = tt.angle_or_inversion(flat, cells).reshape(tries, -1).min(1)
            best = int(score.argmax())
            if score[best] > worst:
                x[node] = trial[best]
    end = tt.angle_or_inversion(x, tets)
    text = (
        f"sliver repair: {(start < aim_deg).sum()} tetrahedra below {aim_deg:g} deg, worst {start.min():.1f}; "
        f"then {(end < aim_deg).sum()}, worst {end.min():.1f}"
    )
    return x, tets, labels, text
