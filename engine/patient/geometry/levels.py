"""Names and order of vertebral levels, and the labels that VerSe gives them."""

from __future__ import annotations

LEVELS = (
    *(f"C{k}" for k in range(1, 8)),
    *(f"T{k}" for k in range(1, 13)),
    *(f"L{k}" for k in range(1, 6)),
    "L6",
    "S1",
)
#: VerSe: C1-7 = 1-7, T1-12 = 8-19, L1-L6 = 20-25, sacrum 26.
VERSE = {level: number for number, level in enumerate(LEVELS, start=1)}


def follow(upper: str, lower: str) -> bool:
    """Whether `lower` is a level right under `upper` (L6 and T13 may be there or not)."""
    return lower in _FOLLOWING.get(upper, ())


_FOLLOWING: dict[str, tuple[str, ...]] = {
    LEVELS[k]: (LEVELS[k + 1],) for k in range(len(LEVELS) - 1)
}
_FOLLOWING |= {"L5": ("L6", "S1"), "T12": ("L1", "T13"), "T13": ("L1",)}


def parse_segment(text: str) -> tuple[str, str]:
    """("L4", "L5") of "L4-L5". Raises ValueError unless it names two neighbouring levels T1..L6,
    cranial first."""
    parts = [part.strip().upper() for part in str(text).split("-")]
    example = "give two neighbouring levels, the upper one first, as segment=L4-L5"
    if len(parts) != 2 or any(part not in LEVELS for part in parts):
        raise ValueError(f"segment {text!r} is not understood; {example} (known: T1..T12, L1..L6)")
    upper, lower = parts
    if not follow(upper, lower):
        raise ValueError(f"segment {text!r}: {lower} is not the level under {upper}; {example}")
    for level in parts:
        if level == "S1" or level[0] == "C":
            raise ValueError(
                f"segment {text!r}: {level} is not supported (endplates and pedicles are found on"
                " T1..L6); choose a segment between two of these"
            )
    return upper, lower
