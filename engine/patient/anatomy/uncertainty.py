"""How far endplates and landmarks move with the noise of the surface they are read from: a
parametric bootstrap.

The signed distance is disturbed and everything is found again:

    φ_k(x) = φ(x) + σ·g_k(x),   g_k Gaussian, mean 0, variance 1, correlation ρ(r) = exp(−(r/c)²)

so that the surface moves by −σ·g_k along its normal. g is white noise on nodes c/2 apart, summed
with separable Gaussian weights whose squares add up to one at each point: the variance is exact
everywhere. The spread of what is found estimates the standard error of what was found on the
(already noisy) surface.

Default size (`surface_noise`): σ a quarter of the voxel, c two voxels and at least 3 mm. A binary
mask rounds the surface by voxel/√12 = 0.29 voxel; smoothing lowers that and observers add to it, so
a quarter of a voxel is what to expect of a careful segmentation, not of a wrong one [M]. The error
of one voxel is shared by its neighbours after smoothing, hence two voxels; and surfaces remeshed at
1.5 mm hold nothing finer than 3 mm. Anisotropic voxels count by their longest side.

What is found again, per draw
    mirror plane   anatomy's misfit on as many displaced surface points, drawn anew, from the known
                   plane by a short local search: the left axis's own error is in the draws, but not
                   a jump to another plane of symmetry
    endplates      anatomy's own, in the vertebra's frame
    pedicles       pedicles' soft minimum, from the known axis by a short local search
What is not: the choice of levels, repairs, and any error longer than c (scaling, motion, a wrong
threshold). The crest of a rim is a maximum, so noise pushes an endplate outwards by some 0.5 σ on
average; the mean of the draws shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from engine.patient.anatomy.body import BOX_MM, STEP_MM, BodyBox, posterior_wall_mm
from engine.patient.anatomy.pedicles import PediclePath
from engine.patient.anatomy.sections import vertex_normals
from engine.patient.geometry.frames import (
    endplate,
    frame,
    inverse,
    move_endplate,
    rotation,
    unit,
    vertebra_frame,
)
from engine.types import Endplate, Surface, Vertebra, VoxelField, rigid

Landmarks = dict[str, np.ndarray]
Draw = tuple[Endplate, Endplate, Landmarks]
PlateDraw = tuple[Endplate, Landmarks]
#: Finds an endplate and its landmarks on a surface and its distance: of `sacrum.sacrum_endplate`
#: with its other arguments bound.
FindPlate = Callable[[Surface, VoxelField], PlateDraw]
#: Surfaces remeshed at 1.5 mm hold nothing finer.
CORRELATION_FLOOR_MM = 3.0
#: Surface points that are mirrored, as anatomy's.
_MIRRORED = 1500
#: Iterations from a known pedicle axis.
_LOCAL_ITERATIONS = 150


def surface_noise(voxel_mm: float | Sequence[float]) -> tuple[float, float]:
    """(noise_mm, correlation_mm) to expect of a segmentation at that voxel size (module docstring).

    Raises: ValueError for sizes that are not above 0.
    """
    size = float(np.max(np.asarray(voxel_mm, float)))
    if not (np.isfinite(size) and float(np.min(np.asarray(voxel_mm, float))) > 0.0):
        raise ValueError(
            f"voxel_mm={voxel_mm} is no voxel size; expected one length or three, above 0 mm"
        )
    return 0.25 * size, max(2.0 * size, CORRELATION_FLOOR_MM)


def redraw(
    vertebra: Vertebra, *, noise_mm: float, correlation_mm: float, draws: int, seed: int
) -> list[Draw]:
    """Superior and inferior endplate and landmarks, found again on `draws` disturbed surfaces; in
    the vertebra's frame of reference.

    Landmarks: "body_centre", "spinous_tip" and, where the vertebra has the axes,
    "pedicle_entry_left", "pedicle_target_left", "pedicle_isthmus_left" and the right ones. The same
    seed gives independent noise at levels of different names.

    Raises: ValueError for a noise, correlation or number that makes no sense, or where the
    disturbed bone is no vertebra any more.
    """
    _check(noise_mm, correlation_mm, draws)
    disturbed = DisturbedVertebra(vertebra)
    rng = np.random.default_rng([seed, *vertebra.name.encode()])
    noise = Noise(disturbed.axes, correlation_mm)
    return [disturbed.redraw(noise_mm * noise.draw(rng), rng) for _ in range(draws)]


def redraw_plate(
    surface: Surface,
    sdf: VoxelField,
    find: FindPlate,
    *,
    noise_mm: float,
    correlation_mm: float,
    draws: int,
    seed: int,
) -> list[PlateDraw]:
    """What `find(surface, sdf)` finds on `draws` disturbed surfaces; any bone, at the whole cost of
    `find` each time.

    For the sacrum: find = lambda surface, sdf: sacrum_endplate(surface, sdf, up, above).
    Raises: ValueError as `redraw`, and whatever `find` raises.
    """
    _check(noise_mm, correlation_mm, draws)
    values = np.asarray(sdf.values)
    axes = [
        o + sdf.spacing_mm * np.arange(n) for o, n in zip(sdf.origin_mm, values.shape, strict=True)
    ]
    noise = Noise(axes, correlation_mm)
    normals, _ = vertex_normals(surface)
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(draws):
        field = replace(sdf, values=noise_mm * noise.draw(rng))
        moved = surface.points_mm - field.sample(surface.points_mm)[:, None] * normals
        result.append(
            find(Surface(moved, surface.faces), replace(sdf, values=values + field.values))
        )
    return result


def standard_errors(draws: Sequence[Draw] | Sequence[PlateDraw]) -> dict[str, Any]:
    """Standard deviations over draws of `redraw` or `redraw_plate`; JSON-able.

    "superior" and "inferior" (of `redraw_plate`: "superior" alone):
        centre_mm [3]   along left, posterior, cranial of the vertebra (of a lone endplate: of that
                        endplate)
        sagittal_deg, coronal_deg   of the normal's lean, atan2(n_y, n_z) and atan2(n_x, n_z)
    axial_deg           of the left axis about z
    landmarks           name: [3] along the same axes, mm
    draws               how many

    Raises: ValueError for fewer than two draws.
    """
    if len(draws) < 2:
        raise ValueError(
            f"{len(draws)} draw was given; a standard deviation needs at least 2 (20 give it to"
            " 16 %)"
        )
    plates = {"superior": [d[0] for d in draws]}
    if len(draws[0]) == 3:
        plates["inferior"] = [d[1] for d in draws]  # type: ignore[misc]
    mean = {side: _mean(of) for side, of in plates.items()}
    if "inferior" in mean:
        pose = vertebra_frame(mean["superior"], mean["inferior"])
    else:
        pose = frame(
            mean["superior"].centre_mm, mean["superior"].normal, mean["superior"].axis_left
        )
    to_own = inverse(pose)
    result: dict[str, Any] = {}
    for side, of in plates.items():
        own = [move_endplate(to_own, plate) for plate in of]
        up = np.array([plate.normal for plate in own]) * (1.0 if side == "superior" else -1.0)
        result[side] = {
            "centre_mm": _deviation(np.array([plate.centre_mm for plate in own])).tolist(),
            "sagittal_deg": float(_deviation(np.degrees(np.arctan2(up[:, 1], up[:, 2])))),
            "coronal_deg": float(_deviation(np.degrees(np.arctan2(up[:, 0], up[:, 2])))),
        }
    left = np.mean(
        [[to_own[:3, :3] @ plate.axis_left for plate in of] for of in plates.values()], axis=0
    )
    result["axial_deg"] = float(_deviation(np.degrees(np.arctan2(left[:, 1], left[:, 0]))))
    names = draws[0][-1].keys()
    result["landmarks"] = {
        name: _deviation(rigid(to_own, np.array([d[-1][name] for d in draws]))).tolist()
        for name in names
    }
    result["draws"] = len(draws)
    return result


def _mean(plates: Sequence[Endplate]) -> Endplate:
    """Centre, normal and left axis averaged; the rest is the first one's."""
    return replace(
        plates[0],
        centre_mm=np.mean([plate.centre_mm for plate in plates], axis=0),
        normal=unit(np.mean([plate.normal for plate in plates], axis=0)),
        axis_left=unit(np.mean([plate.axis_left for plate in plates], axis=0)),
    )


