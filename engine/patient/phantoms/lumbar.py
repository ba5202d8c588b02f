"""An analytic lumbar spine, L1 to the sacrum, whose regional alignment is known exactly.

Vertebrae are phantom.Shape, the sacrum is sacrum.SacrumShape. Everything hangs on S1's superior
endplate: its frame is the origin, each vertebra is posed on the one below by `cranial_pose`, and
the whole is tilted forward by the sacral slope.

    S1 normal   (0, −sin SS, cos SS)
    hip axis    H = M − d·(0, sin PT, cos PT), PT = PI − SS; heads at H ± (hip_width/2)·x

A wedged body turns about its centre: anterior and posterior height h ± depth·tan(wedge/2), so that
lordosis adds up in the planar case: LL = Σ disc angles + Σ body wedges.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.patient.alignment.disc import cranial_pose, measure
from engine.patient.bone.assumed import BoneProfile
from engine.patient.geometry.distance import surface_sdf
from engine.patient.geometry.frames import (
    inverse,
    move_endplate,
    move_surface,
    rotation,
    unit,
)
from engine.patient.phantoms.phantom import (
    PhantomSpec,
    Shape,
    motion_of,
    plate_frame,
    vertebra_of,
)
from engine.patient.phantoms.sacrum import SacrumShape
from engine.types import (
    Endplate,
    PatientModel,
    Sacrum,
    SegmentAlignment,
    rigid,
)

BODIES = ("L1", "L2", "L3", "L4", "L5")
DISCS = ("L1-L2", "L2-L3", "L3-L4", "L4-L5", "L5-S1")
Five = tuple[float, float, float, float, float]
_ZERO: Five = (0.0, 0.0, 0.0, 0.0, 0.0)


class LumbarSpec(BaseModel):
    """What the lumbar spine is asked to be, cranial to caudal; discs L1-L2 … L5-S1 as
    `SegmentAlignment` defines them.

    Default: disc angle + body wedge of the vertebra above = 1.2/5.9/9.1/12.7/21.6° [S66], LL 50.5°;
    heights [S69]; how S66's angles divide between disc and body [M].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lordosis_deg: Five = (3.2, 6.4, 8.1, 10.2, 13.6)
    coronal_deg: Five = _ZERO
    axial_deg: Five = _ZERO
    height_middle_mm: Five = (10.0, 11.6, 12.5, 13.8, 13.0)
    listhesis_mm: Five = _ZERO
    lateral_mm: Five = _ZERO
    body_wedge_deg: Five = Field(
        default=(-2.0, -0.5, 1.0, 2.5, 8.0), description="of L1 … L5, positive when taller in front"
    )
    body_height_mm: Five = (26.0, 27.0, 27.0, 27.0, 27.0)
    width_mm: Five = (43.0, 45.0, 47.0, 49.0, 51.0)
    depth_mm: Five = (32.0, 33.0, 34.0, 35.0, 35.0)
    sacrum_width_mm: float = Field(default=50.0, ge=38.0, le=62.0)
    sacrum_depth_mm: float = Field(default=32.0, ge=24.0, le=42.0)
    concavity_mm: float = Field(default=1.75, ge=0.0, le=3.0)
    sacral_slope_deg: float = Field(default=40.0, ge=0.0, le=75.0)
    pi_deg: float = Field(
        default=52.0, ge=20.0, le=100.0, description="pelvic incidence, sets where the hips are"
    )
    hip_distance_mm: float = Field(
        default=100.0, ge=60.0, le=150.0, description="S1's centre to the hip axis"
    )
    hip_width_mm: float = Field(default=170.0, ge=120.0, le=220.0)
    facet_gap_mm: float = Field(default=1.5, ge=0.8, le=3.0)
    trabecular_g_cm3: float = Field(default=0.11, ge=0.05, le=0.35)
    texture: float = Field(default=0.08, ge=0.0, le=0.25)
    seed: int = Field(default=0, ge=0)
    rotation_deg: tuple[float, float, float] = Field(
        default=(0.0, 0.0, 0.0), description="of the patient, Rz·Ry·Rx"
    )
    translation_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spacing_mm: float = Field(default=1.25, ge=0.5, le=2.0)

    def body(self, level: str) -> PhantomSpec:
        """The phantom's spec of one vertebra."""
        k = BODIES.index(level)
        # copied without validation: a fractured body is outside the range of the single-segment
        # phantom
        return PhantomSpec().model_copy(
            update={
                "width_mm": self.width_mm[k],
                "depth_mm": self.depth_mm[k],
                "body_height_mm": self.body_height_mm[k],
                "body_wedge_deg": self.body_wedge_deg[k],
                "concavity_mm": self.concavity_mm,
                "facet_gap_mm": self.facet_gap_mm,
                "trabecular_g_cm3": self.trabecular_g_cm3,
                "texture": self.texture,
                "seed": self.seed,
                "spacing_mm": self.spacing_mm,
            }
        )


