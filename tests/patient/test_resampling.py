"""Labels resampled with interpolation are found and mended: the volumes are those of the labels
before."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import zoom

from engine.patient.labels.resampling import rim_share, without_rims
from engine.patient.labels.understand import understand
from engine.patient.read.image import Image
from engine.patient.read.images import read_labels
from tests.patient.conftest import needs_data


def _interpolated(labels: Image, factor: float = 1.6) -> Image:
    """Linear interpolation and rounding, as a viewer's default does."""
    values = np.rint(zoom(labels.values.astype(np.float32), factor, order=1)).astype(np.int16)
    matrix = labels.lps_from_index.copy()
    matrix[:3, :3] *= (np.array(labels.values.shape) - 1.0) / (np.array(values.shape) - 1.0)
    return Image(values, matrix, "SEG", (), {})


def test_volumes_come_back(lumbar_labels: Image) -> None:
    """12-20 % too small as they come at 2 mm; within 2 % once mended (linear interpolation
    rounds convex edges off; 0.8 % from 1.2 mm voxels)."""
    spoilt = _interpolated(lumbar_labels)
    truth = understand(lumbar_labels, ("L4", "L5"))
    found = understand(spoilt, ("L4", "L5"))
    assert list(found.pieces) == list(truth.pieces)
    voxel = float(np.prod(spoilt.voxel_mm))
    for level, piece in found.pieces.items():
        bare = float((spoilt.values == piece.number).sum()) * voxel
        assert bare < 0.9 * truth.pieces[level].volume_mm3
        assert piece.volume_mm3 == pytest.approx(truth.pieces[level].volume_mm3, rel=0.02)
    (finding,) = [f for f in found.findings if f.code == "resampled"]
    assert finding.severity == "warning" and "interpolation" in finding.text


@pytest.mark.parametrize("factor", [(1.0, 1.0, 2.0), (2.0, 2.0, 2.0)])
def test_an_axis_that_was_doubled_is_found(
    lumbar_labels: Image, factor: tuple[float, float, float]
) -> None:
    """The rims are then halves: one number round each bone, another round the next."""
    values = zoom(
        lumbar_labels.values.astype(np.float32),
        factor,
        order=1,
        grid_mode=True,
        mode="grid-constant",
    )
    matrix = lumbar_labels.lps_from_index.copy()
    matrix[:3, :3] /= np.array(factor)
    mended, line = without_rims(Image(np.rint(values).astype(np.int16), matrix, "SEG", (), {}))
    assert line and set(np.unique(mended.values)) == set(np.unique(lumbar_labels.values))


def test_labels_as_drawn_are_left_alone(lumbar_labels: Image) -> None:
    assert without_rims(lumbar_labels) == (lumbar_labels, "")
    shell = lumbar_labels.values.copy()  # a cortex of one number round each spongiosa is no rim
    shell[(shell == 24) & (np.roll(shell, 1, axis=0) != 24)] = 7
    assert rim_share(Image(shell, lumbar_labels.lps_from_index, "SEG", (), {})) == 0.0


@pytest.mark.parametrize(
    "name",
    [
        "verse004_mask/sub-verse004_seg-vert_msk.nii.gz",
        "ct_totalsegmentator/example_seg_fast_force_split.nii.gz",
        "ct_mri_subregions/sub-mri_seg-subreg_label-6_msk.nii.gz",
        "l2_density_fe/sub-verse004_0000_vertebra_21_seg.nii.gz",
    ],
)
def test_real_labels_have_no_rims(name: str) -> None:
    assert rim_share(read_labels(needs_data(name))) < 0.01
