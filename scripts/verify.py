"""Check every arm of a run in SfePy and write the report.

    python scripts/verify.py run=<run folder>
    python scripts/verify.py run=<run folder> fem=fine
        the same designs on another mesh
    python scripts/verify.py run=<run folder> only_report=true
        the page again, with the studies that scripts/validation.py has added

Exit code 2 with one line for whatever is wrong with the input; 1 when an arm failed (the report
says which and why); 130 when interrupted (arms that were finished are kept: run it again).

Hydra composes the settings as under @hydra.main (by this word its completion knows a script);
scripts/console/command.py is around it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import OmegaConf

from scripts.console import overrides
from scripts.console.command import Command
from scripts.console.composing import Given
from scripts.run import stored


def _opening(given: Given) -> Iterator[str]:
    folder = Path(given.settings.run)
    config = stored.configuration(folder)
    if config is None:
        raise ValueError(
            f"run={folder} is not a run folder (no config.yaml); give the out= of"
            " scripts/optimize.py"
        )
    if given.settings.only_report and given.settings.get("fem"):
        raise ValueError("only_report=true solves nothing: leave out fem=…")
    if (
        not (folder / "optimisation.json").exists()
        and not (folder / "designs" / "optimised" / "design.json").exists()
    ):
        raise ValueError(
            f"{folder} holds no finished designs; finish them first:"
            f" {overrides.resume_line(folder)}"
        )
    arms = OmegaConf.select(given.settings, "fem.arms") or config["fem"]["arms"]
    yield f"check of {folder}: {config.get('title') or 'no title'}"
    if not given.settings.only_report:
        yield (
            f"arms: {', '.join(arms)}; expected: 10 s to 4 min each (fem=demo to fem=fine, two at a"
            " time), less what is there"
        )
    yield "checking the machine …"


def _run(given: Given) -> int:
    """Check one run folder, or write its page again."""
    import logging
    import signal

    from scripts.console import machine
    from scripts.run import check, job, opened, result, verdict
    from scripts.run.config import FemConfig
    from scripts.run.folder import read_config, tidy

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(given.settings.run)
    machine.require()
    opened.set_up_jax()
    if given.settings.only_report:
        print(f"report: {result.report_again(folder)}")
        return 0
    fem = FemConfig(**given.plain["fem"]) if given.settings.get("fem") else None
    config = read_config(folder)
    try:
        with job.working(folder):
            report = check.check_run(folder, fem)
            tidy(folder, config)
    except KeyboardInterrupt as stop:
        again = overrides.shell_line("verify.py", given.words)
        raise KeyboardInterrupt(
            f"stopped; arms that were finished are kept; go on with:\n  {again}"
        ) from stop
    arms = json.loads((report.parent / "result.json").read_text(encoding="utf-8"))["arms"]
    failed = [name for name, arm in arms.items() if arm["status"]["code"] != "ok"]
    for name in failed:
        print(f"{name}: {arms[name]['status']['text']}", file=sys.stderr)
    print("\n".join(["", *verdict.of_folder(folder), ""]))
    print(f"report: {report}")
    return 1 if failed else 0


COMMAND = Command(
    script="verify.py",
    config="verify",
    does=(
        "Checks every arm of a designed run with an independent finite-element solver (SfePy),"
        " compares both solvers, and writes result.json and report.html into the run folder. Arms"
        " that an interrupted check had finished are taken over."
    ),
    options={
        "run": "the run folder, out= of optimize.py",
        "only_report": (
            "true: nothing is solved, the page is written again with the studies of validation.py"
            " that are there now"
        ),
        "fem.contact": (
            "coefficients of friction, e.g. 'fem.contact=[0,0.5]' with fem=standard: every arm"
            " again, only pressing"
        ),
    },
    examples=("run=runs/a", "run=runs/a fem=fine", "run=runs/a fem=standard 'fem.contact=[0,0.5]'"),
    task=_run,
    opening=_opening,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
