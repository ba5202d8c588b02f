"""Where one command writes the line of another, any path goes through: demo, study, prepare.sh,
tuning."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scripts import demo, phantom_scan, study
from scripts.comparison import tables
from scripts.console import children, composing
from scripts.console.overrides import understood
from scripts.evidence.scan import phantom_words
from scripts.sweeps import search

AWKWARD = "a (1), {x}=y & 'z' ü#~"


@pytest.fixture
def called(monkeypatch):
    """The commands that are run, composed as they would be."""
    lines: list[tuple[str, list[str]]] = []

    def run(script, words):
        lines.append((script, list(words)))
        return 0

    monkeypatch.setattr(demo, "run_command", run)
    monkeypatch.setattr(study, "run_command", run)
    return lines


def test_the_demo_designs_and_checks_in_the_folder_that_was_given(called, tmp_path, capsys):
    assert demo.demo([str(tmp_path / AWKWARD)]) == 0
    (_, first), (_, second) = called
    assert composing.compose("config", understood(first)).settings.out == str(tmp_path / AWKWARD)
    assert composing.compose("verify", understood(second)).settings.run == str(tmp_path / AWKWARD)


def test_the_study_prepares_sweeps_and_compares_there(called, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data, (2)"
    data.mkdir()
    monkeypatch.setenv("SPINEFIT_DATA", str(data))
    assert study.study([f"runs/{AWKWARD}"]) == 0
    scripts = [script for script, _ in called]
    assert scripts == ["prepare_patient.py"] * 5 + ["optimize.py", "compare.py"]
    paths = [
        composing.compose("prepare_patient", understood(w)).settings.source.get("path")
        for _, w in called[:5]
    ]
    assert paths[-1] == str(data / "lumbar_meshes")
    combinations, _ = composing.expand(understood(called[5][1][1:], sweep=True))
    assert len(combinations) == 60
    assert composing.compose("config", combinations[0]).settings.out == f"runs/{AWKWARD}"
    compared = composing.compose("compare", understood(called[6][1])).settings
    assert list(compared.runs) == [f"runs/{AWKWARD}"] and compared.out == f"runs/{AWKWARD}_page"


@pytest.mark.parametrize("arguments", [["--folder"], ["a", "b"], ["-x"]])
def test_the_demo_takes_one_folder_and_nothing_else(arguments):
    with pytest.raises(ValueError, match="give one folder, or --help"):
        children.folder_of(arguments, "runs/demo")


def test_prepare_sh_hands_on_the_scan_and_any_folder(tmp_path):
    """Run by bash, with a program in python's place that writes what it was given."""
    rod = {"axis_mm": [[1.0, 2.0, 3.0], [1.0, 2.0, 43.0]], "density_g_cm3": 0.05, "radius_mm": 10.0}
    place = tmp_path / AWKWARD
    words = phantom_words.overrides(
        place, {"rods": [rod] * 3, "femoral_heads_mm": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}
    )
    script, python = tmp_path / "prepare.sh", tmp_path / "bin" / "python"
    script.write_text(phantom_scan.shell_script(words))
    python.parent.mkdir()
    python.write_text(
        f"#!{sys.executable}\nimport json, sys; json.dump(sys.argv[1:],"
        f' open("{tmp_path}/given.json", "w"))\n'
    )
    python.chmod(0o755)
    case = f"{tmp_path}/case, {AWKWARD}"
    subprocess.run(
        ["bash", str(script), case], check=True, env={"PATH": f"{python.parent}:/usr/bin:/bin"}
    )
    given = understood(json.loads((tmp_path / "given.json").read_text())[1:])
    settings = composing.compose("prepare_patient", given).settings
    assert (settings.out, settings.source.path) == (case, str(place / "dicom"))
    assert (
        settings.calibration.rods[2].centre_lps_mm[2] == 23.0
        and settings.alignment.femoral_heads_mm[1][2] == 6.0
    )


def test_a_trial_of_a_search_is_a_run_of_the_patients_that_were_given(tmp_path):
    out = tmp_path / f"{AWKWARD}?"
    config = search.TuneConfig(
        out=str(out),
        base=(f"patient.bundle=cases/{AWKWARD}",),
        space={"title": ["a (1)", "b, c"]},
        targets=[{"measure": "m"}],
    )
    settings = composing.compose("config", search.overrides(config, {"title": "b, c"})).settings
    assert (
        settings.patient.bundle == f"cases/{AWKWARD}"
        and settings.title == "b, c"
        and settings.check is True
    )
    assert search.open_study(config).study_name == "spinefit"
    assert (out / "search.db").exists()
    search.open_study(config)


def test_tables_are_written_into_any_folder(tmp_path):
    tables.write_table([{"a": 1, "b": "x"}], tmp_path / f"{AWKWARD}*?[1]", "measures")
    assert (tmp_path / f"{AWKWARD}*?[1]" / "measures.csv").read_text().splitlines() == [
        "a,b",
        "1,x",
    ]
