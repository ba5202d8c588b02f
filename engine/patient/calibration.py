"""HU → density: what turns a CT's numbers into mineral-equivalent density, and how well that is known.

    ρ_QCT(HU) = intercept + slope·HU + curvature·HU²            [g/cm³ of K2HPO4 (or HA) that attenuates as much]

linear        slope and intercept from elsewhere, such as the scanner's own quality assurance
phantom       rods of known density in the scan: HU = α + β ρ by least squares, turned round.
              Rods of K2HPO4 dissolved in water (Mindways): HU − ρ_water = σ_ref ρ + β_ref with ρ in mg/cm³, then
              σ_CT = σ_ref − 0.2174, β_CT = β_ref + 999.6 and HU = σ_CT ρ + β_CT (QCT PRO User Guide v5.0, as Ogo's documentation
              gives it)
phantomless   the patient's own tissues.
              With cortical bone, after Michalski et al. 2020 (doi 10.1016/j.medengphy.2020.01.009): of all energies take the one at
              which the tissues' mass attenuation m (NIST) is best linear in HU; fit m = a HU + b, and the tissues' own densities
              (1 + HU/1000) m_water / m = c HU + d; a voxel is K2HPO4 in triglyceride by mass,
              ρ_QCT = (c HU + d)·(a HU + b − m_TG)/(m_K2HPO4 − m_TG): a parabola. The energy is a parameter of the fit, not the
              beam's: an ideal 80 keV scan gives 97 keV. Water comes out near 30 mg/cm³, as it is compared with fat.
              Without cortical bone the tissues cannot tell the energy, which must then be given: ρ_QCT is fitted to each tissue's
              own equivalent ρ = HU_ref/s, HU_ref = 1000 (m ρ_tissue / m_water − 1), s = 1000 (m_K2HPO4/m_water − 0.2174) HU·cm³/g.
              10 keV more or less is 20 % of slope, so that this is the weakest of the four.

HU alone are no density: without a calibration there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.stats import trim_mean

from engine.patient.labels.understand import Labels
from engine.patient.read.image import Image, on_grid
from engine.patient.read.images import read_labels
from engine.types import rigid

#: A straight line through fewer rods, or a worse one, is no calibration.
LEAST_RODS = 3
LEAST_TISSUES = 3
LEAST_R2 = 0.98
#: Blood without contrast agent is 30-60 HU [M].
ENHANCED_BLOOD_HU = 75.0
#: HU that a tissue of the patient can have at 80-140 kV [M]; outside, the region is not that tissue, or the values are not HU.
TISSUE_HU = {
    "air": (-1050.0, -930.0),
    "adipose": (-140.0, -50.0),
    "muscle": (0.0, 95.0),
    "blood": (10.0, ENHANCED_BLOOD_HU),
    "cortical_bone": (500.0, 2300.0),
}
#: A rod whose HU scatter this much more than the others' lies partly outside what it is taken for.
UNEVEN_ROD = (3.0, 40.0)
#: What regions of interest keep from the boundary of a rod or a tissue: some 1.5 widths of a usual kernel.
MARGIN_MM = 1.5
_LEAST_VOXELS = 20
#: Slopes outside are another unit (mg/cm³, kg/m³) or another scale than HU; scanners have about 0.8e-3 at 120 kV [M].
_SLOPES = (0.2e-3, 3.0e-3)

_KEV = np.array([30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0, 200.0])
#: Mass attenuation cm²/g at _KEV. NIST, X-ray mass attenuation coefficients (tab4: ICRU-44 tissues, dry air, water); K2HPO4 and
#: triglyceride C55H98O6 mixed from the elements by mass (a test does it again).
_ATTENUATION = {
    "adipose": (0.3063, 0.2396, 0.2123, 0.1974, 0.1800, 0.1688, 0.1500, 0.1368),
    "air": (0.3538, 0.2485, 0.2080, 0.1875, 0.1662, 0.1541, 0.1356, 0.1233),
    "blood": (0.3852, 0.2715, 0.2278, 0.2057, 0.1827, 0.1695, 0.1492, 0.1358),
    "cortical_bone": (1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480, 0.1309),
    "muscle": (0.3783, 0.2685, 0.2262, 0.2048, 0.1823, 0.1693, 0.1492, 0.1358),
    "water": (0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505, 0.1370),
    "K2HPO4": (1.975, 0.9327, 0.5573, 0.3890, 0.2508, 0.1972, 0.1480, 0.1283),
    "triglyceride": (0.2815, 0.2293, 0.2072, 0.1945, 0.1789, 0.1683, 0.1499, 0.1369),
}
#: Densities of the soft tissues, g/cm³ (NIST tab2, ICRU-44). Cortical bone's own varies too much to be a reference.
_DENSITY = {"adipose": 0.95, "air": 0.001205, "blood": 1.06, "muscle": 1.05}
#: Water that a gram of dissolved K2HPO4 displaces, g; and water's density in mg/cm³ (QCT PRO User Guide v5.0).
_DISPLACED, _WATER_MG = 0.2174, 999.6

Tissue = Literal["air", "adipose", "muscle", "blood", "cortical_bone"]
#: The same under their names in the label schemes (schemes.py).
_IN_SCHEMES = {"blood": "aorta", "muscle": "autochthon"}


@dataclass(frozen=True)
class CalibrationPoint:
    """One rod or tissue: its robust mean HU over `voxels` voxels (SD sd_hu), its density in g/cm³, and its weight in the fit."""

    name: str
    hu: float
    density_g_cm3: float
    weight: float = 1.0
    sd_hu: float = float("nan")
    voxels: int = 0


@dataclass(frozen=True)
class Calibration:
    """A calibration that holds for one scan (module docstring).

    equivalent    "K2HPO4" | "HA": what the density is an equivalent of
    residual_g_cm3  root mean square of the points' residuals, g/cm³; r2 the fit's R²; both NaN where nothing was fitted
    covariance    of (intercept, slope, curvature), from the residuals; None where nothing was fitted
    source, notes where it comes from, and what the reader must know, one line each
    details       further figures of the fit, by name with unit
    """

    kind: str
    slope_g_cm3_per_hu: float
    intercept_g_cm3: float
    equivalent: str = "K2HPO4"
    curvature_g_cm3_per_hu2: float = 0.0
    residual_g_cm3: float = float("nan")
    r2: float = float("nan")
    points: tuple[CalibrationPoint, ...] = ()
    covariance: tuple[tuple[float, ...], ...] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    details: dict[str, float] = field(default_factory=dict)

    def density_g_cm3(self, hu: Any) -> Any:
        """Mineral-equivalent density ρ_QCT, g/cm³ (elementwise; beyond the parabola's vertex, far under fat, its value there)."""
        c = self.curvature_g_cm3_per_hu2
        if c != 0.0:
            vertex = -self.slope_g_cm3_per_hu / (2.0 * c)
            hu = np.maximum(hu, vertex) if c > 0 else np.minimum(hu, vertex)
        return self.intercept_g_cm3 + (self.slope_g_cm3_per_hu + c * hu) * hu

    def hu(self, density_g_cm3: Any) -> Any:
        """The HU of a density: the inverse of `density_g_cm3` on its rising side."""
        c, b = self.curvature_g_cm3_per_hu2, self.slope_g_cm3_per_hu
        above = np.asarray(density_g_cm3, float) - self.intercept_g_cm3
        if c == 0.0:
            return above / b
        return 2.0 * above / (b + np.sqrt(np.maximum(b * b + 4.0 * c * above, 0.0)))

    def standard_error_g_cm3(self, hu: Any) -> Any:
        """Standard error of the *line* at HU, √(vᵀ C v) with v = (1, HU, HU²); NaN where it was not fitted here.

        From the residuals alone: neither noise in the voxels nor an error common to all points (position in the scanner, patient
        size) is in it.
        """
        h = np.asarray(hu, float)
        if self.covariance is None:
            return np.full_like(h, np.nan)
        v = np.stack([np.ones_like(h), h, h * h], axis=-1)
        return np.sqrt(np.maximum(np.einsum("...i,ij,...j->...", v, np.array(self.covariance), v), 0.0))

    @property
    def slope_se(self) -> float:
        """Standard error of the slope, g/cm³ per HU."""
        return float("nan") if self.covariance is None else float(np.sqrt(self.covariance[1][1]))

    @property
    def intercept_se(self) -> float:
        """Standard error of the intercept, g/cm³."""
        return float("nan") if self.covariance is None else float(np.sqrt(self.covariance[0][0]))


# -- what is asked for --------------------------------------------------------------------------------------------
class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Roi(_Config):
    """A ball, or with a length a cylinder along `axis`, in LPS mm."""

    centre_lps_mm: tuple[float, float, float]
    radius_mm: float = Field(ge=0.5, le=100.0)
    length_mm: float = Field(default=0.0, ge=0.0, le=1000.0, description="of a cylinder; 0: a ball")
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)


