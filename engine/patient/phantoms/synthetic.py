"""CT scans of a patient model whose every voxel, landmark and calibration rod is known.

Bone's HU comes from its apparent density field by the inverse of the usual chain

    ρ_ash = 0.6 ρ_app,   ρ_QCT = (ρ_ash − 0.079) / 0.877   [M],   HU = (ρ_QCT − intercept) / slope

so that low apparent densities (under 0.13 g/cm³) lie below water, as marrow fat makes them.

Image formation: HU = box(voxel) ∗ Gaussian(psf_fwhm_mm) ∗ object + white noise, not below −1024

    bone              painted on a subdivided voxel grid (≤ 0.4 mm), convolved there with the
                      Gaussian, averaged over each voxel: nothing is aliased at any voxel size
    everything else   HU_b + (HU_t − HU_b)·Φ(−d/σ), d the distance to the tissue's boundary and
                      σ² = mean(voxel²)/12 + σ_psf²: the same blur in closed form

Labels: voxels that are bone by half or more of their volume (before blur), VerSe numbers, sacrum
26. The scene: scene.py; how it is painted: painting.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.patient.geometry.distance import surface_sdf
from engine.patient.geometry.frames import rotation
from engine.patient.geometry.levels import VERSE
from engine.patient.phantoms.painting import Bone, box_corners, inside_box, paint, rendered
from engine.patient.phantoms.scan_spec import LETTERS, ScanSpec
from engine.patient.phantoms.scene import LABELS, SACRUM_LABEL, Tissue, scene
from engine.patient.read.image import Image
from engine.types import PatientModel, VoxelField

__all__ = ["ScanSpec", "synthetic_ct"]

#: Spacing of the sacrum's distance.
_SACRUM_SPACING_MM = 1.0
#: Air beside torso and slab.
_ROOM_MM = 5.0
#: The least HU that scanners store.
_LEAST_HU = -1024.0
#: Full width at half maximum of a Gaussian over its standard deviation.
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def synthetic_ct(
    patient: PatientModel, spec: ScanSpec | None = None
) -> tuple[Image, Image, dict[str, Any]]:
    """CT (HU, float32), label image (uint8) and truth of a patient (module docstring).

    truth   JSON-able: "spec"; "density_line" (slope, intercept); "vertebrae" by name (label,
            volume, endplates, mean density and HU in a cylinder 14 mm wide and high about its
            centre); "alignment" by pair; "rods" (density, HU, axis, radius), "aorta", "tissues_hu";
            "shape", "lps_from_index", "labelled_mm3"
    Memory: about 10 bytes a voxel.
    Raises: ValueError for a patient without vertebrae or with a level that VerSe has no number for.
    """
    spec = spec or ScanSpec()
    bones = _bones(patient, spec)
    low, high = _bone_box(bones)
    tissues, truth = scene(patient, spec, low, high)
    matrix, shape = _grid(spec, *_extent(spec, tissues, low, high))
    voxel = np.linalg.norm(matrix[:3, :3], axis=0)
    psf = spec.psf_fwhm_mm / _FWHM
    values = np.full(shape, tissues[0].hu, np.float32)
    sigma = float(np.sqrt((voxel**2).mean() / 12.0 + psf**2))
    for tissue in tissues[1:]:
        paint(values, matrix, tissue, sigma)
    labels, share = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    # all bones against the bare background
    added = [rendered(bone, spec, values, matrix, voxel, psf) for bone in bones]
    for bone, (box, change, cover) in zip(bones, added, strict=True):
        values[box] += change
        more = (cover >= 0.5) & (cover > share[box])
        labels[box][more], share[box][more] = bone.label, cover[more]
    if spec.noise_hu:
        rng = np.random.default_rng(spec.seed)
        for plane in values:  # plane by plane: float64 noise of the whole would double the memory
            plane += rng.normal(0.0, spec.noise_hu, plane.shape).astype(np.float32)
            np.maximum(plane, _LEAST_HU, out=plane)
    source = {"kind": "synthetic", "patient": patient.name}
    truth |= {
        "spec": spec.model_dump(mode="json"),
        "shape": list(shape),
        "lps_from_index": matrix.tolist(),
    }
    truth["labelled_mm3"] = {
        bone.name: float((labels == bone.label).sum() * np.prod(voxel)) for bone in bones
    }
    return Image(values, matrix, "CT", (), source), Image(labels, matrix, "SEG", (), source), truth


def _bones(patient: PatientModel, spec: ScanSpec) -> list[Bone]:
    """Vertebrae and sacrum; the sacrum's density is the spec's core under its shell."""
    if not patient.vertebrae:
        raise ValueError("the patient has no vertebrae; nothing to scan")
    unknown = [v.name for v in patient.vertebrae if v.name not in LABELS]
    if unknown:
        raise ValueError(
            f"VerSe has no number for {', '.join(unknown)}; levels are {', '.join(VERSE)}, T13"
        )
    bones = [Bone(v.name, LABELS[v.name], v.sdf, v.density) for v in patient.vertebrae]
    if patient.sacrum is not None:
        sdf = surface_sdf(patient.sacrum.surface, _SACRUM_SPACING_MM)
        core, shell = spec.sacrum_g_cm3
        depth = -np.asarray(sdf.values, float)
        apparent = (core + (shell - core) * np.clip(2.0 - depth, 0.0, 1.0)).astype(np.float32)
        bones.append(
            Bone("S1", SACRUM_LABEL, sdf, VoxelField(apparent, sdf.origin_mm, sdf.spacing_mm))
        )
    return bones


def _bone_box(bones: Sequence[Bone]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for bone in bones:
        a, b = inside_box(bone.sdf)
        low, high = np.minimum(low, a), np.maximum(high, b)
    return low, high


def _extent(
    spec: ScanSpec, tissues: Sequence[Tissue], low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """LPS box that is scanned: the levels with their margin, in plane also the torso and the
    slab."""
    a, b = low - spec.margin_mm, high + spec.margin_mm
    if spec.extent == "torso":
        for tissue in tissues[1:]:
            a[:2], b[:2] = (
                np.minimum(a[:2], tissue.low[:2] - _ROOM_MM),
                np.maximum(b[:2], tissue.high[:2] + _ROOM_MM),
            )
    return a, b


def _grid(
    spec: ScanSpec, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """LPS from index and shape of the grid of that orientation that holds the box."""
    turn = rotation(2, np.radians(spec.rotation_deg[2])) @ rotation(
        1, np.radians(spec.rotation_deg[1])
    )
    turn = turn @ rotation(0, np.radians(spec.rotation_deg[0]))
    columns, steps = [], []
    for letter in spec.orientation:
        axis, sign = LETTERS[letter]
        columns.append(sign * turn[:, axis])
        steps.append(spec.voxel_mm[axis])
    directions, voxel = np.stack(columns, axis=1), np.array(steps)
    along = box_corners(low, high) @ directions
    first, last = along.min(axis=0), along.max(axis=0)
    shape = np.ceil((last - first) / voxel).astype(int) + 1
    matrix = np.eye(4)
    matrix[:3, :3] = directions * voxel
    matrix[:3, 3] = directions @ first
    return matrix, (int(shape[0]), int(shape[1]), int(shape[2]))
