"""Measure the engine, on this machine.

    python scripts/benchmark.py solver
    python scripts/benchmark.py solver device=gpu solvers=[engine] unknowns=[1e6,4e6]
        engine and peers on the same problem: table, JSON, plot
    python scripts/benchmark.py size unknowns=[1e5,1e6,1e7]
        the engine alone: cost against size and its exponent
    python scripts/benchmark.py iterations bundle=cases/x spacing_mm=[2,1.5,1,0.75]
        unknowns=[3e5,1e6]
        iterations over contrasts, sizes, designs
    python scripts/benchmark.py iteration bundle=cases/x
        one design iteration, its parts and what each device saves
    python scripts/benchmark.py refinement bundle=cases/x spacing_mm=[2,1.5,1,0.75]
        measures of fixed designs against the grid

Peers that are not installed say so (python -m scripts.peers install). Exit code 2 with one line for
whatever is wrong with the input.

Hydra composes the settings as under @hydra.main (by this word its completion knows a script);
scripts/console/command.py is around it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.console.command import Command, require_writable
from scripts.console.composing import Given
from scripts.console.wrong import typed


def _opening(given: Given) -> Iterator[str]:
    settings = given.plain
    require_writable(Path(settings["out"]))
    if settings["bundle"] is not None and not (Path(settings["bundle"]) / "segment").is_dir():
        raise ValueError(
            f"bundle={settings['bundle']} holds no planned segment; give the out= of"
            " scripts/prepare_patient.py"
        )
    yield f"benchmark: {given.topic}, {TOPICS[given.topic]}"
    yield (
        f"folder: {settings['out']}\nexpected: minutes to hours, by size; a solver is stopped after"
        f" time_limit_s={settings['time_limit_s']}"
    )


def _run(given: Given) -> int:
    """Run one benchmark."""
    import logging

    from scripts.benchmarks.measure import KINDS
    from scripts.benchmarks.record import BenchmarkConfig

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    KINDS[given.topic](typed(BenchmarkConfig, given.plain))
    return 0


#: Names of scripts.benchmarks.measure.KINDS.
TOPICS = {
    "solver": "engine and peers on the same problem",
    "size": "the engine alone: cost against size and its exponent",
    "iterations": "iterations over contrasts, sizes and designs",
    "iteration": "one design iteration, its parts and what each device saves",
    "refinement": "measures of fixed designs against the grid",
}
COMMAND = Command(
    script="benchmark.py",
    config="benchmark",
    does=(
        "Measures the engine on this machine: tables, JSON and plots in out=. Peers that are not"
        " installed say so (python -m scripts.peers install)."
    ),
    options={
        "unknowns": "sizes of the problem",
        "solvers": "which",
        "device": "cpu | gpu: where the engine runs",
        "bundle": "iterations, iteration, refinement: a prepared patient; null: the phantom",
        "spacing_mm": "iterations, iteration, refinement: grids",
        "time_limit_s": "a solver is stopped after this",
        "out": "where the tables go",
    },
    examples=("solver", "size unknowns=[1e5,1e6,1e7]", "iteration bundle=cases/vhm"),
    task=_run,
    opening=_opening,
    topics=TOPICS,
    topic_needed=True,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
