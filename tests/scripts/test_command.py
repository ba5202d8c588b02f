"""Every command says what it does, says something at once, and says in one line what is wrong."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import artifacts
from scripts.console import command, composing, overrides, wrong
from scripts.console.command import Command
from scripts.run.configure import run_config
from scripts.run.folder import write_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGURED = (
    "optimize verify prepare_patient status compare blueprint bench tune phantom_scan scan_study"
    " validation benchmark"
).split()
PLAIN = ("demo", "study", "doctor")


def command_of(name: str) -> Command:
    return importlib.import_module(f"scripts.{name}").COMMAND


def shell(
    name: str, *words: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *words]
    return subprocess.run(
        line, capture_output=True, text=True, cwd=cwd, timeout=180, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Looks like a designed run; nothing in it was computed."""
    folder = tmp_path_factory.mktemp("run (1), ä")
    write_config(
        run_config(composing.compose("config", ["experiment=demo", "out=x"]).settings)[0], folder
    )
    artifacts.write_json(folder / "meta.json", {})
    artifacts.write_json(folder / "optimisation.json", {"code": "iterations", "seconds": 1.0})
    return folder


# -- help ---------------------------------------------------------------------------------------
def test_every_command_of_scripts_is_covered_here():
    """A file that runs as a command is in one of the lists (peers.py is run as a module, for those
    who install peers)."""
    runs = {
        p.stem for p in (ROOT / "scripts").glob("*.py") if '__name__ == "__main__"' in p.read_text()
    }
    assert runs == {*CONFIGURED, *PLAIN, "peers"}


@pytest.mark.parametrize("name", CONFIGURED)
def test_help_says_what_it_does_with_its_options_its_own_groups_and_three_examples(name, capsys):
    made = command_of(name)
    assert made.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "Hydra" not in text and "HYDRA" not in text and len(made.examples) == 3
    assert text.count(f"python scripts/{name}.py") == 4
    own = composing.groups(made.config)
    others = {p.name for p in composing.CONF.iterdir() if p.is_dir()} - set(own)
    assert all(f"\n  {group}=" in text for group in own) and not any(
        f"\n  {group}=" in text for group in others
    )
    prose = [line for line in text.splitlines() if f"scripts/{name}.py" not in line]
    assert all(len(line) <= 100 for line in prose if "|" not in line)


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_example_and_every_option_of_the_help_is_real(name):
    made = command_of(name)
    assert made.script == f"{name}.py"
    for example in made.examples:
        words = [w for w in shlex.split(example) if w != "-m"]
        words = words[1:] if made.topics and words and words[0] in made.topics else words
        good, problems = composing.checked(
            made.config, overrides.understood(words, sweep="-m" in example), shlex.join
        )
        assert not problems and len(good) == len(words)
    base = composing.compose(made.config, []).settings
    names = {
        k
        for k in made.options
        if not k.startswith(("-", "+", "source.", "plan.", "fem.", "optimizer."))
    }
    assert not [k for k in names if composing.checked(made.config, [f"{k}=1"], shlex.join)[1]], base


