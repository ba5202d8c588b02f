"""Landmarks, axes and rims for other programs: 3D Slicer markups, ParaView files and plain JSON,
all LPS mm.

Files
    landmarks.mrk.json       one Fiducial list per level, hips  }  Slicer Markups, schema v1.0.3
    pedicle_axes.mrk.json    one Line per pedicle, entry first   }  (Slicer reads every markup of a
                                                                    file)
    endplate_rims.mrk.json   one ClosedCurve per endplate        }
    landmarks.vtp            all points: name, level, label, standard_error_mm (NaN where unknown)
    rims_and_axes.vtp        rims and axes as polylines, cell arrays name, level
    landmarks.json           points, axes, rims, features and what is missing, with reasons

The standard error of a point is the root mean square distance that it moves: √(σ_x² + σ_y² + σ_z²).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyvista as pv

from engine.patient.anatomy.features import Features
from engine.patient.anatomy.hips import heads_of
from engine.types import Endplate, PatientModel, Sacrum, Vertebra

#: Slicer looks for this very identifier; it need not resolve.
MARKUPS_SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
SCHEMA = 1
_COLOURS = (
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


@dataclass(frozen=True)
class _Line:
    level: str
    name: str
    points_mm: np.ndarray
    closed: bool

    @property
    def label(self) -> str:
        return f"{self.level} {self.name.replace('_', ' ')}"


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
    levels = [v.name for v in patient.vertebrae] + ([] if patient.sacrum is None else ["S1"])
    for what, given in (("features", features), ("errors", errors or {})):
        if unknown := sorted(set(given) - set(levels)):
            raise ValueError(
                f"{what} of {', '.join(unknown)} were given, which {patient.name} does not have; it"
                f" has {', '.join(levels)}"
            )
    points: list[_Point] = []
    lines: list[_Line] = []
    for vertebra in patient.vertebrae:
        points += _points(vertebra, features.get(vertebra.name), (errors or {}).get(vertebra.name))
        lines += _rims(
            vertebra.name, {"superior": vertebra.superior, "inferior": vertebra.inferior}
        )
        lines += [
            _Line(vertebra.name, f"pedicle_axis_{side}", axis, False)
            for side, axis in vertebra.pedicles.items()
        ]
    if patient.sacrum is not None:
        points += _sacral(patient.sacrum, (errors or {}).get("S1"))
        lines += _rims("S1", {"superior": patient.sacrum.superior})
    if (heads := heads_of(patient)) is not None:
        points += [
            _Point("hips", f"femoral_head_{side}", centre, None)
            for side, centre in zip(("left", "right"), heads, strict=True)
        ]
        levels.append("hips")
    positions = [(p.label, p.position_mm) for p in points] + [
        (line.label, line.points_mm) for line in lines
    ]
    for label, position in positions:
        if not np.isfinite(position).all():
            raise ValueError(
                f"{label} has a position that is not finite; look for it in the patient model or"
                " the features"
            )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    colour = {level: _COLOURS[k % len(_COLOURS)] for k, level in enumerate(levels)}
    axes, rims = (
        [line for line in lines if not line.closed],
        [line for line in lines if line.closed],
    )
    fiducials = []
    for level in levels:
        own = [(p.label, p.description, p.position_mm) for p in points if p.level == level]
        fiducials.append(_markup("Fiducial", f"{level} landmarks", own, colour[level]))
    paths = [
        _write_markups(target / "landmarks.mrk.json", fiducials),
        _write_markups(
            target / "pedicle_axes.mrk.json",
            [_axis_markup(line, points, colour[line.level]) for line in axes],
        ),
        _write_markups(
            target / "endplate_rims.mrk.json",
            [_rim_markup(line, colour[line.level]) for line in rims],
        ),
        _write_points(target / "landmarks.vtp", points),
        _write_lines(target / "rims_and_axes.vtp", lines),
        target / "landmarks.json",
    ]
    plain = {
        "schema": SCHEMA,
        "frame": "LPS",
        "unit": "mm",
        "patient": patient.name,
        "points": [
            {
                "level": p.level,
                "name": p.name,
                "label": p.label,
                "position_mm": p.position_mm.tolist(),
                "standard_error_mm": p.standard_error_mm,
            }
            for p in points
        ],
        "axes": [
            {"level": line.level, "name": line.name, "points_mm": line.points_mm.tolist()}
            for line in axes
        ],
        "rims": [
            {"level": line.level, "name": line.name, "points_mm": line.points_mm.tolist()}
            for line in rims
        ],
        "features": {level: found.as_dict() for level, found in features.items()},
        "standard_errors": {level: dict(of) for level, of in (errors or {}).items()},
    }
    paths[-1].write_text(
        json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    return paths


def _points(
    vertebra: Vertebra, found: Features | None, errors: Mapping[str, Any] | None
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
    if found is not None:
        more = dict(found.points)
        for side in ("superior", "inferior"):
            shape = getattr(found, side)
            if shape is not None:
                more[f"{side}_concavity"] = shape.concavity_place_mm
        more |= {
            f"{name.split('_')[0]}_facet_{name.split('_')[1]}": facet.centre_mm
            for name, facet in found.facets.items()
        }
        more |= {
            f"pedicle_narrowest_{side}": pedicle.isthmus_mm
            for side, pedicle in found.pedicles.items()
        }
        if found.canal is not None:
            more["canal_centre"] = found.canal.centre_mm
        where = more | where
    return _with_errors(vertebra.name, where, errors)


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


def _markup(
    kind: str,
    name: str,
    points: list[tuple[str, str, np.ndarray]],
    colour: tuple[float, float, float],
    labels: bool = True,
) -> dict[str, Any]:
    """One markup by the schema: every key that its own writer gives to a control point, but no
    orientation."""
    return {
        "type": kind,
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "fixedNumberOfControlPoints": True,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(points),
        "controlPoints": [
            {
                "id": str(k + 1),
                "label": label,
                "description": description,
                "position": [float(x) for x in position],
                "selected": True,
                "locked": True,
                "visibility": True,
                "positionStatus": "defined",
            }
            for k, (label, description, position) in enumerate(points)
        ],
        "display": {
            "visibility": True,
            "color": list(colour),
            "selectedColor": list(colour),
            "pointLabelsVisibility": labels,
            "propertiesLabelVisibility": not labels,
            "textScale": 2.0,
            "glyphScale": 1.0,
        },
    }


def _axis_markup(
    line: _Line, points: list[_Point], colour: tuple[float, float, float]
) -> dict[str, Any]:
    side = line.name.rsplit("_", 1)[1]
    known = {p.name: p for p in points if p.level == line.level}
    ends = []
    for end, position in zip(("entry", "target"), line.points_mm, strict=True):
        point = known[f"pedicle_{end}_{side}"]
        ends.append((point.label, point.description, position))
    return _markup("Line", line.label, ends, colour, labels=False)


def _rim_markup(line: _Line, colour: tuple[float, float, float]) -> dict[str, Any]:
    corners = [(f"{line.label} {k + 1}", "", point) for k, point in enumerate(line.points_mm)]
    return _markup("ClosedCurve", line.label, corners, colour, labels=False)


def _write_markups(path: Path, markups: list[dict[str, Any]]) -> Path:
    content = {"@schema": MARKUPS_SCHEMA, "markups": markups}
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
