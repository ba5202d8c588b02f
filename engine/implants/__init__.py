"""Implant families, one file each. `load(name)` finds a family by the name of its file: nothing
else to edit."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from engine.implants._abstract import Anatomy, Family, Group, ImplantFields, anatomy_at

__all__ = ["Anatomy", "Family", "Group", "ImplantFields", "anatomy_at", "families", "load"]


def families() -> tuple[str, ...]:
    """Names of all families: the public modules of this package."""
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    )


def load(family: str, settings: dict[str, Any]) -> Family:
    """The family of that name with these settings.

    Raises ValueError when the family or one of its settings is unknown or out of range.
    """
    if family not in families():
        raise ValueError(
            f"implant.family={family!r} is unknown; choose one of {', '.join(families())}"
        )
    return importlib.import_module(f"engine.implants.{family}").build(settings)
