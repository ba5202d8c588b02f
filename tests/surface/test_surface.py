"""Surfaces from analytic signed distances: closed, clean, of the right volume, and the same
after a round trip."""

from __future__ import annotations

import logging
import zipfile

import meshio
import numpy as np
import pytest
import trimesh

from engine.part import contour, meshfiles, surface
from engine.part.surface import ExportError
from engine.types import Surface, VoxelField

H = 0.5


def grid(h, lo, hi):
    axes = [np.arange(a, b + h / 2, h) for a, b in zip(lo, hi, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def rounded_box(x, y, half, radius):
    q = np.abs(np.stack([x, y], axis=-1)) - np.array(half) + radius
    return np.linalg.norm(np.maximum(q, 0.0), axis=-1) + np.minimum(q.max(axis=-1), 0.0) - radius


def cage(h=H, shift=0.013):
    """An annular cage, 28 × 18 mm with a 16 × 8 mm window, faces concave (spheres of 40 mm),
    edges sharp."""
    lo = np.array([-20.0, -16.0, -13.0]) + shift
    points = grid(h, lo, (20.0, 16.0, 13.0))
    x, y, z = np.moveaxis(points, -1, 0)
    outer, window = rounded_box(x, y, (14.0, 9.0), 3.0), rounded_box(x, y, (8.0, 4.0), 1.5)
    top = 40.0 - np.sqrt(x**2 + y**2 + (z - 44.0) ** 2)
    bottom = 40.0 - np.sqrt(x**2 + y**2 + (z + 44.0) ** 2)
    return VoxelField(np.maximum.reduce([outer, -window, top, bottom]), lo, h)


def cage_volume_mm3(h=0.02):
    """∬ of the height over the ring; midpoint rule, good to 1e-4."""
    x, y = np.meshgrid(np.arange(-14 + h / 2, 14, h), np.arange(-9 + h / 2, 9, h), indexing="ij")
    ring = (rounded_box(x, y, (14.0, 9.0), 3.0) < 0) & (rounded_box(x, y, (8.0, 4.0), 1.5) > 0)
    return float(np.sum(2 * (44.0 - np.sqrt(1600.0 - x**2 - y**2))[ring]) * h**2)


def sphere(radius=6.0, centre=(0.0, 0.0, 0.0), h=H, half=10.0):
    lo = np.full(3, -half)
    points = grid(h, lo, (half,) * 3)
    return VoxelField(np.linalg.norm(points - np.array(centre), axis=-1) - radius, lo, h)


@pytest.fixture(scope="module")
def cage_surface():
    return surface.extract(cage())


@pytest.mark.parametrize("shift", [0.0, 0.013, 0.25])
def test_cage_is_clean_and_keeps_its_volume(shift):
    field = cage(shift=shift)
    found = surface.check(surface.extract(field))
    assert found["watertight"] and found["manifold"]
    assert found["self_intersections"] == 0 and found["components"] == 1
    assert abs(found["volume_mm3"] / cage_volume_mm3() - 1) < 0.01


def test_vertices_lie_on_the_zero_level_and_edges_are_sharp(cage_surface):
    field = cage()
    creased, _ = contour.creases(
        field, cage_surface.points_mm
    )  # there the interpolated field is blurred
    distance = field.sample(cage_surface.points_mm[~creased])
    assert np.abs(distance).max() < 0.1 * H and np.sqrt(np.mean(distance**2)) < 0.01 * H
    # The outer wall meets the upper face here: a marching-cubes chamfer would stay half a voxel
    # away.
    corner = np.array([14.0, 0.0, 44.0 - np.sqrt(40.0**2 - 14.0**2)])
    across = (cage_surface.points_mm - corner)[:, [0, 2]][
        np.abs(cage_surface.points_mm[:, 1]) < 0.8
    ]
    assert np.linalg.norm(across, axis=1).min() < 0.2 * H
    mesh = trimesh.Trimesh(cage_surface.points_mm, cage_surface.faces, process=False)
    leftmost = np.argmax(mesh.triangles_center[:, 0])
    assert np.allclose(mesh.face_normals[leftmost], [1, 0, 0], atol=0.05)


def test_sphere_volume_and_area_converge_with_the_grid():
    """Marching cubes is second order: halving the voxel cuts the volume error about fourfold (at
    least 2.5)."""
    truth = 4 / 3 * np.pi * 6.0**3

    def volume(h):
        return surface.check(
            surface.extract(sphere(h=h, centre=(0.11, 0.07, 0.03)), target_edge_mm=0.4)
        )["volume_mm3"]

    error = [abs(volume(h) / truth - 1) for h in (1.0, 0.5)]
    assert error[1] < 0.01 and error[0] > 2.5 * error[1]


def test_window_is_a_hole_not_a_lid(cage_surface):
    mesh = trimesh.Trimesh(cage_surface.points_mm, cage_surface.faces, process=False)
    assert mesh.euler_number == 0  # genus 1


def test_small_islands_and_voids_are_removed_and_logged(caplog):
    field = sphere(radius=6.0)
    crumb = np.linalg.norm(field.points() - np.array([8.0, 0.0, 0.0]), axis=-1) - 0.8
    bubble = np.linalg.norm(field.points() - np.array([0.0, 2.0, 0.0]), axis=-1) - 1.0
    with caplog.at_level(logging.WARNING):
        dirty = VoxelField(np.maximum(np.minimum(field.values, crumb), -bubble), field.origin_mm, H)
        found = surface.check(surface.extract(dirty))
    assert found["components"] == 1
    clean = surface.check(surface.extract(field))["volume_mm3"]
    assert abs(found["volume_mm3"] / clean - 1) < 1e-3
    assert "island" in caplog.text and "closed void" in caplog.text


def test_two_bodies_are_kept_and_counted(caplog):
    left, right = sphere(3.0, (-5.0, 0.0, 0.0)), sphere(3.0, (5.0, 0.0, 0.0))
    both = surface.extract(VoxelField(np.minimum(left.values, right.values), left.origin_mm, H))
    assert surface.check(both)["components"] == 2
    assert "2 separate components" in caplog.text


def test_bad_fields_are_refused_by_what_is_wrong():
    good = sphere()
    with pytest.raises(ExportError, match="empty"):
        surface.extract(sphere(radius=-1.0))
    with pytest.raises(ExportError, match="border"):
        surface.extract(sphere(radius=11.0))
    values = good.values.copy()
    values[3, 3, 3] = np.nan
    with pytest.raises(ExportError, match="1 samples that are not finite"):
        surface.extract(VoxelField(values, good.origin_mm, H))
    with pytest.raises(ExportError, match="target_edge_mm"):
        surface.extract(good, target_edge_mm=0.0)


def test_check_sees_each_kind_of_defect():
    ball = trimesh.creation.icosphere(subdivisions=2, radius=5.0)
    fine = surface.check(Surface(ball.vertices, ball.faces))
    assert fine["watertight"] and fine["manifold"] and fine["self_intersections"] == 0
    assert not surface.check(Surface(ball.vertices, ball.faces[1:]))["watertight"]
    two = trimesh.util.concatenate([ball, ball.copy().apply_translation([6.0, 0.1, 0.2])])
    assert surface.check(Surface(two.vertices, two.faces))["self_intersections"] > 10
    assert surface.check(Surface(two.vertices, two.faces))["components"] == 2
    assert surface.check(Surface(ball.vertices, ball.faces[:, ::-1]))["volume_mm3"] < 0
    # Two tetrahedra that share one edge: closed, but the edge has four faces.
    points = np.array(
        [[0, 0, 0], [1, 0, 0], [0.3, 1, 0.2], [0.3, 0.5, 1], [0.3, -1, -0.2], [0.3, -0.5, -1.0]]
    )
    shared = np.array(
        [[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3], [0, 4, 1], [0, 1, 5], [1, 4, 5], [4, 0, 5]]
    )
    assert not surface.check(Surface(points, shared))["manifold"]


def test_export_round_trip(tmp_path, cage_surface):
    paths = surface.export(cage_surface, tmp_path, "cage")
    wanted = surface.check(cage_surface)
    for path in paths.values():
        back = surface.check(surface.read(path))
        assert back["watertight"] and abs(back["volume_mm3"] / wanted["volume_mm3"] - 1) < 1e-4
        np.testing.assert_allclose(back["bbox_mm"], wanted["bbox_mm"], atol=1e-4)
    assert (
        paths["stl"].read_bytes()[:5] != b"solid"
        and paths["stl"].stat().st_size == 84 + 50 * wanted["faces"]
    )
    with zipfile.ZipFile(paths["3mf"]) as archive:
        assert b'unit="millimeter"' in archive.read("3D/3dmodel.model")[:2000]
    # The STL holds exactly the surface that was checked.
    stl = surface.read(paths["stl"])
    assert set(map(tuple, stl.points_mm)) == set(map(tuple, cage_surface.points_mm))


def test_export_refuses_what_cannot_be_printed(tmp_path, cage_surface):
    with pytest.raises(ExportError, match=r"part: not watertight; not written"):
        surface.export(Surface(cage_surface.points_mm, cage_surface.faces[:-1]), tmp_path, "part")
    with pytest.raises(ExportError, match="inside out"):
        surface.export(
            Surface(cage_surface.points_mm, cage_surface.faces[:, ::-1]), tmp_path, "part"
        )
    assert not list(tmp_path.iterdir())


def test_export_notices_a_writer_that_loses_triangles(tmp_path, cage_surface, monkeypatch):
    write = meshfiles.write_stl

    def lossy(part, *rest):
        return write(Surface(part.points_mm, part.faces[1:]), *rest)

    monkeypatch.setattr(meshfiles, "write_stl", lossy)
    with pytest.raises(ExportError, match=r"part\.stl read back: not watertight"):
        surface.export(cage_surface, tmp_path, "part")
    assert not list(tmp_path.iterdir())


def test_density_vtu_fills_the_part(tmp_path):
    field = sphere(radius=6.0)
    density = VoxelField(
        np.clip(0.2 + np.abs(field.points()[..., 2]) / 10, 0, 1), field.origin_mm, H
    )
    mesh = meshio.read(surface.write_density_vtu(tmp_path / "d.vtu", field, density))
    cells = mesh.cells_dict["hexahedron"]
    assert abs(len(cells) * H**3 / (4 / 3 * np.pi * 216) - 1) < 0.02
    centres = mesh.points[cells].mean(axis=1)
    np.testing.assert_allclose(
        mesh.cell_data["relative_density"][0], 0.2 + np.abs(centres[:, 2]) / 10, atol=1e-12
    )
    edges = mesh.points[cells[:, [1, 3, 4]]] - mesh.points[cells[:, [0]]]
    np.testing.assert_allclose(np.linalg.det(edges), H**3)  # VTK's corner order: no inverted cells
    with pytest.raises(ExportError, match="grid"):
        surface.write_density_vtu(tmp_path / "d.vtu", field, sphere(half=9.0))
