"""Locks of files between processes: the system lets go of one however its process ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path) -> Iterator[IO[str] | None]:
    """The file, opened for reading and writing and locked for this process alone; None, at once,
    where another process has it locked."""
    with open(path, "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield stream


def is_locked(path: Path) -> bool:
    """Whether a process has it locked now; looking keeps nobody out but for an instant."""
    if not path.exists():
        return False
    with open(path) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
