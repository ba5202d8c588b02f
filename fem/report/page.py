"""One self-contained HTML page and result.json for a run: what was asked, what came out, how far to
trust it.

The page needs no network, carries its pictures, reads well with a screen reader and on paper; only
its view in three dimensions needs a script, which is in the page. Every number comes from the
validated result (fem/report/result.py) and, in the credibility section, from the evidence in the
run folder (fem/report/evidence.py); nothing is computed here but differences and shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import artifacts
from engine.page import (
    Cell,
    Figure,
    Line,
    Marked,
    Picture,
    Row,
    Table,
    figure,
    figures,
    render,
    text,
)
from engine.types import LPS_FRAME, SEGMENT_FRAME
from fem.report.arms import alignment_section, arms_section, short_table
from fem.report.contact import contact_sections
from fem.report.credibility import credibility
from fem.report.lattice import lattice_section
from fem.report.plots import convergence
from fem.report.result import Result, Scalar, validate
from fem.report.scene import viewer_section
from fem.report.words import TEMPLATES, arm_name, arm_order, status_line

#: On every page, whatever the run says of itself.
LIMITATIONS = (
    "Linear elasticity, small strains; tissue yields by a strain criterion but does not soften.",
    "Interfaces are bonded unless a figure says otherwise.",
    (
        "One geometry, one set of material laws: no spread over patients; over bone, loads and"
        " placement where a sensitivity study is shown."
    ),
    (
        "Published measurement noise of segmental angles is 2-4°: smaller differences between arms"
        " cannot be measured."
    ),
)


# -- what was asked --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Asked:
    """The questions to the run: single values, and groups of them by name."""

    general: Mapping[str, Scalar]
    groups: Mapping[str, Mapping[str, Scalar]]


def _asked(result: Result) -> Asked:
    general = {k: v for k, v in result.asked.items() if not isinstance(v, dict)}
    groups = {k: v for k, v in result.asked.items() if isinstance(v, dict)}
    return Asked(
        general,
        {
            name: {key: _scalar(value) for key, value in group.items()}
            for name, group in groups.items()
        },
    )


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return str(value)


# -- the search ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Search:
    """history: name of the file; plot: its convergence, None where it holds no iterations."""

    status: Line
    figures: Mapping[str, Scalar]
    history: str | None
    plot: Figure | None


def _search(result: Result, folder: Path) -> Search | None:
    search = result.optimisation
    if search is None:
        return None
    png = (
        None
        if search.history is None
        else convergence(artifacts.read_jsonl(folder / search.history))
    )
    words = "Objective, its terms and the constraint violation over the iterations"
    plot = None if png is None else figure(png, "Convergence", words)
    return Search(status_line(search.status), search.figures, search.history, plot)


# -- files -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Files:
    """frames: in which frame and unit each kind of file is; table: None where none is listed."""

    frames: Sequence[str]
    table: Table | None


def _files(result: Result, folder: Path) -> Files:
    rows: list[Row] = [(what, _path_cell(path)) for what, path in result.files.items()]
    for arm in arm_order(result):
        rows += [
            (f"{arm_name(arm, result)}: {what}", _path_cell(path))
            for what, path in result.arms[arm].files.items()
        ]
    table = Table("Relative to the run folder", ("what", "where"), rows) if rows else None
    return Files(_frames(folder), table)


def _path_cell(path: str) -> Cell:
    return text((Marked(path, "code"),))


def _frames(folder: Path) -> list[str]:
    lines = [
        (
            f"designs/, fem/, blueprints and all pictures: {SEGMENT_FRAME}. The cranial vertebra"
            " stands at its planned pose."
        ),
        (
            "implant.glb: the same part in metres with y up, as glTF asks for (said in the file's"
            " extras)."
        ),
    ]
    if (folder / "slicer").is_dir():
        lines.insert(
            1,
            f"slicer/: {LPS_FRAME}. Load the CT in 3D Slicer, then add slicer/scene.mrml: implants,"
            " vertebrae as planned and as scanned, pedicle axes; segment_to_lps.tfm takes any"
            " other file of this folder there.",
        )
    return lines


# -- the page --------------------------------------------------------------------------------------
def page(result: Result, folder: Path, pictures: Sequence[Picture] = ()) -> str:
    """The HTML text. Raises ValueError when a picture is missing."""
    return render(
        "report.html.j2",
        TEMPLATES,
        title=result.title,
        created=result.created,
        warnings=result.warnings,
        short=short_table(result),
        alignment=alignment_section(result),
        arms=arms_section(result, folder),
        viewer=viewer_section(folder, result),
        pictures=figures(pictures),
        lattice=lattice_section(result),
        credibility=credibility(result, folder, LIMITATIONS),
        contact=contact_sections(result),
        search=_search(result, folder),
        asked=_asked(result),
        timings_s=result.timings_s,
        memory_mb=result.memory_mb,
        versions=result.versions,
        hashes=result.hashes,
        files=_files(result, folder),
    )


def write_report(
    folder: Path | str, result: dict[str, Any], pictures: Sequence[Picture] = ()
) -> Path:
    """Validate, then write <folder>/result.json and <folder>/report.html (atomically); returns the
    page's path.

    Raises ValueError when the result does not follow the schema or a picture is missing.
    """
    folder = Path(folder)
    checked = validate(result)
    html = page(checked, folder, pictures)
    artifacts.write_json(folder / "result.json", checked.model_dump(mode="json"))
    return artifacts.write_text(folder / "report.html", html)
