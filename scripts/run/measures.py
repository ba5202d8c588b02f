"""What is measured on an arm's response, and what both solvers say of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

import objectives
from engine.materials import YIELD_STRAIN_COMPRESSION, YIELD_STRAIN_TENSION
from engine.patient import measure
from engine.patient.geometry.frames import move_endplate
from engine.types import Response, Segment, SolverStatus
from fem.elastic.invariants import principal, von_mises
from fem.verify import Check, contact_name
from scripts.run.arms import Study

log = logging.getLogger("spinefit")

#: Measures that are compared between the solvers, besides the stiffness under each load case.
COMPARED = ("yielded_bone", "misalignment", "stress_shielding", "implant_stress")
LABELS = {
    "stock": "stock cage at the best position found",
    "stock_central": "stock cage, default position",
    "conforming": "same footprint with the patient's endplates, best position found",
    "conforming_central": "same footprint with the patient's endplates, default position",
    "optimised": "optimised cage",
    "intact": "floor: intact segment, no device, no rods",
    "full_endplate": "floor: solid block from rim to rim",
}


def energy_nmm(response: Response) -> np.ndarray:
    return 0.5 * np.sum(np.asarray(response.strain) * np.asarray(response.stress), axis=-1)


def arm_result(
    study: Study, arm: str, found: Check, engine: dict[str, Any], folder: Path, keep: Sequence[str]
) -> dict[str, Any]:
    """One arm of result.json."""
    cases = (case.name for case in study.boundary.loadcases)
    base: dict[str, Any] = {
        "label": LABELS[arm],
        "status": {"code": found.status.code, "text": found.status.text},
        "solver": {case: _solver_status(s) for case, s in zip(cases, found.solver, strict=False)},
        "mesh": found.mesh,
        "notes": [*found.notes, *engine.get("notes", [])],
    }
    if engine["status"] != "ok":
        base["notes"].append(
            f"voxel engine: {engine['status']}, relative residual {engine['residual']:.1e}"
        )
    response = found.response
    if response is None:
        return base
    measures = measures_of(study, arm, response)
    if "stress_shielding" not in measures and any(
        g.objective.name == "stress_shielding" for g in study.goals
    ):
        base["notes"].append(
            "stress shielding is not given: the intact segment has no solution to compare with"
        )
    return base | {
        "measures": measures,
        "alignment": asdict(achieved(study.segment, response)),
        "balance": {"force_rel": found.balance[0], "moment_rel": found.balance[1]},
        "agreement": agreement(response, engine, measures),
        "mesh": found.mesh | {k: round(v, 3) for k, v in found.figures.items()},
        "files": _files(arm, folder, keep),
    }


def _solver_status(status: SolverStatus) -> dict[str, Any]:
    """A load case's status for result.json, where nothing may be NaN."""
    residual = status.relative_residual
    return {
        "code": status.code,
        "text": f"{status.text}; relative residual {residual:.1e}",
        "relative_residual": residual if np.isfinite(residual) else None,
    }


#: Files of a part that are there only where they were asked for.
_ON_REQUEST = {
    "lattice STL": "lattice.stl",
    "lattice 3MF": "lattice.3mf",
    "blueprint": "blueprint.pdf",
    "blueprint DXF": "blueprint.dxf",
    "surface GLB": "implant.glb",
}


def _files(arm: str, folder: Path, keep: Sequence[str]) -> dict[str, str]:
    """What the folder holds of an arm, by what it is; keep: the arms whose solutions stay."""
    files = {"solution": f"fem/{arm}/solution.vtu"} if arm in keep else {}
    if arm == "intact":
        return files
    part = f"designs/{arm}"
    files |= {"surface STL": f"{part}/implant.stl", "surface 3MF": f"{part}/implant.3mf"}
    here = {what: name for what, name in _ON_REQUEST.items() if (folder / part / name).exists()}
    return files | {what: f"{part}/{name}" for what, name in here.items()}


def measures_of(study: Study, arm: str, response: Response) -> dict[str, Any]:
    """Every objective there is, with the study's settings where it has any, and what no
    optimiser can see."""
    measures = {}
    asked = {g.objective.name: g.objective for g in study.goals}
    for name in dict.fromkeys([*asked, *objectives.names()]):
        o = asked.get(name) or objectives.load(name, {})
        if not o.applies_to(response):
            continue
        try:
            value, loads = float(o.value(response)), o.per_load(response)
        except (
            ValueError
        ) as error:  # of what was not asked for, e.g. without the load case that it looks at
            if name in asked:
                raise
            log.info("%s is not given: %s", name, error)
            continue
        measures[o.name] = {
            "value": value,
            "unit": o.unit,
            "description": o.description,
            "better": o.better,
            "per_load": (
                {}
                if loads is None
                else dict(zip(response.loadcases, map(float, np.asarray(loads)), strict=True))
            ),
        }
    return measures | unseen_measures(response, arm)


