"""The validations of scripts/validation.py: each gives a table, a record, and what misses its
limit."""

from __future__ import annotations

import logging
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fem.intact import materials
from fem.intact.segment import IntactSegment
from scripts.console import overrides
from scripts.console.markdown import table
from scripts.evidence import (
    code,
    contact,
    convergence,
    hyperelastic,
    intact,
    lumbar_meshes,
    motion,
    patients,
    ranking,
    sensitivity,
)
from scripts.evidence.data import data_folder
from scripts.evidence.designs import compare, scatter, statistics
from scripts.evidence.vertebra import BINNINGS, press, read_vertebra
from scripts.run import credibility, opened
from scripts.run.config import FemConfig, PatientConfig

log = logging.getLogger("spinefit")


class ValidationConfig(BaseModel):
    """Settings; conf/validation.yaml says what they mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str | None = None
    run: str | None = None
    bundles: tuple[str, ...] = ()
    designs: int = Field(default=20, ge=3, le=500)
    arms: tuple[str, ...] = ("stock", "conforming", "optimised")
    fem: FemConfig | None = None
    processes: int = Field(default=2, ge=1, le=16)
    seed: int = 0
    out: str = "runs/validation"


#: Markdown, record, and what misses its limit.
Outcome = tuple[str, Any, list[str]]


def _code(config: ValidationConfig) -> Outcome:
    rows, record, missed = [], [], []
    for order in (1, 2):
        errors = code.manufactured(order)
        record.append({"case": f"manufactured, P{order}", **errors})
        for norm, expected in (("l2", order + 1), ("energy", order)):
            found = code.orders(errors[norm])
            rows.append(
                (
                    f"manufactured solution, P{order}",
                    f"relative error, {norm} norm",
                    "order " + str(expected),
                    " / ".join(f"{e:.2e}" for e in errors[norm]),
                    f"order {found[-1]:.2f}",
                )
            )
            if found[-1] < expected - 0.2:
                missed.append(f"P{order} {norm}: order {found[-1]:.2f}, expected {expected}")
    for row in [*code.rows(), *hyperelastic.rows()]:
        record.append(asdict(row))
        rows.append(_cells(row, missed))
    return (
        table(
            (
                "case",
                "quantity",
                "target",
                "three meshes, coarse / middle / fine",
                "finest against target",
            ),
            rows,
        ),
        record,
        missed,
    )


def _cells(row: code.Row, missed: list[str]) -> tuple[str, str, str, str, str]:
    """Of a table; what is beyond its limit is added to `missed`."""
    if abs(row.error_percent) > row.limit_percent:
        missed.append(
            f"{row.case}, {row.quantity}: {row.error_percent:+.2f} %, limit {row.limit_percent:g} %"
        )
    values = " / ".join(f"{v:.5g}" for v in row.values)
    return row.case, row.quantity, f"{row.target:.5g}", values, f"{row.error_percent:+.2f} %"


def _contact(config: ValidationConfig) -> Outcome:
    missed: list[str] = []
    found = contact.rows()
    rows = [_cells(row, missed) for row in found]
    return (
        table(
            ("case", "quantity", "target", "meshes, coarse / fine", "finest against target"), rows
        ),
        [asdict(r) for r in found],
        missed,
    )


def _vertebra(config: ValidationConfig) -> Outcome:
    vertebra = read_vertebra(data_folder(config.data) / "l2_density_fe")
    rows, record, missed = [], [], []
    for binning in BINNINGS:
        got, target = press(vertebra, binning), vertebra.figure(binning)
        error = 100.0 * (got.stiffness / target - 1.0)
        record.append({"binning": binning, "target": target, **asdict(got)})
        rows.append(
            (
                binning,
                f"{target:.0f}",
                f"{got.stiffness:.1f}",
                f"{error:+.3f} %",
                f"{got.balance - 1.0:+.1e}",
                got.dofs,
            )
        )
        if abs(error) > 1.0:
            missed.append(f"L2, {binning}: {error:+.2f} %, limit 1 %")
    return (
        table(
            (
                "density read as",
                "figure N/mm",
                "SfePy N/mm",
                "error",
                "top/bottom force − 1",
                "unknowns",
            ),
            rows,
        ),
        record,
        missed,
    )


def _intact(config: ValidationConfig) -> Outcome:
    """Published ranges are reported, not limits; balance is one."""
    folder, keep = data_folder(config.data) / "lumbar_meshes", Path(config.out) / "intact"
    found = {
        which: motion.measure_motion(
            motion.balanced(lumbar_meshes.read_segment(folder, ligaments=which)), keep / which
        )
        for which in materials.LIGAMENTS
    }
    rows = []
    for p in motion.PUBLISHED:
        cells = [f"{found[w][p.quantity]:.3g}: {p.judge(found[w][p.quantity])}" for w in found]
        rows.append(
            (
                f"{p.quantity}, {p.unit}",
                f"{p.low:g}" if p.low == p.high else f"{p.low:g} to {p.high:g}",
                p.source,
                *cells,
            )
        )
    missed = [
        f"intact, {w}: forces off balance by {f['balance']:.1e}, limit 1e-6"
        for w, f in found.items()
        if f["balance"] > 1e-6
    ]
    return (
        table(("quantity", "published", "source", *(f"ligaments {w}" for w in found)), rows),
        found,
        missed,
    )


def _intact_spread(config: ValidationConfig) -> Outcome:
    found = intact.spread(data_folder(config.data) / "lumbar_meshes")
    columns = list(next(iter(found.values())))
    rows = [(name, *(f"{values[c]:.2f}" for c in columns)) for name, values in found.items()]
    return table(("changed", *columns), rows), found, []


def _intact_patients(config: ValidationConfig) -> Outcome:
    """Discs of prepared patients, on two meshes each, beside lumbar_meshes' own hexahedra."""
    if not config.bundles:
        raise ValueError(
            "bundles=[<out folders of scripts/prepare_patient.py>] is missing, e.g."
            " bundles=[cases/vhm,cases/verse004]"
        )
    segments = {
        b: opened.open_segment(PatientConfig(bundle=b)) for b in config.bundles
    }  # before the minutes
    own = lumbar_meshes.read_segment(data_folder(config.data) / "lumbar_meshes")
    own = replace(
        own, facets=None, ligaments=[lig for lig in own.ligaments if lig.name in patients.BANDS]
    )
    tests: dict[str, Callable[[], IntactSegment]] = {"lumbar_meshes' own hexahedra": lambda: own}
    for bundle, segment in segments.items():
        for words, settings in (("", patients.COARSE), (", finer", patients.FINER)):
            tests[bundle + words] = partial(patients.patient_segment, segment, settings)
    found = {}
    for name, make in tests.items():
        log.info("%s", name)
        found[name] = patients.measure_disc(
            make(), Path(config.out) / "intact_patients" / re.sub(r"[^\w.-]+", "_", name)
        )
    rows = [
        ("unknowns", "—", *(f"{f['unknowns']:.0f}" for f in found.values())),
        (
            "volume, cm³ (nucleus)",
            "—",
            *(
                f"{f['volume mm3'] / 1000:.1f} ({100 * f['nucleus share']:.0f} %)"
                for f in found.values()
            ),
        ),
    ]
    for p in patients.QUANTITIES:
        cells = [f"{f[p.quantity]:.3g}: {p.judge(f[p.quantity])}" for f in found.values()]
        rows.append((f"{p.quantity}, {p.unit}", f"{p.low:g} to {p.high:g}", *cells))
    for name in (
        "lateral bending stiffness, no posterior elements",
        "pressure of the nucleus at 1000 N, no posterior elements",
    ):
        unit = "MPa" if "pressure" in name else "N m/°"
        rows.append((f"{name}, {unit}", "—", *(f"{f[name]:.3g}" for f in found.values())))
    missed = [
        f"{n}: forces off balance by {f['balance']:.1e}, limit 1e-6"
        for n, f in found.items()
        if f["balance"] > 1e-6
    ]
    return table(("quantity", "published [S43]", *found), rows), found, missed


