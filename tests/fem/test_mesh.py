"""The mesher: geometry against closed forms, the gate, and a whole small segment."""

from __future__ import annotations

from dataclasses import replace

import meshio
import numpy as np
import pytest
from fem_blocks import INTACT, box
from fem_segment import CROP_MM, make_boundary

from engine.types import REGIONS, Surface
from fem.mesh import tets as tt
from fem.mesh.build import COARSE, MeshSettings, build_mesh, gate
from fem.mesh.islands import drop_islands
from fem.mesh.quality import MeshError, measure
from fem.mesh.regions import SurfaceDistance, region_map
from fem.mesh.repair import edges_collapsed
from fem.mesh.snap import interfaces, move
from fem.solve import FemSettings, solve

REGULAR = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def cube(half=4.0) -> Surface:
    """Twelve outward triangles."""
    p = half * np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], float)
    quads = [[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]]
    return Surface(p, np.array([[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)]))


def split_near(
    points: np.ndarray, tets: np.ndarray, labels: np.ndarray, cell: int, share: float = 0.03
):
    """Four tetrahedra for one: a node inside it, near its first corner."""
    corners = points[tets[cell]]
    new = (1.0 - share) * corners[0] + share * corners.mean(0)
    four = np.repeat(tets[cell][None], 4, 0)
    four[np.arange(4), np.arange(4)] = len(points)
    kept = np.delete(np.arange(len(tets)), cell)
    return (
        np.vstack([points, new]),
        np.vstack([tets[kept], four]),
        np.r_[labels[kept], np.repeat(labels[cell], 4)],
    )


# -- geometry --------------------------------------------------------------------------------------


def test_regular_tetrahedron_has_its_angles_and_quality():
    tet = tt.positive(REGULAR, np.array([[0, 1, 2, 3]]))
    assert tt.volumes(REGULAR, tet)[0] == pytest.approx(8.0 / 3.0)
    assert np.allclose(tt.dihedral_deg(REGULAR, tet), np.degrees(np.arccos(1.0 / 3.0)))
    assert tt.shape_quality(REGULAR, tet)[0] == pytest.approx(1.0)
    assert tt.shape_quality(REGULAR, tet[:, [1, 0, 2, 3]])[0] == pytest.approx(-1.0)


def test_lattice_is_conforming_and_fills_its_box_with_60_and_90_degrees():
    axes = [np.arange(0.0, 9.0, 2.0), np.arange(0.0, 7.0, 2.0), np.arange(0.0, 11.0, 2.0)]
    points, tets = tt.lattice(axes)
    assert (tt.volumes(points, tets) > 0).all()
    faces, _, second = tt.face_pairs(tets)
    edge = points[faces[second < 0]]
    flux = np.einsum("ij,ij->", edge[:, 0], np.cross(edge[:, 1], edge[:, 2])) / 6.0
    assert flux == pytest.approx(tt.volumes(points, tets).sum())
    angles = tt.dihedral_deg(points, tets)
    assert angles.min() == pytest.approx(60.0) and angles.max() == pytest.approx(90.0)


def test_a_face_of_three_tetrahedra_is_refused():
    tets = np.array([[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 5]])
    with pytest.raises(ValueError, match="more than two"):
        tt.face_pairs(tets)


def test_distance_to_a_cube_is_exact_inside_and_out_and_survives_degenerate_triangles():
    surface = cube()
    extra = np.array([surface.points_mm[0], surface.points_mm[0] + 1e-5])
    dirty = Surface(
        np.vstack([surface.points_mm, extra]), np.vstack([surface.faces, [[0, 8, 9], [8, 9, 0]]])
    )
    x = np.random.default_rng(0).uniform(-7, 7, (400, 3))
    outside = np.linalg.norm(np.maximum(np.abs(x) - 4.0, 0.0), axis=1)
    expected = np.where(outside > 0, outside, np.abs(x).max(1) - 4.0)
    assert np.allclose(SurfaceDistance(dirty).exact(x), expected, atol=2e-3)
    assert SurfaceDistance(surface).volume_mm3() == pytest.approx(512.0)
    far = SurfaceDistance(surface)(np.array([[40.0, 0.0, 0.0]]))
    assert far[0] > 25.0


