"""Volume of the graft chamber between the endplates, room for the fusion to grow through.

    V = Σ_q v_q f_q          [mm³]

Shapes: fraction [q, r], volume [q] mm³.
Loophole: a deep narrow chamber has the same volume as a wide one; contact of graft and endplate is
not measured.
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


def build(settings: dict[str, Any]) -> GraftVolume:
    Settings(**settings)
    return GraftVolume()


@dataclass(frozen=True)
class GraftVolume:
    name: str = "graft_volume"
    unit: str = "mm³"
    description: str = "volume of the graft chamber"
    better: Better = "higher"

    def applies_to(self, response: Response) -> bool:
        return has_implant(response)

    def per_load(self, response: Response) -> None:
        return None

    def value(self, response: Response) -> Array:
        return jnp.sum(response.volume * jnp.asarray(response.fraction)[:, REGIONS.index("graft")])
