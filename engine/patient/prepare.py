"""The settings of `scripts/prepare_patient.py` and the choice of the loader: everything that is not printing.

Unknown keys and values out of range are refused when the settings are read, before any file is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.patient.bone import BoneProfile
from engine.patient.labels import from_mask
from engine.patient.phantom import PhantomSpec, phantom
from engine.patient.planning import PlanConfig
from engine.patient.surfaces import from_surfaces
from engine.types import PatientModel, SegmentAlignment

Posture = Literal["unknown", "supine", "standing"]


class SurfacesSource(BaseModel):
    """Settings of `from_surfaces`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["surfaces"]
    path: str
    unit: Literal["mm", "cm", "m"] = "mm"
    axes: str | None = None
    edge_mm: float = Field(default=1.5, ge=0.8, le=3.0)
    spacing_mm: float = Field(default=0.75, ge=0.4, le=1.5)
    posture: Posture = "unknown"
    name: str | None = None


class MaskSource(BaseModel):
    """Settings of `from_mask`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mask"]
    path: str
    edge_mm: float = Field(default=1.5, ge=0.8, le=3.0)
    spacing_mm: float = Field(default=0.75, ge=0.4, le=1.5)
    posture: Posture = "supine"
    name: str | None = None


class PhantomSource(BaseModel):
    """Settings of `phantom`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["phantom"]
    spec: PhantomSpec = PhantomSpec()


class PrepareConfig(BaseModel):
    """What `prepare_patient` is asked to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[SurfacesSource | MaskSource | PhantomSource, Field(discriminator="kind")]
    segment: str = "L4-L5"
    out: str
    patient: BoneProfile = BoneProfile()
    plan: PlanConfig = PlanConfig()


def load_patient(config: PrepareConfig) -> PatientModel:
    """The patient that the settings name. Raises ValueError as the loaders do."""
    source = config.source
    if isinstance(source, PhantomSource):
        return phantom(source.spec, config.patient)
    options = source.model_dump(exclude={"kind", "path"})
    loader = from_surfaces if isinstance(source, SurfacesSource) else from_mask
    return loader(source.path, config.segment, profile=config.patient, **options)


def one_line(error: Exception) -> str:
    """The error in one line; pydantic's with each key and what was given."""
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']} (given {item['input']!r})"
            for item in error.errors()
        )
    return " ".join(str(error).split())


def alignment_table(measured: SegmentAlignment, planned: SegmentAlignment) -> str:
    """Measured and planned alignment, and the change, one line each."""
    lines = [f"{'':26}{'measured':>10}{'planned':>10}{'change':>10}"]
    for key in SegmentAlignment.__dataclass_fields__:
        a, b = getattr(measured, key), getattr(planned, key)
        lines.append(f"{key:26}{a:10.2f}{b:10.2f}{b - a:+10.2f}")
    return "\n".join(lines)
