"""Surface files: units, names and formats that people have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvista as pv

from engine.patient.model.surfaces import from_surfaces, surface_file
from engine.patient.read.surface_files import UNITS_MM, read_surface


def ball(path: Path, diameter: float = 94.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh = pv.Sphere(radius=diameter / 2.0).triangulate()
    if path.suffix == ".off":
        faces = mesh.faces.reshape(-1, 4)
        lines = [" ".join(map(str, row)) for row in (*mesh.points.tolist(), *faces.tolist())]
        path.write_text("\n".join(["OFF", f"{mesh.n_points} {len(faces)} 0", *lines]))
    else:
        mesh.save(path)
    return path


@pytest.mark.parametrize("unit", UNITS_MM)
def test_a_wrong_unit_is_named_and_the_advice_works(tmp_path: Path, unit: str) -> None:
    """A vertebra of 94 mm in each unit (3.7 in), read as every other one; only cm read as inches is
    239 mm.
    """
    file = ball(tmp_path / "L4.ply", 94.0 / UNITS_MM[unit])
    for given in UNITS_MM:
        if given == unit:
            continue
        with pytest.raises(ValueError, match=rf"set source\.unit={unit} \(then 94 mm\)"):
            read_surface(file, given)
    surface, _ = read_surface(file, unit)
    assert np.ptp(surface.points_mm, axis=0).max() == pytest.approx(94.0, rel=0.01)


_PARTED = [
    (1.6, "unit=inch (then 41"),
    (4.9, "unit=inch (then 125"),
    (5.1, "unit=cm (then 51"),
    (14.0, "unit=cm"),
]


@pytest.mark.parametrize(("extent", "says"), _PARTED)
def test_inches_and_centimetres_part_at_five(tmp_path: Path, extent: float, says: str) -> None:
    with pytest.raises(ValueError) as error:
        read_surface(ball(tmp_path / "L4.stl", extent * 1.002), "mm")
    assert says in str(error.value)


def test_a_size_of_no_unit_asks_for_the_file(tmp_path: Path) -> None:
    for extent in (1.2, 400.0):
        with pytest.raises(ValueError, match="expected one vertebra"):
            read_surface(ball(tmp_path / "L4.stl", extent), "mm")


@pytest.mark.parametrize("ending", [".stl", ".ply", ".obj", ".vtp", ".vtk", ".off"])
def test_every_format_is_the_same_surface(tmp_path: Path, ending: str) -> None:
    if ending == ".obj":
        mesh = pv.Sphere(radius=47.0).triangulate()
        rows = [f"v {x} {y} {z}" for x, y, z in mesh.points] + [
            f"f {a + 1} {b + 1} {c + 1}" for _, a, b, c in mesh.faces.reshape(-1, 4)
        ]
        (tmp_path / "L4.obj").write_text("\n".join(rows))
    else:
        ball(tmp_path / f"L4{ending}")
    surface, _ = read_surface(tmp_path / f"L4{ending}", "mm")
    corner = surface.points_mm[surface.faces]
    volume = np.einsum("ij,ij->", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])) / 6.0
    assert abs(volume) == pytest.approx(4.0 / 3.0 * np.pi * 47.0**3, rel=0.02)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("sb_L4.stl", "L4"),
        ("vertebra_L4.ply", "L4"),
        ("L4_smooth.obj", "L4"),
        ("patient1_L4_v2.stl", "L4"),
        ("l4.STL", "L4"),
        ("sacrum.stl", "S1"),
        ("S1.stl", "S1"),
    ],
)
def test_names_that_say_the_level(tmp_path: Path, name: str, level: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / f"._{name}").touch()  # macOS leaves these
    (tmp_path / "L4_L5_disc.stl").touch()
    found = surface_file(tmp_path, level)
    assert found is not None and found.name == name
    assert surface_file(tmp_path, "L3") is None


def test_the_exact_name_wins_and_several_are_listed(tmp_path: Path) -> None:
    for name in ("L4_a.stl", "L4_b.stl"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"L4 is there more than once \(L4_a\.stl, L4_b\.stl\)"):
        surface_file(tmp_path, "L4")
    (tmp_path / "L4.stl").touch()
    assert surface_file(tmp_path, "L4") == tmp_path / "L4.stl"
    with pytest.raises(
        ValueError,
        match=r"no file for L5 .*vertebra_L5\.stl.*there is L4\.stl, L4_a\.stl, L4_b\.stl",
    ):
        from_surfaces(tmp_path, "L4-L5")


def test_what_is_no_surface_is_named(tmp_path: Path) -> None:
    pointer = tmp_path / "L4.stl"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    with pytest.raises(
        ValueError, match=r"holds no triangles \(it is a Git LFS pointer; run `git lfs pull`"
    ):
        read_surface(pointer, "mm")
    for ending, line in (
        (".stl", "  vertex 1,250000e+01 2 3"),
        (".obj", "v 12,5 2,0 3,1"),
        (".off", "12,5 2 3"),
    ):
        file = tmp_path / f"L5{ending}"
        file.write_text(f"solid x\n{line}\nendsolid x\n")
        with pytest.raises(ValueError, match="its numbers have decimal commas"):
            read_surface(file, "mm")
    with pytest.raises(ValueError, match=r"cannot read \.3mf; give one of \.stl"):
        read_surface(tmp_path / "L4.3mf", "mm")
