"""From a planned segment to devices: the reference, the rivals at their best positions, the optimised cage.

    arms     stock        catalogue device, best-fitting size, at the position that a search finds
             conforming   same footprint with the patient's endplates, solid wall, at the position that a search finds
             optimised    every parameter of the family, started from the conforming arm
             *_central    stock and conforming where the family's configuration puts them by default
    floors   intact (no device), full_endplate (solid from rim to rim)

Stock and conforming are searched under the same corridor with the same loss (the minimised goals; what only the shape
decides, volumes and the like, is reported of them and not ranked), so that no gain is bought with a badly placed rival.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine import forward, implants, loadcases
from engine import scene as engine_scene
from engine.boundary import BoundarySettings, boundary
from engine.elasticity import Grid
from engine.implants import Family, anatomy_at
from engine.implants._stock import Catalogue, seat
from engine.implants.cage import Cage
from engine.materials import bone_law
from engine.multigrid import UNSOLVED, SolverSettings, statuses
from engine.scene import Numerics, Scene
from engine.types import Boundary, Design, Segment, SolverStatus, VoxelField
from objectives import Goal
from objectives.problem import Evaluation, Problem, goals, to_unit

log = logging.getLogger("spinefit")

ARMS = ("stock", "stock_central", "conforming", "conforming_central", "optimised")
FLOORS = ("intact", "full_endplate")


class SolverConfig(BaseModel):
    """Grid and linear solver of the voxel engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    spacing_mm: float = Field(1.5, ge=0.4, le=4.0)
    tolerance: float = Field(1e-6, gt=0, le=1e-2)
    max_iterations: int = Field(150, ge=5)
    smoother_degree: int = Field(4, ge=1, le=12)
    bone_law: str = "morgan2003_vertebra"

    @field_validator("bone_law")
    @classmethod
    def _known(cls, name: str) -> str:
        bone_law(name)
        return name

    def settings(self) -> SolverSettings:
        return SolverSettings(self.tolerance, self.max_iterations, self.smoother_degree)


class SearchConfig(BaseModel):
    """The search for the best position of a fixed shape: a lattice of positions, then a pattern search."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    spacing_mm: float = Field(2.5, ge=0.4, le=4.0)
    x: int = Field(3, ge=1, le=15)
    y: int = Field(4, ge=1, le=15)
    yaw: int = Field(3, ge=1, le=15)
    refine: int = Field(10, ge=0, le=200)


class StudyConfig(BaseModel):
    """Everything that shapes the designs of a run. Unknown keys and values out of range are errors.

    seed, start_scatter: where the optimiser starts. 0: at the conforming rival's best position, solid; n: that, each scaled parameter
    moved by a normal random number of this standard deviation (1 = the whole range), so that repeats show what the start decides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    family: str
    settings: dict[str, Any]
    stock: Catalogue = Catalogue()
    cases: dict[str, dict[str, Any]]
    goals: list[dict[str, Any]]
    boundary: BoundarySettings = BoundarySettings()
    solver: SolverConfig = SolverConfig()
    search: SearchConfig = SearchConfig()
    export_spacing_mm: float = Field(0.5, ge=0.2, le=1.5)
    seed: int = Field(0, ge=0)
    start_scatter: float = Field(0.15, ge=0, le=0.5)


@dataclass(frozen=True)
class Study:
    """A segment with all that the configuration says about it, checked, nothing solved yet."""

    segment: Segment
    config: StudyConfig
    cage: Cage
    goals: tuple[Goal, ...]
    boundary: Boundary
    bare: Boundary

    def boundary_of(self, family: Family) -> Boundary:
        """With rods where the family brings them."""
        return self.boundary if family.rods else self.bare


def make(segment: Segment, config: StudyConfig) -> Study:
    """Check the whole configuration against the segment before any long work.

    Raises ValueError for unknown families, materials, objectives, load kinds or settings, for a cage that cannot stand
    in the disc space, and when the catalogue has no size that fits.
    """
    cage = implants.load(config.family, config.settings)
    if not isinstance(cage, Cage):
        raise ValueError(f"implant.family={config.family!r} cannot be studied in three arms; choose 'cage'")
    every = goals(config.goals)
    cases = [loadcases.make(name, dict(spec), segment) for name, spec in config.cases.items()]
    study = Study(
        segment, config, cage, every,
        boundary(segment, cases, cage.rods, config.boundary), boundary(segment, cases, False, config.boundary),
    )  # fmt: skip
    _check_space(study)
    return study


