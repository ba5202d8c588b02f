"""NIfTI, NRRD and MetaImage files → voxels and index → LPS mm. Which of them a file is, is told by
its content.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from engine.patient.read.files import Content, content, image_ending, misnamed
from engine.patient.read.image import Image, check_size
from engine.patient.read.seg_nrrd import is_seg_nrrd, seg_nrrd

#: A NIfTI extension's label table, as TotalSegmentator (and Connectome Workbench) write it.
_LABEL = re.compile(
    r'<Label\b[^>]*\bKey="(\d+)"[^>]*>\s*(?:<!\[CDATA\[([^\]]*)\]\]>|([^<]*))\s*</Label>'
)


def read_volume(file: Path, max_voxels: int) -> Image:
    """One NIfTI, NRRD or MetaImage file. `source["segments"]` {number: name} where it names its
    numbers.

    Raises: ValueError for what is none of them or cut short (naming what it really is), for other
    than three axes, and for more than max_voxels.
    """
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty; copy it again")
    contents = content(file)
    if contents.foreign or contents.kind == "DICOM":
        raise ValueError(
            f"{file}: not a readable {_expected(file)}; it is "
            f"{contents.foreign or 'a DICOM file, named otherwise'}"
        )
    if contents.gzipped and contents.kind in ("NRRD", "MetaImage"):
        raise ValueError(
            f"{file}: the whole {contents.kind} is in a gzip; unpack it with `gzip -d`"
        )
    nifti = contents.kind == "NIfTI" or (
        not contents.kind and image_ending(file).startswith(".nii")
    )
    image = _nifti(file, contents, max_voxels) if nifti else _itk(file, contents, max_voxels)
    notes = (*image.notes, *(misnamed(file, contents) if contents.kind else ()))
    return Image(image.values, image.lps_from_index, image.modality, notes, image.source)


def _expected(file: Path) -> str:
    ending = image_ending(file)
    return (
        "NIfTI image" if ending.startswith(".nii") or not ending else f"{ending[1:].upper()} image"
    )


# -- NIfTI -----------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path, contents: Content) -> Iterator[Any]:
    """The image, from its bytes (nibabel would go by the name); a gzip is read to its end, where
    its checksum is.
    """
    if contents.kind != "NIfTI":
        yield nib.load(file, mmap=False)  # says what is wrong with it
        return
    with gzip.open(file) if contents.gzipped else file.open("rb") as stream:
        first = stream.read(8)
        stream.seek(0)
        kind = nib.Nifti2Image if first[4:8] == b"n+2\x00" else nib.Nifti1Image
        yield kind.from_stream(stream)
        try:
            while contents.gzipped and stream.read(1 << 20):
                pass
        except gzip.BadGzipFile as error:
            if "Not a gzipped file" not in str(error):  # something behind the gzip does no harm
                raise


def _nifti(file: Path, contents: Content, max_voxels: int) -> Image:
    broken = (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
    )
    try:
        with _opened(file, contents) as nifti:
            shape = three_axes(tuple(nifti.shape), file, max_voxels)
            kind = np.dtype(nifti.get_data_dtype())
            if kind.kind not in "iuf":
                raise ValueError(
                    f"{file}: holds {kind} (colour or complex) values; one number per voxel is "
                    "needed"
                )
            proxy = nifti.dataobj
            plain = float(proxy.slope) == 1.0 and float(proxy.inter) == 0.0
            values = proxy.get_unscaled() if plain else np.asarray(proxy, np.float32)
    except broken as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file}: not a readable NIfTI image, or cut short ({reason}); give .nii or .nii.gz"
        ) from error
    values = values.reshape(shape, order="A" if values.flags.f_contiguous else "C")
    values = values.astype(
        np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("="), copy=False
    )
    header, notes = nifti.header, []
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(nifti.affine, float)
    if "sform_code" in header:
        notes += _nifti_place(nifti, shape)
        matrix[:3], lines = _in_mm(matrix[:3], header.get_xyzt_units()[0])
        notes += lines
    source = _source(file, "NIfTI")
    if segments := _label_table(header):
        source["segments"] = segments
    return Image(values, matrix, "unknown", tuple(notes), source)


def _label_table(header: Any) -> dict[int, str]:
    """{number: name} of the label table in a NIfTI's extensions; empty where there is none."""
    table: dict[int, str] = {}
    for extension in getattr(header, "extensions", ()):
        try:
            words = extension.get_content()
        except (ValueError, OSError):
            continue  # of a kind that has another form
        text = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
        table |= {
            int(key): (marked or plain).strip() for key, marked, plain in _LABEL.findall(text)
        }
    return {number: name for number, name in table.items() if number > 0 and name}


