"""The report's section on the lattice: the file against what the printer makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from engine.page import Row, Table, number, render
from fem.report.result import Result
from fem.report.words import TEMPLATES

_UM_PER_MM = 1000
_WIDTHS = {
    "p1_mm": "narrowest (1st percentile)",
    "median_mm": "median",
    "most_mm": "widest",
}


@dataclass(frozen=True)
class Struts:
    """A lattice with struts, in numbers and in words."""

    table: Table
    notes: Sequence[str]


def lattice_section(result: Result) -> Markup:
    """The section's HTML; it says so where no struts were made or the part is solid."""
    lattice = result.lattice
    struts = None if lattice is None or lattice["solid"] else _struts(lattice)
    return render("lattice.html.j2", TEMPLATES, struts=struts, solid=lattice is not None)


def _struts(lattice: dict[str, Any]) -> Struts:
    caption, head = (
        "The file against what the printer makes of it",
        ("measure", "file", "as built, predicted"),
    )
    rows = [*_amount_rows(lattice), *_width_rows(lattice)]
    return Struts(Table(caption, head, rows), _notes(lattice))


def _amount_rows(lattice: dict[str, Any]) -> list[Row]:
    return [
        ("volume, mm³", number(lattice["exported_mm3"]), number(lattice["as_built_mm3"])),
        ("mass, g", number(lattice["exported_g"]), number(lattice["as_built_g"])),
        (
            "mean relative density",
            number(lattice["exported_mm3"] / lattice["outline_mm3"]),
            number(lattice["as_built_density"]),
        ),
    ]


def _width_rows(lattice: dict[str, Any]) -> list[Row]:
    return [
        (
            f"{what}, {name}, mm",
            *(number(lattice[state][what][key]) for state in ("exported", "as_built")),
        )
        for what in ("strut", "pore")
        for key, name in _WIDTHS.items()
    ]


def _notes(lattice: dict[str, Any]) -> list[str]:
    low, high = lattice["density_range"]
    along_um, across_um = (_UM_PER_MM * gain for gain in lattice["gain_mm"])
    asked, target = lattice["asked_density"], lattice["target_density"]
    balls = ", ".join(f"{b['ball_mm']:g} mm: {100 * b['leaves']:.1f} %" for b in lattice["powder"])
    overhang = lattice["overhang"]
    return [
        (
            f"{lattice['cell']}, cell {lattice['cell_mm']:g} mm, in"
            f" {100 * lattice['lattice_share']:.0f} % of the part, built along"
            f" {lattice['build']} (the blueprint's frame). Struts gain {along_um:.0f} µm along and"
            f" {across_um:.0f} µm across it [S80]: the file is thinner by that."
        ),
        (
            f"Mean density asked {asked:.3f}, after limits {target:.3f}: from {low:.2f} to"
            f" {high:.2f} can be printed, below it is raised"
            f" ({100 * lattice['raised_share']:.1f} % of the part), above it is solid."
        ),
        (
            f"Of the places inside where a ball has room, it can leave from (as built): {balls}."
            f" Filled because powder could not leave: {lattice['filled_mm3']:.2f} mm³; removed"
            f" because it hung on nothing: {lattice['loose_mm3']:.2f} mm³."
        ),
        (
            f"Overhang below 45°: {overhang['area_mm2']:.0f} mm²,"
            f" {100 * overhang['share']:.1f} % of the surface (outer faces included)."
        ),
        (
            "Widths on the medial axis, a quarter of a cell and more from the part's surface, where"
            " struts are cut. The check solves the homogenised lattice, not these struts."
        ),
    ]
