"""Segmenters that other people made, behind one interface: scan → label image with a known scheme.

    totalsegmentator   CT, TotalSegmentator ≥ 2.18     github.com/wasserth/TotalSegmentator
    spineps            MRI, SPINEPS ≥ 2.1              github.com/Hendrik-code/spineps

The tool runs as a child process: its torch stays apart from our JAX, and it may live in an
environment of its own. It reads a NIfTI that is written here (perpendicular axes, no personal tag)
and works in a private folder; its mask appears in `out_dir` whole or not at all, with a JSON beside
it that says what made it. The same scan, tool, version, weights and settings are not run twice.

Nothing leaves the machine
    weights      the user's own, where the tool keeps them; they are looked for before it starts,
                 and never fetched
    statistics   switched off where the tool sends any (totalsegmentator.py)
    network      closed for the ways that both fetch and post by (requests, urllib; external.py): it
                 would fail at once instead
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from engine import artifacts
from engine.patient.read import external
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from engine.patient.read.schemes import SCHEMES
from engine.patient.read.segmenter import Device, Segmenter, Weights
from engine.patient.read.spineps import Spineps
from engine.patient.read.totalsegmentator import TotalSegmentator

#: Counts up when what is asked of a tool, or how its answer is read, changes.
VERSION = 1
#: A mask lies on the scan's grid to this share of a voxel (NIfTI holds its affine in 32 bits).
SAME_PLACE = 0.05


@dataclass(frozen=True)
class SegmentationResult:
    """A mask and what made it.

    scheme_name   key of schemes.SCHEMES
    command       as run in the private folder; `<weights>` stands for the weights' folder
    weights       names of the models, which hold their version
    """

    mask_path: Path
    segmenter: str
    scheme_name: str
    version: str
    command: tuple[str, ...]
    weights: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """What a bundle says of the segmenter."""
        return {
            "name": self.segmenter,
            "version": self.version,
            "command": " ".join(self.command),
            "weights": ", ".join(self.weights),
        }


SEGMENTERS: dict[str, Segmenter] = {tool.name: tool for tool in (TotalSegmentator(), Spineps())}


def named(
    mask: str, labels: str = "auto", label_map: Mapping[str, int] | None = None
) -> str | None:
    """The segmenter that `source.mask` names; None where it is a path.

    Raises: ValueError for a bare word that is neither, and for a segmenter with a scheme other than
    its own asked for.
    """
    if Path(mask).exists() or "." in mask or "/" in mask:
        return None
    if mask not in SEGMENTERS:
        listing = ", ".join(f"{tool.name} ({tool.modality})" for tool in SEGMENTERS.values())
        raise ValueError(
            f"source.mask={mask} is no file or folder, and no segmenter; give the path of a label"
            f" image, or one of {listing}"
        )
    own = SEGMENTERS[mask].scheme
    if label_map or labels not in ("auto", own):
        given = "source.label_map" if label_map else f"source.labels={labels}"
        raise ValueError(
            f"{given} was given, but the segmenter {mask} has numbers of its own ({own}); leave"
            " it out"
        )
    return mask


def segment(
    scan: Image,
    name: str,
    out_dir: str | Path,
    log: Callable[[str], None] | None = None,
    device: Device = "auto",
) -> SegmentationResult:
    """Segment a scan with the tool `name`, or return the mask of an earlier run of the same
    (module docstring).

    out_dir   gets <name>-<key>.nii.gz and .json; the key is the hash of scan, tool, version,
              weights and settings
    log       is told the tool's own lines as they come

    Raises: ValueError for an unknown name, a scan of the other modality, a tool or weights that are
    not there, a tool that fails (with its last lines), a mask that is missing, empty, on another
    grid or with numbers foreign to its scheme, and for a kept mask that was changed by hand.
    KeyboardInterrupt ends the tool and passes on; no mask is left.
    """
    log = log or (lambda line: None)
    job = _job(_tool_for(scan, name), scan, Path(out_dir), device)
    result, title = job.result, f"segmentation by {name}"
    if job.kept():
        log(f"{title} {result.version}: kept from before ({result.mask_path})")
        return result
    log(f"{title} {result.version}, weights in {job.weights.folder}")
    started = time.perf_counter()
    _run(job, scan, log)
    about = {key: value for key, value in asdict(result).items() if key != "mask_path"}
    digests = {"scan_sha256": scan.source["sha256"], "mask_sha256": _sha256(result.mask_path)}
    artifacts.write_json(job.note_path, {**about, **digests})
    log(f"{title}: {time.perf_counter() - started:.0f} s")
    return result


@dataclass(frozen=True)
class _Job:
    """What is run for one scan, and the result that it is to have.

    note_path   the JSON beside the mask, which says what made it
    """

    tool: Segmenter
    executable: Path
    weights: Weights
    arguments: list[str]
    result: SegmentationResult
    note_path: Path

    def kept(self) -> bool:
        """Whether the mask is there from an earlier run. Raises ValueError where it was changed."""
        mask = self.result.mask_path
        if not (mask.is_file() and self.note_path.is_file()):
            return False
        if artifacts.read_json(self.note_path).get("mask_sha256") != _sha256(mask):
            raise ValueError(
                f"{mask} was changed after {self.tool.name} made it; give its path as source.mask"
                " to use it so, or delete it to have it made anew"
            )
        return True


def _tool_for(scan: Image, name: str) -> Segmenter:
    """The tool of that name. Raises ValueError for an unknown one, and for one of the other
    modality."""
    if name not in SEGMENTERS:
        raise ValueError(f"segmenter {name!r} is unknown; choose one of {', '.join(SEGMENTERS)}")
    tool = SEGMENTERS[name]
    if scan.modality not in (tool.modality, "unknown"):
        others = ", ".join(
            other.name for other in SEGMENTERS.values() if other.modality == scan.modality
        )
        raise ValueError(
            f"segmenter {name} is for {tool.modality}, but the scan is {scan.modality}; give"
            f" {others or 'a label image'}"
        )
    return tool


def _job(tool: Segmenter, scan: Image, folder: Path, device: Device) -> _Job:
    """The tool as it is installed, and what it is asked. Raises ValueError where it or its weights
    are not there."""
    name, executable = tool.name, external.find(tool.executable)
    if executable is None:
        raise ValueError(
            f"segmenter {name}: no {tool.executable} on PATH or beside our Python; install it with:"
            f" {tool.install}. Or give the path of a label image as source.mask"
        )
    weights = tool.weights(executable)
    arguments = tool.command(weights, device)
    command = (
        tool.executable,
        *(part.replace(str(weights.folder), "<weights>") for part in arguments),
    )
    version = external.version(tool.distribution, executable)
    models = weights.models
    key = artifacts.digest(
        (VERSION, name, version, command, models, scan.source["sha256"], scan.lps_from_index)
    )[:16]
    mask = folder / f"{name}-{key}.nii.gz"
    result = SegmentationResult(mask, name, tool.scheme, version, command, models)
    return _Job(tool, executable, weights, arguments, result, folder / f"{name}-{key}.json")


def _run(job: _Job, scan: Image, log: Callable[[str], None]) -> None:
    """Run the tool in a private folder; its mask, once verified, is moved to its place."""
    tool, mask = job.tool, job.result.mask_path
    mask.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{tool.name}-", dir=mask.parent) as place:
        work = Path(place).absolute()
        write_scan(scan, work / tool.scan_name)
        external.run(
            f"segmenter {tool.name}",
            [str(job.executable), *job.arguments],
            work,
            tool.environment(job.weights, work),
            log,
        )
        masks = tool.output(work)
        if len(masks) != 1:
            raise ValueError(
                f"segmenter {tool.name} {job.result.version} ended well, but left {len(masks)}"
                " masks instead of one; is the scan a spine?"
            )
        _verify(tool, masks[0], scan)
        masks[0].replace(mask)


def write_scan(scan: Image, path: Path) -> None:
    """The scan as NIfTI: RAS = diag(−1, −1, 1)·LPS in sform and qform; no text field holds
    anything."""
    values = scan.values
    if values.dtype.kind in "iu":
        low, high = int(values.min()), int(values.max())
        values = values.astype(np.int16 if low >= -(2**15) and high < 2**15 else np.int32)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.lps_from_index
    image: Any = nib.Nifti1Image(values, affine)
    image.set_sform(affine, 1)  # 1: the scanner's own frame
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _verify(tool: Segmenter, path: Path, scan: Image) -> None:
    """Raises ValueError unless the mask lies on the scan's grid, holds vertebrae, and only
    numbers as its scheme has them."""
    mask, scheme = read_labels(path), SCHEMES[tool.scheme]
    if wrong := tool.disagreements(mask.source.get("segments") or {}):
        raise ValueError(
            f"segmenter {tool.name}: its mask counts otherwise than the scheme {tool.scheme}"
            f" ({'; '.join(wrong[:3])}); install the version that engine/patient/read/segmenters.py"
            " names"
        )
    if mask.values.shape != scan.values.shape:
        raise ValueError(
            f"segmenter {tool.name}: its mask has {mask.values.shape} voxels, the scan"
            f" {scan.values.shape}; it does not fit"
        )
    corners = np.stack(
        np.meshgrid(*[(0.0, n - 1.0) for n in scan.values.shape], indexing="ij"), -1
    ).reshape(-1, 3)
    change = mask.lps_from_index - scan.lps_from_index
    apart = float(np.linalg.norm(corners @ change[:3, :3].T + change[:3, 3], axis=1).max())
    if apart > SAME_PLACE * float(scan.voxel_mm.min()):
        raise ValueError(
            f"segmenter {tool.name}: its mask lies up to {apart:.2f} mm off the scan; it does"
            " not fit"
        )
    numbers = {int(n) for n in np.unique(mask.values)} - {0}
    if not numbers:
        raise ValueError(
            f"segmenter {tool.name} found nothing (its mask is empty); is the scan a spine, in"
            f" {tool.modality}?"
        )
    if foreign := sorted(numbers - scheme.known()):
        raise ValueError(
            f"segmenter {tool.name}: its mask holds {foreign[:12]}, which the scheme {tool.scheme}"
            " does not know"
        )
    if not scheme.levels(numbers):
        raise ValueError(
            f"segmenter {tool.name} found no vertebra (its mask holds {sorted(numbers)[:12]}); is"
            " the scan a spine?"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