class Rod(Roi):
    """A rod of a calibration phantom; water_mg_cm3 only for solutions (Mindways), from the phantom's certificate."""

    name: str = ""
    length_mm: float = Field(default=20.0, ge=1.0, le=1000.0)
    density_mg_cm3: float = Field(ge=-500.0, le=2500.0)
    water_mg_cm3: float | None = Field(default=None, ge=500.0, le=1500.0)


class LabelledRod(_Config):
    """A rod by its number in a label image."""

    number: int = Field(ge=1)
    density_mg_cm3: float = Field(ge=-500.0, le=2500.0)
    water_mg_cm3: float | None = Field(default=None, ge=500.0, le=1500.0)


class LinearCalibration(_Config):
    """ρ = intercept + slope·HU, given. kvp: the tube voltage at which it was found."""

    kind: Literal["linear"] = "linear"
    slope_g_cm3_per_hu: float = Field(ge=_SLOPES[0], le=_SLOPES[1])
    intercept_g_cm3: float = Field(ge=-0.3, le=0.3)
    equivalent: Literal["K2HPO4", "HA"] = "K2HPO4"
    kvp: float = Field(default=120.0, ge=60.0, le=150.0)
    source: str = Field(default="given by the user", min_length=1)


class PhantomCalibration(_Config):
    """Rods by place, or by number in the label image `labels` (a path). All rods weigh the same in the fit."""

    kind: Literal["phantom"] = "phantom"
    rods: tuple[Rod, ...] = ()
    labels: str | None = None
    labelled: tuple[LabelledRod, ...] = ()
    equivalent: Literal["K2HPO4", "HA"] = "K2HPO4"
    source: str = "calibration phantom in the scan"

    @model_validator(mode="after")
    def _rods(self) -> PhantomCalibration:
        if bool(self.rods) == bool(self.labelled):
            raise ValueError("give either rods (by place) or labelled (with labels, the path of a label image)")
        if self.labelled and self.labels is None:
            raise ValueError("labelled rods need labels, the path of the label image that they are numbered in")
        every: tuple[Rod | LabelledRod, ...] = self.rods or self.labelled
        if len(every) < LEAST_RODS:
            raise ValueError(f"{len(every)} rods are given; at least {LEAST_RODS} are needed to see whether they lie on a line")
        if len({rod.water_mg_cm3 is None for rod in every}) > 1:
            raise ValueError("water_mg_cm3 must be given for all rods (solutions) or for none (solid rods)")
        return self


