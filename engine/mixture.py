"""Shares of the materials in a voxel, and the modulus of their mixture."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from engine.elasticity import Medium
from engine.implants import ImplantFields
from engine.materials import SOFT, implant_material, lame, lattice_modulus_ratio
from engine.scene import Scene
from engine.sdf import fill
from engine.types import REGIONS


class Alloy(NamedTuple):
    """The implant's solid material as numbers (so that compiled code serves every material),
    MPa."""

    e_mpa: Array
    poisson: Array
    fatigue_mpa: Array


def alloy(name: str) -> Alloy:
    """The material of that name. Raises ValueError that lists the known ones."""
    solid = implant_material(name)
    return Alloy(
        jnp.asarray(solid.e_mpa), jnp.asarray(solid.poisson), jnp.asarray(solid.fatigue_mpa)
    )


def fractions(scene: Scene, spacing_mm: float, implant: ImplantFields) -> Array:
    """Share of each of REGIONS in every voxel [x, y, z, r]; what is left to 1 is surrounding
    tissue. See `shares_of`."""
    return jnp.stack(shares_of(scene, spacing_mm, implant), axis=-1)


def shares_of(scene: Scene, spacing_mm: float, implant: ImplantFields) -> list[Array]:
    """The shares as one field for each of REGIONS: stacked, their gradients cost ten times as much.

    The implant wins over bone, bone over graft, graft over what remains of the disc. Bone is the
    fill of max(φ_bone, −φ_implant), not a product of fills: at a conforming face the two then fill
    the voxel exactly. There the two tie all over the face, and the derivative is that of sinking
    the face into bone: the mean of both sides, which max() has, would mix in that of opening a
    film.
    """
    part = fill(implant.implant, spacing_mm)
    free, outside = 1.0 - part, -implant.implant
    shares = {"implant": part}
    for name, distance in (
        ("caudal", jnp.where(outside >= scene.caudal, outside, scene.caudal)),
        ("cranial", jnp.where(outside >= scene.cranial, outside, scene.cranial)),
        ("graft", jnp.maximum(implant.window, scene.disc)),
        ("remnant", scene.disc),
    ):
        shares[name] = jnp.minimum(fill(distance, spacing_mm), free)
        free = free - shares[name]
    return [shares[name] for name in REGIONS]


def medium(
    scene: Scene, shares: Array, density: Array, material: Alloy, poisson_bone: float
) -> tuple[Medium, Array]:
    """`mixture_of` from shares [x, y, z, r]."""
    return mixture_of(
        scene, [shares[..., k] for k in range(len(REGIONS))], density, material, poisson_bone
    )


def mixture_of(
    scene: Scene, shares: list[Array], density: Array, material: Alloy, poisson_bone: float
) -> tuple[Medium, Array]:
    """λ, μ of each voxel, κ of the foundation under the caudal bone, and bone's strain over the
    voxel's [x, y, z].

    What fills the disc space is mixed by the direction of the interfaces in the voxel, since the
    load runs along z:

        m = H^w · G^(1−w),   H = (Σ a_i/m_i)⁻¹,   G = Π m_i^a_i,   w = D_z / (D_x + D_y + D_z)

    for m = λ and μ, a_i the shares without surrounding tissue and D_c the squared differences of
    the shares to the neighbours along c. Layers across the load (endplates, a gap under a flat
    cage) are in series: the harmonic mean H is exact there. At the side walls of a stiff device the
    geometric mean G puts its edge where the device fills half a voxel. The arithmetic mean would
    make every device a voxel wider and every gap a voxel thinner, and hide most of the yielded bone
    (docs/decisions.md). Surrounding tissue takes its share in parallel, as free surfaces run along
    the load.

    In series the stress is shared: bone in a mixed voxel is strained by m_mix/m_bone times the
    voxel's strain.
    """
    e = {
        "caudal": (scene.e_caudal, poisson_bone),
        "cranial": (scene.e_cranial, poisson_bone),
        "implant": (material.e_mpa * lattice_modulus_ratio(density), material.poisson),
        "graft": (SOFT["graft"].e_mpa, SOFT["graft"].poisson),
        "remnant": (SOFT["remnant"].e_mpa, SOFT["remnant"].poisson),
    }
    filled = sum(shares[1:], shares[0])
    inner = [share / jnp.maximum(filled, 1e-9) for share in shares]
    series = _series_share(shares)
    parts = []
    for i in (0, 1):
        harmonic = logarithm = jnp.zeros_like(filled)
        for k, name in enumerate(REGIONS):
            modulus = lame(*e[name])[i]
            harmonic = harmonic + inner[k] / modulus
            logarithm = logarithm + inner[k] * jnp.log(modulus)
        # an empty voxel has harmonic = 0; its mixture is multiplied by filled = 0 below
        log_harmonic = -jnp.log(jnp.where(filled > 1e-9, harmonic, 1.0))
        parts.append(jnp.exp(series * log_harmonic + (1.0 - series) * logarithm))
    around = lame(SOFT["surrounding"].e_mpa, SOFT["surrounding"].poisson)
    lam, mu = (
        (1.0 - filled) * scene.tissue * soft + filled * part
        for soft, part in zip(around, parts, strict=True)
    )
    caudal, cranial = shares[REGIONS.index("caudal")], shares[REGIONS.index("cranial")]
    bone = caudal + cranial
    has_bone = bone > 1e-6
    e_bone = (caudal * scene.e_caudal + cranial * scene.e_cranial) / jnp.where(has_bone, bone, 1.0)
    mu_bone = lame(jnp.where(has_bone, e_bone, 1.0), poisson_bone)[1]
    return Medium(lam, mu, scene.support * caudal), jnp.where(has_bone, parts[1] / mu_bone, 1.0)


def _series_share(shares: list[Array]) -> Array:
    """w of `mixture_of`: how much the interfaces of a voxel lie across z, in [0, 1], from
    one-sided differences."""
    by_name = dict(zip(REGIONS, shares, strict=True))
    bone, part, soft = (
        by_name["caudal"] + by_name["cranial"],
        by_name["implant"],
        by_name["graft"] + by_name["remnant"],
    )
    square = []
    for axis in range(3):
        total = jnp.zeros_like(bone)
        for f in (bone, part, soft):
            step = jnp.diff(f, axis=axis) ** 2
            before, after = [(0, 0)] * 3, [(0, 0)] * 3
            before[axis], after[axis] = (1, 0), (0, 1)
            # not central differences, which vanish in a gap between two stiff bodies
            total = total + jnp.pad(step, before) + jnp.pad(step, after)
        square.append(total)
    small = 1e-6
    return (square[2] + small / 3) / (square[0] + square[1] + square[2] + small)
