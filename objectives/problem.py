"""The optimisation problem: forward model + goals → loss, constraints and a table, one line a goal.

    minimise  L(p) = Σ_k w_k m_k(p)/s_k      subject to  c_j(p) = ±(m_j(p) − b_j)/s_j ≤ 0

m are physical measures of the response (objectives/*), w, s, b come from the configuration. The
parameters of all groups are scaled to [0, 1] between their bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine import forward
from engine.forward import Warm
from engine.implants import Anatomy, Family, Group, ImplantFields
from engine.mixture import Alloy, alloy
from engine.multigrid import Preconditioner, SolveInfo
from engine.scene import Numerics, Scene
from engine.types import Response
from objectives import Goal, load


class GoalSettings(BaseModel):
    """One entry of a conf/objectives file."""

    model_config = ConfigDict(extra="forbid")
    objective: str
    kind: Literal["minimise", "at_most", "at_least"] = "minimise"
    weight: float = Field(1.0, ge=0)
    scale: float = Field(1.0, gt=0)
    bound: float | None = None
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _bound(self) -> GoalSettings:
        if (self.kind == "minimise") != (self.bound is None):
            raise ValueError(
                f"{self.objective}: 'bound' belongs to at_most and at_least, and they need one"
            )
        return self


def goal(entry: dict[str, Any]) -> Goal:
    """One goal. Raises ValueError naming an unknown objective, a wrong setting or a missing
    bound."""
    s = GoalSettings(**entry)
    return Goal(load(s.objective, s.settings), s.kind, s.weight, s.scale, s.bound)


def goals(entries: list[dict[str, Any]]) -> tuple[Goal, ...]:
    """Goals of the configuration. Raises ValueError naming every unknown objective, setting or
    missing bound."""
    out = [goal(entry) for entry in entries]
    if not any(g.kind == "minimise" for g in out):
        raise ValueError(
            "no goal has kind=minimise: there is nothing to optimise; add one to the objectives"
            " group"
        )
    return tuple(out)


class Evaluation(NamedTuple):
    """A design, evaluated: loss, constraints [j] (≤ 0 is satisfied), measures [k] in their
    units, per-load table."""

    loss: Array
    constraints: Array
    measures: Array
    response: Response
    info: SolveInfo
    displacement: Array


@dataclass(frozen=True)
class Problem:
    """A family on a patient with goals. Arrays live in `scene`; everything else is static."""

    scene: Scene
    numerics: Numerics
    family: Family
    goals: tuple[Goal, ...]

    def groups(self) -> dict[str, Group]:
        return self.family.groups()

    def initial(self) -> dict[str, np.ndarray]:
        """The family's start, scaled to [0, 1]."""
        return {k: to_unit(g, g.initial) for k, g in self.groups().items()}

    def physical(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Parameters in physical units from scaled ones."""
        return {
            k: g.lower + jnp.asarray(unit[k]) * (g.upper - g.lower)
            for k, g in self.groups().items()
        }

    def hierarchy(self, unit: dict[str, Any]) -> Preconditioner:
        """The preconditioner for this design."""
        return forward.hierarchy(self.scene, self.numerics, self.family, self.physical(unit))

    def evaluate(
        self,
        unit: dict[str, Any],
        preconditioner: Preconditioner | None = None,
        warm: Warm | None = None,
    ) -> Evaluation:
        """Everything about one design, no gradient."""
        preconditioner = self.hierarchy(unit) if preconditioner is None else preconditioner
        warm = forward.no_warm_start(self.scene) if warm is None else warm
        implant = _fields(self.family, _arrays(unit), self.scene.anatomy)
        return _evaluate(
            implant,
            warm,
            self.scene,
            preconditioner,
            alloy(self.family.material),
            numerics=self.numerics,
            every=self.goals,
        )

    def gradient(
        self,
        unit: dict[str, Any],
        multipliers: Array,
        penalty: float,
        preconditioner: Preconditioner,
        warm: Warm,
    ) -> tuple[Evaluation, Array, dict[str, Array], Warm]:
        """Evaluation, augmented Lagrangian, its gradient in the scaled parameters, and the next
        warm starts.

        The augmented Lagrangian is corrected for the residual of the solve (see multigrid.solve):
        its error is of second order in the tolerance, that of evaluation.loss and the measures of
        first order.
        """
        unit = _arrays(unit)
        implant = _fields(self.family, unit, self.scene.anatomy)
        (value, evaluation), (bar, warm_bar) = _value_and_grad(
            implant,
            warm,
            self.scene,
            preconditioner,
            alloy(self.family.material),
            multipliers,
            jnp.asarray(penalty),
            numerics=self.numerics,
            every=self.goals,
        )
        slope = _pull_back(self.family, unit, self.scene.anatomy, bar)
        return (
            evaluation,
            value + warm_bar.probe[2],
            slope,
            Warm(evaluation.displacement, warm_bar.adjoint, warm_bar.probe),
        )

    def table(self, evaluation: Evaluation) -> dict[str, float]:
        """Measures by objective name, in their units."""
        return {
            g.objective.name: float(m) for g, m in zip(self.goals, evaluation.measures, strict=True)
        }


def _arrays(unit: dict[str, Any]) -> dict[str, Array]:
    return {k: jnp.asarray(v, float) for k, v in unit.items()}


def to_unit(group: Group, value: np.ndarray) -> np.ndarray:
    """Scaled to [0, 1]; a parameter whose bounds coincide becomes 0."""
    span = group.upper - group.lower
    return np.where(span > 0, (value - group.lower) / np.where(span > 0, span, 1.0), 0.0)


def score(response: Response, every: tuple[Goal, ...]) -> tuple[Array, Array, Array]:
    """Loss, constraints and measures of a response under the goals."""
    measures = [g.objective.value(response) for g in every]
    loss = sum(
        g.weight * m / g.scale for g, m in zip(every, measures, strict=True) if g.kind == "minimise"
    )
    sign = {"at_most": 1.0, "at_least": -1.0}
    constraints = [
        sign[g.kind] * (m - (g.bound or 0.0)) / g.scale
        for g, m in zip(every, measures, strict=True)
        if g.kind != "minimise"
    ]
    return (
        jnp.asarray(loss),
        jnp.stack(constraints) if constraints else jnp.zeros(0),
        jnp.stack(measures),
    )


def augmented_lagrangian(
    loss: Array, constraints: Array, multipliers: Array, penalty: Array
) -> Array:
    """L + (1/2ρ) Σ (max(0, μ + ρ c)² − μ²)   (Rockafellar; Nocedal & Wright, eq. 17.65)."""
    active = jnp.maximum(0.0, multipliers + penalty * constraints)
    return loss + jnp.sum(active**2 - multipliers**2) / (2.0 * penalty)


def _run(
    implant: ImplantFields,
    warm: Warm,
    scene: Scene,
    preconditioner: Preconditioner,
    solid: Alloy,
    numerics: Numerics,
    every: tuple[Goal, ...],
) -> Evaluation:
    response, info, u = forward.respond_fields(
        scene, numerics, implant, solid, preconditioner, warm
    )
    return Evaluation(*score(response, every), response, info, u)


_evaluate = partial(jax.jit, static_argnames=("numerics", "every"))(_run)


@partial(jax.jit, static_argnames=("numerics", "every"))
def _value_and_grad(
    implant: ImplantFields,
    warm: Warm,
    scene: Scene,
    preconditioner: Preconditioner,
    solid: Alloy,
    multipliers: Array,
    penalty: Array,
    numerics: Numerics,
    every: tuple[Goal, ...],
) -> Any:
    def lagrangian(implant: ImplantFields, warm: Warm) -> tuple[Array, Evaluation]:
        e = _run(implant, warm, scene, preconditioner, solid, numerics, every)
        return augmented_lagrangian(e.loss, e.constraints, multipliers, penalty), e

    return jax.value_and_grad(lagrangian, argnums=(0, 1), has_aux=True)(implant, warm)


@partial(jax.jit, static_argnames="family")
def _fields(family: Family, unit: dict[str, Array], anatomy: Anatomy) -> ImplantFields:
    physical = {k: g.lower + unit[k] * (g.upper - g.lower) for k, g in family.groups().items()}
    return family.fields(physical, anatomy)


@partial(jax.jit, static_argnames="family")
def _pull_back(
    family: Family, unit: dict[str, Array], anatomy: Anatomy, bar: ImplantFields
) -> dict[str, Array]:
    """The gradient in the scaled parameters from that in the fields."""
    return jax.vjp(lambda p: _fields(family, p, anatomy), unit)[1](bar)[0]
