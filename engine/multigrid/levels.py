"""How many levels a grid has, and the shape that they need."""

from __future__ import annotations

#: Coarsest level: unknowns in one plane across its longest axis, and planes.
MAX_PLANE_UNKNOWNS, MAX_PLANES = 500, 48
#: Levels from here on are visited twice in a cycle (W), the ones before once: they are a tenth of
#: the work.
REPEAT_FROM = 2


def _small_enough(shape: tuple[int, ...]) -> bool:
    """Whether a grid of so many voxels can be the coarsest level."""
    short, middle, long = sorted(n + 1 for n in shape)
    return 3 * short * middle <= MAX_PLANE_UNKNOWNS and long <= MAX_PLANES


def depth(shape: tuple[int, int, int]) -> int:
    """Number of coarsenings, at least one: as few as make the coarsest level small enough for the
    direct solver.

    Raises ValueError when the shape cannot be halved that often (see `padded_shape`).
    """
    level, (x, y, z) = 0, shape
    while level == 0 or not _small_enough((x, y, z)):
        if x % 2 or y % 2 or z % 2:
            raise ValueError(
                f"a grid of {shape} voxels cannot be coarsened {level + 1} times; pad it with"
                " engine.multigrid.levels.padded_shape"
            )
        level, x, y, z = level + 1, x // 2, y // 2, z // 2
    return level


def padded_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The smallest shape that holds `shape` and can be coarsened until the coarsest level is
    small."""
    for level in range(1, 12):
        unit = 2**level
        coarse = [-(-n // unit) for n in shape]
        if _small_enough(tuple(coarse)):
            return tuple(int(n * unit) for n in coarse)  # type: ignore[return-value]
    raise ValueError(f"a grid of {shape} voxels is too large for this solver")
