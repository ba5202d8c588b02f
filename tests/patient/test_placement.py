"""Labels that lie beside their CT stop, with the shift that mends them; those that lie on it do
not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.patient.labels.placement import placement, placement_findings
from engine.patient.labels.understand import Labels, understand
from engine.patient.read.image import Image
from engine.patient.read.images import read_image, read_labels
from tests.patient.conftest import needs_data


def _moved(labels: Labels, shift: tuple[float, float, float]) -> Labels:
    pieces = {}
    for level, piece in labels.pieces.items():
        matrix = piece.lps_from_index.copy()
        matrix[:3, 3] += shift
        pieces[level] = replace(piece, lps_from_index=matrix)
    return replace(labels, pieces=pieces)


@pytest.mark.parametrize(
    ("shift", "severity"),
    [
        ((0.0, 0.0, 0.0), "note"),
        ((10.0, 0.0, 0.0), "stop"),
        ((0.0, -8.0, 0.0), "stop"),
        ((0.0, 0.0, 10.0), "stop"),
        ((0.0, 0.0, 34.0), "stop"),
    ],
)
def test_a_shift_is_found_and_its_reverse_proposed(
    torso: tuple[Image, Image, dict[str, Any]], shift: tuple[float, float, float], severity: str
) -> None:
    scan, image, _ = torso
    labels = _moved(understand(image, ("L4", "L5")), shift)
    found = placement(scan, list(labels.pieces.values()))
    assert found is not None and np.linalg.norm(found.shift_mm + shift) <= 1.8
    (finding,) = placement_findings(scan, labels)
    assert finding.severity == severity
    if severity == "stop":
        assert (
            f"'source.shift_mm=[{','.join(f'{v:.0f}' for v in found.shift_mm + 0.0)}]'"
            in finding.text
        )


def test_a_scan_of_something_else_is_told(torso: tuple[Image, Image, dict[str, Any]]) -> None:
    scan, image, _ = torso
    flat = Image(np.full(scan.values.shape, 40, np.int16), scan.lps_from_index, "CT", (), {})
    (finding,) = placement_findings(flat, understand(image, ("L4", "L5")))
    assert (
        finding.severity == "stop" and "not the one that the labels were drawn on" in finding.text
    )


def test_a_real_ct_lies_under_its_labels() -> None:
    scan = read_image(needs_data("ct_totalsegmentator/example_ct.nii.gz"))
    labels = understand(
        read_labels(needs_data("ct_totalsegmentator/totalseg.nii.gz")), ("L4", "L5")
    )
    (finding,) = placement_findings(replace(scan, modality="CT"), labels)
    assert finding.severity == "note", finding.text


def test_one_level_that_was_moved_alone_is_found(
    torso: tuple[Image, Image, dict[str, Any]],
) -> None:
    scan, image, _ = torso
    labels = understand(image, ("L4", "L5"))
    moved = _moved(labels, (0.0, 5.0, 0.0)).pieces["L4"]
    (finding,) = placement_findings(scan, replace(labels, pieces=labels.pieces | {"L4": moved}))
    assert (finding.level, finding.severity) == (
        "L4",
        "stop",
    ) and "if it alone were moved" in finding.text
