"""The credibility section of a report: how far to trust its numbers, in the order that regulators
ask of computational studies.

Question of interest, context of use, model risk, model, code verification, calculation
verification, validation, sensitivity, limitations. Everything shown was computed or given: evidence
that is not there is named with the command that makes it. Ref: FDA 2023, Assessing the Credibility
of Computational Modeling and Simulation in Medical Device Submissions [S83].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from engine.page import Line, Marked, Row, Table, number, percent, render, text
from fem.report.calculation import calculation
from fem.report.evidence import DesignsEvidence, origin, read_evidence
from fem.report.result import Credibility, Evidence, Material, Result
from fem.report.sensitivity import sensitivity
from fem.report.words import TEMPLATES, spaced

_GOOD = "every figure within its limit"
#: Evidence that needs no run folder: what each is, and what it means that nothing missed its limit.
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


def credibility(result: Result, folder: Path, limitations: Sequence[str] = ()) -> Markup:
    """The section's HTML; `limitations` stand before the run's own."""
    given = result.credibility
    return render(
        "credibility.html.j2",
        TEMPLATES,
        question=given.question if given else "",
        context=given.context_of_use if given else "",
        risk=given.model_risk if given else "",
        model=_model(result, given),
        code=_records(given, CODE),
        calculation=calculation(result, folder),
        published=_records(given, PUBLISHED),
        designs=_designs(result, folder),
        sensitivity=sensitivity(result, folder),
        limitations=[*limitations, *result.limitations],
    )


# -- the model -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """materials: None where the result holds none; load_cases: name → words, where it has them."""

    notes: Sequence[str]
    materials: Table | None
    load_cases: Mapping[str, Any]


def _model(result: Result, given: Credibility | None) -> Model:
    frictions = sorted({c.friction for arm in result.arms.values() for c in arm.contact})
    contact = (
        f"; solved again with unilateral contact, friction {', '.join(f'{f:g}' for f in frictions)}"
        if frictions
        else ""
    )
    notes = [
        "Static, small strains, every material isotropic and linear elastic; quadratic tetrahedra"
        " (SfePy) on the exported surfaces.",
        f"The implant is bonded to bone, graft and disc{contact}.",
    ]
    notes += [given.boundary] if given and given.boundary else []
    loads = result.asked.get("load cases")
    return Model(
        notes,
        _materials(given.materials) if given and given.materials else None,
        loads if isinstance(loads, dict) else {},
    )


def _materials(groups: Sequence[Material]) -> Table:
    rows = [
        (
            m.group,
            text(m.modulus),
            text(" / ".join(map(number, m.found_mpa)) or "—"),
            number(m.poisson),
            text(m.source),
        )
        for m in groups
    ]
    head = (
        "elements",
        "Young's modulus, MPa",
        "in the mesh: 5 / 50 / 95 % of the volume",
        "Poisson's ratio",
        "source",
    )
    return Table("Materials by group of elements", head, rows)


# -- evidence that needs no run --------------------------------------------------------------------
@dataclass(frozen=True)
class EvidenceShown:
    """outcome: whether the figures kept their limits, and origin: what computed them; both None
    where there is no record, which `command` makes."""

    subject: str
    command: str
    outcome: Line | None = None
    origin: Line | None = None
    figures: str = ""


def _records(
    given: Credibility | None, wanted: Mapping[str, tuple[str, str]]
) -> list[EvidenceShown]:
    records = given.evidence if given else {}
    return [
        _record(name, subject, good, records.get(name)) for name, (subject, good) in wanted.items()
    ]


def _record(name: str, subject: str, good: str, record: Evidence | None) -> EvidenceShown:
    command = f"python scripts/validation.py {name}"
    if record is None:
        return EvidenceShown(subject, command)
    missed = Marked(f"missed: {'; '.join(record.missed)}", "bad")
    outcome: Line = (missed,) if record.missed else good
    return EvidenceShown(subject, command, outcome, origin(record), record.text)


# -- both solvers on random designs ----------------------------------------------------------------
@dataclass(frozen=True)
class Designs:
    """The table, or the line that says why there is none."""

    absence: Line
    origin: Line = ""
    table: Table | None = None


def _designs(result: Result, folder: Path) -> Designs:
    reading = read_evidence(DesignsEvidence, "designs", result, folder)
    if reading.record is None:
        return Designs(reading.absence)
    rows: list[Row] = [
        (
            spaced(s.quantity),
            str(s.designs),
            f"{s.spearman:.3f}",
            percent(s.bias_percent / 100),
            f"{s.spread_percent:.1f} %",
        )
        for s in reading.record.statistics
    ]
    head = ("quantity", "designs", "Spearman ρ", "bias", "spread")
    caption = "Voxel engine over SfePy − 1: median, half of 16th to 84th centile"
    return Designs("", origin(reading.record), Table(caption, head, rows))
