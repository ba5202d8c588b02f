"""Unilateral contact of one region with the rest of a conforming mesh: no tension, with or without Coulomb friction.

The region's nodes are doubled (`split`), so that its surface and what it touched are two surfaces of the same triangles. At every
quadrature point of the interface, with n out of the region, δ = u_outside − u_region and an initial gap g₀ ≥ 0:

    p = k ⟨−(g₀ + δ·n)⟩                  pressure (penalty: it closes when k grows; ⟨x⟩ = max(x, 0))
    t = k_t δ_t,   |t| ≤ μ p             shear; δ_t = δ − (δ·n) n, from the unloaded state (one proportional step)
    k_t = k where it sticks, μ p / |δ_t| where it slips;  μ = 0: k_t = 0

Small displacements: points stay opposite each other, so it is for sliding of less than an element.

Solved by semi-smooth Newton steps with step halving on the potential for a given μ p, which follows the pressure once forces balance.
Each step by conjugate gradients on the tangent, preconditioned by the last factorised one: first that of the bond, and the present
one whenever the gradients took more than 30 steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from engine.types import SolverStatus
from fem import elasticity as el
from fem.faces import Faces, faces_of
from fem.linear import Factor, LinkRows, Solution, apply
from fem.mesh import TetMesh
from fem.tets import face_pairs

log = logging.getLogger("spinefit.fem")
#: Share of the springs that is left tangentially where there is no friction, so that no body floats sideways; its share of the
#: load is in the status.
_STABILISING = 1e-7


@dataclass(frozen=True)
class ContactSettings:
    """friction   Coulomb's coefficient; 0: frictionless
    stiffness_mpa_per_mm   k: penetration is pressure / k (5 MPa: 1 µm). Above some 10 E/h of the softer side (E modulus, h element)
                           pressures of quadratic faces ring; below E/h the layer is felt
    """

    friction: float = 0.0
    stiffness_mpa_per_mm: float = 5e3
    max_iterations: int = 60
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0.0 <= self.friction <= 2.0:
            raise ValueError(f"friction={self.friction}: give Coulomb's coefficient, 0 to 2 (metal on bone: 0.3-0.8)")
        if self.stiffness_mpa_per_mm <= 0.0:
            raise ValueError(f"stiffness_mpa_per_mm={self.stiffness_mpa_per_mm}: must be above 0")


@dataclass(frozen=True)
class Split:
    """mesh: with the region's nodes doubled; its tetrahedra, outside's [f] and both sides' vertices [f, 3] of the interface."""

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
    shared = np.unique(mesh.tets[~mine])
    shared = shared[np.isin(shared, np.unique(mesh.tets[mine]))]  # also where only an edge or a vertex is common
    own = np.arange(len(mesh.points_mm))
    own[shared] = len(mesh.points_mm) + np.arange(len(shared))
    tets = mesh.tets.copy()
    tets[mine] = own[tets[mine]]
    points = np.vstack([mesh.points_mm, mesh.points_mm[shared]])
    return Split(TetMesh(points, tets, mesh.labels, mesh.quality, mesh.log), inner, outer, own[outer_vertices], outer_vertices)


@dataclass(frozen=True)
class Interface:
    """Both sides' interpolation at the points of the interface, in the discretisation of the split mesh.

    jump [s, nodes]: outside minus region, scalar; normal [s, 3] out of the region; weight_mm2, gap_mm [s]; faces: the region's.
    """

    jump: sp.csr_matrix
    normal: np.ndarray
    weight_mm2: np.ndarray
    gap_mm: np.ndarray
    faces: Faces
    outer: np.ndarray

    @property
    def area_mm2(self) -> float:
        return float(self.weight_mm2.sum())

    def relative(self, u: np.ndarray) -> np.ndarray:
        """δ [s, 3, l] of displacements [dofs, l]."""
        nodal = u.reshape(-1, 3 * u.shape[1])
        return np.asarray(self.jump @ nodal).reshape(len(self.normal), 3, u.shape[1])

    def forces(self, traction: np.ndarray) -> np.ndarray:
        """Nodal forces [dofs, l] of tractions [s, 3, l] on the outside (and their opposite on the region)."""
        weighted = (self.weight_mm2[:, None, None] * traction).reshape(len(self.normal), -1)
        return np.asarray(self.jump.T @ weighted).reshape(-1, traction.shape[2])


