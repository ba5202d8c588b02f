"""Bench tests of the exported parts, virtually: stiffness, stress, and what load takes them to
yield and fatigue (scripts/run/mechanical_tests.py).

    python scripts/bench.py run=<run folder>
    python scripts/bench.py run=<run folder> 'arms=[optimised]' acceptance.compression_n=8000

<run>/bench.json, bench.md. Exit code 2 with one line for whatever is wrong with the input; 1 where
a test of an arm has no result.

Hydra composes the settings as under @hydra.main (by this word its completion knows a script);
scripts/console/command.py is around it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.console.command import Command
from scripts.console.composing import Given
from scripts.console.wrong import typed
from scripts.run import stored


def _opening(given: Given) -> Iterator[str]:
    folder = Path(given.settings.run)
    if stored.configuration(folder) is None:
        raise ValueError(
            f"run={folder} is not a run folder (no config.yaml); give the out= of"
            " scripts/optimize.py"
        )
    yield (
        f"bench tests of {folder}: {', '.join(given.settings.arms)}; expected: half a minute to"
        " four minutes an arm"
    )


def _run(given: Given) -> int:
    """Test the parts of one run folder."""
    import logging

    from scripts.run import mechanical_tests, opened

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    opened.set_up_jax()
    text, record = mechanical_tests.run(typed(mechanical_tests.BenchConfig, given.plain))
    print(text)
    return 0 if all(r["status"]["code"] == "ok" for r in record.values()) else 1


COMMAND = Command(
    script="bench.py",
    config="bench",
    does=(
        "Tests the exported parts of a run between steel and foam blocks, virtually and after the"
        " set-ups of ASTM F2077 and F2267: stiffness, stress at unit load, the loads at yield and"
        " at the fatigue limit. Writes bench.json and bench.md into the run folder."
    ),
    options={
        "run": "the run folder, out= of optimize.py",
        "arms": "which parts",
        "foam_mpa": "modulus of the foam blocks",
        "acceptance.compression_n": (
            "load that the part must bear; safety factors are then told (also compression_shear_n,"
            " torsion_nm)"
        ),
    },
    examples=(
        "run=runs/a",
        "run=runs/a 'arms=[optimised]' acceptance.compression_n=8000",
        "run=runs/a foam_mpa=80",
    ),
    task=_run,
    opening=_opening,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
