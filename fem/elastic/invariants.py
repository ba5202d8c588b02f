"""Invariants of strain and stress in Voigt order 11, 22, 33, 12, 13, 23."""

from __future__ import annotations

import numpy as np


def principal(voigt: np.ndarray, shear_factor: float) -> np.ndarray:
    """Principal values [..., 3], ascending. shear_factor: 0.5 for strain with engineering shear,
    1 for stress."""
    t = np.empty((*voigt.shape[:-1], 3, 3))
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]):
        t[..., i, j] = t[..., j, i] = voigt[..., k] * (1.0 if i == j else shear_factor)
    return (
        np.linalg.eigvalsh(np.nan_to_num(t))
        + np.where(np.isnan(voigt).any(-1), np.nan, 0.0)[..., None]
    )


def von_mises(stress: np.ndarray) -> np.ndarray:
    """[...] of principal stresses [..., 3]."""
    return np.asarray(
        np.sqrt(0.5 * sum((stress[..., i] - stress[..., i - 1]) ** 2 for i in range(3)))
    )
