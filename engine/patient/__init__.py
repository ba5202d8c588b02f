"""Patients: from scans, masks, surfaces or the phantom to a planned segment."""

from __future__ import annotations

from typing import Any

from engine.patient.alignment.disc import measure
from engine.patient.bone.assumed import BoneProfile
from engine.patient.bundle import load_bundle, load_segment, save_bundle, save_segment
from engine.patient.model.scan import from_mask
from engine.patient.model.surfaces import from_surfaces
from engine.patient.phantoms.phantom import PhantomSpec, phantom, truth
from engine.patient.plan_settings import PlanConfig
from engine.patient.planning import plan
from engine.patient.prepare import prepare
from engine.patient.sources import PrepareConfig
from engine.types import Segment


def phantom_segment(plan_config: PlanConfig | None = None, **spec: Any) -> Segment:
    """The phantom's L4-L5, planned (rule norms unless given); keywords as `PhantomSpec`."""
    return plan(phantom(PhantomSpec(**spec)), "L4-L5", plan_config)


__all__ = [
    "BoneProfile",
    "PhantomSpec",
    "PlanConfig",
    "PrepareConfig",
    "from_mask",
    "from_surfaces",
    "load_bundle",
    "load_segment",
    "measure",
    "phantom",
    "phantom_segment",
    "plan",
    "prepare",
    "save_bundle",
    "save_segment",
    "truth",
]
