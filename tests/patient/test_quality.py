"""Every kind of bad mask is named; a good one passes. The masks are the whole-lumbar phantom's,
then spoilt one way each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.patient.labels.quality import stops
from engine.patient.labels.understand import understand
from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom
from engine.patient.read.image import Image
from engine.types import Finding, rigid

VOXEL = 1.5
NUMBER = {f"L{k}": 19 + k for k in range(1, 6)} | {"S1": 26}


@pytest.fixture(scope="module")
def mask() -> Image:
    """VerSe labels of L1-L5 and the sacrum, LPS axes."""
    patient = lumbar_phantom(LumbarSpec(spacing_mm=2.0))
    points = np.concatenate([body.surface.points_mm for body in patient.vertebrae])
    low = points.min(axis=0) - 8.0
    shape = np.ceil((points.max(axis=0) + 8.0 - low) / VOXEL).astype(int)
    grid = low + VOXEL * np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    values = np.zeros(shape, np.int16)
    for body in patient.vertebrae:
        values[body.sdf.sample(grid) < 0.0] = NUMBER[body.name]
    matrix = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    matrix[:3, 3] = low
    return Image(values, matrix, "SEG", (), {})


def _findings(
    image: Image,
    values: np.ndarray,
    accept: tuple[str, ...] = (),
    segment: tuple[str, str] = ("L3", "L4"),
) -> tuple[Finding, ...]:
    return understand(
        Image(values, image.lps_from_index, "SEG", (), {}), segment, scheme="verse", accept=accept
    ).findings


def _centre(image: Image, level: str) -> np.ndarray:
    return np.argwhere(image.values == NUMBER[level]).mean(axis=0)


def _swap(image: Image) -> np.ndarray:
    values = image.values.copy()
    values[image.values == NUMBER["L2"]] = NUMBER["L3"]
    values[image.values == NUMBER["L3"]] = NUMBER["L2"]
    return values


def _merge(image: Image) -> np.ndarray:
    """L2 and L3 under L3's number, joined: one label over two bones."""
    values = image.values.copy()
    values[values == NUMBER["L2"]] = NUMBER["L3"]
    a, b = _centre(image, "L2").astype(int), _centre(image, "L3").astype(int)
    values[a[0] - 8 : a[0] + 8, a[1] - 14 : a[1], b[2] : a[2]] = NUMBER["L3"]
    return values


def _jump(image: Image) -> np.ndarray:
    """L1-L3 under the numbers of T12-L2: a number is skipped where no bone is."""
    values = image.values.copy()
    for level in ("L1", "L2", "L3"):
        values[image.values == NUMBER[level]] = NUMBER[level] - 1
    return values


def _split(image: Image) -> np.ndarray:
    values = image.values.copy()
    at = int(_centre(image, "L3")[2])
    part = values[:, :, at - 1 : at + 1]
    part[part == NUMBER["L3"]] = 0
    return values


def _leak(image: Image) -> np.ndarray:
    """The upper half of L4's body under L3's number."""
    values = image.values.copy()
    index = np.argwhere(values == NUMBER["L4"])
    top = index[index[:, 2] > _centre(image, "L4")[2] - 2]
    values[tuple(top.T)] = NUMBER["L3"]
    return values


@pytest.mark.parametrize(
    ("spoil", "codes"),
    [
        (_swap, {"order"}),
        (_merge, {"volume", "misnumbered", "missing"}),
        (_jump, {"misnumbered"}),
        (_split, {"fragments"}),
        (_leak, {"leak", "contact", "volume", "spacing"}),
        (lambda image: image.values[:, ::-1], {"flipped"}),
        (lambda image: image.values[:, :, : int(_centre(image, "L3")[2])], {"truncated"}),
    ],
)
def test_a_bad_mask_is_stopped_and_named(
    mask: Image, spoil: Callable[[Image], np.ndarray], codes: set[str]
) -> None:
    found = {finding.code for finding in _findings(mask, spoil(mask)) if finding.severity == "stop"}
    assert found & codes, found


def test_a_good_mask_passes(mask: Image) -> None:
    findings = _findings(mask, mask.values)
    assert not stops(findings)
    assert {f.severity for f in findings} <= {"note"}


def test_what_lies_outside_the_segment_is_left_out(mask: Image) -> None:
    cut = mask.values[:, :, : int(_centre(mask, "L1")[2])]
    labels = understand(
        Image(cut, mask.lps_from_index, "SEG", (), {}), ("L3", "L4"), scheme="verse"
    )
    assert [(f.code, f.level) for f in labels.findings if f.severity == "left out"] == [
        ("truncated", "L1")
    ]
    assert list(labels.pieces) == ["L2", "L3", "L4", "L5"]


def test_an_override_is_recorded(mask: Image) -> None:
    accepted = _findings(mask, _split(mask), ("fragments", "volume"))
    assert not stops(accepted)
    assert ("fragments", "accepted") in {(f.code, f.severity) for f in accepted}
    with pytest.raises(ValueError, match="findings are fragments"):
        _findings(mask, mask.values, ("everything",))


def test_transitional_levels_are_flagged(mask: Image) -> None:
    values = np.where(mask.values > 0, mask.values + 1, 0)  # L2..L6
    assert ("transition", "L6") in {(f.code, f.level) for f in _findings(mask, values)}


def test_places_are_in_the_patient(mask: Image) -> None:
    labels = understand(mask, ("L3", "L4"), scheme="verse")
    for level, piece in labels.pieces.items():
        index = np.linalg.inv(mask.lps_from_index)
        at = np.round(rigid(index, piece.body_mm)).astype(int)
        assert mask.values[tuple(at)] == NUMBER[level]
