"""Do the labels lie on the scan? How much HU rises across their edges, and where else it would rise
more.

    rise(t) = mean over the labels' surface of  HU(p − a·n + t) − HU(p + a·n + t)          [HU]

p points and n outward normals of the vertebrae's labels, a the larger of 1.5 mm and a voxel, t a
shift of the labels in LPS. HU count from −200 to 1000, so that neither metal nor air decides.
Shifts of ±16 mm, along the spine of ±46 mm (a level more), first on a grid of 4 mm, then of 1 mm
about the best.

Aligned labels rise by 266 HU (phantom), 150 (ct_totalsegmentator, 3 mm) and 143
(ct_mri_subregions), and no shift of more than a voxel is better. A centimetre off they rise by −14
to 60, a whole level off by 45 to 65.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter

from engine.patient.labels.pieces import LARGEST_CUT_MM2, Piece
from engine.patient.labels.understand import Labels
from engine.patient.read.image import Image, around
from engine.types import Finding, rigid

#: Least rise of labels that lie on bone, HU: soft tissues differ by less.
LEAST_RISE_HU = 50.0
#: Shifts (mm, or in voxels where that is more) of which is warned, and which stop; with the share
#: of the best rise that is left.
WARNED, STOPPED = (1.5, 1.0, 0.93), (3.0, 1.5, 0.80)
#: One level alone: its least share of the best rise in good patients is 0.85; a turn of 5° leaves
#: 0.2-0.4.
LEVEL_MM, LEVEL_WARNED, LEVEL_STOPPED = 2.0, 0.75, 0.60
#: How far shifts reach, and along the spine; steps of the coarse grid; reach of the fine one.
_NEAR_MM, _ALONG_MM, _COARSE_MM, _FINE_MM = 16.0, 48.0, 4.0, 3.0
#: Of each bone at most some so many points of its surface.
_POINTS = 1200
#: HU beyond these count as these.
_HU = (-200.0, 1000.0)
#: Share of the points that must lie in the scan, for a shift to count, and for the labels as they
#: lie.
_LEAST_INSIDE, _LEAST_INSIDE_AS_IS = 0.6, 0.05
#: Points inside and outside are this far from the edge, or a voxel where that is more.
_LEAST_REACH_MM = 1.5
#: A level alone is moved by at most this.
_LEVEL_REACH_MM = 8.0


@dataclass(frozen=True)
class Placement:
    """Rise across the labels' edges as they lie, the best rise, and the shift of the labels [3]
    (LPS mm) that gives it."""

    rise_hu: float
    best_hu: float
    shift_mm: np.ndarray


@dataclass(frozen=True)
class _Rise:
    """The rise of HU across edges, from points just inside them to points just outside.

    hu                [i, j, k] of the scan around them     to_index   LPS → its indices
    inside, outside   [n, 3] indices of the points where the labels lie
    """

    hu: np.ndarray
    to_index: np.ndarray
    inside: np.ndarray
    outside: np.ndarray

    def at(self, shift_mm: np.ndarray, every: int = 1, least: float = _LEAST_INSIDE) -> float:
        """Mean rise with the labels moved by a shift [3] (LPS), of every n-th point; −∞ where less
        than a share `least` of the points then lies in the scan."""
        step = self.to_index[:3, :3] @ shift_mm
        change = self._sample(self.inside[::every] + step)
        change = change - self._sample(self.outside[::every] + step)
        known = np.isfinite(change)
        return float(change[known].mean()) if known.mean() > least else -np.inf

    def _sample(self, index: np.ndarray) -> np.ndarray:
        """HU of the nearest voxels; NaN outside the scan."""
        at = np.rint(index).astype(int)
        there = ((at >= 0) & (at < self.hu.shape)).all(axis=1)
        hu = np.full(len(at), np.nan, np.float32)
        hu[there] = self.hu[tuple(at[there].T)]
        return hu


def placement(
    scan: Image, pieces: list[Piece], near_mm: float = _NEAR_MM, along_mm: float = _ALONG_MM
) -> Placement | None:
    """How the labels lie on a CT (module docstring), shifts up to near_mm, cranially along_mm;
    None without a vertebra in it."""
    mobile = [piece for piece in pieces if piece.level != "S1"]
    # of cut ones all but the cut counts, which has no outside in the scan
    whole = ([piece for piece in mobile if piece.cut_mm2 <= LARGEST_CUT_MM2] or mobile)[-5:]
    if not whole:
        return None
    rise = _rise(scan, whole, np.array([near_mm, near_mm, along_mm]) + 4.0)
    as_is = rise.at(np.zeros(3), least=_LEAST_INSIDE_AS_IS)
    if not np.isfinite(as_is):
        return None
    near, along = (np.arange(-limit, limit + 1e-6, _COARSE_MM) for limit in (near_mm, along_mm))
    coarse = np.stack(np.meshgrid(near, near, along, indexing="ij"), -1).reshape(-1, 3)
    best = coarse[int(np.argmax([rise.at(shift, 4) for shift in coarse]))]
    steps = np.arange(-_FINE_MM, _FINE_MM + 0.1, 1.0)
    fine = best + np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    rises = np.array([rise.at(shift) for shift in fine])
    # of equal ones the nearest
    best = min(
        (fine[k] for k in np.flatnonzero(rises >= rises.max() - 1e-6)),
        key=lambda shift: float(np.linalg.norm(shift)),
    )
    if rises.max() <= as_is:
        return Placement(as_is, as_is, np.zeros(3))
    return Placement(as_is, float(rises.max()), np.asarray(best))


def _rise(scan: Image, pieces: list[Piece], margin_mm: np.ndarray) -> _Rise:
    """The rise across the edges of bones, for shifts up to a margin [3]."""
    reach = max(_LEAST_REACH_MM, float(scan.voxel_mm.max()))
    inside, outside = [], []
    for piece in pieces:
        points, normals = _edges(piece)
        inside.append(points - reach * normals)
        outside.append(points + reach * normals)
    pair = np.concatenate(inside), np.concatenate(outside)
    points = np.concatenate(pair)
    box = np.stack([points.min(axis=0) - margin_mm, points.max(axis=0) + margin_mm])
    scan = around(scan, np.stack(np.meshgrid(*box.T, indexing="ij"), -1).reshape(-1, 3))
    to_index = np.linalg.inv(scan.lps_from_index)
    hu = np.clip(scan.values.astype(np.float32), *_HU)
    return _Rise(hu, to_index, rigid(to_index, pair[0]), rigid(to_index, pair[1]))


def _edges(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] (LPS) between label and background, and outward normals."""
    mask = np.pad(piece.mask, 2)
    voxel = np.linalg.norm(piece.lps_from_index[:3, :3], axis=0)
    soft = gaussian_filter(mask.astype(np.float32), max(1.2, 0.7 * float(voxel.max())) / voxel)
    slope = np.stack(np.gradient(soft), axis=-1)
    edge = np.argwhere(mask & ~binary_erosion(mask))
    edge = edge[:: max(len(edge) // _POINTS, 1)]
    # covectors of index space to LPS
    normals = -(slope[tuple(edge.T)] / voxel) @ (piece.lps_from_index[:3, :3] / voxel).T
    length = np.linalg.norm(normals, axis=1)
    keep = length > 1e-6
    return rigid(piece.lps_from_index, edge[keep] - 2.0), normals[keep] / length[keep, None]


def placement_findings(scan: Image, labels: Labels) -> list[Finding]:
    """The finding "displaced": stop or warning where the labels do not lie on the CT's bones,
    else a note with the figures."""
    together = placement(scan, list(labels.pieces.values()))
    if together is None:
        return []
    shift, voxel = float(np.linalg.norm(together.shift_mm)), float(scan.voxel_mm.max())
    share = together.rise_hu / together.best_hu if together.best_hu > 0.0 else 0.0
    figures = f"HU rises by {together.rise_hu:.0f} across the labels' edges"
    if together.best_hu < LEAST_RISE_HU:
        text = (
            f"{figures}, and by {together.best_hu:.0f} at most where they would be moved to;"
            " labels on bone rise by 150 and more: the scan is not the one that the labels were"
            " drawn on, is mirrored or turned against it, or holds no HU"
        )
        return [Finding("displaced", "stop", "", text)]
    x, y, z = (round(float(v)) for v in together.shift_mm)
    moved = (
        f"{abs(x)} mm to the {'left' if x > 0 else 'right'}, {abs(y)} mm"
        f" {'back' if y > 0 else 'forward'}, "
    )
    moved += f"{abs(z)} mm {'up' if z > 0 else 'down'}"
    text = f"{figures}, but by {together.best_hu:.0f} if they were moved by {moved}"
    for severity, (limit, voxels, least) in (("stop", STOPPED), ("warning", WARNED)):
        if shift >= max(limit, voxels * voxel) and share < least:
            more = (
                ": labels and scan are not in one frame (resampled, cropped, or re-exported?)."
                f" Mend the affine, or give 'source.shift_mm=[{x},{y},{z}]'"
            )
            return [Finding("displaced", severity, "", text + more)]
    each = _each(scan, labels, together)
    if each:
        return each
    text = (
        f"the labels lie on the scan: {figures} (best {together.best_hu:.0f}, {shift:.0f} mm away)"
    )
    return [Finding("displaced", "note", "", text)]


def _each(scan: Image, labels: Labels, together: Placement) -> list[Finding]:
    """Levels that lie beside their own bone though the labels as a whole do not: one moved
    alone, or all turned about their middle."""
    findings = []
    for level, piece in labels.pieces.items():
        if level == "S1" or piece.cut_mm2 > LARGEST_CUT_MM2:
            continue
        own = placement(scan, [piece], _LEVEL_REACH_MM, _LEVEL_REACH_MM)
        if own is None or own.best_hu < LEAST_RISE_HU:
            continue
        off = own.shift_mm - together.shift_mm
        shift, share = float(np.linalg.norm(off)), own.rise_hu / own.best_hu
        if shift >= max(LEVEL_MM, 0.7 * float(scan.voxel_mm.max())) and share < LEVEL_WARNED:
            x, y, z = (round(float(v)) for v in own.shift_mm)
            text = (
                f"HU rises by {own.rise_hu:.0f} across {level}'s edges, but by {own.best_hu:.0f} if"
                f" it alone were moved by ({x}, {y}, {z}) mm (left, back, up): the label was moved,"
                " or labels are turned against the scan"
            )
            findings.append(
                Finding("displaced", "stop" if share < LEVEL_STOPPED else "warning", level, text)
            )
    return findings
