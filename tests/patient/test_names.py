"""What a name says: a level where it names one and nothing that stands beside it; else nothing."""

from __future__ import annotations

import pytest

from engine.patient.read.names import by_level, level_of, tissue_of


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("vertebrae_L4", "L4"),
        ("L4 vertebra", "L4"),
        ("sb_L4", "L4"),
        ("VertebraL4", "L4"),
        ("L04", "L4"),
        ("Fourth lumbar vertebra", "L4"),
        ("3rd lumbar vertebra", "L3"),
        ("LWK 5", "L5"),
        ("Th12", "T12"),
        ("D11", "T11"),
        ("sub-verse004_L4", "L4"),
        ("case_T2_L4", "L4"),
        ("4. LWK", "L4"),
        ("Lendenwirbelkörper 4", "L4"),
        ("vertèbre lombaire 4", "L4"),
        ("sacrum", "S1"),
        ("vertebrae_S1", "S1"),
        ("L4-L5 disc", None),
        ("disc_L4", None),
        ("L4-5", None),
        ("disco_L4", None),
        ("tornillo_L4", None),
        ("pedicle_L4", None),
        ("L4_spinous_process", None),
        ("L4_lesion", None),
        ("rib_left_4", None),
        ("L4 pedicle screw", None),
        ("L4_L5", None),
        ("Segment_1", None),
        ("lumbar vertebra", None),
        ("L9", None),
    ],
)
def test_a_name_gives_the_level_that_it_is_of_or_none(name: str, level: str | None) -> None:
    assert level_of(name) == level


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("femur_left", "femur_left"),
        ("Left femur", "femur_left"),
        ("rib_right_12", "rib_right_12"),
        ("spinal_cord", "cord"),
        ("inferior_vena_cava", "inferior_vena_cava"),
        ("iliac_artery_left", None),
        ("vertebrae_L4", None),
    ],
)
def test_a_name_gives_the_tissue_that_it_is_of_or_none(name: str, tissue: str | None) -> None:
    assert tissue_of(name) == tissue


def test_a_level_named_twice_is_refused() -> None:
    levels, tissues, unread = by_level({1: "L4", 2: "sacrum", 3: "aorta", 4: "thing"})
    assert (
        levels == {"L4": 1}
        and tissues == {"sacrum": (2,), "aorta": (3,)}
        and unread == {4: "thing"}
    )
    with pytest.raises(ValueError, match=r"two labels are named L4: 1 \('L4'\) and 2"):
        by_level({1: "L4", 2: "L4 vertebra"})
