"""The check stage of a run folder: every arm in SfePy, the agreement of both solvers,
result.json and the report."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from engine import artifacts
from fem.mesh.mmg import die_with_parent
from fem.verify import Check, Reference, check, failed_check, intact_energy_at
from scripts.console.overrides import resume_line
from scripts.run import solved
from scripts.run.config import ARMS, FLOORS, FemConfig
from scripts.run.folder import Clock
from scripts.run.measures import energy_nmm
from scripts.run.opened import Opened, missing_designs, open_designed
from scripts.run.parts import load_design
from scripts.run.record import Record
from scripts.run.result import write_result

log = logging.getLogger("spinefit")
THREADS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that start inside compute with one thread."""
    before = {k: os.environ.get(k) for k in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for k, v in before.items():
            os.environ.pop(k, None) if v is None else os.environ.update({k: v})


def check_run(folder: Path, fem: FemConfig | None = None) -> Path:
    """Verify every arm of a designed run, by the run's own settings or by `fem`; returns the
    report's path. An earlier report of the folder is replaced; arms that an interrupted check had
    finished with the same settings are taken over.

    A failed arm keeps its status and has no number; the others go on. Raises ValueError when the
    folder holds no designs.
    """
    opened = open_designed(folder, fem)
    wanted = sorted(opened.config.fem.arms, key=(*FLOORS, *ARMS).index)
    engine = _engine_results(folder, wanted)
    records = {arm: Record(opened, folder, arm, engine["arms"][arm]) for arm in wanted}
    reference = _reference_of(records)
    todo = [arm for arm in wanted if not records[arm].whole]
    clock = Clock(folder)
    if done := [arm for arm in wanted if arm not in todo]:
        log.info("SfePy: already there with these settings: %s", ", ".join(done))
    else:
        clock.forget("SfePy, all arms")
    clock.forget("report")
    with clock("SfePy, all arms"):
        _solve(Arms(opened, folder, todo), _Measuring(records, reference, "intact" in todo))
    with clock("report"):
        of_arms = {arm: record.arm() for arm, record in records.items()}
        report = write_result(opened.study, opened.config, folder, of_arms)
    if "intact" in wanted:
        records["intact"].reference_path.unlink(missing_ok=True)
    return report


def _engine_results(folder: Path, arms: Sequence[str]) -> dict[str, Any]:
    """engine.json. Raises ValueError where it or the design of an arm is missing."""
    missing = missing_designs(folder, arms)
    if missing or not (folder / "engine.json").exists():
        raise ValueError(
            f"{folder} holds no finished designs ({', '.join(missing) or 'engine.json'} missing); "
            f"finish them first: {resume_line(folder)}"
        )
    return artifacts.read_json(folder / "engine.json")


def _reference_of(records: Mapping[str, Record]) -> Reference | None:
    """The intact segment's energy as an interrupted check has left it. Where it has not, and an
    arm is still to be measured against it, the intact segment is to be solved again."""
    if "intact" not in records:
        return None
    reference = records["intact"].reference()
    if reference is None and not all(record.whole for record in records.values()):
        records["intact"].forget()
    return reference


def _solve(arms: Arms, measuring: _Measuring) -> None:
    """Solve the arms that are left, so many at a time as the run says, and measure each.

    One process an arm: MMG and SfePy's assembly use one core each, and a crash takes one arm only.
    """
    config = arms.opened.config.fem
    with one_thread_each(), ThreadPoolExecutor(config.processes) as pool:
        try:
            for arm, friction, solution in _solutions(arms, pool, config.contact):
                measuring.take(arm, friction, solution)
        except BaseException:  # Ctrl-C above all: nothing goes on behind the user's back
            arms.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()
            raise


def _solutions(
    arms: Arms, pool: ThreadPoolExecutor, frictions: Sequence[float]
) -> Iterator[tuple[str, float | None, Check]]:
    """Every solution as it comes: the bonded arms, and behind each of them its contact solves (on
    the mesh that is there then)."""
    waiting: set[Future[tuple[str, float | None, Check]]]
    waiting = {pool.submit(arms.next) for _ in range(len(arms.left))}
    while waiting:
        finished = wait(waiting, return_when=FIRST_COMPLETED).done
        waiting -= finished
        while finished:
            arm, friction, solution = finished.pop().result()
            name = arm if friction is None else f"{arm}, contact with friction {friction:g}"
            log.info("SfePy %s: %s %s", name, solution.status.code, solution.status.text)
            if friction is None and arm != "intact" and solution.response is not None:
                waiting |= {pool.submit(arms.with_contact, arm, mu) for mu in frictions}
            yield arm, friction, solution
            del solution  # hundreds of megabytes


class _Measuring:
    """Measures every solution, and lets go of it (a response is hundreds of megabytes); while the
    intact segment is still to come, the solutions wait for its energy."""

    def __init__(
        self, records: Mapping[str, Record], reference: Reference | None, intact_comes: bool
    ) -> None:
        self.records, self.reference, self.intact_comes = records, reference, intact_comes
        self.waiting: dict[tuple[str, float | None], Check] = {}

    def take(self, arm: str, friction: float | None, solution: Check) -> None:
        self.waiting[arm, friction] = solution
        if arm == "intact":
            self.intact_comes = False
            if solution.response is not None:
                self.reference = Reference.of(solution.response)
                self.records[arm].keep_reference(self.reference)
        if not self.intact_comes:
            for key in list(self.waiting):
                name, mu = key
                solution = with_reference(self.waiting.pop(key), name, self.reference)
                self.records[name].add(solution, mu)


class Arms:
    """The arms that are left, for the threads that solve them: next() takes the first that no
    other run is just solving."""

    def __init__(self, opened: Opened, folder: Path, todo: Sequence[str]) -> None:
        self.opened, self.folder, self.left = opened, folder, list(todo)
        self.store = solved.Store(opened.config.reuse_gb)
        self.guard, self.stop = threading.Lock(), threading.Event()
        self.jobs = {arm: self._job(arm, None) for arm in todo}
        self.keys = {arm: solved.key("arm", *job) for arm, job in self.jobs.items()}

    def _job(self, arm: str, friction: float | None) -> tuple[Any, ...]:
        o = self.opened
        design, surface = load_design(self.folder / "designs" / arm)
        design = replace(design, measures={})  # the optimiser's own words, nothing that is solved
        return (
            o.segment,
            design,
            surface,
            o.study.boundary_of(o.families[arm]),
            o.crop_mm,
            o.mesh,
            replace(o.fem, contact=friction),
        )

    def next(self) -> tuple[str, float | None, Check]:
        while not self.stop.is_set():
            for arm in tuple(self.left):
                with ExitStack() as held:
                    with self.guard:
                        if arm not in self.left or not held.enter_context(
                            self.store.claim(self.keys[arm])
                        ):
                            continue
                        self.left.remove(arm)
                    return arm, None, self._solved(arm)
            self.stop.wait(0.5)
        raise CancelledError

    def _solved(self, arm: str) -> Check:
        where = self.folder / "fem" / arm
        found: Check | None = self.store.take(self.keys[arm], where)
        if found is not None:
            log.info("SfePy %s: taken over from another run of the same content", arm)
            return found
        found = check_in_process(*self.jobs[arm], where)
        if found.response is not None:
            self.store.give(self.keys[arm], found, where)
        return found

    def with_contact(self, arm: str, friction: float) -> tuple[str, float | None, Check]:
        return arm, friction, check_in_process(*self._job(arm, friction), self.folder / "fem" / arm)


def check_in_process(*job: Any) -> Check:
    """`check` in a process of its own: its memory is given back after the arm, and a crash takes
    no other arm along."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=die_with_parent) as one:
            return one.submit(check, *job).result()
    except BrokenProcessPool as error:
        return replace(
            failed_check(
                f"the process of this arm died ({error}); usually too little memory: coarsen"
                " fem.mesh"
            ),
            died=True,
        )
    except Exception as error:  # whatever it is, it is this arm's alone
        log.exception("an arm failed")
        return failed_check(f"{type(error).__name__}: {error}")


def with_reference(found: Check, arm: str, reference: Reference | None) -> Check:
    """With the intact segment's strain energy at its samples, where there is an intact segment."""
    response = found.response
    if response is None or reference is None:
        return found
    energy = (
        energy_nmm(response)
        if arm == "intact"
        else intact_energy_at(reference, np.asarray(response.position))
    )
    return replace(found, response=replace(response, reference_sed=energy))
