"""Many runs as tidy tables: one row per run, arm and measure; and what can be said of objective
sets against each other.

    measures   run, patient, segment, approach, objectives, seed, arm, measure, unit, better, value
               (SfePy), engine, minimised, identity
    loads      the same by load case

Every value is SfePy's on the exported surface, of every arm, also measures that no optimiser saw;
`minimised` says whether the run's own objectives held the measure. Runs without a result are kept
aside with the reason.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine import artifacts
from fem.report.result import Result
from scripts.comparison import paired
from scripts.run import standing
from scripts.run.config import ARMS, FLOORS
from scripts.run.stored import OUTCOME

log = logging.getLogger("spinefit")
COLUMNS = (
    "run",
    "patient",
    "segment",
    "approach",
    "objectives",
    "seed",
    "arm",
    "measure",
    "unit",
    "better",
    "value",
    "engine",
    "minimised",
    "identity",
)


class CompareConfig(BaseModel):
    """See conf/compare.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    runs: tuple[str, ...] = Field(min_length=1)
    out: str = "runs/compare"
    title: str = ""
    pictures: Literal["part", "anatomy_left", "anatomy_front", "footprints", "none"] = "part"
    view3d: bool = True
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Run:
    """One run with a result. patient tells planned segments apart (two phantoms are two
    patients); minimised: measures of its goals."""

    folder: Path
    name: str
    patient: str
    objectives: str
    seed: int
    config: dict[str, Any]
    minimised: frozenset[str]
    result: Result
    history: list[dict[str, Any]]
    identity: str

    def value(self, arm: str, measure: str) -> float | None:
        """SfePy's value, or None."""
        found = self.result.arms.get(arm)
        entry = None if found is None or found.status.code != "ok" else found.measures.get(measure)
        return None if entry is None else entry.value


@dataclass(frozen=True)
class Found:
    """runs in a fixed order; left_out: (run folder, why); differing: configuration key → value
    of each run, where not all are equal."""

    runs: tuple[Run, ...]
    left_out: tuple[tuple[str, str], ...]
    differing: dict[str, list[Any]]

    def measures(self) -> dict[str, tuple[str, str]]:
        """name → (unit, better), in the order of their first appearance. Raises ValueError when
        a unit is not the same in all runs."""
        known: dict[str, tuple[str, str]] = {}
        for run in self.runs:
            for arm in run.result.arms.values():
                for name, m in arm.measures.items():
                    if known.setdefault(name, (m.unit, m.better)) != (m.unit, m.better):
                        given, elsewhere = (
                            f"{m.unit} ({m.better} is better)",
                            "{} ({})".format(*known[name]),
                        )
                        raise ValueError(
                            f"{run.folder}: {name} is in {given}, elsewhere in {elsewhere}: check"
                            " the runs with one version"
                        )
        return known

    def sets(self) -> list[str]:
        """Objective sets, in the order of their first appearance."""
        return list(dict.fromkeys(r.objectives for r in self.runs))


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Every run folder that is, or lies below, one of the paths. Raises ValueError naming paths
    that hold none."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(
                f"runs: {path} is no folder; give run folders, or folders that hold some"
            )
        mine = (
            [path]
            if (path / "meta.json").exists()
            else sorted(p.parent for p in path.glob("**/meta.json"))
        )
        mine = [p for p in mine if (p / "config.yaml").exists()]
        if not mine:
            raise ValueError(
                f"runs: {path} holds no run folder (config.yaml, meta.json); give the out= of"
                " scripts/optimize.py"
            )
        found |= dict.fromkeys(mine)
    return list(found)


@dataclass(frozen=True)
class _Read:
    """What a run folder holds: config.yaml, meta.json and result.json."""

    folder: Path
    config: dict[str, Any]
    meta: dict[str, Any]
    result: Result


def collect(paths: Sequence[Path]) -> Found:
    """Read every run. Raises ValueError when none of them has a result."""
    every = [_read(folder) for folder in run_folders(paths)]
    read = [one for one in every if isinstance(one, _Read)]
    left_out = [one for one in every if not isinstance(one, _Read)]
    if not read:
        first = ": ".join(left_out[0])
        raise ValueError(
            f"none of the {len(left_out)} runs has a result: {first}; add check=true, or run"
            " scripts/verify.py"
        )
    patients = _patients([(r.meta.get("segment", ""), r.config, r.result) for r in read])
    sets = _sets(
        [(r.config["study"]["goals"], r.meta.get("choices", {}).get("objectives")) for r in read]
    )
    runs = [_run(*one) for one in zip(read, patients, sets, strict=True)]
    runs.sort(key=lambda r: (r.patient, r.objectives, r.seed, r.name))
    return Found(tuple(runs), tuple(left_out), _differing(runs))


