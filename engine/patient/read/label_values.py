"""Label numbers from the values of an image: whole numbers ≥ 0, or those of a mask that was
resampled with interpolation.

Interpolation leaves the insides of labels whole and puts numbers between them into their rims (a
cubic also some below 0 and above the largest). An image has no such insides: its values are spread
over hundreds of numbers.
"""

from __future__ import annotations

import numpy as np

#: Label images hold at most this many different numbers (the largest scheme known has about 120).
MOST_LABELS = 500
#: A resampled mask's labelled voxels are whole by this share at least, and of this many kinds at
#: most (TotalSegmentator: 117).
LEAST_WHOLE = 0.5
MOST_KINDS = 130
#: Whole is what is this near to it.
NEAR_WHOLE = 0.05
#: … and negative by this share at most, down to this share of the largest number.
MOST_NEGATIVE = 0.3
DEEPEST = 0.45
_AN_IMAGE = "this is an image, not a label mask"


def label_numbers(values: np.ndarray, place: str) -> tuple[np.ndarray, bool, list[str]]:
    """Numbers as int16, or int32 where they need it; whether they had been interpolated; what was
    done, in words.

    Raises: ValueError for values that are neither, and for more than MOST_LABELS different numbers.
    """
    notes: list[str] = []
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError(
                f"{place}: values are not whole numbers (NaN or infinite among them); {_AN_IMAGE}"
            )
        rounded = np.rint(values)
        off = np.abs(values - rounded)
        if (off > 1e-4).any():
            near = off <= NEAR_WHOLE
            share = _share(near, values)
            if (
                share < LEAST_WHOLE
                or _kinds(rounded.ravel(order="K")[near.ravel(order="K")]) > MOST_KINDS
            ):
                raise ValueError(f"{place}: values are not whole numbers; {_AN_IMAGE}")
            notes.append(
                f"{1.0 - share:.1%} of the labelled voxels lie between whole numbers: the mask was "
                "resampled with interpolation, and is "
                "rounded; rims may carry numbers of other labels (resample labels with nearest "
                "neighbour)"
            )
        values = rounded
    low, high = float(values.min()), float(values.max())
    if low < 0 and _overshoots(values, low, high):
        count = int(np.count_nonzero(values < 0))
        notes.append(
            f"{count} voxels below 0 (down to {low:g}), as interpolation leaves them beside "
            "labels: set to 0"
        )
        values = np.maximum(values, 0)
        low = 0.0
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(
            f"{place}: values go from {low:g} to {high:g}; {_AN_IMAGE} (labels are ≥ 0)"
        )
    labels = values.astype(np.int16 if high <= np.iinfo(np.int16).max else np.int32, copy=False)
    count = _kinds(labels)
    if count > MOST_LABELS:
        raise ValueError(f"{place}: {count} different values; {_AN_IMAGE}")
    return labels, bool(notes), notes


def _share(near: np.ndarray, values: np.ndarray) -> float:
    """Share of the voxels that aren't about 0 which are near a whole number."""
    used = np.abs(values) > NEAR_WHOLE
    return int(np.count_nonzero(near & used)) / max(int(np.count_nonzero(used)), 1)


def _overshoots(values: np.ndarray, low: float, high: float) -> bool:
    """Whether negative values are a cubic's: few, small, and of a mask's few kinds."""
    negative, used = np.count_nonzero(values < 0), np.count_nonzero(values)
    return (
        -low < DEEPEST * high
        and bool(negative <= MOST_NEGATIVE * used)
        and _kinds(values) <= MOST_KINDS
    )


def _kinds(values: np.ndarray) -> int:
    """How many different whole numbers there are."""
    if values.size == 0:
        return 0
    low, high = int(values.min()), int(values.max())
    if high - low > 1 << 20:
        return len(np.unique(values))
    seen = np.zeros(high - low + 1, bool)
    for part in np.array_split(
        values.ravel(order="K"), values.size // (1 << 22) + 1
    ):  # wide integers of a part at a time
        seen[part.astype(np.int64) - low] = True
    return int(seen.sum())
