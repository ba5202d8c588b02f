"""From Hydra's composed settings to the typed configuration of a run, or to a sweep of them.
Every wrong key and value is named at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from engine import implants, loadcases
from engine.implants.cage import Settings as Cage
from objectives.problem import GoalSettings, goal
from scripts.console import composing
from scripts.console.wrong import Wrong, nearest, validation_lines
from scripts.run.config import LauncherConfig, RunConfig
from scripts.run.stored import PARTS, STUDY, TYPED


def run_config(settings: DictConfig) -> tuple[RunConfig, LauncherConfig]:
    """The typed configuration of the composed groups, and where a sweep's jobs run. Raises Wrong
    naming every wrong key and value."""
    plain = dict(OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    own = set(RunConfig.model_fields) - {"study"}
    known = own | set(STUDY) | set(PARTS) | {"launcher"}
    wrong = [
        f"{key}: unknown key{nearest(key, known)}; known are {', '.join(sorted(known))}"
        for key in sorted(set(plain) - known)
    ]
    study = {k: plain[k] for k in STUDY if k in plain}
    for group, keys in PARTS.items():
        part = plain.get(group) or {}
        if extra := sorted(set(part) - set(keys)):
            wrong.append(
                f"{group}: unknown key {', '.join(extra)}; it holds {' and '.join(keys)} and"
                " nothing else"
            )
        study |= {k: v for k, v in part.items() if k in keys}
    wrong += _wrong_parts(study)
    found: list[Any] = []
    given = {k: plain[k] for k in own if k in plain} | {"study": study}
    for kind, values, prefix in (
        (RunConfig, given, ""),
        (LauncherConfig, plain.get("launcher") or {}, "launcher."),
    ):
        try:
            found.append(kind(**values))
        except ValidationError as error:
            wrong += validation_lines(error, prefix, kind, TYPED)
    if wrong:
        raise Wrong(dict.fromkeys(wrong))
    return found[0], found[1]


def _wrong_parts(study: dict[str, Any]) -> list[str]:
    """What the family, each load case and each goal say against their settings."""
    cases, entries = study.get("cases"), study.get("goals")
    checks: list[tuple[str, Any, Any]] = [
        (
            "implant.settings.",
            Cage,
            partial(implants.load, study.get("family", ""), study.get("settings") or {}),
        )
    ]
    for name, spec in cases.items() if isinstance(cases, dict) else ():
        if isinstance(spec, dict):
            checks.append((f"loadcases.cases.{name}.", None, partial(loadcases.check, name, spec)))
    for i, entry in enumerate(entries) if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            checks.append((f"objectives.goals.{i}.", GoalSettings, partial(goal, entry)))
    wrong = []
    for prefix, model, check in checks:
        try:
            check()
        except ValidationError as error:
            wrong += validation_lines(error, prefix, model, TYPED)
        except ValueError as error:
            wrong.append(str(error))
    return wrong


def problems(settings: DictConfig) -> list[str]:
    """Every wrong key and value of composed settings, in lines."""
    try:
        run_config(settings)
    except Wrong as error:
        return error.problems
    return []


def composed(overrides: Sequence[str]) -> tuple[RunConfig, LauncherConfig, dict[str, Any]]:
    """One run from overrides alone: its configuration, its launcher, and how it came about.
    Raises as Hydra and run_config do."""
    given = composing.compose("config", overrides)
    return *run_config(given.settings), given.made
