"""The comparison says what was put in: known effects, fronts, intervals and p values; and the
page holds together."""

from __future__ import annotations

import html.parser
import math
import shutil
import subprocess
import zlib
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pytest
import trimesh
import yaml

from engine import artifacts
from engine.types import Surface
from scripts.comparison import paired, summary, tables, view
from scripts.comparison.page import write
from scripts.comparison.tables import CompareConfig
from tests.report.example import example, history
from tests.report.example import measure as entry
from tests.report.reading import Reading

PATIENTS = [f"p{n}" for n in range(7)]
#: Yielded bone falls to 60 % where it is the goal, and misalignment rises by half.
EFFECT = {"balanced": (1.0, 1.0), "bone_only": (0.6, 1.5)}


def noise(*what) -> float:
    """A few per cent, the same every time."""
    return 1.0 + 0.02 * ((zlib.crc32(repr(what).encode()) % 1000) / 500.0 - 1.0)


def make_run(folder: Path, patient: str, objectives: str, seed: int, **changes) -> Path:
    result, (bone, off) = example(), EFFECT[objectives]
    scale = 100.0 * (1 + PATIENTS.index(patient))

    def measures(b: float, m: float) -> dict:
        return {
            "yielded_bone": entry(b, "mm³", "bone"),
            "misalignment": entry(m, "mm", "off"),
            "graft_volume": {
                "value": 500.0 + b,
                "unit": "mm³",
                "better": "higher",
                "description": "graft",
            },
        }

    for arm in result["arms"].values():
        arm["measures"], arm["agreement"] = measures(2.0 * scale, 0.1), []
        if arm["status"]["code"] != "ok":
            arm["measures"] = {
                k: m | {"value": None, "per_load": {}} for k, m in arm["measures"].items()
            }
    result["arms"]["optimised"]["measures"] = measures(
        scale * bone * noise(patient, objectives, seed), 0.1 * off * noise(seed, patient)
    )
    result["arms"]["intact"]["measures"].pop("graft_volume")
    result["asked"] |= {"patient": patient, "segment": "L4-L5"}
    goals = [{"objective": "yielded_bone", "kind": "minimise", "weight": 1.0}]
    if objectives == "balanced":
        goals.append({"objective": "misalignment", "kind": "minimise", "weight": 0.5})
    config = {
        "out": str(folder),
        "patient": {"bundle": f"cases/{patient}"},
        "optimizer": {"iterations": 40},
        "study": {"goals": goals, "seed": seed, "settings": {"approach": "TLIF"}},
    }
    artifacts.write_text(folder / "config.yaml", yaml.safe_dump(config))
    meta = {
        "identity": f"{patient}{objectives}{seed}",
        "segment": patient,
        "choices": {"objectives": objectives},
    }
    artifacts.write_json(folder / "meta.json", meta | changes)
    artifacts.write_json(folder / "result.json", result)
    artifacts.write_text(folder / "report.html", "<p>a run</p>")
    for arm, radius in (("optimised", 4.0 + seed), ("stock", 6.0)):
        (folder / "designs" / arm).mkdir(parents=True)
        trimesh.creation.icosphere(4, radius).export(folder / "designs" / arm / "implant.stl")
    (folder / "segment").mkdir()
    for row in history():
        artifacts.append_jsonl(
            folder / "history.jsonl", row | {"violation": row["violation"] or 0.0}
        )
    return folder


@pytest.fixture(autouse=True, scope="module")
def vertebrae():
    """Two balls stand for every patient's vertebrae."""
    ball = trimesh.creation.icosphere(3, 20.0)
    body = Surface(np.asarray(ball.vertices), np.asarray(ball.faces))
    segment = SimpleNamespace(
        caudal=SimpleNamespace(name="L5", surface=body),
        cranial=SimpleNamespace(name="L4", surface=body),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "load_segment", lambda _: segment)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    for patient, objectives, seed in product(PATIENTS, EFFECT, (0, 1)):
        make_run(place / f"{patient}_{objectives}_{seed}", patient, objectives, seed)
    return place


