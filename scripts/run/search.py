"""Where a search starts and which positions it tries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.multigrid import UNSOLVED
from objectives.problem import Problem
from scripts.run.arms import Study, log, parameters_at, positions_of, unit


def start(study: Study, pose: np.ndarray) -> dict[str, np.ndarray]:
    """Where the optimiser starts, scaled: at the conforming rival, solid and at its best
    position, so that it cannot end behind it; with a seed, scattered about that (clipped to the
    bounds)."""
    groups = study.cage.groups()
    values = {k: np.asarray(g.initial, float) for k, g in groups.items()} | {"pose": pose}
    begin = unit(
        study.cage, values | ({"density": groups["density"].upper} if "density" in groups else {})
    )
    if study.config.seed == 0:
        return begin
    random = np.random.default_rng(study.config.seed)
    scatter = study.config.start_scatter
    return {
        k: np.clip(begin[k] + scatter * random.standard_normal(begin[k].shape), 0.0, 1.0)
        for k in sorted(begin)
    }


@dataclass(frozen=True)
class Trial:
    """One position tried for a rival."""

    arm: str
    pose: np.ndarray
    loss: float
    measures: dict[str, float]


def search(
    study: Study,
    arm: str,
    problem: Problem,
    known: dict[tuple[float, ...], dict[str, Any]] | None = None,
) -> Iterator[Trial]:
    """Positions tried for a rival, coarse lattice first, then a pattern search about the best; the
    least loss wins.

    `known` holds rows of an earlier search by pose: they are taken over, not solved again. Raises
    ValueError when the device can stand nowhere.
    """
    family = problem.family
    s = study.cage.settings
    tried: dict[tuple[float, ...], Trial] = {}
    unsolved: set[tuple[float, ...]] = set()

    def attempt(pose: np.ndarray) -> Trial | None:
        key = tuple(np.round(pose, 4))
        values = None if key in tried or key in unsolved else parameters_at(study, family, pose)
        if values is None:
            return None
        row = (known or {}).get(tuple(pose.tolist()))
        if row is not None:
            tried[key] = Trial(arm, pose, row["loss"], row["measures"])
        else:
            e = problem.evaluate(unit(family, values))
            residual = e.info.worst()
            if not residual <= UNSOLVED:
                log.warning(
                    "%s at %s: not solved (relative residual %.1e), left out",
                    arm,
                    np.round(pose, 2).tolist(),
                    residual,
                )
                unsolved.add(key)
                return None
            tried[key] = Trial(arm, pose, float(e.loss), problem.table(e))
        return tried[key]

    for pose in positions_of(study):
        if (trial := attempt(pose)) is not None:
            yield trial
    if not tried:
        raise ValueError(
            f"{arm}: the device fits nowhere in the corridor ({len(unsolved)} positions did not"
            " solve); see implant.settings and stock"
        )
    best = min(tried.values(), key=lambda t: t.loss)
    step = np.array([_span(s.x_mm) / 6, _span(s.y_mm) / 6, np.deg2rad(_span(s.yaw_deg)) / 6, 0.0])
    low, high = (np.array([s.x_mm[i], s.y_mm[i], np.deg2rad(s.yaw_deg[i]), 0.0]) for i in (0, 1))
    spent = 0
    while spent < study.config.search.refine and step.max() > 1e-3:
        moved = False
        for axis, sign in ((1, -1), (1, 1), (0, -1), (0, 1), (2, -1), (2, 1)):
            if spent >= study.config.search.refine:
                break
            pose = best.pose.copy()
            pose[axis] = np.clip(pose[axis] + sign * step[axis], low[axis], high[axis])
            trial = attempt(pose)
            if trial is None:
                continue
            spent += 1
            yield trial
            if trial.loss < best.loss:
                best, moved = trial, True
        if not moved:
            step = step / 2
            if step[:2].max() < 0.2:
                break


def _span(limits: tuple[float, float]) -> float:
    return limits[1] - limits[0]
