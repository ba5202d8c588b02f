"""SfePy with PETSc."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sfepy.base.base import IndexedStruct, output
from sfepy.discrete import Equation, Equations, FieldVariable, Integral, Material, Problem
from sfepy.discrete.conditions import Conditions, EssentialBC
from sfepy.discrete.fem import FEDomain, Field, Mesh
from sfepy.mechanics.matcoefs import stiffness_from_youngpoisson
from sfepy.solvers.auto_fallback import AutoDirect
from sfepy.solvers.nls import Newton
from sfepy.terms import Term

from scripts.benchmarks.answer import Answer
from scripts.benchmarks.voxel_model import DISPLACEMENT_MM, HEXAHEDRON, Model


def sfepy_solver(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    """SfePy's Newton with the direct solver that it chooses by itself."""
    output.set_output(quiet=True)

    def solve() -> Answer:
        started = time.perf_counter()
        status = IndexedStruct()
        linear = AutoDirect({})
        equations, supports = _equations(m)
        problem = Problem("elasticity", equations=equations)
        problem.set_bcs(ebcs=supports)
        problem.set_solver(Newton({}, lin_solver=linear, status=status))
        state = problem.solve(save_results=False)
        total_s, solve_s = time.perf_counter() - started, float(status.time_stats["solve"])
        displacement = np.asarray(state.get_state_parts()["u"]).reshape(-1, 3)
        return Answer(
            displacement,
            total_s - solve_s,
            solve_s,
            total_s - solve_s,
            note=f"{linear.name}; factorisation in solve_s",
        )

    return solve


def _equations(m: Model) -> tuple[Any, Any]:
    """Balance of forces on the model's Q1 hexahedra, and its supports."""
    omega, bottom, top = _regions(m)
    field = Field.from_args("displacement", np.float64, "vector", omega, approx_order=1)
    u = FieldVariable("u", "unknown", field)
    v = FieldVariable("v", "test", field, primary_var_name="u")

    def moduli(
        ts: Any, coors: np.ndarray, mode: str | None = None, **kwargs: Any
    ) -> dict[str, np.ndarray] | None:
        if mode != "qp":
            return None
        modulus = np.repeat(m.modulus, len(coors) // len(m.modulus))
        return {"D": stiffness_from_youngpoisson(3, modulus, m.poisson)}

    material, integral = Material("m", function=moduli), Integral("i", order=2)
    terms = Term.new("dw_lin_elastic(m.D, v, u)", integral, omega, m=material, v=v, u=u)
    supports = [EssentialBC("fixed", bottom, {"u.all": 0.0})]
    if m.mode == "displacement":
        supports.append(EssentialBC("pushed", top, {"u.2": DISPLACEMENT_MM}))
    else:
        load = Material("load", val=[[0.0], [0.0], [-m.pressure_mpa]])
        terms = terms - Term.new("dw_surface_ltr(load.val, v)", integral, top, load=load, v=v)
    return Equations([Equation("balance", terms)]), Conditions(supports)


def _regions(m: Model) -> tuple[Any, Any, Any]:
    """All of the model, its bottom and its top."""
    hexahedra = np.ascontiguousarray(m.cells[:, HEXAHEDRON], np.int32)
    groups = [np.zeros(len(hexahedra), np.int32)]
    mesh = Mesh.from_data("mesh", m.points_mm, None, [hexahedra], groups, ["3_8"])
    domain = FEDomain("domain", mesh)
    half, high = m.spacing_mm / 2, m.voxels.shape[2] * m.spacing_mm
    omega = domain.create_region("Omega", "all")
    bottom = domain.create_region("bottom", f"vertices in (z < {half!r})", "facet")
    top = domain.create_region("top", f"vertices in (z > {high - half!r})", "facet")
    return omega, bottom, top
