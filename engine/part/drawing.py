"""A part's technical drawing, measured from the surface that is printed: views, section,
dimensions, as primitives for PDF and DXF.

The part is drawn in the device's frame: the segment frame turned about z so that the smallest
rectangle round its footprint lies along the sheet, x along its long side. That frame is not the
patient's: `bearing` says where its axes point. Views in first-angle projection: the long side (seen
from -y), below it from above (cranial), to its left the end (seen from +x), each with feature edges
(faces meeting at more than `FEATURE_DEG`) visible or hidden by a depth buffer, and the outline.

Lengths in mm; sheet coordinates in mm of paper, A3 landscape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trimesh
from scipy.spatial import ConvexHull
from skimage.measure import approximate_polygon, find_contours

from engine.types import Surface

SHEET_MM = (420.0, 297.0)
FEATURE_DEG = 40.0
SCALES = (10.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5)
#: Build directions by name.
DIRECTIONS = {
    f"{'+' if sign > 0 else '-'}{'xyz'[k]}": sign * np.eye(3)[k]
    for k in (2, 1, 0)
    for sign in (1.0, -1.0)
}
_PIXEL_MM = 0.05
#: How far behind the depth buffer an edge may lie and still be seen: a pixel on a steep wall.
_SEEN_MM = 0.15
#: view → (direction of sight, what points up on the sheet), device's frame
SIGHT = {
    "side": ((0, 1, 0), (0, 0, 1)),
    "above": ((0, 0, -1), (0, 1, 0)),
    "end": ((-1, 0, 0), (0, 0, 1)),
    "oblique": ((-0.55, 0.65, -0.52), (0, 0, 1)),
}


@dataclass
class Sheet:
    """Primitives in mm of paper. lines: (layer, points [n, 2]); texts: (layer, x, y, height_mm,
    text, alignment, degrees); hatches: curves of one region (outer ones turn left, holes right);
    dimensions: (first, second, where the line runs, "x" | "y", true length mm).
    """

    scale: float
    lines: list[tuple[str, np.ndarray]] = field(default_factory=list)
    texts: list[tuple[str, float, float, float, str, str, float]] = field(default_factory=list)
    hatches: list[list[np.ndarray]] = field(default_factory=list)
    dimensions: list[tuple[np.ndarray, np.ndarray, float, str, float]] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        height_mm: float = 2.5,
        align: str = "left",
        degrees: float = 0.0,
    ) -> None:
        self.texts.append(("TEXT", x, y, height_mm, words, align, degrees))


@dataclass(frozen=True)
class View:
    """Lines of one view in mm of the part, x right and y up on the sheet, about the part's
    middle: outline, visible and hidden edges."""

    outline: list[np.ndarray]
    visible: list[np.ndarray]
    hidden: list[np.ndarray]

    @property
    def size(self) -> np.ndarray:
        points = np.concatenate(self.outline)
        return np.stack([points.min(0), points.max(0)])


# -- the part --------------------------------------------------------------------------------------
def mesh_of(surface: Surface) -> trimesh.Trimesh:
    """The closed surface as a mesh. Raises ValueError when it is not closed or holds no volume."""
    mesh = trimesh.Trimesh(
        np.asarray(surface.points_mm, float), np.asarray(surface.faces), process=False
    )
    if not (mesh.is_watertight and mesh.is_winding_consistent):
        raise ValueError(
            "the surface is not closed, so that it has no volume, mass or section; export it again"
        )
    if mesh.volume <= 0.0:
        raise ValueError(
            f"the surface encloses {mesh.volume:.1f} mm³; its normals must point outward"
        )
    return mesh


def turned(mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, float]:
    """The mesh about its middle with the smallest rectangle round its footprint along x and y,
    long side along x; and the angle, degrees, by which it was turned about z."""
    flat = mesh.vertices[:, :2]
    hull = flat[ConvexHull(flat).vertices]
    edges = np.roll(hull, -1, axis=0) - hull
    angles = np.arctan2(edges[:, 1], edges[:, 0])
    best = (np.inf, 0.0)
    for a in angles:
        c, s = np.cos(a), np.sin(a)
        size = np.ptp(hull @ np.array([[c, -s], [s, c]]), axis=0)
        for angle in (a, a + np.pi / 2):
            long_first = size[0] >= size[1] if angle == a else size[1] > size[0]
            if long_first and size.prod() < best[0] - 1e-9:
                best = (float(size.prod()), float(angle))
    angle = (best[1] + np.pi / 2) % np.pi - np.pi / 2
    c, s = np.cos(-angle), np.sin(-angle)
    points = mesh.vertices @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
    points = points - 0.5 * (points.min(0) + points.max(0))
    return trimesh.Trimesh(points, mesh.faces, process=False), float(np.degrees(angle))


def measure(mesh: trimesh.Trimesh) -> dict[str, Any]:
    """Dimensions of the turned part, from its triangles. Lengths mm, angles degrees.

    size; height at the walls at either end of x and y and, where there is material, in the middle
    (along z through the wall); angle of the cranial to the caudal face in the y-z (sagittal of the
    device) and x-z plane, of planes fitted by area to what faces up and down; wall: the least
    distance between outer and inner outline half way up (null without a chamber).
    """
    low, high = mesh.bounds
    outer, inner = section_outlines(mesh, 2, 0.0)
    figures: dict[str, Any] = {
        "size_mm": (high - low).tolist(),
        "wall_mm": None,
        "chamber_mm": None,
    }
    if inner:
        gaps = [np.linalg.norm(a[:, None] - b[None], axis=-1) for a in outer for b in inner]
        figures["wall_mm"] = float(min(g.min() for g in gaps))
        widest = max(inner, key=lambda c: float(np.prod(np.ptp(c, axis=0))))
        figures["chamber_mm"] = np.ptp(widest, axis=0).tolist()
    heights = {}
    for name, axis, sign in (("+x", 0, 1.0), ("-x", 0, -1.0), ("-y", 1, -1.0), ("+y", 1, 1.0)):
        heights[name] = crossing(mesh, wall_middle(outer, inner, axis, sign))
    heights["middle"] = crossing(mesh, np.zeros(2))
    figures["height_mm"] = {k: None if c is None else c[1] - c[0] for k, c in heights.items()}
    normals, area = mesh.face_normals, mesh.area_faces
    planes = []
    for side in (1.0, -1.0):
        facing = side * normals[:, 2] > np.cos(np.radians(45.0))
        mean = (normals[facing] * area[facing, None]).sum(0)
        planes.append(
            mean / np.linalg.norm(mean) * side if facing.any() else np.array([0.0, 0.0, 1.0])
        )
    tilt = [
        np.degrees(np.arctan2(planes[0][k], planes[0][2]) - np.arctan2(planes[1][k], planes[1][2]))
        for k in (1, 0)
    ]
    figures |= {"angle_yz_deg": float(tilt[0]), "angle_xz_deg": float(tilt[1])}
    return figures | {"volume_mm3": float(mesh.volume), "area_mm2": float(mesh.area)}


def in_segment(direction: np.ndarray, turned_deg: float) -> np.ndarray:
    """A direction [2] of the turned part in the x and y of the segment frame."""
    c, s = np.cos(np.radians(turned_deg)), np.sin(np.radians(turned_deg))
    return np.array([[c, -s], [s, c]]) @ np.asarray(direction, float)


def bearing(direction: np.ndarray) -> str:
    """Where a horizontal direction [2] of the segment frame (x left, y posterior) points, in words.

    "anterior", or "60° right of anterior": from anterior or posterior, whichever is nearer, to the
    patient's side.
    """
    x, y = np.asarray(direction, float)
    end = "anterior" if y <= 0 else "posterior"
    angle = round(float(np.degrees(np.arctan2(abs(x), abs(y)))))
    side = "left" if x > 0 else "right"
    return end if angle == 0 else side if angle == 90 else f"{angle}° {side} of {end}"


def section_outlines(
    mesh: trimesh.Trimesh, axis: int, at_mm: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Closed curves [n, 2] where the plane cuts the part, in the two other coordinates (in their
    order): outer ones (turning left) and holes (turning right)."""
    normal = np.eye(3)[axis]
    lines = trimesh.intersections.mesh_plane(mesh, normal, at_mm * normal)
    if not len(lines):
        return [], []
    keep = [k for k in range(3) if k != axis]
    curves = _chained(lines[..., keep])
    areas = [abs(polygon_area_mm2(c)) for c in curves]
    outer, inner = list[np.ndarray](), list[np.ndarray]()
    for i, c in enumerate(curves):
        depth = sum(
            _inside(c[0], other) for j, other in enumerate(curves) if j != i and areas[j] > areas[i]
        )
        left_turning = c if polygon_area_mm2(c) > 0 else c[::-1]
        (inner if depth % 2 else outer).append(left_turning[::-1] if depth % 2 else left_turning)
    return outer, inner


