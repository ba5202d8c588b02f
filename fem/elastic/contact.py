"""Unilateral contact of one region with the rest of a conforming mesh: no tension, with or without
Coulomb friction.

The region's nodes are doubled (`split`), so that its surface and what it touched are two surfaces
of the same triangles. At every quadrature point of the interface, with n out of the region,
δ = u_outside − u_region and an initial gap g₀ ≥ 0:

    p = k ⟨−(g₀ + δ·n)⟩,   ⟨x⟩ = max(x, 0)      pressure; penetration p/k goes to 0 as k grows
    t = k_t δ_t,   |t| ≤ μ p                    shear, with δ_t = δ − (δ·n) n
    k_t = k where it sticks, μ p / |δ_t| where it slips; 0 where μ = 0

Shear is that of one proportional step from the unloaded state. Displacements are small: points
stay opposite each other, so sliding must be less than an element.

Solved by the alternating direction method (Douglas-Rachford splitting; Boyd et al. 2011). With
B u = δ and z = δ̂ + t̂/ρ at the points, an iteration is

    δ̂, t̂ = the law's answer to z (closed form)
    (K + Bᵀρ B) u = f + Bᵀ(ρ δ̂ − t̂)
    z ← z + B u − δ̂

One factorisation serves every load case and coefficient of friction; each iteration solves for all
load cases at once, and forces balance after each. It is accelerated per load case (Anderson 1965).
ρ is between the stiffnesses of smooth and of rough deformations of the bodies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import meshio
import numpy as np
import scipy.sparse as sp

from engine.types import SolverStatus
from fem.elastic import operators as el
from fem.elastic.faces import Faces, faces_of
from fem.elastic.factor import Factor, LinkRows, Solution
from fem.fields import array_name
from fem.mesh.build import TetMesh
from fem.mesh.tets import face_pairs

log = logging.getLogger("spinefit.fem")
#: Share of the stiffness that is left tangentially where there is no friction, so that no body
#: floats sideways.
_STABILISING = 1e-7
#: Iterations that the acceleration looks back on.
_WINDOW = 15
#: It starts afresh where it made the residual grow by more than this factor [M].
_ASTRAY = 3.0
#: Stabilising shear over pressure: above the first it is told, above the second (without friction)
#: it is what holds the part, which then slides without end [M].
_STABILISED_SHARE_TOLD, _STABILISED_SHARE_MOST = 1e-3, 0.5
#: A part that slides farther than this has left its place, mm [M].
_MOST_SLIDE_MM = 1e3


@dataclass(frozen=True)
class ContactSettings:
    """The law's constants, and when its solution is good enough.

    friction               Coulomb's coefficient; 0: frictionless
    stiffness_mpa_per_mm   k: penetration is pressure / k (5 MPa: 1 µm). Above some 10 E/h of the
                           softer side (E modulus, h element) pressures of quadratic faces ring;
                           below E/h the layer's own softness shows in the result
    max_iterations         of the alternating direction method
    tolerance              root mean square over the interface of (law's traction − traction in
                           balance), relative to that of the law's traction
    """

    friction: float = 0.0
    stiffness_mpa_per_mm: float = 5e3
    max_iterations: int = 400
    tolerance: float = 5e-4

    def __post_init__(self) -> None:
        if not 0.0 <= self.friction <= 2.0:
            raise ValueError(
                f"friction={self.friction}: give Coulomb's coefficient, 0 to 2 (metal on bone:"
                " 0.3-0.8)"
            )
        if self.stiffness_mpa_per_mm <= 0.0:
            raise ValueError(f"stiffness_mpa_per_mm={self.stiffness_mpa_per_mm}: must be above 0")


@dataclass(frozen=True)
class Split:
    """A mesh in which one region has nodes of its own, and the triangles of the interface.

    mesh                                      the interface's nodes are doubled
    inner, outer [f]                          the triangles' tetrahedra in and outside the region
    inner_vertices, outer_vertices [f, 3]     the triangles' nodes on either side
    """

    mesh: TetMesh
    inner: np.ndarray
    outer: np.ndarray
    inner_vertices: np.ndarray
    outer_vertices: np.ndarray


def split(mesh: TetMesh, region: int) -> Split:
    """The mesh with region `region` (label) cut free of all others.

    Raises: ValueError where the region touches nothing.
    """
    faces, first, second = face_pairs(mesh.tets)
    mine = mesh.labels == region
    across = (second >= 0) & (mine[first] != mine[second])
    if not across.any():
        raise ValueError(f"region {region} touches no other region: there is no contact to look at")
    first, second, outer_vertices = first[across], second[across], faces[across]
    swap = mine[second]
    inner, outer = np.where(swap, second, first), np.where(swap, first, second)
    # also where only an edge or a vertex is common
    shared = np.unique(mesh.tets[~mine])
    shared = shared[np.isin(shared, np.unique(mesh.tets[mine]))]
    own = np.arange(len(mesh.points_mm))
    own[shared] = len(mesh.points_mm) + np.arange(len(shared))
    tets = mesh.tets.copy()
    tets[mine] = own[tets[mine]]
    points = np.vstack([mesh.points_mm, mesh.points_mm[shared]])
    return Split(
        TetMesh(points, tets, mesh.labels, mesh.quality, mesh.log),
        inner,
        outer,
        own[outer_vertices],
        outer_vertices,
    )


@dataclass(frozen=True)
class Interface:
    """Both sides' interpolation at the points of the interface, in the discretisation of the split
    mesh.

    jump [s, nodes]    scalar values outside minus those of the region
    normal [s, 3]      out of the region
    weight_mm2 [s]     of the quadrature
    gap_mm [s]         initial
    faces              the region's
    """

    jump: sp.csr_matrix
    normal: np.ndarray
    weight_mm2: np.ndarray
    gap_mm: np.ndarray
    faces: Faces

    @property
    def area_mm2(self) -> float:
        return float(self.weight_mm2.sum())

    def relative(self, u: np.ndarray) -> np.ndarray:
        """δ [s, 3, l] of displacements [dofs, l]."""
        nodal = u.reshape(-1, 3 * u.shape[1])
        return np.asarray(self.jump @ nodal).reshape(len(self.normal), 3, u.shape[1])

    def springs(self, k: float) -> sp.csr_matrix:
        """∫ k δ·δ dA as a matrix [dofs, dofs]."""
        scalar = self.jump.T @ sp.diags(k * self.weight_mm2) @ self.jump
        return sp.csr_matrix(sp.kron(scalar, sp.eye(3)))

    def forces(self, traction: np.ndarray) -> np.ndarray:
        """Nodal forces [dofs, l] of tractions [s, 3, l] on the outside (and their opposite on
        the region)."""
        weighted = (self.weight_mm2[:, None, None] * traction).reshape(len(self.normal), -1)
        return np.asarray(self.jump.T @ weighted).reshape(-1, traction.shape[2])


def interface(
    d: el.Discretisation, cut: Split, gap: Callable[[np.ndarray], np.ndarray] | None = None
) -> Interface:
    """gap(points_mm [s, 3]) → g₀ [s], mm; none: closed everywhere."""
    inner, outer = (
        faces_of(d, cut.inner, cut.inner_vertices),
        faces_of(d, cut.outer, cut.outer_vertices),
    )
    n = len(d.nodes_mm)
    jump = sp.csr_matrix(outer.interpolation(n) - inner.interpolation(n))
    points = inner.points_mm.reshape(-1, 3)
    normal = np.repeat(inner.normal, inner.points_mm.shape[1], axis=0)
    initial = np.zeros(len(points)) if gap is None else np.asarray(gap(points), float)
    if not np.allclose(points, outer.points_mm.reshape(-1, 3), atol=1e-9):
        raise ValueError("the two sides of the interface do not lie on each other")
    return Interface(jump, normal, inner.weight_mm2.ravel(), initial, inner)


@dataclass(frozen=True)
class Contact:
    """Equilibrium with contact: u [dofs, l] and a status per load in `solution`; at the interface's
    points pressure, shear [s, l] in MPa and opening_mm [s, l] where it is open."""

    solution: Solution
    pressure: np.ndarray
    shear: np.ndarray
    opening_mm: np.ndarray

    def on_faces(self, nodes_mm: np.ndarray, at: Interface, names: Sequence[str]) -> meshio.Mesh:
        """The interface's triangles with means per load case: `<name>_pressure_mpa`,
        `_shear_mpa`, `_opening_mm`."""
        used, triangles = np.unique(at.faces.nodes[:, :3], return_inverse=True)
        data = {}
        for k, name in enumerate(names):
            for what, values in (
                ("pressure_mpa", self.pressure),
                ("shear_mpa", self.shear),
                ("opening_mm", self.opening_mm),
            ):
                each = values[:, k].reshape(at.faces.weight_mm2.shape)
                data[array_name(name, what)] = [
                    (each * at.faces.weight_mm2).sum(1) / at.faces.weight_mm2.sum(1)
                ]
        return meshio.Mesh(nodes_mm[used], [("triangle", triangles.reshape(-1, 3))], cell_data=data)

    def figures(self, at: Interface) -> list[dict[str, float]]:
        """Per load: touching share of the area, force across, largest pressure, shear and
        opening."""
        w = at.weight_mm2
        figures = []
        for p, t, o in zip(self.pressure.T, self.shear.T, self.opening_mm.T, strict=True):
            force = (p[:, None] * at.normal * w[:, None]).sum(0)
            figures.append(
                {
                    "touching_percent": float(100.0 * w[p > 0].sum() / w.sum()),
                    "largest_pressure_mpa": float(p.max(initial=0.0)),
                    "largest_opening_mm": float(o.max(initial=0.0)),
                    "largest_shear_mpa": float(t.max(initial=0.0)),
                    "resultant_n": float(np.linalg.norm(force)),
                    "pressed_n": float((p * w).sum()),
                }
            )
        return figures


def solve_contact(
    matrix: sp.csr_matrix,
    loads: np.ndarray,
    links: list[LinkRows],
    at: Interface,
    modulus_mpa: float,
    settings: ContactSettings = ContactSettings(),
) -> Contact:
    """Equilibrium of K u + (links) + (contact) = f for every column of loads [dofs, l]; K [dofs,
    dofs] is of the split mesh.

    modulus_mpa   of the softer side, about; only the speed depends on it

    A column that does not come to rest has status "stagnated"; one that is held by nothing (all
    contact open) "failed" and NaN.
    """
    clock = time.perf_counter()
    law = _Law(at.gap_mm, at.normal, settings.stiffness_mpa_per_mm, settings.friction)
    element = float(np.sqrt(at.area_mm2 / len(at.faces.nodes)))
    rho = min(modulus_mpa / np.sqrt(element * np.sqrt(at.area_mm2)), settings.stiffness_mpa_per_mm)
    with Factor(sp.csr_matrix(matrix + at.springs(rho)), links) as factor:
        end = _alternate(factor, loads, at, law, rho, settings)
    delta, traction = law.answer(end.z, rho)
    status = []
    for load in range(loads.shape[1]):
        status.append(_judged(law, at, delta[load], traction[load], end, load))
        if status[-1].code == "failed":
            end.u[:, load] = np.nan
        log.info("contact, load %d of %d: %s", load + 1, loads.shape[1], status[-1].text)
    along = np.einsum("lsi,si->sl", traction, at.normal)
    shear = np.linalg.norm(traction - np.einsum("sl,si->lsi", along, at.normal), axis=2).T
    opening = np.maximum(at.gap_mm[:, None] + np.einsum("lsi,si->sl", delta, at.normal), 0.0)
    solution = Solution(
        end.u,
        status,
        "contact by alternating directions on one factorisation",
        time.perf_counter() - clock,
    )
    return Contact(solution, np.maximum(-along, 0.0), shear, opening)


@dataclass(frozen=True)
class _End:
    """Where the iteration ended.

    u [dofs, l], z [l, s, 3]
    rested_after [l]   the iteration at which a load came to rest; 0: it did not
    off [l]            how far its tractions are off, relative
    iterations         spent on all loads
    rho                ρ, MPa/mm
    """

    u: np.ndarray
    z: np.ndarray
    rested_after: np.ndarray
    off: np.ndarray
    iterations: int
    rho: float


def _alternate(
    factor: Factor,
    loads: np.ndarray,
    at: Interface,
    law: _Law,
    rho: float,
    settings: ContactSettings,
) -> _End:
    """The iteration, until every load is at rest or max_iterations are spent. factor: of the body
    with its interface bonded by springs of stiffness ρ."""
    count, weight = loads.shape[1], at.weight_mm2[:, None]
    anderson = [_Anderson(_WINDOW) for _ in range(count)]
    off, rested_after = np.full(count, np.inf), np.zeros(count, int)
    free = factor.solve(loads)
    u = free.copy()
    z = at.relative(u).transpose(2, 0, 1).copy()
    for iteration in range(1, settings.max_iterations + 1):
        going = np.flatnonzero(rested_after == 0)
        delta, traction = law.answer(z[going], rho)
        pull = at.forces((rho * delta - traction).transpose(1, 2, 0))
        u[:, going] = free[:, going] + factor.once(pull)
        change = at.relative(u[:, going]).transpose(2, 0, 1) - delta
        for i, load in enumerate(going.tolist()):
            size = np.sqrt((weight * traction[i] ** 2).sum())
            off[load] = rho * np.sqrt((weight * change[i] ** 2).sum()) / max(size, 1e-300)
            if off[load] < settings.tolerance:
                rested_after[load] = iteration
            else:
                z[load] = anderson[load].step(z[load], change[i], np.sqrt(weight))
        if (rested_after > 0).all():
            break
    return _End(u, z, rested_after, off, iteration, rho)


def _judged(
    law: _Law, at: Interface, delta: np.ndarray, traction: np.ndarray, end: _End, load: int
) -> SolverStatus:
    """Of one load, with its δ and t [s, 3] by the law at the end of the iteration."""
    rested_after, off = int(end.rested_after[load]), float(end.off[load])
    w = at.weight_mm2
    pressure = -(traction * at.normal).sum(1)
    touching = 100.0 * w[pressure > 0.0].sum() / w.sum()
    slide = np.linalg.norm(delta - (delta * at.normal).sum(1)[:, None] * at.normal, axis=1)
    pressed_n = max(float(w @ np.maximum(pressure, 0.0)), 1e-300)
    stabilised = float(w @ slide) * law.k * _STABILISING / pressed_n
    if (
        touching == 0.0
        or (stabilised > _STABILISED_SHARE_MOST and law.friction == 0.0)
        or slide.max() > _MOST_SLIDE_MM
        or not np.isfinite(off)
    ):
        return SolverStatus(
            "failed",
            "nothing holds the part: the contact is open, or slides without end",
            end.iterations,
            off,
        )
    if not rested_after:
        text = (
            f"contact does not come to rest in {end.iterations} iterations: tractions off by"
            f" {off:.1e} (ρ {end.rho:.0f} MPa/mm)"
        )
        return SolverStatus("stagnated", text, end.iterations, off)
    text = f"contact: {rested_after} iterations, {touching:.0f} % touching"
    if stabilised > _STABILISED_SHARE_TOLD:
        text += f"; stabilising shear is {100 * stabilised:.1f} % of the pressure"
    return SolverStatus("ok", text, rested_after, off)


@dataclass(frozen=True)
class _Law:
    """Contact at points with initial gap_mm [s], normal [s, 3], stiffness k and friction."""

    gap_mm: np.ndarray
    normal: np.ndarray
    k: float
    friction: float

    def answer(self, z: np.ndarray, rho: float) -> tuple[np.ndarray, np.ndarray]:
        """δ and t [l, s, 3] with t = law(δ) and δ + t/ρ = z [l, s, 3]."""
        along = np.einsum("lsi,si->ls", z, self.normal)
        gap = self.gap_mm + along
        press = np.minimum(gap, 0.0) * rho * self.k / (self.k + rho)  # negative: against the normal
        tangential = z - along[..., None] * self.normal
        size = np.linalg.norm(tangential, axis=2)
        if self.friction > 0.0:
            most = rho * self.k / (self.k + rho) * size
            shear = np.minimum(most, -self.friction * press)
        else:
            weak = _STABILISING * self.k
            shear = rho * weak / (weak + rho) * size
        traction = (
            press[..., None] * self.normal
            + (shear / np.maximum(size, 1e-300))[..., None] * tangential
        )
        return z - traction / rho, traction


class _Anderson:
    """z ← z + r improved by the last iterates: the combination of them whose residuals r are
    least (weighted). Anderson 1965."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.points: list[np.ndarray] = []
        self.residuals: list[np.ndarray] = []

    def step(self, z: np.ndarray, r: np.ndarray, weight: np.ndarray) -> np.ndarray:
        size = np.linalg.norm(weight * r)
        if self.residuals and size > _ASTRAY * np.linalg.norm(weight * self.residuals[-1]):
            self.points, self.residuals = [], []  # start again from here
        self.points.append(z.copy())
        self.residuals.append(r.copy())
        self.points = self.points[-self.window - 1 :]
        self.residuals = self.residuals[-self.window - 1 :]
        if len(self.points) < 3:
            return z + r
        dz = np.stack([(b - a).ravel() for a, b in pairwise(self.points)], 1)
        dr = np.stack([(b - a).ravel() for a, b in pairwise(self.residuals)], 1)
        each = np.broadcast_to(weight, z.shape).ravel()
        factors = np.linalg.lstsq(each[:, None] * dr, each * r.ravel(), rcond=1e-8)[0]
        return np.asarray(z + r - ((dz + dr) @ factors).reshape(z.shape))
