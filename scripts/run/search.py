"""Where a search starts and which positions it tries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.multigrid import UNSOLVED
from objectives.problem import Problem
from scripts.run.arms import Study, parameters_at, positions_of, unit

log = logging.getLogger("spinefit")


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


class _Positions:
    """Positions of one rival, each solved once; `known` holds rows of an earlier search by pose."""

    def __init__(
        self, study: Study, arm: str, problem: Problem, known: Mapping[tuple[float, ...], Any]
    ) -> None:
        self.study, self.arm, self.problem, self.known = study, arm, problem, known
        self.trials: dict[tuple[float, ...], Trial] = {}
        self.unsolved: set[tuple[float, ...]] = set()

    def __call__(self, pose: np.ndarray) -> Trial | None:
        """The trial; None where the device cannot stand, where the solve fails, and where this
        position has been tried."""
        key, family = tuple(np.round(pose, 4)), self.problem.family
        if key in self.trials or key in self.unsolved:
            return None
        if (values := parameters_at(self.study, family, pose)) is None:
            return None
        if (row := self.known.get(tuple(pose.tolist()))) is not None:
            trial = Trial(self.arm, pose, row["loss"], row["measures"])
        else:
            e = self.problem.evaluate(unit(family, values))
            if not (residual := e.info.worst()) <= UNSOLVED:
                where = np.round(pose, 2).tolist()
                text = "%s at %s: not solved (relative residual %.1e), left out"
                log.warning(text, self.arm, where, residual)
                self.unsolved.add(key)
                return None
            trial = Trial(self.arm, pose, float(e.loss), self.problem.table(e))
        self.trials[key] = trial
        return trial


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
    positions = _Positions(study, arm, problem, known or {})
    for pose in positions_of(study):
        if (trial := positions(pose)) is not None:
            yield trial
    if not positions.trials:
        raise ValueError(
            f"{arm}: the device fits nowhere in the corridor ({len(positions.unsolved)} positions"
            " did not solve); see implant.settings and stock"
        )
    best = min(positions.trials.values(), key=lambda t: t.loss)
    s = study.cage.settings
    low, high = (np.array([s.x_mm[i], s.y_mm[i], np.deg2rad(s.yaw_deg[i]), 0.0]) for i in (0, 1))
    step = np.array([_span(s.x_mm) / 6, _span(s.y_mm) / 6, np.deg2rad(_span(s.yaw_deg)) / 6, 0.0])
    yield from pattern_search(positions, best, step, (low, high), study.config.search.refine)


#: Axes of a pose (x, y, yaw) and directions, in the order in which they are tried.
_MOVES = ((1, -1), (1, 1), (0, -1), (0, 1), (2, -1), (2, 1))
#: Smaller steps than these are not worth a solve: of any axis (mm, rad), and in the plane (mm).
_LEAST_STEP, _LEAST_STEP_MM = 1e-3, 0.2


def pattern_search(
    evaluate: Callable[[np.ndarray], Trial | None],
    best: Trial,
    step: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    budget: int,
) -> Iterator[Trial]:
    """Coordinate search: a step either way along each axis; the steps halve when none improves.

    Yields every trial. `evaluate(pose)` gives None where a pose is not possible, which costs
    nothing of the budget.
    """
    spent = 0
    while spent < budget and step.max() > _LEAST_STEP:
        improved = False
        for axis, sign in _MOVES:
            if spent >= budget:
                return
            pose = best.pose.copy()
            pose[axis] = np.clip(pose[axis] + sign * step[axis], bounds[0][axis], bounds[1][axis])
            if (trial := evaluate(pose)) is None:
                continue
            spent += 1
            yield trial
            if trial.loss < best.loss:
                best, improved = trial, True
        if not improved:
            step = step / 2
            if step[:2].max() < _LEAST_STEP_MM:
                return


def _span(limits: tuple[float, float]) -> float:
    return limits[1] - limits[0]
