"""The run folder: where designs, checks and the report meet. The scripts beside this file are thin shells over it.

    config.yaml meta.json            what was asked, versions, hashes
    segment/                         the planned patient
    search.jsonl                     every position tried for the rivals
    history.jsonl state_*.npz        every iteration, and the optimiser's state after it
    engine.json                      every arm on the voxel engine
    designs/<arm>/                   design.json implant.npz window.npz implant.stl implant.3mf density.vtu lattice.*
    optimisation.json                how the search ended; written when all designs are there
    fem/<arm>/solution.vtu           every arm in SfePy
    result.json report.html          what came out
    slicer/                          implants, vertebrae and pedicle axes in the scan's LPS, with a scene for 3D Slicer
    outcome.json .lock               how the job ended (scripts/job.py), and who is at work on it
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine import artifacts, forward, optimize
from engine.materials import IMPLANTS
from engine.optimize import OptimizerSettings
from engine.part import surface
from engine.part.lattice import LatticeSettings
from engine.part.meshfiles import PartLabel
from engine.patient import load_segment, phantom_segment, save_segment
from engine.types import Design, Segment, Surface
from fem.elastic.contact import ContactSettings
from fem.fields import array_name
from fem.mesh.build import MeshSettings
from fem.solve import FemSettings
from objectives import study as studies
from objectives.study import ARMS, FLOORS, Study, StudyConfig
from scripts import solved, stored
from scripts.console import overrides
from scripts.console.places import ROOT
from scripts.stored import BESIDE, JOB_FILES, JOB_LOG, LOCK, OUTCOME, busy
from scripts.tracking import MlflowConfig

__all__ = ["JOB_FILES", "JOB_LOG", "LOCK", "OUTCOME", "busy"]

log = logging.getLogger("spinefit")


class PatientConfig(BaseModel):
    """A folder written by prepare_patient.py, or (bundle null) the embedded phantom with these settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bundle: str | None = None
    phantom: dict[str, Any] = {}


class FemConfig(BaseModel):
    """SfePy check: mesh sizes and solver; see fem.mesh.build.MeshSettings and fem.solve.FemSettings.

    contact: coefficients of friction with which every arm is solved again, its implant only pressing on what it touches
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    mesh: dict[str, Any] = {}
    solve: dict[str, Any] = {}
    arms: tuple[str, ...] = (*FLOORS, *ARMS)
    processes: int = Field(2, ge=1, le=16)
    contact: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> FemConfig:
        for kind, given in ((MeshSettings, self.mesh), (FemSettings, self.solve)):
            known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
            if unknown := set(given) - known:
                raise ValueError(f"unknown key {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
            kind(**given)
        if "contact" in self.solve:
            raise ValueError("solve.contact: give fem.contact=[…]; every arm is then solved bonded and with contact")
        for friction in self.contact:
            ContactSettings(friction)
        if wrong := [a for a in self.arms if a not in (*FLOORS, *ARMS)]:
            raise ValueError(f"arms: {', '.join(wrong)} unknown; choose among {', '.join((*FLOORS, *ARMS))}")
        return self


class CredibilityConfig(BaseModel):
    """Words of the report's credibility section. Empty: question and context of use are put together from the run; model risk
    (influence of the model on the decision × consequence of a wrong one) is the user's to judge and stays open."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    question: str = ""
    context_of_use: str = ""
    model_risk: str = ""


class BudgetConfig(BaseModel):
    """When to stop early, with the best design so far. wall_time_h: hours of optimisation, over all resumes; null: no limit. A run that
    ended by it goes on when it is started again with more."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    wall_time_h: float | None = Field(None, gt=0)

    @property
    def seconds(self) -> float:
        return np.inf if self.wall_time_h is None else 3600.0 * self.wall_time_h


class KeepConfig(BaseModel):
    """What stays on disk. states: newest checkpoints while the search runs (a finished run keeps none); solutions: arms whose solution.vtu
    and mesh stay when the check is done."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    states: int = Field(2, ge=1)
    solutions: tuple[str, ...] = ("intact", "stock", "conforming", "optimised")

    @model_validator(mode="after")
    def _check(self) -> KeepConfig:
        if wrong := [a for a in self.solutions if a not in (*FLOORS, *ARMS)]:
            raise ValueError(f"solutions: {', '.join(wrong)} unknown; choose among {', '.join((*FLOORS, *ARMS))}")
        return self


