"""The files of a DICOM folder: their headers, sorted, and none of what is personal."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from engine.patient.read.dicom.tags import BROKEN, number_of, numbers_of, text_of, with_points
from engine.patient.read.files import dicom_head, files_under

_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_CONTOUR_DATA = 0x30060050
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_NO_PICTURES = ("1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.4.2")
_DICOMDIR = "1.2.840.10008.1.3.10"
#: CT, enhanced and legacy converted enhanced CT; MR, enhanced, enhanced colour and legacy converted
#: enhanced MR.
_SLICES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4")
)
#: What places a slice, and how many numbers each is.
_PLANE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
#: Tags that tell several images of the same place apart (echoes, phases, magnitude and phase,
#: reconstructions).
STACK_TAGS = (
    "ImageType",
    "EchoTime",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "StackID",
    "ConvolutionKernel",
    "AcquisitionNumber",
)
#: Scanner settings that go to the source: text (shown if not personal) and numbers.
TEXT_TAGS = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "PatientPosition")
NUMBER_TAGS = ("KVP", "SliceThickness", "XRayTubeCurrent")
#: Personal besides names, dates and times (which are told by their value representation).
_PERSONAL = frozenset(
    """PatientID OtherPatientIDs IssuerOfPatientID AccessionNumber StudyID AdmissionID PatientAddress PatientComments ImageComments
    AdditionalPatientHistory MedicalRecordLocator InstitutionName InstitutionAddress InstitutionalDepartmentName StationName
    PatientTelephoneNumbers MilitaryRank Occupation EthnicGroup RequestingService CurrentPatientLocation
    PatientBirthName PatientReligiousPreference CountryOfResidence RegionOfResidence DeviceSerialNumber FrameComments StudyComments
    RequestedProcedureComments VisitComments FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest""".split()
)
_INSTALL = {
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG-LS": "pylibjpeg pylibjpeg-libjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
}


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM: "DICM" at byte 128, or (old files without preamble) a first element
    of group 8.

    Raises: PermissionError where it may not be read; what breaks otherwise is no DICOM.
    """
    try:
        with Path(path).open("rb") as stream:
            return dicom_head(stream.read(132))
    except PermissionError:
        raise
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Whether any file under a folder is DICOM."""
    try:
        return any(is_dicom(file) for file in files_under(folder))
    except PermissionError:
        return True  # `_read_folder` tells which file it is


# -- privacy ---------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's and highdicom's warnings away: they quote values, personal ones too."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for log in loggers:
                log.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


class Private:
    """The words of the personal tags met so far, and which text may be shown beside them."""

    def __init__(self) -> None:
        self._words: set[str] = set()
        self._met: set[tuple[str, ...]] = set()

    def learn(self, ds: Dataset) -> None:
        keys = ("PatientName", "PatientID", "AccessionNumber", "SeriesInstanceUID", "ImageComments")
        met = tuple(text_of(ds, key) for key in keys)
        if met in self._met:  # one pass through every element for each series, not for each slice
            return
        self._met.add(met)
        for personal, value in _elements(ds):
            if personal:
                self._words.update(_words(value))

    def hides(self, text: str) -> bool:
        """Whether a text holds a word of a personal tag (short ones as a whole word), or looks
        like a date or a long number."""
        there = set(_words(text))
        joined = "".join(_words(text))
        if re.search(r"\d{1,4}[-./ ]\d{1,2}[-./ ]\d{2,4}|\d{6,}", text):
            return True
        return any(
            word in there or (len(word) > 2 and (word in text.lower() or word in joined))
            for word in self._words
        )

    def shown(self, text: str) -> str:
        return "(withheld)" if text and self.hides(text) else text


def _elements(ds: Dataset) -> Iterator[tuple[bool, str]]:
    """Whether it is personal, and its value as text, of every element at every depth; damaged
    ones as their bytes."""
    for tag in list(ds.keys()):
        if tag == _CONTOUR_DATA:
            continue  # up to millions of numbers
        try:
            element = ds[tag]
            if element.VR == "SQ":
                for item in element.value:
                    yield from _elements(item)
            else:
                yield (
                    element.VR in ("PN", "DA", "DT") or element.keyword in _PERSONAL,
                    str(element.value),
                )
        except BROKEN:
            value = getattr(ds.get_item(tag), "value", None)
            yield (
                True,
                (value.decode("latin-1") if isinstance(value, bytes) and len(value) < 1000 else ""),
            )


# -- the files of a folder -------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """One slice: a file, or a frame of one."""

    file: int
    frame: int | None
    position: np.ndarray
    axes: np.ndarray
    pixel_mm: np.ndarray
    size: tuple[int, int]
    rescale: tuple[float, float] | None
    rescale_type: str
    cut: bool
    tags: dict[str, str]
    settings: dict[str, Any]


@dataclass
class Folder:
    """What a folder holds. `place` is what the user gave; files are numbered from 0 in
    alphabetical order."""

    place: str
    files: list[Path]
    slices: list[Slice] = field(default_factory=list)
    segmentations: list[int] = field(default_factory=list)
    structures: list[int] = field(default_factory=list)
    commas: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    private: Private = field(default_factory=Private)

    def name(self, file: int) -> str:
        """How a file is told: by its number, and by its name where that is a plain serial name."""
        if len(self.files) == 1:
            return "the file"
        name = self.files[file].name
        plain = re.fullmatch(
            r"(im|img|image|i|ct|mr|slice|frame)?[-_. ]*[\d.]+(\.dcm|\.ima)?", name, re.IGNORECASE
        )
        told = (
            f" ({name})" if plain and not self.private.hides(re.sub(r"\d{6,}", " ", name)) else ""
        )
        return f"file {file + 1} of {len(self.files)} in alphabetical order{told}"

    def skipped_lines(self) -> list[str]:
        lines = [f"{count} skipped: {what}" for what, count in sorted(self.skipped.items())]
        return (
            [*lines, f"decimal commas in the numbers of {self.commas} files read as decimal points"]
            if self.commas
            else lines
        )


def read_folder(path: Path) -> Folder:
    """Headers of all files. Raises where there is no DICOM, or a file is cut short before its
    geometry."""
    if path.is_dir():
        folder = Folder(str(path), files_under(path))
    else:
        folder = Folder(str(path.parent), [path])
    damaged = []
    for number, file in enumerate(folder.files):
        try:
            if not is_dicom(file):
                folder.skipped["not DICOM"] += 1
                continue
            ds, cut = _header(file)
            if ds is None:
                folder.skipped["not DICOM"] += 1
                continue
            folder.commas += with_points(ds)
            folder.private.learn(ds)
            if not _sort(ds, cut, number, folder):
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
        held = f"{len(folder.files)} other files" if folder.files else "no files"
        raise ValueError(
            f"{folder.place} holds no DICOM file ({held}); give the folder with the series"
        )
    if path.is_file() and folder.skipped["DICOMDIR"]:
        raise ValueError(
            f"{path} is the index of a folder (DICOMDIR), not a series; give the folder that it"
            " is in"
        )
    folder.skipped = +folder.skipped
    return folder


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
        and size > 200
    ):
        return None, False
    if syntax and UID(syntax).is_deflated:
        return ds, False  # read as a whole already
    if tag not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        return ds, True
    if syntax and UID(syntax).is_compressed:
        return ds, size - where < 16
    figures = [
        number_of(ds, key) or 1
        for key in ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel")
    ]
    return ds, size - where < int(np.prod(figures)) // 8


def _sort(ds: Dataset, cut: bool, number: int, folder: Folder) -> bool:
    """Put a file's slices where they belong, or count it as skipped; False where its header is
    damaged."""
    meta = getattr(ds, "file_meta", FileMetaDataset())
    sop = text_of(ds, "SOPClassUID") or text_of(meta, "MediaStorageSOPClassUID")
    modality = text_of(ds, "Modality")
    if sop == _DICOMDIR:
        folder.skipped["DICOMDIR"] += 1
    elif sop in _SEGMENTATIONS:
        folder.segmentations.append(number)
        folder.skipped["segmentation (SEG)"] += 1
    elif sop == _STRUCTURES or modality == "RTSTRUCT":
        folder.structures.append(number)
        folder.skipped["RTSTRUCT (contours)"] += 1
    elif not modality and (sop in _SLICES or not sop):
        return False
    elif modality not in ("CT", "MR"):
        known = re.fullmatch(r"[A-Z]{2,10}", modality) and not folder.private.hides(modality)
        folder.skipped[f"{modality if known else 'other'} object"] += 1
    elif sop in _NO_PICTURES:
        folder.skipped[f"{modality} raw data or spectroscopy"] += 1
    elif "LOCALIZER" in text_of(ds, "ImageType").upper():
        folder.skipped["localizer"] += 1
    elif (number_of(ds, "SamplesPerPixel") or 1) != 1 or text_of(
        ds, "PhotometricInterpretation"
    ).startswith("PALETTE"):
        folder.skipped["colour picture (screen capture)"] += 1
    else:
        slices = _slices(ds, cut, number)
        if not slices and cut and (sop in _SLICES or not sop):
            return False
        if not slices:
            why = next(
                (
                    key
                    for key, count in _PLANE.items()
                    if key in ds and numbers_of(ds, key, count) is None and _filled(ds, key)
                ),
                "",
            )
            what = (
                f"picture whose {why} can't be read as numbers"
                if why
                else "picture without position, direction or pixel spacing"
            )
            folder.skipped[what if why else f"{what} (screen capture or report)"] += 1
        folder.slices += slices
    return True


def _filled(ds: Dataset, keyword: str) -> bool:
    """Whether a tag that is there holds anything, readable or not."""
    return bool(getattr(ds.get_item(keyword), "value", None))


def _slices(ds: Dataset, cut: bool, number: int) -> list[Slice]:
    """The slices of a file; none where size, place, direction or pixel spacing are missing."""
    size = (int(number_of(ds, "Rows") or 0), int(number_of(ds, "Columns") or 0))
    frames = int(number_of(ds, "NumberOfFrames") or 1)
    shared, per_frame = (
        ds.get("SharedFunctionalGroupsSequence"),
        ds.get("PerFrameFunctionalGroupsSequence"),
    )
    common = shared[0] if shared else Dataset()
    if per_frame and len(per_frame) != frames:
        return []
    settings = _settings(ds)
    out = []
    for frame in range(frames if per_frame else 1):
        own = per_frame[frame] if per_frame else Dataset()

        def group(name: str, own: Dataset = own) -> Dataset | None:
            found = own.get(name) or common.get(name)
            return found[0] if found else None if per_frame else ds

        position = numbers_of(group("PlanePositionSequence"), "ImagePositionPatient", 3)
        axes = numbers_of(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
        measures, transform = (
            group("PixelMeasuresSequence"),
            group("PixelValueTransformationSequence"),
        )
        pixel = numbers_of(measures, "PixelSpacing", 2)
        if (
            position is None
            or axes is None
            or pixel is None
            or min(size) < 2
            or min(pixel) <= 0
            or (frames > 1 and not per_frame)
        ):
            return []
        slope, intercept = (
            number_of(transform, "RescaleSlope"),
            number_of(transform, "RescaleIntercept"),
        )
        kind = group(f"{settings['Modality']}ImageFrameTypeSequence") or group(
            "MRImageFrameTypeSequence"
        )
        content = group("FrameContentSequence") or Dataset()
        kernel = group("CTReconstructionSequence") or Dataset()
        tags = {
            "ImageType": text_of(kind or ds, "FrameType") or text_of(ds, "ImageType"),
            "EchoTime": (
                text_of(group("MREchoSequence") or ds, "EffectiveEchoTime")
                or text_of(ds, "EchoTime")
            ),
            "TemporalPositionIndex": (
                text_of(content, "TemporalPositionIndex")
                or text_of(ds, "TemporalPositionIdentifier")
            ),
            "DiffusionBValue": text_of(group("MRDiffusionSequence") or ds, "DiffusionBValue"),
            "StackID": text_of(content, "StackID"),
            "ConvolutionKernel": (
                text_of(kernel, "ConvolutionKernel") or text_of(ds, "ConvolutionKernel")
            ),
            "AcquisitionNumber": (
                text_of(content, "FrameAcquisitionNumber") or text_of(ds, "AcquisitionNumber")
            ),
        }
        here = dict(settings)
        if per_frame:
            here |= {
                "ConvolutionKernel": tags["ConvolutionKernel"],
                "SliceThickness": number_of(measures, "SliceThickness"),
                "KVP": number_of(group("CTXRayDetailsSequence"), "KVP"),
                "XRayTubeCurrent": number_of(group("CTExposureSequence"), "XRayTubeCurrentInmA"),
            }
        out.append(
            Slice(
                number,
                frame if per_frame else None,
                position,
                axes.reshape(2, 3),
                pixel,
                size,
                None if slope is None or intercept is None or slope == 0.0 else (slope, intercept),
                text_of(transform or ds, "RescaleType").upper(),
                cut,
                tags,
                here,
            )
        )
    return out


def _settings(ds: Dataset) -> dict[str, Any]:
    agent = text_of(ds, "ContrastBolusAgent").upper()
    lossy = text_of(ds, "LossyImageCompression") == "01"
    return {
        "Modality": text_of(ds, "Modality"),
        **{key: text_of(ds, key) for key in TEXT_TAGS},
        **{key: number_of(ds, key) for key in NUMBER_TAGS},
        "ContrastBolusAgent": (
            bool(ds.get("ContrastBolusAgentSequence")) or agent not in ("", "NO", "NONE")
        ),
        "LossyImageCompression": lossy,
        "SeriesInstanceUID": text_of(ds, "SeriesInstanceUID"),
        "StudyInstanceUID": text_of(ds, "StudyInstanceUID"),
        "FrameOfReferenceUID": text_of(ds, "FrameOfReferenceUID"),
        "SeriesNumber": text_of(ds, "SeriesNumber"),
        "SeriesDescription": text_of(ds, "SeriesDescription"),
    }


def read_dataset(number: int, folder: Folder) -> Dataset:
    """A file with its pixels. Raises where it is cut short, or compressed in a way that can't be
    decoded here."""
    try:
        ds = pydicom.dcmread(folder.files[number], force=True)
        meta = getattr(ds, "file_meta", None) or FileMetaDataset()
        if "TransferSyntaxUID" not in meta:  # no preamble: as pydicom found it
            implicit, little = ds.original_encoding
            meta.TransferSyntaxUID = (
                ImplicitVRLittleEndian
                if implicit
                else ExplicitVRLittleEndian
                if little
                else ExplicitVRBigEndian
            )
            ds.file_meta = meta
        syntax = UID(meta.TransferSyntaxUID)
        high, stored = number_of(ds, "HighBit"), number_of(ds, "BitsStored")
    except BROKEN:
        raise ValueError(
            f"{folder.place}: {folder.name(number)} can't be read: cut short or damaged; copy it"
            " again"
        ) from None
    if not any(key in ds for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError(
            f"{folder.place}: {folder.name(number)} is cut short in its pixels; copy it again"
        )
    if high is not None and stored is not None and high != stored - 1:
        raise ValueError(
            f"{folder.place}: {folder.name(number)} has HighBit {high:g} for {stored:g} stored"
            " bits; export it again"
        )
    try:
        known = bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        known = False
    if not known:
        name = syntax.name if not folder.private.hides(syntax.name) else "unknown"
        packages = next((packages for key, packages in _INSTALL.items() if key in name), "")
        advice = f"pip install {packages}, or export" if packages else "export"
        raise ValueError(
            f"{folder.place}: no decoder for the transfer syntax {name} ({syntax}) of"
            f" {folder.name(number)}; {advice} it uncompressed"
        )
    return ds
