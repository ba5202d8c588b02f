"""Slices of a DICOM series put together to stacks of parallel planes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from engine.patient.read.dicom.headers import Folder
from engine.patient.read.dicom.privacy import Redaction
from engine.patient.read.dicom.seg import SPACING_TOLERANCE
from engine.patient.read.dicom.slices import STACK_TAGS, TEXT_TAGS, Slice

#: A slice may lie SPACING_TOLERANCE of the slice distance off the regular grid (positions are often
#: rounded to 0.1 mm), and this share of a pixel within its plane.
PLANE_TOLERANCE = 0.25
#: Slices of one stack agree to this in their direction cosines.
SAME_DIRECTION = 5e-3
#: Their pixel spacings agree to this share.
_SAME_SPACING = 1e-3
#: Slices nearer to each other than this, or than this share of the usual step, lie in one place.
_SAME_PLACE_MM, _SAME_PLACE_SHARE = 0.01, 0.02
#: From so many series of one slice each on they are taken for one whose UIDs an anonymiser made.
_LEAST_SINGLES = 3
#: Row and column directions may be this far off orthonormal (greatest element of X·Xᵀ − 1); a note
#: says so from the second.
_LARGEST_SKEW, _NOTED_SKEW = 0.05, 1e-4
#: RescaleType of values that are HU, or that say nothing against it.
_HU_TYPES = ("", "HU", "US", "HU_MOD")
#: What tells series without a SeriesInstanceUID apart.
_SERIES_SETTINGS = (
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "SeriesDescription",
    *TEXT_TAGS,
    "SliceThickness",
    "KVP",
)


@dataclass(frozen=True)
class Stack:
    """Parallel slices of one series and size."""

    slices: list[Slice]
    notes: tuple[str, ...] = ()

    def tag(self, name: str) -> str:
        """A setting of the first slice as text."""
        return str(self.slices[0].settings[name] or "")

    def line(self, redaction: Redaction) -> str:
        """Modality, description, slices, size and spacing, for the list of series."""
        first = self.slices[0]
        height = np.sort(heights_mm(self.slices))
        spacing = float(np.median(np.diff(height))) if len(height) > 1 else 0.0
        pixel = " x ".join(f"{v:.3g}" for v in (*first.pixel_mm[::-1], spacing))
        size = f"{first.size[1]} x {first.size[0]}"
        name = redaction.redacted(self.tag("SeriesDescription")) or "(no description)"
        number = redaction.redacted(self.tag("SeriesNumber"))
        serial = f", series number {number}" if number else ""
        uid = self.tag("SeriesInstanceUID")
        return (
            f"{self.tag('Modality')} {name}, {len(self.slices)} slices {size}, {pixel} mm{serial},"
            f" {uid or 'no UID'}"
        )


def heights_mm(slices: list[Slice]) -> np.ndarray:
    """Position of each slice along the normal, mm."""
    axes = np.mean([s.axes for s in slices], axis=0)
    normal = np.cross(axes[0], axes[1])
    normal /= np.linalg.norm(normal)
    return np.array([s.position @ normal for s in slices])


def stacks_of(folder: Folder) -> list[Stack]:
    """The slices grouped into stacks of one series, size and direction, in a fixed order. Single
    slices are left out, and counted in `folder.skipped`.

    Raises: ValueError where no two slices are parallel.
    """
    series: dict[tuple[str, ...], list[Slice]] = {}
    own_uids, own_keys = _uid_for_each(folder.slices)
    for item in folder.slices:
        series.setdefault(_series_key(item, own_uids, own_keys), []).append(item)
    stacks = []
    why = "every slice has a SeriesInstanceUID of its own" if own_uids else "no SeriesInstanceUID"
    for key, members in series.items():
        for part in (part for parallel in _parallel(members) for part in _parted(parallel)):
            line = f"{why}: {len(part)} slices grouped by modality, settings, size and direction"
            stacks.append(Stack(part, () if key[0] else (line,)))
    several = [s for s in stacks if len(s.slices) > 1]
    singles = len(stacks) - len(several)
    if singles:
        folder.skipped["single image (no parallel slice beside it)"] += singles
    if not several:
        others = "; ".join(folder.skipped_lines()) or "nothing else"
        what = (
            "a single slice; give the folder with the whole series"
            if singles
            else "no CT or MR slices"
        )
        raise ValueError(f"{folder.place} holds {what} ({others})")
    return sorted(
        several,
        key=lambda s: (
            s.tag("SeriesNumber").zfill(8),
            s.tag("SeriesInstanceUID"),
            s.slices[0].file,
        ),
    )


def _series_key(item: Slice, own_uids: set[str], own_keys: set[str]) -> tuple[str, ...]:
    """What slices of one series share: SeriesInstanceUID (first) and modality; without a UID of
    use, their settings. own_uids, own_keys: see `_uid_for_each`."""
    settings = item.settings
    uid = settings["SeriesInstanceUID"]
    if uid and uid not in own_uids:
        return uid, settings["Modality"]
    return (
        "",
        settings["Modality"],
        *(str(settings[name]) for name in _SERIES_SETTINGS if name not in own_keys),
        item.tags["ImageType"],
    )


def _uid_for_each(slices: list[Slice]) -> tuple[set[str], set[str]]:
    """SeriesInstanceUIDs that an anonymiser gave to one slice each, where most slices have one of
    these; and the other identifiers that it made anew for each slice.

    Series of one slice beside real ones (localizers) are left as they are.
    """
    counts = Counter(s.settings["SeriesInstanceUID"] for s in slices)
    own = {uid for uid, count in counts.items() if uid and count == 1}
    if len(own) < _LEAST_SINGLES or 2 * len(own) <= len(slices):
        return set(), set()
    single = [s for s in slices if s.settings["SeriesInstanceUID"] in own]
    keys = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber")
    return own, {key for key in keys if len({s.settings[key] for s in single}) == len(single)}


def _parallel(slices: list[Slice]) -> list[list[Slice]]:
    """The slices parted by size, pixel spacing and direction."""
    out: list[list[Slice]] = []
    for item in slices:
        for group in out:
            first = group[0]
            if (
                item.size == first.size
                and np.allclose(item.axes, first.axes, atol=SAME_DIRECTION)
                and np.allclose(item.pixel_mm, first.pixel_mm, rtol=_SAME_SPACING)
            ):
                group.append(item)
                break
        else:
            out.append([item])
    return out


def same_place(heights: np.ndarray) -> np.ndarray:
    """For sorted heights: whether each slice lies in the place of the one before."""
    steps = np.diff(heights)
    larger = steps[steps > _SAME_PLACE_MM]
    share = _SAME_PLACE_SHARE * float(np.median(larger)) if larger.size else _SAME_PLACE_MM
    return steps <= max(_SAME_PLACE_MM, share)


def _parted(slices: list[Slice]) -> list[list[Slice]]:
    """Echoes, phases and the like parted, where slices lie in one place and one tag tells them
    apart throughout."""
    if not same_place(np.sort(heights_mm(slices))).any():
        return [slices]
    for tag in STACK_TAGS:
        groups: dict[str, list[Slice]] = {}
        for item in slices:
            groups.setdefault(item.tags[tag], []).append(item)
        parts = list(groups.values())
        if len(parts) > 1 and all(
            len(p) > 1 and not same_place(np.sort(heights_mm(p))).any() for p in parts
        ):
            return parts
    return [slices]


def chosen_stack(
    stacks: list[Stack], series: str | None, folder: Folder
) -> tuple[Stack, list[str]]:
    """The stack that `source.series` names, and its notes.

    series   number in the listing, SeriesInstanceUID, SeriesNumber, or a part of the description

    Raises: ValueError with the listing, where none is named of several, or not exactly one fits.
    """
    listing = "; ".join(
        f"{n}: {stack.line(folder.redaction)}" for n, stack in enumerate(stacks, start=1)
    )
    wanted = "" if series is None else str(series).strip()
    if not wanted:
        if len(stacks) == 1:
            return stacks[0], list(stacks[0].notes)
        raise ValueError(
            f"{folder.place} holds {len(stacks)} series; set source.series=NUMBER (or its"
            f" SeriesInstanceUID, SeriesNumber or a part of its description) to one of {listing}"
        )
    by_number = (
        [stacks[int(wanted) - 1]] if wanted.isdecimal() and 1 <= int(wanted) <= len(stacks) else []
    )
    fitting = (
        by_number
        or [s for s in stacks if s.tag("SeriesInstanceUID") == wanted]
        or [s for s in stacks if s.tag("SeriesNumber") == wanted]
        or [s for s in stacks if wanted.lower() in s.tag("SeriesDescription").lower()]
    )
    if len(fitting) != 1:
        uid = any(s.tag("SeriesInstanceUID") == wanted for s in stacks)
        given = wanted if uid else folder.redaction.redacted(wanted)
        raise ValueError(
            f"source.series={given} fits {len(fitting) or 'none'} of the {len(stacks)} series in"
            f" {folder.place}; give the number of one of {listing}"
        )
    (chosen,) = fitting
    number = next(n for n, s in enumerate(stacks, start=1) if s is chosen)
    return chosen, [*chosen.notes, f"series {number} of {len(stacks)} in the folder"]


def check_hu(slices: list[Slice], folder: Folder) -> list[str]:
    """A note where it is not said that CT values are HU. Raises ValueError where they can't be."""
    for item in slices:
        if item.rescale is None:
            raise ValueError(
                f"{folder.place}: {folder.name(item.file)} is a CT slice without RescaleSlope and"
                " RescaleIntercept, so its HU are unknown; export the original series"
            )
        if item.rescale_type not in _HU_TYPES:
            kind = folder.redaction.redacted(item.rescale_type)
            raise ValueError(
                f"{folder.place}: RescaleType {kind} of {folder.name(item.file)} is not HU; choose"
                " a series in HU"
            )
    unspecified = sum(s.rescale_type == "US" for s in slices)
    return (
        [f"RescaleType of {unspecified} slices is unspecified (US); taken as HU"]
        if unspecified
        else []
    )


