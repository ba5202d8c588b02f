"""Anatomical features of one vertebra: endplate relief, pedicle isthmus, facets, processes, canal and body.

Everything is read from the vertebra's signed distance φ and surface in its own frame (frames.vertebra_frame: x left,
y posterior, z cranial), and given back in the frame that the vertebra is in.

    endplate   h(x, y): outward height of the outermost bone over the rim plane, in the endplate's frame; NaN outside the rim.
               concavity = −min h within 80 % of the rim's radius (farther out the rim itself falls off by 1 mm)
    ring       per direction the crest is the highest point of the outer 30 %; the ring reaches from the rim inwards to where the
               endplate lies 0.3 mm under the crest; its width is the median over the directions
    pedicle    the isthmus is the smallest closed section φ < 0 perpendicular to the axis, from 4 mm before to 12 mm behind the
               body's posterior wall; u = z × axis is transverse, v = axis × u cranio-caudal; width and height are the chords along
               u and v through the section's centroid, as an axial and a sagittal slice show them; inscribed_diameter_mm is
               that of the largest circle within the section, the thickest screw that stays in bone
               convergence = atan2(medial, anterior), sagittal = atan2(cranial, anterior) of entry → target
    facet      surface behind the body, off the midline, within 4 mm of the neighbour, within 1.5 mm of the joint's least gap and
               facing the neighbour (n·∇φ_neighbour < −0.5): the largest connected patch of each side. Angle to the sagittal
               plane: 0° a sagittal, 90° a coronal joint
    canal      empty region of a plane z = const enclosed by bone, at the level closest to the pedicles' middle (their axes 5 mm
               behind the wall) where bone 1 mm deep closes it; AP: chord through its centroid, transverse: its full width (interpedicular)
    body       heights between the rims' midpoints (the planes) and between the bone's own surfaces on the axis

A facet's surface cannot be told from the process that carries it on one bone alone, so it is only given with the neighbour.
Usual lumbar figures [M]: pedicle width 7-18 mm from L1 to L5, canal 15-25 mm antero-posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import find_contours, points_in_poly

from engine.patient.alignment.corners import central_height_mm, corners
from engine.patient.anatomy import _STEP_MM, _first_bone
from engine.patient.geometry.frames import inferior_frame, inverse, move_endplate, polygon_centroid, superior_frame, unit, vertebra_frame
from engine.types import Surface, Vertebra, VoxelField, rigid

SIDES = {"left": 1.0, "right": -1.0}
#: A joint's two surfaces are closer than this (cartilage 1-2 mm a side at most, and open joints) [M].
FACET_GAP_MM = 4.0
#: The bony ring ends where the endplate lies this far under the ring's crest.
RING_DROP_MM = 0.3
_MAP_MM = 1.0
_SECTION_MM = 0.4
_WINDOW_MM = 24.0
#: Where on the axis the isthmus is looked for: before and behind the body's posterior wall.
_ISTHMUS_MM = (4.0, 12.0)
_FACET_MM2 = 20.0
_FLARE_MM = 1.5
Result = TypeVar("Result")


@dataclass(frozen=True)
class EndplateShape:
    """Relief of one endplate.

    x_mm [n], y_mm [m]      grid in the endplate's frame (left, posterior), origin at its centre
    height_mm [n, m]        outward height over the rim plane, NaN outside the rim
    concavity_mm            depth of the deepest point under the rim plane, at concavity_place_mm [3]
    concavity_offset_mm     that place, left and posterior of the endplate's centre
    rim_height_range_mm     5th and 95th percentile of the crest's height over the plane
    ring_width_mm           None where the endplate is too flat for a ring to end
    area_mm2                inside the rim, on its plane
    """

    x_mm: np.ndarray
    y_mm: np.ndarray
    height_mm: np.ndarray
    concavity_mm: float
    concavity_place_mm: np.ndarray
    concavity_offset_mm: tuple[float, float]
    rim_height_range_mm: tuple[float, float]
    ring_width_mm: float | None
    area_mm2: float


@dataclass(frozen=True)
class Pedicle:
    """Section at the isthmus and path along the axis. chord_mm: entry to the anterior cortex along the axis.

    convergence_deg positive when the path runs towards the midline, sagittal_deg when it runs upwards, entry → target.
    """

    isthmus_mm: np.ndarray
    outline_mm: np.ndarray
    width_mm: float
    height_mm: float
    inscribed_diameter_mm: float
    area_mm2: float
    convergence_deg: float
    sagittal_deg: float
    chord_mm: float


@dataclass(frozen=True)
class Facet:
    """One joint surface: normal out of this bone, gap to the neighbour (area mean, 5th percentile)."""

    centre_mm: np.ndarray
    normal: np.ndarray
    area_mm2: float
    gap_mean_mm: float
    gap_least_mm: float
    sagittal_plane_deg: float


@dataclass(frozen=True)
class Canal:
    """Closed section of the spinal canal; offset_mm: its level above the pedicles' middle (0 where that plane is closed)."""

    centre_mm: np.ndarray
    outline_mm: np.ndarray
    ap_mm: float
    transverse_mm: float
    area_mm2: float
    offset_mm: float


