"""A scene for 3D Slicer: surfaces, axes and a transform in the scan's own LPS, to lie over the CT.

    scene.mrml            one Model, MarkupsLine or LinearTransform a file, with its storage node
    <name>.stl            surfaces, LPS mm, header with SPACE=LPS
    <name>.mrk.json       one Line a file (a scene's storage node reads a file's first markup alone)
    segment_to_lps.tfm    ITK transform of the segment frame (below)
    README.txt            what each file is, in which frame, and how to open it

Frames: every coordinate in these files is LPS mm, and every file says so: storage nodes with
coordinateSystem="LPS" (without it Slicer takes a scene's model for RAS), headers with SPACE=LPS,
markups with "coordinateSystem": "LPS". Slicer turns LPS into its own RAS as it reads.

The transform: ITK and Slicer keep resampling transforms, which take a point of the parent, here
LPS, into the frame that is moved, here the segment's. So the file holds lps_from_segment⁻¹, and a
file of the segment frame (designs/*/implant.stl, read as LPS) under it comes to lie in the scan.

Ref: the conventions as Slicer's sources have them, github.com/Slicer/Slicer at 583e9b37d50e:
Libs/MRML/Core/vtkMRMLModelStorageNode.cxx, vtkMRMLTransformStorageNode.cxx, vtkMRMLDisplayNode.cxx,
vtkMRMLMarkupsDisplayNode.cxx; Modules/Loadable/Markups/MRML/vtkMRMLMarkupsJsonStorageNode.cxx,
Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from engine import artifacts
from engine.part.meshfiles import NOT_CLINICAL, write_stl
from engine.types import LPS_FRAME, Surface

#: Slicer looks for this very identifier; it need not resolve.
MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)
SCENE, README, TRANSFORM = "scene.mrml", "README.txt", "segment_to_lps.tfm"
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Model:
    """A surface in LPS mm. name: of the file and the node; words: what it is, for README.txt."""

    name: str
    words: str
    surface: Surface
    colour: Colour
    opacity: float = 1.0
    visible: bool = True


@dataclass(frozen=True)
class Axis:
    """A line in LPS mm, points_mm [2, 3]: entry, target."""

    name: str
    words: str
    points_mm: np.ndarray
    colour: Colour
    visible: bool = True


def write_scene(
    folder: Path | str,
    title: str,
    models: Sequence[Model],
    axes: Sequence[Axis],
    lps_from_segment: np.ndarray,
) -> list[Path]:
    """Write the files of the module docstring; returns their paths, scene.mrml first.

    Other files in the folder stay. Raises ValueError when two models or axes have one name, a
    position is not finite, or lps_from_segment [4, 4] is not rigid.
    """
    where = Path(folder)
    placed = [(m.name, m.surface.points_mm) for m in models] + [(a.name, a.points_mm) for a in axes]
    names = [name for name, _ in placed]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"names of models and axes must differ; given twice: {', '.join(twice)}")
    for name, points in placed:
        if not np.isfinite(points).all():
            raise ValueError(
                f"{name} has a position that is not finite; look for it in the run's segment"
            )
    paths = [write_stl(m.surface, where / f"{m.name}.stl", m.name, "lps") for m in models]
    for axis in axes:
        content = {"@schema": MARKUPS_SCHEMA, "markups": [line_markup(axis)]}
        paths.append(artifacts.write_json(where / f"{axis.name}.mrk.json", content))
    paths.append(write_transform(where / TRANSFORM, lps_from_segment))
    paths.append(artifacts.write_text(where / README, _readme(title, models, axes)))
    return [artifacts.write_bytes(where / SCENE, _scene(title, models, axes)), *paths]


# -- transform ------------------------------------------------------------------------------------
def write_transform(path: Path | str, lps_from_segment: np.ndarray) -> Path:
    """ITK text transform (see the module docstring for its sense).

        p_segment = A·p_LPS + t,   [A t] = lps_from_segment⁻¹

    Raises ValueError when lps_from_segment [4, 4] is not a rigid motion (rotation to 1e-6).
    """
    matrix = np.asarray(lps_from_segment, float)
    turn = matrix[:3, :3] if matrix.shape == (4, 4) else np.zeros((3, 3))
    if not np.allclose(turn.T @ turn, np.eye(3), atol=1e-6) or not np.linalg.det(turn) > 0:
        raise ValueError(
            "lps_from_segment must be a rigid motion [4, 4]; given "
            f"{np.array2string(matrix, precision=4)}; look for it in the run's segment"
        )
    inverse = np.linalg.inv(matrix)
    numbers = [*inverse[:3, :3].ravel(), *inverse[:3, 3]]
    lines = [
        "#Insight Transform File V1.0",
        "#Frame: resampling transform (ITK, 3D Slicer) from LPS mm to the segment frame mm;",
        "#in Slicer, what lies under it moves from the segment frame into the scan's LPS.",
        "#Transform 0",
        "Transform: AffineTransform_double_3_3",
        "Parameters: " + " ".join(f"{v:.17g}" for v in numbers),
        "FixedParameters: 0 0 0",
    ]
    return artifacts.write_text(path, "\n".join(lines) + "\n")


# -- markups --------------------------------------------------------------------------------------
class ControlPoint(NamedTuple):
    """A point of a markup, its label and what else is said of it."""

    label: str
    description: str
    position_mm: np.ndarray


def markup(
    kind: str,
    name: str,
    points: Sequence[ControlPoint],
    colour: Colour,
    *,
    visible: bool = True,
    labels: bool = False,
) -> dict[str, Any]:
    """One markup by Slicer's schema: every key that its own writer gives to a control point, but no
    orientation.

    kind     "Fiducial" | "Line" | "ClosedCurve" | …
    labels   whether the points' labels are shown, or the markup's own name
    """
    return {
        "type": kind,
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "fixedNumberOfControlPoints": True,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(points),
        "controlPoints": [
            {
                "id": str(k),
                "label": point.label,
                "description": point.description,
                "position": [float(x) for x in point.position_mm],
                "selected": True,
                "locked": True,
                "visibility": True,
                "positionStatus": "defined",
            }
            for k, point in enumerate(points, 1)
        ],
        "display": {
            "visibility": visible,
            "color": list(colour),
            "selectedColor": list(colour),
            "pointLabelsVisibility": labels,
            "propertiesLabelVisibility": not labels,
            "textScale": 2.0,
            "glyphScale": 1.0,
        },
    }


def line_markup(axis: Axis) -> dict[str, Any]:
    """One Line by Slicer's schema, its two control points named entry and target."""
    ends = [
        ControlPoint(f"{axis.name} {end}", axis.words, position)
        for end, position in zip(("entry", "target"), axis.points_mm, strict=True)
    ]
    return markup("Line", axis.name, ends, axis.colour, visible=axis.visible)


