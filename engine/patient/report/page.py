"""The patient report: one self-contained HTML page of what was read, found, measured and
planned. No personal tag is on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from engine.page import Picture, figures, render
from engine.patient.alignment.measures import SpineAlignment
from engine.patient.alignment.rules import compare_rules
from engine.patient.bone.calibration import Calibration
from engine.patient.labels.understand import Labels
from engine.patient.planning import pair
from engine.patient.read.image import Image
from engine.patient.report.bone import bone_section, trabecular_hu
from engine.patient.report.pictures import alignment_picture, scene_picture, slices_picture
from engine.patient.report.structures import structure_tables
from engine.patient.report.tables import (
    WORDS,
    body_table,
    demands_table,
    disc_table,
    files_table,
    findings_table,
    plan_table,
    regional_table,
    rules_table,
    source_values,
)
from engine.types import PatientModel, Segment

TEMPLATES = Path(__file__).parent / "templates"


def write_patient_report(
    out: Path,
    patient: PatientModel,
    segment: Segment,
    alignment: SpineAlignment,
    *,
    scan: Image | None = None,
    labels: Labels | None = None,
    calibration: Calibration | None = None,
    age: float | None = None,
    structures: Mapping[str, Mapping[str, Any]] | None = None,
    excluded: np.ndarray | None = None,
) -> Path:
    """Write <out>/report.html, rules.json, bone.json and <out>/view's pictures; returns the page's
    path.

    structures   facet gaps, discs and canal by place (structures.measures)
    excluded     voxels of the scan that say nothing of bone (metal, streaks)
    """
    pictures = _pictures(out, patient, segment, scan)
    targets = compare_rules(alignment, age)
    artifacts.write_json(out / "rules.json", [target.as_dict() for target in targets])
    cores, reasons = trabecular_hu(patient, scan, calibration, excluded)
    artifacts.write_json(
        out / "bone.json",
        [{key: _finite(value) for key, value in vars(core).items()} for core in cores],
    )
    html = render(
        "patient.html.j2",
        TEMPLATES,
        title=f"Patient {patient.name}",
        created="Prepared by scripts/prepare_patient.py",
        warnings=_warnings(patient, segment),
        short=_short(patient, segment, alignment),
        pictures=figures(pictures),
        regional=regional_table(alignment),
        discs=disc_table(alignment),
        bodies=body_table(alignment),
        structures=structure_tables(structures or {}),
        surfaces=list(patient.structures),
        rules=rules_table(targets),
        segment=segment.name,
        plan=plan_table(segment),
        demands=demands_table(segment),
        plan_notes=segment.plan.notes,
        bone=bone_section(patient, cores, reasons, calibration),
        mask_read=labels is not None,
        findings=findings_table(patient),
        repairs=patient.repairs,
        source=source_values(patient),
        files=files_table(),
    )
    return artifacts.write_text(out / "report.html", html)


def _pictures(
    out: Path, patient: PatientModel, segment: Segment, scan: Image | None
) -> list[Picture]:
    """Draws the pictures of the model; the gate's and the overview are shown where they are."""
    view = out / "view"
    slices = slices_picture(patient, scan, pair(patient, segment.name), view / "slices.png")
    pictures = [
        Picture("Slices with the model's outlines", "Sagittal, coronal and axial cut", slices),
        Picture(
            "Alignment",
            "Endplates from the side and from in front with disc angles",
            alignment_picture(patient, view / "alignment.png"),
        ),
    ]
    if (scene := scene_picture(patient, view, view / "scene.png")) is not None:
        alt = "Three views of the vertebrae with endplate rims and pedicle axes"
        pictures.append(Picture("The model", alt, scene))
    if (gate := out / "gate.png").is_file():
        alt = "Mask from the side and from in front, findings marked"
        pictures.append(Picture("The mask under the quality gate", alt, gate))
    if (overview := view / "overview.png").is_file():
        title = f"{segment.name} at the planned pose"
        pictures.append(Picture(title, "The segment from three sides", overview))
    return pictures


def _warnings(patient: PatientModel, segment: Segment) -> list[str]:
    severe = ("warning", "accepted", "left out")
    return [*segment.warnings, *(f.line() for f in patient.findings if f.severity in severe)]


def _finite(value: object) -> object:
    """JSON has no NaN: what is unknown is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(patient: PatientModel, segment: Segment, alignment: SpineAlignment) -> list[str]:
    levels = ", ".join(body.name for body in patient.vertebrae) + (
        ", sacrum" if patient.sacrum is not None else ""
    )
    lines = [
        f"Levels: {levels}. Treated: {segment.name}. Posture of the scan: {patient.posture}.",
        f"Bone density: {patient.density_source}.",
    ]
    lines += [f"Why these levels: {f.text}." for f in patient.findings if f.code == "identity"]
    lines += [f"Sides: {f.text}." for f in patient.findings if f.code in ("sides", "mirrored")]
    if "femoral_heads" in patient.source:
        how = str(patient.source["femoral_heads"]["how"])
        lines.append(how[:1].upper() + how[1:] + ".")
    for name in ("lumbar_lordosis_deg", "cobb_deg"):
        measure = alignment.measure(name)
        value = (
            f"{measure.value:.1f}°"
            if isinstance(measure.value, float)
            else f"not measurable from this scan: {measure.reason}"
        )
        lines.append(f"{WORDS[name]}: {value}")
    return lines
