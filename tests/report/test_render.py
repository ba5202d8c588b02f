"""Pictures are drawn in a child process, are not blank, and show what they should; failures are
said."""

from __future__ import annotations

import json

import matplotlib.image
import meshio
import numpy as np
import pytest
import pyvista as pv
import trimesh

from engine import artifacts
from engine.patient import PlanConfig, phantom_segment
from engine.types import VoxelField
from fem.report import colours, letters, render
from scripts.run.pictures import picture_shots, render_jobs


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two cylinders as vertebrae, a box as cage, and a column of hexahedra with a field."""
    folder = tmp_path_factory.mktemp("scene")
    for name, z in (("caudal", -20.0), ("cranial", 20.0)):
        body = trimesh.creation.cylinder(20.0, 28.0, sections=48)
        body.apply_translation([0, 0, z])
        body.export(folder / f"{name}.ply")
    trimesh.creation.box([26.0, 14.0, 11.0]).export(folder / "cage.stl")
    axes = [np.arange(-20.0, 21.0, 4.0), np.arange(-12.0, 13.0, 4.0), np.arange(-34.0, 35.0, 4.0)]
    shape = [len(a) for a in axes]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    index = np.arange(len(points)).reshape(shape)
    corner = [
        (0, 0, 0),
        (1, 0, 0),
        (1, 1, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 0, 1),
        (1, 1, 1),
        (0, 1, 1),
    ]
    cells = np.stack(
        [
            index[i : shape[0] - 1 + i, j : shape[1] - 1 + j, k : shape[2] - 1 + k]
            for i, j, k in corner
        ],
        axis=-1,
    ).reshape(-1, 8)
    z = points[cells].mean(axis=1)[:, 2]
    data = {"region": [(np.abs(z) < 6).astype(int)], "flexion_strain_min": [-0.0154 * (z > 0)]}
    meshio.Mesh(points, [("hexahedron", cells)], cell_data=data).write(folder / "solution.vtu")
    return folder


def pixels(path):
    image = matplotlib.image.imread(path)[..., :3]
    assert image.std() > 0.02, f"{path.name} is blank"
    return image


def place_of(path):
    """Where a picture's axes are, as it says itself (fem/report/render.py)."""
    from PIL import Image

    return json.loads(Image.open(path).text["Description"])


def at_mm(path, horizontal, vertical):
    """Row and column of a place in mm."""
    place = place_of(path)
    left, top, right, bottom = place["pixels"]
    h, v = place["horizontal"], place["vertical"]
    column = left + (right - left) * (horizontal - h["from_mm"]) / (h["to_mm"] - h["from_mm"])
    row = top + (bottom - top) * (vertical - v["from_mm"]) / (v["to_mm"] - v["from_mm"])
    return round(row), round(column)


def span_mm(path, colour, tolerance=0.02):
    """First and last place across the picture, in mm, where it has that colour, within its axes."""
    place, image = place_of(path), matplotlib.image.imread(path)[..., :3]
    left, top, right, bottom = (round(p) for p in place["pixels"])
    inside = np.abs(image[top:bottom, left:right] - np.array(colour)).max(axis=-1) < tolerance
    columns = np.flatnonzero(inside.sum(axis=0) >= 3) + 0.5
    h = place["horizontal"]
    ends = h["from_mm"] + columns[[0, -1]] / inside.shape[1] * (h["to_mm"] - h["from_mm"])
    return h["axis"], float(ends.min()), float(ends.max())


