"""A drawing of a block whose every dimension is known: what is measured, what is hidden, and
what the files say."""

from __future__ import annotations

import io
import itertools
import sys

import ezdxf
import numpy as np
import pytest
import trimesh

from engine.part import blueprint, drawing, step
from engine.part.glb import write_glb
from engine.part.layers import dimension_text
from engine.part.sheet_dxf import write_dxf
from engine.part.sheet_pdf import write_pdf
from engine.types import Surface

LENGTH, WIDTH, LOW, HIGH = (
    24.0,
    12.0,
    8.0,
    10.0,
)  # mm; a wedge: 8 mm high at the front (y < 0), 10 at the back
HOLE = (16.0, 6.0)


def wedge() -> trimesh.Trimesh:
    """A ring: outer box LENGTH × WIDTH, a hole through it, its upper face rising from LOW to
    HIGH along y; wall 3 along y, 4 along x."""
    corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    outer, inner = 0.5 * corner * [LENGTH, WIDTH], 0.5 * corner * HOLE
    flat = np.concatenate([outer, inner])
    top = 0.5 * (LOW + HIGH) / 2 + flat[:, 1] * (HIGH - LOW) / WIDTH
    points = np.concatenate(
        [np.column_stack([flat, np.full(8, -0.5 * (LOW + HIGH) / 2)]), np.column_stack([flat, top])]
    )
    faces = []
    for i in range(4):
        j = (i + 1) % 4
        for a, b, c, d in (
            (i, j, j + 8, i + 8),
            (j + 4, i + 4, i + 12, j + 12),
            (i + 8, j + 8, j + 12, i + 12),
            (j, i, i + 4, j + 4),
        ):
            faces += [[a, b, c], [a, c, d]]
    mesh = trimesh.Trimesh(points, faces, process=False)
    assert mesh.is_watertight and mesh.volume > 0
    return mesh.subdivide().subdivide()


@pytest.fixture(scope="module")
def part():
    turn = trimesh.transformations.rotation_matrix(np.radians(25.0), [0, 0, 1])
    mesh = wedge().apply_transform(turn)
    return Surface(np.asarray(mesh.vertices) + [3.0, -4.0, 7.0], np.asarray(mesh.faces))


@pytest.fixture(scope="module")
def turned(part):
    return drawing.turned(drawing.mesh_of(part))


@pytest.fixture(scope="module")
def page(turned):
    return blueprint.sheet(
        turned[0], drawing.measure(turned[0]), [("revision", "abc123")] * 14, ["A note."]
    )


def test_it_is_turned_to_lie_along_the_sheet(turned):
    mesh, angle_deg = turned
    assert angle_deg == pytest.approx(25.0, abs=1e-6)
    assert mesh.bounds == pytest.approx(
        np.array([[-12, -6, -5], [12, 6, 5]]) + [[0, 0, 0.0], [0, 0, 0.0]], abs=0.51
    )
    assert np.ptp(mesh.vertices, axis=0)[:2] == pytest.approx([LENGTH, WIDTH])


def test_what_is_measured_is_what_was_made(turned):
    found = drawing.measure(turned[0])
    area = LENGTH * WIDTH - HOLE[0] * HOLE[1]
    assert found["volume_mm3"] == pytest.approx(area * 0.5 * (LOW + HIGH))
    assert found["size_mm"] == pytest.approx([LENGTH, WIDTH, HIGH], rel=1e-6)
    assert found["wall_mm"] == pytest.approx(3.0) and found["chamber_mm"] == pytest.approx(HOLE)
    # the middle of the front wall is 1.5 mm in, of the side walls on the middle line
    slope = (HIGH - LOW) / WIDTH
    assert found["height_mm"]["-y"] == pytest.approx(LOW + 1.5 * slope)
    assert found["height_mm"]["+y"] == pytest.approx(HIGH - 1.5 * slope)
    assert found["height_mm"]["+x"] == found["height_mm"]["-x"] == pytest.approx(0.5 * (LOW + HIGH))
    assert found["height_mm"]["middle"] is None, "a hole has no height"
    assert abs(found["angle_yz_deg"]) == pytest.approx(np.degrees(np.arctan(slope)), abs=1e-6)
    assert found["angle_xz_deg"] == pytest.approx(0.0, abs=1e-6)


