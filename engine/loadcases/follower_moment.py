"""A follower preload with a pure moment: the standard load of a motion segment, in the laboratory
and on paper.

The preload acts at the centre of the cranial vertebra's superior endplate along the line to the
centre of the caudal vertebra's inferior endplate, so that by itself it compresses the segment
without bending it (Patwardhan's follower load, for one segment). Moments in the segment frame: +
about x flexion, + about y bending to the left, + about z rotation to the left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.types import LoadCase, Segment, Wrench


class Settings(BaseModel):
    """Preload and moments of one load case, and where they are from."""

    model_config = ConfigDict(extra="forbid")
    preload_n: float = Field(ge=0, le=5000)
    flexion_nm: float = Field(0.0, ge=-50, le=50)
    left_bending_nm: float = Field(0.0, ge=-50, le=50)
    left_rotation_nm: float = Field(0.0, ge=-50, le=50)
    source: str


def case(name: str, settings: dict[str, Any], segment: Segment) -> LoadCase:
    """The wrench on the cranial endplate, N and N·mm. Raises ValueError (pydantic) for wrong
    settings."""
    s = Settings(**settings)
    top, bottom = segment.cranial.superior.centre_mm, segment.caudal.inferior.centre_mm
    line = (bottom - top) / np.linalg.norm(bottom - top)
    moment = 1000.0 * np.array([s.flexion_nm, s.left_bending_nm, s.left_rotation_nm])
    return LoadCase(
        name, Wrench(s.preload_n * line, moment, np.asarray(top, float)), s.preload_n, s.source
    )
