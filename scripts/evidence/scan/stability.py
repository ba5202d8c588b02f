"""Real patients as they are, resampled, turned, and on coarser grids: what their figures owe to
that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from engine.patient.geometry.distance import polydata
from engine.patient.phantoms.scan_files import write_nifti
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from engine.patient.read.surface_files import read_surface
from engine.types import Surface
from scripts.console.markdown import table
from scripts.evidence.scan.cases import TURN_DEG, Case, CaseResult, CaseSetConfig, failures

#: Change that the figures of a patient may show under resampling and turning: the aim.
LIMIT = {"deg": 1.0, "mm": 0.5}
#: Measured against gravity, or derived from that: they turn with the patient.
_GRAVITY = ("sacral_slope_deg", "pelvic_tilt_deg")
_NO_TURN_DEG = (0.0, 0.0, 0.0)
#: Shift of a new grid, voxels: a half would leave every face a tie.
_SHIFT = 0.37


def _turn(angles_deg: Sequence[float]) -> np.ndarray:
    """[3, 3] of a turn about x, y, z in turn."""
    return Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()


def resampled(
    labels: Image,
    voxel_mm: float | Sequence[float],
    turn_deg: Sequence[float] = _NO_TURN_DEG,
    shift: float = 0.0,
) -> Image:
    """The labels on another grid, as if the patient had lain turned in the scanner: LPS-aligned
    voxels, `shift` voxels off.

    Each label's share of the new voxel by trilinear interpolation, after a Gaussian where the new
    voxel is larger; the largest share wins, if it is a half or more.
    """
    values, matrix = np.asarray(labels.values), labels.lps_from_index
    turn = _turn(turn_deg)
    old, new = labels.voxel_mm, np.broadcast_to(np.asarray(voxel_mm, float), 3)
    labelled = np.argwhere(values > 0)
    ends = np.stack([labelled.min(axis=0) - 3, labelled.max(axis=0) + 3])
    corners = np.array(np.meshgrid(*ends.T, indexing="ij")).reshape(3, -1).T
    forward = np.eye(4)
    forward[:3, :3], forward[:3, 3] = turn @ matrix[:3, :3], turn @ matrix[:3, 3]
    lps = corners @ forward[:3, :3].T + forward[:3, 3]
    low = lps.min(axis=0) + shift * new
    shape = np.ceil((lps.max(axis=0) - low) / new).astype(int) + 1
    back = np.linalg.inv(forward[:3, :3])  # new index → old index: back·(low + new·i − origin)
    step, start = back * new[None, :], back @ (low - forward[:3, 3])
    best, out = np.full(shape, 0.5, np.float32), np.zeros(shape, np.int16)
    blur = np.sqrt(np.maximum((np.min(new) / old) ** 2 - 1.0, 0.0) / 12.0)
    for number in np.unique(values[values > 0]):
        box = tuple(
            slice(max(s.start - 6, 0), s.stop + 6)
            for s in ndimage.find_objects((values == number).astype(np.int8))[0]
        )
        share = ndimage.gaussian_filter((values[box] == number).astype(np.float32), blur)
        offset = start - [s.start for s in box]
        taken = ndimage.affine_transform(
            share, step, offset, output_shape=tuple(shape), order=1, output=np.float32
        )
        more = taken > best
        out[more], best[more] = number, taken[more]
    affine = np.diag([*new, 1.0])
    affine[:3, 3] = low
    return Image(out, affine, "SEG", (), {})


# -- cases -----------------------------------------------------------------------------------------
class _Mask(NamedTuple):
    """A patient with labels: its name, file, the overrides that it needs, and its voxel size."""

    name: str
    path: Path
    overrides: tuple[str, ...]
    voxel_mm: float


def stability_cases(config: CaseSetConfig) -> list[Case]:
    """Two masks and one set of surfaces, each as it is and then changed."""
    data = config.folder()
    masks = (
        _Mask(
            "verse004_mask",
            data / "verse004_mask" / "sub-verse004_seg-vert_msk.nii.gz",
            ("source.labels=verse",),
            1.2,
        ),
        _Mask(
            "ct_totalsegmentator",
            data / "ct_totalsegmentator" / "totalseg.nii.gz",
            ("source.labels=totalsegmentator",),
            3.0,
        ),
    )
    cases = [case for mask in masks for case in _mask_cases(mask)]
    return [*cases, *_surface_cases(data / "lumbar_meshes")]


def _mask_cases(mask: _Mask) -> list[Case]:
    voxel_mm, facts = mask.voxel_mm, {"patient": mask.name}
    kinds = {
        f"resampled to {voxel_mm:g} mm": partial(_resampled_mask, mask, voxel_mm, shift=_SHIFT),
        f"turned by 20°, {voxel_mm:g} mm": partial(
            _resampled_mask, mask, voxel_mm, turn_deg=TURN_DEG
        ),
        f"{1.5 * voxel_mm:g} mm": partial(_resampled_mask, mask, 1.5 * voxel_mm),
    }
    as_it_is = Case(f"{mask.name}, as it is", lambda _: _mask_words(mask, mask.path), facts)
    return [as_it_is, *(Case(f"{mask.name}, {kind}", make, facts) for kind, make in kinds.items())]


def _resampled_mask(
    mask: _Mask,
    voxel_mm: float,
    place: Path,
    turn_deg: Sequence[float] = _NO_TURN_DEG,
    shift: float = 0.0,
) -> list[str]:
    labels = resampled(read_labels(mask.path), voxel_mm, turn_deg, shift)
    write_nifti(labels, place / "labels.nii.gz")
    return _mask_words(mask, place / "labels.nii.gz")


def _mask_words(mask: _Mask, path: Path) -> list[str]:
    return ["source=mask", f"source.path={path}", "plan=keep", *mask.overrides]


def _surface_cases(folder: Path) -> list[Case]:
    name, facts = folder.name, {"patient": folder.name}
    kinds = {
        "as it is": (_NO_TURN_DEG, ()),
        "turned by 20°": (TURN_DEG, ()),
        "edges 1.5 times": (_NO_TURN_DEG, ("source.edge_mm=2.25",)),
        "distances on 1.1 mm": (_NO_TURN_DEG, ("source.spacing_mm=1.125",)),
    }
    return [
        Case(f"{name}, {kind}", partial(_turned_surfaces, folder, turn_deg, words), facts)
        for kind, (turn_deg, words) in kinds.items()
    ]


def _turned_surfaces(
    folder: Path, turn_deg: Sequence[float], overrides: Sequence[str], place: Path
) -> list[str]:
    (place / "meshes").mkdir()
    for file in sorted(folder.glob("*.stl")):
        surface, _ = read_surface(file, "mm")
        # its axes: x anterior, y left, z up; turned about its own origin
        polydata(Surface(surface.points_mm @ _turn(turn_deg).T, surface.faces)).save(
            place / "meshes" / file.name
        )
    words = ["source=surfaces", f"source.path={place / 'meshes'}", "source.axes=ALS", "plan=keep"]
    return [*words, *overrides]


def stability_table(results: Sequence[CaseResult]) -> tuple[str, Any]:
    """Change of every measure against the patient as it is, a row a case."""
    rows, record, base = [], {}, {}
    for r in results:
        if r.code:
            continue
        measures, patient = r.measures(), r.case.facts["patient"]
        if patient not in base:
            base[patient] = measures
            continue
        shared = [k for k in measures if k in base[patient] and k.split(".")[1] not in _GRAVITY]
        change = {key: measures[key] - base[patient][key] for key in shared}
        record[r.case.name] = change
        cells = []
        for unit, limit in LIMIT.items():
            group = {k: abs(v) for k, v in change.items() if k.endswith(f"_{unit}")}
            worst = max(group, key=lambda k: group[k])
            over = [k for k in group if group[k] > limit]
            rms = np.sqrt(np.mean(np.square(list(group.values()))))
            cells += [f"{rms:.2f}", f"{group[worst]:.2f} ({worst})", f"{len(over)} of {len(group)}"]
        rows.append((r.case.name, *cells, len(base[patient]) - len(change)))
    head = (
        "patient",
        "angles: rms °",
        "largest °",
        "over 1°",
        "lengths: rms mm",
        "largest mm",
        "over 0.5 mm",
        "left out",
    )
    text = (
        "Change of every measure against the patient as it is (left out: against gravity, or not"
        " measured in one of the two):\n\n"
    )
    return text + table(head, rows) + failures(results), record
