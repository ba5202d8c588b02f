"""The check stage of a run folder: every arm in SfePy, the agreement of both solvers, result.json and the report."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

import objectives
from engine import artifacts, scene
from engine.implants import Family
from engine.patient import load_segment, measure
from engine.patient.geometry.frames import move_endplate
from engine.types import Response, Segment, stack_loads
from fem.mesh.build import MeshSettings
from fem.mesh.mmg import die_with_parent
from fem.report.page import write_report
from fem.solve import FemSettings
from fem.verify import Check, Reference, carried, check, contact_name, nothing
from objectives import study as studies
from objectives.study import ARMS, FLOORS, Study
from scripts import credibility, handover, picturing, solved
from scripts.console.overrides import quoted, resume_line, shell_line
from scripts.pipeline import Clock, FemConfig, RunConfig, load_design, read_config

log = logging.getLogger("spinefit")
THREADS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")

LABELS = {
    "stock": "stock cage at the best position found",
    "stock_central": "stock cage, default position",
    "conforming": "same footprint with the patient's endplates, best position found",
    "conforming_central": "same footprint with the patient's endplates, default position",
    "optimised": "optimised cage",
    "intact": "floor: intact segment, no device, no rods",
    "full_endplate": "floor: solid block from rim to rim",
}
LIMITATIONS = [
    "spinefit is a research and design tool, not a cleared medical device; nothing here may be used on a patient without "
    "the judgement and responsibility of qualified people.",
    "Linear elasticity. Interfaces are bonded where no contact was asked for (fem.contact): that holds yielded bone too "
    "low; fem.contact says how much here.",
    "Facet joints, processes and ligaments are left out; rods and screws are beams without play or loosening.",
    "The intact disc is one isotropic material (4.2 MPa, ν 0.45): its strain energy is the reference of stress shielding.",
    "The lattice is homogenised; struts are not resolved and its printed strength is not verified.",
    "Stress and strain near sharp edges depend on the mesh; volumes and means are reported, peaks are not a score.",
]


@dataclass(frozen=True)
class Opened:
    """A run folder with all that its check needs."""

    config: RunConfig
    segment: Segment
    study: Study
    families: dict[str, Family]
    crop_mm: np.ndarray
    mesh: MeshSettings
    fem: FemSettings


def open_designed(folder: Path, fem: FemConfig | None = None) -> Opened:
    """Read a run folder, with its own settings of the check or with `fem`. Raises ValueError when it is none."""
    config = read_config(folder)
    if fem is not None:
        config = config.model_copy(update={"fem": fem})
    segment = load_segment(folder / "segment")
    study = studies.make(segment, config.study)
    return Opened(
        config, segment, study, studies.families(study), scene.region_of_interest(segment), MeshSettings(**config.fem.mesh),
        FemSettings(**({"bone_law": config.study.solver.bone_law} | config.fem.solve)),
    )  # fmt: skip


def check_digest(fem: FemConfig) -> str:
    """Hash of what shapes the check's numbers."""
    return artifacts.digest(fem.model_dump(exclude={"processes"}))


def designs_digest(folder: Path) -> str:
    """Hash of the designs of all arms."""
    parts = sorted((folder / "designs").glob("*/design.json")) + sorted((folder / "designs").glob("*/implant.stl"))
    return artifacts.digest([(str(p.relative_to(folder)), artifacts.sha256_file(p)) for p in parts])


def checked(folder: Path, fem: FemConfig) -> bool:
    """The report is there, of these designs, with these settings of the check, and no arm's process had died."""
    if not all((folder / name).exists() for name in ("result.json", "report.html")):
        return False
    hashes = artifacts.read_json(folder / "result.json")["hashes"]
    same = hashes.get("check") == check_digest(fem) and hashes.get("designs") == designs_digest(folder)
    return same and all((folder / "fem" / arm / "arm.json").exists() for arm in fem.arms)


