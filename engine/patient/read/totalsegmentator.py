"""TotalSegmentator as a segmenter of CT: its task `total` at 1.5 mm.

It posts some statistics after every run unless `send_usage_stats` is false in config.json of its
home (github.com/wasserth/TotalSegmentator#other; config.py): it is given a private home where that
is so.

Source, read in the released wheel: pypi.org/project/TotalSegmentator/2.18.0,
bin/TotalSegmentator.py, config.py, libs.py, map_tasks_config.py, map_to_binary.py, nnunet.py.
Ref: Wasserthal et al. 2023, doi 10.1148/ryai.230024.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from engine import artifacts
from engine.patient.read.schemes import SCHEMES
from engine.patient.read.segmenter import Device, Segmenter, Weights

_MASK_NAME = "mask.nii.gz"


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

    #: The folders of its models.
    MODELS = (
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
            for name in self.MODELS
            if not any((folder / name).glob("*/fold_*/checkpoint_final.pth"))
        ]
        if missing:
            fetch = (
                "fetch them once with: totalseg_download_weights -t total, or set"
                " TOTALSEG_WEIGHTS_PATH to the folder that holds them"
            )
            raise self.no_weights(folder, missing, fetch)
        return Weights(folder, self.MODELS)

    def command(self, weights: Weights, device: Device) -> list[str]:
        # its default is the GPU, and the CPU where there is none
        where = [] if device == "auto" else ["--device", device]
        files = ["-i", self.scan_name, "-o", _MASK_NAME]
        return [*files, "--ml", "--task", "total", *where, "--roi_subset", *self.classes()]

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
        return [path for path in (work / _MASK_NAME,) if path.is_file()]

    def disagreements(self, segments: Mapping[int, str]) -> list[str]:
        """By the label table that it writes into the NIfTI: another task or version may count
        otherwise (`total_v3` does)."""
        numbers = {name: number for number, name in segments.items()}
        return [
            f"{name} is {numbers[name]}, not {n}"
            for name, n in self.classes().items()
            if numbers.get(name, n) != n
        ]
