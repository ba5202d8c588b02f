"""A test that leaves a file in the tree fails the session, ignored or not; caches may stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def session(folder: Path, writes: str) -> subprocess.CompletedProcess[str]:
    """A suite of one test that writes a file, in a repository of its own."""
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("mlruns/\n.cache/\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(
        "from tests.leftovers import pytest_sessionfinish, pytest_sessionstart\n"
    )
    body = (
        "from pathlib import Path\ndef test_it():\n    p = Path({!r})\n"
        "    p.parent.mkdir(exist_ok=True)\n    p.touch()\n"
    )
    (folder / "test_one.py").write_text(body.format(writes))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("writes", "named"), [("rubbish.txt", "rubbish.txt"), ("mlruns/1.txt", "mlruns/")]
)
def test_what_is_left_behind_fails_the_session_by_name(tmp_path, writes, named):
    done = session(tmp_path, writes)
    assert done.returncode == 1 and f"left behind in the tree: {named};" in done.stdout
    assert "1 passed" in done.stdout, "the test itself is not to blame"


def test_caches_and_files_elsewhere_are_no_matter(tmp_path):
    (tmp_path / "tree").mkdir()
    assert session(tmp_path / "tree", ".cache/compiled").returncode == 0
    assert session(tmp_path / "tree", str(tmp_path / "elsewhere.txt")).returncode == 0
