"""Stock cages: the sizes of a catalogue, and how one is seated in a disc space."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import BaseModel, ConfigDict, Field

from engine.sdf import polygon_distance
from engine.types import Segment

#: Endplates are looked for so far above and below the middle of the disc space, in steps of a
#: quarter of a millimetre [M]: a disc space is up to 20 mm high.
_SEARCH_MM, _SEARCH_STEP_MM = 12.0, 0.25
#: How deep a face dips into an endplate is taken at this quantile under the footprint, so that a
#: single spike of bone does not lift the cage [M].
_DEPTH_QUANTILE = 0.95


def stock_faces(seat: Any, x: Any, y: Any, y0: Any, u: Any, v: Any) -> tuple[Array, Array]:
    """Heights of the top and bottom face over plane points about the centre of the disc space,
    mm."""
    height, wedge, dome, z0, tilt_x, tilt_y = seat
    middle = z0 + tilt_x * x + tilt_y * y
    bulge = dome * (1.0 - jnp.clip((u**4 + v**4 + 1e-12) ** 0.5, 0.0, 1.0))
    half = height / 2 - (y - y0) * jnp.tan(wedge / 2) + bulge
    return middle + half, middle - half


class Catalogue(BaseModel):
    """Sizes of the stock device and how deep it is seated into each endplate."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    heights_mm: tuple[Annotated[float, Field(ge=4, le=22)], ...] = tuple(
        float(h) for h in range(6, 19)
    )
    lordosis_deg: tuple[Annotated[float, Field(ge=0, le=34)], ...] = (0.0, 4.0, 8.0, 12.0, 15.0)
    domes_mm: tuple[Annotated[float, Field(ge=0, le=3)], ...] = (0.0, 1.0)
    seat_depth_mm: float = Field(0.75, gt=0, le=3)
    least_inside: float = Field(0.97, gt=0, le=1)


class Footprint(NamedTuple):
    """Points of a footprint [n], mm about the centre of the disc space, on a 1 mm grid.

    u, v          where each lies in its blade, −1 … 1 along and across it
    centre_y_mm   about which the faces are wedged
    rim_inset_mm  how far inside the rims a footprint must stay
    """

    x_mm: np.ndarray
    y_mm: np.ndarray
    u: np.ndarray
    v: np.ndarray
    centre_y_mm: float
    rim_inset_mm: float


def seat(footprint: Footprint, segment: Segment, catalogue: Catalogue) -> np.ndarray | None:
    """The catalogue size that fits best under this footprint, as the group "seat"; None where the
    pose is not possible.

    The middle plane follows the two endplates under the footprint, the lordosis is the catalogue's
    nearest, the height the largest that dips no deeper than seat_depth_mm into either endplate
    (95th percentile under the footprint), the dome the one that touches more of them. A pose is not
    possible when more than 1 − least_inside of the footprint reaches over the rims, or when the
    flattest size is too high.
    """
    plates = (segment.caudal.superior, segment.cranial.inferior)
    centre = 0.5 * (plates[0].centre_mm + plates[1].centre_mm)
    plane = np.stack([footprint.x_mm, footprint.y_mm], -1) + centre[:2]
    rim = np.maximum(*(polygon_distance(p.rim_mm[:, :2], plane) for p in plates))
    if np.mean(rim + footprint.rim_inset_mm < 0) < catalogue.least_inside:
        return None
    floor, ceiling = _endplate_heights(plane, float(centre[2]), segment)
    middle, wedge_rad = _middle_plane(footprint, floor, ceiling, catalogue)
    best: tuple[float, np.ndarray] | None = None
    for dome in catalogue.domes_mm:
        for height in sorted(catalogue.heights_mm, reverse=True):
            size = np.array([height, wedge_rad, dome, middle[0], middle[1], middle[2]])
            fit = _fit(footprint, size, floor, ceiling)
            if fit.depth_mm <= catalogue.seat_depth_mm:
                if best is None or fit.touching > best[0]:
                    best = (fit.touching, fit.seat)
                break
    return None if best is None else best[1]


def _endplate_heights(
    plane_mm: np.ndarray, centre_z_mm: float, segment: Segment
) -> tuple[np.ndarray, np.ndarray]:
    """z of the top of the caudal and of the bottom of the cranial vertebra over points [n, 2] of
    the plane; the end of the search where there is no bone."""
    z = np.arange(centre_z_mm - _SEARCH_MM, centre_z_mm + _SEARCH_MM, _SEARCH_STEP_MM)
    points = np.concatenate(
        [
            np.repeat(plane_mm[:, None], len(z), 1),
            np.broadcast_to(z[None, :, None], (len(plane_mm), len(z), 1)),
        ],
        -1,
    )
    under = segment.caudal.sdf.sample(points) < 0
    over = segment.cranial.sdf.sample(points) < 0
    floor = np.where(under.any(1), z[len(z) - 1 - under[:, ::-1].argmax(1)], z[0])
    ceiling = np.where(over.any(1), z[over.argmax(1)], z[-1])
    return floor, ceiling


def _middle_plane(
    footprint: Footprint, floor: np.ndarray, ceiling: np.ndarray, catalogue: Catalogue
) -> tuple[np.ndarray, float]:
    """Height and slopes [3] of the plane midway between the endplates, and the catalogue's lordosis
    nearest to the angle between them, rad."""
    x, y = footprint.x_mm, footprint.y_mm
    table = np.stack([np.ones_like(x), x, y], -1)
    fit_floor, fit_ceiling = (np.linalg.lstsq(table, f, rcond=None)[0] for f in (floor, ceiling))
    wedge_deg = np.rad2deg(fit_floor[2] - fit_ceiling[2])
    nearest_deg = min(catalogue.lordosis_deg, key=lambda a: abs(a - wedge_deg))
    return 0.5 * (fit_floor + fit_ceiling), float(np.deg2rad(nearest_deg))


class _Fit(NamedTuple):
    """A size seated midway between the endplates: the group "seat", how deep it dips into them, mm,
    and the shares of both faces that touch, added."""

    seat: np.ndarray
    depth_mm: float
    touching: float


def _fit(footprint: Footprint, size: np.ndarray, floor: np.ndarray, ceiling: np.ndarray) -> _Fit:
    """The size moved along z until it dips as deep into the one endplate as into the other."""
    top, bottom = (
        np.asarray(f)
        for f in stock_faces(
            size,
            footprint.x_mm,
            footprint.y_mm,
            footprint.centre_y_mm,
            footprint.u,
            footprint.v,
        )
    )
    into_floor, into_ceiling = floor - bottom, top - ceiling
    shift = 0.5 * (
        np.quantile(into_floor, _DEPTH_QUANTILE) - np.quantile(into_ceiling, _DEPTH_QUANTILE)
    )
    into_floor, into_ceiling = into_floor - shift, into_ceiling + shift
    seated = size.copy()
    seated[3] = size[3] + shift
    depth = max(np.quantile(d, _DEPTH_QUANTILE) for d in (into_floor, into_ceiling))
    return _Fit(seated, float(depth), float(np.mean(into_floor > 0) + np.mean(into_ceiling > 0)))
