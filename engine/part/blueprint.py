"""A part's blueprint on one A3 sheet: what stands where.

The sheet is made of primitives (engine/part/drawing.py), which become a PDF (to read, sheet_pdf)
and a DXF (to work with, sheet_dxf). The same part gives the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import trimesh

from engine.part import drawing
from engine.part.drawing import SCALES, SHEET_MM, Sheet, View

_TITLE_MM = (200.0, 66.0)
#: Letters in a line of the notes: they end where the key begins.
_NOTE_LETTERS = 92
#: The key's lower left corner and size, between the notes and the title block.
_KEY_MM = ((160.0, 24.0), (48.0, 50.0))


@dataclass(frozen=True)
class Key:
    """Where the part stands in the patient: its outlines and the endplate's rim, [n, 2] each, x and
    y of the segment frame in mm, and the angle in degrees by which the sheet's part is turned from
    there (drawing.turned).
    """

    rim_mm: np.ndarray
    outlines_mm: Sequence[np.ndarray]
    turned_deg: float


def sheet(
    mesh: trimesh.Trimesh,
    measured: dict[str, Any],
    title: Sequence[tuple[str, str]],
    notes: Sequence[str],
    key: Key | None = None,
) -> Sheet:
    """The sheet of a turned part. title: rows of the title block; notes: lines beside it; key:
    drawn beside the notes, and the views then say from where in the patient they look."""
    views = {name: drawing.view(mesh, name) for name in drawing.SIGHT}
    x, y, z = measured["size_mm"]
    scale = scale_of(measured["size_mm"])
    page = Sheet(scale)
    left, front, right = (c * 1.0 for c in _columns(scale, x, y))
    upper = SHEET_MM[1] - 28 - 0.5 * scale * z
    lower = upper - 0.5 * scale * (z + y) - 38
    centre = {"side": (front, upper), "end": (left, upper), "above": (front, lower)}
    for name, where in centre.items():
        _draw(page, views[name], where, scale)
    _caption(page, "1: long side" + _seen_from(key, [0, -1]), front, upper + 0.5 * scale * z + 9)
    _caption(page, "2: end" + _seen_from(key, [1, 0]), left, upper + 0.5 * scale * z + 9)
    _caption(page, "from above (cranial)", front, lower - 0.5 * scale * y - 17)
    _sections(page, mesh, measured, (right, upper), (right, lower), (front, upper), (front, lower))
    oblique = views["oblique"]
    small = next(
        (
            s
            for s in SCALES
            if s <= 0.75 * scale and s * float(np.ptp(oblique.size[:, 0])) <= max(scale * y, 62.0)
        ),
        SCALES[-1],
    )
    _draw(page, oblique, (left, lower - 6), small, hidden=False)
    _caption(
        page, f"oblique, {ratio(small)}", left, lower - 6 + small * float(oblique.size[1, 1]) + 4
    )
    _dimensions(page, mesh, measured, centre)
    _frame(page, title, notes)
    if key is not None:
        _draw_key(page, key, mesh)
    return page


def _seen_from(key: Key | None, viewer: Sequence[float]) -> str:
    """`, from 60° right of anterior`: viewer [2] is where the eye is, in the device's frame."""
    return (
        ""
        if key is None
        else f", from {drawing.bearing(drawing.in_segment(np.array(viewer), key.turned_deg))}"
    )


