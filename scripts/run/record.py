"""What a check has done so far, on disk: an interrupted check goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from engine import artifacts
from fem.verify import Check, Reference
from scripts.run.measures import arm_result, contact_of
from scripts.run.opened import Opened

log = logging.getLogger("spinefit")


class Record:
    """What is known of one arm, kept in <folder>/fem/<arm>/arm.json as it comes, so that an
    interrupted check goes on with the rest.

    The key is the hash of all that makes it: patient, study, settings of the check, the design's
    parameters and the exported surface.
    """

    def __init__(self, opened: Opened, folder: Path, name: str, engine: dict[str, Any]) -> None:
        self.study, self.folder, self.name, self.engine = opened.study, folder, name, engine
        self.keep = opened.config.keep.solutions
        self.frictions = () if name == "intact" else opened.config.fem.contact
        design, part = (folder / "designs" / name / file for file in ("design.json", "implant.stl"))
        made = (
            opened.config.identity(),
            artifacts.digest(opened.segment),
            opened.mesh,
            opened.fem,
            engine,
            design.read_text(),
        )
        self.key = artifacts.digest((*made, artifacts.sha256_file(part) if part.exists() else None))
        self.path = folder / "fem" / name / "arm.json"
        self.reference_path = folder / "fem" / name / "reference.npz"
        self.held: dict[str, Any] = {}
        if self.path.exists() and (before := artifacts.read_json(self.path)).get("key") == self.key:
            self.held = before

    @property
    def whole(self) -> bool:
        """Bonded and with every contact that is asked for (of an arm that failed bonded there is
        none)."""
        if "bonded" not in self.held:
            return False
        return "measures" not in self.held["bonded"] or all(
            str(mu) in self.held["contact"] for mu in self.frictions
        )

    def forget(self) -> None:
        self.held = {}

    def add(self, found: Check, friction: float | None) -> None:
        """Take in one solve; what died is shown, and is not kept for another time."""
        if friction is None:
            self.held = {
                "key": self.key,
                "bonded": arm_result(
                    self.study, self.name, found, self.engine, self.folder, self.keep
                ),
                "contact": {},
            }
        else:
            self.held["contact"][str(friction)] = contact_of(self.study, self.name, friction, found)
        if not found.died:
            artifacts.write_json(self.path, self.held)

    def arm(self) -> dict[str, Any]:
        """The arm's part of result.json."""
        contact = [
            self.held["contact"][str(mu)]
            for mu in sorted(self.frictions)
            if str(mu) in self.held["contact"]
        ]
        return self.held["bonded"] | {"contact": contact}

    def keep_reference(self, reference: Reference) -> None:
        artifacts.write_npz(
            self.reference_path,
            key=self.key,
            position_mm=reference.position_mm,
            energy=reference.energy,
        )

    def reference(self) -> Reference | None:
        """The intact segment's energy that an interrupted check had left."""
        if not self.reference_path.exists():
            return None
        try:
            held = artifacts.read_npz(self.reference_path)
        except ValueError as error:
            log.warning("%s", error)
            return None
        return (
            Reference(held["position_mm"], held["energy"]) if str(held["key"]) == self.key else None
        )
