"""Bone on the patient page: HU and density of the bodies, and the calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.page import Table, number, text
from engine.patient.bone.calibration import Calibration
from engine.patient.bone.trabecular import UNEVEN_HU, TrabecularHU, l1_band, trabecular
from engine.patient.read.image import Image
from engine.types import PatientModel

_MG_PER_G = 1000.0


def trabecular_hu(
    patient: PatientModel,
    scan: Image | None,
    calibration: Calibration | None,
    excluded: np.ndarray | None,
) -> tuple[list[TrabecularHU], list[str]]:
    """The trabecular core of each body, and why there is none of the others."""
    if scan is None or scan.modality != "CT":
        return [], ["no CT was read: no HU and no density of this patient"]
    cores, reasons = [], []
    for body in patient.vertebrae:
        try:
            cores.append(trabecular(scan, body, calibration, excluded))
        except ValueError as error:
            reasons.append(f"{body.name}: {error}")
    return cores, reasons


@dataclass(frozen=True)
class CalibrationShown:
    values: Mapping[str, Any]
    notes: Sequence[str]
    points: Table | None


@dataclass(frozen=True)
class BoneSection:
    """cores: None where nothing could be read; bands: what L1 says clinically; reasons: why bodies
    have no value."""

    density_source: str
    cores: Table | None
    bands: Sequence[str]
    reasons: Sequence[str]
    calibration: CalibrationShown | None


def bone_section(
    patient: PatientModel,
    cores: list[TrabecularHU],
    reasons: list[str],
    calibration: Calibration | None,
) -> BoneSection:
    return BoneSection(
        patient.density_source,
        _cores(cores) if cores else None,
        [_band(core) for core in cores if core.level == "L1"],
        reasons,
        None if calibration is None else _calibration(calibration),
    )


def _cores(cores: list[TrabecularHU]) -> Table:
    rows = [
        (
            core.level,
            f"{core.mean_hu:.0f}",
            f"{core.sd_hu:.0f}",
            f"{core.se_hu:.1f}",
            "—" if core.vbmd_g_cm3 is None else f"{_MG_PER_G * core.vbmd_g_cm3:.0f}",
            text("; ".join(core.notes)),
        )
        for core in cores
    ]
    head = ("level", "mean HU", "SD", "SE", "vBMD, mg/cm³", "note")
    return Table("Trabecular core of the body", head, rows)


def _band(core: TrabecularHU) -> str:
    if core.sd_hu > UNEVEN_HU:
        return "No clinical band for L1: its region is no uniform trabecular bone."
    return l1_band(core.mean_hu)


def _calibration(calibration: Calibration) -> CalibrationShown:
    values = {
        "kind": calibration.kind,
        "slope, g/cm³ per HU": calibration.slope_g_cm3_per_hu,
        "intercept, g/cm³": calibration.intercept_g_cm3,
        "equivalent": calibration.equivalent,
        "residual (rms), g/cm³": calibration.residual_g_cm3,
        "R²": calibration.r2,
        "source": calibration.source,
    }
    points = [(p.name, number(p.hu), number(p.density_g_cm3)) for p in calibration.points]
    table = Table("Calibration points", ("", "HU", "g/cm³"), points) if points else None
    return CalibrationShown(values, calibration.notes, table)
