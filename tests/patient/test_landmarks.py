"""What is written reads back as the model: by the Slicer schema, by VTK and as plain JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvista as pv

from engine.patient.anatomy.features import Features, features
from engine.patient.report.landmarks import write_landmarks
from engine.types import PatientModel, Sacrum

# Enumerations and types of Slicer's markups-schema-v1.0.3.json (Slicer/Slicer,
# Modules/Loadable/Markups/Resources/Schema).
_MARKUP = {
    "type": str,
    "name": str,
    "coordinateSystem": str,
    "coordinateUnits": str,
    "locked": bool,
    "fixedNumberOfControlPoints": bool,
    "labelFormat": str,
    "lastUsedControlPointNumber": int,
    "controlPoints": list,
    "display": dict,
}
_CONTROL_POINT = {
    "id": str,
    "label": str,
    "description": str,
    "position": list,
    "selected": bool,
    "locked": bool,
    "visibility": bool,
    "positionStatus": str,
}


def _markups(path: Path) -> dict[str, dict[str, Any]]:
    """Markups by name, each checked against the schema."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["@schema"].endswith("/markups-schema-v1.0.3.json#")
    for markup in content["markups"]:
        assert {key: type(value) for key, value in markup.items()} == _MARKUP
        assert markup["type"] in "Fiducial Line Angle Curve ClosedCurve Plane ROI".split()
        assert markup["coordinateSystem"] == "LPS" and markup["coordinateUnits"] == "mm"
        for point in markup["controlPoints"]:
            assert {key: type(value) for key, value in point.items()} == _CONTROL_POINT
            assert point["positionStatus"] == "defined"
            assert len(point["position"]) == 3 and all(type(x) is float for x in point["position"])
        for key in ("color", "selectedColor"):
            assert len(markup["display"][key]) == 3 and all(
                0.0 <= x <= 1.0 for x in markup["display"][key]
            )
    return {markup["name"]: markup for markup in content["markups"]}


@pytest.fixture(scope="module")
def patient(skewed: PatientModel) -> PatientModel:
    base = skewed.vertebrae[1]
    plate = replace(base.inferior, normal=-base.inferior.normal)
    return replace(
        skewed, sacrum=Sacrum(base.surface, plate, {"promontory": plate.centre_mm + 1.0})
    )


@pytest.fixture(scope="module")
def shapes(patient: PatientModel) -> dict[str, Features]:
    upper, lower = patient.vertebrae
    return {"L4": features(upper, below=lower), "L5": features(lower, above=upper)}


