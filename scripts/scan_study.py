"""How right is the way from a scan to a model, on this machine: tables as Markdown and JSON in
`out`.

    python scripts/scan_study.py TOPIC        --help names them

Each case is a run of scripts/prepare_patient.py of its own. Exit code 2 with one line for whatever
is wrong with the settings.

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
from scripts.evidence.scan import cases


def _opening(given: Given) -> Iterator[str]:
    config = typed(cases.CaseSetConfig, given.plain)
    require_writable(Path(config.out))
    if given.topic in ("references", "data", "density"):
        config.folder()
    yield f"study of the readers: {given.topic}, {TOPICS[given.topic]}"
    yield (
        f"folder: {config.out}\nexpected: one to four minutes a case, {config.workers} at a time;"
        " each is named when it is done"
    )


def _run(given: Given) -> int:
    """Run one set of cases."""
    from scripts.evidence.scan.case_sets import CASE_SETS

    print(cases.run(given.topic, CASE_SETS[given.topic], typed(cases.CaseSetConfig, given.plain)))
    return 0


#: Names of scripts.evidence.scan.case_sets.CASE_SETS.
TOPICS = {
    "truth": "phantoms over anatomies, voxels and orientations against their exact alignment",
    "refine": "edges of a CT's masks placed by HU, and not, against exact surfaces and alignment",
    "density": "the same phantoms' bone: HU, vBMD and calibration against what was scanned",
    "references": "a real CT against the heights, volumes and HU that were published with it",
    "stability": "real patients, resampled, turned by 20 degrees and at 1.5 times the voxel size",
    "data": "every public data set prepared: time, memory, findings, pictures",
    "malformed": "bad input of every kind and what is said of it",
    "size": "a CT of 512 x 512 x 300 voxels with labels: time and memory",
}
COMMAND = Command(
    script="scan_study.py",
    config="scan_study",
    does=(
        "Measures how right the way from a scan to a model is, on this machine: tables as Markdown"
        " and JSON in out=. Each case is a run of prepare_patient.py."
    ),
    options={
        "data": "folder of the public test data; null: SPINEFIT_DATA, else ../shared/data",
        "cases": "only these, by name",
        "workers": "patients prepared at a time",
        "draws": "of the bootstrap for standard errors",
        "out": "where the tables go",
    },
    examples=("truth", "data workers=1 out=runs/readers", "malformed 'cases=[empty folder]'"),
    task=_run,
    opening=_opening,
    topics=TOPICS,
    topic_needed=True,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
