"""Coordinates and angles given by hand, held against the anatomy: femoral heads, pelvic incidence.

A point typed in the wrong frame (3D Slicer shows RAS, files here are LPS), in cm, or with two
coordinates exchanged gives a pelvic incidence that looks like any other. So what is given must lie
where hips lie, and its angles must be angles of a pelvis

    heads   one on each side of the sacrum, 120-240 mm apart, level within 25° of the patient's own
            left-right axis
    axis    their middle within 35 mm of the midline, 40-170 mm from the centre of S1's endplate,
            below it
    PI      20-100°
    PT      −30-65°, with PT = PI − SS

[M], wide about published ranges (PI 28-85°, PT −5-45°, heads 160-200 mm apart). What does not fit
is refused, with the slip that would explain it where there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.patient.geometry.frames import unit
from engine.types import Endplate, Finding, PatientModel

#: Heads and pelves that there are, as in the module docstring [M].
APART_MM, FROM_S1_MM, MIDLINE_MM, LEVEL_DEG = (120.0, 240.0), (40.0, 170.0), 35.0, 25.0
PI_DEG, PT_DEG = (20.0, 100.0), (-30.0, 65.0)
#: Added to the largest distance where L5's inferior endplate stands for S1's, mm [M].
_WITHOUT_SACRUM_MM = 60.0
#: A PI this near to the sacral slope may be the slope itself, degrees [M].
_SAME_AS_SLOPE_DEG = 2.0
#: Nearly all pelves; what lies between these and the above is warned of.
USUAL_PI_DEG, USUAL_PT_DEG = (28.0, 85.0), (-7.0, 45.0)
#: Given and fitted heads may lie this far apart, and a given PI this far from that of the heads.
SAME_HEAD_MM, SAME_PI_DEG = 15.0, 5.0

_SLIPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x and y with the other sign (given in RAS, as 3D Slicer shows them; LPS is asked for)": (
        lambda p: p * [-1.0, -1.0, 1.0]
    ),
    "x with the other sign": lambda p: p * [-1.0, 1.0, 1.0],
    "y with the other sign": lambda p: p * [1.0, -1.0, 1.0],
    "z with the other sign": lambda p: p * [1.0, 1.0, -1.0],
    "all signs turned": lambda p: -p,
    "centimetres for millimetres": lambda p: 10.0 * p,
    "metres for millimetres": lambda p: 1000.0 * p,
    "y and z exchanged": lambda p: p[:, [0, 2, 1]],
    "x and z exchanged": lambda p: p[:, [2, 1, 0]],
    "x and y exchanged": lambda p: p[:, [1, 0, 2]],
}


def _base(patient: PatientModel) -> tuple[Endplate, bool]:
    """S1's superior endplate, or the lowest inferior one where there is no sacrum (False)."""
    if patient.sacrum is not None:
        return patient.sacrum.superior, True
    return patient.vertebrae[-1].inferior, False


def _angles(heads: np.ndarray, plate: Endplate) -> tuple[float, float]:
    """Pelvic incidence and tilt, degrees, of two heads [2, 3] and S1's endplate (tilt positive
    with the sacrum behind the hips)."""
    left = unit(plate.axis_left - plate.axis_left[2] * np.array([0.0, 0.0, 1.0]))
    to_plate = plate.centre_mm - heads.mean(axis=0)
    to_plate = to_plate - (to_plate @ left) * left
    normal = unit(plate.normal - (plate.normal @ left) * left)
    # the image's z for the vertical: a patient who lies turned is measured as he lies
    back = np.cross([0.0, 0.0, 1.0], left)
    tilt = np.arctan2(to_plate @ back, to_plate[2])
    slope = np.arctan2(-(normal @ back), normal[2])
    return float(np.degrees(tilt + slope)), float(np.degrees(tilt))


def _misfit(heads: np.ndarray, patient: PatientModel) -> str:
    """Why two points [2, 3] are no femoral heads of this patient; "" where they could be."""
    plate, sacrum = _base(patient)
    left = unit(plate.axis_left - plate.axis_left[2] * np.array([0.0, 0.0, 1.0]))
    across = heads[0] - heads[1]
    apart = float(np.linalg.norm(across))
    if not APART_MM[0] <= apart <= APART_MM[1]:
        return (
            f"they are {apart:.0f} mm apart ({APART_MM[0]:.0f} to {APART_MM[1]:.0f} are expected)"
        )
    off = float(np.degrees(np.arccos(min(abs(float(across @ left)) / apart, 1.0))))
    if off > LEVEL_DEG:
        return (
            f"the line between them lies {off:.0f}° off the patient's left-right axis: they are not"
            " a left and a right one"
        )
    middle = heads.mean(axis=0) - plate.centre_mm
    beside = float(middle @ left)
    if abs(beside) > MIDLINE_MM:
        return (
            f"their middle lies {abs(beside):.0f} mm {'left' if beside > 0 else 'right'} of the"
            " sacrum's"
        )
    away = float(np.linalg.norm(middle - beside * left))
    low, high = FROM_S1_MM if sacrum else (FROM_S1_MM[0], FROM_S1_MM[1] + _WITHOUT_SACRUM_MM)
    if not low <= away <= high or middle[2] > 0.0:
        where = "above" if middle[2] > 0.0 else "from"
        level = "S1" if sacrum else patient.vertebrae[-1].name
        return (
            f"their middle lies {away:.0f} mm {where} {level}'s endplate ({low:.0f} to {high:.0f}"
            " mm below it are expected)"
        )
    if sacrum:
        incidence, tilt = _angles(heads, plate)
        if not (PI_DEG[0] <= incidence <= PI_DEG[1] and PT_DEG[0] <= tilt <= PT_DEG[1]):
            return (
                f"with them the pelvic incidence is {incidence:.0f}° and the pelvic tilt"
                f" {tilt:.0f}°"
            )
    return ""


