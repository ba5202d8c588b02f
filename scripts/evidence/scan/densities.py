"""Bone's density: of phantoms against what was scanned, and a real CT against published figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom
from engine.patient.phantoms.scan_files import write_dicom_series, write_nifti
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.images import read_image, read_labels
from scripts.console.markdown import table
from scripts.evidence.scan.cases import LINE, Case, CaseResult, CaseSetConfig, failures
from scripts.evidence.scan.phantom_words import overrides


# -- density ---------------------------------------------------------------------------------------
def _scanned(spine: LumbarSpec, scan: ScanSpec, place: Path) -> list[str]:
    image, labels, truth = synthetic_ct(lumbar_phantom(spine), scan)
    write_dicom_series(image, place / "dicom")
    write_nifti(labels, place / "labels.nii.gz")
    artifacts.write_json(place / "truth.json", truth)
    return [*overrides(place, truth), "plan=keep"]


def density_cases(config: CaseSetConfig) -> list[Case]:
    """Three densities of bone, each in fine and in thick slices."""
    cases = []
    for density in (0.07, 0.11, 0.20):
        for voxel in ((0.7, 0.7, 1.0), (0.9, 0.9, 3.0)):
            spine = LumbarSpec(spacing_mm=1.0, trabecular_g_cm3=density, texture=0.0)
            scan = ScanSpec(
                voxel_mm=voxel, noise_hu=15.0, slope_g_cm3_per_hu=0.00083, intercept_g_cm3=-0.006
            )
            name = f"{1000 * density:.0f} mg/cm³, {voxel[0]:g} × {voxel[2]:g} mm"
            cases.append(Case(name, partial(_scanned, spine, scan)))
    return cases


def density_table(results: Sequence[CaseResult]) -> tuple[str, Any]:
    """Calibration, HU and vBMD against what was scanned, a row a phantom."""
    rows, record = [], {}
    for r in results:
        if r.code:
            continue
        truth = json.loads((r.out.parent / "truth.json").read_text())
        line = truth["spec"]["slope_g_cm3_per_hu"], truth["spec"]["intercept_g_cm3"]
        given = r.json("patient/bundle.json")["source"]["calibration"]
        bone = {row["level"]: row for row in r.json("bone.json")}
        hu = {
            k: bone[k]["mean_hu"] - v["core_hu"] for k, v in truth["vertebrae"].items() if k in bone
        }
        vbmd = {
            k: 1000 * (bone[k]["vbmd_g_cm3"] - line[1] - line[0] * v["core_hu"])
            for k, v in truth["vertebrae"].items()
            if k in bone
        }
        slope, intercept = given["slope_g_cm3_per_hu"], given["intercept_g_cm3"]
        record[r.case.name] = {
            "hu": hu,
            "vbmd_mg_cm3": vbmd,
            "slope": slope,
            "intercept": intercept,
        }
        cells = [
            f"{100 * (slope / line[0] - 1):+.2f} %",
            f"{1000 * (intercept - line[1]):+.2f}",
            f"{given['r2']:.5f}",
        ]
        rows.append(
            (
                r.case.name,
                *cells,
                f"{max(map(abs, hu.values())):.1f}",
                f"{max(map(abs, vbmd.values())):.1f}",
            )
        )
    head = (
        "phantom",
        "slope",
        "intercept, mg/cm³",
        "R²",
        "largest error of L1-L5: HU",
        "vBMD, mg/cm³",
    )
    text = (
        "Density of DICOM scans with calibration rods, noise 15 HU, against what was scanned:\n\n"
    )
    return text + table(head, rows) + failures(results), record


# -- references ------------------------------------------------------------------------------------
def reference_cases(config: CaseSetConfig) -> list[Case]:
    """A real CT whose figures were published with it."""
    place = config.folder() / "ct_totalsegmentator"
    words = [
        "source=ct",
        f"source.path={place / 'example_ct.nii.gz'}",
        f"source.mask={place / 'totalseg.nii.gz'}",
        *LINE,
    ]
    return [Case("ct_totalsegmentator", lambda _: words, {"place": place})]


def reference_table(results: Sequence[CaseResult]) -> tuple[str, Any]:
    """Heights, volumes and HU of L1-L5: ours / the reference's."""
    (r,) = results
    if r.code:
        return failures(results), {}
    place = r.case.facts["place"]
    report = json.loads((place / "spine_report.json").read_text())["results"]
    bodies, scan = (
        read_labels(place / "totalseg_vertebrae_pp_refined.nii.gz"),
        read_image(place / "example_ct.nii.gz"),
    )
    measured, bone = r.measures(), {row["level"]: row for row in r.json("bone.json")}
    rows, record = [], {}
    for number, level in enumerate(("L1", "L2", "L3", "L4", "L5"), 20):
        inside = bodies.values == number
        published = {
            key: report[f"vertebrae_{level}_{key}"]
            for key in ("volume_ml", "intensity", "intensity_median")
        }
        volume, hu = inside.sum() * np.prod(bodies.voxel_mm) / 1000.0, scan.values[inside]
        cells = [
            level,
            f"{volume:.2f} / {published['volume_ml']:.2f}",
            f"{hu.mean():.0f} / {published['intensity']:.0f}",
        ]
        cells += [
            f"{bone[level]['mean_hu']:.0f} ± {bone[level]['sd_hu']:.0f} /"
            f" {published['intensity_median']:.0f}"
        ]
        record[level] = {
            "volume_ml": volume,
            "hu": float(hu.mean()),
            "trabecular": bone[level],
            "reference": published,
        }
        for side in ("anterior", "middle", "posterior"):
            ours, theirs = (
                measured[f"{level}.height_{side}_mm"],
                report[f"vertebrae_{level}_height_{side}_mm"],
            )
            record[level][f"height_{side}_mm"] = ours, theirs
            cells.append(f"{ours:.1f} / {theirs:.1f}")
        rows.append(cells)
    head = (
        "",
        "body mask ml",
        "its mean HU",
        "trabecular HU (reference: median of the body)",
        "anterior mm",
        "middle mm",
        "posterior mm",
    )
    return "Ours / the reference's:\n\n" + table(head, rows), record
