"""From a real density image to a published stiffness: L2 of sub-verse004 between two pads (data set l2_density_fe).

Walle, Matheson, Boyd 2025 (doi 10.1101/2025.04.19.649449) report 12 362 N/mm, computed with FAIM: fully integrated trilinear
voxels of 1 mm, E = 2980 ρ^1.05, top of the upper pad moved by −0.2 mm, bottom of the lower one held, both free sideways.
An independent solve of the same voxels gives 10 547 N/mm with the law applied to each voxel's density. The published value
comes out when its 128 density bins are reproduced one place too high (inferred from the numbers, not confirmed by the
authors; the true centres give 10 444). The figures are acceptance tests; nothing is calibrated to the shifted one.

Both elements are asked, on the same voxels, law and supports:

    fully integrated      FAIM's; the engine's V-cycle preconditions conjugate gradients on the plain product
    mean dilatation       the engine's own: 0.4-0.6 % softer here on 1 mm voxels
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import nibabel
import numpy as np
import plain_elements as plain
import pytest
from scipy import ndimage

from engine import multigrid
from engine.elasticity import Grid, Medium
from engine.materials import bone_law, lame
from engine.multigrid import SolverSettings, System

LAW = bone_law("verse19fem")
PAD_MPA, LOWER_PAD, UPPER_PAD, BINS, LEAST_MG_CM3, STROKE_MM = 2500.0, 5, 6, 128, -31, 0.2
SETTINGS = SolverSettings(tolerance=1e-8)
SPACING_MM = 1.0


@dataclass(frozen=True)
class Vertebra:
    """Density (mg/cm³, K2HPO4) and labels (1-4 bone, 5 and 6 pads) on a grid that the solver takes, and the published row."""

    density: np.ndarray
    label: np.ndarray
    published: float


@pytest.fixture(scope="module")
def vertebra(data_dir: Path) -> Vertebra:
    folder = data_dir / "l2_density_fe"
    if not folder.is_dir():
        pytest.skip(f"l2_density_fe is not in {data_dir}; set SPINEFIT_DATA")
    density, label = (
        np.asarray(nibabel.load(folder / f"sub-verse004_0000_vertebra_21_{name}.nii.gz").dataobj) for name in ("im", "seg")
    )
    box = ndimage.find_objects((label > 0).astype(int))[0]
    shape = multigrid.padded_shape(label[box].shape)
    pads = [(0, n - m) for n, m in zip(shape, label[box].shape, strict=True)]
    with (folder / "verse19fem_AppendixA.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["verse_ID"] == "4.0" and r["target_vertebra"] == "L2")
    return Vertebra(
        np.pad(density[box].astype(float), pads), np.pad(label[box].astype(int), pads), float(row["Stiffness (linear) [N/mm]"])
    )


# -- moduli --------------------------------------------------------------------------------------------------
def binned(vertebra: Vertebra, shift: int) -> np.ndarray:
    """Densities by bin, as published: whole mg/cm³ from −31 up, 0 is no bone, equal bins over what is left.

    shift   how many places too high the centre is read
    """
    whole = np.trunc(np.maximum(vertebra.density, LEAST_MG_CM3))
    bone = whole[(vertebra.label > 0) & (vertebra.label < LOWER_PAD) & (whole != 0)]
    edges = np.linspace(bone.min(), bone.max(), BINS + 1)
    place = np.clip(np.digitize(whole, edges) - 1, 0, BINS - 1)
    return edges[0] + (place + shift + 0.5) * (edges[1] - edges[0])


def moduli(vertebra: Vertebra, binning: str) -> np.ndarray:
    """E of every voxel, MPa; 0 is void. The two loose fragments of two voxels are dropped."""
    bone = (vertebra.label > 0) & (vertebra.label < LOWER_PAD)
    density = {"continuous": vertebra.density, "true bins": binned(vertebra, 0), "shifted bins": binned(vertebra, 1)}[binning]
    if binning == "shifted bins":
        bone &= np.trunc(vertebra.density) != 0
    e = np.where(bone, LAW.of_argument(density / 1000), 0.0)
    e[vertebra.label >= LOWER_PAD] = PAD_MPA
    piece, _ = ndimage.label(e > 0)
    size = np.bincount(piece.ravel())[1:]
    assert sorted(size)[:-1] == [2, 2]
    e[piece != 1 + size.argmax()] = 0.0
    return e


def surface_nodes(vertebra: Vertebra, label: int, top: bool) -> np.ndarray:
    """The nodes on the pad's outer plane."""
    voxels = vertebra.label == label
    planes = np.flatnonzero(voxels.any(axis=(0, 1)))
    plane = planes[-1] if top else planes[0]
    out = np.zeros(tuple(n + 1 for n in voxels.shape), bool)
    for i in (0, 1):
        for j in (0, 1):
            out[i : i + voxels.shape[0], j : j + voxels.shape[1], plane + top] |= voxels[:, :, plane]
    return out