def require_designs(folder: Path, arms: Sequence[str]) -> None:
    """Raises ValueError where the folder lacks the design of one of the arms."""
    if missing := [a for a in arms if not (folder / "designs" / a / "design.json").exists()]:
        raise ValueError(f"{folder} holds no design of {', '.join(missing)}; finish them first: {resume_line(folder)}")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that start inside compute with one thread."""
    before = {k: os.environ.get(k) for k in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for k, v in before.items():
            os.environ.pop(k, None) if v is None else os.environ.update({k: v})


def check_run(folder: Path, fem: FemConfig | None = None) -> Path:
    """Verify every arm of a designed run, by the run's own settings or by `fem`; returns the report's path. An earlier report of
    the folder is replaced; arms that an interrupted check had finished with the same settings are taken over.

    A failed arm keeps its status and has no number; the others go on. Raises ValueError when the folder holds no designs.
    """
    opened = open_designed(folder, fem)
    config, study = opened.config, opened.study
    wanted = sorted(config.fem.arms, key=lambda a: (*FLOORS, *ARMS).index(a))
    missing = [a for a in wanted if not (folder / "designs" / a / "design.json").exists()]
    if missing or not (folder / "engine.json").exists():
        raise ValueError(
            f"{folder} holds no finished designs ({', '.join(missing) or 'engine.json'} missing); "
            f"finish them first: {resume_line(folder)}"
        )
    engine = artifacts.read_json(folder / "engine.json")
    clock, records = Clock(folder), {arm: _Record(opened, folder, arm, engine["arms"][arm]) for arm in wanted}
    reference = records["intact"].reference() if "intact" in wanted else None
    if "intact" in wanted and reference is None and not all(r.whole for r in records.values()):
        records["intact"].forget()
    todo = [arm for arm in wanted if not records[arm].whole]
    if done := [arm for arm in wanted if arm not in todo]:
        log.info("SfePy: already there with these settings: %s", ", ".join(done))
    else:
        clock.forget("SfePy, all arms")
    clock.forget("report")
    held: dict[tuple[str, float | None], Check] = {}
    arms = _Arms(opened, folder, todo)
    # one process an arm, two at a time: MMG and SfePy's assembly use one core each, and a crash takes one arm only
    with clock("SfePy, all arms"), one_thread_each(), ThreadPoolExecutor(config.fem.processes) as pool:
        waiting: set[Future[tuple[str, float | None, Check]]] = {pool.submit(arms.next) for _ in todo}
        expected = "intact" in todo
        try:
            while waiting or held:
                finished = wait(waiting, return_when=FIRST_COMPLETED).done
                waiting -= finished
                while finished:
                    future = finished.pop()
                    arm, friction, found = future.result()
                    held[arm, friction] = found
                    del future
                    name = arm if friction is None else f"{arm}, contact with friction {friction:g}"
                    log.info("SfePy %s: %s %s", name, found.status.code, found.status.text)
                    if friction is None and arm != "intact" and found.response is not None:
                        for mu in config.fem.contact:  # on the mesh that is there now
                            waiting.add(pool.submit(arms.with_contact, arm, mu))
                    if arm == "intact":
                        expected = False
                        if found.response is not None:
                            reference = Reference.of(found.response)
                            records[arm].keep_reference(reference)
                if not expected:  # a response is hundreds of megabytes: measured and let go as soon as its reference is there
                    for key in list(held):
                        arm, friction = key
                        records[arm].add(referenced(held.pop(key), arm, reference), friction)
        except BaseException:  # Ctrl-C above all: nothing goes on behind the user's back
            arms.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()
            raise
    with clock("report"):
        report = _report(study, config, folder, {arm: records[arm].arm() for arm in wanted})
    if "intact" in wanted:
        records["intact"].reference_path.unlink(missing_ok=True)
    return report


class _Arms:
    """The arms that are left, for the threads that solve them: next() takes the first that no other run is just solving."""

    def __init__(self, opened: Opened, folder: Path, todo: Sequence[str]) -> None:
        self.opened, self.folder, self.left = opened, folder, list(todo)
        self.store = solved.Store(opened.config.reuse_gb)
        self.guard, self.stop = threading.Lock(), threading.Event()
        self.jobs = {arm: self._job(arm, None) for arm in todo}
        self.keys = {arm: solved.key("arm", *job) for arm, job in self.jobs.items()}

    def _job(self, arm: str, friction: float | None) -> tuple[Any, ...]:
        o = self.opened
        design, surface = load_design(self.folder / "designs" / arm)
        design = replace(design, measures={})  # the optimiser's own words, nothing that is solved
        return o.segment, design, surface, o.study.boundary_of(o.families[arm]), o.crop_mm, o.mesh, replace(o.fem, contact=friction)

    def next(self) -> tuple[str, float | None, Check]:
        while not self.stop.is_set():
            for arm in tuple(self.left):
                with ExitStack() as held:
                    with self.guard:
                        if arm not in self.left or not held.enter_context(self.store.claim(self.keys[arm])):
                            continue
                        self.left.remove(arm)
                    return arm, None, self._solved(arm)
            self.stop.wait(0.5)
        raise CancelledError

    def _solved(self, arm: str) -> Check:
        where = self.folder / "fem" / arm
        found: Check | None = self.store.take(self.keys[arm], where)
        if found is not None:
            log.info("SfePy %s: taken over from another run of the same content", arm)
            return found
        found = alone(*self.jobs[arm], where)
        if found.response is not None:
            self.store.give(self.keys[arm], found, where)
        return found

    def with_contact(self, arm: str, friction: float) -> tuple[str, float | None, Check]:
        return arm, friction, alone(*self._job(arm, friction), self.folder / "fem" / arm)


class _Record:
    """What is known of one arm, kept in <folder>/fem/<arm>/arm.json as it comes, so that an interrupted check goes on with the rest.

    The key is the hash of all that makes it: patient, study, settings of the check, the design's parameters and the exported surface.
    """

    def __init__(self, opened: Opened, folder: Path, name: str, engine: dict[str, Any]) -> None:
        self.study, self.folder, self.name, self.engine = opened.study, folder, name, engine
        self.keep = opened.config.keep.solutions
        self.frictions = () if name == "intact" else opened.config.fem.contact
        design, part = (folder / "designs" / name / file for file in ("design.json", "implant.stl"))
        made = (opened.config.identity(), artifacts.digest(opened.segment), opened.mesh, opened.fem, engine, design.read_text())
        self.key = artifacts.digest((*made, artifacts.sha256_file(part) if part.exists() else None))
        self.path = folder / "fem" / name / "arm.json"
        self.reference_path = folder / "fem" / name / "reference.npz"
        self.held: dict[str, Any] = {}
        if self.path.exists() and (before := artifacts.read_json(self.path)).get("key") == self.key:
            self.held = before

    @property
    def whole(self) -> bool:
        """Bonded and with every contact that is asked for (of an arm that failed bonded there is none)."""
        if "bonded" not in self.held:
            return False
        return "measures" not in self.held["bonded"] or all(str(mu) in self.held["contact"] for mu in self.frictions)

    def forget(self) -> None:
        self.held = {}

    def add(self, found: Check, friction: float | None) -> None:
        """Take in one solve; what died is shown, and is not kept for another time."""
        if friction is None:
            self.held = {"key": self.key, "bonded": _arm(self.study, self.name, found, self.engine, self.folder, self.keep), "contact": {}}
        else:
            self.held["contact"][str(friction)] = _contact(self.study, self.name, friction, found)
        if not found.died:
            artifacts.write_json(self.path, self.held)

    def arm(self) -> dict[str, Any]:
        """The arm's part of result.json."""
        contact = [self.held["contact"][str(mu)] for mu in sorted(self.frictions) if str(mu) in self.held["contact"]]
        return self.held["bonded"] | {"contact": contact}

    def keep_reference(self, reference: Reference) -> None:
        artifacts.write_npz(self.reference_path, key=self.key, position_mm=reference.position_mm, energy=reference.energy)

    def reference(self) -> Reference | None:
        """The intact segment's energy that an interrupted check had left."""
        if not self.reference_path.exists():
            return None
        try:
            held = artifacts.read_npz(self.reference_path)
        except ValueError as error:
            log.warning("%s", error)
            return None
        return Reference(held["position_mm"], held["energy"]) if str(held["key"]) == self.key else None


