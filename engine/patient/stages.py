"""Results of the slow stages on disk, by content: an interrupted preparation goes on where it
stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.artifacts import digest

#: Counts up when a stage's result changes for the same input.
VERSION = 2


class Stages:
    """A folder of arrays, each under its stage's name and the hash of everything that it depends
    on.

    folder None keeps nothing (tests, callers without a place). `log` is told what each stage took.
    """

    def __init__(
        self, folder: Path | None = None, log: Callable[[str], None] | None = None
    ) -> None:
        self.folder = folder
        self.log = log or (lambda line: None)

    def run(
        self,
        name: str,
        depends_on: Any,
        make: Callable[[], tuple[dict[str, np.ndarray], list[str]]],
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """The stage's arrays and notes: read back where the same stage was run on the same
        input, else made and kept."""
        started = time.perf_counter()
        path = (
            None
            if self.folder is None
            else self.folder / f"{name}-{digest((VERSION, name, depends_on))[:20]}.npz"
        )
        if path is not None and path.is_file():
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            notes = json.loads(str(arrays.pop("_notes")))
            self.log(f"{name}: kept from before")
            return arrays, notes
        arrays, notes = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.npz")
            np.savez_compressed(part, _notes=np.array(json.dumps(notes)), **arrays)  # type: ignore[arg-type]
            part.replace(path)  # a stage is there whole or not at all
        self.log(f"{name}: {time.perf_counter() - started:.1f} s")
        return arrays, notes