def polygon_area_mm2(c: np.ndarray) -> float:
    x, y = c.T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def _inside(point: np.ndarray, c: np.ndarray) -> bool:
    a, b = c, np.roll(c, -1, axis=0)
    cross = (a[:, 1] > point[1]) != (b[:, 1] > point[1])
    t = (point[1] - a[cross, 1]) / (b[cross, 1] - a[cross, 1])
    return bool(np.sum(a[cross, 0] + t * (b[cross, 0] - a[cross, 0]) > point[0]) % 2)


def _chained(segments: np.ndarray) -> list[np.ndarray]:
    """Closed curves from segments [n, 2, 2] that share their ends; slivers under 0.05 mm² are
    left out."""
    ends, index = np.unique(np.round(segments.reshape(-1, 2), 6), axis=0, return_inverse=True)
    pairs = index.reshape(-1, 2)
    near: dict[int, list[int]] = {}
    for a, b in pairs:
        if a != b:
            near.setdefault(int(a), []).append(int(b))
            near.setdefault(int(b), []).append(int(a))
    curves, remaining = [], set(near)
    while remaining:
        at = start = min(remaining)
        path, before = [start], -1
        while True:
            remaining.discard(at)
            onward = [
                n
                for n in near[at]
                if n != before and (n in remaining or (n == start and len(path) > 2))
            ]
            if not onward or onward[0] == start:
                break
            before, at = at, onward[0]
            path.append(at)
        curve = ends[path]
        if len(curve) > 2 and abs(polygon_area_mm2(curve)) > 0.05:
            curves.append(curve)
    return curves


