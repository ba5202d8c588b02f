"""Stress simulation of a design on its body-fitted mesh: the independent check of the voxel engine.

    −div σ = f,   σ = λ tr(ε) 1 + 2μ ε

with a traction −κ w u on the support, loads and links on mean rigid motions of patches. P2
tetrahedra assembled by SfePy (fem/elastic/operators.py), one factorisation for all load cases
(fem/elastic/factor.py). Moduli at the quadrature points: bone from its density by the bone law,
lattice by its homogenised ratio.
"""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import meshio
import numpy as np
import scipy.sparse as sp

from engine import materials
from engine.types import (
    BODIES,
    REGIONS,
    Boundary,
    Design,
    Link,
    Patch,
    Response,
    Segment,
    SolverStatus,
    stack_loads,
)
from fem.elastic import operators as el
from fem.elastic.contact import ContactSettings, Split, interface, solve_contact, split
from fem.elastic.factor import LinkRows, Solution, solve_linear
from fem.mesh.build import TetMesh
from fem.mesh.tets import components
from fem.sampling import Sampling, kept_points, nearness
from fem.solution import FemField

log = logging.getLogger("spinefit.fem")
#: Poisson's ratio of a bench test's blocks, steel or foam [M].
_BLOCK_POISSON = 0.3


@dataclass(frozen=True)
class FemSettings:
    """How to solve.

    quadrature       polynomial order that the quadrature integrates exactly (6: 24 points a
                     tetrahedron)
    sample           "qp": a sample per quadrature point; "cell": volume average per tetrahedron
    sample_all       keep samples of all regions (memory), not only near bone, implant and graft
    max_direct_dofs  above it the iterative solver is taken (PARDISO: about 15 MB per 1000 unknowns)
    contact          null: the implant is bonded to bone, graft and disc; a number: it only presses
                     on them (fem/elastic/contact.py), with that coefficient of friction (0: none)
    contact_mpa_per_mm  the contact's stiffness
    bone_factor      factor on the modulus that the bone law gives (sensitivity: 0.7 and 1.3);
                     yield, a strain, stays as it is
    blocks_mpa       null: bone, disc and graft; a number: a bench test, bone is test blocks of that
                     modulus (Poisson's ratio 0.3) and disc and graft are air
    """

    bone_law: str = "morgan2003_vertebra"
    order: int = 2
    quadrature: int = 6
    sample: str = "qp"
    sample_all: bool = False
    solver: str = "auto"
    max_direct_dofs: int = 700_000
    tolerance: float = 1e-7
    max_iterations: int = 2000
    contact: float | None = None
    contact_mpa_per_mm: float = ContactSettings.stiffness_mpa_per_mm
    bone_factor: float = 1.0
    blocks_mpa: float | None = None

    def __post_init__(self) -> None:
        if self.sample not in ("qp", "cell"):
            raise ValueError(f"sample={self.sample!r} is unknown; choose 'qp' or 'cell'")
        if self.quadrature not in (1, 2, 6):
            raise ValueError(
                f"quadrature={self.quadrature}: SfePy's rules of order 3 and 4 have negative"
                " weights; choose 2 or 6"
            )
        if self.blocks_mpa is not None and not 1.0 <= self.blocks_mpa <= 1e6:
            raise ValueError(
                f"blocks_mpa={self.blocks_mpa}: give a modulus of 1 to 1e6 MPa (steel 200000, grade"
                " 15 foam some 123)"
            )
        if not 0.1 <= self.bone_factor <= 10.0:
            raise ValueError(
                f"bone_factor={self.bone_factor}: give a factor of 0.1 to 10 on the bone law's"
                " modulus (1: the law itself)"
            )
        if self.blocks_mpa is not None and self.bone_factor != 1.0:
            raise ValueError(
                f"bone_factor={self.bone_factor} with blocks_mpa={self.blocks_mpa}: test blocks are"
                " no bone; give one of them"
            )
        self.contact_settings()

    def contact_settings(self) -> ContactSettings | None:
        """None: bonded. Raises ValueError for settings out of range."""
        return (
            None if self.contact is None else ContactSettings(self.contact, self.contact_mpa_per_mm)
        )


