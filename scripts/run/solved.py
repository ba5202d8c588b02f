"""What another run of the very same content has solved already: arms of the check and position
searches, kept by content.

    <cache>/solved/<key>/   check.npz solution.vtu mesh.npz   an arm in SfePy
                            search.jsonl                      a finished position search of both
                                                              rivals

engine.multigrid.native.library.cache_dir says where <cache> is.

Seeds share their rivals, objectives their floors: of a patient's 4 objectives × 3 seeds, 60 arms of
five a run are 22 that differ. The key is the hash of all that goes in (patient, design, exported
surface, loads, settings) and of what solves (the sources of engine, fem and objectives, the
packages' versions, the processor), so that a change of either solves anew. `reuse_gb` bounds the
disk: the longest unused go first; 0 neither takes nor gives. $SPINEFIT_SOLVED is another folder for
it, or (empty) none.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from engine.multigrid.native.library import cache_dir
from engine.types import Response, SolverStatus
from fem.verify import Check
from scripts.console.places import ROOT
from scripts.run.lock import locked

log = logging.getLogger("spinefit")
_CHECK = "check.npz"
_ARM_FILES = ("solution.vtu", "mesh.npz")


@lru_cache
def code_digest() -> str:
    """Hash of the sources that make the numbers (those of the position search too), and of the
    packages under them."""
    packages = {k: v for k, v in artifacts.versions().items() if not k.startswith("git_")}
    folders = [ROOT / part for part in ("engine", "fem", "objectives")]
    files = [
        p for folder in folders for kind in ("*.py", "*.cc", "*.h") for p in folder.rglob(kind)
    ]
    files += [ROOT / "scripts" / "run" / name for name in ("arms.py", "config.py", "search.py")]
    files.sort()
    return artifacts.digest([packages, [artifacts.sha256_file(p) for p in files]])


def key(*content: Any) -> str:
    """Name of what is made of this content by this code."""
    return artifacts.digest((code_digest(), *content))


_RESPONSE = tuple(f.name for f in fields(Response) if f.name != "loadcases")


def write_check(path: Path, check: Check) -> None:
    """A check as plain arrays (of its response) and a JSON text (of the rest), uncompressed."""
    rest = {f.name: getattr(check, f.name) for f in fields(Check) if f.name != "response"}
    rest["status"], rest["solver"] = asdict(check.status), [asdict(s) for s in check.solver]
    arrays: dict[str, Any] = {}
    if check.response is not None:
        rest["loadcases"] = check.response.loadcases
        values = {name: getattr(check.response, name) for name in _RESPONSE}
        arrays = {name: np.asarray(v) for name, v in values.items() if v is not None}
    text = json.dumps(rest, default=artifacts.json_value)
    with open(path, "wb") as stream:
        np.savez(stream, check=np.array(text), **arrays)


def read_check(path: Path) -> Check:
    """What write_check wrote. Raises ValueError when it is damaged or of another kind."""
    arrays = artifacts.read_npz(path)
    try:
        rest = json.loads(str(arrays.pop("check")))
        loadcases = rest.pop("loadcases", None)
        rest["status"] = SolverStatus(**rest["status"])
        rest["solver"] = tuple(SolverStatus(**s) for s in rest["solver"])
        rest["notes"], rest["balance"] = tuple(rest["notes"]), tuple(rest["balance"])
        response = None if loadcases is None else Response(**arrays, loadcases=tuple(loadcases))
        return Check(response=response, **rest)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no check of this version ({error!r})") from error


class Store:
    """Solved things by key, shared by all processes of this machine. gigabytes 0: empty for
    ever."""

    def __init__(self, gigabytes: float) -> None:
        where = os.environ.get("SPINEFIT_SOLVED")
        self.gigabytes = 0.0 if where == "" else gigabytes
        self.root = Path(where) if where else cache_dir() / "solved"

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process may solve it now: not while another one does, whose result is
        worth waiting for."""
        if not self.gigabytes:
            yield True
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / f"{name}.lock") as stream:
            yield stream is not None

    def take(self, name: str, into: Path) -> Check | None:
        """The solved arm, its files copied into a folder; None where there is none (a damaged
        one counts as none)."""
        here = self.root / name
        if not self.gigabytes or not (here / _CHECK).exists():
            return None
        try:
            check = read_check(here / _CHECK)
            into.mkdir(parents=True, exist_ok=True)
            for file in _ARM_FILES:
                if (here / file).exists():
                    artifacts.write_bytes(into / file, (here / file).read_bytes())
        except Exception as error:  # whatever a damaged file raises, or memory that is short
            log.warning("%s cannot be taken over (%s): solved anew", here, error)
            return None
        os.utime(here)
        return check

    def give(self, name: str, check: Check, source: Path) -> None:
        """Keep a solved arm for other runs. A full disk keeps nothing and harms nobody."""

        def write(folder: Path) -> None:
            write_check(folder / _CHECK, check)
            for file in _ARM_FILES:
                if (source / file).exists():
                    shutil.copyfile(source / file, folder / file)

        self._put(name, write)

    def search(self, name: str) -> str | None:
        """Lines of a finished position search."""
        path = self.root / name / "search.jsonl"
        if not self.gigabytes or not path.exists():
            return None
        os.utime(path.parent)
        return path.read_text()

    def give_search(self, name: str, lines: str) -> None:
        """Keep a finished position search for other runs."""
        self._put(name, lambda folder: (folder / "search.jsonl").write_text(lines))

    def _put(self, name: str, write: Callable[[Path], Any]) -> None:
        if not self.gigabytes or (self.root / name).exists():
            return
        temporary = self.root / f"{name}.{os.getpid()}.part"
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.rename(self.root / name)
        except OSError as error:
            log.info("%s was not kept for other runs: %s", name[:12], error)
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()

    def _prune(self) -> None:
        """Down to the allowed size, the longest unused first; what a killed process left half
        written goes after an hour."""
        sizes = []
        for folder in self.root.glob("*/"):
            try:
                if folder.name.endswith(".part"):
                    if time.time() - folder.stat().st_mtime > 3600:
                        shutil.rmtree(folder, ignore_errors=True)
                    continue
                size = sum(f.stat().st_size for f in folder.iterdir())
                sizes.append((folder.stat().st_mtime, size, folder))
            except OSError:  # another process has just pruned it
                continue
        total = sum(size for _, size, _ in sizes)
        for _, size, folder in sorted(sizes, key=lambda s: s[:2]):
            if total <= self.gigabytes * 1e9:
                break
            shutil.rmtree(folder, ignore_errors=True)
            (self.root / f"{folder.name}.lock").unlink(missing_ok=True)
            total -= size
