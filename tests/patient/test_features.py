"""Features against the phantom's own formulas. A 1 mm grid rounds by up to 0.3 mm
(test_anatomy); tolerances say so."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import label

from engine.patient.anatomy.features import Features, features
from engine.patient.anatomy.sections import RING_DROP_MM
from engine.patient.geometry.distance import isosurface
from engine.patient.geometry.frames import inverse, move_endplate, vertebra_frame
from engine.patient.phantoms.phantom import PhantomSpec, Shape
from engine.types import PatientModel, VoxelField, rigid
from tests.patient.conftest import MILD, SKEWED

#: The laminae meet in a sharp groove of slope 13:17 in the midline; a grid of 1 mm fills it by up
#: to 0.5·13/17 = 0.4 mm, plus 0.1.
GROOVE_MM = 0.5
SPECS = {"mild": MILD, "skewed": SKEWED}


def _shape_frame(spec: PhantomSpec) -> np.ndarray:
    """From the vertebra's frame (origin between the endplates' centres) to the shape's."""
    shape = Shape(spec)
    return vertebra_frame(shape.plate("superior"), shape.plate("inferior"))


def _chord(
    shape: Shape, point: np.ndarray, direction: np.ndarray, reach: float = 60.0, inside: bool = True
) -> float:
    """Length of the bone (or of the gap) through a point along a direction, by the exact
    formula, 0.02 mm steps."""
    t = np.arange(0.0, reach, 0.02)
    total = 0.0
    for sign in (1.0, -1.0):
        within = shape(point + sign * t[:, None] * direction) < 0.0
        total += t[int(np.argmax(within != inside))]
    return total


@pytest.fixture(scope="module")
def found(mild: PatientModel, skewed: PatientModel) -> dict[str, tuple[Features, Features]]:
    result = {}
    for key, patient in (("mild", mild), ("skewed", skewed)):
        upper, lower = patient.vertebrae
        result[key] = features(upper, below=lower), features(lower, above=upper)
    return result


@pytest.mark.parametrize("which", ["mild", "skewed"])
def test_endplate_relief_is_the_dish(
    which: str, found: dict[str, tuple[Features, Features]]
) -> None:
    spec = SPECS[which]
    shape = Shape(spec)
    a, b = 0.5 * spec.width_mm, 0.5 * spec.depth_mm
    for f in found[which]:
        for side in ("superior", "inferior"):
            relief, plate = getattr(f, side), shape.plate(side)
            assert relief.concavity_mm == pytest.approx(spec.concavity_mm, abs=0.1)
            # the dish's floor is flat: 0.1 mm of depth are 4 mm across
            centre_y = (np.array([0.0, -0.5, 0.0]) - plate.centre_mm)[1]
            assert (
                np.hypot(relief.concavity_offset_mm[0], relief.concavity_offset_mm[1] - centre_y)
                < 4.0
            )
            # exact height: x, y of the dish are the shape's own (tilt 2°: cos = 0.9994)
            x, y = np.meshgrid(relief.x_mm, relief.y_mm, indexing="ij")
            rho2 = (x / (0.78 * a)) ** 2 + ((y + plate.centre_mm[1] + 0.5) / (0.74 * b)) ** 2
            exact = -spec.concavity_mm * np.clip(1.0 - rho2, 0.0, None) ** 2
            inner = rho2 < 1.0
            assert np.isfinite(relief.height_mm[inner]).all()
            assert np.abs(relief.height_mm - exact)[inner].max() < 0.25
            assert np.sqrt(np.mean((relief.height_mm - exact)[inner] ** 2)) < 0.08
            assert np.abs(relief.rim_height_range_mm).max() < 0.3  # the rim is flat
            rim = plate.rim_mm - plate.centre_mm
            area = 0.5 * np.linalg.norm(np.cross(rim, np.roll(rim, -1, axis=0)).sum(axis=0))
            assert relief.area_mm2 == pytest.approx(area, rel=1e-6)


def test_ring_ends_where_the_dish_is_as_deep(found: dict[str, tuple[Features, Features]]) -> None:
    spec = MILD
    plate = Shape(spec).plate("superior")
    rho = np.sqrt(1.0 - np.sqrt(RING_DROP_MM / spec.concavity_mm))
    rim = plate.rim_mm - plate.centre_mm
    shares = np.linspace(0.0, 1.0, 2001)
    at = plate.centre_mm[:2] + shares[:, None, None] * rim[None, :, :2]
    inside = (
        np.hypot(at[..., 0] / (0.39 * spec.width_mm), (at[..., 1] + 0.5) / (0.37 * spec.depth_mm))
        < rho
    )
    ends = shares[len(shares) - 1 - np.argmax(inside[::-1], axis=0)]
    exact = float(np.median((1.0 - ends) * np.linalg.norm(rim, axis=1)))
    for f in found["mild"]:
        assert f.superior is not None and f.superior.ring_width_mm == pytest.approx(exact, abs=0.5)


