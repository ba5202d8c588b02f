"""`make study`: does optimising X buy Y? The commands that a user would type: prepare five patients, 60 designs, one comparison.

    python scripts/study.py [out]      default runs/objectives_study; goes on where it was, however it was ended

The real patients are found through SPINEFIT_DATA (default ../shared/data). Two and a half hours on two cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
DATA = Path(os.environ.get("SPINEFIT_DATA", SCRIPTS.parent.parent / "shared" / "data"))
PATIENTS = {
    "phantom_normal": ["source.spec.trabecular_g_cm3=0.18"],
    "phantom_osteopenic": ["source.spec.trabecular_g_cm3=0.11"],
    "phantom_wedged": ["source.spec.coronal_deg=7", "source.spec.lordosis_deg=2", "source.spec.height_middle_mm=7", "source.spec.seed=1"],
    "verse004": ["source=mask", f"source.path={DATA}/verse004_mask/sub-verse004_seg-vert_msk.nii.gz"],
    "vhm": ["source=surfaces", f"source.path={DATA}/lumbar_meshes"],
}


def command(script: str, *arguments: str) -> int:
    """Run one command; an interruption is its own to handle."""
    print(f"== python scripts/{script} {' '.join(arguments)}", flush=True)
    child = subprocess.Popen([sys.executable, str(SCRIPTS / script), *arguments])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child has it too, and saves
            continue


def main(out: str) -> int:
    """Prepare what is missing, sweep, compare."""
    if not DATA.is_dir():
        print(f"error: no test data in {DATA}; set SPINEFIT_DATA to the folder that holds verse004_mask and lumbar_meshes", file=sys.stderr)
        return 2
    for name, arguments in PATIENTS.items():
        if not Path("cases", name, "segment", "segment.json").exists():
            if code := command("prepare_patient.py", *arguments, "segment=L4-L5", f"out=cases/{name}"):
                return code
    code = command("optimize.py", "-m", "experiment=objectives_study", f"out={out}")
    return code if code not in (0, 1) else command("compare.py", f"runs=[{out}]", f"out={out}_page") or code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "runs/objectives_study"))
