"""The intact motion segment at finite strain: hyperelastic disc, tension-only ligaments, facets,
follower preload.

The caudal vertebra is held, the cranial one is a rigid body with position t and rotation R; what
the disc's end nodes, the ligaments' and the facets' points do follows from it (rigid bone: its own
deformation, about a tenth of the disc's, is left out). Equilibrium of

    disc                 internal forces of fem/intact/hyperelastic.py; its end nodes move with the
                         vertebrae
    ligaments, facets    fem/intact/connections.py
    follower             a cable of constant tension between the centres of both vertebral bodies
                         (Patwardhan 1999)
    load                 a force at the centre of the cranial body and a moment, both of constant
                         direction

by Newton's method with line search, in increments that are halved where it fails; the states under
the loads can be kept, and a run goes on from them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import meshio
import numpy as np
import scipy.sparse as sp
from scipy.spatial.transform import Rotation

from engine import artifacts
from fem.elastic.factor import Factor
from fem.elastic.operators import skew
from fem.intact.connections import Facets, Ligament, PointForces, cable
from fem.intact.hyperelastic import Body, jacobians
from fem.intact.states import State, read_states, write_states

log = logging.getLogger("spinefit.fem")
#: Raised when the same segment and loads give other states.
_VERSION = 1
#: A moment counts as a force at this arm (the disc's rim) where the two are compared.
_ARM_MM = 40.0
_MOST_ITERATIONS = 15
#: Of a load's increment.
_MOST_HALVINGS = 6
#: At rest: the residual over the load's size.
_AT_REST = 1e-7
#: Line search: share of the step by which the residual must fall, and the shortest step [M].
_LEAST_DECREASE, _SHORTEST_STEP = 0.1, 0.02


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
class Step:
    """What one load does.

    rotation_deg, translation_mm   of the cranial vertebra (translation: of the disc's middle) about
                                   and along the segment's axes
    nucleus_mpa                    mean pressure of the nucleus
    facets_n                       force on the left and on the right facet
    ligaments_n                    tension per ligament, sum of its strands
    iterations                     Newton's, of all increments
    balance                        largest |applied + reaction|, relative
    """

    load: Load
    rotation_deg: tuple[float, float, float]
    translation_mm: tuple[float, float, float]
    nucleus_mpa: float
    facets_n: tuple[float, float]
    ligaments_n: dict[str, float]
    iterations: int
    balance: float


class NoEquilibrium(RuntimeError):
    """No equilibrium: the text names the load, and what was tried."""


class _Pulls(NamedTuple):
    """All point forces on the cranial vertebra, and what they are."""

    points: PointForces
    ligaments_n: dict[str, float]
    facets_n: tuple[float, float]


@dataclass
class IntactSegment:
    """Disc, ligaments and facets between a caudal vertebra that is held and a rigid cranial one.

    disc
    cranial_nodes, caudal_nodes    indices of disc.nodes_mm on either vertebra
    axes [3, 3]                    rows anterior, left, cranial
    cranial_mm, caudal_mm [3]      centres of the vertebral bodies, where the follower's cable ends;
                                   the force acts at the cranial one
    nucleus                        the disc's group
    ligaments, facets              besides the disc
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

    def placed(self, points_mm: np.ndarray, s: State) -> np.ndarray:
        """Points [s, 3] of the cranial vertebra where it is now."""
        return self._centre + s.translation_mm + (points_mm - self._centre) @ s.rotation.T

    def _pulls(self, s: State, load: Load) -> _Pulls:
        parts: list[PointForces] = []
        ligaments_n: dict[str, float] = {}
        facets_n = (0.0, 0.0)
        for lig in self.ligaments:
            pull, tension_n = lig.pull(self.placed(lig.cranial_mm, s))
            parts.append(pull)
            ligaments_n[lig.name] = ligaments_n.get(lig.name, 0.0) + tension_n
        centre = self.placed(self.cranial_mm[None], s)
        tension = np.array([load.follower_n])
        parts.append(cable(centre, self.caudal_mm[None], tension, np.zeros(1)))
        dead = (np.asarray(load.force_n) @ self.axes)[None]
        parts.append(PointForces(centre, dead, np.zeros((1, 3, 3))))
        if self.facets is not None:
            push, facets_n = self.facets.push(self.placed(self.facets.points_mm, s))
            parts.append(push)
        points = PointForces(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        return _Pulls(points, ligaments_n, facets_n)

    def _arms(self, s: State) -> np.ndarray:
        """From the centre of the disc's cranial end, about which the vertebra turns, to its
        nodes, now."""
        return (self.disc.nodes_mm[self.cranial_nodes] - self._centre) @ s.rotation.T

    def residual(self, s: State, load: Load) -> tuple[np.ndarray, np.ndarray]:
        """Forces out of balance: of the disc's own unknowns, then force [3] in N and moment [3] in
        N mm (about the centre of the disc's cranial end) of the cranial vertebra; and the disc's
        internal forces [size]."""
        inner = self.disc.forces(s.x)
        where, forces, _ = self._pulls(s, load).points
        pull = inner[self._rows].reshape(-1, 3)
        r = where - self._centre - s.translation_mm
        force = pull.sum(0) - forces.sum(0)
        moment = (
            np.cross(self._arms(s), pull).sum(0)
            - np.cross(r, forces).sum(0)
            - np.asarray(load.moment_nmm) @ self.axes
        )
        return np.r_[inner[self._own], force, moment], inner

    def tangent(self, s: State, load: Load, inner: np.ndarray) -> sp.csr_matrix:
        """Derivative of `residual` by what `moved` takes, symmetrised (exact in balance); inner:
        the disc's forces, of `residual` at the same state."""
        where, forces, stiffness = self._pulls(s, load).points
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

    def moved(self, s: State, change: np.ndarray) -> State:
        """s after a change of the disc's own unknowns, the vertebra's translation [3] in mm and its
        rotation vector [3]."""
        n = len(self._own)
        rotation = Rotation.from_rotvec(change[n + 3 :]).as_matrix() @ s.rotation
        moved = State(s.x.copy(), rotation, s.translation_mm + change[n : n + 3])
        moved.x[self._own] += change[:n]
        ends = self.disc.nodes_mm[self.cranial_nodes]
        moved.x[self._rows] = (self.placed(ends, moved) - ends).ravel()
        return moved

    def equilibrium(self, s: State, load: Load) -> tuple[State, int]:
        """From s to rest under `load`, and the iterations. Raises NotFound."""
        scale = _scale(load)
        weight = np.ones(len(self._own) + 6)
        weight[-3:] = 1.0 / _ARM_MM
        residual, inner = self.residual(s, load)
        size = float(np.linalg.norm(weight * residual))
        for iteration in range(1, _MOST_ITERATIONS + 1):
            with Factor(self.tangent(s, load, inner), [], definite=False) as factor:
                change = -factor.once(residual[:, None])[:, 0]
            step = 1.0
            while True:
                tried = self.moved(s, step * change)
                r, f = self.residual(tried, load)
                now = float(np.linalg.norm(weight * r))
                enough = now < (1.0 - _LEAST_DECREASE * step) * size or now < _AT_REST * scale
                if np.isfinite(now) and enough:
                    break
                step *= 0.5
                if step < _SHORTEST_STEP:
                    raise NoEquilibrium(
                        f"{_words(load)}: Newton's method stands still at a residual of"
                        f" {size:.1e} N"
                    )
            s, residual, inner, size = tried, r, f, now
            if size < _AT_REST * scale:
                return s, iteration
        raise NoEquilibrium(
            f"{_words(load)}: residual {size:.1e} N after {_MOST_ITERATIONS} iterations"
        )

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
                    raise NoEquilibrium(
                        f"{error}; increments down to 1/{2**_MOST_HALVINGS} were tried"
                    ) from error
                log.info("%s; halved to %g", error, step)
                continue
            total += iterations
            done = to
        return s, total

    def measure(self, s: State, rest: State, load: Load, iterations: int) -> Step:
        """The figures of `s` under `load`, its motion from `rest`."""
        turned = Rotation.from_matrix(s.rotation @ rest.rotation.T).as_rotvec()
        middle = 0.5 * (
            self.disc.nodes_mm[self.cranial_nodes].mean(0)
            + self.disc.nodes_mm[self.caudal_nodes].mean(0)
        )
        translation = (self.placed(middle[None], s) - self.placed(middle[None], rest))[0]
        pulls = self._pulls(s, load)
        where, forces, _ = pulls.points
        # on vertebra and disc act the pulls, the moment, and the caudal vertebra at the disc's end:
        # together nothing
        support = self.disc.forces(s.x)[: self.disc.dofs].reshape(-1, 3)[self.caudal_nodes]
        at = (self.disc.nodes_mm + s.x[: self.disc.dofs].reshape(-1, 3))[self.caudal_nodes]
        moment = (
            np.asarray(load.moment_nmm) @ self.axes
            + np.cross(where, forces).sum(0)
            + np.cross(at, support).sum(0)
        )
        rest_n = max(
            float(np.linalg.norm(forces.sum(0) + support.sum(0))),
            float(np.linalg.norm(moment)) / _ARM_MM,
        )
        pressure = self.disc.pressure(s.x, self.nucleus)
        return Step(
            load,
            _three(np.degrees(self.axes @ turned)),
            _three(self.axes @ translation),
            pressure,
            pulls.facets_n,
            pulls.ligaments_n,
            iterations,
            rest_n / _scale(load),
        )

    def run(self, loads: Sequence[Load], keep: Path | None = None, datum: int = 0) -> list[Step]:
        """One step a load, each from the one before, the first from rest under no load.

        keep    .npz: states are kept in it step by step, and the same segment and loads run again
                go on from them; the disc under the last load is written beside it (.vtu)
        datum   motion is measured from the datum-th load, counted from 1 (a preload); 0: from rest

        Raises NotFound; the steps before it stay in `keep`.
        """
        key = artifacts.digest((_VERSION, self._content(), [asdict(load) for load in loads]))
        states = read_states(keep, key)
        if states:
            log.info("%s: goes on after %d of %d steps", keep, len(states) - 1, len(loads))
        else:
            states = [(self.rest, 0)]
        before = loads[len(states) - 2] if len(states) > 1 else Load()
        for load in loads[len(states) - 1 :]:
            state, iterations = self.walk(states[-1][0], before, load)
            states.append((state, iterations))
            before = load
            write_states(keep, key, states)
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
