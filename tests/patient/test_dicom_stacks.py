"""Which files of a folder make a series: missing, doubled and unequally spaced slices, several
series, echoes, identifiers that an anonymiser took away, and what lies beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from engine.patient.read.images import read_image
from tests.patient.dicom_files import (
    SECONDARY,
    blank,
    file_of,
    pixels,
    series,
)
from tests.patient.linear_images import (
    SHAPE,
    grid,
    linear,
)


def test_missing_slices_are_named(tmp_path: Path) -> None:
    series(tmp_path, axes=np.eye(3)[:2])
    file_of(tmp_path, 3).unlink()
    file_of(tmp_path, 6).unlink()
    # slices at −240 + 2.5·k
    with pytest.raises(ValueError, match=r"2 of 9 slices are missing, at -232\.50, -225\.00 mm"):
        read_image(tmp_path)


def test_unequal_spacing_is_refused_with_its_tolerance_and_rounded_positions_are_not(
    tmp_path: Path,
) -> None:
    def shift(by: float) -> Callable[[Dataset, int], None]:
        def edit(ds: Dataset, k: int) -> None:
            ds.ImagePositionPatient = [
                *ds.ImagePositionPatient[:2],
                round(float(ds.ImagePositionPatient[2]) + by * (k % 2), 4),
            ]

        return edit

    series(tmp_path / "rounded", axes=np.eye(3)[:2], edit=shift(0.05))
    assert read_image(tmp_path / "rounded").source["slice_spacing_mm"] == pytest.approx(
        2.5, abs=0.01
    )
    series(tmp_path / "uneven", axes=np.eye(3)[:2], edit=shift(0.8))
    with pytest.raises(ValueError, match=r"unequal slice spacing.*at most 10% of the spacing"):
        read_image(tmp_path / "uneven")


def test_duplicates_with_the_same_content_go_and_others_are_refused(tmp_path: Path) -> None:
    matrix = series(tmp_path, axes=np.eye(3)[:2])
    copy = pydicom.dcmread(file_of(tmp_path, 2))
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    copy.save_as(tmp_path / "IM0100")
    image = read_image(tmp_path)
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=0.51)
    assert any("1 duplicate" in line and "-235.00" in line for line in image.notes)
    stored = np.frombuffer(copy.PixelData, np.uint16).copy()
    stored[5] += 1
    copy.PixelData = stored.tobytes()
    copy.save_as(tmp_path / "IM0100")
    with pytest.raises(
        ValueError, match=r"two slices at -235\.00 mm .* differ in content .*IM0100"
    ):
        read_image(tmp_path)


def test_several_series_are_listed_and_chosen(tmp_path: Path) -> None:
    other = "1.2.826.0.1.3680043.8.498.3"

    def soft(ds: Dataset, k: int) -> None:
        ds.SeriesNumber, ds.SeriesDescription = 7, "Spine soft"

    series(tmp_path / "x" / "one")
    series(
        tmp_path / "x" / "two",
        uid=other,
        content=lambda p: -linear(p),
        rescale=lambda k: (1.0, -2024.0),
        edit=soft,
    )
    with pytest.raises(
        ValueError,
        match=(
            r"2 series; set source\.series=.*1: CT Spine bone, 9 slices 14 x 11, 0\.9 x 0\.7 x 2\.5"
            r" mm.*2: CT"
        ),
    ) as e:
        read_image(tmp_path)
    assert other in str(e.value)
    by = [read_image(tmp_path, series=s) for s in ("2", other, "7", "soft")]
    assert len({image.source["sha256"] for image in by}) == 1
    assert read_image(tmp_path, series="1").source["sha256"] != by[0].source["sha256"]
    for wrong in ("Spine", "3", "brain"):
        with pytest.raises(ValueError, match=r"source\.series=.* fits (2|none) of the 2 series"):
            read_image(tmp_path, series=wrong)


def test_echoes_in_one_series_are_parted(tmp_path: Path) -> None:
    def echo(te: int) -> Callable[[Dataset, int], None]:
        def edit(ds: Dataset, k: int) -> None:
            ds.Modality, ds.EchoTime = "MR", te

        return edit

    series(tmp_path / "a", edit=echo(20))
    matrix = series(tmp_path / "b", content=lambda p: 2.0 * linear(p), edit=echo(90))
    image = read_image(tmp_path, series="2")
    assert image.modality == "MR"
    np.testing.assert_allclose(image.values, 2.0 * linear(grid(matrix, SHAPE)), atol=0.51)


def test_slices_without_a_series_uid_are_told_from_everything_else_in_a_folder(
    tmp_path: Path,
) -> None:
    matrix = series(tmp_path, uid=None)
    (tmp_path / "README.txt").write_text("not an image " * 30)
    (tmp_path / "empty").touch()
    report = blank("1.2.840.10008.5.1.4.1.1.88.67", "SR")
    report.save_as(tmp_path / "dose", enforce_file_format=True)

    def scout(ds: Dataset, k: int) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    series(tmp_path / "scout", uid=None, shape=(14, 11, 2), edit=scout)
    series(tmp_path / "other", uid=None, shape=(20, 11, 1))
    capture = blank(SECONDARY)
    pixels(capture, np.zeros((8, 8)), False)
    capture.save_as(tmp_path / "capture", enforce_file_format=True)
    image = read_image(tmp_path)
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=0.51)
    told = " | ".join(image.notes)
    for part in (
        "no SeriesInstanceUID: 9",
        "2 skipped: not DICOM",
        "1 skipped: SR",
        "2 skipped: localizer",
        "screen capture",
        "single image",
    ):
        assert part in told, (part, told)


def test_a_folder_without_a_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no DICOM file"):
        read_image(tmp_path)
    (tmp_path / "notes.txt").write_text("x" * 500)
    with pytest.raises(ValueError, match=r"no DICOM file \(1 other"):
        read_image(tmp_path)
    blank("1.2.840.10008.5.1.4.1.1.88.67", "SR").save_as(
        tmp_path / "dose", enforce_file_format=True
    )
    with pytest.raises(ValueError, match=r"no CT or MR slices .*SR object"):
        read_image(tmp_path)
    series(tmp_path / "one", shape=(14, 11, 1))
    with pytest.raises(ValueError, match="a single slice"):
        read_image(tmp_path / "one" / "IM0000")


def test_slices_with_a_series_uid_of_their_own_are_one_series(tmp_path: Path) -> None:
    """One series after an anonymiser that made new UIDs for every file; two localizers beside it
    stay out."""

    def own(ds: Dataset, k: int) -> None:
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid()

    matrix = series(tmp_path / "own", edit=own)
    image = read_image(tmp_path / "own")
    np.testing.assert_allclose(image.lps_from_index, matrix, atol=1e-6)
    np.testing.assert_allclose(image.values, linear(grid(matrix, SHAPE)), atol=0.51)
    line = (
        "every slice has a SeriesInstanceUID of its own: 9 slices grouped by modality, settings,"
        " size and direction"
    )
    assert line in image.notes and "SeriesInstanceUID_sha256" not in image.source
    series(tmp_path / "twice", edit=own)
    series(tmp_path / "twice" / "more", edit=own, content=lambda points: linear(points) + 50.0)
    with pytest.raises(
        ValueError, match=r"two slices at .* differ in content .*several acquisitions in one series"
    ):
        read_image(tmp_path / "twice")
    series(tmp_path / "real")
    for k in range(3):  # single slices with UIDs of their own beside a real series are no series
        series(tmp_path / "real" / f"scout{k}", shape=(14, 11, 1), edit=own)
    assert read_image(tmp_path / "real").values.shape == SHAPE


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    matrix = series(tmp_path / "store" / "slices")
    study = tmp_path / "study"
    study.mkdir()
    (study / "series").symlink_to(tmp_path / "store" / "slices", target_is_directory=True)
    (study / "again").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "loop").symlink_to(study, target_is_directory=True)
    (study / "gone").symlink_to(tmp_path / "nowhere")
    image = read_image(study)
    np.testing.assert_allclose(image.lps_from_index, matrix, atol=1e-6)
    assert image.values.shape == SHAPE and not any("duplicate" in line for line in image.notes)
    files = tmp_path / "files"
    files.mkdir()
    for file in (tmp_path / "store" / "slices").iterdir():
        (files / file.name).symlink_to(file)
    assert read_image(files).source["sha256"] == image.source["sha256"]


def test_what_lies_beside_slices_is_no_matter(tmp_path: Path) -> None:
    series(tmp_path)
    index = blank("1.2.840.10008.1.3.10", "")
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    for name, content in (
        ("Thumbs.db", b"\xd0\xcf"),
        (".DS_Store", b"Bud1"),
        ("report.pdf", b"%PDF-1.4"),
        ("._IM0001", b"\x00\x05"),
    ):
        (tmp_path / name).write_bytes(content)
    image = read_image(tmp_path)
    assert image.values.shape == SHAPE
    assert "1 skipped: DICOMDIR" in image.notes and "2 skipped: not DICOM" in image.notes
    with pytest.raises(
        ValueError, match=r"DICOMDIR is the index of a folder .*give the folder that it is in"
    ):
        read_image(tmp_path / "DICOMDIR")
