"""A program that stands in for a segmenter: it notes its call, and leaves a mask that the real tool
once made of the same scan. The real tools want torch and gigabytes of weights that belong to the
user.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from engine.patient.read.totalsegmentator import TotalSegmentator

#: The stand-in: notes its call, streams some lines as the tools do, then does what FAKE asks for.
#: Only the standard library: quick.
STAND_IN = """#!{python}
import json, os, pathlib, shutil, sys, time
argv, here = sys.argv[1:], pathlib.Path.cwd()
home = os.environ.get("TOTALSEG_HOME_DIR")
call = dict(argv=argv, cwd=str(here), env=dict(os.environ), pid=os.getpid())
shutil.copy(argv[argv.index({flag!r}) + 1], {given!r})
call["config"] = json.loads(pathlib.Path(home, "config.json").read_text()) if home else None
with open({calls!r}, "a") as stream:
    stream.write(json.dumps(call) + "\\n")
print("Predicting part 1 of 3 ...", flush=True)
sys.stdout.write("  0%|    | 0/9\\r 99%|### | 8/9\\r100%|####| 9/9\\n")
how = os.environ.get("FAKE")
if how == "fail":
    print("reading weights", flush=True)
    sys.exit("RuntimeError: CUDA out of memory")
if how == "sleep":
    time.sleep(60)
for name in {names!r} if how != "nothing" else ():
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy({answer!r}, here / name)
"""


#: The files that each tool writes, its answer first.
WRITES = {
    "TotalSegmentator": ("mask.nii.gz",),
    "spineps": (
        "derivatives_seg/sub-scan_mod-T2w_seg-vert_msk.nii.gz",
        "derivatives_seg/sub-scan_mod-T2w_seg-spine_msk.nii.gz",
        "derivatives_seg/output_raw_T2w/sub-scan_mod-T2w_seg-vert-raw_msk.nii.gz",
    ),
}


class StandIn:
    """A stand-in executable on PATH and the calls that it noted."""

    def __init__(
        self, folder: Path, name: str, recorded: Path, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        self.given = folder / "given.nii.gz"  # what it was given to segment
        self._recorded, self._answer, self._calls = (
            recorded,
            folder / "answer.nii.gz",
            folder / "calls.jsonl",
        )
        shutil.copy(recorded, self._answer)
        script = folder / "bin" / name
        script.parent.mkdir(parents=True)
        paths = {"calls": str(self._calls), "answer": str(self._answer), "given": str(self.given)}
        flag = "-i" if name == "TotalSegmentator" else "--input"
        script.write_text(
            STAND_IN.format(python=sys.executable, names=WRITES[name], flag=flag, **paths)
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        metadata = folder / "site" / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(metadata.parents[1]))
        for variable in (
            "TOTALSEG_HOME_DIR",
            "TOTALSEG_WEIGHTS_PATH",
            "SPINEPS_SEGMENTOR_MODELS",
            "FAKE",
        ):
            monkeypatch.delenv(variable, raising=False)

    def answer(
        self,
        change: Callable[[np.ndarray], np.ndarray],
        offset_mm: float = 0.0,
        table: bytes | None = None,
        affine: np.ndarray | None = None,
    ) -> None:
        """From now on it leaves the recorded mask changed so."""
        image = nib.load(self._recorded)
        affine = np.array(image.affine if affine is None else affine)
        affine[2, 3] += offset_mm
        changed = nib.Nifti1Image(change(np.asarray(image.dataobj)), affine)
        if table is not None:
            changed.header.extensions.append(nib.nifti1.Nifti1Extension(0, table))
        nib.save(changed, self._answer)

    def calls(self) -> list[dict]:
        return (
            [json.loads(line) for line in self._calls.read_text().splitlines()]
            if self._calls.exists()
            else []
        )


def user_home(folder: Path) -> Path:
    """A home of TotalSegmentator's user: (empty) weights, and statistics switched on."""
    for name in TotalSegmentator.MODELS:
        model = folder / "nnunet" / "results" / name
        model /= "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres/fold_0"
        model.mkdir(parents=True)
        (model / "checkpoint_final.pth").touch()
    (folder / "config.json").write_text(
        '{"totalseg_id": "totalseg_USER", "send_usage_stats": true, "prediction_counter": 7}'
    )
    return folder
