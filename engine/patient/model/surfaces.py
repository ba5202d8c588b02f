"""Patients from surface files, one per vertebra, of unknown axes.

Axes: cranial is where the upper of the two named levels lies; posterior is where the processes lie
from the body (the bone's centroid from its thickest part); left completes the right-handed frame.
When these agree with signed file axes within 35° the points are permuted exactly, so that the
patient's own tilt is kept; otherwise they are rotated onto what was found, and it is said. `axes`
(three letters: where the file's x, y and z point, e.g. "ALS" for x anterior, y left, z superior)
overrides the finding and is checked against it; a left-handed code mirrors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.patient.anatomy.vertebra import body_centre
from engine.patient.bone.assumed import BoneProfile
from engine.patient.geometry.distance import surface_sdf
from engine.patient.geometry.frames import unit
from engine.patient.geometry.levels import LEVELS, parse_segment
from engine.patient.geometry.meshes import repair
from engine.patient.labels import identity
from engine.patient.labels.pieces import solid_piece
from engine.patient.labels.quality import mark_accepted, stops
from engine.patient.labels.understand import LUMBAR
from engine.patient.model.assemble import assemble
from engine.patient.read.files import first_names
from engine.patient.read.names import level_of
from engine.patient.read.surface_files import READABLE, read_surface
from engine.patient.stages import Stages
from engine.types import Finding, PatientModel, Surface

#: Anatomical directions closer than this to signed file axes are taken for these.
SIGNED_AXES_DEG = 35.0
#: Bodies of two levels that are closer than this, mm, are one bone under two names.
_LEAST_APART_MM = 8.0
#: LPS axis and direction of each anatomical letter.
_LPS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
_WORDS = dict(zip("LRPASI", "left right posterior anterior superior inferior".split(), strict=True))


def from_surfaces(
    path: str | Path,
    segment: str,
    *,
    unit: str = "mm",
    axes: str | None = None,
    edge_mm: float = 1.5,
    spacing_mm: float = 0.75,
    posture: str = "unknown",
    levels: str = "lumbar",
    profile: BoneProfile | None = None,
    name: str | None = None,
    stages: Stages | None = None,
    accept: tuple[str, ...] = (),
) -> PatientModel:
    """Patient from a folder with L4.stl, L5.stl, … or names that say as much (sub-folders are
    ignored).

    levels   "segment": only its two vertebrae; "lumbar": also what else of T12-L6 and S1 (the
             sacrum) is there
    accept   findings to go on with (quality.py): "identity", where bones have not the sizes of the
             levels they are named after

    Raises: ValueError for whatever keeps the segment's files from being two neighbouring vertebrae
    in one frame.
    """
    stages = stages or Stages()
    pair = parse_segment(segment)
    folder = Path(path)
    read = _read_levels(folder, pair, levels, unit, edge_mm, stages)
    notes = list(read.notes)
    if unit != "mm":
        notes.append(f"coordinates read as {unit}")
    matrix, line = file_to_lps(read.meshes, pair, axes)
    notes.append(line)
    surfaces = {level: turn_matrix(matrix, surface) for level, surface in read.meshes.items()}
    findings = mark_accepted(_identity(surfaces, read.files), accept)
    if stopping := stops(findings):
        raise ValueError(f"{path}: {stopping}")
    sacrum = surfaces.pop("S1", None)
    return assemble(
        name or folder.resolve().name,
        surfaces,
        spacing_mm,
        edge_mm,
        profile or BoneProfile(),
        posture,
        notes,
        _source(folder, read.files, unit, matrix),
        required=pair,
        sacrum=sacrum,
        findings=tuple(findings),
        stages=stages,
    )


class _LevelFiles(NamedTuple):
    """Repaired surfaces by level, in the files' axes, the files they are from, and notes."""

    meshes: dict[str, Surface]
    files: dict[str, Path]
    notes: list[str]


