"""What an objective is: one physical measure of a `Response`; and the goal that is wrapped around
it.

An objective returns the physical quantity in its unit, never a weighted or normalised one, and
reads nothing but the response, so the same object scores the voxel engine and SfePy. Weights,
scales and bounds live in `Goal`.

Every sum, mean or maximum over samples is weighed by their volume: a response may hold copies of
volume 0.

To add an objective: one file here with `build(settings) -> Objective` and an entry in a YAML of
conf/objectives. tests/contracts/test_objectives.py finds it by itself (finite values, finite
gradients, Taylor test).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.types import REGIONS, Response

#: Which values of a measure are the better ones; "neither" where it only describes the device.
Better = Literal["lower", "higher", "neither"]


class Objective(Protocol):
    """A physical measure of a response, and which of its values are the better ones."""

    name: str
    unit: str
    description: str
    better: Better

    def applies_to(self, response: Response) -> bool:
        """Whether the response holds what is measured (a device, an intact reference). Not for
        compiled code. Where it does, a missing load case or limit is an error of `value`."""
        ...

    def per_load(self, response: Response) -> Array | None:
        """The measure in every load case [l], or None when it is not a matter of one load case."""
        ...

    def value(self, response: Response) -> Array:
        """The measure, one number: its definition over the load cases is the objective's own."""
        ...


@dataclass(frozen=True)
class Goal:
    """How a measure enters the optimisation.

    minimise      adds weight · value / scale to the loss
    at_most       the constraint (value − bound) / scale ≤ 0
    at_least      the constraint (bound − value) / scale ≤ 0
    """

    objective: Objective
    kind: Literal["minimise", "at_most", "at_least"]
    weight: float
    scale: float
    bound: float | None


@jax.custom_vjp
def components(tensor: Array) -> tuple[Array, ...]:
    """The six fields of Voigt tensors [..., 6]. Their gradient is stacked once; that of six slices
    would be padded six times."""
    return tuple(tensor[..., i] for i in range(6))


components.defvjp(
    lambda tensor: (components(tensor), None), lambda _, bars: (jnp.stack(bars, axis=-1),)
)


def principal_strains(strain: Array) -> tuple[Array, Array]:
    """Smallest and largest principal strain of Voigt strains [..., 6] (engineering shear), smooth
    in the strain.

    Trigonometric solution of the characteristic cubic (Smith 1961). The deviator's norm is bounded
    below by 1e-9 and the cosine kept inside ±(1 − 1e-9), so that gradients stay finite at repeated
    strains.
    """
    a, b, c, *shear = components(strain)
    d, e, f = (g / 2 for g in shear)
    mean = (a + b + c) / 3
    a, b, c = a - mean, b - mean, c - mean
    size = jnp.sqrt((a**2 + b**2 + c**2 + 2 * (d**2 + e**2 + f**2)) / 6 + 1e-18)
    determinant = a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)
    cosine = jnp.clip(determinant / (2 * size**3), -1 + 1e-9, 1 - 1e-9)
    angle = jnp.arccos(cosine) / 3
    return mean + 2 * size * jnp.cos(angle + 2 * jnp.pi / 3), mean + 2 * size * jnp.cos(angle)


def von_mises(stress: Array) -> Array:
    """Von Mises equivalent of Voigt stresses [..., 6], MPa; smooth at zero (floor 1e-9 MPa)."""
    a, b, c, d, e, f = components(stress)
    normal = (a - b) ** 2 + (b - c) ** 2 + (c - a) ** 2
    return jnp.sqrt(0.5 * normal + 3 * (d**2 + e**2 + f**2) + 1e-18)


def smooth_step(t: Array) -> Array:
    """0 below −1, 1 above 1, C¹ between: 1/2 + (3/4) t − (1/4) t³."""
    t = jnp.clip(t, -1.0, 1.0)
    return 0.5 + 0.75 * t - 0.25 * t**3


def has_implant(response: Response) -> bool:
    """Whether any sample holds part of an implant: false for the intact segment."""
    return bool(np.any(np.asarray(response.fraction)[:, REGIONS.index("implant")] > 0))


def bone_volume(response: Response) -> Any:
    """Volume of bone near the implant in every sample, mm³ [q]. Raises ValueError when there is
    none."""
    volume = response.volume * response.near * (response.fraction[:, 0] + response.fraction[:, 1])
    if volume.shape[0] == 0:
        raise ValueError(
            "the response has no sample near the implant; check the patient's endplates and the"
            " grid"
        )
    return volume