def _check_space(study: Study) -> None:
    """The cage must find a place: room between the endplates and a catalogue size that fits somewhere."""
    segment, s = study.segment, study.cage.settings
    gap = float((segment.cranial.inferior.centre_mm - segment.caudal.superior.centre_mm)[2])
    if gap < 4.0:
        raise ValueError(
            f"the disc space is {gap:.1f} mm high at the planned pose; a cage needs 4 mm: raise plan.height_middle_mm "
            "and prepare the patient again"
        )
    rims = [segment.caudal.superior, segment.cranial.inferior]
    width, depth = (2 * min(getattr(r, f"half_{k}_mm") for r in rims) for k in ("width", "depth"))
    if s.length_mm > max(width, depth) or s.width_mm > min(width, depth):
        raise ValueError(
            f"the cage of {s.length_mm:g} × {s.width_mm:g} mm is larger than the endplates of {width:.1f} × {depth:.1f} mm; "
            "lower implant.settings.length_mm or width_mm"
        )
    if not any(seat(_stock(study).footprint(pose), segment, study.config.stock) is not None for pose in _lattice(study)):
        sizes = study.config.stock.heights_mm
        raise ValueError(
            f"no stock cage of {min(sizes):g}-{max(sizes):g} mm height and {s.length_mm:g} × {s.width_mm:g} mm footprint fits "
            f"the disc space ({gap:.1f} mm high in the middle, rims {width:.1f} × {depth:.1f} mm) anywhere in the corridor; "
            "widen implant.settings.x_mm/y_mm, lower its footprint, or extend stock.heights_mm"
        )


# -- arms ----------------------------------------------------------------------------------------------------
def _stock(study: Study) -> Cage:
    settings = study.cage.settings.model_copy(update={"faces": "stock", "bend_per_mm": (0.0, 0.0)})
    return Cage(settings)


def _conforming(study: Study) -> Cage:
    settings = study.cage.settings.model_copy(
        update={"relative_density": (1.0, 1.0), "start_relative_density": 1.0, "bend_per_mm": (0.0, 0.0)}
    )
    return Cage(settings)


def families(study: Study) -> dict[str, Family]:
    """The family of every arm and floor."""
    rivals = {"stock": _stock(study), "conforming": _conforming(study)}
    out: dict[str, Family] = {f"{k}{suffix}": f for k, f in rivals.items() for suffix in ("", "_central")}
    out["optimised"] = study.cage
    out["intact"] = implants.load("none", {})
    out["full_endplate"] = implants.load("full_endplate", {"rods": study.cage.rods, "material": study.cage.material})
    return out


def _lattice(study: Study) -> list[np.ndarray]:
    """Poses of the coarse search: the default first, then a lattice over the corridor's limits."""
    s, n = study.cage.settings, study.config.search

    def axis(limits: tuple[float, float], count: int, centre: float) -> np.ndarray:
        inner = 0.5 * (limits[0] + limits[1]) + 0.5 * (limits[1] - limits[0]) * np.linspace(-0.8, 0.8, max(count, 2))
        return inner if count > 1 else np.array([centre])

    poses = [
        np.array([x, y, np.deg2rad(a), 0.0])
        for x in axis(s.x_mm, n.x, s.start_x_mm)
        for y in axis(s.y_mm, n.y, s.start_y_mm)
        for a in axis(s.yaw_deg, n.yaw, s.start_yaw_deg)
    ]
    return [default_pose(study), *poses]


def default_pose(study: Study) -> np.ndarray:
    """Where the family's configuration puts the device: the usual central placement."""
    s = study.cage.settings
    return np.array([s.start_x_mm, s.start_y_mm, np.deg2rad(s.start_yaw_deg), 0.0])


def parameters_at(study: Study, family: Family, pose: np.ndarray) -> dict[str, np.ndarray] | None:
    """A rival's parameters at a pose (stock: with the size that fits there); None where it cannot stand."""
    values = {k: np.asarray(g.initial, float) for k, g in family.groups().items()}
    fit = seat(_stock(study).footprint(pose), study.segment, study.config.stock)
    if fit is None:
        return None
    return values | {"pose": pose} | ({"seat": fit} if "seat" in values else {})


def start(study: Study, pose: np.ndarray) -> dict[str, np.ndarray]:
    """Where the optimiser starts, scaled: at the conforming rival, solid and at its best position, so that it cannot end behind it;
    with a seed, scattered about that (clipped to the bounds)."""
    groups = study.cage.groups()
    values = {k: np.asarray(g.initial, float) for k, g in groups.items()} | {"pose": pose}
    begin = unit(study.cage, values | ({"density": groups["density"].upper} if "density" in groups else {}))
    if study.config.seed == 0:
        return begin
    random = np.random.default_rng(study.config.seed)
    scatter = study.config.start_scatter
    return {k: np.clip(begin[k] + scatter * random.standard_normal(begin[k].shape), 0.0, 1.0) for k in sorted(begin)}


@dataclass(frozen=True)
class Trial:
    """One position tried for a rival."""

    arm: str
    pose: np.ndarray
    loss: float
    measures: dict[str, float]


