"""Alignment of a segment, as measured and as planned: plain data, which engine.types passes on.

Degrees and mm, the report's units; frames and signs as in engine.types.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SegmentAlignment:
    """Alignment of two neighbouring vertebrae (degrees and mm: the report's units).

    lordosis_deg            disc angle: from the caudal vertebra's superior to the cranial one's
                            inferior endplate in the sagittal plane, positive when the disc opens
                            anteriorly
    segmental_lordosis_deg  from the cranial vertebra's superior to the caudal one's inferior
                            endplate in the sagittal plane: both bodies' wedges and the disc angle
    coronal_deg             disc angle in the coronal plane, positive when open to the left
    axial_deg               axial rotation of the cranial on the caudal vertebra, positive to the
                            left
    height_anterior_mm      disc height on the mid-sagittal line at the anterior rim
    height_middle_mm        … at the caudal endplate's centre
    height_posterior_mm     … at the posterior rim
    listhesis_mm            slip of the cranial on the caudal vertebra, positive anteriorly
    lateral_mm              lateral slip, positive to the left

    Equations: engine/patient/alignment/disc.py.
    """

    lordosis_deg: float
    segmental_lordosis_deg: float
    coronal_deg: float
    axial_deg: float
    height_anterior_mm: float
    height_middle_mm: float
    height_posterior_mm: float
    listhesis_mm: float
    lateral_mm: float


@dataclass(frozen=True)
class LevelDemand:
    """What a rule asks of one treated level, degrees of lordosis from superior to superior
    endplate.

    measured_deg    disc angle + wedge of the cranial body
    wanted_deg      change asked for, without limits
    given_deg       change planned
    limit_deg       largest change of that sign
    limited_by      "angle" | "ligament" | "disc space" | "collision"
    shortfall_deg   wanted − given; below zero where the level takes over what another cannot
    """

    level: str
    measured_deg: float
    wanted_deg: float
    given_deg: float
    limit_deg: float
    limited_by: str
    shortfall_deg: float

    def line(self) -> str:
        """`L4-L5: measured 12.7°, wanted +10.7°, given +8.0° …`"""
        return (
            f"{self.level}: measured {self.measured_deg:.1f}°, wanted {self.wanted_deg:+.1f}°,"
            f" given {self.given_deg:+.1f}° (limit {self.limit_deg:.1f}°, {self.limited_by}),"
            f" shortfall {self.shortfall_deg:+.1f}°"
        )


@dataclass(frozen=True)
class AlignmentPlan:
    """The target of the segment and what it asks for.

    cranial_motion [4, 4]   rigid motion of the cranial vertebra from scanned to planned pose,
                            segment frame
    demands                 of each treated level, where a published rule set the target
    """

    rule: str
    source: str
    measured: SegmentAlignment
    planned: SegmentAlignment
    cranial_motion: np.ndarray
    notes: tuple[str, ...] = ()
    demands: tuple[LevelDemand, ...] = ()
