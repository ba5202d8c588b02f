"""One calibration of those that the configuration can ask for."""

from __future__ import annotations

from engine.patient.bone.calibration import (
    Calibration,
    CalibrationConfig,
    LinearCalibration,
    NoCalibration,
    PhantomCalibration,
    require_hu,
    scan_warnings,
)
from engine.patient.bone.phantomless import by_tissues
from engine.patient.bone.rods import by_rods
from engine.patient.labels.understand import Labels
from engine.patient.read.image import Image


def calibrate(
    config: CalibrationConfig | None, image: Image, labels: Labels | None = None
) -> Calibration:
    """The calibration of one CT.

    labels   the scan's understood labels, where blood (aorta) and muscle are looked for when the
             kind is phantomless

    Raises: ValueError for kind none, an MRI, rods or tissues outside the image or too few, R² <
    0.98, and a slope that no scanner has.
    """
    if config is None or isinstance(config, NoCalibration):
        raise ValueError(
            "HU alone are no density: give calibration=linear (slope and intercept of your"
            " scanner), phantom (rods in the scan) or phantomless (the patient's tissues), or leave"
            " the scan's density out (it is then assumed)"
        )
    require_hu(image)
    if isinstance(config, LinearCalibration):
        return Calibration(
            config.kind,
            config.slope_g_cm3_per_hu,
            config.intercept_g_cm3,
            config.equivalent,
            source=config.source,
            notes=(
                f"HU → density line given ({config.source}); its error is not known",
                *scan_warnings(image, config.kvp),
            ),
        )
    if isinstance(config, PhantomCalibration):
        return by_rods(config, image)
    return by_tissues(config, image, labels)
