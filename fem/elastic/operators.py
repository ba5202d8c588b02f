"""Linear elasticity on a tetrahedral mesh, assembled by SfePy, and the operators of loads, supports
and links.

    a(u, v) = ∫ λ div u div v + 2μ ε(u):ε(v)  +  ∫ κ w_s u·v  +  Σ_links (W_l u)ᵀ K_l (W_l v)

Everything that is integrated (moduli, patch weights, strains) lives at the same quadrature points,
so that a load on a patch is the exact transpose of that patch's mean rigid motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from sfepy.base.base import output
from sfepy.discrete import Equation, Equations, FieldVariable, Function, Integral, Material, Problem
from sfepy.discrete.conditions import Conditions
from sfepy.discrete.fem import FEDomain, Field, Mesh
from sfepy.terms import Term

from engine.types import BODIES, Patch
from fem.mesh.build import TetMesh


@dataclass(frozen=True)
class Discretisation:
    """A displacement field on a mesh with its quadrature.

    nodes_mm [k, 3]; cell_nodes [m, p]; shape [q, p] basis at the reference points; points_mm [m, q,
    3] and weight_mm3 [m, q] of the quadrature; labels [m]. Degrees of freedom: 3·node + component.
    """

    nodes_mm: np.ndarray
    cell_nodes: np.ndarray
    shape: np.ndarray
    points_mm: np.ndarray
    weight_mm3: np.ndarray
    labels: np.ndarray
    domain: Any
    field: Any
    integral: Any

    @property
    def dofs(self) -> int:
        return 3 * len(self.nodes_mm)


def discretise(mesh: TetMesh, order: int = 2, quadrature: int = 2) -> Discretisation:
    """SfePy's field of the given order (1 or 2) on the mesh; `quadrature` is the polynomial order
    integrated exactly.

    Hexahedra too (mesh.tets [m, 8], order 1, quadrature 3: 2×2×2 points), for images that are their
    own mesh. 2 is exact for the strain energy of a uniform element. Bone is not uniform: its stiff
    shell is thinner than an element, and four points in a tetrahedron of 5 mm miss it.
    """
    if order not in (1, 2):
        raise ValueError(f"order={order} is not supported; choose 1 or 2 (2 unless memory forbids)")
    output.set_output(quiet=True)
    data = Mesh.from_data(
        "segment",
        np.ascontiguousarray(mesh.points_mm, dtype=np.float64),
        None,
        [np.ascontiguousarray(mesh.tets, dtype=np.int32)],
        [np.asarray(mesh.labels, np.int32)],
        ["3_4" if mesh.tets.shape[1] == 4 else "3_8"],
    )
    domain = FEDomain("domain", data)
    omega = domain.create_region("Omega", "all")
    field = Field.from_args("displacement", np.float64, "vector", omega, approx_order=order)
    integral = Integral("i", order=quadrature)
    geometry, _ = field.get_mapping(omega, integral, "cell")
    cell_nodes = np.asarray(field.econn)
    shape = np.asarray(geometry.bf)[0, :, 0, :]
    nodes = np.asarray(field.get_coor())
    weight = np.asarray(geometry.det)[:, :, 0, 0]
    if weight.min() <= 0.0:
        raise ValueError(
            f"{(weight.min(1) <= 0).sum()} tetrahedra are inverted or flat; the mesh must pass its"
            " gate"
        )
    points = np.einsum("qp,mpd->mqd", shape, nodes[cell_nodes])
    return Discretisation(
        nodes, cell_nodes, shape, points, weight, mesh.labels, domain, field, integral
    )


def _variables(d: Discretisation) -> tuple[Any, Any]:
    return FieldVariable("u", "unknown", d.field), FieldVariable(
        "v", "test", d.field, primary_var_name="u"
    )


def stiffness(d: Discretisation, lame_lambda: np.ndarray, lame_mu: np.ndarray) -> sp.csr_matrix:
    """Stiffness matrix of the body alone, Lamé fields [m, q] in MPa at the quadrature points."""

    def values(
        ts: Any, coors: np.ndarray, mode: str | None = None, **kwargs: Any
    ) -> dict[str, np.ndarray] | None:
        if mode != "qp":
            return None
        return {"lam": lame_lambda.reshape(-1, 1, 1), "mu": lame_mu.reshape(-1, 1, 1)}

    material = Material("m", function=Function("moduli", values))
    u, v = _variables(d)
    omega = d.domain.regions["Omega"]
    term = Term.new(
        "dw_lin_elastic_iso(m.lam, m.mu, v, u)", d.integral, omega, m=material, v=v, u=u
    )
    problem = Problem(
        "elasticity", equations=Equations([Equation("balance", term)]), active_only=False
    )
    problem.set_bcs(ebcs=Conditions([]))
    problem.time_update()
    problem.update_materials()
    state = problem.create_state()
    matrix = problem.equations.eval_tangent_matrices(state(), problem.mtx_a)
    return sp.csr_matrix(matrix)


def strains(d: Discretisation, displacement: np.ndarray) -> np.ndarray:
    """Strain [m, q, 6] at the quadrature points of nodal displacements [k, 3] (Voigt,
    engineering shear)."""
    u = FieldVariable("s", "parameter", d.field, primary_var_name="(set-to-None)")
    u.set_data(np.ascontiguousarray(displacement).ravel())
    term = Term.new("ev_cauchy_strain(s)", d.integral, d.domain.regions["Omega"], s=u)
    term.setup()
    return np.asarray(term.evaluate(mode="qp"))[..., 0].reshape(*d.weight_mm3.shape, 6)


def isotropic_stress(
    strain: np.ndarray, lame_lambda: np.ndarray, lame_mu: np.ndarray
) -> np.ndarray:
    """σ = λ tr(ε) 1 + 2μ ε, Voigt with engineering shear."""
    trace = strain[..., :3].sum(-1)
    stress = np.empty_like(strain)
    stress[..., :3] = 2.0 * lame_mu[..., None] * strain[..., :3] + (lame_lambda * trace)[..., None]
    stress[..., 3:] = lame_mu[..., None] * strain[..., 3:]
    return stress


def patch_weights(d: Discretisation, patch: Patch) -> np.ndarray:
    """w·dV [m, q] of a patch: its weight on the bone of its body, mm³. Raises ValueError when it
    is empty."""
    bone = d.labels == BODIES.index(patch.body)
    weight = np.zeros(d.weight_mm3.shape)
    weight[bone] = patch.weight(d.points_mm[bone]) * d.weight_mm3[bone]
    if weight.sum() < 1.0:
        raise ValueError(
            f"the {patch.kind} patch of the {patch.body} vertebra at"
            f" {np.round(patch.centre_mm, 1).tolist()} mm holds {weight.sum():.2f} mm3 of bone;"
            " move it into the bone or enlarge it, or widen the crop box"
        )
    return weight


def _interpolation(
    d: Discretisation, weight: np.ndarray
) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Scalar interpolation [s, k] to the quadrature points of nonzero weight, their weights and
    positions."""
    cell, qp = np.nonzero(weight > 0.0)
    columns = d.cell_nodes[cell]
    rows = np.repeat(np.arange(len(cell)), columns.shape[1])
    matrix = sp.csr_matrix(
        (d.shape[qp].ravel(), (rows, columns.ravel())), shape=(len(cell), len(d.nodes_mm))
    )
    return matrix, weight[cell, qp], d.points_mm[cell, qp]


