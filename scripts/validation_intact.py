"""The intact L4-L5 of `lumbar_meshes` (Visible Human Male) against published ranges: motion, stiffness, pressure, facet forces.

Disc, ligament insertions and vertebrae are the data's own (Remus 2021, PLoS ONE 16(4):e0250456); nothing is fitted here. Two published
sets of ligaments, each with the same disc:

    remus2021     per strand, calibrated by its authors on another L4-L5's stepwise reduction [S16]
    piecewise     stiffness of the whole ligament by strain [S15]

Axes: the disc's mid-plane; anterior, left, cranial. Flexion is a positive moment about left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from engine.patient.geometry.distance import surface_sdf
from engine.patient.read.surface_files import read_surface
from engine.types import Surface
from fem.intact.materials import (
    FACET_CLEARANCE_MM,
    FACET_MPA_PER_MM,
    FIBRE_ANGLE_DEG,
    LIGAMENTS,
    NUCLEUS,
    PIECEWISE,
    REMUS,
    disc_body,
    ends_of,
    plane_of,
)
from fem.intact.segment import Facets, IntactSegment, Ligament, Load, NotFound, Piecewise, Step, TensionLaw

log = logging.getLogger("spinefit")
_FACET_REACH_MM = 3.0


def read_disc(folder: Path, level: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """points_mm [n, 3], hexes [m, 8], group [m]: 0 nucleus, 1-4 annulus from inside. Raises ValueError for what is not such a mesh."""
    points: dict[int, list[float]] = {}
    hexes, group = [], []
    for k, part in enumerate(("NP", "AN_R1", "AN_R2", "AN_R3", "AN_R4")):
        stem = folder / "disc" / f"{level}_{part}"
        try:
            for line in stem.with_suffix(".node").read_text().splitlines():
                if words := line.split():
                    points[int(words[0])] = [1000.0 * float(w) for w in words[1:4]]
            for line in stem.with_suffix(".elem").read_text().splitlines():
                if words := line.split():
                    hexes.append([int(w) for w in words[:8]])
                    group.append(k)
        except (OSError, ValueError, IndexError) as error:
            raise ValueError(f"{stem}: no disc mesh of lumbar_meshes ({error})") from error
    number = {name: i for i, name in enumerate(sorted(points))}
    try:
        cells = np.array([[number[i] for i in h] for h in hexes])
    except KeyError as error:
        raise ValueError(f"{folder / 'disc'}: an element of {level} has node {error}, which no .node file holds") from error
    return np.array([points[i] for i in sorted(points)]), cells, np.array(group)


def _kind(name: str) -> str:
    """CL of CL_L."""
    return name.split("_")[0]


def read_ligaments(folder: Path, level: str, which: str = "remus2021") -> list[Ligament]:
    """All of the level, straight from insertion to insertion. Raises ValueError for another file, or an unknown set."""
    if which not in LIGAMENTS:
        raise ValueError(f"ligaments={which!r} is unknown; choose {' or '.join(LIGAMENTS)}")
    strands: dict[str, list[np.ndarray]] = {}
    for kind in ("AS", "MP"):
        path = folder / "lig" / f"{level}_Ligs_{kind}.lig"
        try:
            lines = [line for line in path.read_text().splitlines() if line.strip()]
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error
        name = ""
        for line in lines[1:] if kind == "AS" else lines:
            words = [w.strip() for w in line.split(",") if w.strip()]
            if words[0].startswith(level):
                name = words[0].removeprefix(f"{level}_")
                strands[name] = []
            elif len(words) >= 6 and name:
                values = 1000.0 * np.array([float(w) for w in words])
                strands[name].append(np.stack([values[:3], values[-3:]]))
    out = []
    for name, ends in strands.items():
        pair = np.array(ends)
        law: TensionLaw = REMUS[_kind(name)]
        if which == "piecewise":
            upto, k = PIECEWISE[_kind(name)]
            law = Piecewise(upto, k, sum(len(v) for n, v in strands.items() if _kind(n) == _kind(name)))
        out.append(Ligament(name, pair[:, 0], pair[:, 1], law))
    return out


def _triangles(surface: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres [f, 3], unit normals [f, 3] and areas [f] in mm²."""
    x = surface.points_mm[surface.faces]
    cross = np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
    twice = np.linalg.norm(cross, axis=1)
    return x.mean(1), cross / np.maximum(twice, 1e-12)[:, None], 0.5 * twice


def facets_between(cranial: Surface, caudal: Surface, behind_mm: float) -> Facets:
    """Triangles of the cranial vertebra behind x = behind_mm that face the caudal one within 3 mm. Raises ValueError when a side has
    none."""
    centre, normal, area = _triangles(cranial)
    across, theirs, _area = _triangles(caudal)
    apart, nearest = cKDTree(across).query(centre)
    facing = (apart < _FACET_REACH_MM) & ((normal * theirs[nearest]).sum(1) < -0.7) & (centre[:, 0] < behind_mm)
    left = centre[facing, 1] > 0.0
    if left.all() or not left.any():
        raise ValueError("no facet joint on one side: no triangles of both vertebrae face each other there")
    return Facets(centre[facing], area[facing], left, surface_sdf(caudal, 0.7), FACET_MPA_PER_MM, FACET_CLEARANCE_MM)