class PhantomlessCalibration(_Config):
    """The patient's tissues, each from the first of: rois, numbers in `labels`, the scan's own labels, `find` by HU.

    effective_kev   without cortical bone only (module docstring)
    """

    kind: Literal["phantomless"] = "phantomless"
    rois: dict[Tissue, tuple[Roi, ...]] = Field(default_factory=dict)
    labels: str | None = None
    numbers: dict[Tissue, tuple[int, ...]] = Field(default_factory=dict)
    find: tuple[Literal["air", "adipose"], ...] = ("air", "adipose")
    effective_kev: float | None = Field(default=None, ge=40.0, le=140.0)
    source: str = "tissues of the patient"

    @model_validator(mode="after")
    def _numbers(self) -> PhantomlessCalibration:
        if self.numbers and self.labels is None:
            raise ValueError("numbers need labels, the path of the label image that they are found in")
        return self


class NoCalibration(_Config):
    """No calibration: asking for density is then an error."""

    kind: Literal["none"] = "none"


CalibrationConfig = LinearCalibration | PhantomCalibration | PhantomlessCalibration | NoCalibration
_ADAPTER: TypeAdapter[CalibrationConfig] = TypeAdapter(Annotated[CalibrationConfig, Field(discriminator="kind")])


def calibration_config(values: Mapping[str, Any]) -> CalibrationConfig:
    """The configuration of a mapping with `kind` linear | phantom | phantomless | none (conf/calibration/).

    Raises: pydantic's ValidationError (a ValueError) that names the wrong key.
    """
    return _ADAPTER.validate_python(dict(values))


