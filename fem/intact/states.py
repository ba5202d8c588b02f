"""States of an intact segment, and the file in which a run keeps them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import artifacts

log = logging.getLogger("spinefit.fem")


@dataclass(frozen=True)
class State:
    """x: unknowns of the disc; the cranial vertebra's rotation [3, 3] and translation_mm [3]."""

    x: np.ndarray
    rotation: np.ndarray
    translation_mm: np.ndarray


def read_states(path: Path | None, key: str) -> list[tuple[State, int]]:
    """The states in `path` (.npz) with the iterations that each took; none where there is no file,
    or it is damaged or of another key."""
    if path is None or not path.exists():
        return []
    try:
        data = artifacts.read_npz(path)
    except ValueError as error:
        log.warning("%s; started afresh", error)
        return []
    if str(data.get("key")) != key:
        log.info("%s is of another segment or other loads; started afresh", path)
        return []
    rows = zip(data["x"], data["rotation"], data["translation_mm"], data["iterations"], strict=True)
    return [(State(x, r, t), int(n)) for x, r, t, n in rows]


def write_states(path: Path | None, key: str, states: list[tuple[State, int]]) -> None:
    """Nothing where `path` is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: np.stack([getattr(s, name) for s, _ in states])
        for name in ("x", "rotation", "translation_mm")
    }
    artifacts.write_npz(
        path, key=np.array(key), iterations=np.array([n for _, n in states]), **arrays
    )
