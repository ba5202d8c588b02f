"""A part's files say whose it is and where it lies, and strict readers take them."""

from __future__ import annotations

import io
import zipfile
from xml.etree import ElementTree

import lib3mf
import numpy as np
import pytest
import trimesh
import vtk

from engine.part import meshfiles, surface
from engine.part.meshfiles import PartLabel
from engine.types import Surface

LABEL = PartLabel("TLIF cage <A & B>", "patient 7", "L4-L5", "optimised", "Ti-6Al-4V")


@pytest.fixture(scope="module")
def ring() -> Surface:
    mesh = trimesh.creation.annulus(4.0, 8.0, 5.0)
    return Surface(np.asarray(mesh.vertices, np.float32).astype(float), np.asarray(mesh.faces))


def strictly_read(path):
    """The 3MF as lib3mf reads it in strict mode: model and warnings. Raises lib3mf's exception."""
    model = lib3mf.get_wrapper().CreateModel()
    reader = model.QueryReader("3mf")
    reader.SetStrictModeActive(True)
    reader.ReadFromFile(str(path))
    return model, [reader.GetWarning(k) for k in range(reader.GetWarningCount())]


def test_strict_lib3mf_reads_the_3mf_without_a_warning_and_finds_it_manifold(ring, tmp_path):
    path = surface.export(ring, tmp_path, "implant", LABEL)["3mf"]
    model, warnings = strictly_read(path)
    assert warnings == [] and model.GetUnit() == lib3mf.ModelUnit.MilliMeter
    meshes = model.GetMeshObjects()
    assert meshes.Count() == 1 and meshes.MoveNext()
    mesh = meshes.GetCurrentMeshObject()
    assert mesh.IsManifoldAndOriented() and mesh.IsValid()
    assert (mesh.GetVertexCount(), mesh.GetTriangleCount()) == (
        len(ring.points_mm),
        len(ring.faces),
    )
    corner = np.array([list(v.Coordinates) for v in mesh.GetVertices()], np.float32)
    assert np.array_equal(corner, ring.points_mm.astype(np.float32)), (
        "nine digits give every float32 back"
    )
    items = model.GetBuildItems()
    assert items.Count() == 1, "what is not in <build> is not printed"


def test_the_strict_reader_would_refuse_what_trimesh_writes(ring, tmp_path):
    """Guards the test above: it must be able to fail (trimesh repeats xmlns on <item>)."""
    scene = trimesh.Scene(trimesh.Trimesh(ring.points_mm, ring.faces, process=False))
    text = zipfile.ZipFile(io.BytesIO(scene.export(file_type="3mf"))).read("3D/3dmodel.model")
    good = meshfiles.write_3mf(ring, tmp_path / "good.3mf", "implant")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "bad.3mf", "w") as new:
        model = old.read("3D/3dmodel.model").decode()
        assert b"<item " in text
        bad = model.replace(
            "<item ", '<item xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02" '
        )
        for name in old.namelist():
            new.writestr(name, bad if name.endswith(".model") else old.read(name))
    with pytest.raises(lib3mf.ELib3MFException):
        strictly_read(tmp_path / "bad.3mf")


def test_metadata_say_whose_part_it_is_and_that_it_is_not_for_clinical_use(ring, tmp_path):
    model, _ = strictly_read(meshfiles.write_3mf(ring, tmp_path / "a.3mf", "implant", LABEL))
    group = model.GetMetaDataGroup()
    entries = [group.GetMetaData(k) for k in range(group.GetMetaDataCount())]
    plain = {d.GetName(): d.GetValue() for d in entries if not d.GetNameSpace()}
    own = {
        d.GetName(): d.GetValue()
        for d in entries
        if d.GetNameSpace() == meshfiles.SPINEFIT_NAMESPACE
    }
    assert plain["Title"] == LABEL.title and plain["Application"] == "spinefit"
    assert (
        "Not for clinical use" in plain["Description"] and "segment frame" in plain["Description"]
    )
    assert (
        own["patient"] == "patient 7"
        and own["level"] == "L4-L5"
        and own["use"] == "not for clinical use"
    )
    assert (
        own["revision"] == meshfiles.geometry_revision(ring)
        and "x to the patient's left" in own["frame"]
    )
    # well-known names of the core specification only; the rest is namespaced
    assert set(plain) <= {
        "Title",
        "Designer",
        "Description",
        "Copyright",
        "LicenseTerms",
        "Rating",
        "CreationDate",
        "ModificationDate",
        "Application",
    }
    with zipfile.ZipFile(tmp_path / "a.3mf") as archive:
        ElementTree.fromstring(archive.read("3D/3dmodel.model"))


def test_the_same_part_gives_the_same_bytes_and_a_moved_one_another_revision(ring, tmp_path):
    first, second = (surface.export(ring, tmp_path / n, "implant", LABEL) for n in ("a", "b"))
    for kind in ("stl", "3mf"):
        assert first[kind].read_bytes() == second[kind].read_bytes()
    moved = Surface(ring.points_mm + [0.001, 0.0, 0.0], ring.faces)
    assert meshfiles.geometry_revision(moved) != meshfiles.geometry_revision(ring)
    back = surface.read(first["stl"])  # joining equal vertices must not make another part of it
    assert meshfiles.geometry_revision(back) == meshfiles.geometry_revision(ring)


@pytest.mark.parametrize("frame", ["segment", "lps"])
def test_stl_headers_name_frame_and_unit_and_never_begin_as_text_stl(ring, tmp_path, frame):
    path = meshfiles.write_stl(ring, tmp_path / "solid.stl", "solid", frame)
    header = path.read_bytes()[:80]
    assert not header.startswith(b"solid") and b"unit=mm" in header
    # as Slicer reads it: SPACE=LPS or nothing, so that the segment is never taken for the scan
    reader = vtk.vtkSTLReader()
    reader.SetFileName(str(path))
    reader.Update()
    assert ("SPACE=LPS" in reader.GetHeader()) == (frame == "lps")
    assert "FRAME=SEGMENT x=left y=posterior z=cranial" in reader.GetHeader() or frame == "lps"
    assert trimesh.load(path).volume == pytest.approx(
        trimesh.Trimesh(ring.points_mm, ring.faces).volume, rel=1e-5
    )


def test_a_long_name_does_not_push_the_frame_out_of_the_header():
    header = meshfiles.stl_header("a name of many letters" * 5, "segment")
    assert len(header) == 80 and b"unit=mm" in header
    with pytest.raises(ValueError, match="frame='world' is unknown"):
        meshfiles.stl_header("a", "world")
