"""Calibration by the patient's own tissues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.stats import trim_mean

from engine.patient.bone.calibration import (
    DISPLACED,
    ENHANCED_BLOOD_HU,
    LEAST_R2,
    LEAST_TISSUES,
    Calibration,
    CalibrationPoint,
    PhantomlessCalibration,
    fitted_line,
    padded_covariance,
    rms,
    scan_warnings,
)
from engine.patient.bone.regions_of_interest import (
    LEAST_VOXELS,
    calibration_point,
    label_values,
    roi_values,
)
from engine.patient.bone.rods import point_list
from engine.patient.labels.understand import Labels
from engine.patient.read.image import Image, on_grid
from engine.patient.read.images import read_labels

#: HU that each tissue of the patient can have at 80-140 kV [M]; outside, the region is not that
#: tissue, or the values are not HU.
TISSUE_HU = {
    "air": (-1050.0, -930.0),
    "adipose": (-140.0, -50.0),
    "muscle": (0.0, 95.0),
    "blood": (10.0, ENHANCED_BLOOD_HU),
    "cortical_bone": (500.0, 2300.0),
}

#: Photon energies, keV.
KEV = np.array([30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0, 200.0])
#: Mass attenuation cm²/g at KEV. NIST, X-ray mass attenuation coefficients (tab4: ICRU-44 tissues,
#: dry air, water); K2HPO4 and triglyceride C55H98O6 mixed from the elements by mass (a test does it
#: again).
ATTENUATION = {
    "adipose": (0.3063, 0.2396, 0.2123, 0.1974, 0.1800, 0.1688, 0.1500, 0.1368),
    "air": (0.3538, 0.2485, 0.2080, 0.1875, 0.1662, 0.1541, 0.1356, 0.1233),
    "blood": (0.3852, 0.2715, 0.2278, 0.2057, 0.1827, 0.1695, 0.1492, 0.1358),
    "cortical_bone": (1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480, 0.1309),
    "muscle": (0.3783, 0.2685, 0.2262, 0.2048, 0.1823, 0.1693, 0.1492, 0.1358),
    "water": (0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505, 0.1370),
    "K2HPO4": (1.975, 0.9327, 0.5573, 0.3890, 0.2508, 0.1972, 0.1480, 0.1283),
    "triglyceride": (0.2815, 0.2293, 0.2072, 0.1945, 0.1789, 0.1683, 0.1499, 0.1369),
}
#: Densities of the soft tissues, g/cm³ (NIST tab2, ICRU-44). Cortical bone's own varies too much to
#: be a reference.
DENSITY = {"adipose": 0.95, "air": 0.001205, "blood": 1.06, "muscle": 1.05}
#: The same under their names in the label schemes (schemes.py).
_IN_SCHEMES = {"blood": "aorta", "muscle": "autochthon"}


def by_tissues(config: PhantomlessCalibration, image: Image, labels: Labels | None) -> Calibration:
    """Calibration of a scan by its tissues' mean HU; enhanced blood is left out.

    Raises: ValueError for a tissue that has not its HU, for too few of them, and as `phantomless`.
    """
    samples = _tissues(config, image, labels)
    notes: list[str] = []
    blood = float(trim_mean(samples["blood"], 0.1)) if "blood" in samples else None
    if blood is not None and blood > ENHANCED_BLOOD_HU:
        samples.pop("blood")
        notes.append(f"blood is contrast-enhanced ({blood:.0f} HU) and left out of the fit")
        if len(samples) < LEAST_TISSUES:
            raise ValueError(
                f"blood has {blood:.0f} HU (30-60 without contrast agent), so that it is no"
                f" reference, and {', '.join(samples)} are too few without it (at least"
                f" {LEAST_TISSUES}): give rois for more tissues, or use calibration=linear or"
                " phantom"
            )
    for name, values in samples.items():
        mean, (low, high) = float(trim_mean(values, 0.1)), TISSUE_HU[name]
        if not low <= mean <= high:
            raise ValueError(
                f"{name} has {mean:.0f} HU where its region or label is (expected {low:.0f} to"
                f" {high:.0f}): the region is not this tissue, contrast agent is in it, or the"
                " scan's values are not HU; give another region, or leave the tissue out"
            )
    notes += scan_warnings(image, blood_hu=blood)
    points = {
        name: calibration_point(name, values, float("nan")) for name, values in samples.items()
    }
    return phantomless(
        {name: p.hu for name, p in points.items()},
        config.effective_kev,
        points=points,
        source=config.source,
        notes=tuple(notes),
    )


def phantomless(
    tissue_hu: Mapping[str, float],
    effective_kev: float | None = None,
    *,
    points: Mapping[str, CalibrationPoint] | None = None,
    source: str = "tissues of the patient",
    notes: tuple[str, ...] = (),
) -> Calibration:
    """Calibration from the mean HU of tissues: "air", "adipose", "muscle", "blood", "cortical_bone"
    (module docstring).

    Raises: ValueError for fewer than three tissues, R² < 0.98, no cortical bone and no energy, or
    an energy at the end of the search.
    """
    names = [name for name in TISSUE_HU if name in tissue_hu]
    hu = np.array([tissue_hu[name] for name in names])
    if len(names) < LEAST_TISSUES:
        raise ValueError(
            f"a calibration from tissues needs {LEAST_TISSUES} of air, adipose, muscle, blood and"
            f" cortical_bone; found {', '.join(names) or 'none'}; give rois or numbers for more, or"
            " use calibration=linear or phantom"
        )
    fit, energy = _fit(names, hu, effective_kev)
    intercept, slope, curvature = (float(v) for v in fit.polynomial)
    off = intercept + slope * hu + curvature * hu**2 - fit.density_g_cm3
    known = points or {}
    fitted = tuple(
        CalibrationPoint(
            n, float(h), float(d), 1.0, *((known[n].sd_hu, known[n].voxels) if n in known else ())
        )
        for n, h, d in zip(names, hu, fit.density_g_cm3, strict=True)
    )
    if fit.r2 < LEAST_R2 or slope <= 0.0:
        raise ValueError(
            f"the tissues do not lie on a line: R² {fit.r2:.3f} (at least {LEAST_R2}); check the"
            f" regions: {point_list(fitted)}"
        )
    soft = rms(off[[n != "cortical_bone" for n in names]])
    line = (
        f"calibrated on {', '.join(names)}: {energy}, R² {fit.r2:.4f}, residual of the soft tissues"
        f" {1e3 * soft:.0f} mg/cm³"
    )
    return Calibration(
        "phantomless",
        slope,
        intercept,
        "K2HPO4",
        curvature,
        rms(off),
        fit.r2,
        fitted,
        padded_covariance(fit.covariance),
        source,
        (line, *notes),
        fit.details,
    )


class _Fit(NamedTuple):
    """ρ_QCT as a polynomial of HU (intercept, slope, curvature) with its covariance and R², the
    tissues' own K2HPO4 g/cm³, and further figures."""

    polynomial: np.ndarray
    covariance: np.ndarray
    r2: float
    density_g_cm3: np.ndarray
    details: dict[str, float]


