"""CT series and enhanced CT as DICOM files, made from a function of the place in LPS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from tests.patient.linear_images import (
    ORIGIN,
    SHAPE,
    grid,
    linear,
)

CT, ENHANCED_CT, SECONDARY = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "7"))
#: Row and column direction of an oblique scan.
OBLIQUE = Rotation.from_euler("xyz", [12.0, -8.0, 20.0], degrees=True).as_matrix()[:, :2].T
PIXEL = (0.7, 0.9)  # between rows, between columns


def meta(sop_class: str, sop: str) -> FileMetaDataset:
    out = FileMetaDataset()
    out.MediaStorageSOPClassUID, out.MediaStorageSOPInstanceUID = UID(sop_class), UID(sop)
    out.TransferSyntaxUID = ExplicitVRLittleEndian
    return out


def blank(sop_class: str = CT, modality: str = "CT") -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.file_meta = meta(sop_class, ds.SOPInstanceUID)
    ds.Modality = modality
    ds.PatientName, ds.PatientID = "Doe^Jane", "Q77"
    ds.StudyInstanceUID = ds.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.ReferringPhysicianName = (
        "",
        "20240203",
        "101010",
        "",
        "",
    )
    ds.PatientBirthDate, ds.PatientSex = "19610417", "F"
    return ds


def pixels(ds: Dataset, stored: np.ndarray, signed: bool, bits: int = 16) -> None:
    """Stored values [..., row, column]."""
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
        16,
        bits,
        bits - 1,
        int(signed),
    )
    info = np.iinfo(np.int16 if signed else np.uint16)
    assert stored.min() >= info.min and stored.max() < min(info.max, 2**bits)
    ds.PixelData = stored.astype(info.dtype).tobytes()


def series(
    folder: Path,
    *,
    shape: tuple[int, int, int] = SHAPE,
    axes: np.ndarray = OBLIQUE,
    step: np.ndarray | None = None,
    rescale: Callable[[int], tuple[float, float]] = lambda k: (1.0, -1024.0),
    uid: str | None = "1.2.826.0.1.3680043.8.498.2",
    content: Callable[[np.ndarray], np.ndarray] = linear,
    signed: bool = False,
    bits: int = 16,
    names: Callable[[int], str] = lambda n: f"IM{n:04d}",
    edit: Callable[[Dataset, int], None] = lambda ds, k: None,
) -> np.ndarray:
    """Write a series, file names and InstanceNumbers in another order than the slices; its index
    → LPS matrix."""
    folder.mkdir(parents=True, exist_ok=True)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = axes[0] * PIXEL[1], axes[1] * PIXEL[0]
    matrix[:3, 2] = 2.5 * np.cross(*axes) if step is None else step
    matrix[:3, 3] = ORIGIN
    hu = content(grid(matrix, shape))
    shuffled = np.random.default_rng(1).permutation(shape[2])
    for k in range(shape[2]):
        ds = blank()
        if uid:
            ds.SeriesInstanceUID = uid
        ds.SeriesNumber, ds.InstanceNumber, ds.SeriesDescription = (
            4,
            int(shuffled[k]) + 1,
            "Spine bone",
        )
        ds.Manufacturer, ds.ManufacturerModelName, ds.KVP, ds.ConvolutionKernel = (
            "Acme",
            "Tunnel 3",
            120,
            ["B60s", "2"],
        )
        ds.SliceThickness, ds.XRayTubeCurrent, ds.PatientPosition = 2.5, 200 + k, "HFS"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.ImagePositionPatient = [float(f"{v:.9g}") for v in matrix[:3, 3] + matrix[:3, 2] * k]
        ds.ImageOrientationPatient = [float(f"{v:.12g}") for v in axes.ravel()]
        ds.PixelSpacing = list(PIXEL)
        slope, intercept = rescale(k)
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "HU"
        pixels(ds, np.rint((hu[:, :, k].T - intercept) / slope), signed, bits)
        edit(ds, k)
        ds.save_as(folder / names(int(shuffled[k])), enforce_file_format=True)
    return matrix


def file_of(folder: Path, k: int) -> Path:
    """The file of slice k (as `series` writes them)."""
    return folder / f"IM{int(np.random.default_rng(1).permutation(SHAPE[2])[k]):04d}"


def enhanced(path: Path, matrix: np.ndarray, shape: tuple[int, int, int]) -> None:
    """An enhanced CT: frames shuffled, each with its own rescale."""
    ds = blank(ENHANCED_CT)
    ds.SeriesInstanceUID, ds.ImageType = generate_uid(), ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames = shape[2]
    shared = Dataset()
    measures, plane, details = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(PIXEL), 2.5
    plane.ImageOrientationPatient = [float(f"{v:.12g}") for v in OBLIQUE.ravel()]
    details.KVP = 100
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = (
        Sequence([measures]),
        Sequence([plane]),
    )
    shared.CTXRayDetailsSequence = Sequence([details])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    hu, frames, groups = linear(grid(matrix, shape)), [], []
    for k in np.random.default_rng(2).permutation(shape[2]):
        group, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [
            float(f"{v:.9g}") for v in matrix[:3, 3] + matrix[:3, 2] * k
        ]
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = (
            1,
            -1024 - 10 * int(k),
            "HU",
        )
        group.PlanePositionSequence, group.PixelValueTransformationSequence = (
            Sequence([position]),
            Sequence([transform]),
        )
        groups.append(group)
        frames.append(np.rint(hu[:, :, k].T + 1024 + 10 * k))
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    pixels(ds, np.array(frames), False)
    ds.save_as(path, enforce_file_format=True)


def commas(file: Path, keys: tuple[str, ...]) -> None:
    """Rewrite the decimal strings of a file with commas, as a writer under a comma locale does."""
    ds = pydicom.dcmread(file)
    for key in keys:
        value = ds[key].value
        several = value if isinstance(value, pydicom.multival.MultiValue) else [value]
        text = "\\".join(str(v) for v in several).replace(".", ",").encode()
        ds[ds[key].tag] = RawDataElement(
            ds[key].tag, "DS", 0, text + b" " * (len(text) % 2), 0, False, True
        )
    ds.save_as(file)
