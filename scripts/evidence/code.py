"""Code verification of the check (fem/): closed forms and NAFEMS benchmarks on its own tetrahedra,
straight-sided and quadratic.

manufactured   u of sines, λ and μ varying, on a cube: orders p + 1 (displacement, L2) and p
               (energy)
lame           thick cylinder under inner pressure, plane strain, ν 0.3 and 0.4999: radial
               displacement and hoop stress inside
kirsch         plate with a hole, plane strain, exact tractions around: peak stress 3
NAFEMS LE1     elliptic membrane, plane stress (half a slab of 0.04; one of 0.2 is 1.4 % off): σ_yy
               = 92.7 MPa at D
NAFEMS LE10    thick elliptic plate under pressure: σ_yy = −5.38 MPa at D

Sources: NAFEMS, The Standard NAFEMS Benchmarks, 1990; Timoshenko & Goodier, Theory of Elasticity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from engine.materials import lame
from fem.elastic import operators as el
from fem.elastic.faces import boundary, faces_of, traction
from fem.elastic.factor import Factor
from fem.mesh.build import TetMesh
from fem.mesh.tets import bricks, positive

#: Elements across at the coarsest of three meshes.
STEPS = (1, 2, 4)


@dataclass(frozen=True)
class Problem:
    """A uniform body: its field, stiffness and Lamé constants."""

    d: el.Discretisation
    matrix: sp.csr_matrix
    lam: np.ndarray
    mu: np.ndarray

    @staticmethod
    def of(
        points: np.ndarray, tets: np.ndarray, lam: Any, mu: Any, order: int = 2, quadrature: int = 2
    ) -> Problem:
        """lam, mu: numbers, or functions of points [..., 3]."""
        d = el.discretise(
            TetMesh(points, positive(points, tets), np.zeros(len(tets), int)), order, quadrature
        )
        values = [
            np.asarray(f(d.points_mm)) if callable(f) else np.full(d.weight_mm3.shape, float(f))
            for f in (lam, mu)
        ]
        return Problem(d, el.stiffness(d, *values), *values)

    def solved(
        self, f: np.ndarray, fixed: np.ndarray, values: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """u [k, 3] under nodal forces f [dofs], with u = values where `fixed` [k, 3] (bool)."""
        u = np.where(fixed, values, 0.0).ravel()
        free = ~fixed.ravel()
        right = (f - self.matrix @ u)[free]
        with Factor(self.matrix[free][:, free].tocsr(), []) as factor:
            u[free] = factor.solve(right[:, None])[:, 0]
        return u.reshape(-1, 3)

    def stress_at(self, u: np.ndarray, point: np.ndarray) -> np.ndarray:
        """σ [6] at the vertex nearest to a point: each tetrahedron's linear fit carried to it,
        mean by volume."""
        d = self.d
        vertex = int(
            np.linalg.norm(d.nodes_mm[: d.cell_nodes[:, :4].max() + 1] - point, axis=1).argmin()
        )
        cells = np.flatnonzero((d.cell_nodes[:, :4] == vertex).any(1))
        stress = el.isotropic_stress(el.strains(d, u), self.lam, self.mu)
        total, weight = np.zeros(6), 0.0
        for cell in cells:
            x = d.points_mm[cell] - d.nodes_mm[vertex]
            basis = np.column_stack([np.ones(len(x)), x])
            here = np.linalg.lstsq(basis, stress[cell], rcond=None)[0][0]
            total, weight = (
                total + d.weight_mm3[cell].sum() * here,
                weight + d.weight_mm3[cell].sum(),
            )
        return np.asarray(total / weight)

    def pushed(
        self,
        where: Callable[[np.ndarray], np.ndarray],
        of: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Nodal forces of the traction of(points, normal) on the outer faces whose corners [f,
        3, 3] are all `where`."""
        owner, vertices = boundary(self.d)
        chosen = where(self.d.nodes_mm[vertices]).all(1)
        return traction(self.d, faces_of(self.d, owner[chosen], vertices[chosen]), of)


