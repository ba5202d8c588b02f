"""Segmenters as adapters: contract tests on recorded output.

A stand-in on PATH (stand_in.py) takes the place of the real tools. What the command line, the
environment and the answer must be was read in the released wheels (TotalSegmentator 2.18.0, SPINEPS
2.1.3). The last test runs the real TotalSegmentator where it and its weights are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
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
from tests.patient.stand_in import StandIn


def test_totalsegmentator_is_asked_as_its_command_line_says(
    totalsegmentator: StandIn, example_ct: Image, tmp_path: Path
) -> None:
    lines: list[str] = []
    made = segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out", lines.append)
    (call,) = totalsegmentator.calls()
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


def test_classes_are_those_of_the_recorded_header(example: Path) -> None:
    """The example's label tables were written by the tool: each name in them has the number that
    schemes.py gives it; the second holds all 117 classes (femur, aorta, autochthon too)."""
    tool = segmenters.TotalSegmentator()
    few = read_labels(example / "totalseg.nii.gz").source["segments"]
    for name in ("vertebrae_S1", "vertebrae_L5", "vertebrae_L1", "vertebrae_T11"):
        assert few[tool.classes()[name]] == name
    every = read_labels(example / "example_seg_fast_force_split.nii.gz").source["segments"]
    assert set(tool.classes()) <= set(every.values())
    assert tool.disagreements(few) == tool.disagreements(every) == []
    (line,) = tool.disagreements({28: "vertebrae_L5", 29: "vertebrae_L3"})
    assert line == "vertebrae_L5 is 28, not 27"


def test_statistics_are_off_and_the_users_config_is_untouched(
    totalsegmentator: StandIn, example_ct: Image, tmp_path: Path
) -> None:
    before = (tmp_path / "user" / "config.json").read_bytes()
    segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out")
    (call,) = totalsegmentator.calls()
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


def test_the_mask_is_understood(
    totalsegmentator: StandIn, example_ct: Image, tmp_path: Path
) -> None:
    made = segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out")
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
    assert note["scan_sha256"] == example_ct.source["sha256"] and note["version"] == "2.18.0"


def test_again_does_not_run_it_again(
    totalsegmentator: StandIn, example_ct: Image, tmp_path: Path
) -> None:
    first = segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out")
    lines: list[str] = []
    second = segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out", lines.append)
    assert len(totalsegmentator.calls()) == 1 and second == first and "kept from before" in lines[0]
    # other settings, another scan, another version: run
    third = segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out", device="cpu")
    assert len(totalsegmentator.calls()) == 2 and third.mask_path != first.mask_path
    argv = totalsegmentator.calls()[1]["argv"]
    assert argv[argv.index("--device") + 1] == "cpu"
    segmenters.segment(
        replace(example_ct, source={**example_ct.source, "sha256": "0" * 64}),
        "totalsegmentator",
        tmp_path / "out",
    )
    assert len(totalsegmentator.calls()) == 3
    (folder,) = (tmp_path / "site").iterdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: TotalSegmentator\nVersion: 2.19.0\n"
    )
    assert segmenters.segment(example_ct, "totalsegmentator", tmp_path / "out").version == "2.19.0"
    assert len(totalsegmentator.calls()) == 4


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


def test_dicom_is_handed_over_as_nifti(
    example: Path, totalsegmentator: StandIn, tmp_path: Path
) -> None:
    """The 20-slice series, answered by its own recorded segmentation (LAS, here put on the grid
    that is handed over)."""
    scan = read_image(example / "dicom")
    recorded = resample_to(
        read_labels(example / "example_seg_dicom.nii.gz"),
        scan.lps_from_index,
        scan.values.shape,
        order=0,
    )
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.lps_from_index
    totalsegmentator.answer(lambda _: recorded.values.astype(np.uint8), affine=affine)
    made = segmenters.segment(scan, "totalsegmentator", tmp_path / "out")
    given = read_image(totalsegmentator.given)
    np.testing.assert_array_equal(given.values, scan.values)
    np.testing.assert_allclose(given.lps_from_index, scan.lps_from_index, atol=1e-4)
    bone = scan.values[
        read_labels(made.mask_path).values == SCHEMES["totalsegmentator"].vertebrae["T12"]
    ]
    assert (
        bone.size > 1000 and np.median(bone) > 100.0
    )  # HU: the mask is on the vertebra, not beside it


def test_spineps_is_asked_as_its_command_line_says(
    data_dir: Path, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_prepare_runs_the_segmenter_that_mask_names(
    totalsegmentator: StandIn, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "case"
    given = {
        "kind": "ct",
        "path": str(example / "example_ct.nii.gz"),
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


@pytest.mark.slow
def test_the_real_totalsegmentator_on_the_example(
    example: Path, example_ct: Image, tmp_path: Path
) -> None:
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
    made = segmenters.segment(example_ct, "totalsegmentator", tmp_path, print)
    found, wanted = (
        read_labels(made.mask_path).values,
        read_labels(example / "totalseg.nii.gz").values,
    )
    for level in ("T12", "L1", "L2", "L3", "L4", "L5"):
        a, b = (
            values == SCHEMES["totalsegmentator"].vertebrae[level] for values in (found, wanted)
        )
        dice = 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())
        print(f"{level}: Dice {dice:.3f}")
        assert dice >= 0.90, level
