"""What runs take over from each other: only the very same content, from whoever solved it,
within the disk that is allowed."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from engine.types import Response, SolverStatus
from fem.verify import failed_check
from scripts.run import arms as studies
from scripts.run import check, design, solved


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SPINEFIT_SOLVED", str(tmp_path / "solved"))
    return tmp_path / "solved"


def made_arm(folder, text="ok"):
    """A check with its files, as `check` would leave them."""
    folder.mkdir(parents=True)
    (folder / "solution.vtu").write_bytes(b"fields")
    (folder / "mesh.npz").write_bytes(b"mesh")
    return failed_check(text)


def test_an_arm_comes_back_with_its_files(root, tmp_path):
    store = solved.Store(1.0)
    name = solved.key("arm", np.arange(3.0), {"a": 1})
    assert store.take(name, tmp_path / "b") is None
    store.give(name, made_arm(tmp_path / "a"), tmp_path / "a")
    assert store.take(name, tmp_path / "b").status.text == "ok"
    assert (tmp_path / "b" / "solution.vtu").read_bytes() == b"fields" and (
        tmp_path / "b" / "mesh.npz"
    ).exists()


def test_other_content_and_other_code_are_other_names(monkeypatch):
    one = solved.key("arm", np.arange(3.0))
    assert solved.key("arm", np.arange(3.0)) == one
    assert solved.key("arm", np.array([0.0, 1.0, 2.0 + 1e-15])) != one
    monkeypatch.setattr(solved, "code_digest", lambda: "another")
    assert solved.key("arm", np.arange(3.0)) != one


@pytest.mark.parametrize(
    "source",
    [
        "engine/multigrid/native/solver.cc",
        "engine/multigrid/native/packing.h",
        "fem/solve.py",
        "objectives/yielded_bone.py",
        "scripts/run/search.py",
        "scripts/run/arms.py",
    ],
)
def test_the_code_digest_covers_what_solves_and_what_searches(source, tmp_path, monkeypatch):
    """On a copy of the sources, one of which says something else."""
    for part in ("engine", "fem", "objectives", "scripts/run"):
        shutil.copytree(solved.ROOT / part, tmp_path / part)
    monkeypatch.setattr(solved, "ROOT", tmp_path)
    digest = solved.code_digest.__wrapped__
    before = digest()
    with open(tmp_path / source, "a") as stream:
        stream.write("\n")
    assert digest() != before


@pytest.mark.parametrize("gigabytes", [0.0, 1.0])
def test_none_is_kept_when_told_so(gigabytes, root, tmp_path, monkeypatch):
    if gigabytes:
        monkeypatch.setenv("SPINEFIT_SOLVED", "")
    store = solved.Store(gigabytes)
    store.give("x", made_arm(tmp_path / "a"), tmp_path / "a")
    store.give_search("y", "{}")
    with store.claim("x") as mine:
        assert mine
    assert store.take("x", tmp_path / "b") is None and store.search("y") is None
    assert not root.exists()


def test_a_damaged_arm_counts_as_none(root, tmp_path, caplog):
    store = solved.Store(1.0)
    store.give("x", made_arm(tmp_path / "a"), tmp_path / "a")
    whole = (root / "x" / "check.npz").read_bytes()
    (root / "x" / "check.npz").write_bytes(whole[: len(whole) // 2])
    assert store.take("x", tmp_path / "b") is None
    assert "solved anew" in caplog.text


def test_a_check_comes_back_as_it_was(root, tmp_path):
    """Arrays to the bit with their types and orders of magnitude, NaN residuals, tuples, absent
    parts: numbers are formed anew from it."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, 3)).astype(kind) for kind in (np.float32, np.float64)] * 5
    response = Response(*arrays, rng.normal(size=2), None, None, loadcases=("standing", "flexion"))
    solver = (SolverStatus("ok", "", 12, 1e-9), SolverStatus("failed", "no"))
    kept = replace(
        failed_check(""),
        status=SolverStatus("ok", "", 3, 0.1),
        response=response,
        solver=solver,
        mesh={"tetrahedra": np.int64(7), "min_dihedral_deg": 8.5},
        notes=("one", "two"),
        balance=(1e-17, 0.1 + 0.2),
        figures={"mesh_s": 1.5},
        contact={"flexion": {"touching_mm2": 3.0}},
    )
    store = solved.Store(1.0)
    (tmp_path / "a").mkdir()
    store.give("x", kept, tmp_path / "a")
    back = store.take("x", tmp_path / "b")
    assert back is not None and back.response is not None
    assert back.response.loadcases == response.loadcases and back.response.fatigue_mpa is None
    for name in ("position", "volume", "fraction", "near", "strain", "compliance", "applied"):
        old, new = (np.asarray(getattr(r, name)) for r in (response, back.response))
        assert new.dtype == old.dtype and np.array_equal(new, old), name
    assert back.solver[0] == solver[0] and back.solver[1].code == "failed"
    assert np.isnan(back.solver[1].relative_residual)
    assert (back.notes, back.balance, back.died) == (kept.notes, kept.balance, False)
    assert (back.mesh, back.figures, back.contact) == (kept.mesh, kept.figures, kept.contact)


