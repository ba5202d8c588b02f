"""A spine as endplates, and the axes in which its angles are read.

x    patient's left: the hip axis where the femoral heads are known, else S1's left axis, else
     the vertebrae's mean
z    chord from S1 (or the lowest endplate) to the uppermost one, made perpendicular to x
up   LPS z made perpendicular to x: stands for the vertical
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.patient.alignment.disc import Plates
from engine.patient.geometry.frames import unit
from engine.types import Endplate, Vertebra

#: Why a measure is missing, by the level whose endplate it needs.
NO_ENDPLATE = "{}'s superior endplate is not in the scan"


@dataclass(frozen=True)
class Spine:
    """Endplates of a spine, cranial to caudal, with its axes as unit vectors [3].

    plates     (superior, inferior) by level
    bodies     the vertebrae themselves, where more than their endplates is known
    base       S1's superior endplate
    heads_mm   [2, 3] centres of the femoral heads
    """

    plates: dict[str, Plates]
    bodies: dict[str, Vertebra]
    base: Endplate | None
    heads_mm: np.ndarray | None
    x: np.ndarray
    z: np.ndarray
    up: np.ndarray

    @property
    def levels(self) -> list[str]:
        """Names of the vertebrae, cranial to caudal."""
        return list(self.plates)

    def lean_deg(self, vector: np.ndarray, vertical: np.ndarray) -> float:
        """Angle of a vector from `vertical` in the sagittal plane, positive posteriorly."""
        return float(np.degrees(np.arctan2(vector @ np.cross(vertical, self.x), vector @ vertical)))

    def below(self, lower: str) -> Plates | None:
        """(superior, inferior) endplate of a level; for S1 its superior endplate twice, or None."""
        if lower != "S1":
            return self.plates[lower]
        if self.base is None:
            return None
        return self.base, replace(self.base, normal=-self.base.normal)

    def lordosis_deg(self, upper: str, lower: str) -> float | str:
        """Lordosis from one superior endplate to another, or which of them is missing."""
        ends = {level: self._superior(level) for level in (upper, lower)}
        missing = [NO_ENDPLATE.format(level) for level, plate in ends.items() if plate is None]
        if missing:
            return "; ".join(missing)
        first, last = (
            self.lean_deg(plate.normal, self.z) for plate in ends.values() if plate is not None
        )
        return wrapped_deg(first - last)

    def _superior(self, level: str) -> Endplate | None:
        if level == "S1":
            return self.base
        return self.plates[level][0] if level in self.plates else None


def spine_of(
    plates: dict[str, Plates],
    bodies: dict[str, Vertebra],
    base: Endplate | None,
    heads_mm: np.ndarray | None,
) -> Spine:
    """The spine with the axes of the module docstring."""
    levels = list(plates)
    mean_left = sum((p.axis_left for pair in plates.values() for p in pair), np.zeros(3))
    if heads_mm is not None:
        x = unit(heads_mm[0] - heads_mm[1])
        x = x if x @ mean_left > 0.0 else -x
    else:
        x = unit(base.axis_left if base is not None else mean_left)
    foot_mm = base.centre_mm if base is not None else plates[levels[-1]][1].centre_mm
    z = _across(x, plates[levels[0]][0].centre_mm - foot_mm)
    up = _across(x, np.array([0.0, 0.0, 1.0]))
    return Spine(plates, bodies, base, heads_mm, x, z, up)


def wrapped_deg(angle_deg: float) -> float:
    """The angle in [-180, 180)."""
    return float((angle_deg + 180.0) % 360.0 - 180.0)


def _across(x: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Unit vector along what is left of `vector` perpendicular to x."""
    return unit(vector - (vector @ x) * x)
