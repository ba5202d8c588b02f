"""Stress in the implant over its fatigue limit: 1 means that the limit is reached in the mean of
order p.

    U(l) = ( Σ_q v_q (σ_vM/σ_f)^p / Σ_q v_q )^(1/p),   p = 8          [1]
    U    = ( Σ_l U(l)^p )^(1/p)

U is the largest over the load cases, by the same p-norm. σ_f is the material's fatigue limit, for a
lattice the macroscopic one of its relative density (engine.materials). Samples count by the cube of
their implant fraction, so that mixed surface voxels, whose stress is the mixture's, hardly count.

Shapes: stress [l, q, 6] MPa, fatigue_mpa [q], fraction [q, r].
Loophole: a mean of order 8 lies below the maximum and falls when lightly loaded volume is added;
the report gives p99 and the maximum beside it, from SfePy.
Raises: ValueError when the response has no implant or no limit.
Ref: DESIGN §5; normalised p-norm: Duysinx & Bendsøe 1998, doi 10.1002/(SICI)1097-0207.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from pydantic import BaseModel, ConfigDict, Field

from engine.types import REGIONS, Response
from objectives._abstract import Better, has_implant, von_mises


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    order: float = Field(8.0, ge=2, le=32)


def build(settings: dict[str, Any]) -> ImplantStress:
    return ImplantStress(Settings(**settings).order)


@dataclass(frozen=True)
class ImplantStress:
    order: float
    name: str = "implant_stress"
    unit: str = "1"
    description: str = (
        "von Mises stress over fatigue limit in the implant, mean of order 8, worst load case"
    )
    better: Better = "lower"

    def applies_to(self, response: Response) -> bool:
        return has_implant(response)

    def per_load(self, response: Response) -> Array:
        if response.fatigue_mpa is None:
            raise ValueError(
                "implant stress needs the fatigue limit of the samples; this response has none"
            )
        weight = response.volume * jnp.asarray(response.fraction)[:, REGIONS.index("implant")] ** 3
        ratio = von_mises(jnp.asarray(response.stress)) / response.fatigue_mpa
        mean = jnp.sum(weight * ratio**self.order, axis=-1) / (jnp.sum(weight) + 1e-9)
        return (mean + 1e-30) ** (1.0 / self.order)

    def value(self, response: Response) -> Array:
        loads = self.per_load(response)
        return jnp.sum(loads**self.order) ** (1.0 / self.order)