def test_sections_have_their_area_and_their_hole(turned):
    outer, inner = drawing.section_outlines(turned[0], 2, 0.0)
    assert drawing.polygon_area_mm2(outer[0]) == pytest.approx(
        LENGTH * WIDTH
    ) and drawing.polygon_area_mm2(inner[0]) == pytest.approx(-HOLE[0] * HOLE[1])
    outer, inner = drawing.section_outlines(turned[0], 1, 0.0)
    assert len(outer) == 2 and not inner
    assert sum(map(drawing.polygon_area_mm2, outer)) == pytest.approx(
        (LENGTH - HOLE[0]) * 0.5 * (LOW + HIGH), rel=1e-3
    )


def test_edges_behind_the_part_are_hidden_and_those_before_it_are_not(turned):
    def length(lines):
        return sum(float(np.linalg.norm(b - a)) for a, b in lines)

    front, above = (drawing.view(turned[0], name) for name in ("side", "above"))

    # from the front: the hole's upright edges, two of 8.5 mm and behind them two of 9.5, are behind
    # the front wall, which reaches 8.5 mm up at the hole; above it the last millimetre of the two
    # behind is seen through the hole, and so is the rim that slopes up to them
    def upright(lines):
        return sum(
            float(np.ptp(line[:, 1]))
            for line in lines
            if np.ptp(line[:, 0]) < 1e-6 and abs(line[0, 0]) < 11.0
        )

    assert upright(front.hidden) == pytest.approx(2 * 8.5 + 2 * 9.5 - 2.0, abs=0.5)
    assert upright(front.visible) == pytest.approx(2.0 + 2.0, abs=0.5)
    # from above, the hole's upper rim is seen in full, its lower one lies right below it
    assert length(above.visible) >= 2 * (HOLE[0] + HOLE[1]) + 2 * (LENGTH + WIDTH) - 1.0
    assert len(above.outline) == 2, "the hole is seen through"


def test_the_build_direction_with_the_least_overhang_comes_first(turned):
    builds = drawing.orientations(turned[0])
    by_name = {b["direction"]: b["overhang_mm2"] for b in builds}
    assert builds[0]["direction"] in ("+z",) and by_name["+z"] == pytest.approx(0.0, abs=1e-9)
    # lying on its front, the back of the hole is a ceiling: 16 mm wide and as high as the part is
    # there
    assert by_name["+y"] == pytest.approx(HOLE[0] * (0.5 * (LOW + HIGH) + 3.0 / 6.0), rel=0.01)
    # standing on its slope (9.5° is no overhang of its own: nothing but the plate is below)
    assert by_name["-z"] <= by_name["+y"] + LENGTH * WIDTH


def test_the_dxf_is_sound_in_millimetres_and_at_full_size(page, tmp_path):
    path = write_dxf(page, tmp_path / "a.dxf")
    document = ezdxf.readfile(path)
    assert not document.audit().has_errors and document.units == ezdxf.units.MM
    space = document.modelspace()
    layers = {e.dxf.layer for e in space}
    assert {"VISIBLE", "HIDDEN", "DIM", "HATCH", "CUT", "CUT_ARROW", "TEXT", "FRAME"} <= layers
    measured = sorted(round(d.get_measurement(), 3) for d in space.query("DIMENSION"))
    slope = (HIGH - LOW) / WIDTH
    assert measured == pytest.approx(
        sorted([LENGTH, WIDTH, 9.0, 9.0, LOW + 1.5 * slope, HIGH - 1.5 * slope]), abs=1e-3
    )
    frame = space.query("LWPOLYLINE[layer=='FRAME']").first
    assert np.ptp(np.array(frame.get_points("xy")), axis=0) * page.scale == pytest.approx(
        [390.0, 277.0]
    )
    assert len(space.query("HATCH")) == 2


def test_pdf_and_dxf_are_the_same_twice(page, tmp_path):
    for write in (
        lambda p: write_pdf(page, p, "t"),
        lambda p: write_dxf(page, p),
    ):
        assert write(tmp_path / "a").read_bytes() == write(tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size > 10_000


# -- where it is in the patient --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("direction", "words"),
    [
        ((0, -1), "anterior"),
        ((0, 1), "posterior"),
        ((1, 0), "left"),
        ((-1, 0), "right"),
        ((np.sin(np.radians(-60.1)), -np.cos(np.radians(-60.1))), "60° right of anterior"),
        ((1, 2), "27° left of posterior"),
    ],
)
def test_bearings_are_the_patients(direction, words):
    assert drawing.bearing(np.array(direction)) == words


def test_in_segment_undoes_the_turn(part, turned):
    """The part's own points: what the sheet calls x is the long side of the part as it lies in
    the segment frame."""
    _, angle_deg = turned
    along = drawing.in_segment(np.array([1.0, 0.0]), angle_deg)
    reach = part.points_mm[:, :2] @ along
    assert np.ptp(reach) == pytest.approx(LENGTH)
    assert (
        drawing.bearing(along) == "65° left of posterior"
    )  # turned by 25° from the left towards posterior


