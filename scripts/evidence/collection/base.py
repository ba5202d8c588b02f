"""The collection of inputs that people really have: the good patient that each is made from, and
how what came is judged.

The good one is a CT of the whole-lumbar phantom (1.2 × 1.2 × 1.5 mm, muscle, fat, air, rods) as
NIfTI and DICOM, with VerSe labels of L1-L5 and the sacrum, and its exact truth. Each case spoils it
one way, and is expected to be read with the right value, or refused for the right reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.evidence.scan.cases import Case, Ran

#: VerSe's numbers of the phantom.
VERSE = {"L1": 20, "L2": 21, "L3": 22, "L4": 23, "L5": 24, "S1": 26}
#: HU → density of the phantom's scan.
LINE = (
    "calibration=linear",
    "calibration.slope_g_cm3_per_hu=0.0008",
    "calibration.intercept_g_cm3=-0.004",
)
#: Middle height and segmental lordosis of lumbar_meshes' L4-L5, read from its own files; 0.1 mm and
#: 0.3° between readings of it.
VHM = (10.39, 26.96)
#: How far from the exact value a reading may lie: what the good patient itself shows, with room for
#: other voxels.
TOLERANCE = {"deg": 2.0, "mm": 0.6, "mg": 0.08}


@dataclass(frozen=True)
class Expected:
    """What is right: read (with its value) where `reason` is empty, else refused with an error that
    matches it.

    segment   where the value is measured     said   what a finding or a note of a patient that is
                                                     read must say
    bones     the phantom's own name of that segment, where the input calls it otherwise
    density   mean mineral density of the lower level, mg/cm³, where it is known
    """

    reason: str = ""
    segment: str = "L4-L5"
    said: str = ""
    density: bool = False
    bones: str = ""


class Base:
    """The good patient; everything is made when it is first asked for."""

    def __init__(self, place: Path, data: Path) -> None:
        self.place, self.data = place.resolve(), data

    @cached_property
    def made(self) -> Path:
        """Folder with ct.nii.gz, dicom/, labels.nii.gz and truth.json."""
        from engine.patient.phantoms.lumbar import LumbarSpec, lumbar_phantom, lumbar_truth
        from engine.patient.phantoms.scan_files import write_dicom_series, write_nifti
        from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct

        if not (self.place / "truth.json").is_file():
            spec = LumbarSpec()
            patient = lumbar_phantom(spec)
            scan, labels, truth = synthetic_ct(
                patient, ScanSpec(voxel_mm=(1.2, 1.2, 1.5), noise_hu=15.0)
            )
            write_dicom_series(scan, self.place / "dicom")
            write_nifti(scan, self.place / "ct.nii.gz")
            write_nifti(labels, self.place / "labels.nii.gz")
            exact = {"lumbar": lumbar_truth(spec), "heads": patient.source["femoral_heads_mm"]}
            (self.place / "truth.json").write_text(json.dumps(truth | exact))
        return self.place

    @property
    def ct(self) -> Path:
        return self.made / "ct.nii.gz"

    @property
    def labels(self) -> Path:
        return self.made / "labels.nii.gz"

    @cached_property
    def truth(self) -> dict[str, Any]:
        return dict(json.loads((self.made / "truth.json").read_text()))

    @cached_property
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and affine (RAS)."""
        image = nib.load(self.labels)
        assert isinstance(image, nib.Nifti1Image)
        return np.asarray(image.dataobj).astype(np.int16), np.asarray(image.affine)

    @cached_property
    def hu(self) -> np.ndarray:
        image = nib.load(self.ct)
        assert isinstance(image, nib.Nifti1Image)
        return np.asarray(image.dataobj).astype(np.float32)

    def numbered(self, numbers: Mapping[str, int]) -> np.ndarray:
        """The labels under other numbers by level; levels not given vanish."""
        values, _ = self.values
        result = np.zeros_like(values, np.int16 if max(numbers.values()) < 32000 else np.int32)
        for level, number in numbers.items():
            result[values == VERSE[level]] = number
        return result

    def write(self, values: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
        """A NIfTI on the good grid, or with another affine."""
        kind = np.float32 if values.dtype.kind == "f" else values.dtype
        nib.save(
            nib.Nifti1Image(values.astype(kind), self.values[1] if affine is None else affine), path
        )
        return path

    def mask(self, path: Path, *more: str) -> list[str]:
        """Overrides that read labels alone."""
        return ["source=mask", f"source.path={path}", "plan=keep", "source.levels=segment", *more]

    def scan(self, ct: Path, *more: str, mask: Path | None = None) -> list[str]:
        """Overrides that read a CT with labels and density."""
        told = ["source=ct", f"source.path={ct}", f"source.mask={mask or self.labels}", "plan=keep"]
        return [*told, "source.levels=segment", "source.refine=false", *LINE, *more]


def case(kind: str, name: str, expected: Expected, make: Callable[[Path], list[str]]) -> Case:
    """One input of the collection."""
    return Case(f"{kind}: {name}", make, {"kind": kind, "expected": expected})


def read(
    segment: str = "L4-L5", said: str = "", density: bool = False, bones: str = ""
) -> Expected:
    """It is to be read, with the right values."""
    return Expected("", segment, said, density, bones)


def refused(reason: str) -> Expected:
    """It is to be refused, in one line that matches `reason`."""
    return Expected(reason)


@dataclass(frozen=True)
class Judged:
    """What came of a case: "right", "silent wrong", "traceback", "refused", "other reason" or
    "said nothing", and the values."""

    verdict: str
    value: str
    true: str


def judged(ran: Ran, truth: Mapping[str, Any]) -> Judged:
    """How what came of a case stands against what is right."""
    expected: Expected = ran.case.facts["expected"]
    log = (ran.out.parent / "log.txt").read_text()
    if "Traceback" in log or ran.code not in (0, 2):
        return Judged("traceback", "", "")
    if ran.code:
        if not expected.reason:
            return Judged("refused", "", _true(expected, truth))
        right = re.search(expected.reason, ran.said, re.IGNORECASE | re.DOTALL)
        return Judged("right" if right else "other reason", "", "")
    if expected.reason:
        return Judged("silent wrong", _value(ran, expected), "")
    value, true = _value(ran, expected), _true(expected, truth)
    wrong = _wrong(ran, expected, truth)
    if wrong:
        return Judged("silent wrong", value, true)
    words = json.dumps(ran.json("findings.json"), ensure_ascii=False)
    words += json.dumps(ran.json("patient/bundle.json")["repairs"], ensure_ascii=False)
    if expected.said and not re.search(expected.said, words, re.IGNORECASE):
        return Judged("said nothing", value, true)
    return Judged("right", value, true)


def _measured(ran: Ran, expected: Expected) -> tuple[float, float]:
    found = ran.measures()
    place = "L4-L5" if expected.segment == "VHM" else expected.segment
    return found[f"{place}.height_middle_mm"], found[f"{place}.segmental_lordosis_deg"]


def _exact(expected: Expected, truth: Mapping[str, Any]) -> tuple[float, float] | None:
    if expected.segment == "VHM":
        return VHM
    lumbar = truth["lumbar"]
    place = expected.bones or expected.segment
    keys = [f"{place}.{name}" for name in ("height_middle_mm", "segmental_lordosis_deg")]
    return None if keys[0] not in lumbar else (lumbar[keys[0]], lumbar[keys[1]])


def mean_density(ran: Ran, level: str) -> float | None:
    """Mean mineral density (mg/cm³) that the patient's notes say for a level."""
    for line in ran.json("patient/bundle.json")["repairs"]:
        if line.startswith(f"{level}: density from the CT") and (
            found := re.search(r"mean ρ_QCT (-?\d+)", line)
        ):
            return float(found[1])
    return None


def _value(ran: Ran, expected: Expected) -> str:
    height, lordosis = _measured(ran, expected)
    text = f"{height:.2f} mm, {lordosis:.2f}°"
    density = mean_density(ran, expected.segment.split("-")[-1])
    return text if density is None else f"{text}, {density:.0f} mg/cm³"


def _true(expected: Expected, truth: Mapping[str, Any]) -> str:
    exact = _exact(expected, truth)
    if exact is None:
        return ""
    text = f"{exact[0]:.2f} mm, {exact[1]:.2f}°"
    return f"{text}, {truth['reading_mg_cm3']:.0f} mg/cm³" if expected.density else text


def _wrong(ran: Ran, expected: Expected, truth: Mapping[str, Any]) -> bool:
    exact = _exact(expected, truth)
    if exact is None:
        return False
    height, lordosis = _measured(ran, expected)
    wrong = abs(height - exact[0]) > TOLERANCE["mm"] or abs(lordosis - exact[1]) > TOLERANCE["deg"]
    if expected.density:
        density = mean_density(ran, expected.segment.split("-")[-1])
        most = TOLERANCE["mg"] * truth["reading_mg_cm3"]
        wrong |= density is None or abs(density - truth["reading_mg_cm3"]) > most
    return wrong


def tabulated(ran: Sequence[Ran], truth: Mapping[str, Any]) -> tuple[str, Any]:
    """The collection's table (Markdown), its counts first, and its record."""
    from scripts.evidence.data import ROOT
    from scripts.evidence.scan.cases import table

    good = [r for r in ran if r.case.name.endswith("CT as it is") and not r.code]
    truth = dict(truth) | {"reading_mg_cm3": mean_density(good[0], "L5") if good else float("nan")}
    rows, record, counts = [], {}, dict.fromkeys(("right",), 0)
    for r in ran:
        found = judged(r, truth)
        counts[found.verdict] = counts.get(found.verdict, 0) + 1
        said = r.said if r.code else "read"
        for path in (str(r.out.parent.resolve()), str(ROOT.parent), str(ROOT)):
            said = said.replace(path, "…")
        said = " ".join(said.removeprefix("error: ").split()).replace("|", "\\|")
        said = said if len(said) < 260 else said[:257] + "…"
        kind, name = r.case.name.split(": ", 1)
        rows.append((kind, name, found.verdict, found.value, found.true, said, f"{r.seconds:.0f}"))
        record[r.case.name] = {
            "verdict": found.verdict,
            "code": r.code,
            "value": found.value,
            "true": found.true,
            "said": r.said,
            "seconds": round(r.seconds, 1),
        }
    rest = ", ".join(
        f"{name} {counts.get(name, 0)}"
        for name in ("silent wrong", "traceback", "refused", "other reason", "said nothing")
    )
    head = ("kind", "input", "verdict", "read", "true", "what is said", "s")
    text = f"{len(rows)} inputs: right {counts['right']}, {rest}.\n\n" + table(head, rows)
    return text, record


def every(groups: Iterable[list[Case]]) -> list[Case]:
    """All cases of the groups. Raises ValueError where two bear one name."""
    cases = [one for group in groups for one in group]
    names = [one.name for one in cases]
    if len(set(names)) < len(names):
        raise ValueError(f"two cases are called {max(names, key=names.count)!r}")
    return cases
