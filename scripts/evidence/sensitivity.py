"""What the measures owe to bone, loads and the surgeon's hand: every arm of a designed run, solved
again with one thing changed.

    bone modulus   E of both vertebrae × 0.7 and × 1.3 (yield is a strain and stays; intact
                   reference with the same bone)
    loads          every wrench × 0.8 and × 1.2. Bonded and linear, so the response is rescaled,
                   which is exact:
                   u, ε, σ, reactions ∝ s;  strain energy density, fᵀu ∝ s²
    position       device moved by ±1 mm (medio-lateral, antero-posterior), turned by ±3° (about the
                   cranio-caudal axis, about the medio-lateral one) about the middle of its bounding
                   box, vertebrae as they were; meshed and solved anew. Where it reaches into bone,
                   bone gives way (as prepared); what it leaves open is disc remnant
    another mesh   the starting lattice 3 % finer: what a new mesh alone changes. Smaller changes of
                   moved devices say nothing

An arm that cannot be meshed or solved there has a status and no number. Resumable: rows are kept as
they come. Segment axes: x to the left, y posterior, z cranial (engine/types.py).
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from engine import artifacts
from engine.types import Design, Response, Surface, VoxelField, rigid
from fem.verify import Check, Reference
from scripts.console.markdown import table
from scripts.run import check, config, folder, parts
from scripts.run.measures import measures_of
from scripts.run.opened import Opened, open_designed, require_designs

log = logging.getLogger("spinefit")
ARMS = ("stock", "conforming", "optimised")
NOMINAL = "nominal"
#: Share of tetrahedra more or fewer that tells a retried mesh.
RETRIED = 0.25


@dataclass(frozen=True)
class Variation:
    """One thing changed. shift_mm along x, y, z; turn_deg: rotation vector; lattice: factor on
    the mesh's starting lattice."""

    name: str
    kind: str
    bone_factor: float = 1.0
    load_factor: float = 1.0
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lattice: float = 1.0

    def solved(self) -> Variation:
        """What has to be solved for it: loads are rescaled afterwards."""
        return replace(self, name="", kind="", load_factor=1.0)

    def motion(self) -> np.ndarray:
        """[4, 4] about the device's middle."""
        out = np.eye(4)
        out[:3, :3] = Rotation.from_rotvec(self.turn_deg, degrees=True).as_matrix()
        out[:3, 3] = self.shift_mm
        return out


VARIATIONS = (
    Variation(NOMINAL, NOMINAL),
    Variation("loads −20 %", "loads", load_factor=0.8),
    Variation("loads +20 %", "loads", load_factor=1.2),
    Variation("1 mm to the left", "position", shift_mm=(1.0, 0.0, 0.0)),
    Variation("1 mm to the right", "position", shift_mm=(-1.0, 0.0, 0.0)),
    Variation("1 mm anterior", "position", shift_mm=(0.0, -1.0, 0.0)),
    Variation("1 mm posterior", "position", shift_mm=(0.0, 1.0, 0.0)),
    Variation("turned 3° to the left", "position", turn_deg=(0.0, 0.0, 3.0)),
    Variation("turned 3° to the right", "position", turn_deg=(0.0, 0.0, -3.0)),
    Variation("tilted 3° anteriorly", "position", turn_deg=(3.0, 0.0, 0.0)),
    Variation("tilted 3° posteriorly", "position", turn_deg=(-3.0, 0.0, 0.0)),
    Variation("another mesh", "mesh", lattice=0.97),
    Variation("bone modulus −30 %", "bone", bone_factor=0.7),
    Variation("bone modulus +30 %", "bone", bone_factor=1.3),
)


