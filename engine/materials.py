"""Constitutive data with sources: bone laws, alloys and polymers, soft tissue, lattice homogenisation.

Everything is isotropic linear elastic: E (MPa) and ν. The functions work on numpy and jax arrays alike.
Sources [Sn] are those of docs/sources.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BoneLaw:
    """E = intercept + coefficient·ρ^exponent, E in MPa and ρ in g/cm³, never below floor_mpa.

    Which density ρ is (apparent, or a mineral equivalent as calibrated CT gives) differs by law: see its source.
    """

    coefficient: float
    exponent: float
    intercept_mpa: float
    floor_mpa: float
    poisson: float
    source: str

    def modulus_mpa(self, density_g_cm3: Any) -> Any:
        """Young's modulus of bone of that density (elementwise; NaN-free for ρ ≤ 0, which takes the floor)."""
        positive = density_g_cm3 * (density_g_cm3 > 0.0) + 1e-9
        raw = self.intercept_mpa + self.coefficient * positive**self.exponent
        return raw * (raw > self.floor_mpa) + self.floor_mpa * (raw <= self.floor_mpa)


BONE_LAWS = {
    "morgan2003_vertebra": BoneLaw(
        4730.0, 1.56, 0.0, 5.0, 0.3, "Morgan, Bayraktar, Keaveny 2003, vertebra T10-L5, apparent density [S20]"
    ),
    "kopperdahl2002": BoneLaw(
        3230.0, 1.0, -34.7, 5.0, 0.3, "Kopperdahl, Morgan, Keaveny 2002, QCT density [M: not re-read]"
    ),
    "verse19fem": BoneLaw(
        2980.0, 1.05, 0.0, 0.0, 0.3,
        "L2 benchmark, doi 10.1101/2025.04.19.649449; its code (Bonelab/Ogo) ascribes it to Kopperdahl 2002 [M: not re-read]; "
        "QCT density equivalent to K2HPO4, not apparent density",
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
        112000.0, 0.33, "Ti-6Al-4V ELI, laser powder bed, as built [M]; E 110-114 GPa", 795.0, 225.0, 4.43, lattice=True
    ),
    "peek": Solid(3600.0, 0.38, "PEEK [M]; wet at 37 °C −1.8 % [S23]", 100.0, 60.0, 1.30),
    "cocr": Solid(235000.0, 0.30, "Co-28Cr-6Mo [M]", 830.0, 500.0, 8.30),
}

SOFT = {
    "disc": Solid(4.2, 0.45, "annulus ground substance, used for the whole intact disc [S8]"),
    "remnant": Solid(4.2, 0.45, "annulus ground substance left around the implant [S8]"),
    "graft": Solid(100.0, 0.30, "morsellised cancellous graft at the modulus of cancellous bone [S8-S10]"),
    # What is outside every body: fat and muscle. It keeps the voxel operator regular and carries nothing
    # (a 40 mm column of it is softer than 1 N/mm).
    "surrounding": Solid(0.01, 0.30, "numerical floor of the order of fat tissue"),
}


# -- lattice -----------------------------------------------------------------------------------------------
# As-built Ti gyroid/diamond, 60-80 % porosity: E 1.9-4.8 GPa, strength 52-160 MPa [S25]. Through those points
# E/E_s = 0.146·ρ^1.34 and strength = 705·ρ^1.62 MPa; the ρ^6 term only takes the law to the solid at ρ = 1.
# Porous fatigue strength is about a tenth of the porous strength [S24], hence 0.31·225 MPa·ρ^1.62 below.
def lattice_modulus_ratio(relative_density: Any) -> Any:
    """E_lattice / E_solid = ρ^1.34 (0.146 + 0.854 ρ^6) for relative density ρ in (0, 1] [S25, fit]."""
    return relative_density**1.34 * (0.146 + 0.854 * relative_density**6)


def lattice_fatigue_ratio(relative_density: Any) -> Any:
    """Macroscopic fatigue limit of the lattice over the solid's: ρ^1.62 (0.31 + 0.69 ρ^6) [S24, S25, fit]."""
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
        raise ValueError(f"implant material {name!r} is unknown; choose one of {', '.join(IMPLANTS)}")
    return IMPLANTS[name]