def solve(
    segment: Segment,
    design: Design,
    mesh: TetMesh,
    boundary: Boundary,
    settings: FemSettings = FemSettings(),
) -> tuple[Response, list[SolverStatus], FemField]:
    """All load cases of `boundary` on one mesh.

    A load case that could not be solved has status "failed" and NaN in every number. Raises
    ValueError for an empty patch, an unknown material or law, or a mesh that does not fit the
    design.
    """
    names = stack_loads(boundary.loadcases)
    if not names:
        raise ValueError("boundary has no load case; add one to loadcases")
    clock = time.perf_counter()
    joint = _joint(design, mesh, settings)
    system = _assembled(segment, design, joint.mesh, boundary, settings)
    assembly_s = time.perf_counter() - clock
    equilibrium = joint.equilibrium(system)
    solution = equilibrium.solution
    _log_status(names, solution.status)

    d = system.d
    displacement = np.stack([u.reshape(-1, 3) for u in solution.u.T])
    resultants = _resultants(segment, boundary, system, solution)
    near = nearness(d, boundary.near)
    sampling = Sampling(d, kept_points(d, near, settings.sample_all), settings.sample == "qp")
    tensors = sampling.tensors(displacement, system.lam, system.mu)
    places = sampling.places(near, system.relative_density)
    _log_samples(len(places["volume"]), d.weight_mm3.size, settings)
    response = _with_fatigue_limit(
        Response(**places, strain=tensors.strain, stress=tensors.stress, **resultants), design
    )
    figures = {
        "dofs": float(d.dofs),
        "nnz": float(system.matrix.nnz),
        "assembly_s": assembly_s,
        "solve_s": solution.seconds,
        "total_s": time.perf_counter() - clock,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    }
    log.info("%s", ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
    field = FemField(
        names,
        joint.mesh,
        displacement[:, : len(joint.mesh.points_mm)],
        tensors.cell_strain,
        tensors.cell_stress,
        (system.e_mpa * d.weight_mm3).sum(1) / sampling.volume_mm3,
        figures,
        equilibrium.contact,
        equilibrium.interface,
    )
    return response, solution.status, field


@dataclass(frozen=True)
class _System:
    """K u + (links) = f on one mesh, of the load cases `names`.

    e_mpa, lam, mu, relative_density [m, q]   at the quadrature points (lam, mu: Lamé's, MPa)
    matrix [dofs, dofs]                       body and support, without the links
    loads [dofs, l]                           nodal forces, N
    reaction_rows [6, dofs]                   support force and moment about the origin of u
    """

    names: tuple[str, ...]
    d: el.Discretisation
    e_mpa: np.ndarray
    lam: np.ndarray
    mu: np.ndarray
    relative_density: np.ndarray
    matrix: sp.csr_matrix
    links: list[LinkRows]
    loads: np.ndarray
    reaction_rows: sp.csr_matrix


class _Equilibrium(NamedTuple):
    """A system's solution; with contact also figures per load case and the interface's fields."""

    solution: Solution
    contact: tuple[dict[str, float], ...] = ()
    interface: meshio.Mesh | None = None


@dataclass(frozen=True)
class _Bonded:
    """The implant shares its nodes with what it touches. connected: the bodies hang together
    without the links."""

    mesh: TetMesh
    connected: bool
    settings: FemSettings

    def equilibrium(self, system: _System) -> _Equilibrium:
        solution = solve_linear(
            system.matrix,
            system.loads,
            system.links,
            el.rigid_modes(system.d.nodes_mm),
            solver=self.settings.solver,
            max_direct_dofs=self.settings.max_direct_dofs,
            tolerance=self.settings.tolerance,
            max_iterations=self.settings.max_iterations,
            joined=self.connected,
        )
        return _Equilibrium(solution)


@dataclass(frozen=True)
class _Pressing:
    """The implant has nodes of its own and only presses on what it touches."""

    cut: Split
    settings: ContactSettings

    @property
    def mesh(self) -> TetMesh:
        return self.cut.mesh

    def equilibrium(self, system: _System) -> _Equilibrium:
        d, e_mpa = system.d, system.e_mpa
        at = interface(d, self.cut)
        bones = [REGIONS.index(body) for body in BODIES]
        bone = self.cut.outer[np.isin(d.labels[self.cut.outer], bones)]
        softer_mpa = float(np.median(e_mpa[bone])) if len(bone) else float(np.median(e_mpa))
        contact = solve_contact(
            system.matrix, system.loads, system.links, at, softer_mpa, self.settings
        )
        return _Equilibrium(
            contact.solution,
            tuple(contact.figures(at)),
            contact.on_faces(d.nodes_mm, at, system.names),
        )


def _joint(design: Design, mesh: TetMesh, settings: FemSettings) -> _Bonded | _Pressing:
    """How the implant is held. Raises ValueError where contact has nothing to act on."""
    connected = int(components(mesh.tets).max()) == 0
    contact = settings.contact_settings()
    if contact is None:
        return _Bonded(mesh, connected, settings)
    if design.implant is None:
        raise ValueError(
            f"design {design.arm!r} has no implant: contact={settings.contact} has nothing to"
            " act on"
        )
    if not connected:
        raise ValueError(
            "the bodies are joined by links alone: contact needs the implant between them"
        )
    return _Pressing(split(mesh, REGIONS.index("implant")), contact)


def _assembled(
    segment: Segment, design: Design, mesh: TetMesh, boundary: Boundary, settings: FemSettings
) -> _System:
    d = el.discretise(mesh, settings.order, settings.quadrature)
    e_mpa, poisson, relative_density = moduli(
        segment, design, d, settings.bone_law, settings.blocks_mpa, settings.bone_factor
    )
    lam, mu = materials.lame(e_mpa, poisson)
    support, reaction_rows = el.foundation(d, boundary.support, boundary.foundation_mpa_per_mm2)
    return _System(
        names=stack_loads(boundary.loadcases),
        d=d,
        e_mpa=e_mpa,
        lam=lam,
        mu=mu,
        relative_density=relative_density,
        matrix=(el.stiffness(d, lam, mu) + support).tocsr(),
        links=[_link_rows(d, link) for link in boundary.links],
        loads=_loads(d, boundary),
        reaction_rows=reaction_rows,
    )


def _link_rows(d: el.Discretisation, link: Link) -> LinkRows:
    """Of the mean rigid motions of the link's two patches, twelve rows."""
    ends = [
        el.mean_motion(d, link.patch_a, link.point_a_mm),
        el.mean_motion(d, link.patch_b, link.point_b_mm),
    ]
    return LinkRows(sp.vstack(ends).tocsr(), 0.5 * (link.stiffness + link.stiffness.T))


def _resultants(
    segment: Segment, boundary: Boundary, system: _System, solution: Solution
) -> dict[str, Any]:
    """motion, compliance, reaction, applied and loadcases, as in Response; NaN where a load case
    failed."""
    d, u = system.d, solution.u
    motion = np.stack(
        [
            (el.mean_motion(d, _near(boundary, body), _endplate_centre(segment, body)) @ u).T
            for body in BODIES
        ],
        axis=1,
    )
    applied = np.stack([el.nodal_resultant(d.nodes_mm, f.reshape(-1, 3)) for f in system.loads.T])
    failed = np.array([status.code == "failed" for status in solution.status])
    applied[failed] = np.nan
    return dict(
        motion=motion,
        compliance=np.einsum("dl,dl->l", system.loads, u),
        reaction=(system.reaction_rows @ u).T,
        applied=applied,
        loadcases=system.names,
    )


def _with_fatigue_limit(response: Response, design: Design) -> Response:
    """As in the voxel engine: at every sample the limit of the implant's material at that
    relative density."""
    if design.implant is None:
        return response
    alloy = materials.implant_material(design.material)
    ratio = materials.lattice_fatigue_ratio(response.relative_density)
    return replace(response, fatigue_mpa=alloy.fatigue_mpa * ratio)


def _log_status(names: tuple[str, ...], status: list[SolverStatus]) -> None:
    for name, case in zip(names, status, strict=True):
        log.log(
            logging.INFO if case.code == "ok" else logging.ERROR,
            "load case %s: %s, residual %.1e, %s",
            name,
            case.code,
            case.relative_residual,
            case.text,
        )


def _log_samples(kept: int, points: int, settings: FemSettings) -> None:
    log.info(
        "samples: %d of %d kept (%s, %s)",
        kept,
        points,
        settings.sample,
        "all regions" if settings.sample_all else "bone near the implant, implant and graft",
    )


def moduli(
    segment: Segment,
    design: Design,
    d: el.Discretisation,
    law_name: str,
    blocks_mpa: float | None = None,
    bone_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Young's modulus MPa, Poisson's ratio and lattice relative density, all [m, q] at the
    quadrature points."""
    law = materials.bone_law(law_name)
    e_mpa, poisson = np.empty(d.weight_mm3.shape), np.empty(d.weight_mm3.shape)
    relative_density = np.ones(d.weight_mm3.shape)
    for label, vertebra in enumerate((segment.caudal, segment.cranial)):
        cells = d.labels == label
        if blocks_mpa is None:
            e_mpa[cells], poisson[cells] = (
                bone_factor * law.modulus_mpa(vertebra.density.sample(d.points_mm[cells])),
                law.poisson,
            )
        else:
            e_mpa[cells], poisson[cells] = blocks_mpa, _BLOCK_POISSON
    soft = {
        "graft": materials.SOFT["graft"],
        "remnant": materials.SOFT["disc" if design.implant is None else "remnant"],
    }
    if blocks_mpa is not None:
        soft = dict.fromkeys(soft, materials.SOFT["surrounding"])
    for name, solid in soft.items():
        cells = d.labels == REGIONS.index(name)
        e_mpa[cells], poisson[cells] = solid.e_mpa, solid.poisson
    cells = d.labels == REGIONS.index("implant")
    if cells.any():
        if design.implant is None:
            raise ValueError(
                f"the mesh has {cells.sum()} implant tetrahedra, but design {design.arm!r} has no"
                " implant"
            )
        alloy = materials.implant_material(design.material)
        ratio = 1.0
        if design.relative_density is not None:
            rho = design.relative_density.sample(d.points_mm[cells])
            if rho.min() <= 0.0 or rho.max() > 1.0 + 1e-6:
                raise ValueError(
                    f"relative density of design {design.arm!r} is {rho.min():.3g} to"
                    f" {rho.max():.3g} inside the implant; it must be in (0, 1]"
                )
            relative_density[cells] = rho
            ratio = materials.lattice_modulus_ratio(rho)
        e_mpa[cells], poisson[cells] = alloy.e_mpa * ratio, alloy.poisson
    return e_mpa, poisson, relative_density


def _loads(d: el.Discretisation, boundary: Boundary) -> np.ndarray:
    """Nodal forces [dofs, l] of the load cases' wrenches on the load patch."""
    columns = []
    for case in boundary.loadcases:
        wrench = np.concatenate([case.wrench.force_n, case.wrench.moment_nmm])
        columns.append(el.mean_motion(d, boundary.load, case.wrench.point_mm).T @ wrench)
    return np.stack(columns, axis=1)


def _near(boundary: Boundary, body: str) -> Patch:
    for patch in boundary.near:
        if patch.body == body:
            return patch
    raise ValueError(f"boundary.near has no patch of the {body} vertebra; give one per vertebra")


def _endplate_centre(segment: Segment, body: str) -> np.ndarray:
    """Centre of the endplate next to the disc."""
    return (
        segment.caudal.superior.centre_mm
        if body == "caudal"
        else segment.cranial.inferior.centre_mm
    )
