"""The patient on the grid: `prepare` does once, in numpy, what does not depend on the design."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.ndimage import binary_dilation, label

from engine import elasticity, multigrid
from engine.elasticity import Grid, Links, NodalPatch
from engine.implants import Anatomy, anatomy_at
from engine.materials import BoneLaw, bone_law
from engine.multigrid import SolverSettings
from engine.sdf import FILL_WIDTH_VOXELS, fill
from engine.types import BODIES, Boundary, Link, Patch, Segment, Vertebra, stack_loads

log = logging.getLogger("spinefit")

#: Samples of the moduli inside a voxel, per axis.
SUBSAMPLES = 3
#: Grids and windows come in multiples of so many voxels, lists of nodes in multiples of
#: _NODE_BUCKET.
_BUCKET, _NODE_BUCKET = 16, 4096
#: How far outside the disc space a device may reach (see _surrounding).
_OVERHANG_MM = 4.0
#: Of the region of interest round bodies and pedicles, and how far behind the pedicles' entry
#: points it reaches, for the facets [M].
_MARGIN_MM, _BEHIND_PEDICLES_MM = 3.0, 4.0
#: Bone further behind the endplates' rims than this is arch and facets [M].
_BEHIND_RIMS_MM = 3.0
#: 1 / a lever of 20 mm, which makes moments comparable with forces, and the share of the largest
#: singular value under which load cases count as dependent.
_PER_LEVER_MM, _NO_RANK = 0.05, 1e-9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scene:
    """The patient on the grid: all that the design does not change. Voxel fields are [x, y, z].

    anatomy          what a family may know of the patient, at the voxels' centres
    caudal, cranial  signed distances of the two vertebrae, mm
    disc             signed distance of the disc-space body, mm
    e_caudal         modulus of the caudal vertebra's bone in the voxel, MPa
    e_cranial        the same of the cranial one
    near             weight of the tissue measures in the voxel, [0, 1]
    support          weight × stiffness of the foundation, N/mm per mm³
    tissue           1 where surrounding soft tissue is modelled, 0 where the grid is left empty
    forces           basis loads [r, 3, x+1, y+1, z+1], N
    combination      [l, r]: load case = combination @ basis
    applied          [l, 6]: the load cases' forces and moments about the origin, N and N·mm
    motion           per body: nodes and averaging rows at its endplate
    corner           [3]: low corner of the window round the samples, voxels
    sample           [q]: the voxels that objectives look at (numbers within the window), filled up
                     with the last one
    sample_mm3       [q]: their volume, 0 for what fills up
    place            [w]: the sample that holds each voxel of the window, q for none
    nodes            node positions [x+1, y+1, z+1, 3], mm
    bodies           [x+1, y+1, z+1]: the vertebra that a node belongs to (1, 2; 0 for none), for
                     the preconditioner
    links            the rods on every level of the solver, or None
    reference_sed    [l, q]: strain energy density of the intact segment, MPa, or None
    """

    anatomy: Anatomy
    caudal: Array
    cranial: Array
    disc: Array
    e_caudal: Array
    e_cranial: Array
    near: Array
    support: Array
    tissue: Array
    forces: Array
    combination: Array
    applied: Array
    motion: tuple[tuple[Array, Array], ...]
    corner: Array
    sample: Array
    sample_mm3: Array
    place: Array
    nodes: Array
    bodies: Array
    links: tuple[Links, ...] | None
    reference_sed: Array | None


@dataclass(frozen=True)
class Numerics:
    """What the compiled code depends on besides array shapes: not where the grid stands, so that
    patients share it.

    window (voxels) is the size of the box round the samples.
    """

    solver: SolverSettings
    spacing_mm: float
    window: tuple[int, int, int]
    loadcases: tuple[str, ...]
    poisson_bone: float
    grid: Grid = field(compare=False)


def region_of_interest(segment: Segment) -> np.ndarray:
    """The box [2, 3] mm that both solvers cut out of the anatomy: bodies, pedicles and facets of
    both vertebrae.

    Transverse and spinous processes reach out of it; they carry no load in this model.
    """
    plates = [p for v in (segment.caudal, segment.cranial) for p in (v.superior, v.inferior)]
    rims = np.concatenate([p.rim_mm for p in plates])
    entries = np.concatenate(
        [axis for v in (segment.caudal, segment.cranial) for axis in v.pedicles.values()]
    )
    low, high = rims.min(0), rims.max(0)
    low[0], high[0] = min(low[0], entries[:, 0].min()), max(high[0], entries[:, 0].max())
    high[1] = max(high[1], entries[:, 1].max() + _BEHIND_PEDICLES_MM)
    bodies = [v.surface.points_mm for v in (segment.caudal, segment.cranial)]
    for i, points in enumerate(bodies):
        inside = np.all((points[:, :2] > low[:2]) & (points[:, :2] < high[:2]), axis=1)
        if i == 0:
            low[2] = min(low[2], points[inside, 2].min())
        else:
            high[2] = max(high[2], segment.cranial.superior.rim_mm[:, 2].max())
    return np.stack([low - _MARGIN_MM, high + _MARGIN_MM])


def make_grid(segment: Segment, spacing_mm: float) -> Grid:
    """The voxel grid over `region_of_interest`, padded evenly to multiples of _BUCKET voxels.

    So most patients share their shapes and with them the compiled code; what is added is empty and
    costs the solver nothing.
    """
    low, high = region_of_interest(segment)
    needed = tuple(_bucket(int(np.ceil(e))) for e in (high - low) / spacing_mm)
    shape = multigrid.padded_shape(needed)  # type: ignore[arg-type]
    origin = 0.5 * (low + high) - 0.5 * spacing_mm * np.asarray(shape)
    return Grid(shape, tuple(float(o) for o in origin), spacing_mm)  # type: ignore[arg-type]


def _bucket(count: int, step: int = _BUCKET) -> int:
    return -(-count // step) * step


def prepare(
    segment: Segment, boundary: Boundary, grid: Grid, solver: SolverSettings, bone_law_name: str
) -> tuple[Scene, Numerics]:
    """The patient, the loads and the supports on the grid.

    Raises ValueError for an unknown bone law, a patch without bone, or (from the fields) bones that
    overlap.
    """
    law = bone_law(bone_law_name)
    points = grid.centres()
    anatomy, distance = _vertebrae(segment, points, grid)
    bone = _Bone.of(distance, points, grid)
    loads = _basis_loads(boundary, bone)
    motion = tuple(_endplate_motions(segment, boundary, bone))
    near_weight = sum(p.weight(points) * (bone.volume_mm3[p.body] > 0) for p in boundary.near)
    disc = segment.disc.sample(points)
    observed = (near_weight > 0) | (disc < _OVERHANG_MM)
    corner, window = _window(observed)
    sample, sample_mm3, place = _samples(observed, corner, window, grid.spacing_mm)
    scene = Scene(
        anatomy=anatomy,
        caudal=jnp.asarray(distance["caudal"]),
        cranial=jnp.asarray(distance["cranial"]),
        disc=jnp.asarray(disc),
        e_caudal=jnp.asarray(_modulus(segment.caudal, grid, law)),
        e_cranial=jnp.asarray(_modulus(segment.cranial, grid, law)),
        near=jnp.asarray(np.clip(near_weight, 0.0, 1.0)),
        support=jnp.asarray(boundary.foundation_mpa_per_mm2 * boundary.support.weight(points)),
        tissue=jnp.asarray(_surrounding(segment, points, distance, grid.spacing_mm)),
        forces=jnp.asarray(loads.forces),
        combination=jnp.asarray(loads.combination),
        applied=jnp.asarray(loads.combination @ elasticity.resultant(grid, loads.forces)),
        motion=motion,
        corner=jnp.asarray(corner),
        sample=jnp.asarray(sample),
        sample_mm3=jnp.asarray(sample_mm3),
        place=jnp.asarray(place),
        nodes=jnp.asarray(grid.nodes()),
        bodies=jnp.asarray(_stiff_bodies(grid, distance)),
        links=_links(boundary.links, bone) if boundary.links else None,
        reference_sed=None,
    )
    numerics = Numerics(
        solver, grid.spacing_mm, window, stack_loads(boundary.loadcases), law.poisson, grid
    )
    return scene, numerics


def _vertebrae(
    segment: Segment, points: np.ndarray, grid: Grid
) -> tuple[Anatomy, dict[str, np.ndarray]]:
    """The anatomy at the voxels' centres, and each vertebra's signed distance within the region of
    interest, in one piece. Raises ValueError where the facets fuse."""
    inside = _inside_region(points, region_of_interest(segment))
    anatomy = anatomy_at(segment, points)
    distance = {b: np.maximum(np.asarray(getattr(anatomy, b)), inside) for b in BODIES}
    distance = {b: largest_piece(b, d, grid.spacing_mm) for b, d in distance.items()}
    check_facets(segment, distance, points, grid.spacing_mm)
    return anatomy, distance


@dataclass(frozen=True)
class _Bone:
    """The vertebrae's bone on the grid, from which patches take their nodes: voxel centres
    [x, y, z, 3] and bone volume of each body in the voxel, mm³."""

    grid: Grid
    points_mm: np.ndarray
    volume_mm3: dict[str, np.ndarray]

    @classmethod
    def of(cls, distance: dict[str, np.ndarray], points: np.ndarray, grid: Grid) -> _Bone:
        volume = {
            b: np.asarray(fill(jnp.asarray(distance[b]), grid.spacing_mm)) * grid.spacing_mm**3
            for b in BODIES
        }
        return cls(grid, points, volume)

    def nodal(self, patch: Patch, name: str) -> NodalPatch:
        """The patch's nodes. Raises ValueError, with that name, when it holds no bone."""
        weight = patch.weight(self.points_mm) * self.volume_mm3[patch.body]
        return elasticity.nodal_patch(self.grid, weight, name)


