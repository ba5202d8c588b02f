"""The credibility section of a report: how far to trust its numbers, in the order that regulators
ask of computational studies.

Question of interest, context of use, model risk, model, code verification, calculation
verification, validation, sensitivity, limitations. Everything shown was computed or given: a study
that is not there is named with the command that makes it. Ref: FDA 2023, Assessing the Credibility
of Computational Modeling and Simulation in Medical Device Submissions [S83].
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine import artifacts, materials
from engine.page import bullets, number, pairs, percent, table, text
from fem.report.result import ARMS, FLOORS, Credibility, Evidence, Material, Result, Status

_GOOD = "every figure within its limit"
#: Studies that need no run folder: what each is, and what it means that nothing missed its limit.
CODE = {
    "code": ("closed forms, manufactured solutions and NAFEMS benchmarks", _GOOD),
    "contact": ("contact and friction against closed forms", _GOOD),
}
PUBLISHED = {
    "vertebra": (
        (
            "the published stiffness of L2 (l2_density_fe), a computation of another group on the"
            " same image"
        ),
        _GOOD,
    ),
    "intact": (
        (
            "motion, stiffness, pressure and facet forces of an intact L4-L5 (lumbar_meshes, a"
            " model of its own: fem/intact/segment.py) beside published ranges"
        ),
        "in balance; what is inside and what outside its range is in the figures",
    ),
}


# -- what the page shares --------------------------------------------------------------------------
def unit_cell(unit: str) -> str:
    return "" if unit in ("", "1") else f' <span class="unit">{escape(unit)}</span>'


def status_cell(status: Status) -> str:
    word = escape(status.code.replace("_", " "))
    shown = word if status.code == "ok" else f'<span class="bad">{word}</span>'
    return shown + (f": {escape(status.text)}" if status.text else "")


def arm_name(arm: str, result: Result) -> str:
    return escape(result.arms[arm].label or arm.replace("_", " "))


def arm_order(result: Result) -> list[str]:
    known = [arm for arm in (*ARMS, *FLOORS) if arm in result.arms]
    return known + [arm for arm in result.arms if arm not in known]


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _origin(command: str, created: str, version: str, seconds: float) -> str:
    return f"{escape(created)}, {escape(version)}, {seconds:.0f} s: <code>{escape(command)}</code>"


# -- studies of a run, as scripts/validation.py leaves them in its folder --------------------------
class _Study(BaseModel):
    """What every record says of itself. `run`: the run's configuration (SHA-256)."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    run: str
    command: str
    created: str
    version: str
    seconds: float

    def made(self) -> str:
        return f'<p class="quiet">{_origin(self.command, self.created, self.version, self.seconds)}</p>'


class _Row(BaseModel):
    variation: str
    arm: str
    status: Status
    value: dict[str, float | None]
    change_percent: dict[str, float | None]


class _Ranking(BaseModel):
    measure: str
    nominal: list[str]
    gap_percent: list[float | None]
    rows: int
    failed: list[str]
    first_failed: list[str]
    alone_failed: list[str]
    incomplete: list[str]
    mesh_percent: float | None


class _Sensitivity(_Study):
    """scripts/evidence/sensitivity.py."""

    arms: list[str]
    measures: dict[str, dict[str, str]]
    rows: list[_Row]
    ranking: list[_Ranking]
    notes: list[str] = Field(default_factory=list)


class _Estimate(BaseModel):
    arm: str
    quantity: str
    values: list[float]
    order: float | None
    limit: float | None
    error_percent: float


class _Convergence(_Study):
    """scripts/evidence/convergence.py."""

    tetrahedra: dict[str, list[int]]
    estimates: list[_Estimate]
    failed: list[str] = Field(default_factory=list)


class _Statistics(BaseModel):
    quantity: str
    designs: int
    spearman: float
    bias_percent: float
    spread_percent: float


class _Designs(_Study):
    """scripts/evidence/designs.py."""

    statistics: list[_Statistics]


S = TypeVar("S", bound=_Study)


def _read(kind: type[S], name: str, result: Result, folder: Path) -> tuple[S | None, str]:
    """The study, or None and the line that says why there is none and how to make it."""
    path, command = (
        folder / f"{name}.json",
        f"<code>python scripts/validation.py {name} {escape(shlex.quote(f'run={folder}'))}</code>",
    )
    if not path.exists():
        return None, f"<p>Not run for this folder: {command}</p>"
    try:
        study = kind.model_validate(artifacts.read_json(path))
    except (ValueError, ValidationError) as error:
        return (
            None,
            (
                f"<p>{escape(path.name)} cannot be read ({escape(str(error).splitlines()[0])}); run"
                f" again: {command}</p>"
            ),
        )
    if study.run != result.hashes.get("configuration"):
        return (
            None,
            (
                f"<p>{escape(path.name)} is of a run of another configuration and not shown; run"
                f" again: {command}</p>"
            ),
        )
    return study, ""


