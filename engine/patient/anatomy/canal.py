"""The vertebral canal and the spinolaminar line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.patient.anatomy.sections import (
    SECTION_MM,
    SIDES,
    SectionedBone,
    enclosing_outline,
    outline_area_mm2,
    outline_chord_mm,
)
from engine.patient.geometry.frames import polygon_centroid
from engine.types import rigid


@dataclass(frozen=True)
class Canal:
    """Closed section of the spinal canal; offset_mm: its level above the pedicles' middle (0
    where that plane is closed)."""

    centre_mm: np.ndarray
    outline_mm: np.ndarray
    ap_mm: float
    transverse_mm: float
    area_mm2: float
    offset_mm: float


# -- canal and body --------------------------------------------------------------------------------


def canal_of(bone: SectionedBone) -> Canal:
    # where the axes pass 5 mm behind the posterior wall: the middle of the pedicles
    crossings = []
    for side in SIDES:
        entry, _, along = bone.pedicle_line(side)
        crossings.append((entry + (bone.wall_mm + 5.0 - entry[1]) / along[1] * along)[2])
    level = float(np.mean(crossings))
    x = np.arange(-26.0, 26.01, SECTION_MM)
    y = bone.wall_mm + np.arange(-14.0, 44.01, SECTION_MM)
    # the laminae slope down and backwards: the ring closes at the pedicles' middle or a little
    # below it
    for offset in sorted(np.arange(-10.0, 4.1, 0.5), key=lambda t: (abs(t), t)):
        flat = np.stack(np.meshgrid(x, y, indexing="ij"), -1)
        values = bone.phi(np.concatenate([flat, np.full((*flat.shape[:2], 1), level + offset)], -1))
        window = (np.abs(flat[..., 0]) < 4.0) & (np.abs(flat[..., 1] - bone.wall_mm - 6.0) < 8.0)
        i, j = np.unravel_index(int(np.argmax(np.where(window, values, -np.inf))), values.shape)
        seed = (float(x[i]), float(y[j]))
        # where the arch only just closes, its edge is grazed: the ring must be closed by bone 1 mm
        # deep as well
        if (
            enclosing_outline(values + 1.0, (x[0], y[0]), SECTION_MM, seed, inside_negative=False)
            is None
        ):
            continue
        outline = enclosing_outline(values, (x[0], y[0]), SECTION_MM, seed, inside_negative=False)
        if outline is None or outline_area_mm2(outline) < 60.0:
            continue
        middle = polygon_centroid(outline)
        height = np.full((len(outline), 1), level + offset)
        return Canal(
            centre_mm=rigid(bone.pose, np.array([*middle, level + offset])),
            outline_mm=rigid(bone.pose, np.concatenate([outline, height], -1)),
            ap_mm=outline_chord_mm(outline, middle, 1),
            transverse_mm=float(np.ptp(outline[:, 0])),
            area_mm2=outline_area_mm2(outline),
            offset_mm=float(offset),
        )
    raise ValueError(
        f"{bone.name}: bone encloses no canal 10 mm under to 4 mm over the pedicles; the arch is"
        " open or cut off"
    )


def spinolaminar(bone: SectionedBone, canal: Canal | None) -> np.ndarray:
    """The canal's posterior border in the midline, where it reaches farthest forwards;
    vertebra's given frame."""
    if canal is None:
        raise ValueError(
            f"{bone.name}: the canal was not found, from which the arch's front is looked for"
        )
    centre = rigid(bone.to_own, canal.centre_mm)
    z = centre[2] + np.arange(-15.0, 5.1, 0.5)
    y = centre[1] + np.arange(0.0, 25.0, 0.25)
    values = bone.phi(np.stack(np.broadcast_arrays(0.0, y[None, :], z[:, None]), -1))
    hit = (values < 0.0).any(axis=1) & (values[:, 0] > 0.0)
    if not hit.any():
        raise ValueError(f"{bone.name}: no lamina crosses the midline behind the canal")
    k = np.argmax(values < 0.0, axis=1)
    rows = np.arange(len(z))
    front, back = values[rows, k - 1], values[rows, k]
    reach = y[k] - 0.25 * back / np.where(back == front, 1.0, back - front)
    best = int(np.argmin(np.where(hit, reach, np.inf)))
    return rigid(bone.pose, np.array([0.0, reach[best], z[best]]))