def _fit(names: list[str], hu: np.ndarray, effective_kev: float | None) -> tuple[_Fit, str]:
    """The fit to the tissues, and what is to be said of its energy.

    Raises: ValueError without cortical bone and without an energy.
    """
    if "cortical_bone" in names:
        fit = _two_component(names, hu)
        return (
            fit,
            f"effective energy {fit.details['effective_kev']:g} keV (a parameter of the fit)",
        )
    if effective_kev is None:
        raise ValueError(
            "without cortical bone among the tissues the beam's energy cannot be told; give a"
            " region of cortical bone (rois.cortical_bone, such as a femoral shaft) or"
            " effective_kev"
        )
    return (
        _references(names, hu, effective_kev),
        f"effective energy assumed {effective_kev:g} keV, and 10 keV are 20 % of slope",
    )


def _two_component(names: list[str], hu: np.ndarray) -> _Fit:
    """Michalski's parabola; details: the energy and the two lines."""

    def at(kev: float, name: str) -> float:
        # linear between the table's energies, as the published implementation: log-log would give
        # 96.5 keV where it says 97
        return float(np.interp(kev, KEV, ATTENUATION[name]))

    def mass(kev: float) -> np.ndarray:
        return np.array([at(kev, name) for name in names])

    energies = np.arange(40.0, 140.5, 0.5)
    kev = float(energies[np.argmax([np.corrcoef(hu, mass(e))[0, 1] ** 2 for e in energies])])
    if kev in (energies[0], energies[-1]):
        raise ValueError(
            f"no energy of 40 to 140 keV explains the tissues' HU (best at the end, {kev:g} keV);"
            " check the regions"
        )
    m, water, fat, mineral = mass(kev), at(kev, "water"), at(kev, "triglyceride"), at(kev, "K2HPO4")
    (b, a), c_mass, r2 = fitted_line(hu, m)
    own = (1.0 + hu / 1000.0) * water / m
    (d, c), c_own, _ = fitted_line(hu, own)
    span = mineral - fat
    polynomial = np.array([d * (b - fat), c * (b - fat) + d * a, c * a]) / span
    # ∂(intercept, slope, curvature)/∂(b, a) and /∂(d, c)
    by_mass = np.array([[d, 0.0], [c, d], [0.0, c]]) / span
    by_own = np.array([[b - fat, 0.0], [a, b - fat], [0.0, a]]) / span
    covariance = by_mass @ c_mass @ by_mass.T + by_own @ c_own @ by_own.T
    details = {
        "effective_kev": kev,
        "mass_attenuation_slope_cm2_g_hu": float(a),
        "mass_attenuation_intercept_cm2_g": float(b),
        "own_density_slope_g_cm3_hu": float(c),
        "own_density_intercept_g_cm3": float(d),
    }
    return _Fit(polynomial, covariance, r2, own * (m - fat) / span, details)


