"""A cage on the phantom behind one compiled function that all tests share.

Compiling costs more than computing here, so forward and gradient tests call the same program: it
returns the measures, the response and, for given weights, the gradient of the weighted measures (a
zero weight makes the adjoint solve empty).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine import forward, loadcases
from engine.forward import Warm
from engine.scene import Numerics, Scene
from engine.types import Response, Segment
from objectives.problem import to_unit

SPACING_MM = 3.0
#: Preload N and moments N·m: flexion, left bending, left rotation.
LOADS = {
    "standing": (500.0, 0.0, 0.0, 0.0),
    "flexion": (1175.0, 7.5, 0.0, 0.0),
    "left_bending": (700.0, 0.0, 7.8, 0.0),
    "right_bending": (700.0, 0.0, -7.8, 0.0),
    "left_rotation": (720.0, 0.0, 0.0, 5.5),
}
CAGE = {
    "approach": "test",
    "rods": True,
    "length_mm": 36,
    "width_mm": 24,
    "x_mm": (-6, 6),
    "y_mm": (-8, 8),
    "yaw_deg": (-30, 30),
    "bend_per_mm": (-0.02, 0.02),
    "offset_mm": (-0.5, 0.5),
}
#: Every objective, with steps wide enough that the coarse phantom is in the middle of them.
GOALS = [
    {"objective": "yielded_bone", "settings": {"half_width": 1.0}},
    {"objective": "misalignment"},
    {"objective": "stress_shielding", "settings": {"half_width": 1.0}},
    {"objective": "implant_stress"},
    {"objective": "implant_volume"},
    {"objective": "graft_volume"},
]


@partial(jax.jit, static_argnames=("numerics", "family", "every"))
def _run(unit, weights, warm, scene, preconditioner, numerics, family, every):
    def measures(unit, warm):
        physical = {k: g.lower + unit[k] * (g.upper - g.lower) for k, g in family.groups().items()}
        response, info, u = forward.respond(scene, numerics, family, physical, preconditioner, warm)
        return jnp.stack([g.objective.value(response) for g in every]), (response, info, u)

    values, pull, rest = jax.vjp(measures, unit, warm, has_aux=True)
    slope, warm_bar = pull(weights)
    return values, slope, warm_bar, rest


@dataclass(frozen=True)
class Run:
    """Measures [k], gradient of the weighted measures by group, and all else that one evaluation
    gave."""

    measures: np.ndarray
    slope: dict[str, np.ndarray]
    warm: Warm
    response: Response
    info: Any
    displacement: Any
    adjoint_info: np.ndarray


@dataclass(frozen=True)
class Bench:
    """A family on the phantom."""

    segment: Segment
    scene: Scene
    numerics: Numerics
    family: Any
    every: tuple[Any, ...]

    def initial(self) -> dict[str, np.ndarray]:
        return {k: to_unit(g, g.initial) for k, g in self.family.groups().items()}

    def physical(self, unit: dict[str, Any]) -> dict[str, Any]:
        return {k: g.lower + unit[k] * (g.upper - g.lower) for k, g in self.family.groups().items()}

    def hierarchy(self, unit: dict[str, Any]):
        return forward.hierarchy(self.scene, self.numerics, self.family, self.physical(unit))

    def run(self, unit, preconditioner=None, weights=None, warm=None, scene=None) -> Run:
        scene = self.scene if scene is None else scene
        unit = {k: jnp.asarray(v) for k, v in unit.items()}
        preconditioner = self.hierarchy(unit) if preconditioner is None else preconditioner
        weights = jnp.zeros(len(self.every)) if weights is None else jnp.asarray(weights, float)
        warm = forward.no_warm_start(scene) if warm is None else warm
        values, slope, warm_bar, (response, info, u) = _run(
            unit, weights, warm, scene, preconditioner, self.numerics, self.family, self.every
        )
        return Run(
            np.asarray(values),
            {k: np.asarray(v) for k, v in slope.items()},
            Warm(u, warm_bar.adjoint, jnp.zeros(3)),
            response,
            info,
            u,
            np.asarray(warm_bar.probe),
        )

    def names(self) -> list[str]:
        return [g.objective.name for g in self.every]


def load_cases(segment: Segment, loads=LOADS):
    names = ("preload_n", "flexion_nm", "left_bending_nm", "left_rotation_nm")
    return [
        loadcases.make(
            name,
            {"kind": "follower_moment", "source": "test", **dict(zip(names, v, strict=True))},
            segment,
        )
        for name, v in loads.items()
    ]
