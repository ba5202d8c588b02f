"""Scan to patient in one go: the phantom as DICOM with rods comes back as the phantom; stages
are kept; nothing personal leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom, lumbar_truth, scoliotic
from engine.patient.phantoms.scan_files import write_dicom_series, write_nifti
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.prepare import Prepared, prepare
from engine.patient.sources import PrepareConfig

SPINE = scoliotic(LumbarSpec(spacing_mm=1.5), 12.0)
SCAN = ScanSpec(voxel_mm=(1.5, 1.5, 1.5), extent="spine", noise_hu=10.0)
SECRET = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "4711-0815",
    "PatientBirthDate": "19610203",
    "InstitutionName": "Klinikum Nirgendwo",
}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("scan")
    image, labels, truth = synthetic_ct(lumbar_phantom(SPINE), SCAN)
    for file in write_dicom_series(image, place / "dicom"):
        slice_ = pydicom.dcmread(file)
        for key, value in SECRET.items():
            setattr(slice_, key, value)
        slice_.save_as(file)
    write_nifti(labels, place / "labels.nii.gz")
    return place, truth


def config(place: Path, out: Path, **more: Any) -> PrepareConfig:
    source = {
        "kind": "ct",
        "path": str(place / "dicom"),
        "mask": str(place / "labels.nii.gz"),
        "levels": "segment",
        "name": "case",
    }
    line = {
        "kind": "linear",
        "slope_g_cm3_per_hu": SCAN.slope_g_cm3_per_hu,
        "intercept_g_cm3": SCAN.intercept_g_cm3,
    }
    return PrepareConfig.model_validate(
        {
            "source": source,
            "out": str(out),
            "calibration": line,
            "plan": {"rule": "keep"},
            "alignment": {"draws": 0},
            **more,
        }
    )


@pytest.fixture(scope="module")
def prepared(
    scan: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    return prepare(config(scan[0], tmp_path_factory.mktemp("case")))


def test_alignment_is_the_phantoms(prepared: Prepared) -> None:
    # labels of 1.5 mm: half a voxel of terrace at one end of an endplate of 35 mm is 1.2°
    truth = lumbar_truth(SPINE)
    for key in (
        "lordosis_deg",
        "coronal_deg",
        "height_anterior_mm",
        "height_middle_mm",
        "height_posterior_mm",
        "listhesis_mm",
        "lateral_mm",
    ):
        limit = 1.2 if key.endswith("_deg") else 0.75  # half a voxel
        assert prepared.alignment.value(key, "L4-L5") == pytest.approx(
            truth[f"L4-L5.{key}"], abs=limit
        ), key


def test_density_is_what_was_scanned(prepared: Prepared, scan: tuple[Path, dict[str, Any]]) -> None:
    assert prepared.patient.density_source == "ct:linear"
    for row in json.loads((prepared.out / "bone.json").read_text()):
        true = scan[1]["vertebrae"][row["level"]]["core_hu"]  # of a smaller region of textured bone
        assert row["mean_hu"] == pytest.approx(true, abs=12.0)
        assert row["vbmd_g_cm3"] == pytest.approx(
            SCAN.slope_g_cm3_per_hu * row["mean_hu"] + SCAN.intercept_g_cm3
        )


def test_nothing_personal_in_what_is_written(prepared: Prepared) -> None:
    files = [file for file in prepared.out.rglob("*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        for value in SECRET.values():
            assert value.encode() not in content and value.split("^")[0].encode() not in content, (
                f"{value} in {file.name}"
            )


def test_a_second_run_makes_no_surface_anew(
    prepared: Prepared, scan: tuple[Path, dict[str, Any]]
) -> None:
    lines: list[str] = []
    again = prepare(config(scan[0], prepared.out), lines.append)
    assert any("kept" in line for line in lines), lines
    for a, b in zip(prepared.patient.vertebrae, again.patient.vertebrae, strict=True):
        assert np.array_equal(a.surface.points_mm, b.surface.points_mm) and np.array_equal(
            a.density.values, b.density.values
        )


def test_labels_off_their_scan_are_refused(
    scan: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    image = nib.load(scan[0] / "labels.nii.gz")
    assert isinstance(image, nib.Nifti1Image)
    affine = image.affine.copy()
    affine[0, 3] += 300.0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), tmp_path / "moved.nii.gz")
    right = config(scan[0], tmp_path / "out")
    moved = right.model_copy(
        update={"source": right.source.model_copy(update={"mask": str(tmp_path / "moved.nii.gz")})}
    )
    with pytest.raises(
        ValueError,
        match=(
            r"0 % of the voxels labelled L4 lie in the scan .* give the scan that the labels were"
            r" drawn on"
        ),
    ):
        prepare(moved)


def test_a_ct_that_is_not_calibrated_is_said_so(
    scan: tuple[Path, dict[str, Any]], prepared: Prepared, tmp_path: Path
) -> None:
    uncalibrated = prepare(config(scan[0], tmp_path, calibration={"kind": "none"}))
    assert any("the CT is not calibrated" in line for line in uncalibrated.segment.warnings)
    assert not any("no CT of this patient" in line for line in uncalibrated.segment.warnings)
    assert any("kopperdahl2002" in line for line in prepared.segment.warnings)
