"""What is typed and what is written: shell words to overrides in Hydra's grammar, values to
overrides, overrides to a shell line.

Hydra reads `key=value` with a grammar of its own, in which ( ) [ ] { } , = : ' " # & ~ and every
letter beyond a-z mean something or are refused. A path may hold any of them. So:

  * our own code writes an override only by `quoted(key, value)`, and a line for the user only by
    `shell_line(words)`
  * what a user typed goes through `understood(words)` first. Of a key that holds text (TEXTS,
    PATHS, and the elements of LISTS) the value is taken as it stands, without Hydra's quotes,
    wherever it cannot be meant otherwise.

How a value of such a key is read; the first rule that fits holds:

  1. an existing path as a whole is that path, whatever its characters (PATHS and LISTS)
  2. null and an empty value are Hydra's
  3. in quotes that Hydra understands ('…' or "…" from the first to the last character) it is what
     Hydra makes of it. A new folder whose name begins and ends with the same quotes must therefore
     be quoted twice: out="'…'"
  4. with ${…} it is an interpolation, with a backslash before one of \\ ( ) [ ] { } : = , or a
     space it is Hydra's escape
  5. with -m only: choice(…), range(…), glob(…) and the like are sweeps, and a comma outside of
     quotes and brackets separates the jobs of a sweep; each part then goes through these rules.
     Without -m a comma is a character like any other
  6. a leading ~ or ~name is a home folder (PATHS and LISTS)
  7. everything else is the text as it stands: also 2026, true and 1e3, which Hydra would make
     numbers of

Of LISTS, a list in brackets with quotes or brackets inside is Hydra's where its grammar takes it;
else, with brackets and without, commas separate the elements (rule 1 comes first: `runs=/tmp/a,b`
is one folder where it exists; so is, inside a list or a sweep, the longest run of parts that exists
together). All other keys (numbers, switches, groups) are Hydra's alone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from scripts.console.places import SCRIPTS

#: Keys of any command that hold a path, those that hold other text, and those that hold a list of
#: either.
PATHS = frozenset(
    "out run data sweep bundle patient.bundle source.path source.mask source.subregions"
    " calibration.labels".split()
)
TEXTS = frozenset(
    "title tolerances finish source.name source.series calibration.source mlflow.uri"
    " mlflow.experiment launcher.address credibility.question credibility.context_of_use"
    " credibility.model_risk".split()
)
LISTS = frozenset("runs bundles base".split())

_WORD = re.compile(r"(\+\+|\+|)([\w$./@-]+)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.-]*")
_NOT_TEXT = re.compile(r"null|true|false|[+-]?(inf|nan)|[.\d]+", re.IGNORECASE)
_SWEEP = re.compile(
    r"(choice|range|interval|glob|sort|shuffle|tag|extend_list)\s*\(.*\)", re.DOTALL
)
_ESCAPE = re.compile(r"\\[\\()\[\]{}:=, ]")


# -- values to overrides ------------------------------------------------------------------------
def quoted(key: str, value: Any) -> str:
    """`key=value` that Hydra reads back as just this value: text, path, number, bool, None, or
    lists and dicts of them.

    Raises ValueError for text with a line break, which Hydra's grammar cannot hold, and TypeError
    for any other kind of value.
    """
    return f"{key}={literal(value)}"


def literal(value: Any) -> str:
    """A value in Hydra's grammar; text is quoted only where it has to be."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        text = str(value)
        if _PLAIN.fullmatch(text) and not _NOT_TEXT.fullmatch(text):
            return text
        if "\n" in text or "\r" in text:
            raise ValueError(f"{text!r} holds a line break, which no override can; rename it")
        kind = Quote.single if '"' in text and "'" not in text else Quote.double
        # ${ would be an interpolation to OmegaConf, also in quotes; of the backslashes before it,
        # each then counts double
        safe = re.sub(r"(\\*)\$\{", lambda m: 2 * m.group(1) + r"\${", text)
        return QuotedString(safe, kind).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(literal, value)) + "]"
    raise TypeError(
        f"a {type(value).__name__} is no value of an override; give text, numbers, lists or dicts"
    )


# -- what was typed to overrides ----------------------------------------------------------------
def understood(words: Iterable[str], sweep: bool = False) -> list[str]:
    """The overrides of a command line in Hydra's grammar, by the rules above; `sweep`: of a command
    with -m. Doing it twice is as once."""
    return [_understood(word, sweep) for word in words]


