"""Signed distances that phantoms are made of."""

from __future__ import annotations

import numpy as np


def smooth_min(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Polynomial smooth minimum: exactly min(a, b) where |a − b| ≥ k."""
    h = np.clip(k - np.abs(a - b), 0.0, None) / k
    return np.minimum(a, b) - 0.25 * k * h * h


def smooth_max(a: np.ndarray, b: np.ndarray, k: float) -> np.ndarray:
    """Polynomial smooth maximum: exactly max(a, b) where |a − b| ≥ k."""
    return -smooth_min(-a, -b, k)


def ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float) -> np.ndarray:
    """First-order distance to an elliptic cylinder."""
    value = np.hypot(x / a, y / b)
    slope = np.hypot(x / a**2, y / b**2)
    return value * (value - 1.0) / np.maximum(slope, 1e-6)


def capsule(
    p: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    radius: float,
    squash: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Capsule from a to b; `squash` < 1 stretches it along that axis (then a lower bound of the
    distance)."""
    scale = np.array(squash)
    axis, offset = (b - a) * scale, (p - a) * scale
    t = np.clip(offset @ axis / (axis @ axis), 0.0, 1.0)
    return np.linalg.norm(offset - t[..., None] * axis, axis=-1) - radius


def box(p: np.ndarray, half: np.ndarray, radius: float) -> np.ndarray:
    """Box rounded by `radius` (distance)."""
    q = np.abs(p) - (half - radius)
    return np.linalg.norm(np.maximum(q, 0.0), axis=-1) + np.minimum(q.max(axis=-1), 0.0) - radius
