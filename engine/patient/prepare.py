"""From settings to a prepared patient on disk: everything of `scripts/prepare_patient.py` that is
not printing.

    read → gate → model → alignment → plan → bundle, segment, view, landmarks, report

Unknown keys and values out of range are refused when the settings are read, before any file is.
Slow stages are kept in <out>/.stages by content (stages.py): a run that was interrupted, or is
repeated with another plan, goes on from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine import artifacts
from engine.patient.alignment.disc import measure
from engine.patient.alignment.given import check_heads, check_incidence
from engine.patient.alignment.measures import SpineAlignment
from engine.patient.alignment.plausible import check_segment
from engine.patient.alignment.spine import spine_alignment
from engine.patient.alignment.spine import standard_errors as alignment_errors
from engine.patient.anatomy.features import features
from engine.patient.anatomy.hips import with_head_source
from engine.patient.anatomy.sacrum import local_endplate
from engine.patient.anatomy.structures import check_subregions, measures
from engine.patient.anatomy.uncertainty import redraw, redraw_plate, standard_errors, surface_noise
from engine.patient.bone.calibration import NoCalibration
from engine.patient.bundle import save_bundle, save_segment
from engine.patient.geometry.distance import surface_sdf
from engine.patient.geometry.levels import parse_segment
from engine.patient.inputs import Inputs, read_inputs, shift_labels
from engine.patient.labels.understand import Labels
from engine.patient.model.scan import (
    ScanOptions,
    from_labels,
    source_of,
    stem,
    with_hardware,
    with_structures,
)
from engine.patient.model.surfaces import from_surfaces
from engine.patient.phantoms.lumbar import lumbar_phantom
from engine.patient.phantoms.phantom import phantom
from engine.patient.plan_settings import check_plan
from engine.patient.planning import pair, plan
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from engine.patient.report.landmarks import write_landmarks
from engine.patient.report.overview import write_overview
from engine.patient.report.page import write_patient_report
from engine.patient.sources import (
    AlignmentConfig,
    CtSource,
    LumbarSource,
    MaskSource,
    PrepareConfig,
    SurfacesSource,
)
from engine.patient.stages import Stages
from engine.types import Finding, PatientModel, Segment, SegmentAlignment, Vertebra

#: Edge of surfaces that come from no voxels, as source.edge_mm is by default.
_SURFACE_EDGE_MM = 1.5


@dataclass(frozen=True)
class Prepared:
    """A prepared patient and where it lies. Relative to `out`: patient/, segment/, view/,
    alignment.json, report.html, …"""

    out: Path
    patient: PatientModel
    segment: Segment
    alignment: SpineAlignment
    pictures: bool


@dataclass(frozen=True)
class _Source:
    """The patient as the source gives it; what was read of a scan, where it is one."""

    patient: PatientModel
    read: Inputs | None = None
    subregions: Image | None = None

    @property
    def labels(self) -> Labels | None:
        return None if self.read is None else self.read.labels

    @property
    def voxel_mm(self) -> float:
        """Edge whose terraces are on the surfaces."""
        return _SURFACE_EDGE_MM if self.labels is None else float(self.labels.image.voxel_mm.max())


class _Measured(NamedTuple):
    """The patient with what was found on the way, its alignment, and the standard errors of its
    landmarks by level."""

    patient: PatientModel
    alignment: SpineAlignment
    errors: dict[str, dict[str, Any]] | None


def prepare(config: PrepareConfig, log: Callable[[str], None] | None = None) -> Prepared:
    """Do it. Raises ValueError as the readers, the quality gate (after writing findings.json and
    gate.png), the model and the plan do."""
    log = log or (lambda line: None)
    out = Path(config.out)
    check_plan(config.plan, "-".join(parse_segment(config.segment)))
    stages = Stages(out / ".stages", log)
    source = _read(config, out, stages)
    out.mkdir(parents=True, exist_ok=True)
    log("alignment")
    measured = _measure(config, source, out, stages)
    patient, alignment = measured.patient, measured.alignment
    segment = plan(patient, config.segment, config.plan, alignment, config.alignment.age)
    for demand in segment.plan.demands:
        log(f"demand on {demand.line()}")
    log("writing")
    pictures = _write(config, source, measured, segment, out)
    return Prepared(out, patient, segment, alignment, pictures)


# -- reading ---------------------------------------------------------------------------------------
def _read(config: PrepareConfig, out: Path, stages: Stages) -> _Source:
    """The patient of any source. Raises ValueError for a calibration without a CT."""
    source = config.source
    if isinstance(source, MaskSource):
        return _read_scan(config, source, out, stages)
    if not isinstance(config.calibration, NoCalibration):
        raise ValueError(
            f"calibration={config.calibration.kind} needs a CT; source={source.kind} has no HU:"
            " leave it out, or give source=ct"
        )
    if isinstance(source, SurfacesSource):
        options = source.model_dump(exclude={"kind", "path"})
        patient = from_surfaces(
            source.path, config.segment, profile=config.patient, stages=stages, **options
        )
        for finding in patient.findings:
            stages.log(finding.line())
        return _Source(patient)
    if isinstance(source, LumbarSource):
        return _Source(lumbar_phantom(source.spec, config.patient))
    return _Source(phantom(source.spec, config.patient))


def _read_scan(config: PrepareConfig, source: MaskSource, out: Path, stages: Stages) -> _Source:
    """The patient of labels, with or without their scan."""
    read = read_inputs(config, source, out, stages.log)
    subregions = None
    if source.subregions is not None:
        subregions = shift_labels(read_labels(source.subregions, read.grid), source)
        check_subregions(subregions, read.labels)  # before anything slow
    patient = model_of(config, source, read, stages)
    patient = with_structures(patient, read.labels, subregions, stages)
    if read.scan is not None:
        repairs = (*(f"scan: {note}" for note in read.scan.notes), *patient.repairs)
        patient = replace(patient, repairs=repairs)
        if read.metal is not None:
            patient = with_hardware(patient, read.scan, read.metal)
            artifacts.write_json(out / "hardware.json", list(read.metal.about))
    return _Source(patient, read, subregions)


# -- measuring -------------------------------------------------------------------------------------
def _measure(config: PrepareConfig, source: _Source, out: Path, stages: Stages) -> _Measured:
    """Alignment, its checks and its errors; writes findings.json and alignment.json."""
    given, patient = config.alignment, source.patient
    heads, how = femoral_heads_of(given, patient)
    heads_mm = None if heads is None else np.asarray(heads, float)
    if heads_mm is not None and given.femoral_heads_mm is not None:
        patient = _with_findings(patient, check_heads(heads_mm, patient), stages)
        fitted = {"how": how, "centres_mm": np.asarray(heads).tolist()}
        patient = replace(patient, source=patient.source | {"femoral_heads": fitted})
    pi_deg = given.pi_deg if heads is None else None
    alignment = spine_alignment(
        patient.vertebrae,
        patient.sacrum,
        femoral_heads_mm=heads_mm,
        pi_deg=pi_deg,
        posture=patient.posture,
        age=given.age,
    )
    alignment = with_head_source(alignment, how) if how else alignment
    unusual = _check_pi(given, patient, alignment)
    unusual += check_segment(config.segment, measure(*pair(patient, config.segment)))
    patient = _with_findings(patient, unusual, stages)
    artifacts.write_json(out / "findings.json", [finding.as_dict() for finding in patient.findings])
    alignment, errors = _with_errors(given, patient, alignment, heads_mm, source.voxel_mm, stages)
    artifacts.write_json(
        out / "alignment.json", {"posture": alignment.posture, "measures": alignment.table()}
    )
    return _Measured(patient, alignment, errors)


def _with_findings(patient: PatientModel, findings: list[Finding], stages: Stages) -> PatientModel:
    """The patient with these findings too, each told to the log."""
    for finding in findings:
        stages.log(finding.line())
    return replace(patient, findings=(*patient.findings, *findings))


# -- writing ---------------------------------------------------------------------------------------
def _write(
    config: PrepareConfig, source: _Source, measured: _Measured, segment: Segment, out: Path
) -> bool:
    """All files but those of `_measure`; whether the overview's picture could be rendered."""
    patient, read = measured.patient, source.read
    shapes = {
        body.name: features(body, _at(patient, k + 1), _at(patient, k - 1))
        for k, body in enumerate(patient.vertebrae)
    }
    sizes = measures(patient, shapes, source.labels, source.subregions)
    artifacts.write_json(
        out / "anatomy.json",
        {
            place: (shapes[place].as_dict() if place in shapes else {}) | sizes[place]
            for place in sizes
        },
    )
    write_landmarks(patient, shapes, measured.errors, out / "landmarks")
    save_bundle(patient, out / "patient")
    save_segment(segment, out / "segment")
    files = write_overview(segment, out / "view")
    metal = None if read is None else read.metal
    write_patient_report(
        out,
        patient,
        segment,
        measured.alignment,
        scan=None if read is None else read.scan,
        calibration=None if read is None else read.calibration,
        labels=source.labels,
        age=config.alignment.age,
        structures=sizes,
        excluded=None if metal is None else metal.excluded,
    )
    return any(file.suffix == ".png" for file in files)


