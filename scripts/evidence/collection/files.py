"""The collection's files: folders of masks, files that are something else, surfaces, wrong keys."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.evidence.collection.base import (
    VERSE,
    Base,
    Input,
    Recipe,
    read,
    refused,
    segment_mask,
)


# -- folders of masks ------------------------------------------------------------------------------
def _masks(
    change: Callable[[Base, Path], None] | None = None, scale: int = 1, ending: str = "nii.gz"
) -> Recipe:
    """A folder with a mask a bone, 0 and `scale`, and one of a liver; changed afterwards."""

    def make(base: Base, place: Path) -> list[str]:
        where = place / "masks"
        where.mkdir()
        for level, number in VERSE.items():
            name = "sacrum" if level == "S1" else f"vertebrae_{level}"
            _write_mask(base, (base.values[0] == number) * scale, where / f"{name}.nii.gz")
            if ending != "nii.gz":
                import SimpleITK as sitk

                image = sitk.ReadImage(str(where / f"{name}.nii.gz"))
                sitk.WriteImage(image, str(where / f"{name}.{ending}"))
                (where / f"{name}.nii.gz").unlink()
        _write_mask(base, base.values[0] == 99, where / "liver.nii.gz")
        if change is not None:
            change(base, where)
        return segment_mask(where)

    return make


def _write_mask(base: Base, values: np.ndarray, path: Path) -> None:
    nib.save(nib.Nifti1Image(values.astype(np.uint8), base.values[1]), path)


def _other_grid(base: Base, where: Path) -> None:
    values, affine = base.values
    nib.save(
        nib.Nifti1Image((values[::2] == 23).astype(np.uint8), affine @ np.diag([2, 1, 1, 1])),
        where / "vertebrae_L4.nii.gz",
    )


def _probabilities(base: Base, where: Path) -> None:
    values, affine = base.values
    soft = (values == 23) * np.linspace(0.2, 0.9, values.shape[2], dtype=np.float32)
    nib.save(nib.Nifti1Image(soft.astype(np.float32), affine), where / "vertebrae_L4.nii.gz")


def _nameless(base: Base, where: Path) -> None:
    for n, file in enumerate(sorted(where.iterdir())):
        file.rename(where / f"mask{chr(97 + n)}.nii.gz")


def _overlapping(base: Base, where: Path) -> None:
    values = base.values[0]
    _write_mask(base, (values == 23) | (values == 24), where / "vertebrae_L4.nii.gz")


# -- files that are not what they are called -------------------------------------------------------
def _renamed(name: str, pack: bool) -> Recipe:
    """The good labels under another name, gzipped or not."""

    def make(base: Base, place: Path) -> list[str]:
        plain = gzip.decompress(base.labels.read_bytes())
        (place / name).write_bytes(gzip.compress(plain, 1) if pack else plain)
        return segment_mask(place / name)

    return make


def _written(content: bytes) -> Recipe:
    """labels.nii.gz with that content."""

    def make(base: Base, place: Path) -> list[str]:
        (place / "labels.nii.gz").write_bytes(content)
        return segment_mask(place / "labels.nii.gz")

    return make


def _zipped(base: Base, place: Path) -> list[str]:
    with zipfile.ZipFile(place / "labels.nii.gz", "w") as archive:
        archive.writestr("labels.nii", b"x" * 100)
    return segment_mask(place / "labels.nii.gz")


def _cut_short(base: Base, place: Path) -> list[str]:
    content = base.labels.read_bytes()
    (place / "labels.nii.gz").write_bytes(content[: len(content) // 2])
    return segment_mask(place / "labels.nii.gz")


def _huge(base: Base, place: Path) -> list[str]:
    header = nib.Nifti1Header()
    header.set_data_shape((4000, 4000, 4000))
    header.set_data_dtype(np.int16)
    with (place / "huge.nii").open("wb") as file:
        file.write(header.binaryblock)
        file.truncate(352 + 2 * 4000**3)  # sparse: takes no room
    return segment_mask(place / "huge.nii")


def _several_volumes(base: Base, place: Path) -> list[str]:
    values, affine = base.values
    nib.save(nib.Nifti1Image(np.stack([values[::4, ::4, ::4]] * 3, -1), affine), place / "l.nii.gz")
    return segment_mask(place / "l.nii.gz")


def _background(base: Base, place: Path) -> list[str]:
    return segment_mask(base.write(np.zeros((20, 20, 20), np.int16), place / "l.nii.gz"))


_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123456\n"
)
_WEB_PAGE = b"<!DOCTYPE html><html><body>sign in</body></html>"
#: Folders of masks, and files that are not what they are called.
FILE = (
    Input(
        "a folder of 0/1 masks (TotalSegmentator)",
        read(note="names that the file carries"),
        _masks(),
    ),
    Input("a folder of 0/255 masks", read(), _masks(scale=255)),
    Input("a folder of NRRD masks", read(), _masks(ending="nrrd")),
    Input(
        "masks of two grids",
        refused("vertebrae_L4.*grid|grid.*vertebrae_L4|lattice"),
        _masks(_other_grid),
    ),
    Input("a probability map among the masks", refused("vertebrae_L4"), _masks(_probabilities)),
    Input("masks without a level in their names", refused("name"), _masks(_nameless)),
    Input("a mask over two levels", refused("two masks|overlap|both"), _masks(_overlapping)),
    Input(".nii.gz that is not gzipped", read(), _renamed("labels.nii.gz", False)),
    Input(".nii that is gzipped", read(), _renamed("labels.nii", True)),
    Input("cut short", refused("cut short|damaged"), _cut_short),
    Input("a Git LFS pointer", refused("git lfs pull"), _written(_POINTER)),
    Input("a web page", refused("HTML|web page"), _written(_WEB_PAGE)),
    Input("a picture", refused("PNG|picture"), _written(b"\x89PNG\r\n\x1a\n" + bytes(200))),
    Input("a zip", refused("zip"), _zipped),
    Input("text", refused("not|no image"), _written(b"no image at all\n")),
    Input("nothing in it", refused("is empty"), _written(b"")),
    Input("64 gigavoxels", refused("voxels"), _huge),
    Input(
        "no such file",
        refused("no file or folder"),
        lambda base, place: segment_mask(place / "nowhere.nii.gz"),
    ),
    Input("several volumes", refused("volume|dimension|axes"), _several_volumes),
    Input("all background", refused("empty"), _background),
    Input(
        "a scan as labels",
        refused("not a label mask|image"),
        lambda base, place: segment_mask(base.ct),
    ),
)


# -- surfaces --------------------------------------------------------------------------------------
def _meshes(name: str, *more: str, scale: float | None = None) -> Recipe:
    """The Visible Human's L4 and L5 in files called so ({level}, {other}: the other of the two,
    {code}: a number for the level), scaled."""

    def make(base: Base, place: Path) -> list[str]:
        import pyvista as pv

        where = place / "meshes"
        where.mkdir()
        for level, other in (("L4", "L5"), ("L5", "L4")):
            mesh: Any = pv.read(base.data / "lumbar_meshes" / f"{level}.stl").clean()
            if scale is not None:
                mesh.points = mesh.points * scale
            mesh.save(where / name.format(level=level, other=other, code=ord(level[1])))
        words = ["source=surfaces", f"source.path={where}", "source.axes=ALS", "plan=keep"]
        return [*words, "source.levels=segment", *more]

    return make


def _two_of_a_level(base: Base, place: Path) -> list[str]:
    words = _meshes("{level}_a.stl")(base, place)
    shutil.copy(place / "meshes" / "L4_a.stl", place / "meshes" / "L4_b.stl")
    return words


def _thoracic(base: Base, place: Path) -> list[str]:
    where = place / "meshes"
    where.mkdir()
    for own, name in (("T7", "L4"), ("T8", "L5")):
        shutil.copy(base.data / "spine_c1_coccyx" / f"{own}.stl", where / f"{name}.stl")
    return ["source=surfaces", f"source.path={where}", "plan=keep"]


_INCH = 1 / 25.4
#: Surface files as CAD and segmentation tools write and name them.
SURFACE = (
    Input("L4.stl and L5.stl", read("VHM"), _meshes("{level}.stl")),
    Input("sb_L4.stl, sb_L5.stl", read("VHM"), _meshes("sb_{level}.stl")),
    Input("vertebra_L4.ply", read("VHM"), _meshes("vertebra_{level}.ply")),
    Input("inches", refused("inch"), _meshes("{level}.stl", scale=_INCH)),
    Input(
        "inches, as advised",
        read("VHM"),
        _meshes("{level}.stl", "source.unit=inch", scale=_INCH),
    ),
    Input("centimetres", refused("source.unit=cm"), _meshes("{level}.stl", scale=0.1)),
    Input("metres", refused("source.unit=m"), _meshes("{level}.stl", scale=0.001)),
    Input("two files for L4", refused("L4_a.*L4_b|more than once|several"), _two_of_a_level),
    Input("no names", refused("no file for|name"), _meshes("part{code}.stl")),
    Input(
        "L4 and L5 under each other's name",
        refused("upside down|contradicts|not above"),
        _meshes("{other}.stl"),
    ),
    Input("T7 and T8 called L4 and L5", refused("have the sizes of T"), _thoracic),
    Input(
        "axes that the bones contradict",
        refused("contradicts the anatomy"),
        _meshes("{level}.stl", "source.axes=LPS"),
    ),
)


# -- keys ------------------------------------------------------------------------------------------
def _typed(*more: str) -> Recipe:
    return lambda base, place: ["source=mask", f"source.path={base.labels}", *more]


#: What is typed wrong.
KEY = (
    Input(
        "level that is not there",
        refused("T9 is absent"),
        _typed("segment=T9-T10", "plan=keep"),
    ),
    Input("no neighbours", refused("not the level under"), _typed("segment=L3-L5")),
    Input("T12-L1 with published norms", refused("no norm is known"), _typed("segment=T12-L1")),
    Input("unknown finding accepted", refused("findings are"), _typed("source.accept=[leaks]")),
    Input("unknown key", refused("edge"), _typed("source.edge=2")),
    Input("value out of range", refused("edge_mm"), _typed("source.edge_mm=9")),
    Input(
        "wrong scheme named",
        refused("does not know the numbers|from the foot|absent"),
        _typed("source.labels=totalsegmentator"),
    ),
    Input(
        "scheme that does not exist",
        refused("is unknown; choose auto"),
        _typed("source.labels=tseg"),
    ),
    Input(
        "two wrong keys",
        refused("edge.*levles|levles.*edge"),
        _typed("source.edge=2", "source.levles=all"),
    ),
)
