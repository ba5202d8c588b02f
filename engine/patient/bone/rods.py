"""Calibration by the rods of a phantom in the scan."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import trim_mean

from engine.patient.bone.calibration import (
    DISPLACED,
    LEAST_R2,
    PLAUSIBLE_SLOPES,
    UNEVEN_ROD,
    WATER_MG,
    Calibration,
    CalibrationPoint,
    PhantomCalibration,
    Rod,
    fitted_line,
    padded_covariance,
    rms,
    scan_warnings,
)
from engine.patient.bone.regions_of_interest import calibration_point, label_values, roi_values
from engine.patient.read.image import Image, on_grid
from engine.patient.read.images import read_labels


class _MeasuredRod(NamedTuple):
    name: str
    hu: np.ndarray
    density_mg_cm3: float
    water_mg_cm3: float | None


def by_rods(config: PhantomCalibration, image: Image) -> Calibration:
    """Calibration by rods in the scan: HU = α + β ρ by least squares, turned round (calibration.py;
    there also rods of solutions).

    Raises: ValueError for rods outside the image, uneven ones, a slope that no scanner has, and
    R² < 0.98.
    """
    rods = _measured(config, image)
    points = tuple(calibration_point(rod.name, rod.hu, rod.density_mg_cm3 / 1000.0) for rod in rods)
    solution = rods[0].water_mg_cm3 is not None
    water = np.array([0.0 if rod.water_mg_cm3 is None else rod.water_mg_cm3 for rod in rods])
    rho = np.array([p.density_g_cm3 for p in points])
    hu = np.array([p.hu for p in points])
    (alpha, beta), covariance, r2 = fitted_line(rho, hu - water)
    if solution:
        alpha, beta = alpha + WATER_MG, beta - 1000.0 * DISPLACED
    _even(points)
    if not _plausible(beta):
        raise ValueError(
            f"the rods give {0.0 if beta == 0.0 else 1e3 / beta:.3g} mg/cm³ per HU (expected 0.2 to"
            " 3); check that each rod's density (mg/cm³) belongs to its place:"
            f" {point_list(points)}{_rods_that_fit(config, image)}"
        )
    beside = water - WATER_MG + 1000.0 * DISPLACED * rho if solution else 0.0
    off = (hu - (alpha + beta * rho + beside)) / beta
    if r2 < LEAST_R2:
        worst = points[int(np.argmax(np.abs(off)))]
        raise ValueError(
            f"the rods do not lie on a line: R² {r2:.3f} (at least {LEAST_R2}), {worst.name} is off"
            f" most by {1e3 * np.abs(off).max():.0f} mg/cm³; check places and densities:"
            f" {point_list(points)}{_rods_that_fit(config, image)}"
        )
    # ∂(intercept, slope)/∂(α, β)
    turn = np.array([[-1.0 / beta, alpha / beta**2], [0.0, -1.0 / beta**2]])
    line = (
        f"{len(points)} rods, R² {r2:.4f}, residual {1e3 * rms(off):.1f} mg/cm³; densities"
        f" above {1e3 * float(rho.max()):.0f} mg/cm³ are extrapolated"
    )
    return Calibration(
        config.kind,
        float(1.0 / beta),
        float(-alpha / beta),
        config.equivalent,
        0.0,
        rms(off),
        r2,
        points,
        padded_covariance(turn @ covariance @ turn.T),
        config.source,
        (line, *scan_warnings(image)),
    )


def _measured(config: PhantomCalibration, image: Image) -> list[_MeasuredRod]:
    """The HU in every rod, by place or by number in the label image."""
    rods = []
    for k, rod in enumerate(config.rods):
        name = rod.name or f"rod {k + 1}"
        values = roi_values(image, rod, name)
        rods.append(_MeasuredRod(name, values, rod.density_mg_cm3, rod.water_mg_cm3))
    if config.labels is not None:
        numbers = on_grid(read_labels(config.labels), image)
        for tube in config.labelled:
            name = f"rod {tube.number}"
            values = label_values(image, numbers, (tube.number,), name)
            rods.append(_MeasuredRod(name, values, tube.density_mg_cm3, tube.water_mg_cm3))
    return rods


def _plausible(beta: float) -> bool:
    """Whether HU per g/cm³ is a scanner's."""
    return bool(beta > 0.0 and PLAUSIBLE_SLOPES[0] <= 1.0 / beta <= PLAUSIBLE_SLOPES[1])


def _even(points: tuple[CalibrationPoint, ...]) -> None:
    """Raises ValueError for a rod that is not uniform: it lies partly beside what it is taken
    for."""
    usual = float(np.median([point.sd_hu for point in points]))
    worst = max(points, key=lambda point: point.sd_hu)
    factor, least = UNEVEN_ROD
    if worst.sd_hu > max(factor * usual, least):
        raise ValueError(
            f"{worst.name} is not uniform (SD {worst.sd_hu:.0f} HU, the others {usual:.0f}): its"
            " place lies partly outside the rod; move it, or lower its radius"
        )


def _rods_that_fit(config: PhantomCalibration, image: Image) -> str:
    """Which slip explains rods that do not lie on a line: RAS for LPS, or densities in the
    reverse order; "" where neither does."""
    if not config.rods:
        return ""

    def in_ras(rod: Rod) -> Rod:
        x, y, z = rod.centre_lps_mm
        return rod.model_copy(update={"centre_lps_mm": (-x, -y, z)})

    density = [rod.density_mg_cm3 for rod in config.rods][::-1]
    turned = [
        rod.model_copy(update={"density_mg_cm3": d})
        for rod, d in zip(config.rods, density, strict=True)
    ]
    slips = {
        "x and y with the other sign (3D Slicer shows RAS, these are LPS)": [
            in_ras(rod) for rod in config.rods
        ],
        "the densities in the reverse order": turned,
    }
    for words, rods in slips.items():
        try:
            hu = np.array(
                [trim_mean(roi_values(image, rod, rod.name or "rod"), 0.1) for rod in rods]
            )
        except ValueError:
            continue
        (_, beta), _, r2 = fitted_line(np.array([rod.density_mg_cm3 / 1e3 for rod in rods]), hu)
        if r2 >= LEAST_R2 and _plausible(beta):
            return f". They do lie on a line (R² {r2:.3f}) with {words}"
    return ""


def point_list(points: tuple[CalibrationPoint, ...]) -> str:
    """The points in words, for errors."""
    return ", ".join(
        f"{p.name} {p.hu:.0f} HU at {1e3 * p.density_g_cm3:.0f} mg/cm³" for p in points
    )
