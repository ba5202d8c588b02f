"""What is compiled, and when: a second patient brings nothing new, and nothing in the compiled
path goes back to the host."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from phantom_bench import CAGE, GOALS, SPACING_MM, load_cases

from engine import forward, implants, multigrid
from engine.boundary import BoundarySettings, boundary
from engine.elasticity import Grid, Medium
from engine.multigrid import SolverSettings
from engine.patient import phantom_segment
from engine.scene import make_grid, prepare
from objectives.problem import Problem, goals


@contextlib.contextmanager
def compiled():
    """Names of the programs that XLA compiles meanwhile."""
    names: list[str] = []

    def note(event: str, _seconds: float, **details) -> None:
        if event.endswith("backend_compile_duration"):
            names.append(str(details.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.clear_event_listeners()


def design_iteration(segment) -> np.ndarray:
    """The measures of the first iteration on a patient, gradient and all."""
    held = boundary(segment, load_cases(segment), True, BoundarySettings())
    grid = make_grid(segment, SPACING_MM)
    scene, numerics = prepare(segment, held, grid, SolverSettings(), "morgan2003_vertebra")
    scene = replace(scene, reference_sed=jnp.ones((len(numerics.loadcases), len(scene.sample))))
    problem = Problem(scene, numerics, implants.load("cage", CAGE), goals(GOALS))
    unit = problem.initial()
    evaluation, _, slope, _ = problem.gradient(
        unit, jnp.zeros(0), 1.0, problem.hierarchy(unit), forward.no_warm_start(scene)
    )
    assert all(np.isfinite(v).all() for v in slope.values())
    return np.asarray(evaluation.measures)


def test_a_second_patient_compiles_nothing_new():
    """Another anatomy (width, depth, tilt), grid origin, patches and links: same buckets of 16
    voxels, same programs.

    (A patient in other buckets compiles once; that stays in the persistent cache.)
    """
    first = design_iteration(phantom_segment(spacing_mm=1.5, texture=0.0, coronal_deg=0.0))
    with compiled() as names:
        jax.jit(lambda x: jnp.cosh(x) * 1.2345)(jnp.arange(7.0))
        assert names, "the counter does not count"
        names.clear()
        second = design_iteration(
            phantom_segment(
                spacing_mm=1.5, texture=0.1, coronal_deg=3.0, width_mm=53.0, depth_mm=33.0
            )
        )
    assert not names, names
    assert np.abs(first / second - 1).max() > 0.01


def test_nothing_in_the_solve_goes_back_to_the_host():
    """The programs that a GPU would run: no callback, in- or outfeed in the XLA solver's or the
    objectives' code."""
    shape = (8, 8, 8)
    one = jnp.ones(shape)
    system = multigrid.System(Medium(one, one, one), None, None)
    grid = Grid(shape, (0.0, 0.0, 0.0), 1.0)
    hierarchy = multigrid.build(system, grid, compiled=False)
    load = jnp.zeros((1, 3, 9, 9, 9)).at[0, 2, 4, 4, 8].set(1.0)
    settings = SolverSettings()

    def energy(medium, load):
        changed = multigrid.System(medium, None, None)
        u, _ = multigrid.solve(
            1.0, settings, changed, load, hierarchy, 0 * load, 0 * load, jnp.zeros(3)
        )
        return jnp.sum(u * load)

    text = jax.jit(jax.grad(energy)).lower(system.medium, load).as_text()
    assert "while" in text
    for word in ("callback", "infeed", "outfeed", "xla_python", "host_transfer"):
        assert word not in text, word
    # and it can fail: a callback leaves its name
    spoiled = (
        jax.jit(lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float64), x))
        .lower(1.0)
        .as_text()
    )
    assert "callback" in spoiled
