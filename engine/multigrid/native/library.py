"""The compiled solve (solver.cc) behind JAX's foreign-function interface: built on first use,
kept in .cache/native.

About twenty seconds of g++, once per state of the sources (solver.cc and its headers), compiler,
jaxlib and processor. Constants of the element come from engine.elasticity, so that both
implementations share them. Without a compiler `available` says so in the log and the caller uses
the XLA implementation, which is several times slower on CPUs.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import jax
import numpy as np

from engine.elasticity import CORNERS, child_interpolation, element_matrices, mode_matrix

log = logging.getLogger("spinefit")

#: Where solver.cc is, the one translation unit, and the headers that it includes.
SOURCES = Path(__file__).parent
_TARGETS = ("build", "solve", "pairing", "precondition")
#: One machine code for every loop: no peeling for alignment and no second version for pointers that
#: might alias, between which the heap's addresses would choose, and with it the order of a sum
#: (decision 48). Hot loops say `#pragma GCC ivdep` and need no second.
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffast-math",
    "-fno-finite-math-only",
    "--param=vect-max-peeling-for-alignment=0",
    "--param=vect-max-version-for-alias-checks=0",
    "-std=c++17",
    "-fopenmp",
    "-fPIC",
    "-w",
)
#: Linked by a call of its own that is not told -ffast-math. Told so, g++ before 13 adds
#: crtfastmath.o to shared libraries too, which on loading turns subnormal numbers off for the
#: thread and for every thread begun from it. SciPy's cKDTree then splits points at 0 for ever (0 is
#: not less than the next number after it) until the stack is full: a lattice after a search died.
_LINK = ("-shared", "-fopenmp")


def cache_dir() -> Path:
    """Where compiled code is kept: $SPINEFIT_CACHE, else .cache of the checkout, else
    ~/.cache/spinefit."""
    given = os.environ.get("SPINEFIT_CACHE")
    if given:
        return Path(given)
    root = Path(__file__).resolve().parents[3]
    return (
        root / ".cache"
        if (root / "pyproject.toml").is_file()
        else Path.home() / ".cache" / "spinefit"
    )


@cache
def available() -> bool:
    """Whether the compiled solve can be used here; builds and registers it at the first call.
    The reason is logged if not."""
    if jax.default_backend() != "cpu":
        return False
    if os.environ.get("SPINEFIT_NATIVE", "1") == "0":
        log.warning("SPINEFIT_NATIVE=0: the XLA implementation of the solver is used")
        return False
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        log.warning(
            "no C++ compiler (g++): the XLA implementation of the solver is used, several times"
            " slower; install build-essential"
        )
        return False
    try:
        library = ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (
            error.stderr.strip()[-500:]
            if isinstance(error, subprocess.CalledProcessError)
            else str(error)
        )
        log.warning(
            "the compiled solver cannot be used (%s); the XLA implementation is used, several times"
            " slower",
            detail,
        )
        return False
    for name in _TARGETS:
        jax.ffi.register_ffi_target(
            f"spinefit_{name}",
            jax.ffi.pycapsule(getattr(library, f"spinefit_{name}")),
            platform="cpu",
        )
    return True


def _build(compiler: str) -> Path:
    """The shared library, compiled if it is not there. Raises CalledProcessError with the
    compiler's words."""
    tables = _tables(moment_matrices())
    library = library_path(compiler, SOURCES, tables)
    if library.is_file():
        return library
    log.info("compiling the solver (once, about twenty seconds)")
    folder = library.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        (Path(scratch) / "multigrid_tables.h").write_text(tables)
        compiled, linked = Path(scratch) / "solver.o", Path(scratch) / "solver.so"
        include = [f"-I{place}" for place in (SOURCES, scratch, jax.ffi.include_dir())]
        for words in (
            [*_FLAGS, *include, "-c", str(SOURCES / "solver.cc"), "-o", str(compiled)],
            [*_LINK, str(compiled), "-o", str(linked)],
        ):
            subprocess.run([compiler, *words], capture_output=True, text=True, check=True)
        os.replace(linked, library)  # whole or not at all, whoever else compiles
    return library


