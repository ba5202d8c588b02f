"""One self-contained HTML page and result.json for a run: what was asked, what came out, how far to
trust it.

The page needs no network, carries its pictures, reads well with a screen reader and on paper; only
its view in three dimensions needs a script, which is in the page. Every number comes from the
validated result (fem/report/result.py) and, in the credibility section, from the studies in the run
folder (fem/report/credibility.py); nothing is computed here but differences and shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from engine import artifacts
from engine.page import (
    Picture,
    bullets,
    document,
    image,
    number,
    pairs,
    percent,
    pictures_grid,
    table,
    text,
)
from engine.types import LPS_FRAME, SEGMENT_FRAME
from fem.report.credibility import (
    arm_name,
    arm_order,
    credibility,
    mesh_errors,
    status_cell,
    unit_cell,
)
from fem.report.plots import convergence
from fem.report.result import ARMS, Alignment, Arm, Result, Status, reached, validate
from fem.report.scene import viewer_section

#: On every page, whatever the run says of itself.
LIMITATIONS = (
    "Linear elasticity, small strains; tissue yields by a strain criterion but does not soften.",
    "Interfaces are bonded unless a figure says otherwise.",
    (
        "One geometry, one set of material laws: no spread over patients; over bone, loads and"
        " placement where a sensitivity study is shown."
    ),
    (
        "Published measurement noise of segmental angles is 2-4°: smaller differences between arms"
        " cannot be measured."
    ),
)


# -- small pieces ----------------------------------------------------------------------------------
def _tenths(value: float | None) -> str:
    """Degrees and millimetres of an alignment: a tenth is finer than anyone measures."""
    return "—" if value is None else f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")


def _dead(arm: Arm) -> bool:
    return arm.status.code in ("failed", "not_run")


# -- sections --------------------------------------------------------------------------------------
def _short(result: Result) -> str:
    rows = []
    for row in reached(result):
        floor = (
            f"{number(row.floor)} ({escape((row.floor_arm or '').replace('_', ' '))})"
            if row.floor_arm
            else "—"
        )
        change = None if row.reduction is None else -row.reduction
        share = "—" if row.share_of_reachable is None else f"{100 * row.share_of_reachable:.0f} %"
        name = escape(row.measure.replace("_", " ")) + unit_cell(row.unit)
        rows.append((name, number(row.stock), number(row.optimised), percent(change), floor, share))
    if not rows:
        return (
            "<p>Stock and optimised device cannot be compared: see the status of each arm"
            " below.</p>"
        )
    head = ("measure (lower is better)", "stock", "optimised", "change", "floor", "reached share")
    caption = (
        "Reached share = (stock − optimised)/(stock − floor): how much of what any implant could"
        " gain was gained. The floor is the lower of the intact segment and a rigid full-endplate"
        " cage."
    )
    return table(caption, head, rows)


def _asked(result: Result) -> str:
    flat = {k: v for k, v in result.asked.items() if not isinstance(v, dict)}
    groups = {k: v for k, v in result.asked.items() if isinstance(v, dict)}
    parts = [pairs("General", flat)]
    for name, group in groups.items():
        inner = {
            k: v if isinstance(v, bool | int | float | str) or v is None else str(v)
            for k, v in group.items()
        }
        parts.append(
            f"<details><summary>{escape(name)}</summary>{pairs(escape(name), inner)}</details>"
        )
    return "".join(parts)


def _alignment(result: Result) -> str:
    part = result.alignment
    if part is None:
        return "<p>Alignment was not part of this run.</p>"
    arms = [arm for arm in arm_order(result) if result.arms[arm].alignment is not None]
    rows = []
    for name in Alignment.model_fields:
        plan = getattr(part.planned, name)
        cells = [_label(name), _tenths(getattr(part.measured, name)), _tenths(plan)]
        for arm in arms:
            value = getattr(result.arms[arm].alignment, name)
            both = value is not None and plan is not None
            off = (
                f' <span class="unit">({value - plan:+.1f})</span>'.replace("-", "−")
                if both
                else ""
            )
            cells.append(_tenths(value) + off)
        rows.append(cells)
    caption = (
        f"Achieved under {escape(part.load_case)} load; in brackets the difference from the plan."
    )
    head = ("", "measured", "planned", *(arm_name(arm, result) for arm in arms))
    source = (
        f"<p>Plan: {escape(part.rule)} {escape(part.source)}</p>"
        if part.rule or part.source
        else ""
    )
    return source + table(caption, head, rows) + bullets(part.notes)


def _label(name: str) -> str:
    stem, _, unit = name.rpartition("_")
    return (
        f"{escape(stem.replace('_', ' '))} <span"
        f' class="unit">{"°" if unit == "deg" else unit}</span>'
    )


def _arms(result: Result, folder: Path) -> str:
    order, errors = arm_order(result), mesh_errors(result, folder)
    names = list(dict.fromkeys(name for arm in order for name in result.arms[arm].measures))
    rows: list[list[str]] = [
        ["status", *(status_cell(Status(code=result.arms[arm].status.code)) for arm in order)]
    ]
    details = []
    for name in names:
        measures = {arm: result.arms[arm].measures.get(name) for arm in order}
        first = next(m for m in measures.values() if m is not None)
        label = escape(name.replace("_", " ")) + unit_cell(first.unit)
        rivals = [
            m.value
            for arm, m in measures.items()
            if arm in ARMS and m is not None and m.value is not None
        ]
        best = (
            None
            if len(set(rivals)) < 2 or first.better == "neither"
            else (min if first.better == "lower" else max)(rivals)
        )
        rows.append(
            [
                label,
                *(
                    _cell(
                        result.arms[arm], measures[arm], arm in ARMS, best, errors.get((arm, name))
                    )
                    for arm in order
                ),
            ]
        )
        loads = list(
            dict.fromkeys(load for m in measures.values() if m is not None for load in m.per_load)
        )
        per_load = table(
            escape(first.description),
            ("load case", *(arm_name(arm, result) for arm in order)),
            [
                [
                    escape(load),
                    *(
                        number(m.per_load.get(load)) if (m := measures[arm]) else "—"
                        for arm in order
                    ),
                ]
                for load in loads
            ],
        )
        if loads:
            details.append(f"<details><summary>{label} per load case</summary>{per_load}</details>")
        elif first.description:
            details.append(f'<p class="quiet">{label}: {escape(first.description)}</p>')
    head = ("measure", *(arm_name(arm, result) for arm in order))
    notes = [f"{arm.replace('_', ' ')}: {note}" for arm in order for note in result.arms[arm].notes]
    caption = (
        "SfePy on the exported surfaces. Bold: best of the devices. “no result”: see the status"
        " further down."
    )
    if errors:
        caption += " ±: error of the mesh (Credibility, mesh convergence)."
    return table(caption, head, rows) + bullets(notes) + "".join(details)


def _cell(
    arm: Arm, measure: Any, rival: bool, best: float | None, error_percent: float | None = None
) -> str:
    if _dead(arm):
        return '<td class="none">no result</td>'
    if measure is None or measure.value is None:
        return '<td class="none">—</td>'
    mark = ' class="best"' if rival and best is not None and measure.value == best else ""
    error = "" if error_percent is None else f' <span class="unit">± {error_percent:.1f} %</span>'
    return f"<td{mark}>{number(measure.value)}{error}</td>"


def _contact(result: Result) -> str:
    """What changes when the implant only presses: every measure bonded and with contact, and how
    much of the face touches."""
    arms = [arm for arm in arm_order(result) if result.arms[arm].contact]
    if not arms:
        return (
            "<p>Not asked for: implants are bonded to what they touch. With"
            " <code>fem.contact=[0,0.5]</code> they also only press.</p>"
        )
    parts = []
    for friction in sorted({c.friction for arm in arms for c in result.arms[arm].contact}):
        rows, touching = [], []
        found = {
            arm: next((c for c in result.arms[arm].contact if c.friction == friction), None)
            for arm in arms
        }
        for name in dict.fromkeys(n for c in found.values() if c for n in c.measures):
            cells = []
            unit = ""
            for arm in arms:
                c, before = found[arm], result.arms[arm].measures.get(name)
                if (
                    c is None
                    or before is None
                    or before.value is None
                    or name not in c.measures
                    or c.measures[name].value is None
                ):
                    cells.append("—")
                    continue
                unit = before.unit
                value = c.measures[name].value
                assert value is not None
                change = percent(value / before.value - 1.0) if abs(before.value) > 1e-9 else "—"
                cells.append(f"{number(before.value)} → {number(value)} ({change})")
            rows.append([escape(name.replace("_", " ")) + unit_cell(unit), *cells])
        for case in dict.fromkeys(n for c in found.values() if c for n in c.touching):
            cells = []
            for arm in arms:
                t = found[arm].touching.get(case) if found[arm] else None  # type: ignore[union-attr]
                cells.append(
                    f"{t['touching_percent']:.0f} %, {1000.0 * t['largest_opening_mm']:.0f} µm"
                    if t
                    else "—"
                )
            touching.append([escape(case), *cells])
        head = ("", *(arm_name(arm, result) for arm in arms))
        title = "without friction" if friction == 0.0 else f"with friction {friction:g}"
        parts.append(table(f"Bonded → contact {title}: measures over all load cases", head, rows))
        parts.append(
            table(
                f"Contact {title}: share of the implant's surface that touches, largest opening",
                head,
                touching,
            )
        )
        bad = {arm: c.status.text for arm, c in found.items() if c and c.status.code != "ok"}
        parts.append(
            bullets([f"{arm.replace('_', ' ')}, {title}: {why}" for arm, why in bad.items()])
        )
    return "".join(parts)


def lattice_section(result: Result) -> str:
    found = result.lattice
    if found is None:
        return "<p>No struts were made of the lattice's density (<code>lattice.realise</code>).</p>"
    if found["solid"]:
        return (
            "<p>The optimised part is solid: its density leaves no pore that could be printed.</p>"
        )
    low, high = found["density_range"]
    vertical, across = (1000 * g for g in found["gain_mm"])
    rows: list[Any] = [
        ("volume, mm³", number(found["exported_mm3"]), number(found["as_built_mm3"])),
        ("mass, g", number(found["exported_g"]), number(found["as_built_g"])),
        (
            "mean relative density",
            number(found["exported_mm3"] / found["outline_mm3"]),
            number(found["as_built_density"]),
        ),
    ]
    for what in ("strut", "pore"):
        for key, name in (
            ("p1_mm", "narrowest (1st percentile)"),
            ("median_mm", "median"),
            ("most_mm", "widest"),
        ):
            values = [found[state][what][key] for state in ("exported", "as_built")]
            rows.append((f"{what}, {name}, mm", *("—" if v is None else number(v) for v in values)))
    asked, target = found["asked_density"], found["target_density"]
    balls = ", ".join(f"{b['ball_mm']:g} mm: {100 * b['leaves']:.1f} %" for b in found["powder"])
    over = found["overhang"]
    lines = [
        (
            f"{found['cell']}, cell {found['cell_mm']:g} mm, in {100 * found['lattice_share']:.0f}"
            f" % of the part, built along {found['build']} (the blueprint's frame). Struts gain"
            f" {vertical:.0f} µm along and {across:.0f} µm across it [S80]: the file is thinner by"
            " that."
        ),
        (
            f"Mean density asked {asked:.3f}, after limits {target:.3f}: from {low:.2f} to"
            f" {high:.2f} can be printed, below it is raised ({100 * found['raised_share']:.1f} %"
            " of the part), above it is solid."
        ),
        (
            f"Of the places inside where a ball has room, it can leave from (as built): {balls}."
            f" Filled because powder could not leave: {found['filled_mm3']:.2f} mm³; removed"
            f" because it hung on nothing: {found['loose_mm3']:.2f} mm³."
        ),
        (
            f"Overhang below 45°: {over['area_mm2']:.0f} mm², {100 * over['share']:.1f} % of the"
            " surface (outer faces included)."
        ),
        (
            "Widths on the medial axis, a quarter of a cell and more from the part's surface, where"
            " struts are cut. The check solves the homogenised lattice, not these struts."
        ),
    ]
    return table(
        "The file against what the printer makes of it",
        ("measure", "file", "as built, predicted"),
        rows,
    ) + bullets(lines)


def _search(result: Result, folder: Path) -> str:
    found = result.optimisation
    if found is None:
        return "<p>No search was run.</p>"
    text = f"<p>Status: {status_cell(found.status)}</p>" + pairs("Figures", found.figures)
    if found.history is None:
        return text
    picture = convergence(artifacts.read_jsonl(folder / found.history))
    if picture is None:
        return text + f"<p>No iterations in <code>{escape(found.history)}</code>.</p>"
    return text + image(
        picture,
        "Convergence",
        "Objective, its terms and the constraint violation over the iterations",
    )


def _files(result: Result, folder: Path) -> str:
    rows = [
        (escape(what), text(f"<code>{escape(path)}</code>")) for what, path in result.files.items()
    ]
    for arm in arm_order(result):
        for what, path in result.arms[arm].files.items():
            rows.append(
                (f"{arm_name(arm, result)}: {escape(what)}", text(f"<code>{escape(path)}</code>"))
            )
    listed = (
        table("Relative to the run folder", ("what", "where"), rows)
        if rows
        else "<p>None listed.</p>"
    )
    return _frames(folder) + listed


def _frames(folder: Path) -> str:
    """In which frame and unit each kind of file is."""
    lines = [
        (
            f"designs/, fem/, blueprints and all pictures: {SEGMENT_FRAME}. The cranial vertebra"
            " stands at its planned pose."
        ),
        (
            "implant.glb: the same part in metres with y up, as glTF asks for (said in the file's"
            " extras)."
        ),
    ]
    if (folder / "slicer").is_dir():
        lines.insert(
            1,
            f"slicer/: {LPS_FRAME}. Load the CT in 3D Slicer, then add slicer/scene.mrml: implants,"
            " vertebrae as planned and as scanned, pedicle axes; segment_to_lps.tfm takes any"
            " other file of this folder there.",
        )
    return bullets(lines)


# -- the page --------------------------------------------------------------------------------------
def page(result: Result, folder: Path, pictures: Sequence[Picture] = ()) -> str:
    """The HTML text. Raises ValueError when a picture is missing."""
    viewer, script = viewer_section(folder, result)
    sections = [
        ("In short", _short(result)),
        ("Alignment", _alignment(result)),
        ("The arms side by side", _arms(result, folder)),
        ("In three dimensions", viewer),
        ("Pictures", pictures_grid(pictures)),
        ("The lattice as printed", lattice_section(result)),
        ("Credibility", credibility(result, folder, LIMITATIONS)),
        ("What the contact condition changes", _contact(result)),
        ("The search", _search(result, folder)),
        ("What was asked", _asked(result)),
        (
            "Time and memory",
            pairs("Wall time, s", dict(result.timings_s))
            + pairs("Memory, MB", dict(result.memory_mb)),
        ),
        (
            "Versions and inputs",
            pairs("Versions", dict(result.versions)) + pairs("SHA-256", dict(result.hashes)),
        ),
        ("Files and their frames", _files(result, folder)),
    ]
    return document(result.title, result.created, result.warnings, sections, script)


def write_report(
    folder: Path | str, result: dict[str, Any], pictures: Sequence[Picture] = ()
) -> Path:
    """Validate, then write <folder>/result.json and <folder>/report.html (atomically); returns the
    page's path.

    Raises ValueError when the result does not follow the schema or a picture is missing.
    """
    folder = Path(folder)
    checked = validate(result)
    html = page(checked, folder, pictures)
    artifacts.write_json(folder / "result.json", checked.model_dump(mode="json"))
    return artifacts.write_text(folder / "report.html", html)