class _Loads(NamedTuple):
    """Scene.forces and Scene.combination."""

    forces: np.ndarray
    combination: np.ndarray


def _basis_loads(boundary: Boundary, bone: _Bone) -> _Loads:
    """The fewest loads on the cranial patch that span the load cases."""
    load = bone.nodal(boundary.load, "load")
    wrenches = np.stack(
        [
            _wrench_about(c.wrench.point_mm, load.centre_mm, c.wrench.force_n, c.wrench.moment_nmm)
            for c in boundary.loadcases
        ]
    )
    basis, combination = _basis(wrenches)
    return _Loads(elasticity.spread(bone.grid, load, load.centre_mm, basis), combination)


def _endplate_motions(
    segment: Segment, boundary: Boundary, bone: _Bone
) -> Iterator[tuple[Array, Array]]:
    """Scene.motion: of each body's bone near the disc, about the centre of its endplate there."""
    plates = (segment.caudal.superior, segment.cranial.inferior)
    for patch, plate in zip(boundary.near, plates, strict=True):
        near = bone.nodal(patch, f"near {patch.body}")
        yield _padded(near.node, near.average(plate.centre_mm))


def _window(observed: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Low corner and size of the box round the voxels asked for, its size in buckets."""
    corner, window = [], []
    for places, limit in zip(np.nonzero(observed), observed.shape, strict=True):
        low, high = int(places.min()), int(places.max()) + 1
        size = min(_bucket(high - low), limit)
        corner.append(min(max(0, low - (size - (high - low)) // 2), limit - size))
        window.append(size)
    return np.array(corner, np.int32), (window[0], window[1], window[2])


def _samples(
    observed: np.ndarray, corner: np.ndarray, window: tuple[int, int, int], spacing_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scene.sample, sample_mm3 and place; the samples are filled up to quarters of the window so
    that patients share the code."""
    inside = observed[
        tuple(slice(low, low + size) for low, size in zip(corner, window, strict=True))
    ]
    number = np.flatnonzero(inside)
    size = next(n for n in (-(-inside.size * k // 4) for k in (1, 2, 3, 4)) if n >= len(number))
    more = size - len(number)
    place = np.full(inside.size, size, np.int32)
    place[number] = np.arange(len(number))
    return (
        np.pad(number, (0, more), mode="edge").astype(np.int32),
        np.pad(np.full(len(number), spacing_mm**3), (0, more)),
        place,
    )


def _padded(node: np.ndarray, rows: np.ndarray) -> tuple[Array, Array]:
    """Nodes [n] and rows on them [m, n, 3], filled up with rows of zeros to a whole bucket."""
    more = _bucket(len(node), _NODE_BUCKET) - len(node)
    return jnp.asarray(np.pad(node, (0, more))), jnp.asarray(
        np.pad(rows, [(0, 0), (0, more), (0, 0)])
    )


# -- once per patient ------------------------------------------------------------------------------
def _modulus(vertebra: Vertebra, grid: Grid, law: BoneLaw) -> np.ndarray:
    """Mean of E(ρ(x)) over the bone in each voxel (E integrated, not E of the mean density); 1
    MPa further than two voxels from bone."""
    steps = (np.arange(SUBSAMPLES) + 0.5) / SUBSAMPLES - 0.5
    centres = grid.centres()
    near = vertebra.sdf.sample(centres) < 2 * grid.spacing_mm
    centres = centres[near]
    total, weight, plain = (np.zeros(len(centres)) for _ in range(3))
    for dx in steps:
        for dy in steps:
            for dz in steps:
                points = centres + grid.spacing_mm * np.array([dx, dy, dz])
                e = law.modulus_mpa(vertebra.density.sample(points))
                inside = vertebra.sdf.sample(points) < 0
                total += e * inside
                weight += inside
                plain += e / SUBSAMPLES**3
    out = np.ones(grid.shape)
    out[near] = np.where(weight > 0, total / np.maximum(weight, 1), plain)
    return out


def largest_piece(body: str, distance: np.ndarray, spacing_mm: float) -> np.ndarray:
    """The signed distance without what hangs on nothing: tips that the box or the facets' clearance
    cut off.

    Such a piece floats in tissue of 0.01 MPa, carries nothing, and costs the solver tens of
    iterations.
    """
    reach = 0.5 * FILL_WIDTH_VOXELS * spacing_mm
    pieces, count = label(distance < reach)
    if count < 2:
        return distance
    sizes = np.bincount(pieces.ravel())[1:]
    loose = (pieces > 0) & (pieces != 1 + int(np.argmax(sizes)))
    lost = float((loose & (distance < 0)).sum()) * spacing_mm**3
    log.info(
        "%s vertebra: %d loose pieces (%.0f mm³) left out of the voxel model", body, count - 1, lost
    )
    return np.where(loose, np.maximum(distance, reach), distance)


def _surrounding(
    segment: Segment, points: np.ndarray, distance: dict[str, np.ndarray], spacing_mm: float
) -> np.ndarray:
    """Where soft tissue fills the grid, float [x, y, z]: one whole voxel round bone and round the
    disc space.

    It carries nothing (0.01 MPa) but keeps bridges of single voxels from being mechanisms.
    Elsewhere the grid is empty, half of it and more, and costs the compiled solver nothing. A
    device may stand out of the disc space by _OVERHANG_MM. Diagonal neighbours count: that spares
    the solver a quarter of its iterations (docs/decisions.md).
    """
    near = np.minimum(distance["caudal"], distance["cranial"]) < spacing_mm
    near |= segment.disc.sample(points) < _OVERHANG_MM
    return 1.0 * binary_dilation(near, np.ones((3, 3, 3)))


def check_facets(
    segment: Segment, distance: dict[str, np.ndarray], points: np.ndarray, spacing_mm: float
) -> None:
    """Raises ValueError where the vertebrae share nodes behind the disc space: bonded facets,
    which is not asked for."""
    plates = (segment.caudal.superior, segment.cranial.inferior)
    wall = max(float(p.rim_mm[:, 1].max()) for p in plates) + _BEHIND_RIMS_MM
    reach = 0.5 * FILL_WIDTH_VOXELS * spacing_mm
    near = binary_dilation(distance["caudal"] < reach, np.ones((3, 3, 3)))
    touching = near & (distance["cranial"] < reach) & (points[..., 1] > wall)
    if touching.any():
        where = points[touching].mean(0).round(0).tolist()
        raise ValueError(
            f"the facets fuse on a {spacing_mm:g} mm grid ({int(touching.sum())} voxels round"
            f" {where} mm); they must be three voxels apart: lower solver.spacing_mm, or lower"
            " plan.posterior_reach_mm and prepare the patient again"
        )


def _stiff_bodies(grid: Grid, distance: dict[str, np.ndarray]) -> np.ndarray:
    """The number of the vertebra that holds each node, uint8 [x+1, y+1, z+1].

    Their rigid motions, as a coarse space, take from the Krylov iteration what multigrid cannot
    see: stiff bodies that move against each other across a gap of one or two voxels
    (engine.multigrid.cycle.balanced_cycle).
    """
    out = np.zeros(tuple(n + 1 for n in grid.shape), np.uint8)
    for number, d in enumerate(distance.values(), 1):
        bone = d < 0.5 * FILL_WIDTH_VOXELS * grid.spacing_mm
        out[elasticity.nodal_sum(bone.astype(np.uint8)) > 0] = number
    return out


def _inside_region(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Signed distance to the region of interest, so that padding of the grid brings no more
    anatomy in."""
    return np.max(np.maximum(box[0] - points, points - box[1]), axis=-1)


def _wrench_about(
    point_mm: np.ndarray, new_mm: np.ndarray, force: np.ndarray, moment: np.ndarray
) -> np.ndarray:
    """The same wrench about another point, [6]."""
    return np.concatenate([force, moment + np.cross(point_mm - new_mm, force)])


def _basis(wrenches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewest wrenches [r, 6] that span the load cases [l, 6], and the combination [l, r] that
    gives them back."""
    scale = np.array([1.0, 1.0, 1.0, *[_PER_LEVER_MM] * 3])
    u, s, vt = np.linalg.svd(wrenches * scale, full_matrices=False)
    rank = int(np.sum(s > _NO_RANK * s[0]))
    basis = vt[:rank] * s[0] / scale
    return basis, u[:, :rank] * s[:rank] / s[0]


def _links(links: tuple[Link, ...], bone: _Bone) -> tuple[Links, ...]:
    """All links as rows of averaged motions on the grid, and the same on every coarser level."""
    rows, stiffness = [], np.zeros((12 * len(links),) * 2)
    for i, link in enumerate(links):
        stiffness[12 * i : 12 * i + 12, 12 * i : 12 * i + 12] = link.stiffness
        for patch, point in ((link.patch_a, link.point_a_mm), (link.patch_b, link.point_b_mm)):
            region = bone.nodal(patch, f"{link.name} {patch.body}")
            rows.append((region.node, region.average(point)))
    node = np.unique(np.concatenate([where for where, _ in rows]))
    every = np.zeros((len(rows), 6, len(node), 3))
    for row, (where, weight) in zip(every, rows, strict=True):
        row[:, np.searchsorted(node, where)] = weight
    first = Links(node, every.reshape(-1, len(node), 3), jnp.asarray(stiffness))
    shape, out = bone.grid.shape, []
    for level in multigrid.coarsen_links(first, shape, multigrid.depth(shape)):
        nodes, rows_on = _padded(np.asarray(level.node), np.asarray(level.weight))
        out.append(replace(level, node=nodes, weight=rows_on))
    return tuple(out)
