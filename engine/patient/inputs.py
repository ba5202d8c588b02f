"""Scan and labels read, checked against each other and told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine import artifacts
from engine.patient.bone.calibrate import calibrate
from engine.patient.bone.calibration import Calibration, NoCalibration
from engine.patient.bone.hounsfield import Metal, disc_metal_findings, scale_findings
from engine.patient.bone.hounsfield import metal_near_bones as metal_of
from engine.patient.geometry.levels import parse_segment
from engine.patient.labels.placement import placement_findings
from engine.patient.labels.quality import mark_accepted, stops
from engine.patient.labels.understand import Labels, understand
from engine.patient.model.scan import cropped, labels_within_scan
from engine.patient.read import segmenters
from engine.patient.read.image import Image
from engine.patient.read.images import read_image, read_labels
from engine.patient.report.pictures import gate_picture
from engine.patient.sources import CtSource, MaskSource, MriSource, PrepareConfig
from engine.types import Finding


@dataclass(frozen=True)
class Inputs:
    """What was read: the scan cropped to the spine, labels that passed the gate, the calibration,
    and metal on the scan's grid.

    grid   the label image as its file has it, before source.shift_mm
    """

    scan: Image | None
    grid: Image
    labels: Labels
    calibration: Calibration | None
    metal: Metal | None


def shift_labels(labels: Image, source: MaskSource) -> Image:
    """The labels moved by source.shift_mm."""
    shift = np.array(getattr(source, "shift_mm", (0.0, 0.0, 0.0)))
    if not shift.any():
        return labels
    matrix = labels.lps_from_index.copy()
    matrix[:3, 3] += shift
    line = (
        f"labels moved by {shift.tolist()} mm (LPS) against their file, as given by source.shift_mm"
    )
    return replace(labels, lps_from_index=matrix, notes=(*labels.notes, line))


def read_inputs(
    config: PrepareConfig, source: MaskSource, out: Path, log: Callable[[str], None]
) -> Inputs:
    """Scan, labels, calibration and metal. Raises ValueError where the gate stops, after writing
    findings.json and gate.png."""
    pair = parse_segment(config.segment)
    asked = not isinstance(config.calibration, NoCalibration)
    tool, scan = None, None
    if isinstance(source, CtSource | MriSource):
        tool = segmenters.named(source.mask, source.labels, source.label_map)
        scan = _read_scan(source, log)
    if asked and (scan is None or scan.modality != "CT"):
        raise ValueError(
            f"calibration={config.calibration.kind} asks for bone density, but source={source.kind}"
            " gives geometry only (HU come from a CT): leave the calibration out (density is then"
            " assumed), or give source=ct"
        )
    image, path, scheme = _read_label_file(source, scan, tool, out, log)
    labels = understand(
        shift_labels(image, source),
        pair,
        scheme=scheme,
        label_map=source.label_map,
        levels=source.levels,
        accept=source.accept,
    )
    metal, cut = None, scan
    if scan is not None and not stops(labels.findings):
        labels = labels_within_scan(scan, labels, pair)
        cut = cropped(scan, labels)
        if scan.modality == "CT":
            more, metal = on_the_scan(scan, cut, labels, asked, pair)
            labels = _with_findings(labels, mark_accepted(more, source.accept), pair)
    out.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(out / "findings.json", [finding.as_dict() for finding in labels.findings])
    gate_picture(labels, scan, out / "gate.png")
    for finding in labels.findings:
        log(finding.line())
    if stopping := stops(labels.findings):
        raise ValueError(f"{path}: {stopping} (picture: {out / 'gate.png'})")
    calibration = (
        calibrate(config.calibration, scan, labels) if asked and scan is not None else None
    )
    return Inputs(cut, image, labels, calibration, metal)


def _read_scan(source: CtSource | MriSource, log: Callable[[str], None]) -> Image:
    """The scan, its modality as the source says. Raises ValueError where its file says another."""
    log(f"reading the scan {source.path}")
    scan = read_image(source.path, source.series)
    wanted, other = ("CT", "mri") if isinstance(source, CtSource) else ("MR", "ct")
    if scan.modality not in (wanted, "unknown"):
        raise ValueError(
            f"source={source.kind} was given, but {source.path} is {scan.modality}; give"
            f" source={other}"
        )
    for note in scan.notes:
        log(f"scan: {note}")
    return replace(scan, modality=wanted)


class _LabelFile(NamedTuple):
    image: Image
    path: str
    scheme: str


def _read_label_file(
    source: MaskSource, scan: Image | None, tool: str | None, out: Path, log: Callable[[str], None]
) -> _LabelFile:
    """The label image that the source gives, or that the segmenter `tool` makes of the scan."""
    path, scheme = source.path, source.labels
    segmentation = None
    if scan is not None and isinstance(source, CtSource | MriSource):
        path = source.mask
        if tool is not None:
            segmentation = segmenters.segment(scan, tool, out / "segmentation", log, source.device)
            path, scheme = str(segmentation.mask_path), segmentation.scheme_name
    log(f"reading the labels {path}")
    image = read_labels(path, scan)
    if segmentation is not None:
        image = replace(image, source={**image.source, "segmenter": segmentation.record()})
    return _LabelFile(image, path, scheme)


def _with_findings(labels: Labels, more: list[Finding], segment: tuple[str, str]) -> Labels:
    """The labels with more findings, without the levels that these leave out."""
    more = [eased_beside_segment(finding, segment) for finding in more]
    out = {finding.level for finding in more if finding.severity == "left out"}
    pieces = {level: piece for level, piece in labels.pieces.items() if level not in out}
    return replace(labels, pieces=pieces, findings=(*labels.findings, *more))


def eased_beside_segment(finding: Finding, segment: tuple[str, str]) -> Finding:
    """A stop on one level that the segment does not need leaves the level out."""
    beside = finding.severity == "stop" and finding.level and finding.level not in segment
    return replace(finding, severity="left out") if beside else finding


def on_the_scan(
    scan: Image, cut: Image, labels: Labels, density: bool, segment: tuple[str, str]
) -> tuple[list[Finding], Metal | None]:
    """What a CT says against its labels and its own numbers, and the metal in it (on the grid of
    `cut`)."""
    scale = scale_findings(scan, labels, density)
    if any(finding.code == "hu" and finding.severity != "note" for finding in scale):
        # its numbers are no HU: neither metal nor the labels' place can be told by them
        return scale, None
    findings = [*placement_findings(scan, labels), *_other_frame(scan, labels), *scale]
    objects, lines = metal_of(cut, labels)
    return [*findings, *lines, *disc_metal_findings(cut, labels, segment)], objects


def _other_frame(scan: Image, labels: Labels) -> list[Finding]:
    """A warning where DICOM says that labels and scan are in two frames of reference."""
    frames = [image.source.get("FrameOfReferenceUID_sha256") for image in (scan, labels.image)]
    if None in frames or frames[0] == frames[1]:
        return []
    text = (
        "labels and scan name two DICOM frames of reference: they are of two acquisitions unless an"
        " export has changed it"
    )
    return [Finding("displaced", "warning", "", text)]
