"""The engine and other solvers on the same problem, each in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks import problems, record
from scripts.benchmarks.record import BenchmarkConfig
from scripts.console.places import ROOT

log = logging.getLogger("spinefit")


def compare_solvers(config: BenchmarkConfig) -> None:
    """Every solver on every size, one process each, in turn."""
    out = record.folder(config)
    results: list[dict[str, Any]] = []
    given_up: set[str] = set()
    for wanted in config.unknowns:
        path = out / f"{config.problem}_{int(wanted)}.npz"
        np.savez(path, **problems.make_problem(config.problem, int(wanted)))
        for name in config.solvers:
            result = {
                "solver": name,
                "wanted": wanted,
                "status": "not tried: failed at a smaller size",
            }
            if name not in given_up:
                result = _one(name, path, out / "one.json", config) | {"wanted": wanted}
                if result["status"] != "ok":
                    given_up.add(name)
            results.append(result)
            log.info("%s", _line(result))
            record.write(
                out / "solver.json",
                {"machine": record.machine(), "config": config.model_dump(), "results": results},
            )
        path.unlink()
    print(_table(results))
    _plot_solvers(results, out / "solver.png")
    print(f"{out / 'solver.json'}, {out / 'solver.png'}")


def measure_size(config: BenchmarkConfig) -> None:
    """The engine alone: cost against size and its exponent."""
    compare_solvers(config.model_copy(update={"solvers": ["engine"]}))
    results = [
        r
        for r in json.loads((record.folder(config) / "solver.json").read_text())["results"]
        if r["status"] == "ok"
    ]
    if len(results) > 1:
        n, t = (np.log([r[key] for r in results]) for key in ("unknowns", "total_s"))
        print(f"time ~ unknowns^{np.polyfit(n, t, 1)[0]:.2f}")


def _one(name: str, problem: Path, out: Path, config: BenchmarkConfig) -> dict[str, Any]:
    """A solver in a process of its own, stopped at the limits of time and memory."""
    out.unlink(missing_ok=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cuda" if config.device == "gpu" and name == "engine" else "cpu"
    }
    command = [
        sys.executable,
        "-m",
        "scripts.peers",
        name,
        str(problem.resolve()),
        str(config.tolerance),
        str(out.resolve()),
        config.element,
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    started, why = time.monotonic(), ""
    while process.poll() is None and not why:
        time.sleep(0.2)
        if time.monotonic() - started > config.time_limit_s:
            why = f"stopped after {config.time_limit_s:.0f} s"
        elif _session_gb(process.pid) > config.memory_limit_gb:
            why = f"stopped above {config.memory_limit_gb:g} GB"
    if why:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return {"solver": name, "status": why}
    error = process.communicate()[1]
    if not out.is_file():
        last = (error or "").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return {"solver": name, "status": f"failed: {last[0][:200]}"}
    return json.loads(out.read_text())


def _session_gb(leader: int) -> float:
    """Resident memory of a session's processes."""
    pages = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(entry)) == leader:
                pages += int(Path(f"/proc/{entry}/statm").read_text().split()[1])
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


_COLUMNS = (
    "solver",
    "unknowns",
    "iterations",
    "setup_s",
    "solve_s",
    "total_s",
    "peak_mb",
    "times ours",
    "status",
)


def _cells(result: dict[str, Any], ours: float | None = None) -> list[str]:
    total = result.get("total_s")
    shown = {**result, "times ours": total / ours if total and ours else None}
    texts = []
    for key in _COLUMNS:
        value = shown.get(key)
        if value is None:
            texts.append("–")
        elif key == "peak_mb":
            texts.append(f"{value:.0f}")
        else:
            texts.append(f"{value:.3g}" if isinstance(value, float) else str(value))
    return texts


def _line(result: dict[str, Any]) -> str:
    return "  ".join(f"{k} {v}" for k, v in zip(_COLUMNS, _cells(result), strict=True) if v != "–")


def _table(results: list[dict[str, Any]]) -> str:
    ours = {
        r["wanted"]: r["total_s"]
        for r in results
        if r["solver"] == "engine" and r["status"] == "ok"
    }
    rows = [
        list(_COLUMNS),
        ["---"] * len(_COLUMNS),
        *(_cells(r, ours.get(r["wanted"])) for r in results),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _plot_solvers(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in dict.fromkeys(r["solver"] for r in results):
        mine = [r for r in results if r["solver"] == name and r["status"] == "ok"]
        for axis, key, label in zip(
            axes, ("total_s", "peak_mb"), ("time to solution, s", "peak memory, MB"), strict=True
        ):
            axis.loglog(
                [r["unknowns"] for r in mine],
                [r[key] for r in mine],
                "o-",
                label=name,
                lw=2.5 if name == "engine" else 1.2,
            )
            axis.set(xlabel="unknowns", ylabel=label)
            axis.grid(True, which="both", alpha=0.25)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
