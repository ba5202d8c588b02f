"""Laws of disc, fibres, ligaments and facets of an intact segment, with their sources."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from fem.intact.connections import ToeLinear
from fem.intact.hyperelastic import Body, Fibres, Solid

NUCLEUS = 0
#: Remus 2021 (code read) [S16]. Nucleus: Yeoh; annulus: Mooney-Rivlin, its rings 1-4 from inside.
SOLIDS = {NUCLEUS: Solid(0.20, 180.0, c20=0.20, c30=6.0, mixed=True)} | {
    ring: Solid(0.18, 2.25, c01=0.045) for ring in (1, 2, 3, 4)
}
#: A collagen fibre's nominal stress; all fibres fill 16 % of the annulus, half of it in either
#: direction.
FIBRE_STRAIN = (0.004, 0.021, 0.045, 0.094, 0.25)
FIBRE_MPA = (0.0, 7.0, 20.0, 35.0, 51.0)
FIBRE_VOLUME = 0.16
#: Stiffness of the fibres, from the nucleus outwards (Schmidt 2006), at the middle of each ring;
#: angle to the endplates [M].
FIBRE_FACTOR = {ring: 0.65 + 0.35 * (ring - 0.5) / 4.0 for ring in (1, 2, 3, 4)}
FIBRE_ANGLE_DEG = 30.0
REMUS = {
    "ALL": ToeLinear(-0.03, 0.08, 485.0),
    "PLL": ToeLinear(0.12, 0.23, 290.0),
    "LF": ToeLinear(-0.03, 0.09, 30.0),
    "ISL": ToeLinear(-0.02, 0.05, 2.5),
    "SSL": ToeLinear(-0.08, 0.20, 28.0),
    "CL": ToeLinear(0.55, 0.95, 40.0),
    "ITL": ToeLinear(0.02, 0.10, 150.0),
}
#: Of the whole ligament (both sides of CL and ITL together).
PIECEWISE = {
    "ALL": ((0.122, 0.203), (347.0, 787.0, 1864.0)),
    "PLL": ((0.111, 0.23), (29.5, 61.7, 236.0)),
    "CL": ((0.25, 0.30), (36.0, 159.0, 384.0)),
    "LF": ((0.059, 0.49), (7.7, 9.6, 58.2)),
    "SSL": ((0.20, 0.25), (2.5, 5.3, 34.0)),
    "ISL": ((0.139, 0.20), (1.4, 1.5, 14.7)),
    "ITL": ((0.182, 0.233), (0.3, 1.8, 10.7)),
}
LIGAMENTS = ("remus2021", "piecewise")
#: Cartilage of E 3.5 MPa, ν 0.4 (Remus 2021) as a bonded thin layer of h = 2 × 0.8 mm [M]:
#: (1 − ν) E / ((1 + ν)(1 − 2ν)) / h.
FACET_MPA_PER_MM = 0.6 * 3.5 / (1.4 * 0.2) / 1.6
FACET_CLEARANCE_MM = 0.5  # [M]
#: Corners of a hexahedron's faces, the two across each of its local axes.
_FACES = np.array(
    [[[0, 3, 7, 4], [1, 2, 6, 5]], [[0, 1, 5, 4], [3, 2, 6, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]]]
)


def fibre_directions(
    points_mm: np.ndarray, hexes: np.ndarray, group: np.ndarray, ring: int, angle_deg: float
) -> np.ndarray:
    """Unit vectors [m of ring, 2, 3] at ±angle to the ring's circumference in its own surface.

    A ring is one element thick. Of an element's local axes the one nearest to the disc's axis is
    axial; of the others, the one whose faces look at another group or outside is radial. Raises
    ValueError where no such axis is clear.
    """
    x = points_mm[hexes]
    key = np.sort(hexes[:, _FACES], axis=-1).reshape(-1, 4)
    _, same, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    same = same.ravel()
    owner = np.repeat(np.arange(len(hexes)), 6)
    total = np.bincount(same, weights=group[owner])
    other = np.where(count[same] == 2, total[same] - group[owner], -1.0).reshape(len(hexes), 3, 2)
    along = np.stack([x[:, f[1]].mean(1) - x[:, f[0]].mean(1) for f in _FACES], 1)
    axis = np.linalg.svd(points_mm[np.unique(hexes)] - points_mm.mean(0), full_matrices=False)[2][2]
    mine = np.flatnonzero(group == ring)
    radial = (other[mine] != ring).all(2)
    if not (radial.sum(1) >= 1).all():
        raise ValueError(f"ring {ring} is not one element thick")
    upright = np.abs(along[mine] @ axis) / np.linalg.norm(along[mine], axis=2)
    axial = upright.argmax(1)
    radial[np.arange(len(mine)), axial] = False
    if not (radial.sum(1) == 1).all():
        raise ValueError(
            f"{int((radial.sum(1) != 1).sum())} elements of ring {ring} have no clear radial"
            " direction"
        )
    round_about = 3 - axial - radial.argmax(1)
    t = along[mine, round_about] / np.linalg.norm(along[mine, round_about], axis=1)[:, None]
    a = along[mine, axial]
    a = a - (a * t).sum(1)[:, None] * t
    a /= np.linalg.norm(a, axis=1)[:, None]
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.stack([c * t + s * a, c * t - s * a], 1)


def disc_body(
    points_mm: np.ndarray,
    hexes: np.ndarray,
    group: np.ndarray,
    order: int = 1,
    fibre_angle_deg: float = FIBRE_ANGLE_DEG,
) -> Body:
    """A disc of SOLIDS with the annulus' fibres: group 0 the nucleus, 1-4 its rings from inside,
    one element thick."""
    fibres = {
        ring: (
            Fibres(FIBRE_STRAIN, tuple(factor * s for s in FIBRE_MPA), 0.5 * FIBRE_VOLUME),
            fibre_directions(points_mm, hexes, group, ring, fibre_angle_deg),
        )
        for ring, factor in FIBRE_FACTOR.items()
    }
    return Body(points_mm, hexes, group, SOLIDS, fibres, order)


def plane_of(points_mm: np.ndarray) -> np.ndarray:
    """Unit normal [3] of the least-squares plane of points [n, 3], upwards (z > 0)."""
    normal = np.linalg.svd(points_mm - points_mm.mean(0), full_matrices=False)[2][2]
    return normal * np.sign(normal[2])


def ends_of(disc: Body) -> tuple[np.ndarray, np.ndarray]:
    """Nodes on the caudal and on the cranial endplate: of the outer faces that are nearly
    horizontal."""
    corners = disc.cell_nodes[:, :8]
    every = corners[:, _FACES].reshape(-1, 4)
    _, first, count = np.unique(
        np.sort(every, axis=1), axis=0, return_index=True, return_counts=True
    )
    outer = first[count == 1]
    x = disc.nodes_mm[every[outer]]
    normal = np.cross(x[:, 2] - x[:, 0], x[:, 3] - x[:, 1])
    normal /= np.linalg.norm(normal, axis=1)[:, None]
    inward = disc.nodes_mm[corners].mean(1)[outer // 6] - x.mean(1)
    normal *= -np.sign((normal * inward).sum(1))[:, None]
    ends = []
    for sign in (-1.0, 1.0):
        mine = outer[sign * normal[:, 2] > 0.6]
        face = every[mine]
        nodes = np.unique(face)
        if disc.cell_nodes.shape[1] > 8:  # also those in the middle of edges and faces
            x = disc.nodes_mm[disc.cell_nodes[mine // 6]]
            a, b, c, d = (disc.nodes_mm[face[:, k]] for k in range(4))
            mid = np.concatenate(
                [0.5 * (a + b), 0.5 * (b + c), 0.5 * (c + d), 0.5 * (d + a), 0.25 * (a + b + c + d)]
            )
            apart, which = cKDTree(disc.nodes_mm).query(mid)
            nodes = np.union1d(nodes, which[apart < 1e-6])
        ends.append(nodes)
    return ends[0], ends[1]
