"""Where the shared data lie."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.console.places import ROOT


def data_folder(given: str | None) -> Path:
    """The public test data: as given, else SPINEFIT_DATA, else beside the repository. Raises
    ValueError where it is not."""
    path = Path(given or os.environ.get("SPINEFIT_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        raise ValueError(
            f"data={path}: no such folder; give the folder of the public test data, or set"
            " SPINEFIT_DATA"
        )
    return path
