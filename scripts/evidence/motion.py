"""Bending tests of intact segments and the published motions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fem.intact.segment import IntactSegment, Load, NoEquilibrium, Step
from scripts.evidence.lumbar_meshes import kind_of

log = logging.getLogger("spinefit")

#: Moments about anterior, left, cranial, and the axis that is read.
DIRECTIONS = {
    "flexion": ((0, 1, 0), 1),
    "extension": ((0, -1, 0), 1),
    "lateral bending": ((-1, 0, 0), 0),
    "axial rotation": ((0, 0, 1), 2),
}
#: Moment of a pure bending test, N m.
MOMENT_NM = 7.5
_POSTERIOR = ("LF", "ISL", "SSL", "CL", "ITL")


def bending(direction: str, moment_nm: float, follower_n: float = 0.0) -> Load:
    """A moment in one of DIRECTIONS, with a follower."""
    x, y, z = DIRECTIONS[direction][0]
    return Load(
        follower_n,
        moment_nmm=(1000.0 * moment_nm * x, 1000.0 * moment_nm * y, 1000.0 * moment_nm * z),
    )


@dataclass(frozen=True)
class Published:
    """A quantity's published range, or a value alone (low = high), and where from."""

    quantity: str
    unit: str
    low: float
    high: float
    source: str

    def judge(self, value: float) -> str:
        """inside or outside; where there is no range, by how much off."""
        if self.low == self.high:
            return f"{100.0 * (value / self.low - 1.0):+.0f} %"
        return (
            "inside"
            if self.low <= value <= self.high
            else f"outside ({'low' if value < self.low else 'high'})"
        )


_YAMAMOTO, _FSU, _FACET = "Yamamoto 1989 [M], mean", "[S43]", "[S45], T12-L2, mean ± SD"
PUBLISHED = (
    Published("flexion at 10 N m", "°", 8.9, 8.9, _YAMAMOTO),
    Published("extension at 10 N m", "°", 5.8, 5.8, _YAMAMOTO),
    Published("lateral bending at 10 N m", "°", 5.7, 5.7, _YAMAMOTO),
    Published("axial rotation at 10 N m", "°", 2.2, 2.2, _YAMAMOTO),
    Published("flexion stiffness", "N m/°", 1.8, 5.5, _FSU),
    Published("extension stiffness", "N m/°", 2.6, 7.6, _FSU),
    Published("lateral bending stiffness", "N m/°", 3.4, 4.6, _FSU),
    Published("axial rotation stiffness", "N m/°", 7.3, 9.5, _FSU),
    Published("flexion stiffness, no posterior elements", "N m/°", 2.3, 3.3, _FSU),
    Published("extension stiffness, no posterior elements", "N m/°", 1.6, 3.5, _FSU),
    Published("axial rotation stiffness, no posterior elements", "N m/°", 2.1, 3.2, _FSU),
    Published("axial stiffness", "kN/mm", 0.44, 2.42, _FSU),
    Published("axial stiffness, no posterior elements", "kN/mm", 0.49, 1.85, _FSU),
    Published("axial stiffness, disc only", "kN/mm", 1.28, 2.18, _FSU),
    Published("pressure of the nucleus at 1000 N", "MPa", 0.72, 0.83, "k F/A [S33b]"),
    Published("facet force in flexion, 7.5 N m", "N", 5.0, 87.0, _FACET),
    Published("facet force in extension, 7.5 N m", "N", 12.0, 90.0, _FACET),
    Published("facet force in axial rotation, 7.5 N m, contralateral", "N", 27.0, 113.0, _FACET),
    Published("facet force in axial rotation, 7.5 N m, ipsilateral", "N", 0.0, 64.0, _FACET),
    Published("facet force in extension, 7.5 N m and 500 N", "N", 36.0, 114.0, _FACET + ", 400 N"),
)


def balanced(segment: IntactSegment, follower_n: float = 500.0) -> IntactSegment:
    """With the follower's path moved forwards or backwards until it turns the segment by less
    than 0.1° (as is done at the bench)."""
    load = Load(follower_n)
    tried: list[tuple[float, float]] = []
    shift = 0.0
    for _ in range(6):
        forward = shift * segment.axes[0]
        here = replace(
            segment, cranial_mm=segment.cranial_mm + forward, caudal_mm=segment.caudal_mm + forward
        )
        state, n = here.walk(segment.rest, Load(), load)
        turned = here.measure(state, segment.rest, load, n).rotation_deg[1]
        log.info("follower's path %+.1f mm: %+.2f° at %.0f N", shift, turned, follower_n)
        if abs(turned) < 0.1:
            return here
        tried.append((shift, turned))
        (a, fa), (b, fb) = tried[-2:] if len(tried) > 1 else ((4.0, turned + 1.0), tried[0])
        shift = b - fb * (b - a) / (fb - fa)
    raise NoEquilibrium(
        "no path of the follower keeps the segment from turning; tried"
        f" {[round(s, 1) for s, _ in tried]} mm"
    )


