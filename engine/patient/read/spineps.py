"""SPINEPS as a segmenter of MRI: its sagittal T2w models. It sends no statistics.

Source, read in the released wheel: pypi.org/project/spineps/2.1.3, entrypoint.py, get_models.py,
seg_run.py, utils/auto_download.py, utils/filepaths.py.
Ref: Möller et al. 2024, doi 10.1007/s00330-024-11155-y.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.patient.read import external
from engine.patient.read.segmenter import Device, Segmenter, Weights


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
    MODELS = ("T2w_semantic", "instance_sagittal", "T2w_labeling")

    def weights(self, executable: Path) -> Weights:
        given = os.environ.get("SPINEPS_SEGMENTOR_MODELS")
        site = executable.resolve().parent.parent  # the environment that it is installed in
        folders = (
            [Path(given).expanduser().absolute()]
            if given
            else list(site.glob("lib/python3*/site-packages/spineps/models"))
        )
        if not folders:
            raise ValueError(
                f"segmenter {self.name}: its weights are not in {site}; set"
                f" SPINEPS_SEGMENTOR_MODELS to the folder that holds them ({self._fetch()})"
            )
        folder = folders[0]
        models = {name: self._newest(folder, name) for name in self.MODELS}
        missing = [f"{name}_v…" for name, path in models.items() if path is None]
        if missing:
            raise self.no_weights(folder, missing, f"they are {self._fetch()}")
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
        versions = [
            path
            for path in folder.glob(f"{name}*")
            if len(list(path.rglob("inference_config.json"))) == 1
        ]
        if not versions:
            return None

        def version(path: Path) -> list[int]:
            return [int(part) for part in re.findall(r"\d+", path.name[len(name) :])]

        return max(versions, key=version).name

    def command(self, weights: Weights, device: Device) -> list[str]:
        semantic, instance, labeling = (str(weights.folder / model) for model in weights.models)
        # without --cpu its semantic stage takes "cuda" for granted (TPTBox 1.1.0,
        # nnUnet_utils/inference_api.py)
        where = (
            ["--cpu"] if device == "cpu" or (device == "auto" and not external.gpu_there()) else []
        )
        models = ["--model-semantic", semantic, "--model-instance", instance]
        models += ["--model-labeling", labeling]
        return ["sample", "--input", self.scan_name, *models, *where]

    def environment(self, weights: Weights, work: Path) -> dict[str, str]:
        return {"SPINEPS_SEGMENTOR_MODELS": str(weights.folder)}

    def output(self, work: Path) -> list[Path]:
        # the uncleaned one is seg-vert-raw
        return sorted(work.glob("derivatives_seg/**/*seg-vert_*msk.nii.gz"))
