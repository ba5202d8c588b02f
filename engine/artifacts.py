"""The run folder: atomic writes, checkpoints, hashes, versions, the event log.

Every file appears whole or not at all: temporary file in the same folder, fsync, rename, fsync of
the folder. Checkpoints are plain npz (no pickle): one array per leaf, named by its path in the
tree, and `__meta__`, a JSON with format version, structure, dtypes and a SHA-256 over all leaves.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import platform
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.types import VoxelField

log = logging.getLogger(__name__)

STATE_VERSION = 1
META = "__meta__"
PACKAGES = tuple("jax jaxlib optax numpy scipy sfepy pymeshlab mmgpy pypardiso pyamg".split())


# -- atomic files ----------------------------------------------------------------------------------
def write_atomic(path: Path | str, write: Callable[[io.BufferedWriter], Any]) -> Path:
    """Call write(stream) on a temporary file next to `path`, then put it in place in one step.

    After a crash or a kill at any moment `path` is either the old file or the whole new one. Raises
    what `write` raises (and then leaves the old file and no temporary one).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write bytes atomically."""
    return write_atomic(path, lambda stream: stream.write(data))


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode())


def json_value(value: Any) -> Any:
    """What JSON does not know, as what it does: `default` of json.dumps."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(
        f"{type(value).__name__} cannot be written as JSON; give numbers, text, lists or dicts"
    )


def write_json(path: Path | str, data: Any) -> Path:
    """Write JSON atomically; numpy and jax values become plain ones. Raises ValueError on NaN or
    infinity."""
    try:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=json_value)
    except ValueError as error:
        raise ValueError(
            f"{Path(path).name}: {error}; write null and a status in place of NaN or infinity"
        ) from error
    return write_text(path, text + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON. Raises ValueError that names the file when it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error


def write_npz(path: Path | str, **arrays: Any) -> Path:
    """Write arrays as compressed npz, atomically. Raises ValueError for arrays that would need
    pickle."""
    plain: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    for name, value in plain.items():
        if value.dtype.hasobject:
            raise ValueError(
                f"{Path(path).name}: array {name!r} holds Python objects; give numbers or text"
            )
    return write_atomic(path, lambda stream: np.savez_compressed(stream, **plain))


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """Read all arrays of an npz without pickle. Raises ValueError when it is missing, damaged or
    not an npz."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged or not an npz ({type(error).__name__}: {error})"
        ) from error


# -- checkpoints -----------------------------------------------------------------------------------
def _flatten(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path) or "<root>", leaf) for path, leaf in leaves]


def _encode(name: str, leaf: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """One leaf as a plain array and what is needed to give it back exactly."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf)), {
            "kind": "key",
            "impl": str(jax.random.key_impl(leaf)),
        }
    if isinstance(leaf, bool | int | float | str):
        array = np.asarray(leaf)
        if array.dtype.hasobject:
            raise ValueError(f"state leaf {name} = {leaf!r} does not fit in 64 bits")
        return array, {"kind": type(leaf).__name__}
    if isinstance(leaf, np.ndarray | np.generic | jax.Array):
        array = np.asarray(leaf)
        if array.dtype.hasobject:
            raise ValueError(
                f"state leaf {name} holds Python objects; only numbers and text can be saved"
            )
        meta: dict[str, Any] = {
            "kind": "jax" if isinstance(leaf, jax.Array) else "numpy",
            "dtype": array.dtype.name,
        }
        if isinstance(leaf, jax.Array):
            meta["weak"] = bool(leaf.weak_type)
            if array.dtype.kind == "V":  # bfloat16 and friends: npz would store them as raw void
                array = array.view(f"u{array.dtype.itemsize}")
        return array, meta
    raise ValueError(
        f"state leaf {name} is a {type(leaf).__name__}; only arrays, numbers, bool and text can be"
        " saved"
    )


def _decode(name: str, array: np.ndarray, meta: dict[str, Any]) -> Any:
    kind = meta["kind"]
    if kind == "key":
        return jax.random.wrap_key_data(jnp.asarray(array), impl=meta["impl"])
    if kind in ("bool", "int", "float", "str"):
        return {"bool": bool, "int": int, "float": float, "str": str}[kind](array.item())
    if kind == "numpy":
        return array
    if array.dtype.name != meta["dtype"]:
        array = array.view(jnp.dtype(meta["dtype"]))
    value = jnp.asarray(array)
    if value.dtype != array.dtype:
        raise ValueError(
            f"state leaf {name} is {array.dtype} but JAX gives {value.dtype}; set jax_enable_x64"
            " first"
        )
    if meta["weak"]:  # weak types decide later promotions, so they belong to the state
        scalar = jnp.asarray({"f": 0.0, "i": 0, "c": 0j}.get(array.dtype.kind, 0))
        weak = jnp.broadcast_to(scalar, array.shape)
        if weak.dtype == value.dtype:
            value = weak.at[...].set(value)
    return value


