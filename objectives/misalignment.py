"""How far the loaded construct stands off the plan: the settling of the cranial vertebra under the
standing load.

With t, θ the cranial vertebra's mean rigid motion relative to the caudal one at the cranial
endplate's centre, the root mean square displacement over an elliptic endplate of half axes a, b is

    m = √( |t|² + (θ_x² b² + θ_y² a² + θ_z² (a² + b²)) / 4 )                              [mm]

Shapes: motion [l, 2, 6] (mm, rad).
Loophole: a construct that is only stiff scores well at any planned pose, since the plan is taken as
right; a posture that was planned wrong is not seen here. Rods lower it without any change of the
implant.
Raises: ValueError when the standing load case is missing.
Ref: DESIGN §5 (alignment is measured on the loaded construct).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from pydantic import BaseModel, ConfigDict, Field

from engine.types import Response
from objectives._abstract import Better


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    loadcase: str = "standing"
    half_width_mm: float = Field(25.0, gt=5)
    half_depth_mm: float = Field(17.0, gt=5)


def build(settings: dict[str, Any]) -> Misalignment:
    s = Settings(**settings)
    return Misalignment(s.loadcase, s.half_width_mm, s.half_depth_mm)


@dataclass(frozen=True)
class Misalignment:
    loadcase: str
    half_width_mm: float
    half_depth_mm: float
    name: str = "misalignment"
    unit: str = "mm"
    description: str = (
        "rms displacement of the cranial endplate off its planned pose under the standing load"
    )
    better: Better = "lower"

    def applies_to(self, response: Response) -> bool:
        return True

    def per_load(self, response: Response) -> Array:
        motion = jnp.asarray(response.motion)
        relative = motion[:, 1] - motion[:, 0]
        t, turn = relative[:, :3], relative[:, 3:]
        a, b = self.half_width_mm, self.half_depth_mm
        spin = turn[:, 0] ** 2 * b**2 + turn[:, 1] ** 2 * a**2 + turn[:, 2] ** 2 * (a**2 + b**2)
        return jnp.sqrt(jnp.sum(t**2, axis=-1) + spin / 4 + 1e-18)

    def value(self, response: Response) -> Array:
        return self.per_load(response)[response.case(self.loadcase)]
