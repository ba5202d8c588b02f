"""What is measured at one level: a disc with its slip, a body with its heights and losses.

    level   lean(cranial superior) − lean(caudal superior)   levels L1-L2 … L5-S1 add up to LL; the
                                                             definition of [S66]
    slip    along the disc (disc.py), as % of the caudal endplate's depth; Meyerding [M]. A slip
            moves centres and posterior rims alike, a difference in depth or a rounded corner only
            one of them: the smaller counts, opposite signs are none

Body heights are between the two rim planes; height_central is between the bone's own surfaces (the
cavities count).
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from engine.patient.alignment.axes import Spine
from engine.patient.alignment.corners import (
    central_height_mm,
    corners,
    posterior_height_mm,
    posterior_slip_mm,
)
from engine.patient.alignment.disc import Plates, measure
from engine.patient.alignment.scores import height_loss_grade, meyerding
from engine.patient.alignment.table import Table
from engine.patient.geometry.frames import inverse, move_endplate, vertebra_frame
from engine.patient.geometry.levels import follow
from engine.types import SegmentAlignment

#: Their posterior height is naturally lower than the neighbours', which says nothing of a crush.
_LOWEST = ("L5", "L6")


def measure_discs(spine: Spine, table: Table) -> dict[str, SegmentAlignment]:
    """Enter every disc between levels that follow each other; their alignments by place."""
    segments = {}
    for upper, lower in zip(spine.levels, [*spine.levels[1:], "S1"], strict=True):
        below = spine.below(lower)
        if below is not None and follow(upper, lower):
            segments[f"{upper}-{lower}"] = _measure_disc(spine, table, upper, lower, below)
    return segments


def _measure_disc(
    spine: Spine, table: Table, upper: str, lower: str, below: Plates
) -> SegmentAlignment:
    place = f"{upper}-{lower}"
    alignment = measure(spine.plates[upper], below)
    for name, value in asdict(alignment).items():
        table.put(place, name, value)
    rims, centres = posterior_slip_mm(spine.plates[upper][1], below[0]), alignment.listhesis_mm
    slip = min((rims, centres), key=abs) if rims * centres > 0.0 else 0.0
    percent = 100.0 * slip / (2.0 * below[0].half_depth_mm)
    table.put(place, "slip_posterior_mm", rims)
    table.put(place, "slip_mm", slip)
    table.put(place, "slip_percent", percent)
    table.put(place, "meyerding", meyerding(percent, slip))
    lordosis = spine.lordosis_deg(upper, lower)
    assert isinstance(lordosis, float)
    table.put(place, "level_lordosis_deg", lordosis)
    return alignment


def measure_body(spine: Spine, table: Table, level: str) -> None:
    """Enter heights, wedges and height losses of one vertebral body."""
    front, back = _heights_and_wedges(spine, table, level)
    table.put(level, "loss_anterior_percent", _loss_percent(front, back))
    losses = [_loss_percent(front, back)]
    if level in spine.bodies:
        central = central_height_mm(spine.bodies[level])
        table.put(level, "height_central_mm", central)
        table.put(level, "loss_central_percent", _loss_percent(central, back))
        losses.append(_loss_percent(central, back))
    else:
        for name in ("height_central_mm", "loss_central_percent"):
            table.lack(level, name, "needs the bone's surface, and only endplates were given")
    at = spine.levels.index(level)
    near = [
        n
        for n in spine.levels[max(at - 1, 0) : at + 2]
        if n != level and (follow(n, level) or follow(level, n))
    ]
    if near:
        usual = float(np.mean([posterior_height_mm(*spine.plates[n]) for n in near]))
        posterior = _loss_percent(back, usual)
        reason = f"against {' and '.join(near)}"
        table.put(level, "loss_posterior_percent", posterior, reason=reason)
        # the crush of a whole body shows in its posterior height alone
        if level not in _LOWEST:
            losses.append(posterior)
    else:
        table.lack(level, "loss_posterior_percent", "no neighbouring level to compare with")
    note = "against its own posterior height and the neighbours'; a shape, not a diagnosis"
    table.put(level, "height_loss_grade", height_loss_grade(max(losses)), reason=note)


def _heights_and_wedges(spine: Spine, table: Table, level: str) -> tuple[float, float]:
    """Anterior and posterior height, mm, which are entered with the middle one and both wedges."""
    superior, inferior = spine.plates[level]
    to_own = inverse(vertebra_frame(superior, inferior))
    top, bottom = move_endplate(to_own, superior), move_endplate(to_own, inferior)
    (front_top, back_top), (front_bottom, back_bottom) = corners(top), corners(bottom)
    front = float(np.linalg.norm(front_top - front_bottom))
    back = float(np.linalg.norm(back_top - back_bottom))
    middle = float(np.linalg.norm(top.centre_mm - bottom.centre_mm))
    table.put(level, "height_anterior_mm", front)
    table.put(level, "height_middle_mm", middle)
    table.put(level, "height_posterior_mm", back)
    (tx, ty, tz), (bx, by, bz) = top.normal, -bottom.normal
    wedge = float(np.degrees(np.arctan2(ty, tz) - np.arctan2(by, bz)))
    coronal = float(np.degrees(np.arctan2(-tx, tz) - np.arctan2(-bx, bz)))
    table.put(level, "wedge_deg", wedge)
    table.put(level, "coronal_wedge_deg", coronal)
    return front, back


def _loss_percent(height_mm: float, reference_mm: float) -> float:
    return 100.0 * (1.0 - height_mm / reference_mm)
