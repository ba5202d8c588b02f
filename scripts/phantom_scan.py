"""Scan the phantom: a CT whose every landmark, density and calibration rod is known.

    python scripts/phantom_scan.py out=cases/scan
    python scripts/phantom_scan.py out=cases/scan '+phantom.pi_deg=60' 'scan.voxel_mm=[1,1,2]'
        scan.orientation=PIR gantry_tilt_deg=12
    python scripts/phantom_scan.py out=cases/scan spine=segment '+phantom.lordosis_deg=3'

Writes <out>/dicom/*.dcm, <out>/ct.nii.gz, <out>/labels.nii.gz (VerSe numbers), <out>/truth.json and
<out>/prepare.sh: the line that prepares it as a patient, with its calibration rods and hips. Exit
code 2 with one line for whatever is wrong with the input.

Hydra composes the settings as under @hydra.main (by this word its completion knows a script);
scripts/console/command.py is around it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.console.command import Command, require_writable
from scripts.console.composing import Given
from scripts.console.wrong import nearest
from scripts.evidence.scan.phantom_words import overrides

_KEYS = ("gantry_tilt_deg", "out", "phantom", "scan", "spine")


def shell_script(words: list[str]) -> str:
    """prepare.sh: the folder of the patient is its argument, whatever characters it holds."""
    line = " ".join(map(shlex.quote, ["python", "scripts/prepare_patient.py", *words]))
    return f'{line} out="${{1:?folder}}"\n'


def _opening(given: Given) -> Iterator[str]:
    if unknown := sorted(set(given.settings) - set(_KEYS)):
        raise ValueError(
            f"{', '.join(map(str, unknown))}: unknown{nearest(str(unknown[0]), _KEYS)}; known are"
            f" {', '.join(_KEYS)}"
        )
    if given.settings.spine not in ("lumbar", "segment"):
        raise ValueError(
            f"spine={given.settings.spine!r} is unknown; choose lumbar (L1 to the sacrum) or"
            " segment (L4-L5)"
        )
    require_writable(Path(given.settings.out))
    yield (
        f"CT of the phantom ({given.settings.spine})\nfolder: {given.settings.out}\nexpected: half"
        " a minute to two minutes"
    )


def _run(given: Given) -> int:
    """Validate, scan, write."""
    from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom, lumbar_truth
    from engine.patient.phantoms.phantom import PhantomSpec, phantom
    from engine.patient.phantoms.scan_files import write_dicom_series, write_nifti
    from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
    from scripts.console.wrong import typed

    config = given.plain
    out, tilt = Path(config["out"]), float(config["gantry_tilt_deg"])
    if config["spine"] == "lumbar":
        lumbar = typed(LumbarSpec, config["phantom"])
        patient = lumbar_phantom(lumbar)
        exact: dict[str, Any] = {
            "lumbar": lumbar_truth(lumbar),
            "femoral_heads_mm": patient.source["femoral_heads_mm"],
        }
    else:
        patient, exact = phantom(typed(PhantomSpec, config["phantom"])), {}
    scan, labels, truth = synthetic_ct(patient, typed(ScanSpec, config["scan"]))
    files = write_dicom_series(scan, out / "dicom", gantry_tilt_deg=tilt)
    write_nifti(scan, out / "ct.nii.gz")
    write_nifti(labels, out / "labels.nii.gz")
    (out / "prepare.sh").write_text(shell_script(overrides(out, truth | exact)), encoding="utf-8")
    (out / "truth.json").write_text(
        json.dumps(truth | exact | {"gantry_tilt_deg": tilt}, indent=1), encoding="utf-8"
    )
    print(
        f"{scan.values.shape} voxels of {scan.voxel_mm.round(3).tolist()} mm, {len(files)} slices"
        f" in {out / 'dicom'}"
    )
    print(f"prepare it: bash {shlex.quote(str(out / 'prepare.sh'))} FOLDER")
    return 0


COMMAND = Command(
    script="phantom_scan.py",
    config="phantom_scan",
    does=(
        "Scans the phantom: a CT (DICOM and NIfTI) with labels whose every landmark, density and"
        " calibration rod is known, and prepare.sh, the line that prepares it as a patient."
    ),
    options={
        "out": "where the scan goes",
        "spine": "lumbar (L1 to the sacrum) | segment (L4-L5)",
        "scan.voxel_mm": "voxel size, x, y, z",
        "scan.orientation": "of the voxels' axes, e.g. PIR",
        "gantry_tilt_deg": "of the DICOM series",
        "+phantom.KEY": (
            "any key of engine/patient/phantoms/lumbar.py, LumbarSpec (spine=segment: phantom.py,"
            " PhantomSpec)"
        ),
    },
    examples=(
        "out=cases/scan",
        "out=cases/scan +phantom.pi_deg=60 'scan.voxel_mm=[1,1,2]'",
        "out=cases/scan spine=segment +phantom.lordosis_deg=3",
    ),
    task=_run,
    opening=_opening,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
