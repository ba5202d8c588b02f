"""Are the numbers of a CT HU, and can density be read from them? Windows, wrong slopes, metal,
cement.

    window   a pile of voxels at the least or the greatest value, with as thick a tail under it: the
             image went through a viewer's window, and what lay beyond is lost. Air (−1024 and
             below) and the top of a scanner's scale (from 2300 HU) are no window.
    scale    soft tissue 4-30 mm round the vertebrae has its most frequent HU between −20 and 110
             (muscle 20-70, with contrast agent more) or, in fat with muscle beside it, between −130
             and −60; the air round the patient between −1050 and −945. Their distance gives the
             slope: 1045 HU.
    metal    from 2300 HU within 25 mm of the vertebrae: bone stays below 2000 even with sharp
             kernels. Streaks reach further than the metal: what lies within 5 mm of it says nothing
             of bone. So do 1300 HU in a lump that no cortex is: cement or sclerosis. Between the
             treated bodies 1300 HU are an implant or cement, which stops.

None of these figures is the patient's; all are wide [M].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, label

from engine.patient.bone.calibration import ENHANCED_BLOOD_HU
from engine.patient.labels.understand import Labels
from engine.patient.read.image import Image, around, on_grid
from engine.types import Finding, rigid

#: Share of the voxels at one end of the scale that is a window's.
PILE = 5e-4
SOFT_HU, FAT_HU, AIR_HU = (-20.0, 110.0), (-130.0, -60.0), (-1050.0, -945.0)
#: Distance from air to soft tissue on a scanner's scale, and which slope (a scan's distance over
#: that) is still one.
AIR_TO_SOFT_HU, SLOPE = 1045.0, (0.90, 1.12)
#: Where less than this share of what lies round the vertebrae is muscle, there is fat alone.
_MUSCLE_HU, _LEAST_MUSCLE = (0.0, 90.0), 0.10
#: More than this share of the bone below this is a scale that wrapped round.
_WRAPPED_HU, _MOST_WRAPPED = -300.0, 0.02
#: Fewer voxels round the vertebrae say nothing of the scale.
_LEAST_SHELL = 2000
METAL_HU, CEMENT_HU = 2300.0, 1300.0
#: Cement is what holds a ball of this radius: no cortex of 1300 HU does.
CEMENT_RADIUS_MM = 2.2
#: Objects of less are noise, mm³.
LEAST_METAL_MM3, LEAST_CEMENT_MM3 = 20.0, 60.0
#: Streaks: nothing is read within this of metal or cement.
STREAK_MM = 5.0
#: Metal farther from the vertebrae is not looked for.
_NEAR_MM = 25.0
_REMEDY = (
    "give the scan as the scanner stored it, or leave the calibration out (density is then assumed)"
)


@dataclass(frozen=True)
class Metal:
    """Metal and cement near the vertebrae, on the scan's grid.

    excluded [i, j, k] bool   voxels that say nothing of bone: the objects and STREAK_MM about them
    objects [i, j, k] int     number of the object, 0 elsewhere
    about                     one dict per object: number, kind, volume_mm3, length_mm, diameter_mm,
                              ends_mm [2, 3] LPS, levels
    """

    excluded: np.ndarray
    objects: np.ndarray
    about: tuple[dict[str, Any], ...]


def scale_findings(scan: Image, labels: Labels, density: bool) -> list[Finding]:
    """Findings "hu" of a CT: windowed, or on another scale than HU. They stop where `density` is
    asked for, else they warn.

    What could be checked in part only is a warning "scale"; contrast agent in the aorta a warning
    "contrast".
    """
    severity = "stop" if density else "warning"
    bone = scan.values[on_grid(_labelled(labels), scan) > 0]
    shell = _shell(scan, labels)
    if len(shell) < _LEAST_SHELL:
        text = "too little lies round the vertebrae to check the scale of the HU"
        return _windows(scan.values, bone, severity) or [Finding("scale", "warning", "", text)]
    soft, air = _soft_hu(shell), _air_hu(scan)
    fault = _scale_fault(bone, shell, soft, air)
    # a wrong scale has its floor elsewhere: one cause, said once
    result = [Finding("hu", severity, "", fault)] if fault else []
    result = result or _windows(scan.values, bone, severity) or _unsure(shell, soft, air)
    if (blood := _blood_hu(scan, labels)) is not None and blood > ENHANCED_BLOOD_HU:
        text = (
            f"contrast agent: the aorta has {blood:.0f} HU (30-60 without). It raises the HU of"
            " bone too, so that bone's density reads too high by an unknown amount; blood is no"
            " reference for a calibration"
        )
        return [*result, Finding("contrast", "warning", "", text)]
    if not result:
        what = f"soft tissue round the vertebrae {soft:.0f} HU, air {air:.0f} HU"
        result.append(Finding("hu", "note", "", f"the scan's values are HU: {what}"))
    return result


def _scale_fault(bone: np.ndarray, shell: np.ndarray, soft: float, air: float | None) -> str | None:
    """What shows that values are no HU (module docstring), of the bone's HU [n], those round the
    bones [m], and the HU of soft tissue and air; None where nothing does."""
    muscle = float(np.mean((shell > _MUSCLE_HU[0]) & (shell < _MUSCLE_HU[1])))
    wrapped = float(np.mean(bone < _WRAPPED_HU))
    if wrapped > _MOST_WRAPPED:
        return (
            f"{100 * wrapped:.0f} % of the labelled bone has less than −300 HU: the values are no"
            f" HU, or wrapped round: {_REMEDY}"
        )
    if not (SOFT_HU[0] <= soft <= SOFT_HU[1] or FAT_HU[0] <= soft <= FAT_HU[1]):
        return (
            f"the soft tissue round the vertebrae has {soft:.0f} HU; muscle has 20-70, fat about"
            " −100: the values are not HU (an offset left out, a slope applied twice, grey values"
            f" of a viewer): {_REMEDY}"
        )
    if soft < SOFT_HU[0] and muscle < _LEAST_MUSCLE:
        return (
            f"round the vertebrae is {soft:.0f} HU and next to nothing of muscle's 20-70"
            f" ({100 * muscle:.0f} %): the values are not HU, or there is fat alone, by which the"
            f" scale cannot be told: {_REMEDY}"
        )
    if air is None:
        return None
    slope = (soft - air) / AIR_TO_SOFT_HU
    if not AIR_HU[0] <= air <= AIR_HU[1]:
        return (
            f"the air round the patient has {air:.0f} HU, and air has −1000; soft tissue"
            f" {soft:.0f}: slope or offset of the HU are wrong (by this {slope:.2f}"
            f" of a scanner's): {_REMEDY}"
        )
    if soft >= SOFT_HU[0] and not SLOPE[0] <= slope <= SLOPE[1]:
        return (
            f"from air ({air:.0f} HU) to soft tissue ({soft:.0f} HU) the scale is"
            f" {slope:.2f} of a scanner's: {_REMEDY}"
        )
    return None


def _unsure(shell: np.ndarray, soft: float, air: float | None) -> list[Finding]:
    """Warnings "scale" where the scale of the HU could be checked in part only."""
    result = []
    exact, count = np.unique(shell, return_counts=True)
    blank, share = float(exact[np.argmax(count)]), float(count.max()) / len(shell)
    if share > 0.5 and (blank == 0.0 or blank <= -900.0):
        text = (
            f"{100 * share:.0f} % of what lies round the vertebrae is blank (exactly {blank:.0f}"
            " HU): the bone was cut out, and its edges and density are read some 10 % wrong"
        )
        result.append(Finding("scale", "warning", "", text))
    if air is None:
        text = (
            "no air lies round the patient, so that the slope of the HU is not checked; soft"
            f" tissue round the vertebrae has {soft:.0f} HU"
        )
        result.append(Finding("scale", "warning", "", text))
    if 85.0 < soft:
        text = (
            f"soft tissue round the vertebrae has {soft:.0f} HU, muscle 20-70: contrast agent, or"
            " an offset of the HU"
        )
        result.append(Finding("scale", "warning", "", text))
    return result


def _blood_hu(scan: Image, labels: Labels) -> float | None:
    """Median HU in the middle of the aorta; None where it is not labelled, or only in a few
    voxels."""
    aorta = labels.tissue("aorta")
    if aorta is None:
        return None
    inner = Image(
        binary_erosion(aorta).astype(np.uint8), labels.image.lps_from_index, "SEG", (), {}
    )
    inside = on_grid(inner, scan) > 0
    return float(np.median(scan.values[inside])) if inside.sum() >= 50 else None


def _windows(values: np.ndarray, bone: np.ndarray, severity: str) -> list[Finding]:
    """Piles at either end of the scale; at the upper end bone's own voxels [n] count, as it is
    bone that is cut off."""
    result = []
    low, high = values.min(), values.max()
    of_bone = float(np.mean(bone == high)) if bone.size else 0.0
    # what a window cut off would have gone on: under its pile the tail is as thick. An object of
    # one value (metal after artefact reduction, a marker) stands alone.
    top = float(np.mean(values == high))
    tail = float(np.mean((values < high) & (values >= high - max(100.0, 0.1 * abs(float(high))))))
    for end, value, share, inside in (
        ("below", low, float(np.mean(values == low)), low > AIR_HU[1]),
        ("above", high, max(top, 0.25 * of_bone), high < METAL_HU and tail > 0.1 * top),
    ):
        if inside and share > PILE:
            text = (
                f"{100 * share:.2g} % of the scan has exactly {value:.0f} HU and nothing lies"
                f" {end}: it went through a window (a viewer's export) or is on another scale, and"
                f" what lay {end} is lost; bone's density cannot be read from it: {_REMEDY}"
            )
            result.append(Finding("hu", severity, "", text))
    return result


def _labelled(labels: Labels, more: tuple[str, ...] = ()) -> Image:
    """1 where a vertebra or the sacrum is labelled, or a tissue whose name begins with one of
    `more`."""
    numbers = [*labels.scheme.vertebrae.values(), *labels.scheme.sacrum]
    numbers += (
        [n for name, group in labels.scheme.tissues.items() if name.startswith(more) for n in group]
        if more
        else []
    )
    image = labels.image
    return Image(
        np.isin(image.values, numbers).astype(np.uint8), image.lps_from_index, "SEG", (), {}
    )


def _shell(scan: Image, labels: Labels) -> np.ndarray:
    """HU of all that lies 4-30 mm from the labelled bones."""
    part, bone = _bones(scan, labels, 32.0)
    away = distance_transform_edt(~bone, sampling=scan.voxel_mm)
    return np.asarray(part.values[(away > 4.0) & (away < 30.0)], float)


def _soft_hu(shell: np.ndarray) -> float:
    """The most frequent HU of tissue (−400 to 3000); of everything, where hardly any of it is
    tissue."""
    tissue = shell[(shell > -400.0) & (shell < 3000.0)]
    return _mode(tissue if len(tissue) > 0.3 * len(shell) else shell, 10.0)


def _air_hu(scan: Image) -> float | None:
    """The most frequent HU of the air round the patient: what is light and touches the image's
    sides (not its ends along the spine).

    Without what fills the corners of the image. None where less than 2 % of the scan is that.
    """
    stride = np.maximum(np.rint(3.0 / scan.voxel_mm).astype(int), 1)
    thin = np.asarray(scan.values[:: stride[0], :: stride[1], :: stride[2]], float)
    objects, _ = label(thin < -250.0)
    along = int(np.argmax(np.abs(scan.lps_from_index[2, :3]) / scan.voxel_mm))
    sides = [
        np.take(objects, end, axis=axis) for axis in range(3) if axis != along for end in (0, -1)
    ]
    outside = np.setdiff1d(np.unique(np.concatenate([side.ravel() for side in sides])), [0])
    light = thin[np.isin(objects, outside)]
    if light.size == 0:
        return None
    exact, count = np.unique(light, return_counts=True)
    filled = exact[(count > 0.02 * thin.size) & ((exact <= -1024.0) | (exact == exact.min()))]
    light = light[~np.isin(light, filled)]
    return _mode(light, 20.0) if light.size > 0.02 * thin.size else None


def _mode(values: np.ndarray, width: float) -> float:
    edges = np.arange(values.min() - width, values.max() + 2.0 * width, width)
    count = np.convolve(np.histogram(values, edges)[0], np.ones(3) / 3.0, "same")
    return float(edges[int(np.argmax(count))] + 0.5 * width)


def _bones(scan: Image, labels: Labels, margin_mm: float) -> tuple[Image, np.ndarray]:
    """The scan about the vertebrae that are read, and where on its grid bones are labelled."""
    corners = [piece.corners_mm() for level, piece in labels.pieces.items() if level != "S1"]
    cut = around(scan, np.concatenate(corners), margin_mm)
    bones = _labelled(labels, ("hip", "rib", "femur"))
    return cut, on_grid(bones, cut) > 0


def metal_near_bones(scan: Image, labels: Labels) -> tuple[Metal | None, list[Finding]]:
    """Metal and cement in and beside the vertebrae (module docstring), and the findings "metal";
    None where there is none."""
    values, voxel = scan.values, scan.voxel_mm
    if not (values >= CEMENT_HU).any():
        return None, []
    bone = on_grid(_labelled(labels), scan) > 0
    size = float(np.prod(voxel))
    away = distance_transform_edt(~bone, sampling=voxel)
    bright = (values >= METAL_HU) & (away < _NEAR_MM)
    # a voxel's share of metal is bright too: what touches and is denser than any bone belongs to it
    bright = (
        binary_dilation(bright, np.ones((3, 3, 3)), mask=values >= CEMENT_HU, iterations=3)
        if bright.any()
        else bright
    )
    dense = (values >= CEMENT_HU) & bone & ~bright
    if dense.any():
        # a cortex of that is thin: what holds a ball of 2.2 mm is none
        seeds = distance_transform_edt(dense, sampling=voxel) >= CEMENT_RADIUS_MM
        dense = seeds
        if seeds.any():
            grown = (values >= 0.7 * CEMENT_HU) & bone & ~bright
            dense = binary_dilation(seeds, np.ones((3, 3, 3)), mask=grown, iterations=5)
    objects = np.zeros(values.shape, np.int16)
    about: list[dict[str, Any]] = []
    for kind, mask, least in (
        ("metal", bright, LEAST_METAL_MM3),
        ("cement or sclerosis", dense, LEAST_CEMENT_MM3),
    ):
        found, count = label(mask, np.ones((3, 3, 3)))
        for number in range(1, count + 1):
            here = found == number
            if here.sum() * size >= least:
                objects[here] = len(about) + 1
                about.append(_described(len(about) + 1, kind, here, scan, labels))
    if not about:
        return None, []
    reach = distance_transform_edt(objects == 0, sampling=voxel)
    excluded = reach <= STREAK_MM
    findings = []
    for one in about:
        at = f" in {', '.join(one['levels'])}" if one["levels"] else " beside the vertebrae"
        text = (
            f"{one['kind']}{at}: {one['volume_mm3'] / 1e3:.2g} cm³, {one['length_mm']:.0f} mm long,"
            f" about {one['diameter_mm']:.1f} mm thick; it and {STREAK_MM:g} mm about it are left"
            " out of the density, and it is kept as existing hardware (hardware.json,"
            " patient/structures)"
        )
        x, y, z = np.mean(one["ends_mm"], axis=0)
        findings.append(
            Finding(
                "metal",
                "warning",
                one["levels"][0] if one["levels"] else "",
                text,
                (float(x), float(y), float(z)),
            )
        )
    return Metal(excluded, objects, tuple(about)), findings


def disc_metal_findings(scan: Image, labels: Labels, segment: tuple[str, str]) -> list[Finding]:
    """A stop "metal" where CEMENT_HU and more lie between the bodies of the treated segment, in
    no bone: an implant, or cement."""
    if not set(segment) <= set(labels.pieces):
        return []
    upper, lower = (labels.pieces[level].body_mm for level in segment)
    index = np.argwhere(scan.values >= CEMENT_HU)
    points = rigid(scan.lps_from_index, index.astype(float))
    line = lower - upper
    along = (points - upper) @ line / (line @ line)
    away = np.linalg.norm(points - upper - along[:, None] * line, axis=1)
    between = (along > 0.2) & (along < 0.8) & (away < 20.0)
    if not between.any():
        return []
    bone = distance_transform_edt(on_grid(_labelled(labels), scan) == 0, sampling=scan.voxel_mm)
    # a voxel of bone's own edge lies just outside of its label
    free = points[between][bone[tuple(index[between].T)] > max(1.5, float(scan.voxel_mm.max()))]
    volume = len(free) * float(np.prod(scan.voxel_mm))
    if volume < LEAST_METAL_MM3:
        return []
    text = (
        f"{volume:.0f} mm³ between the bodies of {'-'.join(segment)} have {CEMENT_HU:.0f} HU and"
        " more, in no bone: the disc holds an implant or cement already; choose another segment,"
        " or go on with source.accept=[metal]"
    )
    x, y, z = free.mean(axis=0)
    return [Finding("metal", "stop", "", text, (float(x), float(y), float(z)))]


def _described(
    number: int, kind: str, mask: np.ndarray, scan: Image, labels: Labels
) -> dict[str, Any]:
    """What an object is like: a cylinder of its length and volume, and the levels in which it
    lies."""
    points = rigid(scan.lps_from_index, np.argwhere(mask).astype(float))
    volume = len(points) * float(np.prod(scan.voxel_mm))
    centre = points.mean(axis=0)
    axis = (
        np.linalg.svd(points - centre, full_matrices=False)[2][0]
        if len(points) > 2
        else np.array([0.0, 0.0, 1.0])
    )
    along = (points - centre) @ axis
    length = float(np.ptp(along)) + float(scan.voxel_mm.min())
    levels = []
    for level, piece in labels.pieces.items():
        index = np.rint(rigid(np.linalg.inv(piece.lps_from_index), points)).astype(int)
        there = ((index >= 0) & (index < piece.mask.shape)).all(axis=1)
        if there.any() and piece.mask[tuple(index[there].T)].mean() * there.mean() > 0.1:
            levels.append(level)
    return {
        "number": number,
        "kind": kind,
        "volume_mm3": round(volume, 1),
        "length_mm": round(length, 1),
        "diameter_mm": round(float(np.sqrt(4.0 * volume / (np.pi * length))), 2),
        "ends_mm": [
            (centre + end * axis).round(2).tolist()
            for end in (float(along.min()), float(along.max()))
        ],
        "levels": levels,
    }
