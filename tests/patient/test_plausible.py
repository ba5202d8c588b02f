"""What lies between two bones tells whether they stand as in one patient."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.patient.alignment.disc import measure
from engine.patient.alignment.plausible import check_segment
from engine.types import PatientModel


def test_a_segment_is_held_against_what_people_have(mild: PatientModel) -> None:
    measured = measure(mild.vertebrae[0], mild.vertebrae[1])
    assert check_segment("L4-L5", measured) == []
    (tall,) = check_segment("L4-L5", replace(measured, height_middle_mm=21.0))
    assert tall.severity == "warning" and "height_middle_mm of 21.0 mm is unusual" in tall.text
    (slipped,) = check_segment("L4-L5", replace(measured, listhesis_mm=15.0))
    assert "listhesis_mm of 15.0 mm" in slipped.text
    for wrong in ({"height_middle_mm": 29.0}, {"listhesis_mm": 30.0}, {"lordosis_deg": 60.0}):
        with pytest.raises(ValueError, match="not as they stand in one patient"):
            check_segment("L4-L5", replace(measured, **wrong))
