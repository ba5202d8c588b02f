"""What is wrong with the input, in lines for the user.

Every wrong key with the nearest known one; the errors of pydantic, Hydra and the file system.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

#: Failures of the file system that may pass without anybody changing the input.
_PASSING = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}
_WORDS = {
    errno.EEXIST: "is a file, where a folder is needed; choose another",
    errno.ENOTDIR: "is a file, where a folder is needed; choose another",
    errno.EISDIR: "is a folder, where a file is needed",
    errno.EACCES: "permission denied; choose a place where you may write",
    errno.EPERM: "permission denied; choose a place where you may write",
    errno.EROFS: "is on a file system that is read-only; choose another place",
    errno.ENOSPC: "the disk is full; free some space, then run the same line again",
    errno.EDQUOT: (
        "your quota of disk space is used up; free some space, then run the same line again"
    ),
    errno.ENOENT: "does not exist",
    errno.ENAMETOOLONG: "the name is too long",
}


class Wrong(ValueError):
    """Input with `problems`, each in one line."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean x?)` of the known name that is most like it (or ends with it), or nothing."""
    known = sorted(set(known))
    tail = [k for k in known if k.endswith(f".{name}")]
    close = tail[:1] or difflib.get_close_matches(name, known, 1, 0.6)
    if not close:  # the parts: optimzer.iter
        last = name.rsplit(".", 1)[-1]
        close = difflib.get_close_matches(last, known, 1, 0.75)
    return f" (did you mean {close[0]}?)" if close else ""


def known_are(names: Iterable[str]) -> str:
    """`; there are a, b`, to follow a complaint (and perhaps `nearest`)."""
    return f"; there are {', '.join(names) or 'none'}"


def lines_of(error: BaseException) -> list[str]:
    """An error's problems, each in one line, without a word on Hydra's own ways to debug."""
    if isinstance(error, Wrong):
        return error.problems
    if isinstance(error, ValidationError):
        return list(dict.fromkeys(validation_lines(error)))
    if isinstance(error, OSError):
        return [os_line(error)]
    text = str(error)
    if error.__cause__ is not None and type(error).__module__.startswith("hydra"):
        text = f"{text} {error.__cause__}"
    text = re.sub(
        r"(Set the environment variable )?HYDRA_FULL_ERROR\S*( for a complete stack trace\.?)?",
        "",
        text,
    )
    text = re.sub(r"\s*(full_key|object_type|reference_type)[:=]\s*\S*", "", text)
    text = re.sub(r"See https?://hydra\S*( for details)?\.?", "", text)
    return [" ".join(text.split()) or type(error).__name__]


def report_error(error: BaseException) -> None:
    """Print an error, each problem on a line of its own."""
    for line in lines_of(error):
        print(f"error: {line}", file=sys.stderr, flush=True)


def os_line(error: OSError) -> str:
    """An error of the file system in one line: which file, what, and what to do."""
    names = [
        str(n)
        for n in (error.filename, error.filename2)
        if isinstance(n, str | bytes | os.PathLike)
    ]
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    if (words := _WORDS.get(error.errno or 0)) is not None:
        what = f"{words} ({what})"
    return f"{' → '.join(names)}: {what}" if names else what


def may_pass(error: OSError) -> bool:
    """The same line may work later without another input: a full disk, an unreachable server."""
    return error.errno in _PASSING or error.errno is None


def validation_lines(
    error: ValidationError,
    prefix: str = "",
    model: Any = None,
    typed: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """Every wrong key with its path as a user would type it, what is wrong, and what was given.

    typed: how the paths of `model` begin, and what a user types instead; the first that fits holds.
    """
    lines = []
    for item in error.errors():
        path, fields = _described(model, item["loc"])
        path = prefix + path
        for inner, outer in typed:
            if path.startswith(inner):
                path = outer + path[len(inner) :]
                break
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "unknown key"
            if fields:
                text += f"{nearest(str(item['loc'][-1]), fields)}; known are {', '.join(fields)}"
        given = (
            ""
            if isinstance(item["input"], dict) or item["type"] == "missing"
            else f" (given {item['input']!r})"
        )
        lines.append(f"{path.strip('.') or 'settings'}: {text}{given}")
    return lines


def _described(model: Any, loc: Sequence[Any]) -> tuple[str, Iterable[str]]:
    """The path that a user types, without pydantic's names of a union's members, and the keys that
    are known where it ends."""
    parts: list[str] = []
    options = _models(model)
    for i, part in enumerate(loc):
        chosen = [m for m in options if _tag(m) == part]
        if chosen and len(options) > 1:
            options = chosen
            continue
        parts.append(str(part))
        if i + 1 < len(loc):
            fields = [m.model_fields[part] for m in options if part in m.model_fields]
            options = [m for f in fields for m in _models(f.annotation)]
    return ".".join(parts), sorted({name for m in options for name in m.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    return [m for part in get_args(annotation) for m in _models(part)]


def _tag(model: type[BaseModel]) -> Any:
    """The value of `kind` by which a union tells this member."""
    field = model.model_fields.get("kind")
    return next(iter(get_args(field.annotation)), None) if field is not None else None


def typed(kind: type[BaseModel], values: Mapping[str, Any]) -> Any:
    """kind(**values). Raises Wrong naming every wrong key and value."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise Wrong(dict.fromkeys(validation_lines(error, model=kind))) from error
