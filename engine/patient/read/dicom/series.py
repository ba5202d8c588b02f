"""DICOM: CT or MR slices, enhanced multi-frame objects and segmentations → voxels and index → LPS
mm.

With row and column directions X, Y (ImageOrientationPatient), pixel spacing (Δr, Δc) and the step d
between neighbouring slices

    LPS(i, j, k) = p₀ + Δc·X·i + Δr·Y·j + d·k           i column, j row, k slice
    HU = slope·stored + intercept                       of each slice

Slices are sorted by p·(X×Y), never by InstanceNumber. d is the least-squares step of all positions;
each must lie within 10 % of a slice distance and a quarter of a pixel of it, else slices are
missing or the stack is irregular, and it is refused. Where d is not along X×Y (gantry tilt) the
matrix is sheared: images.py resamples.

Privacy: nothing of a personal tag may reach a note, the source or an error. So free text is shown
only where it shares no word with a personal tag, files are told by their number in the folder,
pydicom's own messages (which quote values) are not passed on, and UIDs are stored as hashes.

Ref: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups), C.11.1 (rescale), C.7.5.1.1.2
(pixel padding).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from engine.patient.read.dicom.headers import Folder, read_folder
from engine.patient.read.dicom.pixels import PixelReader, read_voxels, without_doubles
from engine.patient.read.dicom.privacy import quiet
from engine.patient.read.dicom.rtstruct import read_structures
from engine.patient.read.dicom.seg import read_seg
from engine.patient.read.dicom.slices import NUMBER_TAGS, TEXT_TAGS, Slice
from engine.patient.read.dicom.stacks import (
    Stack,
    affine_of,
    check_hu,
    chosen_stack,
    slice_axes,
    stacks_of,
)
from engine.patient.read.dicom.tags import hashed
from engine.patient.read.image import MAX_VOXELS, Image, check_size

#: Slices that stand this many thicknesses apart have gaps between them.
_GAP = 1.05


def read_series(path: str | Path, series: str | None = None, max_voxels: int = MAX_VOXELS) -> Image:
    """One series of a folder (searched through its subfolders), or of a multi-frame file; see
    `images.read_image`.

    The matrix may be sheared (gantry tilt). Values: int16, int32 where HU need it, float32 where
    the rescale isn't whole.

    Raises: ValueError for no series, several and none chosen, slices missing, irregular or of
    different content in one place, truncated files, compressions without a decoder, CT without a
    rescale to HU, and more than max_voxels.
    """
    with quiet():
        folder = read_folder(Path(path))
        stacks = stacks_of(folder)
        stack, notes = chosen_stack(stacks, series, folder)
        return _assemble(stack, [*folder.skipped_lines(), *notes], folder, max_voxels)


def read_segmentation(
    path: str | Path, max_voxels: int = MAX_VOXELS, scan: Image | None = None
) -> Image | None:
    """The DICOM segmentation of a file or folder, or its structure set (RTSTRUCT); None without
    one.

    Values are segment or ROI numbers, source["segments"] their names. A structure set's contours
    need the scan that they were drawn on: `scan`, or the series that is in the folder with it.

    Raises: ValueError for several of them, segments that overlap, fractional ones, and contours
    without their scan.
    """
    with quiet():
        folder = read_folder(Path(path))
        labelling = folder.segmentations or folder.structures
        if not labelling:
            return None
        kind = "DICOM segmentations" if folder.segmentations else "structure sets (RTSTRUCT)"
        if len(labelling) > 1:
            which = ", ".join(folder.name(n) for n in labelling)
            raise ValueError(
                f"{folder.place}: {len(labelling)} {kind} ({which}); give one as a file"
            )
        file, name = folder.files[labelling[0]], folder.name(labelling[0])
        if folder.segmentations:
            return read_seg(file, folder.place, name, folder.redaction.redacted, max_voxels)
        if scan is None and folder.slices:
            stack, lines = chosen_stack(stacks_of(folder), None, folder)
            scan = _assemble(stack, lines, folder, max_voxels)
        return read_structures(file, folder.place, name, folder.redaction.redacted, scan)


# -- one stack → an image --------------------------------------------------------------------------


def _assemble(stack: Stack, notes: list[str], folder: Folder, max_voxels: int) -> Image:
    """The image of one stack, with `notes` and what was repaired or assumed on the way."""
    slices, ct = stack.slices, stack.tag("Modality") == "CT"
    rows, columns = slices[0].size
    check_size((columns, rows, len(slices)), folder.place, max_voxels)
    truncated = [s for s in slices if s.truncated]
    if truncated:
        raise ValueError(
            f"{folder.place}: {folder.name(truncated[0].file)} is cut short"
            f" ({len(truncated)} in all); copy it again or remove it"
        )
    if ct:
        notes += check_hu(slices, folder)
    reader = PixelReader(folder, ct)
    axes, lines = slice_axes(slices, folder)
    notes += lines
    slices, lines = without_doubles(slices, reader, folder)
    notes += lines
    matrix = affine_of(slices, axes, folder)
    values = read_voxels(slices, reader)
    notes += reader.notes()
    if ct and any(s.settings["LossyImageCompression"] for s in slices):
        notes.append("the images were compressed with loss: HU are approximate")
    spacing = float(matrix[:3, 2] @ np.cross(axes[0], axes[1]))
    thickness = slices[0].settings["SliceThickness"]
    if thickness and spacing > _GAP * thickness:
        notes.append(f"gaps between slices: {thickness:g} mm thick, {spacing:.4g} mm apart")
    return Image(
        values,
        matrix,
        stack.tag("Modality"),
        tuple(notes),
        _provenance(slices, folder, values, matrix, spacing),
    )


def _provenance(
    slices: list[Slice], folder: Folder, values: np.ndarray, matrix: np.ndarray, spacing: float
) -> dict[str, Any]:
    """What may be kept of where an image comes from."""
    source: dict[str, Any] = {
        "path": folder.place,
        "format": "DICOM",
        "modality": slices[0].settings["Modality"],
    }
    source["files"] = len({s.file for s in slices})
    for key in TEXT_TAGS:
        texts = sorted({folder.redaction.redacted(s.settings[key]) for s in slices} - {""})
        if texts:
            source[key] = texts[0] if len(texts) == 1 else texts
    for key in NUMBER_TAGS:
        numbers = [s.settings[key] for s in slices if s.settings[key] is not None]
        if numbers:
            source[key] = (
                min(numbers) if min(numbers) == max(numbers) else [min(numbers), max(numbers)]
            )
    source["ContrastBolusAgent"] = (
        "yes" if any(s.settings["ContrastBolusAgent"] for s in slices) else "no"
    )
    source["slice_spacing_mm"] = round(spacing, 6)
    for key in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        uids = {s.settings[key] for s in slices}
        if len(uids) == 1 and (uid := uids.pop()):
            source[f"{key}_sha256"] = hashed(uid)
    digest = hashlib.sha256(
        repr((values.shape, values.dtype.str)).encode()
        + np.ascontiguousarray(matrix.round(6)).tobytes()
    )
    digest.update(values.T.data)
    source["sha256"] = digest.hexdigest()
    return source
