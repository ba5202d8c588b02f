"""Compare runs: does optimising X buy Y? Tidy tables for your own analysis, and one page.

    python scripts/compare.py 'runs=[runs/study]' out=runs/study_page

Exit code 0, or 2 with one line when there is nothing to compare.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from engine import artifacts
from scripts import compare_page, compare_summary, comparing, configure, job


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare")
def main(settings: DictConfig) -> None:
    """Collect, write the tables, write the page."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = comparing.CompareConfig(**OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
        found = comparing.collect([Path(p) for p in config.runs])
        comparing.write_tables(found, Path(config.out), config.seed)
        artifacts.write_text(Path(config.out) / "summary.md", compare_summary.markdown(found, config.seed))
        page = compare_page.write(found, config)
    except (ValueError, ValidationError, OmegaConfBaseException) as error:
        configure.said(error)
        sys.exit(job.FAILED)
    print(f"{len(found.runs)} runs compared, {len(found.left_out)} left out\nreport: {page}")


if __name__ == "__main__":
    main()
