"""What every test shares: float64, a compilation cache that outlives the run, and the way to the
data."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import pytest

from tests.leftovers import pytest_sessionfinish, pytest_sessionstart

__all__ = ["data_dir", "pytest_sessionfinish", "pytest_sessionstart"]

ROOT = Path(__file__).resolve().parents[1]

os.environ["SPINEFIT_SOLVED"] = (
    ""  # no test is spared its work by another run; the store's own tests name a folder
)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real patients: $SPINEFIT_DATA, else ../shared/data. Skips, by name, where
    it is absent."""
    folder = Path(os.environ.get("SPINEFIT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(
            f"patient data not found in {folder}; set SPINEFIT_DATA to the folder that holds"
            " verse004_mask"
        )
    return folder
