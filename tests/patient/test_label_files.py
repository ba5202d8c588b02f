"""Label files that people have: folders of masks, names within files, .seg.nrrd."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Extension

from engine.patient.read.combined import combined, precedence, telling_name
from engine.patient.read.image import Image
from engine.patient.read.images import read_image, read_labels
from tests.patient.mask_files import AFFINE, BOXES, SHAPE, mask_of, refused, save


def masks(folder: Path, ending: str = ".nii.gz", value: int = 1) -> Path:
    for name in BOXES:
        save(folder / f"{name}.nii.gz", mask_of(name, value))
        if ending != ".nii.gz":
            sitk.WriteImage(
                sitk.ReadImage(str(folder / f"{name}.nii.gz")), str(folder / f"{name}{ending}")
            )
            (folder / f"{name}.nii.gz").unlink()
    return folder


def assert_boxes(image: Image) -> None:
    """Every structure is in its place under its name, and nothing else."""
    segments = image.source["segments"]
    assert sorted(segments.values()) == sorted(BOXES)
    for number, name in segments.items():
        np.testing.assert_array_equal(image.values == number, mask_of(name) > 0)
    np.testing.assert_allclose(image.lps_from_index, np.diag([0.9, 0.7, 1.5, 1.0]), atol=1e-6)


# -- a folder with one mask per structure ----------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "value"), [(".nii.gz", 1), (".nii.gz", 255), (".nrrd", 1), (".mha", 1)]
)
def test_masks_of_one_structure_each_are_combined(tmp_path: Path, ending: str, value: int) -> None:
    masks(tmp_path, ending, value)
    for name in ("kidney_left", "skull"):
        save(
            tmp_path / f"{name}.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
        )  # never read
    save(
        tmp_path / "vertebrae_L3.nii.gz", np.zeros(SHAPE, np.uint8)
    )  # as TotalSegmentator writes what it did not find
    save(tmp_path / "._vertebrae_L5.nii.gz", np.zeros(SHAPE, np.uint8)).write_bytes(
        b"\x00\x05\x16\x07"
    )  # macOS
    (tmp_path / "statistics.json").write_text("{}")
    if ending != ".nii.gz":
        (tmp_path / "vertebrae_L3.nii.gz").unlink()
    image = read_labels(tmp_path)
    assert_boxes(image)
    assert list(image.source["segments"].values()) == [
        "vertebrae_L4",
        "vertebrae_L5",
        "sacrum",
        "femur_left",
    ]
    assert image.source["numbers_mean_nothing"] is True and image.modality == "SEG"
    assert any("2 files not read" in line and "kidney_left, skull" in line for line in image.notes)
    assert any("1 masks are empty: vertebrae_L3" in line for line in image.notes) == (
        ending == ".nii.gz"
    )


def test_masks_are_found_in_one_sub_folder_beside_the_scan(tmp_path: Path) -> None:
    """TotalSegmentator's data set: s0011/ct.nii.gz and s0011/segmentations/*.nii.gz."""
    save(tmp_path / "ct.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    masks(tmp_path / "segmentations")
    assert_boxes(read_labels(tmp_path))
    masks(tmp_path / "again")
    refused(
        tmp_path,
        r"masks of vertebrae lie in 2 folders \(.*again, .*segmentations\); give one of them",
    )


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    masks(tmp_path)
    bad = tmp_path / "vertebrae_L3.nii.gz"
    save(bad, np.pad(mask_of("sacrum"), ((0, 1), (0, 0), (0, 0))))
    refused(
        tmp_path,
        r"vertebrae_L3\.nii\.gz: lies on another grid than .*shape \(17, 14, 20\), not \(16, 14, "
        r"20\)|vertebrae_L4.*another grid",
    )
    moved = AFFINE.copy()
    moved[0, 3] = 0.45
    save(bad, mask_of("sacrum"), moved)
    refused(tmp_path, r"another grid than .*0\.5 voxels off")
    probable = mask_of("sacrum", 0.75)
    probable[5, 5, 3] = 0.25
    save(bad, probable)
    refused(
        tmp_path, r"vertebrae_L3\.nii\.gz: .*this holds 0\.25, 0\.75 \(a map of probabilities\)"
    )
    save(bad, mask_of("sacrum") * 3 + mask_of("vertebrae_L4") * 4)
    refused(tmp_path, r"vertebrae_L3\.nii\.gz: .*this holds 3, 4 \(a scan, or several labels\)")
    save(bad, mask_of("sacrum"))
    refused(
        tmp_path,
        r"vertebrae_L3 and sacrum overlap in 144 voxels, 100\.00% of the smaller \(at most 1%\)",
    )
    shutil.move(bad, tmp_path / "L4_again.nii.gz")
    refused(tmp_path, r"are both L4; keep one of them")


def test_a_small_overlap_stays_with_the_vertebra(tmp_path: Path) -> None:
    shape = (30, 30, 30)
    upper, lower = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    upper[2:28, 2:28, 12:28] = 1
    lower[2:28, 2:28, 2:12] = 1
    lower[5:10, 5:15, 12] = 1  # 50 of 6810 voxels: 0.7 %
    save(tmp_path / "sacrum.nii.gz", lower)
    save(tmp_path / "L5.nii.gz", upper)
    image = read_labels(tmp_path)
    assert image.source["segments"] == {1: "L5", 2: "sacrum"}
    np.testing.assert_array_equal(image.values == 1, upper > 0)
    np.testing.assert_array_equal(image.values == 2, (lower > 0) & (upper == 0))
    assert any(
        "L5 and sacrum overlap in 50 voxels, 0.73% of the smaller: they stay with L5" in line
        for line in image.notes
    )


def test_a_body_outline_and_the_canal_around_the_cord_are_no_rivals() -> None:
    body = np.ones((6, 6, 6), bool)
    bone, canal, cord = (np.zeros((6, 6, 6), bool) for _ in range(3))
    bone[1:3], canal[3:5], cord[4] = True, True, True
    names = {1: "body", 2: "spinal_canal", 3: "spinal_cord", 4: "L5"}
    arrays = {1: body, 2: canal, 3: cord, 4: bone}
    assert precedence(names) == [4, 3, 2, 1]
    values, notes = combined(((n, arrays[n]) for n in precedence(names)), names, body.shape, "here")
    for number, mask in ((4, bone), (3, cord), (2, canal & ~cord), (1, body & ~bone & ~canal)):
        np.testing.assert_array_equal(values == number, mask)
    assert len(notes) == 4
    with pytest.raises(ValueError, match="Segment_1 and Segment_2 overlap"):
        combined([(1, body), (2, bone)], {1: "Segment_1", 2: "Segment_2"}, body.shape, "here")


def test_a_folder_without_a_level_is_refused_or_has_one_label_image(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "holds no DICOM file")
    save(tmp_path / "two" / "kidney.nii.gz", mask_of("sacrum"))
    save(tmp_path / "two" / "skull.nii.gz", mask_of("sacrum"))
    refused(
        tmp_path / "two",
        r"no file is named after a vertebra; it holds kidney\.nii\.gz, skull\.nii\.gz.*names are "
        r"read: vertebrae_L4",
    )
    with pytest.raises(
        ValueError,
        match=r"holds 2 image files \(kidney\.nii\.gz, skull\.nii\.gz\) and no DICOM; give one",
    ):
        read_image(tmp_path / "two")
    save(tmp_path / "one" / "labels.nii.gz", mask_of("sacrum", 26))
    image = read_labels(tmp_path / "one")  # a single file with all labels
    np.testing.assert_array_equal(image.values, mask_of("sacrum", 26))
    assert image.notes[0] == "the only image of the folder is read: labels.nii.gz"
    save(tmp_path / "empty" / "L4.nii.gz", np.zeros(SHAPE, np.uint8))
    save(tmp_path / "empty" / "L5.nii.gz", np.zeros(SHAPE, np.uint8))
    refused(tmp_path / "empty", r"all empty \(L4, L5\)")


# -- names within files ----------------------------------------------------------------------------


def test_names_in_a_nifti_extension_are_read(tmp_path: Path) -> None:
    labels = mask_of("vertebrae_L4", 28) + mask_of("vertebrae_L5", 27)
    image = nib.Nifti1Image(labels, AFFINE)
    table = (
        '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension> '
        '<VolumeInformation Index="0"> <LabelTable>'
        '<Label Key="27" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[vertebrae_L5]]></Label>'
        '<Label Key="28" Red="1" Green="1" Blue="0" Alpha="1">vertebrae_L4</Label>'
        "</LabelTable></VolumeInformation></CaretExtension>"
    )
    image.header.extensions.append(Nifti1Extension(0, table.encode()))  # type: ignore[attr-defined,no-untyped-call]
    nib.save(image, tmp_path / "ml.nii.gz")
    read = read_labels(tmp_path / "ml.nii.gz")
    assert read.source["segments"] == {27: "vertebrae_L5", 28: "vertebrae_L4"}
    assert "numbers_mean_nothing" not in read.source
    np.testing.assert_array_equal(read.values, labels)


def seg_nrrd(
    path: Path, layers: list[np.ndarray], keys: dict[str, str], last: bool = False
) -> Path:
    """As 3D Slicer writes it: the layers along a list axis before (or after) the three of the
    image.
    """
    several = len(layers) > 1
    order = [*["list"] * (several and not last), *["domain"] * 3, *["list"] * (several and last)]
    sizes = [len(layers) if kind == "list" else None for kind in order]
    places = iter(SHAPE)
    directions = iter(("(0.9,0,0)", "(0,0.7,0)", "(0,0,1.5)"))
    along = ["none" if kind == "list" else next(directions) for kind in order]
    head = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {len(order)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n or next(places)) for n in sizes)}",
        f"space directions: {' '.join(along)}",
        f"kinds: {' '.join(order)}",
        "encoding: gzip",
        "space origin: (0,0,0)",
        *(f"{key}:={value}" for key, value in keys.items()),
    ]
    stacked = np.stack(layers, axis=-1 if last else 0) if several else layers[0]
    path.write_bytes(
        "\n".join(head).encode()
        + b"\n\n"
        + gzip.compress(stacked.astype(np.uint8).tobytes(order="F"))
    )
    return path


