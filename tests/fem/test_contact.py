"""Unilateral contact against closed forms (those of scripts/evidence/contact.py)."""

from __future__ import annotations

import numpy as np
import pytest

from fem.elastic.contact import split
from fem.mesh.build import TetMesh
from fem.mesh.tets import bricks
from scripts.evidence import contact as closed


def test_splitting_keeps_the_volume_and_finds_both_sides():
    b = closed.two_blocks()
    assert b.at.area_mm2 == pytest.approx(18.0)
    assert np.allclose(b.at.normal, [0.0, 0.0, -1.0])  # out of the upper block
    assert b.d.weight_mm3.sum() == pytest.approx(18.0 * 8.0)
    assert not set(np.unique(b.at.faces.nodes)) & set(np.unique(b.d.cell_nodes[b.d.labels == 0]))


def test_a_region_that_touches_nothing_is_named():
    points, tets = bricks([np.arange(3.0)] * 3)
    with pytest.raises(ValueError, match="region 4 touches no other"):
        split(TetMesh(points, tets, np.zeros(len(tets), int)), 4)


@pytest.mark.parametrize("friction", [0.0, 0.5])
def test_patch_test_and_nothing_holds_what_is_pulled_off(friction):
    contact, at = closed.patch(friction)
    assert [s.code for s in contact.solution.status] == ["ok", "failed"]
    assert "nothing holds" in contact.solution.status[1].text
    assert np.allclose(contact.pressure[:, 0], 5.0, rtol=1e-3)
    assert np.isnan(contact.solution.u[:, 1]).all()
    assert contact.figures(at)[0]["resultant_n"] == pytest.approx(90.0, rel=1e-3)


def test_an_eccentric_force_opens_the_joint_by_the_closed_form():
    contact, at, expected, c = closed.eccentric()
    assert contact.solution.status[0].code == "ok", contact.solution.status
    assert np.abs(contact.pressure[:, 0] - expected).max() < 0.02 * expected.max()
    assert contact.figures(at)[0]["touching_percent"] == pytest.approx(
        100.0 * c / closed.LENGTH, abs=3.0
    )
    assert contact.opening_mm.max() > 0.1


@pytest.mark.parametrize("push", [10.0, 60.0])
def test_coulomb_friction_carries_up_to_mu_n(push):
    contact, carried, taken = closed.coulomb(push)
    assert contact.solution.status[0].code == "ok", contact.solution.status
    assert carried == pytest.approx(min(push, 36.0), rel=0.01, abs=0.05)
    assert taken == pytest.approx(max(push - 36.0, 0.0), rel=0.02, abs=0.05)


def test_hertz():
    """Contact radius 4.3 mm on elements of 2 mm: the pressure, a mean of few points, is within
    10 % there (2.6 % at 1 mm)."""
    contact, pressure, radius = closed.hertz(3)
    assert contact.solution.status[0].code == "ok", contact.solution.status
    assert radius == pytest.approx(1.0, rel=0.05)
    assert pressure == pytest.approx(1.0, rel=0.1)
