"""The patient report: one self-contained HTML page of what was read, found, measured and
planned. No personal tag is on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from engine.page import Picture, bullets, document, number, pairs, pictures_grid, table, text
from engine.patient.alignment.measures import REGIONAL, SpineAlignment
from engine.patient.alignment.rules import compare_rules
from engine.patient.bone.calibration import Calibration
from engine.patient.bone.trabecular import UNEVEN_HU, TrabecularHU, l1_band, trabecular
from engine.patient.labels.understand import Labels
from engine.patient.planning import pair
from engine.patient.read.image import Image
from engine.patient.report.pictures import alignment_picture, scene_picture, slices_picture
from engine.types import PatientModel, Segment, SegmentAlignment

_WORDS = {
    "lumbar_lordosis_deg": "Lumbar lordosis L1-S1",
    "l4_s1_lordosis_deg": "L4-S1 lordosis",
    "lordosis_distribution_percent": "Lordosis distribution index",
    "sacral_slope_deg": "Sacral slope",
    "pelvic_incidence_deg": "Pelvic incidence",
    "pelvic_tilt_deg": "Pelvic tilt",
    "pi_minus_ll_deg": "PI − LL",
    "l1_pelvic_angle_deg": "L1 pelvic angle",
    "cobb_deg": "Coronal Cobb angle",
}
_UNITS = {"deg": "°", "mm": "mm", "percent": "%"}


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
    view = out / "view"
    cranial, caudal = pair(patient, segment.name)
    pictures = [
        Picture(
            "Slices with the model's outlines",
            "Sagittal, coronal and axial cut",
            slices_picture(patient, scan, (cranial, caudal), view / "slices.png"),
        ),
        Picture(
            "Alignment",
            "Endplates from the side and from in front with disc angles",
            alignment_picture(patient, view / "alignment.png"),
        ),
    ]
    if (scene := scene_picture(patient, view, view / "scene.png")) is not None:
        pictures.append(
            Picture(
                "The model",
                "Three views of the vertebrae with endplate rims and pedicle axes",
                scene,
            )
        )
    if (out / "gate.png").is_file():
        pictures.append(
            Picture(
                "The mask under the quality gate",
                "Mask from the side and from in front, findings marked",
                out / "gate.png",
            )
        )
    if (view / "overview.png").is_file():
        pictures.append(
            Picture(
                f"{segment.name} at the planned pose",
                "The segment from three sides",
                view / "overview.png",
            )
        )
    targets = compare_rules(alignment, age)
    artifacts.write_json(out / "rules.json", [target.as_dict() for target in targets])
    bone, reasons = _trabecular(patient, scan, calibration, excluded)
    artifacts.write_json(
        out / "bone.json",
        [{key: _finite(value) for key, value in vars(row).items()} for row in bone],
    )
    warnings = [
        *segment.warnings,
        *(f.line() for f in patient.findings if f.severity in ("warning", "accepted", "left out")),
    ]
    sections = [
        ("In short", _short(patient, segment, alignment)),
        ("Pictures", pictures_grid(pictures)),
        ("Alignment: regional", _regional(alignment)),
        ("Alignment: disc by disc", _places(alignment, "-")),
        ("Vertebral bodies", _places(alignment, "")),
        ("Facet joints, discs, canal", _structures(patient, structures or {})),
        ("Published targets beside each other", _rules(targets)),
        (f"Plan of {segment.name}", _plan(segment)),
        ("Bone", _bone(patient, bone, reasons, calibration)),
        ("Findings of the quality gate", _findings(patient, labels)),
        (
            "What was done on the way in",
            bullets(patient.repairs) if patient.repairs else "<p>Nothing.</p>",
        ),
        ("What was read", pairs("Source", _source(patient))),
        ("Files", _files()),
    ]
    page = document(
        f"Patient {patient.name}", "Prepared by scripts/prepare_patient.py", warnings, sections
    )
    return artifacts.write_text(out / "report.html", page)


def _finite(value: object) -> object:
    """JSON has no NaN: what is unknown is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(patient: PatientModel, segment: Segment, alignment: SpineAlignment) -> str:
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
        found = alignment.measure(name)
        value = (
            f"{found.value:.1f}°"
            if isinstance(found.value, float)
            else f"not measurable from this scan: {found.reason}"
        )
        lines.append(f"{_WORDS[name]}: {value}")
    return bullets(lines)


def _value(found: object) -> str:
    value, error = found.value, found.standard_error  # type: ignore[attr-defined]
    if value is None:
        return '<td class="none">not measurable</td>'
    if isinstance(value, str):
        return text(escape(value))
    return f"{value:.1f}" + (f" ± {error:.1f}" if error is not None else "")


