"""What stands on a blueprint, from a run folder: identifiers, measured sizes, material, mass,
build direction, revision."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine import artifacts
from engine.materials import IMPLANTS
from engine.part import blueprint, drawing, lattice, step, surface
from engine.part.glb import write_glb
from engine.part.lattice import LatticeSettings
from engine.part.meshfiles import PartLabel, geometry_revision
from engine.part.sheet_dxf import write_dxf
from engine.part.sheet_pdf import write_pdf
from engine.types import Design
from scripts.run.config import ARMS
from scripts.run.folder import read_config
from scripts.run.parts import load_design, part_label

log = logging.getLogger("spinefit")
NOTICE = "Made by spinefit, a research and design tool, not a cleared medical device."
_AGREE = "to be agreed"


class BlueprintConfig(BaseModel):
    """See conf/blueprint.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: str
    arms: tuple[str, ...] = Field(("optimised",), min_length=1)
    tolerances: str = _AGREE
    finish: str = _AGREE
    lattice: LatticeSettings | None = None
    step: bool = False
    step_deviation_mm: float = Field(0.05, gt=0, le=1.0)

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [a for a in arms if a not in ARMS]:
            raise ValueError(f"{', '.join(wrong)} unknown; choose among {', '.join(ARMS)}")
        return arms


def write_blueprint(
    folder: Path, arm: str = "optimised", tolerances: str = _AGREE, finish: str = _AGREE
) -> dict[str, Path]:
    """Write blueprint.pdf, .dxf, .json and implant.glb into <folder>/designs/<arm>; returns their
    paths.

    Raises ValueError when the run holds no part of that arm or its surface is not closed.
    """
    where = _where_of(folder, arm)
    design, part = load_design(where)
    assert part is not None and design.implant is not None
    mesh, angle_deg = drawing.turned(drawing.mesh_of(part))
    measured = drawing.measure(mesh)
    meta = artifacts.read_json(folder / "meta.json")
    segment = artifacts.read_json(folder / "segment" / "segment.json")
    revision = hashlib.sha256(
        surface_bytes(part) + f"{meta['identity']}{arm}{tolerances}{finish}".encode()
    ).hexdigest()[:12]
    figures: dict[str, Any] = {
        **_identity(folder, segment, design),
        "turned_about_z_deg": angle_deg,
        **measured,
        **_masses(design, measured["volume_mm3"], where),
        "build": drawing.orientations(mesh),
        "tolerances": tolerances,
        "finish": finish,
        "revision": revision,
        "geometry_revision": geometry_revision(part),
        "date": meta["created"][:10],
        "configuration": meta["identity"],
    }
    page = blueprint.sheet(
        mesh, measured, _title(figures), _notes(figures), _key(segment, part, angle_deg)
    )
    figures["scale"] = page.scale
    title = f"{figures['title']}, {arm}, {revision}"
    return {
        "drawing": write_pdf(page, where / "blueprint.pdf", title),
        "drawing (DXF)": write_dxf(page, where / "blueprint.dxf"),
        "geometry (GLB)": write_glb(part, where / "implant.glb", f"{arm}_{revision}"),
        "figures": artifacts.write_json(where / "blueprint.json", figures),
    }


def _where_of(folder: Path, arm: str) -> Path:
    """The folder of an arm's design. Raises ValueError where it holds no part."""
    where = folder / "designs" / arm
    if not (where / "implant.stl").exists():
        raise ValueError(
            f"{folder} holds no part of the {arm} arm (designs/{arm}/implant.stl); run"
            " scripts/optimize.py to its end first"
        )
    return where


def _identity(folder: Path, segment: dict[str, Any], design: Design) -> dict[str, Any]:
    """Whose part it is and what kind of part."""
    config = read_config(folder)
    approach = config.study.settings.get("approach")
    name = f"{approach or ''} cage, {segment['patient']} {segment['name']}"
    return {
        "title": config.title or name.strip(),
        "patient": segment["patient"],
        "level": segment["name"],
        "plan": segment["plan"]["rule"],
        "arm": design.arm,
        "family": design.family,
        "approach": approach,
        "material": IMPLANTS[design.material].source.split(" [")[0].split(";")[0],
    }


