"""The assumed density of a vertebra when there is no CT: by depth under the surface, and by place.

    ρ = law⁻¹( E_core + (E_shell − E_core)·(t_shell / 1.5 mm)·s(depth) )
    s = 1 down to 1 mm, from there linearly to 0 at 2 mm

∫ s = 1.5 mm, so that the shell's E·t is kept through the law E(ρ) = 4730 ρ^1.56 [S20]: this is the
apparent density as a clinical CT of 0.5-1 mm would resolve a shell that is only 0.4-0.5 mm thick.

    body core    ρ = mean·(1 + endplate_gradient·(ζ² − 1/3) + posterior_gradient·η), ζ = ±1 at the
                 endplates, η = ±1/2 at the posterior and anterior wall
    wall         0.4 mm [S12] of 12000 MPa [S8, S9]
    endplates    0.5 mm [M] of 12000 MPa at the rim falling to 2000 MPa at the centre with the
                 square of the elliptic radius [S13]
    posterior    3500 MPa throughout (published for the whole of the posterior elements, shell
                 included); hence 0.824 g/cm³

None of this is the patient: whoever uses it says "assumed" in `density_source`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.ndimage import distance_transform_edt

from engine.materials import BONE_LAWS
from engine.patient.geometry.frames import inverse, vertebra_frame
from engine.types import Endplate, VoxelField, rigid

#: Depth over which shells are smeared, mm.
SMEAR_MM = 1.5


class BoneProfile(BaseModel):
    """Parameters of the assumed profile (see the module for equations and sources)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "profile_v1"
    #: normal about 0.18, osteopenic about 0.12; vertebral trabecular bone spans 0.09-0.35 [S21]
    trabecular_g_cm3: float = Field(default=0.16, ge=0.03, le=0.40)
    endplate_gradient: float = Field(default=0.25, ge=0.0, le=0.6)
    posterior_gradient: float = Field(default=0.20, ge=0.0, le=0.6)
    wall_thickness_mm: float = Field(default=0.4, ge=0.0, le=1.4)
    wall_e_mpa: float = Field(default=12000.0, ge=100.0, le=20000.0)
    endplate_thickness_mm: float = Field(default=0.5, ge=0.0, le=1.4)
    endplate_e_rim_mpa: float = Field(default=12000.0, ge=100.0, le=20000.0)
    endplate_e_centre_mpa: float = Field(default=2000.0, ge=100.0, le=20000.0)
    posterior_e_mpa: float = Field(default=3500.0, ge=100.0, le=20000.0)


def density_of_modulus(e_mpa: np.ndarray | float) -> np.ndarray:
    """Density g/cm³ whose modulus by Morgan's law is e_mpa: the law's inverse."""
    law = BONE_LAWS["morgan2003_vertebra"]
    return (np.asarray(e_mpa, float) / law.coefficient) ** (1.0 / law.exponent)


def assumed_density(
    sdf: VoxelField,
    superior: Endplate,
    inferior: Endplate,
    profile: BoneProfile,
    texture: Callable[[np.ndarray], np.ndarray] | None = None,
) -> VoxelField:
    """Density field on the grid of `sdf` (module docstring); outside the bone, the value of the
    nearest bone.

    texture   relative deviation of the body's core by position in the vertebra's own frame (phantom
              only)
    """
    bone = bone_samples(sdf)
    points = sdf.origin_mm + sdf.spacing_mm * np.argwhere(bone)
    depth = -np.asarray(sdf.values, float)[bone]
    own = rigid(inverse(vertebra_frame(superior, inferior)), points)
    d_sup = (superior.centre_mm - points) @ superior.normal
    d_inf = (inferior.centre_mm - points) @ inferior.normal
    share = np.clip(d_inf / np.where(d_sup + d_inf > 1.0, d_sup + d_inf, 1.0), 0.0, 1.0)
    half_depth = 0.5 * (superior.half_depth_mm + inferior.half_depth_mm)

    zeta, eta = 2.0 * share - 1.0, np.clip(0.5 * own[:, 1] / half_depth, -0.5, 0.5)
    core = (
        1.0 + profile.endplate_gradient * (zeta**2 - 1.0 / 3.0) + profile.posterior_gradient * eta
    )
    core = profile.trabecular_g_cm3 * core * (1.0 if texture is None else 1.0 + texture(own))
    law = BONE_LAWS["morgan2003_vertebra"]
    e_core = np.asarray(law.modulus_mpa(core))

    plate_share, radius = endplate_share(points, superior, inferior)
    e_plate = (
        profile.endplate_e_centre_mpa
        + (profile.endplate_e_rim_mpa - profile.endplate_e_centre_mpa)
        * np.minimum(radius, 1.0) ** 2
    )
    et_shell = (1.0 - plate_share) * (profile.wall_e_mpa - e_core) * profile.wall_thickness_mm
    et_shell += plate_share * (e_plate - e_core) * profile.endplate_thickness_mm
    smear = np.clip(2.0 - depth, 0.0, 1.0)
    e_body = e_core + et_shell / SMEAR_MM * smear

    posterior = posterior_share(points, superior, inferior)
    modulus = (1.0 - posterior) * e_body + posterior * profile.posterior_e_mpa
    values = of_nearest_bone(density_of_modulus(modulus), bone)
    return VoxelField(values, sdf.origin_mm, sdf.spacing_mm)


