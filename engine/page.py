"""One self-contained HTML page: no network, its pictures inside; reads well with a screen reader
and on paper."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

NOTICE = (
    "spinefit is a research and design tool, not a cleared medical device. Nothing on this page is"
    " a clinical recommendation."
)
CSS = """
:root{--line:#c9ced3;--soft:#f3f5f7;--ink:#1b1f23;--accent:#1f5fa8}
*{box-sizing:border-box}body{font:16px/1.5 system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:var(--ink);
background:#fff;max-width:1080px;margin:0 auto;padding:1.2rem}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:2px solid var(--accent)}
h3{font-size:1rem;margin:1rem 0 .3rem}.quiet{color:#4d565e}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;margin:.4rem 0}caption{text-align:left;color:#4d565e;padding:.2rem 0}
th,td{border-bottom:1px solid var(--line);padding:.25rem .6rem;text-align:right;vertical-align:top}
th{background:var(--soft)}th[scope=row],td.text,th.text{text-align:left;font-weight:normal}td.best{font-weight:700}
td.none{color:#4d565e;font-style:italic}.unit{color:#4d565e;font-size:.85em}td{white-space:nowrap}td.text{white-space:normal}
.warn{border-left:5px solid #b35900;background:#fff6e8;padding:.5rem 1rem;margin:1rem 0}
.bad{color:#a01010;font-weight:700}details{margin:.3rem 0}summary{cursor:pointer;padding:.2rem 0}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1rem}
figure{margin:0;break-inside:avoid}figure img{max-width:100%;max-height:560px;border:1px solid var(--line)}
pre{font-size:.75rem;overflow-x:auto}
figcaption{font-size:.9rem;color:#4d565e}code{font-size:.85em;overflow-wrap:anywhere}
@media print{body{max-width:none;font-size:11pt;padding:0}h2{break-after:avoid}tr{break-inside:avoid}
details::details-content{content-visibility:visible}}
"""


@dataclass(frozen=True)
class Picture:
    """A PNG for the page; `alt` says in words what is to be seen."""

    title: str
    alt: str
    path: Path


def number(value: Any) -> str:
    """Four significant digits, or an em dash for null."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10000 else str(value)
    if isinstance(value, str):
        return escape(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return f"{value:.2e}"


def percent(value: float | None) -> str:
    """A share as a signed percentage, or an em dash."""
    if value is None:
        return "—"
    shown = f"{100 * value:+.1f} %".replace("-", "−")
    return "0.0 %" if shown[1:] == "0.0 %" else shown


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are ready HTML; the first cell of a row is its header."""
    rows = list(rows)
    left = (
        {0, *(i for i, cell in enumerate(rows[0]) if cell.startswith('<td class="text"'))}
        if rows
        else {0}
    )
    top = "".join(
        f'<th scope="col"{" class=text" if i in left else ""}>{cell}</th>'
        for i, cell in enumerate(head)
    )
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    inner = f"<caption>{caption}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inner}</table></div>'


def text(cell: str) -> str:
    return f'<td class="text">{cell}</td>'


def pairs(caption: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = [(escape(k), text(number(v))) for k, v in values.items()]
    return table(caption, ("", "value"), rows)


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def image(data: bytes, title: str, alt: str) -> str:
    code = base64.b64encode(data).decode()
    image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{code}">'
    return f"<figure>{image}<figcaption>{escape(title)}</figcaption></figure>"


def pictures_grid(pictures: Sequence[Picture]) -> str:
    """The pictures beside each other. Raises ValueError when a file is missing."""
    missing = [str(p.path) for p in pictures if not p.path.is_file()]
    if missing:
        raise ValueError(
            f"pictures not found: {', '.join(missing)}; leave out what could not be rendered, with"
            " a warning"
        )
    images = "".join(image(p.path.read_bytes(), p.title, p.alt) for p in pictures)
    return f'<div class="pictures">{images}</div>' if images else "<p>No pictures.</p>"


def document(
    title: str,
    created: str,
    warnings: Sequence[str],
    sections: Sequence[tuple[str, str]],
    script: str = "",
) -> str:
    """The page of these sections (title, ready HTML), warnings first; script: ready HTML for the
    end of the body."""
    top = ""
    if warnings:
        top = (
            '<section class="warn" aria-label="Warnings"><strong>Read'
            f" first</strong>{bullets(warnings)}</section>"
        )
    body = "".join(
        f'<section aria-labelledby="s{i}"><h2 id="s{i}">{name}</h2>{content}</section>\n'
        for i, (name, content) in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>\n"
        f'<h1>{escape(title)}</h1><p class="quiet">{escape(created)}. {NOTICE}</p>\n'
        f"{top}\n{body}</main>{script}</body></html>\n"
    )
