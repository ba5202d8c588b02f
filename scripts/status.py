"""Where the jobs of a sweep stand: done, running and until when, failed and why. Reads the folders
only; it can be run anywhere, any time.

    python scripts/status.py sweep=runs/study [every_s=10]

Exit code 0; 1 when no job is done and none runs any more, but some have failed; 2 with one line
when there is nothing to show.

Hydra composes the settings as under @hydra.main (by this word its completion knows a script);
scripts/console/command.py is around it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.console.command import Command
from scripts.console.composing import Given


def _opening(given: Given) -> Iterator[str]:
    if not Path(given.settings.sweep).is_dir():
        raise ValueError(
            f"sweep={given.settings.sweep}: no such folder; give the out= of scripts/optimize.py"
        )
    yield f"jobs of {given.settings.sweep}:"


def _run(given: Given) -> int:
    """Show once, or live."""
    from rich.console import Console
    from rich.live import Live

    from scripts.run import standing

    folder, console = Path(given.settings.sweep), Console()
    every_s = None if given.settings.every_s is None else float(given.settings.every_s)
    if every_s is not None and every_s <= 0:
        raise ValueError(f"every_s={every_s:g}: give seconds above 0, or null to show it once")
    shown = standing.look(folder)
    if every_s is None:
        console.print(standing.table(folder, shown))
    else:
        try:
            with Live(standing.table(folder, shown), console=console, auto_refresh=False) as live:
                while any(state.status == "running" for state in shown.values()):
                    time.sleep(every_s)
                    shown = standing.look(folder)
                    live.update(standing.table(folder, shown), refresh=True)
        except KeyboardInterrupt:
            return 0
    if why := standing.commonest_failure(shown):
        print(f"error: {why}", file=sys.stderr)
        return 1
    return 0


COMMAND = Command(
    script="status.py",
    config="status",
    does=(
        "Shows where the jobs of a sweep, or a single run, stand: done, running and until when,"
        " failed and why. It reads the folders only, so it can be run anywhere and at any time."
    ),
    options={
        "sweep": "out= of optimize.py -m, a run folder, or a folder of run folders",
        "every_s": (
            "seconds after which it is shown again, until nothing runs; Ctrl-C ends the watching"
            " only"
        ),
    },
    examples=("sweep=runs/night", "sweep=runs/night every_s=10", "sweep=runs/tune/trials"),
    task=_run,
    opening=_opening,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
