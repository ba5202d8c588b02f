"""The engine's design iterations: what they cost, how many iterations a solve takes, and what the
measures owe to the grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from scripts.benchmarks import answer, problems, record, run_peer
from scripts.benchmarks.record import BenchmarkConfig
from scripts.console import composing, overrides


def study_of(config: BenchmarkConfig) -> Any:
    """The study of conf/config.yaml on the bundle; null: on the embedded phantom."""
    from scripts.run import arms, configure, opened

    opened.set_up_jax()
    given = composing.compose("config", [overrides.quoted("patient.bundle", config.bundle)])
    run, _ = configure.run_config(given.settings)
    return arms.make(opened.open_segment(run.patient), run.study)


def measure_iteration(config: BenchmarkConfig) -> None:
    """One design iteration: what its parts cost, and what warm starts, loose tolerances and the
    basis of the loads save."""
    from scripts.run import arms, search

    study = study_of(config)
    for spacing in config.spacing_mm:
        started = time.perf_counter()
        prepared = arms.prepare(study, spacing)
        problem = arms.problem(study, prepared, arms.families(study)["optimised"])
        prepared_s = time.perf_counter() - started
        start = search.start(study, arms.default_pose(study))
        seconds, counts = _timed_iteration(problem, start)
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
        head = {
            "machine": record.machine(),
            "bundle": config.bundle,
            "spacing_mm": spacing,
            "unknowns": box,
            "peak_mb": answer.peak_mb(),
        }
        record.write(
            record.folder(config) / f"iteration_{spacing:g}.json",
            head | {"seconds": seconds, "counts": counts},
        )


def _timed_iteration(
    problem: Any, start: dict[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of one iteration and its parts; every timed call has been compiled by one before it.

    Iterations and preconditioners are medians over three designs, not over one design three times:
    the compiled solver would find its hierarchy again. The solve of all loads is the median of
    three; the lagged iteration and the loads one by one run once.
    """
    from engine import forward

    scene, numerics = problem.scene, problem.numerics
    near = _NearDesigns(problem, start)
    first_s, _ = near.iterations(forward.no_warm_start(scene), 0.0)
    full_s, (evaluation, _, _, warm) = near.iterations(
        forward.no_warm_start(scene), 0.0102, 0.0101, 0.01
    )
    build_s, lagged = near.hierarchies(0.0002, 0.0001, 0.0)
    solve_s, single_s = _timed_solves(problem, near.design(0.01))
    warm_s, (warmed, _, _, last) = near.iterations(warm, 0.0128, 0.0129, 0.013)
    reused_s, _ = near.iterations(warm, 0.013, preconditioner=lagged)
    tolerant = replace(numerics, solver=replace(numerics.solver, tolerance=1e-4))
    loose = replace(near, problem=replace(problem, numerics=tolerant))
    loose.iterations(warm, 0.012)
    loose_s, (loosened, _, _, _) = loose.iterations(warm, 0.0128, 0.0129, 0.013)
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
        "cases": len(numerics.loadcases),
        "cold": int(evaluation.info.iterations),
        "warm": int(warmed.info.iterations),
        "warm adjoint": int(last.probe[0]),
        "loose": int(loosened.info.iterations),
    }
    return seconds, counts


def _timed(*calls: Callable[[], Any]) -> tuple[float, Any]:
    """Median seconds of the calls, and what the last one returned."""
    import jax

    seconds = []
    for call in calls:
        began = time.perf_counter()
        value = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)), value


@dataclass(frozen=True)
class _NearDesigns:
    """Designs near a start, every parameter moved by a step, and what is timed of them."""

    problem: Any
    start: dict[str, np.ndarray]

    def design(self, step: float) -> dict[str, Any]:
        """The parameters, from 0 to 1."""
        import jax.numpy as jnp

        return {k: jnp.clip(jnp.asarray(v) + step, 0.0, 1.0) for k, v in self.start.items()}

    def iterations(self, warm: Any, *steps: float, preconditioner: Any = None) -> tuple[float, Any]:
        """Median seconds of the gradients from a warm start, and the last one; without a
        preconditioner each design's own is built within its time."""
        import jax.numpy as jnp

        problem = self.problem
        zero = jnp.zeros(sum(g.kind != "minimise" for g in problem.goals))

        def iteration(design: dict[str, Any]) -> Any:
            own = problem.hierarchy(design) if preconditioner is None else preconditioner
            return problem.gradient(design, zero, 1.0, own, warm)

        return _timed(*(partial(iteration, self.design(step)) for step in steps))

    def hierarchies(self, *steps: float) -> tuple[float, Any]:
        """Median seconds of building the preconditioners, and the last one."""
        return _timed(*(partial(self.problem.hierarchy, self.design(step)) for step in steps))


