"""A run folder goes on with its own configuration; what is given beside it says the same, or is
named."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from engine import artifacts
from scripts.console import composing
from scripts.console.overrides import quoted, understood
from scripts.run import design, job, stored
from scripts.run.config import RunConfig
from scripts.run.configure import run_config
from scripts.run.folder import write_config

ROOT = Path(__file__).resolve().parents[2]
#: Not the defaults, in a group, in a value of a group, and beside both.
FIRST = (
    "experiment=demo",
    "implant=plif_cage",
    "seed=3",
    "solver.spacing_mm=3.5",
    "check=true",
    "budget.wall_time_h=1",
    "title=first",
)


def config_of(*words: str) -> RunConfig:
    return run_config(composing.compose("config", understood(words)).settings)[0]


@pytest.fixture
def folder(tmp_path):
    """A run in which something has been computed, in a folder with an awkward name."""
    made = tmp_path / "run (1), ä"
    write_config(config_of(*FIRST, f"out={made}"), made)
    artifacts.write_json(made / "meta.json", {})
    (made / "search.jsonl").write_text("")
    return made


def resumed(folder: Path, *words: str) -> RunConfig:
    """The configuration of a start with these words."""
    given = composing.compose("config", understood(["resume=true", f"out={folder}", *words]))
    held = stored.resumed(folder, given.plain, given.words)
    return run_config(given.settings)[0] if held is None else RunConfig(**held)


def test_the_folder_alone_goes_on_as_it_was_begun(folder):
    first = config_of(*FIRST, f"out={folder}")
    again = resumed(folder)
    assert again.identity() == first.identity()
    assert again == first.model_copy(update={"resume": True})


def test_what_shapes_no_design_may_be_changed(folder):
    again = resumed(folder, "budget.wall_time_h=7", "title=second", "fem=fine", "keep.states=5")
    assert again.identity() == config_of(*FIRST, "out=x").identity()
    assert (again.budget.wall_time_h, again.title, again.keep.states, again.check) == (
        7,
        "second",
        5,
        True,
    )
    assert again.fem.mesh["size_fine_mm"] == 1.5


@pytest.mark.parametrize(
    "words",
    [
        ("implant=plif_cage",),
        ("seed=3", "solver.spacing_mm=3.50"),
        ("optimizer.iterations=12",),
        ("experiment=demo", "implant=plif_cage", "solver.spacing_mm=3.5"),
    ],
)
def test_what_is_given_again_and_is_the_same_is_no_matter(folder, words):
    assert resumed(folder, *words).identity() == config_of(*FIRST, "out=x").identity()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ("seed=4", "solver.spacing_mm=2"),
            ("seed: given 4, there 3", "solver.spacing_mm: given 2, there 3.5"),
        ),
        (
            ("implant=tlif_cage",),
            ("implant.settings.approach: given TLIF, there PLIF", "more keys of implant"),
        ),
        (("objectives=subsidence",), ("objectives.goals",)),
        (("patient.bundle=cases/x",), ("patient.bundle: given cases/x, there not set",)),
        (
            ("+implant.settings.serrated=true",),
            ("implant.settings.serrated: given true, there not set",),
        ),
    ],
)
def test_each_key_that_differs_is_named(folder, words, named):
    with pytest.raises(ValueError, match="holds another run") as caught:
        resumed(folder, *words)
    assert all(text in str(caught.value) for text in named), caught.value


def test_the_whole_first_line_with_less_beside_it_is_taken_as_it_stands(folder):
    """A sweep's line without a budget gives a job that ended by its budget more time."""
    words = [w for w in FIRST if not w.startswith("budget")]
    assert resumed(folder, *words).budget.wall_time_h is None


def test_where_nothing_is_computed_yet_a_corrected_line_begins_anew(folder):
    (folder / "search.jsonl").unlink()
    assert resumed(folder).identity() == config_of(*FIRST, "out=x").identity(), (
        "without a word it is as it was begun"
    )
    assert resumed(folder, "implant=tlif_cage").study.settings["approach"] == "TLIF"


def test_what_may_be_changed_is_kept_for_the_next_start(folder):
    write_config(resumed(folder, "budget.wall_time_h=7"), folder)
    assert resumed(folder).budget.wall_time_h == 7


def test_a_folder_of_something_else_and_a_run_without_resume_are_refused_by_a_look(
    folder, tmp_path
):
    assert "resume=true" in (stored.refusal(folder, resume=False) or "")
    assert stored.refusal(folder, resume=True) is None
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not a run folder" in (stored.refusal(tmp_path, resume=True) or "")
    assert stored.refusal(tmp_path / "new", resume=False) is None


def test_a_damaged_configuration_is_said(folder):
    (folder / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"config.yaml cannot be read"):
        stored.configuration(folder)


def test_the_line_that_a_stopped_job_prints_goes_on_with_it(folder, monkeypatch, caplog):
    """In a shell it is one command; read back it is the same run."""
    config = config_of(*FIRST, f"out={folder}").model_copy(update={"resume": True})

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(design, "design_run", stop)
    assert job.run(config, {"overrides": list(FIRST)}) == job.STOPPED
    words = shlex.split(artifacts.read_json(folder / "outcome.json")["reason"].splitlines()[-1])
    assert words[1].endswith("optimize.py")
    given = composing.compose("config", understood(words[2:]))
    assert given.settings.resume is True and given.settings.out == str(folder)
    assert resumed(folder).identity() == config.identity()


def test_stopped_before_there_is_a_folder_the_line_is_the_first_one(tmp_path):
    words = shlex.split(job.go_on(tmp_path / "new (1)", {"overrides": [*FIRST, "out=elsewhere"]}))
    assert set(FIRST) < set(words) and words[-2:] == [
        "resume=true",
        quoted("out", str(tmp_path / "new (1)")),
    ]


def test_another_configuration_is_refused_before_anything_is_imported(folder):
    """The command itself, from the shell: exit 2, one line, within seconds and without JAX."""
    line = [
        sys.executable,
        "-X",
        "importtime",
        str(ROOT / "scripts" / "optimize.py"),
        "resume=true",
        f"out={folder}",
        "seed=4",
    ]
    began = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    seconds = time.perf_counter() - began
    said = [row for row in done.stderr.splitlines() if not row.startswith("import time:")]
    assert done.returncode == 2 and len(said) == 1 and "seed: given 4, there 3" in said[0], said
    assert "| jax" not in done.stderr and "| pyvista" not in done.stderr
    assert seconds < 20, "measured 0.8 s alone on the machine"


def test_ctrl_c_and_the_printed_line_work_from_the_shell(tmp_path):
    """The real command, interrupted in its first seconds, in a folder whose name a shell, Hydra and
    OmegaConf would all stumble over."""
    out = tmp_path / "run (1), {a}=b & 'c' ü#~"
    line = [
        sys.executable,
        str(ROOT / "scripts" / "optimize.py"),
        "experiment=demo",
        "seed=3",
        f"out={out}",
    ]
    # started in the background of a shell, this process ignores SIGINT, and so would its children
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 90
    while not (out / stored.LOCK).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == job.STOPPED, text
    printed = text.rstrip().splitlines()[-1]
    done = subprocess.run(
        ["bash", "-c", f"{printed} --cfg job"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    composed = yaml.safe_load(done.stdout)
    assert composed["resume"] is True and composed["out"] == str(out)