def _read_levels(
    folder: Path,
    pair: tuple[str, str],
    levels: str,
    file_unit: str,
    edge_mm: float,
    stages: Stages,
) -> _LevelFiles:
    """The segment's two levels, and those beyond it that are wanted and readable.

    Raises: ValueError for a level of the segment that is missing or fails.
    """
    files = {level: _required(folder, level) for level in pair}
    meshes: dict[str, Surface] = {}
    notes: list[str] = []
    beyond = (*LUMBAR, "S1") if levels == "lumbar" else ()
    for level in (level for level in LEVELS if level in pair or level in beyond):
        try:
            file = files.get(level) or surface_file(folder, level)
        except ValueError as error:
            notes.append(f"{level} is left out: {error}")
            continue
        if file is None:
            continue  # a level beyond the segment that has no file
        files[level] = file
        if file.stem.upper() != level:
            notes.append(f"{level} is read from {file.name}")
        try:
            raw, _ = read_surface(file, file_unit)
            meshes[level], lines = _repaired(level, raw, edge_mm, stages)
            notes += lines
        except ValueError as error:
            if level in pair:
                raise
            notes.append(f"{level} is left out: {error}")
    return _LevelFiles(meshes, files, notes)


def _source(
    folder: Path, files: dict[str, Path], file_unit: str, matrix: np.ndarray
) -> dict[str, Any]:
    """What a bundle says of where it came from."""
    return {
        "kind": "surfaces",
        "path": str(folder.resolve()),
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files.values()
        },
        "unit": file_unit,
        "lps_from_file": matrix.tolist(),
    }


def _identity(surfaces: dict[str, Surface], files: dict[str, Path]) -> list[Finding]:
    """What the bones' sizes say of the levels that the files are named after, and that nothing
    tells the sides."""
    pieces = {level: solid_piece(level, surface) for level, surface in surfaces.items()}
    names = ", ".join(files[level].name for level in pieces)
    clues = identity.evidence(pieces)
    text = (
        "left and right are taken from the files' axes: bones are symmetric, and nothing tells a"
        " mirrored spine"
    )
    return [
        *identity.findings(pieces, clues, f"the files' names ({names})"),
        Finding("sides", "note", "", text),
    ]


def _repaired(
    level: str, raw: Surface, edge_mm: float, stages: Stages
) -> tuple[Surface, list[str]]:
    """`meshes.repair` as a stage."""

    def make() -> tuple[dict[str, np.ndarray], list[str]]:
        surface, lines = repair(level, raw, edge_mm)
        return {"points_mm": surface.points_mm, "faces": surface.faces}, lines

    arrays, lines = stages.run(f"surface_{level}", (raw, edge_mm), make)
    return Surface(arrays["points_mm"], arrays["faces"]), lines


def file_to_lps(
    meshes: dict[str, Surface], levels: tuple[str, str], axes: str | None
) -> tuple[np.ndarray, str]:
    """Matrix [3, 3] from file axes to LPS (module docstring) and the line that says how it was
    found."""
    fields = {level: surface_sdf(meshes[level], 2.0) for level in levels}
    centres = {level: body_centre(fields[level]) for level in levels}
    apart = float(np.linalg.norm(centres[levels[0]] - centres[levels[1]]))
    if apart < _LEAST_APART_MM:
        raise ValueError(
            f"{levels[0]} and {levels[1]} lie in one place (bodies {apart:.1f} mm apart): one bone"
            " under two names, or each file in a frame of its own; give both as they stand in the"
            " patient"
        )
    up = unit(centres[levels[0]] - centres[levels[1]])
    back = sum(
        (meshes[level].points_mm.mean(axis=0) - centres[level] for level in levels), np.zeros(3)
    )
    back = unit(back - (back @ up) * up)
    # rows: left, posterior, superior in file axes
    anatomical = np.stack([np.cross(back, up), back, up])
    exact = np.zeros((3, 3))
    largest = np.argmax(np.abs(anatomical), axis=1)
    exact[np.arange(3), largest] = np.sign(anatomical[np.arange(3), largest])
    fits = len(set(largest)) == 3 and bool(
        (np.abs(anatomical).max(axis=1) > np.cos(np.radians(SIGNED_AXES_DEG))).all()
    )
    if axes is None:
        if fits:
            return exact, f"axes found from the anatomy: {_in_words(_code(exact))}; permuted to LPS"
        return anatomical, (
            "axes found from the anatomy are oblique to the file's; rotated onto left,"
            " posterior, superior"
        )
    given = orientation_matrix(axes)
    for row, what in ((2, "superior"), (1, "posterior")):
        if given[row] @ anatomical[row] < 0.5:
            raise ValueError(
                f"source.axes={axes} contradicts the anatomy ({what} is elsewhere); found"
                f" {_code(exact) if fits else 'oblique axes'}: leave source.axes out, or check the"
                " level names"
            )
    line = f"axes as given: {_in_words(axes)}"
    return given, (
        line if np.linalg.det(given) > 0 else line + "; left-handed, so the surfaces are mirrored"
    )