def rgb(colour):
    return [int(colour[i : i + 2], 16) / 255.0 for i in (1, 3, 5)]


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory):
    """A run whose cage stands to the patient's right: x from −12 to 2 mm, y from −9 to 3; the
    phantom's vertebrae."""
    folder = tmp_path_factory.mktemp("lopsided")
    low, high = np.array([-12.0, -9.0, 1.0]), np.array([2.0, 3.0, 9.0])
    axes = [np.arange(-24.0, 24.1, 1.0), np.arange(-20.0, 20.1, 1.0), np.arange(-12.0, 20.1, 1.0)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    outline = np.max(np.maximum(low - points, points - high), axis=-1)
    design = folder / "designs" / "optimised"
    artifacts.save_field(
        design / "implant.npz", VoxelField(outline, np.array([a[0] for a in axes]), 1.0)
    )
    artifacts.write_json(
        design / "design.json", {"surface": {"bbox_mm": [low.tolist(), high.tolist()]}}
    )
    image = pv.ImageData(
        dimensions=[len(a) for a in axes], spacing=(1, 1, 1), origin=[a[0] for a in axes]
    )
    grid = image.cast_to_unstructured_grid()
    middle = np.asarray(grid.cell_centers().points)
    inside = ((middle > low) & (middle < high)).all(axis=1)
    grid.cell_data["region"] = np.where(inside, 2, np.where(middle[:, 2] < 5.0, 0, 1)).astype(
        np.int32
    )
    grid.cell_data["flexion_strain_min"] = np.full(len(middle), -0.004, np.float32)
    (folder / "fem" / "optimised").mkdir(parents=True)
    grid.save(str(folder / "fem" / "optimised" / "solution.vtu"))
    return folder, phantom_segment(spacing_mm=1.5, plan_config=PlanConfig(spacing_mm=1.5))


def test_footprints_and_cuts_of_one_cage_agree_on_where_it_stands(lopsided):
    folder, segment = lopsided
    shots = picture_shots(segment, folder, {"optimised": {"status": {"code": "ok"}}}, [])
    by_name = {job["name"]: job for job in render_jobs(shots, folder / "pictures")}
    sagittal, coronal = by_name["strain_optimised_sagittal"], by_name["strain_optimised_coronal"]
    assert (sagittal["at_mm"], coronal["at_mm"]) == (-5.0, -3.0)
    for job in (by_name["footprints"], sagittal, coronal):
        render.render(job)
    # read off the pictures themselves; a line is some 0.3 mm wide
    axis, first, last = span_mm(
        by_name["footprints"]["out"], rgb(render.ARM_STYLES["optimised"][0])
    )
    assert axis == "x" and (first, last) == pytest.approx((-12.0, 2.0), abs=0.4)
    axis, first, last = span_mm(coronal["out"], rgb(colours.PLAIN["implant"]))
    assert axis == "x" and (first, last) == pytest.approx((-12.0, 2.0), abs=0.4)
    axis, first, last = span_mm(sagittal["out"], rgb(colours.PLAIN["implant"]))
    assert axis == "y" and (first, last) == pytest.approx((-9.0, 3.0), abs=0.4)
    # and the sides: from above with anterior up the patient's right is on the right, from anterior
    # on the left
    above, front = (place_of(job["out"])["horizontal"] for job in (by_name["footprints"], coronal))
    assert above["from_mm"] > above["to_mm"] and front["from_mm"] < front["to_mm"]
    vertical = place_of(by_name["footprints"]["out"])["vertical"]
    assert vertical["axis"] == "y" and vertical["from_mm"] < vertical["to_mm"], "anterior is up"


def test_arms_that_share_an_outline_both_show(scene):
    ring = 10.0 * np.stack(
        [np.cos(np.linspace(0, 6.2, 60)), np.sin(np.linspace(0, 6.2, 60))], axis=-1
    )
    curves = [
        {"label": arm, "points_mm": ring.tolist()}
        for arm in ("stock_central", "conforming_central")
    ]
    path = render.render({"kind": "footprints", "curves": curves, "out": str(scene / "same.png")})
    for curve in curves:
        _, first, last = span_mm(path, rgb(render.ARM_STYLES[curve["label"]][0]))
        assert (first, last) == pytest.approx((-10.0, 10.0), abs=0.5)


@pytest.mark.parametrize(
    ("view", "right", "up"),
    [
        ((0, 0), "P", "S"),
        ((90, 0), "L", "S"),
        ((90, 90), "R", "A"),
        ((180, 0), "A", "S"),
        ((-90, 0), "R", "S"),
    ],
)
def test_letters_name_the_sides_of_each_view(view, right, up):
    towards, across, upward = letters.view_axes(*view)
    assert letters.letter(across) == right and letters.letter(upward) == up
    assert np.allclose(np.cross(across, upward), towards, atol=1e-12), (
        "right-handed: nothing is mirrored"
    )


def test_anatomy_shows_the_cage_through_the_bone(scene):
    bones = [
        {"path": str(scene / f"{name}.ply"), "opacity": 0.35} for name in ("caudal", "cranial")
    ]
    cage = {"path": str(scene / "cage.stl"), "color": "#0000ff"}
    job = {"kind": "anatomy", "name": "anatomy", "view": [0.0, 0.0], "letters": False}
    with_cage = pixels(
        render.render({**job, "surfaces": [*bones, cage], "out": str(scene / "a.png")})
    )
    without = pixels(render.render({**job, "surfaces": bones, "out": str(scene / "b.png")}))
    blue = lambda image: np.mean((image[..., 2] > 0.3) & (image[..., 0] < 0.3 * image[..., 2]))  # noqa: E731
    assert blue(with_cage) > 0.05 and blue(without) == 0.0
    # half-transparent bone was drawn at all: most of the picture is neither white nor blue
    assert np.mean(without.min(axis=-1) < 0.95) > 0.4


def test_part_from_above_is_as_wide_as_it_is(scene):
    image = pixels(
        render.render(
            {
                "kind": "part",
                "path": str(scene / "cage.stl"),
                "view": [90, 90],
                "letters": False,
                "out": str(scene / "c.png"),
            }
        )
    )
    drawn = image.min(axis=-1) < 0.97
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(26 / 14, rel=0.03)  # x to the side, y up


def test_cut_is_coloured_by_the_field(scene):
    job = {
        "kind": "cut",
        "path": str(scene / "solution.vtu"),
        "load": "flexion",
        "plane": "sagittal",
        "outline": str(scene / "cage.stl"),
        "out": str(scene / "d.png"),
    }
    image = pixels(render.render(job))
    upper, lower = (image[at_mm(scene / "d.png", 3.0, z)] for z in (20.0, -20.0))
    assert upper.max() < 0.2, "twice the yield strain: nearly black"
    assert lower.min() > 0.7, "no strain: light"


def test_footprints(scene):
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    curves = [
        {"label": "stock", "points_mm": ring * 8},
        {"label": "optimised", "points_mm": ring * [12, 8] + [0, -4]},
    ]
    pixels(
        render.render(
            {
                "kind": "footprints",
                "rim_mm": ring * [22, 16],
                "curves": curves,
                "out": str(scene / "e.png"),
            }
        )
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"load": "stress"}, "no array 'stress_strain_min'; there is flexion_strain_min, region"),
        ({"at_mm": 500.0}, "misses the mesh"),
        ({"plane": "oblique"}, "plane 'oblique' is unknown"),
        ({"path": "nowhere.vtu"}, "nowhere.vtu"),
        ({"kind": "movie"}, "kind 'movie' is unknown"),
    ],
)
def test_bad_jobs_are_named_and_leave_no_picture(scene, change, reason, capsys):
    job = {
        "kind": "cut",
        "path": str(scene / "solution.vtu"),
        "load": "flexion",
        "plane": "sagittal",
    }
    (scene / "job.json").write_text(json.dumps({**job, **change, "out": str(scene / "f.png")}))
    assert (
        render.main(str(scene / "job.json")) == 1
    )  # what the child process runs; these stop before VTK draws
    assert reason in capsys.readouterr().err
    assert not (scene / "f.png").exists()


def test_the_reason_comes_through_from_the_child(scene):
    with pytest.raises(
        render.RenderError, match=r"f\.png: RenderError: picture kind 'movie' is unknown"
    ):
        render.render({"kind": "movie", "out": str(scene / "f.png")})


def test_a_crash_of_the_child_does_not_reach_the_run(scene, monkeypatch):
    crash = scene / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(render.sys, "executable", str(crash))
    job = {
        "name": "cage",
        "kind": "part",
        "path": str(scene / "cage.stl"),
        "out": str(scene / "g.png"),
    }
    pictures, problems = render.render_all([job])
    assert pictures == {} and "signal 11" in problems[0]
