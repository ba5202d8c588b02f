"""Is what was measured on the treated segment a lumbar or thoracic segment's? The last check on a
pose that files or labels put wrong.

Two bones from two scans, a label moved by a few millimetres, surfaces each in a frame of its own:
all are read well, and show only in what lies between them.

    middle disc height   2-18 mm usual, 24 mm at most [S69: L4-L5 13.8 ± 3 mm]
    slip                 ±10 mm usual (grade I-II), ±26 mm at most (grade IV, endplate 35 mm deep)
    lordosis             −20-35° usual, −35-50° at most [M]
    coronal, axial       ±20° usual, ±40° at most [M]
"""

from __future__ import annotations

from engine.types import Finding, SegmentAlignment

#: Per component: usual and possible range, and the unit.
RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], str]] = {
    "height_middle_mm": ((2.0, 18.0), (-1.0, 24.0), " mm"),
    "listhesis_mm": ((-10.0, 10.0), (-26.0, 26.0), " mm"),
    "lateral_mm": ((-10.0, 10.0), (-26.0, 26.0), " mm"),
    "lordosis_deg": ((-20.0, 35.0), (-35.0, 50.0), "°"),
    "coronal_deg": ((-20.0, 20.0), (-40.0, 40.0), "°"),
    "axial_deg": ((-20.0, 20.0), (-40.0, 40.0), "°"),
}


def check_segment(name: str, measured: SegmentAlignment) -> list[Finding]:
    """Warnings for measures of the treated segment that few people have. Raises ValueError for
    those that nobody has."""
    findings, impossible = [], []
    for part, (usual, possible, unit) in RANGES.items():
        value = float(getattr(measured, part))
        text = f"{name}: {part} of {value:.1f}{unit}"
        if not possible[0] <= value <= possible[1]:
            impossible.append(f"{text} ({possible[0]:g} to {possible[1]:g} is possible)")
        elif not usual[0] <= value <= usual[1]:
            findings.append(
                Finding(
                    "measure", "warning", name, f"{text} is unusual ({usual[0]:g} to {usual[1]:g})"
                )
            )
    if impossible:
        raise ValueError(
            f"{'; '.join(impossible)}: the two vertebrae are not as they stand in one patient"
            " (files of two frames, labels of two scans, a level between them?)"
        )
    return findings
