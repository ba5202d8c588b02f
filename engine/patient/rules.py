"""Published target rules of lumbar alignment, and what a target asks of the levels that are treated.

Each rule is an equation with its source and its inputs; they disagree, so all are shown and none is chosen here. They were
found on standing adults: a supine lordosis is smaller (13.0° LL, 4.4° L4-S1 in the mean [S67]) and is not corrected.

    rule              target LL                                              source
    gap_ideal         0.62·PI + 29, SS = 0.59·PI + 9                         [S60], LL [M]
    gap_aligned       within −14 … +11 of that (no points)                   [M]
    schwab            within PI ± 10                                         [S59]
    hasegawa2016      32.9 + 0.60·PI − 0.23·age                              [S62]
    lehuec2016        0.45·PI + 31.8, PT = 0.47·PI − 7.5                     [S63]
    lafage_age        PI − (age − 55)/2 − 3, PT = (age − 55)/3 + 20          [M]
    pi_steps          PI + 18 | 13 | 9 | 6 | 2 | −5 by PI                    [S65]
    level_norms       L1-L2 … L5-S1 of the PI group, and their sum           [S66] table 2
    roussouly         none: the type and its apex by SS                      [S68]
    l1pa              none: L1PA = 0.5·PI − 21                               [S61]

Where a rule gives a range, the change demanded is the smallest that ends inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # regional.py takes the classifications from here
    from engine.patient.regional import SpineAlignment

#: What standing adds to a recumbent measure, difference of the means [S67].
STANDING_ADDS_DEG = {"lumbar_lordosis_deg": 13.0, "l4_s1_lordosis_deg": 4.4}
#: Segmental lordosis (superior to superior endplate) by PI group, standing [S66 table 2]: (PI below, degrees L1-L2 … L5-S1).
LEVEL_NORMS_DEG: tuple[tuple[float, dict[str, float]], ...] = (
    (45.0, {"L1-L2": 0.0, "L2-L3": 3.9, "L3-L4": 7.7, "L4-L5": 10.5, "L5-S1": 20.2}),
    (55.0, {"L1-L2": 0.9, "L2-L3": 6.2, "L3-L4": 8.9, "L4-L5": 13.1, "L5-S1": 21.8}),
    (np.inf, {"L1-L2": 2.5, "L2-L3": 7.5, "L3-L4": 10.7, "L4-L5": 14.4, "L5-S1": 22.6}),
)
#: The same for all 324 subjects.
LEVEL_NORMS_ALL_DEG = {"L1-L2": 1.2, "L2-L3": 5.9, "L3-L4": 9.1, "L4-L5": 12.7, "L5-S1": 21.6}
_PI_STEPS = ((38.0, 18.0), (48.0, 13.0), (58.0, 9.0), (68.0, 6.0), (78.0, 2.0), (np.inf, -5.0))
_GAP: dict[str, tuple[tuple[float, int], ...]] = {
    # (upper bound, points); the last step is open
    "pelvic_version": ((-15.0, 3), (-7.0, 2), (5.0, 0), (np.inf, 1)),
    "relative_lordosis": ((-25.0, 3), (-14.0, 2), (11.0, 0), (np.inf, 3)),
    "distribution": ((40.0, 2), (50.0, 1), (80.0, 0), (np.inf, 3)),
    "spinopelvic": ((-7.0, 1), (10.0, 0), (18.0, 1), (np.inf, 3)),
}


def gap_ideal_slope_deg(pi_deg: float) -> float:
    """Ideal SS = 0.59·PI + 9 [S60]."""
    return 0.59 * pi_deg + 9.0


def gap_ideal_lordosis_deg(pi_deg: float) -> float:
    """Ideal LL = 0.62·PI + 29 [M]."""
    return 0.62 * pi_deg + 29.0


def gap_points(part: str, value: float) -> int:
    """Points of one part of the GAP score [M]: "pelvic_version", "relative_lordosis" (measured less ideal, degrees),
    "distribution" (percent), "spinopelvic" (degrees) or "age" (years)."""
    if part == "age":
        return int(value >= 60.0)
    for (bound, points), (_, following) in pairwise(_GAP[part]):
        if value <= bound:  # a bound itself belongs to the step with fewer points
            return points if value < bound else min(points, following)
    return _GAP[part][-1][1]


def gap_most(part: str) -> int:
    """Most points that a part can give."""
    return 1 if part == "age" else max(points for _, points in _GAP[part])


def schwab_modifier(part: str, value_deg: float) -> str:
    """SRS-Schwab "0", "+" or "++": part "PI-LL" at 10 and 20°, "PT" at 20 and 30° [S59]."""
    low, high = {"PI-LL": (10.0, 20.0), "PT": (20.0, 30.0)}[part]
    return "0" if value_deg < low else "+" if value_deg <= high else "++"


def roussouly_type(sacral_slope_deg: float, apex: str | None) -> str | None:
    """Type "1" … "4" by SS, below 35° by the apex (L5: 1, else 2) [S68]; None where that is needed and not known."""
    if sacral_slope_deg < 35.0:
        return None if apex is None else "1" if apex in ("L5", "L5-S1") else "2"
    return "3" if sacral_slope_deg <= 45.0 else "4"


@dataclass(frozen=True)
class RuleTarget:
    """What one rule asks of one patient.

    status       "computed" | "no lordosis" (the rule sets something else) | "not computed"
    ll_deg       target lordosis L1-S1; ll_range_deg where the rule gives a range (ll_deg is then its end next to the patient)
    l4_s1_deg    target L4-S1 (a range for GAP's LDI of 50-80 %, given as l4_s1_range_deg)
    change_deg   target less measured LL; None where LL was not measured
    others       further targets by name, degrees
    levels_deg   targets by level, where the rule has them
    """

    rule: str
    title: str
    equation: str
    source: str
    status: str
    ll_deg: float | None = None
    ll_range_deg: tuple[float, float] | None = None
    l4_s1_deg: float | None = None
    l4_s1_range_deg: tuple[float, float] | None = None
    change_deg: float | None = None
    l4_s1_change_deg: float | None = None
    others: dict[str, float] = field(default_factory=dict)
    levels_deg: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    validity: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Inputs:
    """What rules are computed from; None where the patient has it not."""

    pi: float | None
    age: float | None
    ll: float | None
    l4_s1: float | None
    ss: float | None
    apex: str | None
    l1pa: float | None


@dataclass(frozen=True)
class Rule:
    """A published rule: `needs` names inputs without which it says nothing; `targets` gives RuleTarget's fields."""

    name: str
    title: str
    equation: str
    source: str
    needs: tuple[str, ...]
    validity: str
    targets: Callable[[_Inputs], dict[str, Any]]


def _given(value: float | None) -> float:
    assert value is not None  # `needs` was checked
    return value


def _in_range(low: float, high: float, x: _Inputs) -> dict[str, Any]:
    end = 0.5 * (low + high) if x.ll is None else float(np.clip(x.ll, low, high))
    return {"ll_deg": end, "ll_range_deg": (low, high)}


def _gap_ideal(x: _Inputs) -> dict[str, Any]:
    ll, ss = gap_ideal_lordosis_deg(_given(x.pi)), gap_ideal_slope_deg(_given(x.pi))
    return {
        "ll_deg": ll,
        "l4_s1_range_deg": (0.5 * ll, 0.8 * ll),
        "others": {"sacral_slope_deg": ss, "pelvic_tilt_deg": _given(x.pi) - ss},
    }


def _gap_aligned(x: _Inputs) -> dict[str, Any]:
    ideal = gap_ideal_lordosis_deg(_given(x.pi))
    found = _in_range(ideal - 14.0, ideal + 11.0, x)
    return found | {"l4_s1_range_deg": (0.5 * found["ll_deg"], 0.8 * found["ll_deg"])}


def _lafage(x: _Inputs) -> dict[str, Any]:
    years = _given(x.age) - 55.0
    return {"ll_deg": _given(x.pi) - (years / 2.0 + 3.0), "others": {"pelvic_tilt_deg": years / 3.0 + 20.0}}


def _pi_steps(x: _Inputs) -> dict[str, Any]:
    pi = _given(x.pi)
    return {"ll_deg": pi + next(add for below, add in _PI_STEPS if pi < below)}


def level_norms_deg(pi_deg: float | None) -> dict[str, float]:
    """Segmental lordosis by level of the PI group, or of all subjects where PI is not known [S66 table 2]."""
    if pi_deg is None:
        return dict(LEVEL_NORMS_ALL_DEG)
    return dict(next(levels for below, levels in LEVEL_NORMS_DEG if pi_deg < below))


def _norms(x: _Inputs) -> dict[str, Any]:
    levels = level_norms_deg(x.pi)
    return {"ll_deg": sum(levels.values()), "l4_s1_deg": levels["L4-L5"] + levels["L5-S1"], "levels_deg": levels}


def _roussouly(x: _Inputs) -> dict[str, Any]:
    kind = roussouly_type(_given(x.ss), x.apex)
    apex = {"1": "L5", "2": "base of L4", "3": "middle of L4", "4": "base of L3 or higher"}
    text = f"type {kind}, apex {apex[kind]}" if kind else "type 1 or 2, apex L5 or base of L4"
    return {"reason": f"SS {_given(x.ss):.0f}°: {text}; measured apex {x.apex or 'not known'}; [S68] gives no LL"}


def _l1pa(x: _Inputs) -> dict[str, Any]:
    target = 0.5 * _given(x.pi) - 21.0
    have = "not measured" if x.l1pa is None else f"{x.l1pa:.1f}°"
    reason = f"L1PA {target:.1f}° is asked, {have}; many lordoses reach it, [S61] sets none"
    return {"others": {"l1_pelvic_angle_deg": target}, "reason": reason}


_ADULTS = "standing adults without deformity"
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "gap_ideal",
            "GAP ideal",
            "LL = 0.62·PI + 29; SS = 0.59·PI + 9; LDI 50-80 %",
            "[S60], LL and LDI [M]",
            ("PI",),
            _ADULTS,
            _gap_ideal,
        ),
        Rule("gap_aligned", "GAP aligned range", "LL − (0.62·PI + 29) in −14 … +11; LDI 50-80 %", "[M]", ("PI",), _ADULTS, _gap_aligned),
        Rule(
            "schwab",
            "SRS-Schwab modifier 0",
            "|PI − LL| ≤ 10",
            "[S59]",
            ("PI",),
            "adult spinal deformity, standing; strict for the old (lafage_age)",
            lambda x: _in_range(_given(x.pi) - 10.0, _given(x.pi) + 10.0, x),
        ),
        Rule(
            "hasegawa2016",
            "Hasegawa 2016",
            "LL = 32.9 + 0.60·PI − 0.23·age",
            "[S62]",
            ("PI", "age"),
            "healthy Japanese adults, standing [M]",
            lambda x: {"ll_deg": 32.9 + 0.60 * _given(x.pi) - 0.23 * _given(x.age)},
        ),
        Rule(
            "lehuec2016",
            "Le Huec 2016",
            "LL = 0.45·PI + 31.8; PT = 0.47·PI − 7.5",
            "[S63]",
            ("PI",),
            _ADULTS,
            lambda x: {"ll_deg": 0.45 * _given(x.pi) + 31.8, "others": {"pelvic_tilt_deg": 0.47 * _given(x.pi) - 7.5}},
        ),
        Rule(
            "lafage_age",
            "Lafage, age-adjusted",
            "PI − LL = (age − 55)/2 + 3; PT = (age − 55)/3 + 20",
            "[M]",
            ("PI", "age"),
            "adult spinal deformity, standing",
            _lafage,
        ),
        Rule(
            "pi_steps",
            "PI step table",
            "LL = PI + 18 | 13 | 9 | 6 | 2 | −5 for PI < 38 | 48 | 58 | 68 | 78 | above",
            "[S65]",
            ("PI",),
            "standing; jumps by up to 7° at its steps",
            _pi_steps,
        ),
        Rule(
            "level_norms",
            "Norms by level",
            "mean of the PI group (< 45, 45-55, > 55°), superior to superior endplate",
            "[S66] table 2",
            (),
            "324 healthy standing adults; SD 3.4 to 9.1° per level",
            _norms,
        ),
        Rule("roussouly", "Roussouly type", "SS < 35: 1 or 2, 35-45: 3, > 45: 4", "[S68]", ("SS",), "healthy standing adults", _roussouly),
        Rule("l1pa", "L1 pelvic angle", "L1PA = 0.5·PI − 21", "[S61]", ("PI",), _ADULTS, _l1pa),
    )
}


