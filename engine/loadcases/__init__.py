"""Kinds of load, one file each; `make(spec, segment)` finds the kind by the name of its file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from engine.types import LoadCase, Segment

__all__ = ["kinds", "make"]


def kinds() -> tuple[str, ...]:
    """Names of all load kinds: the public modules of this package."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def make(name: str, spec: dict[str, Any], segment: Segment) -> LoadCase:
    """The load case `name` of {kind, …settings}. Raises ValueError naming an unknown kind or setting."""
    settings = dict(spec)
    kind = settings.pop("kind", None)
    if kind not in kinds():
        raise ValueError(f"load case {name!r}: kind={kind!r} is unknown; choose one of {', '.join(kinds())}")
    return importlib.import_module(f"engine.loadcases.{kind}").case(name, settings, segment)