@pytest.mark.parametrize("name", PLAIN)
def test_help_of_the_plain_commands_starts_nothing(name, tmp_path):
    done = shell(name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("python scripts/") >= 3
    assert not list(tmp_path.iterdir()) and done.stderr == ""
    wrong_flag = shell(name, "--hlep", cwd=tmp_path)
    assert (
        wrong_flag.returncode == 2
        and "--hlep" in wrong_flag.stdout + wrong_flag.stderr
        and not list(tmp_path.iterdir())
    )


def test_topics_are_what_can_be_run():
    from scripts.benchmarks import measure
    from scripts.evidence import validate
    from scripts.evidence.scan.case_sets import CASE_SETS

    assert set(command_of("scan_study").topics) == set(CASE_SETS)
    assert set(command_of("benchmark").topics) == set(measure.KINDS)
    assert set(command_of("validation").topics) == set(validate.VALIDATIONS)


# -- the first line -----------------------------------------------------------------------------
#: Runs a command and ends it at the first thing that it says: what was imported by then, and what
#: it was.
FIRST = """
import json, os, runpy, sys
class Listening:
    def __init__(self, stream): self.stream = stream
    def write(self, text):
        if text.strip():
            slow = [m for m in ("jax", "pyvista", "scipy", "trimesh", "sfepy") if m in sys.modules]
            os.write(1, json.dumps([slow, text]).encode()); os._exit(0)
    def __getattr__(self, name): return getattr(self.stream, name)
sys.stdout, sys.stderr = Listening(sys.stdout), Listening(sys.stderr)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def words_of(name: str, run: Path, tmp_path: Path) -> list[str]:
    return {
        "optimize": [f"out={tmp_path}/o (1)"],
        "verify": [f"run={run}"],
        "prepare_patient": [f"out={tmp_path}/p, q"],
        "status": [f"sweep={run}"],
        "compare": [f"runs={run}", f"out={tmp_path}/page"],
        "blueprint": [f"run={run}"],
        "bench": [f"run={run}"],
        "tune": [f"out={tmp_path}/tune", "space={seed:{low:0,high:9}}"],
        "phantom_scan": [f"out={tmp_path}/scan"],
        "scan_study": ["truth", f"out={tmp_path}/study"],
        "validation": ["code", f"out={tmp_path}/v"],
        "benchmark": ["solver", f"out={tmp_path}/b"],
        "demo": [f"{tmp_path}/d (1)"],
        "study": [f"{tmp_path}/s"],
        "doctor": [],
    }[name]


@pytest.mark.parametrize("name", [*CONFIGURED, *PLAIN, "optimize -m"])
def test_something_is_said_before_anything_slow_is_imported(name, run_folder, tmp_path):
    """0.4 to 0.9 s on two cores; the imports that come after it take 1 to 7 s."""
    words = (
        ["-m", "seed=0,1", f"out={tmp_path}/sweep"]
        if name == "optimize -m"
        else words_of(name, run_folder, tmp_path)
    )
    line = [sys.executable, "-c", FIRST, str(ROOT / "scripts" / f"{name.split()[0]}.py"), *words]
    began = time.perf_counter()
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"SPINEFIT_DATA": str(tmp_path)},
    )
    seconds = time.perf_counter() - began
    assert done.stdout, done.stderr
    slow, text = json.loads(done.stdout)
    assert slow == [] and not text.startswith("error"), text
    assert seconds < 15


@pytest.mark.parametrize(
    "name",
    [
        "optimize",
        "prepare_patient",
        "tune",
        "phantom_scan",
        "compare",
        "scan_study",
        "benchmark",
        "validation",
    ],
)
def test_the_opening_names_the_folder_and_the_time(name, run_folder, tmp_path):
    made = command_of(name)
    words = words_of(name, run_folder, tmp_path)
    topic = words.pop(0) if made.topics else ""
    text = "\n".join(
        made.opening(composing.compose(made.config, overrides.understood(words), topic))
    )
    assert str(tmp_path) in text and "expected" in text


# -- what is wrong ------------------------------------------------------------------------------
def errors(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


def test_all_wrong_keys_are_named_together_each_with_the_nearest(capsys):
    """Hydra's own, of groups, of values, of the models that pydantic checks."""
    words = [
        "optimzer.iterations=3",
        "implant=tlif_cag",
        "loadcass=lumbar_standard",
        "patient.bundel=x",
        "+implant.settings.lenght_mm=3",
        "solver.spacing_mm=99",
        "+optimizer.patiense=3",
        "title=a",
        "out=runs/never",
    ]
    assert command_of("optimize").main(words) == 2
    said = errors(capsys)
    for given, near in (
        ("optimzer.iterations", "optimizer.iterations"),
        ("implant=tlif_cag", "tlif_cage"),
        ("loadcass", "loadcases"),
        ("patient.bundel", "patient.bundle"),
        ("implant.settings.lenght_mm", "length_mm"),
        ("optimizer.patiense", "patience"),
    ):
        assert any(
            row.startswith(f"error: {given}") and f"did you mean {near}" in row for row in said
        ), (given, said)
    assert any("solver.spacing_mm" in row and "99" in row for row in said)
    assert len(said) == 7 and not Path("runs/never").exists()


def test_wrong_keys_of_a_patient_are_named_together(capsys):
    assert (
        command_of("prepare_patient").main(
            ["source=maks", "aligment.age=3", "segment=L4-L5", "out=x", "plan=norm"]
        )
        == 2
    )
    said = "\n".join(errors(capsys))
    assert all(f"did you mean {near}" in said for near in ("mask", "alignment.age", "norms"))
    assert command_of("prepare_patient").main(["source=mask", "out=x"]) == 2
    assert "source.path=… is missing: the scan" in errors(capsys)[0]


def test_a_key_of_an_empty_group_says_how_it_is_written(capsys):
    assert command_of("optimize").main(["patient.phantom.seed=1", "out=x"]) == 2
    assert "+patient.phantom.seed=1" in errors(capsys)[0]


def test_in_a_sweep_too(capsys, tmp_path):
    assert (
        command_of("optimize").main(
            ["-m", "objectives=balanced,balancd", "sed=0,1", f"out={tmp_path}/s"]
        )
        == 2
    )
    said = "\n".join(errors(capsys))
    assert (
        "objectives=balancd" in said
        and "did you mean balanced" in said
        and "did you mean seed" in said
    )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "name",
    [
        "status",
        "verify",
        "blueprint",
        "bench",
        "compare",
        "tune",
        "phantom_scan",
        "prepare_patient",
    ],
)
def test_a_command_without_arguments_says_what_it_needs_in_a_line(name, tmp_path):
    done = shell(name, cwd=tmp_path)
    rows = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert (
        all(row.startswith("error: ") and "is missing" in row and "--help" in row for row in rows)
        and 1 <= len(rows) <= 2
    )


