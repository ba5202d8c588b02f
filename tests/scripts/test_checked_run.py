"""The way of a user's number: a designed run, its check in SfePy, result.json and the report.

One small run is really designed and really checked, every arm that differs (the search has one
position, so that the *_central arms are the same parts); what result.json says is then held against
solution.vtu, engine.json and the exported parts, read here by other means than the code that wrote
them. The mesh is far too coarse for a figure to mean anything in mm³.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvista as pv

from engine import artifacts
from engine.materials import YIELD_STRAIN_COMPRESSION, YIELD_STRAIN_TENSION
from engine.patient import load_segment
from scripts.run import check, design
from scripts.run.config import FLOORS, RunConfig
from scripts.run.opened import set_up_jax
from tests.scripts.test_config import composed

DEVICES = ("stock", "conforming", "optimised")
CHECKED = (*FLOORS, *DEVICES)
TINY = (
    "solver.spacing_mm=3.5",
    "search=short",
    "search.spacing_mm=3.5",
    "search.x=1",
    "search.y=1",
    "search.yaw=1",
    "search.refine=0",
    "optimizer=short",
    "optimizer.iterations=1",
    "export_spacing_mm=1.0",
    "fem=demo",
    f"fem.arms=[{','.join(CHECKED)}]",
    "fem.mesh.size_fine_mm=5",
    "fem.mesh.size_coarse_mm=12",
    "fem.mesh.background_mm=4.5",
    "fem.mesh.background_axial_mm=3.5",
    "fem.mesh.background_far_mm=7",
    "fem.mesh.hausdorff_mm=0.8",
    "fem.mesh.volume_tolerance=0.15",
    "fem.solve.order=1",
    "fem.solve.quadrature=1",
    "reuse_gb=0",
    f"keep.solutions=[{','.join(CHECKED)}]",
    "+patient.phantom.spacing_mm=1.5",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    set_up_jax()
    out = tmp_path_factory.mktemp("checked") / "run"
    config: RunConfig = composed(*TINY, f"out={out}")
    design.design_run(config)
    check.check_run(out)
    return out


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return artifacts.read_json(folder / "result.json")


@pytest.fixture(scope="module")
def solutions(folder: Path) -> dict[str, pv.UnstructuredGrid]:
    return {arm: pv.read(folder / "fem" / arm / "solution.vtu") for arm in CHECKED}


def volumes_mm3(grid: pv.UnstructuredGrid) -> np.ndarray:
    corners = np.asarray(grid.points)[np.asarray(grid.cells).reshape(-1, 5)[:, 1:]]
    edges = corners[:, 1:] - corners[:, :1]
    return np.abs(np.linalg.det(edges)) / 6.0


def test_every_arm_is_solved_and_in_balance(result):
    assert list(result["arms"]) == [*CHECKED]
    for name, arm in result["arms"].items():
        assert arm["status"]["code"] == "ok", f"{name}: {arm['status']['text']}"
        assert arm["balance"]["force_rel"] < 1e-6 and arm["balance"]["moment_rel"] < 1e-6, name


def test_implant_stress_is_the_one_in_the_solution(result, solutions):
    """99th percentile by volume, worst load case, of the cells that are implant."""
    for name in DEVICES:
        grid = solutions[name]
        implant = np.asarray(grid["region"]) == 2
        weight = volumes_mm3(grid)[implant]
        measure = result["arms"][name]["measures"]["implant_von_mises_p99"]
        for case, value in measure["per_load"].items():
            mises = np.asarray(grid[f"{case}_von_mises_mpa"])[implant]
            order = np.argsort(mises)
            share = np.cumsum(weight[order]) / weight.sum()
            # several points of integration a cell: the cells' means scatter less than these
            at = np.interp([0.95, 0.999], share, mises[order])
            assert 0.8 * at[0] < value < 1.5 * at[1], (name, case)
        assert measure["value"] == max(measure["per_load"].values())


def test_yielded_bone_is_of_the_order_in_the_solution_and_never_more_than_all_of_it(
    result, solutions
):
    """The measure weighs bone by its nearness to the implant (at most 1) and adds up points of
    integration; the solution holds one value a cell."""
    for name in DEVICES:
        grid = solutions[name]
        volume = volumes_mm3(grid)
        bone = np.isin(np.asarray(grid["region"]), (0, 1))
        measure = result["arms"][name]["measures"]["yielded_bone_sharp"]
        for case, value in measure["per_load"].items():
            low, high = (np.asarray(grid[f"{case}_strain_{k}"]) for k in ("min", "max"))
            beyond = (-low > YIELD_STRAIN_COMPRESSION) | (high > YIELD_STRAIN_TENSION)
            most = float(volume[bone & beyond].sum())
            assert 0.0 <= value <= 1.3 * most + 30.0, (name, case)
        loads = list(measure["per_load"].values())
        assert measure["value"] == pytest.approx(np.mean(loads), rel=1e-12)


def test_alignment_is_the_plan_moved_as_the_solution_moves(folder, result, solutions):
    """Heights and lordosis achieved differ from the planned ones by what the endplates of the
    solution do: means and slopes of the displacements over their nodes."""
    segment = load_segment(folder / "segment")
    planned = result["alignment"]["planned"]
    assert result["alignment"]["load_case"] == "standing"
    for name in ("stock", "full_endplate", "optimised"):
        grid = solutions[name]
        moved = {
            body: _motion(grid, plate, region)
            for body, plate, region in (
                ("caudal", segment.caudal.superior, 0),
                ("cranial", segment.cranial.inferior, 1),
            )
        }
        drop_mm = moved["cranial"][0] - moved["caudal"][0]
        tilt_deg = math.degrees(moved["cranial"][1] - moved["caudal"][1])
        achieved = result["arms"][name]["alignment"]
        height = achieved["height_middle_mm"] - planned["height_middle_mm"]
        lordosis = achieved["lordosis_deg"] - planned["lordosis_deg"]
        assert drop_mm < 0.0, f"{name}: standing presses the disc space together"
        assert height == pytest.approx(drop_mm, rel=0.1, abs=1e-3), name
        assert lordosis == pytest.approx(-tilt_deg, rel=0.25, abs=2.5e-3), name


def _motion(grid: pv.UnstructuredGrid, plate: Any, region: int) -> tuple[float, float]:
    """Standing: displacement along z at the endplate's centre (mm) and rotation about x (rad) of
    the rigid motion nearest to that of a body's bone within 10 mm of its endplate."""
    every = np.asarray(grid.cells).reshape(-1, 5)[:, 1:]
    cells = every[np.asarray(grid["region"]) == region]
    points, moved = np.asarray(grid.points), np.asarray(grid["standing_displacement_mm"])
    offset = points[cells].mean(1) - plate.centre_mm
    across = np.linalg.norm(offset[:, :2] / [plate.half_width_mm, plate.half_depth_mm], axis=1)
    near = (np.abs(offset @ np.asarray(plate.normal)) < 10.0) & (across < 1.0)
    root = np.sqrt(volumes_mm3(grid)[np.asarray(grid["region"]) == region][near])
    x, y, z = offset[near].T
    zero, one = np.zeros_like(x), np.ones_like(x)
    # u = t + θ × r, three rows a cell
    rows = np.stack(
        [
            np.stack([one, zero, zero, zero, z, -y], -1),
            np.stack([zero, one, zero, -z, zero, x], -1),
            np.stack([zero, zero, one, y, -x, zero], -1),
        ],
        axis=1,
    )
    values = moved[cells].mean(1)[near]
    table = (rows * root[:, None, None]).reshape(-1, 6)
    fit = np.linalg.lstsq(table, (values * root[:, None]).ravel(), rcond=None)[0]
    return float(fit[2]), float(fit[3])


