"""What the numbers of a label image mean: source.label_map, source.labels, the names that the file
carries, or the one scheme that explains the numbers, their order and the sizes of the bones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.patient.labels import identity
from engine.patient.labels.objects import Objects
from engine.patient.read.image import Image
from engine.patient.read.names import level_of
from engine.patient.read.schemes import Scheme, as_given, custom, named, readings, some

#: Smaller objects say nothing of a vertebra's size, mm³.
_LEAST_MM3 = 2e3


def scheme_of(
    objects: Objects, image: Image, wanted: str, label_map: Mapping[str, int] | None
) -> tuple[Scheme, str]:
    """What the numbers mean, and how that is known.

    wanted      source.labels: a scheme's name or "auto"
    label_map   source.label_map: level → number; wins over all else

    Raises: ValueError where several schemes remain, or none, with the line that chooses one; for an
    unknown scheme, and one that does not fit the numbers or the names.
    """
    numbers = set(objects.heights_mm)
    names = {
        int(n): str(name)
        for n, name in (image.source.get("segments") or {}).items()
        if int(n) in numbers
    }
    if label_map:
        against = _against(custom(label_map), names)
        return custom(label_map), "as given by source.label_map" + (
            f", against the file's own names{against}" if against else ""
        )
    by_names = named(names)
    if wanted != "auto":
        given = as_given(wanted, numbers)
        if by_names is not None and (words := _against(given, names)):
            raise ValueError(
                f"source.labels={wanted} contradicts the names that the file carries{words}; leave"
                " source.labels out (names win), or say what each number is by"
                " source.label_map={level: number, …}"
            )
        return given, "as given by source.labels"
    if by_names is not None:
        read = ", ".join(f"{n} {names[n]!r}" for n in sorted(by_names.vertebrae.values())[:12])
        return by_names, f"names that the file carries ({read})"
    if image.source.get("numbers_mean_nothing"):
        listing = ", ".join(f"{n} {name!r}" for n, name in sorted(names.items())[:12])
        raise ValueError(
            f"{image.source.get('path')}: a {image.source.get('format')} numbers its segments 1, 2,"
            " 3, so that numbers say no level, and no segment is named after one"
            f" ({listing or 'no names'}); rename them (L4, L5, …), or give {objects.map_line()}"
        )
    fitting = _distinct_readings(objects)
    if len(fitting) == 1:
        return fitting[0], f"the numbers {some(sorted(numbers))} and their order"
    return _by_bones(objects, fitting)


def _distinct_readings(objects: Objects) -> list[Scheme]:
    """The schemes that explain the numbers and their order, one for each meaning of the numbers.

    Raises: ValueError where there is none.
    """
    numbers = set(objects.heights_mm)
    fitting = readings(objects.heights_mm)
    if not fitting:
        if along := objects.other_axis():
            raise ValueError(
                f"turned: the numbers {some(sorted(numbers))} follow each other along the image's"
                f" {along} axis, not from head to foot: axes are exchanged or reversed in its"
                " affine; correct it, or export the image again"
            )
        raise ValueError(
            f"no label scheme explains the numbers {some(sorted(numbers))} and their order from"
            " head to foot (is the image upside down, or are levels mixed up?); say what they are"
            f" by {objects.map_line()}"
        )
    distinct: dict[tuple[tuple[str, int], ...], Scheme] = {}
    for scheme in fitting:
        distinct.setdefault(tuple(_meaning(scheme, numbers)), scheme)
    return list(distinct.values())


def _meaning(scheme: Scheme, numbers: set[int]) -> list[tuple[str, int]]:
    """The levels that a scheme gives to numbers, "S1" for the sacrum's."""
    levels = [
        (level, number) for level, number in sorted(scheme.vertebrae.items()) if number in numbers
    ]
    return [*levels, *(("S1", number) for number in scheme.sacrum if number in numbers)]


