"""Slices of a DICOM series put together to stacks of parallel planes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from engine.patient.read.dicom.headers import STACK_TAGS, TEXT_TAGS, Folder, Private, Slice
from engine.patient.read.dicom.seg import SPACING_TOLERANCE

#: A slice may lie SPACING_TOLERANCE of the slice distance off the regular grid (positions are often
#: rounded to 0.1 mm), and this share of a pixel within its plane.
PLANE_TOLERANCE = 0.25
#: Slices of one stack agree to this in their direction cosines.
SAME_DIRECTION = 5e-3


# -- series ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Parallel slices of one series and size."""

    slices: list[Slice]
    notes: tuple[str, ...] = ()

    def tag(self, name: str) -> str:
        return str(self.slices[0].settings[name] or "")

    def line(self, private: Private) -> str:
        """Modality, description, slices, size and spacing, for the list of series."""
        first = self.slices[0]
        height = np.sort(heights_mm(self.slices))
        spacing = float(np.median(np.diff(height))) if len(height) > 1 else 0.0
        pixel = " x ".join(f"{v:.3g}" for v in (*first.pixel_mm[::-1], spacing))
        size = f"{first.size[1]} x {first.size[0]}"
        name = private.shown(self.tag("SeriesDescription")) or "(no description)"
        serial = (
            f", series number {private.shown(self.tag('SeriesNumber'))}"
            if self.tag("SeriesNumber")
            else ""
        )
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
    slices are left out."""
    series: dict[tuple[str, ...], list[Slice]] = {}
    own, apart = _uid_for_each(folder.slices)
    for item in folder.slices:
        s = item.settings
        uid = "" if s["SeriesInstanceUID"] in own else s["SeriesInstanceUID"]
        key: tuple[str, ...] = (uid, s["Modality"])
        if not uid:
            names = (
                "StudyInstanceUID",
                "FrameOfReferenceUID",
                "SeriesNumber",
                "SeriesDescription",
                *TEXT_TAGS,
                "SliceThickness",
                "KVP",
            )
            key = (
                "",
                s["Modality"],
                *(str(s[name]) for name in names if name not in apart),
                item.tags["ImageType"],
            )
        series.setdefault(key, []).append(item)
    stacks = []
    why = "every slice has a SeriesInstanceUID of its own" if own else "no SeriesInstanceUID"
    for key, members in series.items():
        for part in (part for parallel in _parallel(members) for part in _apart(parallel)):
            line = f"{why}: {len(part)} slices grouped by modality, settings, size and direction"
            stacks.append(Stack(part, () if key[0] else (line,)))
    several = [s for s in stacks if len(s.slices) > 1]
    singles = len(stacks) - len(several)
    if singles:
        folder.skipped["single image (no parallel slice beside it)"] += singles
    if not several:
        held = "; ".join(folder.skipped_lines()) or "nothing else"
        what = (
            "a single slice; give the folder with the whole series"
            if singles
            else "no CT or MR slices"
        )
        raise ValueError(f"{folder.place} holds {what} ({held})")
    return sorted(
        several,
        key=lambda s: (
            s.tag("SeriesNumber").zfill(8),
            s.tag("SeriesInstanceUID"),
            s.slices[0].file,
        ),
    )


def _uid_for_each(slices: list[Slice]) -> tuple[set[str], set[str]]:
    """SeriesInstanceUIDs that an anonymiser gave to one slice each, where most slices have such a
    one; and what else it did so.

    Series of one slice beside real ones (localizers) are left as they are.
    """
    counts = Counter(s.settings["SeriesInstanceUID"] for s in slices)
    own = {uid for uid, count in counts.items() if uid and count == 1}
    if len(own) < 3 or 2 * len(own) <= len(slices):
        return set(), set()
    single = [s for s in slices if s.settings["SeriesInstanceUID"] in own]
    keys = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber")
    return own, {key for key in keys if len({s.settings[key] for s in single}) == len(single)}


def _parallel(slices: list[Slice]) -> list[list[Slice]]:
    """Parted by size, pixel spacing and direction."""
    out: list[list[Slice]] = []
    for item in slices:
        for group in out:
            first = group[0]
            if (
                item.size == first.size
                and np.allclose(item.axes, first.axes, atol=SAME_DIRECTION)
                and np.allclose(item.pixel_mm, first.pixel_mm, rtol=1e-3)
            ):
                group.append(item)
                break
        else:
            out.append([item])
    return out


def same_place(heights: np.ndarray) -> np.ndarray:
    """For sorted heights: whether each slice lies in the place of the one before."""
    steps = np.diff(heights)
    larger = steps[steps > 0.01]
    return steps <= max(0.01, 0.02 * float(np.median(larger)) if larger.size else 0.01)


def _apart(slices: list[Slice]) -> list[list[Slice]]:
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
    listing = "; ".join(
        f"{n}: {stack.line(folder.private)}" for n, stack in enumerate(stacks, start=1)
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
    found = (
        by_number
        or [s for s in stacks if s.tag("SeriesInstanceUID") == wanted]
        or [s for s in stacks if s.tag("SeriesNumber") == wanted]
        or [s for s in stacks if wanted.lower() in s.tag("SeriesDescription").lower()]
    )
    if len(found) != 1:
        uid = any(s.tag("SeriesInstanceUID") == wanted for s in stacks)
        given = wanted if uid else folder.private.shown(wanted)
        raise ValueError(
            f"source.series={given} fits {len(found) or 'none'} of the {len(stacks)} series in"
            f" {folder.place}; give the number of one of {listing}"
        )
    chosen = next(n for n, s in enumerate(stacks, start=1) if s is found[0])
    return found[0], [*found[0].notes, f"series {chosen} of {len(stacks)} in the folder"]


def check_hu(slices: list[Slice], folder: Folder) -> list[str]:
    for item in slices:
        if item.rescale is None:
            raise ValueError(
                f"{folder.place}: {folder.name(item.file)} is a CT slice without RescaleSlope and"
                " RescaleIntercept, so its HU are unknown; export the original series"
            )
        if item.rescale_type not in ("", "HU", "US", "HU_MOD"):
            kind = folder.private.shown(item.rescale_type)
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
    SVD)."""
    mean = np.mean([s.axes for s in slices], axis=0)
    off = float(np.abs(mean @ mean.T - np.eye(2)).max())
    if off > 0.05:
        raise ValueError(
            f"{folder.place}: ImageOrientationPatient is not orthonormal (by {off:.2g}, at most"
            " 0.05); export it again"
        )
    u, _, vt = np.linalg.svd(mean, full_matrices=False)
    axes = u @ vt
    return axes, (
        [f"ImageOrientationPatient was not orthonormal (by {off:.1e}); the nearest axes are used"]
        if off > 1e-4
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
