"""Landmarks, axes and rims for other programs: 3D Slicer markups, ParaView files and plain JSON,
all LPS mm.

Files
    landmarks.mrk.json       one Fiducial list per level, and one of the hips
    pedicle_axes.mrk.json    one Line per pedicle, entry first
    endplate_rims.mrk.json   one ClosedCurve per endplate
    landmarks.vtp            all points: name, level, label, standard_error_mm (NaN where unknown)
    rims_and_axes.vtp        rims and axes as polylines, cell arrays name, level
    landmarks.json           points, axes, rims, features and what is missing, with reasons

The .mrk.json are Slicer Markups, schema v1.0.3; Slicer reads every markup of a file.
The standard error of a point is the root mean square distance that it moves: √(σ_x² + σ_y² + σ_z²).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyvista as pv

from engine.part.slicer import MARKUPS_SCHEMA, Colour, ControlPoint, markup
from engine.patient.anatomy.features import Features
from engine.patient.anatomy.hips import heads_of
from engine.types import Endplate, PatientModel, Sacrum, Vertebra

SCHEMA = 1
#: Of the levels, cranial to caudal: Okabe and Ito's palette, which the colour-blind tell apart.
_COLOURS: tuple[Colour, ...] = (
    (0.90, 0.60, 0.00),
    (0.34, 0.71, 0.91),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.00, 0.45, 0.70),
    (0.84, 0.37, 0.00),
)
_NAMES = {
    "superior": "superior endplate centre",
    "inferior": "inferior endplate centre",
    "superior_concavity": "deepest point of the superior endplate",
    "inferior_concavity": "deepest point of the inferior endplate",
    "spinolaminar": "spinolaminar junction",
    "s1_posterior_superior": "posterior superior corner",
}


@dataclass(frozen=True)
class _Point:
    level: str
    name: str
    position_mm: np.ndarray
    standard_error_mm: float | None

    @property
    def label(self) -> str:
        return f"{self.level} {_NAMES.get(self.name, self.name.replace('_', ' '))}"

    @property
    def description(self) -> str:
        return "" if self.standard_error_mm is None else f"± {self.standard_error_mm:.1f} mm"

    def as_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "name": self.name,
            "label": self.label,
            "position_mm": self.position_mm.tolist(),
            "standard_error_mm": self.standard_error_mm,
        }


@dataclass(frozen=True)
class _Line:
    level: str
    name: str
    points_mm: np.ndarray
    closed: bool

    @property
    def label(self) -> str:
        return f"{self.level} {self.name.replace('_', ' ')}"

    def as_dict(self) -> dict[str, Any]:
        return {"level": self.level, "name": self.name, "points_mm": self.points_mm.tolist()}


def write_landmarks(
    patient: PatientModel,
    features: Mapping[str, Features],
    errors: Mapping[str, Mapping[str, Any]] | None,
    folder: str | Path,
) -> list[Path]:
    """Write the files of the module docstring into `folder` (made where missing, its files of these
    names replaced).

    features   by level; levels without have only endplates, axes and landmarks
    errors     by level ("S1": the sacrum): uncertainty.standard_errors

    Raises: ValueError when features or errors are of a level that the patient does not have, or a
    position is not finite.
    """
    errors = errors or {}
    levels = [v.name for v in patient.vertebrae] + ([] if patient.sacrum is None else ["S1"])
    _check_levels(patient.name, levels, features, errors)
    shown = _shown(patient, features, errors)
    if heads_of(patient) is not None:
        levels.append("hips")
    _check_finite(shown)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    colour = {level: _COLOURS[k % len(_COLOURS)] for k, level in enumerate(levels)}
    fiducials = [_fiducials(level, shown.points, colour[level]) for level in levels]
    axes = [_axis_markup(line, shown.points, colour[line.level]) for line in shown.axes]
    rims = [_rim_markup(line, colour[line.level]) for line in shown.rims]
    return [
        _write_markups(target / "landmarks.mrk.json", fiducials),
        _write_markups(target / "pedicle_axes.mrk.json", axes),
        _write_markups(target / "endplate_rims.mrk.json", rims),
        _write_points(target / "landmarks.vtp", shown.points),
        _write_lines(target / "rims_and_axes.vtp", shown.lines),
        _write_json(
            target / "landmarks.json",
            {
                "schema": SCHEMA,
                "frame": "LPS",
                "unit": "mm",
                "patient": patient.name,
                "points": [point.as_dict() for point in shown.points],
                "axes": [line.as_dict() for line in shown.axes],
                "rims": [line.as_dict() for line in shown.rims],
                "features": {level: own.as_dict() for level, own in features.items()},
                "standard_errors": {level: dict(of) for level, of in errors.items()},
            },
        ),
    ]


# -- what is shown ---------------------------------------------------------------------------------
class _Shown(NamedTuple):
    """All points, and all lines in the order in which they are written."""

    points: list[_Point]
    lines: list[_Line]

    @property
    def axes(self) -> list[_Line]:
        return [line for line in self.lines if not line.closed]

    @property
    def rims(self) -> list[_Line]:
        return [line for line in self.lines if line.closed]


def _check_levels(
    patient: str, levels: list[str], features: Mapping[str, Any], errors: Mapping[str, Any]
) -> None:
    for what, given in (("features", features), ("errors", errors)):
        if unknown := sorted(set(given) - set(levels)):
            raise ValueError(
                f"{what} of {', '.join(unknown)} were given, which {patient} does not have; it"
                f" has {', '.join(levels)}"
            )


def _check_finite(shown: _Shown) -> None:
    positions = [(point.label, point.position_mm) for point in shown.points]
    positions += [(line.label, line.points_mm) for line in shown.lines]
    for label, position in positions:
        if not np.isfinite(position).all():
            raise ValueError(
                f"{label} has a position that is not finite; look for it in the patient model or"
                " the features"
            )


def _shown(
    patient: PatientModel,
    features: Mapping[str, Features],
    errors: Mapping[str, Mapping[str, Any]],
) -> _Shown:
    points: list[_Point] = []
    lines: list[_Line] = []
    for vertebra in patient.vertebrae:
        name = vertebra.name
        points += _points(vertebra, features.get(name), errors.get(name))
        lines += _rims(name, {"superior": vertebra.superior, "inferior": vertebra.inferior})
        lines += [
            _Line(name, f"pedicle_axis_{side}", axis, False)
            for side, axis in vertebra.pedicles.items()
        ]
    if patient.sacrum is not None:
        points += _sacral(patient.sacrum, errors.get("S1"))
        lines += _rims("S1", {"superior": patient.sacrum.superior})
    if (heads := heads_of(patient)) is not None:
        points += [
            _Point("hips", f"femoral_head_{side}", centre, None)
            for side, centre in zip(("left", "right"), heads, strict=True)
        ]
    return _Shown(points, lines)


def _points(
    vertebra: Vertebra, own: Features | None, errors: Mapping[str, Any] | None
) -> list[_Point]:
    """Endplate centres, the vertebra's own landmarks and those of its features, in this order;
    the first of a name counts."""
    where: dict[str, np.ndarray] = {
        "superior": vertebra.superior.centre_mm,
        "inferior": vertebra.inferior.centre_mm,
    }
    where |= vertebra.landmarks
    for side, axis in vertebra.pedicles.items():
        where |= {f"pedicle_entry_{side}": axis[0], f"pedicle_target_{side}": axis[1]}
    if own is not None:
        where = _feature_points(own) | where
    return _with_errors(vertebra.name, where, errors)


def _feature_points(own: Features) -> dict[str, np.ndarray]:
    points = dict(own.points)
    for side, plate in (("superior", own.superior), ("inferior", own.inferior)):
        if plate is not None:
            points[f"{side}_concavity"] = plate.concavity_place_mm
    for name, facet in own.facets.items():
        which, side = name.split("_")[:2]
        points[f"{which}_facet_{side}"] = facet.centre_mm
    for side, pedicle in own.pedicles.items():
        points[f"pedicle_narrowest_{side}"] = pedicle.isthmus_mm
    if own.canal is not None:
        points["canal_centre"] = own.canal.centre_mm
    return points


def _sacral(sacrum: Sacrum, errors: Mapping[str, Any] | None) -> list[_Point]:
    return _with_errors("S1", {"superior": sacrum.superior.centre_mm} | sacrum.landmarks, errors)


def _with_errors(
    level: str, where: Mapping[str, np.ndarray], errors: Mapping[str, Any] | None
) -> list[_Point]:
    points = []
    for name in sorted(where):
        spread = None
        if errors is not None:
            spread = (
                errors[name]["centre_mm"]
                if name in ("superior", "inferior")
                else errors["landmarks"].get(name)
            )
        error = None if spread is None else float(np.linalg.norm(spread))
        points.append(_Point(level, name, np.asarray(where[name], float), error))
    return points


def _rims(level: str, plates: Mapping[str, Endplate]) -> list[_Line]:
    return [
        _Line(level, f"{side}_endplate_rim", plate.rim_mm, True) for side, plate in plates.items()
    ]


# -- 3D Slicer -------------------------------------------------------------------------------------
def _fiducials(level: str, points: list[_Point], colour: Colour) -> dict[str, Any]:
    own = [
        ControlPoint(point.label, point.description, point.position_mm)
        for point in points
        if point.level == level
    ]
    return markup("Fiducial", f"{level} landmarks", own, colour, labels=True)


def _axis_markup(line: _Line, points: list[_Point], colour: Colour) -> dict[str, Any]:
    side = line.name.rsplit("_", 1)[1]
    known = {point.name: point for point in points if point.level == line.level}
    ends = []
    for end, position in zip(("entry", "target"), line.points_mm, strict=True):
        point = known[f"pedicle_{end}_{side}"]
        ends.append(ControlPoint(point.label, point.description, position))
    return markup("Line", line.label, ends, colour)


def _rim_markup(line: _Line, colour: Colour) -> dict[str, Any]:
    corners = [
        ControlPoint(f"{line.label} {k}", "", point) for k, point in enumerate(line.points_mm, 1)
    ]
    return markup("ClosedCurve", line.label, corners, colour)


def _write_markups(path: Path, markups: list[dict[str, Any]]) -> Path:
    return _write_json(path, {"@schema": MARKUPS_SCHEMA, "markups": markups})


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(
        json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    return path


# -- ParaView --------------------------------------------------------------------------------------


def _write_points(path: Path, points: list[_Point]) -> Path:
    mesh = pv.PolyData(np.array([p.position_mm for p in points]))
    mesh.point_data["standard_error_mm"] = np.array(
        [np.nan if p.standard_error_mm is None else p.standard_error_mm for p in points]
    )
    for key in ("name", "level", "label"):
        mesh.point_data[key] = np.array([getattr(p, key) for p in points])
    mesh.save(path)
    return path


def _write_lines(path: Path, lines: list[_Line]) -> Path:
    cells, start = [], 0
    for line in lines:
        index = start + np.arange(len(line.points_mm))
        index = np.append(index, start) if line.closed else index
        cells += [len(index), *index.tolist()]
        start += len(line.points_mm)
    mesh = pv.PolyData(np.concatenate([line.points_mm for line in lines]), lines=np.array(cells))
    for key in ("name", "level", "label"):
        mesh.cell_data[key] = np.array([getattr(line, key) for line in lines])
    mesh.save(path)
    return path