def _draw_key(page: Sheet, key: Key, mesh: trimesh.Trimesh) -> None:
    """The part on the caudal endplate from above, anterior up and the patient's left on the
    left, with the sight of views 1 and 2; not to scale."""
    (x0, y0), (wide, tall) = _KEY_MM
    low, high = key.rim_mm.min(0), key.rim_mm.max(0)
    scale = min((wide - 15.0) / (high - low)[0], (tall - 24.0) / (high - low)[1])
    middle = np.array([x0 + 0.5 * wide, y0 + 0.5 * tall - 2.0])

    def on_page(points_mm: np.ndarray) -> np.ndarray:
        return middle - scale * (np.asarray(points_mm, float) - 0.5 * (low + high))

    for curve in (key.rim_mm, *key.outlines_mm):
        page.lines.append(("KEY", on_page(np.vstack([curve, curve[:1]]))))
    reach = 0.5 * scale * (high - low) + 4.5
    for letter, step in (("L", (-1, 0)), ("R", (1, 0)), ("A", (0, 1)), ("P", (0, -1))):
        at = middle + np.array(step) * reach
        page.text(float(at[0]), float(at[1]) - 1.2, letter, 3.0, "center")
    flat = np.concatenate(list(key.outlines_mm))
    part = on_page(0.5 * (flat.min(0) + flat.max(0))[None])[0]
    for name, sight, half in (
        ("1", (0.0, 1.0), 0.5 * np.ptp(mesh.vertices[:, 1])),
        ("2", (-1.0, 0.0), 0.5 * np.ptp(mesh.vertices[:, 0])),
    ):
        way = -drawing.in_segment(
            np.array(sight), key.turned_deg
        )  # the page has both axes the other way
        # from within the rim, so that numbers and letters keep apart; of a large part the arrow
        # crosses the outline
        tail = part - way * min(scale * half + 6.5, _reach(on_page(key.rim_mm) - part, -way) - 1.0)
        _arrow(page, "KEY", tail, tail + 5.5 * way)
        behind = tail - 2.2 * way
        page.text(float(behind[0]), float(behind[1]) - 1.0, name, 2.2, "center")
    page.text(
        x0 + 0.5 * wide, y0 + tall - 3.0, "key: on the caudal endplate, from above", 1.8, "center"
    )


def _reach(corners: np.ndarray, way: np.ndarray) -> float:
    """How far the closed curve [n, 2] round the origin lies off it in a direction [2]."""
    angle = np.arctan2(corners[:, 1], corners[:, 0])
    order = np.argsort(angle)
    radius = np.linalg.norm(corners, axis=1)[order]
    return float(np.interp(np.arctan2(way[1], way[0]), angle[order], radius, period=2.0 * np.pi))


def _arrow(page: Sheet, layer: str, tail: np.ndarray, tip: np.ndarray) -> None:
    """A line with a closed head, 2 mm long, at its tip."""
    way = (tip - tail) / np.linalg.norm(tip - tail)
    across = np.array([-way[1], way[0]])
    base = tip - 2.0 * way
    page.lines.append((layer, np.stack([tail, base])))
    page.lines.append((layer, np.stack([tip, base + 0.6 * across, base - 0.6 * across, tip])))


def scale_of(size_mm: Sequence[float]) -> float:
    """The largest usual scale at which all views fit."""
    x, y, z = size_mm
    return next(
        (
            s
            for s in SCALES
            if s * (y + 2 * x) + 110 <= SHEET_MM[0] - 30 and s * (y + z) + 75 <= SHEET_MM[1] - 90
        ),
        SCALES[-1],
    )


def _columns(scale: float, x: float, y: float) -> tuple[float, float, float]:
    spare = SHEET_MM[0] - 30 - scale * (y + 2 * x)
    gap = spare / 4
    left = 20 + gap + 0.5 * scale * y
    front = left + 0.5 * scale * y + gap + 0.5 * scale * x
    return left, front, front + scale * x + gap


def _draw(
    page: Sheet, view: View, centre: tuple[float, float], scale: float, hidden: bool = True
) -> None:
    for layer, lines in (
        ("HIDDEN", view.hidden if hidden else []),
        ("VISIBLE", view.visible),
        ("VISIBLE", view.outline),
    ):
        page.lines += [(layer, scale * points + centre) for points in lines]


def _caption(page: Sheet, words: str, x: float, y: float) -> None:
    page.text(x, y, words, 3.0, "center")


def ratio(scale: float) -> str:
    return f"{scale:g}:1" if scale >= 1 else f"1:{1 / scale:g}"


def _sections(
    page: Sheet,
    mesh: trimesh.Trimesh,
    measured: dict[str, Any],
    a: Any,
    b: Any,
    front: Any,
    above: Any,
) -> None:
    """A-A along the middle (seen from the front) and B-B half way up (seen from above), hatched,
    and where they are cut."""
    (x, y, z), s = measured["size_mm"], page.scale
    for name, axis, centre in (("A-A", 1, a), ("B-B", 2, b)):
        outer, inner = drawing.section_outlines(mesh, axis, 0.0)
        curves = [s * c + centre for c in (*outer, *inner)]
        page.lines += [("VISIBLE", np.vstack([c, c[:1]])) for c in curves]
        if curves:
            page.hatches.append(curves)
        _caption(
            page,
            f"section {name}, cut faces",
            centre[0],
            centre[1] + 0.5 * s * (z if axis == 1 else y) + 6,
        )
    # the arrows look the way the section does: A-A from the long side, up on the sheet; B-B from
    # above, down on it
    for (cx, cy), mark, sight in ((above, "A", 1.0), (front, "B", -1.0)):
        reach = 0.5 * s * x + 4.0
        page.lines.append(("CUT", np.array([[cx - reach, cy], [cx + reach, cy]])))
        for side in (-1, 1):
            at = np.array([cx + side * reach, cy])
            _arrow(page, "CUT_ARROW", at - [0.0, sight * 6.0], at)
            page.text(
                float(at[0]) + side * 3.2,
                float(at[1]) - (5.2 if sight > 0 else -2.0),
                mark,
                3.5,
                "center",
            )


