"""The generated disc: volumes known in closed form, nucleus and rings where they should be, good
elements, and clear refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fem_segment import CONCAVE_MM, DISC_MM, HALF

from engine.patient import PlanConfig, from_surfaces, plan
from engine.types import VoxelField
from fem.intact import materials
from fem.intact.disc_mesh import DiscSettings, circle_mesh, disc_mesh
from fem.intact.hyperelastic import jacobians
from fem.intact.segment import Load
from scripts.evidence import lumbar_meshes, patients


def cross(u, v):
    """u × v of vectors [n, 2]."""
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]


def volumes(mesh):
    return jacobians(mesh.points_mm[mesh.hexes]).sum(1)


@pytest.mark.parametrize(
    "settings",
    [DiscSettings(), DiscSettings(around=24, rings=2, layers=3), DiscSettings(nucleus_back=0.1)],
)
def test_the_circles_mesh_covers_it_with_good_quads(settings):
    points, quads, group = circle_mesh(settings)
    a, b, c, d = (points[quads[:, k]] for k in range(4))
    area = 0.5 * cross(c - a, d - b)
    polygon = 0.5 * settings.around * np.sin(2 * np.pi / settings.around)
    assert (area > 0).all() and area.sum() == pytest.approx(polygon, rel=1e-12)
    assert area[group == 0].sum() / area.sum() == pytest.approx(settings.nucleus_share, rel=1e-6)
    corners = [cross(q - p, r - p) for p, q, r in ((a, b, d), (b, c, a), (c, d, b), (d, a, c))]
    assert np.min(corners) > 0.0
    assert [int((group == g).sum()) for g in range(1, settings.rings + 1)] == [
        settings.around
    ] * settings.rings


def test_its_volume_is_that_between_two_dishes(segment):
    """Elliptic rim, height DISC_MM + 2 dishes of paraboloids: π a b (DISC_MM + 2 · CONCAVE_MM /
    2)."""
    mesh = disc_mesh(segment, DiscSettings(around=64, layers=4))
    exact = np.pi * HALF[0] * HALF[1] * (DISC_MM + CONCAVE_MM)
    assert volumes(mesh).sum() == pytest.approx(exact, rel=0.02)
    assert (jacobians(mesh.points_mm[mesh.hexes]) > 0).all()


def test_its_ends_lie_on_the_bones(segment):
    mesh = disc_mesh(segment)
    for nodes, vertebra in (
        (mesh.caudal_nodes, segment.caudal),
        (mesh.cranial_nodes, segment.cranial),
    ):
        off = vertebra.sdf.sample(mesh.points_mm[nodes])
        assert np.abs(off).mean() < 0.15 and np.abs(off).max() < 0.6
    assert len(np.intersect1d(mesh.caudal_nodes, mesh.cranial_nodes)) == 0


def test_rings_are_one_element_thick_and_fibres_run_round_them(segment):
    mesh = disc_mesh(segment)
    for ring in (1, 4):
        a = materials.fibre_directions(mesh.points_mm, mesh.hexes, mesh.group, ring, 30.0)
        centre = mesh.points_mm[mesh.hexes[mesh.group == ring]].mean(1)
        outward = centre[:, :2] * [1 / HALF[0] ** 2, 1 / HALF[1] ** 2]
        outward /= np.linalg.norm(outward, axis=1)[:, None]
        assert np.abs((a[..., :2] * outward[:, None]).sum(-1)).max() < 0.2
        assert np.abs(a[..., 2]) == pytest.approx(0.5, abs=0.05)


def test_bones_that_touch_are_named_with_their_place(segment):
    low = segment.cranial.inferior
    down = np.array([0.0, 0.0, -DISC_MM - 2 * CONCAVE_MM - 1.0])
    sdf = segment.cranial.sdf
    moved = replace(
        segment.cranial,
        inferior=replace(low, centre_mm=low.centre_mm + down, rim_mm=low.rim_mm + down),
        sdf=VoxelField(sdf.values, sdf.origin_mm + down, sdf.spacing_mm),
    )
    with pytest.raises(
        ValueError, match=r"elements of the disc are inverted, about .* plan more height"
    ):
        disc_mesh(replace(segment, cranial=moved))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"around": 30}, "multiple of 4"),
        ({"rings": 0}, "at least 1"),
        ({"nucleus_share": 0.9}, "0.2, 0.7"),
        ({"nucleus_back": 0.5}, "nucleus_back"),
    ],
)
def test_settings_say_what_is_wrong(settings, text):
    with pytest.raises(ValueError, match=text):
        DiscSettings(**settings)


def test_the_ligaments_lie_on_the_rims_front_and_back(segment):
    part = patients.patient_segment(segment, DiscSettings(around=16, layers=2))
    by_name = {lig.name: lig for lig in part.ligaments}
    assert len(by_name["ALL"].cranial_mm) == 9 and len(by_name["PLL"].caudal_mm) == 5
    assert by_name["ALL"].cranial_mm[:, 1].max() < 0.0 < by_name["PLL"].cranial_mm[:, 1].min()
    assert np.ptp(by_name["ALL"].caudal_mm[:, 0]) == pytest.approx(0.6 * 2 * HALF[0], rel=0.05)
    length = np.linalg.norm(by_name["ALL"].cranial_mm - by_name["ALL"].caudal_mm, axis=1)
    assert length == pytest.approx(DISC_MM, abs=0.3)
    assert part.axes == pytest.approx(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), abs=1e-6)


def test_a_symmetric_disc_sinks_straight_and_its_nucleus_carries(segment):
    """Under 1000 N it neither turns nor shifts; nucleus pressure of the order of 1.3 to 1.5 F/A
    [S33b]; forces balance."""
    part = replace(
        patients.patient_segment(segment, DiscSettings(around=16, layers=2)), ligaments=[]
    )
    step = part.run([Load(500.0), Load(1000.0)])[1]
    assert np.abs(step.rotation_deg).max() < 0.02 and np.abs(step.translation_mm[:2]).max() < 0.05
    assert step.translation_mm[2] < -0.2 and step.balance < 1e-6
    assert 1.0 < step.nucleus_mpa * np.pi * HALF[0] * HALF[1] / 1000.0 < 1.8


def test_a_real_patients_disc(data_dir):
    """lumbar_meshes as scanned: what the mesh between the rims holds is the data's own disc
    without its bulge (−15 %)."""
    patient = from_surfaces(data_dir / "lumbar_meshes", "L4-L5", levels="segment", spacing_mm=1.0)
    mesh = disc_mesh(plan(patient, "L4-L5", PlanConfig(rule="keep", spacing_mm=1.5)))
    own, hexes, group = lumbar_meshes.read_disc(data_dir / "lumbar_meshes", "L45")
    theirs, mine = jacobians(own[hexes]).sum(1), volumes(mesh)
    assert 0.8 < mine.sum() / theirs.sum() < 1.0
    assert mine[mesh.group == 0].sum() / mine.sum() == pytest.approx(
        theirs[group == 0].sum() / theirs.sum(), abs=0.03
    )