def _masses(design: Design, volume_mm3: float, where: Path) -> dict[str, Any]:
    """Relative density and masses, as built where the struts of a lattice were made."""
    density = _densities(design)
    solid_g = volume_mm3 * IMPLANTS[design.material].density_g_cm3 / 1000.0
    record = where / "lattice.json"
    struts = artifacts.read_json(record) if record.exists() else None
    if struts is not None and struts["solid"]:
        struts = None
    return {
        "relative_density": density,
        "solid_mass_g": solid_g,
        "mass_g": struts["as_built_g"] if struts else solid_g * density["mean"],
        "lattice": struts,
    }


def write_lattice(folder: Path, arm: str, settings: LatticeSettings) -> dict[str, Any]:
    """The arm's relative density as struts: lattice.stl and lattice.3mf (unless the part is solid)
    and lattice.json in designs/<arm>; returns what was measured. What is there of the same design
    and settings stays.

    Raises ValueError when the run holds no part of that arm, surface.ExportError when no clean
    surface comes out.
    """
    where = _where_of(folder, arm)
    design, part = load_design(where)
    assert part is not None and design.implant is not None
    key = artifacts.digest((design.implant, design.relative_density, settings.model_dump()))
    record = where / "lattice.json"
    if record.exists() and (before := artifacts.read_json(record)).get("key") == key:
        return before
    for name in ("stl", "3mf"):
        (where / f"lattice.{name}").unlink(missing_ok=True)
    mesh, angle_deg = drawing.turned(drawing.mesh_of(part))
    direction = (
        drawing.orientations(mesh)[0]["direction"] if settings.build == "auto" else settings.build
    )
    turn = np.radians(angle_deg)
    frame = np.array(
        [[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0]]
    )
    if design.relative_density is None:
        figures: dict[str, Any] = {"solid": True}
    else:
        log.info("%s: struts of the lattice …", arm)
        made = lattice.realise(
            design.implant, design.relative_density, settings, frame @ drawing.DIRECTIONS[direction]
        )
        figures = made.figures
        if made.surface is not None:
            surface.export(made.surface, where, "lattice", _label(folder, design))
    solid = IMPLANTS[design.material]
    for what in ("outline", "exported", "as_built"):
        if f"{what}_mm3" in figures:
            figures[f"{what}_g"] = figures[f"{what}_mm3"] * solid.density_g_cm3 / 1000.0
    figures |= {"arm": arm, "build": direction, "settings": settings.model_dump(), "key": key}
    (where / "blueprint.json").unlink(
        missing_ok=True
    )  # the sheet tells of the lattice: it is to be drawn again
    artifacts.write_json(record, figures)
    return figures


def _label(folder: Path, design: Design) -> PartLabel | None:
    """Whose part it is; None in a folder that holds designs only."""
    segment = folder / "segment" / "segment.json"
    if not segment.exists():
        return None
    meta = artifacts.read_json(segment)
    return part_label(
        read_config(folder).title, meta["patient"], meta["name"], design.arm, design.material
    )


def write_step(folder: Path, arm: str, deviation_mm: float) -> Path:
    """Write <folder>/designs/<arm>/implant.step. Raises ValueError as
    engine.part.step.write_step, or when the run holds no such part."""
    where = _where_of(folder, arm)
    path, reached_mm, faces = step.write_step(
        surface.read(where / "implant.stl"), where / "implant.step", arm, deviation_mm
    )
    log.info("%s: %d flat faces, within %.3f mm of the exported surface", path, faces, reached_mm)
    return path


def surface_bytes(part: surface.Surface) -> bytes:
    return (
        np.ascontiguousarray(part.points_mm, "<f8").tobytes()
        + np.ascontiguousarray(part.faces, "<i8").tobytes()
    )


def _densities(design: Any) -> dict[str, float]:
    """Relative density within the part: least, mean, most (1: solid)."""
    if design.relative_density is None:
        return {"least": 1.0, "mean": 1.0, "most": 1.0}
    inside = np.asarray(design.implant.values) < 0.0
    values = np.asarray(design.relative_density.values)
    values = values[inside] if values.shape == inside.shape else values.ravel()
    return {"least": float(values.min()), "mean": float(values.mean()), "most": float(values.max())}


