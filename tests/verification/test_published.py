"""From a real density image to a published stiffness: L2 of sub-verse004 between two pads (data set
l2_density_fe).

What is compared with what: scripts/evidence/vertebra.py, which solves the same in SfePy.

Both elements are asked, on the same voxels, law and supports:

    fully integrated      FAIM's; the engine's V-cycle preconditions conjugate gradients on the
                          plain product
    mean dilatation       the engine's own: 0.4-0.6 % softer here on 1 mm voxels
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import plain_elements as plain
import pytest

from engine import multigrid
from engine.elasticity import Grid, Medium
from engine.materials import lame
from engine.multigrid import SolverSettings, System
from scripts.evidence.vertebra import (
    BINNINGS,
    LAW,
    LOWER_PAD,
    STROKE_MM,
    UPPER_PAD,
    Vertebra,
    moduli,
    read_vertebra,
    surface_nodes,
)

SETTINGS = SolverSettings(tolerance=1e-8)
SPACING_MM = 1.0


@pytest.fixture(scope="module")
def vertebra(data_dir: Path) -> Vertebra:
    """On a grid that the solver takes."""
    folder = data_dir / "l2_density_fe"
    if not folder.is_dir():
        pytest.skip(f"l2_density_fe is not in {data_dir}; set SPINEFIT_DATA")
    image = read_vertebra(folder)
    pads = [
        (0, n - m)
        for n, m in zip(multigrid.padded_shape(image.label.shape), image.label.shape, strict=True)
    ]
    return replace(image, density=np.pad(image.density, pads), label=np.pad(image.label, pads))


# -- solves ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Compression:
    """The solved test: forces N at the loaded, the held and the pinned unknowns, stiffness N/mm
    by element."""

    top: float
    bottom: float
    pins: np.ndarray
    engine: float
    energy: float
    full: float
    iterations: tuple[int, int]


@pytest.fixture(scope="module", params=BINNINGS)
def compressed(request, vertebra: Vertebra) -> tuple[str, Compression]:
    return request.param, compress(vertebra, moduli(vertebra, request.param))


def compress(vertebra: Vertebra, e: np.ndarray) -> Compression:
    grid = Grid(e.shape, (0.0, 0.0, 0.0), SPACING_MM)
    lam, mu = lame(e, LAW.poisson)
    top, bottom = (
        surface_nodes(vertebra, UPPER_PAD, True),
        surface_nodes(vertebra, LOWER_PAD, False),
    )
    free = np.ones((3, *top.shape))
    free[2][top | bottom] = 0.0
    # three pins against sideways rigid motion; they carry nothing
    held = np.argwhere(bottom)
    first, far = held[0], held[np.abs(held[:, 0] - held[0, 0]).argmax()]
    pins = tuple(np.array([(0, *first), (1, *first), (1, *far)]).T)
    free[pins] = 0.0

    medium = Medium(*(jnp.asarray(f) for f in (lam, mu, np.zeros(e.shape))))
    system, loose = System(medium, jnp.asarray(free), None), System(medium, None, None)
    given = jnp.zeros((1, *free.shape)).at[0, 2].set(-STROKE_MM * top)
    b = -system.free * multigrid.operate(loose, given, SPACING_MM)
    hierarchy = multigrid.build(system, grid)
    u, info = multigrid.solve(
        SPACING_MM,
        SETTINGS,
        system,
        b,
        hierarchy,
        jnp.zeros_like(b),
        jnp.zeros_like(b),
        jnp.zeros(3),
    )
    assert multigrid.statuses(info, SETTINGS, ("compression",))[0].code == "ok"
    u = u + given
    force = np.asarray(multigrid.operate(loose, u, SPACING_MM))[0]

    full, iterations = fully_integrated_stiffness(e, np.asarray(u)[0], free, hierarchy)
    return Compression(
        -float(force[2][top].sum()),
        float(force[2][bottom].sum()),
        force[pins],
        -float(force[2][top].sum()) / STROKE_MM,
        float((np.asarray(u)[0] * force).sum()) / STROKE_MM**2,
        full,
        (int(info.iterations), iterations),
    )


def fully_integrated_stiffness(
    e: np.ndarray, u: np.ndarray, free: np.ndarray, hierarchy
) -> tuple[float, int]:
    """Twice the energy over the stroke squared, uᵀ K u / δ², with λ at all eight Gauss points,
    starting from displacements u.

    Flexible conjugate gradients; at a residual of 1e-4 of the first, the energy's error is of the
    order of its square.
    """
    lam, mu = lame(1.0, LAW.poisson)
    k_lam, k_mu, _ = plain.fully_integrated(SPACING_MM)
    solid = e.ravel() > 0
    index, k, modulus = (
        plain.unknowns(e.shape)[solid],
        lam * k_lam + mu * k_mu,
        e.ravel()[solid, None],
    )

    def product(v: np.ndarray) -> np.ndarray:
        return np.bincount(
            index.ravel(), (modulus * (v.ravel()[index] @ k)).ravel(), v.size
        ).reshape(v.shape)

    r = -free * product(u)
    first, p, rz, last = np.linalg.norm(r), np.zeros_like(r), np.inf, r
    for iteration in range(60):
        if np.linalg.norm(r) < 1e-4 * first:
            return float(np.vdot(u, product(u))) / STROKE_MM**2, iteration
        scale = np.linalg.norm(r)
        z = (
            scale
            * np.asarray(
                multigrid.precondition(
                    hierarchy, jnp.asarray(r[None] / scale), SPACING_MM, SETTINGS
                ),
                float,
            )[0]
        )
        p = z + max(np.vdot(z, r - last) / rz, 0.0) * p
        rz, last = np.vdot(r, z), r
        kp = free * product(p)
        alpha = np.vdot(r, p) / np.vdot(p, kp)
        u, r = u + alpha * p, r - alpha * kp
    raise AssertionError("conjugate gradients on the fully integrated elements did not converge")


# -- tests -----------------------------------------------------------------------------------------
def test_law_takes_density_in_g_cm3_and_leaves_void_soft():
    """Without data: 2980 MPa at 1 g/cm³; at and below zero nothing that carries (pads: 2500
    MPa)."""
    assert LAW.of_argument(np.array([1.0, 0.2])) == pytest.approx(
        2980.0 * np.array([1.0, 0.2]) ** 1.05, rel=1e-6
    )
    assert LAW.of_argument(np.array([-0.2, 0.0])).max() < 1e-5


def test_published_stiffness_of_l2(compressed, vertebra):
    """The figures are given to a newton per millimetre and meant for FAIM's element: 0.05 %."""
    binning, got = compressed
    print(
        f"{binning}: {got.full:.1f} N/mm fully integrated, {got.engine:.1f} by the engine;"
        f" iterations {got.iterations}"
    )
    assert vertebra.published == 12362.0
    assert got.full == pytest.approx(vertebra.figure(binning), rel=5e-4)


def test_own_element_is_a_little_softer(compressed, vertebra):
    """∫ (div u)² ≥ V (mean div u)², so that the engine's element cannot be stiffer than the
    fully integrated one. Here it is 0.56 % softer with continuous moduli and 0.46 % with the
    shifted bins (an assembled direct solve of either element agrees to 1e-7): the 0.6 % below is
    this difference, not a margin of the solver's."""
    binning, got = compressed
    assert 0.994 * got.full < got.engine < got.full
    assert got.engine == pytest.approx(vertebra.figure(binning), rel=6e-3)
    direct = {"continuous": 10487.811, "shifted bins": 12306.111}
    if binning in direct:
        assert got.engine == pytest.approx(direct[binning], rel=1e-6)


def test_reactions_balance_and_pins_carry_nothing(compressed):
    """Solved to a residual of 1e-8 of forces that are much larger than their sum."""
    _, got = compressed
    assert got.top == pytest.approx(got.bottom, rel=1e-6)
    assert np.abs(got.pins).max() < 1e-6 * got.top
    # Clapeyron: the work of the stroke is the energy
    assert got.energy == pytest.approx(got.engine, rel=1e-6)
