"""The collection of inputs: large enough, and its judge knows a silent wrong number from a right
one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.evidence.collection.base import (
    Base,
    Expected,
    Input,
    case,
    cases_of,
    judge,
    read,
    refused,
)
from scripts.evidence.scan import malformed
from scripts.evidence.scan.cases import CaseResult, CaseSetConfig

TRUTH = {
    "lumbar": {"L4-L5.height_middle_mm": 13.8, "L4-L5.segmental_lordosis_deg": 20.7},
    "reading_mg_cm3": 228.0,
}


def result_of(
    place: Path,
    expected: Expected,
    code: int,
    height_mm: float = 13.64,
    log: str = "",
    mg: int = 228,
) -> CaseResult:
    out = place / "out"
    (out / "patient").mkdir(parents=True)
    (place / "log.txt").write_text(log)
    rows = [("height_middle_mm", height_mm, "mm"), ("segmental_lordosis_deg", 20.1, "deg")]
    measures = [
        {"place": "L4-L5", "name": n, "value": v, "unit": u, "status": "measured"}
        for n, v, u in rows
    ]
    (out / "alignment.json").write_text(json.dumps({"measures": measures}))
    (out / "findings.json").write_text(json.dumps([{"text": "metal in L4"}]))
    notes = [
        f"L5: density from the CT: soft tissue 55 HU, PSF 1 mm, mean ρ_QCT {mg} mg/cm³ over 50 cm³"
    ]
    (out / "patient" / "bundle.json").write_text(json.dumps({"repairs": notes}))
    one = Input("name", expected, lambda base, place: [])
    return CaseResult(case("kind", one, Base(place, place)), out, code, 1.0, 1.0, log)


@pytest.mark.parametrize(
    ("expected", "code", "given", "verdict"),
    [
        (read(), 0, {}, "right"),
        (read(), 0, {"height_mm": 15.0}, "silent wrong"),
        (read(density=True), 0, {"mg": 333}, "silent wrong"),
        (read(note="metal"), 0, {}, "right"),
        (read(note="cement"), 0, {}, "said nothing"),
        (read(), 2, {"log": "error: no"}, "refused"),
        (refused("fused"), 0, {}, "silent wrong"),
        (refused("fused"), 2, {"log": "error: L4-L5 are fused"}, "right"),
        (refused("fused"), 2, {"log": "error: upside down"}, "other reason"),
        (refused("fused"), 1, {"log": "Traceback (most recent call last):"}, "traceback"),
    ],
)
def test_the_outcome_of_a_case_is_judged_against_what_is_right(
    tmp_path: Path, expected: Expected, code: int, given: dict[str, object], verdict: str
) -> None:
    result = result_of(tmp_path, expected, code, **given)  # type: ignore[arg-type]
    assert judge(result, TRUTH).verdict == verdict


def test_there_are_enough_inputs_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Base, "folder", tmp_path)  # no scan is made for a list of names
    cases = malformed.malformed_cases(CaseSetConfig(data=str(tmp_path), out=str(tmp_path)))
    kinds = [one.facts["kind"] for one in cases]
    assert len(cases) >= 120
    assert list(dict.fromkeys(kinds)) == [
        *"level labels place axes HU".split(),
        "by hand",
        *"DICOM file surface key".split(),
    ]


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    one = Input("name", read(), lambda base, place: [])
    base = Base(tmp_path, tmp_path)
    assert [case.name for case in cases_of({"a": [one], "b": [one]}, base)] == [
        "a: name",
        "b: name",
    ]
    with pytest.raises(ValueError, match="two cases are called 'a: name'"):
        cases_of({"a": [one, one]}, base)