@dataclass(frozen=True)
class Body:
    """Sizes of the vertebral body; `central_bone` is between the bony surfaces on the axis."""

    height_anterior_mm: float
    height_middle_mm: float
    height_posterior_mm: float
    height_central_bone_mm: float
    width_superior_mm: float
    width_middle_mm: float
    width_inferior_mm: float
    depth_superior_mm: float
    depth_middle_mm: float
    depth_inferior_mm: float


@dataclass(frozen=True)
class Features:
    """What was found on one vertebra. What could not be found is None or left out, with the reason in `missing` by its name.

    pedicles   "left", "right"
    facets     "superior_left", … (needs `above`), "inferior_left", … (needs `below`)
    points     "spinous_tip", "spinolaminar", "transverse_left", "superior_articular_left", "inferior_articular_left" (tips), …
    """

    name: str
    superior: EndplateShape | None
    inferior: EndplateShape | None
    pedicles: dict[str, Pedicle]
    facets: dict[str, Facet]
    points: dict[str, np.ndarray]
    spinous_length_mm: float | None
    canal: Canal | None
    body: Body | None
    missing: dict[str, str] = field(default_factory=dict)

    def as_dict(self, maps: bool = False) -> dict[str, Any]:
        """For JSON; the height maps only when asked for (NaN as null)."""
        plain: dict[str, Any] = _plain(self)
        for side in ("superior", "inferior"):
            if plain[side] is not None and not maps:
                for key in ("x_mm", "y_mm", "height_mm"):
                    del plain[side][key]
        return plain


