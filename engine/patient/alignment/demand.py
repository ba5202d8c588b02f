"""How a regional correction is distributed over the levels that can give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.patient.alignment.rules import LEVEL_NORMS_ALL_DEG, RuleTarget

#: Rounding of the spread, degrees: a rest or a room below it is none, and a level this near to its
#: limit, or a shortfall this small, is at it.
_NOTHING_DEG, _SAME_DEG = 1e-9, 1e-6


@dataclass(frozen=True)
class LevelLimit:
    """Largest change of one disc's angle: the opening rim is held by its ligament, the closing rim
    by the disc space.

        |Δ| ≤ min(angle, opens/r_o, closes/r_c)

    The disc turns about its middle, whose height is planned apart, so that a rim, r from the
    middle, moves by 2r·|sin(θ′/2) − sin(θ/2)| ≤ r·|Δ| with θ the disc angle as scanned and θ′ as
    planned (disc.py): the bound is safe, and under 2 % too strict for discs below 20°.

    angle_deg      most that is asked of one level; ours [M]
    opens_mm       what the opening rim may still rise, after the change of the middle height
                   (plan_target.py has it for one patient); inf: not limited
    closes_mm      what the closing rim may still sink, likewise
    opens_at_mm    r_o
    closes_at_mm   r_c
    """

    angle_deg: float = 8.0
    opens_mm: float = np.inf
    closes_mm: float = np.inf
    opens_at_mm: float = 17.0
    closes_at_mm: float = 17.0

    def largest_deg(self) -> float:
        """The bound, degrees ≥ 0."""
        return self._bound()[0]

    def limited_by(self) -> str:
        """ "angle" | "ligament" | "disc space": which of the three is least."""
        return self._bound()[1]

    def _bound(self) -> tuple[float, str]:
        opens = float(np.degrees(max(self.opens_mm, 0.0) / self.opens_at_mm))
        closes = float(np.degrees(max(self.closes_mm, 0.0) / self.closes_at_mm))
        return min(
            (self.angle_deg, "angle"),
            (opens, "ligament"),
            (closes, "disc space"),
            key=lambda bound: bound[0],
        )


@dataclass(frozen=True)
class Distribution:
    """Change of lordosis by treated level (degrees), what they cannot give, and the reason of each
    that is at its limit.

    levels_deg   change given to the level
    wanted_deg   what the level would take if nothing were limited; Σ wanted − Σ given = shortfall
    """

    rule: str
    demand_deg: float
    levels_deg: dict[str, float]
    wanted_deg: dict[str, float]
    shortfall_deg: float
    notes: tuple[str, ...] = ()


def distribute(
    target: RuleTarget,
    levels: Sequence[str],
    measured_deg: Mapping[str, float],
    limits: Mapping[str, LevelLimit] | None = None,
    norms_deg: Mapping[str, float] | None = None,
) -> Distribution:
    """The change of lordosis that a target demands, spread over the levels that are treated.

    With Δ the demand, s_i the norm's share of level i [S66] and m_i its measured lordosis, level i
    lacks d_i = max(sign(Δ)·(s_i·LL_target − m_i), 0) and takes Δ·d_i/Σd; what a level cannot take
    (its limit) goes to those that still can, by the same shares, and where none of them lacks any
    more, by their remaining room. What is left over is the shortfall.

    levels         treated, as "L4-L5"
    measured_deg   superior-to-superior lordosis of these levels
    limits         by level; default LevelLimit()
    norms_deg      by level; default the target's own, else [S66] of all subjects

    Raises: ValueError for no level, an unknown or unmeasured one, or a target without a change.
    """
    if target.change_deg is None or target.ll_deg is None:
        raise ValueError(
            f"rule {target.rule} gives no change of lordosis ({target.reason or target.status});"
            " choose another"
        )
    norms = dict(norms_deg or target.levels_deg or LEVEL_NORMS_ALL_DEG)
    _check_levels(levels, norms, measured_deg)
    sign = 1.0 if target.change_deg >= 0.0 else -1.0
    total = sum(norms.values())
    lacks = np.array(
        [
            max(sign * (norms[level] / total * target.ll_deg - measured_deg[level]), 0.0)
            for level in levels
        ]
    )
    bounds = [(limits or {}).get(level, LevelLimit()) for level in levels]
    caps = np.array([bound.largest_deg() for bound in bounds])
    first = next((weight for weight in (lacks, caps) if weight.sum() > 0.0), np.ones(len(levels)))
    wanted = target.change_deg * first / first.sum()
    given, rest = _spread(abs(target.change_deg), lacks, caps)
    notes = [
        f"{level} is at its limit of {bound.largest_deg():.1f}° ({bound.limited_by()})"
        for level, bound, part in zip(levels, bounds, given, strict=True)
        if part > bound.largest_deg() - _SAME_DEG
    ]
    if rest:
        notes.append(
            f"{rest:.1f}° of {abs(target.change_deg):.1f}° cannot be had from {', '.join(levels)}"
        )
    return Distribution(
        rule=target.rule,
        demand_deg=target.change_deg,
        levels_deg={level: float(sign * part) for level, part in zip(levels, given, strict=True)},
        wanted_deg={level: float(part) for level, part in zip(levels, wanted, strict=True)},
        shortfall_deg=sign * rest,
        notes=tuple(notes),
    )


def _check_levels(
    levels: Sequence[str], norms_deg: Mapping[str, float], measured_deg: Mapping[str, float]
) -> None:
    if not levels or len(set(levels)) != len(levels):
        raise ValueError(
            f"levels treated: {list(levels)}; expected at least one, each once, as ['L4-L5']"
        )
    for level in levels:
        if level not in norms_deg or level not in measured_deg:
            there = sorted(set(norms_deg) & set(measured_deg))
            raise ValueError(
                f"level {level!r} has no norm or was not measured; choose among"
                f" {', '.join(there) or 'none'}"
            )


def _spread(
    demand_deg: float, lacks_deg: np.ndarray, caps_deg: np.ndarray
) -> tuple[np.ndarray, float]:
    """(given to each level, rest), degrees ≥ 0: by what the levels lack, up to their caps, then by
    the room that is left."""
    given, rest = np.zeros(len(caps_deg)), demand_deg
    for weight in (lacks_deg, None):
        while rest > _NOTHING_DEG:
            room = caps_deg - given
            share = np.where(room > _NOTHING_DEG, room if weight is None else weight, 0.0)
            if share.sum() <= 0.0:
                break
            step = np.minimum(rest * share / share.sum(), room)
            given += step
            rest -= float(step.sum())
    return given, rest if rest > _SAME_DEG else 0.0
