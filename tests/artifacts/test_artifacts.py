"""The run folder survives kills and gives back exactly what was put in."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine import artifacts
from engine.interruption import Interrupt
from engine.types import VoxelField

ROOT = Path(__file__).resolve().parents[2]


def identical(a, b) -> bool:
    """Same structure and, leaf by leaf, same type, dtype, weak type and bits."""
    la, ta = jax.tree_util.tree_flatten(a)
    lb, tb = jax.tree_util.tree_flatten(b)
    if ta != tb:
        return False
    for x, y in zip(la, lb, strict=True):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if (
            isinstance(x, jax.Array) != isinstance(y, jax.Array)
            or np.asarray(x).dtype != np.asarray(y).dtype
        ):
            return False
        if isinstance(x, jax.Array) and x.weak_type != y.weak_type:
            return False
        if np.asarray(x).tobytes() != np.asarray(y).tobytes() or np.shape(x) != np.shape(y):
            return False
    return True


def some_state():
    params = {
        "pose": jnp.array([0.1, 1 / 3, -0.0]),
        "map": {"a/b": jnp.ones((2, 3), jnp.float32) / 3},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    return {
        "params": params,
        "optax": optimizer.init(params),
        "key": jax.random.key(7),
        "weak": jnp.full((2,), 0.1),
        "weak0": jnp.asarray(2.5),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "numpy": np.array([np.pi, np.inf, np.nan]),
        "scalars": (3, 0.1, True, "running"),
        "nothing": None,
    }


def test_state_round_trip_is_bit_exact(tmp_path):
    state = some_state()
    artifacts.save_state(tmp_path / "s.npz", state)
    back = artifacts.load_state(tmp_path / "s.npz", state)
    assert identical(back, state)
    assert type(back["optax"]) is type(state["optax"]) and back["scalars"] == (
        3,
        0.1,
        True,
        "running",
    )
    state["params"]["pose"] = (
        state["params"]["pose"].at[1].add(1e-16)
    )  # two units in the last place
    assert not identical(back, state)


def test_resumed_optimisation_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    optimizer = optax.adam(0.05)

    @jax.jit
    def step(x, s):
        updates, s = optimizer.update(
            jax.grad(lambda y: jnp.sum(jnp.sin(y) ** 2 + 0.1 * y**4))(x), s
        )
        return optax.apply_updates(x, updates), s

    x = jnp.linspace(-1.0, 2.0, 7)
    state = (x, optimizer.init(x))
    for i in range(20):
        if i == 11:
            artifacts.save_state(tmp_path / "s.npz", state)
        state = step(*state)
    resumed = artifacts.load_state(tmp_path / "s.npz", (jnp.zeros(7), optimizer.init(jnp.zeros(7))))
    for _ in range(9):
        resumed = step(*resumed)
    assert identical(resumed, state)


def test_same_state_gives_the_same_file(tmp_path):
    first = artifacts.save_state(tmp_path / "a.npz", some_state())
    second = artifacts.save_state(tmp_path / "b.npz", some_state())
    assert first == second
    assert artifacts.sha256_file(tmp_path / "a.npz") == artifacts.sha256_file(tmp_path / "b.npz")


def test_damaged_or_foreign_states_are_named(tmp_path):
    path, state = tmp_path / "s.npz", {"a": jnp.arange(400.0), "b": 1}
    artifacts.save_state(path, state)
    whole = path.read_bytes()

    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"damaged|not a saved state"):
            artifacts.load_state(path, state)
    where = whole.find(np.float64(200.0).tobytes())  # one flipped bit in the data
    path.write_bytes(whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1 :])
    with pytest.raises(ValueError, match="damaged"):
        artifacts.load_state(path, state)

    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"missing \[\"\['c'\]\"\]"):
        artifacts.load_state(path, {**state, "c": 1.0})
    with pytest.raises(ValueError, match="not expected"):
        artifacts.load_state(path, {"a": state["a"]})
    with pytest.raises(ValueError, match=r"shape \(400,\), expected \(3,\)"):
        artifacts.load_state(path, {"a": jnp.zeros(3), "b": 1})
    with pytest.raises(ValueError, match="does not exist"):
        artifacts.load_state(tmp_path / "none.npz", state)
    with pytest.raises(ValueError, match="only arrays"):
        artifacts.save_state(path, {"a": object()})
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="not a saved state"):
        artifacts.load_state(tmp_path / "other.npz", state)


def test_a_failing_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = artifacts.write_json(tmp_path / "result.json", {"a": 1})

    def half(stream):
        stream.write(b"half of the new con")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        artifacts.write_atomic(path, half)
    with pytest.raises(ValueError, match="null"):
        artifacts.write_json(path, {"a": float("nan")})
    assert artifacts.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("delay_s", [0.02, 0.05, 0.11])
def test_kill_during_writing_leaves_a_whole_state(tmp_path, delay_s):
    code = """