def skew(r: np.ndarray) -> np.ndarray:
    """[..., 3, 3] with skew(r) x = r × x."""
    zero = np.zeros(r.shape[:-1])
    return np.stack(
        [
            np.stack([zero, -r[..., 2], r[..., 1]], -1),
            np.stack([r[..., 2], zero, -r[..., 0]], -1),
            np.stack([-r[..., 1], r[..., 0], zero], -1),
        ],
        -2,
    )


def mean_motion(d: Discretisation, patch: Patch, point_mm: np.ndarray) -> sp.csr_matrix:
    """W [6, dofs]: least-squares rigid motion (u at point_mm, θ) of a patch, with weight w dV over
    its bone.

    c = ∫w x/∫w, ū = ∫w u/∫w, θ = J⁻¹ ∫ w r×u, J = ∫ w (|r|² 1 − r rᵀ), r = x − c, u(p) = ū + θ×(p −
    c). Its transpose takes a force and a moment about point_mm to nodal forces f = w (a + b×r) with
    that resultant.
    """
    n, w, x = _interpolation(d, patch_weights(d, patch))
    total = w.sum()
    c = w @ x / total
    r = x - c
    inertia = np.einsum("s,s,ij->ij", w, (r**2).sum(1), np.eye(3)) - np.einsum(
        "s,si,sj->ij", w, r, r
    )
    per_point = np.einsum("ij,sjk->sik", np.linalg.inv(inertia), w[:, None, None] * skew(r))
    rotation = per_point
    translation = (w / total)[:, None, None] * np.eye(3) + np.einsum(
        "ij,sjk->sik", -skew(np.asarray(point_mm, float) - c), rotation
    )
    blocks = np.concatenate([translation, rotation], axis=1)
    nt = n.T.tocsr()
    nodal = np.stack([nt @ blocks[:, i, :] for i in range(6)])
    return sp.csr_matrix(nodal.reshape(6, -1))


def foundation(
    d: Discretisation, patch: Patch, kappa: float
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Matrix of ∫ κ w u·v [dofs, dofs], and R [6, dofs]: support force and moment about the
    origin, R u."""
    n, w, x = _interpolation(d, patch_weights(d, patch))
    scalar = (n.T @ sp.diags(kappa * w) @ n).tocsr()
    force = np.broadcast_to(-np.eye(3), (len(w), 3, 3)) * (kappa * w)[:, None, None]
    blocks = np.concatenate([force, np.einsum("sij,sjk->sik", skew(x), force)], axis=1)
    nt = n.T.tocsr()
    resultant = np.stack([nt @ blocks[:, i, :] for i in range(6)])
    return sp.kron(scalar, np.eye(3), format="csr"), sp.csr_matrix(resultant.reshape(6, -1))


def nodal_resultant(nodes_mm: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Force and moment about the origin [6] of nodal forces [k, 3]."""
    return np.concatenate([forces.sum(0), np.cross(nodes_mm, forces).sum(0)])


def rigid_modes(nodes_mm: np.ndarray) -> np.ndarray:
    """The six rigid motions [dofs, 6]: three translations, three rotations about the nodes' mean
    (scaled)."""
    r = nodes_mm - nodes_mm.mean(0)
    r = r / max(np.abs(r).max(), 1e-12)
    translations = np.tile(np.eye(3), (len(r), 1))
    return np.hstack([translations, -skew(r).reshape(-1, 3)])
