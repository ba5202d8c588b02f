"""Read a patient, measure and plan a segment, and write the bundle.

    python scripts/prepare_patient.py source=surfaces source.path=../shared/data/lumbar_meshes
        segment=L4-L5 out=cases/a
    python scripts/prepare_patient.py source=mask source.path=seg.nii.gz segment=L3-L4
        plan.rule=keep out=cases/b
    python scripts/prepare_patient.py source=ct source.path=dicom/ source.mask=seg.nii.gz
        calibration=phantomless out=cases/c
    python scripts/prepare_patient.py source=phantom source.spec.lordosis_deg=3 out=cases/d

Writes <out>/report.html, patient (bundle), segment (planned pose, segment frame), view (VTP, VTI,
PNG) and tables as JSON. Exit code 2 with one line for whatever is wrong with the input.

Hydra composes the settings as under @hydra.main (by this word its completion knows a script);
scripts/console/command.py is around it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig, OmegaConf

from scripts.console.command import Command, require_writable
from scripts.console.composing import Given
from scripts.console.overrides import exists, quoted, shell_line
from scripts.console.wrong import Wrong, lines_of, typed

#: On two cores, from the public test data and the phantoms, with other work beside it at the upper
#: end.
_EXPECTED = {
    "phantom": "half a minute to one and a half",
    "lumbar": "1 to 3 min",
    "surfaces": "1 to 3 min",
    "mask": "1 to 4 min",
    "ct": "2 to 6 min",
    "mri": "1 to 4 min",
}


def _opening(given: Given) -> Iterator[str]:
    settings = given.plain
    source, out = settings["source"], Path(settings["out"])
    require_writable(out)
    missing = [
        (key, source[key])
        for key in ("path", "mask", "subregions")
        if source.get(key) is not None and not exists(str(source[key]))
    ]
    missing = [
        (k, v) for k, v in missing if k != "mask" or v not in ("totalsegmentator", "spineps")
    ]
    if missing:
        raise Wrong(f"source.{key}={value}: no such file or folder" for key, value in missing)
    what = source.get("path") or "analytic"
    yield (
        f"patient: {source['kind']} ({what}); segment {settings['segment']}, plan"
        f" {settings['plan']['rule']}"
    )
    yield f"folder: {out}" + (
        " (slow stages that are there are taken over)" if (out / ".stages").is_dir() else ""
    )
    yield (
        f"expected: {_EXPECTED.get(source['kind'], 'some minutes')} on two cores, longer where a"
        " segmenter is asked for"
    )


def _run(given: Given) -> int:
    """Validate, prepare, say what was found."""
    started = time.perf_counter()
    from engine.patient.prepare import alignment_table, prepare
    from engine.patient.sources import PrepareConfig

    def log(line: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {line}", flush=True)

    config = typed(PrepareConfig, given.plain)
    try:
        done = prepare(config, log)
    except KeyboardInterrupt as stop:
        words = [w for w in given.words if not w.startswith("out=")]
        again = shell_line("prepare_patient.py", [*words, quoted("out", config.out)])
        raise KeyboardInterrupt(
            f"stopped; the stages that were finished are kept; go on with:\n  {again}"
        ) from stop
    patient, segment = done.patient, done.segment
    print(f"{patient.name} {segment.name}: rule {segment.plan.rule} ({segment.plan.source})\n")
    print(alignment_table(segment.plan.measured, segment.plan.planned))
    for title, lines in (
        ("plan", segment.plan.notes),
        ("repair", patient.repairs),
        ("warning", segment.warnings),
    ):
        print("".join(f"\n{title}: {line}" for line in lines), end="")
    if not done.pictures:
        print(
            "\nwarning: no picture, as no off-screen renderer works here; open the .vtp files in"
            " ParaView",
            end="",
        )
    print(
        f"\n\nbundle: {done.out / 'patient'}\nsegment: {done.out / 'segment'}\nreport:"
        f" {(done.out / 'report.html').resolve()}"
    )
    print(
        f"next: {shell_line('optimize.py', [quoted('patient.bundle', config.out), 'check=true'])}"
    )
    return 0


def _problems(settings: DictConfig) -> Iterable[str]:
    from engine.patient.sources import PrepareConfig

    try:
        typed(PrepareConfig, OmegaConf.to_container(settings, resolve=True))  # type: ignore[arg-type]
    except ValueError as error:
        return lines_of(error)
    return []


COMMAND = Command(
    script="prepare_patient.py",
    config="prepare_patient",
    does=(
        "Reads a patient (CT or MRI with labels, a mask, surface meshes, or a phantom), passes the"
        " labels through a quality gate, measures alignment and bone, plans the corrected pose of"
        " one segment, and writes the patient, tables and report.html."
    ),
    options={
        "source.path": "the scan, mask or folder of meshes",
        "source.mask": "source=ct, mri: its labels, or totalsegmentator, spineps",
        "segment": "two neighbouring levels, the upper one first",
        "plan.rule": (
            "keep: as scanned; norms: towards published norms; others with plan=rule and"
            " plan=explicit"
        ),
        "alignment.pi_deg": "pelvic incidence from elsewhere",
        "source.accept": "findings of the quality gate to go on with, e.g. 'source.accept=[leak]'",
        "out": "the patient's folder",
    },
    examples=(
        "source=surfaces source.path=../shared/data/lumbar_meshes segment=L4-L5 out=cases/vhm",
        "source=mask 'source.path=my scans/seg (1).nii.gz' segment=L3-L4 plan=keep out=cases/b",
        (
            "source=ct source.path=dicom source.mask=labels.nii.gz calibration=phantomless"
            " out=cases/ct"
        ),
    ),
    task=_run,
    opening=_opening,
    problems=_problems,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
