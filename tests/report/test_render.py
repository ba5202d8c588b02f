"""Pictures are drawn in a child process, are not blank, and show what they should; failures are said."""

from __future__ import annotations

import json

import matplotlib.image
import meshio
import numpy as np
import pytest
import trimesh

from fem import render


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
    corner = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)]
    cells = np.stack(
        [index[i : shape[0] - 1 + i, j : shape[1] - 1 + j, k : shape[2] - 1 + k] for i, j, k in corner], axis=-1
    ).reshape(-1, 8)
    z = points[cells].mean(axis=1)[:, 2]
    data = {"region": [(np.abs(z) < 6).astype(int)], "strain": [-0.008 * (z > 0)]}
    meshio.Mesh(points, [("hexahedron", cells)], cell_data=data).write(folder / "solution.vtu")
    return folder


def pixels(path):
    image = matplotlib.image.imread(path)[..., :3]
    assert image.std() > 0.02, f"{path.name} is blank"
    return image


def test_anatomy_shows_the_cage_through_the_bone(scene):
    bones = [{"path": str(scene / f"{name}.ply"), "opacity": 0.35} for name in ("caudal", "cranial")]
    cage = {"path": str(scene / "cage.stl"), "color": "#0000ff"}
    job = {"kind": "anatomy", "name": "anatomy", "view": [0.0, 0.0]}
    with_cage = pixels(render.render({**job, "surfaces": [*bones, cage], "out": str(scene / "a.png")}))
    without = pixels(render.render({**job, "surfaces": bones, "out": str(scene / "b.png")}))
    blue = lambda image: np.mean((image[..., 2] > 0.3) & (image[..., 0] < 0.3 * image[..., 2]))  # noqa: E731
    assert blue(with_cage) > 0.05 and blue(without) == 0.0
    # half-transparent bone was drawn at all: most of the picture is neither white nor blue
    assert np.mean(without.min(axis=-1) < 0.95) > 0.4


def test_part_from_above_is_as_wide_as_it_is(scene):
    image = pixels(
        render.render({"kind": "part", "path": str(scene / "cage.stl"), "view": [90, 90], "out": str(scene / "c.png")})
    )
    drawn = image.min(axis=-1) < 0.97
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(26 / 14, rel=0.03)  # x to the side, y up


def test_cut_is_coloured_by_the_field(scene):
    job = {
        "kind": "cut",
        "path": str(scene / "solution.vtu"),
        "field": "strain",
        "plane": "sagittal",
        "limits": [-0.8, 0.0],
        "scale": 100.0,
        "label": "strain [%]",
        "outline": str(scene / "cage.stl"),
        "out": str(scene / "d.png"),
    }
    image = pixels(render.render(job))
    middle = image[:, image.shape[1] // 2]
    upper, lower = middle[int(0.2 * len(middle))], middle[int(0.65 * len(middle))]
    assert upper[2] > upper[0] and lower[0] > 0.8 and lower[2] < 0.4  # cividis: blue is low (cranial), yellow is high


def test_footprints(scene):
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    curves = [{"label": "stock", "points_mm": ring * 8}, {"label": "optimised", "points_mm": ring * [12, 8] + [0, -4]}]
    pixels(
        render.render({"kind": "footprints", "rim_mm": ring * [22, 16], "curves": curves, "out": str(scene / "e.png")})
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"field": "stress"}, "no field 'stress'; it has region, strain"),
        ({"at_mm": 500.0}, "misses the mesh"),
        ({"plane": "oblique"}, "plane 'oblique' is unknown"),
        ({"path": "nowhere.vtu"}, "nowhere.vtu"),
        ({"kind": "movie"}, "kind 'movie' is unknown"),
    ],
)
def test_bad_jobs_are_named_and_leave_no_picture(scene, change, reason, capsys):
    job = {"kind": "cut", "path": str(scene / "solution.vtu"), "field": "strain", "plane": "sagittal"}
    (scene / "job.json").write_text(json.dumps({**job, **change, "out": str(scene / "f.png")}))
    assert render.main(str(scene / "job.json")) == 1  # what the child process runs; these stop before VTK draws
    assert reason in capsys.readouterr().err
    assert not (scene / "f.png").exists()


def test_the_reason_comes_through_from_the_child(scene):
    with pytest.raises(render.RenderError, match=r"f\.png: RenderError: picture kind 'movie' is unknown"):
        render.render({"kind": "movie", "out": str(scene / "f.png")})


def test_a_crash_of_the_child_does_not_reach_the_run(scene, monkeypatch):
    crash = scene / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(render.sys, "executable", str(crash))
    job = {"name": "cage", "kind": "part", "path": str(scene / "cage.stl"), "out": str(scene / "g.png")}
    pictures, problems = render.render_all([job])
    assert pictures == {} and "signal 11" in problems[0]