def contact_of(study: Study, arm: str, friction: float, found: Check) -> dict[str, Any]:
    """One arm with an implant that only presses: status, what touches, and the measures that
    contact can change."""
    out: dict[str, Any] = {
        "friction": friction,
        "status": {"code": found.status.code, "text": found.status.text},
        "touching": found.contact,
        "solver": {
            case: {"code": s.code, "text": s.text}
            for case, s in zip(
                (c.name for c in study.boundary.loadcases), found.solver, strict=False
            )
        },
    }
    if found.response is None:
        return out
    measures = measures_of(study, arm, found.response)
    stiffness = dict(
        zip(
            found.response.loadcases,
            map(float, 1.0 / np.asarray(found.response.compliance)),
            strict=True,
        )
    )
    out["files"] = {
        n: f"fem/{arm}/{contact_name(friction)}/{n}.vtu" for n in ("solution", "contact")
    }
    return out | {
        "measures": {k: m for k, m in measures.items() if not k.endswith("_volume")},
        "stiffness": stiffness,
    }


def unseen_measures(response: Response, arm: str) -> dict[str, Any]:
    """Measures that the optimiser never saw: sharp counts and percentiles. What the response has
    no sample of is left out, and the log says so."""
    strain = principal(np.asarray(response.strain), 0.5)
    ratio = np.maximum(
        -strain[..., 0] / YIELD_STRAIN_COMPRESSION, strain[..., 2] / YIELD_STRAIN_TENSION
    )
    fraction, volume = np.asarray(response.fraction), np.asarray(response.volume)
    bone = volume * np.asarray(response.near) * fraction[:, :2].sum(1)

    def entry(values: Any, unit: str, text: str, how: Any) -> dict[str, Any]:
        loads = dict(zip(response.loadcases, map(float, values), strict=True))
        value = float(how(np.asarray(values)))
        facts = {"value": value, "unit": unit, "description": text, "better": "lower"}
        return facts | {"per_load": loads}

    out = {}
    if bone.sum() > 0:
        text = "bone near the implant beyond yield strain, counted without smoothing, mean over"
        sharp = ((ratio > 1.0) * bone).sum(1)
        out["yielded_bone_sharp"] = entry(sharp, "mm³", f"{text} load cases", np.mean)
        text = "99th percentile by volume of compressive principal strain in bone near the implant,"
        low = 100 * np.array([weighted_percentile(-s, bone, 99.0) for s in strain[..., 0]])
        out["bone_strain_p99"] = entry(low, "%", f"{text} worst load case", np.max)
    else:
        log.warning("%s: no bone near the disc space is sampled; its strain is not given", arm)
    if arm != "intact":
        implant = volume * fraction[:, 2]
        if implant.sum() > 0:
            text = "99th percentile by volume of the implant's von Mises stress, worst load case"
            mises = von_mises(principal(np.asarray(response.stress), 1.0))
            p99 = [weighted_percentile(m, implant, 99.0) for m in mises]
            out["implant_von_mises_p99"] = entry(p99, "MPa", text, np.max)
        else:
            log.warning("%s: no implant is sampled; its stress is not given", arm)
    return out


def weighted_percentile(values: np.ndarray, weight: np.ndarray, percent: float) -> float:
    """The least value that at least so many per cent of the weight do not exceed. Raises
    ValueError where nothing has any weight."""
    if not weight.sum() > 0:
        raise ValueError("a percentile by volume of no volume: the response has no such sample")
    return float(np.quantile(values, percent / 100, weights=weight, method="inverted_cdf"))


def shown_case(names: tuple[str, ...]) -> str:
    """The load case whose alignment is reported: standing, or the first where there is none of
    that name."""
    return "standing" if "standing" in names else names[0]


def achieved(segment: Segment, response: Response) -> Any:
    """Alignment under `shown_case`: the plan moved by the cranial vertebra's motion relative to
    the caudal one."""
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


def agreement(
    response: Response, engine: dict[str, Any], measures: dict[str, Any]
) -> list[dict[str, Any]]:
    """Both solvers on the same design: stiffness per load case (from the compliance) and the
    measures."""
    rows = []
    for i, case in enumerate(response.loadcases):
        # for one load, work fᵀu scales with the inverse of the stiffness
        ours, theirs = (
            1.0 / engine["compliance_nmm"][i],
            1.0 / float(np.asarray(response.compliance)[i]),
        )
        rows.append(
            {
                "quantity": "stiffness (1 / fᵀu)",
                "unit": "1/(N·mm)",
                "load_case": case,
                "engine": ours,
                "sfepy": theirs,
                "gap_rel": ours / theirs - 1.0,
            }
        )
    for name in COMPARED:
        if name in measures and name in engine["measures"]:
            ours, theirs = engine["measures"][name], measures[name]["value"]
            rows.append(
                {
                    "quantity": name,
                    "unit": measures[name]["unit"],
                    "load_case": None,
                    "engine": ours,
                    "sfepy": theirs,
                    "gap_rel": ours / theirs - 1.0 if abs(theirs) > 1e-9 else None,
                }
            )
    return rows
