"""Volume inside the implant's outer surface, lattice counted as part.

    V = Σ_q v_q f_q          [mm³]

Shapes: fraction [q, r], volume [q] mm³.
Loophole: says nothing of mass (a lattice weighs its relative density).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from pydantic import BaseModel, ConfigDict

from engine.types import REGIONS, Response
from objectives._abstract import Better, has_implant


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")


def build(settings: dict[str, Any]) -> ImplantVolume:
    Settings(**settings)
    return ImplantVolume()


@dataclass(frozen=True)
class ImplantVolume:
    name: str = "implant_volume"
    unit: str = "mm³"
    description: str = "volume inside the implant's outer surface"
    better: Better = "neither"

    def applies_to(self, response: Response) -> bool:
        return has_implant(response)

    def per_load(self, response: Response) -> None:
        return None

    def value(self, response: Response) -> Array:
        return jnp.sum(
            response.volume * jnp.asarray(response.fraction)[:, REGIONS.index("implant")]
        )