def slice_axes(slices: list[Slice], folder: Folder) -> tuple[np.ndarray, list[str]]:
    """Row and column directions [2, 3] of the stack: their mean, made orthonormal (nearest, by
    SVD), with a note where that changes them. Raises ValueError where it changes them by much."""
    mean = np.mean([s.axes for s in slices], axis=0)
    off = float(np.abs(mean @ mean.T - np.eye(2)).max())
    if off > _LARGEST_SKEW:
        raise ValueError(
            f"{folder.place}: ImageOrientationPatient is not orthonormal (by {off:.2g}, at most"
            " 0.05); export it again"
        )
    u, _, vt = np.linalg.svd(mean, full_matrices=False)
    axes = u @ vt
    return axes, (
        [f"ImageOrientationPatient was not orthonormal (by {off:.1e}); the nearest axes are used"]
        if off > _NOTED_SKEW
        else []
    )


def list_mm(places: list[float]) -> str:
    """The first places along the normal, for a message."""
    return (
        "at "
        + ", ".join(f"{p:.2f}" for p in places[:8])
        + (", …" if len(places) > 8 else "")
        + " mm along the slice normal"
    )


def affine_of(slices: list[Slice], axes: np.ndarray, folder: Folder) -> np.ndarray:
    """Index → LPS [4, 4] of sorted slices. Raises for missing slices, unequal spacing and stacks
    that aren't straight."""
    normal = np.cross(axes[0], axes[1])
    positions = np.array([s.position for s in slices])
    heights = positions @ normal
    steps = np.diff(heights)
    spacing = float(np.median(steps))
    ratio = steps / spacing
    gaps = np.rint(ratio)
    missing = [
        float(heights[n] + (m + 1) * steps[n] / gaps[n])
        for n in np.flatnonzero((gaps > 1) & (np.abs(ratio - gaps) <= 2 * SPACING_TOLERANCE))
        for m in range(int(gaps[n]) - 1)
    ]
    if missing and np.all(np.abs(ratio - np.maximum(gaps, 1)) <= 2 * SPACING_TOLERANCE):
        raise ValueError(
            f"{folder.place}: {len(missing)} of {len(slices) + len(missing)} slices are missing,"
            f" {list_mm(missing)} ({spacing:.4g} mm apart); copy the whole series"
        )
    n = np.arange(len(slices), dtype=float)
    fit = np.polynomial.polynomial.polyfit(n, positions, 1)  # [start, step] x LPS
    off = positions - (fit[0] + n[:, None] * fit[1])
    across = float(np.abs(off @ normal).max())
    within = float(np.abs(off @ axes.T).max())
    limit = PLANE_TOLERANCE * float(slices[0].pixel_mm.min())
    if across > SPACING_TOLERANCE * abs(float(fit[1] @ normal)):
        raise ValueError(
            f"{folder.place}: unequal slice spacing, {steps.min():.4g} to {steps.max():.4g} mm;"
            f" slices lie up to {across:.3g} mm off a regular grid, at most {SPACING_TOLERANCE:.0%}"
            " of the spacing is allowed; give one with equal spacing"
        )
    if within > limit:
        raise ValueError(
            f"{folder.place}: slices are shifted by up to {within:.3g} mm within their plane (at"
            f" most {limit:.3g} mm, a quarter of a pixel), so they make no straight stack; give one"
            " acquisition"
        )
    matrix = np.eye(4)
    matrix[:3, 0] = axes[0] * slices[0].pixel_mm[1]
    matrix[:3, 1] = axes[1] * slices[0].pixel_mm[0]
    matrix[:3, 2] = fit[1]
    matrix[:3, 3] = fit[0]
    return matrix