def calibrate(config: CalibrationConfig | None, image: Image, labels: Labels | None = None) -> Calibration:
    """The calibration of one CT.

    labels   the scan's understood labels, where blood (aorta) and muscle are looked for when the kind is phantomless

    Raises: ValueError for kind none, an MRI, rods or tissues outside the image or too few, R² < 0.98, and a slope that no scanner has.
    """
    if config is None or isinstance(config, NoCalibration):
        raise ValueError(
            "HU alone are no density: give calibration=linear (slope and intercept of your scanner), phantom (rods in the scan) or "
            "phantomless (the patient's tissues), or leave the scan's density out (it is then assumed)"
        )
    require_hu(image)
    if isinstance(config, LinearCalibration):
        return Calibration(
            config.kind, config.slope_g_cm3_per_hu, config.intercept_g_cm3, config.equivalent, source=config.source,
            notes=(f"HU → density line given ({config.source}); its error is not known", *scan_warnings(image, config.kvp)),
        )  # fmt: skip
    if isinstance(config, PhantomCalibration):
        return _phantom(config, image)
    return _phantomless(config, image, labels)


def require_hu(image: Image) -> None:
    """Raises ValueError where the image can't hold HU: an MRI, labels, or numbers that are never negative."""
    if image.modality == "MR":
        raise ValueError("MRI gives geometry only; its grey values are no HU and hold no density: leave the calibration out, or give a CT")
    if image.modality == "SEG":
        raise ValueError("this is a label image, which holds no HU; give the CT that the labels were drawn on")
    if float(np.min(image.values)) >= 0.0:
        raise ValueError(
            "no value of this image is negative, so it is no CT in HU (fat is about −100 HU); subtract 1024 if it was stored with that "
            "offset, or leave the calibration out if it is an MRI"
        )


def scan_warnings(image: Image, calibration_kvp: float | None = None, blood_hu: float | None = None) -> tuple[str, ...]:
    """What in the scan bends its HU: contrast agent (DICOM, or blood above 100 HU), and a tube voltage other than the calibration's."""
    lines = []
    agent = str(image.source.get("ContrastBolusAgent", "no")).lower() not in ("no", "none", "")
    if agent or (blood_hu is not None and blood_hu > ENHANCED_BLOOD_HU):
        why = "the scan's header names a contrast agent" if agent else f"blood has {blood_hu:.0f} HU, above {ENHANCED_BLOOD_HU:.0f}"
        lines.append(f"warning: {why}: contrast raises the HU of bone too, so density and stiffness are too high")
    given = image.source.get("KVP")
    voltages = [float(v) for v in (given if isinstance(given, list | tuple) else [given]) if v is not None]
    if calibration_kvp is not None and any(abs(v - calibration_kvp) > 0.5 for v in voltages):
        lines.append(
            f"warning: scanned at {', '.join(f'{v:g}' for v in voltages)} kV, calibrated at {calibration_kvp:g} kV: "
            "bone's HU depend on the tube voltage"
        )
    return tuple(lines)


