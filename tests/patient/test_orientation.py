"""Turned and mirrored axes are found the same way on both sides; what nothing can tell is said."""

from __future__ import annotations

import numpy as np
import pytest

from engine.patient.labels.quality import stops
from engine.patient.labels.understand import understand
from engine.patient.read.image import Image


def _placed(image: Image, turn: np.ndarray) -> Image:
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    return Image(image.values, matrix @ image.lps_from_index, "SEG", (), {})


def _about_z(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _codes(image: Image) -> dict[str, str]:
    return {f.code: f.severity for f in understand(image, ("L4", "L5"), scheme="verse").findings}


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_lying_on_the_side_is_found_on_both_sides(lumbar_labels: Image, side: float) -> None:
    assert _codes(_placed(lumbar_labels, _about_z(side * 90.0)))["turned"] == "stop"
    assert _codes(_placed(lumbar_labels, _about_z(side * 45.0)))["turned"] == "warning"
    assert "turned" not in _codes(_placed(lumbar_labels, _about_z(side * 25.0)))


def test_front_and_back_exchanged_is_flipped(lumbar_labels: Image) -> None:
    assert _codes(_placed(lumbar_labels, _about_z(180.0)))["flipped"] == "stop"


def test_exchanged_and_reversed_axes_are_one_finding(lumbar_labels: Image) -> None:
    lying = _placed(lumbar_labels, np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    findings = understand(lying, ("L4", "L5"), scheme="verse").findings
    assert [f.code for f in findings if f.severity == "stop"] == ["turned"]
    assert "runs along the image's left-right axis" in stops(findings)
    upside_down = _placed(lumbar_labels, np.diag([1.0, -1.0, -1.0]))
    assert "from the foot to the head" in stops(
        understand(upside_down, ("L4", "L5"), scheme="verse").findings
    )


def _with_liver(image: Image, side: float) -> Image:
    """TotalSegmentator's numbers, with a liver beside L1 (side −1: right, in LPS)."""
    values = np.zeros_like(image.values)
    for old, new in {24: 27, 23: 28, 22: 29, 21: 30, 20: 31, 26: 25}.items():
        values[image.values == old] = new
    spine = np.argwhere(image.values == 20).mean(axis=0)
    at = np.rint(spine + [side * 70.0 / image.voxel_mm[0], 0.0, 0.0]).astype(int)
    low = np.maximum(at - 12, 0)
    values[tuple(slice(a, b) for a, b in zip(low, at + 12, strict=True))] = 5
    return Image(values, image.lps_from_index, "SEG", (), {})


def test_a_mirrored_spine_is_noticed_where_an_organ_tells(lumbar_labels: Image) -> None:
    right = understand(
        _with_liver(lumbar_labels, -1.0), ("L4", "L5"), scheme="totalsegmentator"
    ).findings
    left = understand(
        _with_liver(lumbar_labels, 1.0), ("L4", "L5"), scheme="totalsegmentator"
    ).findings
    assert not stops(right) and any(f.code == "sides" and "liver" in f.text for f in right)
    assert "the liver lies 6" in stops(left) and "to the left of the spine" in stops(left)


def test_where_nothing_tells_it_is_said(lumbar_labels: Image) -> None:
    findings = understand(lumbar_labels, ("L4", "L5"), scheme="verse").findings
    assert any(f.code == "sides" and "bones are symmetric" in f.text for f in findings)
