"""result.json and the report of a checked run."""

from __future__ import annotations

import logging
import resource
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from engine.types import Segment, stack_loads
from fem.report.page import write_report
from scripts.console.overrides import quoted, shell_line
from scripts.run import credibility, handover
from scripts.run.arms import Study
from scripts.run.config import RunConfig
from scripts.run.measures import shown_case
from scripts.run.opened import check_digest, designs_digest, open_designed
from scripts.run.pictures import draw

log = logging.getLogger("spinefit")

LIMITATIONS = [
    (
        "spinefit is a research and design tool, not a cleared medical device; nothing here may be"
        " used on a patient without the judgement and responsibility of qualified people."
    ),
    (
        "Linear elasticity. Interfaces are bonded where no contact was asked for (fem.contact):"
        " that holds yielded bone too low; fem.contact says how much here."
    ),
    (
        "Facet joints, processes and ligaments are left out; rods and screws are beams without play"
        " or loosening."
    ),
    (
        "The intact disc is one isotropic material (4.2 MPa, ν 0.45): its strain energy is the"
        " reference of stress shielding."
    ),
    "The lattice is homogenised; struts are not resolved and its printed strength is not verified.",
    (
        "Stress and strain near sharp edges depend on the mesh; volumes and means are reported,"
        " peaks are not a score."
    ),
]


def write_result(study: Study, config: RunConfig, folder: Path, arms: dict[str, Any]) -> Path:
    """Write result.json, the pictures, slicer/ and the report of a checked run; the report's
    path. arms: what Record.arm gives of each."""
    end = _end(folder, artifacts.read_jsonl(folder / "history.jsonl"), config)
    pictures, problems = draw(study.segment, folder, arms)
    files, unwritten = _for_the_scan(folder)
    timings, meta = (artifacts.read_json(folder / f"{name}.json") for name in ("timings", "meta"))
    own_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = f"{study.cage.settings.approach} cage, {study.segment.patient} {study.segment.name}"
    result = {
        "schema_version": 1,
        "title": config.title or name,
        "created": meta["created"],
        "asked": _asked(study, config),
        "warnings": _warnings(study.segment, end, [*problems, *unwritten]),
        "alignment": _alignment(study),
        "arms": arms,
        "optimisation": {
            "status": {
                "code": _CODES[end["code"]] if end["feasible"] else "max_iterations",
                "text": _words(end),
            },
            "history": "history.jsonl",
            "figures": {"iterations": end["iterations"], "best iteration": end["best_iteration"]},
        },
        "credibility": credibility.of_run(study, config, folder, arms),
        "lattice": _lattice(folder),
        "timings_s": timings["seconds"],
        "memory_mb": timings["peak_mb"] | {"report": own_mb},
        "versions": {
            package: version
            for package, version in artifacts.versions().items()
            if isinstance(version, str | int | float | bool | None)
        },
        "hashes": {
            "configuration": meta["identity"],
            "check": check_digest(config.fem),
            "designs": designs_digest(folder),
        },
        "limitations": LIMITATIONS,
        "files": _RECORDS | files,
    }
    return write_report(folder, result, pictures)


_RECORDS = {
    "history": "history.jsonl",
    "search": "search.jsonl",
    "engine": "engine.json",
    "configuration": "config.yaml",
}


def _warnings(segment: Segment, end: dict[str, Any], others: Sequence[str]) -> list[str]:
    """What a reader must know before the numbers."""
    warnings = [*segment.warnings, *others]
    if segment.density_source != "phantom" and not segment.density_source.startswith("ct"):
        source = segment.density_source
        text = f"Bone density is not measured but {source}: tissue measures compare arms only."
        warnings.insert(0, text)
    if not end["feasible"]:
        warnings.append(
            "The optimised design violates a constraint; see the convergence plot and the measures."
        )
    if end["code"] in ("failed", "wall_time"):
        early = f"after {end['iterations']} of {end['asked']} iterations ({end['text']})"
        warnings.append(f"The search ended early, {early}: the best design so far is shown.")
    return warnings