class RunConfig(BaseModel):
    """Everything of one run. Unknown keys and values out of range are errors, all named together.

    reuse_gb: disk for what runs of the same content can take over from each other (scripts/solved.py); 0: everything is solved anew
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str = ""
    out: str
    resume: bool = False
    check: bool = False
    patient: PatientConfig = PatientConfig()
    study: StudyConfig
    optimizer: OptimizerSettings = OptimizerSettings()
    budget: BudgetConfig = BudgetConfig()
    fem: FemConfig = FemConfig()
    credibility: CredibilityConfig = CredibilityConfig()
    keep: KeepConfig = KeepConfig()
    lattice: LatticeSettings = LatticeSettings()
    reuse_gb: float = Field(4.0, ge=0)
    mlflow: MlflowConfig = MlflowConfig()

    def identity(self) -> str:
        """Hash of what shapes the designs (not of where they go, how far the search got, or how they are checked)."""
        text = self.model_dump_json(exclude=set(BESIDE))
        return hashlib.sha256(text.encode()).hexdigest()


def set_up_jax() -> None:
    """float64, and compiled code kept between runs."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    logging.getLogger("jax").setLevel(logging.WARNING)


def open_segment(patient: PatientConfig) -> Segment:
    """The planned segment. Raises ValueError when the folder is not one that prepare_patient.py wrote."""
    if patient.bundle is None:
        return phantom_segment(**patient.phantom)
    folder = Path(patient.bundle)
    if not (folder / "segment").is_dir():
        raise ValueError(
            f"patient.bundle={patient.bundle} holds no planned segment; give the `out` folder of scripts/prepare_patient.py"
        )
    return load_segment(folder / "segment")


def digest(value: Any) -> str:
    """SHA-256 of a dataclass with everything in it."""
    total = hashlib.sha256()

    def add(part: Any) -> None:
        if is_dataclass(part) and not isinstance(part, type):
            for f in fields(part):
                total.update(f.name.encode())
                add(getattr(part, f.name))
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        elif isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            total.update(repr(part).encode())

    add(value)
    return total.hexdigest()


class OtherRun(ValueError):
    """The folder is not this run's: nothing may be written into it."""


def open_run(config: RunConfig, segment: Segment, made: dict[str, Any] | None = None) -> Path:
    """Create the run folder, or open it again with resume=true, the same configuration and the same patient.

    A folder in which nothing has been computed yet is begun anew. Raises OtherRun when the folder holds another run, the same one
    without resume=true, or something else.
    """
    folder = Path(config.out)
    meta = folder / "meta.json"
    patient = digest(segment)
    state = stored.kind(folder)
    if state == "run":
        before = artifacts.read_json(meta)
        if before.get("segment", patient) != patient:
            raise OtherRun(f"the patient has changed since {folder} was begun (prepared again?); choose another out=")
        if before["identity"] != config.identity():
            raise OtherRun(f"{folder} holds a run of another configuration; choose another out=, or restore {folder}/config.yaml")
    if refused := stored.refusal(folder, config.resume):
        raise OtherRun(refused)
    if state == "run":
        log.info("resuming %s", folder)
        if (folder / "config.yaml").exists() and _written(folder) != config:
            write_config(config, folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # meta.json first: with it, a folder that was cut off here counts as a run in which nothing is computed yet
    head = {"identity": config.identity(), "segment": patient, "versions": artifacts.versions(), "created": _now(), **(made or {})}
    artifacts.write_json(meta, head)
    write_config(config, folder)
    save_segment(segment, folder / "segment")
    return folder


def write_config(config: RunConfig, folder: Path) -> None:
    """config.yaml: what a start with resume=true goes on with."""
    artifacts.write_text(folder / "config.yaml", yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True))