def wall_middle(
    outer: list[np.ndarray], inner: list[np.ndarray], axis: int, sign: float
) -> np.ndarray:
    """The middle of the wall where the half way section ends along an axis, on the line through
    the part's middle."""
    other = 1 - axis
    crossings = []
    for c in (*outer, *inner):
        a, b = c, np.roll(c, -1, axis=0)
        cross = (a[:, other] > 0.0) != (b[:, other] > 0.0)
        t = -a[cross, other] / (b[cross, other] - a[cross, other])
        crossings += (a[cross, axis] + t * (b[cross, axis] - a[cross, axis])).tolist()
    ordered = sorted((sign * v for v in crossings), reverse=True)
    point = np.zeros(2)
    point[axis] = sign * 0.5 * (ordered[0] + ordered[1]) if len(ordered) > 1 else 0.0
    return point


def crossing(mesh: trimesh.Trimesh, at: np.ndarray) -> tuple[float, float] | None:
    """Lowest and highest z at which the vertical line through at [2] crosses the surface; None
    where it does not."""
    a, b, c = (mesh.triangles[:, i] for i in range(3))
    d1, d2 = b[:, :2] - a[:, :2], c[:, :2] - a[:, :2]
    det = d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]
    flat = np.abs(det) > 1e-12
    a, b, c, d1, d2, det = a[flat], b[flat], c[flat], d1[flat], d2[flat], det[flat]
    r = at - a[:, :2]
    u = (r[:, 0] * d2[:, 1] - r[:, 1] * d2[:, 0]) / det
    v = (d1[:, 0] * r[:, 1] - d1[:, 1] * r[:, 0]) / det
    hit = (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9)
    z = (a[:, 2] + u * (b[:, 2] - a[:, 2]) + v * (c[:, 2] - a[:, 2]))[hit]
    return (float(z.min()), float(z.max())) if len(z) > 1 else None


def overhanging(mesh: trimesh.Trimesh, up: np.ndarray, critical_deg: float = 45.0) -> np.ndarray:
    """Which faces [f] face down by less than critical_deg off straight down and do not lie on
    the plate (0.2 mm)."""
    floor = float((mesh.vertices @ up).min())
    mask: np.ndarray = (mesh.face_normals @ -up > np.cos(np.radians(critical_deg))) & (
        mesh.triangles_center @ up > floor + 0.2
    )
    return mask


