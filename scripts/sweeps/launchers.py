"""Where the jobs of a sweep run: in processes of this machine (joblib), under SLURM (submitit), on
a Ray cluster.

A job is one command line, `python scripts/optimize.py … out=<its folder> resume=true`, in a process
of its own: its memory is given back, a crash takes nobody along, and it can be cut off anywhere
(scripts/run/job.py). A launcher only says where and how many at a time. The run folders must lie on
a file system that every machine sees.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.console.places import SCRIPTS
from scripts.run.config import LauncherConfig

log = logging.getLogger("spinefit")
PROGRAM = str(SCRIPTS / "optimize.py")
END_WITH_PARENT = "SPINEFIT_END_WITH_PARENT"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Command:
    """One job: its name, its run folder, and the overrides of scripts/optimize.py."""

    name: str
    folder: Path
    overrides: tuple[str, ...]


def share(config: LauncherConfig, count: int) -> tuple[int, int]:
    """Jobs at a time and threads of each on this machine: never more threads than cores, never more
    memory than is free.

    Raises ValueError when not even one job has the memory that it is said to need.
    """
    cores, free_gb = len(os.sched_getaffinity(0)), available_gb()
    if config.memory_gb_per_job > free_gb:
        raise ValueError(
            f"launcher.memory_gb_per_job={config.memory_gb_per_job:g}: {free_gb:.1f} GB are free"
            " here; lower it, or free some"
        )
    fitting = int(free_gb // config.memory_gb_per_job)
    jobs = config.jobs or max(1, min(cores // (config.threads_per_job or 1), fitting, count))
    if jobs > fitting:
        log.warning(
            "launcher.jobs=%d of %g GB, but %.1f GB are free: %d at a time",
            jobs,
            config.memory_gb_per_job,
            free_gb,
            fitting,
        )
        jobs = fitting
    threads = config.threads_per_job or max(1, cores // jobs)
    if jobs * threads > cores:
        log.warning("%d jobs of %d threads on %d cores", jobs, threads, cores)
    return jobs, threads


def available_gb() -> float:
    """Memory that a new process may take: what the system has free, or what is left of the
    control group's limit."""
    rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(rows["MemAvailable"].split()[0]) / 1024**2
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, (int(text) - int(used.read_text())) / 1024**3)
    return free


# -- one job, where it runs ------------------------------------------------------------------------
class Job:
    """A job's process. Called it runs to its end and returns the exit code; `stop` tells it to
    save and end. Can be pickled before that."""

    def __init__(self, command: Command, threads: int, grace_s: float) -> None:
        self.command, self.threads, self.grace_s = command, threads, grace_s
        self.program = PROGRAM
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"process": None}

    def __call__(self) -> int:
        command = self.command
        command.folder.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, self.program, *command.overrides]
        if not any(o.lstrip("+").startswith("fem.processes=") for o in command.overrides):
            line.append(f"fem.processes={min(self.threads, 16)}")
        environment = (
            os.environ
            | dict.fromkeys(_THREADS, str(self.threads))
            | {END_WITH_PARENT: str(os.getpid())}
        )
        with open(command.folder / "job.log", "ab") as log_file:
            self.process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            if self.stopped:  # while it was being started
                self.process.terminate()
            try:
                while (
                    self.process.poll() is None
                ):  # not wait(): `stop` may come from a signal's handler while it waits
                    time.sleep(0.1)
            except KeyboardInterrupt:  # submitit's way to cancel
                self.stop()
            return self.process.returncode

    def stop(self) -> None:
        """Tell it to save and end; kill it when it has not after grace_s."""
        self.stopped = True
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        deadline = time.monotonic() + self.grace_s
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.process.poll() is None:
            log.warning("%s did not end within %g s and is killed", self.command.name, self.grace_s)
            os.killpg(self.process.pid, signal.SIGKILL)


def end_with_parent() -> None:
    """Called by a job: when the sweep that started it ends, however it ends, the job is told to
    save and end, as by a scheduler.

    (Not between fork and exec in the sweep: it has threads.)"""
    parent = os.environ.get(END_WITH_PARENT)
    if parent is not None:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            raise KeyboardInterrupt("the sweep has ended")


def is_transient(code: int) -> bool:
    """The failure may pass: said so by the job, or its process was killed."""
    return code == 75 or code < 0 or code in (128 + signal.SIGKILL, 128 + signal.SIGBUS)


# -- launchers -------------------------------------------------------------------------------------
def launch(
    config: LauncherConfig, commands: Sequence[Command], stop: threading.Event
) -> Iterator[tuple[Command, int]]:
    """Run the commands; each with its last exit code, as they end. `stop` set: running jobs save
    and end, no other begins.

    Raises ValueError when the launcher's library is missing or its cluster cannot be had.
    """
    return {"joblib": _joblib, "submitit": _submitit, "ray": _ray}[config.kind](
        config, commands, stop
    )


