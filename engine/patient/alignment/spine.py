"""Regional alignment of the lumbar spine: every value with its unit, its standing and what it rests
on.

Axes
    x   patient's left: the hip axis where the femoral heads are known, else S1's left axis, else
        the vertebrae's mean
    z   chord from S1 (or the lowest endplate) to the uppermost one, made perpendicular to x;  y = z
        × x, posterior
All angles are taken in these planes, so how the patient lies in the scanner does not matter. Only
what is measured against gravity does (SS, PT, the apex, and GAP, Schwab and Roussouly through
them): there LPS z, projected into the sagittal plane, stands for the vertical, in a supine scan as
well.

With n an endplate's cranial normal, lean(n) = atan2(n·y, n·z), H the hip axis, M S1's centre
    LL      lean(L1 superior) − lean(S1 superior)            [S57]; L4-S1 the same from L4
    level   lean(cranial superior) − lean(caudal superior)   levels L1-L2 … L5-S1 add up to LL; the
                                                             definition of [S66]
    SS      −lean(S1) from the vertical;  PT = lean(HM) from the vertical;  PI = PT + SS [S57]
    L1PA    lean(HM) − lean(H → L1's centre) [S58]
    tilt    atan2(l·z, l·x) of an endplate's left axis l;  Cobb = largest |tilt(superior of i) −
                                                           tilt(inferior of j)|
    slip    along the disc (alignment.py), as % of the caudal endplate's depth; Meyerding [M]. A
            slip moves centres and posterior rims alike, a difference in depth or a rounded corner
            only one of them: the smaller counts, opposite signs are none
Body heights are between the two rim planes; height_central is between the bone's own surfaces (the
cavities count).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np

from engine.patient.alignment.corners import (
    central_height_mm,
    corners,
    posterior_height_mm,
    posterior_slip_mm,
)
from engine.patient.alignment.disc import Plates, measure
from engine.patient.alignment.measures import POSTURES, REGIONAL, Measure, SpineAlignment
from engine.patient.alignment.scores import (
    STANDING_ADDS_DEG,
    gap_ideal_lordosis_deg,
    gap_ideal_slope_deg,
    gap_most,
    gap_points,
    roussouly_type,
    schwab_modifier,
)
from engine.patient.geometry.frames import inverse, move_endplate, unit, vertebra_frame
from engine.patient.geometry.levels import follow
from engine.types import Endplate, Sacrum, SegmentAlignment, Vertebra

#: Slips below this are anatomy and noise, and have no grade.
SLIP_TOLERANCE_MM = 2.0
_VERTICAL = ("sacral_slope_deg", "pelvic_tilt_deg", "apex")


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
    15-110°, heads not [2, 3], or endplates that are not in order (alignment.measure).
    """
    if isinstance(vertebrae, Mapping):
        plates, bodies = dict(vertebrae), {}
    else:
        plates = {v.name: (v.superior, v.inferior) for v in vertebrae}
        bodies = {v.name: v for v in vertebrae}
    if posture not in POSTURES:
        raise ValueError(f"posture={posture!r} is unknown; choose one of {', '.join(POSTURES)}")
    if not plates:
        raise ValueError("no vertebra was given; alignment needs at least one with both endplates")
    if femoral_heads_mm is not None and pi_deg is not None:
        raise ValueError(
            f"both femoral heads and pi_deg={pi_deg:g} were given; they may disagree: give one of"
            " them"
        )
    if pi_deg is not None and not 15.0 <= pi_deg <= 110.0:
        raise ValueError(f"pi_deg={pi_deg:g} is no pelvic incidence; expected 15 to 110 degrees")
    heads = None if femoral_heads_mm is None else np.asarray(femoral_heads_mm, float)
    if heads is not None and heads.shape != (2, 3):
        raise ValueError(
            f"femoral_heads_mm has shape {heads.shape}; expected the two centres, (2, 3)"
        )
    base = sacrum.superior if isinstance(sacrum, Sacrum) else sacrum
    return _Reader(plates, bodies, base, heads, pi_deg, posture, age).read()


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
    counts = {level: len(list_) for level, list_ in draws.items()} | (
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
        for key, found in drawn.measures.items():
            # points and grades are steps, not measures with a spread of their own
            if isinstance(found.value, float) and found.status == "measured" and found.unit:
                values.setdefault(key, []).append(found.value)
    return {key: float(np.std(list_, ddof=1)) for key, list_ in values.items() if len(list_) > 1}


def meyerding(slip_percent: float, slip_mm: float) -> str:
    """Grade of a slip: I < 25, II < 50, III < 75, IV ≤ 100 %, V beyond [M]; "retro" where it is
    backwards; "none" < 2 mm."""
    if abs(slip_mm) < SLIP_TOLERANCE_MM:
        return "none"
    size = abs(slip_percent)
    grade = (
        "I"
        if size < 25.0
        else "II"
        if size < 50.0
        else "III"
        if size < 75.0
        else "IV"
        if size <= 100.0
        else "V"
    )
    return f"{grade} retro" if slip_percent < 0.0 else grade


def height_loss_grade(loss_percent: float) -> str:
    """Genant's grade of the largest height loss: mild from 20, moderate from 25, severe over 40
    % [M]."""
    return (
        "none"
        if loss_percent < 20.0
        else "mild"
        if loss_percent < 25.0
        else "moderate"
        if loss_percent <= 40.0
        else "severe"
    )


class _Reader:
    """One reading: axes, then measures in the order of the table."""

    def __init__(
        self,
        plates: dict[str, Plates],
        bodies: dict[str, Vertebra],
        base: Endplate | None,
        heads: np.ndarray | None,
        pi_deg: float | None,
        posture: str,
        age: float | None,
    ) -> None:
        self.plates, self.bodies, self.base, self.heads = plates, bodies, base, heads
        self.pi_deg, self.posture, self.age = pi_deg, posture, age
        self.measures: dict[tuple[str, str], Measure] = {}
        self.levels = list(plates)
        mean_left = sum((p.axis_left for pair in plates.values() for p in pair), np.zeros(3))
        if heads is not None:
            x = unit(heads[0] - heads[1])
            self.x = x if x @ mean_left > 0.0 else -x
        else:
            self.x = unit(base.axis_left if base is not None else mean_left)
        foot = base.centre_mm if base is not None else plates[self.levels[-1]][1].centre_mm
        self.z = self._across(plates[self.levels[0]][0].centre_mm - foot)
        self.up = self._across(np.array([0.0, 0.0, 1.0]))

    def read(self) -> SpineAlignment:
        segments = {}
        for upper, lower in zip(self.levels, [*self.levels[1:], "S1"], strict=True):
            below = self._below(lower)
            if below is not None and follow(upper, lower):
                segments[f"{upper}-{lower}"] = self._disc(upper, lower, below)
        for level in self.levels:
            self._body(level)
        self._regional()
        self._pelvis()
        self._shares(segments)
        self._coronal()
        self._apex()
        self._scores()
        return SpineAlignment(self.posture, segments, self.measures)

    # -- writing -----------------------------------------------------------------------------------

    def _put(
        self,
        place: str,
        name: str,
        value: float | str,
        *,
        reason: str = "",
        status: str = "measured",
        source: str = "",
    ) -> None:
        if not source:
            source = f"endplates of this scan ({self.posture})"
            if name in _VERTICAL:
                source += "; LPS z of the scan stands for the vertical"
        if not reason and self.posture == "supine" and name in STANDING_ADDS_DEG:
            reason = (
                f"supine: standing adds {STANDING_ADDS_DEG[name]:g}° in the mean of one cohort"
                " [S67]"
            )
        number = float(value) if not isinstance(value, str) else value
        self.measures[place, name] = Measure(number, _unit(name), status, None, reason, source)

    def _lack(self, place: str, name: str, reason: str) -> None:
        self.measures[place, name] = Measure(None, _unit(name), "not measurable", None, reason)

    def _get(self, name: str) -> float | None:
        found = self.measures.get((REGIONAL, name))
        return found.value if found is not None and isinstance(found.value, float) else None

    # -- geometry ----------------------------------------------------------------------------------

    def _across(self, vector: np.ndarray) -> np.ndarray:
        return unit(vector - (vector @ self.x) * self.x)

    def _lean(self, vector: np.ndarray, vertical: np.ndarray) -> float:
        return float(np.degrees(np.arctan2(vector @ np.cross(vertical, self.x), vector @ vertical)))

    def _below(self, lower: str) -> Plates | None:
        if lower == "S1":
            return (
                None
                if self.base is None
                else (self.base, replace(self.base, normal=-self.base.normal))
            )
        return self.plates[lower]

    def _superior(self, level: str) -> Endplate | None:
        return (
            self.base if level == "S1" else self.plates[level][0] if level in self.plates else None
        )

    def _between(self, upper: str, lower: str) -> float | str:
        """Lordosis from one superior endplate to another, or what is missing."""
        ends = {level: self._superior(level) for level in (upper, lower)}
        missing = [_MISSING.format(level) for level, plate in ends.items() if plate is None]
        if missing:
            return "; ".join(missing)
        first, last = (
            self._lean(plate.normal, self.z) for plate in ends.values() if plate is not None
        )
        return _wrapped(first - last)

    # -- discs and bodies --------------------------------------------------------------------------

    def _disc(self, upper: str, lower: str, below: Plates) -> SegmentAlignment:
        place = f"{upper}-{lower}"
        found = measure(self.plates[upper], below)
        for name, value in asdict(found).items():
            self._put(place, name, value)
        rims = posterior_slip_mm(self.plates[upper][1], below[0])
        slip = min((rims, found.listhesis_mm), key=abs) if rims * found.listhesis_mm > 0.0 else 0.0
        percent = 100.0 * slip / (2.0 * below[0].half_depth_mm)
        self._put(place, "slip_posterior_mm", rims)
        self._put(place, "slip_mm", slip)
        self._put(place, "slip_percent", percent)
        self._put(place, "meyerding", meyerding(percent, slip))
        lordosis = self._between(upper, lower)
        assert isinstance(lordosis, float)
        self._put(place, "level_lordosis_deg", lordosis)
        return found

    def _body(self, level: str) -> None:
        superior, inferior = self.plates[level]
        to_own = inverse(vertebra_frame(superior, inferior))
        top, bottom = move_endplate(to_own, superior), move_endplate(to_own, inferior)
        (front_top, back_top), (front_bottom, back_bottom) = corners(top), corners(bottom)
        front, back = (
            float(np.linalg.norm(front_top - front_bottom)),
            float(np.linalg.norm(back_top - back_bottom)),
        )
        self._put(level, "height_anterior_mm", front)
        self._put(
            level, "height_middle_mm", float(np.linalg.norm(top.centre_mm - bottom.centre_mm))
        )
        self._put(level, "height_posterior_mm", back)
        (tx, ty, tz), (bx, by, bz) = top.normal, -bottom.normal
        self._put(level, "wedge_deg", float(np.degrees(np.arctan2(ty, tz) - np.arctan2(by, bz))))
        self._put(
            level, "coronal_wedge_deg", float(np.degrees(np.arctan2(-tx, tz) - np.arctan2(-bx, bz)))
        )
        self._put(level, "loss_anterior_percent", 100.0 * (1.0 - front / back))
        losses = [100.0 * (1.0 - front / back)]
        if level in self.bodies:
            central = central_height_mm(self.bodies[level])
            self._put(level, "height_central_mm", central)
            self._put(level, "loss_central_percent", 100.0 * (1.0 - central / back))
            losses.append(100.0 * (1.0 - central / back))
        else:
            for name in ("height_central_mm", "loss_central_percent"):
                self._lack(level, name, "needs the bone's surface, and only endplates were given")
        at = self.levels.index(level)
        near = [
            n
            for n in self.levels[max(at - 1, 0) : at + 2]
            if n != level and (follow(n, level) or follow(level, n))
        ]
        if near:
            usual = float(np.mean([posterior_height_mm(*self.plates[n]) for n in near]))
            self._put(
                level,
                "loss_posterior_percent",
                100.0 * (1.0 - back / usual),
                reason=f"against {' and '.join(near)}",
            )
        else:
            self._lack(level, "loss_posterior_percent", "no neighbouring level to compare with")
        # the crush of a whole body shows in its posterior height alone; L5's is naturally lower and
        # is left out of the grade
        if near and level not in ("L5", "L6"):
            losses.append(100.0 * (1.0 - back / usual))
        note = "against its own posterior height and the neighbours'; a shape, not a diagnosis"
        self._put(level, "height_loss_grade", height_loss_grade(max(losses)), reason=note)

    # -- region ------------------------------------------------------------------------------------

    def _regional(self) -> None:
        for name, upper in (("lumbar_lordosis_deg", "L1"), ("l4_s1_lordosis_deg", "L4")):
            value = self._between(upper, "S1")
            if isinstance(value, str):
                self._lack(REGIONAL, name, value)
            else:
                self._put(REGIONAL, name, value)
        total, lower = self._get("lumbar_lordosis_deg"), self._get("l4_s1_lordosis_deg")
        if total is None or lower is None:
            self._lack(REGIONAL, "lordosis_distribution_percent", "needs LL and L4-S1")
        elif total < 10.0:
            self._lack(
                REGIONAL,
                "lordosis_distribution_percent",
                f"LL of {total:.1f}° is too small to be divided",
            )
        else:
            self._put(REGIONAL, "lordosis_distribution_percent", 100.0 * lower / total)

    def _shares(self, segments: dict[str, SegmentAlignment]) -> None:
        total = self._get("lumbar_lordosis_deg")
        for place in segments:
            if place[0] != "L":
                continue
            if total is None or total < 10.0:
                why = (
                    "LL is not measurable"
                    if total is None
                    else f"LL of {total:.1f}° is too small to be divided"
                )
                self._lack(place, "lordosis_share_percent", why)
            else:
                level = self.measures[place, "level_lordosis_deg"].value
                assert isinstance(level, float)
                self._put(place, "lordosis_share_percent", 100.0 * level / total)

    def _pelvis(self) -> None:
        names = (
            "pelvic_incidence_deg",
            "pelvic_tilt_deg",
            "pi_minus_ll_deg",
            "l1_pelvic_angle_deg",
        )
        if self.base is None:
            self._lack(REGIONAL, "sacral_slope_deg", _MISSING.format("S1"))
            slope = None
        else:
            slope = -self._lean(self.base.normal, self.up)
            self._put(REGIONAL, "sacral_slope_deg", slope)
        hips_missing = "the femoral heads are not in the scan, and no PI was given"
        if self.base is not None and self.heads is not None:
            assert slope is not None
            axis = self.heads.mean(axis=0)
            tilt = self._lean(self.base.centre_mm - axis, self.up)
            self._put(REGIONAL, "pelvic_incidence_deg", _wrapped(slope + tilt))
            self._put(REGIONAL, "pelvic_tilt_deg", tilt)
            if "L1" in self.plates:
                centre = 0.5 * (self.plates["L1"][0].centre_mm + self.plates["L1"][1].centre_mm)
                angle = self._lean(self.base.centre_mm - axis, self.z) - self._lean(
                    centre - axis, self.z
                )
                self._put(REGIONAL, "l1_pelvic_angle_deg", _wrapped(angle))
            else:
                self._lack(REGIONAL, "l1_pelvic_angle_deg", _MISSING.format("L1"))
        elif self.pi_deg is not None:
            self._put(
                REGIONAL,
                "pelvic_incidence_deg",
                self.pi_deg,
                status="given",
                source="given, not of this scan",
            )
            if slope is not None:
                self._put(
                    REGIONAL,
                    "pelvic_tilt_deg",
                    self.pi_deg - slope,
                    reason="given PI less measured SS",
                )
            else:
                self._lack(REGIONAL, "pelvic_tilt_deg", _MISSING.format("S1"))
            self._lack(REGIONAL, "l1_pelvic_angle_deg", "the femoral heads are not in the scan")
        else:
            for name in (n for n in names if n != "pi_minus_ll_deg"):
                self._lack(
                    REGIONAL, name, hips_missing if self.base is not None else _MISSING.format("S1")
                )
        incidence, lordosis = self._get("pelvic_incidence_deg"), self._get("lumbar_lordosis_deg")
        if incidence is not None and lordosis is not None:
            self._put(REGIONAL, "pi_minus_ll_deg", incidence - lordosis)
        else:
            self._lack(REGIONAL, "pi_minus_ll_deg", "needs PI and LL")

    def _coronal(self) -> None:
        tilt = {
            (level, side): float(
                np.degrees(np.arctan2(plate.axis_left @ self.z, plate.axis_left @ self.x))
            )
            for level, pair in self.plates.items()
            for side, plate in enumerate(pair)
        }
        names = ("cobb_deg", "cobb_side", "cobb_ends", "cobb_apex")
        if len(self.levels) < 2:
            for name in (*names, "axial_rotation_range_deg"):
                self._lack(REGIONAL, name, "needs at least two vertebrae")
        else:
            i, j = max(
                ((i, j) for i in range(len(self.levels)) for j in range(i + 1, len(self.levels))),
                key=lambda ends: abs(tilt[self.levels[ends[0]], 0] - tilt[self.levels[ends[1]], 1]),
            )
            upper, lower = self.levels[i], self.levels[j]
            angle = tilt[upper, 0] - tilt[lower, 1]
            small = "under 10°, which is not called scoliosis [M]" if abs(angle) < 10.0 else ""
            self._put(REGIONAL, "cobb_deg", abs(angle), reason=small)
            self._put(
                REGIONAL,
                "cobb_side",
                "left" if angle > 0.0 else "right",
                reason=small or "side of the convexity",
            )
            self._put(REGIONAL, "cobb_ends", f"{upper}-{lower}", reason=small)
            self._put(REGIONAL, "cobb_apex", self._cobb_apex(i, j, np.sign(angle)), reason=small)
        turns = {
            level: float(np.degrees(np.arctan2(left @ np.cross(self.z, self.x), left @ self.x)))
            for level, left in (
                (level, vertebra_frame(*pair)[:3, 0]) for level, pair in self.plates.items()
            )
        }
        for level, turn in turns.items():
            self._put(level, "axial_rotation_deg", turn)
        if len(turns) > 1:
            self._put(
                REGIONAL, "axial_rotation_range_deg", max(turns.values()) - min(turns.values())
            )

    def _cobb_apex(self, i: int, j: int, side: float) -> str:
        """The body or disc between the end vertebrae that is farthest to the convex side of the
        line between them."""
        stations: list[tuple[str, np.ndarray]] = []
        for k in range(i, j + 1):
            superior, inferior = self.plates[self.levels[k]]
            stations.append((self.levels[k], 0.5 * (superior.centre_mm + inferior.centre_mm)))
            if k < j:
                centre = 0.5 * (inferior.centre_mm + self.plates[self.levels[k + 1]][0].centre_mm)
                stations.append((f"{self.levels[k]}-{self.levels[k + 1]}", centre))
        (_, top), (_, bottom) = stations[0], stations[-1]
        chord = top - bottom
        direction = np.array([chord @ self.x, chord @ self.z])
        off = [
            side
            * float(
                ((centre - bottom) @ self.x) * direction[1]
                - ((centre - bottom) @ self.z) * direction[0]
            )
            for _, centre in stations
        ]
        return stations[int(np.argmax(off))][0]

    def _apex(self) -> None:
        """Where the lordosis is farthest forward: the first endplate, from S1 up, that is level."""
        column: list[tuple[str, str, Endplate]] = (
            [] if self.base is None else [("S1", "superior", self.base)]
        )
        for level in reversed(self.levels):
            superior, inferior = self.plates[level]
            column += [
                (level, "inferior", replace(inferior, normal=-inferior.normal)),
                (level, "superior", superior),
            ]
        lean = [self._lean(plate.normal, self.up) for _, _, plate in column]
        if lean[0] >= 0.0:
            self._lack(
                REGIONAL,
                "apex",
                f"the lowest endplate in the scan ({column[0][0]}) does not lean forward",
            )
            return
        for k, ((low, _, _), (high, _, _)) in enumerate(pairwise(column)):
            if lean[k + 1] >= 0.0:
                self._put(REGIONAL, "apex", high if high == low else f"{high}-{low}")
                return
        self._lack(
            REGIONAL,
            "apex",
            f"no endplate up to {self.levels[0]} is level: the spine leans forward throughout",
        )

    # -- published classifications -----------------------------------------------------------------

    def _scores(self) -> None:
        slope, tilt = self._get("sacral_slope_deg"), self._get("pelvic_tilt_deg")
        incidence, mismatch = self._get("pelvic_incidence_deg"), self._get("pi_minus_ll_deg")
        for name, value, what in (("schwab_pi_ll", mismatch, "PI-LL"), ("schwab_pt", tilt, "PT")):
            if value is None:
                self._lack(REGIONAL, name, f"needs {what}")
            else:
                self._put(REGIONAL, name, schwab_modifier(what, value), source="[S59]")
        self._lack(REGIONAL, "schwab_sva", "the C7 plumb line is not in a lumbar scan")
        self._gap(slope, incidence)
        apex = self.measures[REGIONAL, "apex"]
        kind = (
            None
            if slope is None
            else roussouly_type(slope, apex.value if isinstance(apex.value, str) else None)
        )
        if kind is not None:
            self._put(REGIONAL, "roussouly", kind, source="SS and apex [S68]")
        else:
            why = (
                _MISSING.format("S1")
                if slope is None
                else f"SS under 35° is type 1 or 2 by the apex; {apex.reason}"
            )
            self._lack(REGIONAL, "roussouly", why)

    def _gap(self, slope: float | None, incidence: float | None) -> None:
        lordosis, share = (
            self._get("lumbar_lordosis_deg"),
            self._get("lordosis_distribution_percent"),
        )
        for name, value, wanted in (
            ("gap_pelvic_version", slope, gap_ideal_slope_deg),
            ("gap_relative_lordosis", lordosis, gap_ideal_lordosis_deg),
        ):
            if value is not None and incidence is not None:
                ideal = wanted(incidence)
                self._put(
                    REGIONAL,
                    f"{name}_deg",
                    value - ideal,
                    source=f"measured less ideal {ideal:.1f}° [S60]",
                )
            else:
                self._lack(
                    REGIONAL,
                    f"{name}_deg",
                    "needs PI and SS" if wanted is gap_ideal_slope_deg else "needs PI and LL",
                )
        parts = {
            "pelvic_version": self._get("gap_pelvic_version_deg"),
            "relative_lordosis": self._get("gap_relative_lordosis_deg"),
            "distribution": share,
            "spinopelvic": None,
            "age": self.age,
        }
        lacking = {
            "spinopelvic": "global tilt needs C7, which is not in a lumbar scan",
            "age": "needs the patient's age",
        }
        known, open_ = 0, []
        for part, value in parts.items():
            if value is None:
                open_.append(part)
                self._lack(
                    REGIONAL, f"gap_{part}_points", lacking.get(part, "needs PI, SS, LL and L4-S1")
                )
            else:
                points = gap_points(part, value)
                known += points
                self._put(REGIONAL, f"gap_{part}_points", float(points), source="GAP [M]")
        most = sum(gap_most(part) for part in open_)
        why = (
            f"without {', '.join(open_).replace('_', ' ')}: {known} points so far, at most {most}"
            " more"
        )
        self._lack(REGIONAL, "gap_score", f"{why}; {lacking['spinopelvic']}")


_MISSING = "{}'s superior endplate is not in the scan"


def _unit(name: str) -> str:
    endings = {"_deg": "deg", "_mm": "mm", "_percent": "%"}
    return next((u for end, u in endings.items() if name.endswith(end)), "")


def _wrapped(angle_deg: float) -> float:
    return float((angle_deg + 180.0) % 360.0 - 180.0)
