"""Commands that run other commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.console import command
from scripts.console.overrides import shell_line
from scripts.console.places import SCRIPTS


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
    command.require_writable(folder)
    return str(folder)
