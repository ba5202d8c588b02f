"""Settings of a run, as the configuration gives them."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine.boundary import BoundarySettings
from engine.implants._stock import Catalogue
from engine.materials import bone_law
from engine.multigrid import SolverSettings
from engine.optimize import OptimizerSettings
from engine.part.lattice import LatticeSettings
from fem.elastic.contact import ContactSettings
from fem.mesh.build import MeshSettings
from fem.solve import FemSettings
from scripts.run.stored import BESIDE
from scripts.run.tracking import MlflowConfig

ARMS = ("stock", "stock_central", "conforming", "conforming_central", "optimised")
FLOORS = ("intact", "full_endplate")


class SolverConfig(BaseModel):
    """Grid and linear solver of the voxel engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    spacing_mm: float = Field(1.5, ge=0.4, le=4.0)
    tolerance: float = Field(1e-6, gt=0, le=1e-2)
    max_iterations: int = Field(150, ge=5)
    smoother_degree: int = Field(4, ge=1, le=12)
    bone_law: str = "morgan2003_vertebra"

    @field_validator("bone_law")
    @classmethod
    def _known(cls, name: str) -> str:
        bone_law(name)
        return name

    def settings(self) -> SolverSettings:
        return SolverSettings(self.tolerance, self.max_iterations, self.smoother_degree)


class SearchConfig(BaseModel):
    """The search for the best position of a fixed shape: a lattice of positions, then a pattern
    search."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    spacing_mm: float = Field(2.5, ge=0.4, le=4.0)
    x: int = Field(3, ge=1, le=15)
    y: int = Field(4, ge=1, le=15)
    yaw: int = Field(3, ge=1, le=15)
    refine: int = Field(10, ge=0, le=200)


class StudyConfig(BaseModel):
    """Everything that shapes the designs of a run. Unknown keys and values out of range are errors.

    seed, start_scatter: where the optimiser starts. 0: at the conforming rival's best position,
    solid; n: that, each scaled parameter moved by a normal random number of this standard deviation
    (1 = the whole range), so that repeats show what the start decides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    family: str
    settings: dict[str, Any]
    stock: Catalogue = Catalogue()
    cases: dict[str, dict[str, Any]]
    goals: list[dict[str, Any]]
    boundary: BoundarySettings = BoundarySettings()
    solver: SolverConfig = SolverConfig()
    search: SearchConfig = SearchConfig()
    export_spacing_mm: float = Field(0.5, ge=0.2, le=1.5)
    seed: int = Field(0, ge=0)
    start_scatter: float = Field(0.15, ge=0, le=0.5)


class LauncherConfig(BaseModel):
    """Where jobs run and what each gets.

    jobs              at a time; null: as many as cores and memory allow (joblib), all (submitit,
                      ray: the scheduler decides)
    threads_per_job   null: the cores divided among the jobs (joblib), 4 (submitit, ray)
    memory_gb_per_job a job's peak: some 5 GB at fem=demo and standard, 8 at fem=fine
    retries           times that a job is started again after a failure that may pass (disk full,
                      memory, a killed process)
    retry_failed      start jobs again that had failed for good
    time_h            submitit: time limit of a job; it is requeued from its checkpoint, up to
                      `retries` times
    grace_s           how long a job that is told to stop may take to save (an iteration, at most)
    slurm             submitit: further parameters, e.g. {slurm_partition: cpu}; cluster: slurm, or
                      local for a trial run here
    address           ray: the cluster's address; null: one that is started on this machine for the
                      sweep
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["joblib", "submitit", "ray"] = "joblib"
    jobs: int | None = Field(None, ge=1, le=10000)
    threads_per_job: int | None = Field(None, ge=1, le=256)
    memory_gb_per_job: float = Field(6.0, gt=0)
    retries: int = Field(1, ge=0, le=10)
    retry_failed: bool = False
    time_h: float = Field(24.0, gt=0)
    grace_s: float = Field(120.0, gt=0)
    cluster: Literal["slurm", "local"] = "slurm"
    slurm: dict[str, Any] = {}
    address: str | None = None


class PatientConfig(BaseModel):
    """A folder written by prepare_patient.py, or (bundle null) the embedded phantom with these
    settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bundle: str | None = None
    phantom: dict[str, Any] = {}