def _run(config: ValidationConfig, what: str) -> Path:
    if config.run is None:
        raise ValueError(f"run=<run folder> is missing: {what}")
    return Path(config.run)


def _designs(config: ValidationConfig) -> Outcome:
    """Aims: Spearman ≥ 0.95 and bias under 10 % for yielded bone."""
    run = _run(config, "the designs are drawn for its patient, loads and families")
    rows = compare(run, config.designs, config.seed, Path(config.out) / "designs", config.processes)
    found = statistics(rows)
    missed = [
        f"yielded bone: Spearman {f['spearman']:.3f} (aim 0.95), bias {f['bias_percent']:+.1f} %"
        " (aim within 10 %)"
        for f in found
        if f["quantity"] == "yielded_bone"
        and (f["spearman"] < 0.95 or abs(f["bias_percent"]) > 10.0)
    ]
    failed = [r for r in rows if r["status"] != "ok"]
    text = table(
        (
            "quantity",
            "designs",
            "range (SfePy)",
            "Spearman ρ",
            "bias: median of engine/SfePy − 1",
            "spread: half of 16th to 84th",
        ),
        [
            (
                f["quantity"].replace("_", " "),
                f["designs"],
                " to ".join(f"{v:.4g}" for v in f["range"]),
                f"{f['spearman']:.3f}",
                f"{f['bias_percent']:+.1f} %",
                f"{f['spread_percent']:.1f} %",
            )
            for f in found
        ],
    )
    if failed:
        text += (
            "\n"
            + "\n".join(
                f"- design {r['number'] + 1} ({r['kind']}) has no result: {r['text']}"
                for r in failed
            )
            + "\n"
        )
    if len(failed) < len(rows):
        text += f"\nScatter: {scatter(rows, Path(config.out) / 'designs.png')}\n"
    return text, {"designs": rows, "statistics": found}, missed


