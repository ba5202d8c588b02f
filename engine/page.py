"""HTML pages of one file: no network, pictures inside; they read well with a screen reader and on
paper.

A page is a Jinja template in the `templates` folder of the room that owns it. It extends
base.html.j2 and uses the macros of parts.html.j2 (both in engine/templates); the data classes here
are what the macros draw. All text that a template inserts is escaped; only `Markup` is not, and is
made here alone: finished templates, and JSON and files of ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

#: The base template and the macros of all pages.
TEMPLATES = Path(__file__).parent / "templates"
#: From here on an integer is written with thin spaces, and a number without decimals.
_GROUPED = 10000
#: Numbers outside this range are written with an exponent.
_PLAIN_FROM, _PLAIN_BELOW = 1e-3, 1e5


# -- what the macros draw --------------------------------------------------------------------------
@dataclass(frozen=True)
class Marked:
    """Words that look different from the rest of their line.

    look     "unit": small and grey; "bad": in the warning colour; "code"; "key": code on one line;
             "link": leads to `target`
    """

    words: str
    look: Literal["unit", "bad", "code", "key", "link"]
    target: str = ""


#: One line of text: a string, or strings with marked words between them.
Line = str | tuple[str | Marked, ...]


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is not a plain number.

    look     "text": to the left, may wrap; "none": there is no value; "best": in bold
    shade    background as a CSS colour; hint: shown when the pointer rests on the cell
    """

    line: Line
    look: Literal["", "text", "none", "best"] = ""
    shade: str = ""
    hint: str = ""


Row = Sequence[Line | Cell]


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row, a Line, is the row's header."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Row]

    @property
    def text_columns(self) -> set[int]:
        """Columns whose head stands to the left: the first, and those of text in the first row."""
        first = self.rows[0] if self.rows else ()
        return {0, *(i for i, cell in enumerate(first) if _is_text(cell))}


def _is_text(cell: Line | Cell) -> bool:
    return isinstance(cell, Cell) and cell.look == "text"


def text(line: Line) -> Cell:
    """A cell of words rather than of a number."""
    return Cell(line, "text")


@dataclass(frozen=True)
class Picture:
    """A PNG for the page; `alt` says in words what is to be seen."""

    title: str
    alt: str
    path: Path


@dataclass(frozen=True)
class Figure:
    """A picture as it stands in the page: `data` is its PNG in base64."""

    title: Line
    alt: str
    data: str


def figure(png: bytes, title: Line, alt: str) -> Figure:
    return Figure(title, alt, base64.b64encode(png).decode())


def figures(pictures: Sequence[Picture]) -> tuple[Figure, ...]:
    """The pictures, read. Raises ValueError when a file is missing."""
    missing = [str(p.path) for p in pictures if not p.path.is_file()]
    if missing:
        raise ValueError(
            f"pictures not found: {', '.join(missing)}; leave out what could not be rendered, with"
            " a warning"
        )
    return tuple(figure(p.path.read_bytes(), p.title, p.alt) for p in pictures)


# -- numbers ---------------------------------------------------------------------------------------
def number(value: Any) -> str:
    """Four significant digits, or an em dash for null; a string stays as it is."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= _GROUPED else str(value)
    if isinstance(value, str):
        return value
    if value == 0:
        return "0"
    if _PLAIN_FROM <= abs(value) < _PLAIN_BELOW:
        return f"{value:.4g}" if abs(value) < _GROUPED else f"{value:.0f}"
    return f"{value:.2e}"


def percent(value: float | None) -> str:
    """A share as a signed percentage, or an em dash."""
    if value is None:
        return "—"
    shown = f"{100 * value:+.1f} %".replace("-", "−")
    return "0.0 %" if shown[1:] == "0.0 %" else shown


# -- templates -------------------------------------------------------------------------------------
def render(name: str, templates: Path, **values: Any) -> Markup:
    """The template `name` of the folder `templates` with these values, all of them escaped.

    Raises jinja2.UndefinedError where the template asks for a value that is not given.
    """
    return Markup(_environment(templates).get_template(name).render(**values))


def script_json(data: Any) -> Markup:
    """Data as JSON that can stand in a <script>: no end tag is in it. Raises ValueError on NaN and
    infinity."""
    return Markup(json.dumps(data, allow_nan=False).replace("</", "<\\/"))


@cache
def _environment(templates: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([templates, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def raw(name: str) -> Markup:
        """A file beside the templates as it is: scripts and style sheets of ours."""
        return Markup(FileSystemLoader([templates, TEMPLATES]).get_source(environment, name)[0])

    environment.globals["raw"] = raw
    environment.filters |= {"number": number, "percent": percent}
    return environment