# -- rods ---------------------------------------------------------------------------------------------------------
def _phantom(config: PhantomCalibration, image: Image) -> Calibration:
    measured: list[tuple[str, np.ndarray, float, float | None]] = []
    for k, rod in enumerate(config.rods):
        name = rod.name or f"rod {k + 1}"
        measured.append((name, _roi_values(image, rod, name), rod.density_mg_cm3, rod.water_mg_cm3))
    if config.labels is not None:
        numbers = on_grid(read_labels(config.labels), image)
        for tube in config.labelled:
            name = f"rod {tube.number}"
            measured.append((name, _label_values(image, numbers, (tube.number,), name), tube.density_mg_cm3, tube.water_mg_cm3))
    points = tuple(_point(name, values, density / 1000.0) for name, values, density, _ in measured)
    solution = measured[0][3] is not None
    water = np.array([0.0 if w is None else w for *_, w in measured])
    rho = np.array([p.density_g_cm3 for p in points])
    hu = np.array([p.hu for p in points])
    (alpha, beta), covariance, r2 = _line(rho, hu - water)
    if solution:
        alpha, beta = alpha + _WATER_MG, beta - 1000.0 * _DISPLACED
    _even(points)
    if not beta > 0.0 or not _SLOPES[0] <= 1.0 / beta <= _SLOPES[1]:
        raise ValueError(
            f"the rods give {0.0 if beta == 0.0 else 1e3 / beta:.3g} mg/cm³ per HU (expected 0.2 to 3); check that each rod's density "
            f"(mg/cm³) belongs to its place: {_listing(points)}{_rods_that_fit(config, image)}"
        )
    slope, intercept = float(1.0 / beta), float(-alpha / beta)
    expected = alpha + beta * rho + (water - _WATER_MG + 1000.0 * _DISPLACED * rho if solution else 0.0)
    off = (hu - expected) / beta
    if r2 < LEAST_R2:
        worst = points[int(np.argmax(np.abs(off)))]
        raise ValueError(
            f"the rods do not lie on a line: R² {r2:.3f} (at least {LEAST_R2}), {worst.name} is off most by "
            f"{1e3 * np.abs(off).max():.0f} mg/cm³; check places and densities: {_listing(points)}{_rods_that_fit(config, image)}"
        )
    turn = np.array([[-1.0 / beta, alpha / beta**2], [0.0, -1.0 / beta**2]])  # ∂(intercept, slope)/∂(α, β)
    top = float(rho.max())
    notes = (
        f"{len(points)} rods, R² {r2:.4f}, residual {1e3 * _rms(off):.1f} mg/cm³; densities above {1e3 * top:.0f} mg/cm³ are extrapolated",
        *scan_warnings(image),
    )
    return Calibration(
        config.kind, slope, intercept, config.equivalent, 0.0, _rms(off), r2, points, _padded(turn @ covariance @ turn.T),
        config.source, notes,
    )  # fmt: skip


def _even(points: tuple[CalibrationPoint, ...]) -> None:
    """Raises ValueError for a rod that is not uniform: it lies partly beside what it is taken for."""
    usual = float(np.median([point.sd_hu for point in points]))
    worst = max(points, key=lambda point: point.sd_hu)
    factor, least = UNEVEN_ROD
    if worst.sd_hu > max(factor * usual, least):
        raise ValueError(
            f"{worst.name} is not uniform (SD {worst.sd_hu:.0f} HU, the others {usual:.0f}): its place lies partly outside the "
            "rod; move it, or lower its radius"
        )


