"""Shared phantoms (made once) and where the real data is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from engine.patient import PhantomSpec, phantom
from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.image import Image
from engine.types import PatientModel

#: Mild, as configured, but at 1 mm: each phantom takes about 5 s.
MILD = PhantomSpec(spacing_mm=1.0)
#: Everything off, flat-ish small bodies, a rotated and shifted scan.
SKEWED = PhantomSpec(
    spacing_mm=1.0,
    lordosis_deg=12.0,
    coronal_deg=-6.0,
    axial_deg=4.0,
    listhesis_mm=3.0,
    lateral_mm=2.0,
    height_middle_mm=11.0,
    concavity_mm=1.0,
    width_mm=45.0,
    depth_mm=32.0,
    rotation_deg=(20.0, -15.0, 35.0),
    translation_mm=(30.0, -20.0, 100.0),
)


def data_dir() -> Path:
    """Folder of the public test data: SPINEFIT_DATA, else ../shared/data next to the repository."""
    return Path(
        os.environ.get("SPINEFIT_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
    )


def needs_data(name: str) -> Path:
    """Path of a data set; skips the test by name where it is absent."""
    path = data_dir() / name
    if not path.exists():
        pytest.skip(f"{name} is not in {data_dir()}; set SPINEFIT_DATA")
    return path


@pytest.fixture(scope="session")
def mild() -> PatientModel:
    return phantom(MILD)


@pytest.fixture(scope="session")
def skewed() -> PatientModel:
    return phantom(SKEWED)


@pytest.fixture(scope="session")
def torso() -> tuple[Image, Image, dict[str, Any]]:
    """A coarse CT of the whole-lumbar phantom with muscle, fat, air, aorta and rods; its VerSe
    labels; its truth."""
    scan, labels, truth = synthetic_ct(
        lumbar_phantom(LumbarSpec(spacing_mm=2.0)),
        ScanSpec(voxel_mm=(2.0, 2.0, 2.5), noise_hu=10.0),
    )
    return scan, labels, truth


@pytest.fixture(scope="session")
def lumbar_labels(torso: tuple[Image, Image, dict[str, Any]]) -> Image:
    """VerSe labels of the phantom's L1-L5 and sacrum, 2 × 2 × 2.5 mm, LPS axes."""
    return torso[1]
