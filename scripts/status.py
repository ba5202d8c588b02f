"""Where the jobs of a sweep stand: done, running and until when, failed and why. Reads the folders only; it can be run anywhere, any time.

    python scripts/status.py sweep=runs/study [every_s=10]

Exit code 0, or 2 with one line when there is nothing to show.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.live import Live

from scripts import job, standing


@hydra.main(version_base="1.3", config_path="../conf", config_name="status")
def main(settings: DictConfig) -> None:
    """Show once, or live."""
    folder, console = Path(settings.sweep), Console()
    try:
        every_s = None if settings.every_s is None else float(settings.every_s)
        if every_s is not None and every_s <= 0:
            raise ValueError(f"every_s={every_s:g}: give seconds above 0, or null to show it once")
        shown = standing.look(folder)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(job.FAILED)
    if every_s is None:
        console.print(standing.table(folder, shown))
        return
    try:
        with Live(standing.table(folder, shown), console=console, auto_refresh=False) as live:
            while any(state.status == "running" for state in shown.values()):
                time.sleep(every_s)
                shown = standing.look(folder)
                live.update(standing.table(folder, shown), refresh=True)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
