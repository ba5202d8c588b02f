"""The phantom's sacrum: an implicit S1 body (elliptic, tapering, promontory in front) with alae,
superior articular processes, crest and a tail."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.patient.geometry.distance import isosurface
from engine.patient.phantoms.phantom import EDGE_MM, NOTCH_BLEND_MM, Shape
from engine.patient.phantoms.shapes import box, capsule, ellipse, smooth_max, smooth_min
from engine.types import Surface, VoxelField

#: S1 and S2 in front are a cone: over 50 mm down it narrows and flattens by these shares and
#: recedes by 9 mm, at most by 1.2 times that; it ends 55 mm under the endplate.
TAPER_MM, MOST_TAPER, NARROWING, FLATTENING = 50.0, 1.2, 0.35, 0.4
RECEDING_MM, BODY_END_MM = 9.0, 55.0
#: The hollow of its posterior wall, as the vertebra's (phantom.NOTCH_RADIUS).
SACRAL_NOTCH_RADIUS, SACRAL_NOTCH_DEPTH = 0.6, 0.06


class Place(NamedTuple):
    """A point of the sacrum in the frame of S1's endplate, mm; x_from and y_from, 0 or 1, add half
    of S1's width to x and half of its depth to y."""

    x: float
    x_from: int
    y: float
    y_from: int
    z: float


class SacralPart(NamedTuple):
    """A capsule of the sacrum, mirrored to both sides, and how it is blended to what is there."""

    start: Place
    end: Place
    radius_mm: float
    blend_mm: float


_FACET_FOOT = Place(-1.0, 1, 10.0, 1, -8.0)
_CREST_TOP = Place(0.0, 0, 22.0, 1, -24.0)
#: The ala: a rounded box.
ALA_CENTRE, ALA_HALF_MM = Place(14.0, 1, 6.0, 0, -19.5), (18.0, 13.0, 13.0)
ALA_ROUNDING_MM, ALA_BLEND_MM = 6.0, 4.0
#: Stem and superior articular process, lamina, median crest, lateral mass and tail, in the order in
#: which they are blended.
SACRAL_PARTS = (
    SacralPart(Place(1.0, 1, 10.0, 0, -15.0), _FACET_FOOT, 5.0, 3.0),
    SacralPart(_FACET_FOOT, Place(0.0, 1, 13.0, 1, 9.0), 4.8, 3.0),
    SacralPart(Place(-4.0, 1, 11.0, 1, -15.0), _CREST_TOP, 3.6, 3.0),
    SacralPart(_CREST_TOP, Place(0.0, 0, 24.0, 1, -64.0), 4.5, 3.0),
    SacralPart(Place(4.0, 1, 12.0, 0, -30.0), Place(10.0, 0, 24.0, 0, -78.0), 9.0, 4.0),
    SacralPart(Place(0.0, 0, 13.0, 0, -50.0), Place(0.0, 0, 28.0, 0, -90.0), 9.0, 4.0),
)
#: The box that holds the sacrum: beyond S1's half width and anterior rim; then its y and z.
BOX_BESIDE_MM, BOX_BEFORE_MM, BOX_BEHIND_MM, BOX_Z_MM = 36.0, 3.0, 62.0, (-101.0, 18.0)


class SacrumShape(Shape):
    """Implicit sacrum in the frame of S1's superior rim plane (origin at the ellipse's centre, z
    its normal)."""

    def rim_plane(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        if side < 0:
            raise ValueError("the sacrum has no inferior endplate; ask for side='superior'")
        return np.zeros(3), np.array([0.0, 0.0, 1.0])

    def body(self, p: np.ndarray) -> np.ndarray:
        """S1 and S2: an elliptic cone whose front recedes below the promontory."""
        spec = self.spec
        x, y, z = np.moveaxis(p, -1, 0)
        a, b = 0.5 * spec.width_mm, 0.5 * spec.depth_mm
        down = np.clip(-z / TAPER_MM, 0.0, MOST_TAPER)
        narrow, flat = 1.0 - NARROWING * down, 1.0 - FLATTENING * down
        side = ellipse(x / narrow, (y - RECEDING_MM * down) / flat, a, b) * flat
        notch_radius = SACRAL_NOTCH_RADIUS * spec.width_mm
        notch_y = b + notch_radius - SACRAL_NOTCH_DEPTH * spec.depth_mm
        notch = notch_radius - np.hypot(x, y - notch_y)
        value = smooth_max(side, notch, NOTCH_BLEND_MM)
        value = smooth_max(value, z + self.dish_mm(x, y), EDGE_MM)
        return smooth_max(value, -z - BODY_END_MM, NOTCH_BLEND_MM)

    def __call__(self, p: np.ndarray) -> np.ndarray:
        """The whole sacrum at points [..., 3]."""
        a, b = 0.5 * self.spec.width_mm, 0.5 * self.spec.depth_mm
        q = p.copy()
        q[..., 0] = np.abs(q[..., 0])

        def at(place: Place) -> np.ndarray:
            return np.array([place.x_from * a + place.x, place.y_from * b + place.y, place.z])

        ala = box(q - at(ALA_CENTRE), np.array(ALA_HALF_MM), ALA_ROUNDING_MM)
        value = smooth_min(self.body(p), ala, ALA_BLEND_MM)
        for part in SACRAL_PARTS:
            limb = capsule(q, at(part.start), at(part.end), part.radius_mm)
            value = smooth_min(value, limb, part.blend_mm)
        return value

    def surface(
        self, spacing_mm: float, keep_off: tuple[VoxelField, np.ndarray] | None = None
    ) -> Surface:
        """Closed surface of the sacrum; it keeps off nothing, the vertebra above it does."""
        if keep_off is not None:
            raise ValueError(
                "the sacrum is the lowest bone and keeps off no other; leave keep_off out"
            )
        reach = 0.5 * self.spec.width_mm + BOX_BESIDE_MM
        low = np.array([-reach, -0.5 * self.spec.depth_mm - BOX_BEFORE_MM, BOX_Z_MM[0]])
        high = np.array([reach, BOX_BEHIND_MM, BOX_Z_MM[1]])
        axes = [
            np.arange(start, end + spacing_mm, spacing_mm)
            for start, end in zip(low, high, strict=True)
        ]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return isosurface(VoxelField(self(points), low, spacing_mm))
