"""Anatomical features of one vertebra: endplate relief, pedicle isthmus, facets, processes, canal
and body.

Everything is read from the vertebra's signed distance φ and surface in its own frame
(frames.vertebra_frame: x left, y posterior, z cranial), and given back in the frame that the
vertebra is in.

    endplate   h(x, y): outward height of the outermost bone over the rim plane, in the endplate's
               frame; NaN outside the rim. concavity = −min h within 80 % of the rim's radius
               (farther out the rim itself falls off by 1 mm)
    ring       per direction the crest is the highest point of the outer 30 %; the ring reaches from
               the rim inwards to where the endplate lies 0.3 mm under the crest; its width is the
               median over the directions
    pedicle    the isthmus is the smallest closed section φ < 0 perpendicular to the axis, from 4 mm
               before to 12 mm behind the body's posterior wall. u = z × axis is transverse, v =
               axis × u cranio-caudal; width and height are the chords along u and v through the
               section's centroid, as an axial and a sagittal slice show them.
               inscribed_diameter_mm is that of the largest circle within the section, the thickest
               screw that stays in bone. convergence = atan2(medial, anterior) and sagittal =
               atan2(cranial, anterior) of entry → target
    facet      surface behind the body, off the midline, within 4 mm of the neighbour, within 1.5 mm
               of the joint's least gap and facing the neighbour (n·∇φ_neighbour < −0.5): the
               largest connected patch of each side. Angle to the sagittal plane: 0° a sagittal, 90°
               a coronal joint
    canal      empty region of a plane z = const enclosed by bone, at the level closest to the
               pedicles' middle (their axes 5 mm behind the wall) where bone 1 mm deep closes it;
               AP: chord through its centroid, transverse: its full width (interpedicular)
    body       heights between the rims' midpoints (the planes) and between the bone's own surfaces
               on the axis

A facet's surface cannot be told from the process that carries it on one bone alone, so it is only
given with the neighbour. Usual lumbar figures [M]: pedicle width 7-18 mm from L1 to L5, canal 15-25
mm antero-posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from engine.patient.alignment.corners import central_height_mm, corners
from engine.patient.anatomy.canal import Canal, canal_of, spinolaminar
from engine.patient.anatomy.endplates import EndplateShape, endplate_shape
from engine.patient.anatomy.facets import Facet, facet, process_tips
from engine.patient.anatomy.sections import (
    RING_DROP_MM,
    SECTION_MM,
    SIDES,
    WINDOW_MM,
    SectionedBone,
    enclosing_outline,
    largest_circle_mm,
    length_through_mm,
    outline_area_mm2,
    outline_chord_mm,
)
from engine.patient.geometry.frames import move_endplate, polygon_centroid, unit
from engine.types import Vertebra, rigid

#: Where on the axis the isthmus is looked for: before and behind the body's posterior wall.
_ISTHMUS_MM = (4.0, 12.0)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pedicle:
    """Section at the isthmus and path along the axis. chord_mm: entry to the anterior cortex along
    the axis.

    convergence_deg positive when the path runs towards the midline, sagittal_deg when it runs
    upwards, entry → target.
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
    """What was found on one vertebra. What could not be found is None or left out, with the reason
    in `missing` by its name.

    pedicles   "left", "right"
    facets     "superior_left", … (needs `above`), "inferior_left", … (needs `below`)
    points     "spinous_tip", "spinolaminar", "transverse_left", "superior_articular_left",
               "inferior_articular_left" (tips), …
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


def features(
    vertebra: Vertebra, below: Vertebra | None = None, above: Vertebra | None = None
) -> Features:
    """All features of a vertebra (module docstring); `below` and `above`, in the same frame, bring
    the facet joints.

    What cannot be found is left out with its reason; nothing but a defect of this code raises.
    """
    bone = SectionedBone(vertebra)
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

    superior = attempt("superior", lambda: endplate_shape(bone, "superior"))
    inferior = attempt("inferior", lambda: endplate_shape(bone, "inferior"))
    for side, shape in (("superior", superior), ("inferior", inferior)):
        if shape is not None and shape.ring_width_mm is None:
            missing[f"{side}.ring_width_mm"] = (
                f"too flat: a ring ends {RING_DROP_MM:g} mm under its crest in half of the"
                " directions"
            )
    pedicles = collect({side: partial(_pedicle, bone, side) for side in SIDES}, "pedicles")
    facets: dict[str, Facet] = {}
    for kind, other, word in (("superior", above, "above"), ("inferior", below, "below")):
        makers = {f"{kind}_{side}": partial(facet, bone, other, word, side) for side in SIDES}
        facets |= collect(makers, "facets")
    points = collect(process_tips(bone), "points")
    canal = attempt("canal", lambda: canal_of(bone))
    junction = attempt("points.spinolaminar", lambda: spinolaminar(bone, canal))
    length = None
    if junction is not None:
        points["spinolaminar"] = junction
        length = float(np.linalg.norm(points["spinous_tip"] - junction))
    else:
        missing["spinous_length_mm"] = missing["points.spinolaminar"]
    body = attempt("body", lambda: _body(bone))
    return Features(
        vertebra.name, superior, inferior, pedicles, facets, points, length, canal, body, missing
    )


# -- pedicles --------------------------------------------------------------------------------------


def _pedicle(bone: SectionedBone, side: str) -> Pedicle:
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
        width_mm=outline_chord_mm(flat, middle, 0),
        height_mm=outline_chord_mm(flat, middle, 1),
        inscribed_diameter_mm=largest_circle_mm(flat),
        area_mm2=outline_area_mm2(flat),
        convergence_deg=float(np.degrees(np.arctan2(-SIDES[side] * along[0], -along[1]))),
        sagittal_deg=float(np.degrees(np.arctan2(along[2], -along[1]))),
        chord_mm=float(np.linalg.norm(target - entry) + ahead),
    )


def _isthmus(
    bone: SectionedBone, side: str, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Outline [n, 2] of the smallest closed section across the axis near the posterior wall, and
    the axis's point in it."""
    entry, target, along = bone.pedicle_line(side)
    half = np.arange(-WINDOW_MM, WINDOW_MM + 0.01, SECTION_MM)
    line = entry + np.arange(0.0, np.linalg.norm(target - entry), 0.5)[:, None] * along
    behind = line[:, 1] - bone.wall_mm
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for origin in line[(behind > -_ISTHMUS_MM[0]) & (behind < _ISTHMUS_MM[1])]:
        section = bone.phi(origin + half[:, None, None] * u + half[None, :, None] * v)
        outline = enclosing_outline(
            section, (half[0], half[0]), SECTION_MM, (0.0, 0.0), inside_negative=True
        )
        if outline is not None and (best is None or outline_area_mm2(outline) < best[0]):
            best = outline_area_mm2(outline), outline, origin
    if best is None:
        raise ValueError(
            f"{bone.name}: the {side} pedicle has no closed section near the posterior wall; it"
            " joins body or facet"
        )
    return best[1], best[2]


