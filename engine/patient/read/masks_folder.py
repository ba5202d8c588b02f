"""A folder with one mask per structure, named after it (TotalSegmentator's usual output) → one
label image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.patient.read.combined import combined, doubled, precedence
from engine.patient.read.files import first_names, image_ending, image_files
from engine.patient.read.image import Image
from engine.patient.read.names import level_of, tissue_of
from engine.patient.read.volumes import read_volume

NAMES_READ = "vertebrae_L4, L4, sacrum, femur_left, aorta, …"
#: Masks lie on one grid where their corners agree to this share of a voxel.
SAME_GRID_VOXELS = 0.05


def structure(file: Path) -> str:
    """The structure that a mask's file is named after: its name without the ending."""
    return file.name[: -len(image_ending(file))]


def masks_under(folder: Path) -> list[Path]:
    """The image files of the one folder, it or a sub-folder, in which some are named after a level;
    none where there is none.

    Raises: ValueError where several folders hold such files.
    """
    by_folder: dict[Path, list[Path]] = {}
    for file in image_files(folder):
        by_folder.setdefault(file.parent, []).append(file)
    named = {
        place: files
        for place, files in by_folder.items()
        if any(level_of(structure(file)) for file in files)
    }
    if len(named) > 1:
        raise ValueError(
            f"{folder}: masks of vertebrae lie in {len(named)} folders "
            f"({first_names(list(map(str, named)))}); give one of them"
        )
    return next(iter(named.values()), [])


def read_masks(folder: Path, files: list[Path], max_voxels: int) -> Image:
    """Label image of the masks whose names are understood, one file held at a time; numbers 1, 2, …
    and source["segments"].

    Raises: ValueError for masks on different grids, with several numbers or parts of one, of one
    level twice, that overlap by more than 1 % of the smaller (combined.py), and where all of them
    are empty.
    """
    read = [file for file in files if level_of(structure(file)) or tissue_of(structure(file))]
    unread = [structure(file) for file in files if file not in read]
    order = precedence({number: structure(file) for number, file in enumerate(read)})
    at = {number: read[index] for number, index in enumerate(order, start=1)}
    names = {number: structure(file) for number, file in at.items()}
    if twice := doubled(names):
        raise ValueError(f"{folder}: {twice}; keep one of them")
    waiting = [read_volume(at[1], max_voxels)]
    shape, matrix = waiting[0].values.shape, waiting[0].lps_from_index
    form, first_notes = waiting[0].source["format"], waiting[0].notes
    hashes = hashlib.sha256()
    empty: list[str] = []

    def masks() -> Iterator[tuple[int, np.ndarray]]:
        for number, file in at.items():
            image = waiting.pop() if waiting else read_volume(file, max_voxels)
            hashes.update(f"{names[number]} {image.source['sha256']}\n".encode())
            _check_grid(file, image, shape, matrix, at[1])
            mask = _mask(file, image.values)
            del image
            if mask.any():
                yield number, mask
            else:
                empty.append(names[number])

    values, notes = combined(masks(), names, shape, str(folder))
    names = {number: name for number, name in names.items() if name not in empty}
    if not any(level_of(name) for name in names.values()):
        raise ValueError(
            f"{folder}: the masks named after vertebrae are all empty ({first_names(empty)});"
            " segment "
            "it again"
        )
    notes.insert(0, f"{len(names)} masks of one structure each combined, numbered anew")
    if empty:
        notes.append(f"{len(empty)} masks are empty: {first_names(empty)}")
    if unread:
        notes.append(
            f"{len(unread)} files not read, as their names say no vertebra or tissue that is used: "
            f"{first_names(unread)}"
        )
    source = {
        "path": str(folder),
        "format": f"{form}, one mask per structure",
        "modality": "unknown",
        "files": len(at),
        "segments": names,
        "numbers_mean_nothing": True,
        "sha256": hashes.hexdigest(),
    }
    return Image(values, matrix, "unknown", (*first_notes, *notes), source)


def _mask(file: Path, values: np.ndarray) -> np.ndarray:
    """Where the one number of a mask is. Raises for several, and for parts of one."""
    mask = values != 0
    inside = values.ravel(order="K")[mask.ravel(order="K")]
    if inside.size and inside.min() != inside.max():
        some = np.unique(inside[:: max(inside.size // 10000, 1)])
        what = (
            "a map of probabilities"
            if 0 <= inside.min() and inside.max() <= 1
            else "a scan, or several labels"
        )
        raise ValueError(
            f"{file}: a mask of one structure holds 0 and one other number; this holds "
            f"{', '.join(f'{v:g}' for v in some[:6])}"
            f"{', …' if len(some) > 6 else ''} ({what}); give 0/1 masks, or the file with all "
            "labels as it is"
        )
    return mask


def _check_grid(
    file: Path, image: Image, shape: tuple[int, ...], matrix: np.ndarray, reference: Path
) -> None:
    shapes = image.values.shape, shape
    same = shapes[0] == shapes[1]
    if same:
        step = np.linalg.inv(matrix) @ image.lps_from_index - np.eye(4)
        corners = np.stack(
            np.meshgrid(*[(0.0, n - 1.0) for n in shapes[0]], indexing="ij"), -1
        ).reshape(-1, 3)
        apart = float(np.abs(corners @ step[:3, :3].T + step[:3, 3]).max())
        same = apart <= SAME_GRID_VOXELS
    if not same:
        how = (
            f"shape {shapes[0]}, not {shapes[1]}"
            if shapes[0] != shapes[1]
            else f"{apart:.2g} voxels off"
        )
        raise ValueError(
            f"{file}: lies on another grid than {reference.name} ({how}); give masks of one and "
            "the same scan"
        )
