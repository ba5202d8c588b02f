"""The variations of the sensitivity study, and devices, fields and responses under them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from engine.types import Design, Response, Surface, VoxelField, rigid

ARMS = ("stock", "conforming", "optimised")
NOMINAL = "nominal"


@dataclass(frozen=True)
class Variation:
    """One thing changed. shift_mm along x, y, z; turn_deg: rotation vector; lattice: factor on
    the mesh's starting lattice."""

    name: str
    kind: str
    bone_factor: float = 1.0
    load_factor: float = 1.0
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lattice: float = 1.0

    def solved(self) -> Variation:
        """What has to be solved for it: loads are rescaled afterwards."""
        return replace(self, name="", kind="", load_factor=1.0)

    def motion(self) -> np.ndarray:
        """[4, 4] about the device's middle."""
        out = np.eye(4)
        out[:3, :3] = Rotation.from_rotvec(self.turn_deg, degrees=True).as_matrix()
        out[:3, 3] = self.shift_mm
        return out


VARIATIONS = (
    Variation(NOMINAL, NOMINAL),
    Variation("loads −20 %", "loads", load_factor=0.8),
    Variation("loads +20 %", "loads", load_factor=1.2),
    Variation("1 mm to the left", "position", shift_mm=(1.0, 0.0, 0.0)),
    Variation("1 mm to the right", "position", shift_mm=(-1.0, 0.0, 0.0)),
    Variation("1 mm anterior", "position", shift_mm=(0.0, -1.0, 0.0)),
    Variation("1 mm posterior", "position", shift_mm=(0.0, 1.0, 0.0)),
    Variation("turned 3° to the left", "position", turn_deg=(0.0, 0.0, 3.0)),
    Variation("turned 3° to the right", "position", turn_deg=(0.0, 0.0, -3.0)),
    Variation("tilted 3° anteriorly", "position", turn_deg=(3.0, 0.0, 0.0)),
    Variation("tilted 3° posteriorly", "position", turn_deg=(-3.0, 0.0, 0.0)),
    Variation("another mesh", "mesh", lattice=0.97),
    Variation("bone modulus −30 %", "bone", bone_factor=0.7),
    Variation("bone modulus +30 %", "bone", bone_factor=1.3),
)


# -- one variation ---------------------------------------------------------------------------------
def moved(design: Design, surface: Surface, motion: np.ndarray) -> tuple[Design, Surface]:
    """The device with its exported surface and all its fields, moved by `motion` [4, 4] about
    the middle of its bounding box."""
    middle = 0.5 * (surface.points_mm.min(0) + surface.points_mm.max(0))
    about = motion.copy()
    about[:3, 3] = middle + motion[:3, 3] - motion[:3, :3] @ middle
    fields = (design.implant, design.window, design.relative_density)
    implant, window, density = (
        None if field is None else moved_field(field, about) for field in fields
    )
    points_mm = rigid(about, np.asarray(surface.points_mm, float))
    return replace(design, implant=implant, window=window, relative_density=density), Surface(
        points_mm, surface.faces
    )


def moved_field(field: VoxelField, motion: np.ndarray) -> VoxelField:
    """f(R⁻¹(x − t)) on a grid parallel to the axes that holds all of the moved one; a shift
    alone moves the origin (exact)."""
    if np.array_equal(motion[:3, :3], np.eye(3)):
        return replace(field, origin_mm=field.origin_mm + motion[:3, 3])
    h = field.spacing_mm
    extent = h * (np.array(field.values.shape) - 1)
    corners = rigid(
        motion,
        field.origin_mm
        + extent * np.stack(np.meshgrid(*[[0.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3),
    )
    low = corners.min(0)
    size = np.ceil((corners.max(0) - low) / h - 1e-9).astype(int) + 1
    grid = VoxelField(np.zeros(size), low, h)
    values = field.sample(rigid(np.linalg.inv(motion), grid.points()))
    return replace(grid, values=values.astype(np.asarray(field.values).dtype))


def rescaled(response: Response, factor: float) -> Response:
    """The response to `factor` times every load; exact, as bonded solves are linear."""
    linear: dict[str, Any] = {
        n: factor * np.asarray(getattr(response, n))
        for n in ("strain", "stress", "motion", "reaction", "applied")
    }
    energy = response.reference_sed
    return replace(
        response,
        **linear,
        compliance=factor**2 * np.asarray(response.compliance),
        reference_sed=None if energy is None else factor**2 * np.asarray(energy),
    )