def read_segment(
    folder: Path, upper: str = "L4", lower: str = "L5", ligaments: str = "remus2021", order: int = 1,
    fibre_angle_deg: float = FIBRE_ANGLE_DEG,
) -> IntactSegment:  # fmt: skip
    """Of lumbar_meshes. Raises ValueError for what is missing there."""
    level = f"L{upper[1]}{lower[1]}"
    points, hexes, group = read_disc(folder, level)
    disc = disc_body(points, hexes, group, order, fibre_angle_deg)
    bottom, top = ends_of(disc)
    normal = sum(plane_of(disc.nodes_mm[nodes]) for nodes in (bottom, top))
    normal = np.asarray(normal) / np.linalg.norm(normal)
    left = np.array([0.0, 1.0, 0.0]) - normal[1] * normal
    left /= np.linalg.norm(left)
    bones = {name: read_surface(folder / f"{name}.stl", "mm")[0] for name in (upper, lower)}
    behind = float(points[:, 0].min()) - 2.0
    centre = {name: s.points_mm[s.points_mm[:, 0] > behind].mean(0) for name, s in bones.items()}
    return IntactSegment(
        disc, top, bottom, np.stack([np.cross(left, normal), left, normal]), centre[upper], centre[lower], NUCLEUS,
        read_ligaments(folder, level, ligaments), facets_between(bones[upper], bones[lower], behind),
    )  # fmt: skip


#: Moments about anterior, left, cranial, and the axis that is read.
DIRECTIONS = {
    "flexion": ((0, 1, 0), 1), "extension": ((0, -1, 0), 1), "lateral bending": ((-1, 0, 0), 0), "axial rotation": ((0, 0, 1), 2),
}  # fmt: skip
_POSTERIOR = ("LF", "ISL", "SSL", "CL", "ITL")


def bending(direction: str, moment_nm: float, follower_n: float = 0.0) -> Load:
    x, y, z = DIRECTIONS[direction][0]
    return Load(follower_n, moment_nmm=(1000.0 * moment_nm * x, 1000.0 * moment_nm * y, 1000.0 * moment_nm * z))


@dataclass(frozen=True)
class Published:
    """A quantity's published range, or a value alone (low = high), and where from."""

    quantity: str
    unit: str
    low: float
    high: float
    source: str

    def judge(self, value: float) -> str:
        """inside or outside; where there is no range, by how much off."""
        if self.low == self.high:
            return f"{100.0 * (value / self.low - 1.0):+.0f} %"
        return "inside" if self.low <= value <= self.high else f"outside ({'low' if value < self.low else 'high'})"


_YAMAMOTO, _FSU, _FACET = "Yamamoto 1989 [M], mean", "[S43]", "[S45], T12-L2, mean ± SD"
PUBLISHED = (
    Published("flexion at 10 N m", "°", 8.9, 8.9, _YAMAMOTO),
    Published("extension at 10 N m", "°", 5.8, 5.8, _YAMAMOTO),
    Published("lateral bending at 10 N m", "°", 5.7, 5.7, _YAMAMOTO),
    Published("axial rotation at 10 N m", "°", 2.2, 2.2, _YAMAMOTO),
    Published("flexion stiffness", "N m/°", 1.8, 5.5, _FSU),
    Published("extension stiffness", "N m/°", 2.6, 7.6, _FSU),
    Published("lateral bending stiffness", "N m/°", 3.4, 4.6, _FSU),
    Published("axial rotation stiffness", "N m/°", 7.3, 9.5, _FSU),
    Published("flexion stiffness, no posterior elements", "N m/°", 2.3, 3.3, _FSU),
    Published("extension stiffness, no posterior elements", "N m/°", 1.6, 3.5, _FSU),
    Published("axial rotation stiffness, no posterior elements", "N m/°", 2.1, 3.2, _FSU),
    Published("axial stiffness", "kN/mm", 0.44, 2.42, _FSU),
    Published("axial stiffness, no posterior elements", "kN/mm", 0.49, 1.85, _FSU),
    Published("axial stiffness, disc only", "kN/mm", 1.28, 2.18, _FSU),
    Published("pressure of the nucleus at 1000 N", "MPa", 0.72, 0.83, "k F/A [S33b]"),
    Published("facet force in flexion, 7.5 N m", "N", 5.0, 87.0, _FACET),
    Published("facet force in extension, 7.5 N m", "N", 12.0, 90.0, _FACET),
    Published("facet force in axial rotation, 7.5 N m, contralateral", "N", 27.0, 113.0, _FACET),
    Published("facet force in axial rotation, 7.5 N m, ipsilateral", "N", 0.0, 64.0, _FACET),
    Published("facet force in extension, 7.5 N m and 500 N", "N", 36.0, 114.0, _FACET + ", 400 N"),
)