def _written(folder: Path) -> RunConfig | None:
    """config.yaml, or None where it no longer is one (edited by hand)."""
    try:
        return read_config(folder)
    except ValueError:
        return None


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder. Raises ValueError when it is none."""
    settings = stored.configuration(folder)
    if settings is None:
        raise ValueError(f"{folder} is not a run folder (no config.yaml); give the `out` of scripts/optimize.py")
    return RunConfig(**settings)


# -- design stage --------------------------------------------------------------------------------------------
def designed(folder: Path, budget: BudgetConfig) -> bool:
    """The designs are there, and this budget would not carry the search any further."""
    if not (folder / "optimisation.json").exists():
        return False
    end = artifacts.read_json(folder / "optimisation.json")
    return end["code"] != "wall_time" or end["seconds"] >= budget.seconds


def design_run(config: RunConfig, made: dict[str, Any] | None = None) -> Path:
    """Search the rivals' positions, optimise, export every arm. Interrupted, it leaves a folder that resumes.

    `made`: how the configuration came about (Hydra's choices and overrides), for meta.json. Raises KeyboardInterrupt after SIGINT or
    SIGTERM (everything computed is on disk), ValueError for bad input, FloatingPointError when no design could be evaluated.
    """
    segment = open_segment(config.patient)
    study = studies.make(segment, config.study)
    folder = open_run(config, segment, made)
    if designed(folder, config.budget):
        log.info("%s: the designs are there", folder)
        return folder
    (folder / "optimisation.json").unlink(missing_ok=True)
    clock = Clock(folder)
    with artifacts.Interrupt() as stop, _progress() as bar:
        with clock("position search of the rivals"):
            poses = _positions(study, folder, bar, stop, solved.Store(config.reuse_gb))
        with clock("optimisation"):
            best, end = _optimise(study, config, poses["conforming"], folder, bar, stop)
        with clock("engine, all arms"):
            values = _values(study, poses, best)
            _engine(study, values, folder, stop)
        with clock("export"):
            for arm, family in studies.families(study).items():
                label = part_label(config.title, segment.patient, segment.name, arm, study.cage.material)
                export_design(studies.design(study, arm, family, values[arm]), folder / "designs" / arm, label)
                _stop_if(stop, folder)
        artifacts.write_json(folder / "optimisation.json", end)
    return folder


class Stopped(KeyboardInterrupt):
    """The run was interrupted and can be resumed."""


def _stop_if(stop: Any, folder: Path) -> None:
    if stop:
        raise Stopped(f"stopped by {stop.signal_name}; go on with:\n  {overrides.resume_line(folder)}")


def _positions(study: Study, folder: Path, bar: Progress, stop: Any, store: solved.Store) -> dict[str, np.ndarray]:
    """Best pose of both rivals; positions already on record are not solved again, a search that another run has finished is its."""
    record = folder / "search.jsonl"
    # the optimiser's start is no matter of the rivals
    name = solved.key("positions", study.segment, study.config.model_dump(mode="json", exclude={"seed", "start_scatter"}))
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


def _searched(study: Study, folder: Path, bar: Progress, stop: Any, store: solved.Store, name: str) -> dict[str, np.ndarray]:
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
            for trial in studies.search(study, arm, studies.problem(study, prepared, family), known):
                row = {"arm": arm, "pose": trial.pose.tolist(), "loss": trial.loss, "measures": trial.measures}
                if tuple(row["pose"]) not in known:
                    artifacts.append_jsonl(record, row)
                mine.append(row)
                bar.update(task, advance=1, note=f"loss {trial.loss:.4f}")
                _stop_if(stop, folder)
            mine.append({"arm": arm, "finished": True})
            artifacts.append_jsonl(record, mine[-1])
            bar.update(task, total=bar.tasks[task].completed)
        best[arm] = np.asarray(min((r for r in mine if "loss" in r), key=lambda r: r["loss"])["pose"])
    store.give_search(name, record.read_text())
    return best


def _optimise(
    study: Study, config: RunConfig, pose: np.ndarray, folder: Path, bar: Progress, stop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The best design's scaled parameters, and how the search ended (optimisation.json)."""
    settings = config.optimizer
    prepared = studies.prepare(study, study.config.solver.spacing_mm)
    problem = studies.problem(study, prepared, study.cage)
    begin = studies.start(study, pose)
    constraints = sum(g.kind != "minimise" for g in study.goals)
    state = _last_state(folder, optimize.start(begin, constraints, forward.cold(problem.scene), settings))
    history = folder / "history.jsonl"
    _drop_after(history, int(state.iteration))
    rows = artifacts.read_jsonl(history)
    spent = rows[-1]["seconds"] if rows else 0.0
    task = bar.add_task("optimise", total=settings.iterations, completed=int(state.iteration))
    started = time.perf_counter() - spent
    code, text = "", ""
    try:
        for step in optimize.run(problem, settings, state) if spent < config.budget.seconds else ():
            state = step.state
            row = {
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
                "seconds": time.perf_counter() - started,
            }
            spent = row["seconds"]
            artifacts.append_jsonl(history, row)
            artifacts.save_state(folder / f"state_{step.iteration + 1:05d}.npz", state)
            artifacts.rotate(folder, keep=config.keep.states)
            bar.update(task, advance=1, note=f"loss {step.loss:.4f}, violation {step.violation:.3f}")
            if not bar.console.is_terminal:
                print(f"  iteration {step.iteration + 1}/{settings.iterations}: loss {step.loss:.4f}, violation "
                      f"{step.violation:.3f}, {spent:.0f} s", flush=True)  # fmt: skip
            _stop_if(stop, folder)
            if spent >= config.budget.seconds:
                break
    except FloatingPointError as error:
        if not np.isfinite(float(state.best_violation)):  # not one design was evaluated
            raise
        code, text = "failed", f"{error}"
    n, best = int(state.iteration), int(state.best_iteration)
    if not code and n < settings.iterations:
        out_of_time = not optimize.exhausted(state, settings)
        code, text = ("wall_time", f"{spent / 3600:.3g} h were spent of {config.budget.wall_time_h:g} h") if out_of_time else (
            "patience", f"no better design in the last {settings.patience} iterations")  # fmt: skip
    end = {"code": code or "iterations", "text": text or f"all {n} iterations", "iterations": n, "asked": settings.iterations,
           "best_iteration": best, "best_objective": float(state.best_loss), "best_violation": float(state.best_violation),
           "feasible": float(state.best_violation) <= settings.feasible, "seconds": spent}  # fmt: skip
    if n < settings.iterations:
        log.warning("the search ended after %d of %d iterations: %s; the best design so far (iteration %d) is exported", n,
                    settings.iterations, end["text"], best)  # fmt: skip
    return {k: np.asarray(v) for k, v in state.best_parameters.items()}, end


def _last_state(folder: Path, like: optimize.State) -> optimize.State:
    """The newest checkpoint that can be read, else `like`, the start; a damaged one is named and passed over."""
    for path in sorted(folder.glob("state_*.npz"), reverse=True):
        try:
            return artifacts.load_state(path, like)
        except ValueError as error:
            if "damaged" not in str(error):
                raise
            log.warning("%s", error)
    return like


def _drop_after(history: Path, iteration: int) -> None:
    """Lines of the history past the state that is resumed are from an iteration that will be done again."""
    if not history.exists():
        return
    rows = [r for r in artifacts.read_jsonl(history) if r["iteration"] < iteration]
    artifacts.write_text(history, "".join(json.dumps(r) + "\n" for r in rows))


def _values(study: Study, poses: dict[str, np.ndarray], best: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Physical parameters of every arm and floor."""
    families = studies.families(study)
    default = studies.default_pose(study)
    out: dict[str, dict[str, Any]] = {floor: {} for floor in FLOORS}
    for arm in ARMS[:-1]:
        pose = default if arm.endswith("_central") else poses[arm]
        values = studies.parameters_at(study, families[arm], pose)
        if values is None:
            log.warning("%s: the device cannot stand at the default position; the searched one is shown", arm)
            values = studies.parameters_at(study, families[arm], poses[arm.removesuffix("_central")])
        assert values is not None
        out[arm] = values
    groups = study.cage.groups()
    out["optimised"] = {k: g.lower + best[k] * (g.upper - g.lower) for k, g in groups.items()}
    return out


def _engine(study: Study, values: dict[str, dict[str, Any]], folder: Path, stop: Any) -> None:
    """Every arm on the voxel engine, at the optimiser's grid."""
    prepared = studies.prepare(study, study.config.solver.spacing_mm)
    table: dict[str, Any] = {"grid": list(prepared.grid.shape), "spacing_mm": prepared.grid.spacing_mm, "arms": {}}
    for arm, family in studies.families(study).items():
        e, status = studies.evaluate(study, prepared, family, values[arm])
        worst = studies.worst(status)
        elsewhere = arm.endswith("_central") and not np.array_equal(values[arm]["pose"], studies.default_pose(study))
        per_load = {g.objective.name: g.objective.per_load(e.response) for g in study.goals}
        table["arms"][arm] = {
            "status": worst.code, "iterations": worst.iterations, "residual": worst.relative_residual,
            "loss": float(e.loss),
            "measures": {g.objective.name: float(m) for g, m in zip(study.goals, e.measures, strict=True)},
            "per_load": {k: np.asarray(v).tolist() for k, v in per_load.items() if v is not None},
            "compliance_nmm": np.asarray(e.response.compliance).tolist(),
            "motion": np.asarray(e.response.motion).tolist(),
            "notes": ["cannot stand at the default position: shown at the searched one"] if elsewhere else [],
        }  # fmt: skip
        _stop_if(stop, folder)
        if arm in ("optimised", "conforming", "stock"):
            _write_engine_fields(prepared, e.response, folder / "designs" / arm / "engine.vti")
    artifacts.write_json(folder / "engine.json", table)


def _write_engine_fields(prepared: studies.Prepared, response: Any, path: Path) -> None:
    """The voxel engine's fields around the disc space as a ParaView image."""
    import pyvista as pv

    from objectives._abstract import principal_strains

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
        image.cell_data[array_name(name, "strain_min")] = cell(principal_strains(response.strain[i])[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(str(path))


def part_label(title: str, patient: str, level: str, arm: str, material: str) -> PartLabel:
    """What a part's 3MF says of it; without a title of the run, patient and level make one."""
    words = title or f"cage, {patient} {level}"
    name = IMPLANTS[material].source.split(" [")[0].split(";")[0]
    return PartLabel(f"{words}, {arm.replace('_', ' ')}", patient, level, arm, name)


def export_design(design: Design, folder: Path, label: PartLabel | None = None) -> None:
    """Fields, parameters and printable surface of one arm. label: for the 3MF's metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("blueprint.*"), *folder.glob("lattice.*"), *folder.glob("implant.glb")):  # of an earlier design
        stale.unlink()
    head = {"arm": design.arm, "family": design.family, "material": design.material, "parameters": design.parameters}
    found: dict[str, Any] = {}
    if design.implant is not None:
        for name in ("implant", "window", "relative_density"):
            if (field := getattr(design, name)) is not None:
                artifacts.save_field(folder / f"{name}.npz", field)
        mesh = surface.extract(design.implant)
        found = surface.check(mesh)
        surface.export(mesh, folder, "implant", label)
        if design.family != "full_endplate":  # a solid block, a floor and no part
            surface.write_density_vtu(folder / "density.vtu", design.implant, design.relative_density)
    artifacts.write_json(folder / "design.json", {**head, "measures": design.measures, "surface": _plain(found)})


def tidy(folder: Path, config: RunConfig) -> None:
    """Of a finished run, delete what only its making needed: checkpoints (unless a larger budget can go on from them), and the solutions
    and meshes of the arms that `keep.solutions` does not name."""
    if designed(folder, BudgetConfig()):
        for path in folder.glob("state_*.npz"):
            path.unlink(missing_ok=True)
    if (folder / "report.html").exists():
        for path in folder.glob("fem/*/"):
            if path.name not in config.keep.solutions:
                for file in (*path.glob("**/solution.vtu"), *path.glob("mesh.npz")):
                    file.unlink(missing_ok=True)


def load_design(folder: Path) -> tuple[Design, Surface | None]:
    """A design and its exported surface, read back from the STL that would be printed."""
    head = artifacts.read_json(folder / "design.json")
    fields = {
        name: artifacts.load_field(folder / f"{name}.npz") if (folder / f"{name}.npz").exists() else None
        for name in ("implant", "window", "relative_density")
    }
    design = Design(head["arm"], head["family"], head["material"], **fields, parameters=head["parameters"], measures=head["measures"])
    return design, surface.read(folder / "implant.stl") if design.implant is not None else None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda v: np.asarray(v).tolist()))


# -- bookkeeping ---------------------------------------------------------------------------------------------
class Clock:
    """Wall times and peak memory (of the largest process) of the stages, kept in timings.json (times add up over resumes), with the
    stage that runs now and when it began."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "timings.json"
        self.stage = ""

    def forget(self, *stages: str) -> None:
        """Begin these stages from zero: they are done anew, not gone on with."""
        if self.path.exists():
            table = artifacts.read_json(self.path)
            kept = {kind: {k: v for k, v in values.items() if k not in stages} for kind, values in table.items() if kind != "now"}
            artifacts.write_json(self.path, kept)

    def __call__(self, stage: str) -> Clock:
        self.stage = stage
        return self

    def __enter__(self) -> None:
        log.info("%s …", self.stage)
        self.begun = time.perf_counter()
        artifacts.write_json(self.path, self._table() | {"now": {"stage": self.stage, "since": time.time()}})

    def _table(self) -> dict[str, Any]:
        return artifacts.read_json(self.path) if self.path.exists() else {"seconds": {}, "peak_mb": {}}

    def __exit__(self, *_: object) -> None:
        table = self._table()
        table.pop("now", None)
        spent = time.perf_counter() - self.begun
        table["seconds"][self.stage] = table["seconds"].get(self.stage, 0.0) + spent
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        table["peak_mb"][self.stage] = peak / 1024  # of the largest single process
        artifacts.write_json(self.path, table)
        log.info("%s: %.0f s", self.stage, spent)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    bar = Progress(*columns)
    add = bar.add_task
    bar.add_task = lambda *a, **k: add(*a, **({"note": ""} | k))  # type: ignore[method-assign]
    return bar


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