def terms(meaning: str, side: str = "") -> str:
    return (
        "TerminologyEntry:Segmentation category and type~SCT^123037004^Anatomical "
        f"Structure~SCT^1^{meaning}~SCT^2^{side}~"
        "Anatomic codes - DICOM master list~^^~^^|"
    )


def test_seg_nrrd_of_one_layer_keeps_its_numbers(tmp_path: Path) -> None:
    labels = mask_of("vertebrae_L4", 1) + mask_of("vertebrae_L5", 2) + mask_of("femur_left", 7)
    keys = {
        "Segment0_ID": "Segment_1",
        "Segment0_Name": "L4",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
        "Segment0_Tags": terms("Bone"),
        "Segment1_Name": "Segment_2",
        "Segment1_LabelValue": "2",
        "Segment1_Layer": "0",
        "Segment1_Tags": terms("L5 vertebra"),
        "Segment2_Name": "Segment_7",
        "Segment2_LabelValue": "7",
        "Segment2_Tags": terms("Femur", "Left"),
    }
    image = read_labels(seg_nrrd(tmp_path / "Segmentation.seg.nrrd", [labels], keys))
    np.testing.assert_array_equal(image.values, labels)
    assert image.source["segments"] == {1: "L4", 2: "L5 vertebra", 7: "Left Femur"}
    assert image.source["numbers_mean_nothing"] is True and image.source["format"] == "seg.nrrd"


