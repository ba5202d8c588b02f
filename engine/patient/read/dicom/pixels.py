"""The pixels of DICOM slices as one array of values."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from engine.patient.read.dicom.headers import Folder
from engine.patient.read.dicom.slices import Slice
from engine.patient.read.dicom.stacks import PLANE_TOLERANCE, heights_mm, list_mm, same_place
from engine.patient.read.dicom.tags import BROKEN, number_of
from engine.patient.read.image import PADDING_HU

#: A padding value of more HU than this could be tissue: it is left as it is.
PADDING_BELOW_HU = -900.0
#: What decodes a transfer syntax, by the first of these that is in its name.
_INSTALL = {
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG-LS": "pylibjpeg pylibjpeg-libjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
}


def without_doubles(
    slices: list[Slice], reader: PixelReader, folder: Folder
) -> tuple[list[Slice], list[str]]:
    """The slices sorted along the normal, one for each place. Raises where one place holds
    different contents."""
    heights = heights_mm(slices)
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[n] for n in order], heights[order]
    kept, dropped = [slices[0]], []
    for item, height, same in zip(slices[1:], heights[1:], same_place(heights), strict=True):
        if not same:
            kept.append(item)
            continue
        first = kept[-1]
        shifted = np.linalg.norm(item.position - first.position) > PLANE_TOLERANCE * float(
            first.pixel_mm.min()
        )
        if shifted or not np.array_equal(reader.read(first), reader.read(item)):
            what = "lie beside each other" if shifted else "differ in content"
            raise ValueError(
                f"{folder.place}: two slices at {height:.2f} mm along the slice normal {what}"
                f" ({folder.name(first.file)}; {folder.name(item.file)}): several acquisitions in"
                " one series? keep one of them"
            )
        dropped.append(float(height))
    lines = (
        [f"{len(dropped)} duplicate slices with the same content left out ({list_mm(dropped)})"]
        if dropped
        else []
    )
    if len(kept) < 2:
        raise ValueError(
            f"{folder.place} holds a single slice in {len(slices)} copies; give the whole series"
        )
    return kept, lines


class PixelReader:
    """Slices decoded and rescaled, one file held at a time; counts what was replaced."""

    def __init__(self, folder: Folder, ct: bool) -> None:
        self._folder, self._ct = folder, ct
        self._file, self._ds = -1, Dataset()
        self._padded: Counter[str] = Counter()
        self._low: dict[tuple[int, int | None], int] = {}
        self._kept_padding: set[float] = set()

    def read(self, item: Slice) -> np.ndarray:
        """Values [column, row]: int32, or float64 where the rescale isn't whole."""
        if item.file != self._file:
            self._file, self._ds = -1, Dataset()  # free the last one first
            self._ds = _read_dataset(item.file, self._folder)
            self._file = item.file
        ds = self._ds
        try:
            stored = np.asarray(pixel_array(ds, index=item.frame or 0, raw=True)).T
        except BROKEN:
            raise ValueError(
                f"{self._folder.place}: the pixels of {self._folder.name(item.file)} can't be"
                " decoded: the file is cut short or damaged; copy it again"
            ) from None
        if stored.shape != item.size[::-1]:
            raise ValueError(
                f"{self._folder.place}: {self._folder.name(item.file)} holds {stored.shape}, not"
                " the size in its header"
            )
        slope, intercept = item.rescale or (1.0, 0.0)
        whole = (
            float(slope).is_integer()
            and float(intercept).is_integer()
            and stored.dtype.kind in "iu"
        )
        values = (
            stored.astype(np.int32) * int(slope) + int(intercept)
            if whole
            else stored * slope + intercept
        )
        return self._unpadded(stored, values, item, ds) if self._ct else values

    def _unpadded(
        self, stored: np.ndarray, values: np.ndarray, item: Slice, ds: Dataset
    ) -> np.ndarray:
        """The HU with padding, and what lies below the scale, set to PADDING_HU (in place)."""
        slope, intercept = item.rescale or (1.0, 0.0)
        ends = [_padding(ds, key) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
        if ends[0] is not None:
            low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
            if max(low * slope + intercept, high * slope + intercept) <= PADDING_BELOW_HU:
                mask = (stored >= low) & (stored <= high)
                self._padded[f"{low * slope + intercept:g}"] += (
                    int(mask.sum()) if low * slope + intercept != PADDING_HU else 0
                )
                values[mask] = PADDING_HU
            else:
                self._kept_padding.add(ends[0] * slope + intercept)
        below = values < PADDING_HU
        if below.any():
            self._low[item.file, item.frame] = int(below.sum())
            values[below] = PADDING_HU
        return values

    def notes(self) -> list[str]:
        """What was replaced in the slices read so far."""
        lines = [
            f"padding outside the field of view ({hu} HU) set to {PADDING_HU} HU"
            for hu, count in self._padded.items()
            if count
        ]
        lines += [
            f"PixelPaddingValue means {hu:g} HU, which could be tissue: left as it is"
            for hu in sorted(self._kept_padding)
        ]
        low = sum(self._low.values())
        return (
            [*lines, f"{low} voxels below {PADDING_HU} HU set to {PADDING_HU} HU"] if low else lines
        )


def _read_dataset(number: int, folder: Folder) -> Dataset:
    """A file with its pixels.

    Raises: ValueError where it is cut short, or compressed in a way that can't be decoded here.
    """
    name = f"{folder.place}: {folder.name(number)}"
    try:
        ds = pydicom.dcmread(folder.files[number], force=True)
        meta = getattr(ds, "file_meta", None) or FileMetaDataset()
        if "TransferSyntaxUID" not in meta:  # no preamble: as pydicom found it
            implicit, little = ds.original_encoding
            meta.TransferSyntaxUID = (
                ImplicitVRLittleEndian
                if implicit
                else ExplicitVRLittleEndian
                if little
                else ExplicitVRBigEndian
            )
            ds.file_meta = meta
        syntax = UID(meta.TransferSyntaxUID)
        high, stored = number_of(ds, "HighBit"), number_of(ds, "BitsStored")
    except BROKEN:
        raise ValueError(f"{name} can't be read: cut short or damaged; copy it again") from None
    if not any(key in ds for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError(f"{name} is cut short in its pixels; copy it again")
    if high is not None and stored is not None and high != stored - 1:
        raise ValueError(f"{name} has HighBit {high:g} for {stored:g} stored bits; export it again")
    _check_decoder(syntax, number, folder)
    return ds


def _check_decoder(syntax: UID, number: int, folder: Folder) -> None:
    """Raises ValueError where nothing that is installed decodes a transfer syntax."""
    try:
        known = bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        known = False
    if known:
        return
    name = syntax.name if not folder.redaction.withholds(syntax.name) else "unknown"
    packages = next((packages for key, packages in _INSTALL.items() if key in name), "")
    advice = f"pip install {packages}, or export" if packages else "export"
    raise ValueError(
        f"{folder.place}: no decoder for the transfer syntax {name} ({syntax}) of"
        f" {folder.name(number)}; {advice} it uncompressed"
    )


def _padding(ds: Dataset, keyword: str) -> float | None:
    """A padding value in the pixels' own sign: many writers store a negative one as unsigned."""
    value = number_of(ds, keyword)
    if value is None:
        return None
    bits = int(number_of(ds, "BitsAllocated") or 16)
    number = int(value) % (1 << bits)
    signed = int(number_of(ds, "PixelRepresentation") or 0) == 1
    return float(number - (1 << bits) if signed and number >= 1 << (bits - 1) else number)


def read_voxels(slices: list[Slice], reader: PixelReader) -> np.ndarray:
    """Values [column, row, slice], slices contiguous: int16, widened to int32 or float32 once a
    slice needs it."""
    rows, columns = slices[0].size
    values = np.empty((columns, rows, len(slices)), np.int16, order="F")
    for k, item in enumerate(slices):
        slice_values = reader.read(item)
        if slice_values.dtype.kind == "f" and values.dtype.kind != "f":
            values = values.astype(np.float32, order="F")
        elif values.dtype == np.int16 and (
            slice_values.min() < -32768 or slice_values.max() > 32767
        ):
            values = values.astype(np.int32, order="F")
        values[:, :, k] = slice_values
    return values
