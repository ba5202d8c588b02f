"""Start-up check: names what is missing, and what to do about it, before anything crashes.

    python scripts/doctor.py        exit status 0 when all is well, 1 otherwise

The checks are in scripts/console/machine.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.console.machine import CHECKS

HELP = """python scripts/doctor.py

Says what is missing on this machine and what to do about it, one line a check (half a minute):
Python, packages, mesh filters, pictures without a screen, solvers, float64. Exit code 0 when all
is well, 1 otherwise.

Options: none but --help.

Examples:
  python scripts/doctor.py
  python scripts/doctor.py && python scripts/demo.py
  make setup && .venv/bin/python scripts/doctor.py"""


def main(arguments: Sequence[str] = ()) -> int:
    """Print one line per check; 0 when all passed, 2 for an option that is not there."""
    if arguments:
        print(
            HELP
            if {"-h", "--help"} & set(arguments)
            else f"error: {arguments[0]}: there are no options but --help"
        )
        return 0 if {"-h", "--help"} & set(arguments) else 2
    print("checking this machine; expected: 10 to 30 s", file=sys.stderr, flush=True)
    failed = False
    for one in CHECKS:
        findings = one()
        failed = failed or bool(findings)
        print(f"{'missing' if findings else 'ok':8s}{one.__name__.replace('_', ' ')}", flush=True)
        for finding in findings:
            print(f"        {finding}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
