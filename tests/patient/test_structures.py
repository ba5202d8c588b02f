"""Discs, canal and facet gaps: known sizes drawn into the phantom's label image, and what real
sub-region masks say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.patient.anatomy.features import Features, features
from engine.patient.anatomy.structures import (
    body_and_arch,
    check_subregions,
    disc_frame,
    measures,
    structures,
)
from engine.patient.anatomy.vertebra import anatomy
from engine.patient.bundle import load_bundle, save_bundle, source_hash
from engine.patient.geometry.distance import polydata, surface_sdf, volume_mm3
from engine.patient.geometry.frames import inverse
from engine.patient.geometry.meshes import repair
from engine.patient.labels.surface import mask_surface
from engine.patient.labels.understand import Labels, understand
from engine.patient.model.scan import with_structures
from engine.patient.phantoms.phantom import PhantomSpec
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from engine.types import PatientModel, Vertebra, rigid

VOXEL_MM = 1.5
DISC_MM, CANAL_AP_MM, CANAL_WIDTH_MM = 6.0, 15.0, 22.0


def _drawn(patient: PatientModel, down_mm: float = 0.0) -> tuple[Image, Image]:
    """Vertebra and sub-region mask of the phantom: a disc label 6 mm high, an elliptic canal (with
    a cord) along the disc's normal.

    down_mm   the cranial vertebra is moved down by that much
    """
    upper, lower = patient.vertebrae
    every = np.concatenate([body.surface.points_mm for body in patient.vertebrae])
    low = every.min(axis=0) - 6.0
    shape = np.ceil((every.max(axis=0) + 6.0 - low) / VOXEL_MM).astype(int)
    matrix = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
    matrix[:3, 3] = low
    p = low + VOXEL_MM * np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    bones, regions = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    own = rigid(inverse(disc_frame(upper, lower)), p)
    in_disc = (np.abs(own[..., 2]) < 0.5 * DISC_MM) & (
        (own[..., 0] / 18.0) ** 2 + (own[..., 1] / 12.0) ** 2 < 1.0
    )
    bones[in_disc] = 123
    wall = lower.superior.half_depth_mm
    back = own[..., 1] - (wall + 3.0 + 0.5 * CANAL_AP_MM)
    around = (2.0 * own[..., 0] / CANAL_WIDTH_MM) ** 2 + (2.0 * back / CANAL_AP_MM) ** 2
    regions[around < 1.0] = 61
    regions[np.hypot(own[..., 0], back) < 4.0] = 60
    regions[in_disc] = 100
    for body, number, shift in ((lower, 24, 0.0), (upper, 23, down_mm)):
        inside = body.sdf.sample(p + np.array([0.0, 0.0, shift])) < 0.0
        bones[inside] = number
    return Image(bones, matrix, "SEG", (), {"sha256": "a"}), Image(
        regions, matrix, "SEG", (), {"sha256": "b"}
    )


@pytest.fixture(scope="module")
def drawn(mild: PatientModel) -> tuple[Labels, Image]:
    bones, regions = _drawn(mild)
    return understand(bones, ("L4", "L5")), regions


@pytest.fixture(scope="module")
def found(mild: PatientModel) -> dict[str, Features]:
    upper, lower = mild.vertebrae
    return {"L4": features(upper, below=lower), "L5": features(lower, above=upper)}


def test_surfaces_are_closed_and_keep_their_volume(drawn: tuple[Labels, Image]) -> None:
    labels, regions = drawn
    assert labels.scheme.name == "spineps"
    made, notes = structures(labels, regions)
    assert list(made) == ["disc_L4-L5", "canal", "cord"] and notes == []
    counts = {
        "disc_L4-L5": (labels.image.values == 123).sum(),
        "cord": (regions.values == 60).sum(),
    }
    counts["canal"] = counts["cord"] + (regions.values == 61).sum()
    for name, surface in made.items():
        assert polydata(surface).n_open_edges == 0, name
        assert volume_mm3(surface) == pytest.approx(counts[name] * VOXEL_MM**3, rel=0.005), name
    assert set(structures(labels)[0]) == {"disc_L4-L5"}


def test_discs_of_a_mask_without_levels_find_theirs(drawn: tuple[Labels, Image]) -> None:
    labels, regions = drawn
    bare = np.where(labels.image.values > 100, 0, labels.image.values).astype(np.int16)
    elsewhere = regions.values.copy()
    elsewhere[2:10, 2:10, -8:-2] = 100  # under no vertebra's body
    plain = understand(Image(bare, labels.image.lps_from_index, "SEG", (), {}), ("L4", "L5"))
    assert plain.scheme.name == "verse"
    made, notes = structures(plain, replace(regions, values=elsewhere))
    assert set(made) == {"disc_L4-L5", "canal", "cord"}
    assert volume_mm3(made["disc_L4-L5"]) == pytest.approx(
        (regions.values == 100).sum() * VOXEL_MM**3, rel=0.005
    )
    assert len(notes) == 1 and "1 pieces of the disc label" in notes[0]


def test_disc_and_canal_as_drawn(
    mild: PatientModel, drawn: tuple[Labels, Image], found: dict[str, Features]
) -> None:
    labels, regions = drawn
    patient = with_structures(mild_source(mild), labels, regions)
    got = measures(patient, found, labels, regions)
    assert list(got) == ["L4", "L5", "L4-L5"]
    # staircases: a voxel's half at either side, evened out by the surface's volume
    canal = got["L4-L5"]["labelled_canal"]
    assert canal["ap_mm"] == pytest.approx(CANAL_AP_MM, abs=0.4) and canal[
        "transverse_mm"
    ] == pytest.approx(CANAL_WIDTH_MM, abs=0.5)
    assert canal["area_mm2"] == pytest.approx(0.25 * np.pi * CANAL_AP_MM * CANAL_WIDTH_MM, rel=0.04)
    disc = got["L4-L5"]["disc"]
    assert disc["label_height_mm"] == pytest.approx(DISC_MM, abs=0.3)
    # rims' planes at the disc's middle: the phantom's own height; its two cavities come on top
    assert disc["rim_planes_mm"] == pytest.approx(PhantomSpec().height_middle_mm, abs=0.2)
    cavities = found["L4"].inferior, found["L5"].superior
    assert all(cavity is not None for cavity in cavities)
    deeper = sum(cavity.concavity_mm for cavity in cavities if cavity is not None)
    assert disc["bone_gap_mm"] == pytest.approx(disc["rim_planes_mm"] + deeper, abs=0.5)
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def mild_source(patient: PatientModel) -> PatientModel:
    return replace(patient, source={"kind": "mask", "sha256": {"labels": "a"}})


def test_facet_gap_and_touching(
    mild: PatientModel, drawn: tuple[Labels, Image], found: dict[str, Features]
) -> None:
    labels, _ = drawn
    joints = measures(mild, found, labels)["L4-L5"]["facet_joints"]
    for side in ("left", "right"):
        assert joints[side]["state"] == "gap" and joints[side]["touching_mm2"] == 0.0
        # phantom: 1.5 mm kept open everywhere, wider at the hollow's edge
        assert (
            joints[side]["least_mm"] == pytest.approx(1.5, abs=0.25)
            and 1.5 < joints[side]["mean_mm"] < 3.0
        )
    assert (
        measures(mild, found)["L4-L5"]["facet_joints"]["left"]["touching_mm2"] is None
    )  # no labels, nothing known of them
    bones, _ = _drawn(mild, down_mm=2.5)
    pressed = understand(bones, ("L4", "L5"))
    for side, joint in measures(mild, found, pressed)["L4-L5"]["facet_joints"].items():
        assert (
            joint["state"] == "touching"
            and joint["least_mm"] == 0.0
            and joint["touching_mm2"] > 5.0
        ), side


def test_structures_are_kept_in_the_bundle(
    mild: PatientModel, drawn: tuple[Labels, Image], tmp_path: Path
) -> None:
    patient = with_structures(mild_source(mild), *drawn)
    folder = save_bundle(patient, tmp_path / "b")
    assert sorted(f.name for f in (folder / "structures").iterdir()) == [
        "canal.vtp",
        "cord.vtp",
        "disc_L4-L5.vtp",
    ]
    back = load_bundle(folder)
    assert list(back.structures) == list(patient.structures)
    for name, surface in patient.structures.items():
        assert np.array_equal(back.structures[name].points_mm, surface.points_mm)
        assert np.array_equal(back.structures[name].faces, surface.faces)
    # an older bundle has no such key
    meta = json.loads((folder / "bundle.json").read_text())
    del meta["structures"]
    (folder / "bundle.json").write_text(json.dumps(meta))
    assert load_bundle(folder).structures == {}
    # femoral heads given later make no other source of it
    assert source_hash(patient.source | {"femoral_heads": {"how": "given"}}) == source_hash(
        patient.source
    )
    assert source_hash(patient.source) != source_hash(
        mild_source(mild).source
    )  # but a sub-region mask does


def test_a_foreign_sub_region_mask_is_refused(drawn: tuple[Labels, Image]) -> None:
    labels, regions = drawn
    with pytest.raises(ValueError, match=r"voxels, the vertebra mask"):
        check_subregions(replace(regions, values=regions.values[:-1]), labels)
    moved = regions.lps_from_index.copy()
    moved[0, 3] += 1.0
    with pytest.raises(ValueError, match=r"1\.00 mm beside the vertebra mask"):
        check_subregions(replace(regions, lps_from_index=moved), labels)
    with pytest.raises(ValueError, match=r"holds 23, 24.*expected TPTBox"):
        check_subregions(
            replace(regions, values=np.where(labels.image.values > 100, 0, labels.image.values)),
            labels,
        )


# -- real ------------------------------------------------------------------------------------------


def _real_l3(labels: Labels) -> Vertebra:
    piece = labels.pieces["L3"]
    surface, _ = repair("L3", mask_surface(piece.mask, piece.lps_from_index), 1.5)
    sdf = surface_sdf(surface, 1.5)
    made = anatomy("L3", surface, sdf, np.array([0.0, 0.0, 1.0]))
    return Vertebra(
        "L3", surface, sdf, sdf, made.superior, made.inferior, made.pedicles, made.landmarks
    )


def test_body_and_arch_of_a_real_l3(data_dir: Path) -> None:
    """TPTBox's corpus (49, 50) and arch against the posterior wall that we find from the rims,
    L3, 1.5 mm CT crop."""
    folder = data_dir / "ct_mri_subregions"
    labels = understand(
        read_labels(folder / "sub-ct_seg-vert_label-22_msk.nii.gz"), ("L2", "L3"), levels="all"
    )
    regions = read_labels(folder / "sub-ct_seg-subreg_label-22_msk.nii.gz")
    check_subregions(regions, labels)
    shares = body_and_arch(_real_l3(labels), labels, regions)
    assert shares["corpus_before_wall"] is not None and shares["corpus_before_wall"] > 0.97
    assert shares["arch_behind_wall"] is not None and shares["arch_behind_wall"] > 0.93
    assert structures(labels, regions)[0] == {}  # bones only: no disc, no canal


def test_a_cut_that_was_taken_for_an_endplate_is_named(mild: PatientModel) -> None:
    """The image ends in the middle of L5's body: an inferior endplate on that plane is the
    border, the others are bone."""
    upper, lower = mild.vertebrae
    bones, _ = _drawn(mild)
    height = 0.5 * (lower.superior.centre_mm + lower.inferior.centre_mm)[2]
    start = int((height - bones.lps_from_index[2, 3]) / VOXEL_MM)
    matrix = bones.lps_from_index.copy()
    matrix[2, 3] += start * VOXEL_MM
    labels = understand(
        replace(bones, values=bones.values[:, :, start:], lps_from_index=matrix),
        ("L4", "L5"),
        accept=("truncated",),
    )
    on_border = replace(
        lower.inferior, rim_mm=lower.inferior.rim_mm * [1.0, 1.0, 0.0] + [0.0, 0.0, matrix[2, 3]]
    )
    patient = replace(mild_source(mild), vertebrae=(upper, replace(lower, inferior=on_border)))
    found = [f for f in with_structures(patient, labels).findings if f.code == "truncated"]
    assert [(f.level, f.severity) for f in found] == [
        ("L5", "warning")
    ] and "inferior endplate is the image's border" in found[0].text
    assert with_structures(mild_source(mild), understand(bones, ("L4", "L5"))).findings == ()


def test_mri_sub_regions_become_surfaces(data_dir: Path) -> None:
    """Cervical MRI crop, 1.5 mm: canal, cord, two discs with their endplates, closed, each with
    its label's volume."""
    folder = data_dir / "ct_mri_subregions"
    bones = read_labels(folder / "sub-mri_seg-vert_label-6_msk.nii.gz")
    labels = understand(bones, ("C5", "C6"), levels="all", accept=("truncated",))
    regions = read_labels(folder / "sub-mri_seg-subreg_label-6_msk.nii.gz")
    made, notes = structures(labels, regions)
    assert set(made) == {
        "disc_C5-C6",
        "disc_C6-C7",
        "endplates_C5-C6",
        "endplates_C6-C7",
        "canal",
        "cord",
    }
    assert notes == ["endplates_C7-below is left out: 94 mm³ of it are in the image (at least 150)"]
    voxels = {
        name: int((bones.values == n).sum())
        for name, n in (("disc_C5-C6", 105), ("disc_C6-C7", 106))
    }
    voxels |= {
        "canal": int(np.isin(regions.values, (60, 61)).sum()),
        "cord": int((regions.values == 60).sum()),
    }
    for name, count in voxels.items():
        assert polydata(made[name]).n_open_edges == 0
        # the cord is some four voxels across here: what is left after two corrections of the level
        assert volume_mm3(made[name]) == pytest.approx(
            count * 1.5**3, rel=0.03 if name == "cord" else 0.01
        ), name