# -- parts -----------------------------------------------------------------------------------------
def femoral_heads_of(config: AlignmentConfig, patient: PatientModel) -> tuple[Any, str]:
    """Centres [2, 3] or None, and where they come from: given, of the phantom, or fitted to the
    labels, where no PI was given."""
    if config.femoral_heads_mm is not None:
        return config.femoral_heads_mm, "femoral heads: given by alignment.femoral_heads_mm"
    if "femoral_heads_mm" in patient.source:
        return patient.source["femoral_heads_mm"], "femoral heads: of the phantom"
    fitted = patient.source.get("femoral_heads", {})
    if config.pi_deg is not None:
        return None, ""
    return fitted.get("centres_mm"), str(fitted.get("how", ""))


def _check_pi(
    config: AlignmentConfig, patient: PatientModel, alignment: SpineAlignment
) -> list[Finding]:
    """What the measured sacral slope says of a given pelvic incidence. Raises ValueError where
    it, or the femoral heads, contradict."""
    if config.pi_deg is None:
        return []
    slope = alignment.measure("sacral_slope_deg").value
    centres = config.femoral_heads_mm or patient.source.get("femoral_heads", {}).get("centres_mm")
    of_heads = None
    if centres is not None:
        other = spine_alignment(
            patient.vertebrae,
            patient.sacrum,
            femoral_heads_mm=np.asarray(centres, float),
            posture=patient.posture,
        )
        of_heads = other.measure("pelvic_incidence_deg").value
    return check_incidence(
        config.pi_deg,
        slope if isinstance(slope, float) else None,
        of_heads if isinstance(of_heads, float) else None,
    )