def _read(folder: Path) -> _Read | tuple[str, str]:
    """A run with its result, or the folder and why it is left out."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    meta = artifacts.read_json(folder / "meta.json")
    if not (folder / "result.json").exists():
        state = standing.read(folder)
        why = (
            artifacts.read_json(folder / OUTCOME)["reason"]
            if state.status == "failed"
            else "the check has not been run"
        )
        return str(folder), f"{state.status}: {why or state.text}"
    try:
        result = Result(**artifacts.read_json(folder / "result.json"))
    except ValidationError as error:
        count = len(error.errors())
        return str(folder), (
            f"result.json does not follow this version's schema ({count} differences): check it"
            " again"
        )
    return _Read(folder, config, meta, result)


def _run(read: _Read, patient: str, objectives: str) -> Run:
    study = read.config["study"]
    return Run(
        read.folder,
        read.folder.name,
        patient,
        objectives,
        int(study.get("seed", 0)),
        read.config,
        frozenset(
            g["objective"] for g in study["goals"] if g.get("kind", "minimise") == "minimise"
        ),
        read.result,
        artifacts.read_jsonl(read.folder / "history.jsonl"),
        read.meta["identity"],
    )


def _patients(given: Sequence[tuple[str, dict[str, Any], Result]]) -> list[str]:
    """A name for each planned segment: patient and level, with what sets two phantoms (or two
    plans of one patient) apart: their settings, or the folder that prepare_patient.py wrote."""
    names, bundles = {}, {}
    for digest, config, result in given:
        settings = config["patient"].get("phantom") or {}
        more = (
            "".join(f" {k}={v}" for k, v in settings.items())
            if config["patient"].get("bundle") is None
            else ""
        )
        patient, level = result.asked.get("patient", "patient"), result.asked.get("segment", "")
        names[digest] = f"{patient} {level}{more}".strip()
        bundles[digest] = Path(config["patient"].get("bundle") or "").name
    shared = {name for name in names.values() if list(names.values()).count(name) > 1}
    names = {
        d: f"{name} ({bundles[d]})" if name in shared and bundles[d] else name
        for d, name in names.items()
    }
    return [_unique(digest, names) for digest, _, _ in given]


def _sets(given: Sequence[tuple[list[dict[str, Any]], str | None]]) -> list[str]:
    """A name for each set of goals: Hydra's choice, or what is minimised; numbered where one
    name stands for several sets."""
    keys = [json.dumps(goals, sort_keys=True) for goals, _ in given]
    names = {}
    for key, (goals, choice) in zip(keys, given, strict=True):
        names[key] = choice or " + ".join(
            g["objective"] for g in goals if g.get("kind", "minimise") == "minimise"
        )
    return [_unique(key, names) for key in keys]


def _unique(key: str, names: dict[str, str]) -> str:
    same = [k for k, name in names.items() if name == names[key]]
    return names[key] if len(same) == 1 else f"{names[key]} #{same.index(key) + 1}"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, part in value.items()
            for k, v in _flat(part, f"{path}.{key}" if path else key).items()
        }
    return {path: value}


def _differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    flat = [
        _flat({k: v for k, v in r.config.items() if k not in ("out", "resume", "title")})
        for r in runs
    ]
    keys = dict.fromkeys(k for f in flat for k in f)
    return {
        k: [f.get(k) for f in flat] for k in keys if len({json.dumps(f.get(k)) for f in flat}) > 1
    }


# -- tables ----------------------------------------------------------------------------------------
def rows(found: Found) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The measures and the loads table."""
    measures, loads = [], []
    for run in found.runs:
        for arm, entry in run.result.arms.items():
            engine = {a.quantity: a.engine for a in entry.agreement if a.load_case is None}
            for name, m in entry.measures.items():
                head = {
                    "run": str(run.folder),
                    "patient": run.patient,
                    "segment": run.result.asked.get("segment"),
                    "approach": run.config["study"]["settings"].get("approach"),
                    "objectives": run.objectives,
                    "seed": run.seed,
                    "arm": arm,
                    "measure": name,
                    "unit": m.unit,
                    "better": m.better,
                }
                value = m.value if entry.status.code == "ok" else None
                goal = {"minimised": name in run.minimised, "identity": run.identity}
                measures.append(head | {"value": value, "engine": engine.get(name)} | goal)
                loads += [head | {"load_case": case, "value": v} for case, v in m.per_load.items()]
    return measures, loads


