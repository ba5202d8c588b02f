"""Measure the engine, on this machine.

    python scripts/benchmark.py solver                           engine and peers on the same problem: table, JSON, plot
    python scripts/benchmark.py solver device=gpu solvers=[engine] unknowns=[1e6,4e6]
    python scripts/benchmark.py size unknowns=[1e5,1e6,1e7]      the engine alone: cost against size and its exponent
    python scripts/benchmark.py iterations bundle=cases/x spacing_mm=[2,1.5,1,0.75] unknowns=[3e5,1e6]
                                                                 iterations over contrasts, sizes, designs
    python scripts/benchmark.py iteration bundle=cases/x         one design iteration, its parts and what each device saves
    python scripts/benchmark.py refinement bundle=cases/x spacing_mm=[2,1.5,1,0.75]    measures of fixed designs against the grid

Peers that are not installed say so (python -m scripts.peers install). Exit code 2 with one line for whatever is wrong with the input.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig, OmegaConf

from engine.patient.prepare import one_line
from scripts import benchmarking


@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark")
def main(settings: DictConfig) -> None:
    """Run one benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = benchmarking.BenchmarkConfig(**OmegaConf.to_container(settings, resolve=True))  # type: ignore[arg-type]
        benchmarking.KINDS[WHAT](config)
    except ValueError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    WHAT = sys.argv.pop(1) if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-") else ""
    if WHAT not in benchmarking.KINDS and not {"--help", "-h"} & set(sys.argv):
        print(f"error: say what to measure: {' | '.join(benchmarking.KINDS)} (python scripts/benchmark.py solver)", file=sys.stderr)
        sys.exit(2)
    main()
