"""Objectives, one file each; `load(name, settings)` finds one by the name of its file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from objectives._abstract import Goal, Objective

__all__ = ["Goal", "Objective", "load", "names"]


def names() -> tuple[str, ...]:
    """Names of all objectives: the public modules of this package but the problem."""
    return tuple(
        sorted(
            m.name
            for m in pkgutil.iter_modules(__path__)
            if not m.name.startswith("_") and m.name != "problem"
        )
    )


def load(name: str, settings: dict[str, Any] | None = None) -> Objective:
    """The objective of that name. Raises ValueError for an unknown name or setting."""
    if name not in names():
        raise ValueError(f"objective {name!r} is unknown; choose among {', '.join(names())}")
    return importlib.import_module(f"objectives.{name}").build(settings or {})
