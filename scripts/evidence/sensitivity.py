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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine import artifacts
from fem.mesh.build import MeshSettings
from fem.verify import Check, Reference
from scripts.evidence.ranking import summary
from scripts.evidence.variations import ARMS, VARIATIONS, Variation, moved, rescaled
from scripts.run import check, config, folder, parts
from scripts.run.measures import measures_of
from scripts.run.opened import Opened, open_designed, require_designs

log = logging.getLogger("spinefit")


def vary(
    run: Path,
    out: Path,
    processes: int = 2,
    variations: Sequence[Variation] = VARIATIONS,
    fem: config.FemConfig | None = None,
) -> dict[str, Any]:
    """The record (`ranking.summary`), by the run's own settings of the check or by `fem`. Rows are
    kept in <out>/rows.jsonl; delete it to solve what failed once more. Raises ValueError for a
    folder without the three arms."""
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
    solver = _Solver(run, out, opened)
    with check.one_thread_each(), ThreadPoolExecutor(processes) as pool:
        for bone in dict.fromkeys(v.bone_factor for v in variations):
            solves: dict[_Solve, list[Variation]] = {}
            for v in variations:
                for arm in ARMS:
                    if v.bone_factor == bone and (arm, v.name) not in done:
                        solves.setdefault((arm, v.solved()), []).append(v)
            if not solves:
                continue
            new_rows = partial(_new_rows, solver, solver.intact(bone))
            for several in pool.map(new_rows, solves.items()):
                for row in several:
                    artifacts.append_jsonl(record, {"of": of[row["variation"]], **row})
                    rows.append(row)
                    log.info(
                        "%s, %s: %s %s", row["arm"], row["variation"], row["status"], row["text"]
                    )
    return summary(rows, variations)


#: An arm, and what has to be solved of it (`Variation.solved`).
_Solve = tuple[str, Variation]


@dataclass(frozen=True)
class _Solver:
    """Solves arms of a designed run under variations, each in a folder of `out`."""

    run: Path
    out: Path
    opened: Opened

    def check(self, arm: str, v: Variation) -> Check:
        """The check of an arm under a variation, in a process of its own."""
        opened = self.opened
        design, surface = parts.load_design(self.run / "designs" / arm)
        if surface is not None:
            design, surface = moved(design, surface, v.motion())
        boundary = opened.study.boundary_of(opened.families[arm])
        fem = replace(opened.fem, bone_factor=v.bone_factor * opened.fem.bone_factor)
        where = self.out / self._mesh_folder(arm, v)
        return check.check_in_process(
            opened.segment, design, surface, boundary, opened.crop_mm, self._mesh(v), fem, where
        )

    def intact(self, bone_factor: float) -> Reference | None:
        """The intact segment with that bone; None where it has no solution."""
        response = self.check("intact", Variation("", "", bone_factor)).response
        if response is None:
            log.warning(
                "the intact segment has no solution at bone × %g: no stress shielding there",
                bone_factor,
            )
            return None
        return Reference.of(response)

    def _mesh_folder(self, arm: str, v: Variation) -> str:
        """Where the arm's mesh under a variation is: bone changes none. The nominal one is taken
        from the run where it has it."""
        if v.solved() != replace(VARIATIONS[0].solved(), bone_factor=v.bone_factor):
            return f"{arm}_{artifacts.digest(replace(v.solved(), bone_factor=1.0))[:12]}"
        of_run, own = (place / arm / "mesh.npz" for place in (self.run / "fem", self.out))
        if of_run.exists() and not own.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(of_run, own)  # taken where its content fits, fem/verify.py
        return arm

    def _mesh(self, v: Variation) -> MeshSettings:
        mesh, names = (
            self.opened.mesh,
            ("background_mm", "background_axial_mm", "background_far_mm"),
        )
        if v.lattice == 1.0:
            return mesh
        return replace(mesh, **{n: v.lattice * getattr(mesh, n) for n in names})


def _new_rows(
    solver: _Solver, intact: Reference | None, solve: tuple[_Solve, list[Variation]]
) -> list[dict[str, Any]]:
    """A row for each variation that one solve answers, its time shared between them."""
    ((arm, solved), variations), clock = solve, time.perf_counter()
    checked = check.with_reference(solver.check(arm, solved), arm, intact)
    several = [_row(solver.opened, arm, v, checked) for v in variations]
    return [r | {"seconds": (time.perf_counter() - clock) / len(several)} for r in several]


def _row(opened: Opened, arm: str, v: Variation, checked: Check) -> dict[str, Any]:
    status, cells = checked.status, checked.mesh.get("tetrahedra")
    head = {
        "arm": arm,
        "variation": v.name,
        "status": status.code,
        "text": status.text,
        "tetrahedra": cells,
    }
    if checked.response is None:
        return head | {"measures": {}}
    return head | {
        "measures": measures_of(opened.study, arm, rescaled(checked.response, v.load_factor))
    }
