"""Corners of endplates, and the heights and slips measured between them."""

from __future__ import annotations

import numpy as np

from engine.patient.alignment.disc import disc_axes, midsagittal
from engine.patient.geometry.frames import frame, inverse, move_endplate, vertebra_frame
from engine.types import Endplate, Vertebra, rigid


def corners(plate: Endplate) -> tuple[np.ndarray, np.ndarray]:
    """Midpoints of the anterior and posterior rim, on the endplate's own midline."""
    matrix = frame(
        plate.centre_mm, plate.normal if plate.normal[2] > 0.0 else -plate.normal, plate.axis_left
    )
    front, back = midsagittal(move_endplate(inverse(matrix), plate))
    return rigid(matrix, np.array([0.0, front, 0.0])), rigid(matrix, np.array([0.0, back, 0.0]))


def posterior_height_mm(superior: Endplate, inferior: Endplate) -> float:
    """Height of a vertebral body between its posterior rim midpoints, mm."""
    to_own = inverse(vertebra_frame(superior, inferior))
    top, bottom = (corners(move_endplate(to_own, plate))[1] for plate in (superior, inferior))
    return float(np.linalg.norm(top - bottom))


def posterior_slip_mm(upper: Endplate, lower: Endplate) -> float:
    """Slip of the posterior rim midpoints along the disc, positive anteriorly, mm."""
    to_frame = inverse(frame(lower.centre_mm, lower.normal, lower.axis_left))
    upper, lower = move_endplate(to_frame, upper), move_endplate(to_frame, lower)
    _, back, _ = disc_axes(-upper.normal)
    return -float((corners(upper)[1] - corners(lower)[1]) @ back)


def central_height_mm(body: Vertebra) -> float:
    """Height of the bone within 3 mm of the body's axis, between its own surfaces, mm (mean over
    the columns)."""
    matrix = vertebra_frame(body.superior, body.inferior)
    half = 0.5 * float(np.linalg.norm(body.superior.centre_mm - body.inferior.centre_mm)) + 6.0
    z = np.arange(-half, half + 0.05, 0.1)
    heights = []
    for u in (-3.0, 0.0, 3.0):
        for v in (-3.0, 0.0, 3.0):
            inside = (
                body.sdf.sample(
                    rigid(matrix, np.column_stack([np.full_like(z, u), np.full_like(z, v), z]))
                )
                < 0.0
            )
            at = np.flatnonzero(inside)
            if len(at):
                heights.append(z[at[-1]] - z[at[0]])
    if len(heights) < 9:
        raise ValueError(
            f"{body.name}: no bone on the body's axis; its endplates and its surface are not in one"
            " frame"
        )
    return float(np.mean(heights))