@dataclass(frozen=True)
class Row:
    """One quantity: its target, the values on meshes of falling size, unknowns of the last, and
    what the last may be off."""

    case: str
    quantity: str
    target: float
    values: tuple[float, ...]
    dofs: int
    limit_percent: float = 2.0

    @property
    def error_percent(self) -> float:
        return 100.0 * (self.values[-1] / self.target - 1.0)


# -- manufactured solution -------------------------------------------------------------------------
def _exact(x: jax.Array) -> jax.Array:
    a, b, c = jnp.pi * x
    return jnp.stack(
        [
            jnp.sin(a) * jnp.cos(b) * jnp.sin(c + 0.3),
            jnp.cos(a + 0.2) * jnp.sin(b) * c,
            jnp.sin(a * b / 3.0) + 0.5 * c**2,
        ]
    )


def _lam(x: Any) -> Any:
    return 2.0 + x[..., 0] + 0.5 * x[..., 2] ** 2


def _mu(x: Any) -> Any:
    return 1.0 + 0.5 * x[..., 1] * x[..., 2]


def _stress(x: jax.Array) -> jax.Array:
    grad = jax.jacfwd(_exact)(x)
    strain = 0.5 * (grad + grad.T)
    return _lam(x) * jnp.trace(strain) * jnp.eye(3) + 2.0 * _mu(x) * strain


def _force(x: jax.Array) -> jax.Array:
    return -jnp.trace(jax.jacfwd(_stress)(x), axis1=1, axis2=2)