def compare_rules(alignment: SpineAlignment, age: float | None = None) -> list[RuleTarget]:
    """What every rule asks of this patient, or why it cannot be computed; in the order of RULES.

    age   years. Raises: ValueError for an age outside 0-120.
    """
    if age is not None and not 0.0 <= age <= 120.0:
        raise ValueError(f"age={age:g} is no age; expected 0 to 120 years")
    found = {name: alignment.measure(name) for name in (*_NUMBERS, "apex")}

    def number(name: str) -> float | None:
        value = found[name].value
        return value if isinstance(value, float) else None

    apex = found["apex"].value
    x = _Inputs(
        pi=number("pelvic_incidence_deg"),
        age=age,
        ll=number("lumbar_lordosis_deg"),
        l4_s1=number("l4_s1_lordosis_deg"),
        ss=number("sacral_slope_deg"),
        apex=apex if isinstance(apex, str) else None,
        l1pa=number("l1_pelvic_angle_deg"),
    )
    why = {
        "PI": f"PI is not known: {found['pelvic_incidence_deg'].reason}",
        "age": "the patient's age was not given",
        "SS": f"SS is not measurable: {found['sacral_slope_deg'].reason}",
    }
    have = {"PI": x.pi, "age": x.age, "SS": x.ss}
    return [_target(rule, x, [why[need] for need in rule.needs if have[need] is None], alignment.posture) for rule in RULES.values()]


