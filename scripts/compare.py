"""Compare runs: does optimising X buy Y? Tidy tables for your own analysis, and one page.

    python scripts/compare.py 'runs=[runs/study]' out=runs/study_page

Exit code 0, or 2 with one line when there is nothing to compare.

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
from scripts.console.wrong import Wrong, typed


def _opening(given: Given) -> Iterator[str]:
    settings = given.plain
    runs = settings["runs"] if isinstance(settings["runs"], list) else [settings["runs"]]
    if missing := [str(r) for r in runs if not Path(str(r)).is_dir()]:
        raise Wrong(
            f"runs: {r}: no such folder; give run folders, or folders that hold some"
            for r in missing
        )
    require_writable(Path(settings["out"]))
    yield (
        f"comparison of {', '.join(map(str, runs))}\nfolder: {settings['out']}\nexpected: about 20"
        " s, and a second or two a run"
    )


def _run(given: Given) -> int:
    """Collect, write the tables, write the page."""
    import logging

    from engine import artifacts
    from scripts.comparison import summary, tables
    from scripts.comparison.page import write

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = typed(tables.CompareConfig, given.plain)
    found = tables.collect([Path(p) for p in config.runs])
    tables.write_tables(found, Path(config.out), config.seed)
    artifacts.write_text(Path(config.out) / "summary.md", summary.markdown(found, config.seed))
    page = write(found, config)
    print(f"{len(found.runs)} runs compared, {len(found.left_out)} left out\nreport: {page}")
    return 0


COMMAND = Command(
    script="compare.py",
    config="compare",
    does=(
        "Compares checked runs: what optimising one measure did to the others, Pareto fronts with"
        " rivals and floors, statistics over patients and seeds, and which keys differ. Writes one"
        " page and tidy tables (CSV, Parquet)."
    ),
    options={
        "runs": (
            "run folders, or folders that hold some: runs=runs/night, or 'runs=[runs/a,runs/b]'"
        ),
        "out": "where the page and the tables go",
        "title": "of the page",
        "pictures": (
            "of the optimised devices: part | anatomy_left | anatomy_front | footprints | none"
        ),
        "view3d": "the devices of two runs side by side in three dimensions",
    },
    examples=(
        "runs=runs/night out=runs/night_page",
        "'runs=[runs/a,runs/b]' out=runs/a_b",
        "runs=runs/night pictures=none view3d=false",
    ),
    task=_run,
    opening=_opening,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
