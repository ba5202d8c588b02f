"""Verification of unilateral contact (fem/elastic/contact.py) against closed forms.

patch       two blocks pressed together: uniform pressure F/A
eccentric   a stiff block on a soft unilateral layer under a force e from the middle of its length
            L, e > L/6: pressure falls linearly to zero over c = 3 (L/2 − e), its largest value
            2F/(b c)
friction    a block pressed by N and pushed by V against a spring: it sticks for V < μN; beyond, the
            spring takes V − μN
Hertz       parabola gap r²/2R between two blocks: a³ = 3FR/(4E*), p₀ = 3F/(2πa²), E* = E/(2(1 −
            ν²))

Source: Johnson, Contact Mechanics, 1985.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from engine.materials import lame
from fem.elastic import operators as el
from fem.elastic.contact import Contact, ContactSettings, Interface, interface, solve_contact, split
from fem.elastic.faces import boundary, faces_of, traction
from fem.mesh.build import TetMesh
from fem.mesh.tets import bricks
from scripts.evidence.code import Row

Gap = Callable[[np.ndarray], np.ndarray]
#: Size of the two blocks: length (x), width (y) and height of each, mm.
LENGTH, WIDTH, HEIGHT = 6.0, 3.0, 4.0


@dataclass(frozen=True)
class Blocks:
    """The upper block (region 1) cut free of the lower: its field, its matrix with nothing held,
    its interface."""

    d: el.Discretisation
    matrix: sp.csr_matrix
    at: Interface
    e_mpa: float

    @staticmethod
    def of(
        axes: Sequence[np.ndarray],
        joint: float,
        e_mpa: float,
        nu: float = 0.3,
        gap: Gap | None = None,
    ) -> Blocks:
        points, tets = bricks(axes)
        cut = split(TetMesh(points, tets, (points[tets][..., 2].mean(1) > joint).astype(int)), 1)
        d = el.discretise(cut.mesh, 2, 2)
        shape = d.weight_mm3.shape
        lam, mu = lame(np.full(shape, e_mpa), np.full(shape, nu))
        return Blocks(d, el.stiffness(d, lam, mu), interface(d, cut, gap), e_mpa)

    def nodes_at(self, axis: int, value: float) -> np.ndarray:
        """Node numbers of a plane."""
        return np.flatnonzero(np.isclose(self.d.nodes_mm[:, axis], value))

    def held(self, *springs: tuple[np.ndarray, float, tuple[int, ...]]) -> sp.csr_matrix:
        """The matrix with springs (nodes, N/mm, axes)."""
        diagonal = np.zeros((len(self.d.nodes_mm), 3))
        for nodes, k, axes in springs:
            for axis in axes:
                diagonal[nodes, axis] += k
        return sp.csr_matrix(self.matrix + sp.diags(diagonal.ravel()))

    def pushed(self, z: float, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Nodal forces [dofs] of a traction on the outer faces at height z."""
        owner, vertices = boundary(self.d)
        top = np.isclose(self.d.nodes_mm[vertices][..., 2], z).all(1)
        return traction(
            self.d,
            faces_of(self.d, owner[top], vertices[top]),
            lambda x, n: np.broadcast_to(of(x), x.shape),
        )


def two_blocks(n: int = 3, e_mpa: float = 1000.0, nu: float = 0.3) -> Blocks:
    """n cells along the joint."""
    axes = (
        np.linspace(-0.5 * LENGTH, 0.5 * LENGTH, n + 1),
        np.linspace(-0.5 * WIDTH, 0.5 * WIDTH, 3),
        np.linspace(0.0, 2.0 * HEIGHT, 5),
    )
    return Blocks.of(axes, HEIGHT, e_mpa, nu)


def patch(friction: float = 0.0) -> tuple[Contact, Interface]:
    """5 MPa on, and as a second load off."""
    b = two_blocks()
    matrix = b.held(
        (b.nodes_at(2, 0.0), 1e8, (2,)), (np.arange(len(b.d.nodes_mm)), 1e-3, (0, 1, 2))
    )
    press = b.pushed(2.0 * HEIGHT, lambda x: np.array([0.0, 0.0, -5.0]))
    return (
        solve_contact(
            matrix, np.stack([press, -press], 1), [], b.at, b.e_mpa, ContactSettings(friction)
        ),
        b.at,
    )


def eccentric(
    cells: int = 12, e_mm: float = 1.6, force: float = 100.0
) -> tuple[Contact, Interface, np.ndarray, float]:
    """The layer (30 MPa/mm) is the contact spring itself; the blocks are stiff. Also the exact
    pressures, and c."""
    b = two_blocks(cells, e_mpa=1e6, nu=0.0)
    matrix = b.held(
        (b.nodes_at(2, 0.0), 1e9, (0, 1, 2)), (b.nodes_at(2, 2.0 * HEIGHT), 1e-4, (0, 1, 2))
    )
    slope = 12.0 * force * e_mm / (LENGTH**3 * WIDTH)
    load = b.pushed(
        2.0 * HEIGHT,
        lambda x: np.stack(
            [0 * x[..., 0], 0 * x[..., 0], -force / (LENGTH * WIDTH) - slope * x[..., 0]], -1
        ),
    )
    found = solve_contact(
        matrix, load[:, None], [], b.at, b.e_mpa, ContactSettings(stiffness_mpa_per_mm=30.0)
    )
    c = 3.0 * (0.5 * LENGTH - e_mm)
    x = b.at.faces.points_mm.reshape(-1, 3)[:, 0]
    return (
        found,
        b.at,
        2.0 * force / (WIDTH * c) * np.clip(1.0 - (0.5 * LENGTH - x) / c, 0.0, None),
        c,
    )


