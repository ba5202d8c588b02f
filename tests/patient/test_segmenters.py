"""Segmenters as adapters: contract tests on recorded output.

The real tools are not run here (torch and gigabytes of weights that belong to the user): a stand-in
on PATH records what it was called with and in which environment, and leaves a real mask that the
real tool once made of the same scan. What the command line, the environment and the answer must be
was read in the released wheels (TotalSegmentator 2.18.0, SPINEPS 2.1.3). The last test runs the
real TotalSegmentator where it and its weights are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from engine.patient.inputs import read_inputs
from engine.patient.labels.understand import understand
from engine.patient.prepare import model_of
from engine.patient.read import external, segmenters
from engine.patient.read.image import Image, resample_to
from engine.patient.read.images import read_image, read_labels
from engine.patient.read.schemes import SCHEMES
from engine.patient.sources import PrepareConfig
from engine.patient.stages import Stages
from engine.types import rigid

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


@pytest.fixture(scope="session")
def data(data_dir: Path) -> Path:
    folder = data_dir / "ct_totalsegmentator"
    if not folder.is_dir():
        pytest.skip(f"ct_totalsegmentator is not in {data_dir}; set SPINEFIT_DATA")
    return folder


@pytest.fixture
def tool(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """TotalSegmentator's stand-in with (empty) weights in a home of the user's, whose statistics
    are on."""
    made = StandIn(tmp_path, "TotalSegmentator", data / "totalseg.nii.gz", monkeypatch, "2.18.0")
    home = tmp_path / "user"
    for name in segmenters.TotalSegmentator._MODELS:
        model = (
            home
            / "nnunet"
            / "results"
            / name
            / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
            / "fold_0"
        )
        model.mkdir(parents=True)
        (model / "checkpoint_final.pth").touch()
    (home / "config.json").write_text(
        '{"totalseg_id": "totalseg_USER", "send_usage_stats": true, "prediction_counter": 7}'
    )
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(home))
    return made


@pytest.fixture(scope="module")
def scan(data: Path) -> Image:
    return read_image(data / "example_ct.nii.gz")


# -- the contract ----------------------------------------------------------------------------------


def test_totalsegmentator_is_asked_as_its_command_line_says(
    tool: StandIn, scan: Image, tmp_path: Path
) -> None:
    lines: list[str] = []
    made = segmenters.segment(scan, "totalsegmentator", tmp_path / "out", lines.append)
    (call,) = tool.calls()
    argv = call["argv"]
    assert argv[:7] == ["-i", "scan.nii.gz", "-o", "mask.nii.gz", "--ml", "--task", "total"]
    wanted = argv[argv.index("--roi_subset") + 1 :]
    assert {f"vertebrae_L{k}" for k in range(1, 6)} | {
        "vertebrae_T12",
        "vertebrae_S1",
        "sacrum",
        "femur_left",
        "aorta",
    } <= set(wanted)
    assert (
        len(wanted) == len(set(wanted)) == 24 + 2 + 8
    )  # C1-L5, sacrum and S1, cord, back muscles, aorta, hips, femurs
    assert "--device" not in argv  # gpu, or cpu where there is none, is the tool's own default
    assert (made.scheme_name, made.version) == ("totalsegmentator", "2.18.0")
    assert made.command == ("TotalSegmentator", *argv) and len(made.weights) == 6
    # streamed, but for the progress bar's repeats
    assert (
        any("Predicting part 1" in line for line in lines)
        and sum("%|" in line for line in lines) == 1
    )
    assert (
        not Path(call["cwd"]).exists()
        and [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []
    )


def test_classes_are_those_of_the_recorded_header(data: Path) -> None:
    """The example's label table was written by the tool: each name in it has the number that
    schemes.py gives it."""
    tool = segmenters.TotalSegmentator()
    words = nib.load(data / "totalseg.nii.gz").header.extensions[0].get_content().decode()
    for name in ("vertebrae_S1", "vertebrae_L5", "vertebrae_L1", "vertebrae_T11"):
        assert f'<Label Key="{tool.classes()[name]}"' in words.split(name)[0].splitlines()[-1]
    assert tool.disagreements(data / "totalseg.nii.gz") == []
    assert (
        tool.disagreements(data / "example_seg_fast_force_split.nii.gz") == []
    )  # all 117 classes: femur, aorta, autochthon too


def test_statistics_are_off_and_the_users_config_is_untouched(
    tool: StandIn, scan: Image, tmp_path: Path
) -> None:
    before = (tmp_path / "user" / "config.json").read_bytes()
    segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    (call,) = tool.calls()
    assert (
        call["config"]["send_usage_stats"] is False
    )  # what config.send_usage_stats of 2.18.0 looks at
    assert call["config"]["totalseg_id"] != "totalseg_USER"
    environment = call["env"]
    assert Path(environment["TOTALSEG_HOME_DIR"]) == Path(call["cwd"]) / "home"
    assert environment["TOTALSEG_WEIGHTS_PATH"] == str(
        tmp_path / "user" / "nnunet" / "results"
    )  # the user's own
    assert (tmp_path / "user" / "config.json").read_bytes() == before
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        assert environment[name] == "http://127.0.0.1:9"


def test_offline_refuses_what_a_child_asks_of_the_network() -> None:
    """A server on this machine stands for the network: reached without `offline()`, not with it."""
    import http.server

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        f"import urllib.request as u; u.urlopen('http://127.0.0.1:{server.server_port}/',"
        " timeout=5)"
    )
    plain = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    try:
        there = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True)
        closed = subprocess.run(
            [sys.executable, "-c", code], env={**plain, **external.offline()}, capture_output=True
        )
    finally:
        server.shutdown()
        server.server_close()
    assert there.returncode == 0
    assert closed.returncode != 0 and b"refused" in closed.stderr


def test_the_mask_is_understood(tool: StandIn, scan: Image, tmp_path: Path) -> None:
    made = segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    labels = understand(read_labels(made.mask_path), ("L4", "L5"), scheme=made.scheme_name)
    assert list(labels.pieces) == [
        "L1",
        "L2",
        "L3",
        "L4",
        "L5",
        "S1",
    ]  # T12 and T11 reach the border of the image
    assert labels.scheme.name == "totalsegmentator"
    # S1 alone, without the sacrum below: 26 and no 25
    assert set(np.unique(labels.image.values)) & {25, 26} == {26}
    note = json.loads(
        made.mask_path.with_name(made.mask_path.name.replace(".nii.gz", ".json")).read_text()
    )
    assert note["scan_sha256"] == scan.source["sha256"] and note["version"] == "2.18.0"


def test_again_does_not_run_it_again(tool: StandIn, scan: Image, tmp_path: Path) -> None:
    first = segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    lines: list[str] = []
    second = segmenters.segment(scan, "totalsegmentator", tmp_path / "out", lines.append)
    assert len(tool.calls()) == 1 and second == first and "kept from before" in lines[0]
    # other settings, another scan, another version: run
    third = segmenters.segment(scan, "totalsegmentator", tmp_path / "out", device="cpu")
    assert len(tool.calls()) == 2 and third.mask_path != first.mask_path
    argv = tool.calls()[1]["argv"]
    assert argv[argv.index("--device") + 1] == "cpu"
    segmenters.segment(
        replace(scan, source={**scan.source, "sha256": "0" * 64}),
        "totalsegmentator",
        tmp_path / "out",
    )
    assert len(tool.calls()) == 3
    (folder,) = (tmp_path / "site").iterdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: TotalSegmentator\nVersion: 2.19.0\n"
    )
    assert segmenters.segment(scan, "totalsegmentator", tmp_path / "out").version == "2.19.0"
    assert len(tool.calls()) == 4


def test_a_mask_edited_by_hand_is_not_overwritten(
    tool: StandIn, scan: Image, tmp_path: Path
) -> None:
    made = segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
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
        segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    assert made.mask_path.read_bytes() == edited and len(tool.calls()) == 1


# -- what can go wrong -----------------------------------------------------------------------------


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
    tool: StandIn,
    scan: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE", how)
    _refused(tool, scan, tmp_path / "out", message)


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
    tool: StandIn,
    scan: Image,
    tmp_path: Path,
) -> None:
    tool.answer(change, **more)
    _refused(tool, scan, tmp_path / "out", message)


def test_missing_weights_stop_before_the_tool_starts(
    tool: StandIn, scan: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Dataset292_TotalSegmentator_part2_vertebrae_1532subj"
    results = tmp_path / "user" / "nnunet" / "results"
    next(
        (results / name).rglob("checkpoint_final.pth")
    ).unlink()  # as a download that was cut short leaves it
    with pytest.raises(
        ValueError, match=rf"{name} are not in {results}.*totalseg_download_weights -t total"
    ):
        segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "elsewhere"))
    with pytest.raises(
        ValueError, match=rf"Dataset291.*, Dataset298\S* are not in {tmp_path / 'elsewhere'}"
    ):
        segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    assert tool.calls() == [] and not (tmp_path / "elsewhere").exists()


def test_a_missing_tool_says_how_to_install_it(
    scan: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(
        ValueError, match=r"no TotalSegmentator on PATH.*pip install -e '\.\[segment\]'"
    ):
        segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"no spineps on PATH.*spineps/bin/pip install 'spineps>=2\.1'"
    ):
        segmenters.segment(replace(scan, modality="MR"), "spineps", tmp_path / "out")


def test_names_and_modalities_are_checked(tool: StandIn, scan: Image, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"segmenter 'nnunet' is unknown; choose one of totalsegmentator, spineps"
    ):
        segmenters.segment(scan, "nnunet", tmp_path)
    with pytest.raises(
        ValueError, match=r"totalsegmentator is for CT, but the scan is MR; give spineps"
    ):
        segmenters.segment(replace(scan, modality="MR"), "totalsegmentator", tmp_path)
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
    tool: StandIn, scan: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            segmenters.segment(scan, "totalsegmentator", tmp_path / "out", log)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 20.0  # it would have slept for 60 s
    (call,) = tool.calls()
    with pytest.raises(ProcessLookupError):
        os.kill(call["pid"], 0)
    assert list((tmp_path / "out").iterdir()) == []


# -- what is handed over ---------------------------------------------------------------------------


def test_the_scan_is_handed_over_in_its_place_and_without_names(tmp_path: Path) -> None:
    """LPS → RAS analytically: voxel (i, j, k) of a turned grid with 0.5 × 0.8 × 2 mm voxels is
    at the same point for nibabel."""
    turn = np.radians(20.0)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, -1.0]]
    ) * [0.5, 0.8, 2.0]
    matrix[:3, 3] = [-120.25, 33.5, 700.125]
    values = np.random.default_rng(0).integers(-1000, 1500, (5, 6, 7)).astype(np.int16)
    scan = Image(values, matrix, "CT", (), {"path": "DOE^JANE/ct", "sha256": "0" * 64})
    segmenters.write_scan(scan, tmp_path / "scan.nii.gz")
    image = nib.load(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), values)
    index = np.array([4.0, 1.0, 6.0])
    np.testing.assert_allclose(
        nib.affines.apply_affine(image.affine, index) * [-1, -1, 1], rigid(matrix, index), atol=1e-4
    )
    np.testing.assert_allclose(image.header.get_qform(), image.header.get_sform(), atol=1e-4)
    np.testing.assert_allclose(
        read_image(tmp_path / "scan.nii.gz").lps_from_index, matrix, atol=1e-4
    )
    text = {
        name: bytes(image.header[name]).strip(b"\0")
        for name in ("descrip", "aux_file", "intent_name", "db_name")
    }
    assert set(text.values()) == {b""} and not image.header.extensions


def test_dicom_is_handed_over_as_nifti(data: Path, tool: StandIn, tmp_path: Path) -> None:
    """The 20-slice series, answered by its own recorded segmentation (LAS, here put on the grid
    that is handed over)."""
    scan = read_image(data / "dicom")
    recorded = resample_to(
        read_labels(data / "example_seg_dicom.nii.gz"),
        scan.lps_from_index,
        scan.values.shape,
        order=0,
    )
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.lps_from_index
    tool.answer(lambda _: recorded.values.astype(np.uint8), affine=affine)
    made = segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    given = read_image(tool.given)
    np.testing.assert_array_equal(given.values, scan.values)
    np.testing.assert_allclose(given.lps_from_index, scan.lps_from_index, atol=1e-4)
    bone = scan.values[
        read_labels(made.mask_path).values == SCHEMES["totalsegmentator"].vertebrae["T12"]
    ]
    assert (
        bone.size > 1000 and np.median(bone) > 100.0
    )  # HU: the mask is on the vertebra, not beside it


def test_spineps_is_asked_as_its_command_line_says(
    data_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the cervical T2w crop and its own vertebra mask (labels n, 100 + n, 200 + n)."""
    folder = data_dir / "ct_mri_subregions"
    if not folder.is_dir():
        pytest.skip(f"ct_mri_subregions is not in {data_dir}; set SPINEFIT_DATA")
    tool = StandIn(
        tmp_path, "spineps", folder / "sub-mri_seg-vert_label-6_msk.nii.gz", monkeypatch, "2.1.3"
    )
    scan = read_image(folder / "sub-mri_label-6_T2w.nii.gz")
    with pytest.raises(
        ValueError,
        match=rf"weights are not in {tmp_path}; set SPINEPS_SEGMENTOR_MODELS to the folder",
    ):
        segmenters.segment(scan, "spineps", tmp_path / "out")
    models = (
        tmp_path / "lib" / "python3.11" / "site-packages" / "spineps" / "models"
    )  # of the environment that bin/spineps is in
    for name in ("T2w_semantic_v1.0.9", "T2w_semantic_v1.0.10", "instance_sagittal_v1.2.0"):
        (models / name / "nnUNetPlans").mkdir(parents=True)
        (models / name / "nnUNetPlans" / "inference_config.json").touch()
    with pytest.raises(ValueError, match=rf"T2w_labeling_v… are not in {models}.*releases"):
        segmenters.segment(scan, "spineps", tmp_path / "out")
    (models / "T2w_labeling_v1.4.0").mkdir()
    (models / "T2w_labeling_v1.4.0" / "inference_config.json").touch()
    monkeypatch.setattr(external, "gpu_there", lambda: False)
    made = segmenters.segment(scan, "spineps", tmp_path / "out")
    (call,) = tool.calls()
    assert call["argv"] == [
        "sample",
        "--input",
        "sub-scan_T2w.nii.gz",
        "--model-semantic",
        str(models / "T2w_semantic_v1.0.10"),
        "--model-instance",
        str(models / "instance_sagittal_v1.2.0"),
        "--model-labeling",
        str(models / "T2w_labeling_v1.4.0"),
        "--cpu",
    ]
    monkeypatch.setattr(external, "gpu_there", lambda: True)
    for device, cpu in (("auto", False), ("gpu", False), ("cpu", True)):
        weights = segmenters.Weights(models, made.weights)
        assert ("--cpu" in segmenters.SEGMENTERS["spineps"].command(weights, device)) is cpu  # type: ignore[arg-type]
    assert "<weights>/T2w_semantic_v1.0.10" in made.command and str(models) not in " ".join(
        made.command
    )
    assert (made.scheme_name, made.version) == ("spineps", "2.1.3")
    monkeypatch.setenv("SPINEPS_SEGMENTOR_MODELS", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=f"are not in {tmp_path / 'elsewhere'}"):
        segmenters.segment(scan, "spineps", tmp_path / "out")
    numbers = set(np.unique(read_labels(made.mask_path).values))
    assert (
        numbers == {0, 5, 6, 7, 105, 106, 205, 206, 207}
        and numbers - {0} <= SCHEMES["spineps"].known()
    )
    assert call["env"]["https_proxy"] == "http://127.0.0.1:9"
    np.testing.assert_array_equal(read_image(tool.given).values, scan.values)