def fractured(spec: LumbarSpec, level: str, anterior_loss: float) -> LumbarSpec:
    """The spec with a wedge fracture: anterior height of one body less by that share, posterior
    height kept.

    Raises: ValueError for a loss outside 0..0.6 or an unknown level.
    """
    if level not in BODIES or not 0.0 <= anterior_loss <= 0.6:
        raise ValueError(
            f"fracture of {level!r} by {anterior_loss:g}; expected one of {', '.join(BODIES)} and a"
            " share in 0..0.6"
        )
    k = BODIES.index(level)
    half = spec.depth_mm[k] * np.tan(0.5 * np.radians(spec.body_wedge_deg[k]))
    front, back = (
        (spec.body_height_mm[k] + half) * (1.0 - anterior_loss),
        spec.body_height_mm[k] - half,
    )
    wedge, height = list(spec.body_wedge_deg), list(spec.body_height_mm)
    wedge[k] = float(np.degrees(2.0 * np.arctan((front - back) / (2.0 * spec.depth_mm[k]))))
    height[k] = float(0.5 * (front + back))
    return spec.model_copy(update={"body_wedge_deg": tuple(wedge), "body_height_mm": tuple(height)})


def scoliotic(spec: LumbarSpec, coronal_deg: float) -> LumbarSpec:
    """The spec with a left-convex lumbar curve of about `coronal_deg` from L1 to L4 and the turn
    that goes with it.

    The discs L1-L2 … L3-L4 open to the left by a third each; L4-L5 and L5-S1 take 0.3 of it back
    (fractional curve).
    """
    third = coronal_deg / 3.0
    coronal = (0.8 * third, 1.2 * third, third, -0.5 * third, -0.4 * third)
    return spec.model_copy(
        update={"coronal_deg": coronal, "axial_deg": tuple(0.15 * c for c in coronal)}
    )


def lumbar_phantom(
    spec: LumbarSpec | None = None, profile: BoneProfile | None = None
) -> PatientModel:
    """The phantom patient L1-L5 and sacrum in LPS, with exact endplates;
    `source["femoral_heads_mm"]` has the hips."""
    spec = spec or LumbarSpec()
    profile = (profile or BoneProfile()).model_copy(
        update={"trabecular_g_cm3": spec.trabecular_g_cm3}
    )
    shapes, poses = shapes_of(spec), poses_of(spec)
    base = shapes["S1"]
    sacrum = move_surface(poses["S1"], base.surface(spec.spacing_mm))
    below = surface_sdf(sacrum, spec.spacing_mm)
    vertebrae = []
    for level in reversed(BODIES):
        shape, pose = shapes[level], poses[level]
        surface = shape.surface(spec.spacing_mm, (below, pose))
        below = surface_sdf(move_surface(pose, surface), spec.spacing_mm)
        vertebrae.append(vertebra_of(level, shape, surface, below, pose, shape.spec, profile))
    plate = move_endplate(poses["S1"], base.plate("superior"))
    return PatientModel(
        name=f"lumbar_phantom_{spec.seed}",
        vertebrae=tuple(reversed(vertebrae)),
        density_source="phantom",
        posture="phantom",
        repairs=(),
        source={
            "kind": "phantom",
            "spec": spec.model_dump(mode="json"),
            "femoral_heads_mm": femoral_heads_mm(spec).tolist(),
        },
        sacrum=Sacrum(sacrum, plate, plate_corners(plate)),
    )


def femoral_heads_mm(spec: LumbarSpec) -> np.ndarray:
    """Centres of the left and right femoral head [2, 3], LPS mm (module docstring)."""
    tilt = np.radians(spec.pi_deg - spec.sacral_slope_deg)
    axis = -spec.hip_distance_mm * np.array([0.0, np.sin(tilt), np.cos(tilt)])
    side = np.array([0.5 * spec.hip_width_mm, 0.0, 0.0])
    return rigid(_patient_motion(spec), np.stack([axis + side, axis - side]))


def exact_plates(spec: LumbarSpec) -> tuple[dict[str, tuple[Endplate, Endplate]], Endplate]:
    """Exact (superior, inferior) endplates of L1 … L5, and S1's superior one, in LPS; no surface
    is made."""
    poses = poses_of(spec)
    plates = {
        level: (
            move_endplate(poses[level], shape.plate("superior")),
            move_endplate(poses[level], shape.plate("inferior")),
        )
        for level, shape in shapes_of(spec).items()
        if level != "S1"
    }
    return plates, move_endplate(poses["S1"], shapes_of(spec)["S1"].plate("superior"))


