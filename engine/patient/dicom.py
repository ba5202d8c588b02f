"""DICOM: CT or MR slices, enhanced multi-frame objects and segmentations → voxels and index → LPS mm.

With row and column directions X, Y (ImageOrientationPatient), pixel spacing (Δr, Δc) and the step d between neighbouring slices

    LPS(i, j, k) = p₀ + Δc·X·i + Δr·Y·j + d·k           i column, j row, k slice
    HU = slope·stored + intercept                       of each slice

Slices are sorted by p·(X×Y), never by InstanceNumber. d is the least-squares step of all positions; each must lie within 10 % of
a slice distance and a quarter of a pixel of it, else slices are missing or the stack is irregular, and it is refused. Where d
is not along X×Y (gantry tilt) the matrix is sheared: images.py resamples.

Privacy: nothing of a personal tag may reach a note, the source or an error. So free text is shown only where it shares no word
with a personal tag, files are told by their number in the folder, pydicom's own messages (which quote values) are not passed on,
and UIDs are stored as hashes.

Ref: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups), C.11.1 (rescale), C.7.5.1.1.2 (pixel padding).
"""

from __future__ import annotations

import hashlib
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
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from engine.patient.dicom_seg import SPACING_TOLERANCE, read_seg
from engine.patient.dicom_tags import BROKEN, hashed, number_of, numbers_of, text_of, with_points
from engine.patient.files import dicom_head, files_under
from engine.patient.images import MAX_VOXELS, PADDING_HU, Image, check_size
from engine.patient.rtstruct import read_structures

#: A slice may lie SPACING_TOLERANCE of the slice distance off the regular grid (positions are often rounded to 0.1 mm), and
#: this share of a pixel within its plane.
PLANE_TOLERANCE = 0.25
#: Slices of one stack agree to this in their direction cosines.
SAME_DIRECTION = 5e-3
#: A padding value of more HU than this could be tissue: it is left as it is.
PADDING_BELOW_HU = -900.0

_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_CONTOUR_DATA = 0x30060050
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_NO_PICTURES = ("1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.4.2")
_DICOMDIR = "1.2.840.10008.1.3.10"
#: CT, enhanced and legacy converted enhanced CT; MR, enhanced, enhanced colour and legacy converted enhanced MR.
_SLICES = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4"))
#: What places a slice, and how many numbers each is.
_PLANE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
#: Tags that tell several images of the same place apart (echoes, phases, magnitude and phase, reconstructions).
_STACK_TAGS = ("ImageType", "EchoTime", "TemporalPositionIndex", "DiffusionBValue", "StackID", "ConvolutionKernel", "AcquisitionNumber")
#: Scanner settings that go to the source: text (shown if not personal) and numbers.
_TEXTS = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "PatientPosition")
_NUMBERS = ("KVP", "SliceThickness", "XRayTubeCurrent")
#: Personal besides names, dates and times (which are told by their value representation).
_PERSONAL = frozenset(
    """PatientID OtherPatientIDs IssuerOfPatientID AccessionNumber StudyID AdmissionID PatientAddress PatientComments ImageComments
    AdditionalPatientHistory MedicalRecordLocator InstitutionName InstitutionAddress InstitutionalDepartmentName StationName
    PatientTelephoneNumbers MilitaryRank Occupation EthnicGroup RequestingService CurrentPatientLocation
    PatientBirthName PatientReligiousPreference CountryOfResidence RegionOfResidence DeviceSerialNumber FrameComments StudyComments
    RequestedProcedureComments VisitComments FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest""".split()
)
_INSTALL = {"JPEG 2000": "pylibjpeg pylibjpeg-openjpeg", "JPEG-LS": "pylibjpeg pylibjpeg-libjpeg", "JPEG": "pylibjpeg pylibjpeg-libjpeg"}


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM: "DICM" at byte 128, or (old files without preamble) a first element of group 8.

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


def read_series(path: str | Path, series: str | None = None, max_voxels: int = MAX_VOXELS) -> Image:
    """One series of a folder (searched through its subfolders), or of a multi-frame file; see `images.read_image`.

    The matrix may be sheared (gantry tilt). Values: int16, int32 where HU need it, float32 where the rescale isn't whole.

    Raises: ValueError for no series, several and none chosen, slices missing, irregular or of different content in one place,
    truncated files, compressions without a decoder, CT without a rescale to HU, and more than max_voxels.
    """
    with _quiet():
        folder = _read_folder(Path(path))
        stacks = _stacks(folder)
        stack, notes = _choose(stacks, series, folder)
        return _assemble(stack, [*folder.skipped_lines(), *notes], folder, max_voxels)