@pytest.fixture(scope="module")
def found(study):
    return tables.collect([study])


# -- what is read ----------------------------------------------------------------------------------
def test_every_run_is_found_with_its_patient_set_and_seed(found):
    assert len(found.runs) == 28 and found.sets() == ["balanced", "bone_only"]
    assert {r.patient for r in found.runs} == {f"{p} L4-L5" for p in PATIENTS}
    assert found.measures() == {
        "yielded_bone": ("mm³", "lower"),
        "misalignment": ("mm", "lower"),
        "graft_volume": ("mm³", "higher"),
    }


def test_only_keys_that_differ_are_named(found):
    assert set(found.differing) == {"patient.bundle", "study.goals", "study.seed"}


def test_one_choice_with_other_goals_is_another_set(tmp_path):
    make_run(tmp_path / "a", "p0", "balanced", 0)
    changed = make_run(tmp_path / "b", "p0", "balanced", 0)
    config = yaml.safe_load((changed / "config.yaml").read_text())
    config["study"]["goals"][1]["weight"] = 2.0
    artifacts.write_text(changed / "config.yaml", yaml.safe_dump(config))
    assert tables.collect([tmp_path]).sets() == ["balanced #1", "balanced #2"]


def test_two_plans_of_one_patient_are_told_apart_by_their_folders(tmp_path):
    for n, bundle in enumerate(("tall", "flat")):
        folder = make_run(tmp_path / bundle, "p0", "balanced", 0, segment=f"digest{n}")
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        settings["patient"]["bundle"] = f"cases/{bundle}"
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert [r.patient for r in tables.collect([tmp_path]).runs] == [
        "p0 L4-L5 (flat)",
        "p0 L4-L5 (tall)",
    ]


def test_runs_without_a_result_are_left_out_with_the_reason(tmp_path):
    make_run(tmp_path / "good", "p0", "balanced", 0)
    failed = make_run(tmp_path / "failed", "p1", "balanced", 0)
    (failed / "result.json").unlink()
    artifacts.write_json(failed / "outcome.json", {"status": "failed", "reason": "no space left"})
    old = make_run(tmp_path / "old", "p2", "balanced", 0)
    artifacts.write_json(old / "result.json", {"schema_version": 0})
    found = tables.collect([tmp_path])
    assert len(found.runs) == 1
    assert (
        dict(found.left_out)[str(failed)] == "failed: no space left"
        and "schema" in dict(found.left_out)[str(old)]
    )


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        tables.collect([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="holds no run folder"):
        tables.collect([tmp_path])
    (make_run(tmp_path / "a", "p0", "balanced", 0) / "result.json").unlink()
    with pytest.raises(ValueError, match="none of the 1 runs has a result"):
        tables.collect([tmp_path])


def test_two_units_of_one_measure_are_refused(tmp_path):
    make_run(tmp_path / "a", "p0", "balanced", 0)
    other = make_run(tmp_path / "b", "p1", "balanced", 0)
    result = artifacts.read_json(other / "result.json")
    for arm in result["arms"].values():
        if "misalignment" in arm["measures"]:
            arm["measures"]["misalignment"]["unit"] = "cm"
    artifacts.write_json(other / "result.json", result)
    with pytest.raises(ValueError, match=r"misalignment is in cm .*elsewhere in mm"):
        tables.collect([tmp_path]).measures()


# -- what is said ----------------------------------------------------------------------------------
def test_the_cross_matrix_is_the_median_change_within_each_run(found):
    table = tables.matrix(found, "stock")
    for name, (bone, off) in EFFECT.items():
        value, count = table[name]["yielded_bone"]
        assert count == 14 and value == pytest.approx(100 * (bone / 2 - 1), abs=1.0)
        assert table[name]["misalignment"][0] == pytest.approx(100 * (off - 1), abs=2.0)


def test_the_front_holds_what_nothing_dominates():
    points = [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), None, (4.0, 1.0), (1.0, 6.0), (2.0, 3.0)]
    assert tables.front(points, ("lower", "lower")) == [0, 1, 4, 6]  # two alike are both on it
    assert tables.front(points, ("lower", "higher")) == [5]
    assert tables.front(points, ("higher", "higher")) == [2, 4, 5]


