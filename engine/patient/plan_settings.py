"""Settings of a segment's plan, and what of them can be refused before the pose is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field

from engine.patient.alignment.disc import POSE_COMPONENTS
from engine.patient.alignment.rules import HEIGHT_NORMS_MM
from engine.settings import Settings
from engine.types import SegmentAlignment

LordosisRule = Literal[
    "gap_ideal", "gap_aligned", "schwab", "hasegawa2016", "lehuec2016", "lafage_age", "pi_steps"
]
#: Rules of rules.py that set a lumbar lordosis; equations and sources are there.
LORDOSIS_RULES: tuple[str, ...] = get_args(LordosisRule)

#: Change of the scanned pose that one operation makes at one level at most [M], and the unit of
#: each component.
LARGEST_CHANGE = {
    "lordosis_deg": (18.0, "°"),
    "coronal_deg": (15.0, "°"),
    "axial_deg": (12.0, "°"),
    "height_middle_mm": (9.0, " mm"),
    "listhesis_mm": (12.0, " mm"),
    "lateral_mm": (10.0, " mm"),
}
#: An operation does not close a disc by more than this, mm [M].
_MOST_CLOSED_MM = 3.0


class Limits(Settings):
    """Largest change that `norms` and the named rules make to each component. Ours [M], except the
    ligaments' strains."""

    lordosis_deg: float = Field(default=8.0, ge=0.0, le=20.0)
    height_mm: float = Field(default=4.0, ge=0.0, le=8.0)
    coronal_deg: float = Field(default=10.0, ge=0.0, le=20.0)
    #: axial rotation and lateral slip are left by default: the facets guide them, a cage does not
    #: set them
    axial_deg: float = Field(default=0.0, ge=0.0, le=15.0)
    listhesis_mm: float = Field(default=6.0, ge=0.0, le=15.0)
    lateral_mm: float = Field(default=0.0, ge=0.0, le=15.0)
    #: slips of the endplates' centres below this are anatomy and noise, and are left
    slip_tolerance_mm: float = Field(default=2.0, ge=0.0, le=5.0)
    #: stretch at which the anterior and the posterior longitudinal ligament turn stiff [S8]; 1:
    #: cut, as the anterior one is for an ALIF
    anterior_ligament_strain: float = Field(default=0.12, ge=0.0, le=1.0)
    posterior_ligament_strain: float = Field(default=0.11, ge=0.0, le=1.0)
    #: the rim that closes stays this high, or as it was scanned where that is less
    rim_height_mm: float = Field(default=5.0, ge=0.0, le=12.0)


class PlanConfig(Settings):
    """How the target is set. The components are read by rule `explicit` only, `levels` by the
    named rules only."""

    rule: Literal["norms", "keep", "explicit"] | LordosisRule = "norms"
    levels: tuple[str, ...] | None = Field(
        default=None,
        description="treated, over which a rule's demand is spread; null: this segment",
    )
    limits: Limits = Limits()
    collision_mm: float = Field(default=0.3, ge=0.0, le=2.0)
    lordosis_deg: float | None = Field(default=None, ge=-15.0, le=35.0)
    coronal_deg: float | None = Field(default=None, ge=-20.0, le=20.0)
    axial_deg: float | None = Field(default=None, ge=-20.0, le=20.0)
    height_middle_mm: float | None = Field(default=None, ge=2.0, le=22.0)
    listhesis_mm: float | None = Field(default=None, ge=-20.0, le=20.0)
    lateral_mm: float | None = Field(default=None, ge=-20.0, le=20.0)
    #: explicit components that are far from the scan's are meant so (`check_explicit`)
    as_meant: bool = False
    spacing_mm: float = Field(default=0.75, ge=0.4, le=2.0, description="of the segment's fields")
    #: of the arch, what lies this far above and below the pedicles is simulated; facets and
    #: processes are not
    posterior_reach_mm: float = Field(default=10.0, ge=8.0, le=20.0)


def check_plan(config: PlanConfig, segment_name: str) -> None:
    """What can be refused before a patient is read. Raises ValueError for targets or levels
    given with a rule that does not read them, an explicit plan without targets, and a segment
    for which the rule has no norm."""
    given = [part for part in POSE_COMPONENTS if getattr(config, part) is not None]
    if given and config.rule != "explicit":
        raise ValueError(
            f"plan.{given[0]} is read by plan.rule=explicit only; given rule={config.rule}"
        )
    if config.levels is not None and config.rule not in LORDOSIS_RULES:
        raise ValueError(
            f"plan.levels is read by {', '.join(LORDOSIS_RULES)} only; given rule={config.rule}:"
            " leave it out"
        )
    if config.rule == "explicit" and not given:
        raise ValueError(f"plan.rule=explicit needs at least one of {', '.join(POSE_COMPONENTS)}")
    if config.rule not in ("keep", "explicit") and segment_name not in HEIGHT_NORMS_MM:
        raise ValueError(
            f"no norm is known for {segment_name}; use plan.rule=keep or explicit (norms:"
            f" {', '.join(HEIGHT_NORMS_MM)})"
        )


def check_explicit(given: Mapping[str, float], measured: SegmentAlignment) -> None:
    """Raises ValueError for explicit plan components that no operation reaches from the scanned
    pose, or that look like a slip.

    A slip: a sign turned (the change would be twice as small, and at least 8 less, with the other
    one; a kyphosis made larger; a slip turned over), or a component of another unit.
    `plan.as_meant=true` goes on.
    """
    wrong = []
    for part, value in given.items():
        now, (most, unit) = getattr(measured, part), LARGEST_CHANGE[part]
        change = value - now
        text = f"plan.{part}={value:g} is a change of {change:+.1f}{unit} from the scan's {now:.1f}"
        if _turned_over(part, value, now):
            wrong.append(
                f"{text}, away from it; with the other sign, plan.{part}={-value:g}, it is"
                f" {-value - now:+.1f}"
            )
        elif abs(change) > most:
            wrong.append(f"{text} (at most {most:g})")
        elif part == "height_middle_mm" and change < -_MOST_CLOSED_MM:
            wrong.append(
                f"plan.{part}={value:g} closes a disc that is {now:.1f} mm high by {-change:.1f} mm"
            )
    if wrong:
        raise ValueError("; ".join(wrong) + "; correct it, or go on with plan.as_meant=true")


def _turned_over(part: str, value: float, now: float) -> bool:
    """Whether a component looks as if its sign were turned against the scan's."""
    if part == "height_middle_mm":
        return False
    if part == "lordosis_deg" and value > 0.0 > now:  # a kyphotic disc set right
        return False
    change, turned = value - now, -value - now
    if abs(change) > 2.0 * abs(turned) and abs(change) - abs(turned) > 8.0:
        return True
    if part == "lordosis_deg":
        return value < -2.0 and change < 0.0
    return part == "listhesis_mm" and abs(now) > 2.0 and abs(turned) < 0.3
