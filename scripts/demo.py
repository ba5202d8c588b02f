"""`make demo`: the main job on the embedded phantom: the two commands that a user would type, one
after the other.

python scripts/demo.py [out]      default runs/demo; goes on with an interrupted demo
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import command
from scripts.overrides import quoted, shell_line

SCRIPTS = Path(__file__).resolve().parent
HELP = """python scripts/demo.py [FOLDER]

The main job on the embedded phantom: designs a TLIF cage, checks every arm in SfePy and writes
report.html. Four minutes on two cores; a demo that was stopped goes on when it is started again.

Options:
  FOLDER  where the run goes  [runs/demo]

Examples:
  python scripts/demo.py
  python scripts/demo.py runs/another
  python scripts/demo.py '/tmp/my demo (1)'"""


def run_command(script: str, words: Sequence[str]) -> int:
    """Run one command of scripts/; an interruption is its own to handle, and leaves a folder that
    goes on."""
    print(f"== {shell_line(script, words)}", flush=True)
    child = subprocess.Popen([sys.executable, str(SCRIPTS / script), *words])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child has it too
            continue


def folder_of(arguments: Sequence[str], default: str) -> str:
    """The one argument of demo.py and study.py: a folder, as a plain path or as out=…

    Raises ValueError for flags, further arguments and folders in which nothing can be written."""
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        raise ValueError(f"{' '.join(arguments)}: give one folder, or --help")
    folder = Path(arguments[0].removeprefix("out=") if arguments else default).expanduser()
    if problem := command.folder_problem(folder):
        raise ValueError(problem)
    return str(folder)


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