RIM = np.stack(
    [24.0 * np.cos(np.linspace(0, 6.2, 72)), 16.0 * np.sin(np.linspace(0, 6.2, 72))], axis=-1
)


def drawn(shape_mm, turned_deg):
    """The sheet of a block of that size that stands off to the right and in front on the
    endplate."""
    block = trimesh.creation.box(shape_mm).subdivide()
    block.apply_transform(
        trimesh.transformations.rotation_matrix(np.radians(turned_deg), [0, 0, 1])
    )
    block.apply_translation([-4.0, -3.0, 6.0])
    mesh, angle_deg = drawing.turned(block)
    outer, _ = drawing.section_outlines(block, 2, 6.0)
    key = blueprint.Key(RIM, outer, angle_deg)
    return (
        blueprint.sheet(
            mesh, drawing.measure(mesh), [("revision", "abc")] * 16, ["A note. " * 30] * 5, key
        ),
        angle_deg,
    )


def test_no_view_claims_a_side_of_the_patient_that_it_does_not_show():
    page, angle_deg = drawn((28.0, 11.0, 12.0), -60.0)
    words = [t[4] for t in page.texts]
    assert angle_deg == pytest.approx(-60.0)
    assert (
        "1: long side, from 60° right of anterior" in words
        and "2: end, from 30° left of anterior" in words
    )
    assert not any("front" in w or w.startswith("from the left") for w in words)
    straight, _ = drawn((28.0, 11.0, 12.0), 0.0)
    words = [t[4] for t in straight.texts]
    assert "1: long side, from anterior" in words and "2: end, from left" in words


def test_the_key_shows_the_part_on_the_endplate_with_its_letters_the_right_way_round():
    page, _ = drawn((28.0, 11.0, 12.0), -60.0)
    at = {
        t[4]: np.array(t[1:3])
        for t in page.texts
        if t[4] in "LRAP12" and t[5] == "center" and len(t[4]) == 1 and t[2] < 76
    }
    assert set(at) == set("LRAP12")
    assert at["L"][0] < at["A"][0] < at["R"][0] and at["P"][1] < at["L"][1] < at["A"][1]
    rim, part = (
        xy for layer, xy in page.lines if layer == "KEY" and len(xy) > 4 and np.ptp(xy[:, 0]) > 3.0
    )
    offset = 0.5 * (part.min(0) + part.max(0)) - 0.5 * (rim.min(0) + rim.max(0))
    scale = np.ptp(rim[:, 0]) / np.ptp(RIM[:, 0])
    assert offset / scale == pytest.approx([4.0, 3.0], abs=0.1), (
        "to the right and anterior, so right and up on the page"
    )
    # the eye of view 1 is at 60° right of anterior, that of view 2 at 30° left of it
    eye = {n: at[n] - 0.5 * (part.min(0) + part.max(0)) for n in "12"}
    assert eye["1"][0] > 0 and eye["2"][0] < 0 and eye["1"][1] > 0 and eye["2"][1] > 0


def boxes(page):
    """Left, bottom, right, top of every text and number as the PDF has them, in mm."""
    from matplotlib.textpath import TextPath

    def extent(words, size_mm):
        box = TextPath((0.0, 0.0), words, size=size_mm).get_extents()
        return box.x0, box.y0, box.x1, box.y1

    for _, x, y, height, words, align, degrees in page.texts:
        assert degrees == 0.0
        x0, y0, x1, y1 = extent(words, 1.25 * height)
        left = x - {"left": 0.0, "center": 0.5, "right": 1.0}[align] * x1
        yield words, (left + x0, y + y0, left + x1, y + y1)
    for first, second, at, direction, length in page.dimensions:
        x, y = dimension_text(first, second, at, direction)
        number = f"{length:.2f}"
        _, _, wide, tall = extent(number, 2.8)
        yield (
            number,
            (
                (x - wide / 2, y, x + wide / 2, y + tall)
                if direction == "x"
                else (x - tall, y - wide / 2, x, y + wide / 2)
            ),
        )


