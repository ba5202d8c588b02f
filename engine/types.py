"""The plain data that every stage passes on: no behaviour beyond field sampling.

Units: N, mm, MPa, rad. Density in g/cm³ (apparent). Angles in degrees only where a name ends
`_deg`.

Frames
    patient   LPS mm, as the scan: x left, y posterior, z superior.
    segment   origin at the centre of the caudal vertebra's superior endplate, z its outward
              (cranial) normal, y posterior (mid-sagittal), x left. Right-handed. All of `Segment`
              is in it, with the cranial vertebra already at its *planned* pose.
Signs in the segment frame: a positive moment about x flexes (the cranial vertebra tips anteriorly,
-y); about y it bends to the left (+x); about z it turns to the left.

Voigt order everywhere: 11 22 33 12 13 23, shear strain as the engineering γ = 2ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from scipy.ndimage import map_coordinates

from engine.alignment import AlignmentPlan as AlignmentPlan
from engine.alignment import LevelDemand as LevelDemand
from engine.alignment import SegmentAlignment as SegmentAlignment

#: The two frames in words, as files and pages that leave the project state them.
SEGMENT_FRAME = (
    "segment frame: origin at the centre of the caudal vertebra's superior endplate, x to the"
    " patient's left, y posterior, z cranial, mm"
)
LPS_FRAME = "scan's own LPS: x to the patient's left, y posterior, z superior, mm"
#: Materials' regions, in the order of the columns of `Response.fraction`.
REGIONS = ("caudal", "cranial", "implant", "graft", "remnant")
#: The two vertebrae in the order of `Response.motion`.
BODIES = ("caudal", "cranial")


@dataclass(frozen=True)
class VoxelField:
    """A scalar field sampled at origin_mm + spacing_mm·(i, j, k); axes parallel to its frame.

    `values` [x, y, z]; outside the grid the nearest sample is taken (fields must be padded until
    that is right: a signed distance carries at least 6 mm of margin).
    """

    values: np.ndarray
    origin_mm: np.ndarray
    spacing_mm: float

    def sample(self, points_mm: np.ndarray, order: int = 1) -> np.ndarray:
        """Interpolated values at `points_mm` [..., 3] (trilinear, or cubic with order=3)."""
        points = np.asarray(points_mm, float)
        index = (points.reshape(-1, 3) - self.origin_mm) / self.spacing_mm
        values = map_coordinates(
            np.asarray(self.values, float), index.T, order=order, mode="nearest"
        )
        return values.reshape(points.shape[:-1])

    def points(self) -> np.ndarray:
        """Positions of all samples [x, y, z, 3] in mm."""
        axes = [
            o + self.spacing_mm * np.arange(n)
            for o, n in zip(self.origin_mm, self.values.shape, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


@dataclass(frozen=True)
class Surface:
    """A closed triangle surface: points_mm [v, 3], faces [f, 3] int, normals outward."""

    points_mm: np.ndarray
    faces: np.ndarray


@dataclass(frozen=True)
class Endplate:
    """A fitted endplate.

    centre_mm [3]   centroid of the endplate on the fitted plane
    normal [3]      unit normal pointing *out of* the vertebral body (superior: cranially; inferior:
                    caudally)
    rim_mm [n, 3]   closed rim polygon (n ≥ 32), counter-clockwise seen from +z of the frame it is
                    given in
    axis_left [3]   unit in-plane axis to the patient's left
    half_width_mm   half the left-right extent of the rim
    half_depth_mm   half the antero-posterior extent of the rim
    """

    centre_mm: np.ndarray
    normal: np.ndarray
    rim_mm: np.ndarray
    axis_left: np.ndarray
    half_width_mm: float
    half_depth_mm: float


@dataclass(frozen=True)
class Vertebra:
    """One vertebra with its own fields, everything in one frame (patient in PatientModel, segment
    in Segment).

    sdf            signed distance to the outer bone surface, mm, negative inside
    density        apparent density g/cm³ as seen at CT resolution: the thin cortical shell and
                   endplates are smeared over the outer ~1.5 mm with their stiffness kept (see
                   engine/patient/bone/assumed.py)
    pedicles       {"left": [2, 3], "right": [2, 3]}: axis from the entry point (posterior) to the
                   target (inside the body), mm
    landmarks      further named points [3]
    """

    name: str
    surface: Surface
    sdf: VoxelField
    density: VoxelField
    superior: Endplate
    inferior: Endplate
    pedicles: dict[str, np.ndarray]
    landmarks: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What a check says of the input.

    severity   "stop" | "left out" | "warning" | "note" | "accepted"
    level      "L4", or "" where it is of no level
    place_mm   where, LPS
    """

    code: str
    severity: str
    level: str
    text: str
    place_mm: tuple[float, float, float] | None = None

    def line(self) -> str:
        """`leak (warning) L4: …`"""
        return f"{self.code} ({self.severity}){' ' + self.level if self.level else ''}: {self.text}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sacrum:
    """The sacrum, of which only S1's superior endplate is measured; patient LPS mm."""

    surface: Surface
    superior: Endplate
    landmarks: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PatientModel:
    """Vertebrae as scanned, cranial to caudal, in patient LPS mm.

    density_source  "phantom" | "assumed:<profile name>" | "ct:<calibration>"; anything but ct is
                    flagged
    posture         "unknown" | "supine" | "standing" | "phantom"
    repairs         what was repaired on the way in, one line each
    source          what was read: kind, path, sha256
    sacrum          where the scan shows it
    findings        of the quality gate, those that the user accepted among them
    structures      what else the labels hold, by name: "disc_L4-L5", "endplates_L4-L5", "canal",
                    "cord" (engine/patient/anatomy/structures.py)
    """

    name: str
    vertebrae: tuple[Vertebra, ...]
    density_source: str
    posture: str
    repairs: tuple[str, ...]
    source: dict[str, Any]
    sacrum: Sacrum | None = None
    findings: tuple[Finding, ...] = ()
    structures: dict[str, Surface] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """The patient part of a design problem: two vertebrae at the planned pose, in the segment
    frame.

    The vertebrae's signed distances hold body, pedicles and the arch near them; facets and
    processes, which carry nothing in this model, are only on their surfaces.

    disc               signed distance of the whole disc-space body (loft between the two rims; it
                       may overlap the bones, which win), mm
    lps_from_segment   [4, 4], takes segment coordinates to the scan's LPS (of the caudal vertebra)
    """

    name: str
    patient: str
    caudal: Vertebra
    cranial: Vertebra
    disc: VoxelField
    plan: AlignmentPlan
    lps_from_segment: np.ndarray
    density_source: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Patch:
    """A region of one vertebra's bone, as a smooth weight in [0, 1] of position (both solvers
    integrate it).

    kind "layer"    bone within depth_mm under an endplate plane, inside the ellipse of the
                    endplate:
                        w = r(depth_mm − d)·r((1 − ρ)·min(half axes))
                        d = −(x − centre)·normal, ρ the elliptic radius in the plane
    kind "capsule"  bone within radius_mm of the segment centre_mm → end_mm:
                        w = r(radius_mm − distance)

    with r(t) = clip(1/2 + t/ramp_mm, 0, 1).
    """

    body: str
    kind: str
    centre_mm: np.ndarray
    normal: np.ndarray | None = None
    axis_left: np.ndarray | None = None
    half_width_mm: float = 0.0
    half_depth_mm: float = 0.0
    depth_mm: float = 0.0
    end_mm: np.ndarray | None = None
    radius_mm: float = 0.0
    ramp_mm: float = 1.5

    def weight(self, points_mm: np.ndarray) -> np.ndarray:
        """Weight at points [..., 3]; to be multiplied by the bone volume of `body` there."""

        def ramp(t: np.ndarray) -> np.ndarray:
            return np.clip(0.5 + t / self.ramp_mm, 0.0, 1.0)

        offset = np.asarray(points_mm, float) - self.centre_mm
        if self.kind == "layer":
            assert self.normal is not None and self.axis_left is not None
            axis_depth = np.cross(self.normal, self.axis_left)
            u, v = offset @ self.axis_left, offset @ axis_depth
            radius = np.sqrt((u / self.half_width_mm) ** 2 + (v / self.half_depth_mm) ** 2)
            depth = -(offset @ self.normal)
            return ramp(self.depth_mm - depth) * ramp(
                (1.0 - radius) * min(self.half_width_mm, self.half_depth_mm)
            )
        if self.kind == "capsule":
            assert self.end_mm is not None
            axis = self.end_mm - self.centre_mm
            t = np.clip(offset @ axis / (axis @ axis), 0.0, 1.0)
            return ramp(self.radius_mm - np.linalg.norm(offset - t[..., None] * axis, axis=-1))
        raise ValueError(f"patch kind {self.kind!r} is unknown; expected 'layer' or 'capsule'")


