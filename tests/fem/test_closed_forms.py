"""Closed forms and NAFEMS benchmarks on coarse meshes (scripts/evidence/code.py says which;
`make validation` runs finer ones)."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.evidence import code


@pytest.mark.parametrize("order", [1, 2])
def test_a_manufactured_solution_converges_with_the_elements_orders(order):
    errors = code.manufactured(order, (4, 8))
    assert code.orders(errors["l2"])[0] == pytest.approx(order + 1, abs=0.2)
    assert code.orders(errors["energy"])[0] == pytest.approx(order, abs=0.1)


CASES = {
    "lame": lambda steps: code.lame_cylinder(0.3, steps),
    "lame, nearly incompressible": lambda steps: code.lame_cylinder(0.4999, steps),
    "kirsch": code.kirsch,
    "le1": code.le1,
    "le10": code.le10,
}


@pytest.mark.parametrize("name", CASES)
def test_closed_forms_and_benchmarks(name):
    for row in CASES[name]((1, 2)):
        assert abs(row.error_percent) < 2.0, row
        if row.case.startswith("Lamé"):  # and the finer mesh is nearer
            off = np.abs(np.array(row.values) / row.target - 1.0)
            assert off[1] < 0.7 * off[0], row
