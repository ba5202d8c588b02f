"""The synthetic CT is what its physics says: densities, blur, volumes, places, and files that
others can read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydantic import ValidationError
from scipy.ndimage import label, map_coordinates
from scipy.special import ndtr

from engine.patient import truth as phantom_truth
from engine.patient.geometry.distance import isosurface, volume_mm3
from engine.patient.phantoms.scan_files import write_dicom_series, write_nifti
from engine.patient.phantoms.synthetic import ScanSpec, synthetic_ct
from engine.patient.read.image import Image
from engine.patient.read.images import read_image
from engine.types import PatientModel, Sacrum, VoxelField, rigid
from tests.patient.conftest import MILD

#: 0.5 g/cm³ apparent, by hand: ash 0.3, QCT (0.3 − 0.079)/0.877 = 0.25200, HU (0.25200 +
#: 0.004)/0.0008 = 320.0.
UNIFORM_HU = 320.0
#: All soft tissue alike, so that bone stands on a known level.
FLAT = {"muscle_hu": 55.0, "disc_hu": 55.0, "blood_hu": 55.0, "extent": "spine"}


def sample(image: Image, points: np.ndarray) -> np.ndarray:
    index = rigid(np.linalg.inv(image.lps_from_index), points)
    return map_coordinates(np.asarray(image.values, float), index.T, order=1, mode="nearest")


def uniform(
    patient: PatientModel, names: tuple[str, ...] = ("L4", "L5"), density: float = 0.5
) -> PatientModel:
    """The patient with bone of one apparent density throughout."""
    return replace(
        patient,
        vertebrae=tuple(
            replace(v, density=replace(v.density, values=np.full_like(v.density.values, density)))
            for v in patient.vertebrae
            if v.name in names
        ),
    )


def deep_points(patient: PatientModel, depth_mm: float) -> np.ndarray:
    points = []
    for v in patient.vertebrae:
        index = np.argwhere(np.asarray(v.sdf.values) < -depth_mm)
        points.append(v.sdf.origin_mm + v.sdf.spacing_mm * index[:: max(len(index) // 50, 1)])
    return np.concatenate(points)


@pytest.fixture(scope="module")
def torso(mild: PatientModel) -> tuple[Image, Image, dict[str, Any]]:
    # the torso is 165 + 5 mm to the side and 110 + 5 mm to the front: these voxels have one on its
    # very axis
    return synthetic_ct(mild, ScanSpec(voxel_mm=(1.7, 2.3, 2.0)))


@pytest.fixture(scope="module")
def small(mild: PatientModel) -> Image:
    """A CT of one vertebra for files: few voxels, all different along every axis."""
    return synthetic_ct(
        uniform(mild, ("L4",)),
        ScanSpec(voxel_mm=(1.5, 1.8, 2.5), extent="spine", rotation_deg=(4.0, -3.0, 6.0)),
    )[0]


def test_rods_have_their_density(torso: tuple[Image, Image, dict[str, Any]]) -> None:
    image, _, truth = torso
    line = truth["density_line"]
    assert len(truth["rods"]) == 5
    for rod in truth["rods"]:
        (x, y, _), _ = rod["axis_mm"]
        hu = sample(image, np.array([[x, y, z] for z in (-20.0, 0.0, 20.0)]))
        # 9 mm from the rod's edge nothing of its surroundings is left (blur of 0.7 mm)
        assert line["intercept_g_cm3"] + line["slope_g_cm3_per_hu"] * hu == pytest.approx(
            rod["density_g_cm3"], abs=1e-5
        )


def test_soft_tissues_and_air(
    torso: tuple[Image, Image, dict[str, Any]], mild: PatientModel
) -> None:
    image, _, truth = torso
    upper, lower = mild.vertebrae
    disc = 0.5 * (upper.inferior.centre_mm + lower.superior.centre_mm)
    aorta = np.mean(truth["aorta"]["line_mm"], axis=0)
    assert sample(image, np.array([disc, aorta])) == pytest.approx([90.0, 45.0], abs=0.5)
    assert image.values.min() == pytest.approx(-1000.0)
    # the skin: what is 10 mm under the back's surface is fat, the aorta lies before the spine
    assert (np.abs(image.values + 100.0) < 0.5).mean() > 0.05
    assert aorta[1] < upper.landmarks["body_centre"][1] - 20.0


def test_no_tissue_shows_inside_another(torso: tuple[Image, Image, dict[str, Any]]) -> None:
    # an ellipse's distance is 0/0 on its axis: it once painted a line of fat through muscle and
    # bone
    image = torso[0]
    parts, count = label(image.values < -60.0)
    outer = np.unique(
        np.concatenate(
            [np.take(parts, side, axis=axis).ravel() for axis in (0, 1) for side in (0, -1)]
        )
    )
    assert count > 0 and set(range(1, count + 1)) <= set(outer.tolist()), (
        "all that is darker than bone hangs together with the air outside"
    )


@pytest.mark.parametrize(
    ("orientation", "rotation_deg", "voxel_mm"),
    [
        ("LPS", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ("PIR", (0.0, 0.0, 0.0), (0.8, 1.2, 3.0)),
        ("LAS", (10.0, -7.0, 15.0), (1.6, 1.6, 2.0)),
    ],
)
def test_bone_keeps_density_mass_and_place(
    mild: PatientModel,
    orientation: str,
    rotation_deg: tuple[float, float, float],
    voxel_mm: tuple[float, float, float],
) -> None:
    patient, denser = (uniform(mild, ("L4",), density) for density in (0.5, 0.6))
    spec = ScanSpec(orientation=orientation, rotation_deg=rotation_deg, voxel_mm=voxel_mm, **FLAT)  # type: ignore[arg-type]
    image, labels, truth = synthetic_ct(patient, spec)
    # density through the chain, by hand; 6 mm deep a 3 mm voxel is all bone
    assert sample(image, deep_points(patient, 6.5)) == pytest.approx(UNIFORM_HU, abs=0.5)
    # blur and partial volume move HU but keep their sum: 0.1 g/cm³ more is 0.06/0.877/0.0008 HU
    # more, times the bone's volume. The field's zero level is the bone.
    change = float((synthetic_ct(denser, spec)[0].values - image.values).sum(dtype=float)) * float(
        np.prod(voxel_mm)
    )
    assert change == pytest.approx(
        0.06 / 0.877 / 0.0008 * volume_mm3(isosurface(patient.vertebrae[0].sdf)), rel=2e-3
    )
    for v in patient.vertebrae:
        centre = v.landmarks["body_centre"]
        index = tuple(np.rint(rigid(np.linalg.inv(image.lps_from_index), centre)).astype(int))
        assert labels.values[index] == truth["vertebrae"][v.name]["label"] == 23
        # half-or-more voxels: unbiased but for thin places
        assert truth["labelled_mm3"][v.name] == pytest.approx(
            volume_mm3(isosurface(v.sdf)), rel=0.02
        )
    columns = image.lps_from_index[:3, :3]
    axes = {
        "L": columns[0],
        "R": -columns[0],
        "P": columns[1],
        "A": -columns[1],
        "S": columns[2],
        "I": -columns[2],
    }
    for k, letter in enumerate(orientation):
        assert axes[letter][k] > 0.85 * image.voxel_mm[k]


def test_blur_is_the_voxel_and_the_psf(mild: PatientModel) -> None:
    # a flat face of uniform bone: HU = step ∗ box(voxel) ∗ Gaussian, known in closed form
    axis = np.arange(-30.0, 31.0)
    centre = mild.vertebrae[0].landmarks["body_centre"]
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    box = np.maximum(np.maximum(np.abs(x), np.abs(y)) - 15.0, np.abs(z) - 10.3)
    sdf = VoxelField(box, centre - 30.0, 1.0)
    cube = replace(
        mild.vertebrae[0], sdf=sdf, density=VoxelField(np.full(box.shape, 0.5), sdf.origin_mm, 1.0)
    )
    spec = ScanSpec(voxel_mm=(1.0, 1.0, 1.5), psf_fwhm_mm=1.8, **FLAT)  # type: ignore[arg-type]
    image, _, _ = synthetic_ct(replace(mild, vertebrae=(cube,)), spec)
    i, j, _ = np.rint(rigid(np.linalg.inv(image.lps_from_index), centre)).astype(int)
    k = np.arange(image.values.shape[2])
    heights = image.lps_from_index[2, 3] + 1.5 * k - centre[2]
    sigma = 1.8 / 2.3548

    def integral(t: np.ndarray) -> np.ndarray:  # of Φ(t/σ)
        return t * ndtr(t / sigma) + sigma * np.exp(-0.5 * (t / sigma) ** 2) / np.sqrt(2.0 * np.pi)

    top, bottom = (
        (integral(10.3 + s * heights + 0.75) - integral(10.3 + s * heights - 0.75)) / 1.5
        for s in (-1.0, 1.0)
    )
    expected = 55.0 + (UNIFORM_HU - 55.0) * (top + bottom - 1.0)
    # a trilinear distance field has no sharper edge than its cells; away from corners it is exact
    assert image.values[i, j, :] == pytest.approx(expected, abs=1.5)


def test_noise_is_seeded_and_as_strong_as_asked(mild: PatientModel) -> None:
    spec = ScanSpec(voxel_mm=(1.9, 1.9, 1.9), extent="spine", noise_hu=25.0, seed=3)
    mild = replace(mild, vertebrae=mild.vertebrae[:1])
    quiet = synthetic_ct(mild, spec.model_copy(update={"noise_hu": 0.0}))[0].values
    first, again = (synthetic_ct(mild, spec)[0].values for _ in range(2))
    other = synthetic_ct(mild, spec.model_copy(update={"seed": 4}))[0].values
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    noise = first - quiet  # some 100 000 voxels: SD known to 0.3 %
    assert noise.std() == pytest.approx(25.0, rel=0.01)
    assert noise.mean() == pytest.approx(0.0, abs=0.4)


def test_truth_is_the_phantoms(
    torso: tuple[Image, Image, dict[str, Any]], mild: PatientModel
) -> None:
    image, _, truth = torso
    read = json.loads(json.dumps(truth))
    exact = phantom_truth(MILD)
    for key, value in read["alignment"]["L4-L5"].items():
        assert value == pytest.approx(getattr(exact, key), abs=1e-6), key
    assert read["shape"] == list(image.values.shape)
    for v in mild.vertebrae:
        own = read["vertebrae"][v.name]
        # its own cylinder in the image: what a density reader must find
        centre, up = 0.5 * (v.superior.centre_mm + v.inferior.centre_mm), v.superior.normal
        rng = np.random.default_rng(0)
        offset = rng.uniform(-5.0, 5.0, (2000, 3))
        assert sample(image, centre + offset[np.abs(offset @ up) < 5.0]).mean() == pytest.approx(
            own["core_hu"], abs=12.0
        )


def test_sacrum_is_there_with_its_label(mild: PatientModel) -> None:
    lower = mild.vertebrae[1]
    x, y, z = np.meshgrid(*[np.arange(-24.0, 25.0)] * 3, indexing="ij")
    block = isosurface(
        VoxelField(
            np.sqrt(x**2 + y**2 + z**2) - 18.0,
            lower.inferior.centre_mm - 24.0 + [0.0, 0.0, -28.0],
            1.0,
        )
    )
    sacrum = Sacrum(
        block, replace(lower.superior, centre_mm=lower.inferior.centre_mm - [0.0, 0.0, 10.0])
    )
    image, labels, truth = synthetic_ct(
        replace(mild, sacrum=sacrum), ScanSpec(voxel_mm=(2.0, 2.0, 2.0), extent="spine")
    )
    count = (labels.values == 26).sum() * 8.0
    assert count == pytest.approx(4.0 / 3.0 * np.pi * 18.0**3, rel=0.02)
    assert truth["sacrum"]["label"] == 26
    # 0.16 g/cm³ by hand: ash 0.096, QCT 0.01938, HU 29.2
    assert sample(image, block.points_mm.mean(axis=0)[None]) == pytest.approx([29.2], abs=0.5)


def test_nifti_goes_round(small: Image, tmp_path: Path) -> None:
    path = write_nifti(small, tmp_path / "ct.nii.gz")
    nifti: Any = nibabel.load(path)
    assert (
        nifti.get_data_dtype() == np.int16
        and nifti.header["qform_code"] == nifti.header["sform_code"] == 1
    )
    # RAS: x and y turn their sign
    assert np.diag([-1.0, -1.0, 1.0, 1.0]) @ nifti.affine == pytest.approx(
        small.lps_from_index, abs=1e-4
    )
    back = read_image(path)
    assert np.abs(back.values - small.values).max() <= 0.5
    assert back.lps_from_index == pytest.approx(small.lps_from_index, abs=1e-3)


def test_dicom_is_a_ct_and_goes_round(small: Image, tmp_path: Path) -> None:
    files = write_dicom_series(small, tmp_path)
    slices = [pydicom.dcmread(file) for file in files]
    assert len(slices) == small.values.shape[2]
    assert [f.name for f in files] != sorted(f.name for f in files), (
        "file names give the order away"
    )
    first = slices[0]
    # type 1 attributes of the CT Image IOD's mandatory modules (DICOM PS3.3 A.3)
    for keyword in (
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality"
        " ImageType SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit"
        " PixelRepresentation RescaleIntercept RescaleSlope PixelSpacing ImageOrientationPatient"
        " ImagePositionPatient Rows Columns PixelData"
    ).split():
        assert first[keyword].value not in (None, ""), keyword
    # type 2: there, may be empty
    for keyword in (
        "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID"
        " AccessionNumber ReferringPhysicianName SeriesNumber InstanceNumber AcquisitionNumber KVP"
        " SliceThickness PositionReferenceIndicator Manufacturer"
    ).split():
        assert keyword in first, keyword
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert (
        len({s.SOPInstanceUID for s in slices}) == len(slices)
        and len({s.SeriesInstanceUID for s in slices}) == 1
    )
    assert (first.RescaleIntercept, str(first.PatientName)) == (-1024, "PHANTOM^SPINEFIT")
    # every pixel by the standard's own equation (C.7.6.2.1-1): P = IPP + X·Δcol·c + Y·Δrow·r
    for data in slices[:: len(slices) // 3]:
        x, y = np.split(np.array(data.ImageOrientationPatient, float), 2)
        row, column = np.meshgrid(np.arange(data.Rows), np.arange(data.Columns), indexing="ij")
        place = (
            np.array(data.ImagePositionPatient, float)
            + column[..., None] * data.PixelSpacing[1] * x
            + row[..., None] * data.PixelSpacing[0] * y
        )
        hu = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
        inner = (slice(2, -2), slice(2, -2))
        assert np.abs(sample(small, place[inner].reshape(-1, 3)) - hu[inner].ravel()).max() <= 0.6
    back = read_image(tmp_path)
    points = deep_grid(small)
    assert sample(back, points) == pytest.approx(sample(small, points), abs=0.6)


def test_tilted_gantry_shears_the_positions_and_not_the_patient(
    small: Image, tmp_path: Path
) -> None:
    files = write_dicom_series(small, tmp_path, gantry_tilt_deg=15.0)
    slices = [pydicom.dcmread(file) for file in files]
    x, y = np.split(np.array(slices[0].ImageOrientationPatient, float), 2)
    step = np.array(slices[1].ImagePositionPatient, float) - np.array(
        slices[0].ImagePositionPatient, float
    )
    step /= np.linalg.norm(step)
    assert np.degrees(np.arccos(np.cross(x, y) @ step)) == pytest.approx(15.0, abs=1e-3)
    hu = np.stack([s.pixel_array for s in slices]) - 1024
    assert small.values.min() - 1.0 <= hu.min() and hu.max() <= small.values.max() + 1.0, (
        "no overshoot where it is sampled again"
    )
    assert abs(step @ x) < 1e-6 and abs(float(slices[0].GantryDetectorTilt)) == 15.0
    # at the pixels' own places the HU are the untilted image's, but for interpolation
    inside = np.concatenate([_of(small, data) for data in slices])
    difference = inside[:, 0] - inside[:, 1]
    assert len(inside) > 5000 and np.sqrt((difference**2).mean()) < 12.0, (
        "265 HU edges on 2.5 mm slices, read linearly"
    )
    assert abs(np.median(difference)) < 0.5
    turned = [_of(small, data, wrong=True) for data in slices]
    wrong = np.concatenate(turned)
    assert np.sqrt(((wrong[:, 0] - wrong[:, 1]) ** 2).mean()) > 30.0, (
        "the other sign of the tilt must not fit"
    )


def _of(image: Image, data: pydicom.Dataset, wrong: bool = False) -> np.ndarray:
    """HU of a slice's pixels and of the image at their places [n, 2], inside the image."""
    x, y = np.split(np.array(data.ImageOrientationPatient, float), 2)
    if wrong:
        y = y * np.array([1.0, 1.0, -1.0])
    row, column = np.meshgrid(np.arange(data.Rows), np.arange(data.Columns), indexing="ij")
    place = (
        np.array(data.ImagePositionPatient, float)
        + column[..., None] * data.PixelSpacing[1] * x
        + row[..., None] * data.PixelSpacing[0] * y
    )
    index = rigid(np.linalg.inv(image.lps_from_index), place)
    inside = ((index >= 1.0) & (index <= np.array(image.values.shape) - 2.0)).all(axis=-1)
    hu = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    return np.stack([hu[inside], sample(image, place[inside])], axis=-1)


