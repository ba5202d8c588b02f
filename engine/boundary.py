"""How a segment is held, loaded and instrumented: one `Boundary` for both solvers."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.types import Boundary, Endplate, Link, LoadCase, Patch, Segment, stack_loads

#: Thickness of the sleeve of bone round a screw that follows it [M].
_BONE_ROUND_SCREW_MM = 0.75


class BoundarySettings(BaseModel):
    """Depths of the patches and stiffness of the foundation, and the rods' make."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    patch_depth_mm: float = Field(4.0, gt=1, le=10)
    near_depth_mm: float = Field(10.0, gt=2, le=20)
    foundation_mpa_per_mm2: float = Field(1000.0, gt=0)
    rod_diameter_mm: float = Field(5.5, gt=3, le=8)
    screw_diameter_mm: float = Field(6.5, gt=3, le=10)
    rod_e_mpa: float = Field(112000.0, gt=1000)
    rod_poisson: float = Field(0.33, gt=0, lt=0.5)
    head_offset_mm: float = Field(8.0, ge=0, le=25)


def boundary(
    segment: Segment, loadcases: list[LoadCase], rods: bool, settings: BoundarySettings
) -> Boundary:
    """Support under the caudal inferior endplate, load under the cranial superior one, rods from
    pedicle to pedicle.

    Raises ValueError when two load cases share a name or there is none.
    """
    if not loadcases:
        raise ValueError("no load case given; choose a loadcases group such as lumbar_standard")
    stack_loads(loadcases)
    caudal, cranial = segment.caudal, segment.cranial
    depth, near = settings.patch_depth_mm, settings.near_depth_mm
    return Boundary(
        support=_layer("caudal", caudal.inferior, depth),
        foundation_mpa_per_mm2=settings.foundation_mpa_per_mm2,
        load=_layer("cranial", cranial.superior, depth),
        near=(_layer("caudal", caudal.superior, near), _layer("cranial", cranial.inferior, near)),
        links=tuple(_rod(segment, side, settings) for side in ("left", "right")) if rods else (),
        loadcases=tuple(loadcases),
    )


def _layer(body: str, plate: Endplate, depth_mm: float) -> Patch:
    return Patch(
        body,
        "layer",
        plate.centre_mm,
        normal=plate.normal,
        axis_left=plate.axis_left,
        half_width_mm=plate.half_width_mm,
        half_depth_mm=plate.half_depth_mm,
        depth_mm=depth_mm,
    )


def _rod(segment: Segment, side: str, settings: BoundarySettings) -> Link:
    """One rod with its two pedicle screws: beams anchor → head → head → anchor, condensed to the
    anchors.

    The anchors are the middles of the pedicle axes; the bone around each axis follows its anchor in
    the least-squares sense (no loosening, no play in the heads).
    """
    axes = [segment.cranial.pedicles[side], segment.caudal.pedicles[side]]
    anchors = [axis.mean(axis=0) for axis in axes]
    heads = [
        axis[0] + settings.head_offset_mm * (axis[0] - axis[1]) / np.linalg.norm(axis[0] - axis[1])
        for axis in axes
    ]
    points = [anchors[0], heads[0], heads[1], anchors[1]]
    diameters = [settings.screw_diameter_mm, settings.rod_diameter_mm, settings.screw_diameter_mm]
    k = np.zeros((24, 24))
    for i, d in enumerate(diameters):
        part = slice(6 * i, 6 * i + 12)
        k[part, part] += beam_stiffness(
            points[i], points[i + 1], d, settings.rod_e_mpa, settings.rod_poisson
        )
    keep, drop = np.r_[0:6, 18:24], np.r_[6:18]
    condensed = k[np.ix_(keep, keep)] - k[np.ix_(keep, drop)] @ np.linalg.solve(
        k[np.ix_(drop, drop)], k[np.ix_(drop, keep)]
    )
    patches = [
        Patch(
            body,
            "capsule",
            axis[0],
            end_mm=axis[1],
            radius_mm=settings.screw_diameter_mm / 2 + _BONE_ROUND_SCREW_MM,
        )
        for body, axis in zip(("cranial", "caudal"), axes, strict=True)
    ]
    return Link(
        f"rod_{side}", patches[0], patches[1], anchors[0], anchors[1], (condensed + condensed.T) / 2
    )


def beam_stiffness(
    start_mm: np.ndarray, end_mm: np.ndarray, diameter_mm: float, e_mpa: float, poisson: float
) -> np.ndarray:
    """Euler-Bernoulli beam of round section in space, [12, 12] on (u₁, θ₁, u₂, θ₂), N, mm, rad.

    Przemieniecki 1968, eq. 5.116 without shear. Raises ValueError for a beam of no length.
    """
    axis = np.asarray(end_mm, float) - start_mm
    length = float(np.linalg.norm(axis))
    if length < 1e-6:
        raise ValueError(
            f"a beam from {start_mm} to {end_mm} has no length; check the pedicle axes"
        )
    area, inertia = np.pi * diameter_mm**2 / 4, np.pi * diameter_mm**4 / 64
    ea, gj, ei = (
        e_mpa * area / length,
        e_mpa / (1 + poisson) * inertia / length,
        e_mpa * inertia / length**3,
    )
    k = np.zeros((12, 12))
    for i, value in ((0, ea), (3, gj)):
        k[np.ix_([i, i + 6], [i, i + 6])] += value * np.array([[1, -1], [-1, 1]])
    bend = ei * np.array(
        [
            [12, 6 * length, -12, 6 * length],
            [6 * length, 4 * length**2, -6 * length, 2 * length**2],
            [-12, -6 * length, 12, -6 * length],
            [6 * length, 2 * length**2, -6 * length, 4 * length**2],
        ]
    )
    k[np.ix_([1, 5, 7, 11], [1, 5, 7, 11])] += bend
    sign = np.array([1, -1, 1, -1])
    k[np.ix_([2, 4, 8, 10], [2, 4, 8, 10])] += bend * np.outer(sign, sign)
    x = axis / length
    other = np.eye(3)[np.argmin(np.abs(x))]
    z = np.cross(x, other) / np.linalg.norm(np.cross(x, other))
    turn = np.kron(np.eye(4), np.stack([x, np.cross(z, x), z]))
    return turn.T @ k @ turn
