"""What is written is what is read; nothing else's folder is touched."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from engine.patient import (
    PlanConfig,
    PrepareConfig,
    load_bundle,
    load_segment,
    plan,
    save_bundle,
    save_segment,
)
from engine.settings import one_line
from engine.types import PatientModel

ROOT = Path(__file__).resolve().parents[2]


def _same(a: Any, b: Any, where: str = "") -> None:
    if is_dataclass(a):
        for item in fields(a):
            _same(getattr(a, item.name), getattr(b, item.name), f"{where}.{item.name}")
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            _same(a[key], b[key], f"{where}[{key}]")
    elif isinstance(a, tuple | list):
        assert len(a) == len(b), where
        for left, right in zip(a, b, strict=True):
            _same(left, right, where)
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    else:
        assert a == b, where


def test_bundle_round_trip(mild: PatientModel, tmp_path: Path) -> None:
    path = save_bundle(mild, tmp_path / "b")
    _same(mild, load_bundle(path))
    assert sorted(file.name for file in path.iterdir()) == [
        "L4.npz",
        "L4.ply",
        "L5.npz",
        "L5.ply",
        "bundle.json",
    ]
    save_bundle(replace(mild, name="again"), path)  # same source: replaced
    assert load_bundle(path).name == "again"
    assert [file.name for file in tmp_path.iterdir()] == ["b"]  # no temporary left


def test_segment_round_trip(mild: PatientModel, tmp_path: Path) -> None:
    segment = plan(mild, "L4-L5", PlanConfig(rule="keep", spacing_mm=1.5))
    _same(segment, load_segment(save_segment(segment, tmp_path / "s")))


def test_other_folders_are_not_overwritten(mild: PatientModel, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not overwritten"):
        save_bundle(mild, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    save_bundle(mild, tmp_path / "b")
    with pytest.raises(ValueError, match="of another source"):
        save_bundle(replace(mild, source={"kind": "phantom", "spec": {"seed": 9}}), tmp_path / "b")


def test_no_bundle_and_other_schema(mild: PatientModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no bundle.json there"):
        load_bundle(tmp_path)
    path = save_bundle(mild, tmp_path / "b") / "bundle.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(ValueError, match="schema 99"):
        load_bundle(tmp_path / "b")


def _script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "prepare_patient.py"), *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=180, check=False
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"source": {"kind": "phantom", "foo": 1}},
            "source.phantom.foo: Extra inputs are not permitted (given 1)",
        ),
        ({"source": {"kind": "phantom", "spec": {"seed": -1}}}, "source.phantom.spec.seed"),
        ({"source": {"kind": "ct"}}, "source"),
        ({"plan": {"rule": "best"}}, "plan.rule"),
        ({"patient": {"trabecular_g_cm3": 1.6}}, "patient.trabecular_g_cm3"),
        ({"speling": 1}, "speling"),
    ],
)
def test_settings_are_checked_before_anything_is_read(change: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {"source": {"kind": "phantom"}, "out": "x"}
    PrepareConfig.model_validate(good)
    with pytest.raises(ValidationError) as caught:
        PrepareConfig.model_validate(good | change)
    assert text in one_line(caught.value) and "\n" not in one_line(caught.value)


def test_script_prepares_the_phantom(tmp_path: Path) -> None:
    done = _script(
        "source=phantom",
        "source.spec.spacing_mm=1.5",
        "plan.spacing_mm=1.5",
        "out=case",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "lordosis_deg" in done.stdout
    assert load_bundle(tmp_path / "case" / "patient").name == "phantom_0"
    assert load_segment(tmp_path / "case" / "segment").name == "L4-L5"
    assert {"caudal.vtp", "disc.vtp"} <= {
        file.name for file in (tmp_path / "case" / "view").iterdir()
    }
    assert [file.name for file in tmp_path.iterdir()] == ["case"]  # Hydra leaves nothing behind


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("source=phantom", "source.foo=1", "out=x"), "source.foo"),
        (("source=surfaces", "source.path=none", "out=x"), "no such file or folder"),
    ],
)
def test_script_says_what_is_wrong(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    done = _script(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
