"""The phantom on a coarse grid, with rods and a cage; the small system of the solver's tests."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import pytest
from phantom_bench import CAGE, GOALS, SPACING_MM, Bench, Run, load_cases
from small_system import KINDS, Small, small_system

from engine import implants
from engine.boundary import BoundarySettings, boundary
from engine.multigrid import SolverSettings
from engine.patient import phantom_segment
from engine.scene import Numerics, Scene, make_grid, prepare
from engine.types import Segment
from objectives.problem import goals


@pytest.fixture(scope="session", params=KINDS)
def small(request) -> Small:
    return small_system(request.param)


@pytest.fixture(scope="session")
def segment() -> Segment:
    """Mirror-symmetric: no coronal tilt, no texture."""
    return phantom_segment(spacing_mm=1.5, texture=0.0, coronal_deg=0.0)


@pytest.fixture(scope="session")
def rodded(segment) -> tuple[Scene, Numerics]:
    """The phantom with rods on a 3 mm grid of 20 × 24 × 32 voxels, two coarse levels, 55 000
    unknowns."""
    held = boundary(segment, load_cases(segment), True, BoundarySettings())
    grid = make_grid(segment, SPACING_MM)
    return prepare(segment, held, grid, SolverSettings(tolerance=1e-10), "morgan2003_vertebra")


@pytest.fixture(scope="session")
def bench(segment, rodded) -> Bench:
    """The cage with rods; the stress-shielding reference is four times the cage's own energy at its
    start.

    (Not the intact segment's: that would cost another compilation, and here the ratios sit in the
    middle of the ramp, where every voxel takes part in the gradient.)
    """
    scene, numerics = rodded
    scene = replace(scene, reference_sed=jnp.ones((len(numerics.loadcases), len(scene.sample))))
    first = Bench(segment, scene, numerics, implants.load("cage", CAGE), goals(GOALS))
    response = first.run(first.initial()).response
    energy = 0.5 * jnp.sum(response.strain * response.stress, axis=-1)
    return replace(first, scene=replace(scene, reference_sed=4.0 * energy))


@pytest.fixture(scope="session")
def start(bench) -> Run:
    """The cage as configured: centred, straight, symmetric."""
    return bench.run(bench.initial())