def orientation_matrix(axes: str) -> np.ndarray:
    """Matrix [3, 3] from file axes to LPS of a three-letter code (module docstring).

    Raises: ValueError for a code that does not name each direction once.
    """
    matrix = np.zeros((3, 3))
    letters = str(axes).upper()
    if len(letters) == 3 and all(letter in _LPS for letter in letters):
        for column, letter in enumerate(letters):
            row, sign = _LPS[letter]
            matrix[row, column] = sign
    if abs(np.linalg.det(matrix)) != 1.0:
        raise ValueError(
            f"source.axes={axes!r} is not understood; give where x, y, z point with one of L/R,"
            " P/A, S/I each, e.g. ALS"
        )
    return matrix


def _code(matrix: np.ndarray) -> str:
    letters = {(row, sign): letter for letter, (row, sign) in _LPS.items()}
    rows = np.argmax(np.abs(matrix), axis=0)
    return "".join(letters[(int(row), int(matrix[row, column]))] for column, row in enumerate(rows))


def _in_words(code: str) -> str:
    return (
        ", ".join(
            f"{axis} {_WORDS[letter]}" for axis, letter in zip("xyz", code.upper(), strict=True)
        )
        + f" ({code})"
    )


def turn_matrix(matrix: np.ndarray, surface: Surface) -> Surface:
    """The surface turned by a rotation or a reflection; its triangles keep pointing outwards."""
    faces = surface.faces if np.linalg.det(matrix) > 0 else surface.faces[:, ::-1].copy()
    return Surface(surface.points_mm @ matrix.T, faces)


def surface_file(folder: Path, level: str) -> Path | None:
    """The file of a level in a folder: the one called just so (L4.stl), else the one whose name
    says it (sb_L4_v2.stl).

    Raises: ValueError for a path that is no folder, and for several files of the level.
    """
    there = _surface_files(folder, level)
    hits = [file for file in there if file.stem.upper() == level] or [
        file for file in there if level_of(file.stem) == level
    ]
    if len(hits) > 1:
        raise ValueError(
            f"{folder}: {level} is there more than once ({', '.join(hit.name for hit in hits)});"
            f" keep one, or call it {level}.stl"
        )
    return hits[0] if hits else None


def _surface_files(folder: Path, level: str) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(
            f"source.path={folder} is not a folder; give the folder that holds {level}.stl and the"
            " like"
        )
    try:
        return sorted(
            f
            for f in folder.iterdir()
            if f.suffix.lower() in READABLE and not f.name.startswith(".") and f.is_file()
        )
    except PermissionError:
        raise ValueError(f"{folder} cannot be read: permission denied") from None


def _required(folder: Path, level: str) -> Path:
    """The file of a level that must be there. Raises ValueError listing what is there."""
    file = surface_file(folder, level)
    if file is None:
        names = (
            first_names([f.name for f in _surface_files(folder, level)], 12) or "no surface files"
        )
        word = "sacrum" if level == "S1" else f"vertebra_{level}"
        raise ValueError(
            f"{folder}: no file for {level} (expected {level}{'|'.join(READABLE)}, or a name that"
            f" says it as {word}.stl, patient_{level}_v2.stl); there is {names}"
        )
    return file
