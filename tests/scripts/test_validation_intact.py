"""Reading lumbar_meshes' discs and ligaments, fibre directions, and one motion of the real
L4-L5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fem.intact.materials import fibre_directions
from fem.intact.segment import Load
from scripts.evidence.lumbar_meshes import read_disc, read_ligaments, read_segment
from scripts.evidence.motion import Published


def write_ring_disc(folder: Path) -> None:
    """A flat round disc as the data has it: in metres, a nucleus (one ring of hexahedra with a
    hole) and four rings of annulus."""
    around, level = 24, "L45"
    (folder / "disc").mkdir(parents=True)
    number: dict[tuple[int, int, int], int] = {}
    radii = [4.0, 12.0, 14.0, 16.0, 18.0, 20.0]
    for r in range(6):
        for a in range(around):
            for z in range(3):
                number[r, a, z] = len(number) + 1
    for ring, name in enumerate(("NP", "AN_R1", "AN_R2", "AN_R3", "AN_R4")):
        nodes, cells = [], []
        for r in (ring, ring + 1):
            for a in range(around):
                angle = 2.0 * np.pi * a / around
                for z in range(3):
                    x, y = 1e-3 * radii[r] * np.cos(angle), 1e-3 * radii[r] * np.sin(angle)
                    nodes.append(f"{number[r, a, z]} {x:.9f} {y:.9f} {4e-3 * z:.9f}")
        for a in range(around):
            for z in range(2):
                b = (a + 1) % around
                low, high = (
                    [
                        number[ring, a, k],
                        number[ring + 1, a, k],
                        number[ring + 1, b, k],
                        number[ring, b, k],
                    ]
                    for k in (z, z + 1)
                )
                cells.append(" ".join(map(str, [*low, *high, 1, 1, 1, 1, 0, len(cells) + 1])))
        (folder / "disc" / f"{level}_{name}.node").write_text("\n".join(nodes))
        (folder / "disc" / f"{level}_{name}.elem").write_text("\n".join(cells))


def test_a_disc_is_read_in_millimetres_with_its_rings(tmp_path: Path) -> None:
    write_ring_disc(tmp_path)
    points, cells, group = read_disc(tmp_path, "L45")
    assert points.shape == (6 * 24 * 3, 3) and cells.shape == (5 * 24 * 2, 8)
    assert np.bincount(group).tolist() == [48] * 5
    radius = np.hypot(*points[cells].mean(1).T[:2])
    assert radius[group == 4].min() > 18.0 and radius[group == 0].max() < 9.0
    assert points[:, 2].max() == pytest.approx(8.0)


@pytest.mark.parametrize("ring", [1, 4])
def test_fibres_run_round_the_ring_at_their_angle(tmp_path: Path, ring: int) -> None:
    write_ring_disc(tmp_path)
    points, cells, group = read_disc(tmp_path, "L45")
    directions = fibre_directions(points, cells, group, ring, 30.0)
    assert np.linalg.norm(directions, axis=2) == pytest.approx(1.0)
    middle = points[cells].mean(1)[group == ring]
    outward = middle * [1.0, 1.0, 0.0] / np.linalg.norm(middle[:, :2], axis=1)[:, None]
    assert np.abs(np.einsum("mkd,md->mk", directions, outward)).max() < 1e-6
    assert np.abs(directions[..., 2]) == pytest.approx(0.5)
    assert (directions[:, 0] * directions[:, 1]).sum(1) == pytest.approx(
        0.5
    )  # crossing at twice the angle


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"L45_NP.*no disc mesh"):
        read_disc(tmp_path, "L45")
    write_ring_disc(tmp_path)
    (tmp_path / "disc" / "L45_AN_R2.elem").write_text("1 2 3 4 5 6 7 99999 1 1 1 1 0 1\n")
    with pytest.raises(ValueError, match=r"node 99999, which no .node file holds"):
        read_disc(tmp_path, "L45")
    with pytest.raises(ValueError, match=r"L45_Ligs_AS.lig: cannot be read"):
        read_ligaments(tmp_path, "L45")
    with pytest.raises(ValueError, match="choose remus2021 or piecewise"):
        read_ligaments(tmp_path, "L45", "steel")


@pytest.mark.parametrize(
    ("low", "high", "value", "said"),
    [
        (1.0, 2.0, 1.5, "inside"),
        (1.0, 2.0, 0.9, "outside (low)"),
        (1.0, 2.0, 2.1, "outside (high)"),
        (2.0, 2.0, 1.5, "-25 %"),
    ],
)
def test_a_value_is_judged_against_its_range(
    low: float, high: float, value: float, said: str
) -> None:
    assert Published("", "", low, high, "").judge(value) == said


def test_the_real_segment_bends_and_presses_as_published(data_dir: Path) -> None:
    """Bounds are the literature's, not the model's: flexion of a lumbar level at 7.5 N m 2-9°,
    pressure at 1000 N k F/A with k 1.2-1.6 and A of the disc (about 1830 mm²)."""
    folder = data_dir / "lumbar_meshes"
    if not folder.exists():
        pytest.skip(f"lumbar_meshes is not in {data_dir}; set SPINEFIT_DATA")
    segment = read_segment(folder)
    assert {lig.name: len(lig.cranial_mm) for lig in segment.ligaments} == {
        "ALL": 9,
        "PLL": 5,
        "LF": 11,
        "ISL": 8,
        "SSL": 1,
        "CL_R": 10,
        "CL_L": 10,
        "ITL_R": 2,
        "ITL_L": 2,
    }
    flexed = segment.run([Load(moment_nmm=(0.0, 7500.0, 0.0))])[0]
    assert 2.0 < flexed.rotation_deg[1] < 9.0
    assert max(map(abs, (flexed.rotation_deg[0], flexed.rotation_deg[2]))) < 0.1  # symmetric
    assert flexed.balance < 1e-6
    pressed = segment.run([Load(1000.0)])[0]
    assert 1.2 * 1000.0 / 1830.0 < pressed.nucleus_mpa < 1.6 * 1000.0 / 1830.0
    assert pressed.translation_mm[2] < -0.4
    assert pressed.balance < 1e-6
