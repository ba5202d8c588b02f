"""The page says what the result says, no more; bad results are refused by name."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from example import LOADS, example, history

from engine import artifacts
from engine.page import Picture, number, percent
from fem.report import result as schema
from fem.report.page import write_report
from fem.report.plots import convergence

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks nesting; collects text by tag, attributes of images, and all references."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.rows: list[list[str]] = []
        self.images: list[dict[str, str | None]] = []
        self.references: list[str] = []
        self.feed(html)
        assert not self.stack, f"unclosed {self.stack}"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.references += [values[k] for k in ("src", "href") if values.get(k)]
        if tag == "img":
            self.images.append(values)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.rows and {"td", "th"} & set(self.stack):
            self.rows[-1][-1] += data

    def row(self, start: str) -> list[str]:
        return next(row for row in self.rows if row and row[0].startswith(start))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for record in history():
        artifacts.append_jsonl(tmp_path / "history.jsonl", record)
    picture = np.zeros((20, 30, 3))
    picture[:, 10:] = 1.0
    matplotlib.image.imsave(tmp_path / "cage.png", picture)
    return tmp_path


@pytest.fixture
def html(folder: Path) -> str:
    return write_report(
        folder, example(), [Picture("The cage", "The cage from above", folder / "cage.png")]
    ).read_text()


def test_page_is_self_contained_well_formed_and_labelled(html):
    page = Page(html)
    assert len(page.images) == 2 and all(image["alt"] for image in page.images)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "http" not in html and "<script" not in html and 'lang="en"' in html
    assert html.count("not a cleared medical device") == 1
    assert "<TLIF>" not in html and "&lt;TLIF&gt;" in html
    assert html.index("Read first") < html.index("In short")


def test_every_measure_stands_in_the_table_of_its_arm(html):
    page = Page(html)
    row = page.row("yielded bone volume mm³")  # "in short": stock, optimised, change, floor, share
    assert row[1:] == ["843.2", "253", "−70.0 %", "42.16 (full endplate)", "74 %"]
    arms = [r for r in page.rows if r and r[0] == "yielded bone volume mm³"][1]
    assert arms[1:] == ["843.2", "2024", "674.6", "no result", "253", "295.1", "42.16"]
    for load in LOADS:
        assert any(r and r[0] == load for r in page.rows)
    lordosis = page.row("lordosis")
    assert lordosis[1:4] == ["4.2", "9.1", "9.1 (+0.0)"] and lordosis[4] == "7.8 (−1.3)"
    assert any("+2.5 %" in cell for cell in page.row("stiffness"))
    assert "max iterations</span>: stopped after 40" in html


def test_a_failed_arm_shows_its_status_and_never_a_number(html, folder):
    page = Page(html)
    column = next(r for r in page.rows if r and r[0] == "measure")
    where = next(i for i, cell in enumerate(column) if cell == "conforming central")
    status = next(r for r in page.rows if r and r[0] == "status" and len(r) == len(column))
    assert status[where] == "failed"
    assert any("failed: factorisation broke down" in cell for row in page.rows for cell in row)
    wrong = example()
    wrong["arms"]["conforming_central"]["measures"]["yielded_bone_volume"]["value"] = 12.0
    with pytest.raises(ValueError, match=r"arms\.conforming_central.*must be null"):
        write_report(folder, wrong)


def test_share_of_the_reachable_reduction():
    rows = {row.measure: row for row in schema.reached(schema.validate(example()))}
    row = rows["yielded_bone_volume"]
    assert row.floor_arm == "full_endplate"
    assert row.reduction == pytest.approx(0.7)
    assert row.share_of_reachable == pytest.approx(0.7 / 0.95)
    assert "graft_window" not in rows  # higher is better there
    assert (
        rows["stress_shielding"].share_of_reachable is None
    )  # nothing to gain: no division by zero


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (
            lambda r: r["arms"]["stock"]["measures"]["misalignment"].update(value=float("nan")),
            "arms.stock.measures",
        ),
        (lambda r: r["timings_s"].update(search=float("inf")), "timings_s.search"),
        (lambda r: r.update(extra=1), "extra"),
        (lambda r: r["arms"]["stock"].pop("status"), "arms.stock.status"),
        (lambda r: r["arms"]["stock"]["status"].update(code="fine"), "arms.stock.status.code"),
        (lambda r: r.update(schema_version=2), "schema_version"),
        (lambda r: r["alignment"]["planned"].update(lordosis=1.0), "alignment.planned.lordosis"),
    ],
)
def test_results_off_the_schema_are_refused_by_place(folder, change, where):
    wrong = example()
    change(wrong)
    with pytest.raises(ValueError, match=re.escape(where)):
        write_report(folder, wrong)
    assert not (folder / "report.html").exists() and not (folder / "result.json").exists()


def test_result_json_round_trips(folder):
    write_report(folder, example())
    back = json.loads((folder / "result.json").read_text())
    assert schema.validate(back) == schema.validate(example())


def test_every_field_of_the_schema_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "result_schema.md").read_text()
    models = [
        schema.Result,
        schema.Arm,
        schema.Measure,
        schema.Status,
        schema.Alignment,
        schema.AlignmentPart,
    ]
    models += [
        schema.Balance,
        schema.Agreement,
        schema.Optimisation,
        schema.Credibility,
        schema.Material,
        schema.Evidence,
    ]
    for model in models:
        for name in model.model_fields:
            assert f"`{name}`" in text, f"{model.__name__}.{name} is not in docs/result_schema.md"


def test_missing_pieces_are_said_not_drawn(folder):
    bare = {
        "title": "t",
        "created": "now",
        "arms": {"stock": {"status": {"code": "not_run", "text": "no time"}}},
    }
    html = write_report(folder, bare).read_text()
    Page(html)
    assert (
        "not run</span>: no time" in html
        and "No search was run" in html
        and "cannot be compared" in html
    )
    with pytest.raises(ValueError, match="pictures not found"):
        write_report(folder, bare, [Picture("a", "b", folder / "none.png")])


def test_numbers_are_short_and_never_python():
    given = [None, True, 0, 0.0, 12345, 0.00012345, 843.21, 123456.7, 98765.4, "a<b"]
    shown = [
        "—",
        "yes",
        "0",
        "0",
        "12\u202f345",
        "1.23e-04",
        "843.2",
        "1.23e+05",
        "98765",
        "a<b",
    ]
    assert [number(value) for value in given] == shown


def test_percentages_have_no_negative_zero():
    assert [percent(v) for v in (None, 0.0, -0.0, -0.0001, -0.7, 0.025)] == [
        "—",
        "0.0 %",
        "0.0 %",
        "0.0 %",
        "−70.0 %",
        "+2.5 %",
    ]


def test_convergence_plot_needs_iterations():
    assert convergence([]) is None and convergence([{"event": "start"}]) is None


def test_the_convergence_plot_has_a_panel_for_objective_terms_and_violation():
    png = convergence(history())
    assert png is not None
    image = matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]
    thirds = np.array_split(image, 3, axis=1)
    for panel in thirds:  # lines in colour, on white
        assert 0.002 < np.mean(np.ptp(panel, axis=-1) > 0.2) < 0.2
        assert np.mean(panel.min(axis=-1) > 0.99) > 0.5
    without = [{k: v for k, v in row.items() if k != "terms"} for row in history()]
    assert matplotlib.image.imread(io.BytesIO(convergence(without))).shape[1] * 3 == (
        image.shape[1] * 2
    )
