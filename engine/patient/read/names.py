"""What a name says: which vertebra or tissue a file, a segment or a label is called after.

    "vertebrae_L4", "L4 vertebra", "sb_L4", "Fourth lumbar vertebra", "LWK 4"     → "L4"
    "sacrum", "vertebrae_S1"                                                      → "S1"
    "femur_left", "Left femur", "aorta", "rib_right_12", "spinal_cord"            → tissues

A name that speaks of something *at* a vertebra (a disc, a rib, a root, a screw, a canal) is not
that vertebra's. Names win over numbers: a number has its meaning from a scheme that must be
guessed, a name was written by whoever drew the label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from engine.patient.geometry.levels import LEVELS

#: What stands at a level without being its vertebra.
_BESIDE = re.compile(
    r"\b(dis[ck]s?|ivd|disci|disques?|discos?|bandscheibe\w*|endplates?|nerves?|roots?|ganglion|screws?|schraub\w*|tornillos?|"
    r"rods?|cages?|implants?|plates?|ribs?|cost\w*|canal|cord|myelon|foramen|foramina|facets?|ligaments?|muscles?|psoas|"
    r"centroids?|poi|landmarks?|arter\w*|veins?|fractures?|pedic\w*|process\w*|spinous|laminae?|arch|lesions?|tumou?rs?|"
    r"metasta\w*|h[ae]+mangioma|cement|heatmap|prob\w*|uncertainty|nucleus|annulus|interspace|interbody|graft|vis|"
    r"pedikel\w*|hardware|hernia\w*|flavum|deckplatte|grundplatte|below|above|adjacent|between)\b"
)
_REGIONS = {
    "C": r"c|cv|cervicale?s?|hwk|halswirbel\w*",
    "T": r"t|th|tv|d|thoraci\w*|dorsale?s?|bwk|brustwirbel\w*",
    "L": r"l|lv|lumba\w*|lombaires?|lombare|lwk|lendenwirbel\w*",
}
_ORDINALS = {
    word: number
    for number, words in enumerate(
        (
            "first 1st",
            "second 2nd",
            "third 3rd",
            "fourth 4th",
            "fifth 5th",
            "sixth 6th",
            "seventh 7th",
            "eighth 8th",
            "ninth 9th",
            "tenth 10th",
            "eleventh 11th",
            "twelfth 12th",
            "thirteenth 13th",
        ),
        start=1,
    )
    for word in words.split()
}
#: Tissues that are read by name, as (side-less) words that the name must hold.
_TISSUES = {
    "femur": r"femurs?|thigh bone",
    "hip": r"hips?|hip bone|pelvi[cs]\w* bone|innominate|ilium|os coxae",
    "autochthon": r"autochthon\w*|erector spinae",
    "rib": r"ribs?|costae?",
}
_UNSIDED = {
    "aorta": r"aortae?",
    "inferior_vena_cava": r"inferior vena cava|ivc|vena cava inferior",
    "liver": r"liver|hepar",
    "spleen": r"spleen",
    "stomach": r"stomach",
    "gallbladder": r"gall ?bladder",
    "heart": r"heart",
    "cord": r"spinal cord|cord|myelon",
    "canal": r"spinal canal|vertebral canal|canal",
    "coccyx": r"coccyx|coccygis",
}
_SIDES = {"left": r"left|l|lt|links|sinist\w*", "right": r"right|r|rt|rechts|dext\w*"}


def _words(name: str) -> str:
    """Lower case with one space between words; CamelCase, digits' borders and punctuation part
    words, a level stays one word."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    text = re.sub(r"(?<=\d)(?=(?:vert|Vert|body|Body))", " ", text)
    text = re.sub(r"(?<=ertebra)(?=\d)", " ", text)
    text = re.sub(r"[^0-9A-Za-zÀ-ÿ]+", " ", text).lower()
    return " ".join(text.split())


