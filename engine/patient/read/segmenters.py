"""Segmenters that other people made, behind one interface: scan → label image with a known scheme.

    totalsegmentator   CT    TotalSegmentator ≥ 2.18, task `total` at 1.5 mm       github.com/wasserth/TotalSegmentator
    spineps            MRI   SPINEPS ≥ 2.1, sagittal T2w models                    github.com/Hendrik-code/spineps

The tool runs as a child process: its torch stays apart from our JAX, and it may live in an
environment of its own. It reads a NIfTI that is written here (perpendicular axes, no personal tag)
and works in a private folder; its mask appears in `out_dir` whole or not at all, with a JSON beside
it that says what made it. The same scan, tool, version, weights and settings are not run twice.

Nothing leaves the machine
    weights      the user's own, where the tool keeps them; they are looked for before it starts,
                 and never fetched
    statistics   TotalSegmentator posts some after every run unless `send_usage_stats` is false in
                 config.json of its home (github.com/wasserth/TotalSegmentator#other; config.py): it
                 is given a private home where that is so. SPINEPS 2.1 sends none
    network      closed for the ways that both fetch and post by (requests, urllib; external.py): it
                 would fail at once instead

Sources, read in the released wheels
    pypi.org/project/TotalSegmentator/2.18.0   bin/TotalSegmentator.py, config.py, libs.py,
                                               map_tasks_config.py, map_to_binary.py, nnunet.py
    pypi.org/project/spineps/2.1.3             entrypoint.py, get_models.py, seg_run.py,
                                               utils/auto_download.py, utils/filepaths.py
Ref: Wasserthal et al. 2023, doi 10.1148/ryai.230024; Möller et al. 2024, doi
10.1007/s00330-024-11155-y.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from engine import artifacts
from engine.patient.read import external
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from engine.patient.read.schemes import SCHEMES

#: "auto": a GPU where there is one, else the CPU.
Device = Literal["auto", "cpu", "gpu"]

#: Counts up when what is asked of a tool, or how its answer is read, changes.
VERSION = 1
#: A mask lies on the scan's grid to this share of a voxel (NIfTI holds its affine in 32 bits).
SAME_PLACE = 0.05


@dataclass(frozen=True)
class Weights:
    """Where a tool's trained models lie, and which of them are used (names within `folder`)."""

    folder: Path
    models: tuple[str, ...]


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


class Segmenter(ABC):
    """One tool: what it is, where its weights are, what is asked of it, and which of its files
    is the answer."""

    name: str
    modality: Literal["CT", "MR"]
    scheme: str  #: key of SCHEMES
    executable: str
    distribution: str  #: the package whose version is recorded
    install: str  #: what the user runs to get it
    scan_name: (
        str  #: what the scan is called in the private folder, which is the command's working folder
    )

    @abstractmethod
    def weights(self, executable: Path) -> Weights:
        """The user's local weights of the tool that is installed there.

        Raises: ValueError that says where they were looked for and how to fetch them.
        """

    @abstractmethod
    def command(self, weights: Weights, device: Device) -> list[str]:
        """The arguments, without the executable."""

    @abstractmethod
    def environment(self, weights: Weights, work: Path) -> dict[str, str]:
        """Variables that the child gets on top of ours, after writing what they point at into
        `work`."""

    @abstractmethod
    def output(self, work: Path) -> list[Path]:
        """The files in `work` that look like the mask: one when all went well."""

    def disagreements(self, mask: Path) -> list[str]:
        """Where the file itself names its numbers otherwise than the scheme does; most formats
        name none."""
        return []

    def _missing(self, looked: Path, missing: list[str], fetch: str) -> ValueError:
        return ValueError(
            f"segmenter {self.name}: its weights {', '.join(missing)} are not in {looked}. They are"
            f" not fetched from here; {fetch}. Or give the path of a label image as source.mask"
        )


