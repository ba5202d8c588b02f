"""Names of a solution's arrays: `<load case>_<quantity>`, letters, digits and underscores only.

Colons, as in "flexion:strain_min", are escaped or refused in ParaView's calculator and in scripts;
files written with them are still read.
"""

from __future__ import annotations

from collections.abc import Iterable


def array_name(load: str, quantity: str) -> str:
    """The array of one load case's quantity, e.g. "flexion_strain_min"."""
    return f"{load}_{quantity}"


def loads_of(names: Iterable[str], quantity: str) -> list[str]:
    """The load cases whose array of that quantity is among the names, in their order."""
    ends = (f"_{quantity}", f":{quantity}")
    return [name[: -len(ends[0])] for name in names if name.endswith(ends)]


def stored_name(names: Iterable[str], load: str, quantity: str) -> str:
    """The name among `names` of one load case's quantity. Raises ValueError when there is none."""
    stored = set(names)
    for name in (array_name(load, quantity), f"{load}:{quantity}"):
        if name in stored:
            return name
    raise ValueError(
        f"no array {array_name(load, quantity)!r}; there is {', '.join(sorted(stored))}"
    )
