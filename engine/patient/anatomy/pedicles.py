"""Pedicle axes: the straight path through each pedicle that stays deepest in the bone.

In the vertebra's frame a path is the line (x, z) = (x₀ + a·s, z₀ + b·s), s = y − wall − 5 mm, with
the body's posterior wall at y = wall. It is chosen to maximise the soft minimum of its depth −φ
from the target to 13 mm behind the wall; the isthmus is the shallowest place on it behind the wall.
Entry: where the line leaves the bone behind. Target: in the body, at 65 % of its depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from engine.patient.anatomy.body import posterior_wall_mm
from engine.patient.geometry.frames import inverse
from engine.types import Endplate, VoxelField, rigid

#: How far behind the posterior wall the path must stay in bone: the length of a lumbar pedicle [M].
BEHIND_MM = 13.0
#: Where s = 0: behind the wall, in the middle of the pedicle.
MIDDLE_MM = 5.0
#: The target's depth in the body, from the posterior wall, as a share of the body's.
TARGET_SHARE = 0.65
#: Least depth of a path that is a pedicle's; a cut or missing one has none.
LEAST_DEPTH_MM = 1.0
#: The isthmus may lie this far before the wall.
ISTHMUS_BEFORE_MM = 2.0
#: Farthest entry behind the wall, and the steps in which the path is followed up to the wall and
#: out of the bone.
REACH_MM, DEPTH_STEP_MM, EXIT_STEP_MM = 45.0, 0.5, 0.1
#: Soft minimum of depths d: −ln(mean exp(−k d))/k.
SOFTNESS_PER_MM = 2.0
#: A pedicle converges forwards by 0-25° (slope a = 0.23 ± 0.23 towards its side) and tilts at most
#: 20° sagittally (|b| ≤ 0.36) [M]; mm of cost per unit of slope beyond that.
CONVERGENCE_SLOPE, SAGITTAL_SLOPE, SLOPE_COST_MM = 0.23, 0.36, 20.0
#: Where the search starts: x₀ as shares of the body's half width, z₀ as shares of its half height,
#: and the slope a.
START_WIDTHS, START_HEIGHTS, START_SLOPE = (0.45, 0.6, 0.75, 0.9), (0.0, 0.25, 0.5, 0.75), 0.2
#: First steps of the simplex in x₀ (mm), a, z₀ (mm) and b; and where it stops.
SIMPLEX = (2.0, 0.1, 2.0, 0.1)
LINE_TOLERANCE, COST_TOLERANCE_MM = 1e-2, 1e-4
#: Most iterations from a start that is only roughly known.
MOST_ITERATIONS = 400


class PathPlaces(NamedTuple):
    """y of the places on a path: entry, target and isthmus."""

    entry_mm: float
    target_mm: float
    isthmus_mm: float


@dataclass(frozen=True)
class PediclePath:
    """Paths (x₀, a, z₀, b) through one pedicle (module docstring) and how deep they lie.

    distance    signed distance φ at points [..., 3] of the vertebra's frame
    sign        1 for the left pedicle, −1 for the right
    wall_mm     y of the body's posterior wall
    target_mm   y of the target in the body
    """

    distance: Callable[[np.ndarray], np.ndarray]
    sign: float
    wall_mm: float
    target_mm: float

    @cached_property
    def along_mm(self) -> np.ndarray:
        """y of the samples from the target to the end of the pedicle."""
        return np.arange(self.target_mm, self.wall_mm + BEHIND_MM, DEPTH_STEP_MM)

    def points(self, line: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Points [n, 3] of a path at y."""
        s = y - self.wall_mm - MIDDLE_MM
        return np.stack([line[0] + line[1] * s, y, line[2] + line[3] * s], axis=-1)

    def depth(self, line: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Depth −φ of a path at y, mm."""
        return -self.distance(self.points(line, y))

    def cost(self, line: np.ndarray) -> float:
        """Negative soft minimum of the depth, and what slopes beyond a pedicle's cost, mm."""
        over = max(abs(line[1] - self.sign * CONVERGENCE_SLOPE) - CONVERGENCE_SLOPE, 0.0) + max(
            abs(line[3]) - SAGITTAL_SLOPE, 0.0
        )
        soft = np.log(np.exp(-SOFTNESS_PER_MM * self.depth(line, self.along_mm)).mean())
        return float(soft / SOFTNESS_PER_MM + SLOPE_COST_MM * over)

    def through(self, entry: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The path of a known axis."""
        slope = (entry - target) / (entry[1] - target[1])
        middle = target + (self.wall_mm + MIDDLE_MM - target[1]) * slope
        return np.array([middle[0], slope[0], middle[2], slope[2]])

    def deepest(self, start: np.ndarray, most_iterations: int = MOST_ITERATIONS) -> np.ndarray:
        """The path of least cost near `start`."""
        options = {
            "xatol": LINE_TOLERANCE,
            "fatol": COST_TOLERANCE_MM,
            "maxiter": most_iterations,
            "initial_simplex": start + np.vstack([np.zeros(4), np.diag(SIMPLEX)]),
        }
        result = minimize(self.cost, start, method="Nelder-Mead", options=options)
        return np.asarray(result.x)

    def places(self, line: np.ndarray) -> PathPlaces:
        """Where on a path the bone is entered, aimed at and narrowest."""
        along = self.along_mm
        behind_wall = along > self.wall_mm - ISTHMUS_BEFORE_MM
        narrow = along[int(np.argmin(np.where(behind_wall, self.depth(line, along), np.inf)))]
        behind = np.arange(narrow, self.wall_mm + REACH_MM, EXIT_STEP_MM)
        outside = self.depth(line, behind) < 0.0
        entry = behind[int(np.argmax(outside))] if outside.any() else behind[-1]
        return PathPlaces(entry, self.target_mm, narrow)


def pedicle_axes(
    name: str, sdf: VoxelField, pose: np.ndarray, superior: Endplate, inferior: Endplate
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Axes {"left": [2, 3], "right": [2, 3]} (entry, target) and isthmus points, in the frame of
    `sdf`.

    Raises: ValueError when no path stays at least 1 mm inside the bone (cut or missing pedicle).
    """
    to_own = inverse(pose)
    rims = [rigid(to_own, plate.rim_mm) for plate in (superior, inferior)]
    wall = posterior_wall_mm(rims)
    front = float(np.mean([rim[:, 1].min() for rim in rims]))
    top = float(rims[0][:, 2].mean())
    width = 0.5 * (superior.half_width_mm + inferior.half_width_mm)
    target = wall - TARGET_SHARE * (wall - front)

    def distance(own: np.ndarray) -> np.ndarray:
        return np.asarray(sdf.sample(rigid(pose, own)))

    axes, isthmus = {}, {}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        path = PediclePath(distance, sign, wall, target)
        starts = [
            np.array([sign * share * width, sign * START_SLOPE, height * top, 0.0])
            for share in START_WIDTHS
            for height in START_HEIGHTS
        ]
        line = path.deepest(min(starts, key=path.cost))
        least = path.depth(line, path.along_mm).min()
        if least < LEAST_DEPTH_MM:
            raise ValueError(
                f"{name}: no {side} pedicle is found (deepest path {least:.1f} mm inside the"
                " bone, at least 1 mm is needed); the posterior elements are cut off or the"
                " segmentation has a gap there"
            )
        points = rigid(pose, path.points(line, np.array(path.places(line))))
        axes[side], isthmus[side] = points[:2], points[2]
    return axes, isthmus
