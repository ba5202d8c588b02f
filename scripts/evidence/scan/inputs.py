"""What is fed in: every public data set as it is, and a large scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom
from engine.patient.phantoms.scan_files import write_dicom_series, write_nifti
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.image import Image
from scripts.console.markdown import table
from scripts.evidence.scan.cases import LINE, Case, CaseResult, CaseSetConfig
from scripts.evidence.scan.phantom_words import overrides

#: Levels of labels that follow no numbering the reader knows: as it advises.
_ACCEPTED = ("source.label_map={L4: 23, L5: 24}", "source.levels=segment")


# -- data ------------------------------------------------------------------------------------------
def data_cases(config: CaseSetConfig) -> list[Case]:
    """Every public data set, as a user would give it."""
    words = _overrides(config.folder())
    return [Case(name, partial(_as_scanned, given)) for name, given in words.items()]


def _as_scanned(words: Sequence[str], place: Path) -> list[str]:
    """The patient as it is: nothing to make, nothing planned."""
    return [*words, "plan=keep"]


def _source(kind: str, path: Path, *more: str, **files: Path) -> list[str]:
    """Overrides of a source, its further files (mask, subregions) and what else is given."""
    words = [f"source={kind}", f"source.path={path}"]
    return [*words, *(f"source.{name}={file}" for name, file in files.items()), *more]


def _overrides(data: Path) -> Mapping[str, list[str]]:
    """Name → overrides."""
    ct, sub = data / "ct_totalsegmentator", data / "ct_mri_subregions"
    verse, l2 = data / "verse004_mask", data / "l2_density_fe"
    mri = data / "mri_lumbar_t2" / "sct_t2_lumbar.nii.gz"
    scan, bodies = ct / "example_ct.nii.gz", ct / "totalseg_vertebrae_pp_refined.nii.gz"
    split = ct / "example_seg_fast_force_split.nii.gz"
    return {
        "lumbar_meshes": _source("surfaces", data / "lumbar_meshes"),
        "verse004_mask": _source("mask", verse / "sub-verse004_seg-vert_msk.nii.gz"),
        "ct_totalsegmentator": _source("ct", scan, *LINE, mask=ct / "totalseg.nii.gz"),
        "ct_totalsegmentator, force split": _source("ct", scan, *LINE, mask=split),
        "ct_totalsegmentator, bodies": _source("mask", bodies),
        "ct_totalsegmentator, bodies, accepted": _source("mask", bodies, *_ACCEPTED),
        "ct_totalsegmentator, DICOM T11-T12": _source(
            "ct",
            ct / "dicom",
            "segment=T11-T12",
            "source.levels=all",
            mask=ct / "example_seg_dicom.nii.gz",
        ),
        "ct_mri_subregions, CT L2-L3": _source(
            "ct",
            sub / "sub-ct_label-22_ct.nii.gz",
            "segment=L2-L3",
            mask=sub / "sub-ct_seg-vert_label-22_msk.nii.gz",
            subregions=sub / "sub-ct_seg-subreg_label-22_msk.nii.gz",
        ),
        "ct_mri_subregions, MRI C5-C6": _source(
            "mri",
            sub / "sub-mri_label-6_T2w.nii.gz",
            "segment=C5-C6",
            "source.levels=all",
            mask=sub / "sub-mri_seg-vert_label-6_msk.nii.gz",
        ),
        "mri_lumbar_t2, no labels": _source("mri", mri, mask=Path("labels.nii.gz")),
        "mri_lumbar_t2, density asked": _source("mri", mri, *LINE, mask=mri),
        "l2_density_fe": _source(
            "mask", l2 / "sub-verse004_0000_vertebra_21_seg.nii.gz", "segment=L2-L3"
        ),
    }


def data_table(results: Sequence[CaseResult]) -> tuple[str, Any]:
    """Time, memory, outcome and findings of every data set."""
    rows, record = [], {}
    for r in results:
        findings = r.json("findings.json") if (r.out / "findings.json").is_file() else []
        codes = sorted(
            {
                f"{f['code']} {f.get('level') or ''}".strip()
                + ("" if f["severity"] == "note" else " (!)")
                for f in findings
            }
        )
        outcome = r.message.replace("|", "\\|") if r.code else "prepared"
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
            "findings": findings,
            "said": r.message,
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
def size_cases(config: CaseSetConfig) -> list[Case]:
    """One large scan."""

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
            if name == "scan":
                write_dicom_series(moved, place / "dicom")
            else:
                write_nifti(moved, place / "labels.nii.gz")
        return overrides(place, truth)

    return [Case("512 × 512 × 300", make)]


def size_table(results: Sequence[CaseResult]) -> tuple[str, Any]:
    """Time and memory."""
    rows = [
        (r.case.name, r.code, f"{r.seconds:.0f}", f"{r.peak_mb:.0f}", r.message) for r in results
    ]
    return table(("scan", "exit", "s", "peak MB", "last line"), rows), {
        r.case.name: [r.seconds, r.peak_mb] for r in results
    }