def features(vertebra: Vertebra, below: Vertebra | None = None, above: Vertebra | None = None) -> Features:
    """All features of a vertebra (module docstring); `below` and `above`, in the same frame, bring the facet joints.

    What cannot be found is left out with its reason; nothing but a defect of this code raises.
    """
    bone = _Bone(vertebra)
    missing: dict[str, str] = {}

    def attempt(name: str, make: Callable[[], Result]) -> Result | None:
        try:
            return make()
        except ValueError as error:
            missing[name] = str(error)
            return None

    def collect(makers: Mapping[str, Callable[[], Result]], prefix: str) -> dict[str, Result]:
        made = {key: attempt(f"{prefix}.{key}", make) for key, make in makers.items()}
        return {key: value for key, value in made.items() if value is not None}

    superior = attempt("superior", lambda: _endplate_shape(bone, "superior"))
    inferior = attempt("inferior", lambda: _endplate_shape(bone, "inferior"))
    for side, shape in (("superior", superior), ("inferior", inferior)):
        if shape is not None and shape.ring_width_mm is None:
            missing[f"{side}.ring_width_mm"] = f"too flat: a ring ends {RING_DROP_MM:g} mm under its crest in half of the directions"
    pedicles = collect({side: partial(_pedicle, bone, side) for side in SIDES}, "pedicles")
    facets: dict[str, Facet] = {}
    for kind, other, word in (("superior", above, "above"), ("inferior", below, "below")):
        makers = {f"{kind}_{side}": partial(_facet, bone, other, word, side) for side in SIDES}
        facets |= collect(makers, "facets")
    points = collect(_tips(bone), "points")
    canal = attempt("canal", lambda: _canal(bone))
    junction = attempt("points.spinolaminar", lambda: _spinolaminar(bone, canal))
    length = None
    if junction is not None:
        points["spinolaminar"] = junction
        length = float(np.linalg.norm(points["spinous_tip"] - junction))
    else:
        missing["spinous_length_mm"] = missing["points.spinolaminar"]
    body = attempt("body", lambda: _body(bone))
    return Features(vertebra.name, superior, inferior, pedicles, facets, points, length, canal, body, missing)


