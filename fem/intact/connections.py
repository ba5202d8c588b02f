"""What joins the vertebrae besides the disc, and how it acts on the cranial one: ligaments, facets,
the cable of a follower load.

    strand    of length l between its insertions pulls with T(ε), ε = l/l₀ − 1, T = 0 for ε ≤ 0
    facets    p = k (⟨δ⟩ − toe/2), k δ²/(2 toe) for 0 < δ < toe, δ = φ₀ − c − φ(x), on the cranial
              facet's points x: φ distance to the caudal vertebra, φ₀ in the given pose (so facets
              are taken as congruent, with clearance c); normal ∇φ, no friction
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from engine.types import VoxelField


class PointForces(NamedTuple):
    """Forces [k, 3] in N on the cranial vertebra at its points where_mm [k, 3], and their stiffness
    −∂force/∂x [k, 3, 3] in N/mm."""

    where_mm: np.ndarray
    force_n: np.ndarray
    stiffness_n_mm: np.ndarray


def cable(
    here_mm: np.ndarray, there_mm: np.ndarray, tension_n: np.ndarray, slope_n_mm: np.ndarray
) -> PointForces:
    """Of strands that pull from here_mm [s, 3] to there_mm [s, 3] with tension T [s] and T' =
    dT/dl [s]; with the direction e and the length l the stiffness is T/l (1 − e eᵀ) + T' e eᵀ."""
    apart = there_mm - here_mm
    length = np.linalg.norm(apart, axis=1)
    e = apart / length[:, None]
    along = e[:, :, None] * e[:, None, :]
    across = (tension_n / length)[:, None, None] * (np.eye(3) - along)
    return PointForces(here_mm, tension_n[:, None] * e, across + slope_n_mm[:, None, None] * along)


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
    """Strands from cranial_mm [s, 3] to caudal_mm [s, 3] in the given pose."""

    name: str
    cranial_mm: np.ndarray
    caudal_mm: np.ndarray
    law: TensionLaw

    def pull(self, here_mm: np.ndarray) -> tuple[PointForces, float]:
        """With the cranial insertions at here_mm [s, 3]; and the sum of the tensions, N."""
        tension, slope = self.law.tension(
            np.linalg.norm(self.caudal_mm - here_mm, axis=1),
            np.linalg.norm(self.caudal_mm - self.cranial_mm, axis=1),
        )
        return cable(here_mm, self.caudal_mm, tension, slope), float(tension.sum())


@dataclass(frozen=True)
class Facets:
    """The cranial vertebra's facets, pressing on the caudal one's.

    points_mm [s, 3], area_mm2 [s]   on the cranial vertebra, in the given pose
    left [s]                         (bool) of the left facet
    distance                         φ: signed distance to the caudal vertebra
    stiffness_mpa_per_mm             k, of the cartilage
    clearance_mm                     c
    toe_mm                           over which the pressure sets in
    """

    points_mm: np.ndarray
    area_mm2: np.ndarray
    left: np.ndarray
    distance: VoxelField
    stiffness_mpa_per_mm: float
    clearance_mm: float
    toe_mm: float = 0.1

    @cached_property
    def gradient(self) -> list[VoxelField]:
        """∇φ, a field per axis."""
        d = self.distance
        slopes = np.gradient(np.asarray(d.values, float), d.spacing_mm)
        return [VoxelField(slope, d.origin_mm, d.spacing_mm) for slope in slopes]

    @cached_property
    def given_distance_mm(self) -> np.ndarray:
        """φ₀ [s]."""
        return np.asarray(self.distance.sample(self.points_mm))

    def pressure(self, approach_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """MPa and MPa/mm of points that are approach_mm [s] nearer than in the given pose."""
        over = np.maximum(approach_mm - self.clearance_mm, 0.0)
        in_toe = np.minimum(over, self.toe_mm)
        k = self.stiffness_mpa_per_mm
        return k * (0.5 * in_toe**2 / self.toe_mm + over - in_toe), k * in_toe / self.toe_mm

    def push(self, here_mm: np.ndarray) -> tuple[PointForces, tuple[float, float]]:
        """With the points at here_mm [s, 3]; and the force on the left and the right facet, N."""
        pressure, slope = self.pressure(self.given_distance_mm - self.distance.sample(here_mm))
        normal = np.stack([g.sample(here_mm) for g in self.gradient], 1)
        normal /= np.maximum(np.linalg.norm(normal, axis=1), 1e-9)[:, None]
        force = (self.area_mm2 * pressure)[:, None] * normal
        stiffness = (self.area_mm2 * slope)[:, None, None] * normal[:, :, None] * normal[:, None, :]
        left, right = (
            float(np.linalg.norm(force[side].sum(0))) for side in (self.left, ~self.left)
        )
        return PointForces(here_mm, force, stiffness), (left, right)
