"""USD files of a moving mesh, opened by usd-core and judged by its validators."""

import dataclasses
import sys

import numpy as np
import pytest
from animate124.exporter.gltf import FACING_Z_UP_Y, linear_light
from animate124.exporter.usd import write_usd
from PIL import Image
from trimesh.transformations import quaternion_matrix

from moving_meshes import bending_tube

FPS = 12.0


@pytest.fixture(scope="module")
def pxr():
    pytest.importorskip("pxr", reason="needs usd-core: pip install -e '.[usd]'")
    import pxr.Usd
    import pxr.UsdGeom
    import pxr.UsdShade
    import pxr.UsdValidation

    return pxr


@pytest.fixture(scope="module")
def tube():
    return bending_tube()[0]


def complaints(pxr, stage):
    """What usdchecker says of a stage."""
    validators = pxr.UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    found = pxr.UsdValidation.ValidationContext(validators).Validate(stage)
    return [error.GetErrorAsString() for error in found]


@pytest.mark.parametrize("suffix", [".usdc", ".usda", ".usdz"])
def test_the_mesh_moves_through_time_samples(pxr, tube, tmp_path, suffix):
    path = tmp_path / f"tube{suffix}"
    write_usd(path, tube, FPS)
    stage = pxr.Usd.Stage.Open(str(path))
    assert complaints(pxr, stage) == []
    assert stage.GetTimeCodesPerSecond() == FPS == stage.GetFramesPerSecond()
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 6)
    assert stage.GetDefaultPrim().GetPath() == "/scene"
    mesh = pxr.UsdGeom.Mesh.Get(stage, "/scene/mesh")
    np.testing.assert_array_equal(
        np.reshape(mesh.GetFaceVertexIndicesAttr().Get(), (-1, 3)), tube.faces
    )
    assert mesh.GetPointsAttr().GetTimeSamples() == list(range(7))
    for frame in range(7):
        points = np.array(mesh.GetPointsAttr().Get(frame))
        np.testing.assert_array_equal(points, tube.places[frame])
        np.testing.assert_array_equal(mesh.GetNormalsAttr().Get(frame), tube.normals[frame])
        np.testing.assert_array_equal(
            mesh.GetExtentAttr().Get(frame), [points.min(0), points.max(0)]
        )
    # between frames usd-core itself moves the points along straight lines
    halfway = (tube.places[2] + tube.places[3]) / 2
    np.testing.assert_allclose(mesh.GetPointsAttr().Get(2.5), halfway, atol=1e-6)


def test_it_stands_as_in_the_glb(pxr, tube, tmp_path):
    write_usd(tmp_path / "tube.usdc", tube, FPS)
    stage = pxr.Usd.Stage.Open(str(tmp_path / "tube.usdc"))
    assert pxr.UsdGeom.GetStageUpAxis(stage) == "Y"
    cache = pxr.UsdGeom.XformCache()
    rows = np.array(cache.GetLocalToWorldTransform(stage.GetPrimAtPath("/scene/mesh")))
    turn = quaternion_matrix(np.roll(FACING_Z_UP_Y, 1))
    np.testing.assert_allclose(rows.T, turn, atol=1e-6)  # USD's vectors are rows
    # the bounds that a viewer frames are those of the moving points
    bounds = pxr.UsdGeom.BBoxCache(pxr.Usd.TimeCode(6), ["default"])
    box = bounds.ComputeWorldBound(stage.GetDefaultPrim()).ComputeAlignedRange()
    turned = tube.places[6] @ turn[:3, :3].T
    np.testing.assert_allclose([*box.GetMin()], turned.min(0), atol=1e-5)
    np.testing.assert_allclose([*box.GetMax()], turned.max(0), atol=1e-5)


