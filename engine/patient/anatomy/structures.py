"""What a label image holds between and behind the vertebrae: discs, endplates, canal and cord, and
what is measured with them.

Where they come from
    discs, endplates   100 + n and 200 + n of a TPTBox/SPINEPS vertebra mask (n: the vertebra
                       above); else 100 of the sub-region mask, each piece given to the two bodies
                       between which it lies
    canal              60 and 61 of the sub-region mask (the cord lies in the canal)
    cord               60 of the sub-region mask; 79 of TotalSegmentator, which is the cord's sheath
                       and no canal: no depth is read from it
    sub-region mask    a second image on the vertebra mask's own grid (TPTBox's "seg-subreg"),
                       without levels

Measures, into anatomy.json
    facet joints   of a pair, left and right: area mean and least gap (5th percentile) of both
                   bones' facing areas (features.Facet). Where the labels touch behind the bodies
                   the least gap is 0 and the state "touching": the mean is then of the parted bones
    disc           height along the disc's mean normal b, mean of seven lines within 4 mm of its
                   middle: of the label, between the bones' own surfaces, and between the rims'
                   planes; a label thinner than the bones' gap leaves endplates or air out
    canal          antero-posterior chord through the centroid of its section, width and area: at
                   mid-height of each body, parallel to its endplates' mean, and in each disc's
                   middle, perpendicular to b
    sub-regions    share of a level's corpus (49, 50) before its posterior wall, as found from the
                   endplates' rims, and of its arch and processes (41-48) behind it: a check of the
                   found body, by labels that had no part in finding it
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.ndimage import find_objects, label, map_coordinates

from engine.patient.anatomy.body import posterior_wall_mm
from engine.patient.anatomy.features import Features
from engine.patient.anatomy.sections import SIDES, outline_area_mm2, outline_chord_mm
from engine.patient.geometry.distance import polydata
from engine.patient.geometry.frames import frame, inverse, polygon_centroid, unit, vertebra_frame
from engine.patient.geometry.levels import follow
from engine.patient.labels.pieces import contact_faces
from engine.patient.labels.surface import mask_surface
from engine.patient.labels.understand import Labels
from engine.patient.read.image import Image
from engine.patient.read.schemes import SUBREGIONS
from engine.types import PatientModel, Surface, Vertebra, rigid

_CORPUS = (SUBREGIONS["corpus_border"], SUBREGIONS["corpus"])
_ARCH = tuple(range(SUBREGIONS["arch"], SUBREGIONS["corpus_border"]))
#: Less is no structure but a remnant at the image's border.
LEAST_MM3 = 150.0
#: How far above and below the levels that are read canal and cord are kept.
_BEYOND_MM = 25.0
#: A disc's piece lies this near to the middle between two bodies.
_DISC_MM = 15.0


def check_subregions(subregions: Image, labels: Labels) -> None:
    """Raises ValueError unless the sub-region mask has the labels' grid and holds sub-regions."""
    own, other = labels.image, subregions
    if own.values.shape != other.values.shape:
        raise ValueError(
            f"source.subregions has {other.values.shape} voxels, the vertebra mask"
            f" {own.values.shape}; give two masks of one segmentation"
        )
    corners = np.stack(
        np.meshgrid(*[(0.0, n - 1.0) for n in own.values.shape], indexing="ij"), -1
    ).reshape(-1, 3)
    apart = float(
        np.linalg.norm(
            rigid(own.lps_from_index, corners) - rigid(other.lps_from_index, corners), axis=1
        ).max()
    )
    if apart > 0.1 * float(own.voxel_mm.min()):
        raise ValueError(
            f"source.subregions lies up to {apart:.2f} mm beside the vertebra mask; resample it"
            " onto the mask's grid"
        )
    numbers = set(np.unique(other.values).tolist()) - {0}
    if not numbers & set(SUBREGIONS.values()):
        listing = ", ".join(map(str, sorted(numbers)[:12])) or "nothing"
        raise ValueError(
            f"source.subregions holds {listing}; expected TPTBox/SPINEPS sub-regions (41-50 bone,"
            " 60 cord, 61 canal, 100 disc)"
        )