def _body(bone: SectionedBone) -> Body:
    vertebra = bone.vertebra
    (front_top, back_top), (front_bottom, back_bottom) = (
        _corners_own(bone, side) for side in ("superior", "inferior")
    )
    middle = 0.5 * (bone.front_mm + bone.wall_mm)
    depth = bone.wall_mm - bone.front_mm
    # pedicles join behind the middle: the width is the widest chord of the front half of the
    # section at mid-height
    rows = np.linspace(middle - 0.25 * depth, middle, 11)
    widths = [
        length_through_mm(bone, np.array([0.0, y, 0.0]), 0, 1.4 * bone.half_width_mm) for y in rows
    ]
    return Body(
        height_anterior_mm=float(np.linalg.norm(front_top - front_bottom)),
        height_middle_mm=float(
            np.linalg.norm(vertebra.superior.centre_mm - vertebra.inferior.centre_mm)
        ),
        height_posterior_mm=float(np.linalg.norm(back_top - back_bottom)),
        height_central_bone_mm=central_height_mm(vertebra),
        width_superior_mm=2.0 * vertebra.superior.half_width_mm,
        width_middle_mm=max(widths),
        width_inferior_mm=2.0 * vertebra.inferior.half_width_mm,
        depth_superior_mm=2.0 * vertebra.superior.half_depth_mm,
        depth_middle_mm=length_through_mm(bone, np.array([0.0, middle, 0.0]), 1, depth),
        depth_inferior_mm=2.0 * vertebra.inferior.half_depth_mm,
    )


def _corners_own(bone: SectionedBone, side: str) -> tuple[np.ndarray, np.ndarray]:
    return corners(move_endplate(bone.to_own, getattr(bone.vertebra, side)))


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