def _rods_that_fit(config: PhantomCalibration, image: Image) -> str:
    """Which slip explains rods that do not lie on a line: RAS for LPS, or densities in the reverse order; "" where neither does."""
    if not config.rods:
        return ""

    def in_ras(rod: Rod) -> Rod:
        x, y, z = rod.centre_lps_mm
        return rod.model_copy(update={"centre_lps_mm": (-x, -y, z)})

    density = [rod.density_mg_cm3 for rod in config.rods][::-1]
    turned = [rod.model_copy(update={"density_mg_cm3": d}) for rod, d in zip(config.rods, density, strict=True)]
    slips = {
        "x and y with the other sign (3D Slicer shows RAS, these are LPS)": [in_ras(rod) for rod in config.rods],
        "the densities in the reverse order": turned,
    }
    for words, rods in slips.items():
        try:
            hu = np.array([trim_mean(_roi_values(image, rod, rod.name or "rod"), 0.1) for rod in rods])
        except ValueError:
            continue
        (_, beta), _, r2 = _line(np.array([rod.density_mg_cm3 / 1e3 for rod in rods]), hu)
        if r2 >= LEAST_R2 and beta > 0.0 and _SLOPES[0] <= 1.0 / beta <= _SLOPES[1]:
            return f". They do lie on a line (R² {r2:.3f}) with {words}"
    return ""


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Least-squares (intercept, slope), their covariance [2, 2] and R². Raises ValueError when all x are the same."""
    if np.ptp(x) == 0.0:
        raise ValueError("all calibration points have the same value; a line needs different ones")
    design = np.stack([np.ones_like(x), x], axis=-1)
    normal = np.linalg.inv(design.T @ design)
    fit = normal @ (design.T @ y)
    left = y - design @ fit
    total = float(((y - y.mean()) ** 2).sum())
    r2 = 1.0 - float(left @ left) / total if total > 0.0 else 0.0
    return fit, normal * float(left @ left) / max(len(x) - 2, 1), r2


def _padded(covariance: np.ndarray) -> tuple[tuple[float, ...], ...]:
    full = np.zeros((3, 3))
    full[: len(covariance), : len(covariance)] = covariance
    return tuple(tuple(float(v) for v in row) for row in full)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _listing(points: tuple[CalibrationPoint, ...]) -> str:
    return ", ".join(f"{p.name} {p.hu:.0f} HU at {1e3 * p.density_g_cm3:.0f} mg/cm³" for p in points)


# -- tissues ------------------------------------------------------------------------------------------------------
def _phantomless(config: PhantomlessCalibration, image: Image, labels: Labels | None) -> Calibration:
    samples = _tissues(config, image, labels)
    notes: list[str] = []
    blood = float(trim_mean(samples["blood"], 0.1)) if "blood" in samples else None
    if blood is not None and blood > ENHANCED_BLOOD_HU:
        samples.pop("blood")
        notes.append(f"blood is contrast-enhanced ({blood:.0f} HU) and left out of the fit")
        if len(samples) < LEAST_TISSUES:
            raise ValueError(
                f"blood has {blood:.0f} HU (30-60 without contrast agent), so that it is no reference, and {', '.join(samples)} are too "
                f"few without it (at least {LEAST_TISSUES}): give rois for more tissues, or use calibration=linear or phantom"
            )
    for name, values in samples.items():
        mean, (low, high) = float(trim_mean(values, 0.1)), TISSUE_HU[name]
        if not low <= mean <= high:
            raise ValueError(
                f"{name} has {mean:.0f} HU where its region or label is (expected {low:.0f} to {high:.0f}): the region is not this tissue, "
                "contrast agent is in it, or the scan's values are not HU; give another region, or leave the tissue out"
            )
    notes += scan_warnings(image, blood_hu=blood)
    points = {name: _point(name, values, float("nan")) for name, values in samples.items()}
    return phantomless(
        {name: p.hu for name, p in points.items()}, config.effective_kev, points=points, source=config.source, notes=tuple(notes)
    )


def phantomless(
    tissue_hu: Mapping[str, float],
    effective_kev: float | None = None,
    *,
    points: Mapping[str, CalibrationPoint] | None = None,
    source: str = "tissues of the patient",
    notes: tuple[str, ...] = (),
) -> Calibration:
    """Calibration from the mean HU of tissues: "air", "adipose", "muscle", "blood", "cortical_bone" (module docstring).

    Raises: ValueError for fewer than three tissues, R² < 0.98, no cortical bone and no energy, or an energy at the end of the search.
    """
    names = [name for name in ("air", "adipose", "muscle", "blood", "cortical_bone") if name in tissue_hu]
    hu = np.array([tissue_hu[name] for name in names])
    if len(names) < LEAST_TISSUES:
        raise ValueError(
            f"a calibration from tissues needs {LEAST_TISSUES} of air, adipose, muscle, blood and cortical_bone; found "
            f"{', '.join(names) or 'none'}; give rois or numbers for more, or use calibration=linear or phantom"
        )
    if "cortical_bone" in names:
        polynomial, covariance, r2, density, details = _two_component(names, hu)
        line = f"effective energy {details['effective_kev']:g} keV (a parameter of the fit)"
    elif effective_kev is None:
        raise ValueError(
            "without cortical bone among the tissues the beam's energy cannot be told; give a region of cortical bone "
            "(rois.cortical_bone, such as a femoral shaft) or effective_kev"
        )
    else:
        polynomial, covariance, r2, density, details = _references(names, hu, effective_kev)
        line = f"effective energy assumed {effective_kev:g} keV, and 10 keV are 20 % of slope"
    intercept, slope, curvature = (float(v) for v in polynomial)
    off = intercept + slope * hu + curvature * hu**2 - density
    known = points or {}
    made = tuple(
        CalibrationPoint(n, float(h), float(d), 1.0, *((known[n].sd_hu, known[n].voxels) if n in known else ()))
        for n, h, d in zip(names, hu, density, strict=True)
    )
    if r2 < LEAST_R2 or slope <= 0.0:
        raise ValueError(f"the tissues do not lie on a line: R² {r2:.3f} (at least {LEAST_R2}); check the regions: {_listing(made)}")
    soft = _rms(off[[n != "cortical_bone" for n in names]])
    notes = (f"calibrated on {', '.join(names)}: {line}, R² {r2:.4f}, residual of the soft tissues {1e3 * soft:.0f} mg/cm³", *notes)
    return Calibration(
        "phantomless", slope, intercept, "K2HPO4", curvature, _rms(off), r2, made, _padded(covariance), source, notes, details
    )  # fmt: skip


def _two_component(names: list[str], hu: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, dict[str, float]]:
    """Michalski's parabola (intercept, slope, curvature), its covariance, R², the tissues' own K2HPO4, and the two lines."""

    def at(kev: float, name: str) -> float:
        # linear between the table's energies, as the published implementation: log-log would give 96.5 keV where it says 97
        return float(np.interp(kev, _KEV, _ATTENUATION[name]))

    def mass(kev: float) -> np.ndarray:
        return np.array([at(kev, name) for name in names])

    energies = np.arange(40.0, 140.5, 0.5)
    kev = float(energies[np.argmax([np.corrcoef(hu, mass(e))[0, 1] ** 2 for e in energies])])
    if kev in (energies[0], energies[-1]):
        raise ValueError(f"no energy of 40 to 140 keV explains the tissues' HU (best at the end, {kev:g} keV); check the regions")
    m, water, fat, mineral = mass(kev), at(kev, "water"), at(kev, "triglyceride"), at(kev, "K2HPO4")
    (b, a), c_mass, r2 = _line(hu, m)
    own = (1.0 + hu / 1000.0) * water / m
    (d, c), c_own, _ = _line(hu, own)
    span = mineral - fat
    polynomial = np.array([d * (b - fat), c * (b - fat) + d * a, c * a]) / span
    by_mass = np.array([[d, 0.0], [c, d], [0.0, c]]) / span  # ∂(intercept, slope, curvature)/∂(b, a)
    by_own = np.array([[b - fat, 0.0], [a, b - fat], [0.0, a]]) / span  # ∂/∂(d, c)
    covariance = by_mass @ c_mass @ by_mass.T + by_own @ c_own @ by_own.T
    details = {
        "effective_kev": kev,
        "mass_attenuation_slope_cm2_g_hu": float(a),
        "mass_attenuation_intercept_cm2_g": float(b),
        "own_density_slope_g_cm3_hu": float(c),
        "own_density_intercept_g_cm3": float(d),
    }
    return polynomial, covariance, r2, own * (m - fat) / span, details


def _references(names: list[str], hu: np.ndarray, kev: float) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, dict[str, float]]:
    """Straight line through the tissues' own equivalents at an assumed energy; what `_two_component` gives."""

    def at(name: str) -> float:
        return float(np.exp(np.interp(np.log(kev), np.log(_KEV), np.log(_ATTENUATION[name]))))

    per_gram = 1000.0 * (at("K2HPO4") / at("water") - _DISPLACED)
    density = np.array([1000.0 * (at(n) * _DENSITY[n] / at("water") - 1.0) for n in names]) / per_gram
    # the densities are the references and HU the measurement, as with rods
    (alpha, beta), covariance, r2 = _line(density, hu)
    turn = np.array([[-1.0 / beta, alpha / beta**2], [0.0, -1.0 / beta**2]])
    return np.array([-alpha / beta, 1.0 / beta, 0.0]), turn @ covariance @ turn.T, r2, density, {"effective_kev": kev}


