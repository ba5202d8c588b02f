"""The intact L4-L5 of `lumbar_meshes` (Visible Human Male) against published ranges: motion,
stiffness, pressure, facet forces.

Disc, ligament insertions and vertebrae are the data's own (Remus 2021, PLoS ONE 16(4):e0250456);
nothing is fitted here. Two published sets of ligaments, each with the same disc:

    remus2021     per strand, calibrated by its authors on another L4-L5's stepwise reduction [S16]
    piecewise     stiffness of the whole ligament by strain [S15]

Axes: the disc's mid-plane; anterior, left, cranial. Flexion is a positive moment about left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fem.intact.materials import FACET_MPA_PER_MM
from fem.intact.segment import IntactSegment
from scripts.evidence.lumbar_meshes import read_segment
from scripts.evidence.motion import DIRECTIONS, MotionTest

log = logging.getLogger("spinefit")


def spread(folder: Path) -> dict[str, dict[str, float]]:
    """Rotations (°) at 7.5 N m and the nucleus' pressure (MPa) at 1000 N, as given and with one
    thing changed. Raises NotFound."""
    given = read_segment(folder)

    def facets(**change: Any) -> IntactSegment:
        assert given.facets is not None
        return replace(given, facets=replace(given.facets, **change))

    variants: dict[str, Callable[[], IntactSegment]] = {
        "nothing": lambda: given,
        "facets' clearance 0": lambda: facets(clearance_mm=0.0),
        "facets' clearance 1 mm": lambda: facets(clearance_mm=1.0),
        "cartilage twice as stiff": lambda: facets(stiffness_mpa_per_mm=2.0 * FACET_MPA_PER_MM),
        "fibres at 25°": lambda: read_segment(folder, fibre_angle_deg=25.0),
        "fibres at 40°": lambda: read_segment(folder, fibre_angle_deg=40.0),
        "elements Q2/Q1": lambda: read_segment(folder, order=2),
    }
    out: dict[str, dict[str, float]] = {}
    test = MotionTest()
    for name, make in variants.items():
        log.info("%s", name)
        segment = make()
        out[name] = {direction: test.rotation_deg(segment, direction) for direction in DIRECTIONS}
        out[name]["pressure"] = test.compressed(segment).nucleus_mpa
    return out
