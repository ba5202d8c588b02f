"""Pedicle axes: the straight path through each pedicle that stays deepest in the bone.

In the vertebra's frame the line (x, z) = (x₀ + a·s, z₀ + b·s), s = y − isthmus, is chosen to
maximise the soft minimum of its depth −φ from the target to 13 mm behind the posterior wall of the
body; the isthmus is the shallowest place on it behind the wall. Entry: where the line leaves the
bone behind. Target: in the body, at 65 % of its depth.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from engine.patient.geometry.frames import inverse
from engine.types import Endplate, VoxelField, rigid

BEHIND_MM = 13.0


def pedicle_axes(
    name: str, sdf: VoxelField, pose: np.ndarray, superior: Endplate, inferior: Endplate
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Axes {"left": [2, 3], "right": [2, 3]} (entry, target) and isthmus points, in the frame of
    `sdf`.

    Raises: ValueError when no path stays at least 1 mm inside the bone (cut or missing pedicle).
    """
    to_own = inverse(pose)
    rims = [rigid(to_own, plate.rim_mm) for plate in (superior, inferior)]
    wall = float(np.mean([np.sort(rim[:, 1])[-9:].mean() for rim in rims]))
    front = float(np.mean([rim[:, 1].min() for rim in rims]))
    top = float(rims[0][:, 2].mean())
    width = 0.5 * (superior.half_width_mm + inferior.half_width_mm)
    goal = wall - 0.65 * (wall - front)
    along = np.arange(goal, wall + BEHIND_MM, 0.5)
    axes, isthmus = {}, {}
    for side, sign in (("left", 1.0), ("right", -1.0)):

        def depth(line: np.ndarray, y: np.ndarray = along) -> np.ndarray:
            s = y - wall - 5.0
            points = np.stack([line[0] + line[1] * s, y, line[2] + line[3] * s], axis=-1)
            return -np.asarray(sdf.sample(rigid(pose, points)))

        def cost(line: np.ndarray, sign: float = sign) -> float:
            # soft minimum of the depth; a pedicle converges forwards by 0-25° and tilts at most 20°
            # sagittally
            value = depth(line)
            over = max(abs(line[1] - sign * 0.23) - 0.23, 0.0) + max(abs(line[3]) - 0.36, 0.0)
            return float(np.log(np.exp(-2.0 * value).mean()) / 2.0 + 20.0 * over)

        starts = [
            np.array([sign * share * width, sign * 0.2, z, 0.0])
            for share in (0.45, 0.6, 0.75, 0.9)
            for z in (0.0, 0.25 * top, 0.5 * top, 0.75 * top)
        ]
        start = min(starts, key=cost)
        simplex = start + np.vstack([np.zeros(4), np.diag([2.0, 0.1, 2.0, 0.1])])
        options = {"xatol": 1e-2, "fatol": 1e-4, "maxiter": 400, "initial_simplex": simplex}
        line = minimize(cost, start, method="Nelder-Mead", options=options).x
        value = depth(line)
        if value.min() < 1.0:
            raise ValueError(
                f"{name}: no {side} pedicle is found (deepest path {value.min():.1f} mm inside the"
                " bone, at least 1 mm is needed); the posterior elements are cut off or the"
                " segmentation has a gap there"
            )
        narrow = along[int(np.argmin(np.where(along > wall - 2.0, value, np.inf)))]
        behind = np.arange(narrow, wall + 45.0, 0.1)
        outside = depth(line, behind) < 0.0
        leaves = behind[int(np.argmax(outside))] if outside.any() else behind[-1]
        ends = np.array([leaves, goal, narrow])
        s = ends - wall - 5.0
        points = rigid(
            pose, np.stack([line[0] + line[1] * s, ends, line[2] + line[3] * s], axis=-1)
        )
        axes[side], isthmus[side] = points[:2], points[2]
    return axes, isthmus