@dataclass(frozen=True)
class Wrench:
    """A force and a moment about `point_mm`, applied to a patch as f = w·(a + b×(x - c)) dV, with a
    and b such that the resultant is exact (statically equivalent; the dual of the patch's
    least-squares rigid motion).
    """

    force_n: np.ndarray
    moment_nmm: np.ndarray
    point_mm: np.ndarray


@dataclass(frozen=True)
class LoadCase:
    """One load on the cranial endplate patch. `preload_n` is the follower part, for the report."""

    name: str
    wrench: Wrench
    preload_n: float
    source: str


@dataclass(frozen=True)
class Link:
    """An elastic connection between two patches' least-squares rigid motions (rods with screws).

    stiffness [12, 12] N/mm, N, N·mm on (u_a, θ_a, u_b, θ_b), each about its reference point,
    segment axes.
    """

    name: str
    patch_a: Patch
    patch_b: Patch
    point_a_mm: np.ndarray
    point_b_mm: np.ndarray
    stiffness: np.ndarray


@dataclass(frozen=True)
class Boundary:
    """How a segment is held, loaded and coupled: the same object drives both solvers.

    support                  bone patch on an elastic foundation
    foundation_mpa_per_mm2   its stiffness in all directions, N/mm per mm³
    load                     bone patch that takes every load case's wrench
    near                     bone patches "near the implant" (one per vertebra) where tissue
                             measures are taken
    """

    support: Patch
    foundation_mpa_per_mm2: float
    load: Patch
    near: tuple[Patch, ...]
    links: tuple[Link, ...]
    loadcases: tuple[LoadCase, ...]


