"""The phantom's planned segment and points around its disc space."""

from __future__ import annotations

import numpy as np
import pytest

from engine.elasticity import Grid
from engine.implants import Anatomy, anatomy_at
from engine.patient import phantom_segment
from engine.types import Segment


@pytest.fixture(scope="session")
def segment() -> Segment:
    return phantom_segment(spacing_mm=1.5)


@pytest.fixture(scope="session")
def disc_points(segment) -> np.ndarray:
    """Points [x, y, z, 3] at 2 mm around the disc space and half a body into each vertebra."""
    centre = 0.5 * (segment.caudal.superior.centre_mm + segment.cranial.inferior.centre_mm)
    shape = (32, 24, 22)
    low = centre - np.array(shape)
    return Grid(shape, tuple(float(v) for v in low), 2.0).centres()


@pytest.fixture(scope="session")
def anatomy(segment, disc_points) -> Anatomy:
    return anatomy_at(segment, disc_points)
