"""Constrained optimisation as an iterator over explicit, serialisable state.

    for step in run(problem, settings, state):
        …      each step is one evaluated design and the state after it

Adam (optax) on the augmented Lagrangian of the scaled parameters, projected onto [0, 1]:

    p ← clip(p − Adam(∇ L_ρ(p, μ)))

and, every `multiplier_every` iterations,

    μ ← max(0, μ + ρ c)
    ρ ← min(γ ρ, ρ_max)     while the violation has not halved

Everything that the next iteration depends on is in `State`: parameters, Adam's moments,
multipliers, warm starts of both solves, and the design for which the preconditioner was built. So a
run that was cut off and resumed continues bit for bit on the same machine. Logging, files and
signals are the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from pydantic import BaseModel, ConfigDict, Field

from engine.forward import Warm
from engine.multigrid import UNSOLVED, Preconditioner

#: Norm to which a gradient is clipped, in loss per whole range of the parameters [M].
_LARGEST_GRADIENT = 1e3


class OptimizerSettings(BaseModel):
    """See the module's docstring. learning_rate is in scaled parameters (1 = the whole range).

    least_gradient is Adam's ε, in loss per whole range of a parameter: what matters less than that
    moves less than the learning rate. With the usual 1e-8 every parameter moves at full rate, the
    irrelevant ones at random. patience: iterations without a better design after which the search
    ends; null: never.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    iterations: int = Field(30, ge=1, le=2000)
    learning_rate: float = Field(0.03, gt=0, le=0.5)
    final_learning_rate: float = Field(0.01, gt=0, le=0.5)
    least_gradient: float = Field(0.1, gt=0)
    penalty: float = Field(2.0, gt=0)
    penalty_growth: float = Field(2.0, ge=1)
    penalty_max: float = Field(200.0, gt=0)
    multiplier_every: int = Field(5, ge=1)
    rebuild_every: int = Field(1, ge=1)
    feasible: float = Field(0.01, ge=0)
    patience: int | None = Field(None, ge=1)


class State(NamedTuple):
    """All that the next iteration depends on."""

    iteration: Array
    parameters: dict[str, Array]
    optimiser: Any
    multipliers: Array
    penalty: Array
    violation: Array
    warm: Warm
    built_at: dict[str, Array]
    best_parameters: dict[str, Array]
    best_loss: Array
    best_violation: Array
    best_iteration: Array


class Step(NamedTuple):
    """One evaluated design: iteration, what the problem said of it, and the state after it."""

    iteration: int
    loss: float
    violation: float
    constraints: np.ndarray
    evaluation: Any
    gradient_norm: float
    adjoint_iterations: int
    adjoint_residual: float
    improved: bool
    state: State


class Solvable(Protocol):
    """What the optimiser asks of a problem (objectives.problem.Problem)."""

    def hierarchy(self, unit: dict[str, Any]) -> Preconditioner: ...

    def gradient(
        self,
        unit: dict[str, Any],
        multipliers: Array,
        penalty: float,
        preconditioner: Preconditioner,
        warm: Warm,
    ) -> tuple[Any, Array, dict[str, Array], Warm]: ...


def _adam(settings: OptimizerSettings) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(
        settings.learning_rate,
        settings.iterations,
        settings.final_learning_rate / settings.learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(_LARGEST_GRADIENT),
        optax.adam(schedule, eps=settings.least_gradient),
    )


def start(
    initial: dict[str, Any], constraints: int, warm: Warm, settings: OptimizerSettings
) -> State:
    """The state before the first iteration."""
    parameters = {k: jnp.asarray(v, jnp.float64) for k, v in initial.items()}
    inf = jnp.asarray(jnp.inf)
    return State(
        iteration=jnp.asarray(0),
        parameters=parameters,
        optimiser=_adam(settings).init(parameters),
        multipliers=jnp.zeros(constraints),
        penalty=jnp.asarray(settings.penalty),
        violation=inf,
        warm=warm,
        built_at=parameters,
        best_parameters=parameters,
        best_loss=inf,
        best_violation=inf,
        best_iteration=jnp.asarray(-1),
    )


def exhausted(state: State, settings: OptimizerSettings) -> bool:
    """All iterations done, or none of the last `patience` was better."""
    n, best = int(state.iteration), int(state.best_iteration)
    return n >= settings.iterations or (
        settings.patience is not None and n - 1 - best >= settings.patience
    )


