"""Patients from scans: a label image, alone or with the CT or MRI that it was drawn on.

mask   geometry from the labels; density assumed
ct     labels + CT: geometry from the labels, density from calibrated HU
mri    labels + MRI: geometry only; an MRI has no HU, and asking it for density is an error
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.patient.anatomy.hips import femoral_heads
from engine.patient.anatomy.structures import structures
from engine.patient.anatomy.vertebra import Anatomy
from engine.patient.bone.assumed import BoneProfile
from engine.patient.bone.calibration import Calibration
from engine.patient.bone.ct_density import check_plausible, ct_density
from engine.patient.bone.hounsfield import Metal
from engine.patient.geometry.frames import unit
from engine.patient.geometry.levels import parse_segment
from engine.patient.geometry.meshes import repair
from engine.patient.labels.pieces import Piece
from engine.patient.labels.quality import stops
from engine.patient.labels.refine import refine_surface
from engine.patient.labels.surface import mask_surface
from engine.patient.labels.understand import Labels, understand
from engine.patient.model.assemble import DensityOf, assemble
from engine.patient.read.image import Image, around
from engine.patient.read.images import read_labels
from engine.patient.stages import Stages
from engine.types import Finding, PatientModel, Surface, VoxelField, rigid


@dataclass(frozen=True)
class ScanOptions:
    """How surfaces and density are made.

    edge_mm: remeshing; spacing_mm: the patient's fields; shell: ct_density.py; refine: edges placed
    by the CT's HU (refine.py)
    """

    edge_mm: float = 1.5
    spacing_mm: float = 0.75
    shell: str = "auto"
    refine: bool = False


def from_labels(
    name: str,
    labels: Labels,
    segment: tuple[str, str],
    source: dict[str, Any],
    *,
    options: ScanOptions | None = None,
    scan: Image | None = None,
    calibration: Calibration | None = None,
    profile: BoneProfile | None = None,
    posture: str = "supine",
    stages: Stages | None = None,
    metal: Metal | None = None,
) -> PatientModel:
    """Patient of the levels in `labels`; those of `segment` must succeed, others are left out with
    a note when they fail.

    scan, calibration   a CT and its HU → density line; without a calibration the density is assumed
                        (`profile`)
    metal               in that CT, on its grid: kept as structures "metal_1", …, and left out of
                        the density
    Where options.refine is set, a scan is needed; a level whose edges HU do not show keeps its
    mask's, with a note.

    Raises: ValueError as `assemble` and `ct_density` do.
    """
    options, stages = options or ScanOptions(), stages or Stages()
    edges_of = scan if options.refine else None
    surfaces, notes = _surfaces(labels, segment, options, stages, edges_of)
    profile = profile or BoneProfile()
    density: BoneProfile | DensityOf = profile
    density_source = None
    if calibration is not None:
        assert scan is not None
        density = _density(scan, calibration, options.shell, profile, stages, metal)
        density_source = f"ct:{calibration.kind}"
        notes += calibration.notes
    sacrum = surfaces.pop("S1", None)
    return assemble(
        name,
        surfaces,
        options.spacing_mm,
        options.edge_mm,
        density,
        posture,
        notes,
        source,
        density_source=density_source,
        required=segment,
        sacrum=sacrum,
        findings=labels.findings,
        stages=stages,
    )


def _surfaces(
    labels: Labels,
    segment: tuple[str, str],
    options: ScanOptions,
    stages: Stages,
    scan: Image | None,
) -> tuple[dict[str, Surface], list[str]]:
    """Surfaces of the levels by name, and the labels' notes with those on the surfaces; `scan`
    places edges by HU.

    Raises: ValueError for a level of the segment that fails.
    """
    surfaces: dict[str, Surface] = {}
    notes = list(labels.notes)
    for level, piece in labels.pieces.items():
        try:
            surfaces[level], lines = _surface(level, piece, options, stages, labels, scan)
            notes += lines
        except ValueError as error:
            if level in segment:
                raise
            notes.append(f"{level} is left out: {error}")
    return surfaces, notes


def with_structures(
    patient: PatientModel,
    labels: Labels,
    subregions: Image | None = None,
    stages: Stages | None = None,
) -> PatientModel:
    """The patient with what else the labels hold: discs, canal, … (structures.py), and femoral
    heads in source["femoral_heads"] (hips.py).

    Raises: ValueError where the sub-region mask does not belong to the labels.
    """

    def make() -> tuple[dict[str, np.ndarray], list[str]]:
        surfaces, notes = structures(labels, subregions)
        arrays = {f"points_mm:{name}": surface.points_mm for name, surface in surfaces.items()}
        return (
            arrays | {f"faces:{name}": surface.faces for name, surface in surfaces.items()},
            notes,
        )

    image = labels.image
    key = (image.values, image.lps_from_index, list(labels.pieces), labels.scheme.name)
    parts = None if subregions is None else subregions.values
    arrays, notes = (stages or Stages()).run("structures", (key, parts), make)
    names = [name.removeprefix("points_mm:") for name in arrays if name.startswith("points_mm:")]
    surfaces = {
        name: Surface(arrays[f"points_mm:{name}"], arrays[f"faces:{name}"]) for name in names
    }
    heads, line = femoral_heads(labels)
    cut = _plates_on_the_border(patient, labels)
    source = dict(patient.source)
    if line:
        source["femoral_heads"] = {"how": line} | (
            {} if heads is None else {"centres_mm": heads.tolist()}
        )
    if subregions is not None:
        source["sha256"] = source["sha256"] | {"subregions": str(subregions.source.get("sha256"))}
    return replace(
        patient,
        structures=surfaces,
        source=source,
        repairs=(*patient.repairs, *notes),
        findings=(*patient.findings, *cut),
    )


def _plates_on_the_border(patient: PatientModel, labels: Labels) -> tuple[Finding, ...]:
    """Endplates that are the image's border: of a level whose truncation was accepted, the cut
    looks like one."""
    image = labels.image
    to_index, last = np.linalg.inv(image.lps_from_index), np.array(image.values.shape) - 1.0
    findings = []
    for body in patient.vertebrae:
        for side, plate in (("superior", body.superior), ("inferior", body.inferior)):
            index = rigid(to_index, plate.rim_mm)
            # 1.5 voxels: the mask ends half a voxel beyond the last centre, and its surface is
            # rounded there
            if float(((index < 1.5) | (index > last - 1.5)).any(axis=1).mean()) > 0.25:
                text = (
                    f"what was taken for the {side} endplate is the image's border: what is"
                    " measured from it is not the patient's"
                )
                x, y, z = map(float, plate.centre_mm)
                findings.append(Finding("truncated", "warning", body.name, text, (x, y, z)))
    return tuple(findings)


def _surface(
    level: str,
    piece: Piece,
    options: ScanOptions,
    stages: Stages,
    labels: Labels,
    scan: Image | None = None,
) -> tuple[Surface, list[str]]:
    """Closed, remeshed surface of a piece; with a scan, its edges are placed by HU."""
    key: list[Any] = [piece.mask, piece.lps_from_index, options.edge_mm]
    hu: tuple[Image, Image, float, np.ndarray | None] | None = None
    if scan is not None:
        hu = (
            scan,
            other_bones(piece, labels),
            float(labels.image.voxel_mm.max()),
            _toward_the_spine(level, piece, labels),
        )
        key += [scan.source.get("sha256"), scan.lps_from_index, hu[1].values, hu[3]]

    def make() -> tuple[dict[str, np.ndarray], list[str]]:
        surface, lines = mask_surface(piece.mask, piece.lps_from_index), []
        if hu is not None:
            try:
                moved = refine_surface(surface, *hu)
                surface = moved.surface
                place = "surface" if hu[3] is None else "upper side"
                lines = [
                    f"{level}: edges placed by HU on {100 * moved.share:.0f} % of the {place};"
                    f" moved by {moved.rms_mm:.2f} mm rms, {moved.largest_mm:.1f} mm at most;"
                    " volume as in the mask"
                ]
            except ValueError as error:
                lines = [f"{level}: edges are the mask's: {error}"]
        surface, repairs = repair(level, surface, options.edge_mm)
        return {"points_mm": surface.points_mm, "faces": surface.faces}, lines + repairs

    arrays, notes = stages.run(f"surface_{level}", key, make)
    return Surface(arrays["points_mm"], arrays["faces"]), notes


def _toward_the_spine(level: str, piece: Piece, labels: Labels) -> np.ndarray | None:
    """From the sacrum to the level above it; None for other levels, all of whose surface is bone's.

    Its label may end inside bone below, and the ilia may be no labels: only the endplate and what
    faces as it does is refined.
    """
    above = [each for name, each in labels.pieces.items() if name != "S1"]
    if level != "S1" or not above:
        return None
    last, own = (
        rigid(each.lps_from_index, np.argwhere(each.mask)).mean(axis=0)
        for each in (above[-1], piece)
    )
    return unit(last - own)


def other_bones(piece: Piece, labels: Labels, margin_mm: float = 8.0) -> Image:
    """1 where other vertebrae, the sacrum or hips are labelled, in the piece's box and a margin."""
    image = labels.image
    tissues = labels.scheme.tissues
    hips = (*tissues.get("hip_left", ()), *tissues.get("hip_right", ()))
    numbers = [*labels.scheme.vertebrae.values(), *labels.scheme.sacrum, *hips]
    corner = np.rint(
        rigid(np.linalg.inv(image.lps_from_index), piece.lps_from_index[:3, 3])
    ).astype(int)
    pad = np.ceil(margin_mm / image.voxel_mm).astype(int)
    low = np.maximum(corner - pad, 0)
    high = np.minimum(corner + piece.mask.shape + pad, image.values.shape)
    values = np.isin(
        image.values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], numbers
    )
    own = values[
        tuple(slice(a, a + n) for a, n in zip(corner - low, piece.mask.shape, strict=True))
    ]
    own &= ~piece.mask
    matrix = image.lps_from_index.copy()
    matrix[:3, 3] = rigid(matrix, low.astype(float))
    return Image(values.astype(np.uint8), matrix, "SEG", (), {})


