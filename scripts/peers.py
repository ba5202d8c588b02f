"""The solver benchmark: the engine and other people's solvers on the same voxel elasticity problem, each in a fresh process.

    python -m scripts.peers install                                       the foreign ones, into .cache/peers
    python -m scripts.peers SOLVER PROBLEM.npz TOLERANCE OUT.json [engine|full]

    engine       engine.multigrid.cycle, on all cores (or the GPU that JAX finds)
    pardiso      MKL's Cholesky (mtype 2, upper triangle) of the assembled matrix, all cores
    pyamg        smoothed aggregation (energy), 3×3 blocks, six rigid-body modes, conjugate gradients; one core
    sfepy        Q1 hexahedra, dw_lin_elastic, Newton and ls.auto_direct: what SfePy does when told nothing else
    jaxfem       HEX8, its solver with no options: BiCGStab with Jacobi, stopped at its own 1e-10 whatever TOLERANCE says
    jaxfem_tol   the same stopped at TOLERANCE, by the `custom_solver` hook
    parosol      voxel elements, geometric multigrid and conjugate gradients; MPI on all cores

A problem: modulus [x, y, z] MPa (0 = void, no element), one Poisson's ratio, spacing_mm, mode. Nodes under solid voxels
at z = 0 are fixed. mode "force": FORCE_N in −z as a uniform pressure on the solid voxels at the top; "displacement": u_z =
DISPLACEMENT_MM at their top nodes, free sideways. Trilinear hexahedra; element "full" integrates with 2×2×2 points,
"engine" is engine.elasticity's (mean dilatation); the foreign codes are always "full".

Every answer is judged here, outside its time: ‖b − K u‖/‖b‖ over the free degrees of freedom in float64, with K assembled
by `stiffness` for the same element.

Time: import, reading and judging are left out; so is compilation, apart in compile_s. setup_s holds mesh, assembly
(assembly_s, where it can be told apart) and factorisation or hierarchy; total_s = setup_s + solve_s.
Memory: peak_mb when the answer is there, import_mb of it before the work began; parosol: its processes alone.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy import ndimage

from scripts.console.places import ROOT

PEERS = ROOT / ".cache" / "peers"
FORCE_N, DISPLACEMENT_MM = 1000.0, -0.1
TITANIUM_MPA, PAD_MPA, SHELL_MPA, DISC_MPA, BONE_MPA = 110_000.0, 2500.0, 3000.0, 4.0, 500.0
#: jax-fem compiles in its first solve, during which its clock is stopped; up to this long it is timed again, warm.
REPEAT_BELOW_S = 120.0
CORNERS = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
#: VTK's order of a hexahedron's corners, which SfePy and jax-fem share, in CORNERS.
HEXAHEDRON = [0, 4, 6, 2, 1, 5, 7, 3]
#: Above so many unknowns the engine's answer is judged without a matrix.
ASSEMBLED_BELOW = 2_000_000
PETSC = "3.26.1"
NOT_INSTALLED = "not installed: run python -m scripts.peers install"


# -- problems ------------------------------------------------------------------------------------------------
def make_problem(name: str, unknowns: int, *, contrast: float = 1e4, seed: int = 0, mode: str = "force") -> dict[str, Any]:
    """A problem of about so many unknowns: what np.savez takes.

    anatomy    two vertebral bodies (100-1000 MPa, shell), a disc, a titanium ring in it; half of the box is void
    box        dense, every voxel's modulus log-uniform in [10 GPa / contrast, 10 GPa]
    gyroid     a titanium gyroid, walls of 4 voxels in periods of 32, partly filled voxels at its faces, between two bone blocks
    """
    if name not in _BUILDERS or mode not in ("force", "displacement"):
        raise ValueError(f"problem {name!r}, mode {mode!r}: choose one of {', '.join(_BUILDERS)}, and force or displacement")
    across, tried = max(4, round((unknowns / 3) ** (1 / 3))), set[int]()
    while across not in tried:
        tried.add(across)
        modulus, spacing_mm = _BUILDERS[name](across, contrast, np.random.default_rng(seed))
        solid = modulus > 0.0
        touched = np.pad(solid, 1)
        for axis in range(3):
            low, high = (np.take(touched, range(i, touched.shape[axis] - 1 + i), axis) for i in (0, 1))
            touched = low | high
        across = max(4, round(across * (unknowns / (3 * touched[..., 1:].sum())) ** (1 / 3)))
    part, _ = ndimage.label(solid)
    kept = part == np.bincount(part.ravel())[1:].argmax() + 1  # by faces: two bodies that share but an edge hinge on it
    if not (kept[..., 0].any() and kept[..., -1].any()):
        raise ValueError(f"{name} of {unknowns} unknowns does not reach from bottom to top; ask for more unknowns")
    # ParOSol keeps GPa in single precision: everybody gets numbers that it can hold
    modulus = 1e3 * (np.where(kept, modulus, 0.0) / 1e3).astype(np.float32).astype(np.float64)
    return {"modulus": modulus, "poisson": 0.3, "spacing_mm": spacing_mm, "mode": mode, "name": name}


def _anatomy(across: int, contrast: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    h = 60.0 / across
    shape = (across, round(0.8 * across), across)
    x, y, z = np.meshgrid(*((np.arange(n) + 0.5) * h for n in shape), indexing="ij")
    rho = np.hypot((x - 30.0) / 24.0, (y - shape[1] * h / 2) / 19.2)
    disc = np.abs(z - 30.0) < 4.5
    bone = (rho < 1.0) & ~disc
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 3.0 / h)
    e = np.where(bone, 10 ** (2.5 + np.clip(texture / texture.std(), -2.5, 2.5) / 5), 0.0)
    e[bone & ~ndimage.binary_erosion(bone, iterations=max(1, round(1.0 / h)), border_value=1)] = SHELL_MPA
    e[disc & (rho < 0.95)] = DISC_MPA
    e[disc & (rho > 0.45) & (rho < 0.70)] = TITANIUM_MPA
    return _with_pads(e, max(2, round(2.0 / h))), h


def _box(across: int, contrast: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    return 1e4 * contrast ** -rng.random((across,) * 3), 1.0


def _gyroid(across: int, contrast: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    period, wall = 32.0, 4.0
    shape = (across, across, round(1.5 * across))
    a, b, c = np.meshgrid(*(2 * np.pi * (np.arange(n) + 0.5) / period for n in shape), indexing="ij")
    g = np.sin(a) * np.cos(b) + np.sin(b) * np.cos(c) + np.sin(c) * np.cos(a)
    slope = np.sqrt(
        (np.cos(a) * np.cos(b) - np.sin(c) * np.sin(a)) ** 2
        + (np.cos(b) * np.cos(c) - np.sin(a) * np.sin(b)) ** 2
        + (np.cos(c) * np.cos(a) - np.sin(b) * np.sin(c)) ** 2
    ) * (2 * np.pi / period)
    filled = np.clip(0.5 + wall / 2 - np.abs(g) / slope, 0.0, 1.0)
    e = TITANIUM_MPA * np.where(filled > 0.05, filled, 0.0)
    block = round(across * 0.375)
    e[..., :block] = e[..., -block:] = BONE_MPA
    return _with_pads(e, 2), 0.1


def _with_pads(e: np.ndarray, layers: int) -> np.ndarray:
    """The outermost layers at bottom and top, where solid, become flat stiff pads."""
    for end in (slice(0, layers), slice(e.shape[2] - layers, None)):
        e[..., end] = np.where(e[..., end] > 0.0, PAD_MPA, 0.0)
    return e


_BUILDERS: dict[str, Callable[[int, float, np.random.Generator], tuple[np.ndarray, float]]] = {
    "anatomy": _anatomy, "box": _box, "gyroid": _gyroid,
}  # fmt: skip


# -- the discrete problem ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """Solid voxels and their nodes, numbered with z fastest, and what is prescribed there.

    voxels [x, y, z] MPa; modulus [m]; cells [m, 8] in the order of CORNERS; index [n, 3] place in the grid of nodes;
    free [n, 3]; value [n, 3] mm, 0 where free; force [n, 3] N.
    """

    voxels: np.ndarray
    poisson: float
    spacing_mm: float
    mode: str
    modulus: np.ndarray
    cells: np.ndarray
    index: np.ndarray
    free: np.ndarray
    value: np.ndarray
    force: np.ndarray

    @property
    def points_mm(self) -> np.ndarray:
        return self.index * self.spacing_mm

    @property
    def pressure_mpa(self) -> float:
        return FORCE_N / (np.count_nonzero(self.voxels[..., -1]) * self.spacing_mm**2)

    def lame(self) -> tuple[np.ndarray, np.ndarray]:
        """λ, μ [m], MPa."""
        nu = self.poisson
        return self.modulus * nu / ((1 + nu) * (1 - 2 * nu)), self.modulus / (2 * (1 + nu))

    def dense(self, field: np.ndarray) -> np.ndarray:
        """A nodal field [n, 3] as [3, x+1, y+1, z+1], zero at nodes of no solid voxel: the engine's layout."""
        out = np.zeros((3, *(n + 1 for n in self.voxels.shape)), field.dtype)
        out[:, *self.index.T] = field.T
        return out


