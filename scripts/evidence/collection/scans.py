"""The collection's scans under labels: places, axes, HU that are none, metal, figures typed by
hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.evidence.collection.base import (
    LINE,
    Base,
    Input,
    Recipe,
    mask,
    read,
    refused,
    segment_mask,
)
from scripts.evidence.collection.labels import TS2


# -- labels beside their scan ----------------------------------------------------------------------
def _as_it_is(base: Base, place: Path) -> list[str]:
    return base.scan(base.ct)


def _moved(x_mm: float, y_mm: float, z_mm: float, *more: str) -> Recipe:
    """Labels moved beside their scan, LPS."""

    def make(base: Base, place: Path) -> list[str]:
        affine = base.values[1].copy()
        affine[:3, 3] += [-x_mm, -y_mm, z_mm]  # RAS for LPS
        moved = base.write(base.values[0], place / "l.nii.gz", affine)
        return base.scan(base.ct, *more, mask=moved)

    return make


def _mirrored_labels(base: Base, place: Path) -> list[str]:
    return base.scan(base.ct, mask=base.write(base.values[0][:, ::-1].copy(), place / "l.nii.gz"))


_ON_THE_SCAN = read(note="labels lie on the scan", density=True)
#: Labels that lie beside their scan.
PLACE = (
    Input("CT as it is", _ON_THE_SCAN, _as_it_is),
    Input(
        "labels 10 mm to the left",
        refused("displaced.*source.shift_mm=\\[-10,0,0\\]"),
        _moved(10, 0, 0),
    ),
    Input("labels 8 mm down", refused("displaced.*source.shift_mm=\\[0,0,8\\]"), _moved(0, 0, -8)),
    Input("labels 2 m away", refused("0 % of the voxels labelled"), _moved(2000, 0, 0)),
    Input("labels a level up", refused("displaced.*moved by"), _moved(0, 0, 36)),
    Input(
        "labels 10 mm off, moved back",
        read(note="moved by"),
        _moved(10, 0, 0, "source.shift_mm=[-10,0,0]"),
    ),
    Input("labels 0.6 mm off", _ON_THE_SCAN, _moved(0.6, 0, 0)),
    Input(
        "labels mirrored front to back",
        refused("displaced|flipped|lie in front|scan that the labels"),
        _mirrored_labels,
    ),
)


# -- axes ------------------------------------------------------------------------------------------
def _turned(matrix: np.ndarray, *more: str) -> Recipe:
    """The patient turned in the image by a matrix [3, 3], RAS."""

    def make(base: Base, place: Path) -> list[str]:
        full = np.eye(4)
        full[:3, :3] = matrix
        turned = base.write(base.values[0], place / "l.nii.gz", full @ base.values[1])
        return segment_mask(turned, *more)

    return make


def _about_z(angle_deg: float) -> np.ndarray:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _mirrored_with_liver(base: Base, place: Path) -> list[str]:
    """A liver on the left, as in an image whose first axis was reversed without its affine."""
    values = base.numbered(TS2)
    at = np.rint(np.argwhere(base.values[0] == 20).mean(axis=0)).astype(int)
    left = -1 if base.values[1][0, 0] > 0 else 1  # RAS x grows to the right
    centre = at + [left * 58, 0, 0]
    values[tuple(slice(max(c - 20, 0), c + 20) for c in centre)] = 5
    return segment_mask(base.write(values, place / "l.nii.gz"))


def _without_orientation(ras: bool) -> Recipe:
    """A NIfTI that stores no orientation; its voxels along R, A, S, or as the scan's."""

    def make(base: Base, place: Path) -> list[str]:
        image = nib.Nifti1Image(*base.values)
        if ras:
            image = nib.as_closest_canonical(image)
        bare = nib.Nifti1Image(np.asarray(image.dataobj), None)
        bare.header.set_zooms(np.linalg.norm(base.values[1][:3, :3], axis=0))
        bare.header["qform_code"] = bare.header["sform_code"] = 0
        nib.save(bare, place / "l.nii.gz")
        return segment_mask(place / "l.nii.gz")

    return make


