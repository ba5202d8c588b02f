"""The report's section on contact: what changes when the implant only presses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.page import Line, Row, Table, number, percent
from fem.report.result import Contact, Result
from fem.report.words import arm_names, arm_order, spaced, with_unit

#: A bonded value nearer to zero than this has no relative change.
_ZERO = 1e-9
_UM_PER_MM = 1000.0


@dataclass(frozen=True)
class ContactSection:
    """Of one coefficient of friction. failures: arms that were not solved, and why."""

    measures: Table
    touching: Table
    failures: Sequence[str]


def contact_sections(result: Result) -> list[ContactSection]:
    """By friction: every measure bonded and with contact, and how much of the face touches."""
    arms = [arm for arm in arm_order(result) if result.arms[arm].contact]
    return [
        _of_friction(friction, arms, result)
        for friction in sorted({c.friction for arm in arms for c in result.arms[arm].contact})
    ]


def _of_friction(friction: float, arms: list[str], result: Result) -> ContactSection:
    contacts = {
        arm: next((c for c in result.arms[arm].contact if c.friction == friction), None)
        for arm in arms
    }
    head = ("", *arm_names(arms, result))
    title = "without friction" if friction == 0.0 else f"with friction {friction:g}"
    bad = {arm: c.status.text for arm, c in contacts.items() if c and c.status.code != "ok"}
    return ContactSection(
        Table(
            f"Bonded → contact {title}: measures over all load cases",
            head,
            _measure_rows(contacts, result),
        ),
        Table(
            f"Contact {title}: share of the implant's surface that touches, largest opening",
            head,
            _touching_rows(contacts),
        ),
        [f"{spaced(arm)}, {title}: {why}" for arm, why in bad.items()],
    )


def _measure_rows(contacts: Mapping[str, Contact | None], result: Result) -> list[Row]:
    rows: list[Row] = []
    for name in dict.fromkeys(n for c in contacts.values() if c for n in c.measures):
        cells: list[Line] = []
        unit = ""
        for arm, contact in contacts.items():
            bonded = result.arms[arm].measures.get(name)
            pressing = contact.measures.get(name) if contact else None
            before = bonded.value if bonded else None
            after = pressing.value if pressing else None
            if bonded is None or before is None or after is None:
                cells.append("—")
                continue
            unit = bonded.unit
            change = percent(after / before - 1.0) if abs(before) > _ZERO else "—"
            cells.append(f"{number(before)} → {number(after)} ({change})")
        rows.append((with_unit(name, unit), *cells))
    return rows


def _touching_rows(contacts: Mapping[str, Contact | None]) -> list[Row]:
    cases = dict.fromkeys(n for c in contacts.values() if c for n in c.touching)
    return [
        (case, *(_touching(c.touching.get(case) if c else None) for c in contacts.values()))
        for case in cases
    ]


def _touching(face: dict[str, float] | None) -> str:
    if not face:
        return "—"
    opening_um = _UM_PER_MM * face["largest_opening_mm"]
    return f"{face['touching_percent']:.0f} %, {opening_um:.0f} µm"
