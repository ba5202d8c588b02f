"""Bench tests of the exported parts of a run, virtually: stiffness, stress, and what load takes
them to yield and fatigue.

On the check's own mesh of each arm, after ASTM F2077 and F2267 (set-ups; no acceptance load is
given there, and none is invented here):

    compression         1000 N along the segment's axis between blocks that fit the part (steel 200
                        GPa)
    compression-shear   1000 N at 45° in the sagittal plane
    torsion             1 N·m about the axis
    subsidence          compression between foam blocks of the vertebrae's size: K_s at the load;
                        K_p of 1/K_p = 1/K_s − 1/K_d (K_d from the steel blocks) is the foam's
                        share. Compares devices on this patient; F2267's blocks are others

Linear: stress goes with the load. Blocks are bonded to the part, bone is the block and disc and
graft are air. <run>/bench.json, bench.md.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine import artifacts, materials
from engine.types import Boundary, Design, LoadCase, Response, Segment, Surface, Wrench
from fem.elastic.invariants import principal, von_mises
from fem.mesh.build import MeshSettings
from fem.solution import write_vtu
from fem.solve import FemSettings, solve
from fem.verify import kept_mesh
from scripts.run import parts
from scripts.run.config import ARMS
from scripts.run.measures import weighted_percentile
from scripts.run.opened import open_designed, require_designs

log = logging.getLogger("spinefit")
#: Unit loads: N, and N mm for torsion.
FORCE_N, TORQUE_NMM = 1000.0, 1000.0
STEEL_MPA = 200e3


class Acceptance(BaseModel):
    """Loads that the part must bear, given by the user: safety factors are then told."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    compression_n: float | None = Field(default=None, gt=0)
    compression_shear_n: float | None = Field(default=None, gt=0)
    torsion_nm: float | None = Field(default=None, gt=0)