# -- the section -----------------------------------------------------------------------------------
def credibility(result: Result, folder: Path, limitations: Sequence[str] = ()) -> str:
    """Ready HTML of the section; `limitations` stand before the run's own."""
    said = result.credibility
    question, context = (said.question, said.context_of_use) if said else ("", "")
    risk = said.model_risk if said else ""
    parts = [
        ("Question of interest", _given(question, "credibility.question")),
        ("Context of use", _given(context, "credibility.context_of_use")),
        (
            "Model risk",
            _given(
                risk,
                "credibility.model_risk (influence of the model on the decision × consequence of a"
                " wrong one)",
            ),
        ),
        ("Model", _model(result, said)),
        ("Code verification", _evidence(said, CODE)),
        ("Calculation verification", _calculation(result, folder)),
        ("Validation", _validation(result, said, folder)),
        ("Sensitivity", _sensitivity(result, folder)),
        ("Limitations", bullets([*limitations, *result.limitations])),
    ]
    head = (
        '<p class="quiet">In the order of FDA\'s guidance on the credibility of computational'
        " models (2023); no claim of conformity.</p>"
    )
    return head + "".join(f"<h3>{title}</h3>{content}" for title, content in parts)


def _given(words: str, key: str) -> str:
    return (
        f"<p>{escape(words)}</p>"
        if words
        else f"<p>Not given; set <code>{escape(key)}</code> in the run's configuration.</p>"
    )


def _model(result: Result, said: Credibility | None) -> str:
    lines = [
        "Static, small strains, every material isotropic and linear elastic; quadratic tetrahedra"
        " (SfePy) on the exported surfaces."
    ]
    frictions = sorted({c.friction for arm in result.arms.values() for c in arm.contact})
    contact = (
        f"; solved again with unilateral contact, friction {', '.join(f'{f:g}' for f in frictions)}"
        if frictions
        else ""
    )
    lines.append(f"The implant is bonded to bone, graft and disc{contact}.")
    lines += [said.boundary] if said and said.boundary else []
    rows = [
        (
            escape(m.group),
            text(escape(m.modulus)),
            text(" / ".join(map(number, m.found_mpa)) or "—"),
            number(m.poisson),
            text(escape(m.source)),
        )
        for m in (said.materials if said else ())
    ]
    head = (
        "elements",
        "Young's modulus, MPa",
        "in the mesh: 5 / 50 / 95 % of the volume",
        "Poisson's ratio",
        "source",
    )
    shown = (
        table("Materials by group of elements", head, rows)
        if rows
        else "<p>Materials: not recorded in this result.</p>"
    )
    loads = result.asked.get("load cases")
    return bullets(lines) + shown + (pairs("Load cases", loads) if isinstance(loads, dict) else "")


def _evidence(said: Credibility | None, wanted: dict[str, tuple[str, str]]) -> str:
    parts = []
    for name, (what, good) in wanted.items():
        found = said.evidence.get(name) if said else None
        if found is None:
            command = f"<code>python scripts/validation.py {name}</code>"
            parts.append(f"<p>{escape(what)}: no record in runs/validation: {command}</p>")
            continue
        figures = f"<details><summary>figures</summary><pre>{escape(found.text)}</pre></details>"
        parts.append(f"<p>{escape(what)}: {_outcome(found, good)}</p>{figures}")
    return "".join(parts)


def _outcome(found: Evidence, good: str) -> str:
    said = (
        good
        if not found.missed
        else f'<span class="bad">missed: {escape("; ".join(found.missed))}</span>'
    )
    return (
        f"{said} <span"
        f' class="unit">({_origin(found.command, found.created, found.version, found.seconds)})</span>'
    )


