"""The collection of inputs that people really have: the good patient that each is made from, and
how the outcome is judged.

The good one is a CT of the whole-lumbar phantom (1.2 × 1.2 × 1.5 mm, muscle, fat, air, rods) as
NIfTI and DICOM, with VerSe labels of L1-L5 and the sacrum, and its exact truth. Each case spoils it
one way, and is expected to be read with the right value, or refused for the right reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.console.markdown import table
from scripts.console.places import ROOT
from scripts.evidence.scan.cases import Case, CaseResult

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

    reason    pattern of the error
    segment   where the value is measured; "VHM": L4-L5 of lumbar_meshes
    note      pattern of a finding or a note that a patient that is read must have
    density   the mean mineral density of the lower level is known too
    bones     the phantom's own name of that segment, where the input calls it otherwise
    """

    reason: str = ""
    segment: str = "L4-L5"
    note: str = ""
    density: bool = False
    bones: str = ""


class Base:
    """The good patient; everything is made when it is first asked for."""

    def __init__(self, place: Path, data: Path) -> None:
        self.place, self.data = place.resolve(), data

    @cached_property
    def folder(self) -> Path:
        """The folder with ct.nii.gz, dicom/, labels.nii.gz and truth.json."""
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
        return self.folder / "ct.nii.gz"

    @property
    def labels(self) -> Path:
        return self.folder / "labels.nii.gz"

    @cached_property
    def truth(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "truth.json").read_text()))

    @cached_property
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels [x, y, z] and affine [4, 4], voxel → RAS mm."""
        image = nib.load(self.labels)
        assert isinstance(image, nib.Nifti1Image)
        return np.asarray(image.dataobj).astype(np.int16), np.asarray(image.affine)

    @cached_property
    def hu(self) -> np.ndarray:
        """HU [x, y, z]."""
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

    def scan(self, ct: Path, *more: str, mask: Path | None = None) -> list[str]:
        """Overrides that read a CT with labels and density."""
        words = ["source=ct", f"source.path={ct}", f"source.mask={mask or self.labels}"]
        return [*words, "plan=keep", "source.levels=segment", "source.refine=false", *LINE, *more]


def mask(path: Path, *more: str) -> list[str]:
    """Overrides that read labels alone, all levels of them."""
    return ["source=mask", f"source.path={path}", "plan=keep", *more]


def segment_mask(path: Path, *more: str) -> list[str]:
    """Overrides that read labels alone, those of the segment."""
    return mask(path, "source.levels=segment", *more)


#: Writes an input into a folder, from the good patient, and gives the overrides that read it.
Recipe = Callable[[Base, Path], list[str]]


@dataclass(frozen=True)
class Input:
    """One input of the collection: what it is, what is right, and how it is made."""

    name: str
    expected: Expected
    recipe: Recipe


def case(kind: str, one: Input, base: Base) -> Case:
    """An input as a case that can be run."""
    return Case(
        f"{kind}: {one.name}",
        lambda place: one.recipe(base, place),
        {"kind": kind, "expected": one.expected},
    )


def cases_of(collection: Mapping[str, Sequence[Input]], base: Base) -> list[Case]:
    """All inputs of a collection, kind → inputs, as cases. Raises ValueError where two bear one
    name."""
    cases = [case(kind, one, base) for kind, inputs in collection.items() for one in inputs]
    names = [one.name for one in cases]
    if len(set(names)) < len(names):
        raise ValueError(f"two cases are called {max(names, key=names.count)!r}")
    return cases


def read(
    segment: str = "L4-L5", note: str = "", density: bool = False, bones: str = ""
) -> Expected:
    """It is to be read, with the right values."""
    return Expected("", segment, note, density, bones)


def refused(reason: str) -> Expected:
    """It is to be refused, in one line that matches `reason`."""
    return Expected(reason)


@dataclass(frozen=True)
class Judgement:
    """The outcome of a case: "right", "silent wrong", "traceback", "refused", "other reason" or
    "said nothing", with the value that was read and the true one."""

    verdict: str
    value: str
    true: str


def judge(result: CaseResult, truth: Mapping[str, Any]) -> Judgement:
    """The outcome of a case against what is right."""
    expected: Expected = result.case.facts["expected"]
    log = (result.out.parent / "log.txt").read_text()
    if "Traceback" in log or result.code not in (0, 2):
        return Judgement("traceback", "", "")
    if result.code:
        if not expected.reason:
            return Judgement("refused", "", _true(expected, truth))
        right = re.search(expected.reason, result.message, re.IGNORECASE | re.DOTALL)
        return Judgement("right" if right else "other reason", "", "")
    if expected.reason:
        return Judgement("silent wrong", _value(result, expected), "")
    value, true = _value(result, expected), _true(expected, truth)
    wrong = _wrong(result, expected, truth)
    if wrong:
        return Judgement("silent wrong", value, true)
    words = json.dumps(result.json("findings.json"), ensure_ascii=False)
    words += json.dumps(result.json("patient/bundle.json")["repairs"], ensure_ascii=False)
    if expected.note and not re.search(expected.note, words, re.IGNORECASE):
        return Judgement("said nothing", value, true)
    return Judgement("right", value, true)


def _measured(result: CaseResult, expected: Expected) -> tuple[float, float]:
    measures = result.measures()
    place = "L4-L5" if expected.segment == "VHM" else expected.segment
    return measures[f"{place}.height_middle_mm"], measures[f"{place}.segmental_lordosis_deg"]


def _exact(expected: Expected, truth: Mapping[str, Any]) -> tuple[float, float] | None:
    if expected.segment == "VHM":
        return VHM
    lumbar = truth["lumbar"]
    place = expected.bones or expected.segment
    keys = [f"{place}.{name}" for name in ("height_middle_mm", "segmental_lordosis_deg")]
    return None if keys[0] not in lumbar else (lumbar[keys[0]], lumbar[keys[1]])


def mean_density(result: CaseResult, level: str) -> float | None:
    """Mean mineral density (mg/cm³) that the patient's notes say for a level."""
    for line in result.json("patient/bundle.json")["repairs"]:
        if line.startswith(f"{level}: density from the CT") and (
            match := re.search(r"mean ρ_QCT (-?\d+)", line)
        ):
            return float(match[1])
    return None


