"""What is measured over several levels: lordosis, pelvis, curve in the coronal plane, apex.

With n an endplate's cranial normal, lean(n) = atan2(n·y, n·z), H the hip axis, M S1's centre

    LL     lean(L1 superior) − lean(S1 superior) [S57]; L4-S1 the same from L4
    SS     −lean(S1) from the vertical
    PT     lean(HM) from the vertical
    PI     PT + SS [S57]
    L1PA   lean(HM) − lean(H → L1's centre) [S58]
    tilt   atan2(l·z, l·x) of an endplate's left axis l
    Cobb   largest |tilt(superior of i) − tilt(inferior of j)|
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from engine.patient.alignment.axes import NO_ENDPLATE, Spine, wrapped_deg
from engine.patient.alignment.measures import REGIONAL
from engine.patient.alignment.table import Table
from engine.patient.geometry.frames import vertebra_frame
from engine.types import Endplate, SegmentAlignment

#: A lordosis below this is too small to be divided [M].
_DIVISIBLE_DEG = 10.0
#: A Cobb angle below this is not called scoliosis [M].
_SCOLIOSIS_DEG = 10.0


def measure_lordosis(spine: Spine, table: Table) -> None:
    """Enter LL, L4-S1, and what share of the one the other is."""
    for name, upper in (("lumbar_lordosis_deg", "L1"), ("l4_s1_lordosis_deg", "L4")):
        value = spine.lordosis_deg(upper, "S1")
        if isinstance(value, str):
            table.lack(REGIONAL, name, value)
        else:
            table.put(REGIONAL, name, value)
    total, lower = table.regional("lumbar_lordosis_deg"), table.regional("l4_s1_lordosis_deg")
    name = "lordosis_distribution_percent"
    if total is None or lower is None:
        table.lack(REGIONAL, name, "needs LL and L4-S1")
    elif total < _DIVISIBLE_DEG:
        table.lack(REGIONAL, name, _too_small(total))
    else:
        table.put(REGIONAL, name, 100.0 * lower / total)


def measure_shares(table: Table, segments: dict[str, SegmentAlignment]) -> None:
    """Enter each lumbar level's share of LL."""
    total = table.regional("lumbar_lordosis_deg")
    for place in segments:
        if place[0] != "L":
            continue
        if total is None or total < _DIVISIBLE_DEG:
            why = "LL is not measurable" if total is None else _too_small(total)
            table.lack(place, "lordosis_share_percent", why)
        else:
            level = table.measures[place, "level_lordosis_deg"].value
            assert isinstance(level, float)
            table.put(place, "lordosis_share_percent", 100.0 * level / total)


def _too_small(lordosis_deg: float) -> str:
    return f"LL of {lordosis_deg:.1f}° is too small to be divided"


# -- pelvis ----------------------------------------------------------------------------------------
def measure_pelvis(spine: Spine, table: Table, pi_deg: float | None) -> None:
    """Enter SS, PI, PT, L1PA and PI − LL; pi_deg: PI from elsewhere."""
    slope = None
    if spine.base is None:
        table.lack(REGIONAL, "sacral_slope_deg", NO_ENDPLATE.format("S1"))
    else:
        slope = -spine.lean_deg(spine.base.normal, spine.up)
        table.put(REGIONAL, "sacral_slope_deg", slope)
    if spine.base is not None and spine.heads_mm is not None:
        assert slope is not None
        _pelvis_of_heads(spine, table, spine.base, spine.heads_mm.mean(axis=0), slope)
    elif pi_deg is not None:
        _pelvis_of_incidence(table, pi_deg, slope)
    else:
        missing = NO_ENDPLATE.format("S1")
        if spine.base is not None:
            missing = "the femoral heads are not in the scan, and no PI was given"
        for name in ("pelvic_incidence_deg", "pelvic_tilt_deg", "l1_pelvic_angle_deg"):
            table.lack(REGIONAL, name, missing)
    incidence = table.regional("pelvic_incidence_deg")
    lordosis = table.regional("lumbar_lordosis_deg")
    if incidence is not None and lordosis is not None:
        table.put(REGIONAL, "pi_minus_ll_deg", incidence - lordosis)
    else:
        table.lack(REGIONAL, "pi_minus_ll_deg", "needs PI and LL")


def _pelvis_of_heads(
    spine: Spine, table: Table, base: Endplate, hips_mm: np.ndarray, slope_deg: float
) -> None:
    """PI, PT and L1PA with the middle of the hip axis."""
    tilt = spine.lean_deg(base.centre_mm - hips_mm, spine.up)
    table.put(REGIONAL, "pelvic_incidence_deg", wrapped_deg(slope_deg + tilt))
    table.put(REGIONAL, "pelvic_tilt_deg", tilt)
    if "L1" not in spine.plates:
        table.lack(REGIONAL, "l1_pelvic_angle_deg", NO_ENDPLATE.format("L1"))
        return
    superior, inferior = spine.plates["L1"]
    centre = 0.5 * (superior.centre_mm + inferior.centre_mm)
    to_s1 = spine.lean_deg(base.centre_mm - hips_mm, spine.z)
    to_l1 = spine.lean_deg(centre - hips_mm, spine.z)
    table.put(REGIONAL, "l1_pelvic_angle_deg", wrapped_deg(to_s1 - to_l1))