def _understood(word: str, sweep: bool) -> str:
    match = _WORD.fullmatch(word)
    if match is None:
        return word
    plus, key, value = match.groups()
    if key in LISTS:
        return f"{plus}{key}={_elements(value)}"
    if key in PATHS | TEXTS:
        return f"{plus}{key}={_text(value, key in PATHS, sweep)}"
    return word


def _text(value: str, path: bool, sweep: bool) -> str:
    if path and exists(value):
        return literal(value)
    if sweep and not _is_quoted(value):
        if _SWEEP.fullmatch(value):
            return value
        if len(parts := list(split(value, path))) > 1:
            return ",".join(_text(part, path, False) for part in parts)
    if value.lower() in ("", "null") or _is_quoted(value) or "${" in value or _ESCAPE.search(value):
        return value
    return literal(os.path.expanduser(value) if path else value)


def _elements(value: str) -> str:
    if exists(value):
        return f"[{literal(value)}]"
    bracketed = value.startswith("[") and value.endswith("]")
    hydras = bracketed and re.search(r"[\\'\"\[\]{}]", value[1:-1]) and _parses(f"x={value}")
    if value.lower() in ("", "null") or "${" in value or hydras:
        return value
    inside = value[1:-1].strip() if bracketed else value
    parts = [inside] if exists(inside) else split(inside, paths=True)
    return "[" + ",".join(_text(part, True, False) for part in parts if part) + "]"


def exists(text: str) -> bool:
    """There is such a file or folder; False also for what cannot be a path at all."""
    try:
        return bool(text) and os.path.lexists(os.path.expanduser(text))
    except ValueError:  # a null character
        return False


def split(text: str, paths: bool = False) -> Iterator[str]:
    """The parts between commas that are outside of quotes and brackets, without the spaces around
    them; with `paths`, parts that are together the name of something that exists are one (the
    longest such)."""
    cuts, depth, quote, begin = [-1], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and text[i - 1] != "\\" else quote
        elif c in "'\"" and not text[begin:i].strip():
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth = max(depth - 1, 0)
        elif c == "," and not depth:
            cuts.append(i)
            begin = i + 1
    if quote or depth:  # they close nothing, so they are characters
        cuts = [-1, *(i for i, c in enumerate(text) if c == ",")]
    cuts.append(len(text))
    first = 0
    while first + 1 < len(cuts):
        last = first + 1
        if paths:
            whole = [
                k
                for k in range(len(cuts) - 1, last, -1)
                if exists(text[cuts[first] + 1 : cuts[k]].strip())
            ]
            last = whole[0] if whole else last
        yield text[cuts[first] + 1 : cuts[last]].strip()
        first = last


def _is_quoted(value: str) -> bool:
    """One quoted value of Hydra's grammar, from the first to the last character."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return False
    try:
        return isinstance(parsed(f"x={value}")._value, QuotedString)
    except HydraException:
        return False


def parsed(word: str) -> Override:
    """One override. Raises HydraException where the grammar does not take it."""
    return OverridesParser.create().parse_overrides([word])[0]


def _parses(word: str) -> bool:
    try:
        parsed(word)
    except HydraException:
        return False
    return True


def grammar_problem(word: str, write: Callable[[Sequence[str]], str]) -> str | None:
    """Why Hydra cannot read a word, with the one that it can; None where it can. `write`: words as
    a line for the shell."""
    if word.startswith("~") and _parses(word):
        return None
    match = _WORD.fullmatch(word)
    if match is None:
        return (
            f"{word!r} is no option: options are key=value, e.g. out=runs/a (no spaces around"
            " the =)"
        )
    if _parses(word):
        return None
    plus, key, value = match.groups()
    try:
        ready = plus + quoted(key, value)
    except ValueError as error:
        return f"{key}: {error}"
    return (
        f"{key}: {value!r} holds characters that mean something else here; as text, write it as"
        f" {write([ready])}"
    )


def key_of(word: str) -> str:
    """`a.b` of "a.b=c", "+a.b=c", "~a.b"."""
    return word.split("=", 1)[0].lstrip("+~")


# -- to a line for the shell --------------------------------------------------------------------
def shell_line(script: str, words: Sequence[str]) -> str:
    """`python scripts/optimize.py …`, ready to be copied into a shell that stands in this
    folder."""
    here, place = Path.cwd(), SCRIPTS / script
    shown = place.relative_to(here) if place.is_relative_to(here) else place
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    return " ".join(map(shlex.quote, [python, str(shown), *words]))


def resume_line(folder: Path | str) -> str:
    """The line that goes on with a run folder."""
    return shell_line("optimize.py", ["resume=true", quoted("out", str(folder))])