def _at(patient: PatientModel, k: int) -> Vertebra | None:
    """Vertebra k, where the patient has it."""
    return patient.vertebrae[k] if 0 <= k < len(patient.vertebrae) else None


def _with_errors(
    config: AlignmentConfig,
    patient: PatientModel,
    alignment: SpineAlignment,
    heads_mm: np.ndarray | None,
    voxel_mm: float,
    stages: Stages,
) -> tuple[SpineAlignment, dict[str, dict[str, Any]] | None]:
    """Standard errors by bootstrap over surface noise (uncertainty.py): of the alignment, and of
    each level's landmarks."""
    if not config.draws:
        return alignment, None
    noise, correlation = surface_noise(voxel_mm)
    plates, errors = {}, {}
    for body in patient.vertebrae:
        started = time.perf_counter()
        drawn = redraw(body, noise_mm=noise, correlation_mm=correlation, draws=config.draws, seed=0)
        errors[body.name] = standard_errors(drawn)
        plates[body.name] = [(superior, inferior) for superior, inferior, _ in drawn]
        stages.log(f"uncertainty_{body.name}: {time.perf_counter() - started:.1f} s")
    base = None
    if patient.sacrum is not None:
        plate = patient.sacrum.superior
        drawn_base = redraw_plate(
            patient.sacrum.surface,
            surface_sdf(patient.sacrum.surface, 1.0),
            lambda surface, field: (local_endplate(field, plate), {}),
            noise_mm=noise,
            correlation_mm=correlation,
            draws=config.draws,
            seed=0,
        )
        errors["S1"] = standard_errors(drawn_base)
        base = [drawn[0] for drawn in drawn_base]
    spread = alignment_errors(
        plates,
        base,
        femoral_heads_mm=heads_mm,
        pi_deg=config.pi_deg if heads_mm is None else None,
        posture=patient.posture,
        age=config.age,
    )
    return alignment.with_errors(spread), errors


def model_of(
    config: PrepareConfig, source: MaskSource, read: Inputs, stages: Stages
) -> PatientModel:
    """The patient of labels, of the CT under them where there is one, and of its calibration."""
    scan, labels, calibration = read.scan, read.labels, read.calibration
    where = source_of(source.kind, source.path, labels, source.accept, scan)
    if "segmenter" in labels.image.source:
        where["segmenter"] = labels.image.source["segmenter"]
    if calibration is not None:
        where["calibration"] = {
            "kind": calibration.kind,
            "slope_g_cm3_per_hu": calibration.slope_g_cm3_per_hu,
            "intercept_g_cm3": calibration.intercept_g_cm3,
            "equivalent": calibration.equivalent,
            # a given line has none
            "r2": calibration.r2 if math.isfinite(calibration.r2) else None,
        }
    return from_labels(
        source.name or stem(source.path),
        labels,
        parse_segment(config.segment),
        where,
        options=(
            ScanOptions(source.edge_mm, source.spacing_mm, source.shell, source.refine)
            if isinstance(source, CtSource)
            else ScanOptions(source.edge_mm, source.spacing_mm)
        ),
        scan=scan if isinstance(source, CtSource) else None,
        calibration=calibration,
        profile=config.patient,
        posture=source.posture,
        stages=stages,
        metal=read.metal,
    )


def alignment_table(measured: SegmentAlignment, planned: SegmentAlignment) -> str:
    """Measured and planned alignment, and the change, one line each."""
    lines = [f"{'':26}{'measured':>10}{'planned':>10}{'change':>10}"]
    for key in SegmentAlignment.__dataclass_fields__:
        a, b = getattr(measured, key), getattr(planned, key)
        lines.append(f"{key:26}{a:10.2f}{b:10.2f}{b - a:+10.2f}")
    return "\n".join(lines)
