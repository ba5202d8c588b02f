"""Alignment of two neighbouring vertebrae: what is measured, and its exact inverse.

Everything is read in the frame of the caudal vertebra's superior endplate (x left, y posterior, z
its normal n). m, c and l are the cranial vertebra's inferior endplate: normal turned cranially,
centre and left axis, there.

    lordosis   atan2(m_y, m_z)       disc angle, positive when the disc opens anteriorly
    coronal    atan2(−m_x, m_z)      positive when it opens to the left
    axial      atan2(l_y, l_x)       positive when the cranial vertebra turns to the left
    b = (n + m)/|n + m|              the disc's mean normal; slips lie across it, heights along it
    height(p)  (c − p)·m / b·m       at p = anterior rim, centre, posterior rim of the caudal
                                     endplate on x = 0
    listhesis  −c·ŷ, lateral c·x̂     ŷ, x̂: y and x made perpendicular to b; between the endplates'
                                      *centres*

Heights are between the bony rims' planes (the cavity of a concave endplate adds 1.5-2 mm a side to
the bare gap). `segmental_lordosis_deg` is the sagittal angle from the cranial vertebra's superior
to the caudal vertebra's inferior endplate: both bodies' wedges and the disc angle.

Reproducibility of such measures on images: Cobb 4.3°, lordosis 3.6° [S71].
"""

from __future__ import annotations

import numpy as np

from engine.patient.geometry.frames import frame, inverse, move_endplate, unit
from engine.types import Endplate, SegmentAlignment, Vertebra

Plates = tuple[Endplate, Endplate]
#: What places the cranial vertebra over the caudal one: the arguments of `cranial_pose`.
POSE_COMPONENTS = (
    "lordosis_deg",
    "coronal_deg",
    "axial_deg",
    "height_middle_mm",
    "listhesis_mm",
    "lateral_mm",
)
#: Tilt of the endplates against each other up to which one is above the other: its cosine.
_ABOVE_COSINE = 0.3


def measure(cranial: Vertebra | Plates, caudal: Vertebra | Plates) -> SegmentAlignment:
    """Alignment of two vertebrae (or their (superior, inferior) endplates), both in one frame.

    Raises: ValueError when the cranial vertebra is not above the caudal one.
    """
    (upper_top, upper), (lower, lower_bottom) = _plates(cranial), _plates(caudal)
    to_frame = inverse(frame(lower.centre_mm, lower.normal, lower.axis_left))
    upper, upper_top, lower, lower_bottom = (
        move_endplate(to_frame, plate) for plate in (upper, upper_top, lower, lower_bottom)
    )
    m, centre, left = -upper.normal, upper.centre_mm, upper.axis_left
    if m[2] <= _ABOVE_COSINE or centre[2] <= 0.0:
        raise ValueError(
            f"the cranial endplate is not above the caudal one (height {centre[2]:.1f} mm, tilt"
            f" {np.degrees(np.arccos(np.clip(m[2], -1, 1))):.0f}°); check the order and the names"
            " of the vertebrae"
        )
    across, back, b = disc_axes(m)
    front_y, back_y = midsagittal(lower)

    def height(y: float) -> float:
        return float((centre - np.array([0.0, y, 0.0])) @ m / (b @ m))

    return SegmentAlignment(
        lordosis_deg=float(np.degrees(np.arctan2(m[1], m[2]))),
        segmental_lordosis_deg=_sagittal_deg(upper_top.normal)
        - _sagittal_deg(-lower_bottom.normal),
        coronal_deg=float(np.degrees(np.arctan2(-m[0], m[2]))),
        axial_deg=float(np.degrees(np.arctan2(left[1], left[0]))),
        height_anterior_mm=height(front_y),
        height_middle_mm=height(0.0),
        height_posterior_mm=height(back_y),
        listhesis_mm=float(-centre @ back),
        lateral_mm=float(centre @ across),
    )


def cranial_pose(
    lordosis_deg: float,
    coronal_deg: float,
    axial_deg: float,
    height_middle_mm: float,
    listhesis_mm: float,
    lateral_mm: float,
) -> np.ndarray:
    """Frame [4, 4] of the cranial inferior endplate (z cranial) in the caudal one's: the inverse
    of `measure`."""
    m = unit(np.array([-np.tan(np.radians(coronal_deg)), np.tan(np.radians(lordosis_deg)), 1.0]))
    turn = np.radians(axial_deg)
    left = np.array([np.cos(turn), np.sin(turn), 0.0])
    left[2] = -(left @ m) / m[2]
    across, back, b = disc_axes(m)
    slip = -listhesis_mm * back + lateral_mm * across
    centre = slip + (height_middle_mm - slip @ m / (b @ m)) * b
    return frame(centre, m, left)


def _plates(body: Vertebra | Plates) -> Plates:
    return (body.superior, body.inferior) if isinstance(body, Vertebra) else body


def _sagittal_deg(normal: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(normal[1], normal[2])))


def disc_axes(m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left, posterior and normal axes of the disc between planes of normals (0, 0, 1) and m."""
    b = unit(m + np.array([0.0, 0.0, 1.0]))
    across = unit(np.array([1.0, 0.0, 0.0]) - b[0] * b)
    return across, np.cross(b, across), b


def midsagittal(plate: Endplate) -> tuple[float, float]:
    """y of the anterior and posterior rim on x = 0 of the endplate's own frame (rim from +x,
    anticlockwise)."""
    offset = plate.rim_mm - plate.centre_mm
    angle = np.arctan2(offset[:, 1], offset[:, 0])
    radius = np.hypot(offset[:, 0], offset[:, 1])
    order = np.argsort(angle)
    front, back = np.interp([-np.pi / 2, np.pi / 2], angle[order], radius[order], period=2 * np.pi)
    return -float(front), float(back)