def deep_grid(image: Image) -> np.ndarray:
    index = np.random.default_rng(1).uniform(2.0, np.array(image.values.shape) - 3.0, (300, 3))
    return rigid(image.lps_from_index, index)


def test_sagittal_and_flipped_images_are_written_axially(
    mild: PatientModel, tmp_path: Path
) -> None:
    spec = ScanSpec(voxel_mm=(2.0, 2.0, 3.0), extent="spine", orientation="PIR")
    image = synthetic_ct(uniform(mild, ("L4",)), spec)[0]
    files = write_dicom_series(image, tmp_path, shuffle=False)
    first = pydicom.dcmread(files[len(files) // 2])
    assert list(map(float, first.ImageOrientationPatient)) == [1, 0, 0, 0, 1, 0]
    assert (list(map(float, first.PixelSpacing)), float(first.SliceThickness)) == ([2.0, 2.0], 3.0)
    written, there = _of(image, first).T
    assert len(written) > 1000 and np.abs(written - there).max() <= 0.6


def test_mr_is_marked_as_mr(small: Image, tmp_path: Path) -> None:
    data = pydicom.dcmread(write_dicom_series(small, tmp_path, modality="MR")[0])
    assert (
        data.Modality == "MR"
        and data.SOPClassUID.name == "MR Image Storage"
        and "RescaleIntercept" not in data
    )


def test_wrong_input_is_named(mild: PatientModel, small: Image, tmp_path: Path) -> None:
    for bad, text in (
        ({"orientation": "LPP"}, "LPP"),
        ({"voxel_mm": (0.05, 1, 1)}, "0.05"),
        ({"noise": 3}, "noise"),
    ):
        with pytest.raises(ValidationError, match=text):
            ScanSpec(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no vertebrae"):
        synthetic_ct(replace(mild, vertebrae=()))
    with pytest.raises(ValueError, match="X9"):
        synthetic_ct(replace(mild, vertebrae=(replace(mild.vertebrae[0], name="X9"),)))
    with pytest.raises(ValueError, match="30°"):
        write_dicom_series(small, tmp_path, gantry_tilt_deg=45.0)
    with pytest.raises(ValueError, match="CT or MR"):
        write_dicom_series(small, tmp_path, modality="US")  # type: ignore[arg-type]
