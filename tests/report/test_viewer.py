"""The 3-D section: what is packed comes out again, and the page works in a browser, offline,
from a file."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import zlib
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import pyvista as pv
from markupsafe import Markup

from engine.page import render
from engine.types import REGIONS
from fem import fields
from fem.report import colours
from fem.report import scene as scenes
from fem.report.result import validate
from tests.report.example import example

LOADS = ("standing", "flexion")


def solution(path: Path, shift: float = 0.0, loads=LOADS) -> pv.UnstructuredGrid:
    """A block of tetrahedra: caudal bone below, an implant with graft in the middle layer,
    cranial bone above."""
    block = pv.ImageData(
        dimensions=(5, 5, 7), spacing=(5.0, 5.0, 5.0), origin=(-10.0 + shift, -10.0, -15.0)
    ).to_tetrahedra(5)
    z, x = block.cell_centers().points[:, 2], block.cell_centers().points[:, 0] - shift
    region = np.where(z < -5, 0, np.where(z > 5, 1, np.where(np.abs(x) < 5, 3, 2)))
    grid = pv.UnstructuredGrid({pv.CellType.TETRA: block.cells.reshape(-1, 5)[:, 1:]}, block.points)
    grid.cell_data["region"] = region.astype(np.int32)
    for k, load in enumerate(loads):
        grid.cell_data[f"{load}_strain_min"] = (-0.001 * (k + 1) * (z + 15.0)).astype(np.float32)
        grid.cell_data[f"{load}_von_mises_mpa"] = (10.0 * (k + 1) + x).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(str(path))
    return grid


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for n, arm in enumerate(("stock", "optimised")):
        solution(folder / "fem" / arm / "solution.vtu", 1.0 * n)
    return folder


@pytest.fixture(scope="module")
def result():
    return validate(example())


def test_only_arms_with_a_solution_are_offered_the_optimised_first(run, result):
    assert scenes.available(run, result) == ["optimised", "stock"]


def test_what_is_packed_comes_out_again_within_a_step(run):
    data = scenes.scene(run, ["stock"])
    arm, grid = data["arms"][0], pv.read(run / "fem" / "stock" / "solution.vtu")
    raw, n, m = zlib.decompress(base64.b64decode(arm["data"])), arm["nodes"], arm["tets"]
    at = 6 * n + -6 * n % 4
    points = np.frombuffer(raw[: 6 * n], "<u2").reshape(-1, 3) * arm["step_mm"] + arm["low_mm"]
    assert np.abs(points - grid.points).max() <= 0.5 * max(arm["step_mm"]) + 1e-5
    assert np.array_equal(
        np.frombuffer(raw[at : at + 16 * m], "<u4").reshape(-1, 4), grid.cells.reshape(-1, 5)[:, 1:]
    )
    region = np.frombuffer(raw[at + 16 * m : at + 17 * m], np.uint8)
    assert np.array_equal(region, grid.cell_data["region"])
    for k, load in enumerate(LOADS):
        value = np.frombuffer(raw[at + (17 + k) * m : at + (18 + k) * m], np.uint8) / 255.0
        metal = region == REGIONS.index("implant")
        strain = np.clip(-100 * grid.cell_data[f"{load}_strain_min"], 0, data["strain_percent"])
        assert (
            np.abs(value[~metal] * data["strain_percent"] - strain[~metal]).max()
            <= data["strain_percent"] / 500
        )
        stress = np.clip(grid.cell_data[f"{load}_von_mises_mpa"], 0, data["stress_mpa"])
        assert (
            np.abs(value[metal] * data["stress_mpa"] - stress[metal]).max()
            <= data["stress_mpa"] / 500
        )
    assert len(raw) == at + (17 + len(LOADS)) * m


def test_the_viewer_and_the_cuts_share_one_scale_from_light_to_dark_with_yield_in_its_middle(run):
    data = scenes.scene(run, ["stock"])
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in data["colours"]]) / 255.0
    assert np.abs(rgb - colours.strain_table()).max() <= 0.5 / 255.0 + 1e-9
    lightness = rgb @ [0.2126, 0.7152, 0.0722]
    assert len(rgb) == 256 and (np.diff(lightness[::8]) < 0).all()
    assert lightness[0] > 0.9 and lightness[-1] < 0.1, (
        "no strain is light, far beyond yield is dark"
    )
    assert data["strain_percent"] == colours.MOST_PERCENT == 2.0 * data["yield_percent"]
    assert tuple(colours.PLAIN) == REGIONS, "fem/report/render.py counts on the order"
    for region in (
        "implant",
        "graft",
        "remnant",
    ):  # grey: no colour of the scale, which bone alone has
        plain = np.array([int(data["plain"][region][i : i + 2], 16) for i in (1, 3, 5)])
        assert np.ptp(plain) <= 16


def test_solutions_with_colons_in_their_names_are_still_read(run, tmp_path):
    grid = pv.read(run / "fem" / "stock" / "solution.vtu")
    for name in list(grid.cell_data.keys()):
        for quantity in ("strain_min", "von_mises_mpa"):
            if name.endswith(f"_{quantity}"):
                grid.cell_data[name.replace(f"_{quantity}", f":{quantity}")] = grid.cell_data.pop(
                    name
                )
    path = tmp_path / "fem" / "stock" / "solution.vtu"
    path.parent.mkdir(parents=True)
    grid.save(str(path))
    old, new = (scenes.scene(folder, ["stock"]) for folder in (tmp_path, run))
    assert old["loads"] == new["loads"] == list(LOADS) and old["arms"] == new["arms"]


def test_no_array_of_a_solution_has_a_colon_in_its_name():
    assert fields.array_name("left_bending", "strain_min") == "left_bending_strain_min"
    assert fields.loads_of(
        ["left_bending_strain_min", "region", "flexion:strain_min"], "strain_min"
    ) == ["left_bending", "flexion"]
    with pytest.raises(ValueError, match="no array 'a_b'; there is c"):
        fields.stored_name(["c"], "a", "b")


def test_the_vertebrae_have_their_names_where_the_segment_has_them(run, result):
    assert '"cranial": "cranial"' in scenes.viewer_section(run, result).script
    named = result.model_copy(update={"asked": {"segment": "L4-L5"}})
    viewer = scenes.viewer_section(run, named)
    assert '"cranial": "L4"' in viewer.script and '"caudal": "L5"' in viewer.script
    assert 'value="caudal" checked> L5</label>' in viewer.section
    assert 'value="remnant"> disc</label>' in viewer.section


def test_a_run_without_solutions_and_one_with_foreign_ones_say_so(tmp_path, run, result):
    viewer = scenes.viewer_section(tmp_path, result)
    assert "keep.solutions" in viewer.section and not viewer.script
    shutil.copytree(run / "fem", tmp_path / "fem")
    solution(tmp_path / "fem" / "stock" / "solution.vtu", loads=("standing",))
    viewer = scenes.viewer_section(tmp_path, result)
    assert "different load cases" in viewer.section and not viewer.script


def viewer_page(viewer, folder, checks=""):
    """A page with the viewer and a section after it."""
    html = render(
        "viewer_page.html.j2",
        Path(__file__).parent / "templates",
        title="A page",
        created="today",
        warnings=[],
        viewer=viewer,
        checks=checks,
    )
    page = folder / "page.html"
    page.write_text(html)
    return page


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_the_page_works_in_a_browser_from_a_file(run, result, tmp_path):
    checks = Markup((Path(__file__).parent / "viewer_checks.js").read_text())
    page = viewer_page(scenes.viewer_section(run, result), tmp_path, checks)
    line = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--window-size=1000,900",
        "--virtual-time-budget=30000",
        "--enable-logging=stderr",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=180)
    assert "Uncaught" not in done.stderr, done.stderr[-2000:]
    assert 'data-viewer="ready"' in done.stdout, done.stderr[-2000:]
    found = json.loads(unescape(done.stdout.split('data-said="')[1].split('"')[0]))
    assert 0.02 < found["plain"] < 0.9 and "optimised" in found["words"]
    # the block's faces: 4 × 4 × 2 squares of 5 mm a bone, each of two triangles: 4 sides × 4 × 2,
    # bottom and top 16 each
    assert (
        found["triangles"][0] == found["triangles"][1] == 2 * (4 * 4 * 2 + 2 * 16)
        and found["triangles"][4] == 0
    )
    assert found["cut_mm2"] == pytest.approx(20.0 * 10.0, rel=1e-3), (
        "the section through the caudal bone"
    )
    assert "cut at x = 1.0 mm" in found["cut_words"], (
        "a cut begins at the middle of the implant, which is 1 mm to the left"
    )
    # from anterior the patient's left is on the right; from above with anterior down, as this view
    # has it, too
    right, top = (lambda marks, k: sorted(marks, key=lambda m: m[k])), 2
    for view, across, upward in (("anterior", "RL", "SI"), ("cranial", "RL", "PA")):
        marks = found[view]
        assert {m[0] for m in marks} == set(across + upward), (
            "an axis along the sight has no letter"
        )
        assert right(marks, 1)[0][0] + right(marks, 1)[-1][0] == across
        assert right(marks, top)[0][0] + right(marks, top)[-1][0] == upward
    assert found["beside"].startswith("optimised (left) and stock (right)") and found["two"] == 2
    assert found["hidden"] is False and "not shown: disc, cranial" in found["without"]
    assert found["exploded"] == pytest.approx(2 * 0.5 * 45.0) and found["turned"] and found["focus"]
    assert (
        found["picked"].startswith("caudal: smallest principal strain") and " mm" in found["picked"]
    )


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_without_webgl_the_rest_of_the_page_stands(run, result, tmp_path):
    page = viewer_page(scenes.viewer_section(run, result), tmp_path)
    line = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-3d-apis",
        "--virtual-time-budget=10000",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (
        'data-viewer="failed"' in done.stdout
        and "cannot be shown here" in done.stdout
        and "still here" in done.stdout
    )
