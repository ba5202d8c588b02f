"""Signed distances (mm, negative inside): outlines, smooth composition, and what they become on
voxels."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

#: Width of the transition from full to empty, in voxels (DESIGN §3: 1-1.5).
FILL_WIDTH_VOXELS = 1.0


def fill(distance_mm: Array, spacing_mm: float) -> Array:
    """Volume fraction of a voxel whose centre lies at this signed distance.

    f = 1/2 − (3/4) t + (1/4) t³ with t = φ/w clipped to [−1, 1] and w = half the transition width:
    C¹, and f(φ) + f(−φ) = 1, so two bodies that share a surface fill the voxel exactly.
    """
    t = jnp.clip(distance_mm / (0.5 * FILL_WIDTH_VOXELS * spacing_mm), -1.0, 1.0)
    return 0.5 - 0.75 * t + 0.25 * t**3


def smooth_max(a: Array, b: Array, blend_mm: float) -> Array:
    """Intersection with a rounded edge: max(a, b) + (k/4)·clip(1 − |a − b|/k, 0)²; exact beyond
    |a − b| = k."""
    gap = jnp.clip(1.0 - jnp.abs(a - b) / blend_mm, 0.0, None)
    return jnp.maximum(a, b) + 0.25 * blend_mm * gap**2


def fourier(coefficients: Float[Array, " n"], cosine: Array, sine: Array) -> Array:
    """c₀ + Σ_k c_{2k−1} cos kθ + c_{2k} sin kθ from cos θ and sin θ: smooth, closed and free of
    atan2."""
    total = coefficients[0] * jnp.ones_like(cosine)
    real, imaginary = cosine, sine
    for k in range(1, (len(coefficients) - 1) // 2 + 1):
        total = total + coefficients[2 * k - 1] * real + coefficients[2 * k] * imaginary
        real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine
    return total


def bernstein(control: Float[Array, "m n"], u: Array, v: Array) -> Array:
    """Tensor-product Bernstein surface over u, v in [−1, 1]; its values stay within those of the
    control points."""
    s, t = (jnp.clip(0.5 * (x + 1.0), 0.0, 1.0) for x in (u, v))
    rows = _bernstein_basis(s, control.shape[0])
    columns = _bernstein_basis(t, control.shape[1])
    return sum(
        control[i, j] * rows[i] * columns[j] for i in range(len(rows)) for j in range(len(columns))
    )  # type: ignore


def _bernstein_basis(t: Array, count: int) -> list[Array]:
    degree = count - 1
    choose = [float(_binomial(degree, i)) for i in range(count)]
    # x**0 with integer exponents is exactly 1 and has no singular gradient
    return [choose[i] * t**i * (1.0 - t) ** (degree - i) for i in range(count)]


def _binomial(n: int, k: int) -> int:
    out = 1
    for i in range(k):
        out = out * (n - i) // (i + 1)
    return out


def polygon_distance(polygon_mm: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Signed distance of points [..., 2] to a closed simple polygon [n, 2] (either orientation)."""
    p = np.asarray(points_mm, float)
    inside = np.zeros(p.shape[:-1], bool)
    nearest = np.full(p.shape[:-1], np.inf)
    for a, b in zip(polygon_mm, np.roll(polygon_mm, -1, axis=0), strict=True):
        edge = b - a
        t = np.clip((p - a) @ edge / max(edge @ edge, 1e-12), 0.0, 1.0)
        nearest = np.minimum(nearest, ((p - a - t[..., None] * edge) ** 2).sum(-1))
        crosses = (a[1] > p[..., 1]) != (b[1] > p[..., 1])
        height = np.where(crosses, (p[..., 1] - a[1]) / np.where(edge[1] == 0, 1e-30, edge[1]), 0.0)
        inside ^= crosses & (p[..., 0] < a[0] + height * edge[0])
    return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)
