"""The collection's scans under labels: places, axes, HU that are none, metal, figures typed by
hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.evidence.collection.base import LINE, Base, case, read, refused
from scripts.evidence.collection.labels import TS2
from scripts.evidence.scan.cases import Case


def places(base: Base) -> list[Case]:
    """Labels that lie beside their scan; axes that are turned, exchanged, mirrored or missing."""

    def moved(x: float, y: float, z: float, *more: str):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            affine = base.values[1].copy()
            affine[:3, 3] += [-x, -y, z]  # RAS for LPS
            return base.scan(
                base.ct, *more, mask=base.write(base.values[0], place / "l.nii.gz", affine)
            )

        return make

    def mirrored_labels(place: Path) -> list[str]:
        return base.scan(
            base.ct, mask=base.write(base.values[0][:, ::-1].copy(), place / "l.nii.gz")
        )

    def turned(matrix: np.ndarray, *more: str):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            full = np.eye(4)
            full[:3, :3] = matrix
            return base.mask(
                base.write(base.values[0], place / "l.nii.gz", full @ base.values[1]), *more
            )

        return make

    def about_z(degrees: float) -> np.ndarray:
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])

    def mirrored(place: Path) -> list[str]:
        """A liver on the left, as in an image whose first axis was reversed without its affine."""
        values = base.numbered(TS2)
        at = np.rint(np.argwhere(base.values[0] == 20).mean(axis=0)).astype(int)
        left = -1 if base.values[1][0, 0] > 0 else 1  # RAS x grows to the right
        centre = at + [left * 58, 0, 0]
        values[tuple(slice(max(c - 20, 0), c + 20) for c in centre)] = 5
        return base.mask(base.write(values, place / "l.nii.gz"))

    def no_form(ras: bool):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            image = (
                nib.as_closest_canonical(nib.Nifti1Image(*base.values))
                if ras
                else nib.Nifti1Image(*base.values)
            )
            bare = nib.Nifti1Image(np.asarray(image.dataobj), None)
            bare.header.set_zooms(np.linalg.norm(base.values[1][:3, :3], axis=0))
            bare.header["qform_code"] = bare.header["sform_code"] = 0
            nib.save(bare, place / "l.nii.gz")
            return base.mask(place / "l.nii.gz")

        return make

    exchanged = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])
    return [
        case(
            "place",
            "CT as it is",
            read(said="labels lie on the scan", density=True),
            lambda place: base.scan(base.ct),
        ),
        case(
            "place",
            "labels 10 mm to the left",
            refused("displaced.*source.shift_mm=\\[-10,0,0\\]"),
            moved(10, 0, 0),
        ),
        case(
            "place",
            "labels 8 mm down",
            refused("displaced.*source.shift_mm=\\[0,0,8\\]"),
            moved(0, 0, -8),
        ),
        case("place", "labels 2 m away", refused("0 % of the voxels labelled"), moved(2000, 0, 0)),
        case("place", "labels a level up", refused("displaced.*moved by"), moved(0, 0, 36)),
        case(
            "place",
            "labels 10 mm off, moved back",
            read(said="moved by"),
            moved(10, 0, 0, "source.shift_mm=[-10,0,0]"),
        ),
        case(
            "place",
            "labels 0.6 mm off",
            read(said="labels lie on the scan", density=True),
            moved(0.6, 0, 0),
        ),
        case(
            "place",
            "labels mirrored front to back",
            refused("displaced|flipped|lie in front|scan that the labels"),
            mirrored_labels,
        ),
        case(
            "axes", "turned by 90° to one side", refused("turned.*long axis"), turned(about_z(90))
        ),
        case(
            "axes", "turned by 90° to the other", refused("turned.*long axis"), turned(about_z(-90))
        ),
        case(
            "axes",
            "turned by 90°, accepted",
            read(said="turned"),
            turned(about_z(90), "source.accept=[turned]"),
        ),
        case("axes", "turned by 180°", refused("flipped"), turned(about_z(180))),
        case("axes", "turned by 20°", read(), turned(about_z(20))),
        case(
            "axes",
            "exchanged",
            refused("runs along the image's|along the image's left-right axis"),
            turned(exchanged),
        ),
        case(
            "axes",
            "upside down",
            refused("from the foot to the head|upside down"),
            turned(np.diag([1, -1, -1.0])),
        ),
        case("axes", "mirrored, with a liver", refused("mirrored.*liver lies"), mirrored),
        case(
            "axes",
            "none stored, voxels as NIfTI's default",
            read(said="no orientation is stored"),
            no_form(True),
        ),
        case("axes", "none stored, voxels otherwise", refused("flipped|turned"), no_form(False)),
    ]


def numbers(base: Base) -> list[Case]:
    """HU that are none, metal, contrast agent; calibration rods and femoral heads typed wrong;
    plans."""

    def hu(change, *more: str):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            values = np.rint(change(base.hu.copy())).astype(np.int16)
            return base.scan(base.write(values, place / "ct.nii.gz"), *more)

        return make

    def grid() -> np.ndarray:
        """LPS mm of every voxel."""
        index = np.stack(np.meshgrid(*map(np.arange, base.hu.shape), indexing="ij"), -1).astype(
            np.float32
        )
        affine = base.values[1]
        return np.asarray(
            (index @ affine[:3, :3].T.astype(np.float32) + affine[:3, 3].astype(np.float32))
            * [-1, -1, 1]
        )

    def screws(values: np.ndarray) -> np.ndarray:
        points, labels = grid(), base.values[0]
        for number in (23, 24):
            own = points[labels == number]
            body = own[own[:, 1] < np.quantile(own[:, 1], 0.45)].mean(axis=0)
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

    def cement(values: np.ndarray) -> np.ndarray:
        points, labels = grid(), base.values[0]
        own = points[labels == 24]
        body = own[own[:, 1] < np.quantile(own[:, 1], 0.45)].mean(axis=0)
        filled = np.linalg.norm(points - body, axis=-1) < 8
        values[filled] = 1900 + np.random.default_rng(0).normal(0.0, 80.0, filled.sum())
        return values

    def contrast(place: Path) -> list[str]:
        values, labels = base.hu.copy(), base.numbered(TS2)
        aorta, points = base.truth["aorta"], grid()
        line = np.asarray(aorta["line_mm"], float)
        order = np.argsort(line[:, 2])
        x, y = (np.interp(points[..., 2], line[order, 2], line[order, axis]) for axis in (0, 1))
        inside = np.hypot(points[..., 0] - x, points[..., 1] - y) < aorta["radius_mm"] - 1.0
        inside &= (points[..., 2] > line[:, 2].min()) & (points[..., 2] < line[:, 2].max())
        labels[inside & (labels == 0)] = 52
        values[labels == 52] = 240
        ct = base.write(np.rint(values).astype(np.int16), place / "ct.nii.gz")
        mask = base.write(labels, place / "l.nii.gz")
        return base.scan(ct, mask=mask)

    def rods(change):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            texts = []
            for k, rod in enumerate(base.truth["rods"]):
                (x, y, low), (_, _, high) = rod["axis_mm"]
                x, y, mg = change(x, y, 1e3 * rod["density_g_cm3"])
                texts.append(
                    f"{{name:r{k},centre_lps_mm:[{x:.2f},{y:.2f},{(low + high) / 2:.2f}],"
                    f"radius_mm:{0.8 * rod['radius_mm']:.2f},length_mm:40,density_mg_cm3:{mg:.1f}}}"
                )
            told = [part for part in base.scan(base.ct) if part not in LINE]
            return [*told, "calibration=phantom", f"calibration.rods=[{','.join(texts)}]"]

        return make

    def heads(change):  # type: ignore[no-untyped-def]
        def make(place: Path) -> list[str]:
            points = change(np.asarray(base.truth["heads"], float) + 0.0)
            text = ",".join("[" + ",".join(f"{c:.2f}" for c in p) + "]" for p in points)
            return [
                "source=mask",
                f"source.path={base.labels}",
                "plan=keep",
                f"alignment.femoral_heads_mm=[{text}]",
            ]

        return make

    def lumbar(*more: str):  # type: ignore[no-untyped-def]
        return lambda place: ["source=mask", f"source.path={base.labels}", *more]

    densities = [0.0, 50.0, 100.0, 150.0, 200.0]
    return [
        case(
            "HU",
            "through an abdominal window",
            refused("exactly 240 HU"),
            hu(lambda v: np.clip(v, -160, 240)),
        ),
        case(
            "HU",
            "through a bone window",
            refused("exactly -450 HU"),
            hu(lambda v: np.clip(v, -450, 1050)),
        ),
        case(
            "HU",
            "stored with +1024",
            refused("soft tissue.*has 10|no value of this image is negative"),
            hu(lambda v: v + 1024),
        ),
        case(
            "HU", "half of them", refused("lightest tissue|of a scanner's"), hu(lambda v: 0.5 * v)
        ),
        case("HU", "twice", refused("not HU|lightest tissue|of a scanner's"), hu(lambda v: 2 * v)),
        case(
            "HU",
            "grey values 0-255",
            refused("window|not HU|negative"),
            hu(lambda v: np.clip((v + 160) / 400 * 255, 0, 255)),
        ),
        case("HU", "screws in L4 and L5", read(said="metal in L", density=True), hu(screws)),
        case(
            "HU", "cement in L5", read(said="cement or sclerosis in L5", density=True), hu(cement)
        ),
        case(
            "HU",
            "contrast agent in the aorta",
            read(said="contrast agent: the aorta has 2"),
            contrast,
        ),
        case("by hand", "rods as they are", read(density=True), rods(lambda x, y, mg: (x, y, mg))),
        case(
            "by hand",
            "rods in RAS",
            refused("other sign|outside the image|not uniform|do not lie on a line"),
            rods(lambda x, y, mg: (-x, -y, mg)),
        ),
        case(
            "by hand",
            "rods' densities reversed",
            refused("reverse order"),
            rods(lambda x, y, mg: (x, y, densities[4 - densities.index(round(mg))])),
        ),
        case("by hand", "femoral heads as they are", read(), heads(lambda h: h)),
        case(
            "by hand",
            "femoral heads in RAS",
            read(said="RAS, as 3D Slicer shows them"),
            heads(lambda h: h * [-1, -1, 1]),
        ),
        case("by hand", "femoral heads in cm", refused("centimetres"), heads(lambda h: 0.1 * h)),
        case(
            "by hand",
            "both heads on one side",
            refused("not a left and a right|apart"),
            heads(lambda h: np.stack([h[0], h[0] + [20, 0, 0]])),
        ),
        case(
            "by hand",
            "PI of 12°",
            refused("no pelvic incidence|pelvic tilt of -"),
            lumbar("plan=keep", "alignment.pi_deg=12"),
        ),
        case(
            "by hand",
            "PI of 28°",
            read(said="pelvic tilt of -1"),
            lumbar("plan=keep", "alignment.pi_deg=28"),
        ),
        case("by hand", "PI of 52°", read(), lumbar("plan=keep", "alignment.pi_deg=52")),
        case(
            "by hand",
            "planned lordosis with a turned sign",
            refused("with the other sign"),
            lumbar("plan=explicit", "plan.lordosis_deg=-12"),
        ),
        case(
            "by hand",
            "planned height of 2 cm",
            refused("is a change of"),
            lumbar("plan=explicit", "plan.height_middle_mm=22", "segment=L1-L2"),
        ),
    ]
