"""A conforming tetrahedral mesh of vertebrae, implant, graft and the soft remnant of the disc.

Route: body-centred lattice → label per tetrahedron → interface nodes onto the true surfaces
(fem/mesh/snap.py) → MMG remesh with the labels as references, sized by the distance to the implant
→ snap again → sliver repair (fem/mesh/repair.py) → gate. The implant is the *exported* triangle
surface, the bones the patient's signed distances.

MMG: Dapogny, Dobrzynski, Frey 2014, doi 10.1016/j.jcp.2014.01.005.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import meshio
import numpy as np

from engine.types import REGIONS, Design, Segment, Surface
from fem.mesh import tets as tt
from fem.mesh.islands import drop_islands, note, smooth_labels, without_hinges
from fem.mesh.mmg import remesh_apart
from fem.mesh.quality import MeshError, measure
from fem.mesh.regions import NAMES, VOID, RegionMap, region_map
from fem.mesh.repair import repair
from fem.mesh.snap import relabel, snap

log = logging.getLogger("spinefit.fem")


@dataclass(frozen=True)
class MeshSettings:
    """How to mesh, lengths in mm.

    size_fine, size_coarse    edge length at the implant (intact: at the endplates) and far from it
    growth                    increase of the edge length per mm of distance beyond fine_band
    background, _axial, _far  starting lattice: cells across, along z near the disc space, and far
                              from it
    hausdorff                 MMG's allowed distance between its surface and the one it was given
    gradation                 MMG's largest ratio of neighbouring edges
    min_dihedral_deg          a mesh with a smaller angle does not pass the gate
    aim_dihedral_deg          below it a tetrahedron is repaired (fem/mesh/repair.py)
    island_mm3                what hangs on nothing and is smaller is left out (fem/mesh/islands.py)
    attempts                  at a mesh that passes the gate
    timeout_s                 MMG is stopped after it, which counts as a failed attempt
    film_mm                   a film of soft remnant thinner than this between implant and bone is
                              closed (fem/mesh/regions.py); doubled at each retry
    curtain_mm                soft remnant thinner than this beside the implant's wall is left out;
                              half as much again at each retry
    bone_gap_mm               cranial bone closer than this to the caudal is left out (0: touching
                              facets are bonded)
    volume_tolerance          relative, of each region; small regions: volume_tolerance_small or
                              volume_slack_mm3
    remnant_slack_mm3         of the soft disc remnant: round a device that fills the space it is a
                              film thinner than any element here, and at 4 MPa beside bone it
                              carries nothing worth one
    """

    size_fine_mm: float = 1.5
    size_coarse_mm: float = 5.0
    growth: float = 0.3
    fine_band_mm: float = 1.5
    background_mm: float = 2.2
    background_axial_mm: float = 1.6
    background_far_mm: float = 3.0
    hausdorff_mm: float = 0.2
    gradation: float = 1.4
    min_dihedral_deg: float = 8.0
    aim_dihedral_deg: float = 9.0
    volume_tolerance: float = 0.01
    volume_tolerance_small: float = 0.03
    volume_slack_mm3: float = 30.0
    remnant_slack_mm3: float = 500.0
    island_mm3: float = 60.0
    attempts: int = 3
    bone_gap_mm: float = 0.0
    film_mm: float = 0.2
    curtain_mm: float = 2.0
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not 0.0 < self.size_fine_mm <= self.size_coarse_mm:
            raise ValueError(
                f"size_fine_mm={self.size_fine_mm} must be positive and not above"
                f" size_coarse_mm={self.size_coarse_mm}"
            )
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts} must be at least 1")


#: About half the tetrahedra: for demonstrations and tests.
COARSE = MeshSettings(
    size_fine_mm=2.3,
    size_coarse_mm=7.0,
    growth=0.45,
    background_mm=2.4,
    background_axial_mm=1.8,
    background_far_mm=3.2,
    hausdorff_mm=0.25,
)


@dataclass(frozen=True)
class TetMesh:
    """points_mm [n, 3], tets [m, 4] (positive), labels [m] (index into REGIONS); figures of its
    quality (fem/mesh/quality.py), and lines on what was done."""

    points_mm: np.ndarray
    tets: np.ndarray
    labels: np.ndarray
    quality: dict[str, Any] = field(default_factory=dict)
    log: tuple[str, ...] = ()

    def write(self, path: Path | str) -> None:
        """Write .vtu (or any format that meshio writes) with the cell arrays `region` and
        `min_dihedral_deg`."""
        angle = tt.dihedral_deg(self.points_mm, self.tets).min(1)
        data = {"region": [self.labels.astype(np.int32)], "min_dihedral_deg": [angle]}
        meshio.Mesh(self.points_mm, [("tetra", self.tets)], cell_data=data).write(path)


def build_mesh(
    segment: Segment,
    design: Design,
    implant_surface: Surface | None,
    settings: MeshSettings,
    crop_mm: np.ndarray,
) -> TetMesh:
    """Mesh the segment with the design's exported surface inside the box crop_mm [2, 3].

    Tries settings.attempts times with stated changes. Raises MeshError when none passes the gate.
    """
    crop = np.asarray(crop_mm, float)
    lines: list[str] = [f"crop box {crop[0].round(1).tolist()} to {crop[1].round(1).tolist()} mm"]
    problems: list[str] = []
    for attempt in range(settings.attempts):
        used = _changed(settings, attempt)
        regions = region_map(
            segment, design, implant_surface, crop, used.bone_gap_mm, used.film_mm, used.curtain_mm
        )
        reference = regions.volumes_mm3()
        if attempt:
            note(
                lines,
                f"attempt {attempt + 1}: background {used.background_mm:.2f} mm, hausdorff"
                f" {used.hausdorff_mm:.3f} mm, gradation {used.gradation:.2f}, fine"
                f" {used.size_fine_mm:.2f} mm, films closed {used.film_mm:.2f} mm, curtains left"
                f" out {used.curtain_mm:.2f} mm, because {problems[0]}",
            )
        try:
            mesh = _attempt(regions, reference, used, lines)
        except MeshError as error:
            problems = [str(error)]
            continue
        problems = gate(mesh, settings)
        if not problems:
            return mesh
    raise MeshError(
        f"no acceptable mesh of design {design.arm!r} after {settings.attempts} attempts:"
        f" {'; '.join(problems)}. Check the exported surface for walls thinner than"
        " fem.mesh.background_mm, or lower that size"
    )


def _changed(settings: MeshSettings, attempt: int) -> MeshSettings:
    """The settings of a retry: a finer and shifted lattice, a tighter surface, thicker films
    closed."""
    shrink = 0.87**attempt
    return replace(
        settings,
        background_mm=settings.background_mm * shrink,
        background_axial_mm=settings.background_axial_mm * shrink,
        background_far_mm=settings.background_far_mm * shrink,
        hausdorff_mm=settings.hausdorff_mm * shrink**2,
        gradation=1.0 + (settings.gradation - 1.0) * shrink,
        size_fine_mm=settings.size_fine_mm * (1.0 if attempt < 2 else 0.9),
        film_mm=settings.film_mm * 2.0**attempt,
        curtain_mm=settings.curtain_mm * 1.5**attempt,
    )


def _attempt(
    regions: RegionMap, reference: np.ndarray, settings: MeshSettings, lines: list[str]
) -> TetMesh:
    """A mesh, not yet gated; reference [5]: the regions' volumes, mm³. Raises MeshError."""
    clock = time.perf_counter()
    points, tets, labels = _fitted_lattice(regions, settings, lines)
    points, tets, labels = remesh(
        points, tets, labels, target_size(regions, points, settings), settings
    )
    size = target_size(regions, points, settings)
    points = snap(
        regions,
        points,
        tets,
        labels,
        size,
        3,
        settings.aim_dihedral_deg + 1.0,
        smooth=0.15,
        by_angle=True,
    )
    points, tets, labels, text = repair(regions, points, tets, labels, settings.aim_dihedral_deg)
    note(lines, text)
    points, tets, labels = drop_islands(points, tets, labels, settings.island_mm3, lines)
    quality = measure(points, tets, labels, reference, regions)
    quality["seconds"] = time.perf_counter() - clock
    note(
        lines,
        f"{len(tets)} tetrahedra, min dihedral {quality['min_dihedral_deg']:.1f} deg,"
        f" {quality['seconds']:.1f} s, volume errors "
        + ", ".join(
            f"{name} {quality['volume_error'][name]:+.2%}" for name in quality["volume_mm3"]
        ),
    )
    if quality["bone_to_bone_mm2"] > 1.0:
        text = (
            f"the vertebrae touch over {quality['bone_to_bone_mm2']:.0f} mm2 (facets closer than"
            " the mesh resolves): they are bonded there; bone_gap_mm opens a gap"
        )
        log.warning(text)
        lines.append(text)
    return TetMesh(points, tets, labels, quality, tuple(lines))


