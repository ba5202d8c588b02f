"""The credibility section shows what was computed or given, names what was not, and takes no
study of another run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from example import example

from engine import artifacts, materials
from fem.report.page import write_report
from fem.report.provenance import provenance
from fem.report.result import validate

HEAD = {
    "run": "ab" * 32,
    "command": "python scripts/validation.py sensitivity run=x",
    "created": "2026-01-02T03:04:05+00:00",
    "version": "spinefit 0.1.0, commit 0123456789",
    "seconds": 321.0,
}
SENSITIVITY = {
    **HEAD,
    "arms": ["stock", "optimised"],
    "measures": {"yielded_bone": {"unit": "mm³", "better": "lower", "description": "d"}},
    "rows": [
        {
            "variation": v,
            "kind": k,
            "arm": a,
            "tetrahedra": 9,
            "status": {"code": code, "text": text},
            "value": {"yielded_bone": value},
            "change_percent": {"yielded_bone": change},
        }
        for v, k, a, code, text, value, change in (
            ("nominal", "nominal", "stock", "ok", "", 843.2, 0.0),
            ("nominal", "nominal", "optimised", "ok", "", 253.0, 0.0),
            ("loads −20 %", "loads", "stock", "ok", "", 421.6, -50.0),
            ("loads −20 %", "loads", "optimised", "failed", "no mesh: too thin", None, None),
        )
    ],
    "ranking": [
        {
            "measure": "yielded_bone",
            "nominal": ["optimised", "stock"],
            "gap_percent": [233.3],
            "rows": 13,
            "failed": ["1 mm anterior", "another mesh"],
            "first_failed": ["1 mm anterior"],
            "alone_failed": ["1 mm posterior"],
            "incomplete": [],
            "mesh_percent": 2.5,
        }
    ],
}
CONVERGENCE = {
    **HEAD,
    "tetrahedra": {"stock": [100, 200, 400]},
    "failed": ["optimised: no refinement"],
    "estimates": [
        {
            "arm": "stock",
            "quantity": "yielded_bone",
            "values": [860.0, 843.2, 838.0],
            "order": 3.4,
            "limit": 835.1,
            "error_percent": 0.97,
        }
    ],
}
WORDS = {
    "question": "Which <device> yields less bone?",
    "context_of_use": "Research.",
    "materials": [
        m.model_dump()
        for m in provenance(
            "kopperdahl2002",
            "ti6al4v",
            "ct:linear",
            0.7,
            (112000.0, 0.33),
            {"caudal": [5.0, 210.0, 900.0]},
        )
    ],
    "evidence": {
        "code": HEAD | {"missed": [], "text": "| case | order |\n|---|---|\n| P2 | 3.02 |"},
        "vertebra": HEAD | {"missed": ["L2, continuous: +2.00 %, limit 1 %"], "text": "| L2 |"},
    },
}
for _study in WORDS["evidence"].values():  # type: ignore[attr-defined]
    del _study["run"]


def section(folder: Path, words=WORDS, title: str = "Credibility") -> str:
    """Text of the section, without tags."""
    result = example() | {"hashes": {"configuration": HEAD["run"]}}
    if words is not None:
        result["credibility"] = words
    html = write_report(folder, result).read_text()
    found = re.search(rf"<h2[^>]*>{title}</h2>(.*?)</section>", html, re.S)
    assert found is not None
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found.group(1)))


def test_the_parts_stand_in_the_order_that_is_asked_for(tmp_path):
    text = section(tmp_path)
    parts = [
        "Question of interest",
        "Context of use",
        "Model risk",
        "Model",
        "Code verification",
        "Calculation verification",
        "Validation",
        "Sensitivity",
        "Limitations",
    ]
    places = [text.index(f" {part} ") for part in parts]
    assert places == sorted(places)
    assert "Which &lt;device&gt; yields less bone?" in text


def test_what_was_not_given_or_run_is_said_with_the_command(tmp_path):
    text = section(tmp_path, None)
    assert "set credibility.model_risk" in text and "Materials: not recorded" in text
    for name in ("sensitivity", "convergence", "designs"):
        assert (
            f"Not run for this folder: python scripts/validation.py {name} run={tmp_path}" in text
        )
    for name in ("code", "contact", "vertebra"):
        assert f"no record in runs/validation: python scripts/validation.py {name}" in text
    assert "within its limit" not in text


def test_studies_in_the_folder_are_shown_with_their_numbers(tmp_path):
    artifacts.write_json(tmp_path / "sensitivity.json", SENSITIVITY)
    artifacts.write_json(tmp_path / "convergence.json", CONVERGENCE)
    statistics = {
        "quantity": "yielded_bone",
        "designs": 19,
        "spearman": 0.967,
        "bias_percent": -9.7,
        "spread_percent": 4.7,
    }
    artifacts.write_json(
        tmp_path / "designs.json", HEAD | {"designs": [], "statistics": [statistics]}
    )
    text = section(tmp_path)
    assert "Not run for this folder" not in text
    assert (
        "optimised, stock (233.3 %) 11 of 13 1 mm anterior; another mesh (best arm the same) 1 mm"
        " posterior 2.5 %" in text
    )
    assert (
        "loads −20 % −50.0 % no result" in text
        and "optimised, loads −20 %: no mesh: too thin" in text
    )
    assert (
        "860 / 843.2 / 838 3.4 835.1 1.0 %" in text
        and "100, 200, 400 tetrahedra" in text
        and "optimised: no refinement" in text
    )
    assert "yielded bone 19 0.967 −9.7 % 4.7 %" in text
    assert HEAD["created"] in text and "commit 0123456789" in text and "321 s" in text


def test_a_measure_carries_the_error_of_its_mesh(tmp_path):
    assert "±" not in section(tmp_path, title="The arms side by side")
    estimate = CONVERGENCE["estimates"][0] | {"quantity": "yielded_bone_volume"}
    artifacts.write_json(tmp_path / "convergence.json", CONVERGENCE | {"estimates": [estimate]})
    text = section(tmp_path, title="The arms side by side")
    assert text.count("± 1.0 %") == 1  # the stock arm's yielded bone alone
    assert "error of the mesh" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(SENSITIVITY | {"run": "cd" * 32}), "of a run of another configuration"),
        (json.dumps({k: v for k, v in SENSITIVITY.items() if k != "ranking"}), "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_a_study_of_another_run_or_a_damaged_one_shows_no_number(tmp_path, content, said):
    (tmp_path / "sensitivity.json").write_text(content)
    text = section(tmp_path)
    assert f"sensitivity.json {'is ' if 'of a run' in said else ''}{said}" in text
    assert (
        "233.3" not in text
        and f"run again: python scripts/validation.py sensitivity run={tmp_path}" in text
    )


def test_evidence_says_whether_its_limits_were_met(tmp_path):
    text = section(tmp_path)
    assert "NAFEMS benchmarks: every figure within its limit" in text and "| P2 | 3.02 |" in text
    assert "missed: L2, continuous: +2.00 %, limit 1 %" in text


def test_residuals_of_the_solver_are_shown_and_old_results_are_read(tmp_path):
    result = example()
    assert validate(result).credibility is None  # written before there was one
    loads = result["arms"]["stock"]["solver"]
    for k, load in enumerate(loads):
        loads[load]["relative_residual"] = 1e-11 * (k + 1)
    html = write_report(tmp_path, result).read_text()
    assert "<td>7.00e-11</td>" in html


def test_provenance_gives_the_law_as_it_is_solved():
    rows = {
        m.group: m
        for m in provenance(
            "kopperdahl2002", "ti6al4v", "assumed:normal", 0.7, None, {"implant": [1e3, 2e3, 3e3]}
        )
    }
    bone = rows["caudal vertebra"]
    assert (
        bone.modulus
        == "3230 ρ^1 -34.7, at least 5, times 0.7 (fem.solve.bone_factor); ρ in g/cm³ (qct"
        " density), source: assumed:normal"
    )
    assert (
        bone.source == f"kopperdahl2002: {materials.bone_law('kopperdahl2002').source}"
        and bone.poisson == 0.3
    )
    assert rows["implant"].modulus.startswith("112000; lattice") and rows["implant"].found_mpa == [
        1e3,
        2e3,
        3e3,
    ]
    assert "rods and screws" not in rows and rows["disc beside the implant"].modulus == "4.2"
    solid = {
        m.group: m
        for m in provenance("morgan2003_vertebra", "peek", "phantom", 1.0, (1.1e5, 0.3), {})
    }
    assert solid["implant"].modulus == "3600" and solid["rods and screws"].modulus == "110000"
    assert (
        solid["caudal vertebra"].modulus
        == "4730 ρ^1.56, at least 5; ρ in g/cm³ (apparent density), source: phantom"
    )
