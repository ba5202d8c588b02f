"""What the validation of random designs says of numbers that are known, and what it draws."""

from __future__ import annotations

import numpy as np
import pytest

from engine.patient import PlanConfig, phantom_segment
from scripts.evidence import convergence, designs
from scripts.run import arms as studies
from tests.scripts.test_config import composed


def rows(ratio, n=9):
    truth = np.linspace(100.0, 500.0, n)
    found = [
        {
            "number": i,
            "kind": "stock",
            "status": "ok",
            "text": "",
            "sfepy": {"yielded_bone": t},
            "engine": {"yielded_bone": t * r},
        }
        for i, (t, r) in enumerate(zip(truth, ratio, strict=True))
    ]
    return [*found, {"number": n, "kind": "stock", "status": "failed", "text": "no mesh"}]


def test_rank_bias_and_spread_are_those_of_the_ratios():
    (same,) = designs.statistics(rows(np.full(9, 0.9)))
    assert (same["spearman"], same["designs"]) == (pytest.approx(1.0), 9)
    assert (same["bias_percent"], same["spread_percent"]) == (
        pytest.approx(-10.0),
        pytest.approx(0.0, abs=1e-9),
    )
    (turned,) = designs.statistics(
        rows(np.linspace(100.0, 500.0, 9)[::-1] / np.linspace(100.0, 500.0, 9))
    )
    assert turned["spearman"] == pytest.approx(-1.0)
    assert designs.statistics(rows(np.ones(9))[-1:]) == []


def test_designs_are_drawn_within_bounds_and_again_from_the_same_seed(tmp_path):
    segment = phantom_segment(spacing_mm=1.5, plan_config=PlanConfig(spacing_mm=1.5))
    study = studies.make(segment, composed("solver.spacing_mm=3.5").study)
    first, again = (designs.draw(study, 3, 1) for _ in range(2))
    assert [d.kind for d in first] == ["stock", "conforming", "optimised"]
    s = study.cage.settings
    for one, same in zip(first, again, strict=True):
        assert all(np.array_equal(one.values[k], same.values[k]) for k in one.values)
        assert s.x_mm[0] <= one.values["pose"][0] <= s.x_mm[1]
        assert s.y_mm[0] <= one.values["pose"][1] <= s.y_mm[1]
    for name, group in study.cage.groups().items():
        assert (first[2].values[name] >= np.asarray(group.lower) - 1e-9).all(), name
        assert (first[2].values[name] <= np.asarray(group.upper) + 1e-9).all(), name
    assert not np.array_equal(first[0].values["pose"], first[1].values["pose"])
    picture = designs.scatter(rows(np.full(9, 0.9)), tmp_path / "scatter.png")
    assert picture.stat().st_size > 5000


@pytest.mark.parametrize("ratios", [(1.25, 1.25), (1.35, 1.15)])
@pytest.mark.parametrize("power", [1.0, 1.7])
def test_richardson_finds_the_order_and_the_limit_of_a_power_law(ratios, power):
    sizes = np.array([1.0, 1.0 / ratios[0], 1.0 / (ratios[0] * ratios[1])])
    found = convergence.estimate("stock", "yielded_bone", tuple(2.0 + 0.3 * sizes**power), ratios)
    assert found.order == pytest.approx(power, abs=1e-6)
    assert found.limit == pytest.approx(2.0, abs=1e-9)
    assert found.error_percent == pytest.approx(15.0, abs=1e-6)


def test_values_that_do_not_fall_in_line_have_no_order_but_an_error():
    found = convergence.estimate("stock", "yielded_bone", (100.0, 104.0, 101.0))
    assert found.order is None and found.limit is None
    assert found.error_percent == pytest.approx(100.0 * 4.0 / 101.0)
    slow = convergence.estimate("stock", "yielded_bone", (100.0, 101.0, 101.99))  # order near 0
    assert slow.order is None and slow.error_percent == pytest.approx(100.0 * 1.99 / 101.99)