def test_a_device_with_rods_is_stiffer_than_the_disc_that_it_replaces(result):
    """fᵀu of one load scales with its give."""
    give = {
        name: {row["load_case"]: 1.0 / row["sfepy"] for row in stiffness(arm)}
        for name, arm in result["arms"].items()
    }
    for case in ("flexion", "extension"):
        assert all(give[arm][case] < give["intact"][case] for arm in DEVICES), case
        assert give["full_endplate"][case] < min(give[arm][case] for arm in DEVICES), case


def stiffness(arm: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in arm["agreement"] if row["load_case"] is not None]


def test_both_solvers_stand_in_the_agreement_each_with_its_own_numbers(folder, result):
    engine = artifacts.read_json(folder / "engine.json")["arms"]
    for name, arm in result["arms"].items():
        rows = stiffness(arm)
        assert len(rows) == len(engine[name]["compliance_nmm"])
        for row, compliance in zip(rows, engine[name]["compliance_nmm"], strict=True):
            assert row["engine"] == pytest.approx(1.0 / compliance, rel=1e-12)
            assert row["gap_rel"] == pytest.approx(row["engine"] / row["sfepy"] - 1.0, rel=1e-9)
            # 3.5 mm voxels against tetrahedra as coarse: they agree in the order and the sign
            assert 0.4 < row["engine"] / row["sfepy"] < 2.5, (name, row)
        for row in (r for r in arm["agreement"] if r["load_case"] is None):
            assert row["engine"] == engine[name]["measures"][row["quantity"]]
            assert row["sfepy"] == arm["measures"][row["quantity"]]["value"]


def test_the_score_is_not_the_loss(folder, result):
    """Contract 3: every arm is shown with measures that the optimiser never saw, and what it did
    see is measured anew on SfePy's response of the exported surface, not copied from the engine."""
    goals = set(result["asked"]["goals"])
    engine = artifacts.read_json(folder / "engine.json")["arms"]
    for name, arm in result["arms"].items():
        unseen = set(arm["measures"]) - goals
        assert {"yielded_bone_sharp", "bone_strain_p99"} <= unseen, name
        for goal in goals & set(arm["measures"]) & set(engine[name]["measures"]):
            ours, theirs = engine[name]["measures"][goal], arm["measures"][goal]["value"]
            # nothing yields under a solid block, the intact segment shields nothing: 0 in both
            assert ours != theirs or ours == 0.0, (name, goal)


def test_a_check_that_was_done_is_taken_over_and_says_the_same(folder, result):
    """Nothing is solved again: the arms' records are the result."""

    def written() -> dict[str, int]:
        return {a: (folder / "fem" / a / "arm.json").stat().st_mtime_ns for a in DEVICES}

    before = written()
    check.check_run(folder)
    again = artifacts.read_json(folder / "result.json")
    assert again["arms"] == result["arms"]
    assert written() == before