def target_size(regions: RegionMap, points_mm: np.ndarray, settings: MeshSettings) -> np.ndarray:
    """Edge length [n] in mm: fine + growth·(distance to the implant surface − band), at most
    coarse."""
    f = regions.fields(points_mm)
    if regions.implant is not None:
        distance = np.abs(f["implant"])
    else:
        distance = np.maximum(
            np.minimum(np.abs(f["caudal"]), np.abs(f["cranial"])), np.abs(f["disc"])
        )
    grown = settings.size_fine_mm + settings.growth * np.maximum(
        distance - settings.fine_band_mm, 0.0
    )
    return np.minimum(grown, settings.size_coarse_mm)


def _axis_z(
    low: float, high: float, fine: tuple[float, float], settings: MeshSettings
) -> np.ndarray:
    """Cell faces along z: fine inside `fine`, growing to the far size outside."""

    def outward(start: float, end: float) -> list[float]:
        out, step = [], settings.background_axial_mm
        while (end - start) * np.sign(end - start) > 0 and abs(end - start) > 1e-9:
            step = min(step * 1.15, settings.background_far_mm)
            start += (
                np.sign(end - start) * min(step, abs(end - start))
                if abs(end - start) > 1.5 * step
                else end - start
            )
            out.append(start)
        return out

    a, b = max(fine[0], low), min(fine[1], high)
    middle = np.linspace(a, b, max(2, int(np.ceil((b - a) / settings.background_axial_mm)) + 1))
    return np.array([*outward(a, low)[::-1], *middle, *outward(b, high)])