# -- the scene ------------------------------------------------------------------------------------
def _scene(title: str, models: Sequence[Model], axes: Sequence[Axis]) -> bytes:
    """scene.mrml. Comments carry the title and the frame; Slicer's reader passes over them."""
    root = ElementTree.Element("MRML", {"version": "Slicer 5.0.3", "userTags": ""})
    words = f" {title}. Every file: {LPS_FRAME}. {NOT_CLINICAL} ".replace("--", "-")
    root.append(ElementTree.Comment(words))
    for k, model in enumerate(models, 1):
        _add_nodes(root, k, model)
    for k, axis in enumerate(axes, 1):
        _add_nodes(root, k, axis)
    storage = "vtkMRMLTransformStorageNode1"
    node = {
        "id": "vtkMRMLLinearTransformNode1",
        "name": "segment_to_lps",
        "references": f"storage:{storage};",
    }
    ElementTree.SubElement(root, "LinearTransform", node)
    ElementTree.SubElement(
        root, "TransformStorage", {"id": storage, "name": "segment_to_lps", "fileName": TRANSFORM}
    )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n"


def _add_nodes(root: ElementTree.Element, k: int, shown: Model | Axis) -> None:
    """One shown thing: where it is stored, how it is drawn, and the node that refers to both."""
    name = shown.name
    if isinstance(shown, Model):
        kind, storage_tag, display_tag = "Model", "ModelStorage", "ModelDisplay"
        file, opacity = f"{name}.stl", shown.opacity
    else:
        kind, storage_tag, display_tag = "MarkupsLine", "MarkupsJsonStorage", "MarkupsDisplay"
        file, opacity = f"{name}.mrk.json", 1.0
    # the display and storage nodes of every kind of markup share their counters
    storage, display = (f"vtkMRML{tag}Node{k}" for tag in (storage_tag, display_tag))
    place = {"id": storage, "name": f"{name} storage", "fileName": file, "coordinateSystem": "LPS"}
    ElementTree.SubElement(root, storage_tag, place)
    look = {
        "id": display,
        "name": f"{name} display",
        "color": " ".join(f"{c:g}" for c in shown.colour),
        "selectedColor": " ".join(f"{c:g}" for c in shown.colour),
        "opacity": f"{opacity:g}",
        "visibility": str(shown.visible).lower(),
    }
    if isinstance(shown, Model):  # outlines on the CT's slices
        look |= {
            "visibility2D": "true",
            "sliceIntersectionThickness": "2",
            "backfaceCulling": "false",
        }
    else:
        look |= {
            "propertiesLabelVisibility": "true",
            "pointLabelsVisibility": "false",
            "textScale": "2",
            "glyphScale": "1",
        }
    ElementTree.SubElement(root, display_tag, look)
    references = f"display:{display};storage:{storage};"
    ElementTree.SubElement(
        root, kind, {"id": f"vtkMRML{kind}Node{k}", "name": name, "references": references}
    )


def _readme(title: str, models: Sequence[Model], axes: Sequence[Axis]) -> str:
    rows = [
        (f"{m.name}.stl", m.words + ("" if m.visible else " (hidden at first)")) for m in models
    ]
    rows += [
        (f"{a.name}.mrk.json", a.words + ("" if a.visible else " (hidden at first)")) for a in axes
    ]
    rows.append(
        (
            TRANSFORM,
            "takes files of the segment frame (designs/, fem/) into the scan, put under it",
        )
    )
    width = max(len(name) for name, _ in rows)
    lines = [
        title,
        "",
        NOT_CLINICAL,
        f"Frame of every file here: {LPS_FRAME}.",
        "",
        "3D Slicer (5.0 or later): load the CT first, then File, Add Data, scene.mrml.",
        "A file of the segment frame: add it (coordinate system LPS), then drag it under",
        "segment_to_lps in the Data module.",
        "",
        *(f"{name:<{width}}  {words}" for name, words in rows),
    ]
    return "\n".join(lines) + "\n"
