"""3D Slicer's .seg.nrrd: names of the segments, and its layers (segments that may overlap) → one
label image.

Keys of segment n (0, 1, …): Segment{n}_Name, _LabelValue, _Layer, _Tags (terminology). Files of
before Slicer 4.11 have neither value nor layer: each segment is then a layer of its own with value
1.

Ref: Slicer, vtkMRMLSegmentationStorageNode;
https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engine.patient.read.combined import combined, precedence, telling_name

_NAME = re.compile(r"^Segment(\d+)_(?:Name|ID|LabelValue)$")


@dataclass(frozen=True)
class _Segment:
    name: str
    value: int
    layer: int


def is_seg_nrrd(keys: Mapping[str, str]) -> bool:
    """Whether a NRRD's keys describe segments."""
    return any(_NAME.match(key) for key in keys)


def seg_nrrd(
    layers: list[np.ndarray], keys: Mapping[str, str], place: str
) -> tuple[np.ndarray, dict[int, str], list[str]]:
    """Label image [i, j, k], {number: name} and notes, of layers [i, j, k]. Numbers are the file's
    where it has one layer.

    Raises: ValueError for segments of a layer that isn't there, and where segments overlap by more
    than 1 % of the smaller.
    """
    segments = _segments(keys, len(layers))
    outside = [segment.name for segment in segments if not 0 <= segment.layer < len(layers)]
    if outside:
        raise ValueError(
            f"{place}: {outside[0]} is in a layer that the file does not hold ({len(layers)} in "
            "all); save it again"
        )
    if len(layers) == 1:
        return layers[0], {segment.value: segment.name for segment in segments}, []
    names = {number: segment.name for number, segment in enumerate(segments, start=1)}
    masks = (
        (number, layers[segments[number - 1].layer] == segments[number - 1].value)
        for number in precedence(names)
    )
    values, notes = combined(masks, names, layers[0].shape, place)
    return (
        values,
        names,
        [f"{len(layers)} layers of {len(segments)} segments combined, numbered anew", *notes],
    )


def _segments(keys: Mapping[str, str], layers: int) -> list[_Segment]:
    numbers = sorted({int(match[1]) for key in keys if (match := _NAME.match(key))})
    old = not any(f"Segment{n}_LabelValue" in keys for n in numbers)
    out = []
    for order, n in enumerate(numbers):
        label = (
            keys.get(f"Segment{n}_Name") or keys.get(f"Segment{n}_ID") or f"segment {n}"
        ).strip()
        name = telling_name(label, _meanings(keys.get(f"Segment{n}_Tags", "")))
        value = _whole(
            keys.get(f"Segment{n}_LabelValue"), 1 if layers > 1 or not old else order + 1
        )
        out.append(
            _Segment(
                name,
                value,
                _whole(keys.get(f"Segment{n}_Layer"), order if old and layers > 1 else 0),
            )
        )
    return out


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and text.strip().isdecimal() else otherwise


def _meanings(tags: str) -> list[str]:
    """The meanings of the terminology's codes: region (with its side) first, then type; each also
    with its modifier.
    """
    entry = re.search(r"TerminologyEntry:([^|]*)", tags)
    parts = (
        [part.split("^")[2].strip() if part.count("^") == 2 else "" for part in entry[1].split("~")]
        if entry
        else []
    )
    # context, category, type, its modifier, context of the anatomy, region, its modifier
    parts = [*parts, *[""] * 7][:7]
    pairs = [(parts[5], parts[6]), (parts[2], parts[3])]
    return [
        text.strip() for what, side in pairs for text in (f"{side} {what}", what) if text.strip()
    ]
