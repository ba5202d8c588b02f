"""Density is refused where a CT's numbers are no HU; metal is found, measured and left out, and
the density is that without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.patient.bone.hounsfield import disc_metal_findings, metal_near_bones, scale_findings
from engine.patient.labels.understand import Labels, understand
from engine.patient.read.image import Image
from engine.patient.read.images import read_image, read_labels
from engine.types import rigid
from tests.patient.conftest import needs_data

Torso = tuple[Image, Image, dict[str, Any]]


@pytest.fixture(scope="module")
def labels(torso: Torso) -> Labels:
    return understand(torso[1], ("L4", "L5"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: np.clip(v, -160, 240), "exactly 240 HU"),
        (lambda v: np.clip(v, -450, 1050), "exactly -450 HU"),
        (lambda v: np.clip(v, -1350, 150), "exactly 150 HU"),
        (lambda v: v + 1024, "soft tissue round the vertebrae has 107"),
        (lambda v: 0.5 * v, "air round the patient has -4"),
        (lambda v: (v + 1000.0) * 0.85 - 1000.0, "next to nothing of muscle's"),
        (lambda v: np.where(v > 400.0, v - 2000.0, v), "less than −300 HU"),
        (lambda v: v - 1024.0, "values are not HU|less than −300 HU"),
        (lambda v: 2.0 * v, "values are not HU|air round the patient"),
        (lambda v: 0.85 * v, "air round the patient|of a scanner's|window"),
        (lambda v: np.clip((v + 160.0) / 400.0 * 255.0, 0, 255), "window|not HU"),
    ],
)
def test_what_is_no_hu_is_refused_for_density(
    torso: Torso, labels: Labels, change: Callable[[np.ndarray], np.ndarray], text: str
) -> None:
    scan = replace(torso[0], values=np.rint(change(torso[0].values.astype(float))).astype(np.int16))
    findings = scale_findings(scan, labels, density=True)
    stopping = [f for f in findings if f.severity == "stop"]
    assert stopping

    assert any(re.search(text, f.text) for f in stopping), [f.text for f in stopping]
    assert {f.severity for f in scale_findings(scan, labels, density=False)} == {"warning"}


def test_an_object_of_one_value_is_no_window(torso: Torso, labels: Labels) -> None:
    """Metal of 2000 HU throughout, as artefact reduction leaves it: nothing lies under its pile,
    as it would under a window's."""
    values = torso[0].values.copy()
    values[60:64, 60:64, 20:40] = 2000
    assert not [
        f
        for f in scale_findings(replace(torso[0], values=values), labels, density=True)
        if "window" in f.text
    ]


def test_hu_are_hu(torso: Torso, labels: Labels) -> None:
    assert [f.severity for f in scale_findings(torso[0], labels, density=True)] == ["note"]
    assert metal_near_bones(torso[0], labels) == (None, [])


@pytest.mark.parametrize(
    ("scan", "mask", "segment", "scheme", "said"),
    [
        (
            "ct_totalsegmentator/example_ct.nii.gz",
            "ct_totalsegmentator/totalseg.nii.gz",
            ("L4", "L5"),
            "totalsegmentator",
            ("hu", "note"),
        ),
        (
            "ct_mri_subregions/sub-ct_label-22_ct.nii.gz",
            "ct_mri_subregions/sub-ct_seg-vert_label-22_msk.nii.gz",
            ("L2", "L3"),
            "verse",
            ("scale", "warning"),  # a crop without air: said, and no stop
        ),
    ],
)
def test_real_cts_raise_no_alarm(
    scan: str, mask: str, segment: tuple[str, str], scheme: str, said: tuple[str, str]
) -> None:
    image = replace(read_image(needs_data(scan)), modality="CT")
    found = understand(read_labels(needs_data(mask)), segment, scheme=scheme, accept=("truncated",))
    assert [(f.code, f.severity) for f in scale_findings(image, found, density=True)] == [said]
    assert (
        metal_near_bones(image, found)[1] == [] and disc_metal_findings(image, found, segment) == []
    )