class _Bone:
    """A vertebra in its own frame, with its distance at hand."""

    def __init__(self, vertebra: Vertebra) -> None:
        self.vertebra, self.name = vertebra, vertebra.name
        self.pose = vertebra_frame(vertebra.superior, vertebra.inferior)
        self.to_own = inverse(self.pose)
        # in double precision once: sample() would convert the whole field at each call
        self._field = VoxelField(np.asarray(vertebra.sdf.values, float), vertebra.sdf.origin_mm, vertebra.sdf.spacing_mm)
        self.points = rigid(self.to_own, vertebra.surface.points_mm)
        rims = [rigid(self.to_own, plate.rim_mm) for plate in (vertebra.superior, vertebra.inferior)]
        self.wall_mm = float(np.mean([np.sort(rim[:, 1])[-9:].mean() for rim in rims]))
        self.front_mm = float(np.mean([rim[:, 1].min() for rim in rims]))
        self.half_width_mm = max(vertebra.superior.half_width_mm, vertebra.inferior.half_width_mm)

    def phi(self, own: np.ndarray) -> np.ndarray:
        """Signed distance at points of the own frame."""
        return self._field.sample(rigid(self.pose, own))

    def pedicle_line(self, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Entry, target and their direction, own frame. Raises ValueError where the pedicle has no axis."""
        if side not in self.vertebra.pedicles:
            raise ValueError(f"{self.name}: no {side} pedicle axis was found")
        entry, target = rigid(self.to_own, self.vertebra.pedicles[side])
        return entry, target, unit(target - entry)


# -- endplates -------------------------------------------------------------------------------------------------


def _endplate_shape(bone: _Bone, side: str) -> EndplateShape:
    plate = getattr(bone.vertebra, side)
    matrix = superior_frame(bone.vertebra) if side == "superior" else inferior_frame(bone.vertebra)
    sign = 1.0 if side == "superior" else -1.0
    rim = rigid(inverse(matrix), plate.rim_mm)[:, :2]
    levels = np.arange(-12.0, 4.6, _STEP_MM)

    def heights(flat: np.ndarray) -> np.ndarray:
        columns = np.concatenate(
            [np.broadcast_to(flat[:, :, None, :], (*flat.shape[:2], len(levels), 2)), np.empty((*flat.shape[:2], len(levels), 1))], -1
        )
        columns[..., 2] = sign * levels
        height, known = _first_bone(bone._field.sample(rigid(matrix, columns)), levels)
        return np.where(known, height, np.nan)

    low, high = np.floor(rim.min(axis=0) / _MAP_MM), np.ceil(rim.max(axis=0) / _MAP_MM)
    x, y = (_MAP_MM * np.arange(low[k], high[k] + 1.0) for k in range(2))
    flat = np.stack(np.meshgrid(x, y, indexing="ij"), -1)
    share = _share(flat, rim)
    height = np.where(share <= 1.0, heights(flat), np.nan)
    inner = np.where(share <= 0.8, height, np.nan)
    if np.isfinite(inner).sum() < 0.7 * (share <= 0.8).sum():
        raise ValueError(f"{bone.name}: under a third of the {side} endplate's plane lies no bone; the plate does not fit the surface")
    i, j = np.unravel_index(int(np.nanargmin(inner)), inner.shape)
    place = rigid(matrix, np.array([x[i], y[j], sign * height[i, j]]))
    # the ring, by direction
    radius = np.hypot(rim[:, 0], rim[:, 1])
    shares = np.linspace(0.0, 1.0, 61)
    relief = heights(shares[None, :, None] * rim[:, None, :])
    outer = np.where((shares >= 0.7) & np.isfinite(relief), relief, -np.inf)
    at = np.argmax(outer, axis=1)
    crest = outer[np.arange(len(rim)), at]
    fallen = (relief < crest[:, None] - RING_DROP_MM) & (np.arange(len(shares)) < at[:, None])
    ends = len(shares) - 1 - np.argmax(fallen[:, ::-1], axis=1)
    widths = ((1.0 - shares[ends]) * radius)[fallen.any(axis=1)]
    low_crest, high_crest = np.percentile(crest[np.isfinite(crest)], [5.0, 95.0])
    return EndplateShape(
        x_mm=x,
        y_mm=y,
        height_mm=height,
        concavity_mm=float(-height[i, j]),
        concavity_place_mm=place,
        concavity_offset_mm=(float(x[i]), float(y[j])),
        rim_height_range_mm=(float(low_crest), float(high_crest)),
        ring_width_mm=float(np.median(widths)) if len(widths) >= 0.5 * len(rim) and -height[i, j] > 2.0 * RING_DROP_MM else None,
        area_mm2=_area(rim),
    )


def _share(flat: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Distance from the centre as a share of the rim's radius in that direction."""
    angle = np.arctan2(rim[:, 1], rim[:, 0])
    order = np.argsort(angle)
    radius = np.hypot(rim[:, 0], rim[:, 1])[order]
    limit = np.interp(np.arctan2(flat[..., 1], flat[..., 0]), angle[order], radius, period=2.0 * np.pi)
    return np.asarray(np.hypot(flat[..., 0], flat[..., 1]) / limit)


# -- pedicles --------------------------------------------------------------------------------------------------


def _pedicle(bone: _Bone, side: str) -> Pedicle:
    entry, target, along = bone.pedicle_line(side)
    u = unit(np.cross(np.array([0.0, 0.0, 1.0]), along))
    v = np.cross(along, u)
    flat, centre = _isthmus(bone, side, u, v)
    middle = polygon_centroid(flat)
    forward = target + np.arange(0.0, 60.0, 0.25)[:, None] * along
    value = bone.phi(forward)
    out = np.flatnonzero(value > 0.0)
    if value[0] > 0.0 or not len(out):
        raise ValueError(f"{bone.name}: the {side} pedicle's axis does not end in the body")
    k = int(out[0])
    ahead = 0.25 * (k - value[k] / (value[k] - value[k - 1]))
    return Pedicle(
        isthmus_mm=rigid(bone.pose, centre),
        outline_mm=rigid(bone.pose, centre + flat[:, :1] * u + flat[:, 1:] * v),
        width_mm=_chord(flat, middle, 0),
        height_mm=_chord(flat, middle, 1),
        inscribed_diameter_mm=_inscribed(flat),
        area_mm2=_area(flat),
        convergence_deg=float(np.degrees(np.arctan2(-SIDES[side] * along[0], -along[1]))),
        sagittal_deg=float(np.degrees(np.arctan2(along[2], -along[1]))),
        chord_mm=float(np.linalg.norm(target - entry) + ahead),
    )


def _isthmus(bone: _Bone, side: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outline [n, 2] of the smallest closed section across the axis near the posterior wall, and the axis's point in it."""
    entry, target, along = bone.pedicle_line(side)
    half = np.arange(-_WINDOW_MM, _WINDOW_MM + 0.01, _SECTION_MM)
    line = entry + np.arange(0.0, np.linalg.norm(target - entry), 0.5)[:, None] * along
    behind = line[:, 1] - bone.wall_mm
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for origin in line[(behind > -_ISTHMUS_MM[0]) & (behind < _ISTHMUS_MM[1])]:
        section = bone.phi(origin + half[:, None, None] * u + half[None, :, None] * v)
        outline = _enclosing(section, (half[0], half[0]), _SECTION_MM, (0.0, 0.0), inside_negative=True)
        if outline is not None and (best is None or _area(outline) < best[0]):
            best = _area(outline), outline, origin
    if best is None:
        raise ValueError(f"{bone.name}: the {side} pedicle has no closed section near the posterior wall; it joins body or facet")
    return best[1], best[2]


def _enclosing(
    values: np.ndarray, origin: tuple[float, float], step: float, seed: tuple[float, float], inside_negative: bool
) -> np.ndarray | None:
    """Outline [n, 2] of the region {values < 0} (or > 0) that holds `seed`; None where it reaches the border or the seed is out."""
    field_ = values if inside_negative else -values
    index = tuple(round((s - o) / step) for s, o in zip(seed, origin, strict=True))
    parts, _ = label(field_ < 0.0)
    region = parts == parts[index]
    if parts[index] == 0 or region[0].any() or region[-1].any() or region[:, 0].any() or region[:, -1].any():
        return None
    # other regions are pushed away so that the contour is this region's alone; the outer one is the largest
    alone = np.where((field_ < 0.0) & ~region, 1e-3, field_)
    loops = [np.asarray(origin) + step * loop for loop in find_contours(alone, 0.0)]
    around = [loop[:-1] for loop in loops if len(loop) > 8 and points_in_poly([seed], loop)[0]]
    return max(around, key=_area, default=None)


def _area(flat: np.ndarray) -> float:
    x, y = flat.T
    return 0.5 * abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()))


