"""HU of the trabecular core of a vertebral body, and what L1's says of osteoporosis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.patient.bone.calibration import Calibration, require_hu, scan_warnings
from engine.patient.geometry.frames import inverse, vertebra_frame
from engine.patient.read.image import Image
from engine.types import Vertebra, rigid

#: SD of HU above which the region is no uniform trabecular bone: noise and texture of clinical CT
#: come to 20-50 HU [M].
UNEVEN_HU = 80.0
#: Fewer voxels give no mean.
LEAST_CORE_VOXELS = 20
#: The region: half height about the middle of the body, least distance from the endplates' planes
#: and from the bone's surface, mm.
CORE_HALF_HEIGHT_MM, CORE_FROM_PLATE_MM, CORE_INSIDE_MM = 5.0, 4.0, 3.5
#: Half axes of its ellipse as shares of the body's half width and half depth, and how far its
#: centre lies before the body's, in half depths.
CORE_WIDTH, CORE_DEPTH, CORE_FORWARD = 0.6, 0.45, 0.15


@dataclass(frozen=True)
class TrabecularHU:
    """HU of the trabecular core of one vertebral body.

    mean_hu, sd_hu   over the n voxels of the region; se_hu = SD/√n, as if voxels were independent
                     (blur and texture make it too small)
    vbmd_g_cm3       mineral density of that mean, and the standard error of the calibration's line
                     there; None without a calibration
    """

    level: str
    mean_hu: float
    sd_hu: float
    se_hu: float
    n: int
    volume_mm3: float
    vbmd_g_cm3: float | None = None
    vbmd_se_g_cm3: float | None = None
    notes: tuple[str, ...] = ()


def trabecular(
    image: Image,
    vertebra: Vertebra,
    calibration: Calibration | None = None,
    excluded: np.ndarray | None = None,
) -> TrabecularHU:
    """HU in an elliptic cylinder of the mid-body: its front two thirds, 10 mm high, without cortex
    and endplates.

    Voxel centres with |z| ≤ 5 mm from the middle between the endplates, ≥ 4 mm from both endplate
    planes and ≥ 3.5 mm inside the bone, in the ellipse of 0.6 half width by 0.45 half depth about a
    centre 0.15 half depths before the body's: in front of the basivertebral vein.

    excluded   [i, j, k] bool on the image's grid: voxels that say nothing of bone (metal, streaks)

    Raises: ValueError for an MRI and for fewer than 20 voxels (a body too small, or outside the
    image).
    """
    require_hu(image)
    values = _mid_body(image, vertebra, excluded)
    n, voxel = len(values), float(np.prod(image.voxel_mm))
    if n < LEAST_CORE_VOXELS:
        raise ValueError(
            f"{vertebra.name}: only {n} voxels lie in the trabecular region (at least 20); the body"
            f" is too small for voxels of {image.voxel_mm.max():.1f} mm, or outside the image"
        )
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    notes = list(scan_warnings(image, 120.0))
    if sd > UNEVEN_HU:
        notes.append(
            f"warning: SD of {sd:.0f} HU: no uniform trabecular bone (fracture, Schmorl's node,"
            " sclerosis, cement, metal?); its mean is no measure of bone quality"
        )
    vbmd = None if calibration is None else float(calibration.density_g_cm3(mean))
    error = None if calibration is None else float(calibration.standard_error_g_cm3(mean))
    return TrabecularHU(
        vertebra.name, mean, sd, float(sd / np.sqrt(n)), n, n * voxel, vbmd, error, tuple(notes)
    )


def _mid_body(image: Image, vertebra: Vertebra, excluded: np.ndarray | None) -> np.ndarray:
    """HU [n] of the voxels in the region (`trabecular`)."""
    superior, inferior = vertebra.superior, vertebra.inferior
    pose = vertebra_frame(superior, inferior)
    width = 0.5 * (superior.half_width_mm + inferior.half_width_mm)
    depth = 0.5 * (superior.half_depth_mm + inferior.half_depth_mm)
    reach = np.hypot(width, depth) + 6.0
    centre = rigid(np.linalg.inv(image.lps_from_index), pose[None, :3, 3])[0]
    shape = np.array(image.values.shape)
    low = np.clip(np.floor(centre - reach / image.voxel_mm).astype(int), 0, shape)
    high = np.clip(np.ceil(centre + reach / image.voxel_mm).astype(int) + 1, low, shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    index = np.stack(
        np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1
    ).reshape(-1, 3)
    points = rigid(image.lps_from_index, index)
    own = rigid(inverse(pose), points)
    keep = np.abs(own[:, 2]) <= CORE_HALF_HEIGHT_MM
    across = own[:, 0] / (CORE_WIDTH * width)
    forward = (own[:, 1] + CORE_FORWARD * depth) / (CORE_DEPTH * depth)
    keep &= across**2 + forward**2 <= 1.0
    for plate in (superior, inferior):
        keep &= (plate.centre_mm - points) @ plate.normal >= CORE_FROM_PLATE_MM
    keep[keep] = vertebra.sdf.sample(points[keep]) <= -CORE_INSIDE_MM
    if excluded is not None:
        keep &= ~excluded[box].reshape(-1)
    return np.asarray(image.values[box], float).reshape(-1)[keep]


def l1_band(hu: float) -> str:
    """What the mean trabecular HU of L1 says of osteoporosis, after Pickhardt et al. 2013 [S22],
    with its limits."""
    if hu <= 110.0:
        band = f"{hu:.0f} HU is at most 110: osteoporosis likely (specificity above 90 %)"
    elif hu <= 160.0:
        band = (
            f"{hu:.0f} HU is between 110 and 160: osteoporosis not excluded (at most 160 finds 90 %"
            " of it)"
        )
    elif hu <= 200.0:
        band = f"{hu:.0f} HU is between 160 and 200: osteoporosis unlikely"
    else:
        band = (
            f"{hu:.0f} HU is above 200: osteoporosis practically excluded (negative predictive"
            " value 99 %)"
        )
    return (
        f"{band}. Holds for L1 at 120 kV without contrast agent, which raises HU; it is a screening"
        " figure, no diagnosis [S22]."
    )
