"""The intact motion segment at finite strain: hyperelastic disc, tension-only ligaments, facets,
follower preload.

The caudal vertebra is held, the cranial one is a rigid body with position t and rotation R; what
the disc's end nodes, the ligaments' and the facets' points do follows from it (rigid bone: its own
give, some tenth of the disc's, is left out). Equilibrium of

    disc      internal forces of fem/intact/hyperelastic.py; its end nodes move with the vertebrae
    ligament  a strand of length l between its insertions pulls with T(ε), ε = l/l₀ − 1, T = 0 for ε
              ≤ 0
    facets    p = k (⟨δ⟩ − toe/2), k δ²/(2 toe) for 0 < δ < toe, δ = φ₀ − c − φ(x), on the cranial
              facet's points x: φ distance to the caudal vertebra, φ₀ in the given pose (so facets
              are taken as congruent, with clearance c); normal ∇φ, no friction
    follower  a cable of constant tension between the centres of both vertebral bodies (Patwardhan
              1999)
    load      a force at the centre of the cranial body and a moment, both of constant direction

by Newton's method with line search in increments that are halved where it fails; every increment
can be kept and gone on from.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import meshio
import numpy as np
import scipy.sparse as sp
from scipy.spatial.transform import Rotation

from engine import artifacts
from engine.types import VoxelField
from fem.elastic.factor import Factor
from fem.elastic.operators import skew
from fem.intact.hyperelastic import Body, jacobians

log = logging.getLogger("spinefit.fem")
#: Raised when the same segment and loads give other states.
_VERSION = 1
#: A moment counts as a force at this arm (the disc's rim) where the two are compared.
_ARM_MM = 40.0
_MOST_ITERATIONS = 15
_MOST_HALVINGS = 6


class TensionLaw(Protocol):
    def tension(
        self, length_mm: np.ndarray, at_rest_mm: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """T [s] in N and dT/dl [s] in N/mm of strands that are length_mm long, and at_rest_mm in
        the given pose."""


@dataclass(frozen=True)
class ToeLinear:
    """l₀ = (1 + slack)·at rest; T = k ε²/(2 toe) for 0 < ε < toe, k (ε − toe/2) beyond; k in N
    per strain, of one strand. C1."""

    slack: float
    toe: float
    k_n: float

    def tension(
        self, length_mm: np.ndarray, at_rest_mm: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        unloaded = (1.0 + self.slack) * at_rest_mm
        strain = np.maximum(length_mm / unloaded - 1.0, 0.0)
        in_toe = np.minimum(strain, self.toe)
        return (
            self.k_n * (0.5 * in_toe**2 / self.toe + strain - in_toe),
            self.k_n * in_toe / self.toe / unloaded,
        )


@dataclass(frozen=True)
class Piecewise:
    """Stiffness k_n_mm[i] between the strains upto[i − 1] and upto[i] (the last goes on), of the
    whole ligament of `strands`."""

    upto: tuple[float, ...]
    k_n_mm: tuple[float, ...]
    strands: int

    def tension(
        self, length_mm: np.ndarray, at_rest_mm: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        strain = np.maximum(length_mm / at_rest_mm - 1.0, 0.0)
        edges = np.array([0.0, *self.upto, np.inf])
        total, slope = np.zeros(strain.shape), np.zeros(strain.shape)
        for k, low, high in zip(self.k_n_mm, edges[:-1], edges[1:], strict=True):
            total += k * at_rest_mm * np.clip(strain - low, 0.0, high - low)
            slope += k * ((strain > low) & (strain <= high))
        return total / self.strands, slope / self.strands


@dataclass(frozen=True)
class Ligament:
    """Strands from cranial_mm [s, 3] to caudal_mm [s, 3]."""

    name: str
    cranial_mm: np.ndarray
    caudal_mm: np.ndarray
    law: TensionLaw


@dataclass(frozen=True)
class Facets:
    """points_mm [s, 3] and area_mm2 [s] on the cranial vertebra, left [s] (bool); distance to
    the caudal one; the cartilage's stiffness and clearance."""

    points_mm: np.ndarray
    area_mm2: np.ndarray
    left: np.ndarray
    distance: VoxelField
    stiffness_mpa_per_mm: float
    clearance_mm: float
    toe_mm: float = 0.1

    def pressure(self, approach_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """MPa and MPa/mm of points that are approach_mm [s] nearer than in the given pose."""
        over = np.maximum(approach_mm - self.clearance_mm, 0.0)
        in_toe = np.minimum(over, self.toe_mm)
        k = self.stiffness_mpa_per_mm
        return k * (0.5 * in_toe**2 / self.toe_mm + over - in_toe), k * in_toe / self.toe_mm


@dataclass(frozen=True)
class Load:
    """follower_n ≥ 0; force_n and moment_nmm [3] in the segment's axes (anterior, left,
    cranial)."""

    follower_n: float = 0.0
    force_n: tuple[float, float, float] = (0.0, 0.0, 0.0)
    moment_nmm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def towards(self, other: Load, share: float) -> Load:
        """(1 − share)·self + share·other."""
        mix = [
            tuple((1.0 - share) * np.asarray(a) + share * np.asarray(b))
            for a, b in ((self.force_n, other.force_n), (self.moment_nmm, other.moment_nmm))
        ]
        return Load((1.0 - share) * self.follower_n + share * other.follower_n, *mix)


@dataclass(frozen=True)
class State:
    """x: unknowns of the disc; the cranial vertebra's rotation [3, 3] and translation_mm [3]."""

    x: np.ndarray
    rotation: np.ndarray
    translation_mm: np.ndarray


@dataclass(frozen=True)
class Step:
    """What came of one load: rotation_deg and translation_mm (of the disc's middle) [3] in the
    segment's axes; mean pressure of the nucleus; facet forces left and right; tension per ligament
    (sum of its strands); largest |applied + reaction|, relative.
    """

    load: Load
    rotation_deg: tuple[float, float, float]
    translation_mm: tuple[float, float, float]
    nucleus_mpa: float
    facets_n: tuple[float, float]
    ligaments_n: dict[str, float]
    iterations: int
    balance: float


class NotFound(RuntimeError):
    """No equilibrium: the text names the load, and what was tried."""


@dataclass
class IntactSegment:
    """disc, its end nodes on either vertebra (of disc.nodes_mm), what joins the vertebrae, where
    loads act.

    axes [3, 3]: rows anterior, left, cranial; cranial_mm and caudal_mm [3]: centres of the
    vertebral bodies, where the follower's cable ends (the force acts at the cranial one); nucleus:
    the disc's group.
    """

    disc: Body
    cranial_nodes: np.ndarray
    caudal_nodes: np.ndarray
    axes: np.ndarray
    cranial_mm: np.ndarray
    caudal_mm: np.ndarray
    nucleus: int = 0
    ligaments: Sequence[Ligament] = ()
    facets: Facets | None = None

    def __post_init__(self) -> None:
        if np.intersect1d(self.cranial_nodes, self.caudal_nodes).size:
            raise ValueError("a node of the disc is on both vertebrae")
        self._centre = self.disc.nodes_mm[self.cranial_nodes].mean(0)
        if self.facets is not None:
            d = self.facets.distance
            self._gradient = [
                VoxelField(g, d.origin_mm, d.spacing_mm)
                for g in np.gradient(np.asarray(d.values, float), d.spacing_mm)
            ]
            self._closed = d.sample(self.facets.points_mm)
        inner = np.setdiff1d(
            np.arange(len(self.disc.nodes_mm)), np.r_[self.cranial_nodes, self.caudal_nodes]
        )
        own = np.r_[
            (3 * inner[:, None] + np.arange(3)).ravel(), np.arange(self.disc.dofs, self.disc.size)
        ]
        self._own = own
        self._select = sp.csr_matrix(
            (np.ones(len(own)), (own, np.arange(len(own)))), shape=(self.disc.size, len(own))
        )
        self._rows = (3 * self.cranial_nodes[:, None] + np.arange(3)).ravel()

    def start(self) -> State:
        return State(np.zeros(self.disc.size), np.eye(3), np.zeros(3))

    @cached_property
    def rest(self) -> State:
        """Equilibrium under no load. Raises NotFound."""
        return self.equilibrium(self.start(), Load())[0]

    def _placed(self, points_mm: np.ndarray, s: State) -> np.ndarray:
        """Points [s, 3] of the cranial vertebra where it is now."""
        return self._centre + s.translation_mm + (points_mm - self._centre) @ s.rotation.T

    def _pulls(
        self, s: State, load: Load
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Where [k, 3], forces on the cranial vertebra [k, 3], −∂force/∂x [k, 3, 3], and what
        they are."""
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        said: dict[str, Any] = {"ligaments_n": {}, "facets_n": (0.0, 0.0)}

        def add(*part: np.ndarray) -> None:
            parts.append(part)  # type: ignore[arg-type]

        for lig in self.ligaments:
            here = self._placed(lig.cranial_mm, s)
            tension, slope = lig.law.tension(
                *(
                    np.linalg.norm(v, axis=1)
                    for v in (lig.caudal_mm - here, lig.caudal_mm - lig.cranial_mm)
                )
            )
            f, k = _cable(here, lig.caudal_mm, tension, slope)
            add(here, f, k)
            said["ligaments_n"][lig.name] = said["ligaments_n"].get(lig.name, 0.0) + float(
                tension.sum()
            )
        here = self._placed(self.cranial_mm[None], s)
        f, k = _cable(here, self.caudal_mm[None], np.array([load.follower_n]), np.zeros(1))
        add(here, f, k)
        add(here, (np.asarray(load.force_n) @ self.axes)[None], np.zeros((1, 3, 3)))
        if self.facets is not None:
            here = self._placed(self.facets.points_mm, s)
            pressure, slope = self.facets.pressure(self._closed - self.facets.distance.sample(here))
            normal = np.stack([g.sample(here) for g in self._gradient], 1)
            normal /= np.maximum(np.linalg.norm(normal, axis=1), 1e-9)[:, None]
            add(
                here,
                (self.facets.area_mm2 * pressure)[:, None] * normal,
                (self.facets.area_mm2 * slope)[:, None, None]
                * normal[:, :, None]
                * normal[:, None, :],
            )
            said["facets_n"] = tuple(
                float(np.linalg.norm(parts[-1][1][side].sum(0)))
                for side in (self.facets.left, ~self.facets.left)
            )
        where, forces, stiffness = (np.concatenate(part) for part in zip(*parts, strict=True))
        return where, forces, stiffness, said

    def _arms(self, s: State) -> np.ndarray:
        """From the centre of the disc's cranial end, about which the vertebra turns, to its
        nodes, now."""
        return (self.disc.nodes_mm[self.cranial_nodes] - self._centre) @ s.rotation.T

    def _residual(self, s: State, load: Load) -> tuple[np.ndarray, np.ndarray]:
        """Of the unknowns, and the disc's forces [size]."""
        inner = self.disc.forces(s.x)
        where, forces, _k, _said = self._pulls(s, load)
        pull = inner[self._rows].reshape(-1, 3)
        r = where - self._centre - s.translation_mm
        force = pull.sum(0) - forces.sum(0)
        moment = (
            np.cross(self._arms(s), pull).sum(0)
            - np.cross(r, forces).sum(0)
            - np.asarray(load.moment_nmm) @ self.axes
        )
        return np.r_[inner[self._own], force, moment], inner

    def _tangent(self, s: State, load: Load, inner: np.ndarray) -> sp.csr_matrix:
        where, forces, stiffness, _said = self._pulls(s, load)
        arms = self._arms(s)
        jacobian = np.concatenate(
            [np.broadcast_to(np.eye(3), (len(arms), 3, 3)), -skew(arms)], 2
        ).reshape(-1, 6)
        rigid = sp.csr_matrix(
            (jacobian.ravel(), (np.repeat(self._rows, 6), np.tile(np.arange(6), len(self._rows)))),
            shape=(self.disc.size, 6),
        )
        whole = sp.hstack([self._select, rigid]).tocsr()
        matrix = (whole.T @ self.disc.tangent() @ whole).tocsr()
        r = where - self._centre - s.translation_mm
        j = np.concatenate([np.broadcast_to(np.eye(3), (len(r), 3, 3)), -skew(r)], 2)
        block = np.einsum("kia,kij,kjb->ab", j, stiffness, j)
        ends = skew(inner[self._rows].reshape(-1, 3))
        turning = np.einsum("kij,kjl->il", ends, skew(arms)) - np.einsum(
            "kij,kjl->il", skew(forces), skew(r)
        )
        block[3:, 3:] += 0.5 * (turning + turning.T)
        corner = sp.coo_matrix(block)
        n = len(self._own)
        return sp.csr_matrix(
            matrix
            + sp.csr_matrix((corner.data, (n + corner.row, n + corner.col)), shape=matrix.shape)
        )

    def _moved(self, s: State, change: np.ndarray) -> State:
        n = len(self._own)
        rotation = Rotation.from_rotvec(change[n + 3 :]).as_matrix() @ s.rotation
        moved = State(s.x.copy(), rotation, s.translation_mm + change[n : n + 3])
        moved.x[self._own] += change[:n]
        ends = self.disc.nodes_mm[self.cranial_nodes]
        moved.x[self._rows] = (self._placed(ends, moved) - ends).ravel()
        return moved

    def equilibrium(self, s: State, load: Load) -> tuple[State, int]:
        """From s to rest under `load`, and the iterations. Raises NotFound."""
        scale = _scale(load)
        weight = np.ones(len(self._own) + 6)
        weight[-3:] = 1.0 / _ARM_MM
        residual, inner = self._residual(s, load)
        size = float(np.linalg.norm(weight * residual))
        for iteration in range(1, _MOST_ITERATIONS + 1):
            with Factor(self._tangent(s, load, inner), [], definite=False) as factor:
                change = -factor.once(residual[:, None])[:, 0]
            step = 1.0
            while True:
                tried = self._moved(s, step * change)
                r, f = self._residual(tried, load)
                now = float(np.linalg.norm(weight * r))
                if np.isfinite(now) and (now < (1.0 - 0.1 * step) * size or now < 1e-7 * scale):
                    break
                step *= 0.5
                if step < 0.02:
                    raise NotFound(
                        f"{_words(load)}: Newton's method stands still at a residual of"
                        f" {size:.1e} N"
                    )
            s, residual, inner, size = tried, r, f, now
            if size < 1e-7 * scale:
                return s, iteration
        raise NotFound(f"{_words(load)}: residual {size:.1e} N after {_MOST_ITERATIONS} iterations")

    def walk(self, s: State, start: Load, end: Load) -> tuple[State, int]:
        """From rest under `start` to rest under `end`, in increments that are halved where
        needed. Raises NotFound."""
        done, step, total = 0.0, 1.0, 0
        while done < 1.0:
            to = min(done + step, 1.0)
            try:
                s, iterations = self.equilibrium(s, start.towards(end, to))
            except RuntimeError as error:  # NotFound, or no factor
                step *= 0.5
                if step < 0.5**_MOST_HALVINGS:
                    raise NotFound(
                        f"{error}; increments down to 1/{2**_MOST_HALVINGS} were tried"
                    ) from error
                log.info("%s; halved to %g", error, step)
                continue
            total += iterations
            done = to
        return s, total

    def measure(self, s: State, rest: State, load: Load, iterations: int) -> Step:
        """What `s` is under `load`, its motion from `rest`."""
        turned = Rotation.from_matrix(s.rotation @ rest.rotation.T).as_rotvec()
        middle = 0.5 * (
            self.disc.nodes_mm[self.cranial_nodes].mean(0)
            + self.disc.nodes_mm[self.caudal_nodes].mean(0)
        )
        moved = (self._placed(middle[None], s) - self._placed(middle[None], rest))[0]
        where, forces, _k, said = self._pulls(s, load)
        # on vertebra and disc act the pulls, the moment, and the caudal vertebra at the disc's end:
        # together nothing
        held = self.disc.forces(s.x)[: self.disc.dofs].reshape(-1, 3)[self.caudal_nodes]
        at = (self.disc.nodes_mm + s.x[: self.disc.dofs].reshape(-1, 3))[self.caudal_nodes]
        moment = (
            np.asarray(load.moment_nmm) @ self.axes
            + np.cross(where, forces).sum(0)
            + np.cross(at, held).sum(0)
        )
        rest_n = max(
            float(np.linalg.norm(forces.sum(0) + held.sum(0))),
            float(np.linalg.norm(moment)) / _ARM_MM,
        )
        pressure = self.disc.pressure(s.x, self.nucleus)
        return Step(
            load,
            _three(np.degrees(self.axes @ turned)),
            _three(self.axes @ moved),
            pressure,
            said["facets_n"],
            said["ligaments_n"],
            iterations,
            rest_n / _scale(load),
        )

    def run(self, loads: Sequence[Load], keep: Path | None = None, datum: int = 0) -> list[Step]:
        """One step a load, each from the one before, after rest under nothing; motion is measured
        from rest, or from the datum-th load (from 1: a preload). Kept in `keep` (npz) step by step,
        and gone on from there when the same segment and loads are run again; the disc under the
        last load is written beside it (.vtu). Raises NotFound; the steps before stay in `keep`.
        """
        key = artifacts.digest((_VERSION, self._content(), [asdict(load) for load in loads]))
        states = _read_states(keep, key)
        if states:
            log.info("%s: goes on after %d of %d steps", keep, len(states) - 1, len(loads))
        else:
            states = [(self.rest, 0)]
        before = loads[len(states) - 2] if len(states) > 1 else Load()
        for load in loads[len(states) - 1 :]:
            state, iterations = self.walk(states[-1][0], before, load)
            states.append((state, iterations))
            before = load
            _keep_states(keep, key, states)
        if keep is not None:
            self.write(keep.with_suffix(".vtu"), states[-1][0])
        return [
            self.measure(s, states[datum][0], load, n)
            for (s, n), load in zip(states[1:], loads, strict=True)
        ]

    def _content(self) -> tuple[Any, ...]:
        """All that the equilibrium depends on."""
        d = self.disc
        return (
            d.nodes_mm,
            d.cell_nodes,
            d.content,
            self.cranial_nodes,
            self.caudal_nodes,
            self.axes,
            self.cranial_mm,
            self.caudal_mm,
            list(self.ligaments),
            self.facets,
        )

    def write(self, path: Path | str, s: State) -> None:
        """The disc as .vtu: displacement_mm (Warp By Vector), group, J − 1."""
        corners = self.disc.cell_nodes[:, :8]
        used, cells = np.unique(corners, return_inverse=True)
        u = s.x[: self.disc.dofs].reshape(-1, 3)[used]
        x = (self.disc.nodes_mm[used] + u)[cells.reshape(-1, 8)]
        before = jacobians(self.disc.nodes_mm[used][cells.reshape(-1, 8)]).sum(1)
        data = {"group": [self.disc.group], "volume_change": [jacobians(x).sum(1) / before - 1.0]}
        meshio.Mesh(
            self.disc.nodes_mm[used],
            [("hexahedron", cells.reshape(-1, 8))],
            {"displacement_mm": u},
            data,
        ).write(path)


def _three(v: np.ndarray) -> tuple[float, float, float]:
    return float(v[0]), float(v[1]), float(v[2])


def _scale(load: Load) -> float:
    """The size of a load in N (a moment at its arm), at least 50."""
    return max(
        float(np.linalg.norm(load.force_n)),
        load.follower_n,
        float(np.linalg.norm(load.moment_nmm)) / _ARM_MM,
        50.0,
    )


def _words(load: Load) -> str:
    force, moment = np.round(load.force_n, 1).tolist(), np.round(load.moment_nmm).tolist()
    return f"follower {load.follower_n:.0f} N, force {force} N, moment {moment} N mm"


def _cable(
    here: np.ndarray, there: np.ndarray, tension: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Force on `here` [s, 3] of strands to `there`, and −∂force/∂here [s, 3, 3] = T/l (1 − e eᵀ)
    + T' e eᵀ."""
    apart = there - here
    length = np.linalg.norm(apart, axis=1)
    e = apart / length[:, None]
    along = e[:, :, None] * e[:, None, :]
    return (
        tension[:, None] * e,
        (tension / length)[:, None, None] * (np.eye(3) - along) + slope[:, None, None] * along,
    )


def _read_states(path: Path | None, key: str) -> list[tuple[State, int]]:
    if path is None or not path.exists():
        return []
    try:
        data = artifacts.read_npz(path)
    except ValueError as error:
        log.warning("%s; started afresh", error)
        return []
    if str(data.get("key")) != key:
        log.info("%s is of another segment or other loads; started afresh", path)
        return []
    rows = zip(data["x"], data["rotation"], data["translation_mm"], data["iterations"], strict=True)
    return [(State(x, r, t), int(n)) for x, r, t, n in rows]


def _keep_states(path: Path | None, key: str, states: list[tuple[State, int]]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: np.stack([getattr(s, name) for s, _ in states])
        for name in ("x", "rotation", "translation_mm")
    }
    artifacts.write_npz(
        path, key=np.array(key), iterations=np.array([n for _, n in states]), **arrays
    )