_NUMBERS = ("pelvic_incidence_deg", "lumbar_lordosis_deg", "l4_s1_lordosis_deg", "sacral_slope_deg", "l1_pelvic_angle_deg")


def _target(rule: Rule, x: _Inputs, missing: Sequence[str], posture: str) -> RuleTarget:
    common = (rule.name, rule.title, rule.equation, rule.source)
    if missing:
        return RuleTarget(*common, "not computed", reason="; ".join(missing), validity=rule.validity)
    fields = rule.targets(x)
    if "ll_deg" not in fields:
        return RuleTarget(*common, "no lordosis", **fields, validity=rule.validity)
    span = fields.get("l4_s1_range_deg")
    if span is not None:
        fields["l4_s1_deg"] = 0.5 * sum(span) if x.l4_s1 is None else float(np.clip(x.l4_s1, *span))
    lower = fields.get("l4_s1_deg")
    notes = []
    if x.ll is None:
        notes.append("LL was not measured, so that the change is not known")
    if posture == "supine":
        notes.append(
            f"measured supine, the rule is for standing: standing adds {STANDING_ADDS_DEG['lumbar_lordosis_deg']:g}° LL and "
            f"{STANDING_ADDS_DEG['l4_s1_lordosis_deg']:g}° L4-S1 in the mean [S67], which the change does not subtract"
        )
    return RuleTarget(
        *common,
        "computed",
        **fields,
        change_deg=None if x.ll is None else fields["ll_deg"] - x.ll,
        l4_s1_change_deg=None if lower is None or x.l4_s1 is None else lower - x.l4_s1,
        reason="; ".join(notes),
        validity=rule.validity,
    )


