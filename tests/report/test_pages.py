"""What holds for every page: text from outside stays text, and each section has its own title."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from engine.page import Cell, Figure, Marked, Table, render, script_json, text
from engine.patient import PhantomSpec, PlanConfig, phantom, plan
from engine.patient.alignment.spine import spine_alignment
from engine.patient.report import page as patient_page
from fem.report.page import write_report
from tests.report.example import example
from tests.report.reading import Reading

EVIL = '<script>alert(1)</script> & "x"'


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    matplotlib.image.imsave(path, np.linspace(0.0, 1.0, 60).reshape(4, 5, 3))
    return path


@pytest.fixture
def patient_html(tmp_path: Path, picture: Path, monkeypatch) -> str:
    """The phantom's page, its name and repairs from outside; pictures are not drawn here."""
    monkeypatch.setattr(patient_page, "slices_picture", lambda *_: picture)
    monkeypatch.setattr(patient_page, "alignment_picture", lambda *_: picture)
    monkeypatch.setattr(patient_page, "scene_picture", lambda *_: None)
    patient = phantom(PhantomSpec(spacing_mm=1.5))
    segment = plan(patient, "L4-L5", PlanConfig(spacing_mm=1.5))
    alignment = spine_alignment(patient.vertebrae, patient.sacrum, posture=patient.posture)
    evil = replace(patient, name=EVIL, repairs=(EVIL,), density_source=EVIL)
    segment = replace(segment, warnings=(EVIL,), plan=replace(segment.plan, rule=EVIL))
    return patient_page.write_patient_report(tmp_path, evil, segment, alignment).read_text()


@pytest.fixture
def run_html(tmp_path: Path) -> str:
    result = example() | {"title": EVIL, "warnings": [EVIL], "files": {EVIL: EVIL}}
    result["asked"] = {"patient": EVIL, EVIL: {EVIL: EVIL}}
    result["arms"]["stock"] |= {"label": EVIL, "notes": [EVIL]}
    result["credibility"] = {"question": EVIL, "context_of_use": EVIL, "boundary": EVIL}
    del result["optimisation"]
    return write_report(tmp_path, result).read_text()


@pytest.mark.parametrize("fixture", ["patient_html", "run_html"])
def test_names_from_outside_are_text_and_never_markup(fixture, request):
    page = Reading(request.getfixturevalue(fixture))
    assert page.scripts == []
    assert page.words.count(EVIL) >= 5  # title, heading, and where else it was put


@pytest.mark.parametrize("fixture", ["patient_html", "run_html"])
def test_every_section_is_named_by_a_title_of_its_own(fixture, request):
    page = Reading(request.getfixturevalue(fixture))
    sections = [name for name in page.references if name.startswith("s")]
    assert sections == [f"s{i}" for i in range(len(sections))] and len(sections) == 13
    assert all(page.ids.count(name) == 1 for name in page.references)


# -- the parts that pages share --------------------------------------------------------------------
def drawn(macro: str, tmp_path: Path, **values) -> Markup:
    (tmp_path / "one.html.j2").write_text(
        f'{{% from "parts.html.j2" import {macro} %}}{{{{ {macro}(of) }}}}'
    )
    return render("one.html.j2", tmp_path, **values)


def test_a_table_escapes_its_cells_and_marks_its_text_columns(tmp_path):
    rows = [
        ((Marked(EVIL, "link", 'a"b'),), "1", text(EVIL), Cell(EVIL, "none", "red", 'say "so"')),
        (EVIL, (EVIL, Marked(EVIL, "unit")), "", "2"),
    ]
    html = drawn("table", tmp_path, of=Table(EVIL, (EVIL, "b", "c", "d"), rows))
    assert "<script" not in html and Reading(html).words.count(EVIL) == 8
    assert 'href="a&#34;b"' in html and 'title="say &#34;so&#34;"' in html
    assert html.count('<th scope="col" class="text">') == 2  # the first and the third
    assert '<td class="none" style="background:red"' in html


def test_a_figure_escapes_its_words(tmp_path):
    html = drawn("figure", tmp_path, of=Figure((EVIL,), EVIL, "AAAA"))
    assert "<script" not in html and Reading(html).words == EVIL


def test_a_value_that_a_template_lacks_is_an_error_not_a_gap(tmp_path):
    with pytest.raises(UndefinedError, match="of"):
        drawn("table", tmp_path)


def test_data_of_a_script_cannot_end_it():
    assert script_json({"name": EVIL}) == '{"name": "<script>alert(1)<\\/script> & \\"x\\""}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))
