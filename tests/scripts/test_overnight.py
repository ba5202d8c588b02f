"""What happens at night, really done: jobs killed at any moment, a full disk, a Ray cluster. By
name, as it is slow:

make test TESTS="-m slow tests/scripts/test_overnight.py"
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engine import artifacts
from scripts.run import job, standing, stored
from scripts.run.config import LauncherConfig
from scripts.sweeps import launchers
from tests.scripts.test_sweep import ROOT, command, program  # noqa: F401

pytestmark = pytest.mark.slow
#: As small as a whole job gets: some two minutes.
TINY = (
    "objectives=subsidence",
    "seed=1",
    "solver.spacing_mm=3.5",
    "search=short",
    "search.spacing_mm=3.5",
    "search.x=1",
    "search.y=1",
    "search.yaw=1",
    "search.refine=1",
    "optimizer=short",
    "optimizer.iterations=3",
    "fem=demo",
    "fem.arms=[intact,optimised]",
    "check=true",
)


def start(folder: Path) -> subprocess.Popen[bytes]:
    line = [
        sys.executable,
        str(ROOT / "scripts" / "optimize.py"),
        *TINY,
        f"out={folder}",
        "resume=true",
    ]
    with open(folder.parent / "log", "ab") as log:
        return subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def outcome(folder: Path) -> dict:
    return artifacts.read_json(folder / stored.OUTCOME)


def numbers(folder: Path) -> str:
    """Everything of the result but times, memory and what depends on them."""

    def clean(value):
        if isinstance(value, dict):
            gone = ("timings_s", "memory_mb", "created", "versions", "notes", "mesh", "credibility")
            return {k: clean(v) for k, v in value.items() if k not in gone}
        return [clean(v) for v in value] if isinstance(value, list) else value

    return json.dumps(clean(artifacts.read_json(folder / "result.json")), sort_keys=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert start(folder).wait() == 0
    return folder


def reached(folder: Path, sign: str) -> bool:
    """A file is there, or the stage of that name runs."""
    times = standing.read_json(folder / "timings.json")
    return bool(list(folder.glob(sign))) or times.get("now", {}).get("stage", "").startswith(sign)


def test_killed_in_every_stage_it_ends_as_if_undisturbed(undisturbed, tmp_path):
    folder, random = tmp_path / "run", np.random.default_rng(0)
    for sign in (
        "position search",
        "state_00001.npz",
        "engine",
        "export",
        "SfePy",
        "fem/*/arm.json",
        "report",
    ):
        process = start(folder)
        deadline = time.monotonic() + 300
        while not reached(folder, sign) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(random.uniform(0.0, 1.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert standing.read(folder).status == "killed", sign
    assert start(folder).wait() == 0
    assert outcome(folder)["status"] == "done"
    assert numbers(folder) == numbers(undisturbed)
    whole, parts = (artifacts.read_jsonl(f / "history.jsonl") for f in (undisturbed, folder))
    assert [r["objective"] for r in whole] == [r["objective"] for r in parts]
    assert (folder / "designs/optimised/implant.stl").read_bytes() == (
        undisturbed / "designs/optimised/implant.stl"
    ).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system of its own needs root")
def test_on_a_full_disk_it_stops_and_with_room_it_goes_on(undisturbed, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=17m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no small file system here: {mounted.stderr}")
    try:
        process = start(place / "run")
        assert process.wait() == job.TRANSIENT, (place / "log").read_text()
        assert (
            "No space left"
            in (place / "log").read_text() + (place / "run" / stored.OUTCOME).read_text()
        )
        subprocess.run(["mount", "-o", "remount,size=300m", str(place)], check=True)
        assert start(place / "run").wait() == 0
        assert numbers(place / "run") == numbers(undisturbed)
    finally:
        for _ in range(20):  # the job's helpers end a moment after it
            if subprocess.run(["umount", str(place)], capture_output=True).returncode == 0:
                break
            time.sleep(1.0)
        else:
            pytest.fail(f"{place} is still in use: a job left a process behind")


def test_jobs_run_on_a_ray_cluster_of_several_nodes(program, tmp_path, monkeypatch):  # noqa: F811
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "memory": 2 * 1024**3}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, memory=2 * 1024**3)
        config = LauncherConfig(
            kind="ray",
            address=cluster.address,
            threads_per_job=1,
            memory_gb_per_job=0.5,
            retries=1,
            grace_s=20.0,
        )
        hows = {"a": "done", "b": "done", "c": "killed once", "d": "wrong", "e": "full"}
        commands = [command(tmp_path, n, h) for n, h in hows.items()]
        codes = {c.name: code for c, code in launchers.launch(config, commands, threading.Event())}
        assert codes == {"a": 0, "b": 0, "c": 0, "d": 2, "e": 75}
        assert (tmp_path / "c" / "tries").read_text() == "xx"
        assert json.loads((tmp_path / "a" / "env").read_text())["OMP_NUM_THREADS"] == "1"
        ray.init(address=cluster.address, ignore_reinit_error=True, log_to_driver=False)
        assert sum(n["Alive"] for n in ray.nodes()) == 3
    finally:
        ray.shutdown()
        cluster.shutdown()
