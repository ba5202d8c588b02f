"""Constitutive data with sources: bone laws, alloys and polymers, soft tissue, lattice
homogenisation.

Everything is isotropic linear elastic: E (MPa) and ν. The functions work on numpy and jax arrays
alike. Sources [Sn] are those of docs/sources.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# -- bone ------------------------------------------------------------------------------------------
# ρ_QCT → ρ_ash → ρ_app. The line comes from femurs; at ρ_QCT = 0 it still gives ρ_app = 0.13 g/cm³.
# A law of apparent density read through it is therefore far stiffer in an osteoporotic vertebra
# than a law of ρ_QCT (75 mg/cm³: Morgan 515 MPa, Kopperdahl 208 MPa). A scan's density is better
# read with a law of ρ_QCT (`density="qct"`), for which the two conversions cancel.
_ASH_SLOPE, _ASH_INTERCEPT = 0.877, 0.079
_ASH_SHARE = 0.6


def apparent_of_qct(qct_g_cm3: Any) -> Any:
    """Apparent density of a QCT (mineral-equivalent) density, both g/cm³.

        ρ_app = ρ_ash / 0.6,   ρ_ash = 0.877 ρ_QCT + 0.079

    Source: Schileo et al. 2008, femur [M: not re-read].

    Trap: ρ_QCT = 0 gives 0.13 g/cm³, and ρ_app < 0 needs ρ_QCT < −0.09.
    """
    return (_ASH_SLOPE * qct_g_cm3 + _ASH_INTERCEPT) / _ASH_SHARE


def qct_of_apparent(apparent_g_cm3: Any) -> Any:
    """The inverse of `apparent_of_qct`; negative below ρ_app = 0.13 g/cm³."""
    return (_ASH_SHARE * apparent_g_cm3 - _ASH_INTERCEPT) / _ASH_SLOPE


@dataclass(frozen=True)
class BoneLaw:
    """E = intercept + coefficient·ρ^exponent, E in MPa and ρ in g/cm³, never below floor_mpa.

    density   what ρ is: "apparent", "qct" (mineral equivalent, as calibrated CT gives) or "ash"
    site      where the bone was taken; laws of one site do not hold at another [S20]
    """

    coefficient: float
    exponent: float
    intercept_mpa: float
    floor_mpa: float
    poisson: float
    source: str
    density: str = "apparent"
    site: str = "vertebra"

    def modulus_mpa(self, apparent_g_cm3: Any) -> Any:
        """Young's modulus of bone of that *apparent* density, which is what a patient's density
        field holds.

        Converts to the law's own density first (`qct_of_apparent`, or ρ_ash = 0.6 ρ_app).
        Elementwise, numpy or jax, does not decrease with density, at least floor_mpa, NaN-free with
        its derivative.
        """
        argument = apparent_g_cm3
        if self.density == "qct":
            argument = qct_of_apparent(apparent_g_cm3)
        elif self.density == "ash":
            argument = _ASH_SHARE * apparent_g_cm3
        return self.of_argument(argument)

    def of_argument(self, density_g_cm3: Any) -> Any:
        """Young's modulus of bone whose density, of the law's own kind (`density`), is given; ρ
        ≤ 0 takes the floor."""
        positive = density_g_cm3 * (density_g_cm3 > 0.0) + 1e-9
        raw = self.intercept_mpa + self.coefficient * positive**self.exponent
        return raw * (raw > self.floor_mpa) + self.floor_mpa * (raw <= self.floor_mpa)


_MORGAN = "Morgan, Bayraktar, Keaveny 2003, {}, apparent density [S20]"
BONE_LAWS = {
    "morgan2003_vertebra": BoneLaw(4730.0, 1.56, 0.0, 5.0, 0.3, _MORGAN.format("vertebra T10-L5")),
    "kopperdahl2002": BoneLaw(
        3230.0,
        1.0,
        -34.7,
        5.0,
        0.3,
        "Kopperdahl, Morgan, Keaveny 2002, QCT density [M: not re-read]",
        density="qct",
    ),
    "verse19fem": BoneLaw(
        2980.0,
        1.05,
        0.0,
        0.0,
        0.3,
        "L2 benchmark, doi 10.1101/2025.04.19.649449; its code (Bonelab/Ogo) ascribes it to"
        " Kopperdahl 2002 [M: not re-read]; QCT density equivalent to K2HPO4, not apparent density;"
        " below zero density no stiffness at all",
        density="qct",
    ),
    "keller1994": BoneLaw(
        757.0, 1.94, 0.0, 5.0, 0.3, "Keller 1994, human spine, apparent density [M: not re-read]"
    ),
    "rho1995": BoneLaw(
        0.51 * 1000.0**1.37,
        1.37,
        0.0,
        5.0,
        0.3,
        "Rho, Hobatho, Ashman 1995, E = 0.51 ρ^1.37 with ρ in kg/m³, apparent density [M?: low"
        " confidence, for comparison only]",
    ),
    "morgan2003_tibia": BoneLaw(
        15490.0, 1.93, 0.0, 5.0, 0.3, _MORGAN.format("proximal tibia"), site="tibia"
    ),
    "morgan2003_femoral_neck": BoneLaw(
        6850.0, 1.49, 0.0, 5.0, 0.3, _MORGAN.format("femoral neck"), site="femoral neck"
    ),
    "keyak_femur": BoneLaw(
        14900.0,
        1.86,
        0.0,
        5.0,
        0.3,
        "Keyak, femur, ash density [M: not re-read]",
        density="ash",
        site="femur",
    ),
}

#: Apparent bone yields at nearly density-independent strain (vertebra; Morgan & Keaveny 2001).
YIELD_STRAIN_COMPRESSION = 0.0077
YIELD_STRAIN_TENSION = 0.0070


@dataclass(frozen=True)
class Solid:
    """An isotropic material. fatigue_mpa: stress amplitude taken as the limit at 5e6 cycles."""

    e_mpa: float
    poisson: float
    source: str
    yield_mpa: float = float("nan")
    fatigue_mpa: float = float("nan")
    density_g_cm3: float = float("nan")
    lattice: bool = False


IMPLANTS = {
    "ti6al4v": Solid(
        112000.0,
        0.33,
        "Ti-6Al-4V ELI, laser powder bed, as built [M]; E 110-114 GPa",
        795.0,
        225.0,
        4.43,
        lattice=True,
    ),
    "peek": Solid(3600.0, 0.38, "PEEK [M]; wet at 37 °C −1.8 % [S23]", 100.0, 60.0, 1.30),
    "cocr": Solid(235000.0, 0.30, "Co-28Cr-6Mo [M]", 830.0, 500.0, 8.30),
}

SOFT = {
    "disc": Solid(4.2, 0.45, "annulus ground substance, used for the whole intact disc [S8]"),
    "remnant": Solid(4.2, 0.45, "annulus ground substance left around the implant [S8]"),
    "graft": Solid(
        100.0, 0.30, "morsellised cancellous graft at the modulus of cancellous bone [S8-S10]"
    ),
    # What is outside every body: fat and muscle. It keeps the voxel operator regular and carries
    # nothing (a 40 mm column of it is softer than 1 N/mm).
    "surrounding": Solid(0.01, 0.30, "numerical floor of the order of fat tissue"),
}


# -- lattice ---------------------------------------------------------------------------------------
# As-built Ti gyroid/diamond, 60-80 % porosity: E 1.9-4.8 GPa, strength 52-160 MPa [S25]. Through
# those points E/E_s = 0.146·ρ^1.34 and strength = 705·ρ^1.62 MPa; the ρ^6 term only takes the law
# to the solid at ρ = 1. Porous fatigue strength is about a tenth of the porous strength [S24],
# hence 0.31·225 MPa·ρ^1.62 below.
def lattice_modulus_ratio(relative_density: Any) -> Any:
    """E_lattice / E_solid = ρ^1.34 (0.146 + 0.854 ρ^6) for relative density ρ in (0, 1] [S25,
    fit]."""
    return relative_density**1.34 * (0.146 + 0.854 * relative_density**6)


def lattice_fatigue_ratio(relative_density: Any) -> Any:
    """Macroscopic fatigue limit of the lattice over the solid's: ρ^1.62 (0.31 + 0.69 ρ^6) [S24,
    S25, fit]."""
    return relative_density**1.62 * (0.31 + 0.69 * relative_density**6)


def lame(e_mpa: Any, poisson: Any) -> tuple[Any, Any]:
    """Lamé's λ and μ (MPa) of Young's modulus and Poisson's ratio."""
    return e_mpa * poisson / ((1 + poisson) * (1 - 2 * poisson)), e_mpa / (2 * (1 + poisson))


def bone_law(name: str) -> BoneLaw:
    """The law of that name. Raises ValueError that lists the known ones."""
    if name not in BONE_LAWS:
        raise ValueError(f"bone law {name!r} is unknown; choose one of {', '.join(BONE_LAWS)}")
    return BONE_LAWS[name]


def implant_material(name: str) -> Solid:
    """The implant material of that name. Raises ValueError that lists the known ones."""
    if name not in IMPLANTS:
        raise ValueError(
            f"implant material {name!r} is unknown; choose one of {', '.join(IMPLANTS)}"
        )
    return IMPLANTS[name]
