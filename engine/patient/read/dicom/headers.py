"""The files of a DICOM folder by their headers: slices, segmentations, structure sets, and what is
skipped.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from engine.patient.read.dicom.privacy import Redaction
from engine.patient.read.dicom.slices import Slice, slices_of, unreadable_plane_tag
from engine.patient.read.dicom.tags import BROKEN, number_of, text_of, with_points
from engine.patient.read.files import dicom_head, files_under

_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_CONTOURS = "RTSTRUCT (contours)"
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
#: Raw data, MR spectroscopy.
_NO_PICTURES = ("1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.4.2")
_DICOMDIR = "1.2.840.10008.1.3.10"
#: CT, enhanced and legacy converted enhanced CT; MR, enhanced, enhanced colour and legacy converted
#: enhanced MR.
_SLICES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4")
)
#: Where "DICM" ends in a file with a preamble.
_HEAD_BYTES = 132
#: A file without any of DICOM's usual tags is taken for something else above this size, bytes.
_SMALL_BYTES = 200
#: The pixels' tag in both byte orders, and the header of the first compressed fragment, bytes.
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_FRAGMENT_BYTES = 16
#: Numbers whose product is the size of uncompressed pixels, bits.
_SIZE_TAGS = ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel")


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM: "DICM" at byte 128, or (old files without preamble) a first element
    of group 8.

    Raises: PermissionError where it may not be read; what breaks otherwise is no DICOM.
    """
    try:
        with Path(path).open("rb") as stream:
            return dicom_head(stream.read(_HEAD_BYTES))
    except PermissionError:
        raise
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Whether any file under a folder is DICOM."""
    try:
        return any(is_dicom(file) for file in files_under(folder))
    except PermissionError:
        return True  # `read_folder` tells which file it is


@dataclass
class Folder:
    """What a folder holds.

    place           what the user gave
    files           in alphabetical order; everything else names them by their index
    slices, segmentations, structures
                    what was found, the latter two as files
    commas          how many files had decimal commas in their numbers
    skipped         how many files were not read as slices, by what they are
    redaction       what may be shown of their texts
    """

    place: str
    files: list[Path]
    slices: list[Slice] = field(default_factory=list)
    segmentations: list[int] = field(default_factory=list)
    structures: list[int] = field(default_factory=list)
    commas: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    redaction: Redaction = field(default_factory=Redaction)

    def name(self, file: int) -> str:
        """What messages call a file: its number, and its name where that is a plain serial name."""
        if len(self.files) == 1:
            return "the file"
        name = self.files[file].name
        plain = re.fullmatch(
            r"(im|img|image|i|ct|mr|slice|frame)?[-_. ]*[\d.]+(\.dcm|\.ima)?", name, re.IGNORECASE
        )
        # a serial number may be long; what else is in the name must not be personal
        open_name = plain and not self.redaction.withholds(re.sub(r"\d{6,}", " ", name))
        shown = f" ({name})" if open_name else ""
        return f"file {file + 1} of {len(self.files)} in alphabetical order{shown}"

    def skipped_lines(self) -> list[str]:
        """Notes on the files that were not read as slices, and on decimal commas."""
        lines = [f"{count} skipped: {what}" for what, count in sorted(self.skipped.items())]
        if self.commas:
            lines.append(
                f"decimal commas in the numbers of {self.commas} files read as decimal points"
            )
        return lines


def read_folder(path: Path) -> Folder:
    """The headers of all files under a folder, or of one file.

    Raises: ValueError where there is no DICOM file, one may not be read, or is cut short before its
    geometry.
    """
    if path.is_dir():
        folder = Folder(str(path), files_under(path))
    else:
        folder = Folder(str(path.parent), [path])
    damaged = []
    for number in range(len(folder.files)):
        try:
            if not _add_file(number, folder):
                damaged.append(number)
        except PermissionError:
            raise ValueError(
                f"{folder.place}: {folder.name(number)} cannot be read: permission denied"
            ) from None
        except BROKEN:
            damaged.append(number)
    if damaged:
        raise ValueError(
            f"{folder.place}: {folder.name(damaged[0])} is cut short or damaged in its header"
            + (f", and {len(damaged) - 1} more" if len(damaged) > 1 else "")
            + "; copy it again or remove it"
        )
    if folder.skipped["not DICOM"] == len(folder.files):
        contents = f"{len(folder.files)} other files" if folder.files else "no files"
        raise ValueError(
            f"{folder.place} holds no DICOM file ({contents}); give the folder with the series"
        )
    if path.is_file() and folder.skipped["DICOMDIR"]:
        raise ValueError(
            f"{path} is the index of a folder (DICOMDIR), not a series; give the folder that it"
            " is in"
        )
    folder.skipped = +folder.skipped
    return folder


def _add_file(number: int, folder: Folder) -> bool:
    """Read a file's header and put it where it belongs in the folder; False where it is damaged."""
    file = folder.files[number]
    ds, truncated = _header(file) if is_dicom(file) else (None, False)
    if ds is None:
        folder.skipped["not DICOM"] += 1
        return True
    folder.commas += with_points(ds)
    folder.redaction.learn(ds)
    return _add_dataset(ds, truncated, number, folder)