def _nifti_place(nifti: Any, shape: tuple[int, ...]) -> list[str]:
    """Which of a NIfTI's two orientations is used, where that could be in doubt (nibabel takes the
    sform if it has a code).
    """
    header = nifti.header
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    if not qform and not sform:
        return [
            "no orientation is stored (sform and qform code 0): axes taken as NIfTI's default, "
            "left and right may be swapped"
        ]
    if not (qform and sform):
        return []
    corners = np.stack(np.meshgrid(*[(0.0, n - 1.0) for n in shape], indexing="ij"), -1).reshape(
        -1, 3
    )
    try:
        change = np.asarray(header.get_qform(coded=False)) - np.asarray(
            header.get_sform(coded=False)
        )
    except (nib.spatialimages.HeaderDataError, ValueError):
        return ["the qform is not valid; the sform is used"]
    apart = float(np.linalg.norm(corners @ change[:3, :3].T + change[:3, 3], axis=1).max())
    return (
        [f"qform and sform differ by up to {apart:.2f} mm; the sform is used"]
        if apart > 0.1
        else []
    )


def _in_mm(rows: np.ndarray, unit: str) -> tuple[np.ndarray, list[str]]:
    """NIfTI's length unit applied, where the voxel size is then that of a scan (many files carry a
    wrong unit code).
    """
    factor = {"meter": 1e3, "micron": 1e-3}.get(unit)
    if factor is None:
        return rows, []
    voxel = np.linalg.norm(rows[:, :3], axis=0)
    if ((voxel * factor > 0.01) & (voxel * factor < 20.0)).all():
        return rows * factor, [f"lengths are stored in {unit}; turned into mm"]
    size = " x ".join(f"{v:.4g}" for v in voxel)
    return rows, [
        f"the length unit is given as {unit}, which can't be for voxels of {size}; taken as mm"
    ]


# -- NRRD, MetaImage -------------------------------------------------------------------------------


def _itk(file: Path, contents: Content, max_voxels: int) -> Image:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    if contents.kind:
        reader.SetImageIO({"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}[contents.kind])
    try:
        reader.ReadImageInformation()
        keys = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
        shape = three_axes(reader.GetSize(), file, max_voxels)
        components = reader.GetNumberOfComponents()
        layered = is_seg_nrrd(keys)
        if components != 1 and not layered:
            raise ValueError(f"{file}: has {components} numbers per voxel; one is needed")
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split("ITK ERROR:")[-1].strip()
        form = image_ending(file)[1:].upper() or contents.kind
        raise ValueError(f"{file}: not a readable {form} image, or cut short ({reason})") from error
    dimension = image.GetDimension()
    matrix = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    matrix[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    matrix[:3, 3] = image.GetOrigin()[:3]
    stored = sitk.GetArrayFromImage(image)
    nrrd = (contents.kind or image_ending(file)) in ("NRRD", ".nrrd", ".nhdr")
    source = _source(file, "NRRD" if nrrd else "MetaImage")
    if image_ending(file) in (".nhdr", ".mhd"):  # the voxels are in another file
        source["sha256"] = hashlib.sha256(file.read_bytes() + stored.tobytes()).hexdigest()
    notes = []
    if nrrd and "NRRD_space" not in keys:
        notes.append(
            "no orientation is stored (NRRD without a space): axes taken as "
            "left-posterior-superior, sides may be swapped"
        )
    if layered:
        layers = [stored] if components == 1 else [stored[..., n] for n in range(components)]
        values, segments, lines = seg_nrrd(
            [layer.T.reshape(shape, order="F") for layer in layers], keys, str(file)
        )
        notes += lines
        source |= {"format": "seg.nrrd", "segments": segments, "numbers_mean_nothing": True}
    else:
        values = stored.T.reshape(shape, order="F")
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return Image(values, matrix, "unknown", tuple(notes), source)


def _source(file: Path, form: str) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": str(file), "format": form, "modality": "unknown", "files": 1, "sha256": digest}


def three_axes(shape: tuple[int, ...], file: Path, max_voxels: int) -> tuple[int, ...]:
    """The shape without trailing axes of length 1. Raises for other than three axes, and for too
    many voxels.
    """
    full = tuple(int(n) for n in shape)
    while len(full) > 3 and full[-1] == 1:
        full = full[:-1]
    if len(full) > 3:
        raise ValueError(
            f"{file}: an image has three axes; this has shape {full}, several volumes or "
            f"components ({full[-1]} along the last axis, 0 to "
            f"{full[-1] - 1}); save one of them, for the first: "
            "nibabel.save(nibabel.load(FILE).slicer[..., 0], 'one.nii.gz')"
        )
    if len(full) < 3 or min(full) < 2:
        raise ValueError(
            f"{file}: an image has three axes; this has shape {full}, a single slice; give the "
            "whole volume"
        )
    check_size(full, str(file), max_voxels)
    return full
