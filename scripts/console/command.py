"""What every command of scripts/ does before and after its work.

`--help`, the command line in (scripts/console/overrides.py), every wrong key and value named at
once, the first line on the screen before anything slow is imported, and one line for whatever goes
wrong. This file imports nothing slow, and neither does a command's file: what needs JAX, PyVista or
a reader is imported by the command's task, once it has been said what will be done.

Exit codes: 0 done, 2 wrong input, 75 failed for a reason that may pass (a full disk), 130
interrupted.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scripts.console import composing, overrides, wrong
from scripts.console.composing import Given
from scripts.console.wrong import Wrong

FAILED, TRANSIENT, STOPPED = 2, 75, 130
_SWEEP_FLAGS = ("-m", "--multirun")
#: Flags that Hydra answers: what it would compose, and completion on the tab key.
_HYDRA_FLAGS = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--resolve",
    "--package",
    "-p",
    "-sc",
    "--shell-completion",
    "--hydra-help",
    "--version",
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
)
_WIDTH = 100


@dataclass(frozen=True)
class Command:
    """One command.

    script, config   its file in scripts/; conf/<config>.yaml
    does             what it does, in a few sentences
    options          the keys that matter, with what they mean
    examples         three lines, without `python scripts/<script>`
    task             the work; returns the exit code (None: 0). Whatever it raises is said in a line
                     (see `run`)
    opening          lines that say what will be done, printed before the task is begun; raises
                     ValueError to refuse at once
    problems         what else is wrong with composed settings: called when keys are wrong too, so
                     that all is named together
    topics           names of which the first word may be one (python scripts/validation.py code),
                     with what they mean
    topic_needed     without a topic there is nothing to do
    sweep            what -m does with the words; None: the command has no -m
    """

    script: str
    config: str
    does: str
    options: Mapping[str, str]
    examples: tuple[str, str, str]
    task: Callable[[Given], int | None]
    opening: Callable[[Given], Iterable[str]] = lambda given: ()
    problems: Callable[[DictConfig], Iterable[str]] = lambda settings: ()
    topics: Mapping[str, str] = field(default_factory=dict)
    topic_needed: bool = False
    sweep: Callable[[Sequence[str]], int] | None = None

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Do it; returns the exit code, with everything that goes wrong said in lines that begin
        with `error:`."""
        return run(lambda: self._main(list(sys.argv[1:] if arguments is None else arguments)))

    def _main(self, arguments: list[str]) -> int:
        if {"-h", "--help"} & set(arguments):
            print(self.help())
            return 0
        topic, words = self._topic(arguments)
        if many := [a for a in words if a in _SWEEP_FLAGS]:
            if self.sweep is None:
                raise ValueError(
                    f"{many[0]} (every combination) is an option of scripts/optimize.py; leave it"
                    " out here"
                )
            return self.sweep(overrides.understood([a for a in words if a not in many], sweep=True))
        if any(a.split("=", 1)[0] in _HYDRA_FLAGS for a in words):
            return self._by_hydra(words)
        if flags := [a for a in words if a.startswith("-")]:
            raise Wrong(
                f"{a}: unknown flag; there are --help, --cfg job{', -m' if self.sweep else ''}"
                for a in flags
            )
        return self._begin(
            composing.compose(self.config, self._checked(overrides.understood(words)), topic)
        )

    def _begin(self, given: Given) -> int:
        if missing := self._missing(given.settings):
            raise Wrong(missing)
        for line in self.opening(given):
            print(line, file=sys.stderr, flush=True)
        return self.task(given) or 0

    def _missing(self, settings: DictConfig) -> list[str]:
        """A line on each key that has to be given and is not."""
        return [
            f"{key}=… is missing{self._meaning(key)}; {self._line(['--help'])} shows more"
            for key in sorted(map(str, OmegaConf.missing_keys(settings)))
        ]

    def _meaning(self, key: str) -> str:
        return f": {self.options[key]}" if key in self.options else ""

    def _topic(self, arguments: list[str]) -> tuple[str, list[str]]:
        if not self.topics:
            return "", arguments
        first = (
            arguments[0]
            if arguments and "=" not in arguments[0] and not arguments[0].startswith("-")
            else ""
        )
        if first and first not in self.topics:
            raise ValueError(
                f"{first!r} is unknown{wrong.nearest(first, self.topics)}; there are"
                f" {' | '.join(self.topics)}"
            )
        if self.topic_needed and not first and not any(a.startswith("-") for a in arguments):
            raise ValueError(
                f"say which: {' | '.join(self.topics)}, e.g."
                f" {self._line([next(iter(self.topics))])}"
            )
        return first, arguments[1:] if first else arguments

    def _line(self, words: Sequence[str]) -> str:
        return overrides.shell_line(self.script, words)

    def _checked(self, words: list[str]) -> list[str]:
        """The words, when Hydra can compose them. Raises Wrong naming every one that it cannot,
        with all that is wrong with the rest."""
        good, problems = composing.checked(self.config, words, self._line)
        if problems:
            try:
                settings = composing.compose(self.config, good).settings
                problems += self._missing(settings) or self.problems(settings)
            except (ValueError, HydraException, OmegaConfBaseException) as error:
                problems += wrong.lines_of(error)
            raise Wrong(dict.fromkeys(problems))
        return good

    def _by_hydra(self, words: list[str]) -> int:
        """Hydra's own flags, under Hydra's own main."""
        import hydra

        before = sys.argv
        plain = [a if a.startswith("-") else overrides.understood([a])[0] for a in words]
        sys.argv = [before[0], *plain]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raised here, to be said as any other error
        code = 0

        def task(settings: DictConfig) -> None:
            nonlocal code
            code = self._begin(composing.under_hydra(settings))

        try:
            hydra.main(
                version_base="1.3", config_path=str(composing.CONF), config_name=self.config
            )(task)()
        finally:
            sys.argv = before
            os.environ.pop("HYDRA_FULL_ERROR", None)
        return code

    def help(self) -> str:
        """What it does, its options with their defaults, its groups with their choices, and
        examples; 100 columns."""
        line = f"python scripts/{self.script}"
        usage = (
            f"{line}{' TOPIC' if self.topic_needed else ' [TOPIC]' if self.topics else ''}"
            " key=value …"
        )
        parts = [usage, _filled(self.does)]
        if self.topics:
            parts.append("Topics:\n" + _rows(self.topics))
        defaults = _defaults(self.config)
        rows = {key: f"{text}{_default(defaults, key)}" for key, text in self.options.items()}
        if rows:
            parts.append("Options:\n" + _rows(rows))
        if groups := composing.groups(self.config):
            choices = {
                f"{name}=": (
                    " | ".join(composing.choices(name)) + (f"  [{default}]" if default else "")
                )
                for name, default in groups.items()
            }
            parts.append(
                "Groups, each a folder of conf/ with one file a choice:\n" + _rows(choices)
            )
        parts.append(
            "Examples:\n" + "\n".join(f"  {line} {example}".rstrip() for example in self.examples)
        )
        if self.config:
            parts.append(
                _filled(
                    f"All keys, with what they mean: conf/{self.config}.yaml and the files of the"
                    " groups; what a line makes of them: --cfg job. Paths are taken as they stand,"
                    " with spaces and all (in the shell's quotes)."
                )
            )
        return "\n\n".join(parts)


