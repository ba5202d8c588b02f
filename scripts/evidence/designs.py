"""Both solvers on designs drawn at random: does the voxel engine rank and size them as SfePy does
on body-fitted meshes?

The patient, loads, goals and families are those of a run folder; a third each of stock cages,
conforming cages and cages of the optimised family with every parameter drawn, at positions drawn in
the corridor (seated as every rival is). Seeded, resumable: a design that both solvers have answered
is not solved again.

    rank correlation   Spearman's ρ over the designs
    bias               median of engine/SfePy − 1
    spread             half the distance between the 16th and 84th centile of engine/SfePy
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from engine import artifacts
from engine.implants import Family
from engine.types import Design, Response, Surface
from fem.verify import Check, Reference
from scripts.run import arms as studies
from scripts.run import check, parts
from scripts.run.arms import Study
from scripts.run.folder import digest
from scripts.run.measures import COMPARED
from scripts.run.opened import Opened, open_designed

log = logging.getLogger("spinefit")


@dataclass(frozen=True)
class Drawn:
    """A design: its kind ("stock", "conforming", "optimised": the family) and physical
    parameters."""

    kind: str
    values: dict[str, np.ndarray]


def draw(study: Study, count: int, seed: int) -> list[Drawn]:
    """`count` designs, by kinds in turn. Raises ValueError where hardly any position in the
    corridor can be taken."""
    random, families = np.random.default_rng(seed), studies.families(study)
    drawn: list[Drawn] = []
    s = study.cage.settings
    low = np.array([s.x_mm[0], s.y_mm[0], np.deg2rad(s.yaw_deg[0]), 0.0])
    high = np.array([s.x_mm[1], s.y_mm[1], np.deg2rad(s.yaw_deg[1]), 0.0])
    for _ in range(100 * count):
        if len(drawn) == count:
            return drawn
        kind = ("stock", "conforming", "optimised")[len(drawn) % 3]
        pose = random.uniform(low, high)
        values = studies.parameters_at(
            study, families["conforming" if kind == "optimised" else kind], pose
        )
        if values is None:
            continue
        if kind == "optimised":
            groups = families[kind].groups()
            values = {
                k: g.lower + random.uniform(0.0, 1.0, np.shape(g.initial)) * (g.upper - g.lower)
                for k, g in groups.items()
            }
            values |= {"pose": pose}
        drawn.append(Drawn(kind, {k: np.asarray(v, float) for k, v in values.items()}))
    raise ValueError(
        f"only {len(drawn)} of {count} positions drawn in the corridor can be taken: widen"
        " implant.settings.x_mm, y_mm"
    )


def compare(
    run: Path, count: int, seed: int, out: Path, processes: int = 2
) -> list[dict[str, Any]]:
    """A row per design: kind, status, and engine and SfePy by quantity. Kept in
    <out>/designs.jsonl as they come."""
    opened = open_designed(run)
    config, study = opened.config, opened.study
    designs = draw(study, count, seed)
    record, identity = out / "designs.jsonl", f"{config.identity()} {digest(opened.segment)} {seed}"
    rows = (
        {r["number"]: r for r in artifacts.read_jsonl(record) if r["of"] == identity}
        if record.exists()
        else {}
    )
    todo = [n for n in range(count) if n not in rows]
    if not todo:
        return [rows[n] for n in range(count)]
    engine = _engine(study, [(n, designs[n]) for n in todo], config.study.solver.spacing_mm)

    with check.one_thread_each(), ThreadPoolExecutor(processes) as pool:
        intact = _intact(opened, out / "intact")

        def row(n: int) -> dict[str, Any]:
            head = {"of": identity, "number": n}
            return head | _sfepy(opened, designs[n], out / f"{n:03d}", intact, engine[n])

        for new in pool.map(row, todo):
            artifacts.append_jsonl(record, new)
            rows[new["number"]] = new
            log.info(
                "design %d of %d (%s): %s %s",
                new["number"] + 1,
                count,
                new["kind"],
                new["status"],
                new["text"],
            )
    return [rows[n] for n in range(count)]


def _check(
    opened: Opened, design: Design, surface: Surface | None, family: Family, folder: Path
) -> Check:
    """SfePy's check of a design, in a process of its own."""
    boundary = opened.study.boundary_of(family)
    return check.check_in_process(
        opened.segment, design, surface, boundary, opened.crop_mm, opened.mesh, opened.fem, folder
    )


