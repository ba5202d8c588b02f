"""READ FIRST: from design parameters to a response, one load case a row. The map of the engine.

    parameters
        │  family.fields         engine/implants/<family>.py
        ▼
    φ_implant, φ_window, ρ       signed distances and lattice density on the voxel grid
        │  mixture.shares_of     engine/mixture.py
        ▼
    share of each region         in each voxel: fill (engine/sdf.py) of max(φ_bone, −φ_implant), …
        │  mixture.mixture_of    engine/mixture.py
        ▼
    λ, μ, κ                      per voxel, mixed by the interfaces' direction
        │  multigrid.solve       engine/multigrid/, on the elements of engine/elasticity.py
        ▼
    u                            for a basis of the load cases: the problem is linear, so every case
        │                        is a combination of the basis
        │  respond_fields        here
        ▼
    Response                     strain, stress, rigid motions and reactions where objectives look

What does not depend on the design (the patient, loads and supports on the grid) is done once, in
numpy, by `scene.prepare` (engine/scene.py), from a `Boundary` (engine/boundary.py). Objectives read
the response (objectives/), the optimiser (engine/optimize.py) follows their gradients.

Everything here is a pure function of arrays and differentiable in the parameters.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from engine import elasticity, multigrid
from engine.elasticity import Medium
from engine.implants import Anatomy, Family, ImplantFields
from engine.materials import lattice_fatigue_ratio
from engine.mixture import Alloy, alloy, mixture_of, shares_of
from engine.multigrid import Preconditioner, SolveInfo, System
from engine.scene import Numerics, Scene
from engine.types import Response

log = logging.getLogger("spinefit")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Warm:
    """Warm starts of the basis solve and of its adjoint, and the adjoint's probe (see
    multigrid.solve)."""

    forward: Array
    adjoint: Array
    probe: Array


def assemble(
    scene: Scene, numerics: Numerics, implant: ImplantFields, solid: Alloy
) -> tuple[System, list[Array], Array]:
    """The linear system of a device given by its fields, its share of each of REGIONS and bone's
    strain over the voxel's."""
    shares = shares_of(scene, numerics.spacing_mm, implant)
    body, concentration = mixture_of(
        scene, shares, implant.relative_density, solid, numerics.poisson_bone
    )
    return System(body, None, scene.links, scene.bodies), shares, concentration


def construct(
    scene: Scene, numerics: Numerics, family: Family, parameters: dict[str, Array]
) -> tuple[System, list[Array], Array]:
    """The linear system of a design, its share of each of REGIONS and its lattice density, each
    [x, y, z]."""
    implant = family.fields(parameters, scene.anatomy)
    system, shares, _ = assemble(scene, numerics, implant, alloy(family.material))
    return system, shares, implant.relative_density


@partial(jax.jit, static_argnames="family")
def fields_of(family: Family, parameters: dict[str, Array], anatomy: Anatomy) -> ImplantFields:
    """The family's fields, compiled by themselves: all that has to be compiled anew for another
    family."""
    return family.fields(parameters, anatomy)


@partial(jax.jit, static_argnames="numerics")
def linear_system(scene: Scene, numerics: Numerics, implant: ImplantFields, solid: Alloy) -> System:
    """The system of a device given by its fields, compiled."""
    return assemble(scene, numerics, implant, solid)[0]


def hierarchy(
    scene: Scene, numerics: Numerics, family: Family, parameters: dict[str, Array]
) -> Preconditioner:
    """The preconditioner for this design (and for those near it). Not differentiated."""
    implant = fields_of(family, {k: jnp.asarray(v) for k, v in parameters.items()}, scene.anatomy)
    return multigrid.build(
        linear_system(scene, numerics, implant, alloy(family.material)), numerics.grid
    )


def no_warm_start(scene: Scene) -> Warm:
    """No warm start."""
    zero = jnp.zeros_like(scene.forces)
    return Warm(zero, zero, jnp.zeros(3))


def respond(
    scene: Scene,
    numerics: Numerics,
    family: Family,
    parameters: dict[str, Array],
    preconditioner: Preconditioner,
    warm: Warm,
) -> tuple[Response, SolveInfo, Array]:
    """The response of a design, how the solve went per basis load, and the basis displacements."""
    implant = family.fields(parameters, scene.anatomy)
    return respond_fields(scene, numerics, implant, alloy(family.material), preconditioner, warm)


@jax.custom_vjp
def _at(flat: Array, sample: Array, place: Array) -> Array:
    """flat[..., sample]. Its gradient is gathered by `place`; what fills the samples up has no
    volume, hence no gradient."""
    return flat[..., sample]


def _at_backward(place: Array, bar: Array) -> tuple[Array, None, None]:
    return jnp.pad(bar, [(0, 0)] * (bar.ndim - 1) + [(0, 1)])[..., place], None, None


_at.defvjp(lambda flat, sample, place: (flat[..., sample], place), _at_backward)


