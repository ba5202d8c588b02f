"""Stress simulation of a design on its body-fitted mesh: the independent check of the voxel engine.

    −div σ = f,  σ = λ tr(ε) 1 + 2μ ε,  traction −κ w u on the support, links on mean rigid motions
                                        of patches

P2 tetrahedra assembled by SfePy (fem/elastic/operators.py), one factorisation for all load cases
(fem/elastic/factor.py). Moduli at the quadrature points: bone from its density by the bone law,
lattice by its homogenised ratio.
"""

from __future__ import annotations

import logging
import os
import resource
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import meshio
import numpy as np
import pyvista as pv
import scipy.sparse as sp
from vtkmodules.vtkIOXML import vtkXMLUnstructuredGridWriter

from engine import materials
from engine.types import (
    BODIES,
    REGIONS,
    Boundary,
    Design,
    Patch,
    Response,
    Segment,
    SolverStatus,
    stack_loads,
)
from fem.elastic import operators as el
from fem.elastic.contact import ContactSettings, interface, solve_contact, split
from fem.elastic.factor import LinkRows, solve_linear
from fem.fields import array_name
from fem.mesh.build import TetMesh
from fem.mesh.tets import components

log = logging.getLogger("spinefit.fem")


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


@dataclass(frozen=True)
class FemField:
    """Fields for viewing: displacement_mm [l, n, 3] at the points of `mesh` (with contact: the
    implant's are its own); per tetrahedron strain and stress [l, m, 6] (volume averages) and e_mpa
    [m]. figures: unknowns, seconds, memory. contact: per load case touching share, pressures,
    opening; interface: triangles and what is on them.
    """

    loadcases: tuple[str, ...]
    mesh: TetMesh
    displacement_mm: np.ndarray
    strain: np.ndarray
    stress: np.ndarray
    e_mpa: np.ndarray
    figures: dict[str, float]
    contact: tuple[dict[str, float], ...] = ()
    interface: meshio.Mesh | None = None


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
    joined = int(components(mesh.tets).max()) == 0
    cut = None
    contact = settings.contact_settings()
    if contact is not None:
        if design.implant is None:
            raise ValueError(
                f"design {design.arm!r} has no implant: contact={settings.contact} has nothing to"
                " act on"
            )
        if not joined:
            raise ValueError(
                "the bodies are joined by links alone: contact needs the implant between them"
            )
        cut = split(mesh, REGIONS.index("implant"))
        mesh = cut.mesh
    d = el.discretise(mesh, settings.order, settings.quadrature)
    e_mpa, poisson, relative_density = moduli(
        segment, design, d, settings.bone_law, settings.blocks_mpa, settings.bone_factor
    )
    lam, mu = materials.lame(e_mpa, poisson)
    support, reaction_rows = el.foundation(d, boundary.support, boundary.foundation_mpa_per_mm2)
    matrix = (el.stiffness(d, lam, mu) + support).tocsr()
    links = [
        LinkRows(
            sp.vstack(
                [
                    el.mean_motion(d, link.patch_a, link.point_a_mm),
                    el.mean_motion(d, link.patch_b, link.point_b_mm),
                ]
            ).tocsr(),
            0.5 * (link.stiffness + link.stiffness.T),
        )
        for link in boundary.links
    ]
    loads = _loads(d, boundary)
    assembly_s = time.perf_counter() - clock
    touching = None
    if cut is None or contact is None:
        solution = solve_linear(
            matrix,
            loads,
            links,
            el.rigid_modes(d.nodes_mm),
            solver=settings.solver,
            max_direct_dofs=settings.max_direct_dofs,
            tolerance=settings.tolerance,
            max_iterations=settings.max_iterations,
            joined=joined,
        )
    else:
        at = interface(d, cut)
        bone = cut.outer[np.isin(d.labels[cut.outer], [0, 1])]
        soft = float(np.median(e_mpa[bone])) if len(bone) else float(np.median(e_mpa))
        touching = solve_contact(matrix, loads, links, at, soft, contact)
        solution = touching.solution
    for name, status in zip(names, solution.status, strict=True):
        level = logging.INFO if status.code == "ok" else logging.ERROR
        log.log(
            level,
            "load case %s: %s, residual %.1e, %s",
            name,
            status.code,
            status.relative_residual,
            status.text,
        )

    displacement = np.stack([u.reshape(-1, 3) for u in solution.u.T])
    motion = np.stack(
        [
            (
                el.mean_motion(d, _near(boundary, body), _endplate_centre(segment, body))
                @ solution.u
            ).T
            for body in BODIES
        ],
        axis=1,
    )
    applied = np.stack([el.nodal_resultant(d.nodes_mm, f.reshape(-1, 3)) for f in loads.T])
    failed = np.array([s.code == "failed" for s in solution.status])
    applied[failed] = np.nan
    near = sum(_weight_only(d, patch) for patch in boundary.near)
    response, cell_strain, cell_stress = _sample(
        d,
        displacement,
        lam,
        mu,
        np.asarray(near),
        relative_density,
        settings,
        dict(
            motion=motion,
            compliance=np.einsum("dl,dl->l", loads, solution.u),
            reaction=(reaction_rows @ solution.u).T,
            applied=applied,
            loadcases=names,
        ),
    )
    if design.implant is not None:
        # As in the voxel engine: at every sample the limit of the implant's material at that
        # relative density.
        alloy = materials.implant_material(design.material)
        limit = alloy.fatigue_mpa * materials.lattice_fatigue_ratio(response.relative_density)
        response = replace(response, fatigue_mpa=limit)
    figures = {
        "dofs": float(d.dofs),
        "nnz": float(matrix.nnz),
        "assembly_s": assembly_s,
        "solve_s": solution.seconds,
        "total_s": time.perf_counter() - clock,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    }
    log.info("%s", ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
    volume = d.weight_mm3.sum(1)
    field = FemField(
        names,
        mesh,
        displacement[:, : len(mesh.points_mm)],
        cell_strain,
        cell_stress,
        (e_mpa * d.weight_mm3).sum(1) / volume,
        figures,
        () if touching is None else tuple(touching.figures(at)),
        None if touching is None else touching.on_faces(d.nodes_mm, at, names),
    )
    return response, solution.status, field


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
            e_mpa[cells], poisson[cells] = blocks_mpa, 0.3
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


def _weight_only(d: el.Discretisation, patch: Patch) -> np.ndarray:
    """The patch's weight [m, q] on its bone, without volume."""
    bone = d.labels == BODIES.index(patch.body)
    weight = np.zeros(d.weight_mm3.shape)
    weight[bone] = patch.weight(d.points_mm[bone])
    return weight


def _sample(
    d: el.Discretisation,
    displacement: np.ndarray,
    lam: np.ndarray,
    mu: np.ndarray,
    near: np.ndarray,
    relative_density: np.ndarray,
    settings: FemSettings,
    rest: dict,
) -> tuple[Response, np.ndarray, np.ndarray]:
    """The Response of displacements [l, k, 3], and the averages per tetrahedron of strain and
    stress [l, m, 6].

    One load case at a time, kept in single precision: the strains of all of them at all points
    would be gigabytes.
    """
    volume = d.weight_mm3.sum(1)
    share = d.weight_mm3 / volume[:, None]
    kept_region = np.isin(d.labels, [REGIONS.index("implant"), REGIONS.index("graft")])
    keep = (near > 0.0) | kept_region[:, None] | settings.sample_all
    one_hot = np.eye(len(REGIONS))[d.labels]
    by_point = settings.sample == "qp"
    cells = keep.any(1)
    cell_strain, cell_stress = (np.empty((len(displacement), len(volume), 6)) for _ in range(2))
    kept_strain, kept_stress = [], []
    for i, u in enumerate(displacement):
        strain = el.strains(d, u)
        stress = el.isotropic_stress(strain, lam, mu)
        cell_strain[i], cell_stress[i] = (
            np.einsum("mq,mqv->mv", share, f) for f in (strain, stress)
        )
        kept_strain.append((strain[keep] if by_point else cell_strain[i, cells]).astype(np.float32))
        kept_stress.append((stress[keep] if by_point else cell_stress[i, cells]).astype(np.float32))
    both: dict[str, Any] = {"strain": np.stack(kept_strain), "stress": np.stack(kept_stress)}
    if by_point:
        samples = dict(
            position=d.points_mm[keep],
            volume=d.weight_mm3[keep],
            fraction=one_hot[np.nonzero(keep)[0]],
            near=near[keep],
            relative_density=relative_density[keep],
        )
    else:

        def mean(values: np.ndarray) -> np.ndarray:
            return (share * values).sum(1)[cells]

        samples = dict(
            position=np.einsum("mq,mqd->md", share, d.points_mm)[cells],
            volume=volume[cells],
            fraction=one_hot[cells],
            near=mean(near),
            relative_density=mean(relative_density),
        )
    log.info(
        "samples: %d of %d kept (%s, %s)",
        len(samples["volume"]),
        d.weight_mm3.size,
        settings.sample,
        "all regions" if settings.sample_all else "bone near the implant, implant and graft",
    )
    return Response(**samples, **both, **rest), cell_strain, cell_stress


def principal(voigt: np.ndarray, shear_factor: float) -> np.ndarray:
    """Principal values [..., 3], ascending. shear_factor: 0.5 for strain with engineering shear,
    1 for stress."""
    t = np.empty((*voigt.shape[:-1], 3, 3))
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]):
        t[..., i, j] = t[..., j, i] = voigt[..., k] * (1.0 if i == j else shear_factor)
    return (
        np.linalg.eigvalsh(np.nan_to_num(t))
        + np.where(np.isnan(voigt).any(-1), np.nan, 0.0)[..., None]
    )


