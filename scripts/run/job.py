"""One job: a run folder from the planned patient to the report, which may be cut off anywhere and
started again.

    outcome.json   written last: done | failed | stopped, why, and of which configuration
    .lock          held while a process works on the folder (flock: let go by the system however
                   that process ends)
    job.log        what a sweep's jobs print

Exit codes: 0 done, 2 failed for good (input, or an answer that cannot be had), 75 failed for a
reason that may pass (disk full, memory, a killed process), 130 stopped by a signal. An exit without
outcome.json is a kill; the next start goes on from what is on disk.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine import artifacts
from engine.part.lattice import LatticeSettings
from engine.settings import one_line
from scripts.console import overrides
from scripts.console.command import FAILED, STOPPED, TRANSIENT
from scripts.console.wrong import may_pass, os_line
from scripts.run import check, design, drawings, handover, opened, standing, stored, tracking
from scripts.run.config import RunConfig
from scripts.run.folder import Clock, OtherRun, designed, tidy
from scripts.run.lock import locked
from scripts.run.stored import LOCK, OUTCOME

log = logging.getLogger("spinefit")

DONE = 0
__all__ = ["DONE", "FAILED", "STOPPED", "TRANSIENT", "finished", "key", "run", "working"]


# -- the lock --------------------------------------------------------------------------------------
@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Only one process at a time works on a folder. Raises OtherRun when another does, or when
    the folder is something else."""
    if stored.kind(folder) == "other":
        raise OtherRun(stored.refusal(folder, resume=True) or "")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK) as stream:
        if stream is None:
            who = _holder(folder)
            raise OtherRun(f"{folder} is being worked on by {who}; wait for it, or stop it first")
        stream.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}, stream)
        stream.flush()
        yield


def _holder(folder: Path) -> str:
    try:
        head = artifacts.read_json(folder / LOCK)
        return f"process {head['pid']} on {head['host']}"
    except (ValueError, OSError, KeyError):
        return "another process"


# -- running ---------------------------------------------------------------------------------------
def key(config: RunConfig) -> str:
    """Hash of a whole job: what shapes its designs, their lattice and, where it checks them, its
    check."""
    lattice = () if config.lattice == LatticeSettings() else (config.lattice.model_dump(),)
    return artifacts.digest(
        (
            config.identity(),
            config.check,
            opened.check_digest(config.fem) if config.check else "",
            *lattice,
        )
    )


def finished(config: RunConfig) -> bool:
    """Done already, with just this configuration and a budget that would not carry the search
    any further."""
    folder = Path(config.out)
    if not (folder / OUTCOME).exists():
        return False
    before = artifacts.read_json(folder / OUTCOME)
    return (
        before["status"] == "done"
        and before.get("key") == key(config)
        and designed(folder, config.budget)
    )


def run(config: RunConfig, made: dict[str, Any] | None = None) -> int:
    """Do what is left of a job and write its outcome; returns the exit code. Everything that goes
    wrong is said in one line.

    `made`: Hydra's choices and overrides, for meta.json.
    """
    folder, began = Path(config.out), time.time()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with working(folder):
            if config.resume and (folder / "meta.json").exists():
                log.info("%s: found %s", folder, standing.read(folder).text)
            last = artifacts.read_json(folder / OUTCOME) if (folder / OUTCOME).exists() else None
            (folder / OUTCOME).unlink(
                missing_ok=True
            )  # killed from here on, it must not look as it did before
            try:
                code, status, reason = _attempt(config, made)
            except OtherRun:
                if last is not None:
                    artifacts.write_json(folder / OUTCOME, last)
                raise
            if code == DONE:
                tidy(folder, config)
                tracking.track(folder, config.mlflow)
            end = {
                "status": status,
                "reason": reason,
                "exit": code,
                "key": key(config),
                "identity": config.identity(),
                "began": began,
                "ended": time.time(),
            }
            artifacts.write_json(folder / OUTCOME, end)
    except OtherRun as error:
        code, status, reason = FAILED, "failed", one_line(error)
    except OSError as error:  # the folder itself cannot be written
        code, status, reason = _end_of(error), "failed", os_line(error)
    if reason:
        log.error("%s", f"error: {reason}" if status == "failed" else reason)
    return code


def _attempt(config: RunConfig, made: dict[str, Any] | None) -> tuple[int, str, str]:
    """Exit code, status, reason."""
    folder = Path(config.out)
    try:
        config.mlflow.require()
        design.design_run(config, made)
        if config.lattice.realise:
            with Clock(folder)("lattice"):
                drawings.write_lattice(folder, "optimised", config.lattice)
        if not (folder / "designs" / "optimised" / "blueprint.json").exists():
            drawings.write_blueprint(folder)
        handover.write_slicer(folder)
        if config.check:
            if opened.checked(folder, config.fem):
                log.info("%s: the check is there", folder)
            else:
                check.check_run(folder, config.fem)
            arms = artifacts.read_json(folder / "result.json")["arms"]
            if dead := [
                arm for arm in config.fem.arms if not (folder / "fem" / arm / "arm.json").exists()
            ]:
                return TRANSIENT, "failed", f"{', '.join(dead)}: {arms[dead[0]]['status']['text']}"
            if bad := [
                f"{arm}: {a['status']['text']}"
                for arm, a in arms.items()
                if a["status"]["code"] != "ok"
            ]:
                return DONE, "done", f"done, but without numbers for {'; '.join(bad)}"
        return DONE, "done", ""
    except OtherRun:
        raise
    except KeyboardInterrupt as stop:
        return (
            STOPPED,
            "stopped",
            (
                str(stop)
                if isinstance(stop, design.Stopped)
                else f"stopped; go on with:\n  {go_on(folder, made)}"
            ),
        )
    except (ValueError, FloatingPointError) as error:
        return FAILED, "failed", one_line(error)
    except OSError as error:
        return _end_of(error), "failed", os_line(error)
    except MemoryError as error:
        return TRANSIENT, "failed", f"{type(error).__name__}: {one_line(error)}"
    except Exception as error:
        log.error("%s", traceback.format_exc())
        full = "RESOURCE_EXHAUSTED" in str(error) or "bad_alloc" in str(error)
        return (
            TRANSIENT if full else 1,
            "failed",
            f"{type(error).__name__}: {one_line(error)[:500]}",
        )


def _end_of(error: OSError) -> int:
    return TRANSIENT if may_pass(error) else FAILED


def go_on(folder: Path, made: dict[str, Any] | None) -> str:
    """The line that goes on with a job: its folder's own configuration, or, before there is one,
    what was given."""
    if (folder / "config.yaml").exists() or not made:
        return overrides.resume_line(folder)
    words = [w for w in made["overrides"] if overrides.key_of(w) not in ("out", "resume")]
    return overrides.shell_line(
        "optimize.py", [*words, "resume=true", overrides.quoted("out", str(folder))]
    )