def search(
    study: Study, arm: str, problem: Problem, known: dict[tuple[float, ...], dict[str, Any]] | None = None
) -> Iterator[Trial]:
    """Positions tried for a rival, coarse lattice first, then a pattern search about the best; the least loss wins.

    `known` holds rows of an earlier search by pose: they are taken over, not solved again. Raises ValueError when the
    device can stand nowhere.
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
                log.warning("%s at %s: not solved (relative residual %.1e), left out", arm, np.round(pose, 2).tolist(), residual)
                unsolved.add(key)
                return None
            tried[key] = Trial(arm, pose, float(e.loss), problem.table(e))
        return tried[key]

    for pose in _lattice(study):
        if (trial := attempt(pose)) is not None:
            yield trial
    if not tried:
        raise ValueError(
            f"{arm}: the device fits nowhere in the corridor ({len(unsolved)} positions did not solve); see implant.settings and stock"
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


def unit(family: Family, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Physical parameters scaled to [0, 1] in the family's bounds."""
    return {k: np.clip(to_unit(g, values[k]), 0.0, 1.0) for k, g in family.groups().items()}


# -- stages --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Prepared:
    """The patient on one grid, with rods and without; the intact segment's energy is in the scenes."""

    grid: Grid
    scene: Scene
    bare: Scene
    numerics: Numerics


def prepare(study: Study, spacing_mm: float) -> Prepared:
    """Everything on a grid that the design does not change. Raises ValueError when the intact segment does not solve."""
    grid = engine_scene.make_grid(study.segment, spacing_mm)
    scene, numerics = engine_scene.prepare(
        study.segment, study.boundary, grid, study.config.solver.settings(), study.config.solver.bone_law
    )
    scene, _, info = forward.with_reference(scene, numerics, implants.load("none", {}))
    names = tuple(f"basis load {i + 1}" for i in range(scene.forces.shape[0]))
    intact = worst(statuses(info, numerics.solver, names))
    if not intact.relative_residual <= UNSOLVED:
        raise ValueError(f"the intact segment, reference of stress shielding, did not solve: {intact.text}")
    return Prepared(grid, scene, replace(scene, links=None), numerics)


def problem(study: Study, prepared: Prepared, family: Family) -> Problem:
    """The problem of one family on a prepared grid."""
    return Problem(prepared.scene if family.rods else prepared.bare, prepared.numerics, family, study.goals)


def design(study: Study, arm: str, family: Family, values: dict[str, Any]) -> Design:
    """The device as fine fields around the disc space, ready to be meshed or printed."""
    if not family.groups() and family.describe()["approach"] == "none":
        return Design(arm, "none", family.material, None, None, None)
    points, origin = _export_points(study)
    fields = family.fields({k: jnp.asarray(v) for k, v in values.items()}, anatomy_at(study.segment, points))
    h = study.config.export_spacing_mm

    def field(f: Any) -> VoxelField:
        return VoxelField(np.asarray(f, np.float32), origin, h)

    solid, chamber = np.asarray(fields.implant), np.asarray(fields.window)
    has_window = bool((chamber < 0).any())
    measures = {
        "volume_mm3": float((solid < 0).sum() * h**3),
        "mean_relative_density": float(np.asarray(fields.relative_density)[solid < 0].mean()),
        "footprint_mm2": float(((solid < 0) | (chamber < 0)).any(2).sum() * h**2),
    }
    named = {k: np.asarray(v).tolist() for k, v in values.items()}
    return Design(
        arm, study.config.family if arm != "full_endplate" else "full_endplate", family.material, field(fields.implant),
        field(fields.window) if has_window else None, field(fields.relative_density), named, measures,
    )  # fmt: skip


def _export_points(study: Study) -> tuple[np.ndarray, np.ndarray]:
    rims = np.concatenate([study.segment.caudal.superior.rim_mm, study.segment.cranial.inferior.rim_mm])
    h = study.config.export_spacing_mm
    low, high = rims.min(0) - [3, 3, 8], rims.max(0) + [3, 3, 8]  # the disc body reaches 4 mm past the rims
    axes = [lo + h * np.arange(int(np.ceil((hi - lo) / h)) + 1) for lo, hi in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1), low


def evaluate(study: Study, prepared: Prepared, family: Family, values: dict[str, Any]) -> tuple[Evaluation, list[SolverStatus]]:
    """A design on the voxel engine, with the solver's word on it."""
    p = problem(study, prepared, family)
    e = p.evaluate(unit(family, values))
    names = tuple(f"basis load {i + 1}" for i in range(p.scene.forces.shape[0]))
    return e, statuses(e.info, prepared.numerics.solver, names)


def worst(status: list[SolverStatus]) -> SolverStatus:
    """The worst of several statuses: failed, stagnated, max_iterations, ok."""
    order = ("failed", "stagnated", "max_iterations", "ok")
    return min(status, key=lambda s: (order.index(s.code), -s.relative_residual))


