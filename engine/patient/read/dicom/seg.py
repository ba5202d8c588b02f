"""DICOM segmentations (binary, label map, fractional with whole fractions) → segment numbers and
names.

Empty frames may be left out: the volume then ends where the segments do, not where the scan did
(label_extent.py).

Ref: DICOM PS3.3 A.51 (segmentation), C.8.20 (segmentation image), C.8.20.4 (segment description).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from engine.patient.read.combined import combined, precedence, telling_name
from engine.patient.read.dicom.tags import BROKEN, hashed, number_of, text_of
from engine.patient.read.image import Image, check_size
from engine.patient.read.names import level_of, tissue_of

#: Frames may lie this share of their distance off a regular grid.
SPACING_TOLERANCE = 0.10
#: Codes of what a segment is, and of the side that it is on.
_CODES = (
    ("AnatomicRegionSequence", "AnatomicRegionModifierSequence"),
    ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence"),
)


def read_seg(
    file: Path, place: str, name: str, redacted: Callable[[str], str], max_voxels: int
) -> Image:
    """The label image of one file; `name` is what errors call the file, `redacted` withholds what
    is personal of a text.

    Segments that overlap by at most 1 % of the smaller are parted (combined.py), with a note.

    Raises: ValueError for segments that overlap by more, fractions that aren't 0 or 1, and what
    makes no regular volume.
    """
    try:
        import highdicom
    except ImportError:
        raise ValueError(
            f"{place}: a DICOM segmentation needs highdicom; pip install highdicom, or give a NIfTI"
        ) from None
    name = f"{place}: the segmentation ({name})"
    header = _header(file, place, name, max_voxels)
    kind = text_of(header, "SegmentationType")
    try:
        seg = highdicom.seg.segread(file)
        segments = {int(s.SegmentNumber): segment_name(s, redacted) for s in seg.SegmentSequence}
        segments.pop(0, None)
        volume = _volume(seg, list(segments))
        overlapping = volume is None
        if overlapping:
            seg = highdicom.seg.segread(file)  # its index is locked after the error
            volume = _volume(seg, [next(iter(segments))])
    except BROKEN:
        if kind == "FRACTIONAL":
            raise ValueError(
                f"{name} is fractional, not one label per voxel; export it as binary"
            ) from None
        raise ValueError(
            f"{name} can't be read as one regular volume; export it again, or as NIfTI"
        ) from None
    values = np.asarray(volume.array).T  # [column, row, slice]
    notes: list[str] = []
    if overlapping:
        masks = ((n, np.asarray(_volume(seg, [n]).array).T > 0) for n in precedence(segments))
        values, notes = combined(masks, segments, values.shape, name)
    elif kind == "LABELMAP" and (background := int(number_of(header, "PixelPaddingValue") or 0)):
        values = np.where(values == background, 0, values)
    if min(values.shape) < 2:
        raise ValueError(
            f"{name} holds a single slice of shape {values.shape}; give the whole volume"
        )
    matrix = np.array(volume.affine, float)[:, [2, 1, 0, 3]]
    source = _source(header, place, segments, values, matrix)
    return Image(values, matrix, "SEG", tuple(notes), source)


def _header(file: Path, place: str, name: str, max_voxels: int) -> Dataset:
    """Everything before the pixels. Raises ValueError where it is damaged, or the frames have too
    many voxels."""
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        size = (
            *(int(number_of(header, key) or 1) for key in ("Columns", "Rows")),
            _positions(header),
        )
    except BROKEN:
        raise ValueError(f"{name} can't be read: cut short or damaged; copy it again") from None
    check_size(size, place, max_voxels)
    return header


def _source(
    header: Dataset, place: str, segments: dict[int, str], values: np.ndarray, matrix: np.ndarray
) -> dict[str, Any]:
    """What may be kept of where the labels come from."""
    digest = hashlib.sha256(
        repr((values.shape, values.dtype.str)).encode()
        + np.ascontiguousarray(matrix.round(6)).tobytes()
    )
    digest.update(np.ascontiguousarray(values.T).data)
    return {
        "path": place,
        "format": "DICOM-SEG",
        "modality": "SEG",
        "files": 1,
        "segments": segments,
        "numbers_mean_nothing": True,
        "SeriesInstanceUID_sha256": hashed(text_of(header, "SeriesInstanceUID")),
        "FrameOfReferenceUID_sha256": hashed(text_of(header, "FrameOfReferenceUID")),
        "sha256": digest.hexdigest(),
    }


def _volume(seg: Any, numbers: list[int]) -> Any:
    """The volume of some segments [slice, row, column]; None where they overlap."""
    try:
        return seg.get_volume(
            segment_numbers=numbers,
            combine_segments=True,
            rtol=SPACING_TOLERANCE,
            allow_missing_positions=True,
        )
    except RuntimeError as error:
        if "overlap" not in str(error).lower():
            raise
        return None


def _positions(header: Dataset) -> int:
    """How many planes the frames lie in: each may hold a frame of every segment."""
    places = set()
    for group in header.get("PerFrameFunctionalGroupsSequence") or ():
        plane = group.get("PlanePositionSequence")
        places.add(text_of(plane[0], "ImagePositionPatient") if plane else "")
    return max(len(places), 1)


def segment_name(segment: Dataset, redacted: Callable[[str], str]) -> str:
    """The name of a segment that says most: its label, else what its codes mean (with their
    side).
    """
    meanings = []
    for what, side in _CODES:
        for item in segment.get(what) or ():
            meaning = text_of(item, "CodeMeaning")
            sides = [
                text_of(code, "CodeMeaning") for code in item.get(side) or segment.get(side) or ()
            ]
            meanings += [*(f"{text} {meaning}" for text in sides), meaning]
    return public_name(telling_name(text_of(segment, "SegmentLabel"), meanings), redacted)


def public_name(name: str, redacted: Callable[[str], str]) -> str:
    """A name that may be shown; where it can't be, the level or tissue that it is of, which is not
    personal.
    """
    text = redacted(name)
    return text if text == name else level_of(name) or tissue_of(name) or text