def orientations(mesh: trimesh.Trimesh, critical_deg: float = 45.0) -> list[dict[str, Any]]:
    """Overhang (`overhanging`) of each of six build directions, least first. Keys: direction,
    overhang_mm2, height_mm."""
    out = []
    for name, up in DIRECTIONS.items():
        down = overhanging(mesh, up, critical_deg)
        out.append(
            {
                "direction": name,
                "overhang_mm2": float(mesh.area_faces[down].sum()),
                "height_mm": float(np.ptp(mesh.vertices @ up)),
            }
        )
    return sorted(out, key=lambda o: round(o["overhang_mm2"], 3))


# -- views -----------------------------------------------------------------------------------------
def view(mesh: trimesh.Trimesh, name: str) -> View:
    """One view of the part."""
    sight, up = (np.asarray(v, float) for v in SIGHT[name])
    sight /= np.linalg.norm(sight)
    right = np.cross(sight, up)
    right /= np.linalg.norm(right)
    frame = np.stack([right, np.cross(right, sight), sight], axis=1)
    points = mesh.vertices @ frame
    low = points[:, :2].min(0) - 4 * _PIXEL_MM
    depth = _depth(points[mesh.faces], low, np.ptp(points[:, :2], axis=0) + 8 * _PIXEL_MM)
    outline = [
        approximate_polygon(c, 0.6) * _PIXEL_MM + low
        for c in find_contours(np.isfinite(depth).astype(float), 0.5)
    ]
    sharp = mesh.face_adjacency_angles > np.radians(FEATURE_DEG)
    visible, hidden = list[np.ndarray](), list[np.ndarray]()
    for a, b in points[mesh.face_adjacency_edges[sharp]]:
        for seen, run in _runs(a, b, depth, low):
            (visible if seen else hidden).append(run)
    return View([c for c in outline if len(c) > 3], visible, hidden)


def _depth(triangles: np.ndarray, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Depth of the nearest surface on a raster of pixels; infinite where there is none."""
    shape = np.ceil(size / _PIXEL_MM).astype(int) + 1
    depth = np.full(shape, np.inf)
    for t in triangles:
        corner = (t[:, :2] - low) / _PIXEL_MM
        first = np.maximum(np.floor(corner.min(0)).astype(int), 0)
        last = np.minimum(np.ceil(corner.max(0)).astype(int), shape - 1)
        d1, d2 = corner[1] - corner[0], corner[2] - corner[0]
        det = d1[0] * d2[1] - d1[1] * d2[0]
        if abs(det) < 1e-12:
            continue
        x, y = np.meshgrid(
            np.arange(first[0], last[0] + 1), np.arange(first[1], last[1] + 1), indexing="ij"
        )
        rx, ry = x - corner[0, 0], y - corner[0, 1]
        u, v = (rx * d2[1] - ry * d2[0]) / det, (d1[0] * ry - d1[1] * rx) / det
        inside = (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9)
        z = t[0, 2] + u * (t[1, 2] - t[0, 2]) + v * (t[2, 2] - t[0, 2])
        here = depth[first[0] : last[0] + 1, first[1] : last[1] + 1]
        np.minimum(here, np.where(inside, z, np.inf), out=here)
    return depth


def _runs(
    a: np.ndarray, b: np.ndarray, depth: np.ndarray, low: np.ndarray
) -> list[tuple[bool, np.ndarray]]:
    """The edge in pieces that are seen or hidden throughout; edges along the sight give nothing."""
    length = float(np.linalg.norm((b - a)[:2]))
    if length < 1e-3:
        return []
    n = max(int(np.ceil(length / 0.1)), 1)
    middle = a + (b - a) * ((np.arange(n) + 0.5) / n)[:, None]
    pixel = np.round((middle[:, :2] - low) / _PIXEL_MM).astype(int)
    nearest = np.full(n, np.inf)
    for dx in (-1, 0, 1):  # an edge on the rim of a face may fall on the pixel beside it
        for dy in (-1, 0, 1):
            at = np.clip(pixel + [dx, dy], 0, np.array(depth.shape) - 1)
            nearest = np.where(
                nearest == np.inf,
                depth[at[:, 0], at[:, 1]],
                np.maximum(nearest, _finite(depth[at[:, 0], at[:, 1]])),
            )
    seen = middle[:, 2] <= nearest + _SEEN_MM
    cuts = np.flatnonzero(np.diff(seen)) + 1
    out = []
    for part in np.split(np.arange(n), cuts):
        ends = a + (b - a) * (np.array([part[0], part[-1] + 1]) / n)[:, None]
        out.append((bool(seen[part[0]]), ends[:, :2]))
    return out


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, -np.inf)
