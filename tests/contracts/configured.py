"""Every choice that the configuration offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parents[2] / "conf"


def choices(group: str) -> dict[str, dict[str, Any]]:
    """Every YAML of a configuration group, by name."""
    return {
        path.stem: yaml.safe_load(path.read_text())
        for path in sorted((CONF / group).glob("*.yaml"))
    }
