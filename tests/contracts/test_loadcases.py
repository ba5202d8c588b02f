"""What every load case keeps: each kind of engine.loadcases and each YAML of conf/loadcases."""

from __future__ import annotations

import numpy as np
import pytest
from configured import choices

from engine import loadcases
from engine.boundary import BoundarySettings, boundary
from engine.types import stack_loads

CONFIGURED = {name: conf["cases"] for name, conf in choices("loadcases").items()}
EVERY = [(group, name) for group, cases in CONFIGURED.items() for name in cases]


def test_every_kind_is_configured_somewhere():
    assert {spec["kind"] for cases in CONFIGURED.values() for spec in cases.values()} == set(
        loadcases.kinds()
    )


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_load_case_is_finite_and_sourced(segment, group, name):
    case = loadcases.make(name, CONFIGURED[group][name], segment)
    assert case.name == name
    assert case.source.strip(), "every load names its source"
    wrench = np.concatenate([case.wrench.force_n, case.wrench.moment_nmm, case.wrench.point_mm])
    assert wrench.shape == (9,) and np.all(np.isfinite(wrench))
    # daily loads of a lumbar segment stay below these [S26-S29]
    assert 0 < case.preload_n <= 5000 and np.linalg.norm(case.wrench.moment_nmm) <= 20e3
    assert np.linalg.norm(case.wrench.force_n) == pytest.approx(case.preload_n, rel=1e-12)


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_names_say_the_sign_of_the_moment(segment, group, name):
    """Segment frame: + about x flexes, + about y bends left, + about z turns left
    (engine.types)."""
    moment = loadcases.make(name, CONFIGURED[group][name], segment).wrench.moment_nmm
    expected = {
        "standing": (0, 0, 0),
        "flexion": (1, 0, 0),
        "extension": (-1, 0, 0),
        "left_bending": (0, 1, 0),
        "right_bending": (0, -1, 0),
        "left_rotation": (0, 0, 1),
        "right_rotation": (0, 0, -1),
    }
    np.testing.assert_array_equal(np.sign(moment), expected[name])


@pytest.mark.parametrize("group", CONFIGURED)
def test_group_is_stackable_and_symmetric(segment, group):
    """Names differ, a standing load is there (misalignment needs it), and left and right are
    mirror images."""
    cases = {name: loadcases.make(name, spec, segment) for name, spec in CONFIGURED[group].items()}
    assert stack_loads(list(cases.values())) == tuple(cases)
    assert "standing" in cases
    for what in ("bending", "rotation"):
        left, right = cases[f"left_{what}"], cases[f"right_{what}"]
        np.testing.assert_array_equal(left.wrench.moment_nmm, -right.wrench.moment_nmm)
        np.testing.assert_array_equal(left.wrench.force_n, right.wrench.force_n)


def test_follower_preload_runs_through_both_centres_and_points_down(segment):
    case = loadcases.make(
        "only", {"kind": "follower_moment", "preload_n": 400, "source": "test"}, segment
    )
    line = segment.caudal.inferior.centre_mm - case.wrench.point_mm
    assert np.abs(np.cross(case.wrench.force_n, line)).max() < 1e-9 * 400 * np.linalg.norm(line)
    assert case.wrench.force_n @ line > 0 and case.wrench.force_n[2] < 0
    np.testing.assert_array_equal(case.wrench.point_mm, segment.cranial.superior.centre_mm)


def test_unknown_kind_lists_the_known_ones(segment):
    for spec in ({"kind": "hammer", "preload_n": 1}, {"preload_n": 1}):
        with pytest.raises(
            ValueError, match=f"'blow'.* is unknown; choose one of {', '.join(loadcases.kinds())}"
        ):
            loadcases.make("blow", spec, segment)


def test_wrong_settings_are_refused_by_name(segment):
    good = {"kind": "follower_moment", "preload_n": 500, "source": "test"}
    for change, text in (
        ({"colour": 1}, "colour"),
        ({"preload_n": -1}, "preload_n"),
        ({"flexion_nm": 7500}, "flexion_nm"),
    ):
        with pytest.raises(ValueError, match=text):
            loadcases.make("one", {**good, **change}, segment)
    with pytest.raises(ValueError, match="source"):
        loadcases.make("one", {"kind": "follower_moment", "preload_n": 500}, segment)


def test_spec_is_left_as_it_was(segment):
    spec = {"kind": "follower_moment", "preload_n": 500, "source": "test"}
    loadcases.make("one", spec, segment)
    assert spec == {"kind": "follower_moment", "preload_n": 500, "source": "test"}


def test_boundary_needs_a_load_and_distinct_names(segment):
    case = loadcases.make(
        "one", {"kind": "follower_moment", "preload_n": 500, "source": "test"}, segment
    )
    with pytest.raises(ValueError, match="no load case given"):
        boundary(segment, [], False, BoundarySettings())
    with pytest.raises(ValueError, match="must differ"):
        boundary(segment, [case, case], False, BoundarySettings())
