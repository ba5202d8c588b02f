"""Published target rules of lumbar alignment, and what a target asks of the levels that are
treated.

Each rule is an equation with its source and its inputs; they disagree, so all are shown and none is
chosen here. They were found on standing adults: a supine lordosis is smaller (13.0° LL, 4.4° L4-S1
in the mean [S67]) and is not corrected.

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

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from engine.patient.alignment.measures import SpineAlignment
from engine.patient.alignment.scores import (
    STANDING_ADDS_DEG,
    gap_ideal_lordosis_deg,
    gap_ideal_slope_deg,
    roussouly_type,
)

#: Segmental lordosis (superior to superior endplate) by PI group, standing [S66 table 2]: (PI
#: below, degrees L1-L2 … L5-S1).
LEVEL_NORMS_DEG: tuple[tuple[float, dict[str, float]], ...] = (
    (45.0, {"L1-L2": 0.0, "L2-L3": 3.9, "L3-L4": 7.7, "L4-L5": 10.5, "L5-S1": 20.2}),
    (55.0, {"L1-L2": 0.9, "L2-L3": 6.2, "L3-L4": 8.9, "L4-L5": 13.1, "L5-S1": 21.8}),
    (np.inf, {"L1-L2": 2.5, "L2-L3": 7.5, "L3-L4": 10.7, "L4-L5": 14.4, "L5-S1": 22.6}),
)
#: The same for all 324 subjects.
LEVEL_NORMS_ALL_DEG = {"L1-L2": 1.2, "L2-L3": 5.9, "L3-L4": 9.1, "L4-L5": 12.7, "L5-S1": 21.6}
#: Anterior, middle and posterior disc height by level, mm [S69].
HEIGHT_NORMS_MM: dict[str, tuple[float, float, float]] = {
    "L1-L2": (10.8, 10.0, 7.3),
    "L2-L3": (13.1, 11.6, 8.6),
    "L3-L4": (15.2, 12.5, 9.1),
    "L4-L5": (18.1, 13.8, 10.1),
    "L5-S1": (18.7, 13.0, 8.5),
}
_PI_STEPS = ((38.0, 18.0), (48.0, 13.0), (58.0, 9.0), (68.0, 6.0), (78.0, 2.0), (np.inf, -5.0))


@dataclass(frozen=True)
class RuleTarget:
    """What one rule asks of one patient.

    status       "computed" | "no lordosis" (the rule sets something else) | "not computed"
    ll_deg       target lordosis L1-S1; ll_range_deg where the rule gives a range (ll_deg is then
                 its end next to the patient)
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
    """A published rule: `needs` names inputs without which it says nothing; `targets` gives
    RuleTarget's fields."""

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
    target = _in_range(ideal - 14.0, ideal + 11.0, x)
    return target | {"l4_s1_range_deg": (0.5 * target["ll_deg"], 0.8 * target["ll_deg"])}


def _lafage(x: _Inputs) -> dict[str, Any]:
    years = _given(x.age) - 55.0
    return {
        "ll_deg": _given(x.pi) - (years / 2.0 + 3.0),
        "others": {"pelvic_tilt_deg": years / 3.0 + 20.0},
    }


def _pi_steps(x: _Inputs) -> dict[str, Any]:
    pi = _given(x.pi)
    return {"ll_deg": pi + next(add for below, add in _PI_STEPS if pi < below)}


def level_norms_deg(pi_deg: float | None) -> dict[str, float]:
    """Segmental lordosis by level of the PI group, or of all subjects where PI is not known [S66
    table 2]."""
    if pi_deg is None:
        return dict(LEVEL_NORMS_ALL_DEG)
    return dict(next(levels for below, levels in LEVEL_NORMS_DEG if pi_deg < below))


def _norms(x: _Inputs) -> dict[str, Any]:
    levels = level_norms_deg(x.pi)
    return {
        "ll_deg": sum(levels.values()),
        "l4_s1_deg": levels["L4-L5"] + levels["L5-S1"],
        "levels_deg": levels,
    }


def _roussouly(x: _Inputs) -> dict[str, Any]:
    kind = roussouly_type(_given(x.ss), x.apex)
    apex = {"1": "L5", "2": "base of L4", "3": "middle of L4", "4": "base of L3 or higher"}
    text = f"type {kind}, apex {apex[kind]}" if kind else "type 1 or 2, apex L5 or base of L4"
    return {
        "reason": (
            f"SS {_given(x.ss):.0f}°: {text}; measured apex {x.apex or 'not known'}; [S68] gives"
            " no LL"
        )
    }


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
        Rule(
            "gap_aligned",
            "GAP aligned range",
            "LL − (0.62·PI + 29) in −14 … +11; LDI 50-80 %",
            "[M]",
            ("PI",),
            _ADULTS,
            _gap_aligned,
        ),
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
            lambda x: {
                "ll_deg": 0.45 * _given(x.pi) + 31.8,
                "others": {"pelvic_tilt_deg": 0.47 * _given(x.pi) - 7.5},
            },
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
        Rule(
            "roussouly",
            "Roussouly type",
            "SS < 35: 1 or 2, 35-45: 3, > 45: 4",
            "[S68]",
            ("SS",),
            "healthy standing adults",
            _roussouly,
        ),
        Rule("l1pa", "L1 pelvic angle", "L1PA = 0.5·PI − 21", "[S61]", ("PI",), _ADULTS, _l1pa),
    )
}


def compare_rules(alignment: SpineAlignment, age: float | None = None) -> list[RuleTarget]:
    """What every rule asks of this patient, or why it cannot be computed; in the order of RULES.

    age   years. Raises: ValueError for an age outside 0-120.
    """
    if age is not None and not 0.0 <= age <= 120.0:
        raise ValueError(f"age={age:g} is no age; expected 0 to 120 years")
    measured = {name: alignment.measure(name) for name in (*_NUMBERS, "apex")}

    def number(name: str) -> float | None:
        value = measured[name].value
        return value if isinstance(value, float) else None

    apex = measured["apex"].value
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
        "PI": f"PI is not known: {measured['pelvic_incidence_deg'].reason}",
        "age": "the patient's age was not given",
        "SS": f"SS is not measurable: {measured['sacral_slope_deg'].reason}",
    }
    have = {"PI": x.pi, "age": x.age, "SS": x.ss}
    return [
        _target(
            rule, x, [why[need] for need in rule.needs if have[need] is None], alignment.posture
        )
        for rule in RULES.values()
    ]


_NUMBERS = (
    "pelvic_incidence_deg",
    "lumbar_lordosis_deg",
    "l4_s1_lordosis_deg",
    "sacral_slope_deg",
    "l1_pelvic_angle_deg",
)


def _target(rule: Rule, x: _Inputs, missing: Sequence[str], posture: str) -> RuleTarget:
    common = (rule.name, rule.title, rule.equation, rule.source)
    if missing:
        return RuleTarget(
            *common, "not computed", reason="; ".join(missing), validity=rule.validity
        )
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
            "measured supine, the rule is for standing: standing adds"
            f" {STANDING_ADDS_DEG['lumbar_lordosis_deg']:g}° LL and"
            f" {STANDING_ADDS_DEG['l4_s1_lordosis_deg']:g}° L4-S1 in the mean [S67], which the"
            " change does not subtract"
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