@pytest.mark.parametrize(
    "shape",
    [
        (28.0, 11.0, 12.0),
        (40.0, 30.0, 14.0),
        (26.0, 10.0, 7.0),
        (50.0, 22.0, 10.0),
        (16.0, 14.0, 16.0),
    ],
)
def test_no_text_touches_the_section_lines_their_arrows_or_another_text(shape):
    page, _ = drawn(shape, -60.0)
    found = list(boxes(page))
    strokes = [xy for layer, xy in page.lines if layer in ("CUT", "CUT_ARROW")]
    assert len(strokes) == 2 + 2 * 2 * 2, "two lines, and a shaft and a head at either end of each"
    for words, (x0, y0, x1, y1) in found:
        for xy in strokes:
            path = np.concatenate(
                [a + np.linspace(0, 1, 50)[:, None] * (b - a) for a, b in itertools.pairwise(xy)]
            )
            inside = (path[:, 0] > x0) & (path[:, 0] < x1) & (path[:, 1] > y0) & (path[:, 1] < y1)
            assert not inside.any(), f"{words!r} lies on a section line"
    for i, (words, a) in enumerate(found):
        for others, b in found[i + 1 :]:
            apart = a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
            assert apart, f"{words!r} and {others!r} overlap"


def test_arrows_of_a_section_point_the_way_it_looks():
    page, _ = drawn((28.0, 11.0, 12.0), 0.0)
    shafts = [xy for layer, xy in page.lines if layer == "CUT_ARROW" and len(xy) == 2]
    ups = sorted(float(np.sign(xy[1, 1] - xy[0, 1])) for xy in shafts)
    assert ups == [
        -1.0,
        -1.0,
        1.0,
        1.0,
    ], "A-A, seen from the long side: up; B-B, seen from above: down"


def test_nothing_leaves_the_sheet_and_no_view_reaches_into_the_title_block(page):
    points = np.concatenate(
        [xy for layer, xy in page.lines if layer in ("VISIBLE", "HIDDEN", "CUT")]
    )
    assert (points > [20, 10]).all() and (points < [410, 287]).all()
    assert points[:, 1].min() > 10 + 66


def test_the_glb_is_in_metres_with_its_cranial_side_up(part, tmp_path):
    path = write_glb(part, tmp_path / "a.glb", "cage_abc")
    scene = trimesh.load(io.BytesIO(path.read_bytes()), file_type="glb")
    size = np.ptp(scene.to_geometry().vertices, axis=0)
    assert size[1] == pytest.approx(0.001 * np.ptp(part.points_mm[:, 2]), rel=1e-5)
    assert scene.to_geometry().volume == pytest.approx(
        1e-9 * (LENGTH * WIDTH - HOLE[0] * HOLE[1]) * 9.0, rel=1e-4
    )
    assert "cage_abc" in scene.geometry
    told = scene.metadata
    assert (
        told["unit"] == "metre"
        and "y up" in told["frame"]
        and "x to the patient's left" in told["segment_frame"]
    )
    corner = scene.to_geometry().vertices
    assert np.sort(
        1000.0 * np.column_stack([corner[:, 0], -corner[:, 2], corner[:, 1]]), axis=0
    ) == pytest.approx(np.sort(part.points_mm, axis=0), abs=1e-4)


def test_an_open_surface_and_one_inside_out_are_refused(part):
    with pytest.raises(ValueError, match="not closed"):
        drawing.mesh_of(Surface(part.points_mm, part.faces[1:]))
    with pytest.raises(ValueError, match="point outward"):
        drawing.mesh_of(Surface(part.points_mm, part.faces[:, ::-1]))


# -- STEP ------------------------------------------------------------------------------------------
def test_fewer_faces_stay_within_the_deviation(part):
    fine = trimesh.Trimesh(part.points_mm, part.faces, process=False).subdivide()
    mesh, reached = step.decimated(Surface(np.asarray(fine.vertices), np.asarray(fine.faces)), 0.01)
    assert len(mesh.faces) <= 600 < len(fine.faces) and reached <= 0.01
    assert mesh.volume == pytest.approx(fine.volume, rel=1e-4)


def test_step_is_a_solid_of_the_parts_volume(part, tmp_path):
    pytest.importorskip("OCP", reason="the extra `step` is not installed")
    path, reached, faces = step.write_step(part, tmp_path / "a.step", "cage")
    assert reached <= 0.05 and faces >= 16
    assert step.read_volume_mm3(path) == pytest.approx(
        (LENGTH * WIDTH - HOLE[0] * HOLE[1]) * 9.0, rel=1e-3
    )
    assert step.write_step(part, tmp_path / "b.step", "cage")[0].read_bytes() == path.read_bytes()


def test_without_its_extra_step_says_what_to_install(part, tmp_path, monkeypatch):
    for name in ("OCP", "OCP.BRepBuilderAPI"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="spinefit\\[step\\]"):
        step.write_step(part, tmp_path / "a.step", "cage")
