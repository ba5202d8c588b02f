"""What scripts/benchmark.py measures. Results go to JSON beside a table on the screen; a
solver's run is a process of its own."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from scripts.benchmarks import answer, problems, run_peer
from scripts.console.places import ROOT

log = logging.getLogger("spinefit")


class BenchmarkConfig(BaseModel):
    """conf/benchmark.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    problem: Literal["anatomy", "box", "gyroid"] = "anatomy"
    unknowns: list[float] = Field([1e5], min_length=1)
    solvers: list[str] = Field(["engine"], min_length=1)
    element: Literal["engine", "full"] = "engine"
    tolerance: float = Field(1e-6, gt=0, lt=1)
    device: Literal["cpu", "gpu"] = "cpu"
    time_limit_s: float = Field(600, gt=0)
    memory_limit_gb: float = Field(20, gt=0)
    bundle: str | None = None
    spacing_mm: list[float] = Field([1.0], min_length=1)
    out: str = "runs/benchmark"

    @field_validator("solvers")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        if wrong := [n for n in names if n not in run_peer.SOLVERS]:
            raise ValueError(
                f"solvers: {', '.join(wrong)} unknown; choose among {', '.join(run_peer.SOLVERS)}"
            )
        return names


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": answer.cores(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


# -- solvers ---------------------------------------------------------------------------------------
def solver(config: BenchmarkConfig) -> None:
    """Every solver on every size, one process each, in turn."""
    out = _folder(config)
    results: list[dict[str, Any]] = []
    given_up: set[str] = set()
    for wanted in config.unknowns:
        path = out / f"{config.problem}_{int(wanted)}.npz"
        np.savez(path, **problems.make_problem(config.problem, int(wanted)))
        for name in config.solvers:
            result = {
                "solver": name,
                "wanted": wanted,
                "status": "not tried: failed at a smaller size",
            }
            if name not in given_up:
                result = _one(name, path, out / "one.json", config) | {"wanted": wanted}
                if result["status"] != "ok":
                    given_up.add(name)
            results.append(result)
            log.info("%s", _line(result))
            _write(
                out / "solver.json",
                {"machine": machine(), "config": config.model_dump(), "results": results},
            )
        path.unlink()
    print(_table(results))
    _plot_solvers(results, out / "solver.png")
    print(f"{out / 'solver.json'}, {out / 'solver.png'}")


def size(config: BenchmarkConfig) -> None:
    """The engine alone: cost against size and its exponent."""
    solver(config.model_copy(update={"solvers": ["engine"]}))
    results = [
        r
        for r in json.loads((_folder(config) / "solver.json").read_text())["results"]
        if r["status"] == "ok"
    ]
    if len(results) > 1:
        n, t = (np.log([r[key] for r in results]) for key in ("unknowns", "total_s"))
        print(f"time ~ unknowns^{np.polyfit(n, t, 1)[0]:.2f}")


def _one(name: str, problem: Path, out: Path, config: BenchmarkConfig) -> dict[str, Any]:
    """A solver in a process of its own, stopped at the limits of time and memory."""
    out.unlink(missing_ok=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cuda" if config.device == "gpu" and name == "engine" else "cpu"
    }
    command = [
        sys.executable,
        "-m",
        "scripts.peers",
        name,
        str(problem.resolve()),
        str(config.tolerance),
        str(out.resolve()),
        config.element,
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    started, why = time.monotonic(), ""
    while process.poll() is None and not why:
        time.sleep(0.2)
        if time.monotonic() - started > config.time_limit_s:
            why = f"stopped after {config.time_limit_s:.0f} s"
        elif _session_gb(process.pid) > config.memory_limit_gb:
            why = f"stopped above {config.memory_limit_gb:g} GB"
    if why:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return {"solver": name, "status": why}
    error = process.communicate()[1]
    if not out.is_file():
        last = (error or "").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return {"solver": name, "status": f"failed: {last[0][:200]}"}
    return json.loads(out.read_text())


def _session_gb(leader: int) -> float:
    """Resident memory of a session's processes."""
    pages = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(entry)) == leader:
                pages += int(Path(f"/proc/{entry}/statm").read_text().split()[1])
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


_COLUMNS = (
    "solver",
    "unknowns",
    "iterations",
    "setup_s",
    "solve_s",
    "total_s",
    "peak_mb",
    "times ours",
    "status",
)


