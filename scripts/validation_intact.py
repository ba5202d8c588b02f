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
from fem.hyperelastic import Body, Fibres, Solid
from fem.intact import Facets, IntactSegment, Ligament, Load, NotFound, Piecewise, Step, TensionLaw, ToeLinear

log = logging.getLogger("spinefit")
NUCLEUS = 0
#: Remus 2021 (code read) [S16]. Nucleus: Yeoh; annulus: Mooney-Rivlin, its rings 1-4 from inside.
SOLIDS = {NUCLEUS: Solid(0.20, 180.0, c20=0.20, c30=6.0, mixed=True)} | {ring: Solid(0.18, 2.25, c01=0.045) for ring in (1, 2, 3, 4)}
#: A collagen fibre's nominal stress; all fibres fill 16 % of the annulus, half of it in either direction.
FIBRE_STRAIN, FIBRE_MPA, FIBRE_VOLUME = (0.004, 0.021, 0.045, 0.094, 0.25), (0.0, 7.0, 20.0, 35.0, 51.0), 0.16
#: Stiffness of the fibres, from the nucleus outwards (Schmidt 2006), at the middle of each ring; angle to the endplates [M].
FIBRE_FACTOR = {ring: 0.65 + 0.35 * (ring - 0.5) / 4.0 for ring in (1, 2, 3, 4)}
FIBRE_ANGLE_DEG = 30.0
REMUS = {
    "ALL": ToeLinear(-0.03, 0.08, 485.0), "PLL": ToeLinear(0.12, 0.23, 290.0), "LF": ToeLinear(-0.03, 0.09, 30.0),
    "ISL": ToeLinear(-0.02, 0.05, 2.5), "SSL": ToeLinear(-0.08, 0.20, 28.0), "CL": ToeLinear(0.55, 0.95, 40.0),
    "ITL": ToeLinear(0.02, 0.10, 150.0),
}  # fmt: skip
#: Of the whole ligament (both sides of CL and ITL together).
PIECEWISE = {
    "ALL": ((0.122, 0.203), (347.0, 787.0, 1864.0)), "PLL": ((0.111, 0.23), (29.5, 61.7, 236.0)),
    "CL": ((0.25, 0.30), (36.0, 159.0, 384.0)),
    "LF": ((0.059, 0.49), (7.7, 9.6, 58.2)), "SSL": ((0.20, 0.25), (2.5, 5.3, 34.0)), "ISL": ((0.139, 0.20), (1.4, 1.5, 14.7)),
    "ITL": ((0.182, 0.233), (0.3, 1.8, 10.7)),
}  # fmt: skip
LIGAMENTS = ("remus2021", "piecewise")
#: Cartilage E 3.5 MPa, ν 0.4 (Remus 2021) as a bonded thin layer of 2 × 0.8 mm [M]: (1 − ν) E/((1 + ν)(1 − 2ν)) / h.
FACET_MPA_PER_MM = 0.6 * 3.5 / (1.4 * 0.2) / 1.6
FACET_CLEARANCE_MM = 0.5  # [M]
_FACET_REACH_MM = 3.0
#: Corners of a hexahedron's faces, the two across each of its local axes.
_FACES = np.array([[[0, 3, 7, 4], [1, 2, 6, 5]], [[0, 1, 5, 4], [3, 2, 6, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]]])


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