# -- in the preparation ----------------------------------------------------------------------------


def test_prepare_runs_the_segmenter_that_mask_names(
    tool: StandIn, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "case"
    given = {
        "kind": "ct",
        "path": str(data / "example_ct.nii.gz"),
        "mask": "totalsegmentator",
        "device": "cpu",
        "levels": "segment",
    }
    config = PrepareConfig.model_validate({"source": given, "segment": "L3-L4", "out": str(out)})
    read = read_inputs(config, config.source, out, lambda line: None)  # type: ignore[arg-type]
    labels = read.labels
    assert read.scan is not None and list(labels.pieces) == ["L3", "L4"]
    (mask,) = (out / "segmentation").glob("*.nii.gz")
    assert labels.image.source["path"] == str(mask)
    source: dict = {}
    module = sys.modules[
        "engine.patient.prepare"
    ]  # as an attribute of the package it is the function
    monkeypatch.setattr(
        module, "from_labels", lambda name, labels, pair, where, **options: source.update(where)
    )
    model_of(config, config.source, read, Stages())  # type: ignore[arg-type]
    assert (
        source["labels"] == "totalsegmentator"
        and source["sha256"]["labels"] == hashlib.sha256(mask.read_bytes()).hexdigest()
    )
    assert (
        source["segmenter"]["name"] == "totalsegmentator"
        and source["segmenter"]["version"] == "2.18.0"
    )
    assert str(tmp_path) not in json.dumps(source["segmenter"])  # the same wherever it was made


def test_prepare_refuses_a_segmenter_for_the_other_modality(
    tool: StandIn, data: Path, tmp_path: Path
) -> None:
    given = {"kind": "mri", "path": str(data / "example_ct.nii.gz"), "mask": "totalsegmentator"}
    config = PrepareConfig.model_validate(
        {"source": given, "segment": "L3-L4", "out": str(tmp_path / "case")}
    )
    with pytest.raises(
        ValueError, match="totalsegmentator is for CT, but the scan is MR; give spineps"
    ):
        read_inputs(config, config.source, tmp_path / "case", lambda line: None)  # type: ignore[arg-type]
    assert tool.calls() == []


# -- the real tool ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_totalsegmentator_on_the_example(data: Path, scan: Image, tmp_path: Path) -> None:
    """Dice by level against the mask that its authors keep for their own tests; ≥ 0.90 for whole
    vertebrae at 3 mm voxels.

    Of the authors' own test (same model, same scan, small numerical differences between machines);
    L5..T12 are whole there.
    """
    tool = segmenters.SEGMENTERS["totalsegmentator"]
    executable = external.find(tool.executable)
    if executable is None:
        pytest.skip(f"the real TotalSegmentator was not run: not installed; {tool.install}")
    try:
        tool.weights(executable)
    except ValueError as error:
        pytest.skip(f"the real TotalSegmentator was not run: {error}")
    made = segmenters.segment(scan, "totalsegmentator", tmp_path, print)
    found, wanted = read_labels(made.mask_path).values, read_labels(data / "totalseg.nii.gz").values
    for level in ("T12", "L1", "L2", "L3", "L4", "L5"):
        a, b = (
            values == SCHEMES["totalsegmentator"].vertebrae[level] for values in (found, wanted)
        )
        dice = 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())
        print(f"{level}: Dice {dice:.3f}")
        assert dice >= 0.90, level
