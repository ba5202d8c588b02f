"""From overrides to composed settings, without anything slow: which groups a command has, which
words are wrong, Hydra's compose."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import hydra
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from scripts.console import overrides
from scripts.console.places import CONF
from scripts.console.wrong import known_are, nearest


@dataclass(frozen=True)
class Given:
    """What a command was given: the composed settings, how they came about (Hydra's choices and
    overrides), and its topic."""

    settings: DictConfig
    made: dict[str, Any] = field(default_factory=dict)
    topic: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        """The settings as plain Python. Raises OmegaConf's errors for what is missing or cannot be
        resolved."""
        found: Any = OmegaConf.to_container(self.settings, resolve=True, throw_on_missing=True)
        return dict(found)

    @property
    def words(self) -> tuple[str, ...]:
        """The overrides in Hydra's grammar."""
        return tuple(self.made.get("overrides", ()))


def groups(config: str) -> dict[str, str | None]:
    """The config groups that conf/<config>.yaml uses, with its choice in each."""
    found: dict[str, str | None] = {}
    for entry in (
        yaml.safe_load((CONF / f"{config}.yaml").read_text()).get("defaults", ()) if config else ()
    ):
        if isinstance(entry, dict):
            (name, choice), *_ = entry.items()
            name = str(name).removeprefix("optional ")
            if not name.startswith("override "):
                found[name] = choice
    return found


def choices(group: str) -> list[str]:
    """The files of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@contextmanager
def conf() -> Iterator[None]:
    """conf/ for Hydra's compose, also where a script's own hydra.main is at work (Hydra holds one
    configuration at a time)."""
    holder = GlobalHydra.instance()
    outer, holder.hydra = holder.hydra, None
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def compose(config: str, words: Sequence[str], topic: str = "") -> Given:
    """The settings of conf/<config>.yaml with these overrides. Raises as Hydra does."""
    if not config:
        return Given(OmegaConf.create({}), {}, topic)
    with conf():
        whole = hydra.compose(config, list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(whole)  # for ${hydra:…}
    return Given(_own(whole), made(whole.hydra), topic)


def under_hydra(settings: DictConfig) -> Given:
    """The same, of settings that Hydra's own main has composed."""
    return Given(settings, made(HydraConfig.get()))


def made(hydra_settings: Any) -> dict[str, Any]:
    """Hydra's choice in each group and the overrides: how a configuration came about."""
    picked = {
        str(k): v
        for k, v in hydra_settings.runtime.choices.items()
        if not str(k).startswith("hydra/")
    }
    return {"choices": picked, "overrides": list(hydra_settings.overrides.task)}


