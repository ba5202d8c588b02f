"""A job's last word, its lock, and what stands on disk: whatever happens, the next start knows."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import artifacts
from scripts.run import design as run_design
from scripts.run import drawings, handover, job, standing, stored
from scripts.run.config import BudgetConfig
from scripts.run.folder import OtherRun
from scripts.run.stored import OUTCOME
from scripts.sweeps import launchers
from tests.scripts.test_config import composed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    return composed(f"out={tmp_path / 'run'}", "resume=true")


def raising(error):
    def design(*_):
        raise error

    return design


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (ValueError("no such patient"), job.FAILED, "failed"),
        (FloatingPointError("not finite"), job.FAILED, "failed"),
        (OSError(errno.ENOSPC, "No space left on device"), job.TRANSIENT, "failed"),
        (MemoryError("bad_alloc"), job.TRANSIENT, "failed"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), job.TRANSIENT, "failed"),
        (RuntimeError("a defect"), 1, "failed"),
        (KeyboardInterrupt(), job.STOPPED, "stopped"),
    ],
)
def test_every_end_has_a_last_word_and_an_exit_code(config, monkeypatch, error, code, status):
    monkeypatch.setattr(run_design, "design_run", raising(error))
    assert job.run(config) == code
    outcome = artifacts.read_json(Path(config.out) / OUTCOME)
    assert outcome["status"] == status and outcome["exit"] == code
    assert isinstance(error, KeyboardInterrupt) or str(error.args[-1]) in outcome["reason"]
    assert launchers.is_transient(code) == (code == job.TRANSIENT)
    assert not job.finished(config)


def test_a_done_job_is_done_for_its_own_configuration_only(config, monkeypatch):
    end = {"code": "wall_time", "seconds": 3600.0}
    monkeypatch.setattr(
        run_design,
        "design_run",
        lambda c, _: artifacts.write_json(Path(c.out) / "optimisation.json", end),
    )
    monkeypatch.setattr(drawings, "write_blueprint", lambda _: None)
    monkeypatch.setattr(handover, "write_slicer", lambda *_: [])
    monkeypatch.setattr(drawings, "write_lattice", lambda *_: None)
    assert job.run(config) == job.DONE
    limited = config.model_copy(update={"budget": BudgetConfig(wall_time_h=1.0)})
    assert job.finished(limited)
    assert not job.finished(config), "the search ended by its wall time, and now it has more"
    assert not job.finished(limited.model_copy(update={"check": True}))
    other = limited.model_copy(update={"study": limited.study.model_copy(update={"seed": 3})})
    assert not job.finished(other)
    assert not job.finished(
        limited.model_copy(update={"lattice": limited.lattice.model_copy(update={"cell_mm": 2.0})})
    )


def test_another_runs_folder_keeps_its_outcome(config, monkeypatch):
    folder = Path(config.out)
    monkeypatch.setattr(run_design, "design_run", raising(OtherRun("it holds another run")))
    folder.mkdir()
    artifacts.write_json(folder / OUTCOME, {"status": "done"})
    artifacts.write_json(folder / "meta.json", {})
    assert job.run(config) == job.FAILED
    assert artifacts.read_json(folder / OUTCOME) == {"status": "done"}


def test_a_folder_of_something_else_is_not_touched(config, capsys):
    folder = Path(config.out)
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    assert job.run(config) == job.FAILED
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


def holding(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until it is killed."""
    text = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom"
        f" scripts.run import job\nwith job.working(Path({str(folder)!r})):\n"
        " print('held', flush=True)\n import time; time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_two_processes_never_work_on_one_folder_and_a_kill_lets_it_go(config):
    folder = Path(config.out)
    process = holding(folder)
    try:
        assert stored.busy(folder)
        with pytest.raises(OtherRun, match=f"process {process.pid} on"), job.working(folder):
            pass
        assert standing.read(folder).status == "running"
    finally:
        process.kill()
        process.wait()
    assert not stored.busy(folder)
    artifacts.write_json(folder / "meta.json", {})
    assert standing.read(folder).status == "killed"
    with job.working(folder):
        assert json.loads((folder / stored.LOCK).read_text())["pid"] == os.getpid()


def test_a_killed_job_is_found_with_what_it_had_computed(config):
    folder = Path(config.out)
    artifacts.write_json(folder / "meta.json", {})
    artifacts.write_text(folder / "config.yaml", "optimizer: {iterations: 12}\n")
    for n in range(5):
        artifacts.append_jsonl(folder / "history.jsonl", {"iteration": n})
    state = standing.read(folder)
    assert state.status == "killed" and state.text == "5 of 12 iterations"
    artifacts.write_json(folder / OUTCOME, {"status": "stopped", "reason": "stopped by SIGTERM"})
    assert standing.read(folder).text == "5 of 12 iterations"
    artifacts.write_json(folder / OUTCOME, {"status": "failed", "reason": "no space left"})
    assert standing.read(folder).text == "no space left"


def test_what_is_left_of_a_job_goes_by_what_others_took():
    stages = {"optimisation": 100.0, "SfePy, all arms": 50.0}
    done = standing.JobState("done", "", stages)
    waiting = standing.JobState("waiting", "", {})
    half = standing.JobState("running", "", {}, ("optimisation", time.time() - 40.0), 0.5)
    assert standing.remaining_s(waiting, [waiting]) is None
    assert standing.remaining_s(waiting, [done]) == 150.0
    assert standing.remaining_s(half, [done]) == pytest.approx(100.0)
    assert standing.remaining_s(done, [done]) == 0.0


def test_killed_while_it_was_tried_again_it_does_not_look_failed(config, monkeypatch):
    folder = Path(config.out)
    monkeypatch.setattr(
        run_design, "design_run", raising(OSError(errno.ENOSPC, "No space left on device"))
    )
    job.run(config)
    artifacts.write_json(folder / "meta.json", {})
    assert standing.read(folder).status == "failed"
    seen = []
    monkeypatch.setattr(
        run_design,
        "design_run",
        lambda *_: seen.append((folder / OUTCOME).exists()) or raising(KeyboardInterrupt())(),
    )
    job.run(config)
    assert seen == [False], "a kill here leaves no word"


def test_nothing_to_show_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no sweep"):
        standing.look(tmp_path)


def test_sigterm_before_the_work_begins_is_a_stop(config):
    """From the first moment on: a scheduler does not wait until JAX is loaded."""
    line = [
        sys.executable,
        str(ROOT / "scripts" / "optimize.py"),
        f"out={config.out}",
        "experiment=demo",
    ]
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=config.out.rsplit("/", 1)[0],
    )
    deadline = time.monotonic() + 60
    while not (Path(config.out) / stored.LOCK).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == job.STOPPED, out
    assert artifacts.read_json(Path(config.out) / OUTCOME)["status"] == "stopped"
