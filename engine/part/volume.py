"""Closed surfaces from a field, and what is wrong with a surface."""

from __future__ import annotations

from typing import Any

import numpy as np
import pymeshlab
import trimesh
from skimage.measure import marching_cubes

from engine.types import Surface


def off_level(values: np.ndarray, h: float) -> np.ndarray:
    """Samples (almost) on the level give slivers and pinched vertices: keep them a twentieth of a
    voxel away.

    That moves a wall that lies on the grid by as much; `_project` moves it back."""
    tiny = 5e-2 * h
    return np.where(np.abs(values) < tiny, np.where(values < 0, -tiny, tiny), values)


def isosurface_of(values: np.ndarray, origin: np.ndarray, h: float) -> Surface:
    points, faces, _, _ = marching_cubes(
        values, 0.0, spacing=(h, h, h), gradient_direction="descent"
    )
    return Surface(single_precision(points + origin), faces.astype(np.int64))


def single_precision(points: np.ndarray) -> np.ndarray:
    return np.asarray(points, np.float32).astype(float)


def volume_mm3(surface: Surface) -> float:
    return float(trimesh.Trimesh(surface.points_mm, surface.faces, process=False).volume)


def meshset(surface: Surface, marked: np.ndarray | None = None) -> pymeshlab.MeshSet:
    meshes = pymeshlab.MeshSet(verbose=False)
    more = {} if marked is None else {"f_scalar_array": np.asarray(marked, float)}
    meshes.add_mesh(
        pymeshlab.Mesh(
            np.asarray(surface.points_mm, float), np.asarray(surface.faces, np.int32), **more
        )
    )
    return meshes


def crossing(surface: Surface) -> np.ndarray:
    """Which faces [f] intersect another one."""
    meshes = meshset(surface)
    meshes.compute_selection_by_self_intersections_per_face()
    return np.asarray(meshes.current_mesh().face_selection_array(), bool)


def surface_problem(checked: dict[str, Any]) -> str:
    """The first reason not to print or mesh such a surface; empty when there is none."""
    if not checked["watertight"]:
        return "not watertight"
    if not checked["manifold"]:
        return "not two-manifold"
    if checked["self_intersections"]:
        return f"{checked['self_intersections']} faces intersect each other"
    if not checked["volume_mm3"] > 0:
        return f"volume {checked['volume_mm3']:.3g} mm³: inside out or flat"
    if not checked["min_edge_mm"] > 0:
        return "edges of zero length"
    return ""
