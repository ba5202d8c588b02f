"""`make demo`: the main job on the embedded phantom: the two commands that a user would type, one
after the other.

    python scripts/demo.py [out]      default runs/demo; goes on with an interrupted demo
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.console import command
from scripts.console.children import folder_of, run_command
from scripts.console.overrides import quoted

HELP = """python scripts/demo.py [FOLDER]

The main job on the embedded phantom: designs a TLIF cage, checks every arm in SfePy and writes
report.html. Four minutes on two cores; a demo that was stopped goes on when it is started again.

Options:
  FOLDER  where the run goes  [runs/demo]

Examples:
  python scripts/demo.py
  python scripts/demo.py runs/another
  python scripts/demo.py '/tmp/my demo (1)'"""


def demo(arguments: Sequence[str]) -> int:
    """Design, check, report; prints the report's path. Each in a process of its own, so that the
    first one's memory is free."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    out = folder_of(arguments, "runs/demo")
    print(
        f"demonstration on the embedded phantom, L4-L5\nfolder: {out}\nexpected: about 4 min on two"
        " cores",
        file=sys.stderr,
        flush=True,
    )
    started = time.perf_counter()
    for script, words in (
        ("optimize.py", ["experiment=demo", quoted("out", out), "resume=true"]),
        ("verify.py", [quoted("run", out)]),
    ):
        if code := run_command(script, words):
            return code
    print(
        f"\ndone in {(time.perf_counter() - started) / 60:.1f} min\nreport:"
        f" {(Path(out) / 'report.html').resolve()}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(command.run(lambda: demo(sys.argv[1:])))
