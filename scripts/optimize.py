"""Design a cage for a planned segment: search the rivals' positions, optimise, export.

    python scripts/optimize.py patient.bundle=cases/verse004 implant=tlif_cage loadcases=lumbar_standard objectives=balanced
    python scripts/optimize.py … resume=true        goes on with an interrupted run

Exit code 2 with one line for whatever is wrong with the input, 130 when interrupted (the folder resumes).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.patient.prepare import one_line
from scripts import doctor, pipeline


def run_config(settings: DictConfig) -> pipeline.RunConfig:
    """The typed configuration of the composed groups. Raises ValueError naming every wrong key or value."""
    plain = dict(OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    study = {"stock", "boundary", "solver", "search", "export_spacing_mm"}
    parts = {"implant", "loadcases", "objectives"}
    known = set(pipeline.RunConfig.model_fields) - {"study"}
    unknown = set(plain) - known - study - parts
    if unknown:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}; known are {', '.join(sorted(known | study | parts))}")
    for group, key in (("loadcases", "cases"), ("objectives", "goals")):
        if extra := set(plain[group]) - {key}:
            raise ValueError(f"{group}: unknown key {', '.join(sorted(extra))}; it holds {key} and nothing else")
    body = {k: plain[k] for k in study} | {"cases": plain["loadcases"]["cases"], "goals": plain["objectives"]["goals"]}
    return pipeline.RunConfig(**{k: plain[k] for k in known & set(plain)}, study=body | plain["implant"])


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(settings: DictConfig) -> None:
    """Compose, validate, run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        doctor.require()
        config = run_config(settings)
        pipeline.set_up_jax()
        folder = pipeline.design_run(config)
    except pipeline.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except (ValueError, FloatingPointError, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"designs: {folder}/designs\nnext: python scripts/verify.py run={folder}")


if __name__ == "__main__":
    main()
