"""What a run folder holds on disk, read without anything slow: whether a run is there, its
configuration, and what of it may be changed.

A folder that is gone on with keeps its own configuration (config.yaml). What is given beside it
must say the same, or be one of the keys that shape no design (BESIDE): those win, and config.yaml
is written anew with them, so that `resume=true out=…` alone always goes on with what was last asked
for.

    resume=true out=F                      as F's config.yaml says resume=true out=F
                                           budget.wall_time_h=2 the same, with more time resume=true
                                           out=F implant=plif_cage    refused where F holds another
                                           cage, with each key that differs resume=true and the
                                           whole first line   as that line says, also where it says
                                           less on the keys of BESIDE than config.yaml does
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scripts.console import composing, overrides
from scripts.run.lock import is_locked

#: What the job that works on a run folder writes about itself (scripts/run/job.py).
LOCK, OUTCOME, JOB_LOG = JOB_FILES = (".lock", "outcome.json", "job.log")
#: With one of these, something has been computed.
RECORDS = ("search.jsonl", "history.jsonl", "engine.json")
#: Keys that shape no design: where it goes, how far the search gets, how it is checked and shown.
BESIDE = frozenset(
    "out resume check title keep budget fem credibility mlflow reuse_gb lattice".split()
)

#: Keys of the composed settings that belong to the study (scripts.run.config.StudyConfig), and
#: those that hold a part of it.
STUDY = ("stock", "boundary", "solver", "search", "export_spacing_mm", "seed", "start_scatter")
PARTS = {"implant": ("family", "settings"), "loadcases": ("cases",), "objectives": ("goals",)}
#: Where a user types what the study holds.
TYPED = (
    ("study.cases", "loadcases.cases"),
    ("study.goals", "objectives.goals"),
    ("study.settings", "implant.settings"),
    ("study.family", "implant.family"),
    ("study.", ""),
)
#: Of the stored configuration: dicts and lists that hold just what was given, nothing filled in.
_RAW = ("study.settings", "study.cases", "study.goals", "patient.phantom")


def busy(folder: Path) -> bool:
    """A process works on the folder now."""
    return is_locked(folder / LOCK)


def kind(folder: Path) -> str:
    """new (absent or empty); begun (a run in which nothing is computed yet); run; other (not of
    this program)."""
    if (folder / "meta.json").exists():
        return "run" if any((folder / name).exists() for name in RECORDS) else "begun"
    if folder.is_dir() and any(p.name not in JOB_FILES for p in folder.iterdir()):
        return "other"
    return "new"


def configuration(folder: Path) -> dict[str, Any] | None:
    """config.yaml as plain Python, or None where there is none. Raises ValueError when it cannot be
    read."""
    path = folder / "config.yaml"
    if not path.exists():
        return None
    try:
        found = yaml.load(
            path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())}); restore it, or choose another"
            " out="
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no configuration; restore it, or choose another out=")
    found.pop("keep_states", None)  # of runs from before keep.states
    return found


# -- going on -----------------------------------------------------------------------------------
def refusal(folder: Path, resume: bool) -> str | None:
    """Why a run may not go into the folder, as far as its name and files say; None where it may."""
    state = kind(folder)
    if state == "other":
        return f"{folder} exists and is not a run folder; choose another out="
    if state == "run" and not resume:
        go_on = overrides.resume_line(folder)
        return (
            f"{folder} already holds a run; go on with it by resume=true, or choose another out=  "
            f" ({go_on})"
        )
    return None


def resumed(
    folder: Path, settings: Mapping[str, Any], words: Sequence[str]
) -> dict[str, Any] | None:
    """The configuration to go on with: the folder's own with what was given beside it; None: the
    composed settings as they are.

    settings  composed of `words`, plain
    Raises ValueError naming every key that the folder holds otherwise.
    """
    held = configuration(folder) if kind(folder) in ("run", "begun") else None
    if held is None:
        return None
    given = dict(_given(settings, words))
    shaping = {path: value for path, value in given.items() if path.split(".")[0] not in BESIDE}
    if shaping and _complete(settings, held):
        return None
    found = {
        path: _differences(path, value, _at(held, _inner(path))) for path, value in shaping.items()
    }
    if differing := [_shown(path, lines) for path, lines in found.items() if lines]:
        if kind(folder) == "begun":  # a line that was corrected
            return None
        raise ValueError(
            f"{folder} holds another run: {'; '.join(differing)}. Leave these out to go on with it,"
            " or choose another out="
        )
    for path, value in given.items():
        if path.split(".")[0] in BESIDE:
            _put(held, path.split("."), value)
    return held


def _shown(path: str, lines: Sequence[str]) -> str:
    """What differs below a path; of a group with much of it the first two."""
    return (
        "; ".join(lines)
        if len(lines) <= 3
        else f"{'; '.join(lines[:2])} and {len(lines) - 2} more keys of {path}"
    )


def _given(settings: Mapping[str, Any], words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Every dotted path that the words set, with its composed value; of a group all that it
    holds."""
    known = composing.groups("config")
    for word in words:
        key = overrides.key_of(word)
        if key == "experiment" and (name := word.split("=", 1)[1]) in composing.choices(
            "experiment"
        ):
            content = yaml.safe_load((composing.CONF / "experiment" / f"{name}.yaml").read_text())
            for entry in content.pop("defaults", ()):
                group = (
                    str(next(iter(entry))).removeprefix("override ").strip("/")
                    if isinstance(entry, dict)
                    else ""
                )
                if group in settings and group != "launcher":
                    yield group, settings[group]
            content.pop("hydra", None)
            for path in _leaves(content):
                yield path, _at(settings, path)
        elif key.split(".")[0] in ("launcher", "experiment", "hydra") or word.startswith("~"):
            continue
        elif key in known:
            yield key, settings.get(key)
        else:
            yield key, _at(settings, key)


