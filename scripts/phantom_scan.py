"""Scan the phantom: a CT whose every landmark, density and calibration rod is known.

    python scripts/phantom_scan.py out=cases/scan
    python scripts/phantom_scan.py out=cases/scan '+phantom.lordosis_deg=3' 'scan.voxel_mm=[1,1,2]' scan.orientation=PIR gantry_tilt_deg=12

Writes <out>/dicom/*.dcm, <out>/ct.nii.gz, <out>/labels.nii.gz (VerSe numbers) and <out>/truth.json.
Exit code 2 with one line for whatever is wrong with the input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.patient.phantom import PhantomSpec, phantom
from engine.patient.prepare import one_line
from engine.patient.synthetic import ScanSpec, synthetic_ct, write_dicom_series, write_nifti


@hydra.main(version_base="1.3", config_path="../conf", config_name="phantom_scan")
def main(settings: DictConfig) -> None:
    """Compose, validate, scan, write."""
    try:
        config = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
        assert isinstance(config, dict)
        unknown = set(config) - {"phantom", "scan", "gantry_tilt_deg", "out"}
        if unknown:
            raise ValueError(f"{', '.join(map(str, sorted(unknown)))}: unknown; known are phantom, scan, gantry_tilt_deg and out")
        out, tilt = Path(config["out"]), float(config["gantry_tilt_deg"])
        scan, labels, truth = synthetic_ct(phantom(PhantomSpec(**config["phantom"])), ScanSpec(**config["scan"]))
        files = write_dicom_series(scan, out / "dicom", gantry_tilt_deg=tilt)
        write_nifti(scan, out / "ct.nii.gz")
        write_nifti(labels, out / "labels.nii.gz")
        (out / "truth.json").write_text(json.dumps(truth | {"gantry_tilt_deg": tilt}, indent=1))
    except (ValueError, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"{scan.values.shape} voxels of {scan.voxel_mm.round(3).tolist()} mm, {len(files)} slices in {out / 'dicom'}")


if __name__ == "__main__":
    try:
        main()
    except SystemExit as stop:  # Hydra ends with 1 after printing what is wrong with an override
        sys.exit(2 if stop.code == 1 else stop.code)