def _regional(alignment: SpineAlignment) -> str:
    rows = []
    for (place, name), found in alignment.measures.items():
        if place == REGIONAL:
            unit = _UNITS.get(found.unit, found.unit)
            title = _WORDS.get(
                name, name.removesuffix("_deg").removesuffix("_percent").replace("_", " ")
            )
            rows.append(
                (
                    escape(title),
                    _value(found),
                    text(escape(unit)),
                    text(escape(found.status)),
                    text(escape(found.reason or found.source)),
                )
            )
    note = (
        "± standard error where one was found. Angles of a supine scan are not those of standing"
        " (recumbent LL is about 13° less, S67)."
    )
    return table(note, ("measure", "value", "unit", "status", "note"), rows)


def _places(alignment: SpineAlignment, mark: str) -> str:
    """One column per disc ("-" in the place) or per vertebra."""
    keys = [
        key for key in alignment.measures if key[0] != REGIONAL and ("-" in key[0]) == bool(mark)
    ]
    places = list(dict.fromkeys(place for place, _ in keys))
    names = list(dict.fromkeys(name for _, name in keys))
    rows = []
    for name in names:
        cells = [alignment.measures.get((place, name)) for place in places]
        rows.append(
            (
                escape(name.replace("_", " ")),
                *("—" if cell is None else _value(cell) for cell in cells),
            )
        )
    if not rows:
        return "<p>None: fewer than two neighbouring levels.</p>"
    return table("Units stand at the end of each name", ("", *places), rows)


def _structures(patient: PatientModel, places: Mapping[str, Mapping[str, Any]]) -> str:
    """Three tables, each only where something is known."""

    def figure(value: float | None) -> str:
        return '<td class="none">—</td>' if value is None else f"{value:.1f}"

    joints, discs, sections, bodies = [], [], [], []
    for place, at in places.items():
        for side, joint in at.get("facet_joints", {}).items():
            why = joint.get("reason", "")
            figures = (figure(joint[key]) for key in ("least_mm", "mean_mm", "touching_mm2"))
            joints.append(
                (f"{place} {side}", text(escape(joint["state"])), *figures, text(escape(why)))
            )
        if (disc := at.get("disc")) is not None:
            figures = (
                figure(disc[key])
                for key in ("label_height_mm", "bone_gap_mm", "rim_planes_mm", "label_volume_mm3")
            )
            discs.append((place, *figures, text(escape(disc.get("reason", "")))))
        if (canal := at.get("labelled_canal")) is not None:
            figures = (figure(canal[key]) for key in ("ap_mm", "transverse_mm", "area_mm2"))
            sections.append((place, *figures, text(escape(canal.get("reason", "")))))
        if (body := at.get("subregions")) is not None:
            shares = (
                "—" if body[key] is None else f"{body[key]:.0%}"
                for key in ("corpus_before_wall", "arch_behind_wall")
            )
            bodies.append((place, *shares))
    parts = []
    if joints:
        note = (
            "Between the two bones' facing areas. Touching: the labels do (as they often do where"
            " voxels are larger than the joint's gap); the mean is then of the bones as parted for"
            " the model"
        )
        parts.append(
            table(
                note,
                ("joint", "state", "least gap, mm", "mean gap, mm", "labels touch, mm²", "note"),
                joints,
            )
        )
    if discs:
        note = (
            "Middle height of the labelled disc beside that between the bones' own surfaces and"
            " between the rims' planes, mm"
        )
        parts.append(
            table(
                note,
                ("disc", "label", "bone to bone", "rim planes", "label's volume, mm³", "note"),
                discs,
            )
        )
    if sections:
        note = "Labelled canal at mid-height of the bodies and in the discs' middles"
        parts.append(
            table(
                note, ("place", "antero-posterior, mm", "width, mm", "area, mm²", "note"), sections
            )
        )
    if bodies:
        note = "Check of the found bodies by the sub-region mask, which had no part in finding them"
        parts.append(
            table(note, ("level", "corpus before the posterior wall", "arch behind it"), bodies)
        )
    others = ", ".join(patient.structures) or "none (the labels hold no discs, canal or cord)"
    parts.append(f"<p>Surfaces beside the bones: {escape(others)}.</p>")
    return "".join(parts)


def _rules(targets: Sequence[object]) -> str:
    rows = []
    for target in targets:
        t = vars(target)
        ll = "—" if t["ll_deg"] is None else f"{t['ll_deg']:.0f}"
        change = "—" if t["change_deg"] is None else f"{t['change_deg']:+.0f}"
        rows.append(
            (
                escape(t["title"]),
                ll,
                change,
                text(escape(t["equation"])),
                text(escape(t["reason"] or t["source"])),
            )
        )
    return table(
        "Target LL and the change that it demands, degrees; the rules disagree, none is the truth",
        ("rule", "LL", "change", "equation", "note"),
        rows,
    )


