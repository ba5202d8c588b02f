"""JAX-FEM."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import jax_fem.solver as of_peer
import numpy as np
import scipy.sparse as sp
from jax.experimental.sparse import BCOO
from jax_fem.generate_mesh import Mesh
from jax_fem.problem import Problem

from scripts.benchmarks.answer import Answer, cores
from scripts.benchmarks.voxel_model import DISPLACEMENT_MM, HEXAHEDRON, Model

#: jax-fem compiles in its first solve, during which its clock is stopped; up to this long it is
#: timed again, warm.
REPEAT_BELOW_S = 120.0


def jaxfem_solver(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    """jax-fem with its own settings."""
    return _prepared(m, None)


def jaxfem_tolerant_solver(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    """jax-fem stopped at a tolerance."""
    return _prepared(m, tolerance)


@dataclass
class _Clock:
    """Seconds, standing still while XLA compiles, and those of the linear solves."""

    compiled_s: float = 0.0
    linear_s: float = 0.0
    plain: Callable[..., Any] = field(default=of_peer.jax_solve)

    def heard(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """JAX's listener."""
        if event.endswith(("backend_compile_duration", "to_mlir_module_duration")):
            self.compiled_s += duration_secs

    def now(self) -> float:
        return time.perf_counter() - self.compiled_s

    def timed(self, *args: Any) -> Any:
        """jax-fem's own linear solve."""
        started = self.now()
        x = jax.block_until_ready(self.plain(*args))
        self.linear_s += self.now() - started
        return x

    def at_tolerance(
        self, tolerance: float, a: Any, b: Any, x0: Any, options: dict[str, Any]
    ) -> Any:
        """`jax_solve`, word for word but for the tolerance."""
        started = self.now()
        pointer, column, data = a.getValuesCSR()
        matrix = sp.csr_array((data, column, pointer), shape=a.getSize())
        inverse = 1.0 / jnp.array(matrix.diagonal())
        sparse = BCOO.from_scipy_sparse(matrix).sort_indices()
        x, _ = jax.scipy.sparse.linalg.bicgstab(
            sparse, b, x0=x0, M=lambda r: r * inverse, tol=tolerance, atol=0.0, maxiter=10000
        )
        x = jax.block_until_ready(x)
        self.linear_s += self.now() - started
        return x


def _prepared(m: Model, tolerance: float | None) -> Callable[[], Answer]:
    logging.getLogger("jax_fem").setLevel(logging.WARNING)
    clock, elasticity = _Clock(), _elasticity(m)
    jax.monitoring.register_event_duration_secs_listener(clock.heard)
    of_peer.jax_solve = clock.timed
    options: dict[str, Any] = {}
    if tolerance is not None:

        def at_tolerance(a: Any, b: Any, x0: Any, options: dict[str, Any]) -> Any:
            return clock.at_tolerance(tolerance, a, b, x0, options)

        options = {"custom_solver": at_tolerance, "tol": 0.0, "rel_tol": 2 * tolerance}

    def once() -> tuple[np.ndarray, float, float]:
        """u, and seconds of the set-up and of the linear solves."""
        clock.linear_s = 0.0
        started = clock.now()
        u = np.asarray(of_peer.solver(_problem(elasticity, m), dict(options))[0])
        return u, clock.now() - started - clock.linear_s, clock.linear_s

    def solve() -> Answer:
        u, setup_s, solve_s = once()
        compile_s, note = clock.compiled_s, "first run"
        if setup_s + solve_s + compile_s < REPEAT_BELOW_S:
            u, setup_s, solve_s = once()
            note = "second run of two"
        stop = "1e-10, its default" if tolerance is None else f"{tolerance:.0e}"
        note += (
            f"; BiCGStab, Jacobi, to {stop}; matrix kept by petsc4py {metadata.version('petsc4py')}"
        )
        return Answer(u, setup_s, solve_s, setup_s, compile_s, threads=cores(), note=note)

    return solve


def _elasticity(m: Model) -> type[Problem]:
    """Linear elasticity with a modulus per element; additional_info: the moduli [m], MPa."""
    nu, pushed = m.poisson, m.mode == "displacement"

    class Elasticity(Problem):
        def custom_init(self, modulus: np.ndarray) -> None:
            self.internal_vars = [
                jnp.repeat(jnp.asarray(modulus)[:, None], self.fes[0].num_quads, axis=1)
            ]

        def get_tensor_map(self) -> Callable[..., Any]:
            def stress(gradient: Any, e: Any) -> Any:
                strain = 0.5 * (gradient + gradient.T)
                return (
                    e * nu / ((1 + nu) * (1 - 2 * nu)) * jnp.trace(strain) * jnp.eye(3)
                    + e / (1 + nu) * strain
                )

            return stress

        def get_surface_maps(self) -> list[Callable[..., Any]]:
            # added to the internal forces: minus the traction
            return [] if pushed else [lambda u, x: jnp.array([0.0, 0.0, m.pressure_mpa])]

    return Elasticity


def _problem(elasticity: type[Problem], m: Model) -> Problem:
    """The model's hexahedra, supports and load."""
    half, high = m.spacing_mm / 2, m.voxels.shape[2] * m.spacing_mm
    pushed = m.mode == "displacement"

    def bottom(point: Any) -> Any:
        return point[2] < half

    def top(point: Any) -> Any:
        return point[2] > high - half

    zero, down = (lambda point: 0.0), (lambda point: DISPLACEMENT_MM)
    return elasticity(
        Mesh(m.points_mm, m.cells[:, HEXAHEDRON]),
        vec=3,
        dim=3,
        ele_type="HEX8",
        additional_info=(m.modulus,),
        dirichlet_bc_info=[
            [bottom] * 3 + [top] * pushed,
            [0, 1, 2] + [2] * pushed,
            [zero] * 3 + [down] * pushed,
        ],
        location_fns=None if pushed else [top],
    )
