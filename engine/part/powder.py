"""What must not be in a printed lattice: void that powder cannot leave, and solid that hangs on
nothing.

part is a signed distance of the solid, outside that of the part's outline, samples h mm apart,
negative inside.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def _outer(void: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Components of a mask that reach the room around the part."""
    labels, _ = ndimage.label(np.pad(void, 1, constant_values=True))
    free = np.unique(labels[np.pad(outside > 0, 1, constant_values=True) & (labels > 0)])
    outer: np.ndarray = np.isin(labels, free)[1:-1, 1:-1, 1:-1] & void
    return outer


def _ball_room(part: np.ndarray, h: float, ball_mm: float) -> np.ndarray:
    """Where the centre of a ball may be (bool)."""
    room = (
        ndimage.distance_transform_edt(np.pad(part >= 0, 2, constant_values=True))[2:-2, 2:-2, 2:-2]
        * h
        - 0.5 * h
    )
    mask: np.ndarray = room >= 0.5 * ball_mm
    return mask


def trapped(part: np.ndarray, outside: np.ndarray, h: float, ball_mm: float) -> np.ndarray:
    """Void that no powder could leave: closed off, or behind a neck that a ball of ball_mm does
    not pass."""
    void = part >= 0
    closed = void & ~_outer(void, outside)
    centres = _ball_room(part, h, ball_mm)
    kept = centres & ~_outer(centres, outside)
    if kept.any():
        kept = ndimage.distance_transform_edt(~kept) * h <= 0.5 * ball_mm + h
    return closed | (kept & void & (outside < 0))


def made_solid(filled: np.ndarray, values: np.ndarray, outside: np.ndarray, h: float) -> np.ndarray:
    """The field with that void made solid, and no surface left between the two."""
    deep = filled | (ndimage.binary_dilation(filled) & (values < 0))
    return np.where(deep, np.maximum(outside, -h), values)


def leaving_share(part: np.ndarray, outside: np.ndarray, h: float, ball_mm: float) -> float:
    """Of the places where a ball of ball_mm has room inside the part, the share from which it
    can leave."""
    centres = _ball_room(part, h, ball_mm)
    inside = centres & (outside < 0)
    return float((_outer(centres, outside) & inside).sum() / max(inside.sum(), 1))


def loose_pieces(part: np.ndarray, outside: np.ndarray, h: float) -> np.ndarray:
    """Solid that does not hang together with any of the outline's bodies (each keeps its largest
    piece)."""
    bodies, count = ndimage.label(outside < 0)
    labels, _ = ndimage.label(part < 0)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = []
    for body in range(1, count + 1):
        mine = np.unique(labels[(bodies == body) & (labels > 0)])
        if len(mine):
            keep.append(int(mine[np.argmax(sizes[mine])]))
    return (labels > 0) & ~np.isin(labels, keep)
