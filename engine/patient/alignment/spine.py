"""Regional alignment of the lumbar spine: every value with its unit, its standing and what it rests
on.

Axes (axes.py)
    x   patient's left: the hip axis where the femoral heads are known, else S1's left axis, else
        the vertebrae's mean
    z   chord from S1 (or the lowest endplate) to the uppermost one, made perpendicular to x
    y   z × x, posterior
All angles are taken in these planes, so how the patient lies in the scanner does not matter. Only
what is measured against gravity does (SS, PT, the apex, and GAP, Schwab and Roussouly through
them): there LPS z, projected into the sagittal plane, stands for the vertical, in a supine scan as
well.

Definitions: discs and bodies in levels.py, lordosis, pelvis, curve and apex in region.py,
classifications in classified.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.patient.alignment.axes import spine_of
from engine.patient.alignment.classified import classify
from engine.patient.alignment.disc import Plates
from engine.patient.alignment.levels import measure_body, measure_discs
from engine.patient.alignment.measures import POSTURES, SpineAlignment
from engine.patient.alignment.region import (
    measure_apex,
    measure_curve,
    measure_lordosis,
    measure_pelvis,
    measure_shares,
)
from engine.patient.alignment.table import Table
from engine.types import Endplate, Sacrum, Vertebra

#: A pelvic incidence outside of this is a slip of the pen, degrees [M].
_PI_RANGE_DEG = (15.0, 110.0)


def spine_alignment(
    vertebrae: Sequence[Vertebra] | Mapping[str, Plates],
    sacrum: Sacrum | Endplate | None,
    *,
    femoral_heads_mm: np.ndarray | None = None,
    pi_deg: float | None = None,
    posture: str,
    age: float | None = None,
) -> SpineAlignment:
    """Alignment of the vertebrae (cranial to caudal; or their (superior, inferior) endplates by
    name) and the sacrum.

    femoral_heads_mm [2, 3]   centres of the femoral heads in any order, same frame
    pi_deg                    pelvic incidence from elsewhere, where the femoral heads are not in
                              the scan
    posture                   "supine" | "standing" | "phantom" | "unknown"
    age                       years; only the GAP score asks for it

    Raises: ValueError for an unknown posture, no vertebra, both femoral heads and PI, a PI outside
    15-110°, heads not [2, 3], or endplates that are not in order (disc.measure).
    """
    heads_mm = None if femoral_heads_mm is None else np.asarray(femoral_heads_mm, float)
    if isinstance(vertebrae, Mapping):
        plates, bodies = dict(vertebrae), {}
    else:
        plates = {v.name: (v.superior, v.inferior) for v in vertebrae}
        bodies = {v.name: v for v in vertebrae}
    _check(plates, heads_mm, pi_deg, posture)
    base = sacrum.superior if isinstance(sacrum, Sacrum) else sacrum
    spine, table = spine_of(plates, bodies, base, heads_mm), Table(posture)
    segments = measure_discs(spine, table)
    for level in spine.levels:
        measure_body(spine, table, level)
    measure_lordosis(spine, table)
    measure_pelvis(spine, table, pi_deg)
    measure_shares(table, segments)
    measure_curve(spine, table)
    measure_apex(spine, table)
    classify(table, age)
    return SpineAlignment(posture, segments, table.measures)


def _check(
    plates: Mapping[str, Plates], heads_mm: np.ndarray | None, pi_deg: float | None, posture: str
) -> None:
    if posture not in POSTURES:
        raise ValueError(f"posture={posture!r} is unknown; choose one of {', '.join(POSTURES)}")
    if not plates:
        raise ValueError("no vertebra was given; alignment needs at least one with both endplates")
    if heads_mm is not None and pi_deg is not None:
        raise ValueError(
            f"both femoral heads and pi_deg={pi_deg:g} were given; they may disagree: give one of"
            " them"
        )
    if pi_deg is not None and not _PI_RANGE_DEG[0] <= pi_deg <= _PI_RANGE_DEG[1]:
        raise ValueError(f"pi_deg={pi_deg:g} is no pelvic incidence; expected 15 to 110 degrees")
    if heads_mm is not None and heads_mm.shape != (2, 3):
        raise ValueError(
            f"femoral_heads_mm has shape {heads_mm.shape}; expected the two centres, (2, 3)"
        )


def standard_errors(
    draws: Mapping[str, Sequence[Plates]],
    sacrum: Sequence[Endplate] | None = None,
    *,
    femoral_heads_mm: np.ndarray | None = None,
    pi_deg: float | None = None,
    posture: str = "unknown",
    age: float | None = None,
) -> dict[tuple[str, str], float]:
    """Standard deviation of every number over redrawn endplates: `spine_alignment` is recomputed
    for each draw.

    draws    per level (cranial to caudal) equally many (superior, inferior) endplates; draw k of
             all levels goes together
    sacrum   as many of S1's superior endplate

    Choices (Cobb's end vertebrae) are made anew in each draw, so that their share of the error
    counts. A number that is measured in fewer than two draws has none.
    Raises: ValueError for fewer than two draws or unequal numbers.
    """
    counts = {level: len(plates) for level, plates in draws.items()} | (
        {} if sacrum is None else {"S1": len(sacrum)}
    )
    if len(set(counts.values())) != 1 or min(counts.values()) < 2:
        raise ValueError(
            f"redrawn endplates per level: {counts}; expected the same number, at least 2, at every"
            " level"
        )
    values: dict[tuple[str, str], list[float]] = {}
    for k in range(next(iter(counts.values()))):
        drawn = spine_alignment(
            {level: plates[k] for level, plates in draws.items()},
            None if sacrum is None else sacrum[k],
            femoral_heads_mm=femoral_heads_mm,
            pi_deg=pi_deg,
            posture=posture,
            age=age,
        )
        for key, entry in drawn.measures.items():
            # points and grades are steps, not measures with a spread of their own
            if isinstance(entry.value, float) and entry.status == "measured" and entry.unit:
                values.setdefault(key, []).append(entry.value)
    return {key: float(np.std(draw, ddof=1)) for key, draw in values.items() if len(draw) > 1}