def _calculation(result: Result, folder: Path) -> str:
    """Solver, balance, meshes, mesh convergence, and the other solver on the same designs."""
    order, parts, rows = arm_order(result), [], []
    for arm in order:
        a = result.arms[arm]
        force, moment = (a.balance.force_rel, a.balance.moment_rel) if a.balance else (None, None)
        worst = [
            f"{escape(load)}: {status_cell(s)}" for load, s in a.solver.items() if s.code != "ok"
        ]
        shown = "; ".join(worst) or ("all ok" if a.solver else "—")
        residual = max(
            (s.relative_residual for s in a.solver.values() if s.relative_residual is not None),
            default=None,
        )
        rows.append(
            (
                arm_name(arm, result),
                text(status_cell(a.status)),
                text(shown),
                number(residual),
                number(force),
                number(moment),
            )
        )
    head = ("arm", "status", "load cases", "residual", "force error", "moment error")
    parts.append(
        table(
            "Solver status; largest relative residual and balance error over the load cases",
            head,
            rows,
        )
    )
    loads = list(dict.fromkeys(load for arm in order for load in result.arms[arm].solver))
    if loads:
        cells = [
            [
                escape(load),
                *(
                    text(
                        escape(s.text or s.code)
                        if (s := result.arms[arm].solver.get(load))
                        else "—"
                    )
                    for arm in order
                ),
            ]
            for load in loads
        ]
        inner = table(
            "What the solver said", ("load case", *(arm_name(arm, result) for arm in order)), cells
        )
        parts.append(f"<details><summary>Solver by load case</summary>{inner}</details>")
    keys = list(dict.fromkeys(key for arm in order for key in result.arms[arm].mesh))
    if keys:
        meshes = [
            [escape(key), *(number(result.arms[arm].mesh.get(key)) for arm in order)]
            for key in keys
        ]
        inner = table("Tetrahedral mesh", ("", *(arm_name(arm, result) for arm in order)), meshes)
        counts = "; ".join(
            f"{arm_name(arm, result)}: {number(n)}"
            for arm in order
            if (n := result.arms[arm].mesh.get("tetrahedra"))
        )
        parts.append(f"<details><summary>Meshes, tetrahedra: {counts}</summary>{inner}</details>")
    parts += ["<p>Mesh convergence</p>", _convergence(result, folder)]
    for arm in order:
        agreement = result.arms[arm].agreement
        if agreement:
            lines = [
                (escape(g.quantity), text(escape(g.load_case or "all")), text(escape(g.unit)))
                + (number(g.engine), number(g.sfepy), percent(g.gap_rel))
                for g in agreement
            ]
            worst_gap = max(
                (abs(g.gap_rel) for g in agreement if g.gap_rel is not None), default=None
            )
            title = (
                f"{arm_name(arm, result)}: voxel engine against SfePy, largest gap"
                f" {percent(worst_gap).lstrip('+')}"
            )
            gaps = table(
                "gap = engine/SfePy − 1",
                ("quantity", "load case", "unit", "engine", "SfePy", "gap"),
                lines,
            )
            parts.append(f"<details><summary>{title}</summary>{gaps}</details>")
    return "".join(parts)


def mesh_errors(result: Result, folder: Path) -> dict[tuple[str, str], float]:
    """By arm and measure: the discretisation error in per cent, of those that the run's
    convergence study covers."""
    study, _why = _read(_Convergence, "convergence", result, folder)
    return {} if study is None else {(e.arm, e.quantity): e.error_percent for e in study.estimates}


def _convergence(result: Result, folder: Path) -> str:
    study, why = _read(_Convergence, "convergence", result, folder)
    if study is None:
        return why
    rows = [
        (
            _words(e.arm),
            text(_words(e.quantity)),
            " / ".join(map(number, e.values)),
            number(e.order),
            number(e.limit),
            f"{e.error_percent:.1f} %",
        )
        for e in study.estimates
    ]
    meshes = "; ".join(
        f"{_words(arm)}: {', '.join(map(str, n))} tetrahedra" for arm, n in study.tetrahedra.items()
    )
    head = (
        "arm",
        "quantity",
        "values, as configured and finer",
        "order",
        "limit",
        "error as configured",
    )
    caption = (
        "Three meshes; error by Richardson's estimate where they converge in order, else the"
        " largest difference"
    )
    shown = table(caption, head, rows) if rows else ""
    return study.made() + f"<p>{meshes}</p>" + shown + bullets(study.failed)


def _validation(result: Result, said: Credibility | None, folder: Path) -> str:
    """Comparison with what the model did not compute itself."""
    lead = "<p>No physical test of this device or patient is part of this record.</p>"
    study, why = _read(_Designs, "designs", result, folder)
    parts = [
        lead,
        _evidence(said, PUBLISHED),
        "<p>Both solvers on random designs of this run</p>",
        why,
    ]
    if study is not None:
        rows = [
            (
                _words(s.quantity),
                str(s.designs),
                f"{s.spearman:.3f}",
                percent(s.bias_percent / 100),
                f"{s.spread_percent:.1f} %",
            )
            for s in study.statistics
        ]
        head = ("quantity", "designs", "Spearman ρ", "bias", "spread")
        parts += [
            study.made(),
            table("Voxel engine over SfePy − 1: median, half of 16th to 84th centile", head, rows),
        ]
    return "".join(parts)


