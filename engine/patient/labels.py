"""Patients from a label image (NIfTI, VerSe numbers), in any orientation.

Voxel indices go to LPS through the whole affine: LPS = diag(−1, −1, 1)·(A·ijk + b). Direction cosines that are not
orthonormal are replaced by the nearest rotation (SVD, UVᵀ), which is said; a shear above 3° is refused.

Mask to surface without shrinking: the mask's signed distance (to voxel faces, by half a voxel) is interpolated to
an isotropic grid, blurred by 0.8 voxel, and cut at the level that encloses exactly the mask's volume.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, label, map_coordinates

from engine.patient.assemble import assemble
from engine.patient.bone import BoneProfile
from engine.patient.distance import isosurface, polydata, volume_mm3
from engine.patient.levels import LEVELS, VERSE, parse_segment
from engine.patient.meshes import repair
from engine.types import PatientModel, Surface, VoxelField, rigid

#: A second island larger than this share is an error; smaller ones are removed.
LARGEST_ISLAND = 0.20
#: Bone that touches the image border over more than this is cut off.
LARGEST_CUT_MM2 = 30.0


def from_mask(
    path: str | Path,
    segment: str,
    *,
    edge_mm: float = 1.5,
    spacing_mm: float = 0.75,
    posture: str = "supine",
    profile: BoneProfile | None = None,
    name: str | None = None,
) -> PatientModel:
    """Patient of the two vertebrae of `segment` from a label image.

    Raises: ValueError for an unreadable image, absent or cut-off labels, and labels in several pieces.
    """
    levels = parse_segment(segment)
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"source.path={file} is no file; give a label image (.nii or .nii.gz)")
    try:
        image: Any = nib.load(file)
        values = np.asarray(image.dataobj)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: not a readable NIfTI image, or cut short ({error}); give .nii or .nii.gz") from error
    if values.ndim != 3:
        raise ValueError(f"{file}: a label image has three axes; this has shape {values.shape}")
    matrix, notes = index_to_lps(np.asarray(image.affine, float))
    found = _found(values, file)
    surfaces = {}
    for level in levels:
        if VERSE[level] not in found:
            names = ", ".join(f"{LEVELS[k - 1]} ({k})" if 1 <= k <= len(LEVELS) else str(k) for k in found) or "none"
            raise ValueError(
                f"{file}: label {VERSE[level]} ({level}) is absent; the image holds {names} (VerSe numbers)"
            )
        mask, offset, lines = extract(level, values == VERSE[level], matrix)
        notes += lines
        local = matrix.copy()
        local[:3, 3] = rigid(matrix, offset)
        surfaces[level], lines = repair(level, mask_surface(mask, local), edge_mm)
        notes += lines
    source = {
        "kind": "mask",
        "path": str(file.resolve()),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest()},
        "labels": "verse",
    }
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    return assemble(name or stem, surfaces, spacing_mm, edge_mm, profile or BoneProfile(), posture, notes, source)


def index_to_lps(affine: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Index → LPS mm [4, 4] of a NIfTI (RAS) affine, its directions made orthonormal, and a line if they were not."""
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or voxel.min() < 1e-3:
        raise ValueError(f"the image's affine is degenerate (voxel sizes {voxel}); repair its header")
    direction = matrix[:3, :3] / voxel
    u, _, vt = np.linalg.svd(direction)
    nearest = u @ vt
    off = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if off > np.sin(np.radians(3.0)):
        raise ValueError(
            f"the image's axes are sheared by {np.degrees(np.arcsin(min(off, 1.0))):.1f}° (at most 3°; gantry tilt?); "
            "resample it to perpendicular axes"
        )
    result = matrix.copy()
    result[:3, :3] = nearest * voxel
    if off < 1e-6:
        return result, []
    return result, [f"direction cosines were not orthonormal (by {off:.1e}); replaced by the nearest rotation"]