def _tissues(config: PhantomlessCalibration, image: Image, labels: Labels | None) -> dict[str, np.ndarray]:
    """HU of every tissue that is found."""
    given = None if config.labels is None else on_grid(read_labels(config.labels), image)
    own: np.ndarray | None = None
    found: dict[str, np.ndarray] = {}
    for name in ("air", "adipose", "muscle", "blood", "cortical_bone"):
        rois = config.rois.get(name)  # type: ignore[call-overload]
        numbers = config.numbers.get(name)  # type: ignore[call-overload]
        scheme = () if labels is None else labels.scheme.tissues.get(_IN_SCHEMES.get(name, ""), ())
        if rois:
            found[name] = np.concatenate([_roi_values(image, roi, name) for roi in rois])
        elif numbers:
            assert given is not None
            found[name] = _label_values(image, given, numbers, name)
        elif labels is not None and scheme and np.isin(labels.image.values, scheme).any():
            own = on_grid(labels.image, image) if own is None else own
            found[name] = _label_values(image, own, scheme, name)
        elif name in config.find:
            values = _by_hu(image, name)
            if values is not None:
                found[name] = values
    return found


def _by_hu(image: Image, name: str) -> np.ndarray | None:
    """HU of air or fat where there is a homogeneous region of it, 3 mm from anything else; None where there is none.

    air: under −900 HU, without the constant that fills the corners of the image; adipose: −190 to −30 HU [M].
    """
    values, stride = image.values, np.maximum(np.rint(1.5 / image.voxel_mm).astype(int), 1)
    thin = np.asarray(values[:: stride[0], :: stride[1], :: stride[2]])
    if name == "air":
        least = thin.min()
        padding = least if np.mean(thin == least) > 0.002 else -np.inf
        window = (thin < -900) & (thin > max(padding, -1100.0))
    else:
        window = (thin > -190) & (thin < -30)
    deep = distance_transform_edt(np.pad(window, 1), sampling=image.voxel_mm * stride)[1:-1, 1:-1, 1:-1] > 3.0
    return np.asarray(thin[deep], float) if deep.sum() >= _LEAST_VOXELS else None