_EXCHANGED = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])
_UPSIDE_DOWN = np.diag([1, -1, -1.0])
#: Axes that are turned, exchanged, mirrored or missing.
AXES = (
    Input("turned by 90° to one side", refused("turned.*long axis"), _turned(_about_z(90))),
    Input("turned by 90° to the other", refused("turned.*long axis"), _turned(_about_z(-90))),
    Input(
        "turned by 90°, accepted",
        read(note="turned"),
        _turned(_about_z(90), "source.accept=[turned]"),
    ),
    Input("turned by 180°", refused("flipped"), _turned(_about_z(180))),
    Input("turned by 20°", read(), _turned(_about_z(20))),
    Input(
        "exchanged",
        refused("runs along the image's|along the image's left-right axis"),
        _turned(_EXCHANGED),
    ),
    Input("upside down", refused("from the foot to the head|upside down"), _turned(_UPSIDE_DOWN)),
    Input("mirrored, with a liver", refused("mirrored.*liver lies"), _mirrored_with_liver),
    Input(
        "none stored, voxels as NIfTI's default",
        read(note="no orientation is stored"),
        _without_orientation(True),
    ),
    Input("none stored, voxels otherwise", refused("flipped|turned"), _without_orientation(False)),
)


# -- HU --------------------------------------------------------------------------------------------
def _hu(change: Callable[[np.ndarray], np.ndarray]) -> Recipe:
    """The scan with other values of its voxels."""

    def make(base: Base, place: Path) -> list[str]:
        values = np.rint(change(base.hu.copy())).astype(np.int16)
        return base.scan(base.write(values, place / "ct.nii.gz"))

    return make


def _in_bone(change: Callable[[Base, np.ndarray], np.ndarray]) -> Recipe:
    """The scan with something in its vertebrae: change(base, HU) → HU."""
    return lambda base, place: _hu(lambda values: change(base, values))(base, place)


def _points_mm(base: Base) -> np.ndarray:
    """LPS mm [x, y, z, 3] of every voxel."""
    axes = map(np.arange, base.hu.shape)
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    affine = base.values[1]
    return np.asarray(
        (index @ affine[:3, :3].T.astype(np.float32) + affine[:3, 3].astype(np.float32))
        * [-1, -1, 1]
    )


def _body_centre_mm(points_mm: np.ndarray) -> np.ndarray:
    """The middle of a vertebra's front 45 %, which is in its body."""
    return np.asarray(points_mm[points_mm[:, 1] < np.quantile(points_mm[:, 1], 0.45)].mean(axis=0))


def _screws(base: Base, values: np.ndarray) -> np.ndarray:
    """Two pedicle screws of 6 mm in each of L4 and L5, saturated, each in a dark halo of 14 mm."""
    points, labels = _points_mm(base), base.values[0]
    for number in (23, 24):
        body = _body_centre_mm(points[labels == number])
        for side in (-1, 1):
            start, end = body + [side * 16, 45, 2], body + [side * 7, -6, 2]
            axis = (end - start) / np.linalg.norm(end - start)
            along = (points - start) @ axis
            away = np.linalg.norm(points - start - along[..., None] * axis, axis=-1)
            there = (along > 0) & (along < np.linalg.norm(end - start))
            near = there & (away > 3) & (away < 7)
            values[near] -= 150 * (1 - (away[near] - 3) / 4)
            values[there & (away < 3)] = 3071
    return values


def _cement(base: Base, values: np.ndarray) -> np.ndarray:
    """A ball of cement of 16 mm in L5."""
    points, labels = _points_mm(base), base.values[0]
    body = _body_centre_mm(points[labels == 24])
    filled = np.linalg.norm(points - body, axis=-1) < 8
    values[filled] = 1900 + np.random.default_rng(0).normal(0.0, 80.0, filled.sum())
    return values


def _contrast(base: Base, place: Path) -> list[str]:
    """The aorta at 240 HU, and labelled (TotalSegmentator's 52)."""
    values, labels = base.hu.copy(), base.numbered(TS2)
    aorta, points = base.truth["aorta"], _points_mm(base)
    line = np.asarray(aorta["line_mm"], float)
    order = np.argsort(line[:, 2])
    x, y = (np.interp(points[..., 2], line[order, 2], line[order, axis]) for axis in (0, 1))
    inside = np.hypot(points[..., 0] - x, points[..., 1] - y) < aorta["radius_mm"] - 1.0
    inside &= (points[..., 2] > line[:, 2].min()) & (points[..., 2] < line[:, 2].max())
    labels[inside & (labels == 0)] = 52
    values[labels == 52] = 240
    ct = base.write(np.rint(values).astype(np.int16), place / "ct.nii.gz")
    return base.scan(ct, mask=base.write(labels, place / "l.nii.gz"))


