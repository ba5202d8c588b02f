"""From a planned segment to devices: the reference, the rivals at their best positions, the
optimised cage.

    arms     stock        catalogue device, best-fitting size, at the position that a search finds
             conforming   same footprint with the patient's endplates, solid wall, at the position
                          that a search finds
             optimised    every parameter of the family, started from the conforming arm
             *_central    stock and conforming where the family's configuration puts them by default
    floors   intact (no device), full_endplate (solid from rim to rim)

Stock and conforming are searched under the same corridor with the same loss (the minimised goals;
what only the shape decides, volumes and the like, is reported of them and not ranked), so that no
gain is bought with a badly placed rival.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from engine import forward, implants, loadcases
from engine.boundary import boundary
from engine.elasticity import Grid
from engine.implants import Family, anatomy_at
from engine.implants._stock import seat
from engine.implants.cage import Cage
from engine.multigrid import UNSOLVED, statuses
from engine.scene import Numerics, Scene, make_grid
from engine.scene import prepare as prepare_scene
from engine.types import Boundary, Design, Segment, SolverStatus, VoxelField
from objectives import Goal
from objectives.problem import Evaluation, Problem, goals, to_unit
from scripts.run.config import StudyConfig

log = logging.getLogger("spinefit")


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

    Raises ValueError for unknown families, materials, objectives, load kinds or settings, for a
    cage that cannot stand in the disc space, and when the catalogue has no size that fits.
    """
    cage = implants.load(config.family, config.settings)
    if not isinstance(cage, Cage):
        raise ValueError(
            f"implant.family={config.family!r} cannot be studied in three arms; choose 'cage'"
        )
    every = goals(config.goals)
    cases = [loadcases.make(name, dict(spec), segment) for name, spec in config.cases.items()]
    study = Study(
        segment,
        config,
        cage,
        every,
        boundary(segment, cases, cage.rods, config.boundary),
        boundary(segment, cases, False, config.boundary),
    )
    _check_space(study)
    return study


def _check_space(study: Study) -> None:
    """The cage must find a place: room between the endplates and a catalogue size that fits
    somewhere."""
    segment, s = study.segment, study.cage.settings
    gap = float((segment.cranial.inferior.centre_mm - segment.caudal.superior.centre_mm)[2])
    if gap < 4.0:
        raise ValueError(
            f"the disc space is {gap:.1f} mm high at the planned pose; a cage needs 4 mm: raise"
            " plan.height_middle_mm and prepare the patient again"
        )
    rims = [segment.caudal.superior, segment.cranial.inferior]
    width, depth = (2 * min(getattr(r, f"half_{k}_mm") for r in rims) for k in ("width", "depth"))
    if s.length_mm > max(width, depth) or s.width_mm > min(width, depth):
        raise ValueError(
            f"the cage of {s.length_mm:g} × {s.width_mm:g} mm is larger than the endplates of"
            f" {width:.1f} × {depth:.1f} mm; lower implant.settings.length_mm or width_mm"
        )
    if not any(
        seat(_stock(study).footprint(pose), segment, study.config.stock) is not None
        for pose in positions_of(study)
    ):
        sizes = study.config.stock.heights_mm
        raise ValueError(
            f"no stock cage of {min(sizes):g}-{max(sizes):g} mm height and {s.length_mm:g} ×"
            f" {s.width_mm:g} mm footprint fits the disc space ({gap:.1f} mm high in the middle,"
            f" rims {width:.1f} × {depth:.1f} mm) anywhere in the corridor; widen"
            " implant.settings.x_mm/y_mm, lower its footprint, or extend stock.heights_mm"
        )


# -- arms ------------------------------------------------------------------------------------------
def _stock(study: Study) -> Cage:
    settings = study.cage.settings.model_copy(update={"faces": "stock", "bend_per_mm": (0.0, 0.0)})
    return Cage(settings)


def _conforming(study: Study) -> Cage:
    settings = study.cage.settings.model_copy(
        update={
            "relative_density": (1.0, 1.0),
            "start_relative_density": 1.0,
            "bend_per_mm": (0.0, 0.0),
        }
    )
    return Cage(settings)


def families(study: Study) -> dict[str, Family]:
    """The family of every arm and floor."""
    rivals = {"stock": _stock(study), "conforming": _conforming(study)}
    out: dict[str, Family] = {
        f"{k}{suffix}": f for k, f in rivals.items() for suffix in ("", "_central")
    }
    out["optimised"] = study.cage
    out["intact"] = implants.load("none", {})
    out["full_endplate"] = implants.load(
        "full_endplate", {"rods": study.cage.rods, "material": study.cage.material}
    )
    return out