def alone(*job: Any) -> Check:
    """`check` in a process of its own: its memory is given back after the arm, and a crash takes no other arm along."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=die_with_parent) as one:
            return one.submit(check, *job).result()
    except BrokenProcessPool as error:
        return replace(nothing(f"the process of this arm died ({error}); usually too little memory: coarsen fem.mesh"), died=True)
    except Exception as error:  # whatever it is, it is this arm's alone
        log.exception("an arm failed")
        return nothing(f"{type(error).__name__}: {error}")


def referenced(found: Check, arm: str, reference: Reference | None) -> Check:
    """With the intact segment's strain energy at its samples, where there is an intact segment."""
    response = found.response
    if response is None or reference is None:
        return found
    energy = _energy(response) if arm == "intact" else carried(reference, np.asarray(response.position))
    return replace(found, response=replace(response, reference_sed=energy))


def _energy(response: Response) -> np.ndarray:
    return 0.5 * np.sum(np.asarray(response.strain) * np.asarray(response.stress), axis=-1)


def _arm(study: Study, arm: str, found: Check, engine: dict[str, Any], folder: Path, keep: Sequence[str]) -> dict[str, Any]:
    """One arm of result.json."""
    base: dict[str, Any] = {
        "label": LABELS[arm],
        "status": {"code": found.status.code, "text": found.status.text},
        "solver": {
            case: {"code": s.code, "text": f"{s.text}; relative residual {s.relative_residual:.1e}",
                   "relative_residual": s.relative_residual if np.isfinite(s.relative_residual) else None}
            for case, s in zip((c.name for c in study.boundary.loadcases), found.solver, strict=False)
        },
        "mesh": found.mesh,
        "notes": list(found.notes),
    }
    base["notes"] += engine.get("notes", [])
    if engine["status"] != "ok":
        base["notes"].append(f"voxel engine: {engine['status']}, relative residual {engine['residual']:.1e}")
    response = found.response
    if response is None:
        return base
    measures = measures_of(study, arm, response)
    if "stress_shielding" not in measures and any(g.objective.name == "stress_shielding" for g in study.goals):
        base["notes"].append("stress shielding is not given: the intact segment has no solution to compare with")
    files = {"solution": f"fem/{arm}/solution.vtu"} if arm in keep else {}
    if arm != "intact":
        files |= {"surface STL": f"designs/{arm}/implant.stl", "surface 3MF": f"designs/{arm}/implant.3mf"}
        drawings = {"lattice STL": "lattice.stl", "lattice 3MF": "lattice.3mf"}
        drawings |= {"blueprint": "blueprint.pdf", "blueprint DXF": "blueprint.dxf", "surface GLB": "implant.glb"}
        files |= {what: f"designs/{arm}/{name}" for what, name in drawings.items() if (folder / "designs" / arm / name).exists()}
    return base | {
        "measures": measures,
        "alignment": asdict(achieved(study.segment, response)),
        "balance": {"force_rel": found.balance[0], "moment_rel": found.balance[1]},
        "agreement": _agreement(response, engine, measures),
        "mesh": found.mesh | {k: round(v, 3) for k, v in found.figures.items()},
        "files": files,
    }


