"""`make demo`: the main job on the embedded phantom, from design to report, in one process.

    python scripts/demo.py [out]      default runs/demo; goes on with an interrupted demo
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hydra import compose, initialize

from engine.patient.prepare import one_line
from scripts import checking, doctor, pipeline
from scripts.optimize import run_config


def main(out: str) -> int:
    """Design, check, report; prints the report's path."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.perf_counter()
    doctor.require()
    pipeline.set_up_jax()
    with initialize(version_base="1.3", config_path="../conf"):
        settings = compose("config", ["experiment=demo", f"out={out}", "resume=true"])
    try:
        report = checking.check_run(pipeline.design_run(run_config(settings)))
    except pipeline.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"\ndone in {(time.perf_counter() - started) / 60:.1f} min\nreport: {report.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
