"""What every objective keeps: each module of objectives and each YAML of conf/objectives; then each
one's known values.

On a made-up response, so that every case is exact and quick; gradients through the solve are in
tests/verification.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured import choices

import objectives
from engine.materials import YIELD_STRAIN_COMPRESSION, YIELD_STRAIN_TENSION
from engine.types import REGIONS, Response
from objectives._abstract import Better, principal_strains, smooth_step, von_mises
from objectives.problem import goals

CONFIGURED = {name: conf["goals"] for name, conf in choices("objectives").items()}
CASES = ("standing", "flexion", "left_rotation")
FIXED = {"loadcases", "position"}


def response(seed: int = 0, samples: int = 60) -> Response:
    """Random, physically scaled: strains around yield, all regions in every sample, reference of
    the same order."""
    rng = np.random.default_rng(seed)
    loads = len(CASES)
    strain = 0.004 * rng.normal(size=(loads, samples, 6))
    stress = 800.0 * strain + 0.3 * rng.normal(size=strain.shape)
    fraction = rng.dirichlet(np.ones(len(REGIONS)), size=samples)
    energy = np.abs(0.5 * np.sum(strain * stress, axis=-1))
    return Response(
        position=rng.normal(size=(samples, 3)),
        volume=rng.uniform(4, 9, samples),
        fraction=fraction,
        near=rng.uniform(0, 1, samples),
        strain=strain,
        stress=stress,
        relative_density=rng.uniform(0.2, 1, samples),
        motion=1e-2 * rng.normal(size=(loads, 2, 6)),
        compliance=rng.uniform(10, 90, loads),
        reaction=rng.normal(size=(loads, 6)),
        applied=rng.normal(size=(loads, 6)),
        reference_sed=3 * energy + 1e-3,
        fatigue_mpa=rng.uniform(20, 225, samples),
        loadcases=CASES,
    )


@pytest.fixture(params=objectives.names())
def objective(request):
    return objectives.load(request.param)


def arrays(r: Response) -> dict[str, jax.Array]:
    return {f.name: jnp.asarray(getattr(r, f.name)) for f in fields(r) if f.name not in FIXED}


def value_of(objective, r: Response):
    def value(part):
        return objective.value(replace(r, **part))

    return value


# -- what all keep ---------------------------------------------------------------------------------
def test_every_objective_names_itself_and_its_unit(objective):
    assert objective.name in objectives.names()
    assert objective.unit and objective.description
    assert objectives.load(objective.name) == objective, (
        "equal settings, equal objective: it is static in compiled code"
    )
    assert hash(objective) == hash(objectives.load(objective.name))


def test_every_objective_says_which_values_are_better_and_applies_to_a_whole_response(objective):
    assert objective.better in get_args(Better)
    assert objective.applies_to(response()) is True
    assert objective.applies_to(replace(response(), **arrays(response()))) is True


@pytest.mark.parametrize(
    ("lacking", "measures"),
    [
        ("implant", {"implant_stress", "implant_volume", "graft_volume"}),
        ("intact reference", {"stress_shielding"}),
        ("standing load", set()),
    ],
)
def test_an_objective_does_not_apply_where_the_response_lacks_what_it_measures(lacking, measures):
    """A missing load case is no such lack: it is an error of the study, which `value` raises."""
    r = response()
    without = {
        "implant": replace(r, fraction=r.fraction * (np.array(REGIONS) != "implant")),
        "intact reference": replace(r, reference_sed=None),
        "standing load": replace(r, loadcases=("sitting", *CASES[1:])),
    }[lacking]
    every = (objectives.load(name) for name in objectives.names())
    assert {o.name for o in every if not o.applies_to(without)} == measures


def test_value_is_one_finite_number_alike_for_numpy_and_jax(objective):
    r = response()
    value = np.asarray(objective.value(r))
    assert value.shape == () and np.isfinite(value)
    as_jax = replace(r, **arrays(r))
    assert float(objective.value(as_jax)) == pytest.approx(float(value), rel=1e-12)
    assert float(jax.jit(objective.value)(as_jax)) == pytest.approx(float(value), rel=1e-10)


def test_copies_of_a_sample_without_volume_change_nothing(objective):
    """The voxel engine fills its samples up with such copies, of the last sample and here also
    of the most strained one."""
    r = response()
    worst = int(np.argmax(np.abs(r.strain).max(axis=(0, 2))))
    more = [worst, 59, 59, 59]
    axis = {"strain": 1, "stress": 1, "reference_sed": 1}
    whole = ("motion", "compliance", "reaction", "applied", "loadcases")
    padded = {
        f.name: np.concatenate(
            [v := np.asarray(getattr(r, f.name)), v.take(more, axis.get(f.name, 0))],
            axis.get(f.name, 0),
        )
        for f in fields(r)
        if f.name not in whole
    }
    padded["volume"][60:] = 0.0
    filled = replace(r, **padded)
    assert float(objective.value(filled)) == pytest.approx(float(objective.value(r)), rel=1e-12)
    for name in ("strain", "stress"):
        plain, other = (
            np.asarray(
                jax.grad(value_of(objective, q))({name: jnp.asarray(getattr(q, name))})[name]
            )
            for q in (r, filled)
        )
        np.testing.assert_allclose(other[:, :60], plain, rtol=1e-9, atol=1e-12)
        assert not other[:, 60:].any()


def test_per_load_is_one_number_a_load_case_or_none(objective):
    loads = objective.per_load(response())
    if loads is not None:
        assert np.asarray(loads).shape == (len(CASES),)
        assert np.all(np.isfinite(loads))


def degenerate() -> dict[str, Response]:
    """States where naive formulas divide by zero or have no derivative."""
    r = response()
    zero, isotropic = np.zeros_like(r.strain), np.zeros_like(r.strain)
    isotropic[..., :3] = -0.003
    uniaxial = np.zeros_like(r.strain)
    uniaxial[..., 2] = -0.01
    nothing = np.zeros_like(r.fraction)
    nothing[:, 0] = 1.0
    return {
        "random": r,
        "unloaded": replace(r, strain=zero, stress=zero, motion=np.zeros_like(r.motion)),
        "isotropic": replace(r, strain=isotropic, stress=1e3 * isotropic),
        "uniaxial": replace(r, strain=uniaxial, stress=1e3 * uniaxial),
        "no implant": replace(r, fraction=nothing),
        "no reference energy": replace(r, reference_sed=np.zeros_like(r.reference_sed)),
    }


@pytest.mark.parametrize("state", degenerate())
def test_value_and_gradients_are_finite_where_formulas_are_singular(objective, state):
    r = degenerate()[state]
    value, slope = jax.value_and_grad(value_of(objective, r))(arrays(r))
    assert np.isfinite(float(value))
    for name, part in slope.items():
        assert np.all(np.isfinite(np.asarray(part))), name


def test_gradient_is_the_derivative_in_all_that_it_reads(objective):
    """Taylor remainder of second order in every array at once; with the sign flipped it is of
    first order."""
    r, rng = response(1), np.random.default_rng(2)
    base = arrays(r)
    value, slope = jax.value_and_grad(value_of(objective, r))(base)
    direction = {
        k: jnp.asarray(rng.normal(size=v.shape) * np.abs(v).mean()) for k, v in base.items()
    }
    first = sum(float(jnp.vdot(slope[k], direction[k])) for k in base)
    assert first != 0.0
    steps = (4e-5, 2e-5, 1e-5)

    def rest(sign):
        moved = [
            value_of(objective, r)({k: base[k] + h * direction[k] for k in base}) for h in steps
        ]
        return [abs(float(m - value) - sign * h * first) for h, m in zip(steps, moved, strict=True)]

    def second_order(remainders):
        # bilinear volumes have remainders of round-off only: 1e-12 of the value
        return (
            remainders[0] < 1e-12 * abs(float(value))
            or np.log2(remainders[0] / remainders[2]) / 2 >= 1.9
        )

    assert second_order(rest(1.0)), rest(1.0)
    assert not second_order(rest(-1.0))


def test_value_is_independent_of_how_finely_the_response_is_sampled(objective):
    """Every sample split into two halves of its volume: the same body, the same measure."""
    r = response()
    twice = {}
    for f in fields(r):
        if f.name in {"strain", "stress", "reference_sed"}:
            twice[f.name] = np.repeat(getattr(r, f.name), 2, axis=1)
        elif f.name in {"position", "fraction", "near", "relative_density", "fatigue_mpa"}:
            twice[f.name] = np.repeat(getattr(r, f.name), 2, axis=0)
    twice["volume"] = np.repeat(r.volume, 2) / 2
    assert float(objective.value(replace(r, **twice))) == pytest.approx(
        float(objective.value(r)), rel=1e-9
    )


def test_unknown_settings_are_refused(objective):
    with pytest.raises(ValueError, match="colour"):
        objectives.load(objective.name, {"colour": "red"})


def test_unknown_objective_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=f"'beauty' is unknown; choose among {', '.join(objectives.names())}"
    ):
        objectives.load("beauty")


# -- goals -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CONFIGURED)
def test_configured_goals_build(name):
    every = goals(CONFIGURED[name])
    assert len(every) == len(CONFIGURED[name])
    assert len({g.objective.name for g in every}) == len(every), (
        "the table has one line an objective"
    )
    assert any(g.kind == "minimise" for g in every)


@pytest.mark.parametrize("name", CONFIGURED)
def test_configured_goals_push_the_way_that_their_objective_calls_better(name):
    for g in goals(CONFIGURED[name]):
        worse = {"minimise": "higher", "at_most": "higher", "at_least": "lower"}[g.kind]
        assert g.objective.better != worse, g.objective.name


def test_every_objective_is_configured_somewhere():
    assert {entry["objective"] for entries in CONFIGURED.values() for entry in entries} == set(
        objectives.names()
    )


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            {"objective": "misalignment", "kind": "at_most"},
            "misalignment: 'bound' belongs to at_most and at_least",
        ),
        ({"objective": "misalignment", "bound": 1.0}, "they need one"),
        (
            {"objective": "misalignment", "kind": "exactly", "bound": 1.0},
            "'minimise', 'at_most' or 'at_least'",
        ),
        ({"objective": "misalignment", "scale": 0.0}, "scale"),
        ({"objective": "misalignment", "wait": 1.0}, "wait"),
        ({"objective": "beauty"}, "choose among"),
        ({"objective": "misalignment", "kind": "at_most", "bound": 1.0}, "nothing to optimise"),
    ],
)
def test_wrong_goals_say_what_is_wrong(entry, text):
    with pytest.raises(ValueError, match=text):
        goals([entry])


# -- known values ----------------------------------------------------------------------------------
def test_volumes_are_sums_of_shares():
    r = response()
    assert float(objectives.load("implant_volume").value(r)) == pytest.approx(
        float(r.volume @ r.fraction[:, 2]), rel=1e-14
    )
    assert float(objectives.load("graft_volume").value(r)) == pytest.approx(
        float(r.volume @ r.fraction[:, 3]), rel=1e-14
    )


def uniform_strain(voigt) -> Response:
    r = response()
    strain = np.broadcast_to(np.asarray(voigt, float), r.strain.shape)
    return replace(r, strain=strain, stress=np.zeros_like(strain))


@pytest.mark.parametrize(
    ("voigt", "share"),
    [
        ([0, 0, -YIELD_STRAIN_COMPRESSION, 0, 0, 0], 0.5),
        ([YIELD_STRAIN_TENSION, 0, 0, 0, 0, 0], 0.5),
        (
            [0, 0, 0, 2 * YIELD_STRAIN_TENSION, 0, 0],
            0.5,
        ),  # pure shear γ: principal strains ±γ/2, tension yields first
        ([0, 0, -0.5 * YIELD_STRAIN_COMPRESSION, 0, 0, 0], 0.0),
        ([0, 0, -1.5 * YIELD_STRAIN_COMPRESSION, 0, 0, 0], 1.0),
    ],
)
def test_yielded_bone_counts_half_at_yield_in_either_sense(voigt, share):
    r = uniform_strain(voigt)
    bone = float(np.sum(r.volume * r.near * r.fraction[:, :2].sum(-1)))
    # the floors of principal_strains move yield by 1e-9 of strain
    assert float(objectives.load("yielded_bone").value(r)) == pytest.approx(
        share * bone, rel=1e-5, abs=1e-9
    )


def test_stress_shielding_is_half_where_a_quarter_of_the_energy_is_left():
    r = response()
    r = replace(r, stress=1e3 * r.strain)
    energy = 0.5 * np.sum(r.strain * r.stress, axis=-1)
    for kept, share in ((0.25, 50.0), (1.0, 0.0), (0.05, 100.0)):
        value = float(
            objectives.load("stress_shielding").value(replace(r, reference_sed=energy / kept))
        )
        assert value == pytest.approx(share, abs=1e-4)
    with pytest.raises(ValueError, match="with_reference first"):
        objectives.load("stress_shielding").value(replace(r, reference_sed=None))


def test_implant_stress_is_the_ratio_to_the_limit():
    r = response()
    stress = np.zeros_like(r.stress)
    stress[..., 2] = -0.7 * r.fatigue_mpa
    measure = objectives.load("implant_stress")
    np.testing.assert_allclose(measure.per_load(replace(r, stress=stress)), 0.7, rtol=1e-6)
    # the p-norm over three equal loads
    assert float(measure.value(replace(r, stress=stress))) == pytest.approx(
        0.7 * 3 ** (1 / 8), rel=1e-6
    )
    with pytest.raises(ValueError, match="needs the fatigue limit"):
        measure.value(replace(r, fatigue_mpa=None))


def test_misalignment_is_the_rms_displacement_of_an_elliptic_endplate():
    """By quadrature over the ellipse, for a random rigid motion of the cranial vertebra against
    the caudal one."""
    rng = np.random.default_rng(3)
    caudal, cranial = rng.normal(size=(2, 6)) * [1, 1, 1, 0.02, 0.02, 0.02]
    r = response()
    r = replace(r, motion=np.broadcast_to(np.stack([caudal, cranial]), r.motion.shape))
    t, turn = (cranial - caudal)[:3], (cranial - caudal)[3:]
    a, b = 25.0, 17.0
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(-a, a, 801), np.linspace(-b, b, 801)))
    inside = (x / a) ** 2 + (y / b) ** 2 < 1
    points = np.stack([x, y, 0 * x], -1)[inside]
    rms = np.sqrt(np.mean(np.sum((t + np.cross(turn, points)) ** 2, axis=-1)))
    # staircase of 800 cells across the rim
    assert float(objectives.load("misalignment").value(r)) == pytest.approx(rms, rel=1e-3)
    with pytest.raises(ValueError, match="'walking' is not in this response"):
        objectives.load("misalignment", {"loadcase": "walking"}).value(r)


def test_principal_strains_are_the_extreme_eigenvalues():
    strain = 0.01 * np.random.default_rng(4).normal(size=(200, 6))
    strain[:20, 3:] = 0.0
    strain[:10, 1] = strain[:10, 0]  # repeated
    a, b, c, d, e, f = np.moveaxis(strain, -1, 0)
    tensors = np.moveaxis(
        np.array([[a, d / 2, e / 2], [d / 2, b, f / 2], [e / 2, f / 2, c]]), -1, 0
    )
    values = np.linalg.eigvalsh(tensors)
    low, high = principal_strains(jnp.asarray(strain))
    # the cosine is kept 1e-9 off ±1, worth √(2e-9)/3·size·... ≤ 1e-6 of a strain of 1 % at repeated
    # values
    np.testing.assert_allclose(low, values[:, 0], atol=1e-6)
    np.testing.assert_allclose(high, values[:, 2], atol=1e-6)
    np.testing.assert_allclose(low[20:], values[20:, 0], atol=1e-9)


def test_von_mises_of_textbook_states():
    for stress, expected in (
        ([0, 0, -5, 0, 0, 0], 5.0),
        ([3, 3, 3, 0, 0, 0], 0.0),
        ([0, 0, 0, 2, 0, 0], 2 * np.sqrt(3)),
    ):
        assert float(von_mises(jnp.asarray(stress, float))) == pytest.approx(expected, abs=1e-8)


def test_smooth_step_is_a_step_of_unit_height_and_symmetric():
    t = np.linspace(-2, 2, 401)
    s = np.asarray(smooth_step(jnp.asarray(t)))
    assert s[t <= -1].max() == 0.0 and s[t >= 1].min() == 1.0
    np.testing.assert_allclose(s + s[::-1], 1.0, atol=1e-15)
    assert np.all(np.diff(s) >= 0)
