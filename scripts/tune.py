"""Search over configurations: Optuna proposes, a run of scripts/optimize.py with its check answers; several targets give a Pareto front.

    python scripts/tune.py out=runs/tune 'base=["solver=coarse","optimizer=short","fem=demo"]' \
        'space={implant.settings.length_mm:{low:26.0,high:34.0},objectives:[balanced,subsidence]}' trials=12

The same command goes on where it was, however it was ended. Exit codes: 0 done, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from scripts import configure, doctor, job, pipeline, tuning


@hydra.main(version_base="1.3", config_path="../conf", config_name="tune")
def main(settings: DictConfig) -> None:
    """Validate, search, show."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        doctor.require()
        pipeline.set_up_jax()
        plain = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
        code = tuning.run(tuning.TuneConfig(**plain))  # type: ignore[arg-type]
    except (ValueError, ValidationError, HydraException, OmegaConfBaseException) as error:
        configure.said(error)
        sys.exit(job.FAILED)
    sys.exit(code)


if __name__ == "__main__":
    main()