def _complete(settings: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    """The composed settings shape just the designs that the folder holds: the whole first line was
    given."""
    for key, value in settings.items():
        if key in BESIDE or key in ("launcher", "experiment"):
            continue
        if _differences(key, value, _at(held, _inner(key))):
            return False
    raw = {
        "study.settings": "implant.settings",
        "study.cases": "loadcases.cases",
        "study.goals": "objectives.goals",
    }
    return all(
        _same(_at(settings, raw.get(path, path)) or {}, _at(held, path) or {}) for path in _RAW
    )


def _inner(path: str) -> str:
    """The path in config.yaml of a path of the composed settings."""
    head, _, rest = path.partition(".")
    if head in PARTS:
        return f"study.{rest}" if rest else "study"
    return f"study.{path}" if head in STUDY else path


def _differences(path: str, given: Any, held: Any) -> list[str]:
    """What differs of all that is given, a line each; what is held beyond it does not count."""
    if isinstance(given, Mapping):
        lacking = {} if held is None else held
        if not isinstance(lacking, Mapping):
            return [f"{path}={overrides.literal(given)}, there {held!r}"]
        return [
            line
            for k, v in given.items()
            for line in _differences(f"{path}.{k}", v, lacking.get(k))
        ]
    if isinstance(given, list) and isinstance(held, list) and len(given) == len(held):
        return [
            line
            for i, (a, b) in enumerate(zip(given, held, strict=True))
            for line in _differences(f"{path}.{i}", a, b)
        ]
    if _same(given, held) or (
        path == "patient.bundle"
        and given
        and held
        and Path(given).resolve() == Path(held).resolve()
    ):
        return []
    shown = overrides.literal(held) if held is not None else "not set"
    return [f"{path}: given {overrides.literal(given)}, there {shown}"]


def _same(given: Any, held: Any) -> bool:
    """Equal, lists and tuples alike, and numbers as numbers (also where one of them was read as
    text)."""
    if isinstance(given, Mapping) and isinstance(held, Mapping):
        return set(given) == set(held) and all(_same(given[k], held[k]) for k in given)
    if isinstance(given, list | tuple) and isinstance(held, list | tuple):
        return len(given) == len(held) and all(map(_same, given, held))
    if isinstance(given, bool) or isinstance(held, bool) or given is None or held is None:
        return given is held
    if isinstance(given, str) and isinstance(held, str):
        return given == held
    try:
        return float(given) == float(held)
    except (TypeError, ValueError):
        return bool(given == held)


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else str(key))
    elif path:
        yield path


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _put(value: dict[str, Any], path: Sequence[str], to: Any) -> None:
    for part in path[:-1]:
        if not isinstance(value.get(part), dict):
            value[part] = {}
        value = value[part]
    value[path[-1]] = to
