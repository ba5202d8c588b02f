"""Good patients stop nothing: phantoms of every voxel size, straight and turned, and every
public data set as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.patient.bone.hounsfield import metal_near_bones, scale_findings
from engine.patient.labels.placement import placement_findings
from engine.patient.labels.understand import understand
from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.images import read_image, read_labels
from engine.types import Finding
from tests.patient.conftest import needs_data

#: Said of every image, or of coarse ones.
EXPECTED = {"coarse", "contact", "scale"}


def _alarms(findings: list[Finding]) -> set[tuple[str, str]]:
    return {
        (f.code, f.severity) for f in findings if f.severity != "note" and f.code not in EXPECTED
    }


@pytest.mark.parametrize(
    "turn",
    [
        pytest.param((0.0, 0.0, 0.0), marks=pytest.mark.slow, id="straight"),
        pytest.param((12.0, 11.0, 13.0), id="turned by 20°"),
    ],
)
@pytest.mark.parametrize(
    "voxel",
    [
        pytest.param((1.0, 1.0, 1.0), marks=pytest.mark.slow),
        pytest.param((1.5, 1.5, 1.5), marks=pytest.mark.slow),
        pytest.param((2.0, 2.0, 2.0), marks=pytest.mark.slow),
        (3.0, 3.0, 3.0),
    ],
    ids=lambda voxel: f"{voxel[0]:g} mm",
)
def test_phantoms_raise_no_alarm(
    voxel: tuple[float, float, float], turn: tuple[float, float, float]
) -> None:
    patient = lumbar_phantom(LumbarSpec(spacing_mm=2.0, rotation_deg=turn))
    scan, image, _ = synthetic_ct(patient, ScanSpec(voxel_mm=voxel, noise_hu=15.0))
    labels = understand(image, ("L4", "L5"))
    found = [
        *labels.findings,
        *placement_findings(scan, labels),
        *scale_findings(scan, labels, density=True),
        *metal_near_bones(scan, labels)[1],
    ]
    assert _alarms(found) == set()


@pytest.mark.parametrize(
    ("mask", "scan", "segment", "given", "known"),
    [
        ("verse004_mask/sub-verse004_seg-vert_msk.nii.gz", "", ("L4", "L5"), "auto", set()),
        (
            "ct_totalsegmentator/totalseg.nii.gz",
            "ct_totalsegmentator/example_ct.nii.gz",
            ("L4", "L5"),
            "auto",
            {("truncated", "left out")},
        ),
        (
            "ct_totalsegmentator/totalseg_vertebrae_pp_refined.nii.gz",
            "",
            ("L4", "L5"),
            "verse",
            {("truncated", "left out")},
        ),
        (
            "ct_mri_subregions/sub-ct_seg-vert_label-22_msk.nii.gz",
            "ct_mri_subregions/sub-ct_label-22_ct.nii.gz",
            ("L2", "L3"),
            "auto",
            {
                ("truncated", "stop"),
                ("truncated", "left out"),
            },  # its L2 and L4 are cut, which is right to say
        ),
        (
            "ct_totalsegmentator/example_seg_dicom.nii.gz",
            "ct_totalsegmentator/dicom",
            ("T11", "T12"),
            "totalsegmentator",
            # 40 mm of scan for two vertebrae, with contrast agent
            {("truncated", "stop"), ("fragments", "stop"), ("contrast", "warning")},
        ),
    ],
)
def test_real_patients_raise_no_new_alarm(
    mask: str, scan: str, segment: tuple[str, str], given: str, known: set[tuple[str, str]]
) -> None:
    labels = understand(read_labels(needs_data(mask)), segment, scheme=given)
    found = list(labels.findings)
    if scan:
        image = replace(read_image(needs_data(scan)), modality="CT")
        found += [
            *placement_findings(image, labels),
            *scale_findings(image, labels, density=True),
            *metal_near_bones(image, labels)[1],
        ]
    assert _alarms(found) <= known
