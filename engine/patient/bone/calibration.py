"""HU → density: what turns a CT's numbers into mineral-equivalent density, and how well that is
known.

    ρ_QCT(HU) = intercept + slope·HU + curvature·HU²

in g/cm³ of K2HPO4 (or HA) that attenuates as much.

linear        slope and intercept from elsewhere, such as the scanner's own quality assurance
phantom       rods of known density in the scan: HU = α + β ρ by least squares, turned round. Rods
              of K2HPO4 dissolved in water (Mindways): HU − ρ_water = σ_ref ρ + β_ref with ρ in
              mg/cm³, then σ_CT = σ_ref − 0.2174, β_CT = β_ref + 999.6 and HU = σ_CT ρ + β_CT (QCT
              PRO User Guide v5.0, as Ogo's documentation gives it)
phantomless   the patient's own tissues. With cortical bone, after Michalski et al. 2020 (doi
              10.1016/j.medengphy.2020.01.009): of all energies take the one at which the tissues'
              mass attenuation m (NIST) is best linear in HU; fit m = a HU + b, and the tissues' own
              densities (1 + HU/1000) m_water / m = c HU + d; a voxel is K2HPO4 in triglyceride by
              mass, ρ_QCT = (c HU + d)·(a HU + b − m_TG)/(m_K2HPO4 − m_TG): a parabola. The energy
              is a parameter of the fit, not the beam's: an ideal 80 keV scan gives 97 keV. Water
              comes out near 30 mg/cm³, as it is compared with fat. Without cortical bone the
              tissues cannot tell the energy, which must then be given: ρ_QCT is fitted to each
              tissue's own equivalent ρ = HU_ref/s, HU_ref = 1000 (m ρ_tissue / m_water − 1), s =
              1000 (m_K2HPO4/m_water − 0.2174) HU·cm³/g. 10 keV more or less is 20 % of slope, so
              that this is the weakest of the four.

HU alone are no density: without a calibration there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from engine.patient.read.image import Image

#: A straight line through fewer rods, or a worse one, is no calibration.
LEAST_RODS = 3
LEAST_TISSUES = 3
LEAST_R2 = 0.98
#: Blood without contrast agent is 30-60 HU [M].
ENHANCED_BLOOD_HU = 75.0
#: A rod whose HU scatter this much more than the others' lies partly outside what it is taken for.
UNEVEN_ROD = (3.0, 40.0)
#: What regions of interest keep from the boundary of a rod or a tissue: some 1.5 widths of a usual
#: kernel.
MARGIN_MM = 1.5
#: Slopes outside are another unit (mg/cm³, kg/m³) or another scale than HU; scanners have about
#: 0.8e-3 at 120 kV [M].
PLAUSIBLE_SLOPES = (0.2e-3, 3.0e-3)
#: Water that a gram of dissolved K2HPO4 displaces, g; and water's density in mg/cm³ (QCT PRO User
#: Guide v5.0).
DISPLACED, WATER_MG = 0.2174, 999.6

Tissue = Literal["air", "adipose", "muscle", "blood", "cortical_bone"]


@dataclass(frozen=True)
class CalibrationPoint:
    """One rod or tissue: its robust mean HU over `voxels` voxels (SD sd_hu), its density in
    g/cm³, and its weight in the fit."""

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
    residual_g_cm3  root mean square of the points' residuals, g/cm³; r2 the fit's R²; both NaN
                    where nothing was fitted
    covariance    of (intercept, slope, curvature), from the residuals; None where nothing was
                  fitted
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
        """Mineral-equivalent density ρ_QCT, g/cm³ (elementwise; beyond the parabola's vertex,
        far under fat, its value there)."""
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
        """Standard error of the *line* at HU, √(vᵀ C v) with v = (1, HU, HU²); NaN where it was not
        fitted here.

        From the residuals alone: neither noise in the voxels nor an error common to all points
        (position in the scanner, patient size) is in it.
        """
        h = np.asarray(hu, float)
        if self.covariance is None:
            return np.full_like(h, np.nan)
        v = np.stack([np.ones_like(h), h, h * h], axis=-1)
        return np.sqrt(
            np.maximum(np.einsum("...i,ij,...j->...", v, np.array(self.covariance), v), 0.0)
        )

    @property
    def slope_se(self) -> float:
        """Standard error of the slope, g/cm³ per HU."""
        return float("nan") if self.covariance is None else float(np.sqrt(self.covariance[1][1]))

    @property
    def intercept_se(self) -> float:
        """Standard error of the intercept, g/cm³."""
        return float("nan") if self.covariance is None else float(np.sqrt(self.covariance[0][0]))


# -- what is asked for -----------------------------------------------------------------------------
class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Roi(_Config):
    """A ball, or with a length a cylinder along `axis`, in LPS mm."""

    centre_lps_mm: tuple[float, float, float]
    radius_mm: float = Field(ge=0.5, le=100.0)
    length_mm: float = Field(default=0.0, ge=0.0, le=1000.0, description="of a cylinder; 0: a ball")
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)


class Rod(Roi):
    """A rod of a calibration phantom; water_mg_cm3 only for solutions (Mindways), from the
    phantom's certificate."""

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
    slope_g_cm3_per_hu: float = Field(ge=PLAUSIBLE_SLOPES[0], le=PLAUSIBLE_SLOPES[1])
    intercept_g_cm3: float = Field(ge=-0.3, le=0.3)
    equivalent: Literal["K2HPO4", "HA"] = "K2HPO4"
    kvp: float = Field(default=120.0, ge=60.0, le=150.0)
    source: str = Field(default="given by the user", min_length=1)


