"""A part's surface as glTF binary, for viewers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from engine import artifacts
from engine.part.meshfiles import NOT_CLINICAL
from engine.types import SEGMENT_FRAME, Surface


def write_glb(surface: Surface, path: Path | str, name: str) -> Path:
    """glTF binary: metres, y up (glTF's own frame), one node of that name. The scene's extras say
    unit, frame and how to get back:

    (x, y, z) mm of the segment frame = 1000·(X, −Z, Y)
    """
    points = np.asarray(surface.points_mm, float) / 1000.0
    mesh = trimesh.Trimesh(
        np.stack([points[:, 0], points[:, 2], -points[:, 1]], 1), surface.faces, process=False
    )
    scene = trimesh.Scene()
    scene.metadata = {
        "unit": "metre",
        "frame": "glTF, y up: X = x, Y = z, Z = -y of the segment frame, divided by 1000",
        "segment_frame": SEGMENT_FRAME,
        "use": NOT_CLINICAL,
    }
    scene.add_geometry(mesh, node_name=name, geom_name=name)
    return artifacts.write_bytes(path, scene.export(file_type="glb"))
