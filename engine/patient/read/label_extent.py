"""Label images that hold no more than their labels: where the scan goes on, the image's border is
not the scan's.

DICOM segmentations leave empty frames out, and tools crop masks to what they hold. A bone that ends
at such a border is whole.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.patient.read.image import Image

#: Labels lie on the scan's lattice where every corner is this near to a voxel of it.
SAME_LATTICE_VOXELS = 0.25


def whole_extent(labels: Image, scan: Image | None) -> Image:
    """The labels on the scan's grid where they are a part of it; else with an empty slice where
    their border isn't a scan's.

    `scan` may also be a label image that these belong to (sub-regions of vertebrae): they get its
    grid where they can. Nothing else is done to labels whose border says where the scan ended:
    those that aren't a DICOM-SEG and aren't cropped to their content on all six sides.
    """
    frames = labels.source.get("format") == "DICOM-SEG"
    touching = _touching(labels.values)
    partner = scan is not None and scan.modality == "SEG"
    if not frames and not partner and not touching.all():
        return labels
    placed = None if scan is None else _on_grid_of(scan, labels)
    if placed is not None:
        return placed
    if not frames and not touching.all():
        return labels
    sides = touching & ([[False] * 2, [False] * 2, [True] * 2] if frames else [[True] * 2] * 3)
    if not sides.any():
        return labels
    why = (
        "a DICOM-SEG leaves empty frames out"
        if frames
        else "the labels are cropped to what they hold"
    )
    note = (
        f"the scan's border is not known ({why}): bones that end at the labels' border are taken "
        "as whole; give the scan to check it"
    )
    matrix = labels.lps_from_index.copy()
    matrix[:3, 3] -= matrix[:3, :3] @ sides[:, 0].astype(float)
    return replace(
        labels,
        values=np.pad(labels.values, [(int(low), int(high)) for low, high in sides]),
        lps_from_index=matrix,
        notes=(*labels.notes, note),
    )


def _touching(values: np.ndarray) -> np.ndarray:
    """Whether labels touch the border [axis, low and high]."""
    ends = [[np.moveaxis(values, axis, 0)[end].any() for end in (0, -1)] for axis in range(3)]
    return np.array(ends, bool)


def _on_grid_of(scan: Image, labels: Image) -> Image | None:
    """The labels on the scan's grid; None where they don't lie on its lattice, or reach beyond
    it.
    """
    step = np.linalg.inv(scan.lps_from_index) @ labels.lps_from_index
    turn = np.rint(step[:3, :3])
    if not np.array_equal(np.abs(turn) @ np.ones(3), np.ones(3)) or abs(np.linalg.det(turn)) != 1.0:
        return None
    last = np.array(labels.values.shape, float) - 1.0
    middle = last / 2.0
    start = np.rint(step[:3, :3] @ middle + step[:3, 3] - turn @ middle)
    corners = np.stack(np.meshgrid(*[(0.0, n) for n in last], indexing="ij"), -1).reshape(-1, 3)
    exact = corners @ step[:3, :3].T + step[:3, 3]
    near = corners @ turn.T + start
    low, high = near.min(axis=0).astype(int), near.max(axis=0).astype(int) + 1
    if (
        np.abs(exact - near).max() > SAME_LATTICE_VOXELS
        or low.min() < 0
        or (high > scan.values.shape).any()
    ):
        return None
    order = np.argmax(np.abs(turn), axis=1)  # the label axis that lies along each axis of the scan
    part = labels.values.transpose(order)
    part = np.flip(part, tuple(axis for axis in range(3) if turn[axis, order[axis]] < 0))
    values = np.zeros(scan.values.shape, labels.values.dtype, order="F")
    values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = part
    return replace(labels, values=values, lps_from_index=scan.lps_from_index.copy())
