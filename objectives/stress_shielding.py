"""Share of the bone near the implant that is unloaded into resorption, against the intact segment.

    S = 100 · Σ_q v_q · s((1/4 − W_q/W⁰_q)/δ) / Σ_q v_q          [%]
    W = Σ_l ½ σ:ε

over the load cases l. A site that keeps less than a quarter of its intact strain energy density
lies in the "lazy zone" where bone is resorbed. W⁰ is the same sum in the intact segment at the
planned pose, computed by the same solver at the same points.

Shapes: strain, stress [l, q, 6], reference_sed [l, q] MPa.
Loophole: raising strain anywhere lowers it, up to and beyond yield; never use it without yielded
bone.
Raises: ValueError when the response has no intact reference.
Ref: DOMAIN §6 (−75 % flag); Huiskes et al. 1987, J Biomech 20:1135 (lazy zone).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from pydantic import BaseModel, ConfigDict, Field

from engine.types import Response
from objectives._abstract import Better, bone_volume, smooth_step


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kept: float = Field(0.25, gt=0, lt=1)
    half_width: float = Field(0.15, gt=0, le=1)


def build(settings: dict[str, Any]) -> StressShielding:
    s = Settings(**settings)
    return StressShielding(s.kept, s.half_width)


@dataclass(frozen=True)
class StressShielding:
    kept: float
    half_width: float
    name: str = "stress_shielding"
    unit: str = "%"
    description: str = (
        "bone within 10 mm of the disc space keeping under a quarter of its intact strain energy"
        " density"
    )
    better: Better = "lower"

    def applies_to(self, response: Response) -> bool:
        return response.reference_sed is not None

    def per_load(self, response: Response) -> None:
        return None

    def value(self, response: Response) -> Array:
        if response.reference_sed is None:
            raise ValueError(
                "stress shielding needs the intact segment's response; run forward.with_reference"
                " first"
            )
        energy = 0.5 * jnp.sum(
            jnp.asarray(response.strain) * jnp.asarray(response.stress), axis=(0, -1)
        )
        reference = jnp.sum(jnp.asarray(response.reference_sed), axis=0)
        volume = bone_volume(response)
        ratio = energy / (reference + 1e-9)
        return (
            100.0
            * jnp.sum(volume * smooth_step((self.kept - ratio) / self.half_width))
            / jnp.sum(volume)
        )
