"""What can go wrong with a segmenter is said in one line, and leaves no mask behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from engine.patient.inputs import read_inputs
from engine.patient.read import segmenters
from engine.patient.read.image import Image
from engine.patient.sources import PrepareConfig
from tests.patient.stand_in import StandIn


def test_a_mask_edited_by_hand_is_not_overwritten(
    totalsegmentator: StandIn, example_ct: Image, tmp_path: Path
) -> None:
    made = segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out")
    image = nib.load(made.mask_path)
    nib.save(
        nib.Nifti1Image(
            np.asarray(image.dataobj) * (np.asarray(image.dataobj) != 33), image.affine
        ),
        made.mask_path,
    )
    edited = made.mask_path.read_bytes()
    with pytest.raises(
        ValueError, match=r"was changed after totalsegmentator made it.*source\.mask"
    ):
        segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out")
    assert made.mask_path.read_bytes() == edited and len(totalsegmentator.calls()) == 1


def _refused(tool: StandIn, scan: Image, out: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmenters.segment(scan, "totalsegmentator", out)
    assert tool.calls() and list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "fail",
            (
                r"totalsegmentator failed with exit code 1; its last lines: .*reading weights \|"
                r" RuntimeError: CUDA out of memory"
            ),
        ),
        ("nothing", r"ended well, but left 0 masks"),
    ],
)
def test_a_tool_that_fails_is_quoted(
    how: str,
    message: str,
    totalsegmentator: StandIn,
    example_ct: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE", how)
    _refused(totalsegmentator, example_ct, tmp_path / "out", message)


L5_IS_28 = (
    b'<Label Key="28" Red="1.0" Green="0.0" Blue="0.0" Alpha="1"><![CDATA[vertebrae_L5]]></Label>'
)


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (np.zeros_like, {}, r"found nothing \(its mask is empty\)"),
        (lambda values: values, {"offset_mm": 3.0}, r"lies up to 3\.00 mm off the scan"),
        (
            lambda values: values[:, :, :-1],
            {},
            r"has \(122, 101, 111\) voxels, the scan \(122, 101, 112\)",
        ),
        (
            lambda values: np.where(values == 28, 250, values).astype(np.uint8),
            {},
            r"holds \[250\], which the scheme totalsegmentator",
        ),
        (
            lambda values: np.where(values > 0, 77, 0).astype(np.uint8),
            {},
            r"found no vertebra \(its mask holds \[77\]\)",
        ),
        (
            lambda values: values,
            {"table": L5_IS_28},
            r"counts otherwise .*vertebrae_L5 is 28, not 27",
        ),
    ],
    ids=["empty", "shifted", "cropped", "foreign", "pelvis", "renumbered"],
)
def test_a_mask_that_does_not_fit_is_refused(
    change: Callable[[np.ndarray], np.ndarray],
    more: dict,
    message: str,
    totalsegmentator: StandIn,
    example_ct: Image,
    tmp_path: Path,
) -> None:
    totalsegmentator.answer(change, **more)
    _refused(totalsegmentator, example_ct, tmp_path / "out", message)


def test_missing_weights_stop_before_the_tool_starts(
    totalsegmentator: StandIn, example_ct: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Dataset292_TotalSegmentator_part2_vertebrae_1532subj"
    results = tmp_path / "user" / "nnunet" / "results"
    next(
        (results / name).rglob("checkpoint_final.pth")
    ).unlink()  # as a download that was cut short leaves it
    with pytest.raises(
        ValueError, match=rf"{name} are not in {results}.*totalseg_download_weights -t total"
    ):
        segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out")
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "elsewhere"))
    with pytest.raises(
        ValueError, match=rf"Dataset291.*, Dataset298\S* are not in {tmp_path / 'elsewhere'}"
    ):
        segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out")
    assert totalsegmentator.calls() == [] and not (tmp_path / "elsewhere").exists()


def test_a_missing_tool_says_how_to_install_it(
    example_ct: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(
        ValueError, match=r"no TotalSegmentator on PATH.*pip install -e '\.\[segment\]'"
    ):
        segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"no spineps on PATH.*spineps/bin/pip install 'spineps>=2\.1'"
    ):
        segmenters.segment(replace(example_ct, modality="MR"), "spineps", tmp_path / "out")


def test_names_and_modalities_are_checked(
    totalsegmentator: StandIn, example_ct: Image, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"segmenter 'nnunet' is unknown; choose one of totalsegmentator, spineps"
    ):
        segmenters.segment(example_ct, "nnunet", tmp_path)
    with pytest.raises(
        ValueError, match=r"totalsegmentator is for CT, but the scan is MR; give spineps"
    ):
        segmenters.segment(replace(example_ct, modality="MR"), "totalsegmentator", tmp_path)
    assert segmenters.named("totalsegmentator") == "totalsegmentator"
    assert (
        segmenters.named("cases/missing") is None and segmenters.named("missing.nii.gz") is None
    )  # a path, for the reader to refuse
    with pytest.raises(
        ValueError,
        match=(
            r"mask=totalsegmentor is no file or folder, and no segmenter; .*totalsegmentator"
            r" \(CT\), spineps \(MR\)"
        ),
    ):
        segmenters.named("totalsegmentor")
    with pytest.raises(
        ValueError, match=r"source\.labels=verse was given, but the segmenter totalsegmentator"
    ):
        segmenters.named("totalsegmentator", "verse")
    with pytest.raises(ValueError, match=r"source\.label_map was given"):
        segmenters.named("spineps", "auto", {"L4": 3})


def test_an_interrupt_ends_the_tool_and_leaves_no_mask(
    totalsegmentator: StandIn, example_ct: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "sleep")
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job has it ignored

    def log(line: str) -> None:
        if "Predicting" in line:
            signal.raise_signal(signal.SIGINT)

    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out", log)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 20.0  # it would have slept for 60 s
    (call,) = totalsegmentator.calls()
    with pytest.raises(ProcessLookupError):
        os.kill(call["pid"], 0)
    assert list((tmp_path / "out").iterdir()) == []


def test_prepare_refuses_a_segmenter_for_the_other_modality(
    totalsegmentator: StandIn, example: Path, tmp_path: Path
) -> None:
    given = {"kind": "mri", "path": str(example / "example_ct.nii.gz"), "mask": "totalsegmentator"}
    config = PrepareConfig.model_validate(
        {"source": given, "segment": "L3-L4", "out": str(tmp_path / "case")}
    )
    with pytest.raises(
        ValueError, match="totalsegmentator is for CT, but the scan is MR; give spineps"
    ):
        read_inputs(config, config.source, tmp_path / "case", lambda line: None)  # type: ignore[arg-type]
    assert totalsegmentator.calls() == []