def surface_input(pxr, stage, name):
    """The shader that feeds an input of the mesh's bound material, or the input's value."""
    binding = pxr.UsdShade.MaterialBindingAPI(stage.GetPrimAtPath("/scene/mesh"))
    material, _ = binding.ComputeBoundMaterial()
    shader, _, _ = material.ComputeSurfaceSource()
    assert shader.GetShaderId() == "UsdPreviewSurface"
    asked = shader.GetInput(name)
    sources = asked.GetConnectedSources()[0]
    return pxr.UsdShade.Shader(sources[0].source.GetPrim()) if sources else asked.Get()


@pytest.mark.parametrize("suffix", [".usdc", ".usdz"])
def test_the_texture_is_bound_and_lies_where_it_is_looked_for(pxr, tube, tmp_path, suffix):
    write_usd(tmp_path / f"tube{suffix}", tube, FPS)
    stage = pxr.Usd.Stage.Open(str(tmp_path / f"tube{suffix}"))
    texture = surface_input(pxr, stage, "emissiveColor")
    assert texture.GetShaderId() == "UsdUVTexture"
    assert texture.GetInput("sourceColorSpace").Get() == "sRGB"
    asset = pxr.Ar.GetResolver().OpenAsset(
        pxr.Ar.ResolvedPath(texture.GetInput("file").Get().resolvedPath)
    )
    (tmp_path / "back.png").write_bytes(bytes(asset.GetBuffer()))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "back.png")), tube.texture)
    reader = pxr.UsdShade.Shader(texture.GetInput("st").GetConnectedSources()[0][0].source)
    primvar = pxr.UsdGeom.PrimvarsAPI(stage.GetPrimAtPath("/scene/mesh")).GetPrimvar(
        reader.GetInput("varname").Get()
    )
    assert primvar.GetInterpolation() == "vertex"
    np.testing.assert_array_equal(primvar.Get(), tube.uv)
    assert sorted(path.name for path in tmp_path.glob("tube*")) == (
        ["tube.png", "tube.usdc"] if suffix == ".usdc" else ["tube.usdz"]
    )


@pytest.mark.parametrize("lit", [False, True])
def test_without_a_texture_the_vertices_are_coloured(pxr, tube, tmp_path, lit):
    plain = dataclasses.replace(tube, uv=None, texture=None)
    write_usd(tmp_path / "tube.usdz", plain, FPS, lit=lit)
    stage = pxr.Usd.Stage.Open(str(tmp_path / "tube.usdz"))
    assert complaints(pxr, stage) == []
    reader = surface_input(pxr, stage, "diffuseColor" if lit else "emissiveColor")
    name = reader.GetInput("varname").Get()
    primvar = pxr.UsdGeom.PrimvarsAPI(stage.GetPrimAtPath("/scene/mesh")).GetPrimvar(name)
    np.testing.assert_allclose(primvar.Get(), linear_light(tube.colours), atol=1e-6)
    if not lit:  # nothing but the colours themselves
        assert surface_input(pxr, stage, "diffuseColor") == (0, 0, 0)


def test_what_stands_still_has_no_time_samples(pxr, tmp_path):
    still = bending_tube(frames=1)[0]
    write_usd(tmp_path / "tube.usdc", still, FPS)
    write_usd(tmp_path / "tube.usdc", still, FPS)  # again, over the first
    stage = pxr.Usd.Stage.Open(str(tmp_path / "tube.usdc"))
    mesh = pxr.UsdGeom.Mesh.Get(stage, "/scene/mesh")
    assert not mesh.GetPointsAttr().GetTimeSamples()
    np.testing.assert_array_equal(mesh.GetPointsAttr().Get(), still.places[0])


def test_another_suffix_says_which_would_do(tube, tmp_path):
    with pytest.raises(ValueError, match=r"tube.fbx: USD files end in one of .usdc"):
        write_usd(tmp_path / "tube.fbx", tube, FPS)


def test_missing_usd_names_the_extra(tube, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(ImportError, match=r"pip install 'threestudio-animate124\[usd\]'"):
        write_usd(tmp_path / "tube.usdc", tube, FPS)
