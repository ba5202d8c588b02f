"""Anatomy of one vertebra from its signed distance: midline, endplates, landmarks.

Conventions (the phantom's truth uses the same)
    midline    plane of best mirror symmetry of the whole bone (least mean distance of mirrored
               surface points, each capped at 3 mm so that an osteophyte or a worn facet does not
               turn it)
    endplate   plane through the bony rim: robust fit (pseudo-Huber, 0.5 mm) to the crest of the
               endplate in the outer 30 % of each of 144 directions, so that neither the cavity nor
               an osteophyte tilts it much. The loss is convex: where both sides of a rim curl up
               there is one plane, not one for each side left out
    rim        the body's section 1 mm under that plane, projected onto it; centre: its area
               centroid
    frame      x left (midline's normal), y posterior, z cranial

Only rough directions are asked for: `up` to some 30°. Posterior is where the bone's centroid lies
from the thickest part, the body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize

from engine.patient.anatomy.body import BodyBox
from engine.patient.anatomy.pedicles import pedicle_axes
from engine.patient.geometry.frames import frame, inverse, rotation, unit, vertebra_frame
from engine.types import Endplate, Surface, VoxelField, rigid


@dataclass(frozen=True)
class Anatomy:
    """What was found on one vertebra; everything in the frame of its surface."""

    superior: Endplate
    inferior: Endplate
    pedicles: dict[str, np.ndarray]
    landmarks: dict[str, np.ndarray]


def anatomy(name: str, surface: Surface, sdf: VoxelField, up: np.ndarray) -> Anatomy:
    """Endplates, pedicle axes and landmarks of a thoracic or lumbar vertebra.

    Raises: ValueError, naming the vertebra, when what is found is not a vertebra's anatomy.
    """
    pose = first_frame(surface, sdf, up)
    pose = mirror_frame(surface, sdf, pose)
    plates: tuple[Endplate, Endplate] | None = None
    for _ in range(2):
        box = BodyBox(name, sdf, pose)
        plates = box.plate("superior"), box.plate("inferior")
        pose = mirror_frame(surface, sdf, vertebra_frame(*plates))
    assert plates is not None
    superior, inferior = plates
    _plausible(name, superior, inferior)
    pose = vertebra_frame(superior, inferior)
    axes, isthmus = pedicle_axes(name, sdf, pose, superior, inferior)
    own = rigid(inverse(pose), surface.points_mm)
    landmarks = {
        "body_centre": pose[:3, 3],
        "spinous_tip": surface.points_mm[int(np.argmax(own[:, 1] - 0.5 * np.abs(own[:, 0])))],
        "pedicle_isthmus_left": isthmus["left"],
        "pedicle_isthmus_right": isthmus["right"],
    }
    return Anatomy(superior, inferior, axes, landmarks)


def body_centre(sdf: VoxelField) -> np.ndarray:
    """A point deep in the vertebral body: the peak of the bone blurred by 7 mm (the body is its
    thickest part)."""
    stride = max(round(2.0 / sdf.spacing_mm), 1)
    bone = (np.asarray(sdf.values)[::stride, ::stride, ::stride] < 0.0).astype(np.float32)
    blurred = gaussian_filter(bone, 7.0 / (stride * sdf.spacing_mm))
    peak = np.unravel_index(int(np.argmax(blurred)), blurred.shape)
    return np.asarray(sdf.origin_mm + stride * sdf.spacing_mm * np.array(peak))


def first_frame(surface: Surface, sdf: VoxelField, up: np.ndarray) -> np.ndarray:
    """Rough frame: z along `up`, y from the body to the centroid of the surface (the processes
    are behind)."""
    centre = body_centre(sdf)
    z = unit(up)
    back = surface.points_mm.mean(axis=0) - centre
    back -= (back @ z) * z
    if np.linalg.norm(back) < 3.0:
        raise ValueError(
            "no posterior elements can be told from the body (their centroids are under 3 mm"
            " apart); a whole vertebra is needed, not a body alone"
        )
    return frame(centre, z, np.cross(unit(back), z))


def mirror_frame(surface: Surface, sdf: VoxelField, pose: np.ndarray) -> np.ndarray:
    """The frame turned about z and y, and moved along x, until its x = 0 plane mirrors the bone
    best."""
    points = surface.points_mm[:: max(len(surface.points_mm) // 1500, 1)]

    def turned(parameters: np.ndarray) -> np.ndarray:
        result = pose.copy()
        result[:3, :3] = (
            pose[:3, :3] @ rotation(2, parameters[0] / 20.0) @ rotation(1, parameters[1] / 20.0)
        )
        result[:3, 3] = pose[:3, 3] + parameters[2] * pose[:3, 0]
        return result

    def misfit(parameters: np.ndarray) -> float:
        matrix = turned(parameters)
        own = rigid(inverse(matrix), points) * np.array([-1.0, 1.0, 1.0])
        return float(np.minimum(np.abs(sdf.sample(rigid(matrix, own))), 3.0).mean())

    starts = [
        np.array([angle, 0.0, shift]) for angle in (-4.0, 0.0, 4.0) for shift in (-2.0, 0.0, 2.0)
    ]
    best = min(starts, key=misfit)
    found = minimize(
        misfit,
        best,
        method="Nelder-Mead",
        options={
            "xatol": 2e-3,
            "fatol": 1e-5,
            "maxiter": 250,
            "initial_simplex": best + np.vstack([np.zeros(3), 1.5 * np.eye(3)]),
        },
    )
    return turned(found.x)


def _plausible(name: str, superior: Endplate, inferior: Endplate) -> None:
    height = float(np.linalg.norm(superior.centre_mm - inferior.centre_mm))
    wedge = float(np.degrees(np.arccos(np.clip(-superior.normal @ inferior.normal, -1.0, 1.0))))
    sizes = (
        superior.half_width_mm,
        inferior.half_width_mm,
        superior.half_depth_mm,
        inferior.half_depth_mm,
    )
    if not (8.0 < height < 50.0 and wedge < 35.0 and 6.0 < min(sizes) and max(sizes) < 40.0):
        raise ValueError(
            f"{name}: what was found is no vertebral body (height {height:.1f} mm, wedge"
            f" {wedge:.0f}°, half axes {', '.join(f'{s:.1f}' for s in sizes)} mm); expected a whole"
            " thoracic or lumbar vertebra in mm"
        )