def test_the_statistics_find_the_effect_that_was_put_in(found):
    rows = {r["measure"]: r for r in tables.statistics(found, 0)}
    bone, off, graft = (rows[m] for m in ("yielded_bone", "misalignment", "graft_volume"))
    assert bone["patients"] == 7 and bone["seeds_first"] == bone["seeds_second"] == 14
    assert bone["change_percent"] == pytest.approx(-40.0, abs=1.5)
    assert bone["low_percent"] < -40.0 + 1.5 and bone["high_percent"] > -40.0 - 1.5
    assert bone["cluster_high_percent"] - bone["cluster_low_percent"] < 5.0
    assert bone["rank_biserial"] == -1.0 and off["rank_biserial"] == 1.0
    # seven patients that all change alike: 2/2⁷, three tests
    assert bone["p"] == pytest.approx(2 / 2**7) and bone["p_holm"] == pytest.approx(3 * 2 / 2**7)
    assert graft["change_percent"] < 0.0


def test_too_few_patients_get_no_p_value():
    logs = [[0.0, 0.1], [0.2], [0.1]]
    row = paired.compare(logs, [[x + math.log(2.0) for x in p] for p in logs], 0)
    assert (
        row["change_percent"] == pytest.approx(100.0)
        and row["p"] is None
        and row["low_percent"] is None
    )


def test_hodges_lehmann_rank_biserial_and_holm_by_hand():
    d = np.array([1.0, 2.0, -4.0])
    # pairwise means: 1, 1.5, -1.5, 2, -1, -4: the middle two are -1 and 1
    assert paired.hodges_lehmann(d) == 0.0
    assert paired.rank_biserial(d) == pytest.approx((1 + 2 - 3) / 6)
    assert paired.rank_biserial(np.zeros(3)) is None
    rows = paired.holm([{"p": 0.01}, {"p": 0.04}, {"p": None}, {"p": 0.03}])
    assert [r["p_holm"] for r in rows] == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        None,
        pytest.approx(0.06),
    ]


def test_the_interval_covers_as_often_as_it_says():
    """95 % intervals of the mean of 12 patients: 88 to 99 of 100 hold the truth (a binomial's 3
    σ, and the bootstrap's known optimism)."""
    random, hit = np.random.default_rng(5), 0
    for n in range(100):
        d = random.normal(0.3, 0.1, 12)
        row = paired.compare([[0.0]] * 12, [[x] for x in d], n)
        hit += math.log1p(row["low_percent"] / 100) <= 0.3 <= math.log1p(row["high_percent"] / 100)
    assert 85 <= hit <= 99


# -- what is written -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def page(found, study):
    config = CompareConfig(runs=(str(study),), out=str(study.parent / "page"), pictures="none")
    tables.write_tables(found, Path(config.out), config.seed)
    return write(found, config)


def test_csv_and_parquet_hold_every_value(page, found):
    with duckdb.connect() as db:
        sizes = {
            db.execute(f"SELECT count(*) FROM '{page.parent}/measures.{kind}'").fetchone()
            for kind in ("csv", "parquet")
        }
        assert sizes == {(28 * (6 * 3 + 2),)}  # seven arms, the intact one without graft
        query = (
            f"SELECT value FROM '{page.parent}/measures.parquet' WHERE run = ? AND arm ="
            " 'optimised' AND measure = 'yielded_bone'"
        )
        for run in found.runs[:3]:
            assert db.execute(query, [str(run.folder)]).fetchone()[0] == run.value(
                "optimised", "yielded_bone"
            )
        nothing = (
            f"SELECT count(*) FROM '{page.parent}/measures.parquet' WHERE arm ="
            " 'conforming_central' AND value IS NULL"
        )
        assert db.execute(nothing).fetchone()[0] == 28 * 3