def _inscribed(flat: np.ndarray) -> float:
    """Diameter of the largest circle within a closed polygon, to 0.1 mm."""
    low, high = flat.min(axis=0), flat.max(axis=0)
    points = np.stack(np.meshgrid(*(np.arange(a, b, 0.2) for a, b in zip(low, high, strict=True)), indexing="ij"), -1).reshape(-1, 2)
    points = points[points_in_poly(points, flat)]
    start, edge = flat, np.roll(flat, -1, axis=0) - flat
    offset = points[:, None] - start
    t = np.clip((offset * edge).sum(axis=-1) / np.maximum((edge * edge).sum(axis=-1), 1e-12), 0.0, 1.0)
    return 2.0 * float(np.linalg.norm(offset - t[..., None] * edge, axis=-1).min(axis=1).max())


def _chord(flat: np.ndarray, through: np.ndarray, axis: int) -> float:
    """Length of the chord of a closed polygon along `axis` (0 or 1) through a point inside it."""
    ends = np.roll(flat, -1, axis=0)
    a, b = flat[:, 1 - axis] - through[1 - axis], ends[:, 1 - axis] - through[1 - axis]
    cut = (a < 0.0) != (b < 0.0)
    at = flat[cut, axis] + a[cut] / (a[cut] - b[cut]) * (ends[cut, axis] - flat[cut, axis]) - through[axis]
    if not ((at > 0.0).any() and (at < 0.0).any()):
        raise ValueError("the section's centroid lies outside of it; it is no oval")
    return float(at[at > 0.0].min() - at[at < 0.0].max())


