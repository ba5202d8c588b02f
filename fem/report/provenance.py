"""Where the materials of a check come from, by group of elements."""

from __future__ import annotations

from engine import materials
from fem.report.result import Material

_TITLES = {
    "caudal": "caudal vertebra",
    "cranial": "cranial vertebra",
    "remnant": "disc beside the implant",
    "rods": "rods and screws",
    "disc": "disc of the intact segment",
}
_RODS_SOURCE = "beams from pedicle to pedicle as configured: boundary.rod_e_mpa, rod_poisson"


def provenance(
    law_name: str,
    implant: str,
    density_source: str,
    bone_factor: float,
    rods: tuple[float, float] | None,
    moduli_mpa: dict[str, list[float]],
) -> list[Material]:
    """The materials of a check by group of elements, as fem/solve.py uses them.

    rods         modulus MPa and Poisson's ratio; None: no rods
    moduli_mpa   by region of engine.types.REGIONS (and "disc"): modulus in the mesh, 5th, 50th and
                 95th centile of the volume
    """
    law, solid = materials.bone_law(law_name), materials.implant_material(implant)
    bone = _bone_words(law, density_source, bone_factor)
    lattice = (
        "; lattice: times ρ^1.34 (0.146 + 0.854 ρ^6), ρ its relative density [S25, fit]"
        if solid.lattice
        else ""
    )
    groups = [
        (body, bone, law.poisson, f"{law_name}: {law.source}") for body in ("caudal", "cranial")
    ]
    groups.append(("implant", f"{solid.e_mpa:g}{lattice}", solid.poisson, solid.source))
    for name in ("graft", "remnant", "disc"):
        soft = materials.SOFT[name]
        groups.append((name, f"{soft.e_mpa:g}", soft.poisson, soft.source))
    if rods is not None:
        groups.append(("rods", f"{rods[0]:g}", rods[1], _RODS_SOURCE))
    return [
        Material(
            group=_TITLES.get(name, name),
            modulus=modulus,
            poisson=poisson,
            source=source,
            found_mpa=moduli_mpa.get(name, []),
        )
        for name, modulus, poisson, source in groups
    ]


def _bone_words(law: materials.BoneLaw, density_source: str, bone_factor: float) -> str:
    """E = c ρ^n + a in words, with its floor, the factor on it and where ρ comes from."""
    formula = f"{law.coefficient:g} ρ^{law.exponent:g}" + (
        f" {law.intercept_mpa:+g}" if law.intercept_mpa else ""
    )
    times = f", times {bone_factor:g} (fem.solve.bone_factor)" if bone_factor != 1.0 else ""
    return (
        f"{formula}, at least {law.floor_mpa:g}{times}; ρ in g/cm³ ({law.density} density), source:"
        f" {density_source}"
    )