@dataclass(frozen=True)
class Design:
    """One device, ready to be simulated or printed, in the segment frame.

    arm               "stock", "conforming", "optimised", "intact", "full_endplate", …
    family            implant family; "none" for the intact segment, where implant and window are
                      None
    implant           signed distance of the solid outline of the part (lattice counts as part), mm
    window            signed distance of the graft chamber, mm (None: no graft)
    relative_density  lattice relative density in (0, 1], sampled like `implant`; 1 = solid
    material          key of engine.materials.IMPLANTS
    parameters        what made it, by group
    measures          geometric figures with units in their names (volume_mm3, footprint_mm2, …)
    """

    arm: str
    family: str
    material: str
    implant: VoxelField | None
    window: VoxelField | None
    relative_density: VoxelField | None
    parameters: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SolverStatus:
    """How a solver ended on one load case.

    code   "ok" | "max_iterations" | "stagnated" | "failed"
    """

    code: str
    text: str
    iterations: int = 0
    relative_residual: float = float("nan")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Response:
    """A solver's result: the only thing besides `Design` that an objective reads. Arrays numpy or
    jax.

    position [q, 3] mm          of the samples; they may repeat with volume 0 (padding): weigh by
                                volume
    volume [q] mm³              of the samples
    fraction [q, r]             share of the sample's volume in each of REGIONS (tetrahedra:
                                one-hot)
    near [q]                    weight of "near the implant" bone in the sample, [0, 1]
    strain [l, q, 6]            Voigt 11 22 33 12 13 23, engineering shear; in a mixed voxel that
                                holds bone, the bone's
    stress [l, q, 6]            MPa; in a mixed voxel, of the mixture (its phases are in series:
                                they share it)
    relative_density [q]        of the implant's lattice (1 where solid or not implant)
    motion [l, 2, 6]            mean rigid motion of each of BODIES' endplate next to the disc:
                                translation mm of that endplate's centre, rotation rad
    compliance [l]              fᵀu, N·mm
    reaction [l, 6]             support force N and moment N·mm about the segment origin
    applied [l, 6]              same of the applied load
    reference_sed [l, q]        strain energy density of the intact segment at the same points, MPa
                                (None: unknown)
    fatigue_mpa [q]             fatigue limit of the implant's material at the sample, lattice
                                included (None: unknown)
    """

    position: Any
    volume: Any
    fraction: Any
    near: Any
    strain: Any
    stress: Any
    relative_density: Any
    motion: Any
    compliance: Any
    reaction: Any
    applied: Any
    reference_sed: Any = None
    fatigue_mpa: Any = None
    loadcases: tuple[str, ...] = field(default=(), metadata={"static": True})

    def case(self, name: str) -> int:
        """Index of a load case by name. Raises ValueError when it is not among them."""
        if name not in self.loadcases:
            raise ValueError(
                f"load case {name!r} is not in this response; it has {', '.join(self.loadcases)}"
            )
        return self.loadcases.index(name)


def rigid(matrix: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Apply a 4×4 rigid transform to points [..., 3]."""
    return points_mm @ matrix[:3, :3].T + matrix[:3, 3]


def stack_loads(cases: Sequence[LoadCase]) -> tuple[str, ...]:
    """The names of the load cases, in order; they must differ."""
    names = tuple(case.name for case in cases)
    if len(set(names)) != len(names):
        raise ValueError(f"load case names must differ; given {names}")
    return names