def coulomb(
    push: float, mu: float = 0.4, press: float = 90.0, spring: float = 0.1
) -> tuple[Contact, float, float]:
    """Also: shear that the joint carries, and what the spring takes, N. The push is in the
    joint's plane, so that nothing tips."""
    b = two_blocks(e_mpa=1e5)
    top = b.nodes_at(2, 2.0 * HEIGHT)
    matrix = b.held((b.nodes_at(2, 0.0), 1e8, (0, 1, 2)), (top, spring, (0,)), (top, 1e-6, (1, 2)))
    load = b.pushed(
        2.0 * HEIGHT, lambda x: np.array([0.0, 0.0, -press / (LENGTH * WIDTH)])
    ).reshape(-1, 3)
    low = np.unique(b.at.faces.nodes)
    load[low, 0] += push / len(low)
    found = solve_contact(matrix, load.reshape(-1, 1), [], b.at, b.e_mpa, ContactSettings(mu))
    carried = float(found.shear[:, 0] @ b.at.weight_mm2)
    return found, carried, spring * float(found.solution.u.reshape(-1, 3)[top, 0].sum())


def hertz(
    n: int, radius: float = 200.0, force: float = 300.0, e: float = 1000.0, nu: float = 0.3
) -> tuple[Contact, float, float]:
    """Pressure in the middle (mean within a/4) and contact radius (from the touching area) over
    the closed form's; a quarter."""
    size = 24.0
    fine = np.concatenate(
        [np.linspace(0.0, 6.0, n + 1), 6.0 + (size - 6.0) * np.linspace(0.0, 1.0, 6)[1:] ** 1.6]
    )
    b = Blocks.of(
        (fine, fine, np.concatenate([-fine[:0:-1], fine])),
        0.0,
        e,
        nu,
        lambda p: (p[:, 0] ** 2 + p[:, 1] ** 2) / (2.0 * radius),
    )
    matrix = b.held(
        *(
            (b.nodes_at(axis, value), k, (axis,))
            for axis, value, k in ((0, 0.0, 1e8), (1, 0.0, 1e8), (2, -size, 1e8), (2, size, 1e-6))
        )
    )
    load = b.pushed(size, lambda p: np.array([0.0, 0.0, -0.25 * force / size**2]))
    found = solve_contact(
        matrix, load[:, None], [], b.at, b.e_mpa, ContactSettings(stiffness_mpa_per_mm=3e3)
    )
    a = (0.75 * force * radius / (0.5 * e / (1.0 - nu**2))) ** (1 / 3)
    r2 = (b.at.faces.points_mm.reshape(-1, 3)[:, :2] ** 2).sum(1) / a**2
    w, p = b.at.weight_mm2, found.pressure[:, 0]
    near = r2 < 0.25**2
    exact = 1.5 * force / (np.pi * a**2) * np.sqrt(1.0 - r2[near])
    return (
        found,
        float((w * p)[near].sum() / (w[near] @ exact)),
        float(np.sqrt(4.0 * w[p > 0].sum() / np.pi) / a),
    )


def rows() -> list[Row]:
    """All of them. Raises RuntimeError where one does not come to rest."""
    return [*_patch_rows(), *_eccentric_rows(), *_coulomb_rows(), *_hertz_rows()]


def _at_rest(contact: Contact) -> Contact:
    """The contact. Raises RuntimeError where it has not come to rest."""
    if contact.solution.status[0].code != "ok":
        raise RuntimeError(f"contact did not converge: {contact.solution.status[0].text}")
    return contact


def _patch_rows() -> list[Row]:
    pressure = _at_rest(patch()[0]).pressure[:, 0]
    ends = (("smallest", pressure.min()), ("largest", pressure.max()))
    return [
        Row("patch test", f"{which} pressure, MPa", 5.0, (float(value),), 0, 0.1)
        for which, value in ends
    ]


def _eccentric_rows() -> list[Row]:
    case = "eccentric force, e = 0.27 L"
    solved = [eccentric(cells) for cells in (6, 12)]
    length_mm = solved[0][3]
    target = 200.0 / (WIDTH * length_mm)
    largest = []
    for contact, at, exact, _ in solved:
        weights = at.weight_mm2 * exact
        scale = np.average(_at_rest(contact).pressure[:, 0], weights=weights) / np.average(
            exact, weights=weights
        )
        largest.append(float(scale * target))
    lengths = tuple(
        float(LENGTH * at.weight_mm2[c.pressure[:, 0] > 0].sum() / at.area_mm2)
        for c, at, _, _ in solved
    )
    size = solved[-1][0].solution.u.shape[0]
    return [
        Row(case, "largest pressure (best fit), MPa", target, tuple(largest), size, 2.0),
        Row(case, "touching length, mm", length_mm, lengths, size, 4.0),
    ]


def _coulomb_rows() -> list[Row]:
    out = []
    for push, carried in ((10.0, 10.0), (60.0, 36.0)):
        contact, shear, taken = coulomb(push)
        _at_rest(contact)
        case = f"Coulomb, μN = 36 N, push {push:g} N"
        out.append(Row(case, "shear in the joint, N", carried, (shear,), 0, 1.0))
        if push > carried:
            out.append(Row(case, "left to the spring, N", push - carried, (taken,), 0, 2.0))
    return out


def _hertz_rows() -> list[Row]:
    solved = [hertz(n) for n in (3, 6)]
    size = _at_rest(solved[-1][0]).solution.u.shape[0]
    pressures, radii = tuple(s[1] for s in solved), tuple(s[2] for s in solved)
    return [
        Row("Hertz", "pressure in the middle over p₀", 1.0, pressures, size, 5.0),
        Row("Hertz", "contact radius over a", 1.0, radii, size, 5.0),
    ]
