"""Are the numbers of a CT HU, and can density be read from them? Windows, wrong slopes, metal, cement.

    window   a pile of voxels at the least or the greatest value: the image went through a viewer's window, and what lay beyond is
             lost. Air (−1024 and below) and the top of a scanner's scale (from 2300 HU) are no window.
    scale    soft tissue 4-30 mm round the vertebrae has its most frequent HU between −20 and 110 (muscle 20-70, with contrast agent
             more) or, in fat, between −130 and −60; air, the lightest thing in a scan, between −1050 and −930. Their distance gives
             the slope, where both are there: 1045 HU.
    metal    from 2300 HU within 25 mm of the vertebrae: bone stays below 2000 even with sharp kernels. Streaks reach further than the
             metal: what lies within 5 mm of it says nothing of bone. So do 1300 HU in the depth of a body: cement or sclerosis.

None of these figures is the patient's; all are wide [M].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, label

from engine.patient.calibration import ENHANCED_BLOOD_HU
from engine.patient.images import Image, on_grid
from engine.patient.labels import Labels
from engine.types import Finding, rigid

#: Share of the voxels at one end of the scale that is a window's.
PILE = 5e-4
SOFT_HU, FAT_HU, AIR_HU = (-20.0, 110.0), (-130.0, -60.0), (-1050.0, -930.0)
#: Slope of the scale, from air to soft tissue, that is still one.
SLOPE = (0.90, 1.12)
METAL_HU, CEMENT_HU = 2300.0, 1300.0
#: Objects of less are noise, mm³.
LEAST_METAL_MM3, LEAST_CEMENT_MM3 = 20.0, 60.0
#: Streaks: nothing is read within this of metal or cement.
STREAK_MM = 5.0
_NEAR_MM = 25.0


@dataclass(frozen=True)
class Metal:
    """Metal and cement near the vertebrae, on the scan's grid.

    excluded [i, j, k] bool   voxels that say nothing of bone: the objects and STREAK_MM about them
    objects [i, j, k] int     number of the object, 0 elsewhere
    about                     one dict per object: number, kind, volume_mm3, length_mm, diameter_mm, ends_mm [2, 3] LPS, levels
    """

    excluded: np.ndarray
    objects: np.ndarray
    about: tuple[dict[str, Any], ...]


def scale_findings(scan: Image, labels: Labels, density: bool) -> list[Finding]:
    """Findings "hu" of a CT: windowed, or on another scale than HU. They stop where `density` is asked for, else they warn.

    Raises: nothing; a scan of which too little surrounds the vertebrae gives fewer checks, and a note.
    """
    severity = "stop" if density else "warning"
    result: list[Finding] = []
    remedy = "give the scan as the scanner stored it, or leave the calibration out (density is then assumed)"
    values = scan.values
    soft = _soft_hu(scan, labels)
    air = _air_hu(values)
    if soft is None:
        result = _windows(scan, labels, severity, remedy)
        return result or [Finding("hu", "note", "", "too little soft tissue lies round the vertebrae to check the scale of the HU")]
    slope = None if air is None else (soft - air) / 1045.0
    if not (SOFT_HU[0] <= soft <= SOFT_HU[1] or FAT_HU[0] <= soft <= FAT_HU[1]):
        text = (
            f"the soft tissue round the vertebrae has {soft:.0f} HU; muscle has 20-70, fat about −100: the values are not HU (an "
            f"offset left out, a slope applied twice, grey values of a viewer): {remedy}"
        )
        result.append(Finding("hu", severity, "", text))
    elif air is not None and not AIR_HU[0] <= air <= AIR_HU[1]:
        text = (
            f"the lightest tissue in the scan has {air:.0f} HU, and air has −1000; soft tissue {soft:.0f}: slope or offset of the HU are "
            f"wrong (by this {1.0 if slope is None else slope:.2f} of a scanner's): {remedy}"
        )
        result.append(Finding("hu", severity, "", text))
    elif slope is not None and not SLOPE[0] <= slope <= SLOPE[1] and SOFT_HU[0] <= soft:
        text = f"from air ({air:.0f} HU) to soft tissue ({soft:.0f} HU) the scale is {slope:.2f} of a scanner's: {remedy}"
        result.append(Finding("hu", severity, "", text))
    elif soft < SOFT_HU[0] and not _muscle_there(scan, labels):
        text = (
            f"round the vertebrae is {soft:.0f} HU and next to nothing of muscle's 20-70: either there is fat alone, or the values "
            "are not HU; the density is as right as they are"
        )
        result.append(Finding("hu", "warning", "", text))
    # a wrong scale has its floor elsewhere: one cause, said once
    result = result or _windows(scan, labels, severity, remedy)
    if (blood := _blood_hu(scan, labels)) is not None and blood > ENHANCED_BLOOD_HU:
        text = (
            f"contrast agent: the aorta has {blood:.0f} HU (30-60 without). It raises the HU of bone too, so that bone's density reads "
            "too high by an unknown amount; blood is no reference for a calibration"
        )
        return [*result, Finding("contrast", "warning", "", text)]
    if not result:
        what = f"soft tissue round the vertebrae {soft:.0f} HU" + ("" if air is None else f", air {air:.0f} HU")
        result.append(Finding("hu", "note", "", f"the scan's values are HU: {what}"))
    return result


def _blood_hu(scan: Image, labels: Labels) -> float | None:
    """Median HU in the middle of the aorta; None where it is not labelled, or only in a few voxels."""
    aorta = labels.tissue("aorta")
    if aorta is None:
        return None
    inner = Image(binary_erosion(aorta).astype(np.uint8), labels.image.lps_from_index, "SEG", (), {})
    inside = on_grid(inner, scan) > 0
    return float(np.median(scan.values[inside])) if inside.sum() >= 50 else None


def _windows(scan: Image, labels: Labels, severity: str, remedy: str) -> list[Finding]:
    """Piles at either end of the scale; at the upper end bone's own voxels count, as it is bone that is cut off."""
    result = []
    values = scan.values
    low, high = values.min(), values.max()
    bone = on_grid(_labelled(labels), scan) > 0
    of_bone = float(np.mean(values[bone] == high)) if bone.any() else 0.0
    # what a window cut off would have gone on: under its pile the tail is as thick. An object of one value (metal after artefact
    # reduction, a marker) stands alone.
    top = float(np.mean(values == high))
    tail = float(np.mean((values < high) & (values >= high - max(100.0, 0.1 * abs(float(high))))))
    for end, value, share, inside in (
        ("below", low, float(np.mean(values == low)), low > AIR_HU[1]),
        ("above", high, max(top, 0.25 * of_bone), high < METAL_HU and tail > 0.1 * top),
    ):
        if inside and share > PILE:
            text = (
                f"{100 * share:.2g} % of the scan has exactly {value:.0f} HU and nothing lies {end}: it went through a window "
                f"(a viewer's export) or is on another scale, and what lay {end} is lost; bone's density cannot be read from it: {remedy}"
            )
            result.append(Finding("hu", severity, "", text))
    return result