#: HU that are none, metal, cement, contrast agent.
HU = (
    Input(
        "through an abdominal window",
        refused("exactly 240 HU"),
        _hu(lambda v: np.clip(v, -160, 240)),
    ),
    Input(
        "through a bone window",
        refused("exactly -450 HU"),
        _hu(lambda v: np.clip(v, -450, 1050)),
    ),
    Input(
        "stored with +1024",
        refused("soft tissue.*has 10|no value of this image is negative"),
        _hu(lambda v: v + 1024),
    ),
    Input("half of them", refused("lightest tissue|of a scanner's"), _hu(lambda v: 0.5 * v)),
    Input("twice", refused("not HU|lightest tissue|of a scanner's"), _hu(lambda v: 2 * v)),
    Input(
        "grey values 0-255",
        refused("window|not HU|negative"),
        _hu(lambda v: np.clip((v + 160) / 400 * 255, 0, 255)),
    ),
    Input("screws in L4 and L5", read(note="metal in L", density=True), _in_bone(_screws)),
    Input("cement in L5", read(note="cement or sclerosis in L5", density=True), _in_bone(_cement)),
    Input("contrast agent in the aorta", read(note="contrast agent: the aorta has 2"), _contrast),
)


# -- figures typed by hand -------------------------------------------------------------------------
def _rods(change: Callable[[float, float, float], tuple[float, float, float]]) -> Recipe:
    """Calibration rods typed in: change(x, y in mm, density in mg/cm³) → what is typed."""

    def make(base: Base, place: Path) -> list[str]:
        texts = []
        for k, rod in enumerate(base.truth["rods"]):
            (x, y, low), (_, _, high) = rod["axis_mm"]
            x, y, mg = change(x, y, 1e3 * rod["density_g_cm3"])
            texts.append(
                f"{{name:r{k},centre_lps_mm:[{x:.2f},{y:.2f},{(low + high) / 2:.2f}],"
                f"radius_mm:{0.8 * rod['radius_mm']:.2f},length_mm:40,density_mg_cm3:{mg:.1f}}}"
            )
        words = [word for word in base.scan(base.ct) if word not in LINE]
        return [*words, "calibration=phantom", f"calibration.rods=[{','.join(texts)}]"]

    return make


#: Densities of the phantom's rods, mg/cm³.
_DENSITIES = [0.0, 50.0, 100.0, 150.0, 200.0]


def _reversed_density(density_mg_cm3: float) -> float:
    return _DENSITIES[4 - _DENSITIES.index(round(density_mg_cm3))]


def _heads(change: Callable[[np.ndarray], np.ndarray]) -> Recipe:
    """Centres of the femoral heads [2, 3] (LPS mm) typed in."""

    def make(base: Base, place: Path) -> list[str]:
        points = change(np.asarray(base.truth["heads"], float) + 0.0)
        text = ",".join("[" + ",".join(f"{c:.2f}" for c in p) + "]" for p in points)
        return mask(base.labels, f"alignment.femoral_heads_mm=[{text}]")

    return make


def _planned(*more: str) -> Recipe:
    """The good labels with a plan."""
    return lambda base, place: ["source=mask", f"source.path={base.labels}", *more]


#: Calibration rods and femoral heads typed wrong; plans.
BY_HAND = (
    Input("rods as they are", read(density=True), _rods(lambda x, y, mg: (x, y, mg))),
    Input(
        "rods in RAS",
        refused("other sign|outside the image|not uniform|do not lie on a line"),
        _rods(lambda x, y, mg: (-x, -y, mg)),
    ),
    Input(
        "rods' densities reversed",
        refused("reverse order"),
        _rods(lambda x, y, mg: (x, y, _reversed_density(mg))),
    ),
    Input("femoral heads as they are", read(), _heads(lambda h: h)),
    Input(
        "femoral heads in RAS",
        read(note="RAS, as 3D Slicer shows them"),
        _heads(lambda h: h * [-1, -1, 1]),
    ),
    Input("femoral heads in cm", refused("centimetres"), _heads(lambda h: 0.1 * h)),
    Input(
        "both heads on one side",
        refused("not a left and a right|apart"),
        _heads(lambda h: np.stack([h[0], h[0] + [20, 0, 0]])),
    ),
    Input(
        "PI of 12°",
        refused("no pelvic incidence|pelvic tilt of -"),
        _planned("plan=keep", "alignment.pi_deg=12"),
    ),
    Input(
        "PI of 28°",
        read(note="pelvic tilt of -1"),
        _planned("plan=keep", "alignment.pi_deg=28"),
    ),
    Input("PI of 52°", read(), _planned("plan=keep", "alignment.pi_deg=52")),
    Input(
        "planned lordosis with a turned sign",
        refused("with the other sign"),
        _planned("plan=explicit", "plan.lordosis_deg=-12"),
    ),
    Input(
        "planned height of 2 cm",
        refused("is a change of"),
        _planned("plan=explicit", "plan.height_middle_mm=22", "segment=L1-L2"),
    ),
)
