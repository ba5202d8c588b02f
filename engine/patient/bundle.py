"""Patients and segments on disk.

Bundle folder (one patient)
    bundle.json      schema, units, frame, name, density source, posture, repairs, source (with
                     sha256), endplates, pedicles and landmarks of each vertebra
    <level>.ply      surface, LPS mm
    S1.ply, S1.npz   the sacrum's surface, where there is one
    structures/      discs, canal, … as VTP, LPS mm, where the labels have them
    <level>.npz      sdf and density [x, y, z] float32, their origin_mm and spacing_mm (no pickles)
Segment folder: segment.json (plan, alignment, frames, warnings) and segment.npz (all arrays),
segment frame.

Writing goes to a temporary folder next to the target, which is then renamed: a reader never sees
half a bundle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyvista as pv

from engine.patient.geometry.distance import polydata
from engine.types import (
    AlignmentPlan,
    Endplate,
    Finding,
    LevelDemand,
    PatientModel,
    Sacrum,
    Segment,
    SegmentAlignment,
    Surface,
    Vertebra,
    VoxelField,
)

SCHEMA = 1
_UNITS = {"length": "mm", "density": "g/cm3", "angle": "deg", "frame": "LPS"}
_PLATE_ARRAYS = ("centre_mm", "normal", "rim_mm", "axis_left")


def source_hash(source: dict[str, Any]) -> str:
    """SHA-256 of what was read (contents and settings, not where it lay)."""
    # femoral heads are found or given on the way, not read: they make no other source of it
    content = {key: value for key, value in source.items() if key not in ("path", "femoral_heads")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_bundle(patient: PatientModel, folder: str | Path) -> Path:
    """Write the patient; an existing bundle is replaced when it comes from the same source.

    Raises: ValueError when the folder holds something else, or another patient.
    """
    target = Path(folder)
    _may_replace(target, "bundle.json", source_hash(patient.source))

    def write(where: Path) -> None:
        entries = []
        for vertebra in patient.vertebrae:
            polydata(vertebra.surface).save(where / f"{vertebra.name}.ply")
            arrays = {**_field("sdf", vertebra.sdf), **_field("density", vertebra.density)}
            # PLY keeps single precision; the exact surface goes with the fields
            arrays |= {"points_mm": vertebra.surface.points_mm, "faces": vertebra.surface.faces}
            _write_arrays(where / f"{vertebra.name}.npz", arrays)
            entries.append(_described(vertebra))
        if patient.sacrum is not None:
            surface = patient.sacrum.surface
            polydata(surface).save(where / "S1.ply")
            _write_arrays(
                where / "S1.npz", {"points_mm": surface.points_mm, "faces": surface.faces}
            )
        for name, surface in patient.structures.items():
            (where / "structures").mkdir(exist_ok=True)
            polydata(surface).save(where / "structures" / f"{name}.vtp")
        _dump(
            where / "bundle.json",
            {
                "schema": SCHEMA,
                "units": _UNITS,
                "name": patient.name,
                "density_source": patient.density_source,
                "posture": patient.posture,
                "repairs": list(patient.repairs),
                "source": patient.source,
                "source_hash": source_hash(patient.source),
                "findings": [finding.as_dict() for finding in patient.findings],
                "vertebrae": entries,
                "sacrum": None if patient.sacrum is None else _described_sacrum(patient.sacrum),
                "structures": list(patient.structures),
            },
        )

    return _atomically(target, write)


def load_bundle(folder: str | Path) -> PatientModel:
    """The patient of a bundle folder. Raises ValueError when it is none, or of another schema."""
    path = Path(folder)
    meta = _load(path / "bundle.json")
    vertebrae = []
    for entry in meta["vertebrae"]:
        with np.load(path / f"{entry['name']}.npz", allow_pickle=False) as arrays:
            vertebrae.append(_vertebra(entry, dict(arrays), ""))
    sacrum = None
    if meta.get("sacrum"):
        with np.load(path / "S1.npz", allow_pickle=False) as arrays:
            surface = Surface(arrays["points_mm"], arrays["faces"])
        landmarks = {key: np.array(point) for key, point in meta["sacrum"]["landmarks"].items()}
        sacrum = Sacrum(surface, _read_plate(meta["sacrum"]["superior"]), landmarks)
    return PatientModel(
        name=meta["name"],
        vertebrae=tuple(vertebrae),
        density_source=meta["density_source"],
        posture=meta["posture"],
        repairs=tuple(meta["repairs"]),
        source=meta["source"],
        sacrum=sacrum,
        findings=tuple(Finding(**entry) for entry in meta.get("findings", ())),
        structures={
            name: _read_structure(path / "structures" / f"{name}.vtp")
            for name in meta.get("structures", ())
        },
    )


def save_segment(segment: Segment, folder: str | Path) -> Path:
    """Write the segment (segment.json, segment.npz); an earlier segment of the same patient
    there is replaced."""
    target = Path(folder)
    _may_replace(target, "segment.json", hashlib.sha256(segment.patient.encode()).hexdigest())

    def write(where: Path) -> None:
        arrays = {**_field("disc", segment.disc), "lps_from_segment": segment.lps_from_segment}
        arrays["cranial_motion"] = segment.plan.cranial_motion
        for body in (segment.caudal, segment.cranial):
            key = "caudal_" if body is segment.caudal else "cranial_"
            arrays |= {**_field(key + "sdf", body.sdf), **_field(key + "density", body.density)}
            arrays |= {key + "points_mm": body.surface.points_mm, key + "faces": body.surface.faces}
        _write_arrays(where / "segment.npz", arrays)
        plan = segment.plan
        _dump(
            where / "segment.json",
            {
                "schema": SCHEMA,
                "units": {**_UNITS, "frame": "segment"},
                "name": segment.name,
                "patient": segment.patient,
                "source_hash": hashlib.sha256(segment.patient.encode()).hexdigest(),
                "density_source": segment.density_source,
                "warnings": list(segment.warnings),
                "plan": {
                    "rule": plan.rule,
                    "source": plan.source,
                    "measured": asdict(plan.measured),
                    "planned": asdict(plan.planned),
                    "notes": list(plan.notes),
                    "demands": [asdict(demand) for demand in plan.demands],
                },
                "caudal": _described(segment.caudal),
                "cranial": _described(segment.cranial),
            },
        )

    return _atomically(target, write)


def load_segment(folder: str | Path) -> Segment:
    """The segment of a folder. Raises ValueError when it holds none, or one of another schema."""
    path = Path(folder)
    meta = _load(path / "segment.json")
    with np.load(path / "segment.npz", allow_pickle=False) as file:
        arrays = dict(file)
    plan = meta["plan"]
    return Segment(
        name=meta["name"],
        patient=meta["patient"],
        caudal=_vertebra(meta["caudal"], arrays, "caudal_"),
        cranial=_vertebra(meta["cranial"], arrays, "cranial_"),
        disc=_read_field(arrays, "disc"),
        plan=AlignmentPlan(
            rule=plan["rule"],
            source=plan["source"],
            measured=SegmentAlignment(**plan["measured"]),
            planned=SegmentAlignment(**plan["planned"]),
            cranial_motion=arrays["cranial_motion"],
            notes=tuple(plan["notes"]),
            demands=tuple(LevelDemand(**entry) for entry in plan.get("demands", ())),
        ),
        lps_from_segment=arrays["lps_from_segment"],
        density_source=meta["density_source"],
        warnings=tuple(meta["warnings"]),
    )


def _described(vertebra: Vertebra) -> dict[str, Any]:
    """What JSON says of a vertebra (Python prints floats so that they read back exactly)."""
    return {
        "name": vertebra.name,
        "superior": _plate(vertebra.superior),
        "inferior": _plate(vertebra.inferior),
        "pedicles": {side: axis.tolist() for side, axis in vertebra.pedicles.items()},
        "landmarks": {key: np.asarray(point).tolist() for key, point in vertebra.landmarks.items()},
    }


def _plate(plate: Endplate) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in asdict(plate).items()
    }


def _vertebra(entry: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str) -> Vertebra:
    return Vertebra(
        name=entry["name"],
        surface=Surface(arrays[prefix + "points_mm"], arrays[prefix + "faces"]),
        sdf=_read_field(arrays, prefix + "sdf"),
        density=_read_field(arrays, prefix + "density"),
        superior=_read_plate(entry["superior"]),
        inferior=_read_plate(entry["inferior"]),
        pedicles={side: np.array(axis) for side, axis in entry["pedicles"].items()},
        landmarks={key: np.array(point) for key, point in entry["landmarks"].items()},
    )


def _described_sacrum(sacrum: Sacrum) -> dict[str, Any]:
    landmarks = {key: np.asarray(point).tolist() for key, point in sacrum.landmarks.items()}
    return {"superior": _plate(sacrum.superior), "landmarks": landmarks}


def _read_plate(entry: dict[str, Any]) -> Endplate:
    values: dict[str, Any] = {k: np.array(v) if k in _PLATE_ARRAYS else v for k, v in entry.items()}
    return Endplate(**values)


def _read_structure(path: Path) -> Surface:
    mesh = pv.read(path)
    assert isinstance(mesh, pv.PolyData)
    return Surface(
        np.asarray(mesh.points, float), mesh.faces.reshape(-1, 4)[:, 1:].astype(np.int64)
    )


def _field(name: str, field: VoxelField) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(field.values, np.float32),
        name + "_origin_mm": np.asarray(field.origin_mm, float),
        name + "_spacing_mm": np.array(field.spacing_mm, float),
    }


def _read_field(arrays: dict[str, np.ndarray], name: str) -> VoxelField:
    return VoxelField(
        arrays[name], arrays[name + "_origin_mm"], float(arrays[name + "_spacing_mm"])
    )


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(path, **arrays)


def _dump(path: Path, data: dict[str, Any]) -> None:
    path.write_text(
        json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent}: no {path.name} there; write one with scripts/prepare_patient.py"
        )
    meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if meta.get("schema") != SCHEMA:
        raise ValueError(
            f"{path}: schema {meta.get('schema')!r}, this version reads {SCHEMA}; prepare the"
            " patient again"
        )
    return meta


def _may_replace(target: Path, marker: str, sha256: str) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / marker).is_file():
        raise ValueError(
            f"{target} exists and holds no {marker}; it is not overwritten: choose another folder"
        )
    there = _load(target / marker).get("source_hash")
    if there != sha256:
        raise ValueError(
            f"{target} holds {marker} of another source ({str(there)[:12]}… against"
            f" {sha256[:12]}…); it is not overwritten: choose another folder, or delete it"
        )


def _atomically(target: Path, write: Any) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh, old = work / "new", work / "old"
        fresh.mkdir()
        write(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    finally:
        shutil.rmtree(work)
    return target
