"""Scan the phantom: a CT whose every landmark, density and calibration rod is known.

    python scripts/phantom_scan.py out=cases/scan
    python scripts/phantom_scan.py out=cases/scan '+phantom.pi_deg=60' 'scan.voxel_mm=[1,1,2]' scan.orientation=PIR gantry_tilt_deg=12
    python scripts/phantom_scan.py out=cases/scan spine=segment '+phantom.lordosis_deg=3'

Writes <out>/dicom/*.dcm, <out>/ct.nii.gz, <out>/labels.nii.gz (VerSe numbers), <out>/truth.json and <out>/prepare.sh: the line that
prepares it as a patient, with its calibration rods and hips.
Exit code 2 with one line for whatever is wrong with the input.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.patient.lumbar import LumbarSpec, lumbar_phantom, lumbar_truth
from engine.patient.phantom import PhantomSpec, phantom
from engine.patient.prepare import one_line
from engine.patient.synthetic import ScanSpec, synthetic_ct, write_dicom_series, write_nifti


def overrides(out: Path, truth: dict[str, Any]) -> list[str]:
    """What prepare_patient.py is told of this scan: files, rods, hips."""
    place = out.resolve()
    rods = []
    for k, rod in enumerate(truth["rods"]):
        (x, y, low), (_, _, high) = rod["axis_mm"]
        mg, radius = 1000.0 * rod["density_g_cm3"], 0.8 * rod["radius_mm"]
        centre = f"[{x:.2f},{y:.2f},{0.5 * (low + high):.2f}]"
        rods.append(f"{{name:rod{k},centre_lps_mm:{centre},radius_mm:{radius:.2f},length_mm:40,density_mg_cm3:{mg:.1f}}}")
    lines = ["source=ct", f"source.path={place / 'dicom'}", f"source.mask={place / 'labels.nii.gz'}"]
    lines += ["calibration=phantom", f"calibration.rods=[{','.join(rods)}]"]
    if "femoral_heads_mm" in truth:
        heads = ",".join(f"[{','.join(f'{c:.2f}' for c in head)}]" for head in truth["femoral_heads_mm"])
        lines.append(f"alignment.femoral_heads_mm=[{heads}]")
    return lines


@hydra.main(version_base="1.3", config_path="../conf", config_name="phantom_scan")
def main(settings: DictConfig) -> None:
    """Compose, validate, scan, write."""
    try:
        config = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
        assert isinstance(config, dict)
        known = {"spine", "phantom", "scan", "gantry_tilt_deg", "out"}
        if unknown := set(config) - known:
            raise ValueError(f"{', '.join(map(str, sorted(unknown)))}: unknown; known are {', '.join(sorted(known))}")
        out, tilt = Path(config["out"]), float(config["gantry_tilt_deg"])
        if config["spine"] == "lumbar":
            lumbar = LumbarSpec(**config["phantom"])
            patient = lumbar_phantom(lumbar)
            exact: dict[str, Any] = {"lumbar": lumbar_truth(lumbar), "femoral_heads_mm": patient.source["femoral_heads_mm"]}
        elif config["spine"] == "segment":
            patient, exact = phantom(PhantomSpec(**config["phantom"])), {}
        else:
            raise ValueError(f"spine={config['spine']!r} is unknown; choose lumbar (L1 to the sacrum) or segment (L4-L5)")
        scan, labels, truth = synthetic_ct(patient, ScanSpec(**config["scan"]))
        files = write_dicom_series(scan, out / "dicom", gantry_tilt_deg=tilt)
        write_nifti(scan, out / "ct.nii.gz")
        write_nifti(labels, out / "labels.nii.gz")
        line = " ".join(map(shlex.quote, ["python", "scripts/prepare_patient.py", *overrides(out, truth | exact), 'out="${1:?folder}"']))
        (out / "prepare.sh").write_text(line.replace("""'out="${1:?folder}"'""", 'out="${1:?folder}"') + "\n")
        (out / "truth.json").write_text(json.dumps(truth | exact | {"gantry_tilt_deg": tilt}, indent=1))
    except (ValueError, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"{scan.values.shape} voxels of {scan.voxel_mm.round(3).tolist()} mm, {len(files)} slices in {out / 'dicom'}")
    print(f"prepare it: bash {out / 'prepare.sh'} FOLDER")


if __name__ == "__main__":
    try:
        main()
    except SystemExit as stop:  # Hydra ends with 1 after printing what is wrong with an override
        sys.exit(2 if stop.code == 1 else stop.code)
