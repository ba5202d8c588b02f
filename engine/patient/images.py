"""Images with a place in the patient: NIfTI, NRRD, MetaImage and DICOM series, all ending in LPS.

Voxel indices go to LPS mm through the whole affine (NIfTI: LPS = diag(−1, −1, 1)·RAS). What leaves here has perpendicular axes:
a shear of up to 0.3° is rounding and goes to the nearest rotation, a larger one (gantry tilt) is resampled.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

#: Larger images are refused before their voxels are read (4 GB as int16).
MAX_VOXELS = 2_000_000_000
#: More shear than this is resampled: spread over the axes by the SVD it would move the ends of a 300 mm image by 0.4 mm.
LARGEST_ROUNDING_DEG = 0.3
#: Label images sheared more than this are refused, and so is what `orthogonal` is asked to repair.
LARGEST_REPAIR_DEG = 3.0
#: Gantries tilt by up to 30°; more than this is a damaged header.
LARGEST_TILT_DEG = 45.0
#: HU of air outside the field of view: the least of a 12-bit CT.
PADDING_HU = -1024
#: Label images hold at most this many different numbers (the largest scheme known has about 120).
MOST_LABELS = 500

_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
_FORMATS = "a NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or DICOM file, or a folder with one DICOM series"


@dataclass(frozen=True)
class Image:
    """A scan or a label image.

    values [i, j, k]        HU where modality is "CT" (rescaled); arbitrary units for "MR"; whole numbers for labels
    lps_from_index [4, 4]   index → LPS mm; its columns are perpendicular, their lengths the voxel size
    modality                "CT" | "MR" | "SEG" | "unknown" (NIfTI and NRRD do not say)
    notes                   what was repaired or assumed, one line each
    source                  path, sha256 of what was read, scanner settings; never a personal tag
    """

    values: np.ndarray
    lps_from_index: np.ndarray
    modality: str
    notes: tuple[str, ...]
    source: dict[str, Any]

    @property
    def voxel_mm(self) -> np.ndarray:
        """Voxel size along i, j, k."""
        return np.asarray(np.linalg.norm(self.lps_from_index[:3, :3], axis=0))


def read_image(path: str | Path, series: str | None = None, *, max_voxels: int = MAX_VOXELS) -> Image:
    """A scan: NIfTI, NRRD, MetaImage, a DICOM file or a folder with DICOM files (dicom.py says what is checked there).

    series   which one of a folder with several: its number in the list that the error prints, its SeriesInstanceUID, its
             SeriesNumber, or a part of its description

    `values` are HU where `modality` is "CT". A shear above 0.3° is resampled (linear) onto perpendicular axes.
    `source` holds path, format, modality, sha256 (of the file, or of a DICOM series' voxels and geometry) and, from DICOM,
    the scanner settings that a density calibration rests on, under their DICOM keywords, and `slice_spacing_mm`.

    Raises: ValueError for what isn't one three-dimensional image of finite values in a known place, for several series and none
    chosen, and for more than max_voxels (before they are read).
    """
    return _upright(_read(Path(path), path, series, max_voxels), order=1, max_voxels=max_voxels)


def read_labels(path: str | Path, *, max_voxels: int = MAX_VOXELS) -> Image:
    """A label image: as `read_image`, or a DICOM segmentation, whose segment numbers become the labels.

    `values` int16 (int32 where the labels need it), 0 is background; `source["segments"]` {number: segment label} of a DICOM-SEG.
    A shear between 0.3° and 3° is resampled to the nearest voxel.

    Raises: ValueError as `read_image` does, and for values that aren't whole numbers ≥ 0, for more than 500 different ones, and
    for a shear above 3°.
    """
    file = Path(path)
    from engine.patient import dicom  # here: it imports Image, and pydicom is slow to load

    if file.is_dir() or (file.is_file() and not _named(file) and dicom.is_dicom(file)):
        image = dicom.read_segmentation(file, max_voxels) or dicom.read_series(file, None, max_voxels)
    else:
        image = _read(file, path, None, max_voxels)
    image = replace(image, values=_whole(image.values, _place(image)))
    if _shear_deg(image.lps_from_index) > LARGEST_REPAIR_DEG:
        orthogonal(image.lps_from_index)  # raises
    upright = _upright(image, order=0, max_voxels=max_voxels)
    return replace(upright, modality="SEG", source={**upright.source, "modality": "SEG"})


def orthogonal(lps_from_index: np.ndarray, shape: tuple[int, ...] | None = None) -> tuple[np.ndarray, list[str]]:
    """Index → LPS mm [4, 4] with its directions D replaced by the nearest rotation or reflection, U·Vᵀ of D = U·S·Vᵀ.

    Voxel sizes are kept, and so is the place of the image's centre where `shape` is given (else of its first voxel).
    The line that comes with it is empty for an error below 1e-4 (0.04 mm over 400 mm).

    Raises: ValueError for a degenerate matrix and for axes sheared by more than 3°.
    """
    matrix = np.array(lps_from_index, float)
    _check_affine(matrix)
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    direction = matrix[:3, :3] / voxel
    off = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if off > np.sin(np.radians(LARGEST_REPAIR_DEG)):
        raise ValueError(
            f"the image's axes are sheared by {np.degrees(np.arcsin(min(off, 1.0))):.1f}° (at most 3°; gantry tilt?); "
            "resample it to perpendicular axes"
        )
    u, _, vt = np.linalg.svd(direction)
    result = matrix.copy()
    result[:3, :3] = (u @ vt) * voxel
    centre = np.zeros(3) if shape is None else (np.array(shape[:3], float) - 1.0) / 2.0
    result[:3, 3] += (matrix[:3, :3] - result[:3, :3]) @ centre
    if off < 1e-4:
        return result, []
    return result, [f"direction cosines were not orthonormal (by {off:.1e}); replaced by the nearest rotation"]


def resample_to(image: Image, lps_from_index: np.ndarray, shape: tuple[int, ...], order: int = 1, fill: float = 0.0) -> Image:
    """The image on another grid: v'(i') = v(A⁻¹·A'·i'), splines of `order` (0 nearest, 1 linear, 3 cubic).

    A voxel reaches half its size beyond its centre; what lies outside every voxel is `fill`. Keeps the type of the values
    (whole numbers are rounded), modality, notes and source.
    """
    source = np.asarray(image.values)
    if order > 1:
        source = spline_filter(source, order, output=np.float32, mode="nearest")
    step = np.linalg.inv(image.lps_from_index) @ lps_from_index
    limit = np.array(source.shape, float)[:, None, None] - 0.5 + 1e-6
    kind = image.values.dtype
    result = np.empty(shape, kind, order="F")  # slice by slice: the coordinates of a whole CT would take 2 GB
    i, j = np.meshgrid(np.arange(shape[0], dtype=float), np.arange(shape[1], dtype=float), indexing="ij")
    plane = step[:3, 0, None, None] * i + step[:3, 1, None, None] * j + step[:3, 3, None, None]
    for k in range(shape[2]):
        index = plane + step[:3, 2, None, None] * k
        inside = ((index > -0.5 - 1e-6) & (index < limit)).all(axis=0)
        found = np.full(shape[:2], float(fill))
        if inside.any():
            found[inside] = map_coordinates(source, index[:, inside], float, order=order, mode="nearest", prefilter=False)
        if kind.kind in "iu":
            info = np.iinfo(kind)
            found = np.clip(np.rint(found), info.min, info.max)
        result[:, :, k] = found
    return Image(result, np.array(lps_from_index, float), image.modality, image.notes, image.source)


# -- one reader per format ---------------------------------------------------------------------------------------


def _named(file: Path) -> str:
    """The image ending of a file name; "" where it has none that is known."""
    name = file.name.lower()
    return next((ending for ending in (".nii.gz", ".nii", *_ITK) if name.endswith(ending)), "")


def _read(file: Path, given: str | Path, series: str | None, max_voxels: int) -> Image:
    if not file.exists():
        raise ValueError(f"{given} is no file or folder; give {_FORMATS}")
    ending = "" if file.is_dir() else _named(file)
    if ending:
        if series is not None:
            raise ValueError(f"source.series={series} is for DICOM, but {given} is a {ending} file; leave it out")
        if file.stat().st_size == 0:
            raise ValueError(f"{given} is empty; copy it again")
        return _nifti(file, max_voxels) if ending.startswith(".nii") else _itk(file, max_voxels)
    from engine.patient import dicom

    if file.is_file() and not dicom.is_dicom(file):
        raise ValueError(f"{given} is no image that is read here; give {_FORMATS}")
    return dicom.read_series(file, series, max_voxels)


def _nifti(file: Path, max_voxels: int) -> Image:
    try:
        nifti: Any = nib.load(file, mmap=False)
        shape = _three_axes(tuple(nifti.shape), file, max_voxels)
        if np.dtype(nifti.get_data_dtype()).kind not in "iuf":
            raise ValueError(f"{file}: holds {nifti.get_data_dtype()} (colour or complex) values; one number per voxel is needed")
        proxy = nifti.dataobj
        plain = float(proxy.slope) == 1.0 and float(proxy.inter) == 0.0
        values = proxy.get_unscaled() if plain else np.asarray(proxy, np.float32)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: not a readable NIfTI image, or cut short ({error}); give .nii or .nii.gz") from error
    values = values.reshape(shape, order="A" if values.flags.f_contiguous else "C")
    values = values.astype(np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("="), copy=False)
    header, notes = nifti.header, []
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(nifti.affine, float)
    if "sform_code" in header:
        notes += _nifti_place(nifti, shape, file)
        matrix[:3], lines = _in_mm(matrix[:3], header.get_xyzt_units()[0])
        notes += lines
    return Image(values, matrix, "unknown", tuple(notes), _source(file, "NIfTI"))


def _nifti_place(nifti: Any, shape: tuple[int, ...], file: Path) -> list[str]:
    """Which of a NIfTI's two orientations is used, where that could be in doubt (nibabel takes the sform if it has a code)."""
    header = nifti.header
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    if not qform and not sform:
        return ["no orientation is stored (sform and qform code 0): axes taken as NIfTI's default, left and right may be swapped"]
    if not (qform and sform):
        return []
    corners = np.stack(np.meshgrid(*[(0.0, n - 1.0) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    try:
        change = np.asarray(header.get_qform(coded=False)) - np.asarray(header.get_sform(coded=False))
    except (nib.spatialimages.HeaderDataError, ValueError):
        return ["the qform is not valid; the sform is used"]
    apart = float(np.linalg.norm(corners @ change[:3, :3].T + change[:3, 3], axis=1).max())
    return [f"qform and sform differ by up to {apart:.2f} mm; the sform is used"] if apart > 0.1 else []


def _in_mm(rows: np.ndarray, unit: str) -> tuple[np.ndarray, list[str]]:
    """NIfTI's length unit applied, where the voxel size is then that of a scan (many files carry a wrong unit code)."""
    factor = {"meter": 1e3, "micron": 1e-3}.get(unit)
    if factor is None:
        return rows, []
    voxel = np.linalg.norm(rows[:, :3], axis=0)
    if ((voxel * factor > 0.01) & (voxel * factor < 20.0)).all():
        return rows * factor, [f"lengths are stored in {unit}; turned into mm"]
    return rows, [f"the length unit is given as {unit}, which can't be for voxels of {_figures(voxel)}; taken as mm"]


def _itk(file: Path, max_voxels: int) -> Image:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        shape = _three_axes(reader.GetSize(), file, max_voxels)
        if reader.GetNumberOfComponents() != 1:
            raise ValueError(f"{file}: has {reader.GetNumberOfComponents()} numbers per voxel; one is needed")
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split("ITK ERROR:")[-1].strip()
        raise ValueError(f"{file}: not a readable {file.suffix[1:].upper()} image, or cut short ({reason})") from error
    dimension = image.GetDimension()
    matrix = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    matrix[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    matrix[:3, 3] = image.GetOrigin()[:3]
    values = sitk.GetArrayFromImage(image).T.reshape(shape, order="F")
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    notes = []
    nrrd = file.suffix.lower() in (".nrrd", ".nhdr")
    if nrrd and "NRRD_space" not in image.GetMetaDataKeys():
        notes.append("no orientation is stored (NRRD without a space): axes taken as left-posterior-superior, sides may be swapped")
    source = _source(file, "NRRD" if nrrd else "MetaImage")
    if file.suffix.lower() in (".nhdr", ".mhd"):  # the voxels are in another file
        source["sha256"] = hashlib.sha256(file.read_bytes() + values.tobytes(order="F")).hexdigest()
    return Image(values, matrix, "unknown", tuple(notes), source)


def _source(file: Path, form: str) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": str(file), "format": form, "modality": "unknown", "files": 1, "sha256": digest}


# -- what every image must be ------------------------------------------------------------------------------------


def _three_axes(shape: tuple[int, ...], file: Path, max_voxels: int) -> tuple[int, ...]:
    """The shape without trailing axes of length 1. Raises for other than three axes, and for too many voxels."""
    full = tuple(int(n) for n in shape)
    while len(full) > 3 and full[-1] == 1:
        full = full[:-1]
    if len(full) > 3:
        raise ValueError(f"{file}: an image has three axes; this has shape {full}, several volumes or components; save one of them")
    if len(full) < 3 or min(full) < 2:
        raise ValueError(f"{file}: an image has three axes; this has shape {full}, a single slice; give the whole volume")
    check_size(full, str(file), max_voxels)
    return full


def check_size(shape: tuple[int, ...], place: str, max_voxels: int) -> None:
    """Raises ValueError where `shape` holds more than max_voxels voxels."""
    count = int(np.prod([int(n) for n in shape], dtype=object))
    if count > max_voxels:
        size = " x ".join(str(n) for n in shape)
        raise ValueError(f"{place}: {size} = {count:.3g} voxels, at most {max_voxels:.3g} are read; crop it around the spine")


def _check_affine(matrix: np.ndarray) -> None:
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or voxel.min() < 1e-3 or voxel.max() > 100.0:
        raise ValueError(f"the image's affine is degenerate (voxel sizes {_figures(voxel)} mm); repair its header")
    volume = abs(float(np.linalg.det(matrix[:3, :3] / voxel)))
    if volume < 0.1:
        raise ValueError(f"the image's affine is degenerate (its axes span {volume:.2g} of a box); repair its header")


def _figures(voxel: np.ndarray) -> str:
    return " x ".join(f"{v:.4g}" for v in voxel)


def _place(image: Image) -> str:
    return str(image.source["path"])


def _shear_deg(matrix: np.ndarray) -> float:
    """Largest departure of two axes from the right angle."""
    direction = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    cosines = np.abs((direction.T @ direction)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0.0, 1.0))))


def _upright(image: Image, order: int, max_voxels: int) -> Image:
    """The image on perpendicular axes; raises for what has no place or values that aren't numbers."""
    place = _place(image)
    values = image.values
    try:
        _check_affine(image.lps_from_index)
        if values.dtype.kind == "f":
            bad = int(values.size - np.count_nonzero(np.isfinite(values)))
            if bad:
                raise ValueError(f"holds {bad} values that are no numbers (NaN or infinite); fill them and save it again")
        shear = _shear_deg(image.lps_from_index)
        if shear <= LARGEST_ROUNDING_DEG:
            matrix, lines = orthogonal(image.lps_from_index, values.shape)
            return replace(image, lps_from_index=matrix, notes=(*image.notes, *lines))
        if shear > LARGEST_TILT_DEG:
            raise ValueError(f"the image's axes are sheared by {shear:.1f}° (at most {LARGEST_TILT_DEG:.0f}°); repair its header")
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    matrix, shape = _perpendicular(image.lps_from_index, values.shape)
    check_size(shape, place, max_voxels)
    fill = 0.0 if order == 0 else float(PADDING_HU) if image.modality == "CT" else float(values.min())
    how = "nearest voxel" if order == 0 else "linear"
    line = (
        f"the slices are sheared by {shear:.2f}° (gantry tilt): resampled ({how}) onto perpendicular axes with the same voxel size, "
        f"padded with {fill:g}"
    )
    upright = resample_to(image, matrix, shape, order, fill)
    return replace(upright, notes=(*image.notes, line))


def _perpendicular(matrix: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Perpendicular grid that covers a sheared one: the two axes nearest to the right angle stay, the third becomes their normal.

    The step along the normal is the old slices' distance, so that the new slices lie in the old ones' planes: a gantry tilt is
    then undone by shifts within the slices, without blur across them.
    """
    axes = matrix[:3, :3]
    unit = axes / np.linalg.norm(axes, axis=0)
    pairs = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    a, b, c = min(pairs, key=lambda p: abs(float(unit[:, p[0]] @ unit[:, p[1]])))
    new = np.zeros((3, 3))
    new[:, a] = axes[:, a]
    new[:, b] = axes[:, b] - unit[:, a] * (unit[:, a] @ axes[:, b])
    normal = np.cross(new[:, a], new[:, b])
    normal /= np.linalg.norm(normal)
    new[:, c] = normal * (normal @ axes[:, c])
    corners = np.stack(np.meshgrid(*[(0.0, n - 1.0) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    index = corners @ (np.linalg.inv(new) @ axes).T
    low = np.floor(index.min(axis=0) + 1e-6)
    high = np.ceil(index.max(axis=0) - 1e-6)
    result = matrix.copy()
    result[:3, :3] = new
    result[:3, 3] += new @ low
    return result, tuple(int(n) for n in high - low + 1)


def _whole(values: np.ndarray, place: str) -> np.ndarray:
    """Label numbers as int16, or int32 where they need it."""
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values)
            whole = np.isfinite(values).all() and bool((np.abs(values - rounded) <= 1e-4).all())
        if not whole:
            raise ValueError(f"{place}: values are not whole numbers; this is an image, not a label mask")
        values = rounded
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(f"{place}: values go from {low:g} to {high:g}; this is an image, not a label mask (labels are ≥ 0)")
    labels = values.astype(np.int16 if high <= np.iinfo(np.int16).max else np.int32)
    count = len(np.unique(labels))
    if count > MOST_LABELS:
        raise ValueError(f"{place}: {count} different values; this is an image, not a label mask")
    return labels
