"""Apparent density of a vertebra from a calibrated CT, with the partial volume at its surface
undone.

A voxel v holds y_v = HU_v − HU_soft = ∫ h(v − x)·(HU(x) − HU_soft) dx over the bone, with h the
voxel's box blurred by the scanner's PSF. Its share of bone is f_v = ∫ h(v − x) dx over the bone.
The voxel's excess is given back to the bone inside it,

    HU_bone(x) = HU_soft + Σ_v h(v − x)·ω_v·y_v/f_v / Σ_v h(v − x)·ω_v,
    ω_v = 1 where f_v ≥ 0.02, else 0,

which is a normalised convolution that returns a uniform bone exactly, and keeps ∫HU over the bone
for any density: Σ_v y_v is what was measured, and each y_v is spread with weights whose integral
over the bone is f_v. (Weights ω = f_v, the usual choice, lose 30 % of a thin shell.) It is one step
of Richardson and Lucy's iteration from uniform bone; the scan's blur is not undone, so a shell lies
over the outer 1-2 mm, as types.Vertebra expects.

Then ρ_QCT by the calibration and ρ_app = (0.877 ρ_QCT + 0.079)/0.6 (materials.apparent_of_qct, with
its warning).

Finite elements integrate E over every cell by quadrature of this field (fem.solve.moduli,
forward._modulus), not of HU or of a cell's mean density; no further function is needed for that.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from engine.materials import BONE_LAWS, apparent_of_qct, qct_of_apparent
from engine.patient.bone.assumed import (
    SMEAR_MM,
    BoneProfile,
    bone_samples,
    density_of_modulus,
    endplate_share,
    of_nearest_bone,
    posterior_share,
)
from engine.patient.bone.calibration import Calibration, require_hu, scan_warnings
from engine.patient.read.image import Image
from engine.types import Endplate, VoxelField, rigid

#: Full width at half maximum of a usual body kernel's point spread [M].
PSF_MM = 1.0
#: Voxels with less bone say nothing: their excess is noise and neighbours.
LEAST_SHARE = 0.02
#: No bone is denser than this; what a neighbour's bone does to a voxel of little bone is cut there
#: [M].
MOST_HU = 3000.0
#: A shell of 0.4-0.5 mm is seen by the CT up to this voxel size, and assumed above.
SEEN_MM = 1.0
#: More bone than this outside the image is an error.
MOST_OUTSIDE = 0.005
#: More of a bone than this in metal and its streaks, and its density cannot be known.
MOST_EXCLUDED = 0.40
#: Apparent density g/cm³ that no bone has (compact bone is 1.8-2.0), and the share of a bone at
#: which the scan is refused for it: what is given back to a voxel's small share of bone is noisy,
#: 1.0 % of VerSe004's L2 as scanned.
DENSEST_G_CM3, MOST_TOO_DENSE = 2.0, 0.03
#: Mean mineral density of a whole vertebra, mg/cm³, that is a vertebra's [M]: osteoporotic 60,
#: sclerotic 500.
MEAN_QCT_MG_CM3 = (10.0, 700.0)
#: Less bone of negative mineral density than this is not told.
NEGATIVE_SHARE = 0.001
#: Largest edge of the cells that a voxel is divided into.
_CELL_MM = 0.5
#: Full width at half maximum of a Gaussian over its standard deviation.
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def ct_density(
    sdf: VoxelField,
    image: Image,
    calibration: Calibration,
    *,
    soft_hu: float | None = None,
    psf_mm: float = PSF_MM,
    shell: str = "auto",
    profile: BoneProfile | None = None,
    superior: Endplate | None = None,
    inferior: Endplate | None = None,
    excluded: np.ndarray | None = None,
) -> tuple[VoxelField, list[str]]:
    """Apparent density g/cm³ on the grid of `sdf` (module docstring), outside the bone that of the
    nearest bone; and what was done.

    soft_hu   HU around the bone; None: the median of the CT 2-4 mm outside of it
    psf_mm    full width at half maximum of the scanner's point spread (isotropic; the voxel's box
              is not in it)
    shell     "ct": as scanned. "assumed": the body's outer 2 mm take the CT's density from further
              inside and the shell of `profile` (bone.py, its E·t kept through Morgan's law);
              posterior elements as scanned. "auto": "ct" for voxels up to 1 mm
    superior, inferior   endplates, for the assumed shell
    excluded  [i, j, k] bool on the image's grid: voxels that say nothing of bone (metal, streaks);
              bone there takes the nearest density

    Samples farther apart than the CT's voxels hold the mean over the bone in their cell.
    Raises: ValueError for an MRI, for bone outside the image (with the share), for an assumed shell
    without its endplates, and for a bone too much of which is excluded.
    """
    require_hu(image)
    _check_settings(shell, psf_mm)
    bone = bone_samples(sdf)
    notes = [*scan_warnings(image), *_inside_scan(sdf, bone, image)]
    cells = _Cells(sdf, image, psf_mm / _FWHM, excluded)
    soft = cells.around() if soft_hu is None else float(soft_hu)
    notes += _excluded_share(cells)
    sampled = _integrated(sdf, bone, float(image.voxel_mm.min()), cells, soft)
    qct = calibration.density_g_cm3(soft + sampled)
    values = np.asarray(apparent_of_qct(qct), float)
    notes += _density_notes(qct, values, sdf.spacing_mm, soft, psf_mm)
    values = np.maximum(values, 0.0)
    largest = float(image.voxel_mm.max())
    if shell == "auto":
        shell = "ct" if largest <= SEEN_MM else "assumed"
        notes.append(
            f"shell: {'as scanned' if shell == 'ct' else 'assumed, not seen'} at voxels of"
            f" {largest:.2f} mm (limit {SEEN_MM:g} mm)"
        )
    if shell == "assumed":
        if superior is None or inferior is None:
            raise ValueError(
                "an assumed shell needs the superior and inferior endplate; give them, or shell=ct"
            )
        values = _with_shell(
            values, sdf, bone, largest, profile or BoneProfile(), superior, inferior
        )
    return VoxelField(of_nearest_bone(values, bone), sdf.origin_mm, sdf.spacing_mm), notes


def _check_settings(shell: str, psf_mm: float) -> None:
    if shell not in ("ct", "assumed", "auto"):
        raise ValueError(f"shell={shell!r} is unknown; choose ct, assumed or auto")
    if not 0.0 <= psf_mm <= 5.0:
        raise ValueError(f"psf_mm={psf_mm:g}: a point spread of 0 to 5 mm is expected")


def _excluded_share(cells: _Cells) -> list[str]:
    """Note of how much of the bone is excluded. Raises ValueError where it is too much."""
    lost = float(cells.share[cells.excluded].sum() / cells.share.sum())
    if not lost > 0.0:
        return []
    if lost > MOST_EXCLUDED:
        raise ValueError(
            f"{100 * lost:.0f} % of the bone lies in metal or its streaks (at most"
            f" {100 * MOST_EXCLUDED:.0f} %): its density cannot be known; leave the calibration"
            " out (density is then assumed), or treat another level"
        )
    return [
        f"{100 * lost:.1f} % of the bone lies in metal or its streaks and takes the nearest density"
    ]


def _density_notes(
    qct: np.ndarray, apparent: np.ndarray, spacing_mm: float, soft_hu: float, psf_mm: float
) -> list[str]:
    """What the bone's densities are in the mean, and how much of them lies below zero."""
    volume = float(len(qct)) * spacing_mm**3
    notes = [
        f"density from the CT: soft tissue {soft_hu:.0f} HU, PSF {psf_mm:g} mm, mean ρ_QCT"
        f" {1e3 * qct.mean():.0f} mg/cm³ over {volume / 1e3:.1f} cm³; apparent density by Schileo's"
        " line, which is 0.13 g/cm³ at ρ_QCT = 0"
    ]
    if (qct < 0.0).mean() > NEGATIVE_SHARE:
        negative = (apparent < 0.0).mean()
        notes.append(
            f"{100 * (qct < 0.0).mean():.1f} % of the bone has a mineral equivalent below zero"
            f" (marrow fat, noise); {100 * negative:.1f} % ({volume * negative:.0f}"
            " mm³) lies below zero apparent density, which was raised to it"
        )
    return notes


def check_plausible(density: VoxelField, sdf: VoxelField) -> None:
    """Raises ValueError for a vertebra's apparent density (from `ct_density`) that no vertebra
    has."""
    apparent = np.asarray(density.values, float)[np.asarray(sdf.values) <= 0.0]
    dense = float((apparent > DENSEST_G_CM3).mean())
    remedy = "check calibration and scan, or leave the calibration out (density is then assumed)"
    if dense > MOST_TOO_DENSE:
        raise ValueError(
            f"{100 * dense:.1f} % of the bone has an apparent density above {DENSEST_G_CM3:g} g/cm³"
            f" (up to {apparent.max():.1f}), which no bone has: metal, cement, contrast agent or a"
            f" wrong slope; {remedy}"
        )
    mean, (low, high) = 1e3 * float(qct_of_apparent(apparent).mean()), MEAN_QCT_MG_CM3
    if not low <= mean <= high:
        raise ValueError(
            f"the mean mineral density is {mean:.0f} mg/cm³; a vertebra has {low:.0f} to"
            f" {high:.0f}: {remedy}"
        )


def _inside_scan(sdf: VoxelField, bone: np.ndarray, image: Image) -> list[str]:
    points = sdf.origin_mm + sdf.spacing_mm * np.argwhere(bone)
    index = rigid(np.linalg.inv(image.lps_from_index), points)
    out = ((index < -0.5) | (index > np.array(image.values.shape) - 0.5)).any(axis=1)
    share = float(out.mean())
    if share > MOST_OUTSIDE:
        raise ValueError(
            f"{100 * share:.1f} % of the bone lies outside the image (at most"
            f" {100 * MOST_OUTSIDE:g} %); the vertebra is cut by the field of view, or surface and"
            " CT are not in one frame: leave the level out or check the files' frames"
        )
    return (
        [f"{100 * share:.2f} % of the bone lies outside the image and takes the nearest density"]
        if share
        else []
    )


class _Cells:
    """The CT around one bone: HU and share of bone of every voxel, and the subdivided voxels on
    which both are blurred.

    hu, share [i, j, k] of the box of voxels that starts at `low`; parts: cells per voxel along each
    axis.
    """

    def __init__(
        self, sdf: VoxelField, image: Image, sigma_mm: float, excluded: np.ndarray | None = None
    ) -> None:
        self.sdf, self.image, voxel = sdf, image, image.voxel_mm
        points = sdf.origin_mm + sdf.spacing_mm * np.argwhere(np.asarray(sdf.values) <= 0.0)
        index = rigid(np.linalg.inv(image.lps_from_index), points)
        # room for the layer of soft tissue and for the blur
        margin = np.ceil((4.5 + 3.0 * sigma_mm) / voxel) + 1
        shape = np.array(image.values.shape)
        self.low = np.clip(np.floor(index.min(axis=0) - margin).astype(int), 0, shape - 1)
        high = np.clip(np.ceil(index.max(axis=0) + margin).astype(int) + 1, self.low + 1, shape)
        box = tuple(slice(a, b) for a, b in zip(self.low, high, strict=True))
        self.hu = np.asarray(image.values[box], np.float32)
        self.excluded = np.zeros(self.hu.shape, bool) if excluded is None else excluded[box]
        self.parts = np.maximum(np.ceil(voxel / _CELL_MM - 1e-6).astype(int), 1)
        self.sigma = sigma_mm / (voxel / self.parts)
        covered = self._occupancy(voxel / self.parts)
        blurred = (
            gaussian_filter(covered, self.sigma, mode="nearest", truncate=3.0)
            if sigma_mm
            else covered
        )
        split = [int(n) for pair in zip(self.hu.shape, self.parts, strict=True) for n in pair]
        self.share = blurred.reshape(split).mean(axis=(1, 3, 5))

    def _occupancy(self, cell: np.ndarray) -> np.ndarray:
        """Share of bone in every cell: a linear ramp over the cell's size across the surface."""
        matrix = self.image.lps_from_index
        n = np.array(self.hu.shape) * self.parts
        axes = [
            low - 0.5 + (np.arange(m) + 0.5) / p
            for low, m, p in zip(self.low, n, self.parts, strict=True)
        ]
        width = float(np.prod(cell) ** (1.0 / 3.0))
        inverse_spacing = 1.0 / self.sdf.spacing_mm
        turn = matrix[:3, :3] * inverse_spacing
        start = (matrix[:3, 3] - self.sdf.origin_mm) * inverse_spacing
        distance = np.asarray(self.sdf.values, np.float32)
        covered = np.empty(tuple(n), np.float32)
        i, j = np.meshgrid(axes[0], axes[1], indexing="ij")
        flat = turn[:, 0, None, None] * i + turn[:, 1, None, None] * j + start[:, None, None]
        # plane by plane: the coordinates of all would take a gigabyte
        for k, z in enumerate(axes[2]):
            values = map_coordinates(
                distance, flat + turn[:, 2, None, None] * z, order=1, mode="nearest"
            )
            covered[:, :, k] = np.clip(0.5 - values / width, 0.0, 1.0)
        return covered

    def around(self) -> float:
        """Median HU of the CT 2-4 mm outside the bone (up to 6 mm where that is too little).
        Raises ValueError when there is none."""
        index = np.stack(
            np.meshgrid(
                *[low + np.arange(n) for low, n in zip(self.low, self.hu.shape, strict=True)],
                indexing="ij",
            ),
            -1,
        )
        distance = self.sdf.sample(rigid(self.image.lps_from_index, index.reshape(-1, 3))).reshape(
            self.hu.shape
        )
        for far in (4.0, 6.0):
            layer = (
                (distance > 2.0) & (distance < far) & (self.share < LEAST_SHARE) & ~self.excluded
            )
            if layer.sum() >= 30:
                return float(np.median(self.hu[layer]))
        raise ValueError(
            "the image holds no soft tissue 2-6 mm around the bone; give soft_hu, or an image that"
            " is not cut out so tightly"
        )

    def spread(self, of_voxels: np.ndarray) -> np.ndarray:
        """Σ_v h(v − x) of_voxels_v on the cells."""
        fine = of_voxels.astype(np.float32)
        for axis, part in enumerate(self.parts):
            fine = np.repeat(fine, part, axis=axis)
        return (
            np.asarray(gaussian_filter(fine, self.sigma, mode="nearest", truncate=3.0))
            if self.sigma.any()
            else fine
        )

    def index_of(self, points_mm: np.ndarray) -> np.ndarray:
        """Cell index [3, n] of points."""
        index = rigid(np.linalg.inv(self.image.lps_from_index), points_mm)
        return np.asarray(((index - self.low + 0.5) * self.parts - 0.5).T)


def _integrated(
    sdf: VoxelField, bone: np.ndarray, voxel_mm: float, cells: _Cells, soft_hu: float
) -> np.ndarray:
    """HU above soft tissue at every bone sample of sdf's grid: there, or the mean over the bone
    in its cell where cells are coarser."""
    excess = np.clip(cells.hu - soft_hu, None, MOST_HU * cells.share)
    used = (cells.share >= LEAST_SHARE) & ~cells.excluded
    ratio = np.where(used, excess / np.where(used, cells.share, 1.0), 0.0)
    total, weight = cells.spread(ratio), cells.spread(used)
    # bone that no voxel has seen takes its nearest neighbour that one has
    missing = weight <= 1e-3
    if missing.any():
        nearest = distance_transform_edt(missing, return_distances=False, return_indices=True)
        total, weight = total[tuple(nearest)], weight[tuple(nearest)]
    total /= weight
    points = sdf.origin_mm + sdf.spacing_mm * np.argwhere(bone)
    n = int(np.ceil(sdf.spacing_mm / voxel_mm - 0.05))
    steps = sdf.spacing_mm * ((np.arange(n) + 0.5) / n - 0.5)
    result, inside = np.zeros(len(points)), np.zeros(len(points))
    for offset in np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3):
        here = points + offset
        in_bone = np.ones(len(points)) if n == 1 else (sdf.sample(here) <= 0.0).astype(float)
        result += in_bone * map_coordinates(total, cells.index_of(here), order=1, mode="nearest")
        inside += in_bone
    return result / np.maximum(inside, 1.0)


