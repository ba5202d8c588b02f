"""Design a cage for a planned segment: search the rivals' positions, optimise, export, and with check=true verify and report.

    python scripts/optimize.py patient.bundle=cases/verse004 implant=tlif_cage loadcases=lumbar_standard objectives=balanced
    python scripts/optimize.py … resume=true        goes on with an interrupted run
    python scripts/optimize.py -m objectives=balanced,subsidence seed=0,1,2 out=runs/study launcher=joblib      every combination;
        the same line again goes on where it was; python scripts/status.py sweep=runs/study shows it

Exit codes: 0 done, 2 wrong input (said in one line) or failed for good, 75 failed for a reason that may pass, 130 interrupted (the folder
resumes); of a sweep 0 when every job is done, else 1.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from scripts import configure, doctor, job, launchers, pipeline, sweep


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(settings: DictConfig) -> None:
    """Compose, validate, run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        launchers.end_with_parent()
        doctor.require()
        config, _ = configure.run_config(settings)
    except (ValueError, OmegaConfBaseException) as error:
        configure.said(error)
        sys.exit(job.FAILED)
    except KeyboardInterrupt:
        sys.exit(job.STOPPED)
    pipeline.set_up_jax()
    code = job.run(config, configure.made(HydraConfig.get()))
    if code == job.DONE:
        designs = f"designs: {config.out}/designs\nnext: python scripts/verify.py run={config.out}"
        print(f"report: {config.out}/report.html" if config.check else designs)
    sys.exit(code)


if __name__ == "__main__":
    if many := {"-m", "--multirun"} & set(sys.argv[1:]):
        sys.exit(sweep.main([a for a in sys.argv[1:] if a not in many]))
    main()
