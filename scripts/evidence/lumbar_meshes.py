"""The published L4-L5 of lumbar_meshes as an intact segment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from engine.patient.geometry.distance import surface_sdf
from engine.patient.read.surface_files import read_surface
from engine.types import Surface
from fem.intact.connections import Facets, Ligament, Piecewise, TensionLaw
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
from fem.intact.segment import IntactSegment

_FACET_REACH_MM = 3.0


def read_disc(folder: Path, level: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """points_mm [n, 3], hexes [m, 8], group [m]: 0 nucleus, 1-4 annulus from inside. Raises
    ValueError for what is not such a mesh."""
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
        raise ValueError(
            f"{folder / 'disc'}: an element of {level} has node {error}, which no .node file holds"
        ) from error
    return np.array([points[i] for i in sorted(points)]), cells, np.array(group)


def kind_of(name: str) -> str:
    """CL of CL_L."""
    return name.split("_")[0]


def read_ligaments(folder: Path, level: str, which: str = "remus2021") -> list[Ligament]:
    """All of the level, straight from insertion to insertion. Raises ValueError for another
    file, or an unknown set."""
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
        law: TensionLaw = REMUS[kind_of(name)]
        if which == "piecewise":
            upto, k = PIECEWISE[kind_of(name)]
            law = Piecewise(
                upto, k, sum(len(v) for n, v in strands.items() if kind_of(n) == kind_of(name))
            )
        out.append(Ligament(name, pair[:, 0], pair[:, 1], law))
    return out


def _triangles(surface: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres [f, 3], unit normals [f, 3] and areas [f] in mm²."""
    x = surface.points_mm[surface.faces]
    cross = np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
    twice = np.linalg.norm(cross, axis=1)
    return x.mean(1), cross / np.maximum(twice, 1e-12)[:, None], 0.5 * twice


def facets_between(cranial: Surface, caudal: Surface, behind_mm: float) -> Facets:
    """Triangles of the cranial vertebra behind x = behind_mm that face the caudal one within 3
    mm. Raises ValueError when a side has none."""
    centre, normal, area = _triangles(cranial)
    across, theirs, _area = _triangles(caudal)
    apart, nearest = cKDTree(across).query(centre)
    facing = (
        (apart < _FACET_REACH_MM)
        & ((normal * theirs[nearest]).sum(1) < -0.7)
        & (centre[:, 0] < behind_mm)
    )
    left = centre[facing, 1] > 0.0
    if left.all() or not left.any():
        raise ValueError(
            "no facet joint on one side: no triangles of both vertebrae face each other there"
        )
    return Facets(
        centre[facing],
        area[facing],
        left,
        surface_sdf(caudal, 0.7),
        FACET_MPA_PER_MM,
        FACET_CLEARANCE_MM,
    )


def read_segment(
    folder: Path,
    upper: str = "L4",
    lower: str = "L5",
    ligaments: str = "remus2021",
    order: int = 1,
    fibre_angle_deg: float = FIBRE_ANGLE_DEG,
) -> IntactSegment:
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
        disc,
        top,
        bottom,
        np.stack([np.cross(left, normal), left, normal]),
        centre[upper],
        centre[lower],
        NUCLEUS,
        read_ligaments(folder, level, ligaments),
        facets_between(bones[upper], bones[lower], behind),
    )
