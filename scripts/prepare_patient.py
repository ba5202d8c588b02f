"""Read a patient, measure and plan a segment, and write the bundle.

    python scripts/prepare_patient.py source=surfaces source.path=../shared/data/lumbar_meshes segment=L4-L5 out=cases/a
    python scripts/prepare_patient.py source=mask source.path=seg.nii.gz segment=L3-L4 plan.rule=keep out=cases/b
    python scripts/prepare_patient.py source=phantom source.spec.lordosis_deg=3 out=cases/c

Writes <out>/patient (bundle), <out>/segment (planned pose, segment frame) and <out>/view (VTP, VTI, PNG).
Exit code 2 with one line for whatever is wrong with the input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.patient import PrepareConfig, load_patient, plan, save_bundle, save_segment
from engine.patient.overview import write_overview
from engine.patient.prepare import alignment_table, one_line


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare_patient")
def main(settings: DictConfig) -> None:
    """Compose, validate, prepare, report."""
    try:
        config = PrepareConfig.model_validate(OmegaConf.to_container(settings, resolve=True, throw_on_missing=True))
        patient = load_patient(config)
        segment = plan(patient, config.segment, config.plan)
        out = Path(config.out)
        bundle = save_bundle(patient, out / "patient")
        save_segment(segment, out / "segment")
        files = write_overview(segment, out / "view")
    except (ValueError, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"{patient.name} {segment.name}: rule {segment.plan.rule} ({segment.plan.source})\n")
    print(alignment_table(segment.plan.measured, segment.plan.planned))
    for title, lines in (("plan", segment.plan.notes), ("repair", patient.repairs), ("warning", segment.warnings)):
        print("".join(f"\n{title}: {line}" for line in lines), end="")
    if not any(file.suffix == ".png" for file in files):
        print("\nwarning: no picture, as no off-screen renderer works here; open the .vtp files in ParaView", end="")
    print(f"\n\nbundle: {bundle}\nsegment: {out / 'segment'}\nview: {out / 'view'}")


if __name__ == "__main__":
    try:
        main()
    except SystemExit as stop:  # Hydra ends with 1 after printing what is wrong with an override
        sys.exit(2 if stop.code == 1 else stop.code)
