"""The collection of malformed inputs as cases and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.evidence.scan.cases import Case, CaseResult, CaseSetConfig


def malformed_cases(config: CaseSetConfig) -> list[Case]:
    """The collection of inputs that people really have (scripts/evidence/collection)."""
    from scripts.evidence.collection import dicom, files, labels, scans
    from scripts.evidence.collection.base import Base, cases_of

    base = Base(Path(config.out) / "malformed" / ".good", config.folder())
    _ = base.folder  # made here, as the cases are prepared several at a time
    collection = {
        "level": labels.LEVEL,
        "labels": labels.GATE,
        "place": scans.PLACE,
        "axes": scans.AXES,
        "HU": scans.HU,
        "by hand": scans.BY_HAND,
        "DICOM": dicom.DICOM,
        "file": files.FILE,
        "surface": files.SURFACE,
        "key": files.KEY,
    }
    return cases_of(collection, base)


def malformed_table(results: Sequence[CaseResult]) -> tuple[str, Any]:
    """The collection's table and record (scripts/evidence/collection/base.py)."""
    from scripts.evidence.collection.base import tabulate

    truth = json.loads((results[0].out.parents[1] / ".good" / "truth.json").read_text())
    return tabulate(results, truth)