def _with_shell(
    values: np.ndarray,
    sdf: VoxelField,
    bone: np.ndarray,
    voxel_mm: float,
    profile: BoneProfile,
    superior: Endplate,
    inferior: Endplate,
) -> np.ndarray:
    """The body's outer 2 mm with the profile's shell on the CT's own core; the scan's blurred shell
    is taken out first.

    The core near the surface is the nearest density at depth 2 mm + half a voxel (at most the
    bone's own greatest depth).
    """
    points = sdf.origin_mm + sdf.spacing_mm * np.argwhere(bone)
    depth = -np.asarray(sdf.values, float)
    deep = bone & (depth >= min(2.0 + 0.5 * voxel_mm, 0.5 * float(depth.max())))
    full = np.zeros(bone.shape)
    full[bone] = values
    nearest = distance_transform_edt(~deep, return_distances=False, return_indices=True)
    core = full[tuple(nearest)][bone]
    # the law of density_of_modulus
    e_core = np.asarray(BONE_LAWS["morgan2003_vertebra"].modulus_mpa(core))
    share, radius = endplate_share(points, superior, inferior)
    rim, centre = profile.endplate_e_rim_mpa, profile.endplate_e_centre_mpa
    e_plate = centre + (rim - centre) * np.minimum(radius, 1.0) ** 2
    et = (1.0 - share) * np.maximum(profile.wall_e_mpa - e_core, 0.0) * profile.wall_thickness_mm
    et += share * np.maximum(e_plate - e_core, 0.0) * profile.endplate_thickness_mm
    e_body = e_core + et / SMEAR_MM * np.clip(2.0 - depth[bone], 0.0, 1.0)
    posterior = posterior_share(points, superior, inferior)
    return (1.0 - posterior) * density_of_modulus(e_body) + posterior * values
