"""DICOM structure sets (RTSTRUCT): contours in the slices of a scan → labels on its grid.

A voxel belongs to a region where a ray along the row from its centre crosses the slice's contours
an odd number of times (even-odd rule): contours within contours are holes, and so is what a keyhole
contour goes round.

Ref: DICOM PS3.3 A.19 (RT structure set), C.8.8.5 (structure set), C.8.8.6 (ROI contour).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from engine.patient.read.combined import combined, doubled, precedence
from engine.patient.read.dicom.seg import public_name
from engine.patient.read.dicom.tags import BROKEN, hashed, text_of, with_points
from engine.patient.read.files import first_names
from engine.patient.read.image import Image
from engine.patient.read.names import level_of, tissue_of

#: Contours lie in the planes of the scan's slices to this share of their distance.
IN_PLANE = 0.25
#: Kinds of contour that enclose something; "" where the file doesn't say.
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR", "")
REMEDY = (
    "give the scan too (source=ct or mri), or convert it: 3D Slicer (load both, export the "
    "segmentation as label map), dcmrtstruct2nii convert -r RTSTRUCT.dcm -d SCAN_FOLDER -o OUT, "
    "or plastimatch convert --input RTSTRUCT.dcm --referenced-ct SCAN_FOLDER --output-labelmap "
    "labels.nii.gz"
)


@dataclass(frozen=True)
class _Regions:
    """The regions of a structure set by ROI number: their names, their closed contours [n, 3] in
    LPS mm, and the UIDs of the frames of reference that they are in."""

    names: dict[int, str]
    contours: dict[int, list[np.ndarray]]
    frames: set[str]


def read_structures(
    file: Path, place: str, name: str, redacted: Callable[[str], str], scan: Image | None
) -> Image:
    """The label image on the scan's grid of the regions whose names are understood; numbers are the
    ROI numbers.

    Raises: ValueError without a scan, for contours that don't lie in its slices or not within it,
    for regions without a contour on slices between their first and last, and where no name says a
    level.
    """
    name = f"{place}: RTSTRUCT (contours; {name})"
    if scan is None:
        raise ValueError(f"{name} needs the scan that it was drawn on; {REMEDY}")
    regions = _regions(file, name, redacted)
    names = _names_read(regions, name)
    inverse = np.linalg.inv(scan.lps_from_index)
    shape = scan.values.shape
    digest = hashlib.sha256()

    def masks() -> Iterator[tuple[int, np.ndarray]]:
        for number in precedence(names):
            contours = regions.contours[number]
            index = [points @ inverse[:3, :3].T + inverse[:3, 3] for points in contours]
            for points in contours:
                digest.update(np.ascontiguousarray(points.round(4)).tobytes())
            yield number, _filled(index, shape, f"{name}: {names[number]}")

    values, overlaps = combined(masks(), names, shape, name)
    notes = [f"contours of {len(names)} regions filled on the scan's grid (even-odd rule)"]
    others = {n: text for n, text in regions.names.items() if n not in names}
    if others:
        notes.append(f"{len(others)} regions not read: {_list(others)}")
    source = {
        "path": place,
        "format": "RTSTRUCT",
        "modality": "SEG",
        "files": 1,
        "segments": names,
        "numbers_mean_nothing": True,
        "sha256": digest.hexdigest(),
    }
    if len(regions.frames) == 1 and (frame := next(iter(regions.frames))):
        source["FrameOfReferenceUID_sha256"] = hashed(frame)
    return Image(values, scan.lps_from_index.copy(), "SEG", (*notes, *overlaps), source)


def _regions(file: Path, name: str, redacted: Callable[[str], str]) -> _Regions:
    """What a structure set holds. Raises ValueError where it is damaged."""
    try:
        ds = pydicom.dcmread(file)
        with_points(ds)
        names = {
            int(roi.ROINumber): public_name(text_of(roi, "ROIName"), redacted)
            for roi in ds.StructureSetROISequence
        }
        contours = {
            int(item.ReferencedROINumber): _contours(item)
            for item in ds.get("ROIContourSequence") or ()
        }
        frames = {
            text_of(item, "FrameOfReferenceUID")
            for item in ds.get("ReferencedFrameOfReferenceSequence") or ()
        }
    except BROKEN:
        raise ValueError(f"{name} can't be read: cut short or damaged; copy it again") from None
    return _Regions(names, contours, frames)


def _names_read(regions: _Regions, name: str) -> dict[int, str]:
    """The names of the regions that have contours and are understood.

    Raises: ValueError where none of them is a level's, or two are one level's.
    """
    names = {
        n: text
        for n, text in regions.names.items()
        if n > 0 and regions.contours.get(n) and (level_of(text) or tissue_of(text))
    }
    if not any(level_of(text) for text in names.values()):
        raise ValueError(
            f"{name} has no contours of a region named after a vertebra (L4, vertebrae_L4, sacrum, "
            f"…); it holds {_list(regions.names)}"
        )
    if twice := doubled(names):
        raise ValueError(f"{name}: {twice}; keep one of them")
    return names


def _list(names: dict[int, str]) -> str:
    return first_names([text or f"number {n}" for n, text in sorted(names.items())]) or "none"


def _contours(item: Dataset) -> list[np.ndarray]:
    """Closed contours [n, 3] of a region, LPS mm."""
    out = []
    for contour in item.get("ContourSequence") or ():
        if text_of(contour, "ContourGeometricType").replace(" ", "") in _CLOSED:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            out += [points] if len(points) > 2 else []
    return out


def _filled(contours: list[np.ndarray], shape: tuple[int, ...], name: str) -> np.ndarray:
    """Mask [i, j, k] of contours [n, 3] in voxel indices."""
    axis = min(range(3), key=lambda a: max(float(np.ptp(points[:, a])) for points in contours))
    planes: dict[int, list[np.ndarray]] = {}
    across = [a for a in range(3) if a != axis]
    for points in contours:
        slice_number = round(float(points[:, axis].mean()))
        off = float(np.abs(points[:, axis] - slice_number).max())
        if off > IN_PLANE:
            raise ValueError(
                f"{name}: its contours lie {off:.2g} slices beside the scan's slices; give the "
                "scan that it was drawn on"
            )
        if (
            not 0 <= slice_number < shape[axis]
            or (points[:, across] < -1).any()
            or (points[:, across] > [shape[a] for a in across]).any()
        ):
            raise ValueError(
                f"{name}: its contours reach beyond the scan; give the scan that it was drawn on"
            )
        planes.setdefault(slice_number, []).append(points[:, across])
    holes = sorted(set(range(min(planes), max(planes) + 1)) - set(planes))
    if holes:
        raise ValueError(
            f"{name}: {len(holes)} of the {max(planes) - min(planes) + 1} slices between its first "
            "and last contour have none; interpolate the contours where they were drawn, and "
            "export them again"
        )
    mask = np.zeros(shape, bool, order="F")
    view = np.moveaxis(mask, axis, 0)
    for slice_number, polygons in planes.items():
        view[slice_number] = even_odd(polygons, (shape[across[0]], shape[across[1]]))
    return mask


def even_odd(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Whether the centres of pixels [i, j] lie within an odd number of the closed polygons [n, 2]
    (i, j).

    Each edge that crosses the row j of centres at i = x turns all centres with i ≥ x; j of the
    edge's upper end does not count.
    """
    crossings = np.zeros((shape[0] + 1, shape[1]), np.int32)
    start = np.concatenate(polygons)
    end = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    for (x0, y0), (x1, y1) in zip(start, end, strict=True):
        low, high = min(y0, y1), max(y0, y1)
        rows = np.arange(max(int(np.ceil(low)), 0), min(int(np.ceil(high)), shape[1]))
        if rows.size:
            at = np.ceil(x0 + (rows - y0) * (x1 - x0) / (y1 - y0)).astype(int)
            np.add.at(crossings, (np.clip(at, 0, shape[0]), rows), 1)
    return np.cumsum(crossings, axis=0)[:-1] % 2 == 1