# -- regions of interest ------------------------------------------------------------------------------------------
def _point(name: str, values: np.ndarray, density: float) -> CalibrationPoint:
    return CalibrationPoint(name, float(trim_mean(values, 0.1)), density, 1.0, float(values.std()), len(values))


def _roi_values(image: Image, roi: Roi, name: str) -> np.ndarray:
    """HU inside a ball or cylinder, MARGIN_MM from its boundary (at most half its radius). Raises ValueError outside the image."""
    centre, axis = np.array(roi.centre_lps_mm), np.array(roi.axis, float)
    if np.linalg.norm(axis) < 1e-9:
        raise ValueError(f"{name}: axis {roi.axis} has no direction")
    axis /= np.linalg.norm(axis)
    half = 0.5 * roi.length_mm
    side = np.sqrt(np.maximum(1.0 - axis**2, 0.0)) * roi.radius_mm if half else np.full(3, roi.radius_mm)
    reach = side + half * np.abs(axis)
    corners = centre + np.stack(np.meshgrid(*[(-r, r) for r in reach], indexing="ij"), -1).reshape(-1, 3)
    index = rigid(np.linalg.inv(image.lps_from_index), corners)
    shape = np.array(image.values.shape)
    if (index < -0.5 - 1e-6).any() or (index > shape - 0.5 + 1e-6).any():
        ends = rigid(image.lps_from_index, np.array([[0.0, 0.0, 0.0], shape - 1.0]))
        box = " x ".join(f"{low:.0f}..{high:.0f}" for low, high in np.sort(ends, axis=0).T)
        raise ValueError(f"{name} at {tuple(roi.centre_lps_mm)} lies outside the image ({box} mm LPS), wholly or in part; move it")
    low = np.clip(np.floor(index.min(axis=0)).astype(int), 0, shape - 1)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, 1, shape)
    box_index = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
    offset = rigid(image.lps_from_index, box_index.reshape(-1, 3)) - centre
    along = offset @ axis if half else np.zeros(len(offset))
    across = np.linalg.norm(offset - along[:, None] * axis, axis=1)
    keep = (across <= max(roi.radius_mm - MARGIN_MM, 0.5 * roi.radius_mm)) & (np.abs(along) <= half)
    values = image.values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].reshape(-1)[keep]
    return _enough(values, name)


def _label_values(image: Image, numbers: np.ndarray, wanted: tuple[int, ...], name: str) -> np.ndarray:
    """HU of labels, MARGIN_MM and half a voxel from their boundary."""
    mask = np.isin(numbers, wanted)
    box = find_objects(mask.astype(np.uint8))
    if not box:
        raise ValueError(f"{name}: label {', '.join(map(str, wanted))} is not in the label image")
    part = np.pad(mask[box[0]], 1)
    depth = distance_transform_edt(part, sampling=image.voxel_mm)[1:-1, 1:-1, 1:-1]
    inside = depth > MARGIN_MM + 0.5 * float(np.sort(image.voxel_mm)[1])
    return _enough(image.values[box[0]][inside], name)


def _enough(values: np.ndarray, name: str) -> np.ndarray:
    if len(values) < _LEAST_VOXELS:
        raise ValueError(f"{name}: {len(values)} voxels are left {MARGIN_MM} mm inside it, at least {_LEAST_VOXELS} are needed; enlarge it")
    return np.asarray(values, float)