def run(work: Callable[[], int]) -> int:
    """The exit code of some work, with one line for whatever a user can do something about."""
    try:
        return work()
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    except OSError as error:
        wrong.report_error(error)
        return TRANSIENT if wrong.may_pass(error) else FAILED
    except (ValueError, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        wrong.report_error(error)
        return FAILED


def folder_problem(folder: Path) -> str | None:
    """Why nothing can be written into a folder that may not be there yet; None where it can."""
    for place in (folder, *folder.parents):
        if not os.path.lexists(place):
            continue
        if not place.is_dir():
            return f"{place} is a file, where a folder is needed; choose another"
        if not os.access(place, os.W_OK | os.X_OK):
            return f"{place}: permission denied; choose a place where you may write"
        return None
    return None


def require_writable(folder: Path) -> None:
    """Raises ValueError where nothing can be written into a folder (`folder_problem`)."""
    if problem := folder_problem(folder):
        raise ValueError(problem)


def _rows(rows: Mapping[str, str]) -> str:
    wide = min(max(map(len, rows)), 28)
    lines = []
    for key, text in rows.items():
        first = f"  {key:<{wide}}  "
        lines.append(
            textwrap.fill(
                text,
                _WIDTH,
                initial_indent=first,
                subsequent_indent=" " * (wide + 4),
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


def _filled(text: str) -> str:
    return "\n\n".join(
        textwrap.fill(" ".join(p.split()), _WIDTH, break_on_hyphens=False)
        for p in text.split("\n\n")
    )


def _defaults(config: str) -> dict[str, Any]:
    if not config:
        return {}
    return yaml.safe_load((composing.CONF / f"{config}.yaml").read_text())


def _default(values: Any, key: str) -> str:
    """` [default]` of a key in conf/<command>.yaml; of a group's or a computed one nothing."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return ""
        values = values[part]
    if values == "???":
        return "  (needed)"
    if values in ("", {}, []) or "${" in str(values) or isinstance(values, dict):
        return ""
    return f"  [{overrides.literal(values)}]"