def _with_screw(torso: Torso, labels: Labels) -> tuple[Image, np.ndarray]:
    """A rod of 3071 HU, 6 mm thick and 50 mm long, through L4 from behind; dark streaks about
    it."""
    scan = torso[0]
    centre = labels.pieces["L4"].body_mm
    start, end = centre + [14.0, 40.0, 0.0], centre + [6.0, -9.0, 0.0]
    axis = (end - start) / np.linalg.norm(end - start)
    points = rigid(
        scan.lps_from_index,
        np.stack(np.meshgrid(*map(np.arange, scan.values.shape), indexing="ij"), -1).reshape(-1, 3),
    )
    along = (points - start) @ axis
    away = np.linalg.norm(points - start - along[:, None] * axis, axis=1)
    there = (along > 0.0) & (along < np.linalg.norm(end - start))
    values = scan.values.astype(float).ravel()
    near = there & (away < 7.0)
    values[near] -= 150.0 * (1.0 - np.clip((away[near] - 3.0) / 4.0, 0.0, 1.0))
    values[there & (away < 3.0)] = 3071.0
    return replace(
        scan, values=np.rint(values.reshape(scan.values.shape)).astype(np.int16)
    ), np.stack([start, end])


def test_a_screw_is_found_measured_and_left_out(torso: Torso, labels: Labels) -> None:
    scan, ends = _with_screw(torso, labels)
    found, findings = metal_near_bones(scan, labels)
    assert found is not None and [f.code for f in findings] == ["metal"]
    (screw,) = found.about
    assert screw["levels"] == ["L4"] and screw["kind"] == "metal"
    assert screw["length_mm"] == pytest.approx(np.linalg.norm(ends[0] - ends[1]), abs=4.0)
    assert screw["diameter_mm"] == pytest.approx(6.0, abs=1.0)
    axis = np.subtract(*screw["ends_mm"]) / np.linalg.norm(np.subtract(*screw["ends_mm"]))
    assert abs(axis @ (ends[0] - ends[1]) / np.linalg.norm(ends[0] - ends[1])) > np.cos(
        np.radians(3.0)
    )
    assert found.excluded[scan.values > 2300].all()


def test_contrast_agent_in_the_aorta_is_said(torso: Torso, labels: Labels) -> None:
    scan, image, _ = torso
    centre = labels.pieces["L3"].body_mm + [8.0, -40.0, 0.0]
    at = np.rint(rigid(np.linalg.inv(image.lps_from_index), centre)).astype(int)
    values, bright = np.zeros_like(image.values), scan.values.copy()
    for old, new in {24: 27, 23: 28, 22: 29, 21: 30, 20: 31, 26: 25}.items():
        values[image.values == old] = new
    box = tuple(slice(a - 5, a + 5) for a in at)
    values[box][values[box] == 0] = 52
    bright[values == 52] = 230
    found = understand(
        Image(values, image.lps_from_index, "SEG", (), {}), ("L4", "L5"), scheme="totalsegmentator"
    )
    findings = scale_findings(replace(scan, values=bright), found, density=True)
    assert [(f.code, f.severity) for f in findings] == [
        ("contrast", "warning")
    ] and "230 HU" in findings[0].text


def test_an_implant_in_the_treated_disc_stops(torso: Torso, labels: Labels) -> None:
    scan = torso[0]
    middle = 0.5 * (labels.pieces["L4"].body_mm + labels.pieces["L5"].body_mm)
    at = np.rint(rigid(np.linalg.inv(scan.lps_from_index), middle)).astype(int)
    values = scan.values.copy()
    values[at[0] - 5 : at[0] + 5, at[1] - 4 : at[1] + 4, at[2] - 1 : at[2] + 2] = 1500
    (finding,) = disc_metal_findings(replace(scan, values=values), labels, ("L4", "L5"))
    assert finding.severity == "stop" and "implant or cement already" in finding.text
    assert disc_metal_findings(scan, labels, ("L4", "L5")) == []


def test_cement_under_an_endplate_is_found(torso: Torso, labels: Labels) -> None:
    scan = torso[0]
    points = rigid(
        scan.lps_from_index,
        np.stack(np.meshgrid(*map(np.arange, scan.values.shape), indexing="ij"), -1).reshape(-1, 3),
    )
    near = (
        np.linalg.norm(points - labels.pieces["L5"].body_mm - [0.0, 0.0, 8.0], axis=1).reshape(
            scan.values.shape
        )
        < 6.0
    )
    _, findings = metal_near_bones(
        replace(scan, values=np.where(near, 1900, scan.values).astype(np.int16)), labels
    )
    assert [f.code for f in findings] == ["metal"] and "cement" in findings[0].text