def interface(d: el.Discretisation, cut: Split, gap: Callable[[np.ndarray], np.ndarray] | None = None) -> Interface:
    """gap(points_mm [s, 3]) → g₀ [s], mm; none: closed everywhere."""
    inner, outer = faces_of(d, cut.inner, cut.inner_vertices), faces_of(d, cut.outer, cut.outer_vertices)
    n = len(d.nodes_mm)
    jump = sp.csr_matrix(outer.interpolation(n) - inner.interpolation(n))
    points = inner.points_mm.reshape(-1, 3)
    normal = np.repeat(inner.normal, inner.points_mm.shape[1], axis=0)
    initial = np.zeros(len(points)) if gap is None else np.asarray(gap(points), float)
    if not np.allclose(points, outer.points_mm.reshape(-1, 3), atol=1e-9):
        raise ValueError("the two sides of the interface do not lie on each other")
    return Interface(jump, normal, inner.weight_mm2.ravel(), initial, inner, cut.outer)


@dataclass(frozen=True)
class Contact:
    """What came of it: u [dofs, l], a status per load; pressure, shear [s, l] MPa; opening_mm [s, l] where it is open."""

    solution: Solution
    pressure: np.ndarray
    shear: np.ndarray
    opening_mm: np.ndarray

    def figures(self, at: Interface) -> list[dict[str, float]]:
        """Per load: touching and slipping share of the area, force across, largest pressure and opening."""
        w = at.weight_mm2
        found = []
        for p, t, o in zip(self.pressure.T, self.shear.T, self.opening_mm.T, strict=True):
            force = (p[:, None] * at.normal * w[:, None]).sum(0)
            found.append({
                "touching_percent": float(100.0 * w[p > 0].sum() / w.sum()), "largest_pressure_mpa": float(p.max(initial=0.0)),
                "largest_opening_mm": float(o.max(initial=0.0)), "largest_shear_mpa": float(t.max(initial=0.0)),
                "resultant_n": float(np.linalg.norm(force)), "pressed_n": float((p * w).sum()),
            })  # fmt: skip
        return found


def solve_contact(
    matrix: sp.csr_matrix, loads: np.ndarray, links: list[LinkRows], at: Interface, settings: ContactSettings = ContactSettings(),
    tolerance: float = 1e-7,
) -> Contact:  # fmt: skip
    """Equilibrium of K u + (links) + (contact) = f for every column of loads [dofs, l]; K [dofs, dofs] is of the split mesh.

    A column that does not come to rest has status "stagnated"; one that is held by nothing (all contact open) "failed" and NaN.
    """
    clock = time.perf_counter()
    k, mu = settings.stiffness_mpa_per_mm, settings.friction
    count = loads.shape[1]
    u = np.zeros_like(loads)
    status = [SolverStatus("failed", "") for _ in range(count)]
    with _Tangents(matrix, links) as tangents:
        tangents.factorise(Springs(at, np.broadcast_to(k * np.eye(3), (len(at.normal), 3, 3))))
        bond = tangents.factor.solve(loads)
        for column in range(count):
            u[:, column], status[column] = _column(loads[:, column], tangents, at, bond[:, column], settings, tolerance)
            log.info("contact, load %d of %d: %s", column + 1, count, status[column].text)
    delta = at.relative(u)
    normal = at.gap_mm[:, None] + np.einsum("sil,si->sl", delta, at.normal)
    pressure = k * np.maximum(-normal, 0.0)
    slide = np.linalg.norm(delta - np.einsum("sil,si,sj->sjl", delta, at.normal, at.normal), axis=1)
    shear = np.minimum(k * slide, mu * pressure)
    name = "contact, Newton, conjugate gradients on one factorisation"
    return Contact(Solution(u, status, name, time.perf_counter() - clock), pressure, shear, np.maximum(normal, 0.0))


@dataclass(frozen=True)
class Springs:
    """block [s, 3, 3] MPa/mm at the points of an interface: ∫ δᵀ block δ dA."""

    at: Interface
    block: np.ndarray

    def apply(self, u: np.ndarray) -> np.ndarray:
        """[dofs] of u [dofs]."""
        traction = np.einsum("sij,sj->si", self.block, self.at.relative(u[:, None])[..., 0])
        return self.at.forces(traction[..., None])[:, 0]

    def matrix(self) -> sp.csr_matrix:
        """[dofs, dofs]."""
        count = len(self.block)
        wide = sp.csr_matrix(sp.kron(self.at.jump, sp.eye(3)))
        weighted = self.block * self.at.weight_mm2[:, None, None]
        middle = sp.bsr_matrix((weighted, np.arange(count), np.arange(count + 1)), shape=(3 * count, 3 * count))
        return sp.csr_matrix(wide.T @ (middle @ wide))


