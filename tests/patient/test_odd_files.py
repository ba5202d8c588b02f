"""Files that are not what their names say, or no images at all: read by what they hold, or refused
in one line that says what they are.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import socket
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture

from engine.patient.read.files import content, files_under
from engine.patient.read.images import read_image, read_labels

SHAPE = (9, 8, 7)
VALUES = np.random.default_rng(2).integers(0, 900, SHAPE).astype(np.int16)
VALUES[0] = 0  # labels that fill their image to all sides are taken for cropped
AFFINE = np.array([[-0.9, 0, 0, 31], [0, -0.7, 0, -17], [0, 0, 1.5, 4], [0, 0, 0, 1.0]])  # RAS
LPS = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE


def nifti(path: Path, kind: Any = nib.Nifti1Image) -> Path:
    nib.save(kind(VALUES, AFFINE), path)
    return path


def refused(path: Path, text: str) -> None:
    for read in (read_image, read_labels):
        with pytest.raises(ValueError, match=text) as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("made", "name"),
    [
        ("a.nii", "b.nii.gz"),
        ("a.nii.gz", "b.nii"),
        ("a.nii", "b.nrrd"),
        ("a.nii.gz", "b"),
        ("a.nii", "b.mha"),
    ],
)
def test_a_nifti_is_read_whatever_it_is_called(
    tmp_path: Path, kind: Any, made: str, name: str
) -> None:
    nifti(tmp_path / made, kind).rename(tmp_path / name)
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image.values, VALUES)
    np.testing.assert_allclose(image.lps_from_index, LPS, atol=1e-6)
    zipped = "gzipped" if made.endswith("gz") else "not gzipped"
    assert any(f"it holds {zipped} NIfTI; read as that" in line for line in image.notes)
    assert not read_image(nifti(tmp_path / made, kind)).notes


@pytest.mark.parametrize(
    ("made", "name"),
    [("a.nrrd", "b.mha"), ("a.mha", "b.nrrd"), ("a.nrrd", "b.nii.gz"), ("a.mha", "b.dat")],
)
def test_so_are_nrrd_and_metaimage(tmp_path: Path, made: str, name: str) -> None:
    image = sitk.GetImageFromArray(VALUES.T)
    image.SetSpacing((0.9, 0.7, 1.5))
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    image.SetOrigin(LPS[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / made))
    (tmp_path / made).rename(tmp_path / name)
    read = read_image(tmp_path / name)
    np.testing.assert_array_equal(read.values, VALUES)
    np.testing.assert_allclose(read.lps_from_index, LPS, atol=1e-6)
    assert any("read as that" in line for line in read.notes)
    assert read.source["format"] == {"a.nrrd": "NRRD", "a.mha": "MetaImage"}[made]


def picture(form: str) -> bytes:
    stream = io.BytesIO()
    Picture.new("L", (8, 8)).save(stream, form)
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("scan.nii", b"x")
    return stream.getvalue()


FOREIGN = {
    "JPEG": (picture("JPEG"), "it is a JPEG picture; export the whole volume"),
    "PNG": (picture("PNG"), "it is a PNG picture; export the whole volume"),
    "zip": (zipped(), "it is a zip archive; unpack it first"),
    "html": (
        b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning",
        "it is a web page .*download the file itself again",
    ),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        "it is a Git LFS pointer; run `git lfs pull`",
    ),
    "pdf": (b"%PDF-1.7\n", "it is a PDF"),
    "tar": (
        gzip.compress(b"\x00" * 257 + b"ustar\x00" + b"\x00" * 200),
        "it is a tar archive in a gzip; unpack it first",
    ),
    "twice": (gzip.compress(gzip.compress(bytes(400))), "it is a gzip in a gzip; unpack it once"),
    "text": (b"not an image", "it is a text file"),
    "zeros": (bytes(5000), "zeros only .*copy it again"),
    "xml": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "it is an XML text; download",
    ),
}


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.nrrd", "ct.mha", "ct.img"])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_image_is_named(tmp_path: Path, what: str, name: str) -> None:
    (tmp_path / name).write_bytes(FOREIGN[what][0])
    refused(tmp_path / name, FOREIGN[what][1])


def test_damaged_and_unfinished_copies_are_refused(tmp_path: Path) -> None:
    whole = nifti(tmp_path / "ct.nii.gz").read_bytes()
    for name, data in (
        ("cut.nii.gz", whole[:-300]),
        ("stub.nii.gz", whole[:40]),
        ("wrong.nii.gz", whole[:200] + bytes(50) + whole[250:]),
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, f"{name}: not a readable NIfTI image, or cut short")
    (tmp_path / "tail.nii.gz").write_bytes(whole + b"a word behind the gzip")
    np.testing.assert_array_equal(read_image(tmp_path / "tail.nii.gz").values, VALUES)
    (tmp_path / "cut.nii").write_bytes(whole[:-300])
    refused(tmp_path / "cut.nii", "not a readable NIfTI image, or cut short")
    (tmp_path / "empty.nii.gz").touch()
    refused(tmp_path / "empty.nii.gz", "is empty")
    (tmp_path / "x.nrrd.gz").write_bytes(gzip.compress(b"NRRD0004\n" + bytes(600)))
    refused(tmp_path / "x.nrrd.gz", "the whole NRRD is in a gzip; unpack it with `gzip -d`")
    nib.save(nib.Nifti1Pair(VALUES, AFFINE), tmp_path / "pair.img")
    refused(tmp_path / "pair.hdr", r"the header of a NIfTI pair .*save it as one \.nii")


def test_several_volumes_say_how_to_take_one(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.stack([VALUES, VALUES + 1], -1), AFFINE), tmp_path / "4d.nii.gz")
    refused(
        tmp_path / "4d.nii.gz",
        r"shape \(9, 8, 7, 2\), several volumes .*0 to 1\).*slicer\[\.\.\., 0\]",
    )
    nib.save(
        nib.load(tmp_path / "4d.nii.gz").slicer[..., 0], tmp_path / "one.nii.gz"
    )  # as the message says
    np.testing.assert_array_equal(read_image(tmp_path / "one.nii.gz").values, VALUES)
    nib.save(nib.Nifti1Image(VALUES[..., None, None], AFFINE), tmp_path / "5d.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "5d.nii.gz").values, VALUES)


def test_a_folder_called_like_a_file_is_read_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").mkdir()
    nifti(tmp_path / "ct.nii.gz" / "ct.nii")  # as some unpackers leave it
    for read in (read_image, read_labels):
        image = read(tmp_path / "ct.nii.gz")
        np.testing.assert_array_equal(image.values, VALUES)
        assert image.notes[0] == "the only image of the folder is read: ct.nii"
    refused(tmp_path / "ct.nii.gz" / "ct.nii" / "more.nii", "is no file or folder")


def test_sockets_pipes_and_devices_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.nii")
        refused(Path("s.nii"), r"s\.nii is a socket, not a file")
    os.mkfifo("p.nii.gz")
    refused(Path("p.nii.gz"), "is a pipe, not a file")
    refused(Path("/dev/null"), "is a device, not a file")


def test_what_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = nifti(tmp_path / "ct.nii.gz")
    folder = tmp_path / "series"
    folder.mkdir()
    shutil.copy(file, folder / "IM0001")

    def denied(*args: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(args[0]))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        refused(file, r"ct\.nii\.gz cannot be read: permission denied$")
        refused(
            folder, r"series: the file cannot be read: permission denied$"
        )  # by its number: names may be personal
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        refused(folder, "series cannot be read: permission denied$")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", denied)
        refused(file, r"ct\.nii\.gz cannot be read: permission denied$")


def test_files_under_a_folder_leave_out_hidden_ones_and_loops(tmp_path: Path) -> None:
    for name in ("b/2.nii", "a/1.nii", ".git/3.nii", "a/.4.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert files_under(tmp_path) == [tmp_path / "a/1.nii", tmp_path / "b/2.nii"]
    assert content(nifti(tmp_path / "x.nii.gz")).gzipped