def measures_of(study: Study, arm: str, response: Response) -> dict[str, Any]:
    """Every objective there is, with the study's settings where it has any, and what no optimiser can see."""
    measures = {}
    asked = {g.objective.name: g.objective for g in study.goals}
    for name in dict.fromkeys([*asked, *objectives.names()]):
        o = asked.get(name) or objectives.load(name, {})
        if o.name in ("implant_stress", "implant_volume", "graft_volume") and arm == "intact":
            continue
        if o.name == "stress_shielding" and response.reference_sed is None:
            continue
        try:
            value, loads = float(o.value(response)), o.per_load(response)
        except ValueError as error:  # of what was not asked for, e.g. without the load case that it looks at
            if name in asked:
                raise
            log.info("%s is not given: %s", name, error)
            continue
        measures[o.name] = {
            "value": value, "unit": o.unit, "description": o.description,
            "better": {"graft_volume": "higher", "implant_volume": "neither"}.get(o.name, "lower"),
            "per_load": {} if loads is None else dict(zip(response.loadcases, map(float, np.asarray(loads)), strict=True)),
        }  # fmt: skip
    return measures | _unseen(response, arm)


def _contact(study: Study, arm: str, friction: float, found: Check) -> dict[str, Any]:
    """One arm with an implant that only presses: status, what touches, and the measures that contact can change."""
    out: dict[str, Any] = {
        "friction": friction, "status": {"code": found.status.code, "text": found.status.text}, "touching": found.contact,
        "solver": {case: {"code": s.code, "text": s.text} for case, s in
                   zip((c.name for c in study.boundary.loadcases), found.solver, strict=False)},
    }  # fmt: skip
    if found.response is None:
        return out
    measures = measures_of(study, arm, found.response)
    stiffness = dict(zip(found.response.loadcases, map(float, 1.0 / np.asarray(found.response.compliance)), strict=True))
    out["files"] = {n: f"fem/{arm}/{contact_name(friction)}/{n}.vtu" for n in ("solution", "contact")}
    return out | {"measures": {k: m for k, m in measures.items() if not k.endswith("_volume")}, "stiffness": stiffness}