def von_mises(stress: np.ndarray) -> np.ndarray:
    """[...] of principal stresses [..., 3]."""
    return np.asarray(
        np.sqrt(0.5 * sum((stress[..., i] - stress[..., i - 1]) ** 2 for i in range(3)))
    )


def write_vtu(path: Path | str, field: FemField) -> None:
    """Write one .vtu for ParaView: per load case `<name>_displacement_mm` on points (use Warp By
    Vector), and on cells min and max principal strain, von Mises stress, strain energy density;
    `region` and `e_mpa` once. Fields are rounded to float32: they are for looking at."""
    mesh = field.mesh
    grid = pv.UnstructuredGrid({pv.CellType.TETRA: mesh.tets}, mesh.points_mm)
    cells = {"region": mesh.labels.astype(np.int32), "e_mpa": field.e_mpa}
    points = {}
    for k, name in enumerate(field.loadcases):
        strain, stress = field.strain[k], field.stress[k]
        values = principal(strain, 0.5)
        mises = von_mises(principal(stress, 1.0))
        points[array_name(name, "displacement_mm")] = field.displacement_mm[k]
        cells[array_name(name, "strain_min")] = values[:, 0]
        cells[array_name(name, "strain_max")] = values[:, 2]
        cells[array_name(name, "von_mises_mpa")] = mises
        cells[array_name(name, "sed_mpa")] = 0.5 * (strain * stress).sum(-1)
    for data, kept in ((points, grid.point_data), (cells, grid.cell_data)):
        for name, values in data.items():
            kept[name] = values.astype(np.float32) if values.dtype.kind == "f" else values
    with tempfile.NamedTemporaryFile(
        prefix=".solution.", suffix=".vtu", dir=Path(path).parent, delete=False
    ) as stream:
        pass
    writer = vtkXMLUnstructuredGridWriter()
    writer.SetFileName(stream.name)
    writer.SetInputData(grid)
    writer.SetDataModeToAppended()
    writer.EncodeAppendedDataOff()  # a third larger as text
    if not writer.Write():
        raise OSError(f"{path} could not be written; is the disk full?")
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)
