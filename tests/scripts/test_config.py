"""Every shipped configuration composes into a valid run, experiments win, and wrong input is
refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from pydantic import ValidationError

from engine.patient import PlanConfig, load_segment, phantom_segment
from scripts.console.composing import expand
from scripts.run import arms as studies
from scripts.run import opened
from scripts.run.config import PatientConfig, RunConfig
from scripts.run.configure import run_config
from scripts.run.folder import open_run

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*overrides: str) -> RunConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return run_config(compose("config", ["out=runs/test", *overrides]))[0]


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


GROUPS = (
    "implant",
    "loadcases",
    "objectives",
    "solver",
    "search",
    "optimizer",
    "fem",
    "experiment",
)


@pytest.mark.parametrize("override", [f"{g}={c}" for g in GROUPS for c in choices(g)])
def test_every_choice_of_every_group_is_a_valid_run(override):
    config = composed(override)
    assert config.study.cases and config.study.goals


@pytest.fixture(scope="module")
def segment():
    return phantom_segment(spacing_mm=1.5, plan_config=PlanConfig(spacing_mm=1.5))


@pytest.mark.parametrize("implant", choices("implant"))
def test_every_implant_stands_in_the_phantom(implant, segment):
    study = studies.make(segment, composed(f"implant={implant}").study)
    assert study.boundary.links if study.cage.rods else not study.boundary.links


def test_the_values_of_an_experiment_win():
    config = composed("experiment=demo")
    assert config.optimizer.iterations == 12
    assert config.study.solver.spacing_mm == 2.0
    assert "phantom" in config.title


@pytest.mark.parametrize(("experiment", "jobs"), [("objectives_study", 60), ("overnight", 24)])
def test_an_experiment_that_is_a_sweep_holds_its_jobs(experiment, jobs):
    combinations, swept = expand([f"experiment={experiment}", "out=runs/x"])
    assert len(combinations) == jobs and {"objectives", "seed"} <= set(swept)
    first, last = (
        composed(*(o for o in combinations[i] if not o.startswith("out="))) for i in (0, -1)
    )
    assert first.identity() != last.identity()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["+implant.settings.colour=red"], None),
        (["+optimizer.speed=3"], "speed"),
        (["optimizer.learning_rate=fast"], "learning_rate"),
        (["optimizer.iterations=-1"], "iterations"),
        (["solver.spacing_mm=9"], "spacing_mm"),
        (["+stocks.heights_mm=[1]"], "stocks"),
        (["+boundary.rod_diameter_mm=50"], "rod_diameter_mm"),
        (["patient.bundel=x"], "bundel"),
        (["+fem.mesh.size_mm=2"], "size_fine_mm"),
        (["+fem.solve.speed=2"], "max_direct_dofs"),
        (["+fem.arms=[stok]"], "conforming_central"),
        (["+loadcases.case.x=1"], "cases and nothing else"),
        (["solver.bone_law=steel"], "morgan2003_vertebra"),
        (["implant.settings.start_wall_mm=9"], "start_wall_mm"),
        (["+stock.domes_mm=[5]"], "domes_mm"),
    ],
)
def test_unknown_keys_and_values_out_of_range_are_named(overrides, named, segment):
    with pytest.raises((ValueError, ValidationError, HydraException)) as caught:
        studies.make(segment, composed(*overrides).study)
    assert named is None or named in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["implant.settings.material=wood"], "ti6al4v"),
        (
            ["implant.settings.length_mm=58", "implant.settings.width_mm=44"],
            "larger than the endplates",
        ),
        (["implant.settings.wall_mm=[0.1,2]"], "0.5 mm"),
        (["implant.settings.x_mm=[5,-5]"], "not an interval"),
        (["+stock.heights_mm=[21,22]"], "no stock cage of 21-22 mm"),
    ],
)
def test_a_device_that_cannot_be_is_refused_with_what_to_do(overrides, named, segment):
    with pytest.raises(ValueError, match=named):
        studies.make(segment, composed(*overrides).study)


def test_a_collapsed_disc_space_is_refused():
    plan = PlanConfig(rule="explicit", height_middle_mm=3.5, lordosis_deg=1.0, spacing_mm=1.5)
    flat = phantom_segment(plan_config=plan, height_middle_mm=4.0, lordosis_deg=1.0, spacing_mm=1.5)
    with pytest.raises(ValueError, match=r"disc space is .* mm high"):
        studies.make(flat, composed().study)


def test_a_bundle_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prepare_patient"):
        opened.open_segment(PatientConfig(bundle=str(tmp_path)))


def test_a_run_folder_is_never_mixed_with_another_configuration_or_patient(tmp_path, segment):
    out = f"out={tmp_path / 'run'}"
    # nothing computed yet: a corrected configuration may begin it anew
    open_run(composed(out, "optimizer.iterations=7"), segment)
    folder = open_run(composed(out), segment)
    (folder / "search.jsonl").write_text("")
    with pytest.raises(ValueError, match="resume=true"):
        open_run(composed(out), segment)
    assert open_run(composed(out, "resume=true"), segment) == folder
    assert open_run(composed(out, "resume=true"), load_segment(folder / "segment")) == folder
    with pytest.raises(ValueError, match="another configuration"):
        open_run(composed(out, "resume=true", "optimizer.iterations=7"), segment)
    lower = replace(
        segment.caudal, sdf=replace(segment.caudal.sdf, values=segment.caudal.sdf.values + 0.1)
    )
    with pytest.raises(ValueError, match="patient has changed"):
        open_run(composed(out, "resume=true"), replace(segment, caudal=lower))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a run folder"):
        open_run(composed(f"out={tmp_path / 'other'}"), segment)
