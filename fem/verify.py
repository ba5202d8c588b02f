"""The check of one arm: the exported surface meshed with the patient, solved, balanced, written for
ParaView.

What is simulated is what would be printed: the mesh is cut from the exported triangles, not from
the design's fields.
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from engine import artifacts
from engine.types import Boundary, Design, Response, Segment, SolverStatus, Surface
from fem.mesh.build import MeshSettings, TetMesh, build_mesh
from fem.mesh.quality import MeshError
from fem.solution import write_vtu
from fem.solve import FemSettings, solve

log = logging.getLogger("spinefit.fem")
#: Raised when the same content gives another mesh.
_MESH_VERSION = 2


@dataclass(frozen=True)
class Check:
    """The outcome of one arm.

    status     of the whole check: where it is not "ok", response is None, as no number can be
               trusted
    solver     status per load case
    mesh       its figures; notes: what was done to it
    balance    force and moment out of balance, relative
    figures    unknowns, seconds, memory
    contact    per load case, with contact
    died       its process was killed, which says nothing about the arm and may go well another time
    """

    status: SolverStatus
    response: Response | None
    solver: tuple[SolverStatus, ...]
    mesh: dict[str, object]
    notes: tuple[str, ...]
    balance: tuple[float, float]
    figures: dict[str, float]
    contact: dict[str, dict[str, float]] = field(default_factory=dict)
    died: bool = False


@dataclass(frozen=True)
class Reference:
    """The intact segment's bone near the disc space: samples' position_mm [q, 3] and strain energy
    density `energy` [l, q], MPa."""

    position_mm: np.ndarray
    energy: np.ndarray

    @staticmethod
    def of(intact: Response) -> Reference:
        bone = np.flatnonzero(
            (np.asarray(intact.near) > 0) & (np.asarray(intact.fraction)[:, :2].sum(1) > 0.5)
        )
        energy = 0.5 * np.sum(
            np.asarray(intact.strain)[:, bone] * np.asarray(intact.stress)[:, bone], axis=-1
        )
        return Reference(np.asarray(intact.position)[bone], energy)


def check(
    segment: Segment,
    design: Design,
    surface: Surface | None,
    boundary: Boundary,
    crop_mm: np.ndarray,
    mesh_settings: MeshSettings,
    fem_settings: FemSettings,
    folder: Path,
) -> Check:
    """Mesh, solve and balance one arm; writes <folder>/solution.vtu, with contact also
    contact.vtu, and keeps the mesh in <folder>/mesh.npz (by the content of all that makes it).
    Never raises for what the geometry does: a mesh that fails its gate or a solve that fails is
    a status, and then there is no response."""
    clock = time.perf_counter()
    try:
        mesh = kept_mesh(segment, design, surface, mesh_settings, crop_mm, folder / "mesh.npz")
    except MeshError as error:
        log.error("%s: %s", design.arm, error)
        return failed_check(f"no mesh: {error}")
    mesh_s = time.perf_counter() - clock
    try:
        response, solver, fields = solve(segment, design, mesh, boundary, fem_settings)
    except (ValueError, RuntimeError, MemoryError) as error:
        log.error("%s: %s", design.arm, error)
        return failed_check(f"no solution: {error}")
    if fem_settings.contact is not None:
        folder = folder / contact_name(fem_settings.contact)
    folder.mkdir(parents=True, exist_ok=True)
    write_vtu(folder / "solution.vtu", fields)
    if fields.interface is not None:
        fields.interface.write(folder / "contact.vtu")
    bad = [s for s in solver if s.code != "ok"]
    if bad:
        return replace(
            failed_check(f"{bad[0].code}: {bad[0].text}"), solver=tuple(solver), mesh=_figures(mesh)
        )
    figures = {"mesh_s": mesh_s, **fields.figures}
    touching = dict(zip(fields.loadcases, fields.contact, strict=False))
    return Check(
        SolverStatus("ok", ""),
        response,
        tuple(solver),
        _figures(mesh),
        mesh.log,
        balance(response),
        figures,
        touching,
    )


def contact_name(friction: float) -> str:
    """Folder of a solve with contact, inside the arm's."""
    return f"contact_{friction:g}"


def kept_mesh(
    segment: Segment,
    design: Design,
    surface: Surface | None,
    settings: MeshSettings,
    crop_mm: np.ndarray,
    path: Path,
) -> TetMesh:
    """build_mesh's mesh, which `path` keeps by the content of all that makes it."""
    fields = (segment.caudal.sdf, segment.cranial.sdf, segment.disc, design.window, design.implant)
    key = artifacts.digest(
        (_MESH_VERSION, settings, design.arm, np.asarray(crop_mm), fields, surface)
    )
    if path.exists():
        try:
            with np.load(path) as kept:
                if str(kept["key"]) == key:
                    quality = json.loads(str(kept["quality"]))
                    lines = tuple(json.loads(str(kept["log"])))
                    log.info("%s: mesh as before (%d tetrahedra)", design.arm, len(kept["tets"]))
                    return TetMesh(kept["points_mm"], kept["tets"], kept["labels"], quality, lines)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s: %s cannot be read (%s); meshed again", design.arm, path, error)
    mesh = build_mesh(segment, design, surface, settings, crop_mm)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        "points_mm": mesh.points_mm,
        "tets": mesh.tets.astype(np.int32),
        "labels": mesh.labels.astype(np.int8),
        "key": np.array(key),
        "quality": np.array(json.dumps(mesh.quality, default=_plain)),
        "log": np.array(json.dumps(mesh.log)),
    }
    artifacts.write_npz(path, **arrays)
    return mesh


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays for JSON."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def balance(response: Response) -> tuple[float, float]:
    """Largest |applied + reaction| over the load cases, relative to the largest force and moment
    applied (one of which may be nothing: a force then counts as a moment over 50 mm, half a
    segment's height)."""
    rest = np.asarray(response.applied) + np.asarray(response.reaction)
    applied = np.asarray(response.applied)
    largest_n, largest_nmm = (
        np.linalg.norm(applied[:, part], axis=1).max() for part in (slice(3), slice(3, 6))
    )
    force = np.linalg.norm(rest[:, :3], axis=1) / max(largest_n, largest_nmm / 50.0)
    moment = np.linalg.norm(rest[:, 3:], axis=1) / max(largest_nmm, largest_n * 50.0)
    return float(force.max()), float(moment.max())


def intact_energy_at(reference: Reference, points_mm: np.ndarray) -> np.ndarray:
    """Strain energy density of the intact segment [l, q] at other points, from its own samples (its
    own mesh).

    Inverse-distance mean of the four nearest samples of bone near the disc space.
    """
    distance, index = cKDTree(reference.position_mm).query(points_mm, k=4)
    weight = 1.0 / (distance + 1e-6)
    weight /= weight.sum(1, keepdims=True)
    return np.einsum("qk,lqk->lq", weight, reference.energy[:, index])


def failed_check(text: str) -> Check:
    """An arm without numbers, and why."""
    nan = float("nan")
    return Check(SolverStatus("failed", text), None, (), {}, (), (nan, nan), {})


def _figures(mesh: TetMesh) -> dict[str, object]:
    plain: dict[str, object] = {"nodes": len(mesh.points_mm), "tetrahedra": len(mesh.tets)}
    for key, value in mesh.quality.items():
        if isinstance(value, bool | int | float | str | np.integer | np.floating):
            plain[key] = value.item() if isinstance(value, np.generic) else value
        elif isinstance(value, dict):
            plain |= {
                f"{key} {k}": float(v)
                for k, v in value.items()
                if isinstance(v, int | float | np.number)
            }
    return plain
