"""The run folder: where designs, checks and the report meet. The scripts beside this file are thin shells over it.

    config.yaml meta.json            what was asked, versions, hashes
    segment/                         the planned patient
    search.jsonl                     every position tried for the rivals
    history.jsonl state_*.npz        every iteration, and the optimiser's state after it
    designs/<arm>/                   design.json implant.npz window.npz implant.stl implant.3mf density.vtu
    engine.json                      every arm on the voxel engine
    fem/<arm>/solution.vtu           every arm in SfePy
    result.json report.html          the outcome
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

from engine import artifacts, forward, optimize, surface
from engine.optimize import OptimizerSettings
from engine.patient import load_segment, phantom_segment, save_segment
from engine.types import Design, Segment, Surface
from fem.contact import ContactSettings
from fem.mesh import MeshSettings
from fem.solve import FemSettings
from objectives import study as studies
from objectives.study import ARMS, FLOORS, Study, StudyConfig

log = logging.getLogger("spinefit")
ROOT = Path(__file__).resolve().parents[1]


class PatientConfig(BaseModel):
    """A folder written by prepare_patient.py, or (bundle null) the embedded phantom with these settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bundle: str | None = None
    phantom: dict[str, Any] = {}


class FemConfig(BaseModel):
    """SfePy check: mesh sizes and solver; see fem.mesh.MeshSettings and fem.solve.FemSettings.

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


class RunConfig(BaseModel):
    """Everything of one run. Unknown keys and values out of range are errors, all named together."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str = ""
    out: str
    resume: bool = False
    patient: PatientConfig = PatientConfig()
    study: StudyConfig
    optimizer: OptimizerSettings = OptimizerSettings()
    fem: FemConfig = FemConfig()
    credibility: CredibilityConfig = CredibilityConfig()
    keep_states: int = Field(2, ge=1)

    def identity(self) -> str:
        """Hash of what shapes the result (not of where it goes)."""
        text = self.model_dump_json(exclude={"out", "resume", "title", "keep_states", "fem", "credibility"})
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


