"""What a patient can be prepared from: settings of `prepare`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.patient.bone.assumed import BoneProfile
from engine.patient.bone.calibration import CalibrationConfig, NoCalibration
from engine.patient.phantoms.lumbar import LumbarSpec
from engine.patient.phantoms.phantom import PhantomSpec
from engine.patient.plan_settings import PlanConfig
from engine.patient.read.segmenter import Device
from engine.settings import Settings

Posture = Literal["unknown", "supine", "standing"]
Levels = Literal["segment", "lumbar", "all"]


class SurfacesSource(Settings):
    """Settings of `from_surfaces`."""

    kind: Literal["surfaces"]
    path: str
    unit: Literal["mm", "cm", "m", "inch", "um"] = "mm"
    axes: str | None = None
    levels: Literal["segment", "lumbar"] = "lumbar"
    accept: tuple[str, ...] = ()
    edge_mm: float = Field(default=1.5, ge=0.8, le=3.0)
    spacing_mm: float = Field(default=0.75, ge=0.4, le=1.5)
    posture: Posture = "unknown"
    name: str | None = None


class MaskSource(Settings):
    """A label image. `labels`: its scheme (schemes.py), or `label_map` level → number; `accept`:
    findings to go on with.

    subregions: a TPTBox/SPINEPS sub-region mask on the same grid, for canal, cord, discs and a
    check of the bodies (structures.py).
    """

    kind: Literal["mask"]
    path: str
    labels: str = "auto"
    label_map: dict[str, int] | None = None
    subregions: str | None = None
    levels: Levels = "lumbar"
    accept: tuple[str, ...] = ()
    edge_mm: float = Field(default=1.5, ge=0.8, le=3.0)
    spacing_mm: float = Field(default=0.75, ge=0.4, le=1.5)
    posture: Posture = "supine"
    name: str | None = None


class CtSource(MaskSource):
    """A CT (`path`) and its label image (`mask`), or the segmenter that makes one (segmenters.py),
    on `device`.

    shell: how the thin cortex is treated (ct_density.py). refine: edges are placed by HU
    (refine.py). shift_mm: the labels are moved by this, LPS, where they lie beside the scan
    (placement.py proposes it).
    """

    kind: Literal["ct"]  # type: ignore[assignment]
    mask: str
    device: Device = "auto"
    series: str | None = None
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shell: Literal["auto", "ct", "assumed"] = "auto"
    refine: bool = True


class MriSource(MaskSource):
    """An MRI (`path`) and its label image (`mask`), or the segmenter that makes one: geometry
    only."""

    kind: Literal["mri"]  # type: ignore[assignment]
    mask: str
    device: Device = "auto"
    series: str | None = None
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)


class PhantomSource(Settings):
    """Settings of `phantom`."""

    kind: Literal["phantom"]
    spec: PhantomSpec = PhantomSpec()


class LumbarSource(Settings):
    """Settings of `lumbar_phantom`."""

    kind: Literal["lumbar"]
    spec: LumbarSpec = LumbarSpec()


class AlignmentConfig(Settings):
    """What the images don't say, or what is to win over them. femoral_heads_mm: the two centres,
    LPS."""

    femoral_heads_mm: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    pi_deg: float | None = Field(default=None, ge=10.0, le=110.0)
    age: float | None = Field(default=None, ge=0.0, le=120.0)
    draws: int = Field(
        default=12,
        ge=0,
        le=500,
        description="of the bootstrap over surface noise; 0: no standard errors",
    )


Source = Annotated[
    SurfacesSource | MaskSource | CtSource | MriSource | PhantomSource | LumbarSource,
    Field(discriminator="kind"),
]


class PrepareConfig(Settings):
    """What `prepare_patient` is asked to do."""

    source: Source
    segment: str = "L4-L5"
    out: str
    patient: BoneProfile = BoneProfile()
    plan: PlanConfig = PlanConfig()
    calibration: Annotated[CalibrationConfig, Field(discriminator="kind")] = NoCalibration()
    alignment: AlignmentConfig = AlignmentConfig()