def _convergence(config: ValidationConfig) -> Outcome:
    run = _run(config, "its arms are meshed three times")
    keep = Path(config.out) / "convergence"
    found, tetrahedra, failed = convergence.converge(run, config.arms, keep, config.processes)
    text = (
        "; ".join(f"{arm}: {', '.join(map(str, n))} tetrahedra" for arm, n in tetrahedra.items())
        + "\n\n"
    )
    text += table(
        (
            "arm",
            "quantity",
            "as configured / finer / finest",
            "order",
            "limit",
            "error as configured",
        ),
        [
            (
                e.arm,
                e.quantity.replace("_", " "),
                " / ".join(f"{v:.4g}" for v in e.values),
                "—" if e.order is None else f"{e.order:.1f}",
                "—" if e.limit is None else f"{e.limit:.4g}",
                f"{e.error_percent:.1f} %",
            )
            for e in found
        ],
    )
    text += "".join(f"\n- {line}" for line in failed) + ("\n" if failed else "")
    return (
        text,
        {"tetrahedra": tetrahedra, "estimates": [asdict(e) for e in found], "failed": failed},
        failed,
    )


def _sensitivity(config: ValidationConfig) -> Outcome:
    run = _run(config, "its arms are solved again with another bone, load and position")
    record = sensitivity.vary(
        run, Path(config.out) / "sensitivity", config.processes, fem=config.fem
    )
    picture = ranking.draw(record, Path(config.out) / "sensitivity.png")
    text = ranking.markdown(record) + (f"\nPicture: {picture}\n" if picture else "")
    missing = [
        f"{r['arm']}, {r['variation']}: {r['status']['text']}"
        for r in record["rows"]
        if r["status"]["code"] != "ok"
    ]
    return text, record, missing


VALIDATIONS: dict[str, Callable[[ValidationConfig], Outcome]] = {
    "code": _code,
    "contact": _contact,
    "vertebra": _vertebra,
    "intact": _intact,
    "intact_spread": _intact_spread,
    "intact_patients": _intact_patients,
    "designs": _designs,
    "convergence": _convergence,
    "sensitivity": _sensitivity,
}
#: Validations of a designed run, which need run=<run folder>.
OF_A_RUN = ("designs", "convergence", "sensitivity")
#: Only by name: they take long, or need prepared patients.
BY_NAME = ("intact_spread", "intact_patients")


def run(what: Sequence[str], config: ValidationConfig, words: Sequence[str]) -> int:
    """Run the named validations; prints their tables, keeps their records, and returns 1 where a
    figure misses its limit, else 0.

    words: the overrides of the command line, for the record. Raises ValueError or RuntimeError for
    input that a study cannot use.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("spinefit").setLevel(logging.INFO)
    opened.set_up_jax()
    every: list[str] = []
    if {"vertebra", "intact", *BY_NAME} & set(what):
        data_folder(config.data)  # before the others' minutes
    for name in what:
        clock = time.perf_counter()
        text, record, missed = VALIDATIONS[name](config)
        peak, seconds = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
            time.perf_counter() - clock,
        )
        if (
            isinstance(record, dict) and "seconds" in record
        ):  # of a study that was interrupted: all of its parts
            seconds = record["seconds"]
        text += f"\n{seconds:.0f} s, {peak:.0f} MB at most.\n"
        of = Path(config.run) if name in OF_A_RUN and config.run else None
        head = credibility.signed(overrides.shell_line("validation.py", [name, *words]), seconds)
        credibility.keep(name, record, text, missed, Path(config.out), head, of)
        print(f"\n## {name}\n\n{text}", flush=True)
        every += missed
    for line in every:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if every else 0
