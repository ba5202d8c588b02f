"""Design a cage for a planned segment: search the rivals' positions, optimise, export, and with
check=true verify and report.

    python scripts/optimize.py patient.bundle=cases/verse004 implant=tlif_cage
        loadcases=lumbar_standard objectives=balanced
    python scripts/optimize.py resume=true out=runs/a
        goes on with an interrupted run, as its own config.yaml says
    python scripts/optimize.py -m objectives=balanced,subsidence seed=0,1,2 out=runs/study
        launcher=joblib
        every combination; the same line again goes on where it was;
        python scripts/status.py sweep=runs/study shows it

Exit codes: 0 done, 2 wrong input (said in one line) or failed for good, 75 failed for a reason that
may pass, 130 interrupted (the folder resumes); of a sweep 0 when every job is done, else 1.

Hydra composes the settings as under @hydra.main (by this word its completion knows a script);
scripts/console/command.py is around it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig

from scripts.console import composing, overrides
from scripts.console.command import Command, folder_problem, require_writable
from scripts.console.composing import Given
from scripts.console.wrong import Wrong
from scripts.run import expected, stored

#: Of a sweep in which a word is wrong: combinations whose values are checked too.
_CHECKED = 60


def _opening(given: Given) -> Iterator[str]:
    """Patient, plan, folder, expected time. Raises ValueError for what can be refused before
    anything is imported or computed."""
    config = given.plain
    folder = Path(config["out"])
    if problem := folder_problem(folder) or stored.refusal(folder, config["resume"]):
        raise ValueError(problem)
    held = stored.resumed(folder, config, given.words) if config["resume"] else None
    if stored.busy(folder):
        raise ValueError(
            f"{folder} is being worked on by another process; wait for it, or stop it first"
        )
    implant = (held["study"] if held else config["implant"])["settings"].get("approach", "")
    yield f"design of a {implant} cage for {_patient((held or config)['patient'])}"
    how = ", gone on with as its own config.yaml says" if held else ", gone on with"
    yield f"folder: {folder}{'' if stored.kind(folder) == 'new' else how}"
    yield f"expected: {expected.of_run(held or config, folder)}" + (
        ", less what is there" if stored.kind(folder) == "run" else ""
    )
    yield "checking the machine …"


def _patient(patient: Mapping[str, Any]) -> str:
    """Name, segment and plan of a planned patient. Raises ValueError where there is none."""
    if patient["bundle"] is None:
        return "the embedded phantom, L4-L5, plan norms"
    head = Path(patient["bundle"]) / "segment" / "segment.json"
    if not head.exists():
        raise ValueError(
            f"patient.bundle={patient['bundle']} holds no planned segment; give the out= of"
            " scripts/prepare_patient.py"
        )
    try:
        segment = json.loads(head.read_text(encoding="utf-8"))
        return (
            f"{segment['patient']}, {segment['name']}, plan {segment['plan']['rule']}"
            f" ({patient['bundle']})"
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{head} is damaged ({error}); prepare the patient again") from error


def _run(given: Given) -> int:
    """Validate, run, and show what came out."""
    import logging

    from scripts.console import machine
    from scripts.run import configure, job, opened, verdict
    from scripts.run.config import RunConfig
    from scripts.sweeps import launchers

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    launchers.end_with_parent()
    config, _ = configure.run_config(given.settings)
    if (
        config.resume
        and (held := stored.resumed(Path(config.out), given.plain, given.words)) is not None
    ):
        config = RunConfig(**held)
    machine.require()
    opened.set_up_jax()
    code = job.run(config, given.made)
    if code == job.DONE:
        folder = Path(config.out)
        print("\n".join(["", *verdict.of_folder(folder), ""]))
        print(f"report: {folder}/report.html" if config.check else f"designs: {folder}/designs")
        if not config.check:
            print(
                f"next: {overrides.shell_line('verify.py', [overrides.quoted('run', config.out)])}"
            )
    return code


def _sweep(words: Sequence[str]) -> int:
    """-m: every combination. Wrong words are all named, then the combinations are counted, then the
    work is loaded."""
    good, problems = composing.checked(
        "config", words, lambda w: overrides.shell_line("optimize.py", ["-m", *w])
    )
    if not problems:
        for line in _sweep_opening(good):
            print(line, file=sys.stderr, flush=True)
    if problems:
        for combination in composing.expand(good)[0][:_CHECKED]:
            problems += _problems(composing.compose("config", combination).settings)
        raise Wrong(dict.fromkeys(problems))
    from scripts.sweeps import grid

    return grid.main(good)


def _sweep_opening(words: Sequence[str]) -> Iterator[str]:
    combinations, swept = composing.expand(
        [*words, *([] if "check" in map(overrides.key_of, words) else ["check=true"])]
    )
    given = composing.compose("config", combinations[0])
    config = given.plain
    require_writable(Path(config["out"]))
    launcher = given.made["choices"]["launcher"]
    what = ", ".join(swept) or "nothing is swept"
    yield f"sweep of {len(combinations)} jobs ({what}) in {config['out']}, launcher {launcher}"
    yield f"expected, one job alone: {expected.of_run(config, Path(config['out']) / 'job')}"
    yield "checking every job and the machine …"


def _problems(settings: DictConfig) -> Iterable[str]:
    from scripts.run import configure

    return configure.problems(settings)


COMMAND = Command(
    script="optimize.py",
    config="config",
    does=(
        "Designs a cage for one planned segment: searches the best positions of a stock and of a"
        " conforming cage, optimises the patient's own, exports all of them and, with check=true,"
        " checks each in an independent solver and writes report.html. A run that was stopped goes"
        " on with resume=true."
    ),
    options={
        "patient.bundle": "out= folder of prepare_patient.py; null: the embedded phantom",
        "out": "the run folder",
        "resume": (
            "true: go on with the folder, as its own config.yaml says; beside it give only what is"
            " to change"
        ),
        "check": "true: verify and report in the same run, as verify.py would",
        "budget.wall_time_h": "hours of optimisation, then the best so far is exported",
        "optimizer.iterations": "how many; optimizer.patience ends it earlier",
        "seed": "0: from the conforming cage's best position; n: scattered about it",
        "title": "of the report",
        "-m": (
            "every combination of the values that are given as lists a,b,c, each a job in a folder"
            " of its own below out="
        ),
    },
    examples=(
        "patient.bundle=cases/verse004 implant=tlif_cage objectives=balanced out=runs/a check=true",
        "resume=true out=runs/a budget.wall_time_h=2",
        "-m objectives=balanced,subsidence seed=0,1,2 out=runs/night launcher=joblib",
    ),
    task=_run,
    opening=_opening,
    problems=_problems,
    sweep=_sweep,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