def bone_samples(sdf: VoxelField) -> np.ndarray:
    """Which samples are bone, [x, y, z] bool. Raises ValueError where none is."""
    bone = np.asarray(sdf.values) <= 0.0
    if not bone.any():
        raise ValueError(
            "the signed distance holds no bone (no negative sample); check the surface and its unit"
        )
    return bone


def of_nearest_bone(values: np.ndarray, bone: np.ndarray) -> np.ndarray:
    """Values [n] of the samples of bone [x, y, z] bool on the whole grid, float32: outside the bone
    those of the nearest bone."""
    filled = np.zeros(bone.shape, np.float32)
    filled[bone] = values
    nearest = distance_transform_edt(~bone, return_distances=False, return_indices=True)
    return np.asarray(filled[tuple(nearest)])


def posterior_share(points_mm: np.ndarray, superior: Endplate, inferior: Endplate) -> np.ndarray:
    """Share 0..1 of posterior element at points: a smooth step of 4 mm across the body's posterior
    wall.

    The wall is the plane through the most posterior rim points of the two endplates (mean over the
    most posterior eighth), in the vertebra's own frame.
    """
    matrix = inverse(vertebra_frame(superior, inferior))
    (y_sup, z_sup), (y_inf, z_inf) = (
        _back(rigid(matrix, plate.rim_mm)) for plate in (superior, inferior)
    )
    own = rigid(matrix, points_mm)
    wall = y_inf + (y_sup - y_inf) * np.clip((own[..., 2] - z_inf) / (z_sup - z_inf), 0.0, 1.0)
    t = np.clip((own[..., 1] - wall + 2.0) / 4.0, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _back(rim: np.ndarray) -> tuple[float, float]:
    last = np.argsort(rim[:, 1])[-max(len(rim) // 8, 1) :]
    return float(rim[last, 1].mean()), float(rim[last, 2].mean())


def endplate_share(
    points: np.ndarray, superior: Endplate, inferior: Endplate
) -> tuple[np.ndarray, np.ndarray]:
    """Share 0..1 of endplate (against side wall) in the shell at points, and the elliptic radius
    there.

    Endplate: within 4 mm (falling to none at 6 mm) under an endplate's plane and inside 0.97 of its
    ellipse; the rim's outer edge is wall.
    """
    share, radius = np.zeros(len(points)), np.ones(len(points))
    for plate in (superior, inferior):
        offset = points - plate.centre_mm
        u = offset @ plate.axis_left / plate.half_width_mm
        v = offset @ np.cross(plate.normal, plate.axis_left) / plate.half_depth_mm
        rho = np.hypot(u, v)
        here = np.clip((6.0 + offset @ plate.normal) / 2.0, 0.0, 1.0) * np.clip(
            (1.02 - rho) / 0.1, 0.0, 1.0
        )
        radius = np.where(here > share, rho, radius)
        share = np.maximum(share, here)
    return share, radius