def _timed_solves(problem: Any, design: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the forward solve of all basis loads together (median of three), and of the load
    cases one by one."""
    import jax.numpy as jnp

    from engine import forward, mixture, multigrid

    scene, numerics, family = problem.scene, problem.numerics, problem.family
    device = forward.fields_of(family, problem.physical(design), scene.anatomy)
    system = forward.linear_system(scene, numerics, device, mixture.alloy(family.material))
    preconditioner = multigrid.build(system, numerics.grid)

    def solves(loads: Any, repeats: int = 1) -> float:
        none = jnp.zeros_like(loads)

        def solve() -> Any:
            return multigrid.solve(
                numerics.grid.spacing_mm,
                numerics.solver,
                system,
                loads,
                preconditioner,
                none,
                none,
                jnp.zeros(3),
            )

        return _timed(*[solve] * repeats)[0]

    solves(scene.forces)
    together_s = solves(scene.forces, repeats=3)
    every = jnp.einsum("lr,rcxyz->lcxyz", scene.combination, scene.forces)
    solves(every[:1])
    return together_s, sum(solves(every[i : i + 1]) for i in range(len(every)))


#: Stiffest over weakest material of `iterations`' synthetic problems, whose void is filled with the
#: weakest.
CONTRASTS = (1e2, 1e4, 1e6, 1e9)


def count_iterations(config: BenchmarkConfig) -> None:
    """Iterations to the tolerance: gyroid and anatomy, void filled, over contrasts and sizes;
    the patient over designs and grids."""
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(record.line(row, ".3g"), flush=True)
        record.write(
            record.folder(config) / "iterations.json",
            {"machine": record.machine(), "config": config.model_dump(), "results": rows},
        )

    for name in ("anatomy", "gyroid"):
        for wanted in config.unknowns:
            problem = problems.make_problem(name, int(wanted))
            solid = problem["modulus"]
            for contrast in CONTRASTS:
                floor = np.float32(solid.max() / contrast).astype(float)
                result = run_peer.run(
                    "engine", problem | {"modulus": np.maximum(solid, floor)}, config.tolerance
                )
                add(
                    {"problem": name, "contrast": contrast}
                    | {k: result[k] for k in ("unknowns", "iterations", "total_s", "status")}
                )
    study = study_of(config)
    for spacing in config.spacing_mm:
        for design, system, grid, settings, forces in _designs(study, spacing, config.tolerance):
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

    started = time.perf_counter()
    stored = 3 * int(np.asarray(multigrid.touched(system.medium)).sum())
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


def _designs(study: Any, spacing_mm: float, tolerance: float) -> Any:
    """Designs that are hard in different ways, as linear systems: (name, system, grid, settings,
    basis loads)."""
    import jax.numpy as jnp

    from engine import forward, mixture
    from engine.scene import make_grid, prepare
    from scripts.run import arms

    grid = make_grid(study.segment, spacing_mm)
    settings = replace(study.config.solver.settings(), tolerance=tolerance)
    rodded, numerics = prepare(
        study.segment, study.boundary, grid, settings, study.config.solver.bone_law
    )
    families, cage = arms.families(study), study.cage
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
        at = arms.parameters_at(study, families[arm], arms.default_pose(study))
        if at is not None:
            every[arm] = (families[arm], at)
    for name, (family, parameters) in every.items():
        scene = rodded if family.rods else replace(rodded, links=None)
        fields = forward.fields_of(
            family, {k: jnp.asarray(v) for k, v in parameters.items()}, scene.anatomy
        )
        system = forward.linear_system(scene, numerics, fields, mixture.alloy(family.material))
        yield name, system, grid, settings, scene.forces


def measure_refinement(config: BenchmarkConfig) -> None:
    """Measures of fixed designs on ever finer grids."""
    from scripts.run import arms

    study = study_of(config)
    families = arms.families(study)
    rows: list[dict[str, Any]] = []
    for spacing in config.spacing_mm:
        prepared = arms.prepare(study, spacing)
        for arm in ("stock_central", "conforming_central", "full_endplate"):
            family = families[arm]
            values = (
                arms.parameters_at(study, family, arms.default_pose(study))
                if family.groups()
                else {}
            )
            if values is None:
                continue
            started = time.perf_counter()
            evaluation, status = arms.evaluate(study, prepared, family, values)
            measures = dict(
                zip(
                    (g.objective.name for g in study.goals),
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
            print(record.line(rows[-1], ".4g"), flush=True)
            record.write(
                record.folder(config) / "refinement.json",
                {"machine": record.machine(), "bundle": config.bundle, "results": rows},
            )
