"""Label images: which levels they hold, and the surface of each.

Mask to surface without shrinking: the mask's signed distance (to voxel faces, by half a voxel) is interpolated to
an isotropic grid, blurred by 0.8 voxel, and cut at the level that encloses exactly the mask's volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, map_coordinates

from engine.patient.distance import isosurface, polydata, volume_mm3
from engine.patient.images import Image
from engine.patient.levels import LEVELS
from engine.patient.quality import Piece, gate, pieces
from engine.patient.schemes import Scheme, custom, detect
from engine.types import Finding, Surface, VoxelField, rigid

#: Levels that are read by default: what lumbar alignment is measured on.
LUMBAR = ("T12", "T13", "L1", "L2", "L3", "L4", "L5", "L6")


@dataclass(frozen=True)
class Labels:
    """A label image that has been understood: its scheme, the pieces that are read, and what the gate found.

    pieces   mobile levels cranial to caudal, then "S1" where there is a sacrum; those that the gate leaves out are not in it
    """

    image: Image
    scheme: Scheme
    pieces: dict[str, Piece]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def tissue(self, name: str) -> np.ndarray | None:
        """Mask [i, j, k] of another structure of the scheme ("aorta", "femur_left", …); None where the image has none."""
        numbers = self.scheme.tissues.get(name, ())
        mask = np.isin(self.image.values, numbers) if numbers else None
        return mask if mask is not None and mask.any() else None


def understand(
    image: Image,
    segment: tuple[str, str],
    *,
    scheme: str = "auto",
    label_map: Mapping[str, int] | None = None,
    levels: str = "lumbar",
    accept: tuple[str, ...] = (),
) -> Labels:
    """The vertebrae of a label image and the findings of the quality gate (quality.py); nothing is raised for those.

    levels   "segment" (its two), "lumbar" (also T12-L6 and the sacrum) or "all"

    Raises: ValueError where the scheme is ambiguous, unknown, or does not fit the numbers (schemes.py).
    """
    values = np.ascontiguousarray(image.values, np.int32 if image.values.max(initial=0) > 32000 else np.int16)
    matrix = image.lps_from_index
    heights = {}
    for number, box in enumerate(find_objects(values), start=1):
        if box is not None:
            index = np.argwhere(values[box] == number).mean(axis=0) + [s.start for s in box]
            heights[number] = float(matrix[2, :3] @ index + matrix[2, 3])
    chosen, line = (custom(label_map), "labels read as given by source.label_map") if label_map else detect(heights, scheme)
    there = chosen.levels(set(heights))
    wanted = {"segment": segment, "lumbar": (*LUMBAR, *segment), "all": (*LEVELS, "T13")}[levels]
    numbers: dict[str, tuple[int, ...]] = {level: (chosen.vertebrae[level],) for level in there if level in wanted}
    sacrum = tuple(n for n in chosen.sacrum if n in heights)
    if sacrum and levels != "segment":
        numbers["S1"] = sacrum
    found = pieces(values, matrix, numbers)
    findings = gate(found, chosen, values, segment, image.voxel_mm, accept)
    if not set(segment) <= set(there):  # the gate has named it; say what the whole image holds, not only what is read
        listing = ", ".join(f"{level} ({chosen.vertebrae[level]})" for level in there)
        listing = listing or f"the numbers {', '.join(map(str, sorted(heights)))}, no level among them"
        findings = [f if f.code != "absent" else _absent(f, chosen, listing) for f in findings]
    out = {finding.level for finding in findings if finding.severity == "left out"}
    kept = {level: piece for level, piece in found.items() if level not in out}
    return Labels(Image(values, matrix, "SEG", image.notes, image.source), chosen, kept, tuple(findings), (*image.notes, line))


def _absent(finding: Finding, scheme: Scheme, listing: str) -> Finding:
    number = scheme.vertebrae.get(finding.level)
    text = (
        f"label {number} ({finding.level}) is absent; the image holds {listing}, read as {scheme.title} (another scheme: "
        "source.labels or source.label_map)"
    )
    return Finding(finding.code, finding.severity, finding.level, text)


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
