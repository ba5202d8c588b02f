"""What lies on the disk: what a file really is (by its first bytes, not its name), and the files
under a folder.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

#: Formats that are read, in the order of `Content.kind`.
IMAGE_KINDS = ("NIfTI", "NRRD", "MetaImage")
#: Endings of image files, longest first.
IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
#: The endings that each kind has.
_ENDINGS = {"NRRD": (".nrrd", ".nhdr"), "MetaImage": (".mha", ".mhd")}

_HEAD = 600
_PICTURE = "export the whole volume as NIfTI or DICOM instead"
_UNPACK = "unpack it first and give what is in it"
_AGAIN = "download the file itself again"
#: First bytes, what they are of, and what to do.
_SIGNATURES = (
    (
        b"version https://git-lfs.github.com/spec",
        "a Git LFS pointer",
        "run `git lfs pull` in its repository",
    ),
    (b"\xff\xd8\xff", "a JPEG picture", _PICTURE),
    (b"\x89PNG", "a PNG picture", _PICTURE),
    (b"GIF8", "a GIF picture", _PICTURE),
    (b"BM", "a BMP picture", _PICTURE),
    (b"II*\x00", "a TIFF picture", _PICTURE),
    (b"MM\x00*", "a TIFF picture", _PICTURE),
    (b"%PDF", "a PDF", _PICTURE),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (
        b"\x93NUMPY",
        "a NumPy array without a place in the patient",
        "save it as NIfTI with its affine",
    ),
    (b"\x89HDF", "an HDF5 file", "export the image as NIfTI"),
    (b"MATLAB", "a MATLAB file", "export the image as NIfTI"),
    (b"solid ", "an STL surface", "give it with source=surfaces"),
    (b"ply\n", "a PLY surface", "give it with source=surfaces"),
)
#: Bytes of a plain text.
_TEXT = frozenset(b"\t\n\r\f") | frozenset(range(32, 127))
_STRANGE = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class Content:
    """What a file holds.

    kind      one of IMAGE_KINDS, "DICOM", "" (not told), or in words ("a PNG picture")
    advice    what to do with what is not read; "" for those that are
    gzipped   whether it is that inside a gzip
    """

    kind: str
    advice: str = ""
    gzipped: bool = False

    @property
    def foreign(self) -> str:
        """What it is and what to do, where it is known to be something that is not read."""
        return f"{self.kind}; {self.advice}" if self.advice else ""


def content(path: Path) -> Content:
    """What a file really is.

    Raises: ValueError for sockets, pipes, devices and what may not be opened.
    """
    head = _first_bytes(path)
    if head[:2] != b"\x1f\x8b":
        return _told(head)
    try:
        within = zlib.decompressobj(31).decompress(head, _HEAD)
    except zlib.error:
        return Content("")
    if within[:2] == b"\x1f\x8b":
        return Content("a gzip in a gzip", "unpack it once with `gzip -d`", True)
    inner = _told(within)
    if inner.kind in IMAGE_KINDS or not inner.kind:
        return Content(inner.kind, "", True)
    return Content(f"{inner.kind} in a gzip", inner.advice or "unpack it with `gzip -d`", True)


def _first_bytes(path: Path) -> bytes:
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind in _STRANGE:
            raise ValueError(
                f"{path} is {_STRANGE[kind]}, not a file; give an image file or a folder"
            )
        with path.open("rb") as stream:
            return stream.read(4096)
    except PermissionError:
        raise ValueError(f"{path} cannot be read: permission denied") from None


def _told(head: bytes) -> Content:
    if head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00"):
        if head[344:348] == b"ni1\x00" or head[4:8] == b"ni2\x00":
            return Content(
                "the header of a NIfTI pair (.hdr, .img)",
                "save it as one .nii file (nibabel, fslchfiletype)",
            )
        return Content("NIfTI")
    if head[:7] == b"NRRD000":
        return Content("NRRD")
    if head.lstrip()[:10] == b"ObjectType" or re.search(rb"^NDims *=", head, re.MULTILINE):
        return Content("MetaImage")
    if dicom_head(head):
        return Content("DICOM")
    if head[257:262] == b"ustar":
        return Content("a tar archive", _UNPACK)
    for start, kind, advice in _SIGNATURES:
        if head.startswith(start):
            return Content(kind, advice)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return Content(
            "a web page (a log-in or warning page saved in place of the download)", _AGAIN
        )
    if text.startswith((b"<?xml", b"<")):
        return Content("an XML text", _AGAIN)
    if head and not head.strip(b"\x00"):
        return Content("zeros only (a copy that was cut off)", "copy it again")
    if head and all(byte in _TEXT for byte in head):
        return Content("a text file", "give the image itself")
    return Content("")


def dicom_head(head: bytes) -> bool:
    """Whether first bytes are DICOM's: "DICM" at byte 128, or (old files without preamble) a first
    element of group 8.
    """
    old = head[:2] == b"\x08\x00" and head[2:4] in (b"\x00\x00", b"\x05\x00", b"\x08\x00")
    return head[128:132] == b"DICM" or (len(head) >= 132 and old)


def image_ending(file: Path) -> str:
    """The image ending of a file name; "" where it has none that is known."""
    name = file.name.lower()
    return next((ending for ending in IMAGE_ENDINGS if name.endswith(ending)), "")


def misnamed(file: Path, contents: Content) -> list[str]:
    """The note on a file whose name says another format than it holds; nothing where they agree."""
    wanted = _ENDINGS.get(contents.kind, (".nii.gz",) if contents.gzipped else (".nii",))
    ending = image_ending(file)
    if ending in wanted:
        return []
    how = (
        f"{'gzipped' if contents.gzipped else 'not gzipped'} NIfTI"
        if contents.kind == "NIfTI"
        else contents.kind
    )
    return [
        f"the file's name ends in {ending or file.suffix or 'nothing known'}, but it holds {how}; "
        "read as that"
    ]


def image_files(folder: Path) -> list[Path]:
    """Image files (by their ending) under a folder."""
    return [file for file in files_under(folder) if image_ending(file)]


def files_under(folder: Path) -> list[Path]:
    """Files of a folder and its sub-folders, links followed (each folder once), hidden ones left
    out, sorted.

    Raises: ValueError for a folder that may not be opened.
    """

    def refuse(error: OSError) -> None:
        reason = "permission denied" if isinstance(error, PermissionError) else str(error.strerror)
        raise ValueError(f"{error.filename} cannot be read: {reason}")

    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:  # reached before by another link, or a loop
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.is_file())


def first_names(names: list[str], most: int = 8) -> str:
    """The first names, for a message."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