# -- one variation ---------------------------------------------------------------------------------
def moved(design: Design, surface: Surface, motion: np.ndarray) -> tuple[Design, Surface]:
    """The device with its exported surface and all its fields, moved by `motion` [4, 4] about
    the middle of its bounding box."""
    middle = 0.5 * (surface.points_mm.min(0) + surface.points_mm.max(0))
    about = motion.copy()
    about[:3, 3] = middle + motion[:3, 3] - motion[:3, :3] @ middle
    fields = (design.implant, design.window, design.relative_density)
    implant, window, density = (
        None if field is None else moved_field(field, about) for field in fields
    )
    points_mm = rigid(about, np.asarray(surface.points_mm, float))
    return replace(design, implant=implant, window=window, relative_density=density), Surface(
        points_mm, surface.faces
    )


def moved_field(field: VoxelField, motion: np.ndarray) -> VoxelField:
    """f(R⁻¹(x − t)) on a grid parallel to the axes that holds all of the moved one; a shift
    alone moves the origin (exact)."""
    if np.array_equal(motion[:3, :3], np.eye(3)):
        return replace(field, origin_mm=field.origin_mm + motion[:3, 3])
    h = field.spacing_mm
    extent = h * (np.array(field.values.shape) - 1)
    corners = rigid(
        motion,
        field.origin_mm
        + extent * np.stack(np.meshgrid(*[[0.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3),
    )
    low = corners.min(0)
    size = np.ceil((corners.max(0) - low) / h - 1e-9).astype(int) + 1
    grid = VoxelField(np.zeros(size), low, h)
    values = field.sample(rigid(np.linalg.inv(motion), grid.points()))
    return replace(grid, values=values.astype(np.asarray(field.values).dtype))


def rescaled(response: Response, factor: float) -> Response:
    """The response to `factor` times every load; exact, as bonded solves are linear."""
    linear: dict[str, Any] = {
        n: factor * np.asarray(getattr(response, n))
        for n in ("strain", "stress", "motion", "reaction", "applied")
    }
    energy = response.reference_sed
    return replace(
        response,
        **linear,
        compliance=factor**2 * np.asarray(response.compliance),
        reference_sed=None if energy is None else factor**2 * np.asarray(energy),
    )


# -- the study -------------------------------------------------------------------------------------
def vary(
    run: Path,
    out: Path,
    processes: int = 2,
    variations: Sequence[Variation] = VARIATIONS,
    fem: config.FemConfig | None = None,
) -> dict[str, Any]:
    """The record (`summary`), by the run's own settings of the check or by `fem`. Rows are kept
    in <out>/rows.jsonl; delete it to solve what failed once more. Raises ValueError for a folder
    without the three arms."""
    opened = open_designed(run, fem)
    require_designs(run, (*ARMS, "intact"))
    record = out / "rows.jsonl"
    same = opened.config.identity(), folder.digest(opened.segment), opened.mesh, opened.fem
    of = {v.name: artifacts.digest((*same, v)) for v in variations}
    rows = (
        [r for r in artifacts.read_jsonl(record) if r["of"] == of.get(r["variation"])]
        if record.exists()
        else []
    )
    done = {(r["arm"], r["variation"]) for r in rows}

    def solve(arm: str, v: Variation) -> Check:
        design, surface = parts.load_design(run / "designs" / arm)
        name = arm
        if v.solved() != replace(VARIATIONS[0].solved(), bone_factor=v.bone_factor):
            name = f"{arm}_{artifacts.digest(replace(v.solved(), bone_factor=1.0))[:12]}"
        if surface is not None:
            design, surface = moved(design, surface, v.motion())
        if (
            name == arm
            and (held := run / "fem" / arm / "mesh.npz").exists()
            and not (out / arm / "mesh.npz").exists()
        ):
            (out / arm).mkdir(parents=True, exist_ok=True)
            shutil.copy(held, out / arm / "mesh.npz")  # taken where its content fits, fem/verify.py
        mesh = opened.mesh
        names = ("background_mm", "background_axial_mm", "background_far_mm")
        mesh = (
            replace(mesh, **{n: v.lattice * getattr(mesh, n) for n in names})
            if v.lattice != 1.0
            else mesh
        )
        boundary = opened.study.boundary_of(opened.families[arm])
        fem = replace(opened.fem, bone_factor=v.bone_factor * opened.fem.bone_factor)
        return check.alone(
            opened.segment, design, surface, boundary, opened.crop_mm, mesh, fem, out / name
        )

    with check.one_thread_each(), ThreadPoolExecutor(processes) as pool:
        for bone in dict.fromkeys(v.bone_factor for v in variations):
            jobs = dict.fromkeys(
                (arm, v.solved())
                for v in variations
                for arm in ARMS
                if v.bone_factor == bone and (arm, v.name) not in done
            )
            if not jobs:
                continue
            response = solve("intact", Variation("", "", bone)).response
            intact = None if response is None else Reference.of(response)
            if intact is None:
                log.warning(
                    "the intact segment has no solution at bone × %g: no stress shielding there",
                    bone,
                )

            def new_rows(
                job: tuple[str, Variation], intact: Reference | None = intact
            ) -> list[dict[str, Any]]:
                (arm, solved), clock = job, time.perf_counter()
                found = check.referenced(solve(arm, solved), arm, intact)
                mine = [v for v in variations if v.solved() == solved and (arm, v.name) not in done]
                several = [_row(opened, arm, v, found) for v in mine]
                return [
                    r | {"seconds": (time.perf_counter() - clock) / len(several)} for r in several
                ]

            for several in pool.map(new_rows, jobs):
                for row in several:
                    artifacts.append_jsonl(record, {"of": of[row["variation"]], **row})
                    rows.append(row)
                    log.info(
                        "%s, %s: %s %s", row["arm"], row["variation"], row["status"], row["text"]
                    )
    return summary(rows, variations)


def _row(opened: Opened, arm: str, v: Variation, found: Check) -> dict[str, Any]:
    status, cells = found.status, found.mesh.get("tetrahedra")
    head = {
        "arm": arm,
        "variation": v.name,
        "status": status.code,
        "text": status.text,
        "tetrahedra": cells,
    }
    if found.response is None:
        return head | {"measures": {}}
    return head | {
        "measures": measures_of(opened.study, arm, rescaled(found.response, v.load_factor))
    }


# -- what the rows say -----------------------------------------------------------------------------
def summary(
    rows: Sequence[dict[str, Any]], variations: Sequence[Variation] = VARIATIONS
) -> dict[str, Any]:
    """Record of the study: `rows` (measure values and change from nominal in per cent, null where
    there is none), `measures` (unit, better, description), `seconds` of all arms' meshes and
    solves, `notes` on meshes that were retried finer (not to be compared with the others), and
    `ranking` per measure whose direction means something:

        nominal        arms, best first; gap_percent between each and the next
        failed         variations (all arms changed alike) in which that order is another;
                       incomplete: an arm has no result there
        first_failed   those in which the first arm is not the best any more
        alone_failed   positions in which the first arm, moved alone, falls behind the best of the
                       others where they were planned
        mesh_percent   largest change by another mesh
    """
    at = {(r["arm"], r["variation"]): r for r in rows}
    known: dict[str, dict[str, Any]] = {}
    for r in rows:
        for name, m in r["measures"].items():
            known.setdefault(name, {k: m[k] for k in ("unit", "better", "description")})

    def value(arm: str, variation: str, measure: str) -> float | None:
        row = at.get((arm, variation))
        return (
            None
            if row is None or measure not in row["measures"]
            else float(row["measures"][measure]["value"])
        )

    def change(arm: str, variation: str, measure: str) -> float | None:
        now, before = value(arm, variation, measure), value(arm, NOMINAL, measure)
        return (
            None
            if now is None or before is None or abs(before) < 1e-12
            else 100.0 * (now / before - 1.0)
        )

    every = [
        {
            "variation": v.name,
            "kind": v.kind,
            "arm": arm,
            "status": {"code": at[arm, v.name]["status"], "text": at[arm, v.name]["text"]},
            "tetrahedra": at[arm, v.name]["tetrahedra"],
            "value": {m: value(arm, v.name, m) for m in known},
            "change_percent": {m: change(arm, v.name, m) for m in known},
        }
        for v in variations
        for arm in ARMS
        if (arm, v.name) in at
    ]
    ranking = [
        row
        for m, a in known.items()
        if a["better"] != "neither" and (row := _ranking(m, a["better"], variations, value, change))
    ]
    notes = []
    for r in every:
        usual = at[r["arm"], NOMINAL]["tetrahedra"] if (r["arm"], NOMINAL) in at else None
        if usual and r["tetrahedra"] and abs(r["tetrahedra"] / usual - 1.0) > RETRIED:
            notes.append(
                f"{r['arm']}, {r['variation']}: {r['tetrahedra']} tetrahedra where the nominal mesh"
                f" has {usual} (retried finer): the change is partly the mesh's"
            )
    seconds = sum(r["seconds"] for r in rows)
    return {
        "seconds": seconds,
        "notes": notes,
        "arms": list(ARMS),
        "measures": known,
        "rows": every,
        "ranking": ranking,
    }


#: (arm, variation, measure) → number, None where there is none.
Lookup = Callable[[str, str, str], float | None]


def _ranking(
    measure: str, better: str, variations: Sequence[Variation], value: Lookup, change: Lookup
) -> dict[str, Any] | None:
    """A row of `summary`'s ranking; None where an arm has no nominal value."""
    sign = 1.0 if better == "lower" else -1.0

    def costs(variation: str) -> dict[str, float] | None:
        """Lower is better; None where an arm has no number."""
        found = {arm: value(arm, variation, measure) for arm in ARMS}
        return (
            None
            if None in found.values()
            else {arm: sign * v for arm, v in found.items() if v is not None}
        )

    nominal = costs(NOMINAL)
    if nominal is None:
        return None
    changed = [v.name for v in variations if v.name != NOMINAL]
    order = sorted(nominal, key=nominal.__getitem__)
    first, second = order[:2]
    found = {name: of for name in changed if (of := costs(name)) is not None}
    orders = {name: sorted(c, key=c.__getitem__) for name, c in found.items()}
    alone = {
        v.name: own
        for v in variations
        if v.kind == "position" and (own := value(first, v.name, measure)) is not None
    }
    meshes = [
        abs(c)
        for v in variations
        if v.kind == "mesh"
        for arm in ARMS
        if (c := change(arm, v.name, measure)) is not None
    ]
    return {
        "measure": measure,
        "nominal": order,
        "gap_percent": [
            100.0 * abs(nominal[b] / nominal[a] - 1.0) if nominal[a] else None
            for a, b in pairwise(order)
        ],
        "rows": len(found),
        "failed": [n for n, o in orders.items() if o != order],
        "first_failed": [n for n, o in orders.items() if o[0] != first],
        "alone_failed": [n for n, own in alone.items() if sign * own > nominal[second]],
        "incomplete": [n for n in changed if n not in found],
        "mesh_percent": max(meshes, default=None),
    }


def markdown(record: dict[str, Any]) -> str:
    """Changes from nominal in per cent, stock / conforming / optimised, and where the order of
    the arms is another."""
    measures, rows = record["measures"], record["rows"]
    of = {(r["arm"], r["variation"]): r for r in rows}
    names = list(dict.fromkeys(r["variation"] for r in rows))

    def cells(variation: str, measure: str) -> str:
        return " / ".join(_cell(of.get((arm, variation)), measure) for arm in record["arms"])

    head = ("", *(f"{m.replace('_', ' ')}, {a['unit']}" for m, a in measures.items()))
    text = "Changes in per cent, " + " / ".join(record["arms"]) + " (first line: values).\n\n"
    text += table(head, [(name, *(cells(name, m) for m in measures)) for name in names])
    text += "\n" + table(
        (
            "measure",
            "order, best first (gap to the one before)",
            "order holds in",
            "another order in",
            "by another mesh",
        ),
        [
            (
                r["measure"].replace("_", " "),
                _order(r),
                f"{r['rows'] - len(r['failed'])} of {r['rows']}",
                "; ".join(
                    n + ("" if n in r["first_failed"] else " (best arm the same)")
                    for n in r["failed"]
                )
                or "none",
                "—" if r["mesh_percent"] is None else f"{r['mesh_percent']:.1f} %",
            )
            for r in record["ranking"]
        ],
    )
    alone = [
        f"- {r['measure'].replace('_', ' ')}: {r['nominal'][0]}, moved alone, is behind a rival in"
        " place: " + "; ".join(r["alone_failed"])
        for r in record["ranking"]
        if r["alone_failed"]
    ]
    alone += [f"- {note}" for note in record["notes"]]
    failed = [
        f"- {r['arm']}, {r['variation']}: no result: {r['status']['text']}"
        for r in rows
        if r["status"]["code"] != "ok"
    ]
    return text + "".join(f"\n{line}" for line in (*alone, *failed)) + "\n"


def _cell(row: dict[str, Any] | None, measure: str) -> str:
    if row is None or row["value"][measure] is None:
        return "no result"
    change = row["change_percent"][measure]
    return (
        f"{row['value'][measure]:.4g}"
        if row["variation"] == NOMINAL
        else "—"
        if change is None
        else f"{change:+.1f}"
    )


def _order(row: dict[str, Any]) -> str:
    first, *rest = row["nominal"]
    shown = first
    for arm, gap in zip(rest, row["gap_percent"], strict=True):
        unresolved = (
            ", below the mesh's"
            if gap is not None and row["mesh_percent"] is not None and gap < row["mesh_percent"]
            else ""
        )
        shown += f", {arm} ({'—' if gap is None else f'{gap:.1f} %'}{unresolved})"
    return shown


def draw(record: dict[str, Any], path: Path) -> Path | None:
    """Changes by variation and arm, one panel a measure that has a direction; crosses: another
    order of the arms. None: no row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in record["rows"] if r["variation"] != NOMINAL]
    names = list(dict.fromkeys(r["variation"] for r in rows))
    ranking = {r["measure"]: r for r in record["ranking"]}
    if not names or not ranking:
        return None
    columns = min(4, len(ranking))
    lines = -(-len(ranking) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(3.6 * columns + 1.2, (0.3 * len(names) + 1.2) * lines),
        squeeze=False,
        sharey=True,
    )
    for axis, (measure, rank) in zip(axes.flat, ranking.items(), strict=False):
        for k, (arm, mark) in enumerate(zip(record["arms"], "so^", strict=True)):
            points = [
                (r["change_percent"][measure], names.index(r["variation"]) + 0.22 * (k - 1))
                for r in rows
                if r["arm"] == arm and r["change_percent"][measure] is not None
            ]
            if points:
                axis.plot(*np.array(points).T, mark, label=arm, ms=5, alpha=0.85)
        for name in rank["failed"]:
            axis.axhspan(names.index(name) - 0.5, names.index(name) + 0.5, color="0.88", zorder=0)
        axis.axvline(0.0, color="0.5", lw=1)
        axis.set(
            title=measure.replace("_", " "), yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5)
        )
        axis.set_yticklabels(names)
        axis.grid(axis="x", color="0.9")
    for axis in list(axes.flat)[len(ranking) :]:
        axis.set_visible(False)
    axes[0][0].legend(fontsize=8)
    figure.supxlabel(
        "change from nominal, %  (grey: the arms are in another order there)", fontsize=10
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