@dataclass(frozen=True)
class LevelLimit:
    """Largest change of one disc's angle: the opening rim is held by its ligament, the closing rim by the disc space.

        |Δ| ≤ min(angle, opens/r_o, closes/r_c)

    The disc turns about its middle, whose height is planned apart, so that a rim, r from the middle, moves by
    2r·|sin(θ′/2) − sin(θ/2)| ≤ r·|Δ| with θ the disc angle before and θ′ after (alignment.py): the bound is safe, and under
    2 % too strict for discs below 20°.

    angle_deg               most that is asked of one level; ours [M]
    opens_mm, closes_mm     what the opening rim may still rise and the closing one still sink, after the change of the middle
                            height (planning._level_limit has them for one patient); inf: not limited
    opens_at_mm, closes_at_mm   r_o and r_c
    """

    angle_deg: float = 8.0
    opens_mm: float = np.inf
    closes_mm: float = np.inf
    opens_at_mm: float = 17.0
    closes_at_mm: float = 17.0

    def largest_deg(self) -> float:
        """The bound, degrees ≥ 0."""
        return self._bound()[0]

    def limited_by(self) -> str:
        """"angle" | "ligament" | "disc space": which of the three is least."""
        return self._bound()[1]

    def _bound(self) -> tuple[float, str]:
        opens = float(np.degrees(max(self.opens_mm, 0.0) / self.opens_at_mm))
        closes = float(np.degrees(max(self.closes_mm, 0.0) / self.closes_at_mm))
        return min((self.angle_deg, "angle"), (opens, "ligament"), (closes, "disc space"), key=lambda bound: bound[0])


