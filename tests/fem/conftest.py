"""The analytic segment as fixtures."""

from __future__ import annotations

import pytest
from fem_segment import make_design, make_segment, surface_of

from engine.types import Design, Segment, Surface


@pytest.fixture(scope="session")
def segment() -> Segment:
    return make_segment()


@pytest.fixture(scope="session")
def design(segment) -> Design:
    return make_design(segment)


@pytest.fixture(scope="session")
def implant_surface(design) -> Surface:
    return surface_of(design.implant)
