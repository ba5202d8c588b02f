"""The run folder: where designs, checks and the report meet. The scripts beside this file are thin
shells over it.

config.yaml meta.json            what was asked, versions, hashes
segment/                         the planned patient
search.jsonl                     every position tried for the rivals
history.jsonl state_*.npz        every iteration, and the optimiser's state after it
engine.json                      every arm on the voxel engine
designs/<arm>/                   design.json implant.npz window.npz implant.stl implant.3mf
                                 density.vtu lattice.*
optimisation.json                how the search ended; written when all designs are there
fem/<arm>/solution.vtu           every arm in SfePy
result.json report.html          what came out
slicer/                          implants, vertebrae and pedicle axes in the scan's LPS, with a
                                 scene for 3D Slicer
outcome.json .lock               how the job ended (scripts/run/job.py), and who is at work on it
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyvista as pv
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine import artifacts, forward, optimize
from engine.interruption import Interrupt
from fem.fields import array_name
from objectives._abstract import principal_strains
from objectives.problem import Problem
from scripts.console import overrides
from scripts.run import arms as studies
from scripts.run import search, solved
from scripts.run.arms import Study
from scripts.run.config import ARMS, FLOORS, RunConfig
from scripts.run.folder import Clock, designed, open_run
from scripts.run.opened import open_segment
from scripts.run.parts import export_design, part_label

log = logging.getLogger("spinefit")


def design_run(config: RunConfig, made: dict[str, Any] | None = None) -> Path:
    """Search the rivals' positions, optimise, export every arm. Interrupted, it leaves a folder
    that resumes.

    `made`: how the configuration came about (Hydra's choices and overrides), for meta.json. Raises
    KeyboardInterrupt after SIGINT or SIGTERM (everything computed is on disk), ValueError for bad
    input, FloatingPointError when no design could be evaluated.
    """
    segment = open_segment(config.patient)
    study = studies.make(segment, config.study)
    folder = open_run(config, segment, made)
    if designed(folder, config.budget):
        log.info("%s: the designs are there", folder)
        return folder
    (folder / "optimisation.json").unlink(missing_ok=True)
    clock = Clock(folder)
    with Interrupt() as stop, _progress() as bar:
        with clock("position search of the rivals"):
            poses = positions(study, folder, bar, stop, solved.Store(config.reuse_gb))
        with clock("optimisation"):
            best, end = optimise(study, config, poses["conforming"], folder, bar, stop)
        with clock("engine, all arms"):
            values = _values(study, poses, best)
            _engine(study, values, folder, stop)
        with clock("export"):
            for arm, family in studies.families(study).items():
                label = part_label(
                    config.title, segment.patient, segment.name, arm, study.cage.material
                )
                export_design(
                    studies.design(study, arm, family, values[arm]), folder / "designs" / arm, label
                )
                _stop_if(stop, folder)
        artifacts.write_json(folder / "optimisation.json", end)
    return folder


class Stopped(KeyboardInterrupt):
    """The run was interrupted and can be resumed."""


def _stop_if(stop: Any, folder: Path) -> None:
    if stop:
        raise Stopped(
            f"stopped by {stop.signal_name}; go on with:\n  {overrides.resume_line(folder)}"
        )


def positions(
    study: Study, folder: Path, bar: Progress, stop: Any, store: solved.Store
) -> dict[str, np.ndarray]:
    """Best pose of both rivals; positions already on record are not solved again, a search that
    another run has finished is its."""
    record = folder / "search.jsonl"
    # the optimiser's start is no matter of the rivals
    name = solved.key(
        "positions",
        study.segment,
        study.config.model_dump(mode="json", exclude={"seed", "start_scatter"}),
    )
    while not record.exists():
        with store.claim(name) as mine:
            if (lines := store.search(name)) is not None:
                log.info("positions of the rivals: taken over from another run of the same content")
                artifacts.write_text(record, lines)
                break
            if mine:
                return _searched(study, folder, bar, stop, store, name)
        time.sleep(1.0)
        _stop_if(stop, folder)
    return _searched(study, folder, bar, stop, store, name)


def _searched(
    study: Study, folder: Path, bar: Progress, stop: Any, store: solved.Store, name: str
) -> dict[str, np.ndarray]:
    """The search itself, from where its record stands."""
    record = folder / "search.jsonl"
    done = artifacts.read_jsonl(record) if record.exists() else []
    prepared = None
    best: dict[str, np.ndarray] = {}
    for arm in ("stock", "conforming"):
        mine = [row for row in done if row["arm"] == arm]
        if not any(row.get("finished") for row in mine):
            if prepared is None:
                prepared = studies.prepare(study, study.config.search.spacing_mm)
            family = studies.families(study)[arm]
            known = {tuple(row["pose"]): row for row in mine}
            task = bar.add_task(f"{arm}: position", total=None)
            for trial in search.search(study, arm, studies.problem(study, prepared, family), known):
                row = {
                    "arm": arm,
                    "pose": trial.pose.tolist(),
                    "loss": trial.loss,
                    "measures": trial.measures,
                }
                if tuple(row["pose"]) not in known:
                    artifacts.append_jsonl(record, row)
                mine.append(row)
                bar.update(task, advance=1, note=f"loss {trial.loss:.4f}")
                _stop_if(stop, folder)
            mine.append({"arm": arm, "finished": True})
            artifacts.append_jsonl(record, mine[-1])
            bar.update(task, total=bar.tasks[task].completed)
        best[arm] = np.asarray(
            min((r for r in mine if "loss" in r), key=lambda r: r["loss"])["pose"]
        )
    store.give_search(name, record.read_text())
    return best


def optimise(
    study: Study, config: RunConfig, pose: np.ndarray, folder: Path, bar: Progress, stop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The best design's scaled parameters, and how the search ended (optimisation.json)."""
    settings = config.optimizer
    prepared = studies.prepare(study, study.config.solver.spacing_mm)
    problem = studies.problem(study, prepared, study.cage)
    begin = search.start(study, pose)
    constraints = sum(g.kind != "minimise" for g in study.goals)
    state = _last_state(
        folder, optimize.start(begin, constraints, forward.no_warm_start(problem.scene), settings)
    )
    history = folder / "history.jsonl"
    _drop_after(history, int(state.iteration))
    rows = artifacts.read_jsonl(history)
    spent = rows[-1]["seconds"] if rows else 0.0
    task = bar.add_task("optimise", total=settings.iterations, completed=int(state.iteration))
    started = time.perf_counter() - spent
    failure: FloatingPointError | None = None
    try:
        for step in optimize.run(problem, settings, state) if spent < config.budget.seconds else ():
            state, spent = step.state, time.perf_counter() - started
            artifacts.append_jsonl(history, _history_row(problem, step, spent))
            artifacts.save_state(folder / f"state_{step.iteration + 1:05d}.npz", state)
            artifacts.rotate(folder, keep=config.keep.states)
            _show_progress(bar, task, step, settings.iterations, spent)
            _stop_if(stop, folder)
            if spent >= config.budget.seconds:
                break
    except FloatingPointError as error:
        if not np.isfinite(float(state.best_violation)):  # not one design was evaluated
            raise
        failure = error
    end = _end_of(state, config, spent, failure)
    if end["iterations"] < settings.iterations:
        log.warning(
            "the search ended after %d of %d iterations: %s; the best design so far (iteration %d)"
            " is exported",
            end["iterations"],
            settings.iterations,
            end["text"],
            end["best_iteration"],
        )
    return {k: np.asarray(v) for k, v in state.best_parameters.items()}, end


def _history_row(problem: Problem, step: optimize.Step, seconds: float) -> dict[str, Any]:
    """A line of history.jsonl; seconds: of the whole search so far, over its resumes."""
    return {
        "iteration": step.iteration,
        "objective": step.loss,
        "violation": step.violation,
        "terms": problem.table(step.evaluation),
        "constraints": step.constraints.tolist(),
        "gradient_norm": step.gradient_norm,
        "solver_iterations": int(step.evaluation.info.iterations),
        "solver_residual": step.evaluation.info.worst(),
        "adjoint_iterations": step.adjoint_iterations,
        "adjoint_residual": step.adjoint_residual,
        "best": step.improved,
        "seconds": seconds,
    }


def _show_progress(
    bar: Progress, task: TaskID, step: optimize.Step, iterations: int, seconds: float
) -> None:
    """On the bar, and as a line where the output is no terminal."""
    figures = f"loss {step.loss:.4f}, violation {step.violation:.3f}"
    bar.update(task, advance=1, note=figures)
    if not bar.console.is_terminal:
        print(
            f"  iteration {step.iteration + 1}/{iterations}: {figures}, {seconds:.0f} s", flush=True
        )


def _end_of(
    state: optimize.State,
    config: RunConfig,
    seconds: float,
    failure: FloatingPointError | None,
) -> dict[str, Any]:
    """How the search ended: all iterations, patience, wall time, or a failed evaluation."""
    settings, done = config.optimizer, int(state.iteration)
    if failure is not None:
        code, text = "failed", f"{failure}"
    elif done == settings.iterations:
        code, text = "iterations", f"all {done} iterations"
    elif optimize.exhausted(state, settings):
        code, text = "patience", f"no better design in the last {settings.patience} iterations"
    else:
        hours = config.budget.wall_time_h
        code, text = "wall_time", f"{seconds / 3600:.3g} h were spent of {hours:g} h"
    return {
        "code": code,
        "text": text,
        "iterations": done,
        "asked": settings.iterations,
        "best_iteration": int(state.best_iteration),
        "best_objective": float(state.best_loss),
        "best_violation": float(state.best_violation),
        "feasible": float(state.best_violation) <= settings.feasible,
        "seconds": seconds,
    }


def _last_state(folder: Path, like: optimize.State) -> optimize.State:
    """The newest checkpoint that can be read, else `like`, the start; a damaged one is named and
    passed over."""
    for path in sorted(folder.glob("state_*.npz"), reverse=True):
        try:
            return artifacts.load_state(path, like)
        except ValueError as error:
            if "damaged" not in str(error):
                raise
            log.warning("%s", error)
    return like


def _drop_after(history: Path, iteration: int) -> None:
    """Lines of the history past the state that is resumed are from an iteration that will be
    done again."""
    if not history.exists():
        return
    rows = [r for r in artifacts.read_jsonl(history) if r["iteration"] < iteration]
    artifacts.write_text(history, "".join(json.dumps(r) + "\n" for r in rows))


def _values(
    study: Study, poses: dict[str, np.ndarray], best: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Physical parameters of every arm and floor."""
    families = studies.families(study)
    default = studies.default_pose(study)
    out: dict[str, dict[str, Any]] = {floor: {} for floor in FLOORS}
    for arm in ARMS[:-1]:
        pose = default if arm.endswith("_central") else poses[arm]
        values = studies.parameters_at(study, families[arm], pose)
        if values is None:
            log.warning(
                "%s: the device cannot stand at the default position; the searched one is shown",
                arm,
            )
            values = studies.parameters_at(
                study, families[arm], poses[arm.removesuffix("_central")]
            )
        assert values is not None
        out[arm] = values
    groups = study.cage.groups()
    out["optimised"] = {k: g.lower + best[k] * (g.upper - g.lower) for k, g in groups.items()}
    return out


def _engine(study: Study, values: dict[str, dict[str, Any]], folder: Path, stop: Any) -> None:
    """Every arm on the voxel engine, at the optimiser's grid."""
    prepared = studies.prepare(study, study.config.solver.spacing_mm)
    table: dict[str, Any] = {
        "grid": list(prepared.grid.shape),
        "spacing_mm": prepared.grid.spacing_mm,
        "arms": {},
    }
    for arm, family in studies.families(study).items():
        e, status = studies.evaluate(study, prepared, family, values[arm])
        worst = studies.worst(status)
        elsewhere = arm.endswith("_central") and not np.array_equal(
            values[arm]["pose"], studies.default_pose(study)
        )
        per_load = {g.objective.name: g.objective.per_load(e.response) for g in study.goals}
        table["arms"][arm] = {
            "status": worst.code,
            "iterations": worst.iterations,
            "residual": worst.relative_residual,
            "loss": float(e.loss),
            "measures": {
                g.objective.name: float(m) for g, m in zip(study.goals, e.measures, strict=True)
            },
            "per_load": {k: np.asarray(v).tolist() for k, v in per_load.items() if v is not None},
            "compliance_nmm": np.asarray(e.response.compliance).tolist(),
            "motion": np.asarray(e.response.motion).tolist(),
            "notes": (
                ["cannot stand at the default position: shown at the searched one"]
                if elsewhere
                else []
            ),
        }
        _stop_if(stop, folder)
        if arm in ("optimised", "conforming", "stock"):
            _write_engine_fields(prepared, e.response, folder / "designs" / arm / "engine.vti")
    artifacts.write_json(folder / "engine.json", table)


def _write_engine_fields(prepared: studies.Prepared, response: Any, path: Path) -> None:
    """The voxel engine's fields around the disc space as a ParaView image."""
    scene, shape, h = prepared.scene, prepared.numerics.window, prepared.grid.spacing_mm
    origin = np.asarray(prepared.grid.origin_mm) + h * np.asarray(scene.corner)
    image = pv.ImageData(dimensions=tuple(n + 1 for n in shape), spacing=(h, h, h), origin=origin)
    filled = np.asarray(scene.sample_mm3) > 0

    def cell(values: Any) -> np.ndarray:
        """On the window's voxels; not a number where no objective looks."""
        whole = np.full(int(np.prod(shape)), np.nan, np.float32)
        whole[np.asarray(scene.sample)[filled]] = np.asarray(values)[filled]
        return whole.reshape(shape).ravel(order="F")

    for i, name in enumerate(("caudal", "cranial", "implant", "graft", "remnant")):
        image.cell_data[f"fraction_{name}"] = cell(response.fraction[:, i])
    for i, name in enumerate(response.loadcases):
        image.cell_data[array_name(name, "strain_min")] = cell(
            principal_strains(response.strain[i])[0]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(str(path))


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns)
    add = bar.add_task
    bar.add_task = lambda *a, **k: add(*a, **({"note": ""} | k))  # type: ignore[method-assign]
    return bar
