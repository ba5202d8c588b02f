"""From Hydra's composed settings to the typed configuration of a run, or to a sweep of them. Every wrong key and value is named at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from engine import implants, loadcases
from engine.implants.cage import Settings as Cage
from engine.patient.prepare import one_line
from objectives.problem import GoalSettings, goal
from scripts.launchers import LauncherConfig
from scripts.pipeline import ROOT, RunConfig

CONF = ROOT / "conf"
#: Keys of the composed settings that belong to the study (objectives.study.StudyConfig), and those that hold a part of it.
_STUDY = ("stock", "boundary", "solver", "search", "export_spacing_mm", "seed", "start_scatter")
_PARTS = {"implant": ("family", "settings"), "loadcases": ("cases",), "objectives": ("goals",)}

#: Where a user types what the study holds.
_TYPED = (("study.cases", "loadcases.cases"), ("study.goals", "objectives.goals"), ("study.settings", "implant.settings"),
          ("study.family", "implant.family"), ("study.", ""))  # fmt: skip


class Wrong(ValueError):
    """A configuration with `problems`, each in one line."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))


def said(error: Exception) -> None:
    """Print an error, each problem on a line of its own."""
    for line in error.problems if isinstance(error, Wrong) else [one_line(error)]:
        print(f"error: {line}", file=sys.stderr)


def run_config(settings: DictConfig) -> tuple[RunConfig, LauncherConfig]:
    """The typed configuration of the composed groups, and where a sweep's jobs run. Raises Wrong naming every wrong key and value."""
    plain = dict(OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))  # type: ignore[arg-type]
    own = set(RunConfig.model_fields) - {"study"}
    known = own | set(_STUDY) | set(_PARTS) | {"launcher"}
    problems = [f"{key}: unknown key; known are {', '.join(sorted(known))}" for key in sorted(set(plain) - known)]
    study = {k: plain[k] for k in _STUDY if k in plain}
    for group, keys in _PARTS.items():
        part = plain.get(group) or {}
        if extra := sorted(set(part) - set(keys)):
            problems.append(f"{group}: unknown key {', '.join(extra)}; it holds {' and '.join(keys)} and nothing else")
        study |= {k: v for k, v in part.items() if k in keys}
    problems += _wrong_parts(study)
    found: list[Any] = []
    given = {k: plain[k] for k in own if k in plain} | {"study": study}
    for kind, values, prefix in ((RunConfig, given, ""), (LauncherConfig, plain.get("launcher") or {}, "launcher.")):
        try:
            found.append(kind(**values))
        except ValidationError as error:
            problems += _each(error, prefix, kind)
    if problems:
        raise Wrong(dict.fromkeys(problems))
    return found[0], found[1]


def _wrong_parts(study: dict[str, Any]) -> list[str]:
    """What the family, each load case and each goal say against their settings."""
    cases, entries = study.get("cases"), study.get("goals")
    checks: list[tuple[str, Any, Any]] = [
        ("implant.settings.", Cage, partial(implants.load, study.get("family", ""), study.get("settings") or {}))
    ]
    for name, spec in cases.items() if isinstance(cases, dict) else ():
        if isinstance(spec, dict):
            checks.append((f"loadcases.cases.{name}.", None, partial(loadcases.check, name, spec)))
    for i, entry in enumerate(entries) if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            checks.append((f"objectives.goals.{i}.", GoalSettings, partial(goal, entry)))
    problems = []
    for prefix, model, check in checks:
        try:
            check()
        except ValidationError as error:
            problems += _each(error, prefix, model)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _each(error: ValidationError, prefix: str, model: Any) -> list[str]:
    """Every wrong key with its path as a user would type it, what is wrong, and what was given."""
    lines = []
    for item in error.errors():
        path = prefix + ".".join(map(str, item["loc"]))
        for inner, outer in _TYPED:
            if path.startswith(inner):
                path = outer + path[len(inner) :]
                break
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "unknown key" + _known(model, item["loc"])
        given = "" if isinstance(item["input"], dict) else f" (given {item['input']!r})"
        lines.append(f"{path.strip('.')}: {text}{given}")
    return lines


def _known(model: Any, path: Sequence[Any]) -> str:
    """The keys that a model takes where the path ends."""
    for part in path[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    fields = getattr(model, "model_fields", None)
    return f"; known are {', '.join(sorted(fields))}" if fields else ""


def made(hydra: Any) -> dict[str, Any]:
    """Hydra's choice in each group and the overrides: how a configuration came about."""
    choices = {str(k): v for k, v in hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    return {"choices": choices, "overrides": list(hydra.overrides.task)}


@contextmanager
def _conf() -> Iterator[None]:
    """conf/ for Hydra's compose, also where a script's own @hydra.main is at work (Hydra holds one configuration at a time)."""
    holder = GlobalHydra.instance()
    outer, holder.hydra = holder.hydra, None
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def composed(overrides: Sequence[str]) -> tuple[RunConfig, LauncherConfig, dict[str, Any]]:
    """One run from overrides alone: its configuration, its launcher, and how it came about. Raises as Hydra and run_config do."""
    with _conf():
        settings = compose("config", list(overrides), return_hydra_config=True)
    return *run_config(OmegaConf.masked_copy(settings, [str(k) for k in settings if k != "hydra"])), made(settings.hydra)


def expand(arguments: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Every combination of a sweep's overrides (lists a,b,c and Hydra's choice(), range(), glob()), and the keys that are swept.

    What the configuration sweeps by itself (hydra.sweeper.params, as an experiment may) comes first; the arguments win over it.
    """
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    fixed = [a for a, o in zip(arguments, parsed, strict=True) if not o.is_sweep_override()]
    with _conf():
        own = compose("config", fixed, return_hydra_config=True).hydra.sweeper.params or {}
    given = {o.get_key_element().lstrip("+") for o in parsed}
    more = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in own.items() if str(k).lstrip("+") not in given])
    every = [*more, *parsed]
    return BasicSweeper.split_arguments(every, None)[0], [o.get_key_element().lstrip("+") for o in every if o.is_sweep_override()]
