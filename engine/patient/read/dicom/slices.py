"""The slices of one DICOM file: where each lies, how its values are rescaled, and what tells it
from others.

A file holds one slice, or is a multi-frame object (enhanced CT or MR) whose frames are slices; what
describes a frame is then in functional groups of its own or in those that all frames share.

Ref: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (multi-frame functional groups).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from engine.patient.read.dicom.tags import number_of, numbers_of, text_of

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
#: What places a slice, and how many numbers each is.
_PLANE_TAGS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}


@dataclass(frozen=True)
class Slice:
    """One slice: a file, or a frame of one.

    file, frame    number of the file in its folder; index of the frame, None where the file is one
                   slice
    position       [3] LPS mm of the first pixel's centre
    axes           [2, 3] directions along which columns and rows are counted
    pixel_mm       [2] distance between rows, and between columns
    size           rows, columns
    rescale        slope and intercept to HU; None where either is missing, or the slope is 0
    truncated      whether the file ends before its pixels do
    tags           STACK_TAGS as text
    settings       what the source and the grouping into series are made from
    """

    file: int
    frame: int | None
    position: np.ndarray
    axes: np.ndarray
    pixel_mm: np.ndarray
    size: tuple[int, int]
    rescale: tuple[float, float] | None
    rescale_type: str
    truncated: bool
    tags: dict[str, str]
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Attributes:
    """Where the attributes of one slice are looked up: in the functional groups of its frame, in
    those shared by all frames, or, in a file of one slice, in the data set."""

    ds: Dataset
    shared: Dataset
    frame: Dataset
    multi_frame: bool

    def group(self, sequence: str) -> Dataset | None:
        """The item of a functional group; None where a multi-frame object lacks it."""
        items = self.frame.get(sequence) or self.shared.get(sequence)
        if items:
            return items[0]
        return None if self.multi_frame else self.ds


class _Plane(NamedTuple):
    position: np.ndarray
    axes: np.ndarray
    pixel_mm: np.ndarray


def slices_of(ds: Dataset, truncated: bool, file: int) -> list[Slice]:
    """The slices of a file; none where size, place, direction or pixel spacing are missing."""
    size = (int(number_of(ds, "Rows") or 0), int(number_of(ds, "Columns") or 0))
    frames = int(number_of(ds, "NumberOfFrames") or 1)
    shared = ds.get("SharedFunctionalGroupsSequence")
    per_frame = ds.get("PerFrameFunctionalGroupsSequence")
    common = shared[0] if shared else Dataset()
    if per_frame and len(per_frame) != frames:
        return []
    settings = _settings(ds)
    slices = []
    for frame in range(frames if per_frame else 1):
        own = per_frame[frame] if per_frame else Dataset()
        attributes = _Attributes(ds, common, own, bool(per_frame))
        plane = _plane(attributes)
        transform = attributes.group("PixelValueTransformationSequence")
        if plane is None or min(size) < 2 or (frames > 1 and not per_frame):
            return []
        tags = _stack_tags(attributes, settings["Modality"])
        slices.append(
            Slice(
                file=file,
                frame=frame if per_frame else None,
                position=plane.position,
                axes=plane.axes,
                pixel_mm=plane.pixel_mm,
                size=size,
                rescale=_rescale(transform),
                rescale_type=text_of(transform or ds, "RescaleType").upper(),
                truncated=truncated,
                tags=tags,
                settings=settings | (_frame_settings(attributes, tags) if per_frame else {}),
            )
        )
    return slices


def unreadable_plane_tag(ds: Dataset) -> str:
    """The first tag that places a slice, is there and not empty, and can't be read as numbers; ""
    where there is none."""
    for keyword, count in _PLANE_TAGS.items():
        if keyword in ds and numbers_of(ds, keyword, count) is None and _filled(ds, keyword):
            return keyword
    return ""


def _filled(ds: Dataset, keyword: str) -> bool:
    """Whether a tag that is there holds anything, readable or not."""
    return bool(getattr(ds.get_item(keyword), "value", None))


def _plane(attributes: _Attributes) -> _Plane | None:
    """Where a slice lies; None where any of it is missing or can't be."""
    position = numbers_of(attributes.group("PlanePositionSequence"), "ImagePositionPatient", 3)
    axes = numbers_of(attributes.group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    pixel_mm = numbers_of(attributes.group("PixelMeasuresSequence"), "PixelSpacing", 2)
    if position is None or axes is None or pixel_mm is None or min(pixel_mm) <= 0:
        return None
    return _Plane(position, axes.reshape(2, 3), pixel_mm)


def _rescale(transform: Dataset | None) -> tuple[float, float] | None:
    slope, intercept = (
        number_of(transform, "RescaleSlope"),
        number_of(transform, "RescaleIntercept"),
    )
    return None if slope is None or intercept is None or slope == 0.0 else (slope, intercept)


def _stack_tags(attributes: _Attributes, modality: str) -> dict[str, str]:
    """STACK_TAGS of one slice, from where single-frame and enhanced objects have each."""
    ds, group = attributes.ds, attributes.group
    kind = group(f"{modality}ImageFrameTypeSequence") or group("MRImageFrameTypeSequence")
    content = group("FrameContentSequence") or Dataset()
    kernel = group("CTReconstructionSequence") or Dataset()
    echo, diffusion = group("MREchoSequence") or ds, group("MRDiffusionSequence") or ds
    return {
        "ImageType": text_of(kind or ds, "FrameType") or text_of(ds, "ImageType"),
        "EchoTime": text_of(echo, "EffectiveEchoTime") or text_of(ds, "EchoTime"),
        "TemporalPositionIndex": (
            text_of(content, "TemporalPositionIndex") or text_of(ds, "TemporalPositionIdentifier")
        ),
        "DiffusionBValue": text_of(diffusion, "DiffusionBValue"),
        "StackID": text_of(content, "StackID"),
        "ConvolutionKernel": (
            text_of(kernel, "ConvolutionKernel") or text_of(ds, "ConvolutionKernel")
        ),
        "AcquisitionNumber": (
            text_of(content, "FrameAcquisitionNumber") or text_of(ds, "AcquisitionNumber")
        ),
    }


def _settings(ds: Dataset) -> dict[str, Any]:
    """Scanner settings and identifiers of a file."""
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


def _frame_settings(attributes: _Attributes, tags: dict[str, str]) -> dict[str, Any]:
    """The settings that a multi-frame object gives for each frame."""
    group = attributes.group
    return {
        "ConvolutionKernel": tags["ConvolutionKernel"],
        "SliceThickness": number_of(group("PixelMeasuresSequence"), "SliceThickness"),
        "KVP": number_of(group("CTXRayDetailsSequence"), "KVP"),
        "XRayTubeCurrent": number_of(group("CTExposureSequence"), "XRayTubeCurrentInmA"),
    }