@pytest.mark.parametrize("last", [False, True])
def test_seg_nrrd_layers_are_combined(tmp_path: Path, last: bool) -> None:
    layers = [
        mask_of("vertebrae_L4", 1) + mask_of("sacrum", 2) + mask_of("femur_left", 3),
        mask_of("vertebrae_L5", 1),
    ]
    places = (
        ("sacrum", 2, 0),
        ("vertebrae_L5", 1, 1),
        ("vertebrae_L4", 1, 0),
        ("femur_left", 3, 0),
    )
    keys = {}
    for n, (name, value, layer) in enumerate(places):
        keys |= {
            f"Segment{n}_Name": name,
            f"Segment{n}_LabelValue": str(value),
            f"Segment{n}_Layer": str(layer),
        }
    image = read_labels(seg_nrrd(tmp_path / "s.seg.nrrd", layers, keys, last))
    assert_boxes(image)
    assert image.source["segments"][1] == "sacrum"  # numbered as the segments are
    layers[1][BOXES["vertebrae_L4"]] = 1
    refused(
        seg_nrrd(tmp_path / "s.seg.nrrd", layers, keys, last),
        "vertebrae_L4 and vertebrae_L5 overlap in 180 voxels, 100.00%",
    )
    keys["Segment3_Layer"] = "5"
    refused(
        seg_nrrd(tmp_path / "s.seg.nrrd", layers, keys, last),
        "femur_left is in a layer that the file does not hold",
    )


def test_seg_nrrd_of_old_slicer_has_a_layer_for_each_segment(tmp_path: Path) -> None:
    keys = {f"Segment{n}_Name": name for n, name in enumerate(BOXES)}
    assert_boxes(
        read_labels(seg_nrrd(tmp_path / "old.seg.nrrd", [mask_of(name) for name in BOXES], keys))
    )


def test_a_plain_nrrd_with_components_stays_refused(tmp_path: Path) -> None:
    refused(
        seg_nrrd(tmp_path / "colours.nrrd", [mask_of("sacrum")] * 2, {}),
        "has 2 numbers per voxel; one is needed",
    )


@pytest.mark.parametrize(
    ("label", "meanings", "name"),
    [
        ("L4", ["Bone"], "L4"),
        ("L4 vertebra", ["L5 vertebra"], "L4 vertebra"),  # a name is what whoever drew it wrote
        ("Segment_1", ["Bone", "Fourth lumbar vertebra"], "Fourth lumbar vertebra"),
        ("aorta", ["Artery"], "aorta"),
        ("mine", ["Bone"], "mine"),
    ],
)
def test_the_name_that_says_most_is_taken(label: str, meanings: list[str], name: str) -> None:
    assert telling_name(label, meanings) == name