def test_moving_stops_before_a_tetrahedron_inverts():
    mesh = box([np.arange(4.0)] * 3, lambda c: np.zeros(len(c)))
    inner = np.flatnonzero(((mesh.points_mm > 0.5) & (mesh.points_mm < 2.5)).all(1))
    target = mesh.points_mm.copy()
    target[inner[0]] += [5.0, 0.0, 0.0]
    moved, share = move(mesh.points_mm, mesh.tets, target, 0.1)
    assert tt.volumes(target, mesh.tets).min() < 0 < tt.volumes(moved, mesh.tets).min()
    assert 0.0 <= share[inner[0]] < 1.0 and tt.shape_quality(moved, mesh.tets).min() >= 0.09


def test_what_hangs_on_an_edge_or_a_vertex_is_found():
    """Two cubes that share one edge: all tetrahedra of one of them at that edge hang; sharing a
    face, none do."""

    def cubes(label):
        return box([np.arange(3.0)] * 3, label)

    edge = cubes(lambda c: np.where((c[:, 0] < 1) == (c[:, 1] < 1), 0, -1))
    hanging = tt.hinges(edge.tets)
    assert hanging.any() and not hanging.all()
    assert (np.abs(edge.points_mm[edge.tets[hanging]][:, :, :2] - 1.0).max(2).min(1) < 1e-9).all()
    face = cubes(lambda c: np.where(c[:, 0] < 1, 0, np.where(c[:, 1] < 1, 0, -1)))
    assert not tt.hinges(face.tets).any()


def test_inversion_counts_below_any_angle():
    tet = tt.positive(REGULAR, np.array([[0, 1, 2, 3]]))
    sound, inverted = (tt.angle_or_inversion(REGULAR, t)[0] for t in (tet, tet[:, [1, 0, 2, 3]]))
    assert sound == pytest.approx(np.degrees(np.arccos(1 / 3)))
    assert inverted == pytest.approx(-100)


# -- islands and gate ------------------------------------------------------------------------------


def test_a_small_island_is_removed_with_a_line_and_a_large_one_is_an_error():
    mesh = box(
        [np.array([0.0, 2, 4]), np.array([0.0, 2, 4]), np.array([0.0, 4, 8, 10, 12])],
        lambda c: np.where(c[:, 2] < 8, 0, np.where(c[:, 2] > 10, 4, -1)),
    )
    lines: list[str] = []
    _, tets, labels = drop_islands(mesh.points_mm, mesh.tets, mesh.labels, 60.0, lines)
    assert set(labels) == {0} and len(tets) < len(mesh.tets) and "remnant" in lines[0]
    with pytest.raises(MeshError, match="remnant"):
        drop_islands(mesh.points_mm, mesh.tets, mesh.labels, 10.0, [])


@pytest.fixture(scope="module")
def meshed(segment, design, implant_surface):
    return build_mesh(segment, design, implant_surface, COARSE, CROP_MM)


def test_segment_passes_the_gate_with_volumes_within_one_percent(meshed, implant_surface):
    assert gate(meshed, COARSE) == []
    assert meshed.quality["min_dihedral_deg"] >= 8.0
    for name in REGIONS:
        limit = 0.01 if name not in ("graft", "remnant") else 0.03
        assert abs(meshed.quality["volume_error"][name]) < limit, name
    # recomputed here, from the triangles and from the tetrahedra
    volume = tt.volumes(meshed.points_mm, meshed.tets)[meshed.labels == 2].sum()
    assert volume == pytest.approx(SurfaceDistance(implant_surface).volume_mm3(), rel=0.01)
    assert 20_000 < len(meshed.tets) < 60_000
    assert tt.components(meshed.tets).max() == 0


