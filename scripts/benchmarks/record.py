"""The settings of scripts/benchmark.py, and where its results go."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from scripts.benchmarks import answer, run_peer
from scripts.console.places import ROOT


class BenchmarkConfig(BaseModel):
    """conf/benchmark.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    problem: Literal["anatomy", "box", "gyroid"] = "anatomy"
    unknowns: list[float] = Field([1e5], min_length=1)
    solvers: list[str] = Field(["engine"], min_length=1)
    element: Literal["engine", "full"] = "engine"
    tolerance: float = Field(1e-6, gt=0, lt=1)
    device: Literal["cpu", "gpu"] = "cpu"
    time_limit_s: float = Field(600, gt=0)
    memory_limit_gb: float = Field(20, gt=0)
    bundle: str | None = None
    spacing_mm: list[float] = Field([1.0], min_length=1)
    out: str = "runs/benchmark"

    @field_validator("solvers")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if wrong := [n for n in names if n not in run_peer.SOLVERS]:
            raise ValueError(
                f"solvers: {', '.join(wrong)} unknown; choose among {', '.join(run_peer.SOLVERS)}"
            )
        return names


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": answer.cores(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def folder(config: BenchmarkConfig) -> Path:
    """Where the results go; made where it is not there."""
    path = ROOT / config.out
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(path: Path, content: Any) -> None:
    """A result as JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n")


def line(row: dict[str, Any], form: str) -> str:
    """A row for the screen: name and value of each entry, numbers as `form`."""
    return "  ".join(
        f"{k} {v:{form}}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
    )
