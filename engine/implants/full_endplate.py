"""A solid block that fills the disc space from rim to rim: the stiffest and widest support that
an interbody device could give. No corridor lets it through; it is the floor for yielded bone,
not a design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from pydantic import BaseModel, ConfigDict, Field

from engine.implants._abstract import FAR_MM, Anatomy, Group, ImplantFields
from engine.materials import implant_material


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    material: str = "ti6al4v"
    rods: bool = False
    rim_inset_mm: float = Field(1.0, ge=0, le=10)


def build(settings: dict[str, Any]) -> FullEndplate:
    """Raises ValueError for unknown settings or materials."""
    chosen = Settings(**settings)
    implant_material(chosen.material)
    return FullEndplate(chosen.material, chosen.rods, chosen.rim_inset_mm)


@dataclass(frozen=True)
class FullEndplate:
    """φ = max(rim + inset, disc, −φ_caudal, −φ_cranial)."""

    material: str
    rods: bool
    rim_inset_mm: float

    def groups(self) -> dict[str, Group]:
        return {}

    def fields(self, parameters: dict[str, Array], anatomy: Anatomy) -> ImplantFields:
        prism = jnp.maximum(anatomy.rim + self.rim_inset_mm, anatomy.disc)
        solid = jnp.maximum(prism, jnp.maximum(-anatomy.caudal, -anatomy.cranial))
        return ImplantFields(solid, jnp.full_like(solid, FAR_MM), jnp.ones_like(solid))

    def describe(self) -> dict[str, Any]:
        return {"approach": "none (floor)", "rods": self.rods}