def _dimensions(
    page: Sheet,
    mesh: trimesh.Trimesh,
    measured: dict[str, Any],
    centre: dict[str, tuple[float, float]],
) -> None:
    """Overall sizes and the heights of the walls, taken where they are measured."""
    s, (x, y, z) = page.scale, measured["size_mm"]
    outer, inner = drawing.section_outlines(mesh, 2, 0.0)

    def across(name: str, size: float, drop: float, tall: float) -> None:
        cx, cy = centre[name]
        ends = [np.array([cx + side * 0.5 * s * size, cy - 0.5 * s * tall]) for side in (-1, 1)]
        page.dimensions.append((*ends, cy - 0.5 * s * tall - drop, "x", size))  # type: ignore[arg-type]

    def up(name: str, at: tuple[float, float] | None, where: float, beside: float) -> None:
        cx, cy = centre[name]
        if at is not None:
            ends = [np.array([cx + s * where, cy + s * v]) for v in at]
            page.dimensions.append((*ends, cx + beside, "y", at[1] - at[0]))  # type: ignore[arg-type]

    across("side", x, 9.0, z)
    across("end", y, 9.0, z)
    # beside the long side, the dimensions stand clear of the arrows and letters of B-B
    for name, axis, half, clear in (("side", 0, 0.5 * s * x, 15.0), ("end", 1, 0.5 * s * y, 8.0)):
        for sign in (-1.0, 1.0):
            point = drawing.wall_middle(outer, inner, axis, sign)
            up(name, drawing.crossing(mesh, point), float(point[axis]), sign * (half + clear))
    if measured["wall_mm"] is not None:
        chamber = "; chamber {:.2f} × {:.2f} mm".format(*measured["chamber_mm"])
        page.text(
            SHEET_MM[0] - 14,
            84.0,
            f"least wall in B-B: {measured['wall_mm']:.2f} mm{chamber}",
            2.5,
            "right",
        )


def _frame(page: Sheet, title: Sequence[tuple[str, str]], notes: Sequence[str]) -> None:
    """Frame, title block, notes, the symbol of first-angle projection."""
    w, h = SHEET_MM

    def box(x0: float, y0: float, x1: float, y1: float) -> None:
        page.lines.append(("FRAME", np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])))

    box(20, 10, w - 10, h - 10)
    x0, y0 = w - 10 - _TITLE_MM[0], 10.0
    box(x0, y0, w - 10, y0 + _TITLE_MM[1])
    rows = -(-len(title) // 2)
    step = _TITLE_MM[1] / rows
    for i, (name, value) in enumerate(title):
        x, y = x0 + (i // rows) * 0.5 * _TITLE_MM[0], y0 + _TITLE_MM[1] - step * (i % rows + 1)
        box(x, y, x + 0.5 * _TITLE_MM[0], y + step)
        page.text(x + 1.5, y + step - 2.6, name, 1.8)
        page.text(x + 1.5, y + 1.5, value, 2.6)
    y = y0 + _TITLE_MM[1] - 4
    for line in notes:
        for piece in textwrap.wrap(line, _NOTE_LETTERS):
            page.text(24, y, piece, 2.2)
            y -= 3.6
        y -= 1.2
    # ISO 5456-2: a truncated cone from the side, and to its right what is seen from its left end
    cx, cy = 190.0, 16.0
    page.lines.append(
        (
            "FRAME",
            np.array(
                [[cx - 9, cy - 2], [cx - 9, cy + 2], [cx, cy + 4], [cx, cy - 4], [cx - 9, cy - 2]]
            ),
        )
    )
    turn = np.linspace(0, 2 * np.pi, 49)
    page.lines += [
        ("FRAME", np.stack([cx + 8 + r * np.cos(turn), cy + r * np.sin(turn)], 1))
        for r in (2.0, 4.0)
    ]
