"""Check every arm of a run in SfePy and write the report.

    python scripts/verify.py run=<run folder>
    python scripts/verify.py run=<run folder> fem=fine      the same designs on another mesh
    python scripts/verify.py run=<run folder> only_report=true   the page again, with the studies of scripts/validation.py made since

Exit code 2 with one line for whatever is wrong with the input; 1 when an arm failed (the report says which and why); 130 when
interrupted (arms that were finished are kept: run it again).
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.patient.prepare import one_line
from scripts import checking, doctor, job, pipeline


@hydra.main(version_base="1.3", config_path="../conf", config_name="verify")
def main(settings: DictConfig) -> None:
    """Check one run folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        doctor.require()
        pipeline.set_up_jax()
        fem = OmegaConf.to_container(settings.fem, resolve=True) if settings.get("fem") else None
        if settings.only_report:
            if fem is not None:
                raise ValueError("only_report=true solves nothing: leave out fem=…")
            print(f"report: {checking.report_again(Path(settings.run))}")
            return
        config = pipeline.read_config(Path(settings.run))
        with job.working(Path(settings.run)):
            report = checking.check_run(Path(settings.run), None if fem is None else pipeline.FemConfig(**fem))  # type: ignore[arg-type]
            pipeline.tidy(Path(settings.run), config)
    except KeyboardInterrupt:
        print("stopped; run it again: arms that were finished are kept", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    arms = json.loads((report.parent / "result.json").read_text())["arms"]
    failed = [name for name, arm in arms.items() if arm["status"]["code"] != "ok"]
    for name in failed:
        print(f"{name}: {arms[name]['status']['text']}", file=sys.stderr)
    print(f"report: {report}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
