"""What scripts/benchmark.py measures. Results go to JSON beside a table on the screen; a
solver's run is a process of its own."""

from __future__ import annotations

from collections.abc import Callable

from scripts.benchmarks.iterations import count_iterations, measure_iteration, measure_refinement
from scripts.benchmarks.record import BenchmarkConfig
from scripts.benchmarks.solvers import compare_solvers, measure_size

KINDS: dict[str, Callable[[BenchmarkConfig], None]] = {
    "solver": compare_solvers,
    "size": measure_size,
    "iterations": count_iterations,
    "iteration": measure_iteration,
    "refinement": measure_refinement,
}
