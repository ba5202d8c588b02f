"""Images with a place in the patient, all ending in LPS: NIfTI, NRRD and MetaImage (volumes.py), DICOM series (dicom.py); labels
also from DICOM-SEG (dicom_seg.py), RTSTRUCT (rtstruct.py) and folders with one mask per structure (masks_folder.py).

Voxel indices go to LPS mm through the whole affine (NIfTI: LPS = diag(−1, −1, 1)·RAS). What leaves here has perpendicular axes:
a shear of up to 0.3° is rounding and goes to the nearest rotation, a larger one (gantry tilt) is resampled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from engine.patient.files import IMAGE_KINDS, content, image_ending, image_files, listed
from engine.patient.label_values import label_numbers

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
    return _upright(_scan(Path(path), path, series, max_voxels), order=1, max_voxels=max_voxels)


def read_labels(path: str | Path, like: Image | None = None, *, max_voxels: int = MAX_VOXELS) -> Image:
    """A label image: as `read_image`, or a DICOM segmentation or RTSTRUCT, or a folder with one mask per structure.

    like   the scan that the labels were drawn on, as `read_image` gives it. An RTSTRUCT needs it; labels that hold no more
           than what is labelled (a DICOM-SEG without its empty frames) get its extent where they lie on its lattice

    `values` int16 (int32 where the labels need it), 0 is background; `source["segments"]` {number: name} where the file names
    its numbers; `source["numbers_mean_nothing"]` where numbers only count (DICOM-SEG, RTSTRUCT, .seg.nrrd, masks);
    `source["interpolated"]` where the values were resampled with interpolation and are rounded.
    A shear between 0.3° and 3° is resampled to the nearest voxel.

    Raises: ValueError as `read_image` does, and for values that aren't whole numbers ≥ 0, for more than 500 different ones, and
    for a shear above 3°.
    """
    from engine.patient.label_extent import whole_extent  # here, as below: they import Image, and pydicom is slow to load

    image = _labels(Path(path), path, like, max_voxels)
    values, interpolated, lines = label_numbers(image.values, _place(image))
    source = {**image.source, "modality": "SEG"} | ({"interpolated": True} if interpolated else {})
    image = replace(image, values=values, notes=(*image.notes, *lines), source=source)
    if _shear_deg(image.lps_from_index) > LARGEST_REPAIR_DEG:
        orthogonal(image.lps_from_index)  # raises
    return whole_extent(replace(_upright(image, order=0, max_voxels=max_voxels), modality="SEG"), like)


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


# -- what a path holds -------------------------------------------------------------------------------------------


def _there(file: Path, given: str | Path) -> bool:
    """Whether it is a folder. Raises for what isn't there or may not be looked at."""
    try:
        if not file.exists():
            raise ValueError(f"{given} is no file or folder; give {_FORMATS}")
        return file.is_dir()
    except PermissionError:
        raise ValueError(f"{given} cannot be read: permission denied") from None


def _scan(file: Path, given: str | Path, series: str | None, max_voxels: int) -> Image:
    from engine.patient import dicom

    if not _there(file, given):
        return _file(file, given, series, max_voxels)
    files = image_files(file)
    if not files or dicom.holds_dicom(file):
        return dicom.read_series(file, series, max_voxels)
    return _only(file, files, series, max_voxels)


def _labels(file: Path, given: str | Path, scan: Image | None, max_voxels: int) -> Image:
    from engine.patient import dicom
    from engine.patient.masks_folder import NAMES_READ, masks_under, read_masks

    if not _there(file, given):
        found = content(file)
        marked = dicom.read_segmentation(file, max_voxels, scan) if found.kind == "DICOM" else None
        return marked or _file(file, given, None, max_voxels)
    files = image_files(file)
    if len(files) != 1 and (masks := masks_under(file)):
        return read_masks(file, masks, max_voxels)
    if dicom.holds_dicom(file):
        marked = dicom.read_segmentation(file, max_voxels, scan)
        if marked is not None or not files:
            return marked or dicom.read_series(file, None, max_voxels)
    if len(files) > 1:
        raise ValueError(
            f"{file}: no file is named after a vertebra; it holds {listed([f.name for f in files])}. In a folder with one mask per "
            f"structure these names are read: {NAMES_READ}; or give one file with all labels"
        )
    return _only(file, files, None, max_voxels)


def _only(folder: Path, files: list[Path], series: str | None, max_voxels: int) -> Image:
    """The one image of a folder without DICOM that is of use."""
    from engine.patient import dicom

    if not files:
        return dicom.read_series(folder, series, max_voxels)  # says what there is
    if len(files) > 1:
        raise ValueError(f"{folder}: holds {len(files)} image files ({listed([f.name for f in files])}) and no DICOM; give one of them")
    image = _file(files[0], files[0], series, max_voxels)
    return replace(image, notes=(f"the only image of the folder is read: {files[0].name}", *image.notes))


def _file(file: Path, given: str | Path, series: str | None, max_voxels: int) -> Image:
    from engine.patient import dicom
    from engine.patient.volumes import read_volume

    found = content(file)
    if found.kind == "DICOM":
        return dicom.read_series(file, series, max_voxels)
    ending = image_ending(file)
    if series is not None:
        raise ValueError(f"source.series={series} is for DICOM, but {given} is a {ending or file.suffix} file; leave it out")
    if not ending and found.kind not in IMAGE_KINDS:
        what = f" (it is {found.foreign})" if found.foreign else ""
        raise ValueError(f"{given} is no image that is read here{what}; give {_FORMATS}")
    return read_volume(file, max_voxels)


# -- what every image must be ------------------------------------------------------------------------------------


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


def around(image: Image, points_mm: np.ndarray, margin_mm: float = 0.0) -> Image:
    """The part of an image that holds points [n, 3] (LPS) and a margin; its voxels are a view."""
    inverse = np.linalg.inv(image.lps_from_index)
    index = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    pad, shape = margin_mm / image.voxel_mm, np.array(image.values.shape)
    low = np.clip(np.floor(index.min(axis=0) - pad), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(index.max(axis=0) + pad) + 1, low + 1, shape).astype(int)
    matrix = image.lps_from_index.copy()
    matrix[:3, 3] += matrix[:3, :3] @ low
    part = image.values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return replace(image, values=part, lps_from_index=matrix)


def on_grid(labels: Image, image: Image) -> np.ndarray:
    """Labels on the grid of an image (nearest voxel), as they are where that is their own."""
    same = labels.values.shape == image.values.shape and np.allclose(labels.lps_from_index, image.lps_from_index, atol=1e-3)
    return labels.values if same else resample_to(labels, image.lps_from_index, image.values.shape, order=0).values
