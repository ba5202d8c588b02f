"""Does the spine lie in the image as a patient lies in LPS: head up, processes behind, and left on
the left?

    up      from the lowest body to the highest            against  +z
    back    from the bodies to their arches, mean over all  against  +y, as the angle about the long
                                                                     axis
    sides   organs that stand on one side (liver, spleen, stomach, gallbladder, heart; the aorta
            left of the inferior vena cava), and labels that name a side (hips, femurs, ribs)

A patient who lies on the side has, by DICOM's definition, axes that turn with him: an angle of more
than 60° is a wrong header or affine, whatever the side. Bones are symmetric: without an organ or a
name, a mirrored image cannot be told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from scipy.ndimage import find_objects

from engine.patient.geometry.frames import unit
from engine.patient.labels.pieces import LARGEST_CUT_MM2, Piece
from engine.patient.read.image import Image
from engine.patient.read.schemes import Scheme
from engine.types import Finding, rigid

#: Turn about the long axis, degrees, from which it is warned of, and from which it stops.
WARNED_DEG, STOPPED_DEG = 35.0, 60.0
#: The long axis may lie this far off z, degrees, before the axes are taken as exchanged.
TILTED_DEG = 60.0
#: Less than this between a body's centre and its label's centroid, and the label is a body without
#: its arch, mm.
_ARCH_MM = 5.0
#: Side of the spine on which an organ stands: +1 left.
_ORGANS = {"liver": -1, "gallbladder": -1, "spleen": 1, "stomach": 1, "heart": 1}
#: Organs nearer to the spine's middle than this, and vessels nearer to each other, tell no side
#: (mm).
_ORGAN_MM, _VESSELS_MM = 15.0, 5.0
#: Structures of fewer voxels are taken for specks.
_LEAST_VOXELS = 50
#: Names of tissues in pairs, and of the two vessels.
_PAIRED = ("aorta", "inferior", "hip_", "femur_", "rib_")
#: Arches that agree with each other by less than this share say nothing of the back.
_LEAST_AGREEMENT = 0.3
#: Turned by more than this, the bodies' back is at the patient's front; about the long axis.
_FLIPPED_DEG = 135.0
#: A reader's note of two orientations that differ by more than this leaves the axes in doubt, mm.
_IN_DOUBT_MM = 2.0


def _whole(bones: Mapping[str, Piece]) -> list[Piece]:
    return [
        piece
        for level, piece in bones.items()
        if level != "S1" and piece.cut_mm2 <= LARGEST_CUT_MM2
    ]


def directions(bones: Mapping[str, Piece]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Unit vectors [3] cranially along the bodies, and posteriorly (perpendicular to it); None
    where there is too little."""
    whole = _whole(bones)
    up = unit(whole[0].body_mm - whole[-1].body_mm) if len(whole) > 1 else None
    axis = np.array([0.0, 0.0, 1.0]) if up is None else up
    arches = [piece.centroid_mm - piece.body_mm for piece in whole]
    arches = [arch - (arch @ axis) * axis for arch in arches]
    arches = [unit(arch) for arch in arches if np.linalg.norm(arch) > _ARCH_MM]
    total = np.sum(arches, axis=0) if arches else np.zeros(3)
    agree = np.linalg.norm(total) > _LEAST_AGREEMENT * max(len(arches), 1)
    return up, unit(total) if agree else None


def orientation_findings(bones: Mapping[str, Piece]) -> list[Finding]:
    """Findings "turned" (upside down, along another axis, or about its own) and "flipped" of
    mobile levels, cranial to caudal."""
    up, back = directions(bones)
    if up is not None:
        off = float(np.degrees(np.arccos(np.clip(up[2], -1.0, 1.0))))
        if off > 180.0 - TILTED_DEG:
            text = (
                "the levels run from the foot to the head of the image: it is upside down, or the"
                " numbers (names) run the other way; correct its affine, or source.label_map"
            )
            return [Finding("turned", "stop", "", text)]
        if off > TILTED_DEG:
            axis = int(np.argmax(np.abs(up)))
            text = (
                "the spine runs along the image's"
                f" {('left-right', 'front-back', 'head-foot')[axis]} axis ({off:.0f}° off"
                " head-foot): axes are exchanged in its affine; correct it, or export the image"
                " again"
            )
            return [Finding("turned", "stop", "", text)]
    if back is None:
        return []
    angle = float(np.degrees(np.arctan2(back[0], back[1])))
    if abs(angle) <= WARNED_DEG:
        return []
    side = (
        "in front of"
        if abs(angle) > _FLIPPED_DEG
        else ("to the left of" if angle > 0.0 else "to the right of")
    )
    text = (
        f"the processes lie {side} the bodies: the patient is turned by {abs(angle):.0f}° about the"
        " long axis against what the image's affine says. Lying on the side turns the axes with"
        " the patient, so that the header is wrong: left, right, front and back of this image are"
        " not the patient's"
    )
    if abs(angle) > STOPPED_DEG:
        code = "flipped" if abs(angle) > _FLIPPED_DEG else "turned"
        text += (
            " (or it is upside down, and the numbers are read in a scheme that counts the other"
            " way)"
            if code == "flipped"
            else ""
        )
        return [
            Finding(code, "stop", "", text + f"; correct it, or go on with source.accept=[{code}]")
        ]
    return [Finding("turned", "warning", "", text)]


