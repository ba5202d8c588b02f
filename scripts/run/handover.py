"""What leaves a run for the scan: <run>/slicer/, all in LPS for 3D Slicer (engine/part/slicer.py).

The cranial vertebra stands at its planned pose in the segment frame, where the implants were
designed. The scan shows it elsewhere, at

    p_scanned = lps_from_segment · cranial_motion⁻¹ · p_segment

so both are written, with `planned` and `scanned` in their names; the caudal vertebra does not move.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from engine.part import slicer, surface
from engine.part.slicer import Axis, Colour, Model
from engine.patient import load_bundle, load_segment
from engine.patient.geometry.frames import inverse, move_surface
from engine.types import PatientModel, Segment, Vertebra, rigid
from scripts.run.config import ARMS, RunConfig
from scripts.run.folder import read_config

log = logging.getLogger("spinefit")
FOLDER = "slicer"
_BONE: Colour = (0.89, 0.85, 0.75)
_SCANNED: Colour = (0.60, 0.68, 0.80)
_AXIS: Colour = (0.80, 0.20, 0.10)
_ARMS: dict[str, Colour] = {
    "stock": (0.55, 0.55, 0.55),
    "stock_central": (0.75, 0.75, 0.75),
    "conforming": (0.85, 0.50, 0.20),
    "conforming_central": (0.91, 0.73, 0.54),
    "optimised": (0.12, 0.37, 0.66),
}


def write_slicer(folder: Path) -> list[Path]:
    """Write <folder>/slicer of a run that holds designs; returns the paths, the scene first.

    Files of an earlier design there (implant_*, vertebra_*, sacrum_*, axis_*) that this one does
    not have are removed; others stay.
    Raises ValueError when the folder is no run folder or holds no part.
    """
    config, segment = read_config(folder), load_segment(folder / "segment")
    parts = _implants(folder, segment)
    if not parts:
        raise ValueError(
            f"{folder} holds no part (designs/*/implant.stl); "
            "run scripts/optimize.py to its end first"
        )
    models = [*parts, *_vertebrae(segment), *_neighbours(config, segment)]
    title = f"{config.title or 'spinefit'}: {segment.patient} {segment.name}"
    where = folder / FOLDER
    paths = slicer.write_scene(where, title, models, _axes(segment), segment.lps_from_segment)
    for old in {
        p for stem in ("implant", "vertebra", "sacrum", "axis") for p in where.glob(f"{stem}_*")
    } - set(paths):
        old.unlink()
    return paths


def _implants(folder: Path, segment: Segment) -> list[Model]:
    """The part of every arm, and the optimised part's struts where they were made."""
    models = []
    for arm in ARMS:
        for file, what in (("implant", "outline"), ("lattice", "struts of the lattice")):
            path = folder / "designs" / arm / f"{file}.stl"
            if path.exists():
                moved = move_surface(segment.lps_from_segment, surface.read(path))
                name = f"implant_{arm}" + ("" if file == "implant" else "_lattice")
                words = f"implant of the {arm.replace('_', ' ')} arm, {what}, at the planned pose"
                models.append(
                    Model(
                        name,
                        words,
                        moved,
                        _ARMS[arm],
                        visible=(arm, file) == ("optimised", "implant"),
                    )
                )
    return models


def _vertebrae(segment: Segment) -> list[Model]:
    to_scan = segment.lps_from_segment @ inverse(segment.plan.cranial_motion)
    upper, lower = segment.cranial, segment.caudal
    planned = "at the planned pose, for which the implants are made"
    return [
        Model(
            f"vertebra_{lower.name}_scanned_and_planned",
            f"{lower.name} as scanned; the plan does not move it",
            move_surface(segment.lps_from_segment, lower.surface),
            _BONE,
            0.5,
        ),
        Model(
            f"vertebra_{upper.name}_planned",
            f"{upper.name} {planned}",
            move_surface(segment.lps_from_segment, upper.surface),
            _BONE,
            0.5,
        ),
        Model(
            f"vertebra_{upper.name}_scanned",
            f"{upper.name} as scanned, before the correction",
            move_surface(to_scan, upper.surface),
            _SCANNED,
            0.3,
        ),
    ]


def _neighbours(config: RunConfig, segment: Segment) -> list[Model]:
    """The scan's other vertebrae and its sacrum, if the prepared patient lies where it was."""
    patient = _patient(config)
    if patient is None:
        return []
    own = {segment.cranial.name, segment.caudal.name}
    models = [
        Model(
            f"vertebra_{v.name}_scanned",
            f"{v.name} as scanned",
            v.surface,
            _SCANNED,
            0.3,
            visible=False,
        )
        for v in patient.vertebrae
        if v.name not in own
    ]
    if patient.sacrum is not None:
        models.append(
            Model("sacrum_scanned", "sacrum as scanned", patient.sacrum.surface, _SCANNED, 0.3)
        )
    return models


def _patient(config: RunConfig) -> PatientModel | None:
    if config.patient.bundle is None:
        return None
    folder = Path(config.patient.bundle) / "patient"
    try:
        return load_bundle(folder)
    except (ValueError, OSError) as error:
        log.warning("slicer/: without the neighbouring vertebrae and the sacrum: %s", error)
        return None


def _axes(segment: Segment) -> list[Axis]:
    """Pedicle axes, along which the screws stand: as planned, and of the cranial one as scanned."""
    back = inverse(segment.plan.cranial_motion)
    identity = np.eye(4)
    out: list[Axis] = []
    cases: tuple[tuple[Vertebra, np.ndarray, str, str], ...] = (
        (segment.caudal, identity, "scanned_and_planned", "as scanned; the plan does not move it"),
        (segment.cranial, identity, "planned", "at the planned pose"),
        (segment.cranial, back, "scanned", "as scanned"),
    )
    for body, motion, pose, words in cases:
        for side, axis in sorted(body.pedicles.items()):
            points = rigid(segment.lps_from_segment @ motion, np.asarray(axis, float))
            text = f"pedicle axis (screw) of {body.name}, {side}, entry to target, {words}"
            out.append(
                Axis(
                    f"axis_{body.name}_{side}_{pose}",
                    text,
                    points,
                    _AXIS if pose != "scanned" else _SCANNED,
                )
            )
    return out


def described(folder: Path) -> dict[str, str]:
    """What result.json lists of it: what → path in the run folder; empty if nothing was written."""
    found = {
        "3D Slicer scene, LPS": slicer.SCENE,
        "3D Slicer: what is in the folder": slicer.README,
    }
    return {
        what: f"{FOLDER}/{name}"
        for what, name in found.items()
        if (folder / FOLDER / name).exists()
    }
