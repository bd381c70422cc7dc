"""Universal Scene Description (.usdc, .usda, .usdz) of a moving mesh, by usd-core (extra `usd`).

One UsdGeom.Mesh with time samples of points, normals and extent; the time codes are frames. The
stage is y up and the scene faces +z, as in the GLB: the root prim turns it, the mesh's own points
are the scene's (z up). Colours are shown as they are (a UsdPreviewSurface that emits them), unless
they are to be lit; the texture is a PNG beside the file, or inside a .usdz."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .gltf import FACING_Z_UP_Y, linear_light
from .moving_mesh import MovingMesh
from .surface import load

SUFFIXES = (".usdc", ".usda", ".usd", ".usdz")


def load_usd() -> Any:
    """usd-core's package `pxr`; it is looked for only when USD is written.

    Raises:
        ImportError: it is not installed; says what to install.
    """
    parts = ("Usd", "UsdGeom", "UsdShade", "UsdUtils")
    return load("pxr", "usd-core", "USD files", extra="usd", parts=parts)


def write_usd(
    path: Path, mesh: MovingMesh, fps: float, lit: bool = False, name: str = "scene"
) -> None:
    """A stage whose default prim `/<name>` holds the mesh, played at `fps` frames a second.

    Raises:
        ValueError: the suffix is none of USD's.
        ImportError: usd-core is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name}: USD files end in one of {', '.join(SUFFIXES)}.")
    if path.suffix != ".usdz":
        _write_stage(path, mesh, fps, lit, name)
        return
    with tempfile.TemporaryDirectory(prefix="usdz-") as folder:
        layer = Path(folder) / f"{path.stem}.usdc"
        _write_stage(layer, mesh, fps, lit, name)
        if not load_usd().UsdUtils.CreateNewUsdzPackage(str(layer), str(path)):
            raise OSError(f"usd-core could not write {path}. Is there room on the disk?")


def _write_stage(path: Path, mesh: MovingMesh, fps: float, lit: bool, name: str) -> None:
    pxr = load_usd()
    path.unlink(missing_ok=True)  # a stage is made anew only where no file is
    stage = pxr.Usd.Stage.CreateNew(str(path))
    pxr.UsdGeom.SetStageUpAxis(stage, pxr.UsdGeom.Tokens.y)
    pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.SetTimeCodesPerSecond(fps)
    stage.SetFramesPerSecond(fps)
    stage.SetStartTimeCode(0)
    stage.SetEndTimeCode(len(mesh.taus) - 1)
    root = pxr.UsdGeom.Xform.Define(stage, f"/{name}")
    x, y, z, w = FACING_Z_UP_Y
    root.AddOrientOp().Set(pxr.Gf.Quatf(w, x, y, z))
    stage.SetDefaultPrim(root.GetPrim())
    surface = _add_mesh(pxr, stage, f"/{name}/mesh", mesh)
    picture = None
    if mesh.uv is not None and mesh.texture is not None:
        picture = path.with_suffix(".png")
        Image.fromarray(mesh.texture).save(picture)
    material = _add_material(pxr, stage, f"/{name}/material", picture, lit)
    pxr.UsdShade.MaterialBindingAPI.Apply(surface.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()


def _add_mesh(pxr: Any, stage: Any, place: str, mesh: MovingMesh) -> Any:
    """The UsdGeom.Mesh: topology and colours once, what moves at every frame."""
    Vt, UsdGeom, Sdf = pxr.Vt, pxr.UsdGeom, pxr.Sdf
    surface = UsdGeom.Mesh.Define(stage, place)
    surface.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    surface.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, "i4")))
    surface.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.astype("i4").reshape(-1)))
    surface.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    points, normals = surface.CreatePointsAttr(), surface.CreateNormalsAttr()
    extent = surface.CreateExtentAttr()
    for i, (place_of, normal_of) in enumerate(zip(mesh.places, mesh.normals, strict=True)):
        when = pxr.Usd.TimeCode(i) if len(mesh.taus) > 1 else pxr.Usd.TimeCode.Default()
        corners = np.stack([place_of.min(0), place_of.max(0)]).astype("f4")
        points.Set(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(place_of, "f4")), when)
        normals.Set(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(normal_of, "f4")), when)
        extent.Set(Vt.Vec3fArray.FromNumpy(corners), when)
    colours = linear_light(np.clip(mesh.colours, 0, 1)).astype("f4")
    display = surface.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex)
    display.Set(Vt.Vec3fArray.FromNumpy(colours))
    if mesh.uv is not None:
        st = UsdGeom.PrimvarsAPI(surface).CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex
        )
        st.Set(Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(mesh.uv, "f4")))
    return surface


def _add_material(pxr: Any, stage: Any, place: str, picture: Path | None, lit: bool) -> Any:
    """A UsdPreviewSurface of the picture's colours, without one of the vertices'."""
    UsdShade, Types = pxr.UsdShade, pxr.Sdf.ValueTypeNames

    def shader(name: str, kind: str) -> Any:
        made = UsdShade.Shader.Define(stage, f"{place}/{name}")
        made.CreateIdAttr(kind)
        return made

    if picture is None:
        colours = shader("colours", "UsdPrimvarReader_float3")
        colours.CreateInput("varname", Types.String).Set("displayColor")
        output = colours.CreateOutput("result", Types.Float3)
    else:
        uv = shader("uv", "UsdPrimvarReader_float2")
        uv.CreateInput("varname", Types.String).Set("st")
        colours = shader("texture", "UsdUVTexture")
        colours.CreateInput("file", Types.Asset).Set(f"./{picture.name}")
        colours.CreateInput("sourceColorSpace", Types.Token).Set("sRGB")
        colours.CreateInput("wrapS", Types.Token).Set("clamp")
        colours.CreateInput("wrapT", Types.Token).Set("clamp")
        colours.CreateInput("st", Types.Float2).ConnectToSource(
            uv.CreateOutput("result", Types.Float2)
        )
        output = colours.CreateOutput("rgb", Types.Float3)
    surface = shader("surface", "UsdPreviewSurface")
    surface.CreateInput("roughness", Types.Float).Set(1.0)
    surface.CreateInput("metallic", Types.Float).Set(0.0)
    if not lit:
        surface.CreateInput("diffuseColor", Types.Color3f).Set(pxr.Gf.Vec3f(0))
    shown = surface.CreateInput("diffuseColor" if lit else "emissiveColor", Types.Color3f)
    shown.ConnectToSource(output)
    material = UsdShade.Material.Define(stage, place)
    material.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", Types.Token))
    return material
