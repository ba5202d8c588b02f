"""Sweeps: which jobs there are, which are still to do, and that a launcher runs, retries, stops and
spares the machine.

The jobs here are small programs in place of scripts/optimize.py; the real ones are run by
test_overnight.py (slow).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from engine import artifacts
from engine.patient import phantom_segment, save_segment
from engine.types import Segment
from scripts.console import composing
from scripts.console.wrong import Wrong
from scripts.run import configure, job, standing
from scripts.run.config import LauncherConfig
from scripts.run.opened import open_segment
from scripts.run.stored import OUTCOME
from scripts.sweeps import grid, launchers
from scripts.sweeps.launchers import Command

ROOT = Path(__file__).resolve().parents[2]


#: On a coarse grid: quick to make.
PHANTOM = ("+patient.phantom.spacing_mm=1.5",)


@pytest.fixture(autouse=True, scope="module")
def one_phantom():
    """Made once, not for every plan."""
    with pytest.MonkeyPatch.context() as patch:
        made: dict[str, Segment] = {}
        patch.setattr(
            grid,
            "open_segment",
            lambda p: (
                made.setdefault(p.model_dump_json(), open_segment(p))
                if p.bundle
                else made.get("phantom") or made.setdefault("phantom", open_segment(p))
            ),
        )
        yield


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return grid.plan(
        [*PHANTOM, "objectives=balanced,subsidence", "seed=0,1", f"out={out}", "solver=coarse"]
    )


def test_every_combination_is_a_job_with_a_folder_of_its_own(planned):
    names = [p.command.name for p in planned.jobs]
    assert len(set(names)) == 4 and all(p.config.check and p.config.resume for p in planned.jobs)
    assert [n.rsplit("_", 1)[0] for n in names] == [
        f"objectives-{o}_seed-{s}" for o in ("balanced", "subsidence") for s in (0, 1)
    ]
    assert all(n.endswith(p.key[:8]) for n, p in zip(names, planned.jobs, strict=True))
    assert {p.config.study.seed for p in planned.jobs} == {0, 1}


def test_the_same_command_finds_its_jobs_again_and_another_configuration_never_does(planned):
    same = grid.plan(
        [
            *PHANTOM,
            "objectives=balanced,subsidence",
            "seed=0,1",
            "solver=coarse",
            f"out={planned.folder}",
        ]
    )
    finer = grid.plan(
        [
            *PHANTOM,
            "objectives=balanced,subsidence",
            "seed=0,1",
            "solver=fine",
            f"out={planned.folder}",
        ]
    )
    assert [p.command.folder for p in same.jobs] == [p.command.folder for p in planned.jobs]
    assert not {p.command.folder for p in finer.jobs} & {p.command.folder for p in planned.jobs}


def test_a_patient_prepared_anew_is_another_folder(tmp_path):
    arguments = ["seed=0,1", f"patient.bundle={tmp_path / 'case'}", f"out={tmp_path / 's'}"]
    names = []
    for height_mm in (8.0, 8.5):
        save_segment(
            phantom_segment(spacing_mm=1.5, height_middle_mm=height_mm),
            tmp_path / "case" / "segment",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grid, "open_segment", open_segment)
            names.append({p.command.name for p in grid.plan(arguments).jobs})
    assert len(names[0]) == 2 and not names[0] & names[1]


def test_the_jobs_overrides_compose_to_the_very_configuration_that_was_checked(planned):
    for p in planned.jobs:
        assert configure.composed(p.command.overrides)[0] == p.config


def test_an_experiment_may_bring_its_own_sweep_and_arguments_win():
    combinations, swept = composing.expand(["experiment=objectives_study", "seed=5", "out=x"])
    assert set(swept) == {"objectives", "patient.bundle"} and len(combinations) == 4 * 5
    assert all("seed=5" in c for c in combinations)
    combinations, swept = composing.expand(
        ["experiment=objectives_study", "patient.bundle=null", "out=x"]
    )
    assert set(swept) == {"objectives", "seed"} and len(combinations) == 4 * 3


def test_everything_wrong_in_any_job_is_named_before_one_starts(tmp_path):
    with pytest.raises(Wrong) as caught:
        grid.plan(
            [
                "objectives=balanced,nonsense",
                "seed=0,-1",
                "solver.spacing_mm=9",
                f"out={tmp_path / 's'}",
            ]
        )
    text = "\n".join(caught.value.problems)
    assert "nonsense" in text and "seed=-1" in text and "solver.spacing_mm" in text
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["seed=0,1"], "out="),
        (["seed=0,1", "out=a,b"], "one folder"),
        (["out=a", "resume=true"], "resume"),
    ],
)
def test_a_sweep_without_its_folder_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        grid.plan(arguments)


def test_a_missing_patient_is_named_before_any_job_starts(tmp_path):
    with pytest.raises(ValueError, match="holds no planned segment"):
        grid.plan([f"patient.bundle={tmp_path}", "seed=0,1", f"out={tmp_path / 's'}"])


# -- what is left ----------------------------------------------------------------------------------
def test_done_is_skipped_passing_failures_are_tried_again_lasting_ones_are_named(planned):
    done, passing, lasting, fresh = planned.jobs
    artifacts.write_json(
        done.command.folder / OUTCOME, {"status": "done", "key": job.key(done.config), "reason": ""}
    )
    artifacts.write_json(
        done.command.folder / "optimisation.json", {"code": "iterations", "seconds": 1.0}
    )
    for p, code in ((passing, job.TRANSIENT), (lasting, job.FAILED)):
        artifacts.write_json(
            p.command.folder / OUTCOME,
            {"status": "failed", "exit": code, "reason": "why", "key": p.key},
        )
    todo, skipped = grid.remaining(planned)
    assert [p.command.name for p in todo] == [passing.command.name, fresh.command.name]
    assert skipped == {done.command.name: "done", lasting.command.name: "failed for good: why"}
    again = grid.Sweep(planned.folder, planned.jobs, LauncherConfig(retry_failed=True))
    assert [p.command.name for p in grid.remaining(again)[0]] == [
        passing.command.name,
        lasting.command.name,
        fresh.command.name,
    ]


# -- launchers -------------------------------------------------------------------------------------
PROGRAM = """
    import json, os, signal, sys, time
    import ctypes
    if "SPINEFIT_END_WITH_PARENT" in os.environ: ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    folder = next(a[4:] for a in sys.argv if a.startswith("out="))
    tries = os.path.join(folder, "tries")
    count = len(open(tries).read()) if os.path.exists(tries) else 0
    open(tries, "a").write("x")
    threads = {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    json.dump(threads, open(os.path.join(folder, "env"), "w"))
    open(os.path.join(folder, f"began{count}"), "w").write(repr(time.time()))
    told = os.path.join(folder, "how")
    how = open(told).read() if os.path.exists(told) else "done"
    if how == "killed once" and count == 0: os.kill(os.getpid(), signal.SIGKILL)
    if how == "full" : sys.exit(75)
    if how == "wrong": sys.exit(2)
    if how == "long":
        def save(*_):
            open(os.path.join(folder, "saved"), "w").write("saved"); sys.exit(130)
        signal.signal(signal.SIGTERM, save)
        open(os.path.join(folder, "ready"), "w")
        for _ in range(600): time.sleep(0.1)
    time.sleep(0.3)
    open(os.path.join(folder, f"ended{count}"), "w").write(repr(time.time()))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    monkeypatch.setattr(launchers, "PROGRAM", str(path))
    return path


def command(folder: Path, name: str, how: str = "done") -> Command:
    (folder / name).mkdir(parents=True)
    (folder / name / "how").write_text(how)
    return Command(name, folder / name, (f"out={folder / name}",))


@pytest.fixture(autouse=True)
def interruptible():
    """Started in the background of a shell, this process ignores SIGINT, and so would its
    children; a sweep handles it (sweep.run)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def launchers_here() -> list[LauncherConfig]:
    small = {"memory_gb_per_job": 0.2, "grace_s": 20.0}
    return [
        LauncherConfig(jobs=2, **small),
        LauncherConfig(kind="submitit", cluster="local", jobs=2, threads_per_job=1, **small),
    ]


@pytest.mark.parametrize("config", launchers_here(), ids=lambda c: c.kind)
def test_jobs_run_side_by_side_and_say_how_they_ended(program, tmp_path, config):
    hows = {"a": "done", "b": "done", "c": "wrong"}
    codes = {
        c.name: code
        for c, code in launchers.launch(
            config, [command(tmp_path, n, h) for n, h in hows.items()], threading.Event()
        )
    }
    assert codes == {"a": 0, "b": 0, "c": 2}
    assert (tmp_path / "c" / "tries").read_text() == "x", "what fails for good is not tried again"
    threads = {json.loads((tmp_path / n / "env").read_text())["OMP_NUM_THREADS"] for n in hows}
    assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))} or threads == {"1"}


def test_what_may_pass_is_tried_again(program, tmp_path):
    config = LauncherConfig(jobs=1, memory_gb_per_job=0.2, retries=2)
    commands = [command(tmp_path, "killed", "killed once"), command(tmp_path, "full", "full")]
    assert {c.name: code for c, code in launchers.launch(config, commands, threading.Event())} == {
        "killed": 0,
        "full": 75,
    }
    assert (tmp_path / "killed" / "tries").read_text() == "xx" and (
        tmp_path / "full" / "tries"
    ).read_text() == "xxx"


@pytest.mark.parametrize("config", launchers_here(), ids=lambda c: c.kind)
def test_told_to_stop_running_jobs_save_and_no_other_begins(program, tmp_path, config):
    commands = [command(tmp_path, n, "long") for n in "abc"]
    stop = threading.Event()

    def when_two_run():
        while not all((tmp_path / n / "ready").exists() for n in "ab"):
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=when_two_run).start()
    codes = {c.name: code for c, code in launchers.launch(config, commands, stop)}
    assert set(codes.values()) == {130}
    assert (
        all((tmp_path / n / "saved").exists() for n in "ab")
        and not (tmp_path / "c" / "tries").exists()
    )


def test_under_submitit_a_job_at_its_time_limit_saves_and_is_queued_again(tmp_path, program):
    task = launchers.Requeued(command(tmp_path, "a", "long"), 1, 20.0)
    thread = threading.Thread(target=task)
    thread.start()
    while not (tmp_path / "a" / "ready").exists():
        time.sleep(0.05)
    delayed = task.checkpoint()
    thread.join()
    assert (tmp_path / "a" / "saved").exists()
    assert (
        delayed.function.command == task.command
        and delayed.function.process is None
        and not delayed.function.stopped
    )


def test_the_jobs_of_a_killed_sweep_are_told_to_save(tmp_path):
    """The system tells them (PR_SET_PDEATHSIG): nobody else can."""
    inner = tmp_path / "inner.py"
    inner.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom scripts.sweeps import launchers\n"
        "launchers.end_with_parent()\n" + textwrap.dedent(PROGRAM)
    )
    command(tmp_path, "a", "long")
    outer = (
        f"import sys, threading; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from scripts.run.config import LauncherConfig\nfrom scripts.sweeps import launchers\n"
        f"launchers.PROGRAM = {str(inner)!r}\n"
        f"folder = Path({str(tmp_path / 'a')!r})\n"
        "c = launchers.Command('a', folder, (f'out={folder}',))\n"
        "config = LauncherConfig(jobs=1, memory_gb_per_job=0.2)\n"
        "list(launchers.launch(config, [c], threading.Event()))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    while not (tmp_path / "a" / "ready").exists():
        assert process.poll() is None, "the sweep ended before its job began"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while not (tmp_path / "a" / "saved").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "a" / "saved").exists()


@pytest.mark.parametrize(
    ("config", "cores", "free_gb", "count", "expected"),
    [
        (LauncherConfig(), 16, 64.0, 100, (10, 1)),  # memory: ten of 6 GB
        (LauncherConfig(), 16, 640.0, 4, (4, 4)),  # four jobs share the cores
        (LauncherConfig(threads_per_job=4), 16, 640.0, 100, (4, 4)),
        (LauncherConfig(jobs=3), 16, 640.0, 100, (3, 5)),
        (LauncherConfig(jobs=8), 2, 14.0, 8, (2, 1)),  # what was asked for does not fit
    ],
)
def test_jobs_share_the_machine_without_too_many_threads_or_too_much_memory(
    monkeypatch, config, cores, free_gb, count, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(launchers, "available_gb", lambda: free_gb)
    assert launchers.share(config, count) == expected


def test_too_little_memory_for_one_job_is_said(monkeypatch):
    monkeypatch.setattr(launchers, "available_gb", lambda: 4.0)
    with pytest.raises(ValueError, match=r"4\.0 GB are free"):
        launchers.share(LauncherConfig(), 1)


# -- sweeps that fail ------------------------------------------------------------------------------
def failing(folder: Path, whys: list[str]) -> grid.Sweep:
    """A sweep whose jobs' program says these words and ends, before any of it could write an
    outcome."""
    jobs = []
    for number, why in enumerate(whys):
        made = command(folder, f"job{number}", why)
        config = configure.composed([f"out={made.folder}"])[0]
        jobs.append(grid.Planned(made, config, f"key{number}"))
    return grid.Sweep(folder, tuple(jobs), LauncherConfig(jobs=2, memory_gb_per_job=0.2, retries=0))


def test_a_sweep_whose_jobs_all_fail_says_so_and_why(tmp_path, monkeypatch, caplog):
    path = tmp_path / "program.py"
    path.write_text(
        "import os, sys\nfolder = next(a[4:] for a in sys.argv if a.startswith('out='))\n"
        "print('error:', open(os.path.join(folder, 'how')).read()); sys.exit(2)\n"
    )
    monkeypatch.setattr(launchers, "PROGRAM", str(path))
    with caplog.at_level("INFO", logger="spinefit"):
        assert grid.run(failing(tmp_path / "s", ["no such thing", "no room", "no such thing"])) == 1
    last = caplog.messages[-1]
    assert "all 3 jobs failed" in last and "2 of them with: no such thing" in last
    assert "waiting" not in caplog.text and "nothing computed" not in caplog.text
    shown = standing.look(tmp_path / "s")
    assert {s.status for s in shown.values()} == {"failed"}
    assert standing.commonest_failure(shown) is not None
    todo, skipped = grid.remaining(
        failing_again := grid.Sweep(
            tmp_path / "s", failing(tmp_path / "t", ["x"]).jobs, LauncherConfig()
        )
    )
    assert len(todo) == 1 and not skipped and failing_again.folder == tmp_path / "s"


def test_status_ends_with_the_reason_and_a_code_when_all_jobs_failed(tmp_path, capsys):
    from scripts.status import COMMAND

    for name in ("a", "b"):
        artifacts.write_json(tmp_path / name / "meta.json", {})
        artifacts.write_json(
            tmp_path / name / OUTCOME,
            {"status": "failed", "reason": "no room in the disc", "exit": 2},
        )
    assert COMMAND.main([f"sweep={tmp_path}"]) == 1
    assert (
        "error: all 2 jobs failed; 2 of them with: no room in the disc" in capsys.readouterr().err
    )
    artifacts.write_json(tmp_path / "b" / OUTCOME, {"status": "done", "reason": "", "exit": 0})
    assert COMMAND.main([f"sweep={tmp_path}"]) == 0


def test_a_job_that_died_before_its_first_word_is_shown_with_its_last(tmp_path):
    (tmp_path / "job.log").write_text(
        "error: an old one\nTraceback …\nModuleNotFoundError: No module named 'x'\n"
    )
    state = standing.read(tmp_path)
    assert state.status == "failed" and "No module named 'x'" in state.text


def test_jobs_in_a_folder_with_any_name_are_started_there(program, tmp_path, monkeypatch):
    """The line of a job goes through Hydra's grammar once more; its folder comes out as it went
    in."""
    out = tmp_path / "sweep (1), {a}=b & 'c' ü#~"
    (tmp_path / "case, (1)").mkdir()
    arguments = [*PHANTOM, "seed=0,1", f'out="{out}"', "solver=coarse", "title='a, b'"]
    jobs = grid.plan(arguments).jobs
    assert len(jobs) == 2
    for p in jobs:
        config = configure.composed(p.command.overrides)[0]
        assert config == p.config and config.out == str(p.command.folder) and config.title == "a, b"
        assert p.command.folder.parent == out


# -- status ----------------------------------------------------------------------------------------
def test_the_status_shows_every_job_of_the_last_command(planned):
    artifacts.write_json(planned.folder / standing.MANIFEST, [grid.row_of(p) for p in planned.jobs])
    shown = standing.look(planned.folder)
    assert list(shown) == [p.command.name for p in planned.jobs]
    assert [s.status for s in shown.values()] == ["done", "failed", "failed", "waiting"]
    from rich.console import Console

    console = Console(width=160, record=True, file=open(os.devnull, "w"))
    console.print(standing.table(planned.folder, shown))
    assert "4 jobs: 1 done, 2 failed, 1 waiting" in console.export_text()
