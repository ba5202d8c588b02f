"""Calculation verification: what a measure owes to the mesh. Three meshes of an arm, from the
configured size downwards, Richardson's estimate with the sizes that came out: h ∝
(tetrahedra)^(−1/3), r₁ = h₁/h₂, r₂ = h₂/h₃.

    order p       (f₁ − f₂)/(f₂ − f₃) = r₂^p (r₁^p − 1)/(r₂^p − 1)             f₁ as configured, f₂
        finer, f₃ finest
    limit f*      f₃ + (f₃ − f₂)/(r₂^p − 1)
    error of f₁   |f₁ − f*| / |f*|, and at least |f₁ − f₃| / |f₃|

Where p is not between 0.5 and 4, or f₁ − f₂ and f₂ − f₃ have opposite signs, the three are not in
the asymptotic range (the scatter from mesh to mesh is as large as what refinement changes): no
order, no limit; the error is the largest difference. After Celik et al. 2008, doi
10.1115/1.2960953; Eça and Hoekstra 2014, doi 10.1016/j.jcp.2014.01.006.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

from engine.types import Response
from fem.mesh.build import MeshSettings
from scripts.run import arms as studies
from scripts.run import check, measures, parts
from scripts.run.opened import open_designed, require_designs

#: Asked for from mesh to mesh.
RATIO = 1.4
SCALES = (1.0, 1.0 / RATIO, 1.0 / RATIO**2)
#: Orders that are believed.
_ORDERS = 0.5, 4.0


@dataclass(frozen=True)
class Estimate:
    """One measure of one arm on three meshes. order and limit: None outside the asymptotic
    range."""

    arm: str
    quantity: str
    values: tuple[float, float, float]
    order: float | None
    limit: float | None
    error_percent: float


def estimate(
    arm: str,
    quantity: str,
    values: tuple[float, float, float],
    ratios: tuple[float, float] = (RATIO, RATIO),
) -> Estimate:
    """Module docstring."""
    first, second, third = values
    a, b = first - second, second - third
    order = _order(a / b, ratios) if a * b > 0.0 else np.inf
    if not _ORDERS[0] <= order <= _ORDERS[1]:
        off = max(abs(a), abs(b), abs(first - third))
        return Estimate(arm, quantity, values, None, None, 100.0 * off / max(abs(third), 1e-300))
    limit = third - b / (ratios[1] ** order - 1.0)
    least = abs(first - third) / max(abs(third), 1e-300)
    return Estimate(
        arm,
        quantity,
        values,
        order,
        limit,
        100.0 * max(abs(first - limit) / max(abs(limit), 1e-300), least),
    )


def _order(quotient: float, ratios: tuple[float, float]) -> float:
    """p of the module docstring; ±10 where it lies beyond."""
    first, second = ratios

    def off(p: float) -> float:
        return float(
            np.log(
                second**p * np.expm1(p * np.log(first)) / np.expm1(p * np.log(second)) / quotient
            )
        )

    ends = off(-10.0 + 1e-6), off(10.0)
    if ends[0] * ends[1] > 0.0:
        return 10.0 if abs(ends[1]) < abs(ends[0]) else -10.0
    return float(brentq(off, -10.0 + 1e-6, 10.0))


def scaled(mesh: MeshSettings, by: float) -> MeshSettings:
    """Every length of the mesh times `by` (films and curtains, which are geometry, as they are)."""
    names = (
        "size_fine_mm",
        "size_coarse_mm",
        "background_mm",
        "background_axial_mm",
        "background_far_mm",
        "hausdorff_mm",
    )
    return replace(
        mesh,
        **{n: by * getattr(mesh, n) for n in names},
        timeout_s=mesh.timeout_s * max(1.0, 1.0 / by) ** 3,
    )


def converge(
    run: Path, arms: tuple[str, ...], out: Path, processes: int = 2
) -> tuple[list[Estimate], dict[str, list[int]], list[str]]:
    """Estimates, tetrahedra by arm, and what has no result. Raises ValueError for a folder
    without these designs."""
    opened = open_designed(run)
    require_designs(run, arms)
    study = opened.study

    def solve(job: tuple[str, int]) -> tuple[dict[str, float], int, str]:
        arm, level = job
        design, surface = parts.load_design(run / "designs" / arm)
        boundary, mesh = study.boundary_of(opened.families[arm]), scaled(opened.mesh, SCALES[level])
        found = check.check_in_process(
            opened.segment,
            design,
            surface,
            boundary,
            opened.crop_mm,
            mesh,
            opened.fem,
            out / f"{arm}_{level}",
        )
        cells = found.mesh.get("tetrahedra", 0)
        count = cells if isinstance(cells, int) else 0
        return (
            ({} if found.response is None else quantities(study, arm, found.response)),
            count,
            found.status.text,
        )

    jobs = [(arm, level) for level in range(len(SCALES)) for arm in arms]
    results: dict[tuple[str, int], tuple[dict[str, float], int, str]] = {}
    with check.one_thread_each(), ThreadPoolExecutor(processes) as pool:
        results |= dict(zip(jobs[: -len(arms)], pool.map(solve, jobs[: -len(arms)]), strict=True))
    for job in jobs[-len(arms) :]:  # the finest one at a time: memory
        results[job] = solve(job)
    tetrahedra = {arm: [results[arm, level][1] for level in range(len(SCALES))] for arm in arms}
    estimates: list[Estimate] = []
    failed = [
        f"{arm}, mesh {level + 1} of 3: {results[arm, level][2]}"
        for arm, level in jobs
        if not results[arm, level][0]
    ]
    for arm in arms:
        three = [results[arm, level][0] for level in range(len(SCALES))]
        count = tetrahedra[arm]
        if all(three) and not count[0] < count[1] < count[2]:
            failed.append(
                f"{arm}: {count} tetrahedra are no refinement (a mesh was retried finer,"
                " fem/mesh/build.py): no estimate is given"
            )
        elif all(three):
            ratios = (count[1] / count[0]) ** (1 / 3), (count[2] / count[1]) ** (1 / 3)
            estimates += [
                estimate(arm, name, (three[0][name], three[1][name], three[2][name]), ratios)
                for name in three[0]
            ]
    return estimates, tetrahedra, failed


def quantities(study: studies.Study, arm: str, response: Response) -> dict[str, float]:
    """Every measure that the report shows (but stress shielding, which needs the intact
    segment's own meshes), and stiffnesses."""
    out = {
        f"stiffness, {case}": float(1.0 / c)
        for case, c in zip(response.loadcases, np.asarray(response.compliance), strict=True)
    }
    return out | {
        name: m["value"] for name, m in measures.measures_of(study, arm, response).items()
    }
