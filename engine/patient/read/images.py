"""Images with a place in the patient, all ending in LPS: NIfTI, NRRD and MetaImage (volumes.py),
DICOM series (dicom/series.py); labels also from DICOM-SEG (dicom/seg.py), RTSTRUCT
(dicom/rtstruct.py) and folders with one mask per structure (masks_folder.py).

Voxel indices go to LPS mm through the whole affine (NIfTI: LPS = diag(−1, −1, 1)·RAS). What leaves
here has perpendicular axes: a shear of up to 0.3° is rounding and goes to the nearest rotation, a
larger one (gantry tilt) is resampled.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.patient.read.dicom.headers import holds_dicom
from engine.patient.read.dicom.series import read_segmentation, read_series
from engine.patient.read.files import IMAGE_KINDS, content, first_names, image_ending, image_files
from engine.patient.read.image import (
    LARGEST_REPAIR_DEG,
    MAX_VOXELS,
    Image,
    orthogonal,
    place_of,
    shear_deg,
    upright_image,
)
from engine.patient.read.label_extent import whole_extent
from engine.patient.read.label_values import label_numbers
from engine.patient.read.masks_folder import NAMES_READ, masks_under, read_masks
from engine.patient.read.volumes import read_volume

_FORMATS = (
    "a NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or DICOM file, or a"
    " folder with one DICOM series"
)


def read_image(
    path: str | Path, series: str | None = None, *, max_voxels: int = MAX_VOXELS
) -> Image:
    """A scan: NIfTI, NRRD, MetaImage, a DICOM file or a folder with DICOM files (dicom/series.py
    says what is checked there).

    series   which one of a folder with several: its number in the list that the error prints, its
             SeriesInstanceUID, its SeriesNumber, or a part of its description

    `values` are HU where `modality` is "CT". A shear above 0.3° is resampled (linear) onto
    perpendicular axes. `source` holds path, format, modality, sha256 (of the file, or of a DICOM
    series' voxels and geometry) and, from DICOM, the scanner settings that a density calibration
    rests on, under their DICOM keywords, and `slice_spacing_mm`.

    Raises: ValueError for what isn't one three-dimensional image of finite values in a known place,
    for several series and none chosen, and for more than max_voxels (before they are read).
    """
    return upright_image(
        _scan(Path(path), path, series, max_voxels), order=1, max_voxels=max_voxels
    )


def read_labels(
    path: str | Path, like: Image | None = None, *, max_voxels: int = MAX_VOXELS
) -> Image:
    """A label image: as `read_image`, or a DICOM segmentation or RTSTRUCT, or a folder with one
    mask per structure.

    like   the scan that the labels were drawn on, as `read_image` gives it. An RTSTRUCT needs it;
           labels that hold no more than what is labelled (a DICOM-SEG without its empty frames) get
           its extent where they lie on its lattice

    `values` int16 (int32 where the labels need it), 0 is background; `source["segments"]` {number:
    name} where the file names its numbers; `source["numbers_mean_nothing"]` where numbers only
    count (DICOM-SEG, RTSTRUCT, .seg.nrrd, masks); `source["interpolated"]` where the values were
    resampled with interpolation and are rounded. A shear between 0.3° and 3° is resampled to the
    nearest voxel.

    Raises: ValueError as `read_image` does, and for values that aren't whole numbers ≥ 0, for more
    than 500 different ones, and for a shear above 3°.
    """
    image = _labels(Path(path), path, like, max_voxels)
    values, interpolated, lines = label_numbers(image.values, place_of(image))
    source = {**image.source, "modality": "SEG"} | ({"interpolated": True} if interpolated else {})
    image = replace(image, values=values, notes=(*image.notes, *lines), source=source)
    if shear_deg(image.lps_from_index) > LARGEST_REPAIR_DEG:
        orthogonal(image.lps_from_index)  # raises
    return whole_extent(
        replace(upright_image(image, order=0, max_voxels=max_voxels), modality="SEG"), like
    )


# -- what a path holds -----------------------------------------------------------------------------


def _there(file: Path, given: str | Path) -> bool:
    """Whether it is a folder. Raises for what isn't there or may not be looked at."""
    try:
        if not file.exists():
            raise ValueError(f"{given} is no file or folder; give {_FORMATS}")
        return file.is_dir()
    except PermissionError:
        raise ValueError(f"{given} cannot be read: permission denied") from None


def _scan(file: Path, given: str | Path, series: str | None, max_voxels: int) -> Image:
    if not _there(file, given):
        return _file(file, given, series, max_voxels)
    files = image_files(file)
    if not files or holds_dicom(file):
        return read_series(file, series, max_voxels)
    return _only(file, files, series, max_voxels)


def _labels(file: Path, given: str | Path, scan: Image | None, max_voxels: int) -> Image:
    if not _there(file, given):
        contents = content(file)
        marked = read_segmentation(file, max_voxels, scan) if contents.kind == "DICOM" else None
        return marked or _file(file, given, None, max_voxels)
    files = image_files(file)
    if len(files) != 1 and (masks := masks_under(file)):
        return read_masks(file, masks, max_voxels)
    if holds_dicom(file):
        marked = read_segmentation(file, max_voxels, scan)
        if marked is not None or not files:
            return marked or read_series(file, None, max_voxels)
    if len(files) > 1:
        raise ValueError(
            f"{file}: no file is named after a vertebra; it holds"
            f" {first_names([f.name for f in files])}. In a folder with one mask per structure"
            " these"
            f" names are read: {NAMES_READ}; or give one file with all labels"
        )
    return _only(file, files, None, max_voxels)


def _only(folder: Path, files: list[Path], series: str | None, max_voxels: int) -> Image:
    """The one image of a folder without DICOM that is of use."""
    if not files:
        return read_series(folder, series, max_voxels)  # says what there is
    if len(files) > 1:
        raise ValueError(
            f"{folder}: holds {len(files)} image files ({first_names([f.name for f in files])}) and"
            " no"
            " DICOM; give one of them"
        )
    image = _file(files[0], files[0], series, max_voxels)
    return replace(
        image, notes=(f"the only image of the folder is read: {files[0].name}", *image.notes)
    )


def _file(file: Path, given: str | Path, series: str | None, max_voxels: int) -> Image:
    contents = content(file)
    if contents.kind == "DICOM":
        return read_series(file, series, max_voxels)
    ending = image_ending(file)
    if series is not None:
        raise ValueError(
            f"source.series={series} is for DICOM, but {given} is a {ending or file.suffix} file;"
            " leave it out"
        )
    if not ending and contents.kind not in IMAGE_KINDS:
        what = f" (it is {contents.foreign})" if contents.foreign else ""
        raise ValueError(f"{given} is no image that is read here{what}; give {_FORMATS}")
    return read_volume(file, max_voxels)