def _plan(segment: Segment) -> str:
    rows = []
    for key in SegmentAlignment.__dataclass_fields__:
        a, b = getattr(segment.plan.measured, key), getattr(segment.plan.planned, key)
        rows.append((escape(key.replace("_", " ")), f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"))
    caption = f"Rule {escape(segment.plan.rule)}: {escape(segment.plan.source)}"
    return (
        table(caption, ("", "measured", "planned", "demand"), rows)
        + _demands(segment)
        + bullets(segment.plan.notes)
    )


def _demands(segment: Segment) -> str:
    demands = segment.plan.demands
    if not demands:
        return ""
    rows = [
        (
            escape(d.level),
            f"{d.measured_deg:.1f}",
            f"{d.wanted_deg:+.1f}",
            f"{d.given_deg:+.1f}",
            f"{d.limit_deg:.1f}",
            text(escape(d.limited_by)),
            f"{d.shortfall_deg:+.1f}",
        )
        for d in demands
    ]
    if len(demands) > 1:
        sums = [
            f"{sum(getattr(d, key) for d in demands):+.1f}"
            for key in ("wanted_deg", "given_deg", "shortfall_deg")
        ]
        rows.append(("all treated", "", sums[0], sums[1], "", "", sums[2]))
    caption = (
        "Demand on each treated level, degrees of superior-to-superior lordosis; only"
        f" {escape(segment.name)} is planned here"
    )
    return table(
        caption, ("level", "measured", "wanted", "given", "limit", "limited by", "shortfall"), rows
    )


def _trabecular(
    patient: PatientModel,
    scan: Image | None,
    calibration: Calibration | None,
    excluded: np.ndarray | None,
) -> tuple[list[TrabecularHU], list[str]]:
    if scan is None or scan.modality != "CT":
        return [], ["no CT was read: no HU and no density of this patient"]
    found, reasons = [], []
    for body in patient.vertebrae:
        try:
            found.append(trabecular(scan, body, calibration, excluded))
        except ValueError as error:
            reasons.append(f"{body.name}: {error}")
    return found, reasons


def _bone(
    patient: PatientModel,
    rows: list[TrabecularHU],
    reasons: list[str],
    calibration: Calibration | None,
) -> str:
    parts = [f"<p>Density of the model: {escape(patient.density_source)}.</p>"]
    if rows:
        shown = []
        for row in rows:
            density = "—" if row.vbmd_g_cm3 is None else f"{1000.0 * row.vbmd_g_cm3:.0f}"
            shown.append(
                (
                    row.level,
                    f"{row.mean_hu:.0f}",
                    f"{row.sd_hu:.0f}",
                    f"{row.se_hu:.1f}",
                    density,
                    text(escape("; ".join(row.notes))),
                )
            )
        parts.append(
            table(
                "Trabecular core of the body",
                ("level", "mean HU", "SD", "SE", "vBMD, mg/cm³", "note"),
                shown,
            )
        )
        for row in rows:
            if row.level == "L1" and row.sd_hu > UNEVEN_HU:
                parts.append(
                    "<p>No clinical band for L1: its region is no uniform trabecular bone.</p>"
                )
            elif row.level == "L1":
                parts.append(f"<p>{escape(l1_band(row.mean_hu))}</p>")
    parts.append(bullets(reasons) if reasons else "")
    if calibration is not None:
        facts = {
            "kind": calibration.kind,
            "slope, g/cm³ per HU": calibration.slope_g_cm3_per_hu,
            "intercept, g/cm³": calibration.intercept_g_cm3,
            "equivalent": calibration.equivalent,
            "residual (rms), g/cm³": calibration.residual_g_cm3,
            "R²": calibration.r2,
            "source": calibration.source,
        }
        parts.append(pairs("Calibration", facts) + bullets(calibration.notes))
        points = [
            (escape(p.name), number(p.hu), number(p.density_g_cm3)) for p in calibration.points
        ]
        parts.append(table("Calibration points", ("", "HU", "g/cm³"), points) if points else "")
    return "".join(parts)


def _findings(patient: PatientModel, labels: Labels | None) -> str:
    if labels is None:
        return "<p>No mask was read.</p>"
    rows = [
        (
            escape(f.code),
            text(escape(f.severity)),
            text(escape(f.level or "—")),
            text(escape(f.text)),
        )
        for f in patient.findings
    ]
    return (
        table(
            "Numbers in the picture count those with a place",
            ("finding", "severity", "level", "what"),
            rows,
        )
        if rows
        else "<p>None.</p>"
    )


def _source(patient: PatientModel) -> dict[str, str]:
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix} {key}".strip(), inner)
        elif value is not None:
            flat[prefix] = str(value)

    walk("", {key: value for key, value in patient.source.items() if key != "spec"})
    return flat


def _files() -> str:
    rows = [
        ("patient/", text("bundle: bundle.json, surfaces (PLY), fields (NPZ), structures/ (VTP)")),
        ("segment/", text("the treated segment at its planned pose")),
        ("view/", text("VTP and VTI for ParaView, pictures")),
        (
            "alignment.json, anatomy.json, rules.json, bone.json, findings.json",
            text("the tables of this page"),
        ),
        (
            "hardware.json",
            text(
                "metal and cement in the scan, where there is any; its surfaces in"
                " patient/structures"
            ),
        ),
    ]
    return table("In the patient's folder", ("where", "what"), rows)