def check_heads(
    heads_mm: np.ndarray, patient: PatientModel, key: str = "alignment.femoral_heads_mm"
) -> list[Finding]:
    """A warning where two points [2, 3] (LPS mm) make an unusual pelvis, with the slip that would
    make a usual one.

    Raises: ValueError for points that are no femoral heads of this patient, with what would fit.
    """
    heads = np.asarray(heads_mm, float)
    given = f"{key}={heads.round(1).tolist()}"
    if why := _misfit(heads, patient):
        text = f"{given} are not this patient's femoral heads: {why}"
        for words, slip in _SLIPS.items():
            if not _misfit(slip(heads), patient):
                raise ValueError(f"{text}. It would fit as {words}: {_line(key, slip(heads))}")
        raise ValueError(f"{text}; give the centres of both heads in LPS mm, left and right")
    fitted = patient.source.get("femoral_heads", {}).get("centres_mm")
    if fitted is not None:
        fitted_mm = np.asarray(fitted, float)
        apart = min(
            float(np.linalg.norm(heads - order, axis=1).max())
            for order in (fitted_mm, fitted_mm[::-1])
        )
        if apart > SAME_HEAD_MM:
            raise ValueError(
                f"{given}, but the labelled femurs' heads lie up to {apart:.0f} mm elsewhere"
                f" ({fitted_mm.round().tolist()}); leave it out, or correct it"
            )
    plate, sacrum = _base(patient)
    if not sacrum or _usual(heads, plate):
        return []
    incidence, tilt = _angles(heads, plate)
    text = (
        f"{given} give a pelvic incidence of {incidence:.0f}° and a pelvic tilt of {tilt:.0f}°,"
        " which few people have"
    )
    for words, slip in _SLIPS.items():
        if not _misfit(slip(heads), patient) and _usual(slip(heads), plate):
            incidence, tilt = _angles(slip(heads), plate)
            text += (
                f". With {words} it would be {incidence:.0f}° and {tilt:.0f}°:"
                f" {_line(key, slip(heads))}"
            )
            break
    return [Finding("heads", "warning", "", text)]


def _usual(heads: np.ndarray, plate: Endplate) -> bool:
    incidence, tilt = _angles(heads, plate)
    return (
        USUAL_PI_DEG[0] <= incidence <= USUAL_PI_DEG[1]
        and USUAL_PT_DEG[0] <= tilt <= USUAL_PT_DEG[1]
    )


def _line(key: str, points: np.ndarray) -> str:
    """A ready override."""
    return (
        f"'{key}=["
        + ",".join("[" + ",".join(f"{c:.1f}" for c in point) + "]" for point in points)
        + "]'"
    )


def check_incidence(
    pi_deg: float, sacral_slope_deg: float | None, of_heads_deg: float | None = None
) -> list[Finding]:
    """A warning where a given pelvic incidence makes an unusual pelvic tilt PT = PI − SS.

    Raises: ValueError for one that this pelvis cannot have, and where the femoral heads give
    another.
    """
    if not PI_DEG[0] <= pi_deg <= PI_DEG[1]:
        raise ValueError(
            f"alignment.pi_deg={pi_deg:g} is no pelvic incidence ({PI_DEG[0]:.0f} to"
            f" {PI_DEG[1]:.0f}°): is it the tilt?"
        )
    if sacral_slope_deg is not None:
        tilt = pi_deg - sacral_slope_deg
        if not PT_DEG[0] <= tilt <= PT_DEG[1]:
            raise ValueError(
                f"alignment.pi_deg={pi_deg:g} with the measured sacral slope of"
                f" {sacral_slope_deg:.0f}° gives a pelvic tilt of {tilt:.0f}° ({PT_DEG[0]:.0f} to"
                f" {PT_DEG[1]:.0f} are possible); expected a pelvic incidence of"
                f" {max(sacral_slope_deg + PT_DEG[0], PI_DEG[0]):.0f} to"
                f" {min(sacral_slope_deg + PT_DEG[1], PI_DEG[1]):.0f}: check that it is PI, not the"
                " sacral slope or the tilt, and the patient's own"
            )
    if of_heads_deg is not None and abs(pi_deg - of_heads_deg) > SAME_PI_DEG:
        raise ValueError(
            f"alignment.pi_deg={pi_deg:g}, but the femoral heads give {of_heads_deg:.1f}°: they"
            " cannot both be right; give one of them"
        )
    usual = USUAL_PI_DEG[0] <= pi_deg <= USUAL_PI_DEG[1]
    if sacral_slope_deg is None:
        text = (
            f"alignment.pi_deg={pi_deg:g} is an unusual pelvic incidence ({USUAL_PI_DEG[0]:.0f} to"
            f" {USUAL_PI_DEG[1]:.0f}°)"
        )
        return [] if usual else [Finding("heads", "warning", "", text)]
    if abs(pi_deg - sacral_slope_deg) <= _SAME_AS_SLOPE_DEG:
        text = (
            f"alignment.pi_deg={pi_deg:g} is the measured sacral slope ({sacral_slope_deg:.0f}°):"
            " is it that, and not the incidence?"
        )
        return [Finding("heads", "warning", "", text)]
    if usual and USUAL_PT_DEG[0] <= pi_deg - sacral_slope_deg <= USUAL_PT_DEG[1]:
        return []
    text = (
        f"alignment.pi_deg={pi_deg:g} with the measured sacral slope of {sacral_slope_deg:.0f}°"
        f" gives a pelvic tilt of {pi_deg - sacral_slope_deg:.0f}°, which few people have: is it"
        " PI, and not the sacral slope or the tilt?"
    )
    return [Finding("heads", "warning", "", text)]