def _unseen(response: Response, arm: str) -> dict[str, Any]:
    """Measures that the optimiser never saw: sharp counts and percentiles."""
    from engine.materials import YIELD_STRAIN_COMPRESSION, YIELD_STRAIN_TENSION
    from fem.solve import principal, von_mises

    strain = principal(np.asarray(response.strain), 0.5)
    ratio = np.maximum(-strain[..., 0] / YIELD_STRAIN_COMPRESSION, strain[..., 2] / YIELD_STRAIN_TENSION)
    fraction = np.asarray(response.fraction)
    volume = np.asarray(response.volume) * np.asarray(response.near) * fraction[:, :2].sum(1)
    sharp = ((ratio > 1.0) * volume).sum(1)
    low = np.array([weighted_percentile(-s, volume, 99.0) for s in strain[..., 0]])

    def entry(values: np.ndarray, unit: str, text: str, how: Any) -> dict[str, Any]:
        loads = dict(zip(response.loadcases, map(float, values), strict=True))
        return {"value": float(how(values)), "unit": unit, "description": text, "better": "lower", "per_load": loads}

    out = {
        "yielded_bone_sharp": entry(
            sharp, "mm³", "bone near the implant beyond yield strain, counted without smoothing, mean over load cases", np.mean
        ),
        "bone_strain_p99": entry(
            100 * low, "%", "99th percentile by volume of compressive principal strain in bone near the implant, worst load case", np.max
        ),
    }
    if arm != "intact":
        part = np.asarray(response.volume) * fraction[:, 2]
        stress = principal(np.asarray(response.stress), 1.0)
        mises = von_mises(stress)
        p99 = np.array([weighted_percentile(m, part, 99.0) for m in mises])
        out["implant_von_mises_p99"] = entry(
            p99, "MPa", "99th percentile by volume of the implant's von Mises stress, worst load case", np.max
        )
    return out