class BenchConfig(BaseModel):
    """Settings; conf/bench.yaml says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: str
    arms: tuple[str, ...] = ("stock", "conforming", "optimised")
    foam_mpa: float = Field(default=123.0, ge=1.0, le=2000.0)
    acceptance: Acceptance = Acceptance()


def boundary_of(segment: Segment, base: Boundary, centre_mm: np.ndarray) -> Boundary:
    """The three unit loads through the part's centre, without rods; back is +y, so
    compression-shear pushes the upper block forwards."""
    lean = np.sqrt(0.5)
    loads = {
        "compression": (np.array([0.0, 0.0, -FORCE_N]), np.zeros(3)),
        "compression_shear": (FORCE_N * np.array([0.0, -lean, -lean]), np.zeros(3)),
        "torsion": (np.zeros(3), np.array([0.0, 0.0, TORQUE_NMM])),
    }
    cases = tuple(
        LoadCase(name, Wrench(f, m, centre_mm), 0.0, "bench, unit load")
        for name, (f, m) in loads.items()
    )
    return replace(base, links=(), loadcases=cases)


def bench_part(
    segment: Segment,
    design: Design,
    surface: Surface,
    base: Boundary,
    crop_mm: np.ndarray,
    mesh: MeshSettings,
    fem: FemSettings,
    foam_mpa: float,
    folder: Path,
) -> dict[str, dict[str, float]]:
    """Figures by test. Raises ValueError or fem.mesh.build.MeshError where a test cannot be
    done."""
    grid = kept_mesh(segment, design, surface, mesh, crop_mm, folder / "mesh.npz")
    part = grid.points_mm[np.unique(grid.tets[grid.labels == 2])]
    boundary = boundary_of(segment, base, 0.5 * (part.min(0) + part.max(0)))
    out: dict[str, dict[str, float]] = {}
    stiffness: dict[float, float] = {}
    for modulus in (STEEL_MPA, foam_mpa):
        cases = boundary.loadcases if modulus == STEEL_MPA else boundary.loadcases[:1]
        settings = replace(fem, blocks_mpa=modulus, contact=None, sample_all=False)
        response, status, field = solve(
            segment, design, grid, replace(boundary, loadcases=cases), settings
        )
        if bad := [s for s in status if s.code != "ok"]:
            raise ValueError(f"not solved: {bad[0].text}")
        # steel: between the layers next to the part; foam: at the load, with all of the blocks,
        # which sink in
        stiffness[modulus] = (
            _moved(response, 0)
            if modulus == STEEL_MPA
            else FORCE_N**2 / float(np.asarray(response.compliance)[0])
        )
        if modulus == STEEL_MPA:
            write_vtu(folder / "bench.vtu", field)
            for i, case in enumerate(cases):
                out[case.name] = {"stiffness": _moved(response, i)} | _stress(response, i, design)
    k_s, k_d = stiffness[foam_mpa], stiffness[STEEL_MPA]
    if k_s >= k_d:
        raise ValueError(
            f"the foam's stiffness K_s = {k_s:.0f} N/mm is not below the device's K_d = {k_d:.0f}"
            " N/mm"
        )
    out["subsidence"] = {
        "k_s_n_per_mm": k_s,
        "k_d_n_per_mm": k_d,
        "k_p_n_per_mm": 1.0 / (1.0 / k_s - 1.0 / k_d),
    }
    return out


def _moved(response: Response, case: int) -> float:
    """Load over the work-conjugate motion of the blocks next to the part: N/mm, or N·m a degree
    in torsion."""
    relative = np.asarray(response.motion)[case, 1] - np.asarray(response.motion)[case, 0]
    if response.loadcases[case] == "torsion":
        return float(TORQUE_NMM / 1000.0 / np.degrees(abs(relative[5])))
    force = np.asarray(response.applied)[case, :3]
    direction = force / np.linalg.norm(force)
    return float(np.linalg.norm(force) / abs(relative[:3] @ direction))


def _stress(response: Response, case: int, design: Design) -> dict[str, float]:
    """von Mises stress of the part under the unit load, MPa: largest, 99th percentile by volume;
    and the loads (N, N·m) at which the 99th percentile of stress over limit is 1, for yield and for
    fatigue at 5e6 cycles (a lattice's limits by its relative density).
    """
    part = np.asarray(response.fraction)[:, 2] > 0.5
    mises = von_mises(principal(np.asarray(response.stress)[case, part], 1.0))
    volume = np.asarray(response.volume)[part]
    alloy = materials.implant_material(design.material)
    ratio = np.asarray(materials.lattice_fatigue_ratio(np.asarray(response.relative_density)[part]))
    unit = FORCE_N if response.loadcases[case] != "torsion" else TORQUE_NMM / 1000.0
    return {
        "von_mises_max_mpa": float(mises.max()),
        "von_mises_p99_mpa": weighted_percentile(mises, volume, 99.0),
        "load_at_yield": (
            unit / weighted_percentile(mises / (alloy.yield_mpa * ratio), volume, 99.0)
        ),
        "load_at_fatigue": (
            unit / weighted_percentile(mises / (alloy.fatigue_mpa * ratio), volume, 99.0)
        ),
    }


def run(config: BenchConfig) -> tuple[str, dict[str, Any]]:
    """Table and record of all arms. Raises ValueError for a folder without designs."""
    folder = Path(config.run)
    if unknown := sorted(set(config.arms) - set(ARMS)):
        raise ValueError(f"arms={unknown}: unknown; there are {', '.join(ARMS)}")
    opened = open_designed(folder)
    require_designs(folder, config.arms)
    record: dict[str, Any] = {}
    for arm in config.arms:
        design, surface = parts.load_design(folder / "designs" / arm)
        assert surface is not None
        try:
            given = (
                opened.segment,
                design,
                surface,
                opened.study.bare,
                opened.crop_mm,
                opened.mesh,
                opened.fem,
            )
            tests = bench_part(*given, config.foam_mpa, folder / "fem" / arm)
            record[arm] = {
                "status": {"code": "ok", "text": ""},
                "tests": tests,
                "safety": safety_of(tests, config.acceptance),
            }
        except (
            ValueError,
            RuntimeError,
        ) as error:  # a mesh that fails its gate or a solve that fails: this arm's alone
            record[arm] = {
                "status": {"code": "failed", "text": str(error)},
                "tests": {},
                "safety": {},
            }
        log.info("%s: %s %s", arm, record[arm]["status"]["code"], record[arm]["status"]["text"])
    text = _table(record, config)
    artifacts.write_json(folder / "bench.json", {"config": config.model_dump(), "arms": record})
    artifacts.write_text(folder / "bench.md", text)
    return text, record


def safety_of(
    tests: dict[str, dict[str, float]], wanted: Acceptance
) -> dict[str, dict[str, float]]:
    loads = {
        "compression": wanted.compression_n,
        "compression_shear": wanted.compression_shear_n,
        "torsion": wanted.torsion_nm,
    }
    return {
        name: {
            "yield": tests[name]["load_at_yield"] / load,
            "fatigue": tests[name]["load_at_fatigue"] / load,
        }
        for name, load in loads.items()
        if load is not None
    }


def _table(record: dict[str, Any], config: BenchConfig) -> str:
    def row(title: str, of: Any) -> str:
        cells = [of(r) if r["status"]["code"] == "ok" else "no result" for r in record.values()]
        return "| " + " | ".join([title, *cells]) + " |"

    lines = ["| test | " + " | ".join(record) + " |", "|---" * (len(record) + 1) + "|"]
    for name, unit, load in (
        ("compression", "N/mm", "N"),
        ("compression_shear", "N/mm", "N"),
        ("torsion", "N·m/°", "N·m"),
    ):
        title = name.replace("_", "-")
        given = "1000 N" if load == "N" else "1 N·m"

        def figure(key: str, form: str, name: str = name) -> Any:
            return lambda r: format(r["tests"][name][key], form)

        lines.append(row(f"{title}: stiffness, {unit}", figure("stiffness", ".4g")))
        lines.append(
            row(f"{title}: von Mises p99 at {given}, MPa", figure("von_mises_p99_mpa", ".4g"))
        )
        lines.append(
            row(
                f"{title}: largest von Mises at {given}, MPa (mesh-dependent)",
                figure("von_mises_max_mpa", ".4g"),
            )
        )
        lines.append(row(f"{title}: load at yield (p99), {load}", figure("load_at_yield", ".4g")))
        lines.append(
            row(
                f"{title}: load at fatigue limit, 5e6 cycles (p99), {load}",
                figure("load_at_fatigue", ".4g"),
            )
        )
    for name in ("k_s", "k_p"):
        title = f"subsidence in foam of {config.foam_mpa:g} MPa: {name.replace('k', 'K')}, N/mm"
        lines.append(
            row(title, lambda r, name=name: f"{r['tests']['subsidence'][f'{name}_n_per_mm']:.4g}")
        )
    for test in dict.fromkeys(t for r in record.values() for t in r["safety"]):
        for kind in ("yield", "fatigue"):
            lines.append(
                row(
                    f"safety factor, {test.replace('_', '-')}, {kind}",
                    lambda r, t=test, k=kind: f"{r['safety'][t][k]:.2f}",
                )
            )
    notes = [
        f"{arm}: {r['status']['text']}" for arm, r in record.items() if r["status"]["code"] != "ok"
    ]
    return "\n".join([*lines, "", *notes]) + "\n"
