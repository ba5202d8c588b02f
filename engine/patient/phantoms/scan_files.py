"""Synthetic scans written as NIfTI and DICOM."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import nibabel
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.ndimage import map_coordinates, spline_filter

from engine.patient.read.image import Image

#: HU of a CT's stored zero.
_CT_INTERCEPT = -1024.0


def write_nifti(image: Image, path: str | Path) -> Path:
    """The image as NIfTI-1 (RAS mm, both qform and sform), int16: HU are rounded as scanners do."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.rint(image.values).astype(np.int16)
    written = nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.lps_from_index)
    written.set_qform(written.affine, code=1)
    written.set_sform(written.affine, code=1)
    written.header.set_xyzt_units("mm")
    nibabel.save(written, path)
    return path


def write_dicom_series(
    image: Image,
    folder: str | Path,
    *,
    modality: Literal["CT", "MR"] = "CT",
    gantry_tilt_deg: float = 0.0,
    shuffle: bool = True,
    name: str = "PHANTOM^SPINEFIT",
) -> list[Path]:
    """The image as a DICOM series of axial slices (CT or MR Image Storage), caudal to cranial;
    returns the files in that order.

    Axes are first permuted and flipped to the nearest of L, P, S. CT: int16, stored = HU + 1024.
    With `gantry_tilt_deg` the image is sampled again (cubic) as a tilted gantry does: every slice
    turned about the row axis by the tilt, the table moved along the untilted slice normal, so that
    the slices' positions are sheared; what lies beyond the image is air. `shuffle` names the files
    in an order that is not the slices'.

    Raises: ValueError for another modality, a tilt over 30°, values beyond int16.
    """
    if modality not in ("CT", "MR"):
        raise ValueError(f"modality={modality!r}; a series is written as CT or MR")
    if abs(gantry_tilt_deg) > 30.0:
        raise ValueError(f"gantry_tilt_deg={gantry_tilt_deg}: gantries tilt by at most 30°")
    slices = _slices(image, gantry_tilt_deg)
    intercept = _CT_INTERCEPT if modality == "CT" else 0.0
    pixels = _stored(slices.values, intercept)
    content = hashlib.sha256(pixels.tobytes()).hexdigest()
    seed = [modality, str(gantry_tilt_deg), str(slices.matrix.tolist()), content]
    uid = {key: generate_uid(entropy_srcs=[key, *seed]) for key in ("study", "series", "frame")}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = pixels.shape[2]
    numbers = np.random.default_rng(0).permutation(count) if shuffle else np.arange(count)
    files = []
    for k in range(count):
        data = _slice_header(modality, name, uid, seed, k, slices.voxel_mm)
        position = slices.origin_mm + k * slices.voxel_mm[2] * slices.normal
        data.ImagePositionPatient = [_decimal(v) for v in position]
        data.ImageOrientationPatient = [_decimal(v) for v in (*slices.row, *slices.column)]
        if modality == "CT":
            data.GantryDetectorTilt = _decimal(gantry_tilt_deg)
            data.RescaleIntercept = str(int(intercept))
            data.RescaleSlope, data.RescaleType = "1", "HU"
        plane = np.ascontiguousarray(pixels[:, :, k].T)
        data.Rows, data.Columns = plane.shape
        data.PixelData = plane.tobytes()
        path = folder / f"{modality}{numbers[k]:05d}.dcm"
        data.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


class _Slices(NamedTuple):
    """Axial slices: values [left, posterior, superior] and their untilted matrix; the first slice's
    place and the directions along a row, along a column and across."""

    values: np.ndarray
    matrix: np.ndarray
    voxel_mm: np.ndarray
    origin_mm: np.ndarray
    row: np.ndarray
    column: np.ndarray
    normal: np.ndarray


def _slices(image: Image, gantry_tilt_deg: float) -> _Slices:
    """The image as axial slices, sampled again where the gantry is tilted."""
    values, matrix = _axial(image)
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    row, column, normal = (matrix[:3, :3] / voxel).T
    origin = matrix[:3, 3]
    if gantry_tilt_deg:
        values, origin, column = _tilted(values, matrix, voxel, np.radians(gantry_tilt_deg))
    return _Slices(values, matrix, voxel, origin, row, column, normal)