class Links(html.parser.HTMLParser):
    found: list[str]

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.found += [
            v
            for k, v in given.items()
            if k in ("href", "src") and v and not v.startswith(("data:", "#"))
        ]


def test_the_summary_says_what_was_put_in(found):
    """The set that minimises bone alone has 40 % less of it and half as much misalignment again,
    in every patient."""
    text = summary.markdown(found, 0)
    assert text.startswith("28 runs: 7 patients (p0 L4-L5")
    cross = next(line for line in text.splitlines() if line.startswith("| bone_only |"))
    assert float(cross.split("|")[2].strip(" *%")) == pytest.approx(
        -70.0, abs=1.0
    )  # half of the rival's by construction, times 0.6
    paired_row = next(
        line
        for line in text.splitlines()
        if line.startswith("| bone_only against balanced | yielded bone |")
    )
    assert "| 7 (14, 14) | -4" in paired_row and paired_row.rstrip(" |").endswith("-1.00")
    assert "yielded bone, against the conforming arm, patient by patient" in text


def test_links_are_relative_and_lead_to_the_runs(page):
    parser = Links()
    parser.found = []
    text = page.read_text()
    parser.feed(text[: text.index("<script>")])
    assert len(parser.found) == 28 and all(
        not link.startswith(("/", "http", "file")) for link in parser.found
    )
    assert all((page.parent / link).is_file() for link in parser.found)


def test_the_page_is_the_same_twice(page, found, study):
    before = page.read_bytes()
    write(found, CompareConfig(runs=(str(study),), out=str(page.parent), pictures="none"))
    assert page.read_bytes() == before


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_the_page_works_in_a_browser_without_a_network(page):
    line = [
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--use-angle=swiftshader",
        "--virtual-time-budget=10000",
        "--enable-logging=stderr",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert 'data-ready="yes"' in done.stdout and 'data-view="ready"' in done.stdout, done.stderr[
        -2000:
    ]
    assert "Uncaught" not in done.stderr
    assert (
        done.stdout.count('class="main-svg"') >= 3
        and "yielded bone, of the stock arm of the same run" in done.stdout
    )


def test_runs_share_the_shapes_that_are_the_same(found):
    """7 patients × 2 vertebrae, 2 optimised devices (one a seed) and one stock device; small,
    and closed enough to look at."""
    data = view.collected(found)
    assert len(data["runs"]) == 28 and len(data["shapes"]) == 14 + 3
    assert {tuple(sorted(r["parts"])) for r in data["runs"]} == {("optimised", "stock")}
    part = data["shapes"][data["runs"][0]["parts"]["optimised"]]
    assert len(part["f"]) == pytest.approx(3 * view.DEVICE_FACES, rel=0.02)
    assert np.linalg.norm(np.reshape(part["p"], (-1, 3)), axis=1) == pytest.approx(
        4.0 + found.runs[0].seed, abs=0.05
    )


def test_a_name_from_outside_cannot_become_markup(tmp_path):
    evil = '<script>alert(1)</script> & "x"'
    folder = make_run(tmp_path / "a", "p0", "balanced", 0, choices={"objectives": evil})
    found = tables.collect([folder])
    config = CompareConfig(
        runs=(str(folder),), out=str(tmp_path / "page"), title=evil, pictures="none"
    )
    page = Reading(write(found, config).read_text())
    assert len(page.scripts) == 3  # Plotly, the plots, the devices: what follows is in none of them
    assert not any(script.startswith("alert") for script in page.scripts)
    assert page.words.count(evil) >= 4  # title, heading, table of runs, cross table
    assert all(page.ids.count(name) == 1 for name in page.references)