def _fitted_lattice(
    regions: RegionMap, settings: MeshSettings, lines: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The starting lattice, labelled by majority of five points per tetrahedron, fitted to the
    surfaces."""
    margin = 2.0 * settings.background_far_mm
    low, high = regions.crop_mm[0] - margin, regions.crop_mm[1] + margin
    fine = _fine_range(regions)
    axes = [
        np.arange(low[k], high[k] + settings.background_mm, settings.background_mm)
        for k in range(2)
    ]
    points, tets = tt.lattice([*axes, _axis_z(low[2], high[2], fine, settings)])
    x = points[tets]
    value = regions.distances(x.mean(1))
    labels = value.argmin(1)
    # Four more points where the centroid is not deep inside a region: majority wins.
    unsure = np.flatnonzero(value.min(1) > -settings.background_far_mm)
    votes = 1.5 * np.eye(len(NAMES))[labels[unsure]]
    for k in range(4):
        sample = 0.45 * x[unsure].mean(1) + 0.55 * x[unsure, k]
        votes[np.arange(len(unsure)), regions.distances(sample).argmin(1)] += 1.0
    labels[unsure] = votes.argmax(1)
    labels = smooth_labels(tets, labels)
    # A layer of void stays while the nodes are fitted, so that a tetrahedron can change from void
    # to solid.
    solid_node = np.zeros(len(points), bool)
    solid_node[tets[labels != VOID]] = True
    near = solid_node[tets].any(1)
    points, tets = tt.compact(points, tets[near])
    labels = labels[near]
    size = np.full(len(points), settings.background_mm)
    for rounds in (2, 2, 1):
        points = snap(regions, points, tets, labels, size, rounds=rounds, floor=0.04)
        labels, changed = relabel(regions, points, tets, labels, settings.background_mm)
        log.debug("%d tetrahedra changed region while fitting", changed)
    points = snap(regions, points, tets, labels, size, rounds=2, floor=0.04)
    solid = labels != VOID
    return without_hinges(points, tets[solid], labels[solid], settings.island_mm3, lines)


def _fine_range(regions: RegionMap) -> tuple[float, float]:
    """z range that the fine part of the lattice covers: the implant, or the disc."""
    if regions.implant is not None:
        z = regions.implant.surface.points_mm[:, 2]
        return float(z.min() - 2.0), float(z.max() + 2.0)
    inside = regions.segment.disc.points()[regions.segment.disc.values < 0][:, 2]
    if len(inside) == 0:
        raise MeshError(
            "region remnant: the disc body of the segment is empty; check its signed distance"
        )
    return float(inside.min() - 2.0), float(inside.max() + 2.0)


def remesh(
    points: np.ndarray,
    tets: np.ndarray,
    labels: np.ndarray,
    size_mm: np.ndarray,
    settings: MeshSettings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MMG with the labels as references. Raises MeshError when it fails or does not end."""
    # ar: an angle above it between two faces of an interface is an edge to keep
    options = {"hausd": settings.hausdorff_mm, "hgrad": settings.gradation, "ar": 55.0}
    try:
        new_points, new_tets, refs = remesh_apart(
            points, tets, labels + 1, size_mm, options, settings.timeout_s
        )
    except RuntimeError as error:
        raise MeshError(f"MMG could not remesh the labelled lattice: {error}") from error
    new_points, new_tets = tt.compact(new_points, new_tets)
    return new_points, new_tets, refs - 1


def gate(mesh: TetMesh, settings: MeshSettings) -> list[str]:
    """What is wrong with a mesh, worst first; empty when it may be used."""
    q = mesh.quality
    problems = []
    if q["inverted"]:
        problems.append(f"{q['inverted']} inverted tetrahedra")
    if q["min_dihedral_deg"] < settings.min_dihedral_deg:
        problems.append(
            f"dihedral angle {q['min_dihedral_deg']:.1f} deg below {settings.min_dihedral_deg:g} in"
            f" {q['worst_region']} at {q['worst_at_mm']} mm"
        )
    for name in REGIONS:
        wanted, got = q["reference_mm3"][name], q["volume_mm3"][name]
        slack = settings.remnant_slack_mm3 if name == "remnant" else settings.volume_slack_mm3
        if wanted > slack and got == 0.0:
            problems.append(f"region {name} ({wanted:.0f} mm3) is missing")
            continue
        small = wanted < 5000.0 and name in ("graft", "remnant")
        allowed = settings.volume_tolerance * wanted
        if small:
            allowed = max(settings.volume_tolerance_small * wanted, settings.volume_slack_mm3)
        if name == "remnant":
            allowed = max(allowed, settings.remnant_slack_mm3)
        if abs(got - wanted) > allowed:
            problems.append(
                f"region {name} has {got:.0f} mm3 instead of {wanted:.0f} (allowed +-{allowed:.0f})"
            )
    return problems