def _digest(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_state(path: Path | str, tree: Any) -> str:
    """Save a pytree (dicts, tuples, named tuples, registered dataclasses, optax states) bit for
    bit; atomic.

    Returns the SHA-256 over all leaves. Raises ValueError for a leaf that is not an array, number
    or text.
    """
    arrays, entries = {}, []
    for name, leaf in _flatten(tree):
        array, meta = _encode(name, leaf)
        arrays[name] = array
        entries.append({"name": name, **meta})
    digest = _digest(arrays.items())
    head = json.dumps({"version": STATE_VERSION, "leaves": entries, "sha256": digest}).encode()
    full = {META: np.frombuffer(head, np.uint8), **arrays}

    def write(stream: io.BufferedWriter) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in full.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_atomic(path, write)
    return digest


def load_state(path: Path | str, like: Any) -> Any:
    """Load what `save_state` wrote, in the structure of `like` (its leaves only say the expected
    shapes).

    Raises ValueError when the file is missing, damaged, of another version, or of another structure
    or shape.
    """
    arrays = read_npz(path)
    if META not in arrays:
        raise ValueError(f"{path} is not a saved state (no {META}); was it written by save_state?")
    head = json.loads(arrays.pop(META).tobytes())
    if head["version"] != STATE_VERSION:
        raise ValueError(
            f"{path} has state version {head['version']}; this code reads {STATE_VERSION}: start"
            " anew"
        )
    if _digest(arrays.items()) != head["sha256"]:
        raise ValueError(
            f"{path} is damaged: its checksum does not match; resume from the state before it"
        )
    entries = {entry["name"]: entry for entry in head["leaves"]}
    wanted = _flatten(like)
    missing = [name for name, _ in wanted if name not in entries]
    extra = sorted(set(entries) - {name for name, _ in wanted})
    if missing or extra:
        raise ValueError(
            f"{path} has another structure: missing {missing[:5] or 'nothing'}, not expected"
            f" {extra[:5] or 'nothing'}; it was saved with another configuration"
        )
    leaves = []
    for name, leaf in wanted:
        value = _decode(name, arrays[name], entries[name])
        given, expected = np.shape(value), np.shape(leaf)
        if given != expected:
            raise ValueError(
                f"{path}: {name} has shape {given}, expected {expected}; another configuration?"
            )
        leaves.append(value)
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), leaves)


def rotate(
    folder: Path | str, pattern: str = "state_*.npz", keep: int = 2, best: Path | str | None = None
) -> list[Path]:
    """Delete all but the last `keep` files (by name: number them with leading zeros) and `best`;
    returns the kept."""
    if keep < 1:
        raise ValueError(f"keep={keep} would delete every checkpoint; give 1 or more")
    files = sorted(Path(folder).glob(pattern))
    spared = {Path(best).resolve()} if best is not None else set()
    kept = [
        path for i, path in enumerate(files) if i >= len(files) - keep or path.resolve() in spared
    ]
    for path in files:
        if path not in kept:
            path.unlink(missing_ok=True)
    return kept


# -- fields ----------------------------------------------------------------------------------------
def save_field(path: Path | str, field: VoxelField) -> Path:
    """Save a VoxelField as npz (values, origin_mm, spacing_mm), atomically."""
    return write_npz(
        path,
        values=field.values,
        origin_mm=field.origin_mm,
        spacing_mm=np.float64(field.spacing_mm),
    )


def load_field(path: Path | str) -> VoxelField:
    """Load a VoxelField. Raises ValueError when the file is damaged or holds something else."""
    data = read_npz(path)
    missing = {"values", "origin_mm", "spacing_mm"} - set(data)
    if missing:
        raise ValueError(f"{path} is not a voxel field: {sorted(missing)} missing")
    return VoxelField(data["values"], data["origin_mm"], float(data["spacing_mm"]))


# -- event log -------------------------------------------------------------------------------------
def append_jsonl(path: Path | str, record: dict[str, Any]) -> None:
    """Append one JSON line and flush it to disk; a torn line left by a kill is closed off first.

    Raises ValueError on NaN or infinity."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False, default=json_value)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":
                _cut_torn_line(stream, path)
        stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _cut_torn_line(stream: Any, path: Path) -> None:
    stream.seek(0)
    whole = stream.read().rfind(b"\n") + 1
    log.warning("%s: dropped a torn last line (an earlier run was killed while writing it)", path)
    stream.truncate(whole)


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """All records; [] when there is no file. A torn last line is dropped with a log line.

    Raises ValueError when another line is damaged."""
    path = Path(path)
    if not path.exists():
        return []
    records, lines = [], path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number == len(lines):
                log.warning(
                    "%s: dropped a torn last line (the run was killed while writing it)", path
                )
                break
            raise ValueError(f"{path} line {number} is not valid JSON ({error})") from error
    return records


# -- provenance ------------------------------------------------------------------------------------
def digest(value: Any) -> str:
    """SHA-256 of arrays, numbers, strings, dataclasses and containers of them."""
    code = hashlib.sha256()
    _feed(code, value)
    return code.hexdigest()


def _feed(code: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        code.update(f"{value.dtype}{value.shape}".encode())
        code.update(np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(code, asdict(value))
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            code.update(f"<{key}>".encode())
            _feed(code, value[key])
    elif isinstance(value, list | tuple):
        code.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(code, item)
    elif value is None or isinstance(value, str | int | float | bool | np.generic):
        code.update(f"{type(value).__name__}:{value!r};".encode())
    else:
        raise TypeError(f"there is no digest of a {type(value).__name__}")


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def versions() -> dict[str, Any]:
    """What computed this: package versions, platform, processor, and the commit (null outside a
    git checkout)."""
    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("spinefit", *PACKAGES):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    facts["cpu"] = _processor()
    facts["cpu_count"] = os.cpu_count()
    facts["jax_backend"] = jax.default_backend()
    facts["git_sha"] = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    facts["git_dirty"] = None if status is None else bool(status)
    return facts