def _references(names: list[str], hu: np.ndarray, kev: float) -> _Fit:
    """Straight line through the tissues' own equivalents at an assumed energy."""

    def at(name: str) -> float:
        return float(np.exp(np.interp(np.log(kev), np.log(KEV), np.log(ATTENUATION[name]))))

    per_gram = 1000.0 * (at("K2HPO4") / at("water") - DISPLACED)
    density = (
        np.array([1000.0 * (at(n) * DENSITY[n] / at("water") - 1.0) for n in names]) / per_gram
    )
    # the densities are the references and HU the measurement, as with rods
    (alpha, beta), covariance, r2 = fitted_line(density, hu)
    turn = np.array([[-1.0 / beta, alpha / beta**2], [0.0, -1.0 / beta**2]])
    polynomial = np.array([-alpha / beta, 1.0 / beta, 0.0])
    return _Fit(polynomial, turn @ covariance @ turn.T, r2, density, {"effective_kev": kev})


def _tissues(
    config: PhantomlessCalibration, image: Image, labels: Labels | None
) -> dict[str, np.ndarray]:
    """HU of every tissue that is given or can be found."""
    given = None if config.labels is None else on_grid(read_labels(config.labels), image)
    own: np.ndarray | None = None
    samples: dict[str, np.ndarray] = {}
    for name in TISSUE_HU:
        rois = config.rois.get(name)  # type: ignore[call-overload]
        numbers = config.numbers.get(name)  # type: ignore[call-overload]
        scheme = () if labels is None else labels.scheme.tissues.get(_IN_SCHEMES.get(name, ""), ())
        if rois:
            samples[name] = np.concatenate([roi_values(image, roi, name) for roi in rois])
        elif numbers:
            assert given is not None
            samples[name] = label_values(image, given, numbers, name)
        elif labels is not None and scheme and np.isin(labels.image.values, scheme).any():
            own = on_grid(labels.image, image) if own is None else own
            samples[name] = label_values(image, own, scheme, name)
        elif name in config.find:
            values = _by_hu(image, name)
            if values is not None:
                samples[name] = values
    return samples


def _by_hu(image: Image, name: str) -> np.ndarray | None:
    """HU of air or fat where there is a homogeneous region of it, 3 mm from anything else; None
    where there is none.

    air: under −900 HU, without the constant that fills the corners of the image; adipose: −190 to
    −30 HU [M].
    """
    values, stride = image.values, np.maximum(np.rint(1.5 / image.voxel_mm).astype(int), 1)
    thin = np.asarray(values[:: stride[0], :: stride[1], :: stride[2]])
    if name == "air":
        least = thin.min()
        padding = least if np.mean(thin == least) > 0.002 else -np.inf
        window = (thin < -900) & (thin > max(padding, -1100.0))
    else:
        window = (thin > -190) & (thin < -30)
    depth = distance_transform_edt(np.pad(window, 1), sampling=image.voxel_mm * stride)
    deep = depth[1:-1, 1:-1, 1:-1] > 3.0
    return np.asarray(thin[deep], float) if deep.sum() >= LEAST_VOXELS else None