@dataclass
class MotionTest:
    """Tests of segments one after the other.

    keep      folder in which each is kept under its name; None: nowhere
    verbose   name each before it is run
    balance   largest error of balance of all of them
    """

    keep: Path | None = None
    verbose: bool = False
    balance: float = 0.0

    def steps(
        self, segment: IntactSegment, name: str, loads: Sequence[Load], datum: int = 0
    ) -> list[Step]:
        """The segment under each load in turn (IntactSegment.run). Raises NotFound."""
        if self.verbose:
            log.info("%s", name)
        file = f"{name.replace(' ', '_').replace(',', '')}.npz"
        keep = None if self.keep is None else self.keep / file
        steps = segment.run(loads, keep, datum)
        self.balance = max(self.balance, *(step.balance for step in steps))
        return steps

    def rotation_deg(self, segment: IntactSegment, direction: str, name: str = "") -> float:
        """Rotation under 7.5 N m alone. Raises NotFound."""
        step = self.steps(segment, name or direction, [bending(direction, MOMENT_NM)])[0]
        return abs(step.rotation_deg[DIRECTIONS[direction][1]])

    def compressed(self, segment: IntactSegment, name: str = "compression") -> Step:
        """The step under 1000 N, after 500 N. Raises NotFound."""
        return self.steps(segment, name, [Load(500.0), Load(1000.0)])[1]


def without_posterior_elements(segment: IntactSegment) -> IntactSegment:
    """Disc, ALL and PLL alone."""
    ligaments = [lig for lig in segment.ligaments if kind_of(lig.name) not in _POSTERIOR]
    return replace(segment, facets=None, ligaments=ligaments)


def measure_motion(segment: IntactSegment, keep: Path) -> dict[str, float]:
    """All of PUBLISHED's quantities, and the largest error of balance as `balance`. Stiffness in
    bending is 7.5 N m over the rotation, axial stiffness 1000 N over the descent, with the
    follower as load. Raises NotFound."""
    test, out = MotionTest(keep, verbose=True), {"balance": 0.0}
    part = without_posterior_elements(segment)
    disc = replace(part, ligaments=[])
    for name, (_axis, read) in DIRECTIONS.items():
        at7, at10 = test.steps(segment, name, [bending(name, MOMENT_NM), bending(name, 10.0)])
        out[f"{name} at 10 N m"] = abs(at10.rotation_deg[read])
        out[f"{name} at 7.5 N m"] = abs(at7.rotation_deg[read])
        out[f"{name} stiffness"] = MOMENT_NM / abs(at7.rotation_deg[read])
        loads = [Load(500.0), bending(name, MOMENT_NM, 500.0)]
        preloaded = test.steps(segment, f"{name}, 500 N", loads, 1)[1]
        out[f"{name} at 7.5 N m and 500 N"] = abs(preloaded.rotation_deg[read])
        out[f"facet force in {name}, 7.5 N m"] = float(np.mean(at7.facets_n))
        out[f"facet force in {name}, 7.5 N m and 500 N"] = float(np.mean(preloaded.facets_n))
        if name == "axial rotation":
            out[f"facet force in {name}, 7.5 N m, contralateral"] = max(at7.facets_n)
            out[f"facet force in {name}, 7.5 N m, ipsilateral"] = min(at7.facets_n)
        rotation_deg = test.rotation_deg(part, name, f"{name}, no posterior elements")
        out[f"{name} stiffness, no posterior elements"] = MOMENT_NM / rotation_deg
    for what, suffix in ((segment, ""), (part, ", no posterior elements"), (disc, ", disc only")):
        pressed = test.compressed(what, f"compression{suffix}")
        out[f"axial stiffness{suffix}"] = 1.0 / abs(pressed.translation_mm[2])
        out[f"pressure of the nucleus at 1000 N{suffix}"] = pressed.nucleus_mpa
    out["balance"] = test.balance
    return out