def test_flat_endplate_has_no_ring(mild: PatientModel) -> None:
    lower = mild.vertebrae[1]
    # the dish filled up with bone to 0.1 mm under the rim plane
    field = lower.sdf
    points = field.points() - lower.superior.centre_mm
    height = points @ lower.superior.normal
    radius = np.linalg.norm(points - height[..., None] * lower.superior.normal, axis=-1)
    plug = np.maximum(np.abs(height + 3.1) - 3.0, radius - 14.0)
    filled = replace(
        lower,
        sdf=VoxelField(
            np.minimum(np.asarray(field.values), plug), field.origin_mm, field.spacing_mm
        ),
    )
    f = features(filled)
    assert (
        f.superior is not None
        and f.superior.concavity_mm < 0.5
        and f.superior.ring_width_mm is None
    )
    assert "flat" in f.missing["superior.ring_width_mm"]


@pytest.mark.parametrize("which", ["mild", "skewed"])
def test_pedicles(
    which: str, found: dict[str, tuple[Features, Features]], request: pytest.FixtureRequest
) -> None:
    spec = SPECS[which]
    shape, own_to_shape = Shape(spec), _shape_frame(spec)
    patient: PatientModel = request.getfixturevalue(which)
    sx = spec.width_mm / 50.0
    for f, body in zip(found[which], patient.vertebrae, strict=True):
        to_shape = own_to_shape @ inverse(vertebra_frame(body.superior, body.inferior))
        for side in ("left", "right"):
            p = f.pedicles[side]
            # axis from (14.5, −8) to (18.5, 13): 4·sx sideways over 21 back, level
            assert p.convergence_deg == pytest.approx(
                np.degrees(np.arctan2(4.0 * sx, 21.0)), abs=0.05
            )
            assert p.sagittal_deg == pytest.approx(0.0, abs=0.05)
            exact = shape.pedicle(side)
            along = (exact[1] - exact[0]) / np.linalg.norm(exact[1] - exact[0])
            u = np.cross([0.0, 0.0, 1.0], along)
            # chords of the formula through the outline's own centroid
            outline = rigid(to_shape, p.outline_mm)
            flat = np.stack([(outline - exact[0]) @ u, outline[:, 2] - exact[0][2]], -1)
            cross = flat[:, 0] * np.roll(flat[:, 1], -1) - np.roll(flat[:, 0], -1) * flat[:, 1]
            centroid = ((flat + np.roll(flat, -1, axis=0)) * cross[:, None]).sum(axis=0) / (
                3.0 * cross.sum()
            )
            at = exact[0] + ((outline[0] - exact[0]) @ along) * along
            at = at + centroid[0] * u + centroid[1] * np.array([0.0, 0.0, 1.0])
            assert p.width_mm == pytest.approx(_chord(shape, at, u), abs=0.3)
            assert p.height_mm == pytest.approx(
                _chord(shape, at, np.array([0.0, 0.0, 1.0])), abs=0.3
            )
            # capsule of radius 4.8, stretched by 1/0.78 along z; the blends with its neighbours
            # only add
            assert (
                9.6 - 0.3 < p.inscribed_diameter_mm <= p.width_mm + 0.1
                and p.height_mm > 2 * 4.8 / 0.78 - 0.3
            )
            assert p.width_mm < 9.6 + 2.0
            t = np.arange(0.0, 90.0, 0.02)
            chord = (
                t[int(np.flatnonzero(shape(exact[0] + (t[:, None] + 0.5) * along) > 0.0)[0])] + 0.5
            )
            assert p.chord_mm == pytest.approx(chord, abs=0.3)