def structures(
    labels: Labels, subregions: Image | None = None
) -> tuple[dict[str, Surface], list[str]]:
    """Closed surfaces (LPS) by name ("disc_L4-L5", "endplates_L4-L5", "canal", "cord"), and what
    was left out and why.

    Only what belongs to the levels that are read. Raises: ValueError as `check_subregions`.
    """
    if subregions is not None:
        check_subregions(subregions, labels)
    masks, notes = _masks(labels, subregions)
    surfaces: dict[str, Surface] = {}
    for name, mask in masks.items():
        volume = float(mask.sum()) * float(np.prod(labels.image.voxel_mm))
        if volume >= LEAST_MM3:
            surfaces[name] = _surface(mask, labels.image.lps_from_index)
        elif volume > 0.0:
            notes.append(
                f"{name} is left out: {volume:.0f} mm³ of it are in the image (at least"
                f" {LEAST_MM3:.0f})"
            )
    return surfaces, notes


def measures(
    patient: PatientModel,
    found: Mapping[str, Features],
    labels: Labels | None = None,
    subregions: Image | None = None,
) -> dict[str, dict[str, Any]]:
    """JSON-able figures by place ("L4", "L4-L5"): module docstring. What cannot be measured is
    null, with a reason."""
    result: dict[str, dict[str, Any]] = {}
    canal = patient.structures.get("canal")
    masks = {} if labels is None else _masks(labels, subregions)[0]
    for body in patient.vertebrae:
        own: dict[str, Any] = {}
        if canal is not None:
            own["labelled_canal"] = _section(canal, vertebra_frame(body.superior, body.inferior))
        if subregions is not None and labels is not None and body.name in labels.pieces:
            own["subregions"] = body_and_arch(body, labels, subregions)
        result[body.name] = own
    for upper, lower in pairwise(patient.vertebrae):
        if follow(upper.name, lower.name):
            place = f"{upper.name}-{lower.name}"
            result[place] = {"facet_joints": _joints(upper, lower, found, labels)}
            middle = disc_frame(upper, lower)
            if labels is not None and f"disc_{place}" in masks:
                result[place]["disc"] = _disc(
                    upper, lower, middle, masks[f"disc_{place}"], labels.image
                )
            if canal is not None:
                result[place]["labelled_canal"] = _section(canal, middle)
    return result


def body_and_arch(body: Vertebra, labels: Labels, subregions: Image) -> dict[str, float | None]:
    """Shares of the level's corpus voxels before, and of its arch's behind, the posterior wall
    (None: no voxel)."""
    to_own = inverse(vertebra_frame(body.superior, body.inferior))
    wall = posterior_wall_mm(
        [rigid(to_own, plate.rim_mm) for plate in (body.superior, body.inferior)]
    )
    level = labels.image.values == labels.pieces[body.name].number
    shares: dict[str, float | None] = {"posterior_wall_mm": wall}
    for name, numbers, sign in (
        ("corpus_before_wall", _CORPUS, 1.0),
        ("arch_behind_wall", _ARCH, -1.0),
    ):
        index = np.argwhere(level & np.isin(subregions.values, numbers))
        y = rigid(to_own, rigid(labels.image.lps_from_index, index.astype(float)))[:, 1]
        shares[name] = float((sign * y < sign * wall).mean()) if len(y) else None
    return shares


# -- masks -----------------------------------------------------------------------------------------


def _masks(labels: Labels, subregions: Image | None) -> tuple[dict[str, np.ndarray], list[str]]:
    """Voxels of each structure by name, and notes on what belongs to none."""
    masks = _between(labels)
    notes: list[str] = []
    if subregions is not None:
        if not any(name.startswith("disc_") for name in masks):
            found, notes = _discs_without_levels(labels, subregions)
            masks |= found
        for name, numbers in (
            ("canal", (SUBREGIONS["canal"], SUBREGIONS["cord"])),
            ("cord", (SUBREGIONS["cord"],)),
        ):
            masks[name] = np.isin(subregions.values, numbers) & _near(labels)
        if not (subregions.values == SUBREGIONS["canal"]).any():
            del masks["canal"]  # a cord alone is no canal
    else:
        for name in ("canal", "cord"):
            mask = labels.tissue(name)
            if mask is not None:
                masks[name] = mask & _near(labels)
    return masks, notes