@pytest.fixture(scope="module")
def folder(
    patient: PatientModel, shapes: dict[str, Features], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    plate = {
        "centre_mm": [0.1, 0.2, 0.2],
        "sagittal_deg": 0.3,
        "coronal_deg": 0.2,
    }  # √(0.01 + 0.04 + 0.04) = 0.3
    spread = {"pedicle_entry_left": [0.0, 0.0, 0.4]}
    errors = {
        "L4": {
            "superior": plate,
            "inferior": plate,
            "axial_deg": 0.1,
            "landmarks": spread,
            "draws": 20,
        }
    }
    target = tmp_path_factory.mktemp("landmarks")
    written = write_landmarks(patient, shapes, errors, target)
    assert all(path.is_file() for path in written) and len(written) == 6
    return target


def test_slicer_fiducials(folder: Path, patient: PatientModel, shapes: dict[str, Features]) -> None:
    lists = _markups(folder / "landmarks.mrk.json")
    assert list(lists) == ["L4 landmarks", "L5 landmarks", "S1 landmarks"]
    points = {p["label"]: p for markup in lists.values() for p in markup["controlPoints"]}
    assert sum(len(markup["controlPoints"]) for markup in lists.values()) == len(
        points
    )  # no label twice
    upper, lower = patient.vertebrae
    for label, exact in {
        "L4 superior endplate centre": upper.superior.centre_mm,
        "L5 inferior endplate centre": lower.inferior.centre_mm,
        "L5 spinous tip": lower.landmarks["spinous_tip"],
        "L4 transverse right": shapes["L4"].points["transverse_right"],
        "L4 inferior facet left": shapes["L4"].facets["inferior_left"].centre_mm,
        "L5 pedicle entry right": lower.pedicles["right"][0],
        "S1 promontory": patient.sacrum.landmarks["promontory"] if patient.sacrum else None,
    }.items():
        assert points[label]["position"] == list(exact), (
            label
        )  # JSON prints floats so that they read back exactly
    assert points["L4 superior endplate centre"]["description"] == "± 0.3 mm"
    assert points["L5 superior endplate centre"]["description"] == ""


def test_slicer_lines_and_curves(folder: Path, patient: PatientModel) -> None:
    axes, rims = (
        _markups(folder / "pedicle_axes.mrk.json"),
        _markups(folder / "endplate_rims.mrk.json"),
    )
    assert {m["type"] for m in axes.values()} == {"Line"} and {
        m["type"] for m in rims.values()
    } == {"ClosedCurve"}
    assert len(axes) == 4 and len(rims) == 5
    for body in patient.vertebrae:
        for side, axis in body.pedicles.items():
            ends = axes[f"{body.name} pedicle axis {side}"]["controlPoints"]
            assert [p["position"] for p in ends] == axis.tolist()
        for side in ("superior", "inferior"):
            rim = rims[f"{body.name} {side} endplate rim"]["controlPoints"]
            assert [p["position"] for p in rim] == getattr(body, side).rim_mm.tolist()
    assert axes["L4 pedicle axis left"]["controlPoints"][0]["description"] == "± 0.4 mm"


def test_paraview_files(folder: Path, patient: PatientModel) -> None:
    points = pv.read(folder / "landmarks.vtp")
    names, levels = list(points.point_data["name"]), list(points.point_data["level"])
    k = next(
        i for i, pair in enumerate(zip(levels, names, strict=True)) if pair == ("L4", "superior")
    )
    assert np.allclose(points.points[k], patient.vertebrae[0].superior.centre_mm, atol=1e-4)
    assert points.point_data["standard_error_mm"][k] == pytest.approx(0.3)
    assert np.isnan(points.point_data["standard_error_mm"][levels.index("L5")])
    lines = pv.read(folder / "rims_and_axes.vtp")
    assert lines.n_cells == 4 + 5
    labels = list(lines.cell_data["label"])
    rim = lines.get_cell(labels.index("L5 superior endplate rim"))
    assert rim.point_ids[0] == rim.point_ids[-1] and rim.n_points == 73
    assert np.allclose(rim.points[:-1], patient.vertebrae[1].superior.rim_mm, atol=1e-4)


def test_plain_json(folder: Path, shapes: dict[str, Features]) -> None:
    plain = json.loads((folder / "landmarks.json").read_text(encoding="utf-8"))
    assert plain["frame"] == "LPS" and plain["unit"] == "mm"
    assert (
        plain["features"]["L5"]["pedicles"]["left"]["width_mm"]
        == shapes["L5"].pedicles["left"].width_mm
    )
    assert "needs the vertebra below" in plain["features"]["L5"]["missing"]["facets.inferior_left"]
    entry = next(p for p in plain["points"] if p["level"] == "L4" and p["name"] == "inferior")
    assert entry["standard_error_mm"] == pytest.approx(0.3)


def test_without_features_or_errors_and_with_wrong_ones(
    patient: PatientModel, shapes: dict[str, Features], tmp_path: Path
) -> None:
    write_landmarks(replace(patient, sacrum=None), {}, None, tmp_path)
    lists = _markups(tmp_path / "landmarks.mrk.json")
    assert list(lists) == ["L4 landmarks", "L5 landmarks"]
    assert {p["description"] for m in lists.values() for p in m["controlPoints"]} == {""}
    with pytest.raises(ValueError, match="features of T3 were given"):
        write_landmarks(patient, {"T3": shapes["L4"]}, None, tmp_path)
    bad = replace(patient.vertebrae[0], landmarks={"spinous_tip": np.array([0.0, np.nan, 0.0])})
    with pytest.raises(ValueError, match="L4 spinous tip has a position that is not finite"):
        write_landmarks(replace(patient, vertebrae=(bad, patient.vertebrae[1])), {}, None, tmp_path)
