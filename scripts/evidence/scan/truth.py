"""Exact alignment of phantoms: what is measured in their labels against what they were made
with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.patient.phantoms.lumbar import (
    LumbarSpec,
    fractured,
    lumbar_phantom,
    lumbar_truth,
    scoliotic,
)
from engine.patient.phantoms.scan_files import write_nifti
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.types import PatientModel
from scripts.console.markdown import table
from scripts.evidence.scan.cases import TURN_DEG, Case, CaseResult, CaseSetConfig, failures

#: Measures of the alignment that a table shows together: title → names.
GROUPS = {
    "disc angle °": ("lordosis_deg", "segmental_lordosis_deg"),
    "coronal wedge °": ("coronal_deg",),
    "axial °": ("axial_deg",),
    "disc height mm": ("height_anterior_mm", "height_middle_mm", "height_posterior_mm"),
    "listhesis, lateral mm": ("listhesis_mm", "lateral_mm"),
    "body wedge °": ("wedge_deg",),
    "LL, L4-S1 °": ("lumbar_lordosis_deg", "l4_s1_lordosis_deg"),
    "Cobb °": ("cobb_deg",),
    "SS °": ("sacral_slope_deg",),
    "PI, PT, PI−LL °": ("pelvic_incidence_deg", "pelvic_tilt_deg", "pi_minus_ll_deg"),
}
_FLAT = {
    "lordosis_deg": (1.0, 1.0, 2.0, 2.0, 5.0),
    "body_wedge_deg": (-3.0, -2.0, -1.0, 0.0, 5.0),
    "sacral_slope_deg": 22.0,
    "pi_deg": 48.0,
    "height_middle_mm": (7.0, 7.0, 6.0, 6.0, 5.0),
}
_HYPER = {"lordosis_deg": (5.0, 9.0, 11.0, 14.0, 20.0), "sacral_slope_deg": 58.0, "pi_deg": 72.0}
_SLIPPED = {"listhesis_mm": (0.0, 0.0, -3.0, 6.0, 0.0), "lateral_mm": (0.0, 2.0, 0.0, 0.0, 0.0)}
_TURNED = {"rotation_deg": (20.0, -12.0, 15.0), "translation_mm": (30.0, -40.0, 500.0)}
_MIXED = {
    "coronal_deg": (3.0, 6.0, -2.0, -5.0, 0.0),
    "axial_deg": (2.0, 4.0, 3.0, -2.0, 0.0),
    "listhesis_mm": (0.0, 0.0, 2.0, 4.0, 1.0),
}


def spines() -> dict[str, LumbarSpec]:
    """Lumbar spines by name, each hard in another way."""
    normal = LumbarSpec(spacing_mm=1.0)
    return {
        "normal": normal,
        "hyperlordotic": normal.model_copy(update=_HYPER),
        "flat back": normal.model_copy(update=_FLAT),
        "scoliosis 25°": scoliotic(normal, 25.0),
        "listhesis 6 mm": normal.model_copy(update=_SLIPPED),
        "wedge fracture L1": fractured(normal, "L1", 0.3),
        "small": normal.model_copy(
            update={
                "width_mm": (36.0, 37.0, 39.0, 41.0, 43.0),
                "depth_mm": (27.0, 28.0, 28.0, 29.0, 29.0),
                "sacrum_width_mm": 43.0,
            }
        ),
        "scoliosis, slip, axial": normal.model_copy(update=_MIXED),
    }


def _phantom(spine: LumbarSpec, scan: ScanSpec, place: Path) -> list[str]:
    patient = lumbar_phantom(spine)
    _, labels, _ = synthetic_ct(patient, scan)
    write_nifti(labels, place / "labels.nii.gz")
    return [
        "source=mask",
        f"source.path={place / 'labels.nii.gz'}",
        "plan=keep",
        heads_override(patient),
    ]


def heads_override(patient: PatientModel) -> str:
    """The override that gives a phantom's femoral heads."""
    heads = ",".join(
        f"[{','.join(f'{c:.3f}' for c in head)}]" for head in patient.source["femoral_heads_mm"]
    )
    return f"alignment.femoral_heads_mm=[{heads}]"


def truth_cases(config: CaseSetConfig) -> list[Case]:
    """Spines, patients turned, a grid turned, and voxels of many sizes."""

    def case(
        name: str,
        spine: LumbarSpec,
        voxel: tuple[float, float, float] = (1.0, 1.0, 1.0),
        **scan: Any,
    ) -> Case:
        settings = ScanSpec(voxel_mm=voxel, extent="spine", **scan)
        return Case(
            name, lambda place: _phantom(spine, settings, place), {"spine": spine, "voxel": voxel}
        )

    by_name = spines()
    hard = by_name["scoliosis, slip, axial"]
    cases = [case(name, spine) for name, spine in by_name.items()]
    cases += [
        case(f"{name}, patient turned", by_name[name].model_copy(update=_TURNED))
        for name in ("normal", "scoliosis, slip, axial")
    ]
    cases += [
        case(
            "scoliosis, slip, axial, grid turned 20°",
            hard,
            rotation_deg=TURN_DEG,
            orientation="PIR",
        )
    ]
    for voxel in (
        (0.7, 0.7, 1.0),
        (0.5, 0.5, 2.0),
        (1.5, 1.5, 1.5),
        (2.0, 2.0, 2.0),
        (1.0, 1.0, 3.0),
        (3.0, 3.0, 3.0),
    ):
        cases.append(case(f"scoliosis, slip, axial, {voxel[0]:g} × {voxel[2]:g} mm", hard, voxel))
    return cases


def truth_table(results: Sequence[CaseResult]) -> tuple[str, Any]:
    """Largest error of each group of measures, a row a case."""
    rows = []
    record: dict[str, Any] = {}
    every: dict[str, list[float]] = {}
    for r in results:
        if r.code:
            continue
        measured, exact = r.measures(("deg", "mm", "%")), lumbar_truth(r.case.facts["spine"])
        errors = {key: measured[key] - value for key, value in exact.items() if key in measured}
        record[r.case.name] = {"errors": errors, "not measured": sorted(set(exact) - set(measured))}
        cells = []
        for title, names in GROUPS.items():
            group = [abs(v) for key, v in errors.items() if key.split(".")[1] in names]
            if r.case.facts["voxel"] == (1.0, 1.0, 1.0):
                every.setdefault(title, []).extend(group)
            cells.append(f"{max(group):.2f}" if group else "—")
        rows.append((r.case.name, *cells, len(record[r.case.name]["not measured"])))
    rows.append(
        (
            "**rms of all at 1 mm**",
            *(f"{np.sqrt(np.mean(np.square(every.get(t) or [np.nan]))):.2f}" for t in GROUPS),
            "",
        )
    )
    text = (
        "Largest error against the exact alignment of the phantom, labels of 1 mm where not"
        " said:\n\n"
    )
    return text + table(("spine", *GROUPS, "not measured"), rows) + failures(results), record