class PhantomCalibration(_Config):
    """Rods by place, or by number in the label image `labels` (a path). All rods weigh the same
    in the fit."""

    kind: Literal["phantom"] = "phantom"
    rods: tuple[Rod, ...] = ()
    labels: str | None = None
    labelled: tuple[LabelledRod, ...] = ()
    equivalent: Literal["K2HPO4", "HA"] = "K2HPO4"
    source: str = "calibration phantom in the scan"

    @model_validator(mode="after")
    def _rods(self) -> PhantomCalibration:
        if bool(self.rods) == bool(self.labelled):
            raise ValueError(
                "give either rods (by place) or labelled (with labels, the path of a label image)"
            )
        if self.labelled and self.labels is None:
            raise ValueError(
                "labelled rods need labels, the path of the label image that they are numbered in"
            )
        every: tuple[Rod | LabelledRod, ...] = self.rods or self.labelled
        if len(every) < LEAST_RODS:
            raise ValueError(
                f"{len(every)} rods are given; at least {LEAST_RODS} are needed to see whether they"
                " lie on a line"
            )
        if len({rod.water_mg_cm3 is None for rod in every}) > 1:
            raise ValueError(
                "water_mg_cm3 must be given for all rods (solutions) or for none (solid rods)"
            )
        return self


class PhantomlessCalibration(_Config):
    """The patient's tissues, each from the first of: rois, numbers in `labels`, the scan's own
    labels, `find` by HU.

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
            raise ValueError(
                "numbers need labels, the path of the label image that they are found in"
            )
        return self


class NoCalibration(_Config):
    """No calibration: asking for density is then an error."""

    kind: Literal["none"] = "none"


CalibrationConfig = LinearCalibration | PhantomCalibration | PhantomlessCalibration | NoCalibration
_ADAPTER: TypeAdapter[CalibrationConfig] = TypeAdapter(
    Annotated[CalibrationConfig, Field(discriminator="kind")]
)


def calibration_config(values: Mapping[str, Any]) -> CalibrationConfig:
    """The configuration of a mapping with `kind` linear | phantom | phantomless | none
    (conf/calibration/).

    Raises: pydantic's ValidationError (a ValueError) that names the wrong key.
    """
    return _ADAPTER.validate_python(dict(values))


def require_hu(image: Image) -> None:
    """Raises ValueError where the image can't hold HU: an MRI, labels, or numbers that are never
    negative."""
    if image.modality == "MR":
        raise ValueError(
            "MRI gives geometry only; its grey values are no HU and hold no density: leave the"
            " calibration out, or give a CT"
        )
    if image.modality == "SEG":
        raise ValueError(
            "this is a label image, which holds no HU; give the CT that the labels were drawn on"
        )
    if float(np.min(image.values)) >= 0.0:
        raise ValueError(
            "no value of this image is negative, so it is no CT in HU (fat is about −100 HU);"
            " subtract 1024 if it was stored with that offset, or leave the calibration out if it"
            " is an MRI"
        )


def scan_warnings(
    image: Image, calibration_kvp: float | None = None, blood_hu: float | None = None
) -> tuple[str, ...]:
    """What in the scan bends its HU: contrast agent (DICOM, or blood above 100 HU), and a tube
    voltage other than the calibration's."""
    lines = []
    agent = str(image.source.get("ContrastBolusAgent", "no")).lower() not in ("no", "none", "")
    if agent or (blood_hu is not None and blood_hu > ENHANCED_BLOOD_HU):
        why = (
            "the scan's header names a contrast agent"
            if agent
            else f"blood has {blood_hu:.0f} HU, above {ENHANCED_BLOOD_HU:.0f}"
        )
        lines.append(
            f"warning: {why}: contrast raises the HU of bone too, so density and stiffness are too"
            " high"
        )
    given = image.source.get("KVP")
    voltages = [
        float(v) for v in (given if isinstance(given, list | tuple) else [given]) if v is not None
    ]
    if calibration_kvp is not None and any(abs(v - calibration_kvp) > 0.5 for v in voltages):
        lines.append(
            f"warning: scanned at {', '.join(f'{v:g}' for v in voltages)} kV, calibrated at"
            f" {calibration_kvp:g} kV: bone's HU depend on the tube voltage"
        )
    return tuple(lines)


def fitted_line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Least-squares (intercept, slope), their covariance [2, 2] and R². Raises ValueError when
    all x are the same."""
    if np.ptp(x) == 0.0:
        raise ValueError("all calibration points have the same value; a line needs different ones")
    design = np.stack([np.ones_like(x), x], axis=-1)
    normal = np.linalg.inv(design.T @ design)
    fit = normal @ (design.T @ y)
    left = y - design @ fit
    total = float(((y - y.mean()) ** 2).sum())
    r2 = 1.0 - float(left @ left) / total if total > 0.0 else 0.0
    return fit, normal * float(left @ left) / max(len(x) - 2, 1), r2


def padded_covariance(covariance: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """A covariance of (intercept, slope) or of all three coefficients as one of all three."""
    full = np.zeros((3, 3))
    full[: len(covariance), : len(covariance)] = covariance
    return tuple(tuple(float(v) for v in row) for row in full)


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))
