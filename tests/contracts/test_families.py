"""What every implant family keeps, whatever file it lives in: each one of engine.implants and
each YAML of conf/implant."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured import choices

from engine import implants
from engine.implants import Anatomy, anatomy_at
from engine.materials import IMPLANTS
from engine.sdf import fill

CONFIGURED = {name: (conf["family"], conf["settings"]) for name, conf in choices("implant").items()}
#: Families that need no settings stand for themselves.
CASES = CONFIGURED | {
    name: (name, {})
    for name in implants.families()
    if name not in {f for f, _ in CONFIGURED.values()}
}
#: Stock faces are made by the study from the same YAML.
CASES["stock_faces"] = ("cage", {**CONFIGURED["tlif_cage"][1], "faces": "stock"})
CORNERS = ("initial", "lower", "upper")


@pytest.fixture(scope="module", params=CASES)
def family(request):
    name, settings = CASES[request.param]
    return implants.load(name, settings)


def parameters(family, corner: str = "initial") -> dict[str, jax.Array]:
    return {k: jnp.asarray(getattr(g, corner)) for k, g in family.groups().items()}


@pytest.fixture(scope="module")
def evaluated(family, anatomy):
    """Fields, and the gradient of a random weighting of them, at the three corners."""
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=anatomy.disc.shape)) for _ in range(3)]

    def run(p, anatomy):  # not compiled: that would take ten times longer than the run
        def weighted(p):
            f = family.fields(p, anatomy)
            parts = (fill(f.implant, 2.0), fill(f.window, 2.0), f.relative_density)
            return sum(jnp.vdot(w, part) for w, part in zip(weights, parts, strict=True)), f

        (_, f), slope = jax.value_and_grad(weighted, has_aux=True)(p)
        return f, slope

    return {corner: run(parameters(family, corner), anatomy) for corner in CORNERS}


def has_part(family, evaluated) -> bool:
    return float(evaluated["initial"][0].implant.min()) < 100


def test_every_family_is_covered_and_conforms_to_the_protocol():
    assert {f for f, _ in CASES.values()} == set(implants.families())
    assert set(implants.families()) >= {"cage", "full_endplate", "none"}


def test_bounds_are_consistent(family):
    for name, g in family.groups().items():
        assert g.initial.shape == g.lower.shape == g.upper.shape, name
        assert np.all(np.isfinite([g.lower, g.initial, g.upper])), name
        assert np.all(g.lower <= g.initial) and np.all(g.initial <= g.upper), name
        assert g.unit, name
    assert family.material in IMPLANTS
    assert isinstance(family.rods, bool)
    assert isinstance(family.describe(), dict)


@pytest.mark.parametrize("case", CASES)
def test_families_of_equal_settings_are_one_static_argument_and_others_are_not(case):
    """Compiled functions take families as static arguments: equal ones must not compile anew,
    different ones must not share code."""
    name, settings = CASES[case]
    first, again = (implants.load(name, copy.deepcopy(settings)) for _ in range(2))
    assert first == again and hash(first) == hash(again)
    if name == "none":
        return  # it has no settings
    inset = settings.get("rim_inset_mm", 1.0) + 0.5
    other = implants.load(name, {**settings, "rim_inset_mm": inset})
    assert first != other and hash(first) != hash(other)


@pytest.mark.parametrize("corner", CORNERS)
def test_fields_and_their_gradients_are_finite(family, evaluated, anatomy, corner):
    fields, slope = evaluated[corner]
    for name in ("implant", "window", "relative_density"):
        values = np.asarray(getattr(fields, name))
        assert values.shape == anatomy.disc.shape, name
        assert np.all(np.isfinite(values)), name
    for name, value in slope.items():
        assert np.all(np.isfinite(np.asarray(value))), name
    assert np.all(
        (np.asarray(fields.relative_density) > 0)
        & (np.asarray(fields.relative_density) <= 1 + 1e-12)
    )


def test_every_group_changes_the_device(family, evaluated):
    """No idle parameters at the start: each group has a gradient."""
    for name, value in evaluated["initial"][1].items():
        assert np.abs(np.asarray(value)).max() > 0, name


def test_part_is_negative_inside_and_has_a_volume(family, evaluated, anatomy):
    if not has_part(family, evaluated):
        pytest.skip("this family has no part")
    implant = np.asarray(evaluated["initial"][0].implant)
    volume = float(fill(jnp.asarray(implant), 2.0).sum()) * 8.0
    rim_area = float((np.asarray(anatomy.rim)[:, :, 0] < 0).sum()) * 4.0
    assert 200 < volume < 20 * rim_area, (
        "mm³; a cage is some cm³, never more than the disc space's column"
    )
    assert implant[np.asarray(anatomy.rim) > 3].min() > 0, "outside the endplates' rims"
    far = [
        implant[0],
        implant[-1],
        implant[:, 0],
        implant[:, -1],
        implant[:, :, 0],
        implant[:, :, -1],
    ]
    assert min(side.min() for side in far) > 0, "the border of the region is outside"


def test_part_and_graft_chamber_exclude_each_other(family, evaluated):
    for corner in CORNERS:
        fields = evaluated[corner][0]
        assert np.all(np.maximum(fields.implant, fields.window) >= 0)


def test_conforming_part_stays_out_of_the_bone_at_the_start(family, evaluated, anatomy):
    """Initial offsets are 0: inside the part, neither bone. (Stock faces are seated, and
    exempt.)"""
    if getattr(getattr(family, "settings", None), "faces", "") == "stock":
        pytest.skip("stock faces dip into the bone")
    inside = np.asarray(evaluated["initial"][0].implant) < 0
    bone = np.minimum(np.asarray(anatomy.caudal), np.asarray(anatomy.cranial))
    assert np.all(bone[inside] >= 0)


def test_fields_don_t_depend_on_how_the_points_are_laid_out(
    family, evaluated, anatomy, segment, disc_points
):
    """A regular grid [x, y, z, 3] takes a shortcut along z that loose points [n, 3] don't."""
    pick = np.random.default_rng(1).integers(0, disc_points[..., 0].size, 40)
    loose = anatomy_at(segment, disc_points.reshape(-1, 3)[pick])
    assert isinstance(loose, Anatomy)
    got = family.fields(parameters(family), loose)
    for name in ("implant", "window", "relative_density"):
        on_grid = np.asarray(getattr(evaluated["initial"][0], name)).ravel()[pick]
        np.testing.assert_allclose(
            np.asarray(getattr(got, name)), on_grid, rtol=1e-10, atol=1e-10, err_msg=name
        )


