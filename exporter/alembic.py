"""Alembic (.abc) of a moving mesh, what Unreal, Maya and Houdini read: by PyAlembic, which the
package alembic3d builds for pip (the extra `alembic`).

One polygon mesh with a sample of points and normals a frame, and its topology once. As Alembic's
other writers have it, it is y up and faces turn clockwise; the transform above the mesh turns the
scene. Colours (`Cd`, linear light) are a vertex's; a texture, for which Alembic has no place, is a
PNG beside the file."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .gltf import linear_light
from .moving_mesh import MovingMesh
from .surface import load

THIRD_TURN = 240.0  # degrees about (1, 1, 1): (x, y, z) -> (y, z, x)


def load_alembic() -> tuple[Any, Any]:
    """alembic3d, and imath, whose arrays it takes; looked for only when Alembic is written.

    Raises:
        ImportError: they are not installed; says what to install.
    """
    which: Any = {"package": "alembic3d", "need": "Alembic files", "extra": "alembic"}
    alembic = load("alembic3d", parts=("Abc", "AbcCoreAbstract", "AbcGeom"), **which)
    return alembic, load("imath", **which)


def _array(imath: Any, values: np.ndarray) -> Any:
    """imath's array of rows of three or two floats, or of whole numbers."""
    if values.ndim == 1:
        return imath.IntArrayFromBuffer(np.ascontiguousarray(values, "i4"))
    make = {2: imath.V2fArrayFromBuffer, 3: imath.V3fArrayFromBuffer}[values.shape[1]]
    return make(np.ascontiguousarray(values, "f4"))


def write_alembic(path: Path, mesh: MovingMesh, fps: float, name: str = "scene") -> None:
    """An archive with the mesh below a transform `/<name>`, frame i at i / fps seconds.

    Raises:
        ImportError: alembic3d is not installed.
    """
    alembic, imath = load_alembic()
    Abc, AbcGeom = alembic.Abc, alembic.AbcGeom
    archive = Abc.CreateArchiveWithInfo(str(path), "threestudio-animate124", "")
    turned = AbcGeom.OXform(archive.getTop(), name)
    turn = AbcGeom.XformSample()
    turn.setRotation(imath.V3d(1, 1, 1), THIRD_TURN)
    turned.getSchema().set(turn)
    surface = AbcGeom.OPolyMesh(turned, f"{name}_mesh").getSchema()
    surface.setTimeSampling(alembic.AbcCoreAbstract.TimeSampling(1 / fps, 0.0))
    scope = AbcGeom.GeometryScope
    corners = np.ascontiguousarray(mesh.faces[:, ::-1]).reshape(-1)
    for i, (places, normals) in enumerate(zip(mesh.places, mesh.normals, strict=True)):
        sample = AbcGeom.OPolyMeshSchemaSample()
        sample.setPositions(_array(imath, places))
        sample.setNormals(AbcGeom.ON3fGeomParamSample(_array(imath, normals), scope.kVertexScope))
        if i == 0:
            sample.setFaceIndices(_array(imath, corners))
            sample.setFaceCounts(_array(imath, np.full(len(mesh.faces), 3)))
        if i == 0 and mesh.uv is not None:
            at = imath.UnsignedIntArray(imath.DoubleArrayFromBuffer(corners.astype("f8")))
            uv = AbcGeom.OV2fGeomParamSample(_array(imath, mesh.uv), at, scope.kFacevaryingScope)
            sample.setUVs(uv)
        surface.set(sample)
    colours = imath.C3fArray(_array(imath, linear_light(np.clip(mesh.colours, 0, 1))))
    kept = surface.getArbGeomParams()
    shown = AbcGeom.OC3fGeomParam(kept, "Cd", False, scope.kVertexScope, 1)
    shown.set(AbcGeom.OC3fGeomParamSample(colours, scope.kVertexScope))
    if mesh.texture is not None:
        Image.fromarray(mesh.texture).save(path.with_suffix(".png"))
