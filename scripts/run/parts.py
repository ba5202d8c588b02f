"""Designs written as part files and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine import artifacts
from engine.materials import IMPLANTS
from engine.part import surface
from engine.part.meshfiles import PartLabel
from engine.types import Design, Surface


def part_label(title: str, patient: str, level: str, arm: str, material: str) -> PartLabel:
    """What a part's 3MF says of it; without a title of the run, patient and level make one."""
    words = title or f"cage, {patient} {level}"
    name = IMPLANTS[material].source.split(" [")[0].split(";")[0]
    return PartLabel(f"{words}, {arm.replace('_', ' ')}", patient, level, arm, name)


def export_design(design: Design, folder: Path, label: PartLabel | None = None) -> None:
    """Fields, parameters and printable surface of one arm. label: for the 3MF's metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (
        *folder.glob("blueprint.*"),
        *folder.glob("lattice.*"),
        *folder.glob("implant.glb"),
    ):  # of an earlier design
        stale.unlink()
    head = {
        "arm": design.arm,
        "family": design.family,
        "material": design.material,
        "parameters": design.parameters,
    }
    found: dict[str, Any] = {}
    if design.implant is not None:
        for name in ("implant", "window", "relative_density"):
            if (field := getattr(design, name)) is not None:
                artifacts.save_field(folder / f"{name}.npz", field)
        mesh = surface.extract(design.implant)
        found = surface.check(mesh)
        surface.export(mesh, folder, "implant", label)
        if design.family != "full_endplate":  # a solid block, a floor and no part
            surface.write_density_vtu(
                folder / "density.vtu", design.implant, design.relative_density
            )
    artifacts.write_json(
        folder / "design.json", {**head, "measures": design.measures, "surface": found}
    )


def load_design(folder: Path) -> tuple[Design, Surface | None]:
    """A design and its exported surface, read back from the STL that would be printed."""
    head = artifacts.read_json(folder / "design.json")
    fields = {
        name: (
            artifacts.load_field(folder / f"{name}.npz")
            if (folder / f"{name}.npz").exists()
            else None
        )
        for name in ("implant", "window", "relative_density")
    }
    design = Design(
        head["arm"],
        head["family"],
        head["material"],
        **fields,
        parameters=head["parameters"],
        measures=head["measures"],
    )
    return design, surface.read(folder / "implant.stl") if design.implant is not None else None