def run(problem: Solvable, settings: OptimizerSettings, state: State) -> Iterator[Step]:
    """Iterate from `state` until it is exhausted. Raises FloatingPointError when a gradient is not
    finite.

    The best design is the feasible one (violation ≤ settings.feasible) of least loss, or, while
    there is none, the one of least violation. A solve that fails with a preconditioner built for
    another design is repeated once with one of its own.
    """
    preconditioner: Preconditioner | None = None
    while not exhausted(state, settings):
        n = int(state.iteration)
        if n % settings.rebuild_every == 0 and state.built_at is not state.parameters:
            state = state._replace(built_at=state.parameters)
            preconditioner = None
        if preconditioner is None:
            preconditioner = problem.hierarchy(state.built_at)
        evaluation, _, gradient, warm = problem.gradient(
            state.parameters, state.multipliers, float(state.penalty), preconditioner, state.warm
        )
        if not _solved(n, evaluation, warm, own=state.built_at is state.parameters):
            state = state._replace(built_at=state.parameters)
            preconditioner = None
            continue
        step = _step(state, settings, evaluation, gradient, warm)
        state = step.state
        yield step


def _solved(n: int, evaluation: Any, warm: Warm, own: bool) -> bool:
    """Whether the solve and its adjoint converged. Raises FloatingPointError where they did not
    although the preconditioner is the design's own."""
    # max() of Python would pass over a NaN; probe: iterations and residual of the adjoint solve
    residual = float(np.max([evaluation.info.worst(), np.asarray(warm.probe)[1]]))
    if residual <= UNSOLVED:
        return True
    if own:
        raise FloatingPointError(
            f"iteration {n}: the linear solve or its adjoint ended with a relative residual"
            f" of {residual:.1e}; the best design so far is kept. Walls under two voxels"
            " usually cause this: raise wall_mm or lower solver.spacing_mm"
        )
    return False


def _step(
    state: State,
    settings: OptimizerSettings,
    evaluation: Any,
    gradient: dict[str, Array],
    warm: Warm,
) -> Step:
    """Adam's step from an evaluated design, the multipliers' update and the best design so far.
    Raises FloatingPointError when the gradient is not finite."""
    n = int(state.iteration)
    norm = float(optax.tree.norm(gradient))
    if not np.isfinite(norm):
        raise FloatingPointError(
            f"iteration {n}: the gradient is not finite; the best design so far is kept. Lower"
            " optimizer.learning_rate or look at the solver's status in history.jsonl"
        )
    constraints = np.asarray(evaluation.constraints)
    violation = float(np.max(constraints, initial=0.0))
    loss = float(evaluation.loss)
    improved = _better(
        loss, violation, float(state.best_loss), float(state.best_violation), settings.feasible
    )
    updates, optimiser = _adam(settings).update(gradient, state.optimiser, state.parameters)
    after = _with_multipliers(state, settings, evaluation.constraints, violation)._replace(
        iteration=state.iteration + 1,
        parameters=jax.tree.map(lambda p, d: jnp.clip(p + d, 0.0, 1.0), state.parameters, updates),
        optimiser=optimiser,
        warm=Warm(warm.forward, warm.adjoint, jnp.zeros(3)),
    )
    if improved:
        after = after._replace(
            best_parameters=state.parameters,
            best_loss=jnp.asarray(loss),
            best_violation=jnp.asarray(violation),
            best_iteration=jnp.asarray(n),
        )
    probe = np.asarray(warm.probe)
    return Step(
        iteration=n,
        loss=loss,
        violation=violation,
        constraints=constraints,
        evaluation=evaluation,
        gradient_norm=norm,
        adjoint_iterations=int(probe[0]),
        adjoint_residual=float(probe[1]),
        improved=improved,
        state=after,
    )


def _with_multipliers(
    state: State, settings: OptimizerSettings, constraints: Array, violation: float
) -> State:
    """The state with new multipliers, and a larger penalty while the violation has not halved
    since the last ones, when it is their turn."""
    turn = (int(state.iteration) + 1) % settings.multiplier_every == 0
    if not (len(constraints) and turn):
        return state
    multipliers, penalty = state.multipliers, state.penalty
    multipliers = jnp.maximum(0.0, multipliers + penalty * constraints)
    if violation > 0.5 * float(state.violation) and violation > settings.feasible:
        penalty = jnp.minimum(penalty * settings.penalty_growth, settings.penalty_max)
    return state._replace(
        multipliers=multipliers, penalty=penalty, violation=jnp.asarray(violation)
    )


def _better(
    loss: float, violation: float, best_loss: float, best_violation: float, feasible: float
) -> bool:
    """Whether a design is better than the best so far (see `run`)."""
    if violation <= feasible:
        return best_violation > feasible or loss < best_loss
    return violation < best_violation
