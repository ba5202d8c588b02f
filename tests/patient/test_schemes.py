"""Numbers alone give every scheme that explains them; names are a scheme of their own; which one
is right is for the bones to say."""

from __future__ import annotations

import pytest

from engine.patient.read.schemes import SCHEMES, as_given, custom, label_map_line, named, readings


def _stack(numbers: list[int], down: bool = True) -> dict[int, float]:
    """Centroid heights of numbers listed from head to foot (down) or from foot to head."""
    return {n: (-30.0 if down else 30.0) * k for k, n in enumerate(numbers)}


@pytest.mark.parametrize(
    ("heights", "schemes"),
    [
        (_stack([19, 20, 21, 22, 23, 24]), {"verse"}),
        (_stack([20, 120, 21, 121, 22, 122, 23]), {"spineps"}),
        (
            _stack([26, 27, 28, 29, 30, 31, 32], down=False),
            {"totalsegmentator", "totalsegmentator_v1"},
        ),
        (_stack([1, 2, 3, 4, 5, 6, 7, 8], down=False), {"vertebrae_mr", "spider", "mrspineseg"}),
        (_stack([1, 201, 2, 202, 3, 203, 4, 100], down=False), {"spider"}),
        (_stack([45, 44, 43, 42, 41], down=False), {"totalspineseg"}),
        (_stack([1, 2, 3, 4, 5]), {"verse"}),
        (_stack([6, 7, 8, 9, 10], down=False), {"vertebrae_mr", "ogo", "spider", "mrspineseg"}),
        (_stack([300, 301]), set()),
    ],
)
def test_every_scheme_that_explains_the_numbers_is_a_reading(
    heights: dict[int, float], schemes: set[str]
) -> None:
    assert {scheme.name for scheme in readings(heights)} >= schemes
    assert bool(readings(heights)) == bool(schemes)


def test_what_can_be_no_levels_is_said() -> None:
    for heights, match in (
        ({}, "empty"),
        ({1: 0.0, 2: 5.0}, "all bodies in one label"),
        ({41: 0.0, 42: 1.0, 49: 2.0, 61: 0.5}, "sub-regions"),
    ):
        with pytest.raises(ValueError, match=match):
            readings(heights)


def test_a_given_scheme_is_checked() -> None:
    numbers = {6, 7, 8, 9, 10}
    assert as_given("ogo", numbers).levels(numbers) == ["L1", "L2", "L3", "L4", "L5"]
    with pytest.raises(ValueError, match="does not know the numbers 60"):
        as_given("verse", {60})
    with pytest.raises(ValueError, match="is unknown; choose auto or one of verse"):
        as_given("versa", numbers)
    with pytest.raises(ValueError, match="label_map names L9"):
        custom({"L9": 3})
    with pytest.raises(ValueError, match="a number twice"):
        custom({"L4": 3, "L5": 3})


def test_names_are_a_scheme() -> None:
    scheme = named({1: "L4 vertebra", 2: "vertebrae_L5", 3: "Sacrum", 4: "aorta", 5: "L4-L5 disc"})
    assert scheme is not None
    assert (
        dict(scheme.vertebrae) == {"L4": 1, "L5": 2}
        and scheme.sacrum == (3,)
        and scheme.tissues["aorta"] == (4,)
    )
    assert named({1: "Segment_1", 2: "bone"}) is None
    with pytest.raises(ValueError, match="two labels are named L4"):
        named({1: "L4", 2: "vertebra L4"})


def test_a_map_counts_up_from_the_lowest_bone() -> None:
    line = label_map_line({101: 90.0, 102: 60.0, 103: 30.0, 104: 0.0}, "S1")
    assert line == "'source.label_map={L3: 101, L4: 102, L5: 103, S1: 104}'"


def test_schemes_give_no_number_twice() -> None:
    for scheme in SCHEMES.values():
        numbers = [
            *scheme.vertebrae.values(),
            *scheme.sacrum,
            *(n for group in scheme.tissues.values() for n in group),
        ]
        assert len(numbers) == len(set(numbers)), scheme.name