def model(problem: dict[str, Any]) -> Model:
    """The problem's nodes, elements, supports and loads. Raises ValueError when nothing is held or loaded."""
    voxels, mode = np.asarray(problem["modulus"], np.float64), str(problem["mode"])
    if not (voxels[..., 0].any() and voxels[..., -1].any()) or mode not in ("force", "displacement"):
        raise ValueError(f"mode {mode!r}, and solid voxels in the lowest and the highest layer? one of the two is missing")
    nodes = tuple(n + 1 for n in voxels.shape)
    corner = np.argwhere(voxels > 0.0)
    number = np.stack([np.ravel_multi_index(tuple((corner + c).T), nodes) for c in CORNERS], axis=1)
    used = np.zeros(np.prod(nodes), bool)
    used[number] = True
    cells = (np.cumsum(used) - 1)[number].astype(np.int32)
    index = np.stack(np.unravel_index(np.flatnonzero(used), nodes), axis=1)
    free, value, force = np.ones(index.shape, bool), np.zeros(index.shape), np.zeros(index.shape)
    free[index[:, 2] == 0] = False
    top = index[:, 2] == voxels.shape[2]
    if mode == "displacement":
        free[top, 2], value[top, 2] = False, DISPLACEMENT_MM
    else:
        above = cells[corner[:, 2] == voxels.shape[2] - 1][:, CORNERS[:, 2] == 1]
        force[:, 2] = -FORCE_N / above.size * np.bincount(above.ravel(), minlength=len(index))
    spacing_mm, poisson = float(problem["spacing_mm"]), float(problem["poisson"])
    return Model(voxels, poisson, spacing_mm, mode, voxels[voxels > 0.0], cells, index, free, value, force)