@pytest.mark.parametrize("place", [4, 30, 200, -40])
def test_bytes_that_are_wrong_are_solved_anew_whatever_they_break(place, root, tmp_path):
    store = solved.Store(1.0)
    store.give("x", made_arm(tmp_path / "a"), tmp_path / "a")
    broken = bytearray((root / "x" / "check.npz").read_bytes())
    for k in range(4):
        broken[place + k] ^= 0xFF
    (root / "x" / "check.npz").write_bytes(bytes(broken))
    store.take("x", tmp_path / "b")  # none, or what a byte without a meaning leaves; never an error


def test_only_one_solves_at_a_time(root):
    one, other = solved.Store(1.0), solved.Store(1.0)
    with one.claim("x") as mine, other.claim("x") as theirs, other.claim("y") as another:
        assert (mine, theirs, another) == (True, False, True)
    with other.claim("x") as now:
        assert now


def test_the_longest_unused_goes_first(root, tmp_path):
    store = solved.Store(2.5e-4)  # 250 kB
    for i, name in enumerate("abc"):
        folder = tmp_path / name
        found = made_arm(folder)
        (folder / "mesh.npz").write_bytes(bytes(100_000))
        if name == "c":
            store.take("a", tmp_path / "used")  # a is older than b, but used since
        store.give(name, found, folder)
        if (root / name).exists():
            os.utime(root / name, (time.time() - 100 + i,) * 2) if name != "c" else None
    assert {p.name for p in root.glob("*/")} == {"a", "c"}


class Arms(check.Arms):
    """The real queue, over arms that are solved by nobody."""

    def __init__(self, folder, arms, log):
        self.folder, self.left, self.log = folder, list(arms), log
        self.store, self.jobs = solved.Store(1.0), {a: (a,) for a in arms}
        self.keys = {a: f"key-{a}" for a in arms}
        self.guard, self.stop = threading.Lock(), threading.Event()


def test_two_runs_share_the_work(root, tmp_path, monkeypatch):
    """Two checks of the same five arms at once: each arm is solved once, both have all five, and
    neither waits for one arm while another is free."""
    log: list[str] = []

    def alone(arm, where):
        log.append(arm)
        where.mkdir(parents=True)
        (where / "solution.vtu").write_text(arm)
        time.sleep(0.15)
        found = Response(*(np.arange(float(len(arm))),) * 11, loadcases=("standing",))
        return replace(failed_check(""), response=found, status=SolverStatus("ok", arm))

    monkeypatch.setattr(check, "check_in_process", alone)
    arms = ["intact", "full_endplate", "stock", "conforming", "optimised"]
    runs = [Arms(tmp_path / r, arms, log) for r in ("first", "second")]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda run: [run.next() for _ in arms], runs))
    assert sorted(log) == sorted(arms)
    for run, results in zip(("first", "second"), found, strict=True):
        assert sorted(a for a, _, _ in results) == sorted(arms)
        assert all((tmp_path / run / "fem" / a / "solution.vtu").read_text() == a for a in arms)


def test_a_failed_arm_is_not_kept(root, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "check_in_process", lambda arm, where: failed_check("no mesh"))
    Arms(tmp_path, ["stock"], []).next()
    assert not list(root.glob("*/"))


def test_a_finished_search_is_taken_over(root, tmp_path, monkeypatch):
    """Another seed of the same study finds the rivals' positions on record and solves none."""
    rows = (
        '{"arm": "stock", "pose": [0, 0, 0, 0], "loss": 1.0, "measures": {}}\n{"arm": "stock",'
        ' "finished": true}\n'
    )
    rows += rows.replace("stock", "conforming")
    study = SimpleNamespace(
        segment=np.zeros(2), config=SimpleNamespace(model_dump=lambda **_: {"goals": []})
    )
    store = solved.Store(1.0)
    store.give_search(solved.key("positions", np.zeros(2), {"goals": []}), rows)
    monkeypatch.setattr(studies, "prepare", lambda *_: pytest.fail("a position was solved"))
    tmp_path.joinpath("run").mkdir()
    best = design.positions(study, tmp_path / "run", None, False, store)
    assert (
        best["stock"].tolist() == [0, 0, 0, 0]
        and (tmp_path / "run" / "search.jsonl").read_text() == rows
    )
