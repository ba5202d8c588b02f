"""What a run's report says of its credibility (fem/report/credibility.py): the user's words,
materials, and the studies on record.

<out>/studies.json      studies that need no run folder, as scripts/validation.py ran them last:
                        figures, version, date, what missed
<run>/<study>.json      studies of that run
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from engine.types import REGIONS
from fem.report.provenance import provenance
from scripts.run.arms import Study
from scripts.run.config import ARMS, RunConfig

#: Where scripts/validation.py writes unless out= says otherwise.
STUDIES = Path("runs/validation/studies.json")


def of_run(
    study: Study, config: RunConfig, folder: Path, arms: dict[str, Any], evidence: Path = STUDIES
) -> dict[str, Any]:
    """The part `credibility` of result.json."""
    words, cage, segment = config.credibility, study.cage.describe(), study.segment
    devices = ", ".join(a.replace("_", " ") for a in ARMS if a in arms)
    measures = ", ".join(g.objective.name.replace("_", " ") for g in study.goals)
    loads = ", ".join(c.name.replace("_", " ") for c in study.boundary.loadcases)
    boundary = config.study.boundary
    return {
        "question": (
            words.question
            or (
                f"How do the devices ({devices}) compare in {measures}, for {segment.patient}"
                f" {segment.name} under {loads}?"
            )
        ),
        "context_of_use": (
            words.context_of_use
            or (
                f"Comparison of candidate devices ({cage['approach']}, {study.cage.material}) for"
                f" one patient at the planned pose (rule: {segment.plan.rule}), bone density:"
                f" {segment.density_source}; no prediction of what happens in the patient."
            )
        ),
        "model_risk": words.model_risk,
        "boundary": (
            f"Held: bone within {boundary.patch_depth_mm:g} mm of the caudal vertebra's inferior"
            f" endplate, on springs of {boundary.foundation_mpa_per_mm2:g} N/mm per mm³ in all"
            f" directions. Loaded: bone within {boundary.patch_depth_mm:g} mm of the cranial"
            f" vertebra's superior endplate. Tissue is read within {boundary.near_depth_mm:g} mm of"
            " the disc space's endplates."
        ),
        "materials": [
            m.model_dump()
            for m in provenance(
                config.fem.solve.get("bone_law", config.study.solver.bone_law),
                study.cage.material,
                segment.density_source,
                config.fem.solve.get("bone_factor", 1.0),
                (boundary.rod_e_mpa, boundary.rod_poisson) if study.cage.rods else None,
                _moduli(folder, arms),
            )
        ],
        "evidence": artifacts.read_json(evidence) if evidence.exists() else {},
    }


def _moduli(folder: Path, arms: dict[str, Any]) -> dict[str, list[float]]:
    """Young's modulus by region: 5th, 50th, 95th centile of the volume, in the optimised arm's
    mesh and, for the disc, the intact one's."""
    import pyvista as pv

    found: dict[str, list[float]] = {}
    for arm, names in (
        ("optimised", dict(enumerate(REGIONS))),
        ("intact", {REGIONS.index("remnant"): "disc"}),
    ):
        path = folder / "fem" / arm / "solution.vtu"
        if arms.get(arm, {}).get("status", {}).get("code") != "ok" or not path.exists():
            continue
        grid = pv.read(path)
        region, e_mpa = np.asarray(grid.cell_data["region"]), np.asarray(grid.cell_data["e_mpa"])
        volume = np.abs(np.asarray(grid.compute_cell_sizes(length=False, area=False)["Volume"]))
        for index, name in names.items():
            here = region == index
            if here.any():
                order = np.argsort(e_mpa[here])
                share = np.cumsum(volume[here][order]) / volume[here].sum()
                found[name] = [
                    float(e_mpa[here][order][np.searchsorted(share, s)]) for s in (0.05, 0.5, 0.95)
                ]
    return found


def signed(command: str, seconds: float) -> dict[str, Any]:
    """What every study says of itself: command, when, by which version, how long."""
    v = artifacts.versions()
    commit = (
        f", commit {v['git_sha'][:10]}{' with changes' if v['git_dirty'] else ''}"
        if v["git_sha"]
        else ""
    )
    version = f"spinefit {v['spinefit']}{commit}; {v['cpu']}, {v['cpu_count']} cores"
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version,
        "seconds": seconds,
    }


def keep(
    name: str,
    record: Any,
    text: str,
    missed: list[str],
    out: Path,
    head: dict[str, Any],
    run: Path | None,
) -> None:
    """Write a study: <out>/<name>.json and .md; a study of a run also into its folder, the
    others into <out>/studies.json."""
    if run is not None:
        record = {"run": artifacts.read_json(run / "meta.json")["identity"], **head, **record}
        artifacts.write_json(run / f"{name}.json", record)
    else:
        index = out / "studies.json"
        every = artifacts.read_json(index) if index.exists() else {}
        artifacts.write_json(index, every | {name: head | {"missed": missed, "text": text}})
    artifacts.write_json(out / f"{name}.json", record)
    artifacts.write_text(out / f"{name}.md", text)