def side_findings(image: Image, scheme: Scheme, bones: Mapping[str, Piece]) -> list[Finding]:
    """The finding "mirrored" where organs or named sides contradict the image's left, else a
    note of what tells the sides."""
    mobile = _whole(bones)
    doubts = [Finding("sides", "warning", "", line) for line in image.notes if _in_doubt(line)]
    if not mobile:
        return doubts
    return [*doubts, *_sides(image, scheme, bones, mobile)]


def _in_doubt(line: str) -> bool:
    """Whether a reader's note leaves the axes in doubt: none stored, or two that differ by more
    than rounding."""
    differ = re.match(r"qform and sform differ by up to ([\d.]+) mm", line)
    return line.startswith("no orientation is stored") or (
        differ is not None and float(differ[1]) > _IN_DOUBT_MM
    )


def _sides(
    image: Image, scheme: Scheme, bones: Mapping[str, Piece], mobile: list[Piece]
) -> list[Finding]:
    up, back = directions(bones)
    # the patient's own left, so that one who lies turned is not taken as mirrored
    left = np.array([1.0, 0.0, 0.0])
    if up is not None and back is not None:
        left = unit(np.cross(back, up))
    bodies = np.array([piece.body_mm for piece in mobile])
    votes = _votes(_centroids(image, scheme), bodies, left, left if up is None else up)
    agreeing = [text for text, agrees in votes if agrees]
    contradicting = [text for text, agrees in votes if not agrees]
    if contradicting and len(contradicting) >= len(agreeing):
        text = (
            f"left and right are exchanged: {'; '.join(contradicting[:4])}"
            + (f" (against: {'; '.join(agreeing[:3])})" if agreeing else "")
            + "; correct the image's affine, or go on with source.accept=[mirrored] (situs"
            " inversus)"
        )
        return [Finding("mirrored", "stop", "", text)]
    if contradicting:
        text = f"sides disagree: {'; '.join(contradicting[:3])}; but {'; '.join(agreeing[:4])}"
        return [Finding("mirrored", "warning", "", text)]
    if agreeing:
        text = f"left and right are as the image says: {'; '.join(agreeing[:4])}"
        return [Finding("sides", "note", "", text)]
    text = (
        "left and right are taken from the image's axes: bones are symmetric, and nothing that"
        " stands on one side is labelled"
    )
    return [Finding("sides", "note", "", text)]


def _votes(
    centroids_mm: Mapping[str, np.ndarray], bodies_mm: np.ndarray, left: np.ndarray, up: np.ndarray
) -> list[tuple[str, bool]]:
    """Where each organ and pair stands, in words, and whether that agrees with `left`.

    centroids_mm   of tissues [3]     bodies_mm   [n, 3] of the vertebrae     left, up   unit [3]
    """
    votes = []
    for organ, side in _ORGANS.items():
        if organ in centroids_mm:
            at = centroids_mm[organ]
            nearest = bodies_mm[np.argmin(np.abs((bodies_mm - at) @ up))]
            offset = float((at - nearest) @ left)
            if abs(offset) > _ORGAN_MM:
                text = f"the {organ} lies {abs(offset):.0f} mm to the {_side(offset)} of the spine"
                votes.append((text, offset * side > 0))
    if {"aorta", "inferior_vena_cava"} <= set(centroids_mm):
        offset = float((centroids_mm["aorta"] - centroids_mm["inferior_vena_cava"]) @ left)
        if abs(offset) > _VESSELS_MM:
            text = f"the aorta lies {_side(offset)} of the inferior vena cava"
            votes.append((text, offset > 0))
    for name in ("hip", "femur", *(f"rib_{k}" for k in range(1, 13))):
        part, _, number = name.partition("_")
        pair = [f"{part}_{side}" + (f"_{number}" if number else "") for side in ("left", "right")]
        if set(pair) <= set(centroids_mm):
            offset = float((centroids_mm[pair[0]] - centroids_mm[pair[1]]) @ left)
            votes.append((f"{pair[0]} lies {_side(offset)} of {pair[1]}", offset > 0))
    return votes


def _side(offset: float) -> str:
    return "left" if offset > 0 else "right"


def _centroids(image: Image, scheme: Scheme) -> dict[str, np.ndarray]:
    """Centroids (LPS) of the labelled tissues that tell sides."""
    names = [name for name in scheme.tissues if name in _ORGANS or name.startswith(_PAIRED)]
    if not names:
        return {}
    values = image.values
    boxes = find_objects(values)
    result = {}
    for name in names:
        points = []
        for number in scheme.tissues[name]:
            box = boxes[number - 1] if number <= len(boxes) else None
            if box is not None:
                points.append(np.argwhere(values[box] == number) + [s.start for s in box])
        if points and sum(map(len, points)) >= _LEAST_VOXELS:
            result[name] = rigid(image.lps_from_index, np.concatenate(points).mean(axis=0))
    return result
