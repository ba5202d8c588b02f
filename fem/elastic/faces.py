"""Triangles of a tetrahedral field with their own quadrature: tractions on them, and what one
body's face sees of another's.

    ∫ v·t dA   →   f_node = Σ_q N_node(q) t(q) w(q)

Six points of Dunavant's rule of degree 4 with positive weights integrate N·N of quadratic faces
exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from fem.elastic.operators import Discretisation
from fem.mesh.tets import face_pairs

#: Barycentric points and weights (sum 1), Dunavant 1985, degree 4.
_A, _B = 0.445948490915965, 0.091576213509771
_POINTS = np.array(
    [[1 - 2 * c if i == j else c for j in range(3)] for c in (_A, _B) for i in range(3)]
)
_WEIGHTS = np.repeat([0.223381589678011, 0.109951743655322], 3)
#: SfePy's order of the nodes in the middle of a quadratic tetrahedron's edges.
_MIDDLE = {(0, 1): 4, (1, 2): 5, (0, 2): 6, (0, 3): 7, (1, 3): 8, (2, 3): 9}


@dataclass(frozen=True)
class Faces:
    """nodes [f, p] (3 or 6), shape [q, p], points_mm and weight_mm2 [f, q(, 3)], normal [f, 3]
    out of the owner, owner [f]."""

    nodes: np.ndarray
    shape: np.ndarray
    points_mm: np.ndarray
    weight_mm2: np.ndarray
    normal: np.ndarray
    owner: np.ndarray

    def interpolation(self, n_nodes: int) -> sp.csr_matrix:
        """Scalar values at the points [f·q, n_nodes]."""
        f, (q, p) = len(self.nodes), self.shape.shape
        rows = np.repeat(np.arange(f * q), p)
        columns = np.broadcast_to(self.nodes[:, None, :], (f, q, p)).ravel()
        return sp.csr_matrix(
            (np.broadcast_to(self.shape, (f, q, p)).ravel(), (rows, columns)),
            shape=(f * q, n_nodes),
        )


def faces_of(d: Discretisation, owner: np.ndarray, vertices: np.ndarray) -> Faces:
    """The faces of tetrahedra `owner` [f] with the corner nodes `vertices` [f, 3], in the vertices'
    order.

    Raises: ValueError where a face is not of its tetrahedron.
    """
    cells = d.cell_nodes[owner]
    local = (cells[:, None, :4] == vertices[:, :, None]).argmax(2)
    if not np.array_equal(np.take_along_axis(cells, local, axis=1), vertices):
        raise ValueError("a face is not a face of the tetrahedron that is to own it")
    nodes = vertices
    if cells.shape[1] == 10:
        table = np.full((4, 4), -1)
        for (i, j), k in _MIDDLE.items():
            table[i, j] = table[j, i] = k
        middle = table[local, np.roll(local, -1, axis=1)]
        nodes = np.hstack([vertices, np.take_along_axis(cells, middle, axis=1)])
    x = d.nodes_mm[vertices]
    cross = np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
    area = 0.5 * np.linalg.norm(cross, axis=1)
    normal = cross / np.maximum(2.0 * area, 1e-300)[:, None]
    inward = d.nodes_mm[cells[:, :4]].mean(1) - x.mean(1)
    normal *= -np.sign(np.einsum("fi,fi->f", inward, normal))[:, None]
    points = np.einsum("qc,fci->fqi", _POINTS, x)
    return Faces(nodes, _basis(nodes.shape[1]), points, area[:, None] * _WEIGHTS, normal, owner)


def _basis(count: int) -> np.ndarray:
    if count == 3:
        return _POINTS
    ends = _POINTS * (2.0 * _POINTS - 1.0)
    return np.hstack([ends, 4.0 * _POINTS * np.roll(_POINTS, -1, axis=1)])


def boundary(d: Discretisation) -> tuple[np.ndarray, np.ndarray]:
    """Owners [f] and vertices [f, 3] of the faces with one tetrahedron."""
    faces, first, second = face_pairs(d.cell_nodes[:, :4])
    outer = second < 0
    return first[outer], faces[outer]


def traction(
    d: Discretisation, faces: Faces, of: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Nodal forces [dofs] of a traction of(points_mm [f, q, 3], normal [f, 1, 3]) → [f, q, 3],
    MPa."""
    values = of(faces.points_mm, faces.normal[:, None, :]) * faces.weight_mm2[..., None]
    nodal = faces.interpolation(len(d.nodes_mm)).T @ values.reshape(-1, 3)
    return np.asarray(nodal).ravel()