def level_of(name: str) -> str | None:
    """The level ("C1"…"T13", "L1"…"L6", "S1" for the sacrum) that a name is of; None where it is
    of none, or of several."""
    text = _words(name)
    if _BESIDE.search(text):
        return None
    if re.search(r"\d ?(?:or|to|bis|and|und|through) ?[a-z]*\d", text):
        return None  # of several levels
    # "L4-5" is the disc between two levels
    if any(
        int(match[2]) == int(match[1]) + 1
        for match in re.finditer(r"\b[cdlt]h?(\d{1,2}) (\d{1,2})\b", text)
    ):
        return None
    levels: set[str] = set()
    for region, words in _REGIONS.items():
        if long := re.search(rf"\b(\d{{1,2}}) (?:{words})\b", text):
            levels |= {f"{region}{int(long[1])}"} if len(long[0].split()[1]) > 2 else set()
        for match in re.finditer(rf"\b(?:{words}) ?0?(\d{{1,2}})\b", text):
            levels.add(f"{region}{int(match[1])}")
        for match in re.finditer(rf"\b(\w+) (?:{words}) vertebrae?\b", text):
            if match[1] in _ORDINALS:
                levels.add(f"{region}{_ORDINALS[match[1]]}")
        for match in re.finditer(rf"\b(?:{words}) (?:vertebrae? )(?:no )?0?(\d{{1,2}})\b", text):
            levels.add(f"{region}{int(match[1])}")
    if re.search(r"\b(sacrum|sakrum|sacral|sacro|os sacrum|kreuzbein|s ?0?1|swk 1)\b", text):
        levels.add("S1")
    if re.search(r"\batlas\b", text):
        levels.add("C1")
    if re.search(r"\baxis\b", text) and "C" not in {level[0] for level in levels}:
        levels.add("C2")
    if len(levels) > 1:
        levels -= {"T1", "T2"}  # beside a level they are the MRI's weighting
    known = {level for level in levels if level in (*LEVELS, "T13")}
    return known.pop() if len(levels) == 1 and len(known) == 1 else None


def tissue_of(name: str) -> str | None:
    """The tissue that a name is of, under the names of schemes.py ("femur_left", "aorta",
    "rib_right_12", "cord"); None for others."""
    text = _words(name)
    for tissue, words in _UNSIDED.items():
        if re.search(rf"\b({words})\b", text) and not re.search(r"\b(wall|lumen|thrombus)\b", text):
            return tissue
    for tissue, words in _TISSUES.items():
        if not re.search(rf"\b({words})\b", text):
            continue
        sides = [side for side, spelt in _SIDES.items() if re.search(rf"\b({spelt})\b", text)]
        if len(sides) != 1:
            return None
        if tissue == "rib":
            number = re.search(r"\b(\d{1,2})\b", text)
            return f"rib_{sides[0]}_{int(number[1])}" if number else None
        return f"{tissue}_{sides[0]}"
    return None


def by_level(
    names: Mapping[int, str],
) -> tuple[dict[str, int], dict[str, tuple[int, ...]], dict[int, str]]:
    """Numbers by level and by tissue, and the names that were not understood, of {number: name}.

    Raises: ValueError where one level is named twice (but for the sacrum, whose parts may be named
    one by one as S1, S2, …).
    """
    levels: dict[str, int] = {}
    tissues: dict[str, tuple[int, ...]] = {}
    unread: dict[int, str] = {}
    for number, name in sorted(names.items()):
        level, tissue = level_of(name), tissue_of(name)
        if level == "S1":
            tissues["sacrum"] = (*tissues.get("sacrum", ()), number)
        elif level is not None and level in levels:
            raise ValueError(
                f"two labels are named {level}: {levels[level]} ({names[levels[level]]!r}) and"
                f" {number} ({name!r}); rename one of them, or give source.label_map"
            )
        elif level is not None:
            levels[level] = number
        elif tissue is not None:
            group = "autochthon" if tissue.startswith("autochthon") else tissue
            tissues[group] = (*tissues.get(group, ()), number)
        else:
            unread[number] = name
    return levels, tissues, unread
