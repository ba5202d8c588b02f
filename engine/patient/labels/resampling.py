"""Labels that were resampled as if they were an image: found by their rims, and undone where that
is unambiguous.

Interpolation between a bone's number m and the background makes a rim of every number between: a
shell one or two voxels thick, round all bones, of numbers that mean other things. A rim voxel of
value k stood for m by the share k/m, so that it belongs to the bone where k ≥ m/2; which bone m is,
is said by the nearest voxel that has a core. That is each label's own mask, interpolated and cut at
one half.

    core    of a number: its voxels within one voxel of what an erosion leaves (6 neighbours)
    rim     voxels without a core
    share   of a bone's surface that looks at rims of three or more numbers between 0 and its own,
            none of them on more than 70 %; or of one number that is the same share of each bone's
            own (halves, where an axis is doubled): under 1 % in all of the public data, above 40 %
            after interpolation. (A cortex labelled round a spongiosa is a shell too, but of one
            number round all bones.)

Measured: phantom of 1.2 × 1.2 × 1.5 mm resampled to 1 mm, L1-L5: volumes −12 % as they come, within
0.8 % of the original once undone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    distance_transform_edt,
    find_objects,
    generate_binary_structure,
)

from engine.patient.read.image import Image

#: Share of the bones' surface that looks at rims from which an image is taken as interpolated.
RIM_SHARE = 0.20
#: Numbers of at least this many voxels with a core can be a bone.
_LEAST_CORE = 200
#: Only numbers from here have rims of three others.
_LEAST_NUMBER = 4
#: A vertebra's volume, generously, mm³.
_BONE_MM3 = (4e3, 4e5)
_CROSS, _CUBE = generate_binary_structure(3, 1), np.ones((3, 3, 3), bool)


def _cores(values: np.ndarray) -> np.ndarray:
    """The image with everything but cores set to 0."""
    cores = np.zeros_like(values)
    for number, box in enumerate(find_objects(values), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        mask = values[wide] == number
        eroded = binary_erosion(mask, _CROSS, border_value=1)
        if eroded.sum() < _LEAST_CORE:
            continue
        kept = binary_dilation(eroded, _CUBE) & mask
        cores[wide][kept] = number
    return cores


def _faces() -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Pairs of slices that set every voxel beside its neighbour along each axis."""
    result = []
    for axis in range(3):
        first, second = [slice(None)] * 3, [slice(None)] * 3
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        result += [(tuple(first), tuple(second)), (tuple(second), tuple(first))]
    return result


def rim_share(image: Image) -> float:
    """Share 0..1 of the bones' surface that looks at rims (module docstring), over the three
    largest of vertebra size."""
    values = np.asarray(image.values)
    voxel_mm3 = float(np.prod(image.voxel_mm))
    boxes = find_objects(values)
    volumes = {
        number: float((values[box] == number).sum()) * voxel_mm3
        for number, box in enumerate(boxes, start=1)
        if box is not None and number >= _LEAST_NUMBER
    }
    bones = sorted(
        (n for n, v in volumes.items() if _BONE_MM3[0] < v < _BONE_MM3[1]),
        key=lambda n: -volumes[n],
    )[:3]
    looks = surface = 0
    single: list[
        tuple[float, int, int]
    ] = []  # share of the bone's own number, the number, and how often it is seen
    for bone in bones:
        box = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in boxes[bone - 1])
        part = values[box]
        cores = _cores(part)
        edge, seen = 0, np.zeros(bone, np.int64)
        for own, other in _faces():
            faces = (cores[own] == bone) & (part[other] != bone)
            rim = faces & (cores[other] == 0) & (part[other] > 0) & (part[other] < bone)
            edge += int(faces.sum())
            seen += np.bincount(part[other][rim], minlength=bone)[:bone]
        surface += edge
        if (seen > 0).sum() >= 3 and seen.max() <= 0.7 * seen.sum():
            looks += int(seen.sum())
        elif seen.any():
            number = int(np.argmax(seen))
            single.append((number / bone, number, int(seen.sum())))
    shares = [share for share, _, _ in single]
    if len({number for _, number, _ in single}) > 1 and max(shares) - min(shares) < 0.05:
        looks += sum(seen for _, _, seen in single)
    return looks / surface if surface else 0.0


def without_rims(image: Image) -> tuple[Image, str]:
    """The image without rims, each of their voxels given to the bone it came from or to the
    background; and what was done.

    Returned as it is, with an empty line, where the labels have no rims (`RIM_SHARE`).
    """
    share = rim_share(image)
    if share < RIM_SHARE:
        return image, ""
    values = np.asarray(image.values)
    there = np.argwhere(values > 0)
    box = tuple(slice(a, b + 1) for a, b in zip(there.min(axis=0), there.max(axis=0), strict=True))
    part = values[box]
    cores = _cores(part)
    nearest = distance_transform_edt(
        cores == 0, sampling=image.voxel_mm, return_distances=False, return_indices=True
    )
    owner = cores[tuple(nearest)]
    rim = (part > 0) & (cores == 0)
    result = np.zeros_like(values)
    result[box] = np.where(rim, np.where(2 * part >= owner, owner, 0), cores)
    numbers = np.setdiff1d(np.unique(part[rim]), np.unique(cores))
    listing = ", ".join(map(str, numbers[:8])) + ("…" if len(numbers) > 8 else "")
    line = (
        f"the labels were resampled with interpolation: {100 * share:.0f} % of the bones' surface"
        f" looks at rims of other numbers{f' ({listing})' if listing else ''}, {int(rim.sum())}"
        " voxels; each was given to the bone beside it where its value is at least half the bone's"
        " number, else to the background. Export labels with nearest-neighbour interpolation"
    )
    return replace(image, values=result), line