def read_segmentation(path: str | Path, max_voxels: int = MAX_VOXELS, scan: Image | None = None) -> Image | None:
    """The DICOM segmentation of a file or folder, or its structure set (RTSTRUCT); None without one.

    Values are segment or ROI numbers, source["segments"] their names. A structure set's contours need the scan that they were
    drawn on: `scan`, or the series that is in the folder with it.

    Raises: ValueError for several of them, segments that overlap, fractional ones, and contours without their scan.
    """
    with _quiet():
        folder = _read_folder(Path(path))
        marked = folder.segmentations or folder.structures
        if not marked:
            return None
        kind = "DICOM segmentations" if folder.segmentations else "structure sets (RTSTRUCT)"
        if len(marked) > 1:
            which = ", ".join(folder.name(n) for n in marked)
            raise ValueError(f"{folder.place}: {len(marked)} {kind} ({which}); give one as a file")
        file, name = folder.files[marked[0]], folder.name(marked[0])
        if folder.segmentations:
            return read_seg(file, folder.place, name, folder.private.shown, max_voxels)
        if scan is None and folder.slices:
            stack, lines = _choose(_stacks(folder), None, folder)
            scan = _assemble(stack, lines, folder, max_voxels)
        return read_structures(file, folder.place, name, folder.private.shown, scan)


# -- privacy -----------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
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


class _Private:
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
        """Whether a text holds a word of a personal tag (short ones as a whole word), or looks like a date or a long number."""
        there = set(_words(text))
        joined = "".join(_words(text))
        if re.search(r"\d{1,4}[-./ ]\d{1,2}[-./ ]\d{2,4}|\d{6,}", text):
            return True
        return any(word in there or (len(word) > 2 and (word in text.lower() or word in joined)) for word in self._words)

    def shown(self, text: str) -> str:
        return "(withheld)" if text and self.hides(text) else text


def _elements(ds: Dataset) -> Iterator[tuple[bool, str]]:
    """Whether it is personal, and its value as text, of every element at every depth; damaged ones as their bytes."""
    for tag in list(ds.keys()):
        if tag == _CONTOUR_DATA:
            continue  # up to millions of numbers
        try:
            element = ds[tag]
            if element.VR == "SQ":
                for item in element.value:
                    yield from _elements(item)
            else:
                yield element.VR in ("PN", "DA", "DT") or element.keyword in _PERSONAL, str(element.value)
        except BROKEN:
            value = getattr(ds.get_item(tag), "value", None)
            yield True, value.decode("latin-1") if isinstance(value, bytes) and len(value) < 1000 else ""


# -- the files of a folder ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slice:
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
class _Folder:
    """What a folder holds. `place` is what the user gave; files are numbered from 0 in alphabetical order."""

    place: str
    files: list[Path]
    slices: list[_Slice] = field(default_factory=list)
    segmentations: list[int] = field(default_factory=list)
    structures: list[int] = field(default_factory=list)
    commas: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    private: _Private = field(default_factory=_Private)

    def name(self, file: int) -> str:
        """How a file is told: by its number, and by its name where that is a plain serial name."""
        if len(self.files) == 1:
            return "the file"
        name = self.files[file].name
        plain = re.fullmatch(r"(im|img|image|i|ct|mr|slice|frame)?[-_. ]*[\d.]+(\.dcm|\.ima)?", name, re.IGNORECASE)
        told = f" ({name})" if plain and not self.private.hides(re.sub(r"\d{6,}", " ", name)) else ""
        return f"file {file + 1} of {len(self.files)} in alphabetical order{told}"

    def skipped_lines(self) -> list[str]:
        lines = [f"{count} skipped: {what}" for what, count in sorted(self.skipped.items())]
        return [*lines, f"decimal commas in the numbers of {self.commas} files read as decimal points"] if self.commas else lines


