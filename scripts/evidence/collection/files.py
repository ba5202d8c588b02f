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

from scripts.evidence.collection.base import VERSE, Base, case, read, refused
from scripts.evidence.scan.cases import Case


def files(base: Base) -> list[Case]:
    """Folders of masks, and files that are not what they are called."""

    def folder(
        change: Callable[[Path], None] | None = None, scale: int = 1, ending: str = "nii.gz"
    ) -> Callable[[Path], list[str]]:
        def make(place: Path) -> list[str]:
            where = place / "masks"
            where.mkdir()
            values, affine = base.values
            for level, number in VERSE.items():
                name = "sacrum" if level == "S1" else f"vertebrae_{level}"
                nib.save(
                    nib.Nifti1Image(((values == number) * scale).astype(np.uint8), affine),
                    where / f"{name}.nii.gz",
                )
                if ending != "nii.gz":
                    import SimpleITK as sitk

                    image = sitk.ReadImage(str(where / f"{name}.nii.gz"))
                    sitk.WriteImage(image, str(where / f"{name}.{ending}"))
                    (where / f"{name}.nii.gz").unlink()
            nib.save(
                nib.Nifti1Image((values == 99).astype(np.uint8), affine), where / "liver.nii.gz"
            )
            if change is not None:
                change(where)
            return base.mask(where)

        return make

    def other_grid(where: Path) -> None:
        values, affine = base.values
        nib.save(
            nib.Nifti1Image((values[::2] == 23).astype(np.uint8), affine @ np.diag([2, 1, 1, 1])),
            where / "vertebrae_L4.nii.gz",
        )

    def probabilities(where: Path) -> None:
        values, affine = base.values
        soft = (values == 23) * np.linspace(0.2, 0.9, values.shape[2], dtype=np.float32)
        nib.save(nib.Nifti1Image(soft.astype(np.float32), affine), where / "vertebrae_L4.nii.gz")

    def nameless(where: Path) -> None:
        for n, file in enumerate(sorted(where.iterdir())):
            file.rename(where / f"mask{chr(97 + n)}.nii.gz")

    def overlapping(where: Path) -> None:
        values, affine = base.values
        nib.save(
            nib.Nifti1Image(((values == 23) | (values == 24)).astype(np.uint8), affine),
            where / "vertebrae_L4.nii.gz",
        )

    def renamed(name: str, pack: bool) -> Callable[[Path], list[str]]:
        def make(place: Path) -> list[str]:
            plain = gzip.decompress(base.labels.read_bytes())
            (place / name).write_bytes(gzip.compress(plain, 1) if pack else plain)
            return base.mask(place / name)

        return make

    def written(name: str, content: bytes) -> Callable[[Path], list[str]]:
        def make(place: Path) -> list[str]:
            (place / name).write_bytes(content)
            return base.mask(place / name)

        return make

    def zipped(place: Path) -> list[str]:
        with zipfile.ZipFile(place / "labels.nii.gz", "w") as archive:
            archive.writestr("labels.nii", b"x" * 100)
        return base.mask(place / "labels.nii.gz")

    def damaged(place: Path) -> list[str]:
        content = base.labels.read_bytes()
        (place / "labels.nii.gz").write_bytes(content[: len(content) // 2])
        return base.mask(place / "labels.nii.gz")

    def huge(place: Path) -> list[str]:
        header = nib.Nifti1Header()
        header.set_data_shape((4000, 4000, 4000))
        header.set_data_dtype(np.int16)
        with (place / "huge.nii").open("wb") as file:
            file.write(header.binaryblock)
            file.truncate(352 + 2 * 4000**3)  # sparse: takes no room
        return base.mask(place / "huge.nii")

    def several(place: Path) -> list[str]:
        values, affine = base.values
        nib.save(
            nib.Nifti1Image(np.stack([values[::4, ::4, ::4]] * 3, -1), affine), place / "l.nii.gz"
        )
        return base.mask(place / "l.nii.gz")

    def changed(values: np.ndarray) -> Callable[[Path], list[str]]:
        return lambda place: base.mask(base.write(values, place / "l.nii.gz"))

    pointer = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123456\n"
    )
    return [
        case(
            "file",
            "a folder of 0/1 masks (TotalSegmentator)",
            read(said="names that the file carries"),
            folder(),
        ),
        case("file", "a folder of 0/255 masks", read(), folder(scale=255)),
        case("file", "a folder of NRRD masks", read(), folder(ending="nrrd")),
        case(
            "file",
            "masks of two grids",
            refused("vertebrae_L4.*grid|grid.*vertebrae_L4|lattice"),
            folder(other_grid),
        ),
        case(
            "file",
            "a probability map among the masks",
            refused("vertebrae_L4"),
            folder(probabilities),
        ),
        case("file", "masks without a level in their names", refused("name"), folder(nameless)),
        case(
            "file", "a mask over two levels", refused("two masks|overlap|both"), folder(overlapping)
        ),
        case("file", ".nii.gz that is not gzipped", read(), renamed("labels.nii.gz", False)),
        case("file", ".nii that is gzipped", read(), renamed("labels.nii", True)),
        case("file", "cut short", refused("cut short|damaged"), damaged),
        case(
            "file", "a Git LFS pointer", refused("git lfs pull"), written("labels.nii.gz", pointer)
        ),
        case(
            "file",
            "a web page",
            refused("HTML|web page"),
            written("labels.nii.gz", b"<!DOCTYPE html><html><body>sign in</body></html>"),
        ),
        case(
            "file",
            "a picture",
            refused("PNG|picture"),
            written("labels.nii.gz", b"\x89PNG\r\n\x1a\n" + bytes(200)),
        ),
        case("file", "a zip", refused("zip"), zipped),
        case(
            "file", "text", refused("not|no image"), written("labels.nii.gz", b"no image at all\n")
        ),
        case("file", "nothing in it", refused("is empty"), written("labels.nii.gz", b"")),
        case("file", "64 gigavoxels", refused("voxels"), huge),
        case(
            "file",
            "no such file",
            refused("no file or folder"),
            lambda place: base.mask(place / "nowhere.nii.gz"),
        ),
        case("file", "several volumes", refused("volume|dimension|axes"), several),
        case("file", "all background", refused("empty"), changed(np.zeros((20, 20, 20), np.int16))),
        case(
            "file",
            "a scan as labels",
            refused("not a label mask|image"),
            lambda place: base.mask(base.ct),
        ),
    ]


def surfaces(base: Base) -> list[Case]:
    """Surface files as CAD and segmentation tools write and name them: the shared meshes of the
    Visible Human."""

    def meshes(
        name: Callable[[str], str],
        change: Callable | None = None,
        *more: str,
        levels: tuple[str, ...] = ("L4", "L5"),
    ):  # type: ignore[no-untyped-def, type-arg]
        def make(place: Path) -> list[str]:
            import pyvista as pv

            where = place / "meshes"
            where.mkdir()
            for level in levels:
                mesh: Any = pv.read(base.data / "lumbar_meshes" / f"{level}.stl").clean()
                if change is not None:
                    mesh = change(mesh)
                mesh.save(where / name(level))
            return [
                "source=surfaces",
                f"source.path={where}",
                "source.axes=ALS",
                "plan=keep",
                "source.levels=segment",
                *more,
            ]

        return make

    def scaled(factor: float):  # type: ignore[no-untyped-def]
        def change(mesh):  # type: ignore[no-untyped-def]
            mesh.points = mesh.points * factor
            return mesh

        return change

    def twice(place: Path) -> list[str]:
        told = meshes(lambda level: f"{level}_a.stl")(place)
        shutil.copy(place / "meshes" / "L4_a.stl", place / "meshes" / "L4_b.stl")
        return told

    def thoracic(place: Path) -> list[str]:
        where = place / "meshes"
        where.mkdir()
        for own, name in (("T7", "L4"), ("T8", "L5")):
            shutil.copy(base.data / "spine_c1_coccyx" / f"{own}.stl", where / f"{name}.stl")
        return ["source=surfaces", f"source.path={where}", "plan=keep"]

    other = {"L4": "L5", "L5": "L4"}
    return [
        case("surface", "L4.stl and L5.stl", read("VHM"), meshes(lambda level: f"{level}.stl")),
        case(
            "surface", "sb_L4.stl, sb_L5.stl", read("VHM"), meshes(lambda level: f"sb_{level}.stl")
        ),
        case(
            "surface", "vertebra_L4.ply", read("VHM"), meshes(lambda level: f"vertebra_{level}.ply")
        ),
        case(
            "surface",
            "inches",
            refused("inch"),
            meshes(lambda level: f"{level}.stl", scaled(1 / 25.4)),
        ),
        case(
            "surface",
            "inches, as advised",
            read("VHM"),
            meshes(lambda level: f"{level}.stl", scaled(1 / 25.4), "source.unit=inch"),
        ),
        case(
            "surface",
            "centimetres",
            refused("source.unit=cm"),
            meshes(lambda level: f"{level}.stl", scaled(0.1)),
        ),
        case(
            "surface",
            "metres",
            refused("source.unit=m"),
            meshes(lambda level: f"{level}.stl", scaled(0.001)),
        ),
        case("surface", "two files for L4", refused("L4_a.*L4_b|more than once|several"), twice),
        case(
            "surface",
            "no names",
            refused("no file for|name"),
            meshes(lambda level: f"part{ord(level[1])}.stl"),
        ),
        case(
            "surface",
            "L4 and L5 under each other's name",
            refused("upside down|contradicts|not above"),
            meshes(lambda level: f"{other[level]}.stl"),
        ),
        case("surface", "T7 and T8 called L4 and L5", refused("have the sizes of T"), thoracic),
        case(
            "surface",
            "axes that the bones contradict",
            refused("contradicts the anatomy"),
            meshes(lambda level: f"{level}.stl", None, "source.axes=LPS"),
        ),
    ]


def keys(base: Base) -> list[Case]:
    """What is typed wrong."""

    def told(*more: str) -> Callable[[Path], list[str]]:
        return lambda place: ["source=mask", f"source.path={base.labels}", *more]

    return [
        case(
            "key",
            "level that is not there",
            refused("T9 is absent"),
            told("segment=T9-T10", "plan=keep"),
        ),
        case("key", "no neighbours", refused("not the level under"), told("segment=L3-L5")),
        case(
            "key",
            "T12-L1 with published norms",
            refused("no norm is known"),
            told("segment=T12-L1"),
        ),
        case(
            "key",
            "unknown finding accepted",
            refused("findings are"),
            told("source.accept=[leaks]"),
        ),
        case("key", "unknown key", refused("edge"), told("source.edge=2")),
        case("key", "value out of range", refused("edge_mm"), told("source.edge_mm=9")),
        case(
            "key",
            "wrong scheme named",
            refused("does not know the numbers|from the foot|absent"),
            told("source.labels=totalsegmentator"),
        ),
        case(
            "key",
            "scheme that does not exist",
            refused("is unknown; choose auto"),
            told("source.labels=tseg"),
        ),
        case(
            "key",
            "two wrong keys",
            refused("edge.*levles|levles.*edge"),
            told("source.edge=2", "source.levles=all"),
        ),
    ]
