"""The labelled objects of an image by their numbers, before it is known what these mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.ndimage import find_objects

from engine.patient.labels.pieces import Piece, pieces
from engine.patient.read.schemes import Scheme, label_map_line, readings, some
from engine.types import rigid

#: Volumes that could be a vertebra's or a sacrum's, mm³, generously.
_BONE_MM3 = (4e3, 4e5)
#: The lowest bone is the sacrum where it is this many times as large as the next.
_SACRUM_FACTOR = 1.8
#: A row of bones reaches this far along its own axis, mm, so that no order across it is taken for
#: one.
_ROW_MM = 80.0


class Objects:
    """The labelled objects of an image: where they are, and the pieces of a scheme's levels, each
    cut out once.

    centres_mm, heights_mm, volumes_mm3   by number: centroid (LPS), its z, volume
    """

    def __init__(self, values: np.ndarray, matrix: np.ndarray) -> None:
        self._values, self._matrix, self._boxes = values, matrix, find_objects(values)
        self._pieces: dict[tuple[int, ...], Piece] = {}
        self.centres_mm: dict[int, np.ndarray] = {}
        self.heights_mm: dict[int, float] = {}
        self.volumes_mm3: dict[int, float] = {}
        voxel = abs(float(np.linalg.det(matrix[:3, :3])))
        for number, box in enumerate(self._boxes, start=1):
            if box is not None:
                there = np.argwhere(values[box] == number)
                index = there.mean(axis=0) + [s.start for s in box]
                self.centres_mm[number] = matrix[:3, :3] @ index + matrix[:3, 3]
                self.heights_mm[number] = float(self.centres_mm[number][2])
                self.volumes_mm3[number] = len(there) * voxel

    def piece(self, level: str, group: tuple[int, ...]) -> Piece:
        """The piece of some numbers together, under a level's name."""
        if group not in self._pieces:
            by_level = pieces(self._values, self._matrix, {level: group}, self._boxes)
            self._pieces[group] = by_level[level]
        return replace(self._pieces[group], level=level)

    def pieces(self, scheme: Scheme, levels: Sequence[str]) -> dict[str, Piece]:
        """Pieces of the levels, and "S1" last where the image has a sacrum."""
        result = {level: self.piece(level, (scheme.vertebrae[level],)) for level in levels}
        if sacrum := tuple(n for n in scheme.sacrum if n in self.heights_mm):
            result["S1"] = self.piece("S1", sacrum)
        return result

    def parts(self, scheme: Scheme) -> list[Piece]:
        """The sacrum's numbers one by one."""
        return [self.piece("S1", (n,)) for n in scheme.sacrum if n in self.heights_mm]

    def ribs(self, scheme: Scheme) -> dict[int, np.ndarray]:
        """Points (LPS) of both sides' ribs by number."""
        result = {}
        for k in range(1, 13):
            numbers = [
                n for side in ("left", "right") for n in scheme.tissues.get(f"rib_{side}_{k}", ())
            ]
            points = [
                np.argwhere(self._values[box] == n) + [s.start for s in box]
                for n in numbers
                if n <= len(self._boxes) and (box := self._boxes[n - 1]) is not None
            ]
            if points:
                result[k] = rigid(self._matrix, np.concatenate(points).astype(float))
        return result

    def other_axis(self) -> str:
        """The axis of the image, in words, along which the numbers are levels, where they are
        none along z; "" where there is none."""
        for axis, words in ((2, "foot-head"), (0, "left-right"), (1, "front-back")):
            for sign in (-1.0, 1.0):
                places = {
                    number: sign * float(centre[axis]) for number, centre in self.centres_mm.items()
                }
                if np.ptp(list(places.values())) > _ROW_MM and any(
                    len(s.levels(set(places))) > 2 for s in readings(places)
                ):
                    return words
        return ""

    def map_line(self) -> str:
        """A ready source.label_map for what could be vertebrae: the lowest bone L5, or the
        sacrum where it is far the largest."""
        bones = {
            n: z
            for n, z in self.heights_mm.items()
            if _BONE_MM3[0] < self.volumes_mm3[n] < _BONE_MM3[1]
        }
        order = sorted(bones or self.heights_mm, key=lambda n: self.heights_mm[n])
        large = (
            len(order) > 1
            and self.volumes_mm3[order[0]] > _SACRUM_FACTOR * self.volumes_mm3[order[1]]
        )
        line = label_map_line({n: self.heights_mm[n] for n in order}, "S1" if large else "L5")
        lowest = "the sacrum" if large else "L5"
        return (
            f"{line} (if the lowest of them, {order[0]}, is {lowest}; from head to foot:"
            f" {some(order[::-1])})"
        )
