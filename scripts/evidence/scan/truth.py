"""Studies of scripts/scan_study.py against truth: exact alignment, surfaces and densities of
phantoms, a published reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from engine import artifacts
from engine.patient.geometry.distance import polydata, surface_sdf, volume_mm3
from engine.patient.phantoms.lumbar import (
    LumbarSpec,
    fractured,
    lumbar_phantom,
    lumbar_truth,
    scoliotic,
)
from engine.patient.phantoms.scan_files import write_dicom_series, write_nifti
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.image import Image
from engine.patient.read.images import read_image, read_labels
from engine.patient.read.surface_files import read_surface
from scripts.evidence.scan.cases import LINE, TURN_DEG, Case, Ran, Study, StudyConfig, failed, table

# -- truth -----------------------------------------------------------------------------------------
_FLAT = {
    "lordosis_deg": (1.0, 1.0, 2.0, 2.0, 5.0),
    "body_wedge_deg": (-3.0, -2.0, -1.0, 0.0, 5.0),
    "sacral_slope_deg": 22.0,
    "pi_deg": 48.0,
    "height_middle_mm": (7.0, 7.0, 6.0, 6.0, 5.0),
}
_HYPER = {"lordosis_deg": (5.0, 9.0, 11.0, 14.0, 20.0), "sacral_slope_deg": 58.0, "pi_deg": 72.0}
_SLIPPED = {"listhesis_mm": (0.0, 0.0, -3.0, 6.0, 0.0), "lateral_mm": (0.0, 2.0, 0.0, 0.0, 0.0)}
_TURNED = {"rotation_deg": (20.0, -12.0, 15.0), "translation_mm": (30.0, -40.0, 500.0)}
_MIXED = {
    "coronal_deg": (3.0, 6.0, -2.0, -5.0, 0.0),
    "axial_deg": (2.0, 4.0, 3.0, -2.0, 0.0),
    "listhesis_mm": (0.0, 0.0, 2.0, 4.0, 1.0),
}


def _spines() -> dict[str, LumbarSpec]:
    normal = LumbarSpec(spacing_mm=1.0)
    return {
        "normal": normal,
        "hyperlordotic": normal.model_copy(update=_HYPER),
        "flat back": normal.model_copy(update=_FLAT),
        "scoliosis 25°": scoliotic(normal, 25.0),
        "listhesis 6 mm": normal.model_copy(update=_SLIPPED),
        "wedge fracture L1": fractured(normal, "L1", 0.3),
        "small": normal.model_copy(
            update={
                "width_mm": (36.0, 37.0, 39.0, 41.0, 43.0),
                "depth_mm": (27.0, 28.0, 28.0, 29.0, 29.0),
                "sacrum_width_mm": 43.0,
            }
        ),
        "scoliosis, slip, axial": normal.model_copy(update=_MIXED),
    }


def _phantom(spine: LumbarSpec, scan: ScanSpec, place: Path) -> list[str]:
    patient = lumbar_phantom(spine)
    _, labels, _ = synthetic_ct(patient, scan)
    write_nifti(labels, place / "labels.nii.gz")
    heads = ",".join(
        f"[{','.join(f'{c:.3f}' for c in head)}]" for head in patient.source["femoral_heads_mm"]
    )
    return [
        "source=mask",
        f"source.path={place / 'labels.nii.gz'}",
        "plan=keep",
        f"alignment.femoral_heads_mm=[{heads}]",
    ]


def _truth_cases(config: StudyConfig) -> list[Case]:
    def case(
        name: str,
        spine: LumbarSpec,
        voxel: tuple[float, float, float] = (1.0, 1.0, 1.0),
        **scan: Any,
    ) -> Case:
        settings = ScanSpec(voxel_mm=voxel, extent="spine", **scan)
        return Case(
            name, lambda place: _phantom(spine, settings, place), {"spine": spine, "voxel": voxel}
        )

    spines = _spines()
    hard = spines["scoliosis, slip, axial"]
    found = [case(name, spine) for name, spine in spines.items()]
    found += [
        case(f"{name}, patient turned", spines[name].model_copy(update=_TURNED))
        for name in ("normal", "scoliosis, slip, axial")
    ]
    found += [
        case(
            "scoliosis, slip, axial, grid turned 20°",
            hard,
            rotation_deg=TURN_DEG,
            orientation="PIR",
        )
    ]
    for voxel in (
        (0.7, 0.7, 1.0),
        (0.5, 0.5, 2.0),
        (1.5, 1.5, 1.5),
        (2.0, 2.0, 2.0),
        (1.0, 1.0, 3.0),
        (3.0, 3.0, 3.0),
    ):
        found.append(case(f"scoliosis, slip, axial, {voxel[0]:g} × {voxel[2]:g} mm", hard, voxel))
    return found


# -- refine ----------------------------------------------------------------------------------------
def _refine_cases(config: StudyConfig) -> list[Case]:
    """The same labels with their CT, as they are and with edges off by 0.8 mm rms; edges placed
    by HU, and not."""
    spines = {name: _spines()[name] for name in ("normal", "scoliosis, slip, axial")}

    def make(
        place: Path, spine: LumbarSpec, scan: ScanSpec, off_mm: float, refine: bool
    ) -> list[str]:
        patient = lumbar_phantom(spine)
        image, labels, truth = synthetic_ct(patient, scan)
        write_nifti(image, place / "ct.nii.gz")
        write_nifti(disturbed(labels, off_mm) if off_mm else labels, place / "labels.nii.gz")
        for body in patient.vertebrae:
            polydata(body.surface).save(place / f"{body.name}.truth.ply")
        line = (
            f"{name}={truth['spec'][name]}" for name in ("slope_g_cm3_per_hu", "intercept_g_cm3")
        )
        heads = ",".join(
            f"[{','.join(f'{c:.3f}' for c in head)}]" for head in patient.source["femoral_heads_mm"]
        )
        told = [
            "source=ct",
            f"source.path={place / 'ct.nii.gz'}",
            f"source.mask={place / 'labels.nii.gz'}",
            f"source.refine={refine}",
        ]
        told += [
            "calibration=linear",
            *(f"calibration.{part}" for part in line),
            f"alignment.femoral_heads_mm=[{heads}]",
        ]
        return [*told, "plan=keep"]

    sizes = ((1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (2.0, 2.0, 2.0), (1.0, 1.0, 3.0), (3.0, 3.0, 3.0))
    kinds = [("normal", voxel, 0.0) for voxel in sizes]
    kinds += [
        ("normal", sizes[1], 0.8),
        ("normal", sizes[3], 0.8),
        ("scoliosis, slip, axial", sizes[1], 0.0),
    ]
    found = []
    for name, voxel, off in kinds:
        size = f"{voxel[0]:g} mm" if voxel[0] == voxel[2] else f"{voxel[0]:g} × {voxel[2]:g} mm"
        row = f"{name}, {size}{', edges off' if off else ''}"
        scan = ScanSpec(voxel_mm=voxel, extent="spine", noise_hu=15.0)
        for refine in (False, True):
            made = lambda p, a=spines[name], b=scan, c=off, d=refine: make(p, a, b, c, d)  # type: ignore[misc]  # noqa: E731
            facts = {"spine": spines[name], "row": row, "refine": refine}
            found.append(Case(f"{row}, {'edges by HU' if refine else 'mask'}", made, facts))
    return found


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


def _refine_table(ran: Sequence[Ran]) -> tuple[str, Any]:
    """Mask → edges by HU: distance of the surfaces, volume, alignment."""
    record: dict[str, Any] = {}
    for r in ran:
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
        + failed(ran),
        record,
    )


def _off_truth(r: Ran) -> dict[str, Any]:
    distances, signed, volumes = [], [], []
    for path in sorted(r.out.parent.glob("*.truth.ply")):
        truth, level = read_surface(path, "mm")[0], path.name.split(".")[0]
        ours, _ = read_surface(r.out / "patient" / f"{level}.ply", "mm")
        d = surface_sdf(truth, 0.75).sample(ours.points_mm)
        distances.append(np.abs(d))
        signed.append(d)
        volumes.append(100.0 * (volume_mm3(ours) / volume_mm3(truth) - 1.0))
    every, measured, exact = (
        np.concatenate(distances),
        r.measures(),
        lumbar_truth(r.case.facts["spine"]),
    )
    errors = {key: abs(measured[key] - value) for key, value in exact.items() if key in measured}
    found: dict[str, Any] = {"mean_mm": every.mean(), "bias_mm": np.concatenate(signed).mean()}
    found |= {"p95_mm": np.quantile(every, 0.95), "volume_percent": max(volumes, key=abs)}
    for title, names in _GROUPS.items():
        group = [v for key, v in errors.items() if key.split(".")[1] in names]
        found[title] = (float(np.sqrt(np.mean(np.square(group)))), max(group))
    return found


_GROUPS = {
    "disc angle °": ("lordosis_deg", "segmental_lordosis_deg"),
    "coronal wedge °": ("coronal_deg",),
    "axial °": ("axial_deg",),
    "disc height mm": ("height_anterior_mm", "height_middle_mm", "height_posterior_mm"),
    "listhesis, lateral mm": ("listhesis_mm", "lateral_mm"),
    "body wedge °": ("wedge_deg",),
    "LL, L4-S1 °": ("lumbar_lordosis_deg", "l4_s1_lordosis_deg"),
    "Cobb °": ("cobb_deg",),
    "SS °": ("sacral_slope_deg",),
    "PI, PT, PI−LL °": ("pelvic_incidence_deg", "pelvic_tilt_deg", "pi_minus_ll_deg"),
}


def _truth_table(ran: Sequence[Ran]) -> tuple[str, Any]:
    rows = []
    record: dict[str, Any] = {}
    every: dict[str, list[float]] = {}
    for r in ran:
        if r.code:
            continue
        measured, exact = r.measures(("deg", "mm", "%")), lumbar_truth(r.case.facts["spine"])
        errors = {key: measured[key] - value for key, value in exact.items() if key in measured}
        record[r.case.name] = {"errors": errors, "not measured": sorted(set(exact) - set(measured))}
        cells = []
        for title, names in _GROUPS.items():
            group = [abs(v) for key, v in errors.items() if key.split(".")[1] in names]
            if r.case.facts["voxel"] == (1.0, 1.0, 1.0):
                every.setdefault(title, []).extend(group)
            cells.append(f"{max(group):.2f}" if group else "—")
        rows.append((r.case.name, *cells, len(record[r.case.name]["not measured"])))
    rows.append(
        (
            "**rms of all at 1 mm**",
            *(f"{np.sqrt(np.mean(np.square(every.get(t) or [np.nan]))):.2f}" for t in _GROUPS),
            "",
        )
    )
    text = (
        "Largest error against the exact alignment of the phantom, labels of 1 mm where not"
        " said:\n\n"
    )
    return text + table(("spine", *_GROUPS, "not measured"), rows) + failed(ran), record


# -- density ---------------------------------------------------------------------------------------
def _scanned(spine: LumbarSpec, scan: ScanSpec, place: Path) -> list[str]:
    from scripts.evidence.scan.phantom_words import overrides

    image, labels, truth = synthetic_ct(lumbar_phantom(spine), scan)
    write_dicom_series(image, place / "dicom")
    write_nifti(labels, place / "labels.nii.gz")
    artifacts.write_json(place / "truth.json", truth)
    return [*overrides(place, truth), "plan=keep"]


def _density_cases(config: StudyConfig) -> list[Case]:
    found = []
    for density in (0.07, 0.11, 0.20):
        for voxel in ((0.7, 0.7, 1.0), (0.9, 0.9, 3.0)):
            spine = LumbarSpec(spacing_mm=1.0, trabecular_g_cm3=density, texture=0.0)
            scan = ScanSpec(
                voxel_mm=voxel, noise_hu=15.0, slope_g_cm3_per_hu=0.00083, intercept_g_cm3=-0.006
            )
            name = f"{1000 * density:.0f} mg/cm³, {voxel[0]:g} × {voxel[2]:g} mm"
            found.append(Case(name, lambda place, a=spine, b=scan: _scanned(a, b, place)))  # type: ignore[misc]
    return found


def _density_table(ran: Sequence[Ran]) -> tuple[str, Any]:
    rows, record = [], {}
    for r in ran:
        if r.code:
            continue
        truth = json.loads((r.out.parent / "truth.json").read_text())
        line = truth["spec"]["slope_g_cm3_per_hu"], truth["spec"]["intercept_g_cm3"]
        given = r.json("patient/bundle.json")["source"]["calibration"]
        bone = {row["level"]: row for row in r.json("bone.json")}
        hu = {
            k: bone[k]["mean_hu"] - v["core_hu"] for k, v in truth["vertebrae"].items() if k in bone
        }
        vbmd = {
            k: 1000 * (bone[k]["vbmd_g_cm3"] - line[1] - line[0] * v["core_hu"])
            for k, v in truth["vertebrae"].items()
            if k in bone
        }
        slope, intercept = given["slope_g_cm3_per_hu"], given["intercept_g_cm3"]
        record[r.case.name] = {
            "hu": hu,
            "vbmd_mg_cm3": vbmd,
            "slope": slope,
            "intercept": intercept,
        }
        cells = [
            f"{100 * (slope / line[0] - 1):+.2f} %",
            f"{1000 * (intercept - line[1]):+.2f}",
            f"{given['r2']:.5f}",
        ]
        rows.append(
            (
                r.case.name,
                *cells,
                f"{max(map(abs, hu.values())):.1f}",
                f"{max(map(abs, vbmd.values())):.1f}",
            )
        )
    head = (
        "phantom",
        "slope",
        "intercept, mg/cm³",
        "R²",
        "largest error of L1-L5: HU",
        "vBMD, mg/cm³",
    )
    text = (
        "Density of DICOM scans with calibration rods, noise 15 HU, against what was scanned:\n\n"
    )
    return text + table(head, rows) + failed(ran), record


# -- references ------------------------------------------------------------------------------------
def _reference_cases(config: StudyConfig) -> list[Case]:
    place = config.folder() / "ct_totalsegmentator"
    told = [
        "source=ct",
        f"source.path={place / 'example_ct.nii.gz'}",
        f"source.mask={place / 'totalseg.nii.gz'}",
        *LINE,
    ]
    return [Case("ct_totalsegmentator", lambda _: told, {"place": place})]


def _reference_table(ran: Sequence[Ran]) -> tuple[str, Any]:
    (r,) = ran
    if r.code:
        return failed(ran), {}
    place = r.case.facts["place"]
    report = json.loads((place / "spine_report.json").read_text())["results"]
    bodies, scan = (
        read_labels(place / "totalseg_vertebrae_pp_refined.nii.gz"),
        read_image(place / "example_ct.nii.gz"),
    )
    measured, bone = r.measures(), {row["level"]: row for row in r.json("bone.json")}
    rows, record = [], {}
    for number, level in enumerate(("L1", "L2", "L3", "L4", "L5"), 20):
        inside = bodies.values == number
        told = {
            key: report[f"vertebrae_{level}_{key}"]
            for key in ("volume_ml", "intensity", "intensity_median")
        }
        volume, hu = inside.sum() * np.prod(bodies.voxel_mm) / 1000.0, scan.values[inside]
        cells = [
            level,
            f"{volume:.2f} / {told['volume_ml']:.2f}",
            f"{hu.mean():.0f} / {told['intensity']:.0f}",
        ]
        cells += [
            f"{bone[level]['mean_hu']:.0f} ± {bone[level]['sd_hu']:.0f} /"
            f" {told['intensity_median']:.0f}"
        ]
        record[level] = {
            "volume_ml": volume,
            "hu": float(hu.mean()),
            "trabecular": bone[level],
            "reference": told,
        }
        for side in ("anterior", "middle", "posterior"):
            ours, theirs = (
                measured[f"{level}.height_{side}_mm"],
                report[f"vertebrae_{level}_height_{side}_mm"],
            )
            record[level][f"height_{side}_mm"] = ours, theirs
            cells.append(f"{ours:.1f} / {theirs:.1f}")
        rows.append(cells)
    head = (
        "",
        "body mask ml",
        "its mean HU",
        "trabecular HU (reference: median of the body)",
        "anterior mm",
        "middle mm",
        "posterior mm",
    )
    return "Ours / the reference's:\n\n" + table(head, rows), record


STUDIES: dict[str, Study] = {
    "truth": (_truth_cases, _truth_table),
    "refine": (_refine_cases, _refine_table),
    "density": (_density_cases, _density_table),
    "references": (_reference_cases, _reference_table),
}