def manufactured(order: int, cells: tuple[int, ...] = (4, 8, 16)) -> dict[str, tuple[float, ...]]:
    """Errors of displacement (L2) and strain (energy norm) over the solution's, by number of
    cells a side."""
    l2, energy = [], []
    with jax.enable_x64(True):
        flat = jax.jit(jax.vmap(_exact)), jax.jit(jax.vmap(_force)), jax.jit(jax.vmap(_stress))
        for n in cells:
            points, tets = bricks([np.linspace(0.0, 1.0, n + 1)] * 3)
            p = Problem.of(points, tets, _lam, _mu, order, 6)
            d = p.d
            u, f, s = (np.asarray(g(d.points_mm.reshape(-1, 3))) for g in flat)
            at = d.weight_mm3[..., None] * f.reshape(*d.points_mm.shape)
            load = np.zeros((len(d.nodes_mm), 3))
            np.add.at(load, d.cell_nodes, np.einsum("qp,mqc->mpc", d.shape, at))
            outer = np.abs(d.nodes_mm - 0.5).max(axis=1) > 0.5 - 1e-9
            got = p.solved(
                load.ravel(), np.repeat(outer[:, None], 3, 1), np.asarray(flat[0](d.nodes_mm))
            )
            there = np.einsum("qp,mpc->mqc", d.shape, got[d.cell_nodes])
            difference = ((there - u.reshape(there.shape)) ** 2).sum(-1)
            l2.append(
                float(
                    np.sqrt(
                        (d.weight_mm3 * difference).sum() / (d.weight_mm3.ravel() @ (u**2).sum(1))
                    )
                )
            )
            stress = s.reshape(*d.weight_mm3.shape, 3, 3)
            voigt = np.stack(
                [stress[..., i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], -1
            )
            off = el.isotropic_stress(el.strains(d, got), p.lam, p.mu) - voigt

            def norm2(v: np.ndarray, p: Problem = p) -> float:
                pressure = v[..., :3].sum(-1) / 3.0
                square = (v[..., :3] ** 2).sum(-1) + 2.0 * (v[..., 3:] ** 2).sum(-1)
                bulk = p.lam + 2.0 / 3.0 * p.mu
                return float(
                    (
                        p.d.weight_mm3
                        * ((square - 3.0 * pressure**2) / (2.0 * p.mu) + pressure**2 / bulk)
                    ).sum()
                )

            energy.append(float(np.sqrt(norm2(off) / norm2(voigt))))
    return {"l2": tuple(l2), "energy": tuple(energy)}


def orders(errors: tuple[float, ...]) -> tuple[float, ...]:
    """log2 of successive ratios: the order of convergence as the size halves."""
    return tuple(float(np.log2(a / b)) for a, b in pairwise(errors))


# -- plane problems --------------------------------------------------------------------------------
def _sector(radial: np.ndarray, n_theta: int, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A quarter of an annulus: points and tetrahedra."""
    points, tets = bricks([radial, np.linspace(0.0, 0.5 * np.pi, n_theta + 1), z])
    r, t = points[:, 0].copy(), points[:, 1].copy()
    points[:, 0], points[:, 1] = r * np.cos(t), r * np.sin(t)
    # what lies in the planes of symmetry must do so exactly
    points[np.abs(points) < 1e-12] = 0.0
    return points, tets


def _symmetric(nodes: np.ndarray, z: bool = True) -> np.ndarray:
    """Fixed: u_x where x = 0, u_y where y = 0, u_z everywhere (plane strain) or where z = 0."""
    fixed = np.abs(nodes) < 1e-9
    fixed[:, 2] = True if z else np.abs(nodes[:, 2]) < 1e-9
    return fixed


def lame_cylinder(nu: float, steps: tuple[int, ...] = STEPS) -> list[Row]:
    """a = 1, b = 2, p = 1, E = 1000: u_r(a) = p a (1 + ν) ((1 − 2ν) a² + b²)/(E (b² − a²)),
    σ_θ(a) = p (a² + b²)/(b² − a²)."""
    e, got = 1000.0, []
    for k in steps:
        points, tets = _sector(np.linspace(1.0, 2.0, 3 * k + 1), 6 * k, np.array([0.0, 0.3 / k]))
        p = Problem.of(points, tets, *lame(e, nu))
        f = p.pushed(lambda x: np.abs(np.hypot(x[..., 0], x[..., 1]) - 1.0) < 1e-9, lambda x, n: -n)
        u = p.solved(f, _symmetric(p.d.nodes_mm))
        inner = np.abs(np.hypot(*p.d.nodes_mm[:, :2].T) - 1.0) < 1e-9
        got.append(
            (
                float(np.linalg.norm(u[inner, :2], axis=1).mean()),
                float(p.stress_at(u, np.array([0.0, 1.0, 0.0]))[0]),
            )
        )
    target = (1.0 + nu) * ((1.0 - 2.0 * nu) + 4.0) / (e * 3.0), 5.0 / 3.0
    return [
        Row(f"Lamé's cylinder, ν {nu:g}", name, target[i], tuple(g[i] for g in got), p.d.dofs)
        for i, name in enumerate(("radial displacement inside, mm", "hoop stress inside, MPa"))
    ]


def kirsch(steps: tuple[int, ...] = STEPS) -> list[Row]:
    """Hole of radius 1 in a plate under σ_x = 1: σ_x = 3 at (0, 1); Kirsch's tractions at r = 5."""

    def around(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        r, t = np.hypot(x[..., 0], x[..., 1]), np.arctan2(x[..., 1], x[..., 0])
        q = 1.0 / r**2
        rr = 0.5 * (1 - q) + 0.5 * (1 - 4 * q + 3 * q**2) * np.cos(2 * t)
        tt = 0.5 * (1 + q) - 0.5 * (1 + 3 * q**2) * np.cos(2 * t)
        rt = -0.5 * (1 + 2 * q - 3 * q**2) * np.sin(2 * t)
        c, s = np.cos(t), np.sin(t)
        xx, yy, xy = (
            rr * c**2 + tt * s**2 - 2 * rt * s * c,
            rr * s**2 + tt * c**2 + 2 * rt * s * c,
            (rr - tt) * s * c + rt * (c**2 - s**2),
        )
        n = np.broadcast_to(n, x.shape)
        return np.stack(
            [xx * n[..., 0] + xy * n[..., 1], xy * n[..., 0] + yy * n[..., 1], 0.0 * xx], -1
        )

    got = []
    for k in steps:
        points, tets = _sector(
            5.0 ** np.linspace(0.0, 1.0, 5 * k + 1), 6 * k, np.array([0.0, 0.3 / k])
        )
        p = Problem.of(points, tets, *lame(1000.0, 0.3))
        f = p.pushed(lambda x: np.abs(np.hypot(x[..., 0], x[..., 1]) - 5.0) < 1e-9, around)
        u = p.solved(f, _symmetric(p.d.nodes_mm))
        got.append(float(p.stress_at(u, np.array([0.0, 1.0, 0.0]))[0]))
    return [Row("Kirsch's hole", "peak stress, MPa", 3.0, tuple(got), p.d.dofs)]


def _elliptic(n_radial: int, n_theta: int, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NAFEMS's elliptic quarter between (x/2)² + y² = 1 and (x/3.25)² + (y/2.75)² = 1; finer
    towards D = (2, 0)."""
    s = np.linspace(0.0, 1.0, n_radial + 1) ** 1.3
    t = 0.5 * np.pi * np.linspace(0.0, 1.0, n_theta + 1) ** 1.3
    points, tets = bricks([s, t, z])
    a, b = (inner + points[:, 0] * (outer - inner) for inner, outer in ((2.0, 3.25), (1.0, 2.75)))
    angle = points[:, 1].copy()
    points[:, 0], points[:, 1] = a * np.cos(angle), b * np.sin(angle)
    points[np.abs(points) < 1e-12] = 0.0
    return points, tets


def _outer(x: np.ndarray) -> np.ndarray:
    return np.abs((x[..., 0] / 3.25) ** 2 + (x[..., 1] / 2.75) ** 2 - 1.0) < 1e-6


def le1(steps: tuple[int, ...] = STEPS) -> list[Row]:
    """Outward pressure of 10 MPa around, E 210 GPa, ν 0.3."""
    got = []
    for k in steps:
        points, tets = _elliptic(5 * k, 7 * k, np.array([0.0, 0.02]))
        p = Problem.of(points, tets, *lame(210e3, 0.3))
        f = p.pushed(_outer, lambda x, n: 10.0 * np.broadcast_to(n, x.shape))
        u = p.solved(f, _symmetric(p.d.nodes_mm, z=False))
        got.append(float(p.stress_at(u, np.array([2.0, 0.0, 0.0]))[1]))
    return [Row("NAFEMS LE1", "σ_yy at D, MPa", 92.7, tuple(got), p.d.dofs)]


def le10(steps: tuple[int, ...] = STEPS) -> list[Row]:
    """0.6 thick, 1 MPa on top; outer face held sideways, its middle line also upwards."""
    got = []
    for k in steps:
        points, tets = _elliptic(4 * k, 5 * k, np.linspace(-0.3, 0.3, 2 * k + 1))
        p = Problem.of(points, tets, *lame(210e3, 0.3))
        f = p.pushed(
            lambda x: np.abs(x[..., 2] - 0.3) < 1e-9,
            lambda x, n: np.broadcast_to([0.0, 0.0, -1.0], x.shape),
        )
        fixed = np.abs(p.d.nodes_mm) < 1e-9
        # the middles of straight edges lie inside the ellipse: an edge's node is on the face when
        # both its ends are
        rim = _rim(p)
        fixed[rim, :2] = True
        fixed[:, 2] = rim & (np.abs(p.d.nodes_mm[:, 2]) < 1e-9)
        u = p.solved(f, fixed)
        got.append(float(p.stress_at(u, np.array([2.0, 0.0, 0.3]))[1]))
    return [Row("NAFEMS LE10", "σ_yy at D, MPa", -5.38, tuple(got), p.d.dofs)]


def _rim(p: Problem) -> np.ndarray:
    """Nodes [k] of the outer faces on the ellipse."""
    owner, vertices = boundary(p.d)
    chosen = _outer(p.d.nodes_mm[vertices]).all(1)
    rim = np.zeros(len(p.d.nodes_mm), bool)
    rim[np.unique(faces_of(p.d, owner[chosen], vertices[chosen]).nodes)] = True
    return rim


def rows(steps: tuple[int, ...] = STEPS) -> list[Row]:
    """All closed forms and benchmarks."""
    return [
        *lame_cylinder(0.3, steps),
        *lame_cylinder(0.4999, steps),
        *kirsch(steps),
        *le1(steps),
        *le10(steps),
    ]