def test_implant_interface_nodes_lie_on_the_exported_surface(meshed, implant_surface):
    around = interfaces(len(meshed.points_mm), meshed.tets, meshed.labels)
    nodes = np.flatnonzero(around.touches[:, 2] & (around.touches.sum(1) > 1))
    off = np.abs(SurfaceDistance(implant_surface).exact(meshed.points_mm[nodes]))
    assert len(nodes) > 500 and off.mean() < 0.02 and np.quantile(off, 0.99) < 0.15


def test_gate_names_what_is_wrong(meshed, segment, design, implant_surface):
    regions = region_map(segment, design, implant_surface, CROP_MM)
    reference = np.array([meshed.quality["reference_mm3"][n] for n in REGIONS])

    def problems(points, labels):
        return gate(
            replace(meshed, quality=measure(points, meshed.tets, labels, reference, regions)),
            COARSE,
        )

    flat = meshed.points_mm.copy()
    tet = meshed.tets[np.flatnonzero(meshed.labels == 0)[0]]
    flat[tet[0]] = flat[tet[1:]].mean(0) + 1e-4
    text = " ".join(problems(flat, meshed.labels))
    assert "dihedral" in text
    without_graft = np.where(meshed.labels == 3, 4, meshed.labels)
    text = " ".join(problems(meshed.points_mm, without_graft))
    assert "region graft" in text and "missing" in text and "region remnant" in text
    moved = meshed.points_mm * [1.0, 1.0, 1.02]
    assert "region caudal" in " ".join(problems(moved, meshed.labels))


def test_intact_segment_has_the_whole_disc_as_remnant(segment):
    coarse = replace(COARSE, size_fine_mm=2.8, background_axial_mm=2.2, background_mm=2.8)
    mesh = build_mesh(segment, INTACT, None, coarse, CROP_MM)
    assert set(np.unique(mesh.labels)) == {0, 1, 4}
    # elliptic disc between two dishes of 2 mm: π a b (9 + 2·2/2)
    assert mesh.quality["volume_mm3"]["remnant"] == pytest.approx(
        np.pi * 22.0 * 16.0 * 11.0, rel=0.02
    )


def test_a_meshed_segment_can_be_solved_and_balances(meshed, segment, design):
    where = make_boundary(segment)
    response, status, _ = solve(segment, design, meshed, where, FemSettings(order=1))
    assert all(s.code == "ok" for s in status)
    assert (
        np.abs(response.reaction + response.applied).max() < 1e-6 * np.abs(response.applied).max()
    )
    assert response.motion[0, 1, 2] < response.motion[0, 0, 2] < 0.0
    assert np.allclose(response.fatigue_mpa, 225.0)


def test_an_implant_that_only_presses_is_softer_and_carries_no_tension(meshed, segment, design):
    """Quadrature of order 2 on linear elements, to be quick. Bonded by springs as stiff as the
    contact's, the two meshes agree."""
    where = make_boundary(segment)
    where = replace(where, loadcases=where.loadcases[:2])
    bonded, _, _ = solve(segment, design, meshed, where, FemSettings(order=1, quadrature=2))
    pressed, status, field = solve(
        segment, design, meshed, where, FemSettings(order=1, quadrature=2, contact=0.3)
    )
    assert [s.code for s in status] == ["ok", "ok"], status
    assert np.abs(pressed.reaction + pressed.applied).max() < 1e-5 * np.abs(pressed.applied).max()
    assert (np.asarray(pressed.compliance) > np.asarray(bonded.compliance)).all()
    assert (np.asarray(pressed.compliance) < 2.0 * np.asarray(bonded.compliance)).all()
    # 7.5 Nm beside 400 N open the back of the joint; compression alone does not
    compression, flexion = field.contact
    assert flexion["touching_percent"] < compression["touching_percent"]
    assert flexion["largest_opening_mm"] > 0.001
    assert field.interface is not None
    for name in ("compression", "flexion"):
        assert (field.interface.cell_data[f"{name}_pressure_mpa"][0] >= 0.0).all()
    assert len(field.mesh.points_mm) > len(meshed.points_mm)
    with pytest.raises(ValueError, match="has no implant"):
        solve(segment, INTACT, meshed, where, FemSettings(contact=0.0))