def _sensitivity(result: Result, folder: Path) -> str:
    study, why = _read(_Sensitivity, "sensitivity", result, folder)
    if study is None:
        return why
    rows = []
    for r in study.ranking:
        first, *rest = (_words(arm) for arm in r.nominal)
        order = first
        for arm, gap in zip(rest, r.gap_percent, strict=True):
            unresolved = (
                ", below the mesh's"
                if gap is not None and r.mesh_percent is not None and gap < r.mesh_percent
                else ""
            )
            order += f", {arm} ({'—' if gap is None else f'{gap:.1f} %'}{unresolved})"
        failed = "; ".join(
            escape(n) + ("" if n in r.first_failed else " (best arm the same)") for n in r.failed
        )
        alone = "; ".join(map(escape, r.alone_failed))
        mesh = "—" if r.mesh_percent is None else f"{r.mesh_percent:.1f} %"
        holds = f"{r.rows - len(r.failed)} of {r.rows}"
        rows.append(
            (_words(r.measure), text(order), holds, text(failed or "—"), text(alone or "—"), mesh)
        )
    head = (
        "measure",
        "order, best first (gap to the one before)",
        "order holds in",
        "another order in",
        "best arm, moved alone, loses in",
        "another mesh alone",
    )
    parts = [
        study.made(),
        table(
            "Does the order of the arms hold when bone, loads, position or mesh are others?",
            head,
            rows,
        ),
    ]
    names, at = (
        list(dict.fromkeys(r.variation for r in study.rows)),
        {(r.arm, r.variation): r for r in study.rows},
    )
    for measure, about in study.measures.items():
        cells = [
            [
                escape(name),
                *(_change(at.get((arm, name)), measure, name == names[0]) for arm in study.arms),
            ]
            for name in names
        ]
        changes = table(
            "first line: value; then change from it", ("", *map(_words, study.arms)), cells
        )
        title = _words(measure) + unit_cell(about.get("unit", ""))
        parts.append(f"<details><summary>{title}</summary>{changes}</details>")
    without = [
        f"{r.arm}, {r.variation}: {r.status.text}" for r in study.rows if r.status.code != "ok"
    ]
    return "".join(parts) + bullets([*without, *study.notes])


def _change(row: _Row | None, measure: str, first: bool) -> str:
    if row is None or row.value.get(measure) is None:
        return '<td class="none">no result</td>'
    change = row.change_percent.get(measure)
    return (
        number(row.value[measure]) if first else percent(None if change is None else change / 100.0)
    )


# -- where the materials come from -----------------------------------------------------------------
def provenance(
    law_name: str,
    implant: str,
    density_source: str,
    bone_factor: float,
    rods: tuple[float, float] | None,
    found: dict[str, list[float]],
) -> list[Material]:
    """The materials of a check by group of elements, as fem/solve.py uses them.

    rods    modulus MPa and Poisson's ratio; None: no rods
    found   by region of engine.types.REGIONS (and "disc"): modulus in the mesh, MPa, 5th, 50th and
            95th centile of the volume
    """
    law, solid = materials.bone_law(law_name), materials.implant_material(implant)
    formula = f"{law.coefficient:g} ρ^{law.exponent:g}" + (
        f" {law.intercept_mpa:+g}" if law.intercept_mpa else ""
    )
    times = f", times {bone_factor:g} (fem.solve.bone_factor)" if bone_factor != 1.0 else ""
    bone = (
        f"{formula}, at least {law.floor_mpa:g}{times}; ρ in g/cm³ ({law.density} density), source:"
        f" {density_source}"
    )
    lattice = (
        "; lattice: times ρ^1.34 (0.146 + 0.854 ρ^6), ρ its relative density [S25, fit]"
        if solid.lattice
        else ""
    )
    groups = [
        (body, bone, law.poisson, f"{law_name}: {law.source}") for body in ("caudal", "cranial")
    ]
    groups.append(("implant", f"{solid.e_mpa:g}{lattice}", solid.poisson, solid.source))
    for name in ("graft", "remnant", "disc"):
        soft = materials.SOFT[name]
        groups.append((name, f"{soft.e_mpa:g}", soft.poisson, soft.source))
    if rods is not None:
        groups.append(
            (
                "rods",
                f"{rods[0]:g}",
                rods[1],
                "beams from pedicle to pedicle as configured: boundary.rod_e_mpa, rod_poisson",
            )
        )
    titles = {
        "caudal": "caudal vertebra",
        "cranial": "cranial vertebra",
        "remnant": "disc beside the implant",
        "rods": "rods and screws",
        "disc": "disc of the intact segment",
    }
    return [
        Material(
            group=titles.get(name, name),
            modulus=modulus,
            poisson=poisson,
            source=source,
            found_mpa=found.get(name, []),
        )
        for name, modulus, poisson, source in groups
    ]