class TotalSegmentator(Segmenter):
    """CT → TotalSegmentator's task `total`, restricted to what the scheme names.

    `--roi_subset` runs only the models that hold the classes asked for (three of five), after a
    rough 6 mm pass that crops to them; the numbers in the `--ml` file stay those of `total`. All
    six models must be there: it would fetch any that is missing.
    """

    name = "totalsegmentator"
    modality = "CT"
    scheme = "totalsegmentator"
    executable = "TotalSegmentator"
    distribution = "TotalSegmentator"
    install = ".venv/bin/python -m pip install -e '.[segment]' (large: it brings torch)"
    scan_name = "scan.nii.gz"

    _MODELS = (
        "Dataset291_TotalSegmentator_part1_organs_1559subj",
        "Dataset292_TotalSegmentator_part2_vertebrae_1532subj",
        "Dataset293_TotalSegmentator_part3_cardiac_1559subj",
        "Dataset294_TotalSegmentator_part4_muscles_1559subj",
        "Dataset295_TotalSegmentator_part5_ribs_1559subj",
        "Dataset298_TotalSegmentator_total_6mm_1559subj",
    )

    @staticmethod
    def classes() -> dict[str, int]:
        """Class name of task `total` → number, for all that schemes.py names."""
        scheme = SCHEMES["totalsegmentator"]
        sacrum, s1 = scheme.sacrum
        asked = ("femur_left", "femur_right", "hip_left", "hip_right", "aorta")
        tissues = {name: scheme.tissues[name][0] for name in asked}
        left, right = scheme.tissues["autochthon"]
        return {
            **{f"vertebrae_{level}": number for level, number in scheme.vertebrae.items()},
            "sacrum": sacrum,
            "vertebrae_S1": s1,
            "spinal_cord": scheme.tissues["cord"][0],
            "autochthon_left": left,
            "autochthon_right": right,
            **tissues,
        }

    def weights(self, executable: Path) -> Weights:
        home = Path(os.environ.get("TOTALSEG_HOME_DIR") or Path.home() / ".totalsegmentator")
        folder = (
            Path(os.environ.get("TOTALSEG_WEIGHTS_PATH") or home / "nnunet" / "results")
            .expanduser()
            .absolute()
        )
        missing = [
            name
            for name in self._MODELS
            if not any((folder / name).glob("*/fold_*/checkpoint_final.pth"))
        ]
        if missing:
            fetch = (
                "fetch them once with: totalseg_download_weights -t total, or set"
                " TOTALSEG_WEIGHTS_PATH to the folder that holds them"
            )
            raise self._missing(folder, missing, fetch)
        return Weights(folder, self._MODELS)

    def command(self, weights: Weights, device: Device) -> list[str]:
        where = (
            [] if device == "auto" else ["--device", device]
        )  # its default is the GPU, and the CPU where there is none
        return [
            "-i",
            self.scan_name,
            "-o",
            "mask.nii.gz",
            "--ml",
            "--task",
            "total",
            *where,
            "--roi_subset",
            *self.classes(),
        ]

    def environment(self, weights: Weights, work: Path) -> dict[str, str]:
        home = work / "home"
        home.mkdir()
        settings = {
            "totalseg_id": "spinefit",
            "send_usage_stats": False,
            "prediction_counter": 0,
            "statistics_disclaimer_shown": True,
        }
        artifacts.write_json(home / "config.json", settings)
        return {"TOTALSEG_HOME_DIR": str(home), "TOTALSEG_WEIGHTS_PATH": str(weights.folder)}

    def output(self, work: Path) -> list[Path]:
        return [path for path in (work / "mask.nii.gz",) if path.is_file()]

    def disagreements(self, mask: Path) -> list[str]:
        """From the label table in the NIfTI's extension: another task or version may count
        otherwise (`total_v3` does)."""
        table: dict[str, int] = {}
        for extension in nib.load(mask).header.extensions:  # type: ignore[attr-defined]
            content = extension.get_content()
            words = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
            table |= {
                name: int(number)
                for number, name in re.findall(
                    r'<Label Key="(\d+)"[^>]*><!\[CDATA\[([^\]]*)\]\]>', words
                )
            }
        return [
            f"{name} is {table[name]}, not {n}"
            for name, n in self.classes().items()
            if table.get(name, n) != n
        ]


