"""Verification of finite-strain elasticity (fem/intact/hyperelastic.py) against closed forms,
displacements given, forces compared.

uniaxial   an incompressible bar: nominal stress P = 2 (λ − λ⁻²) (W₁ + C01/λ), W₁ = C10 + 2 C20 (I1
           − 3) + 3 C30 (I1 − 3)², I1 = λ² + 2/λ
fibres     the same with fibres along it: P + share σ(λ − 1)
tube       Rivlin's: a neo-Hookean tube A < R < B, plane strain, blown up to λ_a = a/A: p = ∫_a^b μ
           (λ² − λ⁻²)/r dr, r² = R² + a² − A²

K/μ = 1e4, so that elements that lock would be wrong by a multiple. Source: Ogden, Non-linear
Elastic Deformations, 1984, 5.3.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.integrate import quad

from fem.elastic.factor import Factor
from fem.intact.hyperelastic import Body, Fibres, Solid
from scripts.evidence.code import Row

YEOH = Solid(0.2, 4e3, c01=0.05, c20=0.2, c30=1.0, mixed=True)
FIBRES = Fibres((0.0, 0.02, 0.1), (0.0, 7.0, 35.0), 0.08)


def bricks8(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, 3] in the unit cube and hexahedra [m, 8] in VTK's order."""
    axes = [np.linspace(0.0, 1.0, n + 1) for n in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    index = np.arange(len(points)).reshape([n + 1 for n in shape])
    corner = (
        (0, 0, 0),
        (1, 0, 0),
        (1, 1, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 0, 1),
        (1, 1, 1),
        (0, 1, 1),
    )
    ends = [
        index[i : shape[0] + i, j : shape[1] + j, k : shape[2] + k].ravel() for i, j, k in corner
    ]
    return points, np.stack(ends, 1)


def driven(body: Body, held: np.ndarray, to: np.ndarray, steps: int = 2) -> np.ndarray:
    """Unknowns [size] where the degrees of freedom `held` have gone to `to`, by Newton's method.
    Raises RuntimeError where it fails."""
    x, free = np.zeros(body.size), np.setdiff1d(np.arange(body.size), held)
    for step in range(1, steps + 1):
        change = np.zeros(body.size)
        change[held] = step / steps * to - x[held]
        for _ in range(20):
            residual = body.forces(x)
            matrix = body.tangent()
            right = -(residual + matrix @ change)[free]
            with Factor(sp.csr_matrix(matrix[free][:, free]), [], definite=False) as factor:
                change[free] = factor.once(right[:, None])[:, 0]
            x = x + change
            if np.abs(change).max() < 1e-9:
                break
            change = np.zeros(body.size)
        else:
            raise RuntimeError(
                f"Newton's method does not converge at step {step} of {steps}; a smaller step is"
                " needed"
            )
    return x


def bar(stretch: float, order: int, fibres: Fibres | None = None) -> tuple[float, float]:
    """Nominal stress of the bar along x, and the closed form's."""
    points, cells = bricks8((2, 1, 1))
    along = {0: (fibres, np.tile([1.0, 0.0, 0.0], (len(cells), 1, 1)))} if fibres else None
    body = Body(points, cells, np.zeros(len(cells), int), {0: YEOH}, along, order)
    x = body.nodes_mm
    planes = [(axis, np.flatnonzero(x[:, axis] < 1e-9), 0.0) for axis in range(3)]
    planes.append((0, np.flatnonzero(x[:, 0] > 1.0 - 1e-9), stretch - 1.0))
    held = np.concatenate([3 * nodes + axis for axis, nodes, _ in planes])
    to = np.concatenate([np.full(len(nodes), value) for _, nodes, value in planes])
    end = driven(body, held, to)
    force = body.forces(end)[3 * planes[-1][1]].sum()
    more = stretch**2 + 2.0 / stretch - 3.0
    exact = (
        2.0
        * (stretch - stretch**-2)
        * (YEOH.c10 + 2.0 * YEOH.c20 * more + 3.0 * YEOH.c30 * more**2 + YEOH.c01 / stretch)
    )
    if fibres:
        exact += fibres.share * float(fibres.nominal(np.array(stretch - 1.0))[0])
    return float(force), float(exact)


def tube(
    n: int,
    order: int,
    stretch: float = 1.3,
    inner: float = 10.0,
    outer: float = 15.0,
    mu: float = 1.0,
) -> tuple[float, float]:
    """Pressure inside a quarter of the tube with n elements through the wall, and the closed
    form's, MPa."""
    points, cells = bricks8((n, 3 * n, 1))
    r, angle = inner + (outer - inner) * points[:, 0], 0.5 * np.pi * points[:, 1]
    points = np.stack([r * np.cos(angle), r * np.sin(angle), points[:, 2]], 1)
    body = Body(
        points,
        cells,
        np.zeros(len(cells), int),
        {0: Solid(0.5 * mu, 1e4 * mu, mixed=True)},
        order=order,
    )
    x = body.nodes_mm
    radius = np.hypot(x[:, 0], x[:, 1])
    wall = np.flatnonzero(
        radius < inner + 0.25 * (outer - inner) / n
    )  # nodes in the middle of its straight edges lie inside the circle
    flat = [(axis, np.flatnonzero(np.abs(x[:, axis]) < 1e-9)) for axis in (0, 1)] + [
        (2, np.arange(len(x)))
    ]
    dofs = [3 * nodes + axis for axis, nodes in flat] + [(3 * wall[:, None] + np.arange(2)).ravel()]
    values = [np.zeros(len(d)) for d in dofs[:-1]] + [((stretch - 1.0) * x[wall, :2]).ravel()]
    held, first = np.unique(np.concatenate(dofs), return_index=True)
    end = driven(body, held, np.concatenate(values)[first])
    push = body.forces(end)[(3 * wall[:, None] + np.arange(2)).ravel()].reshape(-1, 2)
    radial = (push * x[wall, :2] / radius[wall, None]).sum()
    a = stretch * inner
    grown = a**2 - inner**2
    exact = quad(
        lambda s: mu * (s**2 / (s**2 - grown) - (s**2 - grown) / s**2) / s,
        a,
        np.sqrt(outer**2 + grown),
    )[0]
    return float(radial / (0.5 * np.pi * a)), float(exact)


def rows() -> list[Row]:
    """All of them. Raises RuntimeError where Newton's method fails."""
    out = []
    for order, name in ((1, "Q1/P0"), (2, "Q2/Q1")):
        for stretch in (0.8, 1.3):
            got, exact = bar(stretch, order)
            out.append(
                Row(
                    f"Yeoh-Mooney bar, λ {stretch}, {name}",
                    "nominal stress, MPa",
                    exact,
                    (got,),
                    0,
                    0.1,
                )
            )
        got, exact = bar(1.05, order, FIBRES)
        out.append(
            Row(f"bar with fibres, λ 1.05, {name}", "nominal stress, MPa", exact, (got,), 0, 0.1)
        )
        values = [tube(n, order) for n in (2, 4, 8)]
        out.append(
            Row(
                f"Rivlin's tube, λ 1.3, K/μ 1e4, {name}",
                "pressure, MPa",
                values[0][1],
                tuple(v[0] for v in values),
                0,
                2.0,
            )
        )
    return out
