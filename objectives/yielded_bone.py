"""Volume of bone near the implant that is strained beyond yield: the proxy for cage subsidence.

    V_y(l) = Σ_q v_q · s((r_q − 1)/δ)          [mm³]
    r_q    = max(|ε_min|/ε_yc, ε_max/ε_yt)

and its mean over the load cases l. ε are principal strains of the apparent bone, ε_yc = 0.77 %,
ε_yt = 0.70 % (apparent vertebral bone yields at a nearly density-independent strain), s the C¹ step
with half width δ: strain within ±δ of yield counts in part.

Shapes: strain [l, q, 6], volume [q] mm³.
Loophole: falls when load shifts to bone outside the near region (10 mm under each endplate) or into
rods; pair with stress shielding and look at the whole strain field. In voxels that are part implant
the engine takes bone's strain from the stress (engine.mixture.mixture_of), which is right for faces
across the load only: the SfePy response has no such voxels.
Raises: ValueError when the response has no bone sample.
Ref: Morgan, Keaveny 2001, J Biomech 34:569; use as subsidence measure: Smit et al., arXiv
2406.17487.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from pydantic import BaseModel, ConfigDict, Field

from engine.materials import YIELD_STRAIN_COMPRESSION, YIELD_STRAIN_TENSION
from engine.types import Response
from objectives._abstract import Better, bone_volume, principal_strains, smooth_step


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    half_width: float = Field(0.2, gt=0, le=1)


def build(settings: dict[str, Any]) -> YieldedBone:
    return YieldedBone(Settings(**settings).half_width)


@dataclass(frozen=True)
class YieldedBone:
    half_width: float
    name: str = "yielded_bone"
    unit: str = "mm³"
    description: str = (
        "bone within 10 mm of the disc space strained beyond yield, mean over load cases"
    )
    better: Better = "lower"

    def applies_to(self, response: Response) -> bool:
        return True

    def per_load(self, response: Response) -> Array:
        low, high = principal_strains(jnp.asarray(response.strain))
        ratio = jnp.maximum(-low / YIELD_STRAIN_COMPRESSION, high / YIELD_STRAIN_TENSION)
        return jnp.sum(
            bone_volume(response) * smooth_step((ratio - 1.0) / self.half_width), axis=-1
        )

    def value(self, response: Response) -> Array:
        return jnp.mean(self.per_load(response))