def fibre_directions(points_mm: np.ndarray, hexes: np.ndarray, group: np.ndarray, ring: int, angle_deg: float) -> np.ndarray:
    """[m of ring, 2, 3]: ±angle to the ring's circumference in its own surface.

    A ring is one element thick. Of an element's local axes the one nearest to the disc's axis is axial; of the others, the one whose
    faces look at another group or outside is radial."""
    x = points_mm[hexes]
    key = np.sort(hexes[:, _FACES], axis=-1).reshape(-1, 4)
    _, same, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    same = same.ravel()
    owner = np.repeat(np.arange(len(hexes)), 6)
    total = np.bincount(same, weights=group[owner])
    other = np.where(count[same] == 2, total[same] - group[owner], -1.0).reshape(len(hexes), 3, 2)
    along = np.stack([x[:, f[1]].mean(1) - x[:, f[0]].mean(1) for f in _FACES], 1)
    axis = np.linalg.svd(points_mm[np.unique(hexes)] - points_mm.mean(0), full_matrices=False)[2][2]
    mine = np.flatnonzero(group == ring)
    radial = (other[mine] != ring).all(2)
    if not (radial.sum(1) >= 1).all():
        raise ValueError(f"ring {ring} is not one element thick")
    upright = np.abs(along[mine] @ axis) / np.linalg.norm(along[mine], axis=2)
    axial = upright.argmax(1)
    radial[np.arange(len(mine)), axial] = False
    if not (radial.sum(1) == 1).all():
        raise ValueError(f"{int((radial.sum(1) != 1).sum())} elements of ring {ring} have no clear radial direction")
    round_about = 3 - axial - radial.argmax(1)
    t = along[mine, round_about] / np.linalg.norm(along[mine, round_about], axis=1)[:, None]
    a = along[mine, axial]
    a = a - (a * t).sum(1)[:, None] * t
    a /= np.linalg.norm(a, axis=1)[:, None]
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.stack([c * t + s * a, c * t - s * a], 1)


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


def disc_body(
    points_mm: np.ndarray, hexes: np.ndarray, group: np.ndarray, order: int = 1, fibre_angle_deg: float = FIBRE_ANGLE_DEG
) -> Body:
    """A disc of SOLIDS with the annulus' fibres: group 0 the nucleus, 1-4 its rings from inside, one element thick."""
    fibres = {
        ring: (Fibres(FIBRE_STRAIN, tuple(factor * s for s in FIBRE_MPA), 0.5 * FIBRE_VOLUME),
               fibre_directions(points_mm, hexes, group, ring, fibre_angle_deg))
        for ring, factor in FIBRE_FACTOR.items()
    }  # fmt: skip
    return Body(points_mm, hexes, group, SOLIDS, fibres, order)


def read_segment(
    folder: Path, upper: str = "L4", lower: str = "L5", ligaments: str = "remus2021", order: int = 1,
    fibre_angle_deg: float = FIBRE_ANGLE_DEG,
) -> IntactSegment:  # fmt: skip
    """Of lumbar_meshes. Raises ValueError for what is missing there."""
    level = f"L{upper[1]}{lower[1]}"
    points, hexes, group = read_disc(folder, level)
    disc = disc_body(points, hexes, group, order, fibre_angle_deg)
    bottom, top = _ends(disc)
    normal = sum(_plane(disc.nodes_mm[nodes]) for nodes in (bottom, top))
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


def _plane(points_mm: np.ndarray) -> np.ndarray:
    normal = np.linalg.svd(points_mm - points_mm.mean(0), full_matrices=False)[2][2]
    return normal * np.sign(normal[2])


def _ends(disc: Body) -> tuple[np.ndarray, np.ndarray]:
    """Nodes on the caudal and on the cranial endplate: of the outer faces that are nearly horizontal."""
    corners = disc.cell_nodes[:, :8]
    every = corners[:, _FACES].reshape(-1, 4)
    _, first, count = np.unique(np.sort(every, axis=1), axis=0, return_index=True, return_counts=True)
    outer = first[count == 1]
    x = disc.nodes_mm[every[outer]]
    normal = np.cross(x[:, 2] - x[:, 0], x[:, 3] - x[:, 1])
    normal /= np.linalg.norm(normal, axis=1)[:, None]
    inward = disc.nodes_mm[corners].mean(1)[outer // 6] - x.mean(1)
    normal *= -np.sign((normal * inward).sum(1))[:, None]
    found = []
    for sign in (-1.0, 1.0):
        mine = outer[sign * normal[:, 2] > 0.6]
        face = every[mine]
        nodes = np.unique(face)
        if disc.cell_nodes.shape[1] > 8:  # also those in the middle of edges and faces
            x = disc.nodes_mm[disc.cell_nodes[mine // 6]]
            a, b, c, d = (disc.nodes_mm[face[:, k]] for k in range(4))
            mid = np.concatenate([0.5 * (a + b), 0.5 * (b + c), 0.5 * (c + d), 0.5 * (d + a), 0.25 * (a + b + c + d)])
            apart, which = cKDTree(disc.nodes_mm).query(mid)
            nodes = np.union1d(nodes, which[apart < 1e-6])
        found.append(nodes)
    return found[0], found[1]


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
