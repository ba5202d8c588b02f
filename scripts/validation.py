"""How right is the check (fem/), on this machine: tables as Markdown and JSON in `out`. The
validations are in scripts/evidence/validate.py.

    python scripts/validation.py [TOPIC]      --help names them; without one: all that need no run
    folder (make validation)

What was run, when and by which version is kept in <out>/studies.json and, of a run's, in the run
folder, where scripts/verify.py run=… only_report=true takes it into the report.

Exit code 2 with one line for whatever is wrong with the settings; 1 where a figure misses its
limit.

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
from scripts.evidence.data import data_folder
from scripts.run import stored

#: Names of scripts.evidence.validate.VALIDATIONS.
TOPICS = {
    "code": "closed forms and NAFEMS benchmarks on three meshes each, orders of convergence",
    "contact": (
        "unilateral contact and friction against closed forms (patch, eccentric, Coulomb, Hertz)"
    ),
    "vertebra": "the published stiffness of L2 (l2_density_fe) on its own voxels",
    "intact": "the intact L4-L5 of lumbar_meshes at finite strain against published ranges",
    "intact_spread": "what it owes to fibres, facets, elements (some ten minutes)",
    "intact_patients": "the disc of any prepared patient (bundles=…) in the same test",
    "designs": "both solvers on random designs of a designed run (run=…): rank, bias, spread",
    "convergence": (
        "each measure of a run's arms (run=…) on three meshes, Richardson's estimate and error"
    ),
    "sensitivity": "each measure of a run's arms (run=…) under another bone, load and position",
}
#: Validations that need run=<run folder>, and those that need the public test data.
_OF_A_RUN = ("designs", "convergence", "sensitivity")
_OF_DATA = ("", "vertebra", "intact", "intact_spread", "intact_patients")


def _opening(given: Given) -> Iterator[str]:
    settings = given.plain
    require_writable(Path(settings["out"]))
    if given.topic in _OF_A_RUN:
        if settings["run"] is None:
            raise ValueError(f"run=<run folder> is missing: {given.topic}: {TOPICS[given.topic]}")
        if stored.configuration(Path(settings["run"])) is None:
            raise ValueError(
                f"run={settings['run']} is not a run folder (no config.yaml); give the out= of"
                " scripts/optimize.py"
            )
    if given.topic in _OF_DATA:
        data_folder(settings["data"])
    yield (
        f"validation of the check: {given.topic or 'all that need no run folder'}\nfolder:"
        f" {settings['out']}"
    )
    yield (
        "expected: code, contact, vertebra, intact a minute or two each; intact_spread ten; of a"
        " run half a minute to four an arm or design"
    )


def _run(given: Given) -> int:
    """Run the validations that were asked for."""
    from scripts.evidence import validate

    what = (
        [given.topic]
        if given.topic
        else [n for n in validate.VALIDATIONS if n not in (*validate.OF_A_RUN, *validate.BY_NAME)]
    )
    try:
        return validate.run(what, typed(validate.ValidationConfig, given.plain), given.words)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


COMMAND = Command(
    script="validation.py",
    config="validation",
    does=(
        "Measures how right the check is, against closed forms, benchmarks and published figures,"
        " and what a run's measures owe to mesh, bone, loads and position. Without a topic: all"
        " that need no run folder."
    ),
    options={
        "run": "designs, convergence, sensitivity: a run folder",
        "bundles": "intact_patients: out= folders of prepare_patient.py",
        "data": "folder of the public test data; null: SPINEFIT_DATA, else ../shared/data",
        "designs": "how many are drawn",
        "arms": "convergence: which are meshed three times",
        "processes": "arms or designs at a time, 2 to 7 GB each",
        "out": "where the tables go",
    },
    examples=("code", "sensitivity run=runs/a", "intact_patients bundles=cases/vhm,cases/verse004"),
    task=_run,
    opening=_opening,
    topics=TOPICS,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