@dataclass(frozen=True)
class Distribution:
    """Change of lordosis by treated level (degrees), what they cannot give, and the reason of each that is at its limit.

    levels_deg   given; wanted_deg is what the level would take if nothing were limited. Σ wanted − Σ given = shortfall
    """

    rule: str
    demand_deg: float
    levels_deg: dict[str, float]
    wanted_deg: dict[str, float]
    shortfall_deg: float
    notes: tuple[str, ...] = ()


def distribute(
    target: RuleTarget,
    levels: Sequence[str],
    measured_deg: Mapping[str, float],
    limits: Mapping[str, LevelLimit] | None = None,
    norms_deg: Mapping[str, float] | None = None,
) -> Distribution:
    """The change of lordosis that a target demands, spread over the levels that are treated.

    With Δ the demand, s_i the norm's share of level i [S66] and m_i its measured lordosis, level i lacks
    d_i = max(sign(Δ)·(s_i·LL_target − m_i), 0) and takes Δ·d_i/Σd; what a level cannot take (its limit) goes to those that
    still can, by the same shares, and where none of them lacks any more, by their remaining room. What is left over is
    the shortfall.

    levels         treated, as "L4-L5"
    measured_deg   superior-to-superior lordosis of these levels
    limits         by level; default LevelLimit()
    norms_deg      by level; default the target's own, else [S66] of all subjects

    Raises: ValueError for no level, an unknown or unmeasured one, or a target without a change.
    """
    if target.change_deg is None or target.ll_deg is None:
        raise ValueError(f"rule {target.rule} gives no change of lordosis ({target.reason or target.status}); choose another")
    norms = dict(norms_deg or target.levels_deg or LEVEL_NORMS_ALL_DEG)
    if not levels or len(set(levels)) != len(levels):
        raise ValueError(f"levels treated: {list(levels)}; expected at least one, each once, as ['L4-L5']")
    for level in levels:
        if level not in norms or level not in measured_deg:
            there = sorted(set(norms) & set(measured_deg))
            raise ValueError(f"level {level!r} has no norm or was not measured; choose among {', '.join(there) or 'none'}")
    sign = 1.0 if target.change_deg >= 0.0 else -1.0
    total = sum(norms.values())
    lacks = np.array([max(sign * (norms[level] / total * target.ll_deg - measured_deg[level]), 0.0) for level in levels])
    bounds = [(limits or {}).get(level, LevelLimit()) for level in levels]
    caps = np.array([bound.largest_deg() for bound in bounds])
    first = next((weight for weight in (lacks, caps) if weight.sum() > 0.0), np.ones(len(levels)))
    wanted = target.change_deg * first / first.sum()
    given = np.zeros(len(levels))
    left = abs(target.change_deg)
    for weight in (lacks, None):
        while left > 1e-9:
            room = caps - given
            share = np.where(room > 1e-9, room if weight is None else weight, 0.0)
            if share.sum() <= 0.0:
                break
            step = np.minimum(left * share / share.sum(), room)
            given += step
            left -= float(step.sum())
    left = left if left > 1e-6 else 0.0
    notes = [
        f"{level} is at its limit of {bound.largest_deg():.1f}° ({bound.limited_by()})"
        for level, bound, part in zip(levels, bounds, given, strict=True)
        if part > bound.largest_deg() - 1e-6
    ]
    if left:
        notes.append(f"{left:.1f}° of {abs(target.change_deg):.1f}° cannot be had from {', '.join(levels)}")
    spread = {level: float(sign * part) for level, part in zip(levels, given, strict=True)}
    asked = {level: float(part) for level, part in zip(levels, wanted, strict=True)}
    return Distribution(target.rule, target.change_deg, spread, asked, sign * left, tuple(notes))


__all__ = [
    "LEVEL_NORMS_ALL_DEG",
    "LEVEL_NORMS_DEG",
    "RULES",
    "STANDING_ADDS_DEG",
    "Distribution",
    "LevelLimit",
    "Rule",
    "RuleTarget",
    "compare_rules",
    "distribute",
    "gap_ideal_lordosis_deg",
    "gap_ideal_slope_deg",
    "gap_most",
    "gap_points",
    "level_norms_deg",
    "roussouly_type",
    "schwab_modifier",
]
