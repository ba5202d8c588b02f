"""A designed run opened for its check."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from engine import artifacts, scene
from engine.implants import Family
from engine.patient import load_segment, phantom_segment
from engine.types import Segment
from fem.mesh.build import MeshSettings
from fem.solve import FemSettings
from scripts.console.overrides import resume_line
from scripts.console.places import ROOT
from scripts.run import arms as studies
from scripts.run.arms import Study
from scripts.run.config import FemConfig, PatientConfig, RunConfig
from scripts.run.folder import read_config


@dataclass(frozen=True)
class Opened:
    """A run folder with all that its check needs."""

    config: RunConfig
    segment: Segment
    study: Study
    families: dict[str, Family]
    crop_mm: np.ndarray
    mesh: MeshSettings
    fem: FemSettings


def open_designed(folder: Path, fem: FemConfig | None = None) -> Opened:
    """Read a run folder, with its own settings of the check or with `fem`. Raises ValueError
    when it is none."""
    config = read_config(folder)
    if fem is not None:
        config = config.model_copy(update={"fem": fem})
    segment = load_segment(folder / "segment")
    study = studies.make(segment, config.study)
    return Opened(
        config,
        segment,
        study,
        studies.families(study),
        scene.region_of_interest(segment),
        MeshSettings(**config.fem.mesh),
        FemSettings(**({"bone_law": config.study.solver.bone_law} | config.fem.solve)),
    )


def check_digest(fem: FemConfig) -> str:
    """Hash of what shapes the check's numbers."""
    return artifacts.digest(fem.model_dump(exclude={"processes"}))


def designs_digest(folder: Path) -> str:
    """Hash of the designs of all arms."""
    parts = sorted((folder / "designs").glob("*/design.json")) + sorted(
        (folder / "designs").glob("*/implant.stl")
    )
    return artifacts.digest([(str(p.relative_to(folder)), artifacts.sha256_file(p)) for p in parts])


def checked(folder: Path, fem: FemConfig) -> bool:
    """The report is there, of these designs, with these settings of the check, and no arm's
    process had died."""
    if not all((folder / name).exists() for name in ("result.json", "report.html")):
        return False
    hashes = artifacts.read_json(folder / "result.json")["hashes"]
    same = hashes.get("check") == check_digest(fem) and hashes.get("designs") == designs_digest(
        folder
    )
    return same and all((folder / "fem" / arm / "arm.json").exists() for arm in fem.arms)


def missing_designs(folder: Path, arms: Sequence[str]) -> list[str]:
    """The arms whose design the folder does not hold."""
    return [a for a in arms if not (folder / "designs" / a / "design.json").exists()]


def require_designs(folder: Path, arms: Sequence[str]) -> None:
    """Raises ValueError where the folder lacks the design of one of the arms."""
    if missing := missing_designs(folder, arms):
        raise ValueError(
            f"{folder} holds no design of {', '.join(missing)}; finish them first:"
            f" {resume_line(folder)}"
        )


def set_up_jax() -> None:
    """float64, and compiled code kept between runs."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    logging.getLogger("jax").setLevel(logging.WARNING)


def open_segment(patient: PatientConfig) -> Segment:
    """The planned segment. Raises ValueError when the folder is not one that prepare_patient.py
    wrote."""
    if patient.bundle is None:
        return phantom_segment(**patient.phantom)
    folder = Path(patient.bundle)
    if not (folder / "segment").is_dir():
        raise ValueError(
            f"patient.bundle={patient.bundle} holds no planned segment; give the `out` folder of"
            " scripts/prepare_patient.py"
        )
    return load_segment(folder / "segment")
