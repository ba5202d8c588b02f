"""Facet joints, discs, canal and bodies on the patient page: a table each, where something is
known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.page import Cell, Line, Row, Table, text

#: By place ("L4-L5", "L4"): what engine/patient/labels measured there.
Places = Mapping[str, Mapping[str, Any]]


def structure_tables(places: Places) -> list[Table]:
    tables = (_joints(places), _discs(places), _canal(places), _bodies(places))
    return [table for table in tables if table.rows]


def _figures(measures: Mapping[str, Any], keys: Iterable[str]) -> list[Line | Cell]:
    values = [measures[key] for key in keys]
    return [Cell("—", "none") if value is None else f"{value:.1f}" for value in values]


def _joints(places: Places) -> Table:
    keys = ("least_mm", "mean_mm", "touching_mm2")
    rows: list[Row] = [
        (
            f"{place} {side}",
            text(joint["state"]),
            *_figures(joint, keys),
            text(joint.get("reason", "")),
        )
        for place, at in places.items()
        for side, joint in at.get("facet_joints", {}).items()
    ]
    note = (
        "Between the two bones' facing areas. Touching: the labels do (as they often do where"
        " voxels are larger than the joint's gap); the mean is then of the bones as parted for"
        " the model"
    )
    head = ("joint", "state", "least gap, mm", "mean gap, mm", "labels touch, mm²", "note")
    return Table(note, head, rows)


def _discs(places: Places) -> Table:
    keys = ("label_height_mm", "bone_gap_mm", "rim_planes_mm", "label_volume_mm3")
    note = (
        "Middle height of the labelled disc beside that between the bones' own surfaces and"
        " between the rims' planes, mm"
    )
    head = ("disc", "label", "bone to bone", "rim planes", "label's volume, mm³", "note")
    return Table(note, head, _noted_rows(places, "disc", keys))


def _canal(places: Places) -> Table:
    keys = ("ap_mm", "transverse_mm", "area_mm2")
    note = "Labelled canal at mid-height of the bodies and in the discs' middles"
    head = ("place", "antero-posterior, mm", "width, mm", "area, mm²", "note")
    return Table(note, head, _noted_rows(places, "labelled_canal", keys))


def _noted_rows(places: Places, structure: str, keys: Iterable[str]) -> list[Row]:
    return [
        (place, *_figures(measures, keys), text(measures.get("reason", "")))
        for place, at in places.items()
        if (measures := at.get(structure)) is not None
    ]


def _bodies(places: Places) -> Table:
    keys = ("corpus_before_wall", "arch_behind_wall")
    rows: list[Row] = [
        (place, *("—" if body[key] is None else f"{body[key]:.0%}" for key in keys))
        for place, at in places.items()
        if (body := at.get("subregions")) is not None
    ]
    note = "Check of the found bodies by the sub-region mask, which had no part in finding them"
    head = ("level", "corpus before the posterior wall", "arch behind it")
    return Table(note, head, rows)