def weighted_percentile(values: np.ndarray, weight: np.ndarray, percent: float) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, percent / 100 * total[-1])])


def shown_case(names: tuple[str, ...]) -> str:
    """The load case whose alignment is reported: standing, or the first where there is none of that name."""
    return "standing" if "standing" in names else names[0]


def achieved(segment: Segment, response: Response) -> Any:
    """Alignment under `shown_case`: the plan moved by the cranial vertebra's motion relative to the caudal one."""
    case = shown_case(response.loadcases)
    motion = np.asarray(response.motion)[response.case(case)]
    relative = motion[1] - motion[0]
    centre = segment.cranial.inferior.centre_mm
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(relative[3:]).as_matrix()
    matrix[:3, 3] = centre + relative[:3] - matrix[:3, :3] @ centre
    upper = segment.cranial
    moved = (move_endplate(matrix, upper.superior), move_endplate(matrix, upper.inferior))
    return measure(moved, (segment.caudal.superior, segment.caudal.inferior))


def _agreement(response: Response, engine: dict[str, Any], measures: dict[str, Any]) -> list[dict[str, Any]]:
    """Both solvers on the same design: stiffness per load case (from the compliance) and the measures."""
    rows = []
    for i, case in enumerate(response.loadcases):
        # for one load, work fᵀu scales with the inverse of the stiffness
        ours, theirs = 1.0 / engine["compliance_nmm"][i], 1.0 / float(np.asarray(response.compliance)[i])
        rows.append({"quantity": "stiffness (1 / fᵀu)", "unit": "1/(N·mm)", "load_case": case, "engine": ours, "sfepy": theirs,
                     "gap_rel": ours / theirs - 1.0})  # fmt: skip
    for name in ("yielded_bone", "misalignment", "stress_shielding", "implant_stress"):
        if name in measures and name in engine["measures"]:
            ours, theirs = engine["measures"][name], measures[name]["value"]
            rows.append({"quantity": name, "unit": measures[name]["unit"], "load_case": None, "engine": ours, "sfepy": theirs,
                         "gap_rel": ours / theirs - 1.0 if abs(theirs) > 1e-9 else None})  # fmt: skip
    return rows


def _report(study: Study, config: RunConfig, folder: Path, arms: dict[str, Any]) -> Path:
    segment, timings = study.segment, artifacts.read_json(folder / "timings.json")
    history = artifacts.read_jsonl(folder / "history.jsonl")
    end = _end(folder, history, config)
    pictures, problems = picturing.draw(segment, folder, arms)
    files, unwritten = _for_the_scan(folder)
    warnings = [*segment.warnings, *problems, *unwritten]
    if segment.density_source != "phantom" and not segment.density_source.startswith("ct"):
        warnings.insert(0, f"Bone density is not measured but {segment.density_source}: tissue measures compare arms only.")
    if not end["feasible"]:
        warnings.append("The optimised design violates a constraint; see the convergence plot and the measures.")
    if end["code"] in ("failed", "wall_time"):
        early = f"after {end['iterations']} of {end['asked']} iterations ({end['text']})"
        warnings.append(f"The search ended early, {early}: the best design so far is shown.")
    plan = segment.plan
    result = {
        "schema_version": 1,
        "title": config.title or f"{study.cage.settings.approach} cage, {segment.patient} {segment.name}",
        "created": artifacts.read_json(folder / "meta.json")["created"],
        "asked": {
            "patient": segment.patient, "segment": segment.name, "density": segment.density_source,
            "implant": study.cage.describe() | {"material": study.cage.material},
            "load cases": {c.name: f"{c.preload_n:g} N, moment {np.round(c.wrench.moment_nmm / 1000, 2).tolist()} Nm; {c.source}"
                           for c in study.boundary.loadcases},
            "goals": {g.objective.name: f"{g.kind}, weight {g.weight:g}, scale {g.scale:g}, bound {g.bound}" for g in study.goals},
            "check mesh": config.fem.mesh, "grid_mm": config.study.solver.spacing_mm, "bone law": config.study.solver.bone_law,
        },
        "warnings": warnings,
        "alignment": {"measured": asdict(plan.measured), "planned": asdict(plan.planned),
                      "load_case": shown_case(stack_loads(study.boundary.loadcases)), "rule": plan.rule,
                      "source": plan.source, "notes": list(plan.notes)},
        "arms": arms,
        "optimisation": {"status": {"code": _CODES[end["code"]] if end["feasible"] else "max_iterations", "text": _words(end)},
                         "history": "history.jsonl",
                         "figures": {"iterations": end["iterations"], "best iteration": end["best_iteration"]}},
        "credibility": credibility.of_run(study, config, folder, arms),
        "lattice": _lattice(folder),
        "timings_s": timings["seconds"],
        "memory_mb": timings["peak_mb"] | {"report": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024},
        "versions": {k: v for k, v in artifacts.versions().items() if isinstance(v, str | int | float | bool | None)},
        "hashes": {"configuration": artifacts.read_json(folder / "meta.json")["identity"], "check": check_digest(config.fem),
                   "designs": designs_digest(folder)},
        "limitations": LIMITATIONS,
        "files": {"history": "history.jsonl", "search": "search.jsonl", "engine": "engine.json", "configuration": "config.yaml"}
                 | files,
    }  # fmt: skip
    return write_report(folder, result, pictures)