import sys, numpy as np
from engine import artifacts
from engine.interruption import Interrupt
i = 0
while True:
    i += 1
    artifacts.save_state(sys.argv[1], {"i": i, "a": np.full(200_000, float(i))})
    if i == 1: print("go", flush=True)
"""
    path = tmp_path / "s.npz"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"go\n"
    time.sleep(delay_s)
    child.kill()
    child.wait()
    child.stdout.close()
    state = artifacts.load_state(path, {"i": 0, "a": np.zeros(200_000)})
    assert state["i"] >= 1 and (state["a"] == state["i"]).all()


def test_rotation_keeps_the_last_two_and_the_best(tmp_path):
    for i in range(6):
        (tmp_path / f"state_{i:04d}.npz").touch()
    kept = artifacts.rotate(tmp_path, keep=2, best=tmp_path / "state_0001.npz")
    assert [p.name for p in kept] == ["state_0001.npz", "state_0004.npz", "state_0005.npz"]
    assert sorted(tmp_path.iterdir()) == kept
    with pytest.raises(ValueError, match="keep=0"):
        artifacts.rotate(tmp_path, keep=0)


def test_jsonl_drops_a_torn_last_line_only(tmp_path, caplog):
    path = tmp_path / "history.jsonl"
    assert artifacts.read_jsonl(path) == []
    for i in range(3):
        artifacts.append_jsonl(path, {"i": i, "x": np.float64(0.5), "v": jnp.arange(2)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert [r["i"] for r in artifacts.read_jsonl(path)] == [0, 1]
    assert "torn" in caplog.text
    artifacts.append_jsonl(path, {"i": 9})  # a resumed run goes on after the last whole line
    assert [r["i"] for r in artifacts.read_jsonl(path)] == [0, 1, 9]
    path.write_bytes(b"{broken\n" + whole)
    with pytest.raises(ValueError, match="line 1"):
        artifacts.read_jsonl(path)
    with pytest.raises(ValueError, match="Out of range float"):
        artifacts.append_jsonl(path, {"i": float("inf")})


def test_field_round_trip(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    field = VoxelField(values, np.array([1.0, -2.0, 0.5]), 0.7)
    back = artifacts.load_field(artifacts.save_field(tmp_path / "f.npz", field))
    assert back.values.dtype == np.float32 and back.spacing_mm == 0.7
    np.testing.assert_array_equal(back.values, field.values)
    np.testing.assert_array_equal(back.origin_mm, field.origin_mm)
    artifacts.write_npz(tmp_path / "g.npz", values=np.ones(3))
    with pytest.raises(ValueError, match="spacing_mm"):
        artifacts.load_field(tmp_path / "g.npz")


def test_versions_and_hash(tmp_path):
    facts = artifacts.versions()
    assert facts["jax"] == jax.__version__ and facts["numpy"] == np.__version__ and facts["cpu"]
    json.dumps(facts, allow_nan=False)
    (tmp_path / "f").write_bytes(b"spine")
    assert artifacts.sha256_file(tmp_path / "f") == hashlib.sha256(b"spine").hexdigest()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_finishes_the_step_and_restores_the_handlers(number):
    before = signal.getsignal(number)
    steps = []
    with Interrupt() as stop:
        for i in range(5):
            if i == 2:
                os.kill(os.getpid(), number)
            steps.append(i)
            if stop:
                break
        assert stop.signal_name == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert steps == [0, 1, 2]
    assert signal.getsignal(number) == before
