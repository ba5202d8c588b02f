"""A scheme is taken as detected only where it is the one that explains numbers and order; else it is asked for."""

from __future__ import annotations

import pytest

from engine.patient.schemes import SCHEMES, custom, detect


def _stack(numbers: list[int], down: bool = True) -> dict[int, float]:
    """Centroid heights of numbers listed from head to foot (down) or from foot to head."""
    return {n: (-30.0 if down else 30.0) * k for k, n in enumerate(numbers)}


@pytest.mark.parametrize(
    ("heights", "name", "first", "last"),
    [
        (_stack([19, 20, 21, 22, 23, 24]), "verse", "T12", "L5"),
        (_stack([20, 120, 21, 121, 22, 122, 23]), "spineps", "L1", "L4"),
        (_stack([26, 27, 28, 29, 30, 31, 32], down=False), "totalsegmentator", "T12", "L5"),
        (_stack([1, 2, 3, 4, 5, 6, 7, 8], down=False), "vertebrae_mr", "T11", "L5"),
    ],
)
def test_detected(heights: dict[int, float], name: str, first: str, last: str) -> None:
    scheme, line = detect(heights)
    levels = scheme.levels(set(heights))
    assert (scheme.name, levels[0], levels[-1]) == (name, first, last)
    assert f"{first}..{last}" in line


@pytest.mark.parametrize(
    ("heights", "match"),
    [
        ({}, "empty"),
        ({1: 0.0, 2: 5.0}, "all bodies in one label"),
        ({41: 0.0, 42: 1.0, 49: 2.0, 61: 0.5}, "sub-regions"),
        (_stack([6, 7, 8, 9, 10], down=False), r"several label schemes \(vertebrae_mr.*ogo"),
        ({24: 0.0}, "several label schemes"),
        (_stack([300, 301]), "no label scheme explains the numbers 300, 301"),
    ],
)
def test_asked_for(heights: dict[int, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        detect(heights)


def test_given_scheme_is_checked() -> None:
    heights = _stack([6, 7, 8, 9, 10], down=False)
    assert detect(heights, "ogo")[0].levels(set(heights)) == ["L1", "L2", "L3", "L4", "L5"]
    with pytest.raises(ValueError, match="does not know the numbers 60"):
        detect({60: 0.0}, "verse")
    with pytest.raises(ValueError, match="is unknown; choose auto or one of verse"):
        detect(heights, "versa")
    with pytest.raises(ValueError, match="label_map names L9"):
        custom({"L9": 3})
    with pytest.raises(ValueError, match="a number twice"):
        custom({"L4": 3, "L5": 3})


def test_schemes_give_no_number_twice() -> None:
    for scheme in SCHEMES.values():
        numbers = [*scheme.vertebrae.values(), *scheme.sacrum, *(n for group in scheme.tissues.values() for n in group)]
        assert len(numbers) == len(set(numbers)), scheme.name