def _labelled(labels: Labels, more: tuple[str, ...] = ()) -> Image:
    """1 where a vertebra or the sacrum is labelled, or a tissue whose name begins with one of `more`."""
    numbers = [*labels.scheme.vertebrae.values(), *labels.scheme.sacrum]
    numbers += [n for name, group in labels.scheme.tissues.items() if name.startswith(more) for n in group] if more else []
    image = labels.image
    return Image(np.isin(image.values, numbers).astype(np.uint8), image.lps_from_index, "SEG", (), {})


def _soft_hu(scan: Image, labels: Labels) -> float | None:
    """The most frequent HU 4-30 mm from the labelled bones, unlabelled voxels only; None for fewer than 2000."""
    part, bone = _bones(scan, labels, 32.0)
    away = distance_transform_edt(~bone, sampling=scan.voxel_mm)
    values = part.values[(away > 4.0) & (away < 30.0)]
    tissue = values[(values > -400.0) & (values < 3000.0)]
    if len(values) >= 2000 and len(tissue) < 0.1 * len(values):
        tissue = values  # no tissue at all: what is there is told as it is
    return None if len(tissue) < 2000 else _mode(tissue, 10.0)


def _muscle_there(scan: Image, labels: Labels) -> bool:
    """Whether a twentieth of what lies 4-30 mm from the bones has muscle's HU."""
    part, bone = _bones(scan, labels, 32.0)
    away = distance_transform_edt(~bone, sampling=scan.voxel_mm)
    values = part.values[(away > 4.0) & (away < 30.0)]
    return float(np.mean((values > 0.0) & (values < SOFT_HU[1]))) > 0.05


def _air_hu(values: np.ndarray) -> float | None:
    """The lowest frequent HU, without what fills the corners of the image; None where nothing is lighter than fat."""
    thin = np.asarray(values[::2, ::2, ::2], float).ravel()
    light = thin[thin < -250.0]
    exact, count = np.unique(light, return_counts=True)
    filled = exact[(count > 0.02 * thin.size) & ((exact <= -1024.0) | (exact == exact.min()))] if exact.size else exact
    light = light[~np.isin(light, filled)]
    if light.size < 0.03 * thin.size:
        return None
    found = _mode(light, 20.0)
    # lung, and air blurred by large voxels, are no scale
    return None if -930.0 < found < -600.0 else found


