"""scripts/benchmark.py: wrong input is refused at once; the engine and a peer agree on a small
problem; limits stop a solver."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from scripts.benchmarks import iterations, problems
from scripts.benchmarks.record import BenchmarkConfig
from scripts.benchmarks.solvers import compare_solvers
from scripts.run import arms, opened
from tests.conftest import ROOT


def test_wrong_input_is_refused():
    done = subprocess.run(
        [sys.executable, "scripts/benchmark.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and "say which: solver | size | iterations | iteration | refinement" in done.stderr
    )
    with pytest.raises(
        ValidationError, match=r"solvers: abaqus unknown; choose among engine, pardiso"
    ):
        BenchmarkConfig(solvers=["abaqus"])
    with pytest.raises(ValueError, match="problem 'cube'"):
        problems.make_problem("cube", 1000)


def test_engine_and_pardiso_solve_the_same_problem(tmp_path, capsys):
    config = BenchmarkConfig(
        solvers=["engine", "pardiso"], unknowns=[15e3], tolerance=1e-8, out=str(tmp_path)
    )
    compare_solvers(config)
    results = {
        r["solver"]: r for r in json.loads((tmp_path / "solver.json").read_text())["results"]
    }
    assert {r["status"] for r in results.values()} == {"ok"}, results
    assert results["engine"]["compliance"] == pytest.approx(
        results["pardiso"]["compliance"], rel=1e-7
    )
    assert (
        results["engine"]["relative_residual"] <= 1.05e-8 and results["engine"]["iterations"] <= 25
    )
    assert (
        "| engine |" in capsys.readouterr().out and (tmp_path / "solver.png").stat().st_size > 5000
    )


def test_a_solver_above_its_limit_is_stopped_and_said_so(tmp_path):
    config = BenchmarkConfig(
        solvers=["pardiso"], unknowns=[15e3], memory_limit_gb=0.01, out=str(tmp_path)
    )
    compare_solvers(config)
    assert (
        json.loads((tmp_path / "solver.json").read_text())["results"][0]["status"]
        == "stopped above 0.01 GB"
    )


@pytest.mark.parametrize("bundle", [None, "cases/my patient (1)"])
def test_designs_are_those_of_the_bundle_that_is_named(bundle, monkeypatch):
    monkeypatch.setattr(opened, "open_segment", lambda patient: patient.bundle)
    monkeypatch.setattr(arms, "make", lambda segment, study: segment)
    assert iterations.study_of(BenchmarkConfig(bundle=bundle)) == bundle