def _against(scheme: Scheme, carried: Mapping[int, str]) -> str:
    """Where names and a scheme disagree: " (24 is 'L4', not L5; …)"; "" where they do not."""
    levels = {number: level for level, number in scheme.vertebrae.items()} | dict.fromkeys(
        scheme.sacrum, "S1"
    )
    wrong = [
        f"{number} is {name!r}, not {levels[number]}"
        for number, name in sorted(carried.items())
        if number in levels and level_of(name) not in (None, levels[number])
    ]
    return f" ({'; '.join(wrong[:6])})" if wrong else ""


@dataclass(frozen=True)
class _Reading:
    """A scheme, what the bones' sizes say of it, and its levels in words."""

    scheme: Scheme
    evidence: identity.Evidence
    words: str


def _by_bones(objects: Objects, fitting: list[Scheme]) -> tuple[Scheme, str]:
    """Of several schemes that explain the numbers the one that the bones fit. Raises ValueError
    where more than one remains, or none."""
    numbers = set(objects.heights_mm)
    all_readings = [
        _Reading(scheme, _evidence(objects, scheme), _read_as(scheme, numbers))
        for scheme in fitting
    ]
    remaining = _remaining(all_readings)
    if len(remaining) == 1:
        own, best = remaining[0].evidence.own, remaining[0].evidence.best
        if own is not None and best is not None and own - best > identity.REFUSED:
            remaining = []
    if not remaining:
        listing = "; ".join(
            f"{r.scheme.name} ({r.words}): {r.evidence.doubts or 'the sizes of other levels'}"
            for r in all_readings
        )
        raise ValueError(
            f"no reading of the numbers {some(sorted(numbers))} fits the bones: {listing}; say what"
            f" they are by {objects.map_line()}"
        )
    if len(remaining) > 1:
        lines = "; or ".join(f"source.labels={r.scheme.name} ({r.words})" for r in remaining)
        raise ValueError(
            f"the numbers {some(sorted(numbers))} can be read as several label schemes, and the"
            f" bones' sizes do not decide: give {lines}"
        )
    dropped = "; ".join(_why_not(r, all_readings) for r in all_readings if r is not remaining[0])
    return (
        remaining[0].scheme,
        f"the numbers {some(sorted(numbers))}, their order, and the bones; {dropped}",
    )


def _evidence(objects: Objects, scheme: Scheme) -> identity.Evidence:
    """What the bones' sizes say of a scheme."""
    mobile = [
        level
        for level in scheme.levels(set(objects.heights_mm))
        if objects.volumes_mm3[scheme.vertebrae[level]] > _LEAST_MM3
    ]
    return identity.evidence(objects.pieces(scheme, mobile), objects.parts(scheme))


def _remaining(all_readings: list[_Reading]) -> list[_Reading]:
    """The readings without doubts whose sizes fit nearly as well as the best's, with outliers
    clipped and without; all without doubts where none does both."""
    sound = [r for r in all_readings if not r.evidence.doubts]
    least_own = _least([r.evidence.own for r in sound])
    least_plain = _least([r.evidence.plain for r in sound])

    def worse(value: float | None, least: float) -> bool:
        return value is not None and value > least + identity.DROPPED

    best = [
        r
        for r in sound
        if not worse(r.evidence.own, least_own) and not worse(r.evidence.plain, least_plain)
    ]
    return best or sound


def _least(values: list[float | None]) -> float:
    return min((value for value in values if value is not None), default=0.0)


def _why_not(reading: _Reading, all_readings: list[_Reading]) -> str:
    """Why a reading was dropped, in words."""
    best = _least([r.evidence.own for r in all_readings if not r.evidence.doubts])
    why = (
        reading.evidence.doubts
        or f"the bones' sizes: χ² {reading.evidence.own:.0f} against {best:.0f}"
    )
    return f"not {reading.scheme.name} ({reading.words}): {why}"


def _read_as(scheme: Scheme, numbers: set[int]) -> str:
    """ "L1 20 … L5 24, sacrum 26" of a reading."""
    levels = scheme.levels(numbers)
    ends = levels if len(levels) < 3 else [levels[0], levels[-1]]
    text = " … ".join(f"{level} {scheme.vertebrae[level]}" for level in ends)
    sacrum = sorted(set(scheme.sacrum) & numbers)
    return text + (f", sacrum {sacrum[0]}" if sacrum else "")