def _read_folder(path: Path) -> _Folder:
    """Headers of all files. Raises where there is no DICOM, or a file is cut short before its geometry."""
    if path.is_dir():
        folder = _Folder(str(path), files_under(path))
    else:
        folder = _Folder(str(path.parent), [path])
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
            raise ValueError(f"{folder.place}: {folder.name(number)} cannot be read: permission denied") from None
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
        raise ValueError(f"{folder.place} holds no DICOM file ({held}); give the folder with the series")
    if path.is_file() and folder.skipped["DICOMDIR"]:
        raise ValueError(f"{path} is the index of a folder (DICOMDIR), not a series; give the folder that it is in")
    folder.skipped = +folder.skipped
    return folder


def _header(file: Path) -> tuple[Dataset | None, bool]:
    """Everything before the pixels, and whether those are cut off; None where it isn't DICOM after all."""
    with file.open("rb") as stream:
        ds = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        where, size = stream.tell(), file.stat().st_size
        tag = stream.read(4)
    meta = getattr(ds, "file_meta", FileMetaDataset())
    syntax = text_of(meta, "TransferSyntaxUID")
    if not syntax and "Modality" not in ds and "SOPClassUID" not in ds and len(meta) == 0 and size > 200:
        return None, False
    if syntax and UID(syntax).is_deflated:
        return ds, False  # read as a whole already
    if tag not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        return ds, True
    if syntax and UID(syntax).is_compressed:
        return ds, size - where < 16
    figures = [number_of(ds, key) or 1 for key in ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel")]
    return ds, size - where < int(np.prod(figures)) // 8


def _sort(ds: Dataset, cut: bool, number: int, folder: _Folder) -> bool:
    """Put a file's slices where they belong, or count it as skipped; False where its header is damaged."""
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
    elif (number_of(ds, "SamplesPerPixel") or 1) != 1 or text_of(ds, "PhotometricInterpretation").startswith("PALETTE"):
        folder.skipped["colour picture (screen capture)"] += 1
    else:
        slices = _slices(ds, cut, number)
        if not slices and cut and (sop in _SLICES or not sop):
            return False
        if not slices:
            why = next((key for key, count in _PLANE.items() if key in ds and numbers_of(ds, key, count) is None and _filled(ds, key)), "")
            what = f"picture whose {why} can't be read as numbers" if why else "picture without position, direction or pixel spacing"
            folder.skipped[what if why else f"{what} (screen capture or report)"] += 1
        folder.slices += slices
    return True


def _filled(ds: Dataset, keyword: str) -> bool:
    """Whether a tag that is there holds anything, readable or not."""
    return bool(getattr(ds.get_item(keyword), "value", None))


def _slices(ds: Dataset, cut: bool, number: int) -> list[_Slice]:
    """The slices of a file; none where size, place, direction or pixel spacing are missing."""
    size = (int(number_of(ds, "Rows") or 0), int(number_of(ds, "Columns") or 0))
    frames = int(number_of(ds, "NumberOfFrames") or 1)
    shared, per_frame = ds.get("SharedFunctionalGroupsSequence"), ds.get("PerFrameFunctionalGroupsSequence")
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
        measures, transform = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
        pixel = numbers_of(measures, "PixelSpacing", 2)
        if position is None or axes is None or pixel is None or min(size) < 2 or min(pixel) <= 0 or (frames > 1 and not per_frame):
            return []
        slope, intercept = number_of(transform, "RescaleSlope"), number_of(transform, "RescaleIntercept")
        kind = group(f"{settings['Modality']}ImageFrameTypeSequence") or group("MRImageFrameTypeSequence")
        content = group("FrameContentSequence") or Dataset()
        kernel = group("CTReconstructionSequence") or Dataset()
        tags = {
            "ImageType": text_of(kind or ds, "FrameType") or text_of(ds, "ImageType"),
            "EchoTime": text_of(group("MREchoSequence") or ds, "EffectiveEchoTime") or text_of(ds, "EchoTime"),
            "TemporalPositionIndex": text_of(content, "TemporalPositionIndex") or text_of(ds, "TemporalPositionIdentifier"),
            "DiffusionBValue": text_of(group("MRDiffusionSequence") or ds, "DiffusionBValue"),
            "StackID": text_of(content, "StackID"),
            "ConvolutionKernel": text_of(kernel, "ConvolutionKernel") or text_of(ds, "ConvolutionKernel"),
            "AcquisitionNumber": text_of(content, "FrameAcquisitionNumber") or text_of(ds, "AcquisitionNumber"),
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
            _Slice(
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
        **{key: text_of(ds, key) for key in _TEXTS},
        **{key: number_of(ds, key) for key in _NUMBERS},
        "ContrastBolusAgent": bool(ds.get("ContrastBolusAgentSequence")) or agent not in ("", "NO", "NONE"),
        "LossyImageCompression": lossy,
        "SeriesInstanceUID": text_of(ds, "SeriesInstanceUID"),
        "StudyInstanceUID": text_of(ds, "StudyInstanceUID"),
        "FrameOfReferenceUID": text_of(ds, "FrameOfReferenceUID"),
        "SeriesNumber": text_of(ds, "SeriesNumber"),
        "SeriesDescription": text_of(ds, "SeriesDescription"),
    }


# -- series ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stack:
    """Parallel slices of one series and size."""

    slices: list[_Slice]
    notes: tuple[str, ...] = ()

    def tag(self, name: str) -> str:
        return str(self.slices[0].settings[name] or "")

    def line(self, private: _Private) -> str:
        """Modality, description, slices, size and spacing, for the list of series."""
        first = self.slices[0]
        height = np.sort(_heights(self.slices))
        spacing = float(np.median(np.diff(height))) if len(height) > 1 else 0.0
        pixel = " x ".join(f"{v:.3g}" for v in (*first.pixel_mm[::-1], spacing))
        size = f"{first.size[1]} x {first.size[0]}"
        name = private.shown(self.tag("SeriesDescription")) or "(no description)"
        serial = f", series number {private.shown(self.tag('SeriesNumber'))}" if self.tag("SeriesNumber") else ""
        uid = self.tag("SeriesInstanceUID")
        return f"{self.tag('Modality')} {name}, {len(self.slices)} slices {size}, {pixel} mm{serial}, {uid or 'no UID'}"


def _heights(slices: list[_Slice]) -> np.ndarray:
    """Position of each slice along the normal, mm."""
    axes = np.mean([s.axes for s in slices], axis=0)
    normal = np.cross(axes[0], axes[1])
    normal /= np.linalg.norm(normal)
    return np.array([s.position @ normal for s in slices])


def _stacks(folder: _Folder) -> list[_Stack]:
    """The slices grouped into stacks of one series, size and direction, in a fixed order. Single slices are left out."""
    series: dict[tuple[str, ...], list[_Slice]] = {}
    own, apart = _uid_for_each(folder.slices)
    for item in folder.slices:
        s = item.settings
        uid = "" if s["SeriesInstanceUID"] in own else s["SeriesInstanceUID"]
        key: tuple[str, ...] = (uid, s["Modality"])
        if not uid:
            names = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber", "SeriesDescription", *_TEXTS, "SliceThickness", "KVP")
            key = ("", s["Modality"], *(str(s[name]) for name in names if name not in apart), item.tags["ImageType"])
        series.setdefault(key, []).append(item)
    stacks = []
    why = "every slice has a SeriesInstanceUID of its own" if own else "no SeriesInstanceUID"
    for key, members in series.items():
        for part in (part for parallel in _parallel(members) for part in _apart(parallel)):
            line = f"{why}: {len(part)} slices grouped by modality, settings, size and direction"
            stacks.append(_Stack(part, () if key[0] else (line,)))
    several = [s for s in stacks if len(s.slices) > 1]
    singles = len(stacks) - len(several)
    if singles:
        folder.skipped["single image (no parallel slice beside it)"] += singles
    if not several:
        held = "; ".join(folder.skipped_lines()) or "nothing else"
        what = "a single slice; give the folder with the whole series" if singles else "no CT or MR slices"
        raise ValueError(f"{folder.place} holds {what} ({held})")
    return sorted(several, key=lambda s: (s.tag("SeriesNumber").zfill(8), s.tag("SeriesInstanceUID"), s.slices[0].file))


def _uid_for_each(slices: list[_Slice]) -> tuple[set[str], set[str]]:
    """SeriesInstanceUIDs that an anonymiser gave to one slice each, where most slices have such a one; and what else it did so.

    Series of one slice beside real ones (localizers) are left as they are.
    """
    counts = Counter(s.settings["SeriesInstanceUID"] for s in slices)
    own = {uid for uid, count in counts.items() if uid and count == 1}
    if len(own) < 3 or 2 * len(own) <= len(slices):
        return set(), set()
    single = [s for s in slices if s.settings["SeriesInstanceUID"] in own]
    keys = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber")
    return own, {key for key in keys if len({s.settings[key] for s in single}) == len(single)}


def _parallel(slices: list[_Slice]) -> list[list[_Slice]]:
    """Parted by size, pixel spacing and direction."""
    out: list[list[_Slice]] = []
    for item in slices:
        for group in out:
            first = group[0]
            if (
                item.size == first.size
                and np.allclose(item.axes, first.axes, atol=SAME_DIRECTION)
                and np.allclose(item.pixel_mm, first.pixel_mm, rtol=1e-3)
            ):
                group.append(item)
                break
        else:
            out.append([item])
    return out


def _same_place(heights: np.ndarray) -> np.ndarray:
    """For sorted heights: whether each slice lies in the place of the one before."""
    steps = np.diff(heights)
    larger = steps[steps > 0.01]
    return steps <= max(0.01, 0.02 * float(np.median(larger)) if larger.size else 0.01)


def _apart(slices: list[_Slice]) -> list[list[_Slice]]:
    """Echoes, phases and the like parted, where slices lie in one place and one tag tells them apart throughout."""
    if not _same_place(np.sort(_heights(slices))).any():
        return [slices]
    for tag in _STACK_TAGS:
        groups: dict[str, list[_Slice]] = {}
        for item in slices:
            groups.setdefault(item.tags[tag], []).append(item)
        parts = list(groups.values())
        if len(parts) > 1 and all(len(p) > 1 and not _same_place(np.sort(_heights(p))).any() for p in parts):
            return parts
    return [slices]


def _choose(stacks: list[_Stack], series: str | None, folder: _Folder) -> tuple[_Stack, list[str]]:
    listing = "; ".join(f"{n}: {stack.line(folder.private)}" for n, stack in enumerate(stacks, start=1))
    wanted = "" if series is None else str(series).strip()
    if not wanted:
        if len(stacks) == 1:
            return stacks[0], list(stacks[0].notes)
        raise ValueError(
            f"{folder.place} holds {len(stacks)} series; set source.series=NUMBER (or its SeriesInstanceUID, SeriesNumber or a part of "
            f"its description) to one of {listing}"
        )
    by_number = [stacks[int(wanted) - 1]] if wanted.isdecimal() and 1 <= int(wanted) <= len(stacks) else []
    found = (
        by_number
        or [s for s in stacks if s.tag("SeriesInstanceUID") == wanted]
        or [s for s in stacks if s.tag("SeriesNumber") == wanted]
        or [s for s in stacks if wanted.lower() in s.tag("SeriesDescription").lower()]
    )
    if len(found) != 1:
        uid = any(s.tag("SeriesInstanceUID") == wanted for s in stacks)
        given = wanted if uid else folder.private.shown(wanted)
        raise ValueError(
            f"source.series={given} fits {len(found) or 'none'} of the {len(stacks)} series in {folder.place}; "
            f"give the number of one of {listing}"
        )
    chosen = next(n for n, s in enumerate(stacks, start=1) if s is found[0])
    return found[0], [*found[0].notes, f"series {chosen} of {len(stacks)} in the folder"]


# -- one stack → an image ----------------------------------------------------------------------------------------


def _assemble(stack: _Stack, notes: list[str], folder: _Folder, max_voxels: int) -> Image:
    slices, ct = stack.slices, stack.tag("Modality") == "CT"
    rows, columns = slices[0].size
    check_size((columns, rows, len(slices)), folder.place, max_voxels)
    short = [s for s in slices if s.cut]
    if short:
        raise ValueError(f"{folder.place}: {folder.name(short[0].file)} is cut short ({len(short)} in all); copy it again or remove it")
    if ct:
        notes += _check_hu(slices, folder)
    reader = _Pixels(folder, ct)
    axes, lines = _axes(slices, folder)
    notes += lines
    slices, lines = _unique(slices, reader, folder)
    notes += lines
    matrix = _matrix(slices, axes, folder)
    values = _voxels(slices, reader)
    notes += reader.notes()
    if ct and any(s.settings["LossyImageCompression"] for s in slices):
        notes.append("the images were compressed with loss: HU are approximate")
    spacing = float(matrix[:3, 2] @ np.cross(axes[0], axes[1]))
    thickness = slices[0].settings["SliceThickness"]
    if thickness and spacing > 1.05 * thickness:
        notes.append(f"gaps between slices: {thickness:g} mm thick, {spacing:.4g} mm apart")
    return Image(values, matrix, stack.tag("Modality"), tuple(notes), _provenance(slices, folder, values, matrix, spacing))


def _check_hu(slices: list[_Slice], folder: _Folder) -> list[str]:
    for item in slices:
        if item.rescale is None:
            raise ValueError(
                f"{folder.place}: {folder.name(item.file)} is a CT slice without RescaleSlope and RescaleIntercept, so its HU are unknown; "
                "export the original series"
            )
        if item.rescale_type not in ("", "HU", "US", "HU_MOD"):
            kind = folder.private.shown(item.rescale_type)
            raise ValueError(f"{folder.place}: RescaleType {kind} of {folder.name(item.file)} is not HU; choose a series in HU")
    unspecified = sum(s.rescale_type == "US" for s in slices)
    return [f"RescaleType of {unspecified} slices is unspecified (US); taken as HU"] if unspecified else []


def _axes(slices: list[_Slice], folder: _Folder) -> tuple[np.ndarray, list[str]]:
    """Row and column directions [2, 3] of the stack: their mean, made orthonormal (nearest, by SVD)."""
    mean = np.mean([s.axes for s in slices], axis=0)
    off = float(np.abs(mean @ mean.T - np.eye(2)).max())
    if off > 0.05:
        raise ValueError(f"{folder.place}: ImageOrientationPatient is not orthonormal (by {off:.2g}, at most 0.05); export it again")
    u, _, vt = np.linalg.svd(mean, full_matrices=False)
    axes = u @ vt
    return axes, [f"ImageOrientationPatient was not orthonormal (by {off:.1e}); the nearest axes are used"] if off > 1e-4 else []


def _unique(slices: list[_Slice], reader: _Pixels, folder: _Folder) -> tuple[list[_Slice], list[str]]:
    """The slices sorted along the normal, one for each place. Raises where one place holds different contents."""
    heights = _heights(slices)
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[n] for n in order], heights[order]
    kept, dropped = [slices[0]], []
    for item, height, same in zip(slices[1:], heights[1:], _same_place(heights), strict=True):
        if not same:
            kept.append(item)
            continue
        first = kept[-1]
        shifted = np.linalg.norm(item.position - first.position) > PLANE_TOLERANCE * float(first.pixel_mm.min())
        if shifted or not np.array_equal(reader.read(first), reader.read(item)):
            what = "lie beside each other" if shifted else "differ in content"
            raise ValueError(
                f"{folder.place}: two slices at {height:.2f} mm along the slice normal {what} ({folder.name(first.file)}; "
                f"{folder.name(item.file)}): several acquisitions in one series? keep one of them"
            )
        dropped.append(float(height))
    lines = [f"{len(dropped)} duplicate slices with the same content left out ({_list_mm(dropped)})"] if dropped else []
    if len(kept) < 2:
        raise ValueError(f"{folder.place} holds a single slice in {len(slices)} copies; give the whole series")
    return kept, lines


def _list_mm(places: list[float]) -> str:
    """The first places along the normal, for a message."""
    return "at " + ", ".join(f"{p:.2f}" for p in places[:8]) + (", …" if len(places) > 8 else "") + " mm along the slice normal"


def _matrix(slices: list[_Slice], axes: np.ndarray, folder: _Folder) -> np.ndarray:
    """Index → LPS [4, 4] of sorted slices. Raises for missing slices, unequal spacing and stacks that aren't straight."""
    normal = np.cross(axes[0], axes[1])
    positions = np.array([s.position for s in slices])
    heights = positions @ normal
    steps = np.diff(heights)
    spacing = float(np.median(steps))
    ratio = steps / spacing
    gaps = np.rint(ratio)
    missing = [
        float(heights[n] + (m + 1) * steps[n] / gaps[n])
        for n in np.flatnonzero((gaps > 1) & (np.abs(ratio - gaps) <= 2 * SPACING_TOLERANCE))
        for m in range(int(gaps[n]) - 1)
    ]
    if missing and np.all(np.abs(ratio - np.maximum(gaps, 1)) <= 2 * SPACING_TOLERANCE):
        raise ValueError(
            f"{folder.place}: {len(missing)} of {len(slices) + len(missing)} slices are missing, {_list_mm(missing)} "
            f"({spacing:.4g} mm apart); copy the whole series"
        )
    n = np.arange(len(slices), dtype=float)
    fit = np.polynomial.polynomial.polyfit(n, positions, 1)  # [start, step] x LPS
    off = positions - (fit[0] + n[:, None] * fit[1])
    across = float(np.abs(off @ normal).max())
    within = float(np.abs(off @ axes.T).max())
    limit = PLANE_TOLERANCE * float(slices[0].pixel_mm.min())
    if across > SPACING_TOLERANCE * abs(float(fit[1] @ normal)):
        raise ValueError(
            f"{folder.place}: unequal slice spacing, {steps.min():.4g} to {steps.max():.4g} mm; slices lie up to "
            f"{across:.3g} mm off a regular grid, at most {SPACING_TOLERANCE:.0%} of the spacing is allowed; give one with equal spacing"
        )
    if within > limit:
        raise ValueError(
            f"{folder.place}: slices are shifted by up to {within:.3g} mm within their plane (at most {limit:.3g} mm, a quarter "
            "of a pixel), so they make no straight stack; give one acquisition"
        )
    matrix = np.eye(4)
    matrix[:3, 0] = axes[0] * slices[0].pixel_mm[1]
    matrix[:3, 1] = axes[1] * slices[0].pixel_mm[0]
    matrix[:3, 2] = fit[1]
    matrix[:3, 3] = fit[0]
    return matrix


class _Pixels:
    """Slices decoded and rescaled, one file held at a time; counts what was replaced."""

    def __init__(self, folder: _Folder, ct: bool) -> None:
        self._folder, self._ct = folder, ct
        self._file, self._ds = -1, Dataset()
        self._padded: Counter[str] = Counter()
        self._low: dict[tuple[int, int | None], int] = {}
        self._kept_padding: set[float] = set()

    def read(self, item: _Slice) -> np.ndarray:
        """Values [column, row]: int32, or float64 where the rescale isn't whole."""
        if item.file != self._file:
            self._file, self._ds = -1, Dataset()  # free the last one first
            self._ds = _dataset(item.file, self._folder)
            self._file = item.file
        ds = self._ds
        try:
            stored = np.asarray(pixel_array(ds, index=item.frame or 0, raw=True)).T
        except BROKEN:
            raise ValueError(
                f"{self._folder.place}: the pixels of {self._folder.name(item.file)} can't be decoded: "
                "the file is cut short or damaged; copy it again"
            ) from None
        if stored.shape != item.size[::-1]:
            raise ValueError(f"{self._folder.place}: {self._folder.name(item.file)} holds {stored.shape}, not the size in its header")
        slope, intercept = item.rescale or (1.0, 0.0)
        whole = float(slope).is_integer() and float(intercept).is_integer() and stored.dtype.kind in "iu"
        values = stored.astype(np.int32) * int(slope) + int(intercept) if whole else stored * slope + intercept
        return self._unpadded(stored, values, item, ds) if self._ct else values

    def _unpadded(self, stored: np.ndarray, values: np.ndarray, item: _Slice, ds: Dataset) -> np.ndarray:
        slope, intercept = item.rescale or (1.0, 0.0)
        ends = [_padding(ds, key) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
        if ends[0] is not None:
            low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
            if max(low * slope + intercept, high * slope + intercept) <= PADDING_BELOW_HU:
                mask = (stored >= low) & (stored <= high)
                self._padded[f"{low * slope + intercept:g}"] += int(mask.sum()) if low * slope + intercept != PADDING_HU else 0
                values[mask] = PADDING_HU
            else:
                self._kept_padding.add(ends[0] * slope + intercept)
        below = values < PADDING_HU
        if below.any():
            self._low[item.file, item.frame] = int(below.sum())
            values[below] = PADDING_HU
        return values

    def notes(self) -> list[str]:
        lines = [f"padding outside the field of view ({hu} HU) set to {PADDING_HU} HU" for hu, count in self._padded.items() if count]
        lines += [f"PixelPaddingValue means {hu:g} HU, which could be tissue: left as it is" for hu in sorted(self._kept_padding)]
        low = sum(self._low.values())
        return [*lines, f"{low} voxels below {PADDING_HU} HU set to {PADDING_HU} HU"] if low else lines


def _padding(ds: Dataset, keyword: str) -> float | None:
    """A padding value in the pixels' own sign: many writers store a negative one as unsigned."""
    value = number_of(ds, keyword)
    if value is None:
        return None
    bits = int(number_of(ds, "BitsAllocated") or 16)
    number = int(value) % (1 << bits)
    signed = int(number_of(ds, "PixelRepresentation") or 0) == 1
    return float(number - (1 << bits) if signed and number >= 1 << (bits - 1) else number)


def _dataset(number: int, folder: _Folder) -> Dataset:
    """A file with its pixels. Raises where it is cut short, or compressed in a way that can't be decoded here."""
    try:
        ds = pydicom.dcmread(folder.files[number], force=True)
        meta = getattr(ds, "file_meta", None) or FileMetaDataset()
        if "TransferSyntaxUID" not in meta:  # no preamble: as pydicom found it
            implicit, little = ds.original_encoding
            meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            ds.file_meta = meta
        syntax = UID(meta.TransferSyntaxUID)
        high, stored = number_of(ds, "HighBit"), number_of(ds, "BitsStored")
    except BROKEN:
        raise ValueError(f"{folder.place}: {folder.name(number)} can't be read: cut short or damaged; copy it again") from None
    if not any(key in ds for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError(f"{folder.place}: {folder.name(number)} is cut short in its pixels; copy it again")
    if high is not None and stored is not None and high != stored - 1:
        raise ValueError(f"{folder.place}: {folder.name(number)} has HighBit {high:g} for {stored:g} stored bits; export it again")
    try:
        known = bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        known = False
    if not known:
        name = syntax.name if not folder.private.hides(syntax.name) else "unknown"
        packages = next((packages for key, packages in _INSTALL.items() if key in name), "")
        advice = f"pip install {packages}, or export" if packages else "export"
        raise ValueError(
            f"{folder.place}: no decoder for the transfer syntax {name} ({syntax}) of {folder.name(number)}; {advice} it uncompressed"
        )
    return ds


def _voxels(slices: list[_Slice], reader: _Pixels) -> np.ndarray:
    """Values [column, row, slice], slices contiguous: int16, widened to int32 or float32 once a slice needs it."""
    rows, columns = slices[0].size
    values = np.empty((columns, rows, len(slices)), np.int16, order="F")
    for k, item in enumerate(slices):
        slice_values = reader.read(item)
        if slice_values.dtype.kind == "f" and values.dtype.kind != "f":
            values = values.astype(np.float32, order="F")
        elif values.dtype == np.int16 and (slice_values.min() < -32768 or slice_values.max() > 32767):
            values = values.astype(np.int32, order="F")
        values[:, :, k] = slice_values
    return values


def _provenance(slices: list[_Slice], folder: _Folder, values: np.ndarray, matrix: np.ndarray, spacing: float) -> dict[str, Any]:
    """What may be kept of where an image comes from."""
    source: dict[str, Any] = {"path": folder.place, "format": "DICOM", "modality": slices[0].settings["Modality"]}
    source["files"] = len({s.file for s in slices})
    for key in _TEXTS:
        found = sorted({folder.private.shown(s.settings[key]) for s in slices} - {""})
        if found:
            source[key] = found[0] if len(found) == 1 else found
    for key in _NUMBERS:
        numbers = [s.settings[key] for s in slices if s.settings[key] is not None]
        if numbers:
            source[key] = min(numbers) if min(numbers) == max(numbers) else [min(numbers), max(numbers)]
    source["ContrastBolusAgent"] = "yes" if any(s.settings["ContrastBolusAgent"] for s in slices) else "no"
    source["slice_spacing_mm"] = round(spacing, 6)
    for key in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        uids = {s.settings[key] for s in slices}
        if len(uids) == 1 and (uid := uids.pop()):
            source[f"{key}_sha256"] = hashed(uid)
    digest = hashlib.sha256(repr((values.shape, values.dtype.str)).encode() + np.ascontiguousarray(matrix.round(6)).tobytes())
    digest.update(values.T.data)
    source["sha256"] = digest.hexdigest()
    return source
