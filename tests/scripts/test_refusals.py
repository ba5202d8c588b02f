"""What can be refused before any work is refused before any work."""

from __future__ import annotations

import sys
import time

import pytest

from engine.patient import PlanConfig
from engine.patient.plan_settings import check_plan
from engine.patient.prepare import prepare
from engine.patient.sources import PrepareConfig


@pytest.mark.parametrize(
    ("segment", "plan", "named"),
    [
        ("T12-L1", {}, "no norm is known for T12-L1"),
        ("T12-L1", {"rule": "gap_ideal"}, "no norm is known for T12-L1"),
        ("L4-L5", {"lordosis_deg": 8.0}, "plan.lordosis_deg is read by plan.rule=explicit only"),
        ("L4-L5", {"levels": ("L4-L5",)}, "plan.levels is read by"),
        ("L4-L5", {"rule": "explicit"}, "needs at least one of"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_the_patient_is_read(
    segment, plan, named, tmp_path, monkeypatch
):
    def read(*_, **__):
        raise AssertionError("the patient was read")

    for reader in ("lumbar_phantom", "phantom", "from_surfaces", "read_inputs"):
        monkeypatch.setattr(sys.modules[prepare.__module__], reader, read)
    config = PrepareConfig(
        source={"kind": "lumbar"}, segment=segment, out=str(tmp_path / "x"), plan=PlanConfig(**plan)
    )
    began = time.perf_counter()
    with pytest.raises(ValueError, match=named):
        prepare(config)
    assert time.perf_counter() - began < 5 and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("segment", "rule"), [("T12-L1", "keep"), ("L1-L2", "norms"), ("L5-S1", "schwab")]
)
def test_a_plan_that_can_be_is_not(segment, rule):
    check_plan(PlanConfig(rule=rule), segment)


def test_files_that_are_not_there_are_all_named_before_anything_is_imported(tmp_path, capsys):
    from scripts.prepare_patient import COMMAND

    assert (
        COMMAND.main(
            [
                "source=ct",
                f"source.path={tmp_path}/a (1)",
                f"source.mask={tmp_path}/b",
                f"out={tmp_path}/c",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 2
        and "source.path" in said[0]
        and "a (1): no such file" in said[0]
        and "source.mask" in said[1]
    )
    assert not (tmp_path / "c").exists()


def test_a_run_without_a_planned_patient_is_refused_at_once(tmp_path, capsys):
    from scripts.optimize import COMMAND

    assert COMMAND.main([f"patient.bundle={tmp_path}", f"out={tmp_path}/run"]) == 2
    assert "holds no planned segment" in capsys.readouterr().err and not (tmp_path / "run").exists()