def _intact(opened: Opened, folder: Path) -> Reference | None:
    """The intact segment; None where it has no solution."""
    study, family = opened.study, opened.families["intact"]
    design = studies.design(study, "intact", family, {})
    response = _check(opened, design, None, family, folder).response
    return None if response is None else Reference.of(response)


def _sfepy(
    opened: Opened,
    drawn: Drawn,
    folder: Path,
    intact: Reference | None,
    engine: dict[str, float],
) -> dict[str, Any]:
    """The rest of a design's row: SfePy's answer beside the engine's."""
    study, family = opened.study, opened.families[drawn.kind]
    parts.export_design(studies.design(study, drawn.kind, family, drawn.values), folder)
    checked = _check(opened, *parts.load_design(folder), family, folder)
    status = checked.status
    head = {"kind": drawn.kind, "status": status.code, "text": status.text}
    response = check.with_reference(checked, drawn.kind, intact).response
    if response is None:
        return head
    return head | {"engine": engine, "sfepy": _quantities(study, response)}


def _engine(
    study: Study, designs: Sequence[tuple[int, Drawn]], spacing_mm: float
) -> dict[int, dict[str, float]]:
    prepared, families = studies.prepare(study, spacing_mm), studies.families(study)
    found = {}
    for n, drawn in designs:
        evaluation, status = studies.evaluate(study, prepared, families[drawn.kind], drawn.values)
        worst = studies.worst(status)
        if worst.code != "ok":
            log.warning("design %d: voxel engine %s (%s)", n + 1, worst.code, worst.text)
        found[n] = _quantities(study, evaluation.response)
        log.info(
            "design %d (%s) on the voxel engine: yielded bone %.0f mm³",
            n + 1,
            drawn.kind,
            found[n].get("yielded_bone", np.nan),
        )
    return found


def _quantities(study: Study, response: Response) -> dict[str, float]:
    compliance = np.asarray(response.compliance)
    out = {
        f"stiffness, {case}": float(1.0 / compliance[i])
        for i, case in enumerate(response.loadcases)
    }
    for goal in study.goals:
        if goal.objective.name in COMPARED and not (
            goal.objective.name == "stress_shielding" and response.reference_sed is None
        ):
            out[goal.objective.name] = float(goal.objective.value(response))
    return out


def statistics(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per quantity: number of designs, Spearman's ρ, bias and spread in per cent."""
    good = [r for r in rows if r["status"] == "ok"]
    out = []
    for name in good[0]["sfepy"] if good else ():
        pairs = np.array(
            [(r["engine"][name], r["sfepy"][name]) for r in good if name in r["engine"]]
        )
        if len(pairs) < 3:
            continue
        ratio = 100.0 * (pairs[:, 0] / pairs[:, 1] - 1.0)
        low, high = np.quantile(ratio, (0.16, 0.84))
        out.append(
            {
                "quantity": name,
                "designs": len(pairs),
                "spearman": float(spearmanr(*pairs.T).statistic),
                "bias_percent": float(np.median(ratio)),
                "spread_percent": float(0.5 * (high - low)),
                "range": [float(pairs[:, 1].min()), float(pairs[:, 1].max())],
            }
        )
    return out


def scatter(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Engine over SfePy for yielded bone, misalignment and the stiffness in flexion, by kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    good = [r for r in rows if r["status"] == "ok"]
    names = [
        n for n in ("yielded_bone", "misalignment", "stiffness, flexion") if n in good[0]["sfepy"]
    ]
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 4.3), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for kind, mark in (("stock", "s"), ("conforming", "o"), ("optimised", "^")):
            pairs = np.array(
                [(r["sfepy"][name], r["engine"][name]) for r in good if r["kind"] == kind]
            )
            if len(pairs):
                axis.plot(*pairs.T, mark, label=kind, alpha=0.75)
        ends = np.array(
            [
                min(axis.get_xlim()[0], axis.get_ylim()[0]),
                max(axis.get_xlim()[1], axis.get_ylim()[1]),
            ]
        )
        axis.plot(ends, ends, color="0.6", lw=1)
        axis.set(
            title=name.replace("_", " "),
            xlabel="SfePy, body-fitted P2",
            ylabel="voxel engine",
            xlim=ends,
            ylim=ends,
        )
        axis.locator_params(nbins=5)  # so that their labels do not run into each other
    axes[0][0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
