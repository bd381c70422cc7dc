"""Alembic files of a moving mesh, read back by PyAlembic's reader."""

import dataclasses
import sys

import numpy as np
import pytest
from animate124.exporter.alembic import write_alembic
from animate124.exporter.gltf import FACING_Z_UP_Y, linear_light
from PIL import Image
from trimesh.transformations import quaternion_matrix

from moving_meshes import bending_tube

FPS = 12.0


@pytest.fixture(scope="module")
def alembic():
    pytest.importorskip("alembic3d", reason="needs alembic3d: pip install -e '.[alembic]'")
    import alembic3d.Abc
    import alembic3d.AbcGeom

    return alembic3d


@pytest.fixture(scope="module")
def tube():
    return bending_tube()[0]


def opened(alembic, path):
    """The transform and the mesh of an archive."""
    top = alembic.Abc.IArchive(str(path)).getTop()
    turned = alembic.AbcGeom.IXform(top, "scene")
    return turned, alembic.AbcGeom.IPolyMesh(turned, "scene_mesh").getSchema()


def rows(array):
    return np.array([[*row] for row in array])


def test_the_mesh_has_a_sample_a_frame(alembic, tube, tmp_path):
    write_alembic(tmp_path / "tube.abc", tube, FPS)
    _, surface = opened(alembic, tmp_path / "tube.abc")
    assert surface.getNumSamples() == 7 and surface.getNormalsParam().getNumSamples() == 7
    clock = surface.getTimeSampling()
    np.testing.assert_allclose([clock.getSampleTime(i) for i in range(7)], np.arange(7) / FPS)
    for frame in range(7):
        moment = alembic.Abc.ISampleSelector(frame / FPS)  # by time, as a player asks
        sample = surface.getValue(moment)
        np.testing.assert_array_equal(rows(sample.getPositions()), tube.places[frame])
        # clockwise seen from outside, as in all Alembic files
        faces = np.reshape([*sample.getFaceIndices()], (-1, 3))
        np.testing.assert_array_equal(faces[:, ::-1], tube.faces)
        assert set(sample.getFaceCounts()) == {3}
        normals = surface.getNormalsParam().getExpandedValue(moment)
        np.testing.assert_array_equal(rows(normals.getVals()), tube.normals[frame])
    kept = alembic.AbcGeom.MeshTopologyVariance.kHomogenousTopology
    assert surface.getTopologyVariance() == kept  # the triangles are there once


def test_it_stands_as_in_the_glb(alembic, tube, tmp_path):
    write_alembic(tmp_path / "tube.abc", tube, FPS)
    turned, _ = opened(alembic, tmp_path / "tube.abc")
    matrix = turned.getSchema().getValue().getMatrix()
    found = np.array([[matrix[i][j] for j in range(4)] for i in range(4)])
    turn = quaternion_matrix(np.roll(FACING_Z_UP_Y, 1))
    np.testing.assert_allclose(found.T, turn, atol=1e-12)  # its vectors are rows


@pytest.mark.parametrize("texture", [True, False])
def test_colours_go_with_it(alembic, tube, tmp_path, texture):
    mesh = tube if texture else dataclasses.replace(tube, uv=None, texture=None)
    write_alembic(tmp_path / "tube.abc", mesh, FPS)
    _, surface = opened(alembic, tmp_path / "tube.abc")
    colours = alembic.AbcGeom.IC3fGeomParam(surface.getArbGeomParams(), "Cd")
    found = rows(colours.getExpandedValue().getVals())
    np.testing.assert_allclose(found, linear_light(tube.colours), atol=1e-6)
    assert surface.getUVsParam().valid() == texture == (tmp_path / "tube.png").exists()
    if texture:
        corners = rows(surface.getUVsParam().getExpandedValue().getVals())
        np.testing.assert_array_equal(corners, tube.uv[tube.faces[:, ::-1]].reshape(-1, 2))
        picture = np.asarray(Image.open(tmp_path / "tube.png"))
        np.testing.assert_array_equal(picture, tube.texture)


def test_missing_alembic_names_the_extra(tube, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "alembic3d", None)
    with pytest.raises(ImportError, match=r"pip install 'threestudio-animate124\[alembic\]'"):
        write_alembic(tmp_path / "tube.abc", tube, FPS)
    assert not (tmp_path / "tube.abc").exists()