def lumbar_truth(spec: LumbarSpec) -> dict[str, float]:
    """Exact alignment of the phantom by key "place.name" (places and names of
    alignment/spine.py); no surface is made.

    Sagittal angles are in the plane across the hip axis x, coronal ones in that of x and the chord
    S1-L1; the vertical of SS and PT is LPS z in the sagittal plane.
    """
    plates, sacrum = exact_plates(spec)
    below = [*(plates[level] for level in BODIES[1:]), (sacrum, _turned(sacrum))]
    result: dict[str, float] = {}
    for disc, level, caudal in zip(DISCS, BODIES, below, strict=True):
        alignment: SegmentAlignment = measure(plates[level], caudal)
        result |= {f"{disc}.{key}": value for key, value in asdict(alignment).items()}
    heads = femoral_heads_mm(spec)
    x = unit(heads[0] - heads[1])
    chord = plates["L1"][0].centre_mm - sacrum.centre_mm
    z = unit(chord - (chord @ x) * x)
    up = unit(np.array([0.0, 0.0, 1.0]) - x[2] * x)

    def lean(normal: np.ndarray, vertical: np.ndarray) -> float:
        """Backward lean of a direction from the vertical in the sagittal plane, degrees."""
        return float(np.degrees(np.arctan2(normal @ np.cross(vertical, x), normal @ vertical)))

    tilt = {
        (level, side): float(np.degrees(np.arctan2(plate.axis_left @ z, plate.axis_left @ x)))
        for level in BODIES
        for side, plate in enumerate(plates[level])
    }
    cobb = max(abs(tilt[a, 0] - tilt[b, 1]) for i, a in enumerate(BODIES) for b in BODIES[i + 1 :])
    lordosis = lean(plates["L1"][0].normal, z) - lean(sacrum.normal, z)
    lower = lean(plates["L4"][0].normal, z) - lean(sacrum.normal, z)
    slope = -lean(sacrum.normal, up)
    pelvic_tilt = lean(sacrum.centre_mm - heads.mean(axis=0), up)
    for k, level in enumerate(BODIES):
        result[f"{level}.wedge_deg"] = spec.body_wedge_deg[k]
    return result | {
        "regional.lumbar_lordosis_deg": lordosis,
        "regional.l4_s1_lordosis_deg": lower,
        "regional.lordosis_distribution_percent": 100.0 * lower / lordosis,
        "regional.cobb_deg": cobb,
        "regional.sacral_slope_deg": slope,
        "regional.pelvic_incidence_deg": slope + pelvic_tilt,
        "regional.pelvic_tilt_deg": pelvic_tilt,
        "regional.pi_minus_ll_deg": slope + pelvic_tilt - lordosis,
    }


def plate_corners(plate: Endplate) -> dict[str, np.ndarray]:
    """Landmarks of S1: midpoints of the anterior (promontory) and posterior rim, on the
    endplate's own midline."""
    offset = plate.rim_mm - plate.centre_mm
    back = np.cross(plate.normal, plate.axis_left)
    angle, radius = (
        np.arctan2(offset @ back, offset @ plate.axis_left),
        np.linalg.norm(offset, axis=1),
    )
    order = np.argsort(angle)
    front, rear = np.interp(
        [-0.5 * np.pi, 0.5 * np.pi], angle[order], radius[order], period=2.0 * np.pi
    )
    return {
        "promontory": plate.centre_mm - front * back,
        "s1_posterior_superior": plate.centre_mm + rear * back,
    }


def shapes_of(spec: LumbarSpec) -> dict[str, Shape]:
    """The implicit shape of L1 … L5 and S1, each in its own frame."""
    base = PhantomSpec().model_copy(
        update={
            "width_mm": spec.sacrum_width_mm,
            "depth_mm": spec.sacrum_depth_mm,
            "concavity_mm": spec.concavity_mm,
        }
    )
    return {level: Shape(spec.body(level)) for level in BODIES} | {"S1": SacrumShape(base)}


@lru_cache(maxsize=16)
def poses_of(spec: LumbarSpec) -> dict[str, np.ndarray]:
    """LPS from each bone's own frame [4, 4]."""
    shapes = shapes_of(spec)
    top = shapes["S1"].plate("superior")
    origin = _patient_motion(spec) @ _tilt(spec)  # of S1's superior endplate
    poses = {"S1": origin @ inverse(plate_frame(top))}
    for k in reversed(range(len(BODIES))):
        own = shapes[BODIES[k]]
        step = cranial_pose(
            spec.lordosis_deg[k],
            spec.coronal_deg[k],
            spec.axial_deg[k],
            spec.height_middle_mm[k],
            spec.listhesis_mm[k],
            spec.lateral_mm[k],
        )
        poses[BODIES[k]] = origin @ step @ inverse(plate_frame(own.plate("inferior"), -1.0))
        origin = poses[BODIES[k]] @ plate_frame(own.plate("superior"))
    return poses


def _tilt(spec: LumbarSpec) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(0, np.radians(spec.sacral_slope_deg))
    return matrix


def _patient_motion(spec: LumbarSpec) -> np.ndarray:
    """How the patient lies in the scanner: turned about S1's centre, then moved."""
    return motion_of(spec.rotation_deg, spec.translation_mm)


def _turned(plate: Endplate) -> Endplate:
    """The plate with its normal turned: stands in for the inferior endplate that a sacrum has
    not."""
    return Endplate(
        plate.centre_mm,
        -plate.normal,
        plate.rim_mm,
        plate.axis_left,
        plate.half_width_mm,
        plate.half_depth_mm,
    )
