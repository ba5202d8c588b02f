"""Read a patient, measure and plan a segment, and write the bundle.

    python scripts/prepare_patient.py source=surfaces source.path=../shared/data/lumbar_meshes segment=L4-L5 out=cases/a
    python scripts/prepare_patient.py source=mask source.path=seg.nii.gz segment=L3-L4 plan.rule=keep out=cases/b
    python scripts/prepare_patient.py source=ct source.path=dicom/ source.mask=seg.nii.gz calibration=phantomless out=cases/c
    python scripts/prepare_patient.py source=phantom source.spec.lordosis_deg=3 out=cases/d

Writes <out>/report.html, patient (bundle), segment (planned pose, segment frame), view (VTP, VTI, PNG) and tables as JSON.
Exit code 2 with one line for whatever is wrong with the input.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.patient.prepare import PrepareConfig, alignment_table, one_line, prepare


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare_patient")
def main(settings: DictConfig) -> None:
    """Compose, validate, prepare, report."""
    started = time.perf_counter()

    def log(line: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {line}", flush=True)

    try:
        config = PrepareConfig.model_validate(OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))
        done = prepare(config, log)
    except (ValueError, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    patient, segment = done.patient, done.segment
    print(f"{patient.name} {segment.name}: rule {segment.plan.rule} ({segment.plan.source})\n")
    print(alignment_table(segment.plan.measured, segment.plan.planned))
    for title, lines in (("plan", segment.plan.notes), ("repair", patient.repairs), ("warning", segment.warnings)):
        print("".join(f"\n{title}: {line}" for line in lines), end="")
    if not done.pictures:
        print("\nwarning: no picture, as no off-screen renderer works here; open the .vtp files in ParaView", end="")
    print(f"\n\nbundle: {done.out / 'patient'}\nsegment: {done.out / 'segment'}\nreport: {(done.out / 'report.html').resolve()}")


if __name__ == "__main__":
    try:
        main()
    except SystemExit as stop:  # Hydra ends with 1 after printing what is wrong with an override
        sys.exit(2 if stop.code == 1 else stop.code)
