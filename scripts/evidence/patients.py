"""The disc of any prepared patient at finite strain, without posterior elements: nucleus, four
rings of annulus, ALL and PLL.

Hexahedra between the patient's own endplates (fem/intact/disc_mesh.py), materials and ligament laws
as in scripts/evidence/intact.py; ALL and PLL from rim to rim over the same share of the disc's
width as in lumbar_meshes. Facets and the other ligaments are left out: their insertions are on no
clinical scan. lumbar_meshes' own hexahedra in the same test say what the generated mesh is worth.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.types import Endplate, Segment
from fem.intact import materials
from fem.intact.connections import Ligament
from fem.intact.disc_mesh import DiscSettings, disc_mesh
from fem.intact.hyperelastic import jacobians
from fem.intact.segment import IntactSegment
from scripts.evidence import motion

#: Strands and the share of the disc's width over which they are spread; front or back
#: (lumbar_meshes, L4-L5).
BANDS = {"ALL": (9, 0.60, -1.0), "PLL": (5, 0.23, 1.0)}
COARSE, FINER = DiscSettings(), DiscSettings(around=56, layers=8)
QUANTITIES = tuple(
    p
    for p in motion.PUBLISHED
    if "no posterior elements" in p.quantity or "disc only" in p.quantity
)


def patient_segment(
    segment: Segment, settings: DiscSettings = COARSE, order: int = 1
) -> IntactSegment:
    """The intact motion segment of a planned patient, in its planned pose. Raises ValueError as
    fem.intact.disc_mesh.disc_mesh."""
    if settings.rings != len(materials.FIBRE_FACTOR):
        raise ValueError(
            f"rings={settings.rings}: the annulus' materials are given for"
            f" {len(materials.FIBRE_FACTOR)} rings"
        )
    mesh = disc_mesh(segment, settings)
    disc = materials.disc_body(mesh.points_mm, mesh.hexes, mesh.group, order)
    caudal, cranial = (
        (mesh.caudal_nodes, mesh.cranial_nodes) if order == 1 else materials.ends_of(disc)
    )
    low, high = segment.caudal.superior, segment.cranial.inferior
    up = low.normal - high.normal
    up /= np.linalg.norm(up)
    left = np.array([1.0, 0.0, 0.0]) - up[0] * up
    left /= np.linalg.norm(left)
    above, below = (
        0.5 * (v.superior.centre_mm + v.inferior.centre_mm)
        for v in (segment.cranial, segment.caudal)
    )
    ligaments = [
        Ligament(
            name, _band(high, n, share, side), _band(low, n, share, side), materials.REMUS[name]
        )
        for name, (n, share, side) in BANDS.items()
    ]
    return IntactSegment(
        disc,
        cranial,
        caudal,
        np.stack([np.cross(left, up), left, up]),
        above,
        below,
        materials.NUCLEUS,
        ligaments,
    )


def _band(plate: Endplate, strands: int, share: float, side: float) -> np.ndarray:
    """Points [strands, 3] on the rim's front (side −1) or back (+1), evenly over a share of its
    width."""
    rim = np.vstack([plate.rim_mm, plate.rim_mm[:1]])
    along = np.concatenate([rim[:-1] + t * np.diff(rim, axis=0) for t in np.linspace(0.0, 0.9, 10)])
    across = (along - plate.centre_mm) @ plate.axis_left
    half = 0.5 * share * np.ptp(across)
    mine = np.sign(along[:, 1] - plate.centre_mm[1]) == side
    wanted = 0.5 * (across.min() + across.max()) + np.linspace(-half, half, strands)
    return np.array([along[mine][np.abs(across[mine] - w).argmin()] for w in wanted])


def measure_disc(segment: IntactSegment, keep: Path) -> dict[str, float]:
    """QUANTITIES, the nucleus' pressure at 1000 N, volumes, and the largest error of balance.
    Raises NotFound."""
    test, out = motion.MotionTest(keep), {"balance": 0.0}
    part = motion.balanced(segment)
    disc = replace(part, ligaments=[])
    for name in motion.DIRECTIONS:
        rotation_deg = test.rotation_deg(part, name)
        out[f"{name} stiffness, no posterior elements"] = motion.MOMENT_NM / rotation_deg
    for what, suffix in ((part, "no posterior elements"), (disc, "disc only")):
        pressed = test.compressed(what, f"compression {suffix}")
        out[f"axial stiffness, {suffix}"] = 1.0 / abs(pressed.translation_mm[2])
        out[f"pressure of the nucleus at 1000 N, {suffix}"] = pressed.nucleus_mpa
    out["balance"] = test.balance
    return out | shape(segment)


def shape(segment: IntactSegment) -> dict[str, float]:
    """Volume, the nucleus' share of it, area of the ellipse round its footprint, and unknowns."""
    d = segment.disc
    corners = d.cell_nodes[:, :8]
    volume = jacobians(d.nodes_mm[corners]).sum(1)
    area = float(np.prod([np.ptp(d.nodes_mm @ segment.axes[k]) for k in (0, 1)])) * 0.25 * np.pi
    return {
        "volume mm3": float(volume.sum()),
        "nucleus share": float(volume[d.group == materials.NUCLEUS].sum() / volume.sum()),
        "area mm2": area,
        "unknowns": float(d.size),
    }
