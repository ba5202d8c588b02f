"""The collection of malformed inputs as cases and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.evidence.scan.cases import Case, Ran, StudyConfig


# -- malformed -------------------------------------------------------------------------------------
def malformed_cases(config: StudyConfig) -> list[Case]:
    """The collection of inputs that people really have: collection_*.py."""
    from scripts.evidence.collection import dicom, files, labels, scans
    from scripts.evidence.collection.base import Base, every

    base = Base(Path(config.out) / "malformed" / ".good", config.folder())
    _ = base.made
    groups = (
        labels.levels,
        labels.gate,
        scans.places,
        scans.numbers,
        dicom.dicom,
        files.files,
        files.surfaces,
        files.keys,
    )
    return every(group(base) for group in groups)


def malformed_table(ran: Sequence[Ran]) -> tuple[str, Any]:
    from scripts.evidence.collection.base import tabulated

    truth = json.loads((ran[0].out.parents[1] / ".good" / "truth.json").read_text())
    return tabulated(ran, truth)