def _value(result: CaseResult, expected: Expected) -> str:
    height, lordosis = _measured(result, expected)
    text = f"{height:.2f} mm, {lordosis:.2f}°"
    density = mean_density(result, expected.segment.split("-")[-1])
    return text if density is None else f"{text}, {density:.0f} mg/cm³"


def _true(expected: Expected, truth: Mapping[str, Any]) -> str:
    exact = _exact(expected, truth)
    if exact is None:
        return ""
    text = f"{exact[0]:.2f} mm, {exact[1]:.2f}°"
    return f"{text}, {truth['reading_mg_cm3']:.0f} mg/cm³" if expected.density else text


def _wrong(result: CaseResult, expected: Expected, truth: Mapping[str, Any]) -> bool:
    exact = _exact(expected, truth)
    if exact is None:
        return False
    height, lordosis = _measured(result, expected)
    wrong = abs(height - exact[0]) > TOLERANCE["mm"] or abs(lordosis - exact[1]) > TOLERANCE["deg"]
    if expected.density:
        density = mean_density(result, expected.segment.split("-")[-1])
        tolerance = TOLERANCE["mg"] * truth["reading_mg_cm3"]
        wrong |= density is None or abs(density - truth["reading_mg_cm3"]) > tolerance
    return wrong


def tabulate(results: Sequence[CaseResult], truth: Mapping[str, Any]) -> tuple[str, Any]:
    """The collection's table (Markdown), its counts first, and its record."""
    good = [r for r in results if r.case.name.endswith("CT as it is") and not r.code]
    truth = dict(truth) | {"reading_mg_cm3": mean_density(good[0], "L5") if good else float("nan")}
    rows, record, counts = [], {}, dict.fromkeys(("right",), 0)
    for r in results:
        judgement = judge(r, truth)
        verdict, value, true = judgement.verdict, judgement.value, judgement.true
        counts[verdict] = counts.get(verdict, 0) + 1
        kind, name = r.case.name.split(": ", 1)
        rows.append((kind, name, verdict, value, true, _shown_message(r), f"{r.seconds:.0f}"))
        record[r.case.name] = {
            "verdict": verdict,
            "code": r.code,
            "value": value,
            "true": true,
            "said": r.message,
            "seconds": round(r.seconds, 1),
        }
    rest = ", ".join(
        f"{name} {counts.get(name, 0)}"
        for name in ("silent wrong", "traceback", "refused", "other reason", "said nothing")
    )
    head = ("kind", "input", "verdict", "read", "true", "what is said", "s")
    text = f"{len(rows)} inputs: right {counts['right']}, {rest}.\n\n" + table(head, rows)
    return text, record


#: Characters of a message that the table shows.
_MESSAGE_LENGTH = 260


def _shown_message(result: CaseResult) -> str:
    """The message for a cell of a table: without this machine's folders, shortened."""
    message = result.message if result.code else "read"
    for path in (str(result.out.parent.resolve()), str(ROOT.parent), str(ROOT)):
        message = message.replace(path, "…")
    message = " ".join(message.removeprefix("error: ").split()).replace("|", "\\|")
    return message if len(message) < _MESSAGE_LENGTH else message[: _MESSAGE_LENGTH - 3] + "…"
