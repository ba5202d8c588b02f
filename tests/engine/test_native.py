"""The compiled solver as a guest: what else runs in the process computes as it did before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.multigrid.native import library

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own: what it looks for is a thread's state that nothing here sets back, and
# ends in a full stack. OpenMP's threads are asked through libgomp itself, which takes any function.
AFTER_A_SOLVE = """
import ctypes
import threading

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from engine.multigrid.compiled import native_pairing
from engine.multigrid.native import library

jax.config.update("jax_enable_x64", True)
smallest = np.nextafter(np.float64(0.0), np.float64(1.0))


def missing(where):
    if not smallest * np.float64(1.0) > 0.0:
        wrong.append(where)


wrong = []
missing("before it is loaded")
assert library.available()
missing("once it is loaded")
field = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 9, 9, 9)))
for _ in range(3):
    jax.block_until_ready(native_pairing(jnp.ones((8, 8, 8)), field, field, 1.0))
missing("after a call")
begun = threading.Thread(target=missing, args=("in a thread begun after a call",))
begun.start()
begun.join()
asked = []
ask = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
    lambda _: (asked.append(threading.get_ident()), missing("in OpenMP's threads"))
)
ctypes.CDLL("libgomp.so.1").GOMP_parallel(ask, None, 2, 0)
assert len(set(asked)) == 2, asked
print(wrong, flush=True)
# more than half of the points are at 0, so a tree splits them between 0 and the next number
cKDTree(np.repeat([[0.0], [1.0]], [30, 10], axis=0))
"""


def test_subnormal_numbers_are_there_after_a_solve():
    """Without them SciPy's trees recurse for ever on points at 0, and a lattice after a search died
    of it. Linking with -ffast-math turns them off on loading (g++ before 13); the solve does so in
    OpenMP's threads, while it runs."""
    if not library.available():
        pytest.skip("the compiled solver cannot be used here")
    surroundings = {**os.environ, "OMP_NUM_THREADS": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", AFTER_A_SOLVE],
        cwd=ROOT,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr[-2000:]


@pytest.mark.parametrize("name", ["solver.cc", "packing.h", "dense.h"])
def test_a_change_of_any_source_is_another_library(name, tmp_path):
    """A header counts as the translation unit does: code compiled from other sources is never
    taken for this."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler here")
    shutil.copytree(library.SOURCES, tmp_path / "native")
    own = library.library_path(compiler, library.SOURCES, "tables")
    assert library.library_path(compiler, tmp_path / "native", "tables") == own
    assert library.library_path(compiler, tmp_path / "native", "others") != own
    with (tmp_path / "native" / name).open("a") as stream:
        stream.write("// changed\n")
    assert library.library_path(compiler, tmp_path / "native", "tables") != own
