"""Tags of a DICOM data set as text and numbers, where they may be absent, malformed or written with
decimal commas.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

#: What a malformed data set makes pydicom raise.
BROKEN = (
    InvalidDicomError,
    ValueError,
    EOFError,
    OSError,
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    KeyError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    struct.error,
    zlib.error,
)
_COMMAS = re.compile(rb"^[\s\x00]*[-+]?\d*,\d+([eE][-+]?\d+)?[\s\x00]*$")


def text_of(ds: Dataset, keyword: str) -> str:
    """A tag as text; "" where it is absent, empty or malformed."""
    try:
        value = ds.get(keyword)
        if value is None:
            return ""
        several = isinstance(value, (list, tuple, pydicom.multival.MultiValue))
        return "\\".join(str(v) for v in value) if several else str(value).strip()
    except BROKEN:
        return ""


def numbers_of(ds: Dataset | None, keyword: str, count: int) -> np.ndarray | None:
    """`count` finite numbers of a tag; None where it is absent or malformed."""
    try:
        value = None if ds is None else ds.get(keyword)
        if value is None or value == "":
            return None
        array = np.atleast_1d(np.array(value, float))
    except BROKEN:
        return None
    return array if array.shape == (count,) and np.isfinite(array).all() else None


def number_of(ds: Dataset | None, keyword: str) -> float | None:
    """A single finite number of a tag; None where it is absent or malformed."""
    numbers = numbers_of(ds, keyword, 1)
    return None if numbers is None else float(numbers[0])


def hashed(uid: str) -> str:
    """A UID as it may be kept: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


def with_points(ds: Dataset) -> bool:
    """Turn decimal commas of decimal strings (VR DS) into points, at every depth; returns whether
    there were any.

    Only "0,703125" is such a number: with a point beside the comma it could be thousands, and is
    left as it is.
    """
    changed = False
    for tag in list(ds.keys()):
        raw = ds.get_item(tag)
        vr = raw.VR if raw is not None else None
        if vr is None:
            try:
                vr = dictionary_VR(tag)
            except KeyError:
                continue  # a private tag
        value: Any = getattr(raw, "value", None)
        if vr == "SQ":
            try:
                items = list(ds[tag].value)
            except BROKEN:
                continue
            for item in items:
                changed |= with_points(item)
        elif (
            vr == "DS"
            and isinstance(raw, RawDataElement)
            and isinstance(value, bytes)
            and b"," in value
        ):
            parts = value.split(b"\\")
            if all(b"," not in part or _COMMAS.match(part) for part in parts):
                ds[tag] = raw._replace(value=value.replace(b",", b"."))
                changed = True
    return changed
