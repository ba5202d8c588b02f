"""Boundary-value problems on the unit cube, and what is asked of their solutions.

The operator is compiled once a grid; a diagonally preconditioned CG solves them (compiling
`multigrid.solve`, which has its own tests, for three grids would take a minute). Where two
materials meet the medium is the engine's own (`sdf.fill` and `mixture.medium`).
"""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import plain_elements as plain

from engine import elasticity, mixture
from engine.elasticity import Grid, Medium, element_matrices
from engine.types import REGIONS

#: Cells along the unit cube.
SIZES = (6, 12, 24)
#: Of ‖b − K u‖/‖b‖. The errors asserted below are 1e-4 and more.
TOLERANCE = 1e-8
operator = jax.jit(elasticity.apply, static_argnames="spacing_mm")


def cube(n: int) -> Grid:
    return Grid((n,) * 3, (0.0,) * 3, 1.0 / n)


def held_on_all_faces(n: int) -> np.ndarray:
    free = np.zeros((3, n + 1, n + 1, n + 1))
    free[:, 1:-1, 1:-1, 1:-1] = 1.0
    return free


def octant(n: int) -> np.ndarray:
    """Free degrees of freedom: no normal motion on the three faces through the origin, the other
    three faces held."""
    free = np.ones((3, n + 1, n + 1, n + 1))
    for axis in range(3):
        face = np.moveaxis(free, 1 + axis, 1)
        face[axis, 0] = 0.0
        face[:, -1] = 0.0
    return free


def solved(
    medium: Medium, h: float, free: np.ndarray, held: np.ndarray, force=0.0, tolerance=TOLERANCE
) -> np.ndarray:
    """u [3, x+1, y+1, z+1] of K u = force where free is 1, u = held where it is 0."""
    index, matrices = plain.unknowns(medium.mu.shape), element_matrices(h)
    diagonals = sum(
        np.asarray(m).reshape(-1, 1) * k.diagonal()
        for m, k in zip((medium.lam, medium.mu), matrices, strict=False)
    )
    inverse = free / np.bincount(index.ravel(), diagonals.ravel()).reshape(free.shape)

    def product_of(v: np.ndarray) -> np.ndarray:
        return free * np.asarray(operator(medium, jnp.asarray(v)[None], h))[0]

    def dot(v: np.ndarray, w: np.ndarray) -> float:
        return float(
            np.einsum("i,i", v.ravel(), w.ravel())
        )  # np.dot's threads wait for each other on a busy machine

    u = (1 - free) * held
    r = free * force - product_of(u)
    z = direction = inverse * r
    goal, rz = tolerance**2 * dot(r, r), dot(r, z)
    for _ in range(2000):
        kp = product_of(direction)
        alpha = rz / dot(direction, kp)
        u, r = u + alpha * direction, r - alpha * kp
        if dot(r, r) <= goal:
            return u
        z = inverse * r
        rz, last = dot(r, z), rz
        direction = z + rz / last * direction
    raise AssertionError("conjugate gradients have not converged in 2000 iterations")


def energy(medium: Medium, h: float, u: np.ndarray) -> float:
    return 0.5 * float(np.vdot(u, operator(medium, jnp.asarray(u)[None], h)))


@jax.jit
def two_phase(
    shares: dict[str, np.ndarray], implant: tuple[float, float], bone: tuple[float, float]
) -> Medium:
    """The engine's mixture of voxels that hold so much of an implant and of bone, given as (E,
    ν); the rest is surrounding."""
    shape = next(iter(shares.values())).shape
    every = jnp.stack([jnp.broadcast_to(shares.get(name, 0.0), shape) for name in REGIONS], axis=-1)
    e_bone = jnp.full(shape, bone[0])
    scene = SimpleNamespace(
        e_caudal=e_bone, e_cranial=e_bone, support=jnp.zeros(shape), tissue=jnp.ones(shape)
    )
    alloy = mixture.Alloy(jnp.asarray(implant[0]), jnp.asarray(implant[1]), jnp.asarray(1.0))
    return mixture.medium(scene, every, jnp.ones(shape), alloy, bone[1])[0]  # type: ignore[arg-type]


def arithmetic(
    share: np.ndarray, first: tuple[float, float], second: tuple[float, float]
) -> Medium:
    """share·m₁ + (1 − share)·m₂ for λ and μ; with shares 0 and 1, binary voxels."""
    lam, mu = (
        jnp.asarray(share * a + (1 - share) * b)
        for a, b in zip(plain.lame(*first), plain.lame(*second), strict=True)
    )
    return Medium(lam, mu, jnp.zeros_like(mu))


def orders(errors) -> np.ndarray:
    """log₂ of the ratios of the errors on grids refined by two."""
    errors = np.asarray(errors)
    return np.log2(errors[:-1] / errors[1:])


def apart(u: np.ndarray, exact: np.ndarray, where: np.ndarray | bool = True) -> float:
    """Root mean square of u − exact over the nodes, over that of exact."""
    return float(np.sqrt(np.sum((u - exact) ** 2 * where) / np.sum(exact**2 * where)))


def strain(u: np.ndarray, h: float) -> np.ndarray:
    """The voxels' mean strains [x, y, z, 6] (Voigt)."""
    return np.asarray(elasticity.strain(jnp.asarray(u)[None], h))[0]


def voigt(gradient: np.ndarray) -> np.ndarray:
    """Voigt strain (engineering shear) [..., 6] of displacement gradients [..., 3, 3]."""
    return np.stack(
        [(gradient[..., i, j] + gradient[..., j, i]) / (1 + (i == j)) for i, j in elasticity.VOIGT],
        axis=-1,
    )


def stress_of(material: tuple[float, float], gradient: np.ndarray) -> np.ndarray:
    """σ = λ tr(ε) I + 2 μ ε of a uniform gradient [3, 3]."""
    lam, mu = plain.lame(*material)
    return lam * np.trace(gradient) * np.eye(3) + mu * (gradient + gradient.T)
