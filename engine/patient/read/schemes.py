"""Label schemes: which number means what, for the segmenters in use. They collide, so a scheme is
only taken as detected when it is the one that explains the image; otherwise `source.labels` must
say which.

Two things tell schemes apart
    the numbers   every number in the image must be one that the scheme knows
    their order   VerSe and TPTBox count from the head down; all others count from the sacrum up

Schemes collide: 27 is L5 in version 2 of TotalSegmentator and T8 in version 1; 1 is the sacrum in
vertebrae_mr and L5 in SPIDER. So numbers alone give `readings`, every scheme that explains them;
which one is right is for the bones to say (identity.py), or the user. Where the file carries names,
these are a scheme of their own and win (`named`).

Sources: the tools' class maps (TotalSegmentator 1.5.7 and 2.18, VerSe 2020, TPTBox/SPINEPS 2.1,
Ogo, TotalSpineSeg, SPIDER, MRSpineSeg), docs/sources.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from engine.patient.geometry.levels import LEVELS, VERSE
from engine.patient.read.names import by_level

#: Cranial to caudal; "S1" is the sacrum's own entry in `Scheme.sacrum`.
_MOBILE = tuple(level for level in LEVELS if level not in ("S1",))
_LUMBAR_UP = ("L5", "L4", "L3", "L2", "L1")
_THORACIC_UP = tuple(f"T{k}" for k in range(12, 0, -1))
_CERVICAL_UP = tuple(f"C{k}" for k in range(7, 0, -1))


@dataclass(frozen=True)
class Scheme:
    """Meaning of the numbers of one segmenter.

    vertebrae   level → number
    sacrum      numbers that together are the sacrum
    tissues     other structures by name: "disc", "canal", "cord", "femur_left", …, each a tuple of
                numbers
    disc_of, endplate_of  what is added to a vertebra's number for the disc below it and its
                          endplates (0: none)
    others      further numbers that the scheme may hold and that are not read here
    needs_discs  whether only discs or endplates tell it from another scheme with the same vertebrae
    """

    name: str
    title: str
    vertebrae: Mapping[str, int]
    sacrum: tuple[int, ...] = ()
    tissues: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    disc_of: int = 0
    endplate_of: int = 0
    others: frozenset[int] = frozenset()
    needs_discs: bool = False

    def known(self) -> frozenset[int]:
        """Every number that the scheme can hold."""
        numbers = set(self.vertebrae.values()) | set(self.sacrum) | set(self.others)
        for group in self.tissues.values():
            numbers |= set(group)
        for offset in (self.disc_of, self.endplate_of):
            if offset:
                numbers |= {offset + n for n in (*self.vertebrae.values(), *self.sacrum)}
        return frozenset(numbers)

    def levels(self, numbers: set[int]) -> list[str]:
        """The mobile levels among the numbers, cranial to caudal."""
        return [level for level in _MOBILE_AND_T13 if self.vertebrae.get(level) in numbers]

    def downwards(self) -> bool:
        """Whether numbers grow from the head down."""
        order = [self.vertebrae[level] for level in _MOBILE if level in self.vertebrae]
        return len(order) > 1 and order[-1] > order[0]


_MOBILE_AND_T13 = (*_MOBILE[: _MOBILE.index("L1")], "T13", *_MOBILE[_MOBILE.index("L1") :])


def _counted(levels: tuple[str, ...], first: int) -> dict[str, int]:
    return {level: number for number, level in enumerate(levels, start=first)}


def _ribs(left: int, right: int) -> dict[str, tuple[int, ...]]:
    """Numbers of the ribs 1..12 on both sides."""
    sides = (("left", left), ("right", right))
    return {f"rib_{side}_{k}": (first + k - 1,) for side, first in sides for k in range(1, 13)}


_VERSE = {level: number for level, number in VERSE.items() if level != "S1"} | {"T13": 28}
_UP = (*_LUMBAR_UP, *_THORACIC_UP, *_CERVICAL_UP)

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("verse", "VerSe, TotalSegmentator vertebrae_pp", _VERSE, (26,), {"coccyx": (27,)}),
        Scheme(
            "spineps",
            "TPTBox/SPINEPS vertebra mask with discs and endplates",
            _VERSE,
            (26,),
            {"coccyx": (27,)},
            disc_of=100,
            endplate_of=200,
            needs_discs=True,
        ),
        Scheme(
            "totalsegmentator",
            "TotalSegmentator total",
            _counted(_UP, 27),
            (25, 26),
            {
                "cord": (79,),
                "femur_left": (75,),
                "femur_right": (76,),
                "hip_left": (77,),
                "hip_right": (78,),
                "aorta": (52,),
                "autochthon": (86, 87),
                "spleen": (1,),
                "gallbladder": (4,),
                "liver": (5,),
                "stomach": (6,),
                "heart": (51,),
                "inferior_vena_cava": (63,),
                **_ribs(92, 104),
            },
            others=frozenset(range(1, 118)),
        ),
        Scheme(
            "totalsegmentator_v1",
            "TotalSegmentator 1 total",
            _counted(_UP, 18),
            (92,),
            {
                "femur_left": (88,),
                "femur_right": (89,),
                "hip_left": (90,),
                "hip_right": (91,),
                "aorta": (7,),
                "autochthon": (100, 101),
                "spleen": (1,),
                "gallbladder": (4,),
                "liver": (5,),
                "stomach": (6,),
                "heart": (44,),
                "inferior_vena_cava": (8,),
                **_ribs(58, 70),
            },
            # the first TotalSpineSeg adds the cord 200, the canal 201 and discs from 202
            others=frozenset((*range(1, 105), *range(200, 225))),
        ),
        Scheme("vertebrae_mr", "TotalSegmentator vertebrae_mr", _counted(_UP, 2), (1,)),
        Scheme(
            "spider",
            "SPIDER, counted up from L5 = 1",
            _counted(_UP, 1),
            (),
            {"canal": (100,)},
            disc_of=200,
        ),
        Scheme(
            "mrspineseg",
            "MRSpineSeg (vertebrae 2-10, discs 11-19)",
            _counted(_UP[:9], 2),
            (1,),
            {"disc": tuple(range(11, 20))},
        ),
        Scheme(
            "totalspineseg",
            "TotalSpineSeg",
            {
                **{f"C{k}": 10 + k for k in range(1, 8)},
                **{f"T{k}": 20 + k for k in range(1, 13)},
                **{f"L{k}": 40 + k for k in range(1, 6)},
            },
            (50,),
            {
                "cord": (1,),
                "canal": (2,),
                "disc": (*range(63, 68), *range(71, 83), *range(91, 96), 100),
            },
        ),
        Scheme(
            "ogo",
            "Ogo",
            {**_counted(_LUMBAR_UP, 6), "L6": 11, "T13": 12, "T12": 13},
            (5,),
            others=frozenset(range(1, 14)),
        ),
    )
}

#: TPTBox/SPINEPS sub-regions: parts of vertebrae without their level.
SUBREGIONS = {
    "arch": 41,
    "spinous_process": 42,
    "transverse_process_left": 43,
    "transverse_process_right": 44,
    "superior_articular_left": 45,
    "superior_articular_right": 46,
    "inferior_articular_left": 47,
    "inferior_articular_right": 48,
    "corpus_border": 49,
    "corpus": 50,
    "cord": 60,
    "canal": 61,
    "endplate": 62,
    "disc": 100,
}


def custom(numbers: Mapping[str, int]) -> Scheme:
    """The scheme of a map level → number given by the user. Raises ValueError for unknown levels
    and doubled numbers."""
    unknown = [level for level in numbers if level not in (*_MOBILE_AND_T13, "S1")]
    if unknown:
        raise ValueError(
            f"source.label_map names {', '.join(unknown)}; levels are C1..C7, T1..T13, L1..L6 and"
            " S1 (the sacrum)"
        )
    if len(set(numbers.values())) < len(numbers) or min(numbers.values(), default=1) < 1:
        raise ValueError(
            f"source.label_map={dict(numbers)} gives a number twice or below 1; each level needs"
            " one of its own"
        )
    vertebrae = {level: number for level, number in numbers.items() if level != "S1"}
    sacrum = (numbers["S1"],) if "S1" in numbers else ()
    return Scheme(
        "custom",
        "given by source.label_map",
        vertebrae,
        sacrum,
        others=frozenset(range(1, 1 << 16)),
    )


def named(names: Mapping[int, str]) -> Scheme | None:
    """The scheme of the names that a file carries for its numbers; None where none of them names a
    level.

    Raises: ValueError where two numbers bear one level's name.
    """
    levels, tissues, unread = by_level(names)
    if not levels and "sacrum" not in tissues:
        return None
    sacrum = tissues.pop("sacrum", ())
    others = frozenset((*unread, *range(1, 1 << 16)))
    return Scheme(
        "names", "the names that the file carries", levels, sacrum, tissues, others=others
    )


def readings(heights_mm: Mapping[int, float]) -> list[Scheme]:
    """Every scheme that explains an image's numbers and their order from head to foot.

    heights_mm    label number → height of its centroid (LPS z) for every number in the image

    Raises: ValueError for an image without labels, with all bodies in one, or of sub-regions.
    """
    numbers = set(heights_mm)
    if not numbers:
        raise ValueError(
            "the label image is empty (no voxel above 0); give a segmentation of the vertebrae"
        )
    if numbers <= {1, 2}:
        raise ValueError(
            f"the label image holds only {some(sorted(numbers))}: all bodies in one label (as"
            " TotalSegmentator vertebrae_body: 1 bodies, 2 discs), and levels cannot be told; give"
            " a mask with one label per vertebra, or source.label_map"
        )
    if (
        numbers <= set(SUBREGIONS.values())
        and (numbers & {42, 60, 61, 62, 100})
        and not _monotone(sorted(numbers), heights_mm)
    ):
        raise ValueError(
            "the label image holds TPTBox/SPINEPS sub-regions (arch, processes, corpus), not"
            " levels; give the vertebra mask ('…seg-vert…') and this one as source.subregions"
        )
    fitting = [scheme for scheme in SCHEMES.values() if _explains(scheme, heights_mm)]
    # a reading in which every number is a bone or a disc wins over one that needs "some other
    # organ"
    exact = [
        s
        for s in fitting
        if numbers <= s.known() - (s.others - set(s.vertebrae.values()) - set(s.sacrum))
    ]
    # … but not over one in which the same numbers are bones too: 27..32 alone are lumbar in one and
    # thoracic in another
    rivals = [s for s in fitting if numbers <= set(s.vertebrae.values()) | set(s.sacrum)]
    return [s for s in fitting if s in exact or s in rivals] or fitting


def as_given(wanted: str, numbers: set[int]) -> Scheme:
    """The scheme that `source.labels` names. Raises ValueError for an unknown one and for
    numbers that it does not have."""
    if wanted not in SCHEMES:
        raise ValueError(
            f"source.labels={wanted!r} is unknown; choose auto or one of {', '.join(SCHEMES)}, or"
            " give source.label_map"
        )
    scheme = SCHEMES[wanted]
    foreign = sorted(numbers - scheme.known())
    if foreign:
        raise ValueError(
            f"source.labels={wanted} does not know the numbers {some(foreign)}; the image holds"
            f" {some(sorted(numbers))}"
        )
    return scheme


def label_map_line(heights_mm: Mapping[int, float], lowest: str = "L5") -> str:
    """A ready source.label_map for numbers counted from the lowest bone up, at most to T9."""
    column = [level for level in reversed(LEVELS) if level != "L6"]
    column = column[column.index(lowest) :]
    order = sorted(heights_mm, key=lambda number: heights_mm[number])
    pairs = list(zip(column, order, strict=False))[:9]
    return (
        "'source.label_map={"
        + ", ".join(f"{level}: {number}" for level, number in reversed(pairs))
        + "}'"
    )


def _beyond(scheme: Scheme) -> set[int]:
    """Disc and endplate numbers of a scheme."""
    bones = (*scheme.vertebrae.values(), *scheme.sacrum)
    return {offset + n for offset in (scheme.disc_of, scheme.endplate_of) if offset for n in bones}


def _explains(scheme: Scheme, heights_mm: Mapping[int, float]) -> bool:
    """Whether the scheme knows every number, and its levels follow each other (but for one gap)
    from head to foot.

    One pair in four may stand wrong: that is for the quality gate to name.
    """
    numbers = set(heights_mm)
    levels = scheme.levels(numbers)
    if (
        not levels
        or not numbers <= scheme.known()
        or (scheme.needs_discs and not numbers & _beyond(scheme))
    ):
        return False
    order = [level for level in _MOBILE_AND_T13 if level not in ("T13", "L6") or level in levels]
    first, last = order.index(levels[0]), order.index(levels[-1])
    if last - first + 1 > len(levels) + 1:
        return False
    heights = [heights_mm[scheme.vertebrae[level]] for level in levels]
    return sum(a > b for a, b in pairwise(heights)) >= 0.75 * (len(heights) - 1)


def _monotone(numbers: list[int], heights_mm: Mapping[int, float]) -> bool:
    heights = [heights_mm[n] for n in numbers]
    return heights == sorted(heights) or heights == sorted(heights, reverse=True)


def some(numbers: list[int]) -> str:
    """The first numbers, for a message."""
    return ", ".join(map(str, numbers[:12])) + (
        f", … ({len(numbers)} in all)" if len(numbers) > 12 else ""
    )