def _window_of(
    scene: Scene, numerics: Numerics, field: Array, axis: int, extra_nodes: int = 0
) -> Array:
    """The window of a field whose axes x, y, z begin at `axis`; extra_nodes = 1 for nodal
    fields."""
    start = [jnp.int32(0)] * axis + [scene.corner[i] for i in range(3)]
    return jax.lax.dynamic_slice(
        field, start, (*field.shape[:axis], *(n + extra_nodes for n in numerics.window))
    )


def _sampled(scene: Scene, numerics: Numerics, field: Array) -> Array:
    """A voxel field [..., x, y, z] at the samples, [..., q]."""
    lead = field.ndim - 3
    window = _window_of(scene, numerics, field, lead)
    return _at(window.reshape(*field.shape[:lead], -1), scene.sample, scene.place)


def _strain_and_stress(
    scene: Scene, numerics: Numerics, medium: Medium, concentration: Array, u: Array
) -> tuple[Array, Array]:
    """Strain and stress at the samples [l, q, 6] of basis displacements u: the mixture's stress,
    bone's own strain where a voxel holds bone (see mixture.mixture_of)."""
    window = _window_of(scene, numerics, u, 2, 1)
    basis = jnp.moveaxis(elasticity.strain(window, numerics.spacing_mm), -1, 1)
    basis = _at(basis.reshape(*basis.shape[:2], -1), scene.sample, scene.place)
    strain = jnp.einsum("lr,rkq->lqk", scene.combination, basis)
    local = Medium(*(_sampled(scene, numerics, f) for f in (medium.lam, medium.mu, medium.kappa)))
    stress = elasticity.stress(local, strain)
    return strain * _sampled(scene, numerics, concentration)[None, :, None], stress


def _compliance(scene: Scene, u: Array) -> Array:
    """fᵀu of each load case [l], N·mm, of basis displacements u."""
    work = jnp.einsum("rcxyz,scxyz->rs", scene.forces, u)
    return jnp.einsum("lr,rs,ls->l", scene.combination, work, scene.combination)


def respond_fields(
    scene: Scene,
    numerics: Numerics,
    implant: ImplantFields,
    solid: Alloy,
    preconditioner: Preconditioner,
    warm: Warm,
) -> tuple[Response, SolveInfo, Array]:
    """`respond` for a device given by its fields: one compiled program for every family and
    material."""
    h, sampled = numerics.spacing_mm, partial(_sampled, scene, numerics)
    system, shares, concentration = assemble(scene, numerics, implant, solid)
    density = implant.relative_density
    u, info = multigrid.solve(
        h,
        numerics.solver,
        system,
        scene.forces,
        preconditioner,
        warm.forward,
        warm.adjoint,
        warm.probe,
    )
    strain, stress = _strain_and_stress(scene, numerics, system.medium, concentration, u)
    flat = u.reshape(u.shape[0], 3, -1)
    motion = jnp.stack(
        [jnp.einsum("mnc,rcn->rm", rows, flat[:, :, node]) for node, rows in scene.motion], axis=1
    )
    total = elasticity.foundation_resultant(system.medium, flat, scene.nodes, h)
    compliance = _compliance(scene, u)
    limit = solid.fatigue_mpa * lattice_fatigue_ratio(density)
    response = Response(
        position=jnp.moveaxis(sampled(jnp.moveaxis(scene.anatomy.points_mm, -1, 0)), 0, -1),
        volume=scene.sample_mm3,
        fraction=jnp.stack([sampled(share) for share in shares], axis=-1),
        near=sampled(scene.near),
        strain=strain,
        stress=stress,
        relative_density=sampled(density),
        motion=jnp.einsum("lr,rbm->lbm", scene.combination, motion),
        compliance=compliance,
        reaction=scene.combination @ total,
        applied=scene.applied,
        reference_sed=scene.reference_sed,
        fatigue_mpa=sampled(limit),
        loadcases=numerics.loadcases,
    )
    return response, info, u


_respond = jax.jit(respond_fields, static_argnames="numerics")


def analyse(
    scene: Scene,
    numerics: Numerics,
    family: Family,
    parameters: dict[str, Array],
    warm: Warm | None = None,
) -> tuple[Response, SolveInfo, Array]:
    """`respond` for one design from scratch: builds the preconditioner and compiles. Not
    differentiated."""
    parameters = {k: jnp.asarray(v) for k, v in parameters.items()}
    preconditioner = hierarchy(scene, numerics, family, parameters)
    implant = fields_of(family, parameters, scene.anatomy)
    return _respond(
        scene,
        numerics,
        implant,
        alloy(family.material),
        preconditioner,
        no_warm_start(scene) if warm is None else warm,
    )


def with_reference(
    scene: Scene, numerics: Numerics, intact: Family
) -> tuple[Scene, Response, SolveInfo]:
    """The scene with the intact segment's strain energy density, which stress shielding is measured
    against.

    The intact segment carries no rods.
    """
    response, info, _ = analyse(replace(scene, links=None), numerics, intact, {})
    energy = 0.5 * jnp.sum(response.strain * response.stress, axis=-1)
    return replace(scene, reference_sed=energy), response, info
