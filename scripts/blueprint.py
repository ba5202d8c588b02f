"""The blueprint of a run's parts: PDF and DXF drawing, GLB, and every figure on the sheet as
blueprint.json, in designs/<arm>/.

    python scripts/blueprint.py run=<run folder> [arms=[optimised,conforming]] [lattice={cell:
    diamond}]

Every job writes that of the optimised part. Exit code 0, or 2 with one line.

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
        f"blueprint of {folder}: {', '.join(given.settings.arms)}; expected: about 10 s an arm,"
        " with a lattice about a minute"
    )


def _run(given: Given) -> int:
    """Draw the arms that are asked for."""
    import logging

    from scripts.run import drawings

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = typed(drawings.BlueprintConfig, given.plain)
    folder = Path(config.run)
    for arm in config.arms:
        if config.lattice is not None:
            made = drawings.write_lattice(folder, arm, config.lattice)
            struts = folder / "designs" / arm / "lattice.stl"
            print(f"{arm}: lattice: {'solid, no struts' if made['solid'] else struts}")
        for what, path in drawings.write_blueprint(
            Path(config.run), arm, config.tolerances, config.finish
        ).items():
            print(f"{arm}: {what}: {path}")
        if config.step:
            print(f"{arm}: STEP: {drawings.write_step(folder, arm, config.step_deviation_mm)}")
    return 0


COMMAND = Command(
    script="blueprint.py",
    config="blueprint",
    does=(
        "Draws the parts of a designed run for the workshop: PDF and DXF with views, sections and"
        " dimensions, GLB, and every figure on the sheet as blueprint.json, in"
        " <run>/designs/<arm>/. Every run writes that of its optimised part by itself."
    ),
    options={
        "run": "the run folder, out= of optimize.py",
        "arms": "which parts",
        "tolerances": "in your words; none is invented",
        "finish": "in your words",
        "lattice": "{} or {cell: diamond, …}: the density as struts, with these settings",
        "step": "true: also implant.step, for CAD; needs pip install 'spinefit[step]'",
    },
    examples=(
        "run=runs/a",
        "run=runs/a 'arms=[optimised,conforming]' 'tolerances=ISO 2768-f, unless noted'",
        "run=runs/a 'lattice={cell: diamond}'",
    ),
    task=_run,
    opening=_opening,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