def write_tables(found: Found, out: Path, seed: int) -> None:
    """measures, loads and statistics as CSV and Parquet (statistics: CSV)."""
    out.mkdir(parents=True, exist_ok=True)
    measures, loads = rows(found)
    for name, table in (
        ("measures", measures),
        ("loads", loads),
        ("statistics", statistics(found, seed)),
    ):
        if table:
            write_table(table, out, name)


def write_table(table: list[dict[str, Any]], out: Path, name: str) -> None:
    """<out>/<name>.csv and .parquet."""
    # not in `out`: DuckDB reads * ? [ ] in the path of a file as a pattern, and its grammar has no
    # other way to name one
    with tempfile.TemporaryDirectory(prefix="spinefit_tables_") as place:
        source = Path(place) / "rows.json"
        source.write_text(json.dumps(table, allow_nan=False))
        with duckdb.connect() as db:
            db.execute(
                "CREATE TABLE t AS SELECT * FROM read_json_auto(?, sample_size=-1)", [str(source)]
            )
            for kind, how in (("csv", "HEADER"), ("parquet", "FORMAT parquet")):
                made = Path(place) / f"{name}.{kind}"
                db.execute(f"COPY t TO {_sql(made)} ({how})")
                artifacts.write_bytes(out / made.name, made.read_bytes())


def _sql(path: Path) -> str:
    """A path as text of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


# -- what can be said ------------------------------------------------------------------------------
def change_percent(run: Run, measure: str, against: str) -> float | None:
    """100 (optimised/against − 1) of one run; None where there is nothing to divide."""
    ours, theirs = run.value("optimised", measure), run.value(against, measure)
    return (
        None
        if ours is None or theirs is None or abs(theirs) < 1e-9
        else 100.0 * (ours / theirs - 1.0)
    )


def matrix(found: Found, against: str) -> dict[str, dict[str, tuple[float, int]]]:
    """objective set → measure → (median change of the optimised device against an arm of the
    same run in per cent, number of runs)."""
    table: dict[str, dict[str, tuple[float, int]]] = {}
    for name in found.sets():
        table[name] = {}
        for measure in found.measures():
            changes = [
                c
                for r in found.runs
                if r.objectives == name and (c := change_percent(r, measure, against)) is not None
            ]
            if changes:
                table[name][measure] = (float(np.median(changes)), len(changes))
    return table


def statistics(found: Found, seed: int) -> list[dict[str, Any]]:
    """Every pair of objective sets, every measure: how the optimised devices differ, paired by
    patient (scripts/comparison/paired.py)."""
    sets, out = found.sets(), []
    for i, first in enumerate(sets):
        for second in sets[i + 1 :]:
            for measure in found.measures():
                values = [_by_patient(found, name, measure) for name in (first, second)]
                both = sorted(set(values[0]) & set(values[1]))
                if both:
                    logs = [[values[k][p] for p in both] for k in (0, 1)]
                    out.append(
                        {"first": first, "second": second, "measure": measure}
                        | paired.compare(logs[0], logs[1], seed)
                    )
    return paired.holm(out)


def _by_patient(found: Found, objectives: str, measure: str) -> dict[str, list[float]]:
    """patient → ln(value) of its seeds. Only positive values have a ratio."""
    out: dict[str, list[float]] = {}
    for run in found.runs:
        value = run.value("optimised", measure)
        if run.objectives == objectives and value is not None and value > 0.0:
            out.setdefault(run.patient, []).append(float(np.log(value)))
    return out


def front(points: Sequence[tuple[float, float] | None], better: tuple[str, str]) -> list[int]:
    """Indices of the points that no other dominates: none is at least as good in both measures
    and better in one. None: left out."""
    signs = np.array([-1.0 if b == "higher" else 1.0 for b in better])
    known = [(i, signs * np.asarray(p)) for i, p in enumerate(points) if p is not None]
    return [i for i, p in known if not any((q <= p).all() and (q < p).any() for _, q in known)]


def arms_of(run: Run) -> list[str]:
    return [a for a in (*ARMS, *FLOORS) if a in run.result.arms]