# -- facets and processes --------------------------------------------------------------------------------------


def _facet(bone: _Bone, other: Vertebra | None, word: str, side: str) -> Facet:
    if other is None:
        raise ValueError(f"{bone.name}: needs the vertebra {word}; a facet cannot be told from its process on one bone alone")
    own, sign = bone.points, SIDES[side]
    candidates = np.flatnonzero((own[:, 1] > bone.wall_mm + 2.0) & (sign * own[:, 0] > 5.0))
    points = bone.vertebra.surface.points_mm[candidates]
    field_ = VoxelField(np.asarray(other.sdf.values, float), other.sdf.origin_mm, other.sdf.spacing_mm)
    gap = field_.sample(points)
    near = gap < FACET_GAP_MM
    candidates, points, gap = candidates[near], points[near], gap[near]
    steps = 0.5 * np.eye(3)
    slope = np.stack([field_.sample(points + step) - field_.sample(points - step) for step in steps], axis=-1)
    normals, areas = _vertex_normals(bone.vertebra.surface)
    facing = np.einsum("ij,ij->i", normals[candidates], slope) < -0.5
    candidates, gap = candidates[facing], gap[facing]
    if len(gap):
        # cartilages are of even thickness: what gapes more than that over the least gap is the joint's flared edge
        even = gap < np.percentile(gap, 5.0) + _FLARE_MM
        candidates, gap = candidates[even], gap[even]
    patch = _largest_patch(bone.vertebra.surface.faces, candidates, areas)
    area = float(areas[candidates[patch]].sum())
    if area < _FACET_MM2:
        raise ValueError(
            f"{bone.name}: only {area:.0f} mm² of the {side} side lie within {FACET_GAP_MM:g} mm of {other.name} and face it (at least "
            f"{_FACET_MM2:g}); the joint is wide open, cut off or removed"
        )
    vertices, gap = candidates[patch], gap[patch]
    weight = areas[vertices] / area
    normal = unit(weight @ normals[vertices])
    flat = bone.to_own[:3, :3] @ normal
    return Facet(
        centre_mm=weight @ bone.vertebra.surface.points_mm[vertices],
        normal=normal,
        area_mm2=area,
        gap_mean_mm=float(weight @ gap),
        gap_least_mm=float(np.percentile(gap, 5.0)),
        sagittal_plane_deg=float(np.degrees(np.arctan2(abs(flat[1]), abs(flat[0])))),
    )


def _vertex_normals(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Outward unit normal and area share of each vertex."""
    points, faces = surface.points_mm, surface.faces
    a, b, c = (points[faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    normals, areas = np.zeros_like(points), np.zeros(len(points))
    for k in range(3):
        np.add.at(normals, faces[:, k], cross)
        np.add.at(areas, faces[:, k], np.linalg.norm(cross, axis=1) / 6.0)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12), areas


def _largest_patch(faces: np.ndarray, vertices: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Indices into `vertices` of the largest patch that the mesh's edges connect."""
    if not len(vertices):
        return np.zeros(0, int)
    place = np.full(len(areas), -1)
    place[vertices] = np.arange(len(vertices))
    edges = place[np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])]
    edges = edges[(edges >= 0).all(axis=1)]
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(vertices), len(vertices)))
    count, which = connected_components(graph, directed=False)
    size = np.bincount(which, weights=areas[vertices], minlength=count)
    return np.flatnonzero(which == int(np.argmax(size)))