def test_an_impossible_gate_is_an_error_that_names_the_region(segment, design, implant_surface):
    strict = replace(
        COARSE,
        min_dihedral_deg=60.0,
        attempts=1,
        size_fine_mm=3.5,
        background_mm=3.5,
        background_axial_mm=2.4,
        aim_dihedral_deg=1.0,
    )
    with pytest.raises(
        MeshError, match=r"dihedral angle .* in (caudal|cranial|implant|graft|remnant) at"
    ):
        build_mesh(segment, design, implant_surface, strict, CROP_MM)


def test_surface_and_design_must_agree(segment, design, implant_surface):
    with pytest.raises(ValueError, match="export the design's surface"):
        build_mesh(segment, design, None, COARSE, CROP_MM)
    with pytest.raises(ValueError, match="normals must point outward"):
        inside_out = Surface(implant_surface.points_mm, implant_surface.faces[:, ::-1])
        build_mesh(segment, design, inside_out, COARSE, CROP_MM)
    with pytest.raises(ValueError, match="size_fine_mm"):
        MeshSettings(size_fine_mm=9.0)


def test_the_written_mesh_reads_back(meshed, tmp_path):
    meshed.write(tmp_path / "mesh.vtu")
    back = meshio.read(tmp_path / "mesh.vtu")
    assert np.array_equal(back.cell_data["region"][0], meshed.labels)


# -- repair ----------------------------------------------------------------------------------------


def test_slivers_go_by_collapsing_edges_and_regions_keep_their_volumes():
    axes = [np.linspace(0.0, 6.0, 4)] * 3
    points, tets = tt.bricks(axes)
    labels = (points[tets][..., 2].mean(1) > 2.0).astype(int)
    before = np.bincount(labels, tt.volumes(points, tets))
    sound = tt.dihedral_deg(points, tets).min()
    worse = points, tets, labels
    for cell in (0, 30, 61):
        worse = split_near(*worse, cell)
    assert tt.dihedral_deg(*worse[:2]).min() < 5.0
    x, cells, regions, count = edges_collapsed(*worse, aim_deg=9.0)
    assert count == 3
    assert tt.dihedral_deg(x, cells).min() == pytest.approx(sound)
    assert np.bincount(regions, tt.volumes(x, cells)) == pytest.approx(before)
    assert len(cells) == len(tets) and not tt.hinges(cells).any()
    on_the_plane = interfaces(len(x), cells, regions).touches[:, :2].all(1)
    assert on_the_plane.sum() == 16


def test_a_node_of_an_interface_is_not_pulled_off_it():
    """Its collapse into the inside of a region would cure the sliver and move the interface."""
    points, tets = tt.bricks([np.linspace(0.0, 4.0, 3)] * 3)
    labels = (points[tets][..., 2].mean(1) > 2.0).astype(int)
    centre = int(np.flatnonzero((points == 2.0).all(1))[0])
    below = int(np.flatnonzero((points == [2.0, 2.0, 0.0]).all(1))[0])
    points[below, 2] = 1.9
    assert tt.dihedral_deg(points, tets).min() < 9.0
    x, cells, regions, _ = edges_collapsed(points, tets, labels, aim_deg=9.0)
    on = interfaces(len(x), cells, regions).touches[:, :2].all(1)
    assert x[on][:, 2] == pytest.approx(2.0)
    assert (x == points[centre]).all(1).any()