@pytest.mark.parametrize("case", CASES)
def test_unknown_settings_are_refused(case):
    name, settings = CASES[case]
    with pytest.raises(ValueError, match="colour"):
        implants.load(name, {**settings, "colour": "red"})


def test_unknown_family_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=f"'screw' is unknown; choose one of {', '.join(implants.families())}"
    ):
        implants.load("screw", {})


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][0] != "none"])
def test_unknown_material_lists_the_known_ones(case):
    name, settings = CASES[case]
    with pytest.raises(ValueError, match=f"'wood' is unknown; choose one of {', '.join(IMPLANTS)}"):
        implants.load(name, {**settings, "material": "wood"})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x_mm": [3, -3]}, "not an interval"),
        ({"wall_mm": [0.1, 3]}, "thinner than the 0.5 mm"),
        ({"relative_density": [0.0, 1.0]}, r"must lie in \[0.05, 1\]"),
        ({"length_mm": 500}, "length_mm"),
    ],
)
def test_cage_settings_out_of_range_say_what_to_do(change, text):
    with pytest.raises(ValueError, match=text):
        implants.load("cage", {**CONFIGURED["tlif_cage"][1], **change})


def test_start_outside_its_bounds_is_refused():
    with pytest.raises(ValueError, match="leave their bounds"):
        implants.load("cage", {**CONFIGURED["tlif_cage"][1], "start_x_mm": 99.0}).groups()