def _tips(bone: _Bone) -> dict[str, Callable[[], np.ndarray]]:
    """Extreme points of the processes: how to find each."""
    own, surface = bone.points, bone.vertebra.surface.points_mm
    behind = own[:, 1] > bone.wall_mm + 4.0

    def extreme(where: np.ndarray, score: np.ndarray) -> np.ndarray:
        if not where.any():
            raise ValueError(f"{bone.name}: no bone is there; the posterior elements are cut off")
        return np.asarray(surface[int(np.argmax(np.where(where, score, -np.inf)))])

    def spinous() -> np.ndarray:
        found = bone.vertebra.landmarks.get("spinous_tip")
        return extreme(behind, own[:, 1] - 0.5 * np.abs(own[:, 0])) if found is None else np.asarray(found, float)

    def transverse(sign: float) -> np.ndarray:
        # the process may spring from the pedicle, level with the posterior wall
        tip = extreme((own[:, 1] > bone.wall_mm - 5.0) & (sign * own[:, 0] > 0.0), sign * own[:, 0])
        reach = sign * rigid(bone.to_own, tip)[0]
        if reach < bone.half_width_mm + 4.0:
            raise ValueError(
                f"{bone.name}: no transverse process; nothing reaches more than {reach:.0f} mm from the midline, the body itself "
                f"{bone.half_width_mm:.0f} mm"
            )
        return tip

    def articular(sign: float, up: float) -> np.ndarray:
        lateral = sign * own[:, 0]
        return extreme(behind & (lateral > 5.0) & (lateral < bone.half_width_mm + 4.0), up * own[:, 2])

    makers: dict[str, Callable[[], np.ndarray]] = {"spinous_tip": spinous}
    for side, sign in SIDES.items():
        makers[f"transverse_{side}"] = partial(transverse, sign)
        makers[f"superior_articular_{side}"] = partial(articular, sign, 1.0)
        makers[f"inferior_articular_{side}"] = partial(articular, sign, -1.0)
    return makers


# -- canal and body --------------------------------------------------------------------------------------------


def _canal(bone: _Bone) -> Canal:
    # where the axes pass 5 mm behind the posterior wall: the middle of the pedicles
    crossings = []
    for side in SIDES:
        entry, _, along = bone.pedicle_line(side)
        crossings.append((entry + (bone.wall_mm + 5.0 - entry[1]) / along[1] * along)[2])
    level = float(np.mean(crossings))
    x = np.arange(-26.0, 26.01, _SECTION_MM)
    y = bone.wall_mm + np.arange(-14.0, 44.01, _SECTION_MM)
    # the laminae slope down and backwards: the ring closes at the pedicles' middle or a little below it
    for offset in sorted(np.arange(-10.0, 4.1, 0.5), key=lambda t: (abs(t), t)):
        flat = np.stack(np.meshgrid(x, y, indexing="ij"), -1)
        values = bone.phi(np.concatenate([flat, np.full((*flat.shape[:2], 1), level + offset)], -1))
        window = (np.abs(flat[..., 0]) < 4.0) & (np.abs(flat[..., 1] - bone.wall_mm - 6.0) < 8.0)
        i, j = np.unravel_index(int(np.argmax(np.where(window, values, -np.inf))), values.shape)
        seed = (float(x[i]), float(y[j]))
        # where the arch only just closes, its edge is grazed: the ring must be closed by bone 1 mm deep as well
        if _enclosing(values + 1.0, (x[0], y[0]), _SECTION_MM, seed, inside_negative=False) is None:
            continue
        outline = _enclosing(values, (x[0], y[0]), _SECTION_MM, seed, inside_negative=False)
        if outline is None or _area(outline) < 60.0:
            continue
        middle = polygon_centroid(outline)
        height = np.full((len(outline), 1), level + offset)
        return Canal(
            centre_mm=rigid(bone.pose, np.array([*middle, level + offset])),
            outline_mm=rigid(bone.pose, np.concatenate([outline, height], -1)),
            ap_mm=_chord(outline, middle, 1),
            transverse_mm=float(np.ptp(outline[:, 0])),
            area_mm2=_area(outline),
            offset_mm=float(offset),
        )
    raise ValueError(f"{bone.name}: bone encloses no canal 10 mm under to 4 mm over the pedicles; the arch is open or cut off")