def _header(file: Path) -> tuple[Dataset | None, bool]:
    """Everything before the pixels, and whether those are cut off; None where it isn't DICOM
    after all."""
    with file.open("rb") as stream:
        ds = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        where, size = stream.tell(), file.stat().st_size
        tag = stream.read(4)
    meta = getattr(ds, "file_meta", FileMetaDataset())
    syntax = text_of(meta, "TransferSyntaxUID")
    if (
        not syntax
        and "Modality" not in ds
        and "SOPClassUID" not in ds
        and len(meta) == 0
        and size > _SMALL_BYTES
    ):
        return None, False
    if syntax and UID(syntax).is_deflated:
        return ds, False  # read as a whole already
    if tag not in _PIXEL_DATA:
        return ds, True
    if syntax and UID(syntax).is_compressed:
        return ds, size - where < _FRAGMENT_BYTES
    bits = int(np.prod([number_of(ds, key) or 1 for key in _SIZE_TAGS]))
    return ds, size - where < bits // 8


def _add_dataset(ds: Dataset, truncated: bool, number: int, folder: Folder) -> bool:
    """Put a data set's slices, or its file's number, where they belong in the folder, or count it
    as skipped; False where its header is damaged."""
    meta = getattr(ds, "file_meta", FileMetaDataset())
    sop = text_of(ds, "SOPClassUID") or text_of(meta, "MediaStorageSOPClassUID")
    modality = text_of(ds, "Modality")
    must_be_slices = sop in _SLICES or not sop
    if must_be_slices and not modality:
        return False
    other = _other_kind(ds, sop, modality, folder.redaction)
    if sop in _SEGMENTATIONS:
        folder.segmentations.append(number)
    elif other == _CONTOURS:
        folder.structures.append(number)
    if other:
        folder.skipped[other] += 1
        return True
    slices = slices_of(ds, truncated, number)
    if not slices and truncated and must_be_slices:
        return False
    if not slices:
        tag = unreadable_plane_tag(ds)
        folder.skipped[
            f"picture whose {tag} can't be read as numbers"
            if tag
            else "picture without position, direction or pixel spacing (screen capture or report)"
        ] += 1
    folder.slices += slices
    return True


def _other_kind(ds: Dataset, sop: str, modality: str, redaction: Redaction) -> str:
    """What a data set is, in words, where it holds no CT or MR slices; "" where it may."""
    if sop == _DICOMDIR:
        return "DICOMDIR"
    if sop in _SEGMENTATIONS:
        return "segmentation (SEG)"
    if sop == _STRUCTURES or modality == "RTSTRUCT":
        return _CONTOURS
    if modality not in ("CT", "MR"):
        known = re.fullmatch(r"[A-Z]{2,10}", modality) and not redaction.withholds(modality)
        return f"{modality if known else 'other'} object"
    if sop in _NO_PICTURES:
        return f"{modality} raw data or spectroscopy"
    if "LOCALIZER" in text_of(ds, "ImageType").upper():
        return "localizer"
    palette = text_of(ds, "PhotometricInterpretation").startswith("PALETTE")
    if (number_of(ds, "SamplesPerPixel") or 1) != 1 or palette:
        return "colour picture (screen capture)"
    return ""
