"""The suite leaves the tree as it found it: conftest.py's hooks fail the session otherwise.

What counts is what git did not know of, ignored or not, when the session began; caches (`CACHES`)
are meant to stay.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

#: Names of folders that tools and tests fill on purpose.
CACHES = (
    ".cache",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".import_linter_cache",
    "__pycache__",
    ".venv",
    ".coverage",
)
_BEFORE = pytest.StashKey[set[str]]()


def unknown_to_git(root: Path) -> set[str]:
    """Untracked and ignored files and folders below root, but for caches; none without git."""
    command = [
        "git",
        "-C",
        str(root),
        "status",
        "--porcelain",
        "--ignored",
        "--untracked-files=normal",
        "-z",
        ".",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    lines = done.stdout.split("\0") if done.returncode == 0 else []
    found = {line[3:] for line in lines if line[:2] in ("??", "!!")}
    return {
        path
        for path in found
        if not set(Path(path).parts) & set(CACHES) and not path.endswith((".pyc", ".egg-info/"))
    }


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_BEFORE] = unknown_to_git(session.config.rootpath)


def pytest_sessionfinish(session: pytest.Session) -> None:
    left = unknown_to_git(session.config.rootpath) - session.config.stash.get(_BEFORE, set())
    if left:
        writer = session.config.get_terminal_writer()
        writer.line(
            f"\nthe tests left behind in the tree: {', '.join(sorted(left))}; "
            "let them write into tmp_path",
            red=True,
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