def _deviation(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.std(values, axis=0, ddof=1))


def _check(noise_mm: float, correlation_mm: float, draws: int) -> None:
    if not 0.0 <= noise_mm <= 3.0:
        raise ValueError(
            f"noise_mm={noise_mm:g}; expected the surface's standard deviation, 0 to 3 mm"
        )
    if not 1.0 <= correlation_mm <= 30.0:
        raise ValueError(
            f"correlation_mm={correlation_mm:g}; expected 1 to 30 mm (surface_noise() gives both"
            " for a voxel size)"
        )
    if draws < 1:
        raise ValueError(f"draws={draws}; expected at least 1")


class Noise:
    """Smooth Gaussian noise of unit variance on a grid given by its three axes."""

    def __init__(self, axes: Sequence[np.ndarray], correlation_mm: float) -> None:
        # weights exp(−d²/2s²) with s = c/2 give ρ = exp(−r²/4s²); nodes s apart leave no ripple to
        # speak of (2e-8)
        s = 0.5 * correlation_mm
        self.weights = []
        for axis in axes:
            nodes = np.arange(axis[0] - 4.0 * s, axis[-1] + 4.0 * s + s, s)
            weight = np.exp(-0.5 * ((axis[:, None] - nodes) / s) ** 2)
            self.weights.append(
                (weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32)
            )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One field [x, y, z], float32."""
        field = rng.standard_normal([w.shape[1] for w in self.weights], dtype=np.float32)
        for weight in self.weights:  # each turn works off the first axis and puts the result last
            field = np.tensordot(field, weight, axes=(0, 1))
        return field


class DisturbedVertebra:
    """A vertebra's distance in its own frame on anatomy's grid, where each draw is found again."""

    def __init__(self, vertebra: Vertebra) -> None:
        self.name = vertebra.name
        self.pose = vertebra_frame(vertebra.superior, vertebra.inferior)
        to_own = inverse(self.pose)
        points = rigid(to_own, vertebra.surface.points_mm)
        half = np.array(BOX_MM)
        # whole steps from the origin, so that the box about the body is a part of the grid
        low = np.floor((np.minimum(points.min(axis=0), -half) - 3.0) / STEP_MM)
        high = np.ceil((np.maximum(points.max(axis=0), half) + 3.0) / STEP_MM)
        self.axes = [STEP_MM * np.arange(a, b + 1.0) for a, b in zip(low, high, strict=True)]
        self.low = STEP_MM * low
        grid = np.stack(np.meshgrid(*self.axes, indexing="ij"), -1)
        self.base = vertebra.sdf.sample(rigid(self.pose, grid)).astype(np.float32)
        reach = np.floor(half / STEP_MM)
        self.box = tuple(
            slice(int(-n - a), int(n - a) + 1) for n, a in zip(reach, low, strict=True)
        )
        normals, _ = vertex_normals(vertebra.surface)
        self.points, self.normals = points, normals @ self.pose[:3, :3]
        rims = [rigid(to_own, plate.rim_mm) for plate in (vertebra.superior, vertebra.inferior)]
        self.wall_mm = posterior_wall_mm(rims)
        self.pedicles = {side: rigid(to_own, axis) for side, axis in vertebra.pedicles.items()}

    def redraw(self, noise: np.ndarray, rng: np.random.Generator) -> Draw:
        """Everything on φ + noise."""
        values = self.base + noise
        moved = self.points - _sample(noise, self.low, self.points)[:, None] * self.normals
        plates = {}
        axes = [axis[part] for axis, part in zip(self.axes, self.box, strict=True)]
        box = _OwnBox(self.name, VoxelField(values, self.low, STEP_MM), axes, values[self.box])
        # another mesh would give anatomy other points to mirror; that is part of the left axis's
        # error
        left = self._left(
            values, moved[rng.choice(len(moved), min(_MIRRORED, len(moved)), replace=False)]
        )
        for side in ("superior", "inferior"):
            made = box.plate(side)
            up = made.normal if side == "superior" else -made.normal
            plates[side] = endplate(made.centre_mm, up, left, made.rim_mm, side)
        landmarks = {
            "body_centre": 0.5 * (plates["superior"].centre_mm + plates["inferior"].centre_mm),
            "spinous_tip": moved[int(np.argmax(moved[:, 1] - 0.5 * np.abs(moved[:, 0])))],
        }
        for side in self.pedicles:
            landmarks |= self._pedicle(values, side)
        superior, inferior = (
            move_endplate(self.pose, plates[side]) for side in ("superior", "inferior")
        )
        return (
            superior,
            inferior,
            {name: rigid(self.pose, point) for name, point in landmarks.items()},
        )

    def _left(self, values: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Normal of the mirror plane (anatomy's misfit), searched from x = 0."""

        def turned(parameters: np.ndarray) -> np.ndarray:
            return rotation(2, parameters[0] / 20.0) @ rotation(1, parameters[1] / 20.0)

        def misfit(parameters: np.ndarray) -> float:
            normal = turned(parameters)[:, 0]
            height = points @ normal - parameters[2]
            return float(
                np.minimum(
                    np.abs(_sample(values, self.low, points - 2.0 * height[:, None] * normal)), 3.0
                ).mean()
            )

        simplex = np.vstack([np.zeros(3), 0.5 * np.eye(3)])
        options = {"xatol": 5e-3, "fatol": 3e-5, "maxiter": 80, "initial_simplex": simplex}
        return np.asarray(
            turned(minimize(misfit, np.zeros(3), method="Nelder-Mead", options=options).x)[:, 0]
        )

    def _pedicle(self, values: np.ndarray, side: str) -> Landmarks:
        """Entry, target and isthmus of the path that lies deepest (pedicles.py), searched from the
        known axis."""
        entry, target = self.pedicles[side]
        path = PediclePath(
            lambda own: _sample(values, self.low, own),
            1.0 if side == "left" else -1.0,
            self.wall_mm,
            target[1],
        )
        line = path.deepest(path.through(entry, target), _LOCAL_ITERATIONS)
        points = path.points(line, np.array(path.places(line)))
        return {
            f"pedicle_{name}_{side}": point
            for name, point in zip(("entry", "target", "isthmus"), points, strict=True)
        }


class _OwnBox(BodyBox):
    """The body's box, whose values are already at hand in the vertebra's own frame."""

    def __init__(
        self, name: str, sdf: VoxelField, axes: list[np.ndarray], values: np.ndarray
    ) -> None:
        self.name, self.sdf, self.pose = name, sdf, np.eye(4)
        self.axes, self.values = axes, values
        self.waist, self.wall_mm = self.body_section()


def _sample(values: np.ndarray, low: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Trilinear values of the grid that starts at `low`; VoxelField.sample would copy the whole
    field each time."""
    return np.asarray(
        map_coordinates(values, ((points - low) / STEP_MM).T, order=1, mode="nearest")
    )
