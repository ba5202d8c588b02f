"""The intact segment's equilibrium on a block of a disc, whose answers are known or bounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import meshio
import numpy as np
import pytest

from engine.types import VoxelField
from fem.intact.connections import Facets, Ligament, Piecewise, ToeLinear
from fem.intact.hyperelastic import Body, Solid
from fem.intact.segment import IntactSegment, Load, NoEquilibrium
from scripts.evidence.hyperelastic import bricks8

SIZE = np.array([30.0, 40.0, 10.0])


def block(bulk: float = 5.0, **more: object) -> IntactSegment:
    """Annulus all round (4×4×2 cells), a nucleus of 2×2 in the middle; bodies' centres 15 mm
    above and below."""
    points, cells = bricks8((4, 4, 2))
    middle = points[cells].mean(1)
    group = np.where((np.abs(middle[:, :2] - 0.5) < 0.25).all(1), 0, 1)
    points = points * SIZE - [0.5 * SIZE[0], 0.5 * SIZE[1], 0.0]
    body = Body(points, cells, group, {0: Solid(0.1, 500.0, mixed=True), 1: Solid(1.0, bulk)})
    z = body.nodes_mm[:, 2]
    top, bottom = np.flatnonzero(z > SIZE[2] - 1e-6), np.flatnonzero(z < 1e-6)
    return IntactSegment(
        body,
        top,
        bottom,
        np.eye(3),
        np.array([0.0, 0.0, 25.0]),
        np.array([0.0, 0.0, -15.0]),
        **more,
    )  # type: ignore[arg-type]


def strands(law: object = ToeLinear(-0.03, 0.08, 485.0)) -> Ligament:
    y = np.linspace(-10.0, 10.0, 3)
    return Ligament(
        "ALL",
        np.stack([0 * y + 16.0, y, 0 * y + 11.0], 1),
        np.stack([0 * y + 16.0, y, 0 * y - 1.0], 1),
        law,
    )  # type: ignore[arg-type]


def facets(clearance: float = 0.0) -> Facets:
    """Two patches 3 mm above a plane that is the caudal vertebra."""
    x, y = np.meshgrid([-30.0, -28.0], [-16.0, -14.0, 14.0, 16.0], indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), 0 * x.ravel() + 3.0], 1)
    grid = VoxelField(
        np.broadcast_to(np.linspace(-10.0, 10.0, 41), (81, 81, 41)).copy(),
        np.array([-45.0, -20.0, -10.0]),
        0.5,
    )
    return Facets(points, np.full(8, 5.0), points[:, 1] > 0, grid, 4.0, clearance)


def test_all_loads_at_once_are_balanced() -> None:
    segment = block(ligaments=[strands()], facets=facets())
    rest, _ = segment.equilibrium(segment.start(), Load())
    load = Load(300.0, (40.0, -30.0, -100.0), (1500.0, -2500.0, 800.0))
    state, n = segment.walk(rest, Load(), load)
    step = segment.measure(state, rest, load, n)
    assert step.balance < 1e-6
    assert step.facets_n[1] > 1.0 and step.ligaments_n["ALL"] >= 0.0


def test_the_tangent_is_the_residuals_derivative() -> None:
    segment = block(ligaments=[strands()], facets=facets())
    load = Load(200.0, (10.0, 0.0, -50.0))
    state = segment.walk(segment.start(), Load(), replace(load, moment_nmm=(0.0, -3000.0, 0.0)))[0]
    residual, inner = segment.residual(state, load)
    tangent = segment.tangent(state, load, inner)
    direction = 1e-6 * np.random.default_rng(0).normal(size=len(residual))
    direction[-3:] *= 0.01
    ahead, behind = (
        segment.residual(segment.moved(state, sign * direction), load)[0] for sign in (1.0, -1.0)
    )
    change = 0.5 * (ahead - behind)
    error = np.abs(tangent @ direction - change)
    assert error[:-3].max() < 1e-4 * np.abs(change[:-3]).max()
    # moments: symmetrised, so that it is exact only in balance
    assert error[-3:].max() < 0.05 * np.abs(change[-3:]).max()


def test_a_straight_follower_is_a_force() -> None:
    segment = block()
    rest = segment.start()
    steps = [
        segment.measure(segment.walk(rest, Load(), load)[0], rest, load, 0)
        for load in (Load(200.0), Load(0.0, (0.0, 0.0, -200.0)))
    ]
    assert steps[0].translation_mm == pytest.approx(steps[1].translation_mm, abs=1e-6)
    assert steps[0].translation_mm[2] < -0.1
    assert steps[0].nucleus_mpa > 0.05


def test_a_follower_bends_less_than_a_dead_force() -> None:
    """Its direction goes with the vertebra: beside a moment, the dead weight adds one of its
    own."""
    segment = block()
    moment = (0.0, 2000.0, 0.0)
    turned = []
    for load in (
        Load(0.0, (0, 0, 0), moment),
        Load(300.0, (0, 0, 0), moment),
        Load(0.0, (0.0, 0.0, -300.0), moment),
    ):
        turned.append(
            segment.measure(
                segment.walk(segment.start(), Load(), load)[0], segment.start(), load, 0
            ).rotation_deg[1]
        )
    plain, follower, dead = turned
    assert plain > 0.5
    assert dead > 1.02 * plain
    assert follower < dead


def test_facets_carry_what_their_cartilage_gives() -> None:
    """Pressed together by a flat descent, their force is k A (d − c − toe/2)."""
    for clearance in (0.0, 0.15):
        segment = block(facets=facets(clearance))
        load = Load(0.0, (0.0, 0.0, -800.0))
        step = segment.measure(
            segment.walk(segment.start(), Load(), load)[0], segment.start(), load, 0
        )
        points = facets().points_mm
        state = segment.walk(segment.start(), Load(), load)[0]
        down = (points - segment.placed(points, state))[:, 2]
        over = down - clearance
        assert over.min() > 0.1
        for side, got in (
            (points[:, 1] > 0, step.facets_n[0]),
            (points[:, 1] < 0, step.facets_n[1]),
        ):
            assert got == pytest.approx(4.0 * 5.0 * (over[side] - 0.05).sum(), rel=1e-3)


@pytest.mark.parametrize(
    ("law", "elongation", "tension", "slope"),
    [
        (ToeLinear(0.0, 0.1, 100.0), 0.5, 100.0 * 0.05**2 / 0.2, 100.0 * 0.05 / 0.1 / 10.0),
        (ToeLinear(0.0, 0.1, 100.0), 2.0, 100.0 * 0.15, 10.0),
        (ToeLinear(0.5, 0.1, 100.0), 2.0, 0.0, 0.0),
        (ToeLinear(-0.2, 0.1, 80.0), 0.0, 80.0 * 0.2, 10.0),
        (Piecewise((0.1, 0.2), (30.0, 60.0, 200.0), 3), 0.5, 5.0, 10.0),
        (Piecewise((0.1, 0.2), (30.0, 60.0, 200.0), 3), 1.5, 10.0 + 10.0, 20.0),
        (
            Piecewise((0.1, 0.2), (30.0, 60.0, 200.0), 3),
            2.5,
            10.0 + 20.0 + 100.0 / 3.0,
            200.0 / 3.0,
        ),
        (Piecewise((0.1, 0.2), (30.0, 60.0, 200.0), 3), -1.0, 0.0, 0.0),
    ],
)
def test_ligaments_pull_as_their_law_says(
    law: ToeLinear | Piecewise, elongation: float, tension: float, slope: float
) -> None:
    """Strands of 10 mm."""
    got, stiffness = law.tension(np.array([10.0 + elongation]), np.array([10.0]))
    assert got[0] == pytest.approx(tension) and stiffness[0] == pytest.approx(slope)


def test_a_ligament_stiffens_only_the_motion_that_stretches_it() -> None:
    bare, tied = block(), block(ligaments=[strands(ToeLinear(0.0, 0.02, 2000.0))])
    turned = {}
    for sign in (1.0, -1.0):  # flexion slackens it
        load = Load(moment_nmm=(0.0, sign * 1500.0, 0.0))
        for name, segment in (("bare", bare), ("tied", tied)):
            turned[name, sign] = segment.measure(
                segment.walk(segment.start(), Load(), load)[0], segment.start(), load, 0
            ).rotation_deg[1]
    assert turned["tied", 1.0] == pytest.approx(turned["bare", 1.0], rel=1e-6)
    assert abs(turned["tied", -1.0]) < 0.8 * abs(turned["bare", -1.0])


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = [
        Load(100.0),
        Load(100.0, moment_nmm=(0.0, 1000.0, 0.0)),
        Load(100.0, moment_nmm=(0.0, 2000.0, 0.0)),
    ]
    whole = block(ligaments=[strands()]).run(loads)
    walk, calls = IntactSegment.walk, [0]

    def cut(self: IntactSegment, *args: object) -> object:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return walk(self, *args)  # type: ignore[arg-type]

    keep = tmp_path / "flexion.npz"
    monkeypatch.setattr(IntactSegment, "walk", cut)
    with pytest.raises(KeyboardInterrupt):
        block(ligaments=[strands()]).run(loads, keep)
    calls[0] = 10
    again = block(ligaments=[strands()]).run(loads, keep)
    assert calls[0] == 11
    assert again == whole
    assert again[2].rotation_deg[1] > again[1].rotation_deg[1] > 0.2
    since = block(ligaments=[strands()]).run(loads, keep, datum=1)
    assert calls[0] == 11  # all kept
    assert since[0].rotation_deg == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    block(ligaments=[strands(ToeLinear(0.0, 0.1, 1.0))]).run(loads[:1], keep)
    assert calls[0] == 12  # another segment


def test_what_has_no_equilibrium_says_so() -> None:
    with pytest.raises(NoEquilibrium, match=r"moment .*increments down to 1/64"):
        segment = block()
        segment.walk(segment.start(), Load(), Load(moment_nmm=(0.0, 1e6, 0.0)))


def test_the_disc_is_written_for_paraview(tmp_path: Path) -> None:
    segment = block()
    state = segment.walk(segment.start(), Load(), Load(200.0))[0]
    segment.write(tmp_path / "disc.vtu", state)
    read = meshio.read(tmp_path / "disc.vtu")
    assert read.cells_dict["hexahedron"].shape == (32, 8)
    assert read.point_data["displacement_mm"][:, 2].min() < -0.1
    change = read.cell_data["volume_change"][0]
    assert np.abs(change[read.cell_data["group"][0] == 0]).max() < 2e-3 < np.abs(change).max()
