"""Several masks → one label image: a voxel has one label, so what lies in two masks goes to the one
that says more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from engine.patient.geometry.levels import LEVELS
from engine.patient.read.names import level_of, tissue_of

#: Two understood masks may share this much of the smaller one.
LARGEST_OVERLAP = 0.01
_ORDER = (*LEVELS[: LEVELS.index("L1")], "T13", *LEVELS[LEVELS.index("L1") :])
#: The cord lies in the canal: its voxels are the cord's, and that is no fault.
_NESTED = frozenset({"cord", "canal"})


def precedence(names: Mapping[int, str]) -> list[int]:
    """Numbers in the order in which they take voxels: vertebrae from the head down, sacrum,
    tissues, names not understood.
    """

    def key(number: int) -> tuple[int, int, int]:
        name = names[number]
        level, tissue = level_of(name), tissue_of(name)
        if level is not None:
            return 0, _ORDER.index(level), number
        return (3 if tissue is None else 2 if tissue == "canal" else 1), 0, number

    return sorted(names, key=key)


def combined(
    masks: Iterable[tuple[int, np.ndarray]],
    names: Mapping[int, str],
    shape: tuple[int, ...],
    place: str,
) -> tuple[np.ndarray, list[str]]:
    """Label image [i, j, k] (int16, int32 where numbers need it) of (number, mask [i, j, k] of
    bool), in the order given.

    One mask is held at a time, beside the result. A voxel of two masks stays with the first, and is
    counted in a note.

    Raises: ValueError where two masks share more than 1 % of the smaller one, unless only one of
    the two has a name that is understood (an outline of the whole body is no rival of a vertebra),
    or they are the cord and its canal.
    """
    values = np.zeros(
        shape, np.int16 if max(names, default=0) <= np.iinfo(np.int16).max else np.int32, order="F"
    )
    sizes: dict[int, int] = {}
    shared: dict[tuple[int, int], int] = {}
    flat = values.ravel(order="F")  # a view: indexing it is much faster than masking an F array
    for number, mask in masks:
        inside = np.flatnonzero(mask.ravel(order="F"))
        sizes[number] = int(inside.size)
        there = flat[inside]
        for other, count in zip(*np.unique(there[there > 0], return_counts=True), strict=True):
            shared[int(other), number] = int(count)
        flat[inside] = np.where(there > 0, there, number)
    notes = []
    for (first, second), count in shared.items():
        share = count / min(sizes[first], sizes[second])
        pair = f"{names[first]} and {names[second]}"
        text = f"{pair} overlap in {count} voxels, {share:.2%} of the smaller"
        if share > LARGEST_OVERLAP and _rivals(names[first], names[second]):
            raise ValueError(
                f"{place}: {text} (at most {LARGEST_OVERLAP:.0%}), so a voxel would need two "
                "labels; part the segments that overlap first"
            )
        notes.append(f"{text}: they stay with {names[first]}")
    return values, notes


def _rivals(first: str, second: str) -> bool:
    """Whether an overlap of the two must be settled by whoever drew them."""
    if {tissue_of(first), tissue_of(second)} == _NESTED:
        return False
    understood = [
        level_of(name) is not None or tissue_of(name) is not None for name in (first, second)
    ]
    return understood[0] == understood[1]


def doubled(names: Mapping[int, str]) -> str:
    """The first two names of one and the same mobile level, for a message; "" where there are
    none.
    """
    for first, second in combinations(names.values(), 2):
        if level_of(first) is not None and level_of(first) == level_of(second) != "S1":
            return f"{first} and {second} are both {level_of(first)}"
    return ""


def telling_name(label: str, meanings: Iterable[str]) -> str:
    """Of a segment's label and the meanings of its codes, the name that says which vertebra or
    tissue it is; else the label.
    """
    if level_of(label) is None:
        for known in (level_of, tissue_of):
            for name in (label, *meanings):
                if known(name) is not None:
                    return name
    return label