def element_matrices(element: str, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """K_λ, K_μ [24, 24] for unit λ, μ: "engine" (mean dilatation) or "full" (2×2×2 points for both)."""
    if element == "engine":
        from engine.elasticity import element_matrices as of_engine

        return of_engine(spacing_mm)[:2]
    if element != "full":
        raise ValueError(f"element {element!r} is unknown; choose engine or full")
    signs, k_lam, k_mu = 2.0 * CORNERS - 1.0, np.zeros((24, 24)), np.zeros((24, 24))
    for point in signs / np.sqrt(3.0):
        factor = 1.0 + signs * point
        gradient = signs / (4.0 * spacing_mm) * factor[:, [1, 0, 0]] * factor[:, [2, 2, 1]]  # ∂N_a/∂x_c
        symmetric = np.einsum("ai,cj->acij", gradient, np.eye(3))
        strain = (symmetric + symmetric.swapaxes(2, 3)).reshape(24, 9) / 2
        weight = spacing_mm**3 / 8
        k_lam += weight * np.outer(gradient.ravel(), gradient.ravel())
        k_mu += weight * 2.0 * strain @ strain.T
    return k_lam, k_mu


def stiffness(m: Model, element: str) -> sp.bsr_matrix:
    """K of all nodes in 3×3 blocks, no supports: summed into the 27 neighbours of each node, so nothing is sorted."""
    k_lam, k_mu = element_matrices(element, m.spacing_mm)
    lam, mu = (field[:, None, None] for field in m.lame())
    block, column = np.zeros((len(m.index), 27, 3, 3)), np.full((len(m.index), 27), -1, np.int32)
    for a in range(8):
        for b in range(8):
            slot = int(13 + (CORNERS[b] - CORNERS[a]) @ (9, 3, 1))
            rows, part = m.cells[:, a], np.s_[3 * a : 3 * a + 3, 3 * b : 3 * b + 3]
            block[rows, slot] += lam * k_lam[part] + mu * k_mu[part]
            column[rows, slot] = m.cells[:, b]
    there = column >= 0
    pointer = np.concatenate([[0], np.cumsum(there.sum(1))])
    return sp.bsr_matrix((block[there], column[there], pointer), shape=(m.index.size, m.index.size))


def reduced(m: Model, k: sp.bsr_matrix) -> tuple[sp.bsr_matrix, np.ndarray, np.ndarray]:
    """K and b of u − value on the nodes that can move, [n] bool third.

    A fixed component of such a node keeps its diagonal and nothing else.
    """
    moving = np.any(m.free, axis=1)
    row = np.repeat(np.arange(len(moving)), np.diff(k.indptr))
    kept = moving[row] & moving[k.indices]
    row, column = row[kept], k.indices[kept]
    mask = m.free[row][:, :, None] & m.free[column][:, None, :]
    mask |= (row == column)[:, None, None] & np.eye(3, dtype=bool)
    number = np.cumsum(moving) - 1
    pointer = np.concatenate([[0], np.cumsum(np.bincount(number[row]))])
    size = 3 * int(moving.sum())
    matrix = sp.bsr_matrix((k.data[kept] * mask, number[column].astype(np.int32), pointer), shape=(size, size))
    return matrix, (_right_hand_side(m, k) * m.free)[moving].ravel(), moving


def _right_hand_side(m: Model, k: sp.bsr_matrix) -> np.ndarray:
    return m.force - (k @ m.value.ravel()).reshape(-1, 3)


# -- solvers -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answer:
    """u [n, 3] mm and what it took; None where it cannot be told."""

    u: np.ndarray
    setup_s: float
    solve_s: float
    assembly_s: float | None = None
    compile_s: float | None = None
    iterations: int | None = None
    threads: int = 1
    peak_mb: float | None = None
    note: str = ""


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _assembled(m: Model, element: str) -> tuple[sp.bsr_matrix, np.ndarray, np.ndarray]:
    return reduced(m, stiffness(m, element))


def _spread(m: Model, moving: np.ndarray, x: np.ndarray) -> np.ndarray:
    u = m.value.copy()
    u[moving] += x.reshape(-1, 3)
    return u


def _engine(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    import jax
    import jax.numpy as jnp

    from engine import multigrid
    from engine.elasticity import Grid, Medium

    jax.config.update("jax_enable_x64", True)

    def once(scale: float) -> Answer:
        started = time.perf_counter()
        x, y, z = m.voxels.shape
        shape = multigrid.padded_shape((x, y, z))
        grid = Grid(shape, (0.0, 0.0, 0.0), m.spacing_mm)
        solid = scale * np.pad(m.voxels, [(0, big - n) for big, n in zip(shape, m.voxels.shape, strict=True)])
        nu = m.poisson
        medium = Medium(*(jnp.asarray(f) for f in (solid * (nu / ((1 + nu) * (1 - 2 * nu))), solid / (2 * (1 + nu)), 0.0 * solid)))

        def dense(field: np.ndarray) -> jax.Array:
            return jnp.asarray(np.pad(m.dense(field), [(0, 0), *((0, big - n) for big, n in zip(shape, m.voxels.shape, strict=True))]))

        free = dense(m.free.astype(float))
        system = multigrid.System(medium, free, None)
        load, zero = dense(m.force)[None], jnp.zeros((1, 3, *(n + 1 for n in shape)))
        given = dense(m.value)[None]
        if m.mode == "displacement":
            load = load - multigrid.operate(replace(system, free=None), given, m.spacing_mm)
        preconditioner = multigrid.build(system, grid)
        jax.block_until_ready(preconditioner)
        ready = time.perf_counter()
        settings = multigrid.SolverSettings(tolerance=tolerance)
        u, info = multigrid.solve(m.spacing_mm, settings, system, load * free, preconditioner, zero, zero, jnp.zeros(3))
        jax.block_until_ready(u)
        solved = time.perf_counter()
        answer = np.asarray(u + given)[0][:, *m.index.T].T
        return Answer(answer, ready - started, solved - ready, iterations=int(info.iterations), threads=cores(), note=jax.default_backend())

    def solve() -> Answer:
        first = once(1.001)  # compiles; another matrix, or the next one would find its hierarchy made
        peak = peak_mb()
        again = once(1.0)
        compile_s = max(0.0, first.setup_s + first.solve_s - again.setup_s - again.solve_s)
        return replace(again, compile_s=compile_s, peak_mb=peak)

    return solve


def _pardiso(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    import pypardiso

    def solve() -> Answer:
        started = time.perf_counter()
        k, b, moving = _assembled(m, element)
        upper = sp.triu(k.tocsr(), format="csr")
        del k
        assembled = time.perf_counter()
        pardiso = pypardiso.PyPardisoSolver(mtype=2, size_limit_storage=0)
        pardiso.factorize(upper)
        factored = time.perf_counter()
        x = pardiso.solve(upper, b)
        solved = time.perf_counter()
        return Answer(_spread(m, moving, x), factored - started, solved - factored, assembled - started, threads=cores())

    return solve


def _pyamg(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    import pyamg

    def solve() -> Answer:
        started = time.perf_counter()
        k, b, moving = _assembled(m, element)
        assembled = time.perf_counter()
        modes = _rigid_modes(m.points_mm[moving]) * m.free[moving].ravel()[:, None]
        # the fastest of those tried: its defaults take twice as long, and a dense pseudo-inverse on the coarsest level more
        hierarchy = pyamg.smoothed_aggregation_solver(
            k, B=modes, smooth="energy", strength=("symmetric", {"theta": 0.05}), max_coarse=100, coarse_solver="splu"
        )
        ready = time.perf_counter()
        residuals: list[float] = []
        x = hierarchy.solve(b, tol=tolerance, maxiter=2000, accel="cg", residuals=residuals)
        solved = time.perf_counter()
        note = f"{len(hierarchy.levels)} levels, operator complexity {hierarchy.operator_complexity():.2f}"
        return Answer(_spread(m, moving, x), ready - started, solved - ready, assembled - started, iterations=len(residuals) - 1, note=note)

    return solve


def _rigid_modes(points_mm: np.ndarray) -> np.ndarray:
    """Three translations and three rotations [3 n, 6]."""
    r = points_mm - points_mm.mean(0)
    r = r / np.abs(r).max()
    turns = np.stack([np.cross(axis, r) for axis in np.eye(3)], axis=-1)
    return np.concatenate([np.broadcast_to(np.eye(3), (len(r), 3, 3)), turns], axis=2).reshape(-1, 6)


def _sfepy(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    from sfepy.base.base import IndexedStruct, output
    from sfepy.discrete import Equation, Equations, FieldVariable, Integral, Material, Problem
    from sfepy.discrete.conditions import Conditions, EssentialBC
    from sfepy.discrete.fem import FEDomain, Field, Mesh
    from sfepy.mechanics.matcoefs import stiffness_from_youngpoisson
    from sfepy.solvers.auto_fallback import AutoDirect
    from sfepy.solvers.nls import Newton
    from sfepy.terms import Term

    output.set_output(quiet=True)

    def solve() -> Answer:
        started = time.perf_counter()
        hexahedra = np.ascontiguousarray(m.cells[:, HEXAHEDRON], np.int32)
        groups = [np.zeros(len(hexahedra), np.int32)]
        domain = FEDomain("domain", Mesh.from_data("mesh", m.points_mm, None, [hexahedra], groups, ["3_8"]))
        omega = domain.create_region("Omega", "all")
        half, high = m.spacing_mm / 2, m.voxels.shape[2] * m.spacing_mm
        bottom = domain.create_region("bottom", f"vertices in (z < {half!r})", "facet")
        top = domain.create_region("top", f"vertices in (z > {high - half!r})", "facet")
        field = Field.from_args("displacement", np.float64, "vector", omega, approx_order=1)
        u, v = FieldVariable("u", "unknown", field), FieldVariable("v", "test", field, primary_var_name="u")

        def moduli(ts: Any, coors: np.ndarray, mode: str | None = None, **kwargs: Any) -> dict[str, np.ndarray] | None:
            if mode != "qp":
                return None
            return {"D": stiffness_from_youngpoisson(3, np.repeat(m.modulus, len(coors) // len(m.modulus)), m.poisson)}

        material, integral = Material("m", function=moduli), Integral("i", order=2)
        terms = Term.new("dw_lin_elastic(m.D, v, u)", integral, omega, m=material, v=v, u=u)
        supports = [EssentialBC("fixed", bottom, {"u.all": 0.0})]
        if m.mode == "displacement":
            supports.append(EssentialBC("pushed", top, {"u.2": DISPLACEMENT_MM}))
        else:
            load = Material("load", val=[[0.0], [0.0], [-m.pressure_mpa]])
            terms = terms - Term.new("dw_surface_ltr(load.val, v)", integral, top, load=load, v=v)
        status = IndexedStruct()
        linear = AutoDirect({})
        problem = Problem("elasticity", equations=Equations([Equation("balance", terms)]))
        problem.set_bcs(ebcs=Conditions(supports))
        problem.set_solver(Newton({}, lin_solver=linear, status=status))
        state = problem.solve(save_results=False)
        total_s, solve_s = time.perf_counter() - started, float(status.time_stats["solve"])
        displacement = np.asarray(state.get_state_parts()["u"]).reshape(-1, 3)
        return Answer(displacement, total_s - solve_s, solve_s, total_s - solve_s, note=f"{linear.name}; factorisation in solve_s")

    return solve


def _jaxfem(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    return _jaxfem_solver(m, None)


def _jaxfem_tol(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    return _jaxfem_solver(m, tolerance)


def _jaxfem_solver(m: Model, tolerance: float | None) -> Callable[[], Answer]:
    """jax-fem with its own settings, or stopped at a tolerance."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import jax_fem.solver as of_peer
    from jax.experimental.sparse import BCOO
    from jax_fem.generate_mesh import Mesh
    from jax_fem.problem import Problem

    logging.getLogger("jax_fem").setLevel(logging.WARNING)
    half, high, pushed, nu = m.spacing_mm / 2, m.voxels.shape[2] * m.spacing_mm, m.mode == "displacement", m.poisson
    linear_s, compiled_s = [0.0], [0.0]
    plain = of_peer.jax_solve

    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        compiled_s[0] += duration_secs if event.endswith(("backend_compile_duration", "to_mlir_module_duration")) else 0.0

    def clock() -> float:
        """Seconds, standing still while XLA compiles."""
        return time.perf_counter() - compiled_s[0]

    jax.monitoring.register_event_duration_secs_listener(heard)

    class Elasticity(Problem):
        def custom_init(self, modulus: np.ndarray) -> None:
            self.internal_vars = [jnp.repeat(jnp.asarray(modulus)[:, None], self.fes[0].num_quads, axis=1)]

        def get_tensor_map(self) -> Callable[..., Any]:
            def stress(gradient: Any, e: Any) -> Any:
                strain = 0.5 * (gradient + gradient.T)
                return e * nu / ((1 + nu) * (1 - 2 * nu)) * jnp.trace(strain) * jnp.eye(3) + e / (1 + nu) * strain

            return stress

        def get_surface_maps(self) -> list[Callable[..., Any]]:
            # added to the internal forces: minus the traction
            return [] if pushed else [lambda u, x: jnp.array([0.0, 0.0, m.pressure_mpa])]

    def bottom(point: Any) -> Any:
        return point[2] < half

    def top(point: Any) -> Any:
        return point[2] > high - half

    def timed(*args: Any) -> Any:
        started = clock()
        x = jax.block_until_ready(plain(*args))
        linear_s[0] += clock() - started
        return x

    def at_tolerance(a: Any, b: Any, x0: Any, options: dict[str, Any]) -> Any:
        """`jax_solve`, word for word but for the tolerance."""
        started = clock()
        pointer, column, data = a.getValuesCSR()
        matrix = sp.csr_array((data, column, pointer), shape=a.getSize())
        inverse = 1.0 / jnp.array(matrix.diagonal())
        sparse = BCOO.from_scipy_sparse(matrix).sort_indices()
        x, _ = jax.scipy.sparse.linalg.bicgstab(sparse, b, x0=x0, M=lambda r: r * inverse, tol=tolerance, atol=0.0, maxiter=10000)
        x = jax.block_until_ready(x)
        linear_s[0] += clock() - started
        return x

    of_peer.jax_solve = timed
    options = {} if tolerance is None else {"custom_solver": at_tolerance, "tol": 0.0, "rel_tol": 2 * tolerance}

    def once() -> tuple[np.ndarray, float, float]:
        linear_s[0] = 0.0
        started = clock()
        zero, down = (lambda point: 0.0), (lambda point: DISPLACEMENT_MM)
        problem = Elasticity(
            Mesh(m.points_mm, m.cells[:, HEXAHEDRON]), vec=3, dim=3, ele_type="HEX8", additional_info=(m.modulus,),
            dirichlet_bc_info=[[bottom] * 3 + [top] * pushed, [0, 1, 2] + [2] * pushed, [zero] * 3 + [down] * pushed],
            location_fns=None if pushed else [top],
        )  # fmt: skip
        u = np.asarray(of_peer.solver(problem, dict(options))[0])
        return u, clock() - started - linear_s[0], linear_s[0]

    def solve() -> Answer:
        u, setup_s, solve_s = once()
        compile_s, note = compiled_s[0], "first run"
        if setup_s + solve_s + compile_s < REPEAT_BELOW_S:
            u, setup_s, solve_s = once()
            note = "second run of two"
        stop = "1e-10, its default" if tolerance is None else f"{tolerance:.0e}"
        note += f"; BiCGStab, Jacobi, to {stop}; matrix kept by petsc4py {metadata.version('petsc4py')}"
        return Answer(u, setup_s, solve_s, setup_s, compile_s, threads=cores(), note=note)

    return solve


def _parosol(m: Model, tolerance: float, element: str) -> Callable[[], Answer]:
    import h5py
    from parosol_py.hdf5_io import write_parosol_input
    from parosol_py.runner import build_parosol_command, packaged_executable, run_parosol

    os.environ.setdefault("OMPI_MCA_rmaps_base_oversubscribe", "1")  # two threads of one core count as one slot

    def solve() -> Answer:
        started = time.perf_counter()
        # its file holds float32: loads in units of a quarter face, displacements in units of DISPLACEMENT_MM
        unit = m.pressure_mpa * m.spacing_mm**2 / 4 if m.mode == "force" else -DISPLACEMENT_MM
        fixed, loaded = np.argwhere(~m.free), np.argwhere(m.force)
        with tempfile.TemporaryDirectory() as folder:
            file = write_parosol_input(
                Path(folder) / "in.h5",
                stiffness_gpa_xyz=m.voxels / 1e3,
                fixed_displacement_coordinates=np.column_stack([m.index[fixed[:, 0]], fixed[:, 1]]),
                fixed_displacement_values=np.rint(m.value[tuple(fixed.T)] / unit),
                loaded_node_coordinates=np.column_stack([m.index[loaded[:, 0]], loaded[:, 1]]),
                loaded_node_values=np.rint(m.force[tuple(loaded.T)] / unit),
                voxel_size_mm=m.spacing_mm,
                poisson_ratio=m.poisson,
            )
            command = build_parosol_command(
                executable=packaged_executable(), input_file=file.name, outputs=(), tolerance=tolerance, mpi_processes=cores()
            )
            with _Watched(folder) as watched:
                run = run_parosol(command, cwd=folder)
            if run.returncode:
                raise RuntimeError(f"parosol returned {run.returncode}: {(run.stderr or run.stdout)[-300:]}")
            with h5py.File(file) as h5:
                place = np.rint(h5["Mesh/Coordinates"][:] / m.spacing_mm).astype(int)
                answer = h5["Solution/disp"][:]
        total_s = time.perf_counter() - started
        solve_s = float(next(line.split()[-1] for line in run.stdout.splitlines() if line.startswith("#  Solving:")))
        nodes = tuple(n + 1 for n in m.voxels.shape)
        u = np.zeros(m.index.shape)
        order = np.searchsorted(np.ravel_multi_index(tuple(m.index.T), nodes), np.ravel_multi_index(tuple(place.T), nodes))
        u[order] = answer * unit
        note = f"MPI, {cores()} processes; setup_s holds its start and its files"
        return Answer(u, total_s - solve_s, solve_s, iterations=run.summary.iterations, threads=cores(), peak_mb=watched.mb(), note=note)

    return solve


class _Watched:
    """Peak memory of all processes that work in a folder: ru_maxrss of a child starts with its parent's, and MPI has several."""

    def __init__(self, folder: str) -> None:
        self.folder, self.done, self.peak_kb = os.path.realpath(folder), threading.Event(), dict[str, int]()

    def __enter__(self) -> _Watched:
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.1):
            for process in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if os.readlink(f"/proc/{process}/cwd") == self.folder:
                        status = Path(f"/proc/{process}/status").read_text()
                        self.peak_kb[process] = int(status.split("VmHWM:")[1].split()[0])
                except (OSError, IndexError):  # it ended meanwhile
                    continue

    def mb(self) -> float:
        return sum(self.peak_kb.values()) / 1024


# -- run -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Solver:
    prepare: Callable[[Model, float, str], Callable[[], Answer]]
    package: str
    foreign: bool


SOLVERS = {
    "engine": _Solver(_engine, "jax", False),
    "pardiso": _Solver(_pardiso, "pypardiso", False),
    "pyamg": _Solver(_pyamg, "pyamg", False),
    "sfepy": _Solver(_sfepy, "sfepy", False),
    "jaxfem": _Solver(_jaxfem, "jax-fem", True),
    "jaxfem_tol": _Solver(_jaxfem_tol, "jax-fem", True),
    "parosol": _Solver(_parosol, "parosol-py", True),
}


def run(solver: str, problem: dict[str, Any], tolerance: float, element: str = "engine") -> dict[str, Any]:
    """Solve in this process, which must be a fresh one for peak_mb to mean anything; the fields of the JSON file.

    status: "ok", "residual above tolerance", "failed: …" or "not installed: …".
    """
    chosen = SOLVERS[solver]
    element = "engine" if solver == "engine" else element if solver in ("pardiso", "pyamg") else "full"
    m = model(problem)
    out: dict[str, Any] = {
        "solver": solver, "version": None, "element": element, "mode": m.mode, "unknowns": int(m.free.sum()), "tolerance": tolerance,
        "iterations": None, "assembly_s": None, "setup_s": None, "solve_s": None, "total_s": None, "compile_s": None,
        "relative_residual": None, "compliance": None, "peak_mb": None, "import_mb": None, "threads": None, "status": "", "note": "",
    }  # fmt: skip
    try:
        element_matrices(element, m.spacing_mm)  # the engine's import is not the solver's time
        solve = chosen.prepare(m, tolerance, element)
        out |= {"version": metadata.version(chosen.package), "import_mb": peak_mb()}
    except (ImportError, OSError) as error:  # OSError: gmsh without its system libraries
        return out | {"status": NOT_INSTALLED if chosen.foreign else f"failed: {error}", "note": str(error)[:300]}
    try:
        answer = solve()
        peak = peak_mb()
    except Exception as error:  # a peer may fail in any way; the benchmark's table says how
        return out | {"status": f"failed: {type(error).__name__} {error}"[:500], "peak_mb": peak_mb()}
    taken = asdict(answer)
    u = taken.pop("u")
    residual, compliance = (judge if m.free.sum() < ASSEMBLED_BELOW or element != "engine" else judge_matrix_free)(m, u, element)
    fine = residual <= 1.05 * tolerance
    return out | taken | {
        "total_s": answer.setup_s + answer.solve_s, "relative_residual": residual, "compliance": compliance,
        "peak_mb": answer.peak_mb or peak, "import_mb": None if answer.peak_mb else out["import_mb"],
        "status": "ok" if fine else "residual above tolerance",
    }  # fmt: skip


def judge(m: Model, u: np.ndarray, element: str) -> tuple[float, float]:
    """‖b − K u‖/‖b‖ over the free degrees of freedom, and the compliance in N·mm: f·u, or reaction · u where u is prescribed."""
    k = stiffness(m, element)
    inner = (k @ u.ravel()).reshape(-1, 3)
    residual = np.linalg.norm((m.force - inner)[m.free]) / np.linalg.norm(_right_hand_side(m, k)[m.free])
    return float(residual), float(np.sum((m.force if m.mode == "force" else inner * ~m.free) * u))


def judge_matrix_free(m: Model, u: np.ndarray, element: str) -> tuple[float, float]:
    """`judge` for sizes whose matrix does not fit: K u by engine.elasticity.apply, JAX code that the compiled solver does not use."""
    import jax.numpy as jnp

    from engine.elasticity import Medium, apply

    nu = m.poisson
    lam, mu = m.voxels * (nu / ((1 + nu) * (1 - 2 * nu))), m.voxels / (2 * (1 + nu))
    medium = Medium(jnp.asarray(lam), jnp.asarray(mu), jnp.zeros(lam.shape))
    inner = np.asarray(apply(medium, jnp.asarray(m.dense(u))[None], m.spacing_mm))[0][:, *m.index.T].T
    if m.mode != "force":
        raise ValueError("displacement mode is judged by the assembled matrix only; ask for fewer unknowns")
    residual = np.linalg.norm((m.force - inner)[m.free]) / np.linalg.norm(m.force[m.free])
    return float(residual), float(np.sum(m.force * u))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def install() -> int:
    """jax-fem, parosol-py and what they need, into a virtual environment of their own; returns an exit status.

    jax-fem names no dependencies. PETSc has no wheel: it is compiled (a C compiler and make; about 15 minutes on two cores)
    without MPI, Fortran and C++ on MKL's BLAS. gmsh, which jax-fem imports, wants libGLU, libXcursor, libXft and libXinerama.
    """
    python = str(PEERS / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--no-input", "-c", str(ROOT / "scripts" / "constraints.txt")]
    petsc = "--with-mpi=0 --with-fc=0 --with-cxx=0 --with-x=0 --with-debugging=0 COPTFLAGS=-O3"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEERS)], check=True)
    subprocess.run([*pip, "parosol-py==0.1.26"], check=True)
    subprocess.run([*pip, "jax-fem==0.0.11", "jax", "meshio", "gmsh", "fenics-basix", "pyfiglet", "mkl"], check=True)
    blas = next((PEERS / "lib").glob("libmkl_rt.so*"))
    environment = os.environ | {"PETSC_CONFIGURE_OPTIONS": f"{petsc} --with-blaslapack-lib={blas}"}
    subprocess.run([*pip, f"petsc=={PETSC}"], check=True, env=environment)
    subprocess.run([*pip, f"petsc4py=={PETSC}"], check=True, env=environment)
    return 0


def main(arguments: list[str]) -> int:
    """See the module's docstring. The foreign solvers go on in their own Python, by exec: same process, same limits."""
    if arguments == ["install"]:
        return install()
    if len(arguments) not in (4, 5) or arguments[0] not in SOLVERS:
        print(f"usage: python -m scripts.peers install | {{{','.join(SOLVERS)}}} PROBLEM.npz TOLERANCE OUT.json [engine|full]")
        return 2
    solver, out = arguments[0], Path(arguments[3])
    if SOLVERS[solver].foreign and Path(sys.prefix).resolve() != PEERS.resolve() and (PEERS / "bin" / "python").exists():
        python = str(PEERS / "bin" / "python")
        os.execve(python, [python, "-m", "scripts.peers", *arguments], os.environ | {"PYTHONPATH": str(ROOT)})
    with np.load(arguments[1]) as problem:
        result = run(solver, dict(problem), float(arguments[2]), *arguments[4:])
    out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
