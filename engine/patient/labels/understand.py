"""Label images understood: which levels they hold, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from engine.patient.geometry.levels import LEVELS
from engine.patient.labels import identity
from engine.patient.labels.numbering import scheme_of
from engine.patient.labels.objects import Objects
from engine.patient.labels.orientation import orientation_findings, side_findings
from engine.patient.labels.pieces import Piece
from engine.patient.labels.quality import gate
from engine.patient.labels.resampling import without_rims
from engine.patient.read.image import Image
from engine.patient.read.schemes import Scheme, some
from engine.types import Finding

#: Levels that are read by default: what lumbar alignment is measured on.
LUMBAR = ("T12", "T13", "L1", "L2", "L3", "L4", "L5", "L6")
#: Levels whose sizes are asked for the identity of the levels, read or not.
_MEASURED = (*LUMBAR, "T10", "T11")
#: Numbers above this are kept as int32.
_LARGEST_INT16 = 32000


@dataclass(frozen=True)
class Labels:
    """A label image that has been understood: its scheme, the pieces that are read, and what the
    gate found.

    pieces   mobile levels cranial to caudal, then "S1" where there is a sacrum; those that the gate
             leaves out are not in it
    """

    image: Image
    scheme: Scheme
    pieces: dict[str, Piece]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def tissue(self, name: str) -> np.ndarray | None:
        """Mask [i, j, k] of another structure of the scheme ("aorta", "femur_left", …); None
        where the image has none."""
        numbers = self.scheme.tissues.get(name, ())
        mask = np.isin(self.image.values, numbers) if numbers else None
        return mask if mask is not None and mask.any() else None


def understand(
    image: Image,
    segment: tuple[str, str],
    *,
    scheme: str = "auto",
    label_map: Mapping[str, int] | None = None,
    levels: str = "lumbar",
    accept: tuple[str, ...] = (),
) -> Labels:
    """The vertebrae of a label image and the findings of the quality gate (quality.py); nothing is
    raised for those.

    levels   "segment" (its two), "lumbar" (also T12-L6 and the sacrum) or "all"

    What the numbers mean: label_map, scheme, the names that the file carries, or the one scheme
    that explains the numbers, their order and the sizes of the bones (identity.py). Labels that
    were resampled with interpolation are mended first (resampling.py).

    Raises: ValueError where several schemes remain, or none, with the line that chooses one; for an
    unknown scheme, and one that does not fit the numbers or the names.
    """
    image, mended = without_rims(_compact(image))
    objects = Objects(image.values, image.lps_from_index)
    chosen, how = scheme_of(objects, image, scheme, label_map)
    present = chosen.levels(set(objects.heights_mm))
    wanted = {"segment": segment, "lumbar": (*LUMBAR, *segment), "all": (*LEVELS, "T13")}[levels]
    measured = {*wanted, *_MEASURED}
    bones = objects.pieces(chosen, [level for level in present if level in measured])
    clues = identity.evidence(bones, objects.parts(chosen))
    read = {k: p for k, p in bones.items() if k in wanted or (k == "S1" and levels != "segment")}
    about = [
        *identity.findings(bones, clues, how),
        *identity.rib_findings(bones, objects.ribs(chosen)),
        *orientation_findings(bones),
        *side_findings(image, chosen, bones),
        *_resampled(image, mended),
    ]
    findings = gate(read, chosen, image.values, segment, image.voxel_mm, accept, about)
    if not set(segment) <= set(present):
        # the gate has named it; say what the whole image holds, not only what is read
        listing = ", ".join(f"{level} ({chosen.vertebrae[level]})" for level in present)
        listing = listing or f"the numbers {some(sorted(objects.heights_mm))}, no level among them"
        findings = [f if f.code != "absent" else _absent(f, chosen, listing) for f in findings]
    out = {finding.level for finding in findings if finding.severity == "left out"}
    kept = {level: piece for level, piece in read.items() if level not in out}
    notes = (*image.notes, f"labels read as {chosen.title}: {how}")
    return Labels(image, chosen, kept, tuple(findings), notes)


def _resampled(image: Image, mended: str) -> list[Finding]:
    """The finding "resampled": what was mended, or that the reader rounded interpolated values."""
    text = mended
    if not text and image.source.get("interpolated"):
        text = (
            "the labels hold values between whole numbers, as interpolation leaves them; they were"
            " rounded"
        )
    return [Finding("resampled", "warning", "", text)] if text else []


def _compact(image: Image) -> Image:
    """The image with contiguous int16 values, or int32 where they need it."""
    kind = np.int32 if image.values.max(initial=0) > _LARGEST_INT16 else np.int16
    return replace(image, values=np.ascontiguousarray(image.values, kind))


def _absent(finding: Finding, scheme: Scheme, listing: str) -> Finding:
    """The finding "absent" with a listing of the levels that the whole image has."""
    number = scheme.vertebrae.get(finding.level)
    text = (
        f"{finding.level} is absent{'' if number is None else f' (label {number})'}; the image"
        f" holds {listing}, read as {scheme.title}; choose a segment among them, or say what the"
        " numbers are by source.label_map={level: number, …}"
    )
    return Finding(finding.code, finding.severity, finding.level, text)
