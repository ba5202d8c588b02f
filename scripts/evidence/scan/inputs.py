"""Studies of scripts/scan_study.py on what is fed in: real data as it is, resampled and turned,
bad input, and size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from engine.patient.geometry.distance import polydata
from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom
from engine.patient.phantoms.scan_files import write_dicom_series, write_nifti
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from engine.patient.read.surface_files import read_surface
from engine.types import Surface
from scripts.evidence.scan.cases import LINE, TURN_DEG, Case, Ran, Study, StudyConfig, failed, table
from scripts.evidence.scan.malformed import malformed_cases, malformed_table

#: Change that the figures of a patient may show under resampling and turning: the aim.
LIMIT = {"deg": 1.0, "mm": 0.5}
#: Measured against gravity, or derived from that: they turn with the patient.
_GRAVITY = ("sacral_slope_deg", "pelvic_tilt_deg")


# -- stability -------------------------------------------------------------------------------------
def _turn(angles_deg: Sequence[float]) -> np.ndarray:
    return Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()


def resampled(
    labels: Image,
    voxel_mm: float | Sequence[float],
    turn_deg: Sequence[float] = (0.0, 0.0, 0.0),
    shift: float = 0.0,
) -> Image:
    """The labels on another grid, as if the patient had lain turned in the scanner: LPS-aligned
    voxels, `shift` voxels off.

    Each label's share of the new voxel by trilinear interpolation, after a Gaussian where the new
    voxel is larger; the largest share wins, if it is a half or more.
    """
    values, matrix = np.asarray(labels.values), labels.lps_from_index
    turn = _turn(turn_deg)
    old, new = labels.voxel_mm, np.broadcast_to(np.asarray(voxel_mm, float), 3)
    found = np.argwhere(values > 0)
    corners = (
        np.array(
            np.meshgrid(*np.stack([found.min(axis=0) - 3, found.max(axis=0) + 3]).T, indexing="ij")
        )
        .reshape(3, -1)
        .T
    )
    forward = np.eye(4)
    forward[:3, :3], forward[:3, 3] = turn @ matrix[:3, :3], turn @ matrix[:3, 3]
    lps = corners @ forward[:3, :3].T + forward[:3, 3]
    low = lps.min(axis=0) + shift * new
    shape = np.ceil((lps.max(axis=0) - low) / new).astype(int) + 1
    back = np.linalg.inv(forward[:3, :3])  # new index → old index: back·(low + new·i − origin)
    step, start = back * new[None, :], back @ (low - forward[:3, 3])
    best, out = np.full(shape, 0.5, np.float32), np.zeros(shape, np.int16)
    blur = np.sqrt(np.maximum((np.min(new) / old) ** 2 - 1.0, 0.0) / 12.0)
    for number in np.unique(values[values > 0]):
        box = tuple(
            slice(max(s.start - 6, 0), s.stop + 6)
            for s in ndimage.find_objects((values == number).astype(np.int8))[0]
        )
        share = ndimage.gaussian_filter((values[box] == number).astype(np.float32), blur)
        offset = start - [s.start for s in box]
        taken = ndimage.affine_transform(
            share, step, offset, output_shape=tuple(shape), order=1, output=np.float32
        )
        more = taken > best
        out[more], best[more] = number, taken[more]
    affine = np.diag([*new, 1.0])
    affine[:3, 3] = low
    return Image(out, affine, "SEG", (), {})


def _stability_cases(config: StudyConfig) -> list[Case]:
    data = config.folder()

    def of_mask(name: str, path: Path, told: Sequence[str], voxel: float) -> list[Case]:
        def make(place: Path, size: float, turn: Sequence[float], shift: float) -> list[str]:
            write_nifti(resampled(read_labels(path), size, turn, shift), place / "labels.nii.gz")
            return ["source=mask", f"source.path={place / 'labels.nii.gz'}", "plan=keep", *told]

        as_is = ["source=mask", f"source.path={path}", "plan=keep", *told]
        kinds = {
            f"resampled to {voxel:g} mm": (
                voxel,
                (0.0, 0.0, 0.0),
                0.37,
            ),  # 0.5 would leave every face a tie
            f"turned by 20°, {voxel:g} mm": (voxel, TURN_DEG, 0.0),
            f"{1.5 * voxel:g} mm": (1.5 * voxel, (0.0, 0.0, 0.0), 0.0),
        }
        found = [Case(f"{name}, as it is", lambda _: as_is, {"patient": name})]
        for kind, (size, turn, shift) in kinds.items():
            made = lambda place, a=size, b=turn, c=shift: make(place, a, b, c)  # type: ignore[misc]  # noqa: E731
            found.append(Case(f"{name}, {kind}", made, {"patient": name}))
        return found

    def surfaces(place: Path, turn: Sequence[float]) -> list[str]:
        (place / "meshes").mkdir()
        for file in sorted((data / "lumbar_meshes").glob("*.stl")):
            surface, _ = read_surface(file, "mm")
            # its axes: x anterior, y left, z up; turned about its own origin
            polydata(Surface(surface.points_mm @ _turn(turn).T, surface.faces)).save(
                place / "meshes" / file.name
            )
        return [
            "source=surfaces",
            f"source.path={place / 'meshes'}",
            "source.axes=ALS",
            "plan=keep",
        ]

    vhm = "lumbar_meshes"
    found = of_mask(
        "verse004_mask",
        data / "verse004_mask" / "sub-verse004_seg-vert_msk.nii.gz",
        ["source.labels=verse"],
        1.2,
    )
    found += of_mask(
        "ct_totalsegmentator",
        data / "ct_totalsegmentator" / "totalseg.nii.gz",
        ["source.labels=totalsegmentator"],
        3.0,
    )
    return [
        *found,
        Case(f"{vhm}, as it is", lambda place: surfaces(place, (0.0, 0.0, 0.0)), {"patient": vhm}),
        Case(f"{vhm}, turned by 20°", lambda place: surfaces(place, TURN_DEG), {"patient": vhm}),
        Case(
            f"{vhm}, edges 1.5 times",
            lambda p: [*surfaces(p, (0.0,) * 3), "source.edge_mm=2.25"],
            {"patient": vhm},
        ),
        Case(
            f"{vhm}, distances on 1.1 mm",
            lambda p: [*surfaces(p, (0.0,) * 3), "source.spacing_mm=1.125"],
            {"patient": vhm},
        ),
    ]


def _stability_table(ran: Sequence[Ran]) -> tuple[str, Any]:
    rows, record, base = [], {}, {}
    for r in ran:
        if r.code:
            continue
        found, patient = r.measures(), r.case.facts["patient"]
        if patient not in base:
            base[patient] = found
            continue
        shared = [k for k in found if k in base[patient] and k.split(".")[1] not in _GRAVITY]
        change = {key: found[key] - base[patient][key] for key in shared}
        record[r.case.name] = change
        cells = []
        for unit, limit in LIMIT.items():
            group = {k: abs(v) for k, v in change.items() if k.endswith(f"_{unit}")}
            worst = max(group, key=lambda k: group[k])
            over = [k for k in group if group[k] > limit]
            rms = np.sqrt(np.mean(np.square(list(group.values()))))
            cells += [f"{rms:.2f}", f"{group[worst]:.2f} ({worst})", f"{len(over)} of {len(group)}"]
        rows.append((r.case.name, *cells, len(base[patient]) - len(change)))
    head = (
        "patient",
        "angles: rms °",
        "largest °",
        "over 1°",
        "lengths: rms mm",
        "largest mm",
        "over 0.5 mm",
        "left out",
    )
    text = (
        "Change of every measure against the patient as it is (left out: against gravity, or not"
        " measured in one of the two):\n\n"
    )
    return text + table(head, rows) + failed(ran), record


# -- data ------------------------------------------------------------------------------------------
def _data_cases(config: StudyConfig) -> list[Case]:
    data = config.folder()
    mri = data / "mri_lumbar_t2" / "sct_t2_lumbar.nii.gz"
    ts, sub, l2 = data / "ct_totalsegmentator", data / "ct_mri_subregions", data / "l2_density_fe"
    told = {
        "lumbar_meshes": ["source=surfaces", f"source.path={data / 'lumbar_meshes'}"],
        "verse004_mask": [
            "source=mask",
            f"source.path={data / 'verse004_mask' / 'sub-verse004_seg-vert_msk.nii.gz'}",
        ],
        "ct_totalsegmentator": [
            "source=ct",
            f"source.path={ts / 'example_ct.nii.gz'}",
            f"source.mask={ts / 'totalseg.nii.gz'}",
            *LINE,
        ],
        "ct_totalsegmentator, force split": [
            "source=ct",
            f"source.path={ts / 'example_ct.nii.gz'}",
            f"source.mask={ts / 'example_seg_fast_force_split.nii.gz'}",
            *LINE,
        ],
        "ct_totalsegmentator, bodies": [
            "source=mask",
            f"source.path={ts / 'totalseg_vertebrae_pp_refined.nii.gz'}",
        ],
        "ct_totalsegmentator, bodies, accepted": [
            "source=mask",
            f"source.path={ts / 'totalseg_vertebrae_pp_refined.nii.gz'}",
            "source.label_map={L4: 23, L5: 24}",
            "source.levels=segment",
        ],
        "ct_totalsegmentator, DICOM T11-T12": [
            "source=ct",
            f"source.path={ts / 'dicom'}",
            f"source.mask={ts / 'example_seg_dicom.nii.gz'}",
            "segment=T11-T12",
            "source.levels=all",
        ],
        "ct_mri_subregions, CT L2-L3": [
            "source=ct",
            f"source.path={sub / 'sub-ct_label-22_ct.nii.gz'}",
            f"source.mask={sub / 'sub-ct_seg-vert_label-22_msk.nii.gz'}",
            f"source.subregions={sub / 'sub-ct_seg-subreg_label-22_msk.nii.gz'}",
            "segment=L2-L3",
        ],
        "ct_mri_subregions, MRI C5-C6": [
            "source=mri",
            f"source.path={sub / 'sub-mri_label-6_T2w.nii.gz'}",
            f"source.mask={sub / 'sub-mri_seg-vert_label-6_msk.nii.gz'}",
            "segment=C5-C6",
            "source.levels=all",
        ],
        "mri_lumbar_t2, no labels": [
            "source=mri",
            f"source.path={mri}",
            "source.mask=labels.nii.gz",
        ],
        "mri_lumbar_t2, density asked": [
            "source=mri",
            f"source.path={mri}",
            f"source.mask={mri}",
            *LINE,
        ],
        "l2_density_fe": [
            "source=mask",
            f"source.path={l2 / 'sub-verse004_0000_vertebra_21_seg.nii.gz'}",
            "segment=L2-L3",
        ],
    }
    return [Case(name, lambda _, told=lines: [*told, "plan=keep"]) for name, lines in told.items()]  # type: ignore[misc]


def _data_table(ran: Sequence[Ran]) -> tuple[str, Any]:
    rows, record = [], {}
    for r in ran:
        found = r.json("findings.json") if (r.out / "findings.json").is_file() else []
        codes = sorted(
            {
                f"{f['code']} {f.get('level') or ''}".strip()
                + ("" if f["severity"] == "note" else " (!)")
                for f in found
            }
        )
        outcome = r.said.replace("|", "\\|") if r.code else "prepared"
        regional = (
            {k.split(".")[1]: v for k, v in r.measures().items() if k.startswith("regional.")}
            if not r.code
            else {}
        )
        values = ", ".join(
            f"{k.removesuffix('_deg')} {regional[k]:.1f}"
            for k in ("lumbar_lordosis_deg", "cobb_deg")
            if k in regional
        )
        record[r.case.name] = {
            "code": r.code,
            "seconds": r.seconds,
            "peak_mb": r.peak_mb,
            "findings": found,
            "said": r.said,
        }
        rows.append(
            (
                r.case.name,
                r.code,
                f"{r.seconds:.0f}",
                f"{r.peak_mb:.0f}",
                outcome,
                "; ".join(codes) or "—",
                values or "—",
            )
        )
    return (
        table(("data", "exit", "s", "peak MB", "outcome", "findings, (!) above a note", "°"), rows),
        record,
    )


# -- size ------------------------------------------------------------------------------------------
def _size_cases(config: StudyConfig) -> list[Case]:
    def make(place: Path) -> list[str]:
        """A torso scan of the lumbar phantom, cut or filled to 512 × 512 × 300."""
        scan = ScanSpec(voxel_mm=(0.75, 0.75, 1.0), noise_hu=15.0)
        image, labels, truth = synthetic_ct(lumbar_phantom(LumbarSpec(spacing_mm=1.0)), scan)
        shape = (512, 512, 300)
        for name, part, fill in (("scan", image, -1000.0), ("labels", labels, 0)):
            values = np.full(shape, fill, part.values.dtype)
            corner = [(a - b) // 2 for a, b in zip(part.values.shape, shape, strict=True)]
            taken = tuple(
                slice(max(c, 0), max(c, 0) + min(a, b))
                for c, a, b in zip(corner, part.values.shape, shape, strict=True)
            )
            put = tuple(
                slice(max(-c, 0), max(-c, 0) + (t.stop - t.start))
                for c, t in zip(corner, taken, strict=True)
            )
            values[put] = part.values[taken]
            matrix = part.lps_from_index.copy()
            matrix[:3, 3] += matrix[:3, :3] @ np.asarray(corner, float)
            moved = Image(values, matrix, part.modality, (), part.source)
            _ = (
                write_dicom_series(moved, place / "dicom")
                if name == "scan"
                else write_nifti(moved, place / "labels.nii.gz")
            )
        from scripts.evidence.scan.phantom_words import overrides

        return overrides(place, truth)

    return [Case("512 × 512 × 300", make)]


def _size_table(ran: Sequence[Ran]) -> tuple[str, Any]:
    rows = [(r.case.name, r.code, f"{r.seconds:.0f}", f"{r.peak_mb:.0f}", r.said) for r in ran]
    return table(("scan", "exit", "s", "peak MB", "last line"), rows), {
        r.case.name: [r.seconds, r.peak_mb] for r in ran
    }


STUDIES: dict[str, Study] = {
    "stability": (_stability_cases, _stability_table),
    "data": (_data_cases, _data_table),
    "malformed": (malformed_cases, malformed_table),
    "size": (_size_cases, _size_table),
}