@dataclass(frozen=True)
class _Law:
    """Tractions, their potential and tangent at δ [s, 3] for a given bound of the shear μ p [s], MPa."""

    at: Interface
    k: float
    bound: np.ndarray

    def parts(self, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gap along n [s], δ_t [s, 3], |δ_t| [s]."""
        along = (delta * self.at.normal).sum(1)
        tangential = delta - along[:, None] * self.at.normal
        return self.at.gap_mm + along, tangential, np.linalg.norm(tangential, axis=1)

    def potential(self, delta: np.ndarray) -> float:
        gap, _, slide = self.parts(delta)
        stick = self.k * slide <= self.bound
        # Huber's function, whose derivative is the shear
        huber = np.where(stick, 0.5 * self.k * slide**2, self.bound * (slide - 0.5 * self.bound / self.k))
        each = 0.5 * self.k * np.minimum(gap, 0.0) ** 2 + 0.5 * _STABILISING * self.k * slide**2 + huber
        return float(self.at.weight_mm2 @ each)

    def traction(self, delta: np.ndarray) -> np.ndarray:
        gap, tangential, slide = self.parts(delta)
        secant = np.minimum(self.k, self.bound / np.maximum(slide, 1e-300)) + _STABILISING * self.k
        return self.k * np.minimum(gap, 0.0)[:, None] * self.at.normal + secant[:, None] * tangential

    def tangent(self, delta: np.ndarray, closed: np.ndarray | None = None) -> Springs:
        gap, tangential, slide = self.parts(delta)
        n = self.at.normal
        stick = self.k * slide <= self.bound
        secant = np.minimum(self.k, self.bound / np.maximum(slide, 1e-300))
        along = np.where(stick, 0.0, secant)  # a slipping point does not resist in the direction of its slip
        d = tangential / np.maximum(slide, 1e-300)[:, None]
        flat = np.eye(3) - np.einsum("si,sj->sij", n, n)
        normal = np.where(gap < 0.0 if closed is None else closed, self.k, 0.0)
        block = normal[:, None, None] * np.einsum("si,sj->sij", n, n) - along[:, None, None] * np.einsum("si,sj->sij", d, d)
        return Springs(self.at, block + (secant + _STABILISING * self.k)[:, None, None] * flat)


class _Tangents:
    """K + links + springs: products, and solves preconditioned by the last that was factorised."""

    def __init__(self, matrix: sp.csr_matrix, links: list[LinkRows]) -> None:
        self.matrix, self.links = matrix, links
        self._factor: Factor | None = None
        self.steps = self.factorised = 0

    @property
    def factor(self) -> Factor:
        assert self._factor is not None
        return self._factor

    def factorise(self, springs: Springs) -> None:
        self.__exit__()
        self._factor = Factor(sp.csr_matrix(self.matrix + springs.matrix()), self.links)
        self.factorised += 1

    def product(self, u: np.ndarray) -> np.ndarray:
        """Without springs."""
        return apply(self.matrix, self.links, u)

    def solve(self, springs: Springs, f: np.ndarray, tolerance: float) -> np.ndarray:
        """To |r| < tolerance (absolute)."""
        for most in (30, 500):
            u, reached, steps = self._gradients(springs, f, tolerance, most)
            self.steps += steps
            if reached:
                break
            if most == 30:
                self.factorise(springs)
        return u

    def _gradients(self, springs: Springs, f: np.ndarray, tolerance: float, most: int) -> tuple[np.ndarray, bool, int]:
        u, r = np.zeros_like(f), f.copy()
        z = self.factor.once(r[:, None])[:, 0]
        p, rz = z.copy(), float(r @ z)
        for step in range(most):
            if np.linalg.norm(r) < tolerance:
                return u, True, step
            q = self.product(p) + springs.apply(p)
            alpha = rz / float(p @ q)
            u += alpha * p
            r -= alpha * q
            z = self.factor.once(r[:, None])[:, 0]
            new = float(r @ z)
            p, rz = z + (new / rz) * p, new
        return u, False, most

    def __enter__(self) -> _Tangents:
        return self

    def __exit__(self, *_: object) -> None:
        if self._factor is not None:
            self._factor.__exit__()
            self._factor = None


def _column(
    f: np.ndarray, tangents: _Tangents, at: Interface, start: np.ndarray, settings: ContactSettings, tolerance: float
) -> tuple[np.ndarray, SolverStatus]:
    """Newton on the potential with step halving; the bound of the shear follows the pressure whenever the forces balance."""
    k, mu, w = settings.stiffness_mpa_per_mm, settings.friction, at.weight_mm2
    size = max(float(np.linalg.norm(f)), 1e-300)

    def delta_of(u: np.ndarray) -> np.ndarray:
        return at.relative(u[:, None])[..., 0]

    def out_of_balance(u: np.ndarray, law: _Law) -> np.ndarray:
        return f - tangents.product(u) - at.forces(law.traction(delta_of(u))[..., None])[:, 0]

    def potential(u: np.ndarray, law: _Law) -> float:
        return 0.5 * float(u @ tangents.product(u)) - float(f @ u) + law.potential(delta_of(u))

    u, unsettled, balance, first = start, np.inf, np.inf, (tangents.steps, tangents.factorised)
    if at.gap_mm.any():  # the first guess of what touches: the twentieth of the area with the smallest gap
        order = np.argsort(at.gap_mm)
        closed = at.gap_mm <= at.gap_mm[order[np.searchsorted(np.cumsum(w[order]), 0.05 * w.sum())]]
        tangent = _Law(at, k, np.zeros(len(w))).tangent(delta_of(u), closed)
        pull = f - at.forces((k * closed * at.gap_mm)[:, None, None] * at.normal[:, :, None])[:, 0]
        u = tangents.solve(tangent, pull, 1e-4 * size)
    law = _Law(at, k, mu * k * np.maximum(-_gap(at, delta_of(u)), 0.0))
    for step in range(settings.max_iterations):
        r = out_of_balance(u, law)
        balance = float(np.linalg.norm(r) / size)
        if balance < tolerance:
            gap = law.parts(delta_of(u))[0]
            pressed = float(w @ np.maximum(-gap, 0.0)) * k
            bound = mu * k * np.maximum(-gap, 0.0)
            unsettled = float(w @ np.abs(bound - law.bound)) / max(pressed, 1e-300)
            if unsettled < settings.tolerance:
                return u, _settled(law, delta_of(u), step, tangents.steps - first[0], tangents.factorised - first[1], balance)
            law = _Law(at, k, bound)
            r = out_of_balance(u, law)
        tangent = law.tangent(delta_of(u))
        if not np.any(tangent.block[:, 0, 0] + tangent.block[:, 1, 1] + tangent.block[:, 2, 2] > 10.0 * _STABILISING * k):
            return np.full_like(u, np.nan), SolverStatus("failed", "the contact is open everywhere: nothing holds the part", step, 1.0)
        move = tangents.solve(tangent, r, max(1e-4 * float(np.linalg.norm(r)), 0.1 * tolerance * size))
        before, share = potential(u, law), 1.0
        slope = float(r @ move)
        while potential(u + share * move, law) > before - 1e-4 * share * slope and share > 1e-4:
            share *= 0.5
        u = u + share * move
    text = f"contact does not come to rest in {settings.max_iterations} steps: out of balance by {balance:.1e}, friction by {unsettled:.1e}"
    return u, SolverStatus("stagnated", text, tangents.steps - first[0], balance)


def _settled(law: _Law, delta: np.ndarray, steps: int, inner: int, factorised: int, balance: float) -> SolverStatus:
    gap, _, slide = law.parts(delta)
    w = law.at.weight_mm2
    touching = 100.0 * w[gap < 0.0].sum() / w.sum()
    text = f"contact: {steps} steps, {inner} of gradients, {factorised} factorisations, {touching:.0f} % touching"
    held = float(w @ slide) * law.k * _STABILISING / max(float(w @ np.maximum(-gap, 0.0)) * law.k, 1e-300)
    if not np.any(gap < 0.0) or held > 0.5:
        return SolverStatus("failed", "nothing holds the part: the contact is open, or slides without end", inner, balance)
    if held > 1e-3:
        text += f"; stabilising shear carries {100 * held:.1f} % of the pressure"
    return SolverStatus("ok", text, inner, balance)


def _gap(at: Interface, delta: np.ndarray) -> np.ndarray:
    """g₀ + δ·n [s], mm."""
    return np.asarray(at.gap_mm + (delta * at.normal).sum(1))
