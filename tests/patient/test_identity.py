"""Numbers are believed where bones agree. The masks are the lumbar phantom's under other
people's numbers; real spines keep theirs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from engine.patient.labels import identity
from engine.patient.labels.pieces import solid_piece
from engine.patient.labels.quality import stops
from engine.patient.labels.understand import Labels, understand
from engine.patient.model import surfaces
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from engine.patient.read.surface_files import read_surface
from tests.patient.conftest import needs_data

#: VerSe's numbers of the phantom.
VERSE = {"L1": 20, "L2": 21, "L3": 22, "L4": 23, "L5": 24, "S1": 26}


def renumbered(
    labels: Image, numbers: Mapping[str, int], names: Mapping[int, str] | None = None
) -> Image:
    """The labels under other numbers by level (levels not given vanish), with names for numbers."""
    values = np.zeros(labels.values.shape, np.int16)
    for level, number in numbers.items():
        values[labels.values == VERSE[level]] = number
    source = {"path": "labels.nii.gz", "format": "NIfTI"} | (
        {} if names is None else {"segments": dict(names)}
    )
    return Image(values, labels.lps_from_index, "SEG", (), source)


def read(image: Image, **given: object) -> Labels:
    return understand(image, ("L4", "L5"), **given)  # type: ignore[arg-type]


def volumes(labels: Labels) -> dict[str, float]:
    return {level: piece.volume_mm3 for level, piece in labels.pieces.items()}


def identities(labels: Labels) -> list[tuple[str, str]]:
    return [
        (finding.severity, finding.text)
        for finding in labels.findings
        if finding.code == "identity"
    ]


def test_spiders_numbers_are_not_a_sacrum_and_four_levels(lumbar_labels: Image) -> None:
    """L5 = 1 upwards: as vertebrae_mr the same numbers would be the sacrum and L5 to L2, one
    level off."""
    truth = volumes(read(lumbar_labels))
    spider = read(renumbered(lumbar_labels, {"L5": 1, "L4": 2, "L3": 3, "L2": 4, "L1": 5}))
    assert volumes(spider) == {level: v for level, v in truth.items() if level != "S1"}
    assert "shape of a mobile vertebra" in identities(spider)[0][1]


def test_totalsegmentators_two_versions_are_told_apart(lumbar_labels: Image) -> None:
    truth = volumes(read(lumbar_labels))
    second = read(
        renumbered(lumbar_labels, {"L5": 27, "L4": 28, "L3": 29, "L2": 30, "L1": 31, "S1": 25})
    )
    first = read(
        renumbered(lumbar_labels, {"L5": 18, "L4": 19, "L3": 20, "L2": 21, "L1": 22, "S1": 92})
    )
    assert second.scheme.name == "totalsegmentator" and first.scheme.name == "totalsegmentator_v1"
    assert volumes(second) == truth == volumes(first)


def test_where_two_readings_remain_both_lines_are_printed(lumbar_labels: Image) -> None:
    """2, 3 upwards alone: L5 and L4 in one scheme, L4 and L3 in another; sizes of two bones do
    not tell."""
    with pytest.raises(
        ValueError,
        match=(
            r"give source.labels=vertebrae_mr \(L4 3 … L5 2\).*or source.labels=spider \(L3 3 …"
            r" L4 2\)"
        ),
    ):
        read(renumbered(lumbar_labels, {"L4": 3, "L5": 2}))


def test_names_win_over_numbers(lumbar_labels: Image) -> None:
    """Segments 1 and 2 as a DICOM-SEG must have them, named L4 and L5."""
    truth = volumes(read(lumbar_labels))
    named = read(
        renumbered(lumbar_labels, {"L4": 1, "L5": 2}, {1: "L4 vertebra", 2: "vertebrae_L5"})
    )
    assert volumes(named) == {level: truth[level] for level in ("L4", "L5")}
    assert "names that the file carries (1 'L4 vertebra'" in identities(named)[0][1]
    with pytest.raises(
        ValueError, match=r"source.labels=verse contradicts the names.*24 is 'L4', not L5"
    ):
        read(renumbered(lumbar_labels, VERSE, {24: "L4", 23: "L3"}), scheme="verse")


def test_numbers_that_mean_nothing_are_asked_for(lumbar_labels: Image) -> None:
    image = renumbered(
        lumbar_labels, {"L4": 1, "L5": 2, "S1": 3}, {1: "Segment_1", 2: "Segment_2", 3: "Segment_3"}
    )
    image.source["numbers_mean_nothing"] = True
    with pytest.raises(
        ValueError, match=r"numbers say no level.*'source.label_map=\{L4: 1, L5: 2, S1: 3\}'"
    ):
        read(image)


def test_unknown_numbers_are_answered_by_a_ready_map(lumbar_labels: Image) -> None:
    image = renumbered(lumbar_labels, {level: 300 + number for level, number in VERSE.items()})
    with pytest.raises(
        ValueError,
        match=r"no label scheme explains.*'source.label_map=\{L1: 320, .* L5: 324, S1: 326\}'",
    ):
        read(image)
    mapped = read(
        image, label_map={"L1": 320, "L2": 321, "L3": 322, "L4": 323, "L5": 324, "S1": 326}
    )
    assert volumes(mapped) == volumes(read(lumbar_labels))


def test_a_body_given_as_the_sacrum_stops(lumbar_labels: Image) -> None:
    wrong = read(lumbar_labels, label_map={"L3": 21, "L4": 22, "L5": 23, "S1": 24})
    assert identities(wrong)[0][0] == "stop" and "shape of a mobile vertebra" in stops(
        wrong.findings
    )
    accepted = read(
        lumbar_labels, label_map={"L3": 21, "L4": 22, "L5": 23, "S1": 24}, accept=("identity",)
    )
    assert identities(accepted)[0][0] == "accepted"


def test_lumbar_bones_given_as_thoracic_stop(lumbar_labels: Image) -> None:
    """Four levels off: spans of 67-78 mm where T9-L1 have 47-71."""
    wrong = understand(
        lumbar_labels,
        ("T12", "L1"),
        label_map={"T9": 20, "T10": 21, "T11": 22, "T12": 23, "L1": 24},
        levels="all",
    )
    severity, text = identities(wrong)[0]
    assert severity == "stop" and "have the sizes of L1..L5" in text


def test_the_identity_says_what_it_rests_on(lumbar_labels: Image) -> None:
    severity, text = identities(read(lumbar_labels))[0]
    assert severity == "note" and text.startswith("levels are L1..L5 and sacrum") and "χ²" in text


@pytest.mark.parametrize(
    ("name", "scheme", "levels"),
    [
        ("verse004_mask/sub-verse004_seg-vert_msk.nii.gz", "verse", ["T9", "L5"]),
        ("ct_totalsegmentator/totalseg.nii.gz", "totalsegmentator", ["L1", "L5"]),
        ("ct_totalsegmentator/totalseg_vertebrae_pp_refined.nii.gz", "verse", ["L1", "L5"]),
    ],
)
def test_real_spines_have_the_sizes_of_their_levels(
    name: str, scheme: str, levels: list[str]
) -> None:
    """No shift of the levels fits better than none; in a run that holds T12 or all of L1-L5 one
    level off is 8 worse at least."""
    found = understand(
        read_labels(needs_data(name)), ("L3", "L4"), scheme=scheme, levels="all"
    ).pieces
    clues = identity.evidence({level: piece for level, piece in found.items()})
    assert clues.shift == 0 and not clues.doubts
    assert clues.own is not None and clues.own < 12.0


def test_ribs_tell_a_count_that_is_off(lumbar_labels: Image) -> None:
    """Ribs 11 and 12 drawn at the two upper bones: right where these are called T11 and T12, a
    warning where T12 and L1."""
    bones = list(read(lumbar_labels).pieces.values())[:5]
    ribs = {}
    for number, bone in zip((11, 12), bones, strict=False):
        out = np.linspace(0.0, 90.0, 60)[:, None] * np.array([1.0, 0.4, -0.3])
        start = bone.body_mm + [0.0, 0.0, 8.0]
        ribs[number] = np.concatenate(
            [start + [25.0, 12.0, 0.0] + out, start + [-25.0, 12.0, 0.0] + out * [-1.0, 1.0, 1.0]]
        )
    right = dict(zip(("T11", "T12", "L1", "L2", "L3"), bones, strict=True))
    off = dict(zip(("T12", "L1", "L2", "L3", "L4"), bones, strict=True))
    assert [f.severity for f in identity.rib_findings(right, ribs)] == ["note"]
    (finding,) = identity.rib_findings(off, ribs)
    assert finding.severity == "warning" and "rib 12 at L1" in finding.text


@pytest.mark.parametrize(
    ("folder", "axes", "sacrum"),
    [("lumbar_meshes", "ALS", "S1"), ("spine_c1_coccyx", "LSA", "Sacrum")],
)
def test_real_surfaces_have_the_sizes_of_their_names(folder: str, axes: str, sacrum: str) -> None:
    """As named: a note. Each named one level down, L5 is called the sacrum, and stops."""
    place = needs_data(folder)
    turn = surfaces.orientation_matrix(axes)
    found = {}
    for level in ("L1", "L2", "L3", "L4", "L5", "S1"):
        raw, _ = read_surface(place / f"{sacrum if level == 'S1' else level}.stl", "mm")
        found[level] = solid_piece(level, surfaces.turn_matrix(turn, raw))
    clues = identity.evidence(found)
    assert [f.severity for f in identity.findings(found, clues, "names")] == ["note"]
    wrong = {
        upper: found[lower]
        for upper, lower in zip(
            ("L2", "L3", "L4", "L5", "S1"), ("L1", "L2", "L3", "L4", "L5"), strict=True
        )
    }
    assert (
        "shape of a mobile vertebra"
        in identity.findings(wrong, identity.evidence(wrong), "names")[0].text
    )


def test_a_chord_that_misses_its_bone_says_nothing_of_the_level():
    """A deepest point outside of the mask gives a width of 0: it is left out, where its logarithm
    would make χ² no number, which counts as no worse than any other."""
    sizes = {level: shape(*identity.TYPICAL[level]) for level in ("L2", "L3", "L4", "L5")}
    assert identity.misfit(sizes) == pytest.approx(0.0, abs=1e-12)
    missed = sizes | {"L3": shape(0.0, identity.TYPICAL["L3"][1])}
    assert identity.misfit(missed) == pytest.approx(0.0, abs=1e-12)
    beside = identity.misfit(missed, shift=-1)
    assert beside is not None and 0.0 < beside < np.inf


def shape(width_mm: float, span_mm: float) -> identity.Shape:
    return identity.Shape(width_mm, 34.0, span_mm, 90.0, 27.0, 40_000.0, True)
