"""Kinds of load, one file each with `Settings` (pydantic) and `case`; `make` finds the kind by
the name of its file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from engine.types import LoadCase, Segment

__all__ = ["check", "kinds", "make"]


def kinds() -> tuple[str, ...]:
    """Names of all load kinds: the public modules of this package."""
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    )


def check(name: str, spec: dict[str, Any]) -> None:
    """Raises ValueError naming an unknown kind, or every wrong setting, of {kind, …settings};
    needs no segment."""
    settings = dict(spec)
    kind = settings.pop("kind", None)
    if kind not in kinds():
        raise ValueError(
            f"load case {name!r}: kind={kind!r} is unknown; choose one of {', '.join(kinds())}"
        )
    importlib.import_module(f"engine.loadcases.{kind}").Settings(**settings)


def make(name: str, spec: dict[str, Any], segment: Segment) -> LoadCase:
    """The load case `name` of {kind, …settings}. Raises ValueError as `check`."""
    check(name, spec)
    settings = dict(spec)
    return importlib.import_module(f"engine.loadcases.{settings.pop('kind')}").case(
        name, settings, segment
    )