def _for_the_scan(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Write slicer/; what result.json lists of it, and a warning where it could not be written: the check itself is done."""
    try:
        handover.write_slicer(folder)
    except ValueError as error:
        log.warning("slicer/ is not written: %s", error)
        return {}, [f"Nothing was written for 3D Slicer: {error}"]
    return handover.described(folder), []


def _lattice(folder: Path) -> dict[str, Any] | None:
    """What was measured on the optimised part's struts (scripts/blueprinting.py); None where none were asked for."""
    record = folder / "designs" / "optimised" / "lattice.json"
    return artifacts.read_json(record) if record.exists() else None


#: How the search ended, as a status of the result.
_CODES = {"iterations": "ok", "patience": "ok", "wall_time": "interrupted", "failed": "stagnated"}


def _end(folder: Path, history: list[dict[str, Any]], config: RunConfig) -> dict[str, Any]:
    """How the search ended; of folders from before optimisation.json, by the history."""
    if (folder / "optimisation.json").exists():
        return artifacts.read_json(folder / "optimisation.json")
    feasible = [r for r in history if r["violation"] <= config.optimizer.feasible]
    best = min(feasible, key=lambda r: r["objective"]) if feasible else min(history, key=lambda r: r["violation"])
    return {"code": "iterations", "text": f"all {len(history)} iterations", "iterations": len(history), "asked": len(history),
            "best_iteration": best["iteration"], "best_objective": best["objective"], "feasible": bool(feasible)}  # fmt: skip


def _words(end: dict[str, Any]) -> str:
    best = f"best feasible loss {end['best_objective']:.4f}, iteration {end['best_iteration']}"
    return f"{end['iterations']} iterations ({end['text']}); {best if end['feasible'] else 'no feasible design was found'}"


def report_again(folder: Path) -> Path:
    """The report of a checked run once more, with the studies that were made since and the words of its config.yaml; nothing is
    solved. Raises ValueError when the folder has not been checked."""
    if not (folder / "result.json").exists():
        raise ValueError(f"{folder} holds no result.json; check it first: {shell_line('verify.py', [quoted('run', folder)])}")
    opened = open_designed(folder)
    result = artifacts.read_json(folder / "result.json")
    pictures, _ = picturing.draw(opened.segment, folder, result["arms"])
    result["credibility"] = credibility.of_run(opened.study, opened.config, folder, result["arms"])
    result["lattice"] = _lattice(folder)
    result["files"] |= _for_the_scan(folder)[0]
    return write_report(folder, result, pictures)