def library_path(compiler: str, sources: Path, tables: str) -> Path:
    """Where the shared library is kept: its name is the hash of all that makes it (every source
    and header of the folder, generated tables, compiler, jaxlib, flags, processor)."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    files = sorted(p for kind in ("*.cc", "*.h") for p in sources.glob(kind))
    inputs = [part for p in files for part in (p.name, p.read_text())]
    flags = " ".join((*_FLAGS, *_LINK))
    inputs += [tables, version, importlib.metadata.version("jaxlib"), flags, _processor()]
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    return cache_dir() / "native" / f"multigrid-{key}.so"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _tables(coarse: np.ndarray) -> str:
    """C++ text of the constants and of the products in the trilinear modes, for unit spacing."""
    matrices = [np.asarray(k) for k in element_matrices(1.0)]
    fine = [mode_matrix(k) for k in matrices]
    lines = [
        "template <class T> inline void modes0(const Vec<T>* m, Vec<T> mu, Vec<T> lam, Vec<T>* f) {"
    ]
    for i in range(24):
        terms = [
            f"{name} * ({_row(fine[k][i], np.abs(fine[1]).max())})"
            for k, name in ((1, "mu"), (0, "lam"))
            if _any(fine[k][i])
        ]
        lines.append(f"  f[{i}] = {' + '.join(terms) or 'Vec<T>{}'};")
    lines.append("}")
    lines.append(
        "template <class T> inline void modes1(const Vec<T>* m, const Vec<T>* w, Vec<T>* f) {"
    )
    for i in range(24):
        terms = [
            f"w[{k}] * ({_row(coarse[k, i], np.abs(coarse).max())})"
            for k in range(16)
            if _any(coarse[k, i])
        ]
        lines.append(f"  f[{i}] = {' + '.join(terms) or 'Vec<T>{}'};")
    lines.append("}")
    lines.append("struct Entry { int field, i, j; double value; };")
    entries = [
        f"{{{k}, {i}, {j}, {float(coarse[k, i, j])!r}}}"
        for k, i, j in np.argwhere(np.abs(coarse) > 1e-12).tolist()
    ]
    lines.append(f"constexpr Entry kMode1Entries[] = {{{', '.join(entries)}}};")
    blocks = [[k[3 * a : 3 * a + 3, 3 * a : 3 * a + 3] for a in range(8)] for k in matrices[:2]]
    pick = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    diagonal = [[[float(m[p]) for p in pick] for m in every] for every in blocks]
    lines.append(f"constexpr double kDiagonal[2][8][6] = {_braces(diagonal)};")
    lines.append(
        "constexpr double kElement[3][576] ="
        f" {_braces([[float(v) for v in k.ravel()] for k in matrices])};"
    )
    return "\n".join(lines) + "\n"


def moment_matrices() -> np.ndarray:
    """Mode matrices [16, 24, 24] of a first-coarse-level element for its moments of λ (8) and μ
    (8), unit fine spacing.

    With w_m = mean over the children of f · Π_{axes in m} (−1 low, +1 high), K = Σ_m w_m(λ) B_m +
    w_m(μ) B_{8+m}.
    """
    transfer = child_interpolation()
    signs = 2.0 * np.array(CORNERS) - 1.0
    products = np.array([[np.prod(s ** np.array(mode)) for s in signs] for mode in CORNERS])
    out = []
    for k in element_matrices(1.0)[:2]:
        children = np.einsum("cji,jk,ckl->cil", transfer, k, transfer)
        out += [mode_matrix(b) for b in np.einsum("mc,cij->mij", products, children)]
    dense = np.stack(out)
    return np.where(np.abs(dense) > 1e-12 * np.abs(dense).max(), dense, 0.0)


def _any(row: np.ndarray) -> bool:
    return bool(np.any(np.abs(row) > 1e-12))


def _row(row: np.ndarray, largest: float) -> str:
    return " + ".join(
        f"T({float(row[j])!r}) * m[{j}]" for j in np.flatnonzero(np.abs(row) > 1e-12 * largest)
    )


def _braces(nested: list) -> str:
    return "{" + ", ".join(_braces(v) if isinstance(v, list) else repr(v) for v in nested) + "}"
