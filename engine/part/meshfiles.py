"""Triangle surfaces as files that say what they are, STL and 3MF: mm, same bytes for same content.

STL     80 bytes of header: frame, unit and name (`stl_header`), never beginning with "solid", by
        which readers tell the text form. 3D Slicer takes the frame from SPACE=LPS in it
        (Libs/MRML/Core/vtkMRMLModelStorageNode.cxx, GetCoordinateSystemFromFileHeader); of any
        other frame the header says FRAME=, so that no reader takes it for the scan's.
3MF     core specification 1.3, one mesh object, unit millimetre, its metadata: Title, Description
        and Application by the specification's names, all else in `SPINEFIT_NAMESPACE`.
        No CreationDate: it would make the same part another file.

Coordinates are written as float32, which STL holds and `engine.part.surface` checks.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from engine import artifacts
from engine.types import SEGMENT_FRAME, Surface

NOT_CLINICAL = (
    "Not for clinical use: made by spinefit, a research and design tool, "
    "not a cleared medical device."
)
SPINEFIT_NAMESPACE = "urn:spinefit:3mf:1"
_HEADERS = {"segment": "FRAME=SEGMENT x=left y=posterior z=cranial", "lps": "SPACE=LPS"}
_CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_MODEL_KIND = "application/vnd.ms-package.3dmanufacturing-3dmodel+xml"
_RELATION_KIND = "application/vnd.openxmlformats-package.relationships+xml"
_RELATION = "http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"
#: The earliest time that a ZIP can hold, for every entry.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class PartLabel:
    """What a part's file says of it. Empty texts are left out."""

    title: str = ""
    patient: str = ""
    level: str = ""
    arm: str = ""
    material: str = ""


def geometry_revision(surface: Surface) -> str:
    """12 hexadecimal digits: SHA-256 of the triangles' corners (float32) as they lie in the STL."""
    corners = np.ascontiguousarray(np.asarray(surface.points_mm)[surface.faces], "<f4")
    return hashlib.sha256(corners.tobytes()).hexdigest()[:12]


# -- STL ------------------------------------------------------------------------------------------
def stl_header(name: str, frame: str) -> bytes:
    """80 bytes: frame ("segment" | "lps"), unit, name. Raises ValueError for another frame."""
    if frame not in _HEADERS:
        raise ValueError(f"frame={frame!r} is unknown; choose among {', '.join(_HEADERS)}")
    text = f"{_HEADERS[frame]}; unit=mm; spinefit {name}"
    return text.encode("ascii", "replace")[:80].ljust(80)


def write_stl(surface: Surface, path: Path | str, name: str, frame: str) -> Path:
    """Binary STL whose header names frame and unit. Raises ValueError for an unknown frame."""
    corners = np.asarray(surface.points_mm)[surface.faces].astype("<f4")
    exact = corners.astype(float)
    normals = np.cross(exact[:, 1] - exact[:, 0], exact[:, 2] - exact[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    body = np.zeros(len(corners), kind)
    body["normal"] = normals / np.where(length > 0, length, 1.0)
    body["corners"] = corners
    count = np.array(len(corners), "<u4")
    return artifacts.write_bytes(path, stl_header(name, frame) + count.tobytes() + body.tobytes())


# -- 3MF ------------------------------------------------------------------------------------------
def write_3mf(
    surface: Surface, path: Path | str, name: str, label: PartLabel | None = None
) -> Path:
    """3MF that strict readers take, in the segment frame; label: whose part it is, as metadata."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, text in (
            ("[Content_Types].xml", _content_types()),
            ("_rels/.rels", _relations()),
            ("3D/3dmodel.model", _model(surface, name, label or PartLabel())),
        ):
            entry = zipfile.ZipInfo(place, _ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    return artifacts.write_bytes(path, stream.getvalue())


def _content_types() -> str:
    kinds = (("rels", _RELATION_KIND), ("model", _MODEL_KIND))
    lines = "".join(f'<Default Extension="{end}" ContentType="{kind}"/>' for end, kind in kinds)
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return f'{head}\n<Types xmlns="{_PACKAGE}/content-types">{lines}</Types>\n'


def _relations() -> str:
    line = f'<Relationship Target="/3D/3dmodel.model" Id="rel0" Type="{_RELATION}"/>'
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return f'{head}\n<Relationships xmlns="{_PACKAGE}/relationships">{line}</Relationships>\n'


def _model(surface: Surface, name: str, label: PartLabel) -> str:
    """The model's XML. Nine digits give every float32 back exactly."""
    points = np.asarray(surface.points_mm, np.float32).tolist()
    faces = np.asarray(surface.faces).tolist()
    revision = geometry_revision(surface)
    object_name = quoteattr(" ".join(t for t in ("spinefit", label.arm, name) if t))
    parts = [
        (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<model unit="millimeter" xml:lang="en" xmlns="{_CORE}" '
            f'xmlns:spinefit="{SPINEFIT_NAMESPACE}">\n'
        ),
        *(
            f"<metadata name={quoteattr(key)}>{escape(text)}</metadata>\n"
            for key, text in _metadata(name, label, revision)
        ),
        (
            f'<resources>\n<object id="1" type="model" name={object_name}'
            f' partnumber="{revision}">\n<mesh>\n<vertices>\n'
        ),
        *(f'<vertex x="{x:.9g}" y="{y:.9g}" z="{z:.9g}"/>\n' for x, y, z in points),
        "</vertices>\n<triangles>\n",
        *(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>\n' for a, b, c in faces),
        "</triangles>\n</mesh>\n</object>\n</resources>\n"
        f'<build>\n<item objectid="1" partnumber="{revision}"/>\n</build>\n</model>\n',
    ]
    return "".join(parts)


def _metadata(name: str, label: PartLabel, revision: str) -> list[tuple[str, str]]:
    own = {
        "patient": label.patient,
        "level": label.level,
        "arm": label.arm,
        "material": label.material,
        "revision": revision,
        "frame": SEGMENT_FRAME,
        "use": "not for clinical use",
    }
    return [
        ("Title", label.title or f"spinefit {name}"),
        ("Description", f"{NOT_CLINICAL} Frame: {SEGMENT_FRAME}."),
        ("Application", "spinefit"),
        *((f"spinefit:{key}", text) for key, text in own.items() if text),
    ]
