"""Other people's programs as child processes: where one is, its version, and a run to its end with
the network closed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

#: Lines of the program's output that an error repeats.
LAST_LINES = 8
#: Progress bars are passed on this often.
_BAR_S = 5.0
#: Port 9 (discard) of this machine, where nothing listens: what goes to such a proxy is refused at
#: once.
_CLOSED = "http://127.0.0.1:9"


def find(executable: str) -> Path | None:
    """Where an executable is: on PATH, else beside our own Python (an environment that is not
    activated)."""
    beside_us = str(Path(sys.executable).parent)
    path = shutil.which(executable) or shutil.which(executable, path=beside_us)
    return None if path is None else Path(path).absolute()


def version(distribution: str, executable: Path) -> str:
    """Installed version of a Python program: the package metadata of the interpreter that it
    starts; "unknown" where it has none.

    Not by its own `--version`: that may load torch, which takes longer than all else when the
    result is already there.
    """
    with executable.open("rb") as stream:
        head = stream.read(512).decode(errors="replace")
    # the second line: pip's form for long paths
    interpreter = re.search(r"(/[^\s\"']*python[\d.]*)", "\n".join(head.splitlines()[:2]))
    if interpreter is None:
        return "unknown"
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    try:
        done = subprocess.run(
            [interpreter[1], "-c", code], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def gpu_there() -> bool:
    """Whether NVIDIA's driver lists a GPU (asked without torch)."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        return "GPU 0" in listing.stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def offline() -> dict[str, str]:
    """Variables that close the network for what asks through urllib, requests or curl: every
    proxy is a closed port."""
    proxies = {
        name: _CLOSED
        for kind in ("http", "https", "ftp", "all")
        for name in (f"{kind}_proxy", f"{kind}_proxy".upper())
    }
    return {**proxies, "no_proxy": "", "NO_PROXY": ""}


def run(
    title: str,
    command: list[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Callable[[str], None],
) -> None:
    """Run a command in `folder` to its end, passing its lines on as they come.

    environment   on top of ours and of `offline()`

    Raises: ValueError that begins with `title` when it can't be started, fails or is killed.
    Whatever stops us (KeyboardInterrupt) ends the program and the workers that it started, and
    passes on.
    """
    lines: deque[str] = deque(maxlen=LAST_LINES)
    try:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **offline(), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own, which `_end` can end
        )
    except OSError as error:
        raise ValueError(
            f"{title}: {command[0]} could not be started ({error}); install it anew"
        ) from error
    try:
        assert child.stdout is not None
        bar = float("-inf")
        for line in child.stdout:  # the carriage returns of progress bars end lines too
            text = line.strip()
            if "%|" in text:
                if time.monotonic() - bar < _BAR_S:
                    continue
                bar = time.monotonic()
            elif text:
                lines.append(text)
            if text:
                log(f"  {text}")
        code = child.wait()
    finally:
        _end(child)
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise ValueError(f"{title} {how}; its last lines: {' | '.join(lines) or 'none'}")


def _end(child: subprocess.Popen[str]) -> None:
    """End what is left of the program's group, first by asking."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, how)
            child.wait(5.0)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    if child.stdout is not None:
        child.stdout.close()