def open_run(config: RunConfig, segment: Segment) -> Path:
    """Create the run folder, or open it again with resume=true, the same configuration and the same patient.

    A folder in which nothing has been computed yet is begun anew. Raises ValueError when the folder holds another run, or
    the same one without resume=true.
    """
    folder = Path(config.out)
    meta = folder / "meta.json"
    patient = digest(segment)
    if meta.exists() and any((folder / name).exists() for name in ("search.jsonl", "history.jsonl", "engine.json")):
        before = artifacts.read_json(meta)
        if before.get("segment", patient) != patient:
            raise ValueError(f"the patient has changed since {folder} was begun (prepared again?); choose another out=")
        if before["identity"] != config.identity():
            raise ValueError(f"{folder} holds a run of another configuration; choose another out=, or restore {folder}/config.yaml")
        if not config.resume:
            raise ValueError(f"{folder} already holds this run; add resume=true to go on with it, or choose another out=")
        log.info("resuming %s", folder)
        return folder
    if folder.exists() and any(folder.iterdir()) and not meta.exists():
        raise ValueError(f"{folder} exists and is not a run folder; choose another out=")
    folder.mkdir(parents=True, exist_ok=True)
    # meta.json first: with it, a folder that was cut off here counts as a run in which nothing is computed yet
    head = {"identity": config.identity(), "segment": patient, "versions": artifacts.versions(), "created": _now()}
    artifacts.write_json(meta, head)
    artifacts.write_text(folder / "config.yaml", yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False))
    save_segment(segment, folder / "segment")
    return folder


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder. Raises ValueError when it is none."""
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{folder} is not a run folder (no config.yaml); give the `out` of scripts/optimize.py")
    return RunConfig(**yaml.safe_load((folder / "config.yaml").read_text()))


# -- design stage --------------------------------------------------------------------------------------------
def design_run(config: RunConfig) -> Path:
    """Search the rivals' positions, optimise, export every arm. Interrupted, it leaves a folder that resumes.

    Raises KeyboardInterrupt after SIGINT or SIGTERM (everything computed is on disk), ValueError for bad input.
    """
    segment = open_segment(config.patient)
    study = studies.make(segment, config.study)
    folder = open_run(config, segment)
    clock = Clock(folder)
    with artifacts.Interrupt() as stop, _progress() as bar:
        with clock("position search of the rivals"):
            poses = _positions(study, folder, bar, stop)
        with clock("optimisation"):
            best = _optimise(study, config, poses["conforming"], folder, bar, stop)
        with clock("engine, all arms"):
            values = _values(study, poses, best)
            _engine(study, values, folder, stop)
        with clock("export"):
            for arm, family in studies.families(study).items():
                export_design(studies.design(study, arm, family, values[arm]), folder / "designs" / arm)
                _stop_if(stop, folder)
    return folder


class Stopped(KeyboardInterrupt):
    """The run was interrupted and can be resumed."""


def _stop_if(stop: Any, folder: Path) -> None:
    if stop:
        raise Stopped(f"stopped by {stop.signal_name}; go on with: resume=true out={folder}")


def _positions(study: Study, folder: Path, bar: Progress, stop: Any) -> dict[str, np.ndarray]:
    """Best pose of both rivals; positions already on record are not solved again."""
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
    return best


def _optimise(
    study: Study, config: RunConfig, pose: np.ndarray, folder: Path, bar: Progress, stop: Any
) -> dict[str, np.ndarray]:
    """The best design's scaled parameters."""
    settings = config.optimizer
    prepared = studies.prepare(study, study.config.solver.spacing_mm)
    problem = studies.problem(study, prepared, study.cage)
    begin = studies.start(study, pose)
    constraints = sum(g.kind != "minimise" for g in study.goals)
    state = optimize.start(studies.unit(study.cage, begin), constraints, forward.cold(problem.scene), settings)
    states = sorted(folder.glob("state_*.npz"))
    if states:
        state = artifacts.load_state(states[-1], state)
    _drop_after(folder / "history.jsonl", int(state.iteration))
    task = bar.add_task("optimise", total=settings.iterations, completed=int(state.iteration))
    started = time.perf_counter()
    for step in optimize.run(problem, settings, state):
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
        artifacts.append_jsonl(folder / "history.jsonl", row)
        artifacts.save_state(folder / f"state_{step.iteration + 1:05d}.npz", state)
        artifacts.rotate(folder, keep=config.keep_states)
        bar.update(task, advance=1, note=f"loss {step.loss:.4f}, violation {step.violation:.3f}")
        if not bar.console.is_terminal:
            print(f"  iteration {step.iteration + 1}/{settings.iterations}: loss {step.loss:.4f}, violation "
                  f"{step.violation:.3f}, {row['seconds']:.0f} s", flush=True)  # fmt: skip
        _stop_if(stop, folder)
    return {k: np.asarray(v) for k, v in state.best_parameters.items()}


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
        image.cell_data[f"{name}:strain_min"] = cell(principal_strains(response.strain[i])[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(str(path))


def export_design(design: Design, folder: Path) -> None:
    """Fields, parameters and printable surface of one arm."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"arm": design.arm, "family": design.family, "material": design.material, "parameters": design.parameters}
    found: dict[str, Any] = {}
    if design.implant is not None:
        for name in ("implant", "window", "relative_density"):
            if (field := getattr(design, name)) is not None:
                artifacts.save_field(folder / f"{name}.npz", field)
        mesh = surface.extract(design.implant)
        found = surface.check(mesh)
        surface.export(mesh, folder, "implant")
        surface.write_density_vtu(folder / "density.vtu", design.implant, design.relative_density)
    artifacts.write_json(folder / "design.json", {**head, "measures": design.measures, "surface": _plain(found)})


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
    """Wall times and peak memory (of the largest process) of the stages, kept in timings.json (times add up over resumes)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "timings.json"
        self.stage = ""

    def forget(self, *stages: str) -> None:
        """Begin these stages from zero: they are done anew, not gone on with."""
        if self.path.exists():
            table = artifacts.read_json(self.path)
            kept = {kind: {k: v for k, v in values.items() if k not in stages} for kind, values in table.items()}
            artifacts.write_json(self.path, kept)

    def __call__(self, stage: str) -> Clock:
        self.stage = stage
        return self

    def __enter__(self) -> None:
        log.info("%s …", self.stage)
        self.begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        table = artifacts.read_json(self.path) if self.path.exists() else {"seconds": {}, "peak_mb": {}}
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


