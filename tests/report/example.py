"""A made-up result that follows the schema: its numbers mean nothing and are used in tests only."""

from __future__ import annotations

import copy
from typing import Any

LOADS = (
    "standing",
    "flexion",
    "extension",
    "bending_left",
    "bending_right",
    "rotation_left",
    "rotation_right",
)
ALIGNMENT = {
    "lordosis_deg": 9.1,
    "segmental_lordosis_deg": 21.3,
    "coronal_deg": 0.4,
    "axial_deg": 0.1,
    "height_anterior_mm": 12.1,
    "height_middle_mm": 10.2,
    "height_posterior_mm": 6.9,
    "listhesis_mm": 1.2,
    "lateral_mm": 0.0,
}


def measure(value: float, unit: str, description: str, **more: Any) -> dict[str, Any]:
    loads = {load: value * (0.6 + 0.1 * i) for i, load in enumerate(LOADS)}
    return {"value": value, "unit": unit, "description": description, "per_load": loads, **more}


def arm(factor: float, **more: Any) -> dict[str, Any]:
    return {
        "status": {"code": "ok", "text": ""},
        "solver": {load: {"code": "ok", "text": "PARDISO"} for load in LOADS},
        "measures": {
            "yielded_bone_volume": measure(
                843.2 * factor, "mm³", "Bone beyond yield near the implant, mean over loads."
            ),
            "misalignment": measure(
                2.31 * factor, "°", "Root mean square deviation from the plan under load."
            ),
            "stress_shielding": measure(
                0.31, "1", "Share of bone volume whose strain energy fell by over 75 %."
            ),
            "graft_window": {
                "value": 412.0,
                "unit": "mm³",
                "better": "higher",
                "description": "Volume for graft.",
            },
        },
        "alignment": {name: value * (1.1 - 0.1 * factor) for name, value in ALIGNMENT.items()},
        "balance": {"force_rel": 3.2e-9, "moment_rel": 8.8e-9},
        "mesh": {"nodes": 141234, "tetrahedra": 91234, "min_dihedral_deg": 8.3, "below_8_deg": 0},
        "files": {"surface": "optimised/part.stl", "solution": "optimised/solution.vtu"},
        **more,
    }


def example() -> dict[str, Any]:
    failed = {
        "status": {
            "code": "failed",
            "text": "factorisation broke down: the mesh has a sliver of 0.02°",
        },
        "measures": {"yielded_bone_volume": {"value": None, "unit": "mm³"}},
    }
    agreement = [
        {
            "quantity": "stiffness",
            "unit": "N/mm",
            "load_case": "standing",
            "engine": 2050.0,
            "sfepy": 2000.0,
            "gap_rel": 0.025,
        },
        {
            "quantity": "yielded bone volume",
            "unit": "mm³",
            "engine": 88.0,
            "sfepy": 100.0,
            "gap_rel": -0.12,
        },
    ]
    made_up = {
        "schema_version": 1,
        "title": "L4–L5 <TLIF> cage: made-up example",
        "created": "2026-01-01T12:00:00Z",
        "asked": {
            "patient": "phantom",
            "implant": {"family": "interbody_cage", "approach": "tlif"},
            "seed": 7,
        },
        "warnings": [
            "Bone density is assumed (profile 'normal'), not measured: yielded volumes are"
            " comparative only."
        ],
        "alignment": {
            "measured": {**ALIGNMENT, "lordosis_deg": 4.2, "height_anterior_mm": 8.8},
            "planned": ALIGNMENT,
            "load_case": "standing",
            "rule": "published norm",
            "source": "[S66] [S69]",
        },
        "arms": {
            "stock": arm(1.0),
            "stock_central": arm(2.4),
            "conforming": arm(0.8),
            "conforming_central": failed,
            "optimised": arm(
                0.3,
                agreement=agreement,
                notes=["2 islands of 0.3 mm³ were removed from the surface"],
            ),
            "intact": arm(0.35),
            "full_endplate": arm(0.05),
        },
        "optimisation": {
            "status": {
                "code": "max_iterations",
                "text": "stopped after 40 iterations; still falling by 0.1 % a step",
            },
            "history": "history.jsonl",
            "figures": {"iterations": 40, "evaluations": 61, "peak memory MB": 2400.0},
        },
        "timings_s": {"patient": 12.0, "search": 201.3, "check": 144.9},
        "memory_mb": {"peak": 3912.0},
        "versions": {"python": "3.11.7", "jax": "0.10.2", "git_sha": None, "git_dirty": True},
        "hashes": {"bundle": "ab" * 32},
        "limitations": ["Density profile assumed."],
        "files": {"search history": "history.jsonl"},
    }
    return copy.deepcopy(made_up)  # no part is shared: tests change it


def history() -> list[dict[str, Any]]:
    return [
        {
            "iteration": i,
            "objective": 1.0 / (1 + i) + 0.3,
            "terms": {"yielded_bone_volume": 0.8 / (1 + i), "misalignment": 0.2 / (1 + 0.1 * i)},
            "violation": None if i == 5 else 0.5 * 0.8**i,
            "seconds": 4.0 * i,
        }
        for i in range(40)
    ]
