"""The sensitivity study moves what it says, keeps what it has, and its summary says where the
order of the arms is another."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from engine import artifacts
from engine.types import Design, SolverStatus, Surface, VoxelField, rigid
from fem.mesh.build import MeshSettings
from fem.solve import FemSettings
from fem.verify import failed_check
from scripts.evidence import ranking, sensitivity
from scripts.evidence.variations import ARMS, NOMINAL, Variation, moved, moved_field
from scripts.run import check, credibility, parts


def linear(slope, spacing_mm=1.0):
    empty = VoxelField(np.zeros((12, 10, 8)), np.array([-5.0, -4.0, 2.0]), spacing_mm)
    return replace(empty, values=empty.points() @ np.asarray(slope) + 0.5)


def test_a_moved_field_has_the_old_value_at_the_moved_point():
    field = linear((1.0, -2.0, 0.5))  # linear: interpolation is exact
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([3.0, -2.0, 8.0], degrees=True).as_matrix()
    turn[:3, 3] = [0.3, -0.7, 1.1]
    found = moved_field(field, turn)
    inside = field.points()[2:-2, 2:-2, 2:-2].reshape(-1, 3)
    assert np.allclose(found.sample(rigid(turn, inside)), field.sample(inside), atol=1e-9)
    shift = np.eye(4)
    shift[:3, 3] = [0.25, 0.0, -1.0]
    shifted = moved_field(field, shift)
    assert shifted.values is field.values and np.allclose(
        shifted.origin_mm - field.origin_mm, [0.25, 0.0, -1.0]
    )


def test_surface_and_fields_of_a_device_move_together_about_its_middle():
    box = np.array([[x, y, z] for x in (4.0, 16.0) for y in (0.0, 6.0) for z in (1.0, 9.0)])
    field = linear((1.0, 1.0, 1.0))
    design = Design("optimised", "box", "ti6al4v", field, None, field)
    variation = Variation("both", "position", shift_mm=(1.0, 0.0, 0.0), turn_deg=(0.0, 0.0, 90.0))
    found, surface = moved(design, Surface(box, np.zeros((0, 3), int)), variation.motion())
    assert np.allclose(
        0.5 * (surface.points_mm.min(0) + surface.points_mm.max(0)), [11.0, 3.0, 5.0]
    )
    assert np.allclose(
        np.ptp(surface.points_mm, axis=0), [6.0, 12.0, 8.0]
    )  # turned by 90°: length and width change places
    assert found.window is None and found.implant is not None and found.relative_density is not None
    point = np.array(
        [[6.0, 2.0, 4.0]]
    )  # relative to the middle (−4, −1, −1) → (1, −4, −1), and 1 mm on
    assert found.implant.sample(np.array([[12.0, -1.0, 4.0]])) == pytest.approx(field.sample(point))
    assert np.array_equal(found.relative_density.values, found.implant.values)


def row(arm, variation, cost, window=400.0, status="ok"):
    measures = {
        "yielded_bone": (cost, "lower"),
        "graft_volume": (window, "higher"),
        "implant_volume": (cost, "neither"),
    }
    shown = {
        k: {"value": v, "unit": "mm³", "better": b, "description": ""}
        for k, (v, b) in measures.items()
    }
    return {
        "arm": arm,
        "variation": variation,
        "status": status,
        "text": "" if status == "ok" else "no mesh",
        "tetrahedra": 9,
        "seconds": 2.0,
        "measures": shown if status == "ok" else {},
    }


VARIED = (
    Variation(NOMINAL, NOMINAL),
    Variation("loads", "loads", load_factor=1.2),
    Variation("left", "position", shift_mm=(1, 0, 0)),
    Variation("mesh", "mesh", lattice=0.97),
    Variation("bone", "bone", bone_factor=0.7),
)


@pytest.fixture
def record():
    values = {
        NOMINAL: (100.0, 80.0, 50.0),
        "loads": (200.0, 190.0, 60.0),
        "left": (90.0, 95.0, 85.0),
        "mesh": (101.0, 79.0, 52.0),
        "bone": (60.0, 70.0, None),
    }
    rows = [
        row(arm, name, v, window=400.0 + i, status="ok" if v is not None else "failed")
        for name, three in values.items()
        for i, (arm, v) in enumerate(zip(ARMS, three, strict=True))
    ]
    return ranking.summary(rows, VARIED)


def test_changes_are_from_nominal_and_an_arm_without_result_has_no_number(record):
    at = {(r["arm"], r["variation"]): r for r in record["rows"]}
    assert at["stock", "loads"]["change_percent"]["yielded_bone"] == pytest.approx(100.0)
    assert at["optimised", "left"]["change_percent"]["yielded_bone"] == pytest.approx(70.0)
    failed = at["optimised", "bone"]
    assert failed["status"] == {"code": "failed", "text": "no mesh"} and set(
        failed["value"].values()
    ) == {None}
    assert record["seconds"] == pytest.approx(30.0)


def test_the_ranking_says_where_the_order_is_another(record):
    ranking = {r["measure"]: r for r in record["ranking"]}
    assert set(ranking) == {
        "yielded_bone",
        "graft_volume",
    }  # a measure without direction is not ranked
    bone = ranking["yielded_bone"]
    assert bone["nominal"] == ["optimised", "conforming", "stock"] and bone[
        "gap_percent"
    ] == pytest.approx([60.0, 25.0])
    assert (bone["rows"], bone["failed"], bone["first_failed"], bone["incomplete"]) == (
        3,
        ["left"],
        [],
        ["bone"],
    )
    assert bone["alone_failed"] == ["left"]  # 85 against the 80 of a conforming cage in its place
    assert bone["mesh_percent"] == pytest.approx(4.0)
    assert ranking["graft_volume"]["nominal"] == [
        "optimised",
        "conforming",
        "stock",
    ]  # higher is better


def test_a_retried_mesh_and_a_gap_below_the_mesh_are_said():
    values = {
        NOMINAL: (100.0, 99.0, 50.0),
        "left": (100.0, 99.0, 40.0),
        "mesh": (103.0, 99.0, 50.0),
    }
    rows = [
        row(arm, name, cost)
        for name, costs in values.items()
        for arm, cost in zip(ARMS, costs, strict=True)
    ]
    rows[5]["tetrahedra"] = 14
    found = ranking.summary(rows, VARIED[:1] + VARIED[2:4])
    assert len(found["notes"]) == 1 and found["notes"][0].startswith(
        "optimised, left: 14 tetrahedra where the nominal mesh has 9"
    )
    text = ranking.markdown(found)
    assert (
        "optimised, conforming (98.0 %), stock (1.0 %, below the mesh's)" in text
        and "- optimised, left: 14 tetra" in text
    )


def test_tables_and_picture_show_what_failed(record, tmp_path):
    text = ranking.markdown(record)
    assert (
        "2 of 3" in text
        and "left (best arm the same)" in text
        and "optimised, bone: no result: no mesh" in text
    )
    assert "+100.0 / +137.5 / +20.0" in text
    assert "optimised, conforming (60.0 %), stock (25.0 %)" in text
    picture = ranking.draw(record, tmp_path / "picture.png")
    assert picture is not None and picture.stat().st_size > 5000


@pytest.fixture
def study(monkeypatch, tmp_path):
    """A designed run whose solves are counted and whose measure is 10 × the bone's factor + the
    shift to the left."""
    design = Design("any", "box", "ti6al4v", linear((1.0, 0.0, 0.0)), None, None)
    surface = Surface(
        np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), np.zeros((0, 3), int)
    )
    opened = SimpleNamespace(
        config=SimpleNamespace(identity=lambda: "run"),
        segment=(),
        mesh=MeshSettings(),
        fem=FemSettings(),
        crop_mm=np.zeros((2, 3)),
        families=dict.fromkeys((*ARMS, "intact")),
        study=SimpleNamespace(boundary_of=lambda family: None),
    )
    solved = []

    def alone(segment, design, surface, boundary, crop_mm, mesh, fem, folder):
        if len(solved) == study.stop_at:
            raise KeyboardInterrupt
        solved.append((folder.name, fem.bone_factor, mesh.background_mm))
        found = failed_check("")
        if design.arm == "intact":
            return found
        return replace(
            found,
            status=SolverStatus("ok", ""),
            response=(10.0 * fem.bone_factor, surface.points_mm[:, 0].mean()),
        )

    def load(folder):
        return (
            (Design("intact", "none", "", None, None, None), None)
            if folder.name == "intact"
            else (design, surface)
        )

    monkeypatch.setattr(sensitivity, "open_designed", lambda run, fem: opened)
    monkeypatch.setattr(sensitivity, "require_designs", lambda run, arms: None)
    monkeypatch.setattr(check, "check_in_process", alone)
    monkeypatch.setattr(parts, "load_design", load)
    monkeypatch.setattr(sensitivity, "rescaled", lambda response, factor: factor * sum(response))
    monkeypatch.setattr(
        sensitivity,
        "measures_of",
        lambda study, arm, response: {
            "yielded_bone": {"value": response, "unit": "mm³", "better": "lower", "description": ""}
        },
    )
    study = SimpleNamespace(
        solved=solved,
        stop_at=None,
        run=lambda: sensitivity.vary(tmp_path / "run", tmp_path / "out", 1, VARIED),
    )
    return study


def test_an_interrupted_study_goes_on_and_solves_nothing_twice(study):
    study.stop_at = 6
    with pytest.raises(KeyboardInterrupt):
        study.run()
    study.stop_at = None
    first = [s for s in study.solved if not s[0].startswith("intact")]
    record = study.run()
    arms = [s for s in study.solved if not s[0].startswith("intact")]
    assert (
        len(first) == 5 and len(arms) == len(set(arms)) == 3 * 4
    )  # loads are rescaled, not solved
    before = len(study.solved)
    assert study.run() == record and len(study.solved) == before  # all of it is on record
    change = {
        r["variation"]: r["change_percent"]["yielded_bone"]
        for r in record["rows"]
        if r["arm"] == "stock"
    }
    assert change["loads"] == pytest.approx(20.0) and change["bone"] == pytest.approx(
        -100.0 * 3.0 / 10.25
    )
    assert change["left"] == pytest.approx(100.0 * 1.0 / 10.25) and change["mesh"] == pytest.approx(
        0.0
    )
    assert {s[2] for s in study.solved} == {
        MeshSettings().background_mm,
        0.97 * MeshSettings().background_mm,
    }


def test_studies_are_kept_with_what_made_them(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    artifacts.write_json(run / "meta.json", {"identity": "abc"})
    head = credibility.signed("python scripts/validation.py code", 3.0)
    credibility.keep("code", [1], "| a |", ["far off"], out, head, None)
    credibility.keep("contact", [2], "| b |", [], out, head, None)
    index = artifacts.read_json(out / "studies.json")
    assert (
        set(index) == {"code", "contact"}
        and index["code"]["missed"] == ["far off"]
        and index["contact"]["text"] == "| b |"
    )
    assert (
        index["code"]["created"]
        and "spinefit" in index["code"]["version"]
        and artifacts.read_json(out / "code.json") == [1]
    )
    credibility.keep("sensitivity", {"rows": [], "seconds": 99.0}, "", [], out, head, run)
    held = artifacts.read_json(run / "sensitivity.json")
    assert held == artifacts.read_json(out / "sensitivity.json") and held["run"] == "abc"
    assert held["seconds"] == 99.0  # a resumed study gives the seconds of all its rows
    assert set(artifacts.read_json(out / "studies.json")) == {
        "code",
        "contact",
    }  # a run's study is not evidence for other runs
