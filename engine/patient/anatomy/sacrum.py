"""S1's superior endplate on the sacrum's surface.

The sacrum has no waist and no pedicles to go by, so the endplate is found from the midline:

    1. midline    plane of best mirror symmetry (as vertebra.py), from all azimuths about `up`, or
                  from L5's left axis
    2. S1's body  the deepest bone of the midline slice in its upper part
    3. endplate   from several forward tilts (0-80°, or about L5's endplate): the plane through the
                  first bone met within 9 mm of the middle, followed until it does not turn any
                  more; footprint: what is joined to the middle and lies no more than 1.5 mm under
                  that plane (the alae and the canal fall away, the facets rise)
    4. rim        as vertebra.py: Tukey plane through the crest of the outer 30 %, section 1 mm
                  under it

Of the candidates the one is kept that is as large and flat as an endplate, faces cranially and
forwards, and lies under L5 where that is known. A sacrum cut below S1 (TotalSegmentator's S1 label)
will do.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, binary_opening, gaussian_filter, label
from scipy.optimize import minimize

from engine.patient.anatomy.body import STEP_MM, BodyBox, first_bone
from engine.patient.anatomy.vertebra import mirror_frame
from engine.patient.geometry.frames import frame, inverse, rotation, unit
from engine.types import Endplate, Surface, VoxelField, rigid

#: Half axes that an adult's S1 endplate may have (left-right, antero-posterior), mm [M].
WIDTHS_MM = (16.0, 36.0)
DEPTHS_MM = (10.0, 25.0)
#: The middle of the endplate: within this of its centre.
_CORE_MM = 9.0


def sacrum_endplate(
    surface: Surface, sdf: VoxelField, up: np.ndarray, above: Endplate | None = None
) -> tuple[Endplate, dict[str, np.ndarray]]:
    """S1's superior endplate and its landmarks "promontory" and "s1_posterior_superior", in the
    frame of the surface.

    surface, sdf   the sacrum, or its part S1, closed; mm
    up [3]         rough cranial direction of the lumbar spine, to some 30°; the endplate may face
                   0-80° forwards of it
    above          L5's (or L6's) inferior endplate, where known: the search then starts below it

    Raises: ValueError when nothing is found that can be S1's endplate.
    """
    up = unit(up)
    starts = _below(surface, sdf, above) if above is not None else _alone(surface, sdf, up)
    found: list[tuple[float, Endplate]] = []
    tried: list[np.ndarray] = []
    for start in starts:
        pose = _settle(sdf, start)
        if pose is None or any(_same(pose, other) for other in tried):
            continue
        tried.append(pose)
        try:
            plate = _plate(surface, sdf, pose)
        except ValueError:
            # no endplate there; the other candidates decide, and none at all is the error below
            continue
        cost = _cost(sdf, plate, up, above)
        if cost is not None:
            found.append((cost, plate))
    if not found:
        hint = "under L5's endplate" if above is not None else "at its upper end (L5 was not given)"
        raise ValueError(
            f"S1: no superior endplate is found {hint} ({len(tried)} places tried); check that the"
            " label is the whole upper sacrum, that L5 is in the same frame, and the file's axes"
        )
    best = min(found, key=lambda item: item[0])[1]
    return best, _corners(best)


def _below(surface: Surface, sdf: VoxelField, above: Endplate) -> list[np.ndarray]:
    """Rough frames from L5's inferior endplate: its left axis, and its plane turned forwards by
    up to 35° or back by 10°."""
    down = unit(above.normal)
    left = unit(above.axis_left)
    back = np.cross(-down, left)
    # the middle of S1 lies where the endplate's axis first meets the sacrum; listhesis puts it to
    # the front or back
    starts = []
    steps = np.arange(1.0, 40.0, 0.5)
    for turn in (15.0, 0.0, 30.0, -10.0):
        z = _turned(-down, back, turn)
        for shift in (0.0, 8.0, -8.0):
            ray = above.centre_mm + shift * back + steps[:, None] * down
            hits = np.flatnonzero(sdf.sample(ray) < 0.0)
            if len(hits):
                starts.append(frame(ray[hits[0]], z, left))
    if not starts:
        raise ValueError(
            "S1: L5's inferior endplate does not look at the sacrum (no bone within 40 mm under"
            " it); check that both are in one frame, or that a level between them is missing"
        )
    symmetric = mirror_frame(surface, sdf, starts[0])
    return [frame(start[:3, 3], start[:3, 2], symmetric[:3, 0]) for start in starts]


def _alone(surface: Surface, sdf: VoxelField, up: np.ndarray) -> list[np.ndarray]:
    """Rough frames without L5: the bone's own midline, S1's body in it, and tilts of 0 to 80°
    forwards."""
    left, middle = _midline(surface, sdf, up)
    body = _upper_body(sdf, up, left, middle)
    back = np.cross(up - (up @ left) * left, left)
    mean = surface.points_mm.mean(axis=0) - body
    if mean @ back < 0.0:  # crest, facets and tail are behind S1's body
        left, back = -left, -back
    z = unit(np.cross(left, back))
    starts = []
    for turn in (40.0, 20.0, 60.0, 0.0, 80.0):
        axis = _turned(z, back, turn)
        ray = body + np.arange(40.0, -15.0, -0.5)[:, None] * axis
        hits = np.flatnonzero(sdf.sample(ray) < 0.0)
        if len(hits):
            starts.append(frame(ray[hits[0]], axis, left))
    return starts


def _turned(z: np.ndarray, back: np.ndarray, forward_deg: float) -> np.ndarray:
    """`z` turned forwards (away from `back`)."""
    angle = np.radians(forward_deg)
    return np.cos(angle) * z - np.sin(angle) * back


def _midline(surface: Surface, sdf: VoxelField, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal of the mirror plane (either sign) and a point of it, searched over all azimuths
    about `up`."""
    points = surface.points_mm[:: max(len(surface.points_mm) // 1200, 1)]
    centre = points.mean(axis=0)
    base = frame(centre, up, unit(np.cross(up, [0.31, 0.95, 0.12])))

    def plane(parameters: np.ndarray) -> tuple[np.ndarray, float]:
        turn = base[:3, :3] @ rotation(2, parameters[0]) @ rotation(1, parameters[1])
        return turn[:, 0], parameters[2]

    def misfit(parameters: np.ndarray) -> float:
        normal, shift = plane(parameters)
        height = (points - centre) @ normal - shift
        return float(
            np.minimum(np.abs(sdf.sample(points - 2.0 * height[:, None] * normal)), 6.0).mean()
        )

    grid = [
        np.array([angle, 0.0, shift])
        for angle in np.radians(np.arange(0, 180, 7.5))
        for shift in (-6.0, 0.0, 6.0)
    ]
    best = None
    for start in sorted(grid, key=misfit)[:4]:
        simplex = start + np.vstack([np.zeros(3), np.diag([0.06, 0.1, 3.0])])
        result = minimize(
            misfit,
            start,
            method="Nelder-Mead",
            options={"maxiter": 200, "xatol": 1e-3, "initial_simplex": simplex},
        )
        if best is None or result.fun < best.fun:
            best = result
    assert best is not None
    normal, shift = plane(best.x)
    return normal, centre + shift * normal


def _upper_body(
    sdf: VoxelField, up: np.ndarray, left: np.ndarray, middle: np.ndarray
) -> np.ndarray:
    """A point deep in S1's body: in the midline slice, the bone blurred by 6 mm, its peak within
    35 mm of the top of the body."""
    z = unit(up - (up @ left) * left)
    side = np.cross(z, left)
    step = 1.0
    u = np.arange(-110.0, 110.0, step)
    flat = middle + u[:, None, None] * side + u[None, :, None] * z
    slices = [sdf.sample(flat + offset * left) < 0.0 for offset in (-6.0, -3.0, 0.0, 3.0, 6.0)]
    blurred = gaussian_filter(np.mean(slices, axis=0), 6.0 / step)
    deep = blurred > 0.75 * blurred.max()  # the crest and the tail are too thin to count
    top = u[int(np.flatnonzero(deep.any(axis=0))[-1])]
    blurred[:, u < top - 35.0] = 0.0
    i, j = np.unravel_index(int(np.argmax(blurred)), blurred.shape)
    return np.asarray(middle + u[i] * side + u[j] * z)


def _settle(sdf: VoxelField, start: np.ndarray) -> np.ndarray | None:
    """The start turned and moved until its z is normal to the bone's surface about its origin and
    centred on the footprint.

    None where it finds no bone or does not come to rest.
    """
    pose = start
    for _ in range(25):
        seen = _heights(sdf, pose)
        if seen is None:
            return None
        flat, height, known, plane = seen
        footprint = _footprint(height, known, flat, plane)
        offset = np.zeros(2)
        if footprint.sum() * STEP_MM**2 > 150.0:
            offset = flat[footprint].mean(axis=0)
            offset *= min(1.0, 5.0 / max(float(np.linalg.norm(offset)), 1e-9))
        tilt = unit(pose[:3, :3] @ np.array([-plane[1], -plane[2], 1.0]))
        turn = float(np.degrees(np.arccos(np.clip(tilt @ pose[:3, 2], -1.0, 1.0))))
        if (
            turn > 12.0
        ):  # by steps, so that it slides along the bone and does not jump to another face
            tilt = unit(
                pose[:3, 2]
                + np.tan(np.radians(12.0)) * unit(tilt - (tilt @ pose[:3, 2]) * pose[:3, 2])
            )
        origin = rigid(pose, np.array([*offset, plane[0] + offset @ plane[1:]]))
        # along the midline only: sideways the mirror plane decides
        origin -= ((origin - start[:3, 3]) @ start[:3, 0]) * start[:3, 0]
        moved = float(np.linalg.norm(origin - pose[:3, 3]))
        pose = frame(origin, tilt, start[:3, 0])
        if turn < 0.3 and moved < 0.4:
            return pose
    return pose if turn < 3.0 and moved < 2.0 else None


def _heights(
    sdf: VoxelField, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """First bone seen from above within 14 mm of the origin: positions [x, y, 2], height, known,
    plane of the core."""
    x, y = np.arange(-36.0, 36.1, STEP_MM), np.arange(-30.0, 30.1, STEP_MM)
    z = np.arange(-14.0, 14.1, STEP_MM)
    values = sdf.sample(rigid(pose, np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1)))
    height, known = first_bone(values, z)
    flat = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
    inner = known & (np.hypot(flat[..., 0], flat[..., 1]) < _CORE_MM)
    if inner.sum() < 60:
        return None
    return flat, height, known, _flat_plane(flat[inner], height[inner])


def _flat_plane(flat: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Plane (a, b, c) of height = a + b·x + c·y by Tukey's biweight of 1.5 mm: of the flat part
    alone, where alae rise on both sides or the points reach over an edge."""
    basis = np.column_stack([np.ones(len(flat)), flat])
    weight = np.ones(len(flat))
    plane = np.zeros(3)
    for _ in range(12):
        root = np.sqrt(weight)
        plane = np.linalg.lstsq(basis * root[:, None], height * root, rcond=None)[0]
        residual = height - basis @ plane
        scale = max(1.5, 2.0 * float(np.median(np.abs(residual))))
        weight = np.clip(1.0 - (residual / scale) ** 2, 0.0, None) ** 2 + 1e-9
    return np.asarray(plane)


def _footprint(
    height: np.ndarray, known: np.ndarray, flat: np.ndarray, plane: np.ndarray
) -> np.ndarray:
    """What is joined to the middle and neither falls 1.5 mm under nor rises 4.5 mm over the
    core's plane (a cavity's rim is up to 3 mm higher than its floor)."""
    over = height - (plane[0] + flat @ plane[1:])
    level = known & (over > -1.5) & (over < 4.5)
    level = binary_opening(level, iterations=2)  # narrow bridges to alae and facets
    parts, _ = label(level)
    middle = parts[np.hypot(flat[..., 0], flat[..., 1]) < _CORE_MM]
    ids = np.bincount(middle[middle > 0], minlength=1)
    if ids.max(initial=0) == 0:
        return np.zeros_like(level)
    return np.asarray(binary_dilation(parts == int(np.argmax(ids)), iterations=1) & known)


def local_endplate(sdf: VoxelField, near: Endplate) -> Endplate:
    """The endplate found again next to a known one, its left axis kept (for redrawing on
    disturbed surfaces: 0.1 s)."""
    return _SacralBox("S1", sdf, frame(near.centre_mm, near.normal, near.axis_left)).plate(
        "superior"
    )


class _SacralBox(BodyBox):
    """The box about S1's endplate; in place of a waist it has the endplate's footprint."""

    def fitted_plane(self, flat: np.ndarray, height: np.ndarray) -> np.ndarray:
        return _flat_plane(flat, height)

    def body_section(self) -> tuple[np.ndarray, float]:
        seen = _heights(self.sdf, self.pose)
        if seen is None:
            raise ValueError("S1: no bone in the middle of the endplate")
        flat, height, known, plane = seen
        footprint = _footprint(height, known, flat, plane)
        if footprint.sum() * STEP_MM**2 < 250.0:
            raise ValueError("S1: the flat part is too small to be an endplate")
        behind = np.flatnonzero(footprint[np.abs(self.axes[0]) < 6.0].any(axis=0))
        return footprint, float(self.axes[1][behind[-1]])


def _plate(surface: Surface, sdf: VoxelField, pose: np.ndarray) -> Endplate:
    """The endplate by anatomy's convention, from a settled pose."""
    plate: Endplate | None = None
    for _ in range(3):
        plate = _SacralBox("S1", sdf, pose).plate("superior")
        pose = mirror_frame(surface, sdf, frame(plate.centre_mm, plate.normal, plate.axis_left))
        pose = frame(plate.centre_mm, plate.normal, pose[:3, 0])
    return _SacralBox("S1", sdf, pose).plate("superior")


def _cost(sdf: VoxelField, plate: Endplate, up: np.ndarray, above: Endplate | None) -> float | None:
    """How little it looks like S1's endplate (smaller is better); None where it cannot be one.

    Mean distance of the plane's rim to the bone 1 mm under it, plus how far it lies from straight
    under L5.
    """
    if not (
        WIDTHS_MM[0] < plate.half_width_mm < WIDTHS_MM[1]
        and DEPTHS_MM[0] < plate.half_depth_mm < DEPTHS_MM[1]
    ):
        return None
    if plate.normal @ up < np.cos(np.radians(85.0)):
        return None
    cost = float(np.abs(sdf.sample(plate.rim_mm - plate.normal)).mean())
    # an endplate is free above: nothing of the sacrum stands on it
    lifted = plate.centre_mm + 0.6 * (plate.rim_mm - plate.centre_mm) + 6.0 * plate.normal
    cost += 4.0 * float((sdf.sample(lifted) < 0.0).mean())
    if above is None:
        # the endplate faces forwards of `up`, or at most a little back
        back = np.cross(up, plate.axis_left)
        return None if plate.normal @ back > np.sin(np.radians(15.0)) else cost
    gap = plate.centre_mm - above.centre_mm
    if not 0.0 < gap @ above.normal < 40.0 or plate.normal @ above.normal > -np.cos(
        np.radians(50.0)
    ):
        return None
    sideways = float(np.linalg.norm(gap - (gap @ above.normal) * above.normal))
    return cost + 0.02 * sideways


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(
        np.linalg.norm(a[:3, 3] - b[:3, 3]) < 2.0 and a[:3, 2] @ b[:3, 2] > np.cos(np.radians(4.0))
    )


def _corners(plate: Endplate) -> dict[str, np.ndarray]:
    """Midpoints of the anterior (promontory) and posterior rim."""
    own = rigid(inverse(frame(plate.centre_mm, plate.normal, plate.axis_left)), plate.rim_mm)
    angle, radius = np.arctan2(own[:, 1], own[:, 0]), np.hypot(own[:, 0], own[:, 1])
    order = np.argsort(angle)
    front, rear = np.interp(
        [-0.5 * np.pi, 0.5 * np.pi], angle[order], radius[order], period=2.0 * np.pi
    )
    back = np.cross(plate.normal, plate.axis_left)
    return {
        "promontory": plate.centre_mm - front * back,
        "s1_posterior_superior": plate.centre_mm + rear * back,
    }
