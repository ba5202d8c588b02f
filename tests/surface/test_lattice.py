"""The lattice: what is known of the cells, that the printed density is the asked one, and that
nothing is trapped or loose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from pydantic import ValidationError
from skimage.measure import marching_cubes

from engine.part import cells, lattice, surface
from engine.part.lattice import LatticeSettings
from engine.part.powder import loose_pieces
from engine.part.widths import medial_widths, overhang
from engine.patient.geometry.distance import surface_sdf
from engine.types import VoxelField

UP = np.array([0.0, 0.0, 1.0])


def cell(name: str, samples: int, count: int = 1) -> np.ndarray:
    phase = (np.arange(count * samples + (count == 1)) + 0.5) / samples * 2 * np.pi
    return cells.level_function(name, *np.meshgrid(phase, phase, phase, indexing="ij", sparse=True))


@pytest.mark.parametrize(("name", "area"), [("gyroid", 3.0915), ("diamond", 3.8378)])
def test_cells_are_the_minimal_surfaces(name: str, area: float) -> None:
    """Areas per cell of Schoen's gyroid and Schwarz' diamond; the nodal surfaces are within half
    a per cent. Level 0 halves the cell."""
    points, faces, _, _ = marching_cubes(cell(name, 64), 0.0, spacing=(1 / 64,) * 3)
    assert trimesh.Trimesh(points, faces).area == pytest.approx(area, rel=0.006)
    assert cells.level(name, 0.5) == pytest.approx(0.0, abs=5e-3)


@pytest.mark.parametrize("name", ["gyroid", "diamond"])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_table_of_widths(name: str, density: float) -> None:
    """The table against a coarser measurement than it was made with (48 samples a cell, 96
    there), and its symmetry: solid and void change places at 1 − ρ."""
    n = 48
    values = cell(name, n, 2) - np.quantile(cell(name, n), density)
    row = cells.widths(name)[list(cells.widths(name)[:, 0]).index(density)]
    field = values / (2 * np.pi * 1.4)
    assert medial_widths(field, 1 / n, margin=n // 2)["p1_mm"] == pytest.approx(row[1], abs=0.035)
    assert medial_widths(-field, 1 / n, margin=n // 2)["p1_mm"] == pytest.approx(row[2], abs=0.035)


def test_widths_of_known_bodies() -> None:
    """Round bars of 1.2, 0.6 and 0.4 mm that lie askew in the grid."""
    h, axis = 0.1, np.array([0.36, 0.48, 0.8])
    points = np.stack(np.meshgrid(*[h * (np.arange(60) - 29.63)] * 3, indexing="ij"), axis=-1)
    from_axis = np.linalg.norm(points - (points @ axis)[..., None] * axis, axis=-1)
    for width in (1.2, 0.6, 0.4):
        found = medial_widths(from_axis - 0.5 * width, h, margin=10)
        assert found["median_mm"] == pytest.approx(width, abs=0.03)
        assert width - 0.1 < (found["p1_mm"] or 0.0) <= width


def block(
    h: float = 0.25, density: float | None = None, lid: bool = False, size: float = 1.0
) -> tuple[VoxelField, VoxelField]:
    """A cylinder 9 mm wide and 6 mm high (times `size`), graded along x, or of one density; lid:
    solid 0.8 mm under its whole surface."""
    axes = [
        h * (np.arange(n) - 0.5 * (n - 1)) for n in (int(48 * size), int(48 * size), int(36 * size))
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    outline = np.maximum(np.hypot(x, y) - 4.5 * size, np.abs(z) - 3.0 * size).astype(np.float32)
    rho = 0.3 + 0.3 * (x + 4.5) / 9.0 if density is None else np.full(x.shape, density)
    if lid:
        rho = np.where(outline > -0.8, 1.0, rho)
    origin = np.array([a[0] for a in axes])
    return VoxelField(outline, origin, h), VoxelField(rho.astype(np.float32), origin, h)


@pytest.fixture(scope="module")
def graded() -> lattice.Lattice:
    return lattice.realise(*block(), LatticeSettings(cell_mm=1.8, voxel_mm=0.12), UP)


def test_as_built_density_is_the_asked_one(graded: lattice.Lattice) -> None:
    """The file is thinner than what is wanted by what printing adds; grown again, by distances
    of its own, it has the wanted volume."""
    f = graded.figures
    assert f["asked_density"] == pytest.approx(0.45, abs=0.01)
    assert f["as_built_density"] == pytest.approx(f["target_density"], abs=0.012)
    assert f["exported_mm3"] < 0.9 * f["as_built_mm3"]
    assert graded.surface is not None
    assert surface.check(graded.surface)["volume_mm3"] == pytest.approx(f["exported_mm3"], rel=1e-6)


def test_grading_is_where_it_was_asked(graded: lattice.Lattice) -> None:
    """Solid fraction of the file in the sparse and the dense third, against that of the whole."""
    assert graded.surface is not None
    field = surface_sdf(graded.surface, 0.15, margin_mm=1.0)
    solid = np.asarray(field.values) < 0
    x = field.origin_mm[0] + 0.15 * np.arange(solid.shape[0])
    sparse, dense = (solid[s * x > 1.5].sum() for s in (-1.0, 1.0))
    assert dense > 1.3 * sparse


def test_one_piece_and_no_voids(graded: lattice.Lattice) -> None:
    assert graded.surface is not None
    found = surface.check(graded.surface)
    assert found["watertight"] and found["manifold"] and found["components"] == 1
    assert next(b for b in graded.figures["powder"] if b["ball_mm"] == 0.2)["leaves"] == 1.0


def test_limits_hold(graded: lattice.Lattice) -> None:
    """Struts of at least 0.3 mm as built and 0.2 mm in the file (0.02 of measuring), pores of
    0.3 mm in the middle of the range."""
    f = graded.figures
    assert f["as_built"]["strut"]["p1_mm"] > 0.28 and f["exported"]["strut"]["p1_mm"] > 0.18
    assert f["as_built"]["pore"]["median_mm"] > 0.3
    assert f["exported"]["strut"]["median_mm"] < f["as_built"]["strut"]["median_mm"]


def test_too_thin_is_raised_and_said() -> None:
    settings = LatticeSettings(voxel_mm=0.14)
    made = lattice.realise(*block(density=0.08, size=0.7), settings, UP)
    low, _ = lattice.density_range(settings)
    assert made.figures["raised_share"] == pytest.approx(1.0)
    assert made.figures["target_density"] == pytest.approx(low, abs=1e-6)
    assert made.figures["as_built_density"] == pytest.approx(low, abs=0.02)


def test_dense_is_solid_and_says_so() -> None:
    made = lattice.realise(*block(density=0.97), LatticeSettings(), UP)
    assert made.surface is None and made.figures["solid"]


def test_closed_pores_are_filled() -> None:
    """Under a closed lid no powder can leave: all of it becomes solid."""
    made = lattice.realise(
        *block(density=0.5, lid=True, size=0.8), LatticeSettings(voxel_mm=0.14), UP
    )
    f = made.figures
    assert f["lattice_share"] > 0.2
    assert f["filled_mm3"] == pytest.approx(0.5 * f["lattice_share"] * f["outline_mm3"], rel=0.25)
    assert f["as_built_density"] == pytest.approx(1.0, abs=0.01)


def test_gain_goes_with_the_build_direction() -> None:
    """Without gain the file is what is wanted; built on its side another file comes out, of the
    same as-built density."""
    outline, rho = block(density=0.4, size=0.7)
    plain = LatticeSettings(voxel_mm=0.14)
    none = lattice.realise(
        outline, rho, plain.model_copy(update={"gain_mm": (0.0, 0.0)}), UP
    ).figures
    up, side = (
        lattice.realise(outline, rho, plain, b).figures for b in (UP, np.array([1.0, 0.0, 0.0]))
    )
    assert none["exported_mm3"] == pytest.approx(none["as_built_mm3"], rel=0.01)
    assert up["exported_mm3"] < 0.93 * none["exported_mm3"]
    for f in (up, side):
        assert f["as_built_density"] == pytest.approx(0.4, abs=0.015)
    assert up["build_direction"] != side["build_direction"]


def test_loose_pieces_go() -> None:
    """A second body that no strut holds to the first, inside one outline."""
    part = np.full((30, 20, 20), 1.0)
    part[2:20, 5:15, 5:15] = -1.0
    part[24:27, 8:11, 8:11] = -1.0
    loose = loose_pieces(part, np.full(part.shape, -1.0), 0.1)
    assert loose.sum() == 27 and loose[25, 9, 9]


def test_overhang_of_a_table() -> None:
    """A plate on a leg: the plate's underside less the leg's top, and nothing of what lies on
    the plate."""
    leg, plate = trimesh.creation.box((2, 2, 4)), trimesh.creation.box((6, 6, 1))
    plate.apply_translation([0, 0, 2.5])
    both = trimesh.util.concatenate([leg, plate])
    found = overhang(surface.Surface(np.asarray(both.vertices), np.asarray(both.faces)), UP)
    assert found["area_mm2"] == pytest.approx(36.0)
    assert found["widest_patch_mm"] == pytest.approx(2 * np.sqrt(36 / np.pi))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cell_mm": 0.8, "voxel_mm": 0.06}, "raise cell_mm"),
        ({"voxel_mm": 0.3}, "too coarse"),
        ({"gain_mm": (0.2, 0.1)}, "along, across"),
        ({"cell": "octet"}, "gyroid"),
        ({"struts": 1}, "Extra inputs"),
    ],
)
def test_settings_say_what_is_wrong(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LatticeSettings(**given)  # type: ignore[arg-type]


def test_grids_must_agree() -> None:
    outline, rho = block()
    with pytest.raises(ValueError, match="density grid"):
        lattice.realise(outline, replace(rho, values=rho.values[:-1]), LatticeSettings(), UP)