def positions_of(study: Study) -> list[np.ndarray]:
    """Poses of the coarse search: the default first, then a lattice over the corridor's limits."""
    s, n = study.cage.settings, study.config.search

    def axis(limits: tuple[float, float], count: int, centre: float) -> np.ndarray:
        inner = 0.5 * (limits[0] + limits[1]) + 0.5 * (limits[1] - limits[0]) * np.linspace(
            -0.8, 0.8, max(count, 2)
        )
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
    """A rival's parameters at a pose (stock: with the size that fits there); None where it
    cannot stand."""
    values = {k: np.asarray(g.initial, float) for k, g in family.groups().items()}
    fit = seat(_stock(study).footprint(pose), study.segment, study.config.stock)
    if fit is None:
        return None
    return values | {"pose": pose} | ({"seat": fit} if "seat" in values else {})


def unit(family: Family, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Physical parameters scaled to [0, 1] in the family's bounds."""
    return {k: np.clip(to_unit(g, values[k]), 0.0, 1.0) for k, g in family.groups().items()}


# -- stages ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Prepared:
    """The patient on one grid, with rods and without; the intact segment's energy is in the
    scenes."""

    grid: Grid
    scene: Scene
    bare: Scene
    numerics: Numerics


def prepare(study: Study, spacing_mm: float) -> Prepared:
    """Everything on a grid that the design does not change. Raises ValueError when the intact
    segment does not solve."""
    grid = make_grid(study.segment, spacing_mm)
    scene, numerics = prepare_scene(
        study.segment,
        study.boundary,
        grid,
        study.config.solver.settings(),
        study.config.solver.bone_law,
    )
    scene, _, info = forward.with_reference(scene, numerics, implants.load("none", {}))
    names = tuple(f"basis load {i + 1}" for i in range(scene.forces.shape[0]))
    intact = worst(statuses(info, numerics.solver, names))
    if not intact.relative_residual <= UNSOLVED:
        raise ValueError(
            f"the intact segment, reference of stress shielding, did not solve: {intact.text}"
        )
    return Prepared(grid, scene, replace(scene, links=None), numerics)


def problem(study: Study, prepared: Prepared, family: Family) -> Problem:
    """The problem of one family on a prepared grid."""
    return Problem(
        prepared.scene if family.rods else prepared.bare, prepared.numerics, family, study.goals
    )


def design(study: Study, arm: str, family: Family, values: dict[str, Any]) -> Design:
    """The device as fine fields around the disc space, ready to be meshed or printed."""
    if not family.groups() and family.describe()["approach"] == "none":
        return Design(arm, "none", family.material, None, None, None)
    points, origin = _export_points(study)
    fields = family.fields(
        {k: jnp.asarray(v) for k, v in values.items()}, anatomy_at(study.segment, points)
    )
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
        arm,
        study.config.family if arm != "full_endplate" else "full_endplate",
        family.material,
        field(fields.implant),
        field(fields.window) if has_window else None,
        field(fields.relative_density),
        named,
        measures,
    )


def _export_points(study: Study) -> tuple[np.ndarray, np.ndarray]:
    rims = np.concatenate(
        [study.segment.caudal.superior.rim_mm, study.segment.cranial.inferior.rim_mm]
    )
    h = study.config.export_spacing_mm
    low, high = (
        rims.min(0) - [3, 3, 8],
        rims.max(0)
        + [
            3,
            3,
            8,
        ],
    )  # the disc body reaches 4 mm past the rims
    axes = [
        lo + h * np.arange(int(np.ceil((hi - lo) / h)) + 1)
        for lo, hi in zip(low, high, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1), low


def evaluate(
    study: Study, prepared: Prepared, family: Family, values: dict[str, Any]
) -> tuple[Evaluation, list[SolverStatus]]:
    """A design on the voxel engine, with the solver's word on it."""
    p = problem(study, prepared, family)
    e = p.evaluate(unit(family, values))
    names = tuple(f"basis load {i + 1}" for i in range(p.scene.forces.shape[0]))
    return e, statuses(e.info, prepared.numerics.solver, names)


def worst(status: list[SolverStatus]) -> SolverStatus:
    """The worst of several statuses: failed, stagnated, max_iterations, ok."""
    order = ("failed", "stagnated", "max_iterations", "ok")
    return min(status, key=lambda s: (order.index(s.code), -s.relative_residual))