def _joblib(
    config: LauncherConfig, commands: Sequence[Command], stop: threading.Event
) -> Iterator[tuple[Command, int]]:
    from joblib import Parallel, delayed

    jobs, threads = share(config, len(commands))
    log.info(
        "%d jobs, %d at a time with %d thread%s each",
        len(commands),
        jobs,
        threads,
        "s" if threads > 1 else "",
    )
    running: set[Job] = set()

    def one(command: Command) -> tuple[Command, int]:
        code = 130
        for attempt in range(config.retries + 1):
            if stop.is_set():
                break
            task = Job(command, threads, config.grace_s)
            running.add(task)
            code = task()
            running.discard(task)
            if stop.is_set() or not is_transient(code):
                break
            if attempt < config.retries:
                log.warning("%s: ended with code %d; started again", command.name, code)
        return command, code

    def watch() -> None:
        stop.wait()
        parting = [threading.Thread(target=task.stop) for task in list(running)]
        for thread in parting:
            thread.start()

    threading.Thread(target=watch, daemon=True).start()
    yield from Parallel(
        n_jobs=jobs,
        backend="threading",
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=jobs,
    )(delayed(one)(c) for c in commands)


class Requeued(Job):
    """Under submitit: at the time limit or before a preemption the job saves, and submitit
    queues it again (its signal is USR2)."""

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(type(self)(self.command, self.threads, self.grace_s))


def _submitit(
    config: LauncherConfig, commands: Sequence[Command], stop: threading.Event
) -> Iterator[tuple[Command, int]]:
    try:
        import submitit
    except ImportError as error:
        raise ValueError(
            "launcher=submitit needs submitit: pip install 'spinefit[slurm]'"
        ) from error
    local = config.cluster == "local"  # it would start them all at once
    jobs, threads = (
        share(config, len(commands)) if local else (len(commands), config.threads_per_job or 4)
    )
    executor = submitit.AutoExecutor(
        folder=commands[0].folder.parent / ".submitit" / "%j",
        cluster=config.cluster,
        slurm_max_num_timeout=max(config.retries, 1),
    )
    executor.update_parameters(
        timeout_min=max(int(60 * config.time_h), 1),
        cpus_per_task=threads,
        mem_gb=config.memory_gb_per_job,
        name="spinefit",
    )
    if not local:
        executor.update_parameters(
            **({"slurm_array_parallelism": config.jobs} if config.jobs else {}), **config.slurm
        )
    log.info(
        "%d jobs by submitit (%s), %d threads and %g GB each",
        len(commands),
        config.cluster,
        threads,
        config.memory_gb_per_job,
    )
    left, waiting, told = list(commands), list[tuple[Command, Any]](), False
    while left or waiting:
        if stop.is_set() and not told:
            left.clear()
            for _, handle in waiting:
                handle.cancel()
            told = True
        elif left and len(waiting) < jobs:
            batch, left = left[: jobs - len(waiting)], left[jobs - len(waiting) :]
            with executor.batch():
                handles = [executor.submit(Requeued(c, threads, config.grace_s)) for c in batch]
            waiting += zip(batch, handles, strict=True)
        for pair in list(waiting):
            command, handle = pair
            if handle.done():
                waiting.remove(pair)
                yield command, _result(handle, stop)
        time.sleep(0.5)


def _result(handle: Any, stop: threading.Event) -> int:
    """The exit code of a submitit job, or why there is none."""
    try:
        return int(handle.result())
    except Exception as error:  # whatever the job or the scheduler died of
        if not stop.is_set():
            log.error("%s", " ".join(str(error).split())[:300])
        return 130 if stop.is_set() else 75


def _ray(
    config: LauncherConfig, commands: Sequence[Command], stop: threading.Event
) -> Iterator[tuple[Command, int]]:
    try:
        import ray
    except ImportError as error:
        raise ValueError("launcher=ray needs Ray: pip install 'spinefit[ray]'") from error
    begun = not ray.is_initialized()
    threads = _begin_ray(config, len(commands)) if begun else config.threads_per_job or 4
    here = os.getcwd()

    # a worker that dies with its machine is started again elsewhere; a job that ends with a code of
    # its own is not Ray's business
    @ray.remote(
        num_cpus=threads,
        memory=int(config.memory_gb_per_job * 1024**3),
        max_retries=config.retries,
        max_calls=1,
    )
    def there(task: Job) -> int:
        os.chdir(here)
        code = 75
        for _ in range(config.retries + 1):
            if not is_transient(code := task()):
                break
        return code

    nodes = [n for n in ray.nodes() if n["Alive"]]
    log.info(
        "%d jobs on a Ray cluster of %d node%s, %g cores",
        len(commands),
        len(nodes),
        "s" if len(nodes) > 1 else "",
        ray.cluster_resources().get("CPU", 0),
    )
    waiting = {there.remote(Job(c, threads, config.grace_s)): c for c in commands}
    try:
        while waiting:
            if stop.is_set():
                for handle in waiting:
                    ray.cancel(handle, force=True)  # the worker's end tells its job to save
            for handle in ray.wait(list(waiting), num_returns=1, timeout=0.5)[0]:
                command = waiting.pop(handle)
                yield command, _ray_code(command, handle, stop)
    finally:
        if begun:
            ray.shutdown()


def _begin_ray(config: LauncherConfig, count: int) -> int:
    """Joins the cluster, or makes one of this machine; returns the threads of each job."""
    import ray

    jobs, threads = (
        share(config, count) if config.address is None else (0, config.threads_per_job or 4)
    )
    ray.init(
        address=config.address,
        num_cpus=jobs * threads if config.address is None else None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return threads


def _ray_code(command: Command, handle: Any, stop: threading.Event) -> int:
    """The exit code of a Ray task's job, or why there is none."""
    import ray

    try:
        return int(ray.get(handle))
    except Exception as error:  # whatever the task or its machine died of
        if not stop.is_set():
            log.error("%s: %s", command.name, " ".join(str(error).split())[:300])
        return 130 if stop.is_set() else 75
