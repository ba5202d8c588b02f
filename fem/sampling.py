"""Strains and stresses of a solution: the samples that the measures read, and averages per
tetrahedron for viewing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from engine.types import BODIES, REGIONS, Patch
from fem.elastic import operators as el

#: Regions of which every point is a sample; bone is one only near the implant.
_WHOLE_REGIONS = ("implant", "graft")


class Tensors(NamedTuple):
    """Voigt, engineering shear, MPa: strain and stress [l, s, 6] at the samples in single
    precision, and their averages per tetrahedron [l, m, 6]."""

    strain: np.ndarray
    stress: np.ndarray
    cell_strain: np.ndarray
    cell_stress: np.ndarray


@dataclass(frozen=True)
class Sampling:
    """Where strain and stress are kept.

    keep [m, q]   the quadrature points that are kept
    by_point      a sample is a kept point; otherwise it is the volume average of a tetrahedron
                  that has one
    """

    d: el.Discretisation
    keep: np.ndarray
    by_point: bool

    @cached_property
    def volume_mm3(self) -> np.ndarray:
        """Of each tetrahedron [m]."""
        return np.asarray(self.d.weight_mm3.sum(1))

    @cached_property
    def share(self) -> np.ndarray:
        """Of each quadrature point in its tetrahedron's volume [m, q]."""
        return np.asarray(self.d.weight_mm3 / self.volume_mm3[:, None])

    @cached_property
    def cells(self) -> np.ndarray:
        """Tetrahedra with a kept point [m] (bool)."""
        return np.asarray(self.keep.any(1))

    def places(self, near: np.ndarray, relative_density: np.ndarray) -> dict[str, Any]:
        """position, volume, fraction, near and relative_density of the samples, as in Response;
        near and relative_density are given at the quadrature points [m, q]."""
        d, keep, cells = self.d, self.keep, self.cells
        one_hot = np.eye(len(REGIONS))[d.labels]
        if self.by_point:
            return dict(
                position=d.points_mm[keep],
                volume=d.weight_mm3[keep],
                fraction=one_hot[np.nonzero(keep)[0]],
                near=near[keep],
                relative_density=relative_density[keep],
            )
        return dict(
            position=np.einsum("mq,mqd->md", self.share, d.points_mm)[cells],
            volume=self.volume_mm3[cells],
            fraction=one_hot[cells],
            near=(self.share * near).sum(1)[cells],
            relative_density=(self.share * relative_density).sum(1)[cells],
        )

    def tensors(self, displacement: np.ndarray, lam: np.ndarray, mu: np.ndarray) -> Tensors:
        """Of displacements [l, k, 3] in mm with Lamé fields [m, q] in MPa.

        One load case at a time, kept in single precision: the strains of all of them at all points
        would be gigabytes.
        """
        shape = (len(displacement), len(self.volume_mm3), 6)
        cell_strain, cell_stress = np.empty(shape), np.empty(shape)
        strains, stresses = [], []
        for i, u in enumerate(displacement):
            strain = el.strains(self.d, u)
            stress = el.isotropic_stress(strain, lam, mu)
            cell_strain[i] = np.einsum("mq,mqv->mv", self.share, strain)
            cell_stress[i] = np.einsum("mq,mqv->mv", self.share, stress)
            strains.append(self._samples(strain, cell_strain[i]))
            stresses.append(self._samples(stress, cell_stress[i]))
        return Tensors(np.stack(strains), np.stack(stresses), cell_strain, cell_stress)

    def _samples(self, at_points: np.ndarray, averages: np.ndarray) -> np.ndarray:
        samples = at_points[self.keep] if self.by_point else averages[self.cells]
        return samples.astype(np.float32)


def nearness(d: el.Discretisation, patches: Iterable[Patch]) -> np.ndarray:
    """Weight [m, q] of "near the implant" bone: the sum of the patches' weights, each on the bone
    of its body, without volume."""
    return np.asarray(sum(_weight_on_bone(d, patch) for patch in patches))


def kept_points(d: el.Discretisation, near: np.ndarray, every_region: bool) -> np.ndarray:
    """The quadrature points [m, q] (bool) near the implant, or in implant or graft, or all."""
    whole = np.isin(d.labels, [REGIONS.index(name) for name in _WHOLE_REGIONS])
    return np.asarray((near > 0.0) | whole[:, None] | every_region)


def _weight_on_bone(d: el.Discretisation, patch: Patch) -> np.ndarray:
    bone = d.labels == BODIES.index(patch.body)
    weight = np.zeros(d.weight_mm3.shape)
    weight[bone] = patch.weight(d.points_mm[bone])
    return weight
