"""The tables of the patient page: alignment, plan, published targets, findings, source."""

from __future__ import annotations

from collections.abc import Sequence

from engine.page import Cell, Line, Row, Table, text
from engine.patient.alignment.measures import REGIONAL, Measure, SpineAlignment
from engine.patient.alignment.rules import RuleTarget
from engine.types import LevelDemand, PatientModel, Segment, SegmentAlignment

#: Regional measures in the reader's words.
WORDS = {
    "lumbar_lordosis_deg": "Lumbar lordosis L1-S1",
    "l4_s1_lordosis_deg": "L4-S1 lordosis",
    "lordosis_distribution_percent": "Lordosis distribution index",
    "sacral_slope_deg": "Sacral slope",
    "pelvic_incidence_deg": "Pelvic incidence",
    "pelvic_tilt_deg": "Pelvic tilt",
    "pi_minus_ll_deg": "PI − LL",
    "l1_pelvic_angle_deg": "L1 pelvic angle",
    "cobb_deg": "Coronal Cobb angle",
}
_UNITS = {"deg": "°", "mm": "mm", "percent": "%"}


def _spaced(name: str) -> str:
    return name.replace("_", " ")


# -- measured --------------------------------------------------------------------------------------
def _value(measure: Measure) -> Line | Cell:
    value, error = measure.value, measure.standard_error
    if value is None:
        return Cell("not measurable", "none")
    if isinstance(value, str):
        return text(value)
    return f"{value:.1f}" + (f" ± {error:.1f}" if error is not None else "")


def regional_table(alignment: SpineAlignment) -> Table:
    rows = [
        (
            WORDS.get(name, _spaced(name.removesuffix("_deg").removesuffix("_percent"))),
            _value(measure),
            text(_UNITS.get(measure.unit, measure.unit)),
            text(measure.status),
            text(measure.reason or measure.source),
        )
        for (place, name), measure in alignment.measures.items()
        if place == REGIONAL
    ]
    note = (
        "± standard error where one was found. Angles of a supine scan are not those of standing"
        " (recumbent LL is about 13° less, S67)."
    )
    return Table(note, ("measure", "value", "unit", "status", "note"), rows)


def disc_table(alignment: SpineAlignment) -> Table | None:
    """One column per disc, "L4-L5"."""
    return _by_place(alignment, [p for p, _ in alignment.measures if p != REGIONAL and "-" in p])


def body_table(alignment: SpineAlignment) -> Table | None:
    """One column per vertebra, "L4"."""
    return _by_place(
        alignment, [p for p, _ in alignment.measures if p != REGIONAL and "-" not in p]
    )


def _by_place(alignment: SpineAlignment, wanted: Sequence[str]) -> Table | None:
    """Measures by places; None where nothing was measured there."""
    places = list(dict.fromkeys(wanted))
    names = dict.fromkeys(name for place, name in alignment.measures if place in places)
    rows: list[Row] = []
    for name in names:
        measures = [alignment.measures.get((place, name)) for place in places]
        rows.append((_spaced(name), *("—" if m is None else _value(m) for m in measures)))
    return Table("Units stand at the end of each name", ("", *places), rows) if rows else None


# -- planned ---------------------------------------------------------------------------------------
def rules_table(targets: Sequence[RuleTarget]) -> Table:
    rows = [
        (
            t.title,
            "—" if t.ll_deg is None else f"{t.ll_deg:.0f}",
            "—" if t.change_deg is None else f"{t.change_deg:+.0f}",
            text(t.equation),
            text(t.reason or t.source),
        )
        for t in targets
    ]
    return Table(
        "Target LL and the change that it demands, degrees; the rules disagree, none is the truth",
        ("rule", "LL", "change", "equation", "note"),
        rows,
    )


def plan_table(segment: Segment) -> Table:
    rows = []
    for key in SegmentAlignment.__dataclass_fields__:
        measured, planned = getattr(segment.plan.measured, key), getattr(segment.plan.planned, key)
        demand = f"{planned - measured:+.1f}"
        rows.append((_spaced(key), f"{measured:.1f}", f"{planned:.1f}", demand))
    caption = f"Rule {segment.plan.rule}: {segment.plan.source}"
    return Table(caption, ("", "measured", "planned", "demand"), rows)


def demands_table(segment: Segment) -> Table | None:
    """What the rule asks of each treated level, and their sums; None without a published rule."""
    demands = segment.plan.demands
    if not demands:
        return None
    rows = [_demand_row(demand) for demand in demands]
    if len(demands) > 1:
        wanted, given, shortfall = (
            f"{sum(getattr(d, key) for d in demands):+.1f}"
            for key in ("wanted_deg", "given_deg", "shortfall_deg")
        )
        rows.append(("all treated", "", wanted, given, "", "", shortfall))
    caption = (
        "Demand on each treated level, degrees of superior-to-superior lordosis; only"
        f" {segment.name} is planned here"
    )
    head = ("level", "measured", "wanted", "given", "limit", "limited by", "shortfall")
    return Table(caption, head, rows)


def _demand_row(d: LevelDemand) -> Row:
    return (
        d.level,
        f"{d.measured_deg:.1f}",
        f"{d.wanted_deg:+.1f}",
        f"{d.given_deg:+.1f}",
        f"{d.limit_deg:.1f}",
        text(d.limited_by),
        f"{d.shortfall_deg:+.1f}",
    )


# -- read ------------------------------------------------------------------------------------------
def findings_table(patient: PatientModel) -> Table | None:
    """What the quality gate found; None where it found nothing."""
    rows = [
        (f.code, text(f.severity), text(f.level or "—"), text(f.text)) for f in patient.findings
    ]
    head = ("finding", "severity", "level", "what")
    return Table("Numbers in the picture count those with a place", head, rows) if rows else None


def source_values(patient: PatientModel) -> dict[str, str]:
    """Where the patient comes from, nested keys joined by a space; what a phantom was made from
    (`spec`) is left out."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix} {key}".strip(), inner)
        elif value is not None:
            flat[prefix] = str(value)

    walk("", {key: value for key, value in patient.source.items() if key != "spec"})
    return flat


def files_table() -> Table:
    files = {
        "patient/": "bundle: bundle.json, surfaces (PLY), fields (NPZ), structures/ (VTP)",
        "segment/": "the treated segment at its planned pose",
        "view/": "VTP and VTI for ParaView, pictures",
        "alignment.json, anatomy.json, rules.json, bone.json, findings.json": (
            "the tables of this page"
        ),
        "hardware.json": (
            "metal and cement in the scan, where there is any; its surfaces in patient/structures"
        ),
    }
    rows = [(where, text(what)) for where, what in files.items()]
    return Table("In the patient's folder", ("where", "what"), rows)
