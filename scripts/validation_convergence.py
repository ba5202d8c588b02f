"""Calculation verification: what a measure owes to the mesh. Three meshes of an arm, sizes in the ratio r = 1.4, Richardson's estimate.

    order p       ln((f₁ − f₂)/(f₂ − f₃)) / ln r        f₁ coarse, f₂ as configured, f₃ fine
    limit f*      f₃ + (f₃ − f₂)/(r^q − 1),  q = p held within 0.5 to 3
    error of f₂   |f₂ − f*| / |f*|, and at least |f₂ − f₃| / |f₃|

Where the three do not fall in line (f₁ − f₂ and f₂ − f₃ of opposite sign) there is no order: the error is the larger difference.
After Roache 1998; ASME V&V 20.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.types import Response
from fem.mesh import MeshSettings
from objectives import study as studies
from scripts import checking, pipeline

RATIO = 1.4
SCALES = (RATIO, 1.0, 1.0 / RATIO)


@dataclass(frozen=True)
class Estimate:
    """One measure of one arm on three meshes. order and limit: None where the values do not fall in line."""

    arm: str
    quantity: str
    values: tuple[float, float, float]
    order: float | None
    limit: float | None
    error_percent: float


def estimate(arm: str, quantity: str, values: tuple[float, float, float]) -> Estimate:
    """Module docstring."""
    first, second, third = values
    a, b = first - second, second - third
    least = abs(b) / max(abs(third), 1e-300)
    if a * b <= 0.0:
        return Estimate(arm, quantity, values, None, None, 100.0 * max(abs(a), abs(b)) / max(abs(third), 1e-300))
    order = float(np.log(a / b) / np.log(RATIO))
    limit = third - b / (RATIO ** float(np.clip(order, 0.5, 3.0)) - 1.0)
    return Estimate(arm, quantity, values, order, limit, 100.0 * max(abs(second - limit) / max(abs(limit), 1e-300), least))


def scaled(mesh: MeshSettings, by: float) -> MeshSettings:
    """Every length of the mesh times `by` (films and curtains, which are geometry, as they are)."""
    names = ("size_fine_mm", "size_coarse_mm", "background_mm", "background_axial_mm", "background_far_mm", "hausdorff_mm")
    return replace(mesh, **{n: by * getattr(mesh, n) for n in names}, timeout_s=mesh.timeout_s * max(1.0, 1.0 / by) ** 3)


def converge(run: Path, arms: tuple[str, ...], out: Path, processes: int = 2) -> tuple[list[Estimate], dict[str, list[int]], list[str]]:
    """Estimates, tetrahedra by arm, and what has no result. Raises ValueError for a folder without these designs."""
    opened = checking.open_designed(run)
    checking.require_designs(run, arms)
    study = opened.study

    def solve(job: tuple[str, int]) -> tuple[dict[str, float], int, str]:
        arm, level = job
        design, surface = pipeline.load_design(run / "designs" / arm)
        boundary, mesh = study.boundary_of(opened.families[arm]), scaled(opened.mesh, SCALES[level])
        found = checking.alone(opened.segment, design, surface, boundary, opened.crop_mm, mesh, opened.fem, out / f"{arm}_{level}")
        cells = found.mesh.get("tetrahedra", 0)
        count = cells if isinstance(cells, int) else 0
        return ({} if found.response is None else quantities(study, arm, found.response)), count, found.status.text

    jobs = [(arm, level) for arm in arms for level in range(len(SCALES))]
    with checking.one_thread_each(), ThreadPoolExecutor(processes) as pool:
        results = dict(zip(jobs, pool.map(solve, jobs), strict=True))
    tetrahedra = {arm: [results[arm, level][1] for level in range(len(SCALES))] for arm in arms}
    estimates: list[Estimate] = []
    failed = [f"{arm}, mesh {level + 1} of 3: {results[arm, level][2]}" for arm, level in jobs if not results[arm, level][0]]
    for arm in arms:
        three = [results[arm, level][0] for level in range(len(SCALES))]
        count = tetrahedra[arm]
        if all(three) and not count[0] < count[1] < count[2]:
            failed.append(f"{arm}: {count} tetrahedra are no refinement (a mesh was retried finer, fem/mesh.py): no estimate is given")
        elif all(three):
            estimates += [estimate(arm, name, (three[0][name], three[1][name], three[2][name])) for name in three[0]]
    return estimates, tetrahedra, failed


def quantities(study: studies.Study, arm: str, response: Response) -> dict[str, float]:
    """Every measure that the report shows (but stress shielding, which needs the intact segment's own meshes), and stiffnesses."""
    out = {f"stiffness, {case}": float(1.0 / c) for case, c in zip(response.loadcases, np.asarray(response.compliance), strict=True)}
    return out | {name: m["value"] for name, m in checking.measures_of(study, arm, response).items()}