def _cells(result: dict[str, Any], ours: float | None = None) -> list[str]:
    total = result.get("total_s")
    shown = {**result, "times ours": total / ours if total and ours else None}
    texts = []
    for key in _COLUMNS:
        value = shown.get(key)
        texts.append(
            "–"
            if value is None
            else (
                f"{value:.3g}"
                if isinstance(value, float) and key != "peak_mb"
                else f"{value:.0f}"
                if key == "peak_mb"
                else str(value)
            )
        )
    return texts


def _line(result: dict[str, Any]) -> str:
    return "  ".join(f"{k} {v}" for k, v in zip(_COLUMNS, _cells(result), strict=True) if v != "–")


def _table(results: list[dict[str, Any]]) -> str:
    ours = {
        r["wanted"]: r["total_s"]
        for r in results
        if r["solver"] == "engine" and r["status"] == "ok"
    }
    rows = [
        list(_COLUMNS),
        ["---"] * len(_COLUMNS),
        *(_cells(r, ours.get(r["wanted"])) for r in results),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _plot_solvers(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in dict.fromkeys(r["solver"] for r in results):
        mine = [r for r in results if r["solver"] == name and r["status"] == "ok"]
        for axis, key, label in zip(
            axes, ("total_s", "peak_mb"), ("time to solution, s", "peak memory, MB"), strict=True
        ):
            axis.loglog(
                [r["unknowns"] for r in mine],
                [r[key] for r in mine],
                "o-",
                label=name,
                lw=2.5 if name == "engine" else 1.2,
            )
            axis.set(xlabel="unknowns", ylabel=label)
            axis.grid(True, which="both", alpha=0.25)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


# -- design iterations -----------------------------------------------------------------------------
def _study(config: BenchmarkConfig) -> Any:
    """The study of conf/config.yaml on the bundle. Runs inside a Hydra application."""
    from hydra import compose

    from scripts.run import arms, configure, opened

    opened.set_up_jax()
    patient = "null" if config.bundle is None else config.bundle
    run = configure.run_config(compose("config", [f"patient.bundle={patient}"]))[0]
    return arms.make(opened.open_segment(run.patient), run.study)


def iteration(config: BenchmarkConfig) -> None:
    """One design iteration: what its parts cost, and what warm starts, loose tolerances and the
    basis of the loads save."""
    from scripts.run import arms, search

    made = _study(config)
    for spacing in config.spacing_mm:
        started = time.perf_counter()
        prepared = arms.prepare(made, spacing)
        problem = arms.problem(made, prepared, arms.families(made)["optimised"])
        prepared_s = time.perf_counter() - started
        start = search.start(made, arms.default_pose(made))
        seconds, counts = _measure_iteration(problem, start)
        box = 3 * int(np.prod([n + 1 for n in problem.numerics.grid.shape]))
        print(
            f"{spacing:g} mm: {box} unknowns in the box, {counts['basis']} basis loads for"
            f" {counts['cases']} load cases"
        )
        for name, value in {
            "prepare the patient, with the intact reference": prepared_s,
            **seconds,
        }.items():
            print(f"  {name:62s} {value:8.2f}")
        print(f"  iterations: {counts}; peak memory {answer.peak_mb():.0f} MB")
        record = {
            "machine": machine(),
            "bundle": config.bundle,
            "spacing_mm": spacing,
            "unknowns": box,
            "peak_mb": answer.peak_mb(),
        }
        _write(
            _folder(config) / f"iteration_{spacing:g}.json",
            record | {"seconds": seconds, "counts": counts},
        )


def _measure_iteration(
    problem: Any, start: dict[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of one iteration and its parts; every timed call has been compiled by one before it.

    Iterations and preconditioners are medians over three designs, not over one design three times:
    the compiled solver would find its hierarchy again. The solve of all loads is the median of
    three; the lagged iteration and the loads one by one run once.
    """
    import jax
    import jax.numpy as jnp

    from engine import forward, mixture, multigrid

    scene, h, settings = problem.scene, problem.numerics.grid.spacing_mm, problem.numerics.solver
    zero, cold = jnp.zeros(sum(g.kind != "minimise" for g in problem.goals)), forward.cold(scene)

    def moved(step: float) -> dict[str, Any]:
        return {k: jnp.clip(jnp.asarray(v) + step, 0.0, 1.0) for k, v in start.items()}

    def timed(*calls: Callable[[], Any]) -> tuple[float, Any]:
        """Median seconds of the calls, and what the last one returned."""
        seconds = []
        for call in calls:
            began = time.perf_counter()
            value = jax.block_until_ready(call())
            seconds.append(time.perf_counter() - began)
        return float(np.median(seconds)), value

    def design(p: Any, warm: Any, *steps: float, preconditioner: Any = None) -> tuple[float, Any]:
        def iteration(at: dict[str, Any]) -> Any:
            return p.gradient(
                at, zero, 1.0, p.hierarchy(at) if preconditioner is None else preconditioner, warm
            )

        return timed(*(partial(iteration, moved(step)) for step in steps))

    def solves(loads: Any, repeats: int = 1) -> tuple[float, Any]:
        none = jnp.zeros_like(loads)
        return timed(
            *[
                lambda: multigrid.solve(
                    h, settings, system, loads, preconditioner, none, none, jnp.zeros(3)
                )
            ]
            * repeats
        )

    first_s, _ = design(problem, cold, 0.0)
    full_s, (evaluation, _, _, warm) = design(problem, cold, 0.0102, 0.0101, 0.01)
    build_s, lagged = timed(
        *(partial(problem.hierarchy, moved(step)) for step in (0.0002, 0.0001, 0.0))
    )
    device = forward.fields_of(problem.family, problem.physical(moved(0.01)), scene.anatomy)
    system = forward.linear_system(
        scene, problem.numerics, device, mixture.alloy(problem.family.material)
    )
    preconditioner = multigrid.build(system, problem.numerics.grid)
    solves(scene.forces)
    solve_s, _ = solves(scene.forces, repeats=3)
    every = jnp.einsum("lr,rcxyz->lcxyz", scene.combination, scene.forces)
    solves(every[:1])
    single_s = sum(solves(every[i : i + 1])[0] for i in range(len(every)))
    warm_s, (warmed, _, _, last) = design(problem, warm, 0.0128, 0.0129, 0.013)
    reused_s, _ = design(problem, warm, 0.013, preconditioner=lagged)
    loose = replace(
        problem, numerics=replace(problem.numerics, solver=replace(settings, tolerance=1e-4))
    )
    design(loose, warm, 0.012)
    loose_s, (loosened, _, _, _) = design(loose, warm, 0.0128, 0.0129, 0.013)
    seconds = {
        "first iteration of the process (compiles, or reads its cache)": first_s,
        "design iteration, cold": full_s,
        "  of it the preconditioner": build_s,
        "  of it the forward solve of all loads": solve_s,
        "  ratio of the iteration to its forward solve": full_s / solve_s,
        "design iteration, warm start": warm_s,
        "design iteration, warm, preconditioner of the last design": reused_s,
        "design iteration, warm, tolerance 1e-4": loose_s,
        "forward solves of the load cases one by one, no basis": single_s,
    }
    counts = {
        "basis": len(scene.forces),
        "cases": len(problem.numerics.loadcases),
        "cold": int(evaluation.info.iterations),
        "warm": int(warmed.info.iterations),
        "warm adjoint": int(last.probe[0]),
        "loose": int(loosened.info.iterations),
    }
    return seconds, counts


#: Stiffest over weakest material of `iterations`' synthetic problems, whose void is filled with the
#: weakest.
CONTRASTS = (1e2, 1e4, 1e6, 1e9)


def iterations(config: BenchmarkConfig) -> None:
    """Iterations to the tolerance: gyroid and anatomy, void filled, over contrasts and sizes;
    the patient over designs and grids."""
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(
            "  ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            ),
            flush=True,
        )
        _write(
            _folder(config) / "iterations.json",
            {"machine": machine(), "config": config.model_dump(), "results": rows},
        )

    for name in ("anatomy", "gyroid"):
        for wanted in config.unknowns:
            problem = problems.make_problem(name, int(wanted))
            solid = problem["modulus"]
            for contrast in CONTRASTS:
                floor = np.float32(solid.max() / contrast).astype(float)
                done = run_peer.run(
                    "engine", problem | {"modulus": np.maximum(solid, floor)}, config.tolerance
                )
                add(
                    {"problem": name, "contrast": contrast}
                    | {k: done[k] for k in ("unknowns", "iterations", "total_s", "status")}
                )
    made = _study(config)
    for spacing in config.spacing_mm:
        for design, system, grid, settings, forces in _designs(made, spacing, config.tolerance):
            add(
                {"spacing_mm": spacing, "design": design} | _counted(system, grid, settings, forces)
            )
    print(
        f"most: {max(r['iterations'] or 0 for r in rows)}; not solved:"
        f" {sum(r['status'] != 'ok' for r in rows)}"
    )


def _counted(system: Any, grid: Any, settings: Any, forces: Any) -> dict[str, Any]:
    """The basis loads solved together; seconds with compilation, where there is any."""
    import jax.numpy as jnp

    from engine import multigrid

    started, stored = (
        time.perf_counter(),
        3 * int(np.asarray(multigrid.touched(system.medium)).sum()),
    )
    try:
        preconditioner, zero = multigrid.build(system, grid), jnp.zeros_like(forces)
    except ValueError as error:
        return {
            "unknowns": stored,
            "iterations": None,
            "total_s": None,
            "status": f"failed: {error}",
        }
    _, info = multigrid.solve(
        grid.spacing_mm, settings, system, forces, preconditioner, zero, zero, jnp.zeros(3)
    )
    worst = info.worst()
    return {
        "unknowns": stored,
        "iterations": int(info.iterations),
        "total_s": time.perf_counter() - started,
        "status": "ok" if worst <= 1.05 * settings.tolerance else f"residual {worst:.1e}",
    }


def _designs(made: Any, spacing_mm: float, tolerance: float) -> Any:
    """Designs that are hard in different ways, as linear systems: (name, system, grid, settings,
    basis loads)."""
    import jax.numpy as jnp

    from engine import forward, mixture
    from engine.scene import make_grid, prepare
    from scripts.run import arms

    grid = make_grid(made.segment, spacing_mm)
    settings = replace(made.config.solver.settings(), tolerance=tolerance)
    rodded, numerics = prepare(
        made.segment, made.boundary, grid, settings, made.config.solver.bone_law
    )
    families, cage = arms.families(made), made.cage
    values = {k: np.asarray(g.initial, float) for k, g in cage.groups().items()}
    low, high = (
        {k: getattr(g, end) for k, g in cage.groups().items()} for end in ("lower", "upper")
    )
    thick, thin = (np.r_[w["wall"][:1], values["wall"][1:]] for w in (high, low))
    graded = np.linspace(low["density"].min(), 1.0, low["density"].size).reshape(
        low["density"].shape
    )
    designs = {
        "solid": {"wall": thick, "density": high["density"]},
        "thin ring": {"wall": thin, "density": high["density"]},
        "graded": {"density": graded},
        "near-void": {"density": low["density"]},
    }
    every = {"intact": (families["intact"], {})} | {
        k: (cage, values | v) for k, v in designs.items()
    }
    for arm in ("stock_central", "conforming_central"):
        if (found := arms.parameters_at(made, families[arm], arms.default_pose(made))) is not None:
            every[arm] = (families[arm], found)
    for name, (family, parameters) in every.items():
        scene = rodded if family.rods else replace(rodded, links=None)
        fields = forward.fields_of(
            family, {k: jnp.asarray(v) for k, v in parameters.items()}, scene.anatomy
        )
        system = forward.linear_system(scene, numerics, fields, mixture.alloy(family.material))
        yield name, system, grid, settings, scene.forces


def refinement(config: BenchmarkConfig) -> None:
    """Measures of fixed designs on ever finer grids."""
    from scripts.run import arms

    made = _study(config)
    families = arms.families(made)
    rows: list[dict[str, Any]] = []
    for spacing in config.spacing_mm:
        prepared = arms.prepare(made, spacing)
        for arm in ("stock_central", "conforming_central", "full_endplate"):
            family = families[arm]
            values = (
                arms.parameters_at(made, family, arms.default_pose(made)) if family.groups() else {}
            )
            if values is None:
                continue
            started = time.perf_counter()
            evaluation, status = arms.evaluate(made, prepared, family, values)
            measures = dict(
                zip(
                    (g.objective.name for g in made.goals),
                    map(float, evaluation.measures),
                    strict=True,
                )
            )
            work = float(np.mean(np.asarray(evaluation.response.compliance)))
            rows.append(
                {
                    "arm": arm,
                    "spacing_mm": spacing,
                    **measures,
                    "compliance": work,
                    "status": arms.worst(status).code,
                    "iterations": int(evaluation.info.iterations),
                    "seconds": time.perf_counter() - started,
                }
            )
            print(
                "  ".join(
                    f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                    for k, v in rows[-1].items()
                ),
                flush=True,
            )
            _write(
                _folder(config) / "refinement.json",
                {"machine": machine(), "bundle": config.bundle, "results": rows},
            )


KINDS: dict[str, Callable[[BenchmarkConfig], None]] = {
    "solver": solver,
    "size": size,
    "iterations": iterations,
    "iteration": iteration,
    "refinement": refinement,
}


def _folder(config: BenchmarkConfig) -> Path:
    path = ROOT / config.out
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