def _mode(values: np.ndarray, width: float) -> float:
    edges = np.arange(values.min() - width, values.max() + 2.0 * width, width)
    count = np.convolve(np.histogram(values, edges)[0], np.ones(3) / 3.0, "same")
    return float(edges[int(np.argmax(count))] + 0.5 * width)


def _bones(scan: Image, labels: Labels, margin_mm: float) -> tuple[Image, np.ndarray]:
    """The scan about the vertebrae that are read, and where on its grid bones are labelled."""
    corners = []
    for level, piece in labels.pieces.items():
        if level != "S1":
            size = np.array(piece.mask.shape, float) - 1.0
            box = np.stack(np.meshgrid(*[(0.0, s) for s in size], indexing="ij"), -1).reshape(-1, 3)
            corners.append(rigid(piece.lps_from_index, box))
    index = rigid(np.linalg.inv(scan.lps_from_index), np.concatenate(corners))
    pad, shape = margin_mm / scan.voxel_mm, np.array(scan.values.shape)
    low = np.clip(np.floor(index.min(axis=0) - pad), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(index.max(axis=0) + pad) + 1, low + 1, shape).astype(int)
    matrix = scan.lps_from_index.copy()
    matrix[:3, 3] = rigid(matrix, low.astype(float))
    part = scan.values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    cut = Image(part, matrix, scan.modality, scan.notes, scan.source)
    bones = _labelled(labels, ("hip", "rib", "femur"))
    return cut, on_grid(bones, cut) > 0


def metal(scan: Image, labels: Labels) -> tuple[Metal | None, list[Finding]]:
    """Metal and cement in and beside the vertebrae (module docstring), and the findings "metal"; None where there is none."""
    values, voxel = scan.values, scan.voxel_mm
    if not (values >= CEMENT_HU).any():
        return None, []
    bone = on_grid(_labelled(labels), scan) > 0
    size = float(np.prod(voxel))
    away = distance_transform_edt(~bone, sampling=voxel)
    deep = distance_transform_edt(bone, sampling=voxel) > 4.0
    bright = (values >= METAL_HU) & (away < _NEAR_MM)
    # a voxel's share of metal is bright too: what touches and is denser than any bone belongs to it
    bright = binary_dilation(bright, np.ones((3, 3, 3)), mask=values >= CEMENT_HU, iterations=3) if bright.any() else bright
    dense = binary_erosion((values >= CEMENT_HU) & deep & ~bright) if deep.any() else np.zeros_like(bright)
    if dense.any():
        dense = binary_dilation(dense, np.ones((3, 3, 3)), mask=(values >= 0.7 * CEMENT_HU) & bone & ~bright, iterations=3)
    objects = np.zeros(values.shape, np.int16)
    about: list[dict[str, Any]] = []
    for kind, mask, least in (("metal", bright, LEAST_METAL_MM3), ("cement or sclerosis", dense, LEAST_CEMENT_MM3)):
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
            f"{one['kind']}{at}: {one['volume_mm3'] / 1e3:.2g} cm³, {one['length_mm']:.0f} mm long, about {one['diameter_mm']:.1f} mm "
            f"thick; it and {STREAK_MM:g} mm about it are left out of the density, and it is kept as existing hardware "
            "(hardware.json, patient/structures)"
        )
        x, y, z = np.mean(one["ends_mm"], axis=0)
        findings.append(Finding("metal", "warning", one["levels"][0] if one["levels"] else "", text, (float(x), float(y), float(z))))
    return Metal(excluded, objects, tuple(about)), findings


def _described(number: int, kind: str, mask: np.ndarray, scan: Image, labels: Labels) -> dict[str, Any]:
    """What an object is like: a cylinder of its length and volume, and the levels in which it lies."""
    points = rigid(scan.lps_from_index, np.argwhere(mask).astype(float))
    volume = len(points) * float(np.prod(scan.voxel_mm))
    centre = points.mean(axis=0)
    axis = np.linalg.svd(points - centre, full_matrices=False)[2][0] if len(points) > 2 else np.array([0.0, 0.0, 1.0])
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
        "ends_mm": [(centre + end * axis).round(2).tolist() for end in (float(along.min()), float(along.max()))],
        "levels": levels,
    }
