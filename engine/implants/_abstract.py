"""What an implant family is: named groups of bounded parameters, and signed distances made of them.

To add a family: one file here with `build(settings) -> Family` and one YAML in conf/implant. The
contract tests (tests/contracts/test_families.py) find it by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.sdf import polygon_distance
from engine.types import Segment

#: Signed distance that stands for "nowhere near".
FAR_MM = 1e3
#: How far a device may reach out of the loft between the rims, to follow the rounded edge of an
#: endplate.
DISC_MARGIN_MM = 1.5


@dataclass(frozen=True)
class Group:
    """One group of parameters in physical units: initial, lower and upper values of one shape,
    and their unit."""

    initial: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    unit: str

    def __post_init__(self) -> None:
        if not (np.all(self.lower <= self.initial) and np.all(self.initial <= self.upper)):
            raise ValueError(
                f"initial values {self.initial} leave their bounds [{self.lower}, {self.upper}]"
                f" {self.unit}"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Anatomy:
    """What a family may know of the patient, at the points where its fields are asked for.

    points_mm [..., 3]   in the segment frame
    caudal, cranial      signed distance of the two vertebrae, mm
    rim                  signed distance in the plane to the part of the disc space inside both
                         endplate rims, mm
    centre_mm [3]        middle of the disc space
    disc                 signed distance to the disc-space body between the two rims (it may overlap
                         bone), grown by DISC_MARGIN_MM: without it a part inside the rims could
                         grow a skirt round the waist of a vertebral body; without the margin it
                         would lose contact on the rims' rounded edge
    """

    points_mm: Array
    caudal: Array
    cranial: Array
    rim: Array
    disc: Array
    centre_mm: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImplantFields:
    """Signed distance of the part and of its graft chamber, and the lattice's relative density,
    at the points."""

    implant: Array
    window: Array
    relative_density: Array


class Family(Protocol):
    """A parametric device."""

    @property
    def material(self) -> str:
        """Key of engine.materials.IMPLANTS."""
        ...

    @property
    def rods(self) -> bool:
        """Whether posterior rods and screws go with it."""
        ...

    def groups(self) -> dict[str, Group]:
        """Parameter groups of the family in physical units."""
        ...

    def fields(self, parameters: dict[str, Array], anatomy: Anatomy) -> ImplantFields:
        """Signed distances and density; differentiable in the parameters."""
        ...

    def describe(self) -> dict[str, Any]:
        """Fixed figures for the report (corridor, footprint), with units in the names."""
        ...


def anatomy_at(segment: Segment, points_mm: np.ndarray) -> Anatomy:
    """The patient's fields at points [..., 3] of the segment frame."""
    caudal, cranial = segment.caudal, segment.cranial
    columns = points_mm[..., :1, :2] if points_mm.ndim == 4 else points_mm[..., :2]
    rim = np.maximum(
        polygon_distance(caudal.superior.rim_mm[:, :2], columns),
        polygon_distance(cranial.inferior.rim_mm[:, :2], columns),
    )
    return Anatomy(
        points_mm=jnp.asarray(points_mm),
        caudal=jnp.asarray(caudal.sdf.sample(points_mm)),
        cranial=jnp.asarray(cranial.sdf.sample(points_mm)),
        rim=jnp.asarray(np.broadcast_to(rim, points_mm.shape[:-1])),
        disc=jnp.asarray(segment.disc.sample(points_mm) - DISC_MARGIN_MM),
        centre_mm=jnp.asarray(0.5 * (caudal.superior.centre_mm + cranial.inferior.centre_mm)),
    )