def _pelvis_of_incidence(table: Table, pi_deg: float, slope_deg: float | None) -> None:
    """A given PI, and PT as far as it follows from it."""
    source = "given, not of this scan"
    table.put(REGIONAL, "pelvic_incidence_deg", pi_deg, status="given", source=source)
    if slope_deg is not None:
        reason = "given PI less measured SS"
        table.put(REGIONAL, "pelvic_tilt_deg", pi_deg - slope_deg, reason=reason)
    else:
        table.lack(REGIONAL, "pelvic_tilt_deg", NO_ENDPLATE.format("S1"))
    table.lack(REGIONAL, "l1_pelvic_angle_deg", "the femoral heads are not in the scan")


# -- coronal and axial plane -----------------------------------------------------------------------
def measure_curve(spine: Spine, table: Table) -> None:
    """Enter the largest Cobb angle with its side, ends and apex, and the axial rotations."""
    names = ("cobb_deg", "cobb_side", "cobb_ends", "cobb_apex")
    if len(spine.levels) < 2:
        for name in (*names, "axial_rotation_range_deg"):
            table.lack(REGIONAL, name, "needs at least two vertebrae")
    else:
        _measure_cobb(spine, table)
    turns = {}
    for level, pair in spine.plates.items():
        left = vertebra_frame(*pair)[:3, 0]
        turns[level] = float(
            np.degrees(np.arctan2(left @ np.cross(spine.z, spine.x), left @ spine.x))
        )
        table.put(level, "axial_rotation_deg", turns[level])
    if len(turns) > 1:
        spread = max(turns.values()) - min(turns.values())
        table.put(REGIONAL, "axial_rotation_range_deg", spread)


def _measure_cobb(spine: Spine, table: Table) -> None:
    levels = spine.levels
    tilt = {
        (level, side): float(
            np.degrees(np.arctan2(plate.axis_left @ spine.z, plate.axis_left @ spine.x))
        )
        for level, pair in spine.plates.items()
        for side, plate in enumerate(pair)
    }
    i, j = max(
        ((i, j) for i in range(len(levels)) for j in range(i + 1, len(levels))),
        key=lambda ends: abs(tilt[levels[ends[0]], 0] - tilt[levels[ends[1]], 1]),
    )
    angle = tilt[levels[i], 0] - tilt[levels[j], 1]
    small = "under 10°, which is not called scoliosis [M]" if abs(angle) < _SCOLIOSIS_DEG else ""
    side = "left" if angle > 0.0 else "right"
    table.put(REGIONAL, "cobb_deg", abs(angle), reason=small)
    table.put(REGIONAL, "cobb_side", side, reason=small or "side of the convexity")
    table.put(REGIONAL, "cobb_ends", f"{levels[i]}-{levels[j]}", reason=small)
    table.put(REGIONAL, "cobb_apex", _cobb_apex(spine, i, j, np.sign(angle)), reason=small)


def _cobb_apex(spine: Spine, i: int, j: int, side: float) -> str:
    """The body or disc between the end vertebrae that is farthest to the convex side of the line
    between them."""
    levels = spine.levels
    stations: list[tuple[str, np.ndarray]] = []
    for k in range(i, j + 1):
        superior, inferior = spine.plates[levels[k]]
        stations.append((levels[k], 0.5 * (superior.centre_mm + inferior.centre_mm)))
        if k < j:
            centre = 0.5 * (inferior.centre_mm + spine.plates[levels[k + 1]][0].centre_mm)
            stations.append((f"{levels[k]}-{levels[k + 1]}", centre))
    (_, top), (_, bottom) = stations[0], stations[-1]
    chord = top - bottom
    direction = np.array([chord @ spine.x, chord @ spine.z])
    off = [
        side
        * float(
            ((centre - bottom) @ spine.x) * direction[1]
            - ((centre - bottom) @ spine.z) * direction[0]
        )
        for _, centre in stations
    ]
    return stations[int(np.argmax(off))][0]


# -- apex ------------------------------------------------------------------------------------------
def measure_apex(spine: Spine, table: Table) -> None:
    """Enter where the lordosis is farthest forward: the first endplate, from S1 up, that is
    level."""
    column: list[tuple[str, Endplate]] = [] if spine.base is None else [("S1", spine.base)]
    for level in reversed(spine.levels):
        superior, inferior = spine.plates[level]
        column += [(level, replace(inferior, normal=-inferior.normal)), (level, superior)]
    lean = [spine.lean_deg(plate.normal, spine.up) for _, plate in column]
    if lean[0] >= 0.0:
        why = f"the lowest endplate in the scan ({column[0][0]}) does not lean forward"
        table.lack(REGIONAL, "apex", why)
        return
    for k, ((low, _), (high, _)) in enumerate(pairwise(column)):
        if lean[k + 1] >= 0.0:
            table.put(REGIONAL, "apex", high if high == low else f"{high}-{low}")
            return
    why = f"no endplate up to {spine.levels[0]} is level: the spine leans forward throughout"
    table.lack(REGIONAL, "apex", why)
