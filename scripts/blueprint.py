"""The blueprint of a run's parts: PDF and DXF drawing, GLB, and every figure on the sheet as blueprint.json, in designs/<arm>/.

    python scripts/blueprint.py run=<run folder> [arms=[optimised,conforming]] [lattice={cell: diamond}]

Every job writes that of the optimised part. Exit code 0, or 2 with one line.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from scripts import blueprinting, configure, job


@hydra.main(version_base="1.3", config_path="../conf", config_name="blueprint")
def main(settings: DictConfig) -> None:
    """Draw the arms that are asked for."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = blueprinting.BlueprintConfig(**OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
        for arm in config.arms:
            if config.lattice is not None:
                made = blueprinting.write_lattice(Path(config.run), arm, config.lattice)
                print(f"{arm}: lattice: {'solid, no struts' if made['solid'] else Path(config.run) / 'designs' / arm / 'lattice.stl'}")
            for what, path in blueprinting.write_blueprint(Path(config.run), arm, config.tolerances, config.finish).items():
                print(f"{arm}: {what}: {path}")
            if config.step:
                print(f"{arm}: STEP: {blueprinting.write_step(Path(config.run), arm, config.step_deviation_mm)}")
    except (ValueError, ValidationError, OmegaConfBaseException) as error:
        configure.said(error)
        sys.exit(job.FAILED)


if __name__ == "__main__":
    main()
