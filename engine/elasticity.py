"""Voxel finite elements: trilinear hexahedra with one set of material fields per voxel.

    a(u, v) = Σ_e ∫_e  λ_e (div u)(div v) + 2 μ_e ε(u):ε(v) + κ_e u·v   dV   [+ links]

λ, μ (MPa) are Lamé's, κ (N/mm per mm³) an elastic foundation that holds the supports. The λ term is
integrated with the element's mean dilatation (selective reduced integration, Hughes 1980), so that
discs of ν → 0.5 do not lock; the μ term is integrated in full, the κ term at the nodes (lumped).

Arrays: voxels [x, y, z]; nodes [x+1, y+1, z+1]; nodal vectors [b, 3, x+1, y+1, z+1], b the
right-hand sides; element vectors [b, 24, x, y, z], corner-major. z runs fastest, so that every loop
is a long stride-one loop.

The operator is matrix-free on dense arrays, no scatter, the same code on CPU and GPU. In the basis
of sums and differences along each axis (the trilinear modes 1, ξ, η, ζ, ξη, …) the 24×24 element
matrices have 42 non-zeros in all, so a product costs three butterflies there, 42 multiply-adds, and
three back: six times faster here than the plain product with the 24×24 matrix, which
tests/verification keeps as its oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

CORNERS = tuple((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1))
#: Components of Voigt vectors, in order.
VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Grid:
    """A box of shape = (nx, ny, nz) cubic voxels of edge spacing_mm whose low corner is
    origin_mm."""

    shape: tuple[int, int, int]
    origin_mm: tuple[float, float, float]
    spacing_mm: float

    def centres(self) -> np.ndarray:
        """Voxel centres [x, y, z, 3] in mm."""
        return self._points(0.5, self.shape)

    def nodes(self) -> np.ndarray:
        """Node positions [x+1, y+1, z+1, 3] in mm."""
        return self._points(0.0, tuple(n + 1 for n in self.shape))

    def _points(self, shift: float, shape: tuple[int, ...]) -> np.ndarray:
        axes = [
            o + self.spacing_mm * (np.arange(n) + shift)
            for o, n in zip(self.origin_mm, shape, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    @property
    def box_mm(self) -> np.ndarray:
        """Low and high corner [2, 3]."""
        low = np.asarray(self.origin_mm)
        return np.stack([low, low + self.spacing_mm * np.asarray(self.shape)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Medium:
    """The material of every voxel: lam, mu in MPa and kappa in N/mm per mm³, each [x, y, z]."""

    lam: Array
    mu: Array
    kappa: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Links:
    """Low-rank springs between averaged motions: K += Wᵀ S W, at one level.

    node [n]            flat node numbers that carry any weight
    weight [m, n, 3]    rows of W on those nodes
    stiffness [m, m]    S, symmetric positive semidefinite
    """

    node: Array | np.ndarray
    weight: Array | np.ndarray
    stiffness: Array


def element_matrices(spacing_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K_λ, K_μ, K_κ [24, 24] of a cube for unit λ, μ, κ; degrees of freedom ordered corner-major
    (see CORNERS)."""
    h = spacing_mm
    mean = shape_gradients(np.zeros(3), h)
    dilatation = mean.reshape(24)
    k_lam = h**3 * np.outer(dilatation, dilatation)
    k_mu = np.zeros((24, 24))
    voigt = np.diag([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    for gauss in np.array(CORNERS) * 2 / np.sqrt(3) - 1 / np.sqrt(3):
        b = strain_matrix(shape_gradients(gauss, h))
        k_mu += h**3 / 8 * b.T @ voigt @ b
    return k_lam, k_mu, h**3 / 8 * np.eye(24)


def shape_gradients(xi: np.ndarray, h: float) -> np.ndarray:
    """∂N_a/∂x_c [8, 3] at the reference point ξ in [-1, 1]³."""
    signs = 2.0 * np.array(CORNERS) - 1.0
    factors = 1 + signs * xi
    out = np.empty((8, 3))
    for c in range(3):
        others = [d for d in range(3) if d != c]
        out[:, c] = signs[:, c] * factors[:, others[0]] * factors[:, others[1]] / 8 * 2 / h
    return out


def strain_matrix(gradients: np.ndarray) -> np.ndarray:
    """B [6, 24]: Voigt strain (engineering shear) of nodal displacements."""
    b = np.zeros((6, 8, 3))
    for row, (i, j) in enumerate(VOIGT):
        b[row, :, i] += gradients[:, j]
        if i != j:
            b[row, :, j] += gradients[:, i]
    return b.reshape(6, 24)


def gather(u: Float[Array, "b c x1 y1 z1"]) -> Float[Array, "b k x y z"]:
    """Element-wise nodal values [b, 8·c, x, y, z], corner-major, of a nodal field."""
    nx, ny, nz = (n - 1 for n in u.shape[2:])
    return jnp.concatenate(
        [u[:, :, i : i + nx, j : j + ny, k : k + nz] for i, j, k in CORNERS], axis=1
    )


def scatter(f: Float[Array, "b k x y z"]) -> Float[Array, "b c x1 y1 z1"]:
    """Sum of element-wise nodal values at the nodes: the transpose of `gather`."""
    width = f.shape[1] // 8
    total = None
    for a, corner in enumerate(CORNERS):
        pads = [(0, 0), (0, 0), *((c, 1 - c) for c in corner)]
        part = jnp.pad(f[:, a * width : (a + 1) * width], pads)
        total = part if total is None else total + part
    assert total is not None
    return total


def nodal_sum(field: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x1 y1 z1"]:
    """The sum of a voxel field over the voxels that touch each node."""
    out = np.zeros(tuple(n + 1 for n in field.shape), field.dtype)
    x, y, z = field.shape
    for i, j, k in CORNERS:
        out[i : i + x, j : j + y, k : k + z] += field
    return out


def child_interpolation() -> np.ndarray:
    """P_c [8, 24, 24]: nodal values of each child from those of the coarse element."""
    out = np.zeros((8, 24, 24))
    for child, corner in enumerate(CORNERS):
        for a, node in enumerate(CORNERS):
            xi = (np.array(corner) + np.array(node)) / 2
            shape = [
                np.prod([x if c else 1 - x for x, c in zip(xi, b, strict=True)]) for b in CORNERS
            ]
            out[child, 3 * a : 3 * a + 3] = np.kron(shape, np.eye(3))
    return out


def mode_matrix(k: np.ndarray) -> np.ndarray:
    """H K Hᵀ / 64 with H the sums and differences over the corners: an element matrix in the
    trilinear modes."""
    signs = 2.0 * np.array(CORNERS) - 1.0
    modes = np.array([[np.prod(s ** np.array(mode)) for s in signs] for mode in CORNERS])
    transform = np.kron(modes, np.eye(3))
    return transform @ k @ transform.T / 64


def _modes(u: Float[Array, "3 x1 y1 z1"]) -> list[Array]:
    """The 24 modal values of every element, in the order of CORNERS and components: sums and
    differences along the axes."""
    parts: dict[tuple[int, ...], Array] = {(): u}
    for axis in (1, 2, 3):
        split: dict[tuple[int, ...], Array] = {}
        for key, f in parts.items():
            low = jax.lax.slice_in_dim(f, 0, f.shape[axis] - 1, axis=axis)
            high = jax.lax.slice_in_dim(f, 1, f.shape[axis], axis=axis)
            split[(*key, 0)], split[(*key, 1)] = low + high, high - low
        parts = split
    return [parts[corner][c] for corner in CORNERS for c in range(3)]


def _apply_one(
    medium: Medium, u: Float[Array, "3 x1 y1 z1"], spacing_mm: float
) -> Float[Array, "3 x1 y1 z1"]:
    """K u of one right-hand side by sums and differences along the axes (see the module's
    docstring)."""
    k_lam, k_mu, _ = (mode_matrix(k) for k in element_matrices(spacing_mm))
    lam, mu = medium.lam.astype(u.dtype), medium.mu.astype(u.dtype)
    mode = _modes(u)
    force = []
    for i in range(24):
        total = jnp.zeros_like(mu)
        for field, k in ((mu, k_mu[i]), (lam, k_lam[i])):
            terms = [
                float(k[j]) * mode[j] for j in np.flatnonzero(np.abs(k) > 1e-9 * np.abs(k_mu).max())
            ]
            total = total + field * sum(terms) if terms else total
        force.append(total)
    back: dict[tuple[int, ...], Array] = {
        corner: jnp.stack(force[3 * a : 3 * a + 3]) for a, corner in enumerate(CORNERS)
    }
    for axis in (3, 2, 1):
        low_pad, high_pad = [(0, 0)] * 4, [(0, 0)] * 4
        low_pad[axis], high_pad[axis] = (0, 1), (1, 0)
        keys = sorted({key[:-1] for key in back})
        back = {
            key: (
                jnp.pad(back[(*key, 0)] - back[(*key, 1)], low_pad)
                + jnp.pad(back[(*key, 0)] + back[(*key, 1)], high_pad)
            )
            for key in keys
        }
    return back[()]


def apply(
    medium: Medium, u: Float[Array, "b 3 x1 y1 z1"], spacing_mm: float, links: Links | None = None
) -> Float[Array, "b 3 x1 y1 z1"]:
    """K u in the precision of u, one right-hand side after the other (their modes stay in
    cache)."""
    out = jax.lax.map(lambda v: _apply_one(medium, v, spacing_mm), u)
    out = out + foundation(medium.kappa, spacing_mm).astype(u.dtype) * u
    return out if links is None else out + apply_links(links, u)


def foundation(kappa: Array, spacing_mm: float) -> Float[Array, "1 1 x1 y1 z1"]:
    """Nodal stiffness of the lumped foundation, N/mm."""
    return scatter(jnp.repeat(kappa[None, None] * (spacing_mm**3 / 8), 8, axis=1))


def apply_links(links: Links, u: Float[Array, "b 3 x1 y1 z1"]) -> Float[Array, "b 3 x1 y1 z1"]:
    """Wᵀ S W u."""
    flat = u.reshape(u.shape[0], 3, -1)
    weight = links.weight.astype(u.dtype)
    motion = jnp.einsum("mnc,bcn->bm", weight, flat[:, :, links.node])
    force = jnp.einsum("bm,mnc->bcn", motion @ links.stiffness.astype(u.dtype), weight)
    return jnp.zeros_like(flat).at[:, :, links.node].add(force).reshape(u.shape)


def energy_pairing(
    u: Float[Array, "b 3 x1 y1 z1"], v: Float[Array, "b 3 x1 y1 z1"], spacing_mm: float
) -> tuple[Array, Array, Array]:
    """Σ_b v_bᵀ (∂K/∂λ_e) u_b and the same for μ_e, κ_e, each [x, y, z]: the sensitivity of the
    operator."""
    k_lam, k_mu, _ = (mode_matrix(k) for k in element_matrices(spacing_mm))

    def add(total: Any, pair: Any) -> tuple[Any, None]:
        a, b = (_modes(w) for w in pair)
        parts = []
        for k in (k_lam, k_mu):
            rows = [i for i in range(24) if np.abs(k[i]).max() > 1e-9 * np.abs(k).max()]
            terms = (
                (i, [j for j in np.flatnonzero(np.abs(k[i]) > 1e-9 * np.abs(k).max())])
                for i in rows
            )
            parts.append(
                sum(b[i] * sum(float(k[i, j]) * a[j] for j in columns) for i, columns in terms)
            )
        nodal = jnp.sum(pair[0] * pair[1], axis=0)[None, None]
        parts.append(spacing_mm**3 / 8 * jnp.sum(gather(nodal)[0], axis=0))
        return tuple(t + part for t, part in zip(total, parts, strict=True)), None

    zero = jnp.zeros(tuple(n - 1 for n in u.shape[2:]), u.dtype)
    return jax.lax.scan(add, (zero, zero, zero), (u, v))[0]


def strain(u: Float[Array, "b 3 x1 y1 z1"], spacing_mm: float) -> Float[Array, "b x y z 6"]:
    """Volume-averaged strain of every voxel (Voigt, engineering shear); the average equals the
    centre value."""

    def derivative(f: Array, along: int) -> Array:
        for axis in (1, 2, 3):
            low, high = (
                jax.lax.slice_in_dim(f, i, f.shape[axis] - 1 + i, axis=axis) for i in (0, 1)
            )
            f = high - low if axis == along + 1 else high + low
        return f / (4 * spacing_mm)

    rows = [
        derivative(u[:, i], j) if i == j else derivative(u[:, i], j) + derivative(u[:, j], i)
        for i, j in VOIGT
    ]
    return jnp.moveaxis(jnp.stack(rows, axis=1), 1, -1)


def stress(medium: Medium, eps: Float[Array, "b *q 6"]) -> Float[Array, "b *q 6"]:
    """σ = λ tr(ε) I + 2 μ ε of the voxels' mixtures, MPa; λ and μ have the shape of the strain
    without its first and last axis."""
    trace = eps[..., :3].sum(-1, keepdims=True)
    scale = jnp.asarray([2.0, 2.0, 2.0, 1.0, 1.0, 1.0], eps.dtype)
    volumetric = jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], eps.dtype)
    return medium.lam[..., None] * trace * volumetric + medium.mu[..., None] * scale * eps


# -- patches: regions that are loaded, held together, or whose mean motion is asked ----------------
#: A patch of less bone, or on fewer nodes, has no sound mean motion [M].
_LEAST_VOXELS, _LEAST_NODES = 20, 12


@dataclass(frozen=True)
class NodalPatch:
    """A patch on a grid: its nodes with volume weights, and its least-squares rigid motion.

    node [n] flat node numbers, weight_mm3 [n] > 0, offset_mm [n, 3] from the weighted centroid
    centre_mm; inertia [3, 3] = Σ w (|r|² I − r rᵀ).
    """

    node: np.ndarray
    weight_mm3: np.ndarray
    offset_mm: np.ndarray
    centre_mm: np.ndarray
    inertia: np.ndarray

    def average(self, point_mm: np.ndarray) -> np.ndarray:
        """Rows A [6, n, 3] with (t, θ) = A u: translation at point_mm and rotation of the
        least-squares rigid motion.

        θ = J⁻¹ Σ w r×u,  t = Σ w u / Σ w + θ × (point − centre).
        Its transpose spreads a wrench about point_mm over the patch, statically equivalent (RBE3).
        """
        w = self.weight_mm3
        rotation = np.linalg.solve(
            self.inertia, np.einsum("n,acn->acn", w, _cross(self.offset_mm)).reshape(3, -1)
        )
        rotation = rotation.reshape(3, 3, -1)  # [axis, component, node]
        translation = np.einsum("ac,n->acn", np.eye(3), w / w.sum())
        lever = _cross(np.asarray(point_mm, float)[None] - self.centre_mm)[
            ..., 0
        ]  # θ × l = −[l]× θ
        translation = translation - np.einsum("ab,bcn->acn", lever, rotation)
        return np.concatenate([translation, rotation]).transpose(0, 2, 1)


def _cross(r: np.ndarray) -> np.ndarray:
    """[r]× for r [n, 3] as [3, 3, n]: ([r]×)_{ac} u_c = (r × u)_a."""
    x, y, z = r.T
    o = np.zeros_like(x)
    return np.array([[o, -z, y], [z, o, -x], [-y, x, o]])


def nodal_patch(grid: Grid, volume_mm3: np.ndarray, name: str) -> NodalPatch:
    """Patch of the voxels' weighted volumes [x, y, z] (weight × bone volume). Raises ValueError
    when it is empty."""
    nodal = nodal_sum(volume_mm3 / 8).ravel()
    node = np.flatnonzero(nodal > 1e-9 * max(nodal.max(), 1e-30))
    if nodal.sum() < _LEAST_VOXELS * grid.spacing_mm**3 or len(node) < _LEAST_NODES:
        raise ValueError(
            f"patch {name!r} holds {nodal.sum():.1f} mm³ of bone on the {grid.spacing_mm} mm grid; "
            "expected at least 20 voxels: check the endplates of the patient and the grid's extent"
        )
    points = grid.nodes().reshape(-1, 3)[node]
    w = nodal[node]
    centre = (w[:, None] * points).sum(0) / w.sum()
    r = points - centre
    inertia = np.einsum("n,n,ab->ab", w, (r**2).sum(1), np.eye(3)) - np.einsum(
        "n,na,nb->ab", w, r, r
    )
    return NodalPatch(node, w, r, centre, inertia)


def spread(grid: Grid, patch: NodalPatch, point_mm: np.ndarray, wrenches: np.ndarray) -> np.ndarray:
    """Nodal forces [b, 3, x+1, y+1, z+1] of wrenches [b, 6] (N, N·mm) about point_mm on the
    patch."""
    shape = tuple(n + 1 for n in grid.shape)
    forces = np.zeros((len(wrenches), 3, int(np.prod(shape))))
    forces[:, :, patch.node] = np.einsum("bm,mnc->bcn", wrenches, patch.average(point_mm))
    return forces.reshape(len(wrenches), 3, *shape)


def resultant(grid: Grid, forces: np.ndarray) -> np.ndarray:
    """Force and moment about the origin [b, 6] of nodal forces."""
    forces = np.moveaxis(np.asarray(forces), 1, -1)
    axes = (1, 2, 3)
    return np.concatenate([forces.sum(axes), np.cross(grid.nodes(), forces).sum(axes)], axis=-1)


def foundation_resultant(
    medium: Medium,
    u: Float[Array, "b 3 n"],
    nodes_mm: Float[Array, "x1 y1 z1 3"],
    spacing_mm: float,
) -> Float[Array, "b 6"]:
    """Force and moment about the origin that the elastic foundation exerts on the body, −∫ κ u
    and −∫ κ x × u."""
    weight = foundation(medium.kappa, spacing_mm).ravel()
    weighted = jnp.concatenate([weight[:, None], weight[:, None] * nodes_mm.reshape(-1, 3)], axis=1)
    sums = -jnp.einsum("bcn,na->bca", u, weighted)
    first = sums[:, :, 1:]  # [b, c, a] = −∫ κ x_a u_c
    moment = [
        first[:, (i + 2) % 3, (i + 1) % 3] - first[:, (i + 1) % 3, (i + 2) % 3] for i in range(3)
    ]
    return jnp.concatenate([sums[:, :, 0], jnp.stack(moment, axis=-1)], axis=-1)
