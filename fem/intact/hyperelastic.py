"""Nearly incompressible, fibre-reinforced hyperelasticity on hexahedra at finite strain, assembled
by SfePy (total Lagrangian).

    W = C10 (Ī1 − 3) + C20 (Ī1 − 3)² + C30 (Ī1 − 3)³ + C01 (Ī2 − 3)
        + K/2 (J − 1)² + Σ_families share·w(λ),   w'(λ) = σ(λ − 1)

σ is the nominal stress of a fibre, zero in compression; λ its stretch. Where a solid is `mixed`,
p = −K(J − 1) is a field of its own (one value an element beside trilinear displacements: Q1/P0;
trilinear beside triquadratic: Q2/Q1), so that K ≫ μ does not lock.

Source: Holzapfel, Nonlinear Solid Mechanics, 2000, chapters 6 and 8; SfePy's terms dw_tl_*. The
fibres' term is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.interpolate import PchipInterpolator
from sfepy.base.base import output
from sfepy.discrete import Equation, Equations, FieldVariable, Function, Integral, Material, Problem
from sfepy.discrete.conditions import Conditions
from sfepy.discrete.fem import FEDomain, Field, Mesh
from sfepy.terms import Term, Terms, register_term
from sfepy.terms.terms_hyperelastic_tl import HyperElasticTLBase


@dataclass(frozen=True)
class Solid:
    """Isotropic part of W, MPa. mixed: pressure is a field of its own (for bulk_mpa ≫ c10)."""

    c10: float
    bulk_mpa: float
    c01: float = 0.0
    c20: float = 0.0
    c30: float = 0.0
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.c10 + self.c01 <= 0.0 or self.bulk_mpa <= 0.0:
            raise ValueError(
                f"c10 + c01 = {self.c10 + self.c01:g} and bulk_mpa = {self.bulk_mpa:g} MPa must be"
                " positive"
            )


@dataclass(frozen=True)
class Fibres:
    """A fibre's nominal stress_mpa over its strain (monotone interpolation, straight beyond the
    last point, zero below the first), and the share of the volume that each family fills."""

    strain: tuple[float, ...]
    stress_mpa: tuple[float, ...]
    share: float

    def __post_init__(self) -> None:
        if (
            len(self.strain) < 2
            or len(self.strain) != len(self.stress_mpa)
            or np.any(np.diff(self.strain) <= 0.0)
        ):
            raise ValueError(
                f"strain {self.strain} must ascend, with as many stresses ({self.stress_mpa})"
            )
        if (
            self.strain[0] < 0.0
            or self.stress_mpa[0] != 0.0
            or np.any(np.diff(self.stress_mpa) < 0.0)
        ):
            raise ValueError(
                f"stress {self.stress_mpa} must start at 0, at a strain of 0 or more, and not fall"
            )

    def nominal(self, strain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """σ and dσ/dε, MPa."""
        curve = PchipInterpolator(self.strain, self.stress_mpa)
        end = self.strain[-1]
        slope = curve.derivative()
        inside = np.clip(strain, self.strain[0], end)
        stress = curve(inside) + slope(end) * np.maximum(strain - end, 0.0)
        return np.where(strain > self.strain[0], stress, 0.0), np.where(
            strain > self.strain[0], slope(inside), 0.0
        )


#: Weights of Voigt components in a double contraction of two tensors that both hold a_ij once.
_SHEAR_TWICE = np.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
#: Corners of the reference hexahedron in VTK's order.
_CORNERS = np.array([[x, y, z] for z in (-1, 1) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))])


class FibreTerm(HyperElasticTLBase):
    """∫ share S_f(λ) (a⊗a) : δE,  S_f = σ(λ − 1)/λ,  dS_f/dE = (σ' − σ/λ)/λ²;  material: the
    direction a, a unit vector."""

    name = "dw_tl_fib_nominal"
    arg_types = ("material", "virtual", "state")
    arg_shapes = {"material": "D, 1", "virtual": ("D", "state"), "state": "D"}
    family_data_names = ("green_strain",)
    fibres: Fibres

    def _stretch(self, a: np.ndarray, green: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """a⊗a [m, q, 6] in Voigt order and λ = √(1 + 2 a·E a) [m, q]. SfePy's E holds E_ij, not
        2 E_ij: shear counts twice."""
        a = a[..., 0]
        twice = np.stack(
            [a[..., i] * a[..., j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], -1
        )
        return twice, np.sqrt(1.0 + 2.0 * (twice * green[..., 0]) @ _SHEAR_TWICE)

    def stress_function(self, out: np.ndarray, a: np.ndarray, green: np.ndarray, **_: Any) -> None:
        twice, stretch = self._stretch(a, green)
        stress, _slope = self.fibres.nominal(stretch - 1.0)
        out[..., 0] = self.fibres.share * (stress / stretch)[..., None] * twice

    def tan_mod_function(self, out: np.ndarray, a: np.ndarray, green: np.ndarray, **_: Any) -> None:
        twice, stretch = self._stretch(a, green)
        stress, slope = self.fibres.nominal(stretch - 1.0)
        each = self.fibres.share * (slope - stress / stretch) / stretch**2
        out[...] = each[..., None, None] * twice[..., :, None] * twice[..., None, :]


register_term(FibreTerm)


def jacobians(x: np.ndarray) -> np.ndarray:
    """det ∂x/∂ξ [m, 8] of trilinear hexahedra [m, 8, 3] in VTK's order at the 2×2×2 Gauss
    points: they sum to the volumes."""
    each = 1.0 + _CORNERS[None] * (_CORNERS / np.sqrt(3.0))[:, None]  # [point, corner, axis]
    a, b, c = each[..., 0], each[..., 1], each[..., 2]
    slope = _CORNERS * np.stack([b * c, a * c, a * b], -1) / 8.0
    return np.asarray(np.linalg.det(np.einsum("qpi,mpj->mqij", slope, x)))


class Body:
    """Hexahedra of one or more groups with their internal forces and tangent.

    nodes_mm [n, 3]       of the displacements, those of the mesh first
    cell_nodes [m, p]     p 8 or 27
    unknowns x [size]     3·node + component of the displacements (the first `dofs`), then the
                          pressures of each mixed group (slices `pressures`)
    """

    def __init__(
        self,
        points_mm: np.ndarray,
        hexes: np.ndarray,
        group: np.ndarray,
        solids: Mapping[int, Solid],
        fibres: Mapping[int, tuple[Fibres, np.ndarray]] | None = None,
        order: int = 1,
    ) -> None:
        """points_mm [n, 3], hexes [m, 8] (VTK's order), group [m]; fibres: per group the curve and
        the directions [m of group, k, 3] of its k families; order of the displacements.

        Raises ValueError for another order than 1 or 2, a group without a solid, inverted
        hexahedra.
        """
        if order not in (1, 2):
            raise ValueError(f"order={order} is not supported; choose 1 (Q1/P0) or 2 (Q2/Q1)")
        if missing := set(np.unique(group).tolist()) - set(solids):
            raise ValueError(f"groups {sorted(missing)} have no solid; there are {sorted(solids)}")
        inverted = int((jacobians(np.asarray(points_mm, float)[hexes]) <= 0.0).any(1).sum())
        if inverted:
            raise ValueError(f"{inverted} hexahedra are inverted; number their corners as VTK does")
        output.set_output(quiet=True)
        domain = _domain(points_mm, hexes, group)
        omega = domain.create_region("Omega", "all")
        self.regions = {
            g: domain.create_region(f"G{g}", f"cells of group {g}") for g in sorted(solids)
        }
        self.order = order
        self.field = Field.from_args(
            "displacement", np.float64, "vector", omega, approx_order=order
        )
        self.integral = Integral("i", order=2 * order + 1)
        self.nodes_mm = np.asarray(self.field.get_coor())
        self.cell_nodes = np.asarray(self.field.econn)
        self.group = np.asarray(group)
        #: What makes it this body and no other, besides its nodes.
        self.content = (self.group, sorted(solids.items()), sorted((fibres or {}).items()), order)
        self.solids, self.mixed = dict(solids), [g for g in sorted(solids) if solids[g].mixed]
        #: Weights of each mixed group's pressures in their mean.
        self._means: dict[int, np.ndarray] = {}
        self._problem = self._assembled(fibres or {})
        self.size = len(self._problem.create_state()())
        self.dofs = 3 * len(self.nodes_mm)
        # SfePy orders its variables as it likes: ours are displacements, then pressures
        places = self._problem.equations.variables.adi.indx
        blocks = [places["u"], *(places[f"p{g}"] for g in self.mixed)]
        self._theirs = np.concatenate([np.arange(b.start, b.stop) for b in blocks])
        ends = np.cumsum([b.stop - b.start for b in blocks])
        self.pressures = {
            g: slice(int(ends[k]), int(ends[k + 1])) for k, g in enumerate(self.mixed)
        }

    def _assembled(self, fibres: Mapping[int, tuple[Fibres, np.ndarray]]) -> Problem:
        """SfePy's problem: one equation of balance, and one of volume for each mixed group."""
        u = FieldVariable("u", "unknown", self.field)
        v = FieldVariable("v", "test", self.field, primary_var_name="u")
        balance: list[Any] = []
        volumes: list[Any] = []
        for g, region in self.regions.items():
            balance += self._isotropic(g, region, u, v)
            if g in fibres:
                curve, directions = fibres[g]
                balance += [
                    self._family(f"a{g}_{k}", curve, directions[:, k], region, u, v)
                    for k in range(directions.shape[1])
                ]
            if self.solids[g].mixed:
                term, equation = self._mixed(g, region, u, v)
                balance.append(term)
                volumes.append(equation)
        problem = Problem(
            "body",
            equations=Equations([Equation("balance", Terms(balance)), *volumes]),
            active_only=False,
        )
        problem.set_bcs(ebcs=Conditions([]))
        problem.time_update()
        problem.update_materials()
        return problem

    def _mixed(self, g: int, region: Any, u: Any, v: Any) -> tuple[Any, Any]:
        """The pressure's term in the balance, and the equation ∫ q (1 − J − p/K) = 0."""
        pressure = Field.from_args(
            f"pressure{g}", np.float64, "scalar", region, approx_order=self.order - 1
        )
        self._means[g] = _mean_of(pressure, region, self.integral)
        p = FieldVariable(f"p{g}", "unknown", pressure)
        q = FieldVariable(f"q{g}", "test", pressure, primary_var_name=p.name)
        k = Material(f"compliance{g}", values={"k": 1.0 / self.solids[g].bulk_mpa})

        def term(text: str, **arguments: Any) -> Any:
            return Term.new(text, self.integral, region, **arguments)

        push = term(f"dw_tl_bulk_pressure(v, u, {p.name})", v=v, u=u, **{p.name: p})
        change = term(f"dw_tl_volume({q.name}, u)", u=u, **{q.name: q})
        volume = term(f"dw_integrate({q.name})", **{q.name: q})
        give = term(f"dw_dot({k.name}.k, {q.name}, {p.name})", **{k.name: k, q.name: q, p.name: p})
        return push, Equation(f"volume{g}", Terms([volume, -1.0 * change, -1.0 * give]))

    def _isotropic(self, g: int, region: Any, u: Any, v: Any) -> list[Any]:
        s = self.solids[g]
        values = {
            "mu": 2.0 * s.c10,
            "kappa": 2.0 * s.c01,
            "yeoh": np.array([[s.c10, s.c20, s.c30, 1.0, 2.0, 3.0]]),
            "bulk": s.bulk_mpa,
        }
        m = Material(f"m{g}", values=values)
        names = [
            "dw_tl_he_genyeoh(m.yeoh, v, u)" if s.c20 or s.c30 else "dw_tl_he_neohook(m.mu, v, u)"
        ]
        names += ["dw_tl_he_mooney_rivlin(m.kappa, v, u)"] if s.c01 else []
        names += [] if s.mixed else ["dw_tl_bulk_penalty(m.bulk, v, u)"]
        return [
            Term.new(n.replace("m.", f"m{g}."), self.integral, region, v=v, u=u, **{m.name: m})
            for n in names
        ]

    def _family(
        self, name: str, curve: Fibres, direction: np.ndarray, region: Any, u: Any, v: Any
    ) -> Any:
        per_cell = direction / np.linalg.norm(direction, axis=1)[:, None]

        def values(
            ts: Any, coors: np.ndarray, mode: str | None = None, **kwargs: Any
        ) -> dict[str, np.ndarray] | None:
            if mode != "qp":
                return None
            return {"a": np.repeat(per_cell, len(coors) // len(per_cell), axis=0)[:, :, None]}

        m = Material(name, function=Function("fibres", values))
        term = Term.new(
            f"dw_tl_fib_nominal({m.name}.a, v, u)", self.integral, region, v=v, u=u, **{m.name: m}
        )
        term.fibres = curve
        return term

    def forces(self, x: np.ndarray) -> np.ndarray:
        """Residual [size] of x [size]: internal nodal forces in N, then ∫ q (1 − J − p/K), mm³.
        NaN where an element is inverted."""
        equations = self._problem.equations
        try:
            theirs = np.empty(self.size)
            theirs[self._theirs] = x
            return np.asarray(equations.eval_residuals(theirs))[self._theirs]
        except ValueError as error:
            if "warp" not in str(error):
                raise
            return np.full(self.size, np.nan)

    def tangent(self) -> sp.csr_matrix:
        """Derivative of `forces` at the x that it was last called with; symmetric."""
        matrix = self._problem.mtx_a
        matrix.data[:] = 0.0
        equations = self._problem.equations
        full = sp.csr_matrix(equations.eval_tangent_matrices(equations.variables(), matrix))
        return full[self._theirs][:, self._theirs]

    def pressure(self, x: np.ndarray, g: int) -> float:
        """Mean hydrostatic pressure of a mixed group, MPa: ∫ p dV / ∫ dV over the reference
        volume."""
        return float(self._means[g] @ x[self.pressures[g]])


def _domain(points_mm: np.ndarray, hexes: np.ndarray, group: np.ndarray) -> FEDomain:
    data = Mesh.from_data(
        "body",
        np.ascontiguousarray(points_mm, float),
        None,
        [np.ascontiguousarray(hexes, np.int32)],
        [np.asarray(group, np.int32)],
        ["3_8"],
    )
    return FEDomain("domain", data)


def _mean_of(field: Any, region: Any, integral: Any) -> np.ndarray:
    """w with w·p = ∫ p dV / ∫ dV for the values p of a scalar field."""
    mapping = field.get_mapping(region, integral, "cell")[0]
    det, basis = np.asarray(mapping.det)[:, :, 0, 0], np.asarray(mapping.bf)[:, :, 0, :]
    weight = np.zeros(field.n_nod)
    np.add.at(weight, np.asarray(field.econn), np.einsum("mq,xqp->mp", det, basis[:1]))
    return weight / det.sum()