def extract(level: str, mask: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The label's largest piece, cropped, with the index of the crop's first voxel, and what was done."""
    notes = []
    pieces, count = label(mask)
    if count > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        largest = int(np.argmax(sizes)) + 1
        second = float(np.sort(sizes)[-2]) / sizes.sum()
        if second > LARGEST_ISLAND:
            raise ValueError(
                f"{level}: the label is in {count} pieces, the second with {second:.0%} of its voxels (at most "
                f"{LARGEST_ISLAND:.0%}); two bones may share the label: correct the segmentation"
            )
        mask = pieces == largest
        notes.append(f"{level}: {count - 1} stray islands removed ({sizes.sum() - sizes[largest - 1]} voxels)")
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    for axis in range(3):
        face = float(np.prod(voxel)) / voxel[axis]
        for side, where in ((0, "first"), (-1, "last")):
            cut = float(np.take(mask, side, axis=axis).sum()) * face
            if cut > LARGEST_CUT_MM2:
                raise ValueError(
                    f"{level}: cut off by the image's border ({cut:.0f} mm² at the {where} slice of axis {axis}, at "
                    f"most {LARGEST_CUT_MM2:.0f}); a whole vertebra is needed: choose another segment or a larger image"
                )
            if cut > 0.0:
                notes.append(
                    f"{level}: touches the image's border ({cut:.0f} mm² of axis {axis}); taken as whole there"
                )
    low = np.argwhere(mask).min(axis=0)
    high = np.argwhere(mask).max(axis=0) + 1
    return mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], low.astype(float), notes


def mask_surface(mask: np.ndarray, matrix: np.ndarray, target_mm: float | None = None) -> Surface:
    """Closed surface in LPS of a voxel mask, enclosing the mask's volume (module docstring).

    matrix maps the mask's indices to LPS. Error: volume within 0.1 % before remeshing.
    """
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    fine = target_mm or max(0.5, 0.8 * float(voxel.min()))
    pad = np.ceil(4.0 / voxel).astype(int) + 1
    padded = np.pad(mask, [(int(p), int(p)) for p in pad])
    outside = distance_transform_edt(~padded, sampling=voxel)
    inside = distance_transform_edt(padded, sampling=voxel)
    half = 0.5 * float(voxel.min())
    distance = np.where(padded, half - inside, outside - half)
    shape = np.floor((np.array(padded.shape) - 1) * voxel / fine).astype(int) + 1
    index = np.stack(np.meshgrid(*[np.arange(n) * fine for n in shape], indexing="ij"), axis=0)
    smooth = map_coordinates(distance, index / voxel[:, None, None, None], order=1, mode="nearest")
    smooth = gaussian_filter(smooth, 0.8 * float(voxel.max()) / fine / 2.0 + 0.4)
    count = float(mask.sum()) * float(np.prod(voxel)) / fine**3
    level = float(np.partition(smooth.ravel(), int(count))[int(count)])
    surface = isosurface(VoxelField(smooth - level, np.zeros(3), fine))
    for _ in range(2):  # counting voxels is 0.5 % off the enclosed volume; |∇φ| ≈ 1 gives the correction
        missing = count * fine**3 - volume_mm3(surface)
        level += missing / polydata(surface).area
        surface = isosurface(VoxelField(smooth - level, np.zeros(3), fine))
    to_lps = matrix.copy()
    to_lps[:3, :3] = matrix[:3, :3] / voxel
    start = rigid(matrix, -pad.astype(float))
    to_lps[:3, 3] = start
    faces = surface.faces if np.linalg.det(to_lps[:3, :3]) > 0 else surface.faces[:, ::-1].copy()
    return Surface(rigid(to_lps, surface.points_mm), faces)


def _found(values: np.ndarray, file: Path) -> list[int]:
    numbers = np.unique(values)
    if not np.isfinite(numbers.astype(float)).all() or (np.abs(numbers - np.round(numbers)) > 1e-6).any():
        raise ValueError(f"{file}: values are not whole numbers; this is an image, not a label mask")
    if len(numbers) > 500:
        raise ValueError(f"{file}: {len(numbers)} different values; this is an image, not a label mask")
    return [round(float(k)) for k in numbers if k > 0]
