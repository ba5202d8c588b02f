"""Surfaces and masks of the phantom come back as the phantom; bad input is refused in words."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from engine.patient import BoneProfile, from_mask, from_surfaces, measure, truth
from engine.patient.geometry.distance import polydata, surface_sdf, volume_mm3
from engine.patient.geometry.levels import parse_segment
from engine.patient.geometry.meshes import repair
from engine.patient.labels.pieces import pieces
from engine.patient.labels.surface import mask_surface
from engine.patient.model.assemble import assemble
from engine.patient.model.surfaces import file_to_lps
from engine.patient.read.image import orthogonal
from engine.patient.read.surface_files import read_surface
from engine.types import PatientModel, Surface
from tests.patient.conftest import MILD


@pytest.fixture(scope="module")
def folder(mild: PatientModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """L4.stl and L5.stl of the phantom in other axes (x anterior, y left, z up) and in metres;
    plus a sub-folder."""
    path = tmp_path_factory.mktemp("meshes")
    for body in mild.vertebrae:
        points = body.surface.points_mm[:, [1, 0, 2]] * [-1.0, 1.0, 1.0] * 1e-3
        polydata(Surface(points, body.surface.faces)).save(path / f"{body.name}.stl")
    (path / "disc").mkdir()
    return path


def _mask(mild: PatientModel, affine: np.ndarray, path: Path, extra: bool = False) -> Path:
    """Label image of the phantom sampled through `affine` (RAS)."""
    inverse = np.linalg.inv(affine)
    shape = np.zeros(3, int)
    points = np.concatenate([b.surface.points_mm for b in mild.vertebrae]) * [-1, -1, 1]
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    shape = np.ceil(index.max(axis=0)).astype(int) + 3
    assert index.min() > 1.0
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    lps = (grid @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]
    labels = np.zeros(shape, np.uint8)
    for body, number in zip(mild.vertebrae, (23, 24), strict=True):
        labels[body.sdf.sample(lps) < 0.0] = number
    if extra:
        labels[1, 1, 1] = 23
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


@pytest.fixture(scope="module")
def affine(mild: PatientModel) -> np.ndarray:
    """PIR-like axes, 1.2 × 1.0 × 1.6 mm, tilted by 8° and not quite orthonormal."""
    turn = np.radians(8.0)
    tilt = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    axes = np.array(
        [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    )  # i posterior, j inferior, k right (RAS)
    direction = tilt @ axes
    direction[:, 0] += 3e-3 * direction[:, 1]
    matrix = np.eye(4)
    matrix[:3, :3] = direction * [1.2, 1.0, 1.6]
    points = np.concatenate([b.surface.points_mm for b in mild.vertebrae]) * [-1, -1, 1]
    low = (points @ np.linalg.inv(matrix[:3, :3]).T).min(axis=0) - 4.0
    matrix[:3, 3] = matrix[:3, :3] @ low
    return matrix


def test_surfaces_come_back_as_the_phantom(folder: Path, mild: PatientModel) -> None:
    patient = from_surfaces(folder, "L4-L5", unit="m", spacing_mm=1.0)
    measured, exact = measure(*patient.vertebrae), truth(MILD)
    for key in measured.__dataclass_fields__:
        assert getattr(measured, key) == pytest.approx(getattr(exact, key), abs=0.5), key
    assert any("ALS" in line for line in patient.repairs)
    assert patient.density_source == "assumed:profile_v1"
    for body, made in zip(patient.vertebrae, mild.vertebrae, strict=True):
        assert volume_mm3(body.surface) == pytest.approx(volume_mm3(made.surface), rel=0.01)
        # the left pedicle is on the left: no mirror image
        assert np.linalg.norm(body.pedicles["left"][1] - made.pedicles["left"][1]) < 6.0


def test_mask_comes_back_as_the_phantom(
    mild: PatientModel, affine: np.ndarray, tmp_path: Path
) -> None:
    patient = from_mask(
        _mask(mild, affine, tmp_path / "m.nii.gz", extra=True), "L4-L5", spacing_mm=1.0
    )
    assert [f.code for f in patient.findings if f.level == "L4"] == [
        "fragments"
    ] and patient.findings[0].severity == "note"
    assert any(
        "orthonormal" in line or "sheared" in line or "perpendicular" in line
        for line in patient.repairs
    )
    measured, exact = measure(*patient.vertebrae), truth(MILD)
    for key in measured.__dataclass_fields__:
        # voxels of 1.2 × 1.0 × 1.6 mm: half a voxel in distance, one over the endplate in angle
        assert getattr(measured, key) == pytest.approx(
            getattr(exact, key), abs=1.5 if "deg" in key else 0.8
        ), key
    for body, made in zip(patient.vertebrae, mild.vertebrae, strict=True):
        assert volume_mm3(body.surface) == pytest.approx(volume_mm3(made.surface), rel=0.015)


def test_mask_surface_keeps_the_volume(
    mild: PatientModel, affine: np.ndarray, tmp_path: Path
) -> None:
    image = nib.load(_mask(mild, affine, tmp_path / "v.nii"))
    lps = orthogonal(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)[0]
    piece = pieces(np.asarray(image.dataobj).astype(np.int16), lps, {"L5": (24,)})["L5"]
    volume = float(piece.mask.sum()) * float(abs(np.linalg.det(affine[:3, :3])))
    surface = mask_surface(piece.mask, piece.lps_from_index)
    assert volume_mm3(surface) == pytest.approx(volume, rel=0.002)
    meshed, _ = repair("L5", surface, 1.5)
    assert volume_mm3(meshed) == pytest.approx(volume, rel=0.01)


def test_mask_errors(mild: PatientModel, affine: np.ndarray, tmp_path: Path) -> None:
    path = _mask(mild, affine, tmp_path / "m.nii.gz")
    with pytest.raises(
        ValueError, match=r"L3 is absent \(label 22\); the image holds L4 \(23\), L5 \(24\)"
    ):
        from_mask(path, "L3-L4")
    with pytest.raises(ValueError, match=r"none\.nii"):
        from_mask(tmp_path / "none.nii", "L4-L5")
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"broken\.nii"):
        from_mask(broken, "L4-L5")
    image = nib.load(path)
    labels = np.asarray(image.dataobj)

    def refused(values: np.ndarray, match: str) -> None:
        nib.save(nib.Nifti1Image(values, affine), tmp_path / "bad.nii.gz")
        with pytest.raises(ValueError, match=match):
            from_mask(tmp_path / "bad.nii.gz", "L4-L5")

    refused(
        labels[:, : int(np.argwhere(labels == 24)[:, 1].mean())],
        "truncated: L5: cut off by the image's border",
    )
    halves = labels.copy()
    halves[:, int(np.argwhere(labels == 24)[:, 1].mean())] = 0
    refused(
        halves,
        r"fragments: L5: in \d+ pieces, the second with .*source.accept=\[fragments,volume\]",
    )
    refused(np.zeros_like(labels), "the label image is empty")
    sheared = affine.copy()
    sheared[:3, 0] += 0.2 * sheared[:3, 1]
    with pytest.raises(ValueError, match=r"sheared by \d"):
        orthogonal(sheared)
    scan = nib.Nifti1Image(
        np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32), np.eye(4)
    )
    nib.save(scan, tmp_path / "scan.nii")
    with pytest.raises(ValueError, match="not whole numbers"):
        from_mask(tmp_path / "scan.nii", "L4-L5")


def test_surface_errors(folder: Path, mild: PatientModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"looks like metres, set source.unit=m"):
        from_surfaces(folder, "L4-L5")
    with pytest.raises(ValueError, match=r"no file for L3 .*there is L4.stl, L5.stl"):
        from_surfaces(folder, "L3-L4", unit="m")
    with pytest.raises(ValueError, match="is not a folder"):
        from_surfaces(folder / "none", "L4-L5")
    bad = tmp_path / "L4.ply"
    body = mild.vertebrae[0].surface
    points = body.points_mm.copy()
    points[7] = np.nan
    polydata(Surface(points, body.faces)).save(bad)
    with pytest.raises(ValueError, match=r"1 of \d+ vertices are NaN"):
        read_surface(bad, "mm")
    for content in ("solid x\nendsolid x\n", ""):
        (tmp_path / "L5.stl").write_text(content)
        with pytest.raises(ValueError, match="holds no triangles"):
            read_surface(tmp_path / "L5.stl", "mm")


def test_open_surface_is_closed_or_refused(mild: PatientModel) -> None:
    body = mild.vertebrae[1].surface
    centre = body.points_mm[body.faces].mean(axis=1)
    far = np.linalg.norm(centre - mild.vertebrae[1].landmarks["spinous_tip"], axis=1)
    small, notes = repair("L5", Surface(body.points_mm, body.faces[far > 3.0]), 1.5)
    assert any("holes" in line for line in notes)
    assert volume_mm3(small) == pytest.approx(volume_mm3(body), rel=0.01)
    with pytest.raises(ValueError, match=r"open over \d+ mm"):
        repair("L5", Surface(body.points_mm, body.faces[far > 25.0]), 1.5)


def test_stray_pieces_and_inverted_faces_are_repaired(mild: PatientModel) -> None:
    body = mild.vertebrae[1].surface
    island = Surface(
        np.array([[0.0, 0, 90], [1, 0, 90], [0, 1, 90], [0, 0, 91]]),
        np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]),
    )
    both = Surface(
        np.concatenate([body.points_mm, island.points_mm]),
        np.concatenate([body.faces, island.faces + len(body.points_mm)])[:, ::-1].copy(),
    )
    fixed, notes = repair("L5", both, 1.5)
    assert any("separate pieces dropped" in line for line in notes) and any(
        "inwards" in line for line in notes
    )
    assert volume_mm3(fixed) > 0.0 and fixed.points_mm[:, 2].max() < 60.0


def test_overlapping_and_distant_levels_are_refused(mild: PatientModel) -> None:
    def build(upper: Surface, lower: Surface) -> PatientModel:
        return assemble("x", {"L4": upper, "L5": lower}, 2.0, 1.5, BoneProfile(), "unknown", [], {})

    body = mild.vertebrae[0].surface
    with pytest.raises(ValueError, match=r"overlap by \d{4,} mm³"):
        build(body, Surface(body.points_mm - [0.0, 0.0, 4.0], body.faces))
    with pytest.raises(ValueError, match=r"are 90 mm apart"):
        build(body, Surface(body.points_mm - [0.0, 0.0, 90.0], body.faces))
    with pytest.raises(ValueError, match=r"L4 is not above L5"):
        build(body, Surface(body.points_mm + [0.0, 0.0, 50.0], body.faces))


def test_touching_bones_are_parted(mild: PatientModel) -> None:
    upper, lower = (body.surface for body in mild.vertebrae)
    # 2 mm of listhesis closes the 1.5 mm facet joints
    pushed = Surface(upper.points_mm - [0.0, 2.0, 0.0], upper.faces)
    patient = assemble("x", {"L4": pushed, "L5": lower}, 1.0, 1.5, BoneProfile(), "unknown", [], {})
    assert any("parted along the mid-surface" in line for line in patient.repairs)
    a, b = patient.vertebrae
    # 0.5 mm is left, less what remeshing to 1.5 mm edges moves
    assert 0.2 < float(b.sdf.sample(a.surface.points_mm).min()) < 0.8


def test_swapped_levels_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "L4.stl", tmp_path / "L5.stl")
    shutil.copy(folder / "L5.stl", tmp_path / "L4.stl")
    with pytest.raises(ValueError, match=r"upside down.*levels are swapped"):
        from_surfaces(tmp_path, "L4-L5", unit="m", spacing_mm=1.5)


def test_given_axes_are_checked(mild: PatientModel) -> None:
    meshes = {body.name: body.surface for body in mild.vertebrae}
    levels = ("L4", "L5")
    assert np.array_equal(file_to_lps(meshes, levels, None)[0], np.eye(3))
    assert np.array_equal(file_to_lps(meshes, levels, "LPS")[0], np.eye(3))
    with pytest.raises(ValueError, match=r"contradicts the anatomy .*LPS"):
        file_to_lps(meshes, levels, "RAS")
    matrix, line = file_to_lps(meshes, levels, "RPS")
    assert np.linalg.det(matrix) < 0 and "mirrored" in line
    with pytest.raises(ValueError, match="not understood"):
        file_to_lps(meshes, levels, "LLS")


@pytest.mark.parametrize("text", ["L4", "L4-L3", "L3-L5", "L4-L9", "L5-S1", "", "C3-C4"])
def test_segments_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"segment '.*'"):
        parse_segment(text)


def test_segments() -> None:
    assert parse_segment("l4-l5") == ("L4", "L5")
    assert parse_segment("T12-L1") == ("T12", "L1")
    assert parse_segment("L5-L6") == ("L5", "L6")


def test_field_of_a_remeshed_surface_is_that_of_the_bone(mild: PatientModel) -> None:
    body = mild.vertebrae[1]
    meshed, _ = repair("L5", body.surface, 1.5)
    field = surface_sdf(meshed, 1.0)
    error = np.abs(field.sample(body.surface.points_mm))
    assert np.median(error) < 0.05 and error.max() < 0.6