class FemConfig(BaseModel):
    """SfePy check: mesh sizes and solver; see fem.mesh.build.MeshSettings and
    fem.solve.FemSettings.

    contact: coefficients of friction with which every arm is solved again, its implant only
    pressing on what it touches
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    mesh: dict[str, Any] = {}
    solve: dict[str, Any] = {}
    arms: tuple[str, ...] = (*FLOORS, *ARMS)
    processes: int = Field(2, ge=1, le=16)
    contact: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> FemConfig:
        for kind, given in ((MeshSettings, self.mesh), (FemSettings, self.solve)):
            known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
            if unknown := set(given) - known:
                raise ValueError(
                    f"unknown key {', '.join(sorted(unknown))}; known are"
                    f" {', '.join(sorted(known))}"
                )
            kind(**given)
        if "contact" in self.solve:
            raise ValueError(
                "solve.contact: give fem.contact=[…]; every arm is then solved bonded and with"
                " contact"
            )
        for friction in self.contact:
            ContactSettings(friction)
        if wrong := [a for a in self.arms if a not in (*FLOORS, *ARMS)]:
            raise ValueError(
                f"arms: {', '.join(wrong)} unknown; choose among {', '.join((*FLOORS, *ARMS))}"
            )
        return self


class CredibilityConfig(BaseModel):
    """Words of the report's credibility section. Empty: question and context of use are put
    together from the run; model risk (influence of the model on the decision × consequence of a
    wrong one) is the user's to judge and stays open.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    question: str = ""
    context_of_use: str = ""
    model_risk: str = ""


class BudgetConfig(BaseModel):
    """When to stop early, with the best design so far. wall_time_h: hours of optimisation, over
    all resumes; null: no limit. A run that ended by it goes on when it is started again with
    more."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    wall_time_h: float | None = Field(None, gt=0)

    @property
    def seconds(self) -> float:
        return np.inf if self.wall_time_h is None else 3600.0 * self.wall_time_h


class KeepConfig(BaseModel):
    """What stays on disk. states: newest checkpoints while the search runs (a finished run keeps
    none); solutions: arms whose solution.vtu and mesh stay when the check is done."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    states: int = Field(2, ge=1)
    solutions: tuple[str, ...] = ("intact", "stock", "conforming", "optimised")

    @model_validator(mode="after")
    def _check(self) -> KeepConfig:
        if wrong := [a for a in self.solutions if a not in (*FLOORS, *ARMS)]:
            raise ValueError(
                f"solutions: {', '.join(wrong)} unknown; choose among {', '.join((*FLOORS, *ARMS))}"
            )
        return self


class RunConfig(BaseModel):
    """Everything of one run. Unknown keys and values out of range are errors, all named together.

    reuse_gb: disk for what runs of the same content can take over from each other
    (scripts/run/solved.py); 0: everything is solved anew
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str = ""
    out: str
    resume: bool = False
    check: bool = False
    patient: PatientConfig = PatientConfig()
    study: StudyConfig
    optimizer: OptimizerSettings = OptimizerSettings()
    budget: BudgetConfig = BudgetConfig()
    fem: FemConfig = FemConfig()
    credibility: CredibilityConfig = CredibilityConfig()
    keep: KeepConfig = KeepConfig()
    lattice: LatticeSettings = LatticeSettings()
    reuse_gb: float = Field(4.0, ge=0)
    mlflow: MlflowConfig = MlflowConfig()

    def identity(self) -> str:
        """Hash of what shapes the designs (not of where they go, how far the search got, or how
        they are checked)."""
        text = self.model_dump_json(exclude=set(BESIDE))
        return hashlib.sha256(text.encode()).hexdigest()
