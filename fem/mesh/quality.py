"""Figures of a labelled tetrahedral mesh: what the gate judges and the report shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.types import REGIONS
from fem.mesh import tets as tt
from fem.mesh.regions import VOID, RegionMap
from fem.mesh.snap import interfaces


class MeshError(ValueError):
    """No mesh that passes the gate: the text names the region and place, and what to change."""


def measure(
    points: np.ndarray,
    tets: np.ndarray,
    labels: np.ndarray,
    reference: np.ndarray,
    regions: RegionMap,
) -> dict[str, Any]:
    """Figures of a mesh: sizes, angles, volumes against `reference` [5] mm³, distance of nodes
    to the surfaces."""
    volume = tt.volumes(points, tets)
    angle = tt.dihedral_deg(points, tets)
    per_region = np.bincount(labels, volume, minlength=VOID)
    around = interfaces(len(points), tets, labels)
    faces = around.pair
    triangle = points[around.faces]
    area = 0.5 * np.linalg.norm(
        np.cross(triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]), axis=1
    )
    contact = (faces[:, 0] == 0) & (faces[:, 1] == 1)
    quality: dict[str, Any] = {
        "points": len(points),
        "tets": len(tets),
        "min_dihedral_deg": float(angle.min()),
        "below_8_deg": int((angle.min(1) < 8.0).sum()),
        "max_dihedral_deg": float(angle.max()),
        "inverted": int((volume <= 0.0).sum()),
        "worst_at_mm": points[tets[angle.min(1).argmin()]].mean(0).round(2).tolist(),
        "worst_region": REGIONS[labels[angle.min(1).argmin()]],
        "volume_mm3": dict(zip(REGIONS, per_region.tolist(), strict=True)),
        "reference_mm3": dict(zip(REGIONS, reference.tolist(), strict=True)),
        "volume_error": {
            name: float(v / r - 1.0) if r > 1.0 else 0.0
            for name, v, r in zip(REGIONS, per_region, reference, strict=True)
        },
        "tets_per_region": dict(
            zip(REGIONS, np.bincount(labels, minlength=VOID).tolist(), strict=True)
        ),
        "bone_to_bone_mm2": float(area[contact].sum()),
    }
    if regions.implant is not None:
        nodes = np.flatnonzero(around.touches[:, 2] & (around.touches.sum(1) > 1))
        off = np.abs(regions.implant.exact(points[nodes]))
        quality["implant_nodes_off_mm"] = {
            "mean": float(off.mean()),
            "p99": float(np.quantile(off, 0.99)),
            "max": float(off.max()),
        }
    return quality
