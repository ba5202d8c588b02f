"""What a synthetic scan is asked to be."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

#: LPS axis and direction of each anatomical letter.
LETTERS = {
    "L": (0, 1.0),
    "R": (0, -1.0),
    "P": (1, 1.0),
    "A": (1, -1.0),
    "S": (2, 1.0),
    "I": (2, -1.0),
}


class ScanSpec(BaseModel):
    """What is scanned and how. HU of soft tissues: usual values of unenhanced CT at 120 kV [M]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    voxel_mm: tuple[float, float, float] = Field(
        default=(0.8, 0.8, 1.0), description="left-right, antero-posterior, cranio-caudal"
    )
    orientation: str = Field(
        default="LPS", description="where index i, j, k grow to, e.g. LPS, LAS, RAS, PIR"
    )
    rotation_deg: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 0.0), description="of the voxel grid in LPS, Rz·Ry·Rx"
    )
    extent: Literal["torso", "spine"] = Field(
        default="torso", description="torso: with skin and calibration rods; spine: bones alone"
    )
    margin_mm: float = Field(default=12.0, ge=0.0, le=100.0, description="beyond the vertebrae")
    psf_fwhm_mm: float = Field(default=0.9, ge=0.0, le=4.0)
    noise_hu: float = Field(default=0.0, ge=0.0, le=200.0)
    seed: int = Field(default=0, ge=0)
    slope_g_cm3_per_hu: float = Field(default=0.8e-3, ge=0.3e-3, le=2.0e-3)
    intercept_g_cm3: float = Field(default=-0.004, ge=-0.1, le=0.1)
    disc_hu: float = Field(default=90.0, ge=0.0, le=200.0)
    muscle_hu: float = Field(default=55.0, ge=0.0, le=120.0)
    fat_hu: float = Field(default=-100.0, ge=-150.0, le=-50.0)
    blood_hu: float = Field(
        default=45.0, ge=20.0, le=400.0, description="above some 80 it is contrast-enhanced"
    )
    slab_hu: float = Field(default=5.0, ge=-100.0, le=150.0)
    fat_mm: float = Field(default=18.0, ge=2.0, le=60.0)
    rods_g_cm3: tuple[float, ...] = Field(
        default=(0.0, 0.05, 0.10, 0.15, 0.20), min_length=2, description="K2HPO4"
    )
    sacrum_g_cm3: tuple[float, float] = Field(
        default=(0.16, 0.70), description="apparent density of core and outer 1.5 mm"
    )

    @field_validator("voxel_mm")
    @classmethod
    def _voxels(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0.15 <= v <= 10.0 for v in value):
            raise ValueError(f"voxel_mm={value}: each must be 0.15 to 10 mm")
        return value

    @field_validator("orientation")
    @classmethod
    def _orientation(cls, value: str) -> str:
        if len(value) != 3 or sorted(LETTERS.get(c, (9, 0.0))[0] for c in value) != [0, 1, 2]:
            raise ValueError(
                f"orientation={value!r}: one letter of each of L/R, P/A and S/I is needed, such as"
                " LPS or PIR"
            )
        return value

    def hu(self, qct_g_cm3: Any) -> Any:
        """HU of a K2HPO4-equivalent density."""
        return (qct_g_cm3 - self.intercept_g_cm3) / self.slope_g_cm3_per_hu