def _title(f: dict[str, Any]) -> list[tuple[str, str]]:
    x, y, z = f["size_mm"]
    rho = f["relative_density"]
    spread = f"{rho['least']:.2f} to {rho['most']:.2f}, mean {rho['mean']:.2f}"
    build, scale = f["build"][0], blueprint.ratio(blueprint.scale_of(f["size_mm"]))
    return [
        ("title", f["title"]),
        ("patient, level", f"{f['patient']}, {f['level']}"),
        ("plan", str(f["plan"])),
        (
            "arm, family, approach",
            f"{f['arm'].replace('_', ' ')}, {f['family']}, {f['approach'] or '—'}",
        ),
        ("material", f["material"]),
        ("volume of the outline", f"{f['volume_mm3']:.0f} mm³"),
        ("mass", mass_words(f)),
        ("size x × y × z", f"{x:.2f} × {y:.2f} × {z:.2f} mm"),
        ("relative density", "1: solid throughout" if _is_solid(f) else spread),
        (
            "build direction",
            f"{build['direction']}, overhang {build['overhang_mm2']:.0f} mm² below 45°",
        ),
        ("tolerances", f["tolerances"]),
        ("surface finish", f["finish"]),
        ("scale, projection, units", f"{scale}, first angle, mm"),
        ("revision of the sheet; of the geometry", f"{f['revision']}; {f['geometry_revision']}"),
        ("date, sheet", f"{f['date']}, 1 of 1"),
        ("use", "not for clinical use"),
    ]


def _is_solid(f: dict[str, Any]) -> bool:
    """No place of the part is less than 99.5 % dense, which two digits show as 1."""
    return bool(f["relative_density"]["least"] >= 0.995)


def mass_words(f: dict[str, Any]) -> str:
    """One mass for the part as it is delivered, and what the other figure would be of."""
    if _is_solid(f):
        return f"{f['solid_mass_g']:.2f} g, solid"
    how = "with struts as built" if f["lattice"] else "by the density map"
    return f"{f['mass_g']:.2f} g {how}; a solid outline: {f['solid_mass_g']:.2f} g"


def _key(segment: dict[str, Any], part: surface.Surface, turned_deg: float) -> blueprint.Key:
    """Rim of the caudal endplate and the part's outer outline half way up, in the segment frame."""
    mesh = drawing.mesh_of(part)
    outer, _ = drawing.section_outlines(mesh, 2, 0.5 * float(mesh.bounds[:, 2].sum()))
    rim = np.array(segment["caudal"]["superior"]["rim_mm"])[:, :2]
    return blueprint.Key(rim, outer, turned_deg)


def _lattice_note(f: dict[str, Any]) -> list[str]:
    s = f["lattice"]
    if s is None:
        return (
            []
            if _is_solid(f)
            else ["The lattice is a density map (density.vtu); no struts were made of it."]
        )
    strut, pore = s["as_built"]["strut"], s["as_built"]["pore"]
    found = (
        f"struts {strut['p1_mm']:.2f} (least) and {strut['median_mm']:.2f} mm, pores"
        f" {pore['median_mm']:.2f} mm (medians)"
    )
    if not (strut["p1_mm"] and pore["median_mm"]):
        found = "too little of it to measure"
    return [
        f"Lattice: {s['cell']}, cell {s['cell_mm']:g} mm, in lattice.stl and lattice.3mf (not"
        f" drawn), for building along {s['build']} with struts that gain"
        f" {1000 * s['gain_mm'][0]:.0f} to {1000 * s['gain_mm'][1]:.0f} µm [S80]; as built {found}."
    ]


def _notes(f: dict[str, Any]) -> list[str]:
    worst, angles = f["build"][-1], (f["angle_yz_deg"], f["angle_xz_deg"])
    towards = [
        drawing.bearing(drawing.in_segment(np.eye(2)[k], f["turned_about_z_deg"])) for k in (0, 1)
    ]
    return [
        NOTICE,
        (
            "Drawn in the device's frame, which is not the patient's (see the key): z cranial, x"
            f" along the long side towards {towards[0]}, y towards {towards[1]}; that is the"
            f" segment frame turned by {f['turned_about_z_deg']:.1f}° about z. Dimensions are"
            " measured on the exported surface; the STL and 3MF beside this sheet are the master."
        ),
        "Cranial to caudal face, planes fitted by area: {:.1f}° in the y-z and {:.1f}° in the x-z"
        " plane.".format(*angles),
        (
            f"Build direction: the least overhang of six; the most is {worst['overhang_mm2']:.0f}"
            f" mm² in {worst['direction']}."
        ),
        *_lattice_note(f),
    ]