# -- solves --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Compression:
    """The solved test: forces N at the loaded, the held and the pinned unknowns, stiffness N/mm by element."""

    top: float
    bottom: float
    pins: np.ndarray
    engine: float
    energy: float
    full: float
    iterations: tuple[int, int]


@pytest.fixture(scope="module", params=["continuous", "true bins", "shifted bins"])
def compressed(request, vertebra: Vertebra) -> tuple[str, Compression]:
    return request.param, compress(vertebra, moduli(vertebra, request.param))


def compress(vertebra: Vertebra, e: np.ndarray) -> Compression:
    grid = Grid(e.shape, (0.0, 0.0, 0.0), SPACING_MM)
    lam, mu = lame(e, LAW.poisson)
    top, bottom = surface_nodes(vertebra, UPPER_PAD, True), surface_nodes(vertebra, LOWER_PAD, False)
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
        SPACING_MM, SETTINGS, system, b, hierarchy, jnp.zeros_like(b), jnp.zeros_like(b), jnp.zeros(3)
    )
    assert multigrid.statuses(info, SETTINGS, ("compression",))[0].code == "ok"
    u = u + given
    force = np.asarray(multigrid.operate(loose, u, SPACING_MM))[0]

    full, iterations = fully_integrated_stiffness(e, np.asarray(u)[0], free, hierarchy)
    return Compression(
        -float(force[2][top].sum()), float(force[2][bottom].sum()), force[pins], -float(force[2][top].sum()) / STROKE_MM,
        float((np.asarray(u)[0] * force).sum()) / STROKE_MM**2, full, (int(info.iterations), iterations),
    )  # fmt: skip


def fully_integrated_stiffness(e: np.ndarray, u: np.ndarray, free: np.ndarray, hierarchy) -> tuple[float, int]:
    """Twice the energy over the stroke squared, uᵀ K u / δ², with λ at all eight Gauss points, starting from displacements u.

    Flexible conjugate gradients; at a residual of 1e-4 of the first, the energy's error is of the order of its square.
    """
    lam, mu = lame(1.0, LAW.poisson)
    k_lam, k_mu, _ = plain.fully_integrated(SPACING_MM)
    solid = e.ravel() > 0
    index, k, modulus = plain.unknowns(e.shape)[solid], lam * k_lam + mu * k_mu, e.ravel()[solid, None]

    def product(v: np.ndarray) -> np.ndarray:
        return np.bincount(index.ravel(), (modulus * (v.ravel()[index] @ k)).ravel(), v.size).reshape(v.shape)

    r = -free * product(u)
    first, p, rz, last = np.linalg.norm(r), np.zeros_like(r), np.inf, r
    for iteration in range(60):
        if np.linalg.norm(r) < 1e-4 * first:
            return float(np.vdot(u, product(u))) / STROKE_MM**2, iteration
        scale = np.linalg.norm(r)
        z = scale * np.asarray(multigrid.precondition(hierarchy, jnp.asarray(r[None] / scale), SPACING_MM, SETTINGS), float)[0]
        p = z + max(np.vdot(z, r - last) / rz, 0.0) * p
        rz, last = np.vdot(r, z), r
        kp = free * product(p)
        alpha = np.vdot(r, p) / np.vdot(p, kp)
        u, r = u + alpha * p, r - alpha * kp
    raise AssertionError("conjugate gradients on the fully integrated elements did not converge")


# -- tests ---------------------------------------------------------------------------------------------------
def test_law_takes_density_in_g_cm3_and_leaves_void_soft():
    """Without data: 2980 MPa at 1 g/cm³; at and below zero nothing that carries (pads: 2500 MPa)."""
    assert LAW.of_argument(np.array([1.0, 0.2])) == pytest.approx(2980.0 * np.array([1.0, 0.2]) ** 1.05, rel=1e-6)
    assert LAW.of_argument(np.array([-0.2, 0.0])).max() < 1e-5


def figure(binning: str, vertebra: Vertebra) -> float:
    """N/mm: of the independent voxel solve, or published."""
    return {"continuous": 10547.0, "true bins": 10444.0, "shifted bins": vertebra.published}[binning]


def test_published_stiffness_of_l2(compressed, vertebra):
    """The figures are given to a newton per millimetre and meant for FAIM's element: 0.05 %."""
    binning, got = compressed
    print(f"{binning}: {got.full:.1f} N/mm fully integrated, {got.engine:.1f} by the engine; iterations {got.iterations}")
    assert vertebra.published == 12362.0
    assert got.full == pytest.approx(figure(binning, vertebra), rel=5e-4)


def test_own_element_is_a_little_softer(compressed, vertebra):
    """∫ (div u)² ≥ V (mean div u)², so that the engine's element cannot be stiffer than the fully integrated one. Here it is
    0.56 % softer with continuous moduli and 0.46 % with the shifted bins (an assembled direct solve of either element agrees
    to 1e-7): the 0.6 % below is this difference, not a margin of the solver's."""
    binning, got = compressed
    assert 0.994 * got.full < got.engine < got.full
    assert got.engine == pytest.approx(figure(binning, vertebra), rel=6e-3)
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
