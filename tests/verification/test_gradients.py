"""Gradients of every objective in every parameter group, through the solve, by Taylor remainder.

    R(h) = |m(p + h d) − m(p) − h ∇m·d|,    slope = log₂ R(h)/R(h/2) ≥ 1.9

Steps are in scaled parameters (1 = the whole range): 2e-3 to 5e-4; a tenth of that for pose and
outline, a fifth for wall, which move every surface at once, and half for the faces. They are small
enough that no voxel crosses a switch of max() (at 2e-3 of the pose one does: R falls by 2 instead
of 4 there, and by 4 below it) and large enough that R stands out of the solver's tolerance of
1e-10. Where it doesn't (a measure that is linear over so short a step), R must lie under a floor of
1e-10 of the measure (1e-13 for volumes), which a wrong gradient would not: the first-order term is
checked to be at least a hundred times that floor.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import objectives
from engine import forward, implants
from objectives.problem import Problem, augmented_lagrangian, goals

#: At seed 7 one voxel lies 1e-5 mm from such a switch.
SEED = 8
STEPS = (2e-3, 1e-3, 5e-4)
FINE = {"pose": 0.1, "outline": 0.1, "wall": 0.2, "offset_caudal": 0.5, "offset_cranial": 0.5}
GROUPS = ("pose", "outline", "wall", "offset_caudal", "offset_cranial", "density")
OBJECTIVES = (
    "yielded_bone",
    "misalignment",
    "stress_shielding",
    "implant_stress",
    "implant_volume",
    "graft_volume",
)
#: What a lattice's density does not change: volumes count the part's outline.
ZERO = {("implant_volume", "density"), ("graft_volume", "density")}
#: Relative to the measure: solver noise under which a remainder says nothing; volumes need no solve
#: and have only round-off.
FLOOR, FLOOR_VOLUME = 1e-10, 1e-13


def floor(objective: str) -> float:
    return FLOOR_VOLUME if objective.endswith("volume") else FLOOR


def steps(group: str) -> tuple[float, ...]:
    return tuple(h * FINE.get(group, 1.0) for h in STEPS)


def interior(initial: dict, seed: int) -> tuple[dict, np.random.Generator]:
    """A random design well inside the bounds, faces standing off a little (the graft's volume
    depends on no other offset)."""
    rng = np.random.default_rng(seed)
    middle = {k: 0.5 * v + (0.45 if k.startswith("offset") else 0.25) for k, v in initial.items()}
    return {k: v + 0.08 * rng.uniform(-1, 1, v.shape) for k, v in middle.items()}, rng


@pytest.fixture(scope="module")
def taylor(bench):
    """At a random interior design: the measures, their gradients, and the measures along one
    direction of each group."""
    unit, rng = interior(bench.initial(), SEED)
    preconditioner = bench.hierarchy(unit)
    base = bench.run(unit, preconditioner)
    slopes, iterations = {}, []
    for i, name in enumerate(bench.names()):
        run = bench.run(unit, preconditioner, weights=np.eye(len(bench.every))[i], warm=base.warm)
        slopes[name] = run.slope
        iterations.append(run.adjoint_info)
    directions, along = {}, {}
    for group in unit:
        d = rng.normal(size=unit[group].shape)
        directions[group] = d / np.linalg.norm(d)
        along[group] = [
            bench.run(
                {**unit, group: unit[group] + h * directions[group]}, preconditioner, warm=base.warm
            ).measures
            for h in steps(group)
        ]
    return base.measures, slopes, directions, along, iterations


def remainders(
    taylor, bench, objective: str, group: str, sign: float = 1.0
) -> tuple[np.ndarray, float, float]:
    measures, slopes, directions, along, _ = taylor
    i = bench.names().index(objective)
    first = sign * float(np.vdot(slopes[objective][group], directions[group]))
    rest = np.array(
        [
            abs(m[i] - measures[i] - h * first)
            for h, m in zip(steps(group), along[group], strict=True)
        ]
    )
    return rest, first, float(measures[i])


def holds(rest: np.ndarray, noise: float) -> bool:
    """Second order over the whole range of steps, or at the floor."""
    if np.all(rest < noise):
        return True
    return bool(np.log2(rest[0] / rest[-1]) / np.log2(STEPS[0] / STEPS[-1]) >= 1.9)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_is_the_derivative(taylor, bench, objective, group):
    rest, first, measure = remainders(taylor, bench, objective, group)
    slopes = np.log2((rest[:-1] + 1e-300) / (rest[1:] + 1e-300))
    print(
        f"TAYLOR {objective:17s} {group:15s} m {measure:10.4g}  g·d {first:10.3g}  R {rest[0]:.1e}"
        f" {rest[-1]:.1e} ",
        slopes.round(2),
    )
    if (objective, group) in ZERO:
        assert first == 0.0
        assert np.all(rest < 1e-12 * abs(measure))
        return
    noise = floor(objective) * abs(measure)
    assert abs(first) * steps(group)[-1] > 100 * noise, "the measure does not depend on the group"
    assert holds(rest, noise), (rest, slopes)
    # a gradient of the wrong sign must not pass
    wrong, _, _ = remainders(taylor, bench, objective, group, sign=-1.0)
    assert not holds(wrong, noise)


def test_every_objective_there_is_has_a_gradient_test(bench):
    assert set(bench.names()) == set(objectives.names()) == set(OBJECTIVES)


def test_every_parameter_group_of_every_family_has_a_gradient_test(bench):
    """A group is that of a family file, whatever its settings; stock seats are not optimised."""
    assert set(bench.initial()) == set(GROUPS)
    without_parameters = {f for f in implants.families() if f != "cage"}
    for name in without_parameters:
        assert not implants.load(name, {}).groups(), f"{name}: its gradients are not tested here"


def test_every_measure_is_in_the_middle_of_its_range(taylor, bench):
    """None of the gradients above is that of an idle measure."""
    measures = dict(zip(bench.names(), taylor[0], strict=True))
    assert measures["yielded_bone"] > 10
    assert 1 < measures["stress_shielding"] < 99
    assert measures["implant_volume"] > 500 and measures["graft_volume"] > 500


def test_adjoint_solves_meet_the_tolerance(taylor):
    """(iterations, largest true relative residual) come out through the probe's cotangent; none
    for volumes, which need no adjoint."""
    iterations = np.array(taylor[4])
    solves = iterations[:4]
    assert np.all((solves[:, 0] >= 5) & (solves[:, 0] <= 60)), iterations
    assert np.all(solves[:, 1] < 2e-10)
    assert np.all(iterations[4:, 0] == 0)


def test_gradient_is_linear_in_the_goals(taylor, bench):
    """The pull-back of a sum of measures is the sum of their pull-backs, which were solved
    separately."""
    unit, _ = interior(bench.initial(), SEED)
    weights = 1 / np.maximum(np.abs(taylor[0]), 1e-9)
    run = bench.run(unit, weights=weights)
    for group in GROUPS:
        parts = sum(
            w * taylor[1][name][group] for w, name in zip(weights, bench.names(), strict=True)
        )
        # seven solves to 1e-10 against one
        assert np.abs(run.slope[group] - parts).max() < 1e-6 * np.abs(parts).max()


def test_augmented_lagrangian_is_value_and_derivative_of_its_definition():
    """Active, inactive and just released constraints, by hand; the derivative in c is the new
    multiplier."""
    c, mu, rho = jnp.array([0.3, -0.5, -0.1]), jnp.array([0.2, 0.4, 1.0]), jnp.asarray(2.0)
    value = augmented_lagrangian(jnp.asarray(1.5), c, mu, rho)
    expected = 1.5 + ((0.2 + 0.6) ** 2 - 0.04) / 4 + (0 - 0.16) / 4 + ((1 - 0.2) ** 2 - 1.0) / 4
    assert float(value) == pytest.approx(expected, rel=1e-14)
    slope = jax.grad(lambda c: augmented_lagrangian(jnp.asarray(1.5), c, mu, rho))(c)
    np.testing.assert_allclose(slope, [0.8, 0.0, 0.8], rtol=1e-14)


@pytest.mark.slow
def test_problem_gradient_by_taylor_with_constraints_and_the_intact_reference(bench):
    """The whole of objectives.problem: loss, an active and an inactive constraint, multipliers,
    the true intact reference."""
    scene, _, _ = forward.with_reference(bench.scene, bench.numerics, implants.load("none", {}))
    every = goals(
        [
            {"objective": "yielded_bone", "scale": 100.0, "settings": {"half_width": 1.0}},
            {"objective": "misalignment", "scale": 0.5, "weight": 0.3},
            {"objective": "stress_shielding", "scale": 50.0, "settings": {"half_width": 1.0}},
            {"objective": "implant_stress", "kind": "at_most", "bound": 0.01, "scale": 0.1},
            {"objective": "implant_volume", "kind": "at_most", "bound": 1e5, "scale": 1e3},
            {"objective": "graft_volume", "kind": "at_least", "bound": 9e3, "scale": 1e3},
        ]
    )
    problem = Problem(scene, bench.numerics, bench.family, every)
    unit, rng = interior(problem.initial(), 3)
    unit = {k: jnp.asarray(v) for k, v in unit.items()}
    preconditioner, mu, rho = problem.hierarchy(unit), jnp.array([0.5, 0.1, 0.2]), 1.5
    start, value, slope, warm = problem.gradient(
        unit, mu, rho, preconditioner, forward.no_warm_start(scene)
    )
    assert np.asarray(start.constraints)[1] < 0 < np.asarray(start.constraints)[0]
    direction = {k: rng.normal(size=v.shape) for k, v in unit.items()}
    size = np.sqrt(sum((d**2).sum() for d in direction.values()))
    first = sum(float(np.vdot(slope[k], direction[k])) for k in unit) / size
    rest = []
    for h in steps("pose"):
        e = problem.evaluate(
            {k: unit[k] + h * direction[k] / size for k in unit}, preconditioner, warm
        )
        moved = augmented_lagrangian(e.loss, e.constraints, mu, jnp.asarray(rho))
        rest.append(abs(float(moved - value) - h * first))
    assert np.log2(rest[0] / rest[-1]) / 2 >= 1.9, rest
    # warm starts change nothing but the work
    again, value_again, slope_again, _ = problem.gradient(unit, mu, rho, preconditioner, warm)
    assert int(again.info.iterations) <= 1
    assert float(value_again) == pytest.approx(float(value), rel=1e-9)
    for k in unit:
        assert (
            np.abs(np.asarray(slope_again[k]) - np.asarray(slope[k])).max()
            < 1e-6 * np.abs(np.asarray(slope[k])).max()
        )