@pytest.mark.parametrize("which", ["mild", "skewed"])
def test_tips_and_spinous_process(
    which: str, found: dict[str, tuple[Features, Features]], request: pytest.FixtureRequest
) -> None:
    spec = SPECS[which]
    shape, own_to_shape = Shape(spec), _shape_frame(spec)
    patient: PatientModel = request.getfixturevalue(which)
    sx, sz, back = spec.width_mm / 50.0, spec.body_height_mm / 27.0, 0.5 * spec.depth_mm
    for f, body in zip(found[which], patient.vertebrae, strict=True):
        to_shape = own_to_shape @ inverse(vertebra_frame(body.superior, body.inferior))
        at = {key: rigid(to_shape, point) for key, point in f.points.items()}
        for side, sign in (("left", 1.0), ("right", -1.0)):
            # spherical ends: the extreme coordinate is exact, the others lie within a vertex's
            # reach of the pole
            assert np.allclose(
                at[f"transverse_{side}"],
                [sign * (37.0 * sx + 4.0), back + 14.0, 6.5 * sz],
                atol=[0.3, 1.2, 1.2],
            )
            assert np.allclose(
                at[f"superior_articular_{side}"],
                [sign * 20.5 * sx, back + 16.0, 20.0 * sz + 4.8],
                atol=[1.5, 1.5, 0.3],
            )
            if body.name == "L5":  # L4's are hollowed for the joint
                assert np.allclose(
                    at[f"inferior_articular_{side}"],
                    [sign * 14.5 * sx, back + 21.5, -19.0 * sz - 5.0],
                    atol=[1.5, 1.5, 0.3],
                )
        assert at["spinous_tip"][1] == pytest.approx(back + 52.0, abs=0.3)
        # front of the arch in the midline, by the formula at any height
        y = np.arange(back + 5.0, back + 30.0, 0.02)
        fronts = []
        for z in np.arange(-14.0, 6.0, 0.25):
            inside = shape(np.column_stack([np.zeros_like(y), y, np.full_like(y, z)])) < 0.0
            fronts += [y[int(np.argmax(inside))]] if inside.any() else []
        assert at["spinolaminar"][1] == pytest.approx(min(fronts), abs=GROOVE_MM)
        assert f.spinous_length_mm == pytest.approx(
            float(np.linalg.norm(at["spinous_tip"] - at["spinolaminar"])), abs=1e-9
        )


@pytest.mark.parametrize("which", ["mild", "skewed"])
def test_canal_and_body(
    which: str, found: dict[str, tuple[Features, Features]], request: pytest.FixtureRequest
) -> None:
    spec = SPECS[which]
    shape, own_to_shape = Shape(spec), _shape_frame(spec)
    patient: PatientModel = request.getfixturevalue(which)
    top = shape.plate("superior")
    for f, body in zip(found[which], patient.vertebrae, strict=True):
        to_shape = own_to_shape @ inverse(vertebra_frame(body.superior, body.inferior))
        canal = f.canal
        assert canal is not None
        centre = rigid(to_shape, canal.centre_mm)
        assert centre[0] == pytest.approx(0.0, abs=0.2)
        assert canal.ap_mm == pytest.approx(
            _chord(shape, centre, np.array([0.0, 1.0, 0.0]), inside=False), abs=GROOVE_MM
        )
        x, y = np.arange(-30.0, 30.0, 0.1), centre[1] + np.arange(-25.0, 25.0, 0.1)
        grid = np.stack(np.meshgrid(x, y, indexing="ij"), -1)
        parts, _ = label(
            shape(np.concatenate([grid, np.full((*grid.shape[:2], 1), centre[2])], -1)) > 0.0
        )
        hole = parts == parts[len(x) // 2, len(y) // 2]
        assert canal.area_mm2 == pytest.approx(hole.sum() * 0.01, rel=0.03)
        assert canal.transverse_mm == pytest.approx(np.ptp(x[hole.any(axis=1)]), abs=0.4)
        made = f.body
        assert made is not None
        # heights between the planes z = ±(h/2 − y·tan t) at the rim's midpoints, along the chords
        # between them
        t = 0.5 * np.radians(spec.body_wedge_deg)
        rim = top.rim_mm
        front, rear = (
            rim[np.argmin(np.abs(rim[:, 0]) + 1e3 * (np.sign(rim[:, 1]) != s))][1] for s in (-1, 1)
        )
        for value, y_at in (
            (made.height_anterior_mm, front),
            (made.height_middle_mm, top.centre_mm[1]),
            (made.height_posterior_mm, rear),
        ):
            assert value == pytest.approx(spec.body_height_mm - 2.0 * y_at * np.tan(t), abs=0.1)
        middle = spec.body_height_mm - 2.0 * top.centre_mm[1] * np.tan(t)
        assert made.height_central_bone_mm == pytest.approx(
            middle - 2.0 * spec.concavity_mm, abs=0.3
        )
        assert made.width_middle_mm == pytest.approx(
            0.93 * spec.width_mm, abs=0.4
        )  # the waist takes 7 %
        y0 = float(rigid(own_to_shape, np.zeros(3))[1])
        assert made.depth_middle_mm == pytest.approx(
            _chord(shape, np.array([0.0, y0, 0.0]), np.array([0.0, 1.0, 0.0])), abs=0.3
        )


def test_facets_keep_the_gap_and_face_each_other(
    found: dict[str, tuple[Features, Features]], mild: PatientModel
) -> None:
    upper, lower = found["mild"]
    spec = MILD
    for side, sign in (("left", 1.0), ("right", -1.0)):
        above, below = upper.facets[f"inferior_{side}"], lower.facets[f"superior_{side}"]
        assert above.gap_least_mm == pytest.approx(spec.facet_gap_mm, abs=0.25)
        assert spec.facet_gap_mm < above.gap_mean_mm < spec.facet_gap_mm + 1.5
        assert np.degrees(np.arccos(-above.normal @ below.normal)) < 15.0
        gap = float(np.linalg.norm(above.centre_mm - below.centre_mm))
        assert spec.facet_gap_mm - 0.5 < gap < spec.facet_gap_mm + 1.5
        body = mild.vertebrae[1]
        turn = inverse(vertebra_frame(body.superior, body.inferior))[:3, :3]
        assert (
            sign * (turn @ below.normal)[0] < 0.0 and (turn @ below.normal)[1] > 0.0
        )  # they look medially and back
    left, right = (lower.facets[f"superior_{side}"] for side in ("left", "right"))
    assert left.area_mm2 == pytest.approx(right.area_mm2, rel=0.3)


def test_flat_facets_are_measured_exactly(mild: PatientModel) -> None:
    """Two pairs of blocks: 12 by 16 mm faces, 2 mm apart, 40° to the sagittal plane and 10° off
    the vertical."""
    lower = mild.vertebrae[1]
    pose = vertebra_frame(lower.superior, lower.inferior)
    x, y, z = np.arange(-40.0, 40.1, 0.5), np.arange(15.0, 55.1, 0.5), np.arange(-10.0, 40.1, 0.5)
    own = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1)
    values, other = np.full(own.shape[:3], 50.0), np.full(own.shape[:3], 50.0)
    a, b = np.radians(40.0), np.radians(10.0)
    exact = {}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        normal = np.array([-sign * np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b)])
        along = np.cross(normal, [0.0, 0.0, 1.0])
        along /= np.linalg.norm(along)
        axes = np.stack([along, np.cross(normal, along), normal])
        middle = np.array([sign * 20.0, 35.0, 15.0])
        exact[side] = normal, middle
        for at, target in ((-3.0, values), (5.0, other)):
            q = np.abs((own - middle - at * normal) @ axes.T) - np.array([6.0, 8.0, 3.0])
            box = np.linalg.norm(np.maximum(q, 0.0), axis=-1) + np.minimum(q.max(axis=-1), 0.0)
            np.minimum(target, box, out=target)
    # both in the vertebra's own frame, to which the vertebra is brought
    at_home = replace(
        lower,
        superior=move_endplate(inverse(pose), lower.superior),
        inferior=move_endplate(inverse(pose), lower.inferior),
        surface=isosurface(VoxelField(values, own[0, 0, 0], 0.5)),
    )
    f = features(at_home, above=replace(lower, sdf=VoxelField(other, own[0, 0, 0], 0.5)))
    for side, (normal, middle) in exact.items():
        facet = f.facets[f"superior_{side}"]
        assert np.degrees(np.arccos(facet.normal @ normal)) < 2.0
        assert facet.sagittal_plane_deg == pytest.approx(40.0, abs=2.0)
        assert facet.gap_mean_mm == pytest.approx(
            2.0, abs=0.15
        ) and facet.gap_least_mm == pytest.approx(2.0, abs=0.15)
        assert facet.area_mm2 == pytest.approx(
            192.0, rel=0.1
        )  # the block's edge cells are shared with its sides
        assert np.linalg.norm(facet.centre_mm - middle) < 0.3


