"""How right is the way from a scan to a model, on this machine: tables as Markdown and JSON in `out`.

    python scripts/scan_study.py truth         phantoms over anatomies, voxels and orientations against their exact alignment
    python scripts/scan_study.py refine        edges of a CT's masks placed by HU, and not, against exact surfaces and alignment
    python scripts/scan_study.py density       the same phantoms' bone: HU, vBMD and calibration against what was scanned
    python scripts/scan_study.py references    a real CT against the heights, volumes and HU that were published with it
    python scripts/scan_study.py stability     real patients, resampled, turned by 20 degrees and at 1.5 times the voxel size
    python scripts/scan_study.py data          every public data set prepared: time, memory, findings, pictures
    python scripts/scan_study.py malformed     bad input of every kind and what is said of it
    python scripts/scan_study.py size          a CT of 512 x 512 x 300 voxels with labels: time and memory

Each case is a run of scripts/prepare_patient.py of its own. Exit code 2 with one line for whatever is wrong with the settings.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig, OmegaConf

from engine.patient.prepare import one_line
from scripts import scan_inputs, scan_runs, scan_truth

STUDIES = scan_truth.STUDIES | scan_inputs.STUDIES


@hydra.main(version_base="1.3", config_path="../conf", config_name="scan_study")
def main(settings: DictConfig) -> None:
    """Run one study."""
    try:
        config = scan_runs.StudyConfig(**OmegaConf.to_container(settings, resolve=True))  # type: ignore[arg-type]
        print(scan_runs.run(WHAT, STUDIES[WHAT], config))
    except ValueError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    WHAT = sys.argv.pop(1) if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-") else ""
    if WHAT not in STUDIES and not {"--help", "-h"} & set(sys.argv):
        print(f"error: say what to study: {' | '.join(STUDIES)} (python scripts/scan_study.py truth)", file=sys.stderr)
        sys.exit(2)
    main()
