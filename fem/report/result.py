"""The schema of result.json, the machine-readable half of a report (docs/result_schema.md explains
each field).

Unknown keys, NaN and infinity are refused. What was not computed is null, with a status that says
why; an arm whose solver failed holds no number at all.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

#: Order of the arms in tables; the last two bound what any implant could reach.
ARMS = ("stock", "stock_central", "conforming", "conforming_central", "optimised")
FLOORS = ("intact", "full_endplate")

Scalar = bool | int | float | str | None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Status(_Model):
    """What a solver or optimiser said of itself. "failed" and "not_run" come without numbers."""

    code: Literal["ok", "max_iterations", "stagnated", "interrupted", "failed", "not_run"]
    text: str = ""
    relative_residual: float | None = None


class Measure(_Model):
    """One figure of one arm. `value` is the figure over all load cases, as `description` says."""

    value: float | None
    unit: str
    description: str = ""
    better: Literal["lower", "higher", "neither"] = "lower"
    per_load: dict[str, float | None] = Field(default_factory=dict)


class Alignment(_Model):
    """engine.types.SegmentAlignment; null where it was not measured."""

    lordosis_deg: float | None = None
    segmental_lordosis_deg: float | None = None
    coronal_deg: float | None = None
    axial_deg: float | None = None
    height_anterior_mm: float | None = None
    height_middle_mm: float | None = None
    height_posterior_mm: float | None = None
    listhesis_mm: float | None = None
    lateral_mm: float | None = None


class AlignmentPart(_Model):
    """Before and target; what each arm achieves under `load_case` stands in the arm."""

    measured: Alignment
    planned: Alignment
    load_case: str = "standing"
    rule: str = ""
    source: str = ""
    notes: list[str] = Field(default_factory=list)


class Balance(_Model):
    """Largest |applied + reaction| over the load cases, relative to the applied force and
    moment."""

    force_rel: float | None
    moment_rel: float | None


class Agreement(_Model):
    """One quantity from both solvers on the same design; gap_rel = engine/sfepy - 1."""

    quantity: str
    unit: str
    load_case: str | None = None
    engine: float | None
    sfepy: float | None
    gap_rel: float | None


class Contact(_Model):
    """The arm again, its implant pressing on bone, graft and disc instead of bonded to them
    (fem/elastic/contact.py)."""

    friction: float
    status: Status
    solver: dict[str, Status] = Field(default_factory=dict)
    touching: dict[str, dict[str, float]] = Field(default_factory=dict)
    measures: dict[str, Measure] = Field(default_factory=dict)
    stiffness: dict[str, float] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


class Arm(_Model):
    """One device (or floor) as simulated in SfePy."""

    status: Status
    label: str = ""
    measures: dict[str, Measure] = Field(default_factory=dict)
    alignment: Alignment | None = None
    solver: dict[str, Status] = Field(default_factory=dict)
    balance: Balance | None = None
    agreement: list[Agreement] = Field(default_factory=list)
    contact: list[Contact] = Field(default_factory=list)
    mesh: dict[str, Scalar] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _no_number_without_a_solution(self) -> Arm:
        if self.status.code in ("failed", "not_run"):
            values = [m.value for m in self.measures.values()]
            values += [v for m in self.measures.values() for v in m.per_load.values()]
            values += list(self.alignment.model_dump().values()) if self.alignment else []
            if any(v is not None for v in values):
                raise ValueError(
                    f"status is {self.status.code!r}: measures and alignment must be null"
                )
        return self


class Optimisation(_Model):
    """The search. `history`: path of history.jsonl, relative to the run folder."""

    status: Status
    history: str | None = None
    figures: dict[str, Scalar] = Field(default_factory=dict)


class Material(_Model):
    """Elastic constants of one group of elements. `modulus`: MPa, or the law; `found_mpa`: 5th,
    50th, 95th centile in the mesh."""

    group: str
    modulus: str
    poisson: float
    source: str
    found_mpa: list[float] = Field(default_factory=list)


class Evidence(_Model):
    """A study of scripts/validation.py that needs no run: its figures (Markdown), what missed
    its limit, what computed it and when."""

    command: str
    created: str
    version: str
    seconds: float
    missed: list[str] = Field(default_factory=list)
    text: str = ""


class Credibility(_Model):
    """What the report's credibility section says besides the numbers (docs/result_schema.md)."""

    question: str
    context_of_use: str
    model_risk: str = ""
    boundary: str = ""
    materials: list[Material] = Field(default_factory=list)
    evidence: dict[str, Evidence] = Field(default_factory=dict)


class Result(_Model):
    """result.json."""

    schema_version: Literal[1] = 1
    title: str
    created: str
    asked: dict[str, Scalar | dict[str, Any]] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    alignment: AlignmentPart | None = None
    arms: dict[str, Arm]
    optimisation: Optimisation | None = None
    credibility: Credibility | None = None
    lattice: dict[str, Any] | None = None
    timings_s: dict[str, float] = Field(default_factory=dict)
    memory_mb: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, Scalar] = Field(default_factory=dict)
    hashes: dict[str, str] = Field(default_factory=dict)
    limitations: list[str] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict)


class Reached(_Model):
    """How far the optimised arm got in one measure whose lower value is better."""

    measure: str
    unit: str
    stock: float
    optimised: float
    floor: float | None
    floor_arm: str | None
    reduction: float | None
    share_of_reachable: float | None


def validate(result: dict[str, Any]) -> Result:
    """The checked result. Raises ValueError that lists every wrong place with its path and what
    to do."""
    try:
        return Result.model_validate(result)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ValueError(
            "result.json does not follow docs/result_schema.md (NaN and infinity: write null and a"
            " status):\n  " + "\n  ".join(lines)
        ) from error


def reached(result: Result) -> list[Reached]:
    """Reduction against stock, (stock - optimised)/stock, and its share of what could be reached at
    all, (stock - optimised)/(stock - floor); the floor is the lower of the intact segment and the
    rigid full-endplate cage. Only measures that both arms have, where lower is better; null where
    the denominator is not positive.
    """
    stock, best = result.arms.get("stock"), result.arms.get("optimised")
    rows: list[Reached] = []
    if stock is None or best is None:
        return rows
    for name, measure in stock.measures.items():
        other = best.measures.get(name)
        if (
            measure.better != "lower"
            or measure.value is None
            or other is None
            or other.value is None
        ):
            continue
        floors = {
            arm: result.arms[arm].measures[name].value
            for arm in FLOORS
            if arm in result.arms and name in result.arms[arm].measures
        }
        known = {arm: value for arm, value in floors.items() if value is not None}
        arm = min(known, key=lambda a: known[a]) if known else None
        gain = measure.value - other.value
        span = measure.value - known[arm] if arm is not None else 0.0
        rows.append(
            Reached(
                measure=name,
                unit=measure.unit,
                stock=measure.value,
                optimised=other.value,
                floor=known[arm] if arm is not None else None,
                floor_arm=arm,
                reduction=gain / measure.value if measure.value > 0 else None,
                share_of_reachable=gain / span if span > 0 else None,
            )
        )
    return rows
