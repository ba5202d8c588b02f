"""The struts of a run's part: files, what stays, and where "along +x" is."""

from __future__ import annotations

import lib3mf
import numpy as np
import pytest

from engine import artifacts
from engine.part import surface
from engine.part.lattice import LatticeSettings
from engine.types import Design, VoxelField
from fem.report.lattice import lattice_section
from fem.report.result import Result
from scripts.run import drawings, parts

COARSE = LatticeSettings(cell_mm=2.4, voxel_mm=0.2)


def bar(folder, density):
    """A bar of 12 × 5 × 5 mm, turned by 30° about z, as the optimised part of a run folder."""
    h, angle = 0.4, np.radians(30.0)
    axes = [h * (np.arange(n) - 0.5 * (n - 1)) for n in (40, 36, 20)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    u, v = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    outline = np.maximum(np.maximum(np.abs(u) - 6.0, np.abs(v) - 2.5), np.abs(z) - 2.5)
    origin = np.array([a[0] for a in axes])
    field, rho = (
        VoxelField(a.astype(np.float32), origin, h) for a in (outline, np.full(x.shape, density))
    )
    parts.export_design(
        Design("optimised", "cage", "ti6al4v", field, None, rho), folder / "designs" / "optimised"
    )
    return folder / "designs" / "optimised"


def test_struts_are_written_once_and_anew_for_other_settings(tmp_path):
    where = bar(tmp_path, 0.5)
    found = drawings.write_lattice(tmp_path, "optimised", COARSE)
    part = surface.check(surface.read(where / "lattice.stl"))
    assert part["watertight"] and part["components"] == 1 and (where / "lattice.3mf").exists()
    assert found["exported_g"] == pytest.approx(part["volume_mm3"] * 4.43e-3, rel=1e-4)
    assert found["as_built_density"] == pytest.approx(0.5, abs=0.03)
    (where / "blueprint.json").write_text("{}")
    stamp = (where / "lattice.stl").stat().st_mtime_ns
    assert drawings.write_lattice(tmp_path, "optimised", COARSE) == artifacts.read_json(
        where / "lattice.json"
    )
    assert (where / "lattice.stl").stat().st_mtime_ns == stamp and (
        where / "blueprint.json"
    ).exists()
    other = drawings.write_lattice(tmp_path, "optimised", COARSE.model_copy(update={"build": "+x"}))
    assert other["build_direction"] == pytest.approx([np.cos(np.pi / 6), 0.5, 0.0], abs=0.02)
    assert not (where / "blueprint.json").exists(), "the sheet would tell of the other lattice"
    parts.export_design(parts.load_design(where)[0], where)
    assert not list(where.glob("lattice.*")), "struts of an earlier design"


def test_every_3mf_of_a_part_passes_strict_lib3mf_and_says_whose_it_is(tmp_path):
    where = bar(tmp_path, 0.5)
    label = parts.part_label("", "patient 7", "L4-L5", "optimised", "ti6al4v")
    parts.export_design(parts.load_design(where)[0], where, label)
    drawings.write_lattice(tmp_path, "optimised", COARSE)
    for name in ("implant", "lattice"):
        model = lib3mf.get_wrapper().CreateModel()
        reader = model.QueryReader("3mf")
        reader.SetStrictModeActive(True)
        reader.ReadFromFile(str(where / f"{name}.3mf"))
        assert reader.GetWarningCount() == 0
        meshes = model.GetMeshObjects()
        assert meshes.MoveNext() and meshes.GetCurrentMeshObject().IsManifoldAndOriented()
        group = model.GetMetaDataGroup()
        held = {
            d.GetName(): d.GetValue()
            for d in map(group.GetMetaData, range(group.GetMetaDataCount()))
        }
        assert held["use"] == "not for clinical use" and len(held["revision"]) == 12
        assert (
            (where / f"{name}.stl")
            .read_bytes()
            .startswith(b"FRAME=SEGMENT x=left y=posterior z=cranial; unit=mm")
        )
        if name == "implant":
            assert (
                held["Title"] == "cage, patient 7 L4-L5, optimised"
                and held["patient"] == "patient 7"
            )


def test_a_solid_part_has_no_struts_and_says_so(tmp_path):
    where = bar(tmp_path, 1.0)
    assert drawings.write_lattice(tmp_path, "optimised", COARSE)["solid"]
    assert not (where / "lattice.stl").exists()
    assert "is solid" in lattice_section(
        Result(title="", created="", arms={}, lattice=artifacts.read_json(where / "lattice.json"))
    )


def test_the_report_tells_of_the_struts(tmp_path):
    bar(tmp_path, 0.5)
    found = drawings.write_lattice(tmp_path, "optimised", COARSE)
    text = lattice_section(Result(title="", created="", arms={}, lattice=found))
    assert (
        "gyroid, cell 2.4 mm" in text
        and "strut, narrowest" in text
        and "powder could not leave" in text
    )
    assert "No struts" in lattice_section(Result(title="", created="", arms={}))


def test_without_a_part_it_says_what_to_run(tmp_path):
    with pytest.raises(
        ValueError, match=r"designs/optimised/implant.stl\); run scripts/optimize.py"
    ):
        drawings.write_lattice(tmp_path, "optimised", COARSE)


@pytest.mark.parametrize(
    ("least", "lattice", "words"),
    [
        (0.998, None, "11.27 g, solid"),  # what two digits show as 1 has one mass
        (0.4, None, "7.90 g by the density map; a solid outline: 11.27 g"),
        (0.4, {"as_built_g": 7.9}, "7.90 g with struts as built; a solid outline: 11.27 g"),
    ],
)
def test_the_sheet_gives_one_mass_for_the_part_and_says_of_what_the_other_would_be(
    least, lattice, words
):
    density = {"least": least, "mean": 0.7, "most": 1.0}
    figures = {
        "relative_density": density,
        "solid_mass_g": 11.27,
        "mass_g": 7.9,
        "lattice": lattice,
    }
    assert drawings.mass_words(figures) == words
