"""Geometry and topology of tetrahedra: volumes, dihedral angles, faces, components, the starting
lattice.

Everything works on points [n, 3] (mm) and tets [m, 4] (positive orientation: the fourth point lies
on the side of the first three that their right-handed normal points to).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

#: The four faces of a tetrahedron, each opposite to the vertex of the same number, normals outward.
FACES = np.array([[1, 2, 3], [0, 3, 2], [0, 1, 3], [0, 2, 1]])
EDGES = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
#: The two faces that meet in each edge of EDGES.
_EDGE_FACES = np.array([[2, 3], [1, 3], [1, 2], [0, 3], [0, 2], [0, 1]])


def volumes(points_mm: np.ndarray, tets: np.ndarray) -> np.ndarray:
    """Signed volumes [m] in mm³: (b−a)·((c−a)×(d−a)) / 6."""
    a, b, c, d = (points_mm[tets[:, i]] for i in range(4))
    return np.einsum("ij,ij->i", b - a, np.cross(c - a, d - a)) / 6.0


def positive(points_mm: np.ndarray, tets: np.ndarray) -> np.ndarray:
    """The tetrahedra [m, 4], those of negative volume turned."""
    return np.where((volumes(points_mm, tets) < 0)[:, None], tets[:, [1, 0, 2, 3]], tets)


def dihedral_deg(points_mm: np.ndarray, tets: np.ndarray) -> np.ndarray:
    """The six dihedral angles [m, 6] in degrees, in the order of EDGES: 180° − angle between
    outward normals."""
    x = points_mm[tets]
    normals = np.cross(x[:, FACES[:, 1]] - x[:, FACES[:, 0]], x[:, FACES[:, 2]] - x[:, FACES[:, 0]])
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-300)
    cosine = -np.einsum("mek,mek->me", normals[:, _EDGE_FACES[:, 0]], normals[:, _EDGE_FACES[:, 1]])
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def shape_quality(points_mm: np.ndarray, tets: np.ndarray) -> np.ndarray:
    """Signed mean-ratio-like quality [m]: 6√2 V / l_rms³, 1 for the regular tetrahedron, ≤ 0
    when inverted."""
    x = points_mm[tets]
    square = ((x[:, EDGES[:, 0]] - x[:, EDGES[:, 1]]) ** 2).sum(-1).mean(-1)
    return 6.0 * np.sqrt(2.0) * volumes(points_mm, tets) / np.maximum(square, 1e-300) ** 1.5


def angle_or_inversion(points_mm: np.ndarray, tets: np.ndarray) -> np.ndarray:
    """Smallest dihedral angle [m] in degrees; of an inverted tetrahedron 100·shape_quality,
    which is ≤ 0 and grows towards 0 as it untangles."""
    quality = shape_quality(points_mm, tets)
    return np.where(quality > 0.0, dihedral_deg(points_mm, tets).min(1), 100.0 * quality)


def face_pairs(tets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All distinct faces: their vertices [f, 3] (as seen outward from the first tet), and the tets
    on both sides.

    Returns (faces, first [f], second [f]); second is −1 on the outer boundary.
    Raises ValueError when a face belongs to more than two tetrahedra.
    """
    every = tets[:, FACES].reshape(-1, 3)
    owner = np.repeat(np.arange(len(tets)), 4)
    key = np.sort(every, axis=1)
    order = np.lexsort((key[:, 2], key[:, 1], key[:, 0]))
    ordered = key[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.cumsum(new) - 1
    count = np.bincount(group)
    if count.max(initial=0) > 2:
        raise ValueError(
            f"{(count > 2).sum()} faces belong to more than two tetrahedra; the mesh is not"
            " conforming"
        )
    start = np.flatnonzero(new)
    first = owner[order[start]]
    second = np.full(len(start), -1)
    paired = count == 2
    second[paired] = owner[order[start[paired] + 1]]
    return every[order[start]], first, second


def components(tets: np.ndarray) -> np.ndarray:
    """Number of the face-connected component of each tetrahedron [m]."""
    _, first, second = face_pairs(tets)
    inner = second >= 0
    graph = coo_matrix(
        (np.ones(inner.sum()), (first[inner], second[inner])), shape=(len(tets),) * 2
    )
    return connected_components(graph, directed=False)[1]


def hinges(tets: np.ndarray) -> np.ndarray:
    """Tetrahedra [m] (bool) that hang on the rest by a vertex or an edge only, at one of their
    vertices.

    Around each vertex the tetrahedra are grouped by shared faces that contain it; all but the
    largest group hang.
    """
    faces, first, second = face_pairs(tets)
    inner = second >= 0
    corner = {}
    for name, owner in (("a", first[inner]), ("b", second[inner])):
        match = tets[owner][:, None, :] == faces[inner][:, :, None]
        corner[name] = (4 * owner[:, None] + match.argmax(2)).ravel()
    size = 4 * len(tets)
    graph = coo_matrix((np.ones(len(corner["a"])), (corner["a"], corner["b"])), shape=(size, size))
    group = connected_components(graph, directed=False)[1]
    vertex = np.zeros(group.max() + 1, int)
    vertex[group] = tets.ravel()
    count = np.bincount(group)
    order = np.lexsort((-count, vertex))
    largest = np.zeros(len(count), bool)
    largest[order[np.r_[True, vertex[order][1:] != vertex[order][:-1]]]] = True
    return (~largest)[group].reshape(-1, 4).any(1)


def compact(points_mm: np.ndarray, tets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop points that no tetrahedron uses."""
    used, inverse = np.unique(tets, return_inverse=True)
    return points_mm[used], inverse.reshape(tets.shape)


def node_graph(tets: np.ndarray, n_points: int) -> csr_matrix:
    """Symmetric boolean adjacency of points that share an edge, as sparse float ones."""
    i, j = tets[:, EDGES[:, 0]].ravel(), tets[:, EDGES[:, 1]].ravel()
    graph = coo_matrix(
        (np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), shape=(n_points, n_points)
    ).tocsr()
    graph.data[:] = 1.0
    return graph


_KUHN = np.array(
    [[0, 1, 3, 7], [0, 3, 2, 7], [0, 2, 6, 7], [0, 6, 4, 7], [0, 4, 5, 7], [0, 5, 1, 7]]
)


def bricks(axes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] (x slowest) and six positive tetrahedra a cell of a rectilinear grid, one
    diagonal for all (Kuhn)."""
    shape = tuple(len(a) for a in axes)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).astype(float)
    index = np.arange(len(points)).reshape(shape)
    corner = [
        index[i : shape[0] - 1 + i, j : shape[1] - 1 + j, k : shape[2] - 1 + k].ravel()
        for k in (0, 1)
        for j in (0, 1)
        for i in (0, 1)
    ]
    return points, positive(
        points,
        np.stack([np.stack([corner[c] for c in kuhn], 1) for kuhn in _KUHN], 1).reshape(-1, 4),
    )


def lattice(axes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Body-centred tetrahedra over a rectilinear grid.

    Each pair of neighbouring cells' centres makes four tetrahedra with the edges of the face
    between them: 12 per cell, all dihedral angles 60° or 90° where the cells are cubes. The
    outermost half cells stay empty.
    """
    shape = tuple(len(a) for a in axes)
    corner = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    middle = [0.5 * (a[1:] + a[:-1]) for a in axes]
    cells = tuple(n - 1 for n in shape)
    centre = np.stack(np.meshgrid(*middle, indexing="ij"), -1).reshape(-1, 3)
    corner_id = np.arange(len(corner)).reshape(shape)
    centre_id = np.arange(len(centre)).reshape(cells) + len(corner)
    tets = []
    for axis in range(3):
        lower = [slice(None)] * 3
        upper = [slice(None)] * 3
        lower[axis], upper[axis] = slice(None, -1), slice(1, None)
        a, b = centre_id[tuple(lower)].ravel(), centre_id[tuple(upper)].ravel()
        face = np.moveaxis(corner_id, axis, 0)[1:-1]
        u, v = (i for i in range(3) if i != axis)
        ring = [face[:, :-1, :-1], face[:, 1:, :-1], face[:, 1:, 1:], face[:, :-1, 1:]]
        ring = [np.moveaxis(r, 0, axis).ravel() for r in ring]
        assert u < v
        tets += [np.stack([a, b, ring[i], ring[(i + 1) % 4]], 1) for i in range(4)]
    points = np.vstack([corner, centre])
    return compact(points, positive(points, np.vstack(tets)))
