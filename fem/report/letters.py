"""Which way is left, anterior and up in a picture: L R A P S I at its sides and on a compass.

Frames: x to the patient's left, y posterior, z cranial (segment frame and LPS alike). A picture is
described by two unit vectors of its frame: `right` and `up` on the page.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Letters at the positive and the negative end of x, y, z.
ENDS = (("L", "R"), ("P", "A"), ("S", "I"))
INK = "#1b1f23"


def view_axes(
    azimuth_deg: float, elevation_deg: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors to the viewer, to the right and up on the page.

    azimuth 0: seen from the patient's left, 90: from anterior; elevation above the endplate plane.
    Above 80° the page's top is anterior.
    """
    az, el = np.radians([azimuth_deg, elevation_deg])
    towards = np.array([np.cos(el) * np.cos(az), -np.cos(el) * np.sin(az), np.sin(el)])
    top = np.array([0.0, 0.0, 1.0]) if abs(elevation_deg) < 80 else np.array([0.0, -1.0, 0.0])
    right = np.cross(top, towards)
    right /= np.linalg.norm(right)
    return towards, right, np.cross(towards, right)


def letter(direction: np.ndarray) -> str:
    """The letter of the frame's axis that lies nearest to a direction."""
    k = int(np.argmax(np.abs(direction)))
    return ENDS[k][0 if direction[k] > 0 else 1]


def mark_sides(axes: Any, right: np.ndarray, up: np.ndarray) -> None:
    """A letter in the middle of each side of the picture."""
    box = {"boxstyle": "circle,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.8}
    places = ((0.985, 0.5, right), (0.015, 0.5, -right), (0.5, 0.975, up), (0.5, 0.025, -up))
    for x, y, way in places:
        style = {
            "ha": "center",
            "va": "center",
            "fontsize": 11,
            "fontweight": "bold",
            "color": INK,
            "bbox": box,
        }
        axes.text(x, y, letter(way), transform=axes.transAxes, **style)


def draw_compass(axes: Any, right: np.ndarray, up: np.ndarray) -> None:
    """The three axes as they lie in the picture, a letter at each end; along the sight, none.

    axes: empty ones with equal aspect; their limits are set here.
    """
    axes.set_aspect("equal")
    axes.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))
    axes.axis("off")
    for k, ends in enumerate(ENDS):
        way = np.array([right[k], up[k]])
        if np.linalg.norm(way) < 0.25:
            continue
        axes.plot(*np.stack([-way, way], axis=1), color=INK, lw=1.0)
        for sign, text in zip((1.0, -1.0), ends, strict=True):
            x, y = sign * way * (1.0 + 0.22 / np.linalg.norm(way))
            axes.text(
                x, y, text, ha="center", va="center", fontsize=9, fontweight="bold", color=INK
            )


def frame_label(axis: int) -> str:
    """Of a picture's axis in millimetres: `x, mm (L +, R −)`."""
    plus, minus = ENDS[axis]
    return f"{'xyz'[axis]}, mm ({plus} +, {minus} −)"
