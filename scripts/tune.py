"""Search over configurations: Optuna proposes, a run of scripts/optimize.py with its check answers;
several targets give a Pareto front.

    python scripts/tune.py out=runs/tune 'base=["solver=coarse","optimizer=short","fem=demo"]' \
        'space={implant.settings.length_mm:{low:26.0,high:34.0},objectives:[balanced,subsidence]}'
        trials=12

The same command goes on where it was, however it was ended. Exit codes: 0 done, 1 no trial has a
result, 2 wrong input, 130 interrupted.

Hydra composes the settings as under @hydra.main (by this word its completion knows a script);
scripts/console/command.py is around it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.console import composing, overrides
from scripts.console.command import Command, require_writable
from scripts.console.composing import Given
from scripts.console.wrong import Wrong, typed
from scripts.run import expected


def _opening(given: Given) -> Iterator[str]:
    settings = given.plain
    out = Path(settings["out"])
    require_writable(out)
    base, problems = composing.checked(
        "config", overrides.understood(map(str, settings["base"])), lambda words: " ".join(words)
    )
    if problems:
        raise Wrong(f"base: {problem}" for problem in problems)
    job = composing.compose(
        "config", [*base, "check=true", overrides.quoted("out", out / "trials" / "job")]
    ).plain
    yield (
        f"search of {settings['trials']} trials over {', '.join(settings['space'])}\nfolder: {out}"
    )
    yield (
        f"expected, one trial alone: {expected.of_run(job, out / 'trials' / 'job')}\nchecking the"
        " machine …"
    )


def _run(given: Given) -> int:
    """Validate, search, show."""
    import logging

    from scripts.console import machine
    from scripts.run import opened
    from scripts.sweeps import search

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = typed(search.TuneConfig, given.plain)
    machine.require()
    opened.set_up_jax()
    return search.run(config)


COMMAND = Command(
    script="tune.py",
    config="tune",
    does=(
        "Searches over configurations of optimize.py with Optuna; every trial is a run with its"
        " check. Several targets give a Pareto front. Writes trials.csv and best.yaml; the same"
        " line goes on where it was."
    ),
    options={
        "out": "search.db, trials/, trials.csv, best.yaml",
        "space": "key → {low, high} or a list of choices, e.g. 'space={seed:{low:0,high:9}}'",
        "base": (
            "overrides of optimize.py that all trials share, each in quotes:"
            ' \'base=["solver=coarse","fem=demo"]\''
        ),
        "targets": "what result.json is asked for: [{measure, arm, direction}]",
        "trials": "in all, over every start",
        "sampler": "tpe | nsga2 | random",
    },
    examples=(
        "out=runs/tune 'space={implant.settings.length_mm:{low:26.0,high:34.0}}'",
        (
            'out=runs/tune \'base=["solver=coarse","fem=demo"]\''
            " 'space={objectives:[balanced,subsidence]}' trials=4"
        ),
        (
            "out=runs/tune 'base=[\"patient.bundle=cases/my patient (1)\"]'"
            " 'space={seed:{low:0,high:9}}'"
        ),
    ),
    task=_run,
    opening=_opening,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