def _own(whole: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(whole, [str(k) for k in whole if k != "hydra"])


def expand(arguments: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Every combination of a sweep's overrides (lists a,b,c and Hydra's choice(), range(), glob()),
    and the keys that are swept.

    What the configuration sweeps by itself (hydra.sweeper.params, as an experiment may) comes
    first; the arguments win over it.
    """
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    fixed = [a for a, o in zip(arguments, parsed, strict=True) if not o.is_sweep_override()]
    with conf():
        own = hydra.compose("config", fixed, return_hydra_config=True).hydra.sweeper.params or {}
    given = {o.get_key_element().lstrip("+") for o in parsed}
    more = overrides.understood(
        (f"{k}={v}" for k, v in own.items() if str(k).lstrip("+") not in given), sweep=True
    )
    every = [*OverridesParser.create().parse_overrides(more), *parsed]
    swept = [o.get_key_element().lstrip("+") for o in every if o.is_sweep_override()]
    return _combinations(every), swept


def _combinations(parsed: Sequence[Override]) -> list[list[str]]:
    """Every combination, as Hydra's own sweeper (which it keeps private) makes them: the last key
    changes fastest; of a key that is given twice the last counts. Raises HydraException for
    interval(), which cannot be enumerated."""
    values: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            kind = override.value_type.name if override.value_type else ""
            raise HydraException(f"BasicSweeper does not support sweep type : {kind}")
    return [list(one) for one in itertools.product(*values.values())]


# -- what is wrong with the words ---------------------------------------------------------------
def checked(
    config: str, words: Sequence[str], write: Callable[[Sequence[str]], str]
) -> tuple[list[str], list[str]]:
    """The words that Hydra can compose, and a line on each of the others: its grammar, a group's
    choice, a key that is not there.

    `write`: words as a line for the shell.
    """
    known, good, problems = groups(config), list[str](), list[str]()
    values: list[str] = []
    for word in words:
        if problem := overrides.grammar_problem(word, write):
            problems.append(problem)
        elif (key := overrides.key_of(word)) in known and "=" in word:
            if lacking := _no_choice(key, word, known[key] is None):
                problems += lacking
            else:
                good.append(word)
        elif (
            "." not in key
            and "@" not in key
            and (CONF / key).is_dir()
            and "=" in word
            and not word.startswith("~")
        ):
            problems.append(
                f"{key}: no group of this command{nearest(key, known)}{known_are(known)}"
            )
        else:
            values.append(word)
    every = _bases(config, good)
    for word in values:
        if problem := _no_key(word, every, known):
            problems.append(problem)
        else:
            good.append(word)
    return [w for w in words if w in good], problems


def _no_choice(group: str, word: str, optional: bool) -> list[str]:
    """A line on each choice that the group does not have."""
    override, there = overrides.parsed(word), choices(group)
    if override.value_type not in (
        ValueType.ELEMENT,
        ValueType.CHOICE_SWEEP,
        ValueType.SIMPLE_CHOICE_SWEEP,
    ):
        return []  # glob() and range() are Hydra's
    asked: list[Any]
    asked = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    asked = [
        a.text if isinstance(a, QuotedString) else a
        for a in asked
        if not isinstance(a, dict | list)
    ]
    names = [None if a is None else f"{a!s}" for a in asked]
    missing = [str(n) for n in names if n not in there and not (optional and n is None)]
    return [
        f"{group}={name}: no such choice{nearest(name, there)}{known_are(there)}"
        for name in missing
    ]


def _bases(config: str, words: Sequence[str]) -> list[DictConfig]:
    """What the groups compose to, one for each choice that is swept; [] where Hydra cannot (it then
    says so itself)."""
    try:
        combinations = _combinations(OverridesParser.create().parse_overrides(list(words)))
        with conf():
            return [hydra.compose(config, c) for c in combinations[:64]]
    except Exception:  # whatever is wrong here is said when all of it is composed
        return []


def _no_key(word: str, every: Sequence[DictConfig], known: dict[str, str | None]) -> str | None:
    """What is wrong with the key of a word, or None. Keys of hydra itself are Hydra's."""
    key, added = overrides.key_of(word), word.startswith("+")
    if not every or key.startswith("hydra") or word.startswith("~"):
        return None
    top = re.split(r"[./@]", key)[0]
    if added and top not in known and not any(top in base for base in every):
        return (
            f"{key}: unknown key{nearest(top, {*known, *(str(k) for base in every for k in base)})}"
        )
    if word.startswith("++") or "@" in key or "/" in key:
        return None
    there = [_state(base, key) for base in every]
    if added:
        return (
            f"{key} is there already; leave out the plus: {word.lstrip('+')}"
            if "there" in there
            else None
        )
    if any(state in ("there", "unknown") for state in there):
        return None
    if "open" in there:
        return (
            f"{key} is not in conf/; where it is a key of the model, write it with a plus: +{word}"
        )
    names = {name for base in every for name in _names(base)} | set(known)
    return f"{key}: unknown key{nearest(key, names)}"


def _state(node: Any, key: str) -> str:
    """there; absent; open: absent from a group that conf/ leaves empty ({}); unknown: below a null
    or a value, which is Hydra's to say."""
    parts = key.split(".")
    for i, part in enumerate(parts):
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                return "absent"
            node = node._get_node(int(part))
        elif isinstance(node, DictConfig):
            if OmegaConf.is_missing(node, part):
                return "there" if i + 1 == len(parts) else "unknown"
            if node._is_none() or node._is_missing():
                return "unknown"
            if part not in node:
                return "open" if i and not len(node) else "absent"
            node = node._get_node(part)
        else:
            return "unknown"
    return "there"


def _names(node: Any, path: str = "") -> Iterator[str]:
    """Every dotted key."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in node:
            own = str(key)
            name = f"{path}.{own}" if path else own
            yield name
            yield from _names(node._get_node(key), name)
