"""Published classifications of a measured alignment: SRS-Schwab, GAP and Roussouly, or what they
lack."""

from __future__ import annotations

from engine.patient.alignment.axes import NO_ENDPLATE
from engine.patient.alignment.measures import REGIONAL
from engine.patient.alignment.scores import (
    gap_ideal_lordosis_deg,
    gap_ideal_slope_deg,
    gap_most,
    gap_points,
    roussouly_type,
    schwab_modifier,
)
from engine.patient.alignment.table import Table

#: Parts of the GAP score that a lumbar scan alone does not give.
_GAP_LACKING = {
    "spinopelvic": "global tilt needs C7, which is not in a lumbar scan",
    "age": "needs the patient's age",
}


def classify(table: Table, age: float | None) -> None:
    """Enter the classifications; age: years, which only the GAP score asks for."""
    _schwab(table)
    _gap_angles(table)
    _gap_score(table, age)
    _roussouly(table)


def _schwab(table: Table) -> None:
    for name, measure, what in (
        ("schwab_pi_ll", "pi_minus_ll_deg", "PI-LL"),
        ("schwab_pt", "pelvic_tilt_deg", "PT"),
    ):
        value = table.regional(measure)
        if value is None:
            table.lack(REGIONAL, name, f"needs {what}")
        else:
            table.put(REGIONAL, name, schwab_modifier(what, value), source="[S59]")
    table.lack(REGIONAL, "schwab_sva", "the C7 plumb line is not in a lumbar scan")


def _gap_angles(table: Table) -> None:
    """Pelvic version and relative lordosis: measured less ideal."""
    incidence = table.regional("pelvic_incidence_deg")
    for name, measure, ideal_deg, needs in (
        ("gap_pelvic_version_deg", "sacral_slope_deg", gap_ideal_slope_deg, "PI and SS"),
        ("gap_relative_lordosis_deg", "lumbar_lordosis_deg", gap_ideal_lordosis_deg, "PI and LL"),
    ):
        value = table.regional(measure)
        if value is not None and incidence is not None:
            ideal = ideal_deg(incidence)
            source = f"measured less ideal {ideal:.1f}° [S60]"
            table.put(REGIONAL, name, value - ideal, source=source)
        else:
            table.lack(REGIONAL, name, f"needs {needs}")


def _gap_score(table: Table, age: float | None) -> None:
    """Points of each part; the score itself needs C7 and is given as far as it is known."""
    parts = {
        "pelvic_version": table.regional("gap_pelvic_version_deg"),
        "relative_lordosis": table.regional("gap_relative_lordosis_deg"),
        "distribution": table.regional("lordosis_distribution_percent"),
        "spinopelvic": None,
        "age": age,
    }
    known, open_ = 0, []
    for part, value in parts.items():
        name = f"gap_{part}_points"
        if value is None:
            open_.append(part)
            table.lack(REGIONAL, name, _GAP_LACKING.get(part, "needs PI, SS, LL and L4-S1"))
        else:
            points = gap_points(part, value)
            known += points
            table.put(REGIONAL, name, float(points), source="GAP [M]")
    most = sum(gap_most(part) for part in open_)
    why = (
        f"without {', '.join(open_).replace('_', ' ')}: {known} points so far, at most {most} more"
    )
    table.lack(REGIONAL, "gap_score", f"{why}; {_GAP_LACKING['spinopelvic']}")


def _roussouly(table: Table) -> None:
    slope, apex = table.regional("sacral_slope_deg"), table.measures[REGIONAL, "apex"]
    if slope is None:
        table.lack(REGIONAL, "roussouly", NO_ENDPLATE.format("S1"))
        return
    kind = roussouly_type(slope, apex.value if isinstance(apex.value, str) else None)
    if kind is not None:
        table.put(REGIONAL, "roussouly", kind, source="SS and apex [S68]")
    else:
        why = f"SS under 35° is type 1 or 2 by the apex; {apex.reason}"
        table.lack(REGIONAL, "roussouly", why)