def with_hardware(patient: PatientModel, scan: Image, metal: Metal) -> PatientModel:
    """The patient with what metal and cement the scan shows: surfaces among the structures,
    figures in source["hardware"]."""
    surfaces = {
        f"{one['kind'].split()[0]}_{one['number']}": mask_surface(
            *_boxed(metal.objects == one["number"], scan.lps_from_index)
        )
        for one in metal.about
    }
    source = patient.source | {"hardware": list(metal.about)}
    return replace(patient, structures=patient.structures | surfaces, source=source)


def _boxed(mask: np.ndarray, lps_from_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mask cut to what it holds, and the matrix of that part."""
    there = np.argwhere(mask)
    low, high = there.min(axis=0), there.max(axis=0) + 1
    matrix = lps_from_index.copy()
    matrix[:3, 3] = rigid(matrix, low.astype(float))
    return mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], matrix


def _density(
    scan: Image,
    calibration: Calibration,
    shell: str,
    profile: BoneProfile,
    stages: Stages,
    metal: Metal | None = None,
) -> DensityOf:
    """`ct_density` of a level as a stage, and checked to be a vertebra's."""
    excluded = None if metal is None else metal.excluded

    def density(level: str, sdf: VoxelField, own: Anatomy) -> tuple[VoxelField, list[str]]:
        def make() -> tuple[dict[str, np.ndarray], list[str]]:
            field, notes = ct_density(
                sdf,
                scan,
                calibration,
                shell=shell,
                profile=profile,
                superior=own.superior,
                inferior=own.inferior,
                excluded=excluded,
            )
            check_plausible(field, sdf)
            return {"values": field.values}, [f"{level}: {line}" for line in notes]

        key = (
            sdf.values,
            sdf.origin_mm,
            scan.source.get("sha256"),
            calibration,
            shell,
            profile.model_dump(),
            excluded,
        )
        arrays, notes = stages.run(f"density_{level}", key, make)
        return VoxelField(arrays["values"], sdf.origin_mm, sdf.spacing_mm), notes

    return density


def labels_within_scan(image: Image, labels: Labels, segment: tuple[str, str]) -> Labels:
    """The labels without levels that lie outside the scan and that the segment does not need; a
    finding says so.

    Raises: ValueError where a vertebra of the segment lies outside: scan and labels are not of one
    patient, or not in one frame.
    """
    inverse = np.linalg.inv(image.lps_from_index)
    pieces, findings = dict(labels.pieces), list(labels.findings)
    for level, piece in labels.pieces.items():
        index = rigid(inverse, rigid(piece.lps_from_index, np.argwhere(piece.mask)))
        inside = ((index > -1.0) & (index < np.array(image.values.shape))).all(axis=1).mean()
        if inside >= 0.95:
            continue
        text = f"{100 * inside:.0f} % of the voxels labelled {level} lie in the scan"
        if level not in segment:
            del pieces[level]
            findings.append(Finding("displaced", "left out", level, text))
            continue
        corner = np.array([np.zeros(3), np.array(image.values.shape) - 1.0])
        low, high = np.sort(rigid(image.lps_from_index, corner), axis=0).round()
        middle = rigid(piece.lps_from_index, np.argwhere(piece.mask)).mean(axis=0)
        raise ValueError(
            f"{text} (LPS {low.tolist()} to {high.tolist()} mm; the label's centre is at"
            f" {middle.round().tolist()}): give the scan that the labels were drawn on"
        )
    return replace(labels, pieces=pieces, findings=tuple(findings))


def cropped(image: Image, labels: Labels, margin_mm: float = 45.0) -> Image:
    """The part of a scan around the pieces that are read (what is far from the spine is not held
    in memory)."""
    part = around(
        image, np.concatenate([piece.corners_mm() for piece in labels.pieces.values()]), margin_mm
    )
    return replace(part, values=np.ascontiguousarray(part.values))


def stem(path: str | Path) -> str:
    """A name for the patient from where it was read: the file's or folder's name without image
    endings."""
    name = Path(path).resolve().name
    for ending in (".gz", ".nii", ".nrrd", ".mha", ".mhd", ".dcm"):
        name = name.removesuffix(ending)
    return name


def from_mask(
    path: str | Path,
    segment: str,
    *,
    scheme: str = "auto",
    label_map: Mapping[str, int] | None = None,
    levels: str = "segment",
    accept: tuple[str, ...] = (),
    edge_mm: float = 1.5,
    spacing_mm: float = 0.75,
    posture: str = "supine",
    profile: BoneProfile | None = None,
    name: str | None = None,
    subregions: str | Path | None = None,
) -> PatientModel:
    """Patient from a label image alone, with assumed density; subregions: a TPTBox/SPINEPS
    sub-region mask on the same grid.

    Raises: ValueError for an unreadable image and for what the quality gate stops at.
    """
    pair = parse_segment(segment)
    image = read_labels(path)
    labels = understand(
        image, pair, scheme=scheme, label_map=label_map, levels=levels, accept=accept
    )
    if stopping := stops(labels.findings):
        raise ValueError(f"{path}: {stopping}")
    source = source_of("mask", path, labels)
    options = ScanOptions(edge_mm, spacing_mm)
    patient = from_labels(
        name or stem(path), labels, pair, source, options=options, profile=profile, posture=posture
    )
    return with_structures(
        patient, labels, None if subregions is None else read_labels(subregions, image)
    )


def source_of(
    kind: str,
    path: str | Path,
    labels: Labels,
    accept: Sequence[str] = (),
    scan: Image | None = None,
) -> dict[str, Any]:
    """What a bundle says of where it came from."""
    read = labels.image.source
    source: dict[str, Any] = {
        "kind": kind,
        "path": str(path),
        "sha256": {"labels": str(read.get("sha256"))},
        "labels": labels.scheme.name,
    }
    if accept:
        source["accepted"] = list(accept)
    if scan is not None:
        source["sha256"]["scan"] = str(scan.source.get("sha256"))
        source["scan"] = {
            key: value for key, value in scan.source.items() if key not in ("path", "sha256")
        }
    return source
