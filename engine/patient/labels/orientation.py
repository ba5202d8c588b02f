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


def _whole(found: Mapping[str, Piece]) -> list[Piece]:
    return [
        piece
        for level, piece in found.items()
        if level != "S1" and piece.cut_mm2 <= LARGEST_CUT_MM2
    ]


def directions(found: Mapping[str, Piece]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Unit vectors [3] cranially along the bodies, and posteriorly (perpendicular to it); None
    where there is too little."""
    whole = _whole(found)
    up = unit(whole[0].body_mm - whole[-1].body_mm) if len(whole) > 1 else None
    axis = np.array([0.0, 0.0, 1.0]) if up is None else up
    arches = [piece.centroid_mm - piece.body_mm for piece in whole]
    arches = [arch - (arch @ axis) * axis for arch in arches]
    arches = [unit(arch) for arch in arches if np.linalg.norm(arch) > _ARCH_MM]
    total = np.sum(arches, axis=0) if arches else np.zeros(3)
    return up, unit(total) if np.linalg.norm(total) > 0.3 * max(len(arches), 1) else None


def turned(found: Mapping[str, Piece]) -> list[Finding]:
    """Findings "turned" (upside down, along another axis, or about its own) and "flipped" of
    mobile levels, cranial to caudal."""
    up, back = directions(found)
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
        if abs(angle) > 180.0 - 45.0
        else ("to the left of" if angle > 0.0 else "to the right of")
    )
    text = (
        f"the processes lie {side} the bodies: the patient is turned by {abs(angle):.0f}° about the"
        " long axis against what the image's affine says. Lying on the side turns the axes with"
        " the patient, so that the header is wrong: left, right, front and back of this image are"
        " not the patient's"
    )
    if abs(angle) > STOPPED_DEG:
        code = "flipped" if abs(angle) > 135.0 else "turned"
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


def sides(image: Image, scheme: Scheme, found: Mapping[str, Piece]) -> list[Finding]:
    """The finding "mirrored" where organs or named sides contradict the image's left, else a
    note of what tells the sides."""
    mobile = _whole(found)
    doubts = [Finding("sides", "warning", "", line) for line in image.notes if _in_doubt(line)]
    if not mobile:
        return doubts
    return [*doubts, *_sides(image, scheme, found, mobile)]


def _in_doubt(line: str) -> bool:
    """Whether a reader's note leaves the axes in doubt: none stored, or two that differ by more
    than rounding."""
    differ = re.match(r"qform and sform differ by up to ([\d.]+) mm", line)
    return line.startswith("no orientation is stored") or (
        differ is not None and float(differ[1]) > 2.0
    )


def _sides(
    image: Image, scheme: Scheme, found: Mapping[str, Piece], mobile: list[Piece]
) -> list[Finding]:
    up, back = directions(found)
    # the patient's own left, so that one who lies turned is not taken as mirrored
    left = np.array([1.0, 0.0, 0.0])
    if up is not None and back is not None:
        left = unit(np.cross(back, up))
    bodies = np.array([piece.body_mm for piece in mobile])
    places = _centroids(image, scheme)
    agreeing: list[str] = []
    contradicting: list[str] = []

    def vote(text: str, right: bool) -> None:
        (agreeing if right else contradicting).append(text)

    for organ, side in _ORGANS.items():
        if organ in places:
            offset = float(
                (
                    places[organ]
                    - bodies[
                        np.argmin(
                            np.abs((bodies - places[organ]) @ (up if up is not None else left))
                        )
                    ]
                )
                @ left
            )
            if abs(offset) > 15.0:
                vote(
                    f"the {organ} lies {abs(offset):.0f} mm to the"
                    f" {'left' if offset > 0 else 'right'} of the spine",
                    offset * side > 0,
                )
    if {"aorta", "inferior_vena_cava"} <= set(places):
        offset = float((places["aorta"] - places["inferior_vena_cava"]) @ left)
        if abs(offset) > 5.0:
            vote(
                f"the aorta lies {'left' if offset > 0 else 'right'} of the inferior vena cava",
                offset > 0,
            )
    for name in ("hip", "femur", *(f"rib_{k}" for k in range(1, 13))):
        part, _, number = name.partition("_")
        pair = [f"{part}_{side}" + (f"_{number}" if number else "") for side in ("left", "right")]
        if set(pair) <= set(places):
            offset = float((places[pair[0]] - places[pair[1]]) @ left)
            vote(f"{pair[0]} lies {'left' if offset > 0 else 'right'} of {pair[1]}", offset > 0)
    if contradicting and len(contradicting) >= len(agreeing):
        text = (
            f"left and right are exchanged: {'; '.join(contradicting[:4])}"
            + (f" (against: {'; '.join(agreeing[:3])})" if agreeing else "")
            + "; correct the image's affine, or go on with source.accept=[mirrored] (situs"
            " inversus)"
        )
        return [Finding("mirrored", "stop", "", text)]
    if contradicting:
        return [
            Finding(
                "mirrored",
                "warning",
                "",
                f"sides disagree: {'; '.join(contradicting[:3])}; but {'; '.join(agreeing[:4])}",
            )
        ]
    if agreeing:
        return [
            Finding(
                "sides",
                "note",
                "",
                f"left and right are as the image says: {'; '.join(agreeing[:4])}",
            )
        ]
    text = (
        "left and right are taken from the image's axes: bones are symmetric, and nothing that"
        " stands on one side is labelled"
    )
    return [Finding("sides", "note", "", text)]


def _centroids(image: Image, scheme: Scheme) -> dict[str, np.ndarray]:
    """Centroids (LPS) of the labelled tissues that tell sides."""
    names = [
        name
        for name in scheme.tissues
        if name in _ORGANS or name.startswith(("aorta", "inferior", "hip_", "femur_", "rib_"))
    ]
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
        if points and sum(map(len, points)) >= 50:
            result[name] = rigid(image.lps_from_index, np.concatenate(points).mean(axis=0))
    return result