def _between(labels: Labels) -> dict[str, np.ndarray]:
    """Discs and endplates that the scheme numbers by the vertebra above."""
    scheme, values = labels.scheme, labels.image.values
    numbers = set(np.unique(values).tolist())
    order = scheme.levels(numbers)
    result = {}
    for level in order:
        if level not in labels.pieces:
            continue
        below = [other for other in order if follow(level, other)]
        if not below and follow(level, "S1"):
            below = ["S1"]
        for name, offset in (("disc", scheme.disc_of), ("endplates", scheme.endplate_of)):
            number = offset + scheme.vertebrae[level]
            if offset and number in numbers:
                lower = below[0] if below else "below"
                result[f"{name}_{level}-{lower}"] = values == number
    return result


def _discs_without_levels(
    labels: Labels, subregions: Image
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The disc label's pieces, each given to the pair of bodies (or L5/L6 and the sacrum) whose
    middle it is nearest to."""
    result: dict[str, np.ndarray] = {}
    parts, count = label(subregions.values == SUBREGIONS["disc"])
    pairs = {}
    for upper, lower in pairwise(labels.pieces.values()):
        if follow(upper.level, lower.level) and lower.level != "S1":
            pairs[f"disc_{upper.level}-{lower.level}"] = 0.5 * (upper.body_mm + lower.body_mm)
    matrix = labels.image.lps_from_index
    strays = 0
    for k in range(1, count + 1):
        mask = parts == k
        centre = rigid(matrix, np.argwhere(mask).mean(axis=0))
        name = min(
            pairs, key=lambda pair: float(np.linalg.norm(pairs[pair] - centre)), default=None
        )
        if name is None or float(np.linalg.norm(pairs[name] - centre)) > _DISC_MM:
            strays += 1
        else:
            result[name] = mask | result.get(name, False)
    notes = (
        [f"{strays} pieces of the disc label lie between no two vertebrae that are read; left out"]
        if strays
        else []
    )
    return result, notes


def _near(labels: Labels) -> np.ndarray:
    """Voxels at the height of the levels that are read, and 25 mm beyond."""
    matrix, shape = labels.image.lps_from_index, labels.image.values.shape
    heights = [
        rigid(piece.lps_from_index, corner * (np.array(piece.mask.shape) - 1.0))[2]
        for piece in labels.pieces.values()
        for corner in np.stack(np.meshgrid(*[(0.0, 1.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    ]
    z = matrix[2, 3] + sum(
        matrix[2, axis]
        * np.arange(shape[axis], dtype=float).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis in range(3)
    )
    return np.asarray((z > min(heights) - _BEYOND_MM) & (z < max(heights) + _BEYOND_MM))


def _surface(mask: np.ndarray, matrix: np.ndarray) -> Surface:
    box = find_objects(mask.astype(np.uint8))[0]
    local = matrix.copy()
    local[:3, 3] = rigid(matrix, np.array([float(s.start) for s in box]))
    return mask_surface(mask[box], local)


# -- measures --------------------------------------------------------------------------------------


def _joints(
    upper: Vertebra, lower: Vertebra, found: Mapping[str, Features], labels: Labels | None
) -> dict[str, Any]:
    touching: dict[str, float] | None = None
    if labels is not None and {upper.name, lower.name} <= set(labels.pieces):
        points, areas = contact_faces(
            labels.pieces[upper.name], labels.pieces[lower.name], labels.image.values
        )
        own = rigid(inverse(disc_frame(upper, lower)), points)
        behind = own[:, 1] > max(lower.superior.half_depth_mm, upper.inferior.half_depth_mm)
        touching = {
            side: float(areas[behind & (sign * own[:, 0] > 0.0)].sum())
            for side, sign in SIDES.items()
        }
    result: dict[str, Any] = {}
    for side in SIDES:
        facets = [
            found[body.name].facets.get(f"{kind}_{side}")
            for body, kind in ((upper, "inferior"), (lower, "superior"))
        ]
        there = [facet for facet in facets if facet is not None]
        area = None if touching is None else touching[side]
        joint: dict[str, Any] = {
            "state": "not measurable",
            "least_mm": None,
            "mean_mm": None,
            "touching_mm2": area,
        }
        if there:
            weight = np.array([facet.area_mm2 for facet in there])
            joint["mean_mm"] = float(weight @ [facet.gap_mean_mm for facet in there] / weight.sum())
            joint["least_mm"] = min(facet.gap_least_mm for facet in there)
            joint["state"] = "gap"
        if area:
            joint |= {"state": "touching", "least_mm": 0.0}
        if not there:
            joint["reason"] = found[upper.name].missing.get(
                f"facets.inferior_{side}", "no facet was found"
            )
        result[side] = joint
    return result


def disc_frame(upper: Vertebra, lower: Vertebra) -> np.ndarray:
    """Frame in the disc's middle: x left, z along its mean normal."""
    top, bottom = upper.inferior, lower.superior
    return frame(
        0.5 * (top.centre_mm + bottom.centre_mm), unit(bottom.normal - top.normal), bottom.axis_left
    )


def _disc(
    upper: Vertebra, lower: Vertebra, middle: np.ndarray, mask: np.ndarray, image: Image
) -> dict[str, Any]:
    angle = np.linspace(0.0, 2.0 * np.pi, 7)[:6]
    flat = np.concatenate([np.zeros((1, 2)), 4.0 * np.stack([np.cos(angle), np.sin(angle)], -1)])
    z = np.arange(-25.0, 25.01, 0.1)
    lines = np.concatenate(
        [
            np.broadcast_to(flat[:, None], (7, len(z), 2)),
            np.broadcast_to(z[None, :, None], (7, len(z), 1)),
        ],
        -1,
    )
    points = rigid(middle, lines)
    # the share of each line in the mask: its surface is rounded at the rim and, for the same
    # volume, too thick in the middle
    to_index = np.linalg.inv(image.lps_from_index)
    labelled = map_coordinates(
        mask.astype(np.float32), rigid(to_index, points).reshape(-1, 3).T, order=1
    ).reshape(points.shape[:-1])
    above, below = upper.sdf.sample(points) < 0.0, lower.sdf.sample(points) < 0.0
    half = len(z) // 2
    # first bone over the middle, last bone under it
    up, down = np.argmax(above[:, half:], axis=1), np.argmax(below[:, half::-1], axis=1)
    met = above[:, half:].any(axis=1) & below[:, : half + 1].any(axis=1)
    plates = [
        float((plate.centre_mm - middle[:3, 3]) @ plate.normal / (middle[:3, 2] @ plate.normal))
        for plate in (upper.inferior, lower.superior)
    ]
    result: dict[str, Any] = {
        "label_height_mm": None,
        "bone_gap_mm": float(0.1 * (up + down)[met].mean()) if met.any() else None,
        "rim_planes_mm": plates[0] - plates[1],
        "label_volume_mm3": float(mask.sum()) * float(np.prod(image.voxel_mm)),
    }
    if (labelled > 0.5).any(axis=1).all():
        result["label_height_mm"] = float(0.1 * labelled.sum(axis=1).mean())
    else:
        result["reason"] = "the labelled disc does not lie in the middle between the two endplates"
    return result


def _section(surface: Surface, pose: np.ndarray) -> dict[str, Any]:
    """Depth, width and area of the largest closed section of a surface by z = 0 of `pose` (y
    posterior)."""
    empty: dict[str, Any] = {"ap_mm": None, "transverse_mm": None, "area_mm2": None}
    cut = polydata(surface).slice(normal=pose[:3, 2], origin=pose[:3, 3]).strip(join=True)
    loops = [
        rigid(inverse(pose), np.asarray(cut.points, float)[ids])[:, :2]
        for ids in _polylines(np.asarray(cut.lines))
    ]
    if not loops:
        return empty | {"reason": "the labelled canal does not reach this plane"}
    flat = max(loops, key=outline_area_mm2)
    try:
        depth = outline_chord_mm(flat, polygon_centroid(flat), 1)
    except ValueError as error:
        return empty | {"reason": str(error)}
    return {
        "ap_mm": depth,
        "transverse_mm": float(np.ptp(flat[:, 0])),
        "area_mm2": outline_area_mm2(flat),
    }


def _polylines(cells: np.ndarray) -> list[np.ndarray]:
    """Point numbers of VTK's lines that close (first and last the same), without the repeated
    last."""
    result, at = [], 0
    while at < len(cells):
        ids = cells[at + 1 : at + 1 + cells[at]]
        at += 1 + int(cells[at])
        if len(ids) > 3 and ids[0] == ids[-1]:
            result.append(ids[:-1])
    return result
