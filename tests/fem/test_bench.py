"""Virtual bench tests on the analytic segment: the ring of titanium between dished ends, against
E A / h."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fem_segment import BODY_MM, CROP_MM, DISC_MM, HALF, make_boundary

from engine.materials import IMPLANTS
from fem.mesh.build import COARSE
from fem.solve import FemSettings
from scripts.run import mechanical_tests as bench


@pytest.fixture(scope="module")
def tests(segment, design, implant_surface, tmp_path_factory):
    coarse = replace(COARSE, size_fine_mm=2.8, background_axial_mm=2.2, background_mm=2.8)
    return bench.bench_part(
        segment,
        design,
        implant_surface,
        make_boundary(segment),
        CROP_MM,
        coarse,
        FemSettings(order=1, quadrature=2),
        123.0,
        tmp_path_factory.mktemp("bench"),
    )


def test_compression_is_a_column_between_steel_blocks(tests):
    """Two elastic ends in series with the column: K is below E A / h, and the mean stress F/A is
    between p99 and nothing."""
    area = np.pi * (15.0 * 11.0 - 9.0 * 6.0)
    # depth of the dishes over the ring, about
    ends = 2.0 * 2.0 * (1.0 - ((12.0 / 22.0) ** 2 + (8.5 / 16.0) ** 2) / 2.0)
    column = IMPLANTS["ti6al4v"].e_mpa * area / (DISC_MM + ends)
    got = tests["compression"]
    # steel layers of 8 mm and the load's spreading in them are in it
    assert 0.45 * column < got["stiffness"] < 0.95 * column
    assert bench.FORCE_N / area < got["von_mises_p99_mpa"] < 4.0 * bench.FORCE_N / area
    assert got["load_at_fatigue"] == pytest.approx(
        1000.0 * 225.0 / got["von_mises_p99_mpa"], rel=1e-3
    )
    assert got["load_at_yield"] / got["load_at_fatigue"] == pytest.approx(795.0 / 225.0, rel=1e-3)


def test_shear_is_softer_and_foam_carries_the_subsidence(tests):
    assert tests["compression_shear"]["stiffness"] < tests["compression"]["stiffness"]
    assert tests["torsion"]["stiffness"] > 0.0
    s = tests["subsidence"]
    assert s["k_s_n_per_mm"] < 0.2 * s["k_d_n_per_mm"]
    assert 1.0 / s["k_s_n_per_mm"] == pytest.approx(
        1.0 / s["k_d_n_per_mm"] + 1.0 / s["k_p_n_per_mm"]
    )
    # two foam columns in series, E A/2h, held and loaded in the middle of layers of 4 mm; softer,
    # as the ring presses on a part
    column = 123.0 * np.pi * HALF[0] * HALF[1] / (2.0 * (BODY_MM - 2.0))
    assert 0.6 * column < s["k_p_n_per_mm"] < column


def test_safety_is_told_only_of_loads_that_are_given(tests):
    assert bench.safety_of(tests, bench.Acceptance()) == {}
    safety = bench.safety_of(tests, bench.Acceptance(compression_n=2000.0))
    assert safety["compression"]["fatigue"] == pytest.approx(
        tests["compression"]["load_at_fatigue"] / 2000.0
    )
