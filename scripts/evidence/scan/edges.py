"""Edges of a CT's masks placed by HU, and not, against the phantom's exact surfaces and
alignment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from engine.patient.geometry.distance import polydata, surface_sdf, volume_mm3
from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom, lumbar_truth
from engine.patient.phantoms.scan_files import write_nifti
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.image import Image
from engine.patient.read.surface_files import read_surface
from scripts.console.markdown import table
from scripts.evidence.scan.cases import Case, CaseResult, CaseSetConfig, failures
from scripts.evidence.scan.truth import GROUPS, heads_override, spines


def edge_cases(config: CaseSetConfig) -> list[Case]:
    """The same labels with their CT, as they are and with edges off by 0.8 mm rms; edges placed
    by HU, and not."""
    by_name = {name: spines()[name] for name in ("normal", "scoliosis, slip, axial")}
    sizes = ((1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (2.0, 2.0, 2.0), (1.0, 1.0, 3.0), (3.0, 3.0, 3.0))
    kinds = [("normal", voxel_mm, 0.0) for voxel_mm in sizes]
    kinds += [
        ("normal", sizes[1], 0.8),
        ("normal", sizes[3], 0.8),
        ("scoliosis, slip, axial", sizes[1], 0.0),
    ]
    cases = []
    for name, voxel_mm, off_mm in kinds:
        across, along = voxel_mm[0], voxel_mm[2]
        size = f"{across:g} mm" if across == along else f"{across:g} × {along:g} mm"
        row = f"{name}, {size}{', edges off' if off_mm else ''}"
        scan = ScanSpec(voxel_mm=voxel_mm, extent="spine", noise_hu=15.0)
        for refine in (False, True):
            make = partial(_scanned, by_name[name], scan, off_mm, refine)
            facts = {"spine": by_name[name], "row": row, "refine": refine}
            cases.append(Case(f"{row}, {'edges by HU' if refine else 'mask'}", make, facts))
    return cases


def _scanned(
    spine: LumbarSpec, scan: ScanSpec, off_mm: float, refine: bool, place: Path
) -> list[str]:
    """A CT of the spine with its labels, edges off by off_mm rms, and its exact surfaces."""
    patient = lumbar_phantom(spine)
    image, labels, truth = synthetic_ct(patient, scan)
    write_nifti(image, place / "ct.nii.gz")
    write_nifti(disturbed(labels, off_mm) if off_mm else labels, place / "labels.nii.gz")
    for body in patient.vertebrae:
        polydata(body.surface).save(place / f"{body.name}.truth.ply")
    line = (f"{name}={truth['spec'][name]}" for name in ("slope_g_cm3_per_hu", "intercept_g_cm3"))
    return [
        "source=ct",
        f"source.path={place / 'ct.nii.gz'}",
        f"source.mask={place / 'labels.nii.gz'}",
        f"source.refine={refine}",
        "calibration=linear",
        *(f"calibration.{part}" for part in line),
        heads_override(patient),
        "plan=keep",
    ]


def disturbed(labels: Image, rms_mm: float, length_mm: float = 6.0) -> Image:
    """Every label's edge moved in and out by a smooth random field of that rms and length (its
    Gaussian's SD is half of it)."""
    values, out = np.asarray(labels.values), np.zeros_like(labels.values)
    random = np.random.default_rng(1)
    deepest = np.zeros(values.shape, np.float32)
    pad = np.ceil((3.0 * rms_mm + 2.0) / labels.voxel_mm).astype(int)
    for number, box in enumerate(ndimage.find_objects(values.astype(np.int32)), 1):
        if box is None:
            continue
        box = tuple(slice(max(s.start - p, 0), s.stop + p) for s, p in zip(box, pad, strict=True))
        mask = values[box] == number
        depth = ndimage.distance_transform_edt(
            mask, labels.voxel_mm
        ) - ndimage.distance_transform_edt(~mask, labels.voxel_mm)
        noise = ndimage.gaussian_filter(
            random.normal(size=mask.shape), 0.5 * length_mm / labels.voxel_mm
        )
        depth = depth - 0.5 * np.sign(depth) * labels.voxel_mm.min() + noise * rms_mm / noise.std()
        more = (depth > 0.0) & (depth > deepest[box])
        out[box][more], deepest[box][more] = number, depth[more]
    return Image(out, labels.lps_from_index, "SEG", (), {})


def edge_table(results: Sequence[CaseResult]) -> tuple[str, Any]:
    """Mask → edges by HU: distance of the surfaces, volume, alignment."""
    record: dict[str, Any] = {}
    for r in results:
        if not r.code:
            record.setdefault(r.case.facts["row"], {})[
                "HU" if r.case.facts["refine"] else "mask"
            ] = _off_truth(r)
    names = {
        "mean_mm": ("{:.2f}", "mean distance mm"),
        "p95_mm": ("{:.2f}", "95th centile mm"),
        "volume_percent": ("{:+.1f}", "volume %"),
    }
    rows = []
    for row, both in record.items():
        if len(both) < 2:
            continue
        cells = [
            " → ".join(form.format(both[kind][key]) for kind in ("mask", "HU"))
            for key, (form, _) in names.items()
        ]
        for title in ("disc angle °", "disc height mm", "body wedge °", "LL, L4-S1 °"):
            cells.append(
                " → ".join(
                    f"{both[kind][title][0]:.2f} ({both[kind][title][1]:.2f})"
                    for kind in ("mask", "HU")
                )
            )
        rows.append((row, *cells))
    titles = [title for _, title in names.values()]
    head = (
        "phantom, noise 15 HU",
        *titles,
        "disc angle: rms (largest) °",
        "disc height mm",
        "body wedge °",
        "LL °",
    )
    return (
        "Mask → edges by HU, L1-L5 against the exact surfaces and alignment:\n\n"
        + table(head, rows)
        + failures(results),
        record,
    )


def _off_truth(r: CaseResult) -> dict[str, Any]:
    """Distances of L1-L5's surfaces from the exact ones (mm), the largest error of a volume (%),
    and by group of the alignment the rms and the largest error."""
    distances, signed, volumes = [], [], []
    for path in sorted(r.out.parent.glob("*.truth.ply")):
        truth, level = read_surface(path, "mm")[0], path.name.split(".")[0]
        ours, _ = read_surface(r.out / "patient" / f"{level}.ply", "mm")
        d = surface_sdf(truth, 0.75).sample(ours.points_mm)
        distances.append(np.abs(d))
        signed.append(d)
        volumes.append(100.0 * (volume_mm3(ours) / volume_mm3(truth) - 1.0))
    every = np.concatenate(distances)
    measured, exact = r.measures(), lumbar_truth(r.case.facts["spine"])
    errors = {key: abs(measured[key] - value) for key, value in exact.items() if key in measured}
    off: dict[str, Any] = {"mean_mm": every.mean(), "bias_mm": np.concatenate(signed).mean()}
    off |= {"p95_mm": np.quantile(every, 0.95), "volume_percent": max(volumes, key=abs)}
    for title, names in GROUPS.items():
        group = [v for key, v in errors.items() if key.split(".")[1] in names]
        off[title] = (float(np.sqrt(np.mean(np.square(group)))), max(group))
    return off