def test_what_is_missing_says_why(
    mild: PatientModel, found: dict[str, tuple[Features, Features]]
) -> None:
    upper, lower = mild.vertebrae
    alone = features(lower)
    assert (
        set(alone.missing) >= {"facets.superior_left", "facets.inferior_right"} and not alone.facets
    )
    assert "needs the vertebra above" in alone.missing["facets.superior_left"]
    # a laminectomy: everything behind the facets' level taken away within 12 mm of the midline
    points = rigid(inverse(vertebra_frame(lower.superior, lower.inferior)), lower.sdf.points())
    cut = np.minimum(np.minimum(points[..., 1] - 28.0, 12.0 - np.abs(points[..., 0])), 5.0)
    opened = replace(
        lower,
        sdf=VoxelField(
            np.maximum(np.asarray(lower.sdf.values), cut), lower.sdf.origin_mm, lower.sdf.spacing_mm
        ),
    )
    f = features(opened)
    assert f.canal is None and "arch is open" in f.missing["canal"]
    assert f.spinous_length_mm is None and "canal" in f.missing["spinous_length_mm"]
    assert f.body is not None and len(f.pedicles) == 2
    f = features(replace(upper, pedicles={"left": upper.pedicles["left"]}))
    assert (
        set(f.pedicles) == {"left"}
        and "no right pedicle axis" in f.missing["pedicles.right"]
        and f.canal is None
    )
    for each in (f, *found["mild"]):
        text = json.dumps(each.as_dict(maps=True), allow_nan=False)
        assert json.loads(text)["name"] == each.name
    assert "height_mm" not in found["mild"][0].as_dict()["superior"]
