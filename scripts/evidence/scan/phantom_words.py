"""Overrides that prepare a phantom scan with its known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.console.overrides import quoted


def overrides(out: Path, truth: dict[str, Any]) -> list[str]:
    """What prepare_patient.py is told of this scan: files, rods, hips."""
    place = out.resolve()
    rods = []
    for k, rod in enumerate(truth["rods"]):
        (x, y, low), (_, _, high) = rod["axis_mm"]
        centre = [round(x, 2), round(y, 2), round(0.5 * (low + high), 2)]
        rods.append(
            {
                "name": f"rod{k}",
                "centre_lps_mm": centre,
                "radius_mm": round(0.8 * rod["radius_mm"], 2),
                "length_mm": 40,
                "density_mg_cm3": round(1000.0 * rod["density_g_cm3"], 1),
            }
        )
    words = [
        "source=ct",
        quoted("source.path", place / "dicom"),
        quoted("source.mask", place / "labels.nii.gz"),
    ]
    words += ["calibration=phantom", quoted("calibration.rods", rods)]
    if "femoral_heads_mm" in truth:
        heads = [[round(float(c), 2) for c in head] for head in truth["femoral_heads_mm"]]
        words.append(quoted("alignment.femoral_heads_mm", heads))
    return words
