"""No device: the intact segment, one of the two floors that every result is reported against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from engine.implants._abstract import FAR_MM, Anatomy, Group, ImplantFields


def build(settings: dict[str, Any]) -> Nothing:
    """Takes no settings. Raises ValueError when any is given."""
    if settings:
        raise ValueError(f"implant family 'none' takes no settings; given {', '.join(settings)}")
    return Nothing()


@dataclass(frozen=True)
class Nothing:
    """The disc space keeps its disc."""

    material: str = "ti6al4v"
    rods: bool = False

    def groups(self) -> dict[str, Group]:
        return {}

    def fields(self, parameters: dict[str, Array], anatomy: Anatomy) -> ImplantFields:
        far = jnp.full_like(anatomy.caudal, FAR_MM)
        return ImplantFields(far, far, jnp.ones_like(far))

    def describe(self) -> dict[str, Any]:
        return {"approach": "none", "rods": False}