def _asked(study: Study, config: RunConfig) -> dict[str, Any]:
    """What the run was asked for, in words."""
    segment = study.segment
    return {
        "patient": segment.patient,
        "segment": segment.name,
        "density": segment.density_source,
        "implant": study.cage.describe() | {"material": study.cage.material},
        "load cases": {
            c.name: (
                f"{c.preload_n:g} N, moment {np.round(c.wrench.moment_nmm / 1000, 2).tolist()}"
                f" Nm; {c.source}"
            )
            for c in study.boundary.loadcases
        },
        "goals": {
            g.objective.name: f"{g.kind}, weight {g.weight:g}, scale {g.scale:g}, bound {g.bound}"
            for g in study.goals
        },
        "check mesh": config.fem.mesh,
        "grid_mm": config.study.solver.spacing_mm,
        "bone law": config.study.solver.bone_law,
    }


def _alignment(study: Study) -> dict[str, Any]:
    """Measured and planned; what each arm achieves stands with the arm."""
    plan = study.segment.plan
    return {
        "measured": asdict(plan.measured),
        "planned": asdict(plan.planned),
        "load_case": shown_case(stack_loads(study.boundary.loadcases)),
        "rule": plan.rule,
        "source": plan.source,
        "notes": list(plan.notes),
    }


def _for_the_scan(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Write slicer/; what result.json lists of it, and a warning where it could not be written:
    the check itself is done."""
    try:
        handover.write_slicer(folder)
    except ValueError as error:
        log.warning("slicer/ is not written: %s", error)
        return {}, [f"Nothing was written for 3D Slicer: {error}"]
    return handover.described(folder), []


def _lattice(folder: Path) -> dict[str, Any] | None:
    """What was measured on the optimised part's struts (scripts/run/drawings.py); None where
    none were asked for."""
    record = folder / "designs" / "optimised" / "lattice.json"
    return artifacts.read_json(record) if record.exists() else None


#: How the search ended, as a status of the result.
_CODES = {"iterations": "ok", "patience": "ok", "wall_time": "interrupted", "failed": "stagnated"}


def _end(folder: Path, history: list[dict[str, Any]], config: RunConfig) -> dict[str, Any]:
    """How the search ended; of folders from before optimisation.json, by the history."""
    if (folder / "optimisation.json").exists():
        return artifacts.read_json(folder / "optimisation.json")
    feasible = [r for r in history if r["violation"] <= config.optimizer.feasible]
    best = (
        min(feasible, key=lambda r: r["objective"])
        if feasible
        else min(history, key=lambda r: r["violation"])
    )
    return {
        "code": "iterations",
        "text": f"all {len(history)} iterations",
        "iterations": len(history),
        "asked": len(history),
        "best_iteration": best["iteration"],
        "best_objective": best["objective"],
        "feasible": bool(feasible),
    }


def _words(end: dict[str, Any]) -> str:
    best = f"best feasible loss {end['best_objective']:.4f}, iteration {end['best_iteration']}"
    return (
        f"{end['iterations']} iterations ({end['text']});"
        f" {best if end['feasible'] else 'no feasible design was found'}"
    )


def report_again(folder: Path) -> Path:
    """The report of a checked run once more, with the studies that were made since and the words
    of its config.yaml; nothing is solved. Raises ValueError when the folder has not been
    checked."""
    if not (folder / "result.json").exists():
        raise ValueError(
            f"{folder} holds no result.json; check it first:"
            f" {shell_line('verify.py', [quoted('run', folder)])}"
        )
    opened = open_designed(folder)
    result = artifacts.read_json(folder / "result.json")
    pictures, _ = draw(opened.segment, folder, result["arms"])
    result["credibility"] = credibility.of_run(opened.study, opened.config, folder, result["arms"])
    result["lattice"] = _lattice(folder)
    result["files"] |= _for_the_scan(folder)[0]
    return write_report(folder, result, pictures)