class Spineps(Segmenter):
    """Sagittal T2w MRI → SPINEPS' vertebra mask (`seg-vert`: VerSe numbers, discs 100 + n,
    endplates 200 + n).

    `spineps sample` writes into a folder next to its input, named after it; the scan's name tells
    it the modality. Models are given as folders, so that no version of it asks for another one.
    """

    name = "spineps"
    modality = "MR"
    scheme = "spineps"
    executable = "spineps"
    distribution = "spineps"
    install = (
        "python3 -m venv ~/spineps && ~/spineps/bin/pip install 'spineps>=2.1' && export"
        " PATH=$PATH:~/spineps/bin (an environment of its own: it needs rich < 14, we need rich"
        " ≥ 14)"
    )
    scan_name = "sub-scan_T2w.nii.gz"

    #: What each model's folder is called, but for its version.
    _MODELS = ("T2w_semantic", "instance_sagittal", "T2w_labeling")

    def weights(self, executable: Path) -> Weights:
        given = os.environ.get("SPINEPS_SEGMENTOR_MODELS")
        site = executable.resolve().parent.parent  # the environment that it is installed in
        own = (
            [Path(given).expanduser().absolute()]
            if given
            else list(site.glob("lib/python3*/site-packages/spineps/models"))
        )
        if not own:
            raise ValueError(
                f"segmenter {self.name}: its weights are not in {site}; set"
                f" SPINEPS_SEGMENTOR_MODELS to the folder that holds them ({self._fetch()})"
            )
        folder = own[0]
        models = {name: self._newest(folder, name) for name in self._MODELS}
        missing = [f"{name}_v…" for name, path in models.items() if path is None]
        if missing:
            raise self._missing(folder, missing, f"they are {self._fetch()}")
        return Weights(folder, tuple(path for path in models.values() if path is not None))

    @staticmethod
    def _fetch() -> str:
        return (
            "T2w_semantic_v1.0.9, instance_sagittal_v1.2.0 and T2w_labeling_v1.4.0, unpacked from"
            " t2w.zip, instance.zip and labeling.zip of"
            " https://github.com/Hendrik-code/spineps/releases, or left there by a first run of"
            " spineps sample -i sub-x_T2w.nii.gz -ms t2w"
        )

    @staticmethod
    def _newest(folder: Path, name: str) -> str | None:
        """Name of the model's folder of the highest version that holds one
        inference_config.json."""
        there = [
            path
            for path in folder.glob(f"{name}*")
            if len(list(path.rglob("inference_config.json"))) == 1
        ]
        return (
            max(
                there,
                key=lambda path: [int(part) for part in re.findall(r"\d+", path.name[len(name) :])],
            ).name
            if there
            else None
        )

    def command(self, weights: Weights, device: Device) -> list[str]:
        semantic, instance, labeling = (str(weights.folder / model) for model in weights.models)
        # without --cpu its semantic stage takes "cuda" for granted (TPTBox 1.1.0,
        # nnUnet_utils/inference_api.py)
        where = (
            ["--cpu"] if device == "cpu" or (device == "auto" and not external.gpu_there()) else []
        )
        models = [
            "--model-semantic",
            semantic,
            "--model-instance",
            instance,
            "--model-labeling",
            labeling,
        ]
        return ["sample", "--input", self.scan_name, *models, *where]

    def environment(self, weights: Weights, work: Path) -> dict[str, str]:
        return {"SPINEPS_SEGMENTOR_MODELS": str(weights.folder)}

    def output(self, work: Path) -> list[Path]:
        return sorted(
            work.glob("derivatives_seg/**/*seg-vert_*msk.nii.gz")
        )  # the uncleaned one is seg-vert-raw


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
    """Segment a scan with the tool `name`, or find that this was done before (module docstring).

    out_dir   gets <name>-<key>.nii.gz and .json; the key is the hash of scan, tool, version,
              weights and settings
    log       is told the tool's own lines as they come

    Raises: ValueError for an unknown name, a scan of the other modality, a tool or weights that are
    not there, a tool that fails (with its last lines), a mask that is missing, empty, on another
    grid or with numbers foreign to its scheme, and for a kept mask that was changed by hand.
    KeyboardInterrupt ends the tool and passes on; no mask is left.
    """
    log, folder = log or (lambda line: None), Path(out_dir)
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
    executable = external.find(tool.executable)
    if executable is None:
        raise ValueError(
            f"segmenter {name}: no {tool.executable} on PATH or beside our Python; install it with:"
            f" {tool.install}. Or give the path of a label image as source.mask"
        )
    weights = tool.weights(executable)
    arguments = tool.command(weights, device)
    shown = (
        tool.executable,
        *(part.replace(str(weights.folder), "<weights>") for part in arguments),
    )
    version = external.version(tool.distribution, executable)
    key = artifacts.digest(
        (VERSION, name, version, shown, weights.models, scan.source["sha256"], scan.lps_from_index)
    )[:16]
    mask, note = folder / f"{name}-{key}.nii.gz", folder / f"{name}-{key}.json"
    result = SegmentationResult(mask, name, tool.scheme, version, shown, weights.models)
    if mask.is_file() and note.is_file():
        if artifacts.read_json(note).get("mask_sha256") != _sha256(mask):
            raise ValueError(
                f"{mask} was changed after {name} made it; give its path as source.mask to use it"
                " so, or delete it to have it made anew"
            )
        log(f"segmentation by {name} {version}: kept from before ({mask})")
        return result
    log(f"segmentation by {name} {version}, weights in {weights.folder}")
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as place:
        work = Path(place).absolute()
        write_scan(scan, work / tool.scan_name)
        external.run(
            f"segmenter {name}",
            [str(executable), *arguments],
            work,
            tool.environment(weights, work),
            log,
        )
        found = tool.output(work)
        if len(found) != 1:
            raise ValueError(
                f"segmenter {name} {version} ended well, but left {len(found)} masks instead of"
                " one; is the scan a spine?"
            )
        _verify(tool, found[0], scan)
        found[0].replace(mask)
    about = {key: value for key, value in asdict(result).items() if key != "mask_path"}
    artifacts.write_json(
        note, {**about, "scan_sha256": scan.source["sha256"], "mask_sha256": _sha256(mask)}
    )
    log(f"segmentation by {name}: {time.perf_counter() - started:.0f} s")
    return result


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
    if wrong := tool.disagreements(path):
        raise ValueError(
            f"segmenter {tool.name}: its mask counts otherwise than the scheme {tool.scheme}"
            f" ({'; '.join(wrong[:3])}); install the version that engine/patient/read/segmenters.py"
            " names"
        )
    mask, scheme = read_labels(path), SCHEMES[tool.scheme]
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