@pytest.mark.parametrize("name", ["scan_study", "benchmark"])
def test_a_command_with_topics_names_them(name, capsys):
    made = command_of(name)
    assert made.main([]) == 2
    said = errors(capsys)
    assert len(said) == 1 and all(topic in said[0] for topic in made.topics)
    first = next(iter(made.topics))
    assert made.main([first[:-1] + "x"]) == 2 and f"did you mean {first}" in errors(capsys)[0]


@pytest.mark.parametrize(
    "words",
    [
        ["every_s=(1"],
        ["every_s"],
        ["--colour"],
        ["every_s={a"],
        ["every_s=0,1"],
        ["~nothing"],
        ["=a"],
        ["hydra.run.dri=x"],
        ["every_s=${nothing}"],
        ["sweep@a=b"],
        ["+a/b=c"],
        ["+colour=red"],
    ],
)
def test_no_word_leads_to_a_traceback_or_to_hydras_variable(words, tmp_path, capsys):
    assert command_of("status").main([f"sweep={tmp_path}", *words]) == 2
    said = capsys.readouterr().err
    assert (
        "HYDRA" not in said and said and all(row.startswith("error: ") for row in said.splitlines())
    ), said


def test_hydras_own_flags_still_answer(tmp_path):
    done = shell("verify", "run=a b (1)", "fem=demo", "--cfg", "job", cwd=tmp_path)
    assert (
        done.returncode == 0
        and "run: a b (1)" in done.stdout
        and "size_fine_mm: 3.0" in done.stdout
    )
    completed = shell(
        "optimize",
        "-sc",
        "query=bash",
        cwd=tmp_path,
        COMP_LINE="python scripts/optimize.py implant=",
        COMP_POINT="0",
    )
    assert "implant=tlif_cage" in completed.stdout
    assert all(
        "@hydra.main" in (ROOT / "scripts" / f"{name}.py").read_text() for name in CONFIGURED
    ), "completion looks for this word"


# -- the file system ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "optimize",
        "prepare_patient",
        "compare",
        "tune",
        "phantom_scan",
        "scan_study",
        "validation",
        "benchmark",
        "demo",
        "study",
    ],
)
def test_a_file_where_the_folder_should_be_is_said_in_a_line(name, run_folder, tmp_path):
    place = tmp_path / "note (1).txt"
    place.write_text("mine")
    words = [
        str(place) if name in PLAIN else f"out={place}/deep" if w.startswith("out=") else w
        for w in words_of(name, run_folder, tmp_path)
    ]
    done = shell(name, *words, cwd=tmp_path)
    assert (
        done.returncode == 2
        and done.stderr == f"error: {place} is a file, where a folder is needed; choose another\n"
    )
    assert place.read_text() == "mine"


@pytest.mark.parametrize("name", ["verify", "blueprint", "bench", "status", "compare"])
@pytest.mark.parametrize("kind", ["absent", "file"])
def test_no_folder_and_a_file_are_said_in_a_line(name, kind, tmp_path):
    place = tmp_path / "x"
    if kind == "file":
        place.write_text("")
    key = {"status": "sweep", "compare": "runs"}.get(name, "run")
    done = shell(name, f"{key}={place}", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(place) in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "named"),
    [
        (errno.ENOSPC, 75, "disk is full"),
        (errno.EACCES, 2, "permission"),
        (errno.EROFS, 2, "read-only"),
        (errno.EEXIST, 2, "is a file"),
        (errno.ENOENT, 2, "does not exist"),
        (errno.EDQUOT, 75, "quota"),
    ],
)
def test_an_error_of_the_file_system_is_one_line_and_its_code_says_whether_to_try_again(
    number, code, named, capsys
):
    def work() -> int:
        raise OSError(number, os.strerror(number), "/some where/a")

    assert command.run(work) == code
    said = errors(capsys)
    assert (
        len(said) == 1
        and named in said[0]
        and "/some where/a" in said[0]
        and os.strerror(number) in said[0]
    )


def test_a_folder_without_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs this may be root
    assert "permission" in (command.folder_problem(tmp_path / "a" / "b") or "")
    monkeypatch.undo()
    assert command.folder_problem(tmp_path / "a" / "b") is None


def test_an_interruption_is_no_traceback(capsys):
    def work() -> int:
        raise KeyboardInterrupt

    assert command.run(work) == 130 and capsys.readouterr().err == "stopped\n"


def test_nearest_is_by_spelling_or_by_the_last_part():
    known = ["optimizer.iterations", "optimizer.patience", "implant"]
    assert "optimizer.iterations" in wrong.nearest("iterations", known)
    assert "implant" in wrong.nearest("implnat", known)
    assert wrong.nearest("zzz", known) == ""