def _spinolaminar(bone: _Bone, canal: Canal | None) -> np.ndarray:
    """The canal's posterior border in the midline, where it reaches farthest forwards; vertebra's given frame."""
    if canal is None:
        raise ValueError(f"{bone.name}: the canal was not found, from which the arch's front is looked for")
    centre = rigid(bone.to_own, canal.centre_mm)
    z = centre[2] + np.arange(-15.0, 5.1, 0.5)
    y = centre[1] + np.arange(0.0, 25.0, 0.25)
    values = bone.phi(np.stack(np.broadcast_arrays(0.0, y[None, :], z[:, None]), -1))
    hit = (values < 0.0).any(axis=1) & (values[:, 0] > 0.0)
    if not hit.any():
        raise ValueError(f"{bone.name}: no lamina crosses the midline behind the canal")
    k = np.argmax(values < 0.0, axis=1)
    rows = np.arange(len(z))
    front, back = values[rows, k - 1], values[rows, k]
    reach = y[k] - 0.25 * back / np.where(back == front, 1.0, back - front)
    best = int(np.argmin(np.where(hit, reach, np.inf)))
    return rigid(bone.pose, np.array([0.0, reach[best], z[best]]))


def _body(bone: _Bone) -> Body:
    vertebra = bone.vertebra
    (front_top, back_top), (front_bottom, back_bottom) = (_corners_own(bone, side) for side in ("superior", "inferior"))
    middle = 0.5 * (bone.front_mm + bone.wall_mm)
    depth = bone.wall_mm - bone.front_mm
    # pedicles join behind the middle: the width is the widest chord of the front half of the section at mid-height
    rows = np.linspace(middle - 0.25 * depth, middle, 11)
    widths = [_through(bone, np.array([0.0, y, 0.0]), 0, 1.4 * bone.half_width_mm) for y in rows]
    return Body(
        height_anterior_mm=float(np.linalg.norm(front_top - front_bottom)),
        height_middle_mm=float(np.linalg.norm(vertebra.superior.centre_mm - vertebra.inferior.centre_mm)),
        height_posterior_mm=float(np.linalg.norm(back_top - back_bottom)),
        height_central_bone_mm=central_height_mm(vertebra),
        width_superior_mm=2.0 * vertebra.superior.half_width_mm,
        width_middle_mm=max(widths),
        width_inferior_mm=2.0 * vertebra.inferior.half_width_mm,
        depth_superior_mm=2.0 * vertebra.superior.half_depth_mm,
        depth_middle_mm=_through(bone, np.array([0.0, middle, 0.0]), 1, depth),
        depth_inferior_mm=2.0 * vertebra.inferior.half_depth_mm,
    )


def _corners_own(bone: _Bone, side: str) -> tuple[np.ndarray, np.ndarray]:
    return corners(move_endplate(bone.to_own, getattr(bone.vertebra, side)))


def _through(bone: _Bone, point: np.ndarray, axis: int, reach_mm: float) -> float:
    """Length of the bone along `axis` through a point of the own frame. Raises ValueError where that is not bone or has no end."""
    t = np.arange(0.0, reach_mm, 0.25)
    total = 0.0
    for sign in (1.0, -1.0):
        line = np.repeat(point[None], len(t), axis=0)
        line[:, axis] += sign * t
        value = bone.phi(line)
        out = np.flatnonzero(value > 0.0)
        if value[0] >= 0.0 or not len(out):
            raise ValueError(f"{bone.name}: the section at mid-height has no clear border along {'xy'[axis]}; it is no closed body")
        k = int(out[0])
        total += 0.25 * (k - value[k] / (value[k] - value[k - 1]))
    return float(total)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if hasattr(value, "__dataclass_fields__"):
        return {key: _plain(getattr(value, key)) for key in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


__all__ = ["Body", "Canal", "EndplateShape", "Facet", "Features", "Pedicle", "features"]
