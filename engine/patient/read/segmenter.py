"""What every segmenter tells of itself: which scans it is for, where its weights are, what is asked
of it, and which of its files is the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: "auto": a GPU where there is one, else the CPU.
Device = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True)
class Weights:
    """Where a tool's trained models lie, and which of them are used (names within `folder`)."""

    folder: Path
    models: tuple[str, ...]


class Segmenter(ABC):
    """One tool: what it is, where its weights are, what is asked of it, and which of its files
    is the answer."""

    name: str
    modality: Literal["CT", "MR"]
    scheme: str  #: key of SCHEMES
    executable: str
    distribution: str  #: the package whose version is recorded
    install: str  #: what the user runs to get it
    #: what the scan is called in the private folder, which is the command's working folder
    scan_name: str

    @abstractmethod
    def weights(self, executable: Path) -> Weights:
        """The user's local weights of the tool that is installed there.

        Raises: ValueError that says where they were looked for and how to fetch them.
        """

    @abstractmethod
    def command(self, weights: Weights, device: Device) -> list[str]:
        """The arguments, without the executable."""

    @abstractmethod
    def environment(self, weights: Weights, work: Path) -> dict[str, str]:
        """Variables that the child gets on top of ours, after writing what they point at into
        `work`."""

    @abstractmethod
    def output(self, work: Path) -> list[Path]:
        """The files in `work` that look like the mask: one when all went well."""

    def disagreements(self, segments: Mapping[int, str]) -> list[str]:
        """Where the names {number: name} that the mask's file carries are other than the scheme's;
        most formats carry none."""
        return []

    def no_weights(self, looked: Path, missing: list[str], fetch: str) -> ValueError:
        """The error that `weights` raises: what is missing where, and how to fetch it."""
        return ValueError(
            f"segmenter {self.name}: its weights {', '.join(missing)} are not in {looked}. They are"
            f" not fetched from here; {fetch}. Or give the path of a label image as source.mask"
        )