def balanced(segment: IntactSegment, follower_n: float = 500.0) -> IntactSegment:
    """With the follower's path moved forwards or backwards until it turns the segment by less than 0.1° (as is done at the bench)."""
    load = Load(follower_n)
    tried: list[tuple[float, float]] = []
    shift = 0.0
    for _ in range(6):
        forward = shift * segment.axes[0]
        here = replace(segment, cranial_mm=segment.cranial_mm + forward, caudal_mm=segment.caudal_mm + forward)
        state, n = here.walk(segment.rest, Load(), load)
        turned = here.measure(state, segment.rest, load, n).rotation_deg[1]
        log.info("follower's path %+.1f mm: %+.2f° at %.0f N", shift, turned, follower_n)
        if abs(turned) < 0.1:
            return here
        tried.append((shift, turned))
        (a, fa), (b, fb) = tried[-2:] if len(tried) > 1 else ((4.0, turned + 1.0), tried[0])
        shift = b - fb * (b - a) / (fb - fa)
    raise NotFound(f"no path of the follower keeps the segment from turning; tried {[round(s, 1) for s, _ in tried]} mm")


def tested(segment: IntactSegment, keep: Path) -> dict[str, float]:
    """All of PUBLISHED's quantities, and the largest error of balance as `balance`. Stiffness in bending is 7.5 N m over the rotation,
    axial stiffness 1000 N over the descent, with the follower as load. Raises NotFound."""
    out: dict[str, float] = {"balance": 0.0}
    part = replace(segment, facets=None, ligaments=[lig for lig in segment.ligaments if _kind(lig.name) not in _POSTERIOR])
    alone = replace(part, ligaments=[])

    def steps(what: IntactSegment, name: str, loads: list[Load], datum: int = 0) -> list[Step]:
        log.info("%s", name)
        found = what.run(loads, keep / f"{name.replace(' ', '_').replace(',', '')}.npz", datum)
        out["balance"] = max(out["balance"], *(s.balance for s in found))
        return found

    for name, (_axis, read) in DIRECTIONS.items():
        at7, at10 = steps(segment, name, [bending(name, 7.5), bending(name, 10.0)])
        out[f"{name} at 10 N m"] = abs(at10.rotation_deg[read])
        out[f"{name} at 7.5 N m"] = abs(at7.rotation_deg[read])
        out[f"{name} stiffness"] = 7.5 / abs(at7.rotation_deg[read])
        preloaded = steps(segment, f"{name}, 500 N", [Load(500.0), bending(name, 7.5, 500.0)], 1)[1]
        out[f"{name} at 7.5 N m and 500 N"] = abs(preloaded.rotation_deg[read])
        out[f"facet force in {name}, 7.5 N m"] = float(np.mean(at7.facets_n))
        out[f"facet force in {name}, 7.5 N m and 500 N"] = float(np.mean(preloaded.facets_n))
        if name == "axial rotation":
            out[f"facet force in {name}, 7.5 N m, contralateral"] = max(at7.facets_n)
            out[f"facet force in {name}, 7.5 N m, ipsilateral"] = min(at7.facets_n)
        bare = steps(part, f"{name}, no posterior elements", [bending(name, 7.5)])[0]
        out[f"{name} stiffness, no posterior elements"] = 7.5 / abs(bare.rotation_deg[read])
    for what, suffix in ((segment, ""), (part, ", no posterior elements"), (alone, ", disc only")):
        pressed = steps(what, f"compression{suffix}", [Load(500.0), Load(1000.0)])[1]
        out[f"axial stiffness{suffix}"] = 1.0 / abs(pressed.translation_mm[2])
        out[f"pressure of the nucleus at 1000 N{suffix}"] = pressed.nucleus_mpa
    return out


def spread(folder: Path) -> dict[str, dict[str, float]]:
    """Rotations (°) at 7.5 N m and the nucleus' pressure (MPa) at 1000 N, as given and with one thing changed. Raises NotFound."""

    given = read_segment(folder)

    def facets(**change: Any) -> IntactSegment:
        assert given.facets is not None
        return replace(given, facets=replace(given.facets, **change))

    variants: dict[str, Callable[[], IntactSegment]] = {
        "nothing": lambda: given,
        "facets' clearance 0": lambda: facets(clearance_mm=0.0),
        "facets' clearance 1 mm": lambda: facets(clearance_mm=1.0),
        "cartilage twice as stiff": lambda: facets(stiffness_mpa_per_mm=2.0 * FACET_MPA_PER_MM),
        "fibres at 25°": lambda: read_segment(folder, fibre_angle_deg=25.0),
        "fibres at 40°": lambda: read_segment(folder, fibre_angle_deg=40.0),
        "elements Q2/Q1": lambda: read_segment(folder, order=2),
    }
    out: dict[str, dict[str, float]] = {}
    for name, make in variants.items():
        log.info("%s", name)
        segment = make()
        row = {}
        for direction, (_axis, read) in DIRECTIONS.items():
            row[direction] = abs(segment.run([bending(direction, 7.5)])[0].rotation_deg[read])
        row["pressure"] = segment.run([Load(500.0), Load(1000.0)])[1].nucleus_mpa
        out[name] = row
    return out