def _stored(values: np.ndarray, intercept: float) -> np.ndarray:
    """The values as int16. Raises ValueError where they do not fit."""
    stored = np.rint(values - intercept)
    if stored.min() < -32768 or stored.max() > 32767:
        raise ValueError(
            f"values {values.min():.0f}..{values.max():.0f} do not fit a signed 16-bit image;"
            " rescale them first"
        )
    return np.asarray(stored.astype("<i2"))


def _axial(image: Image) -> tuple[np.ndarray, np.ndarray]:
    """Values and matrix with axes turned to the nearest of left, posterior, superior."""
    directions = image.lps_from_index[:3, :3] / image.voxel_mm
    order = [int(np.argmax(np.abs(directions[axis]))) for axis in range(3)]
    if sorted(order) != [0, 1, 2]:
        raise ValueError(
            "the image is turned by 45° or more about two axes; no axis is the axial one"
        )
    values, matrix = np.transpose(image.values, order), image.lps_from_index.copy()
    matrix[:3, :3] = matrix[:3, order]
    for axis in range(3):
        if matrix[axis, axis] < 0.0:
            values = np.flip(values, axis)
            matrix[:3, 3] += (values.shape[axis] - 1) * matrix[:3, axis]
            matrix[:3, axis] *= -1.0
    return values, matrix


def _tilted(
    values: np.ndarray, matrix: np.ndarray, voxel: np.ndarray, tilt_rad: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values on the sheared grid of a tilted gantry, its origin, and its column direction.

    Slices turn about the row axis through the image's middle, so that the middle of every slice
    stays where it was.
    """
    down, normal = matrix[:3, 1] / voxel[1], matrix[:3, 2] / voxel[2]
    turned = np.cos(tilt_rad) * down + np.sin(tilt_rad) * normal
    half = 0.5 * (values.shape[1] - 1) * voxel[1]
    origin = matrix[:3, 3] + half * (down - turned)
    rows = (np.arange(values.shape[1]) * voxel[1] - half)[None, :]
    j = (half + rows * np.cos(tilt_rad)) / voxel[1] + np.zeros((values.shape[0], 1))
    rise = rows * np.sin(tilt_rad) / voxel[2] + np.zeros((values.shape[0], 1))
    i = np.arange(values.shape[0])[:, None] + np.zeros((1, values.shape[1]))
    fill = -1000.0 if values.min() < -500.0 else float(values.min())
    coefficients = spline_filter(values.astype(np.float32), order=3, output=np.float32)
    result = np.empty(values.shape, np.float32)
    for k in range(values.shape[2]):
        result[:, :, k] = map_coordinates(
            coefficients, [i, j, k + rise], order=3, mode="constant", cval=fill, prefilter=False
        )
    # cubic interpolation overshoots at the skin
    return np.clip(result, min(fill, float(values.min())), values.max()), origin, turned


def _decimal(value: float) -> str:
    """Decimal string of at most 16 characters, as DICOM's DS asks."""
    return f"{value:.10f}"[:16] if abs(value) >= 1e-12 else "0"


def _slice_header(
    modality: str, name: str, uid: Mapping[str, str], seed: list[str], k: int, voxel: np.ndarray
) -> FileDataset:
    """One instance without place and pixels; every type 1 and type 2 attribute of the mandatory
    modules is there."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance", str(k), *seed])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SpecificCharacterSet = "ISO_IR 100"
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = uid["study"], uid["series"]
    data.FrameOfReferenceUID = uid["frame"]
    data.PatientName, data.PatientID = name, "PHANTOM"
    data.PatientBirthDate, data.PatientSex = "", ""
    data.StudyDate, data.StudyTime, data.StudyID = "20000101", "000000", "1"
    data.AccessionNumber, data.ReferringPhysicianName = "", ""
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 1, 1, k + 1
    data.Manufacturer, data.ManufacturerModelName = "spinefit", "synthetic"
    data.Modality, data.SeriesDescription = modality, "synthetic phantom"
    data.PatientPosition = "HFS"
    data.PositionReferenceIndicator, data.Laterality = "", ""
    data.ImageType = (
        ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "OTHER"]
    )
    data.PixelSpacing = [_decimal(voxel[1]), _decimal(voxel[0])]
    data.SliceThickness = _decimal(voxel[2])
    if modality == "CT":
        data.KVP, data.ConvolutionKernel = "120", "SYNTHETIC"
    else:
        data.ScanningSequence, data.SequenceVariant = "SE", "NONE"
        data.ScanOptions, data.MRAcquisitionType = "", "2D"
        data.RepetitionTime, data.EchoTime, data.EchoTrainLength = "500", "10", "1"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    return data
