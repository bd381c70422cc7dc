"""A GLB of a mesh that moves: one set of triangles, a morph target for each frame but the first.

Weights are linear in time: at frame i target i alone is 1, between two frames those two share, so
that viewers which play no more than eight targets at once, or two, play it. What moves less than
STILL is left out of a target where that saves space (sparse accessors); steps of normals are bytes
(KHR_mesh_quantization). So a frame takes 16 bytes a vertex at most, 12 of them its position."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from .gltf import (
    BYTE,
    FACING_Z_UP_Y,
    FLOAT,
    MOST_SHORT,
    QUANTIZATION,
    UNSIGNED_INT,
    UNSIGNED_SHORT,
    VERTEX_DATA,
    Buffer,
    add_surface,
    extremes,
    material,
    write_file,
)
from .moving_mesh import MovingMesh

STILL = 1 / 4000  # of the mesh's size: no picture of it shows less
LINEAR, CLAMP = 9729, 33071  # filter, wrap
# of textures; such a JPEG is 46 dB from the PNG, and a quarter of its size
SAVED: dict[str, dict[str, Any]] = {
    "png": {"optimize": True},
    "jpeg": {"quality": 85, "optimize": True},
}


def write_moving_glb(
    path: Path, moving: MovingMesh, fps: float = 16.0, lit: bool = False, name: str = "scene"
) -> None:
    """One .glb, frame i of the mesh at i / fps seconds; of one frame: a still mesh.

    lit: shaded by the viewer's lights, instead of the colours as they are."""
    buffer = Buffer()
    frames = len(moving.places)
    mesh: dict[str, Any] = {"name": name, "primitives": [add_surface(buffer, moving.frame(0))]}
    gltf: dict[str, Any] = {
        "nodes": [
            {"name": name, "rotation": FACING_Z_UP_Y, "children": [1]},
            {"name": f"{name}_mesh", "mesh": 0},
        ],
        "meshes": [mesh],
        **looks(buffer, moving, lit),
    }
    if frames > 1:
        mesh["weights"] = [0.0] * (frames - 1)
        mesh["extras"] = {"targetNames": [f"frame_{i:04d}" for i in range(1, frames)]}
        mesh["primitives"][0]["targets"] = [_target(buffer, moving, i) for i in range(1, frames)]
        gltf["animations"] = [_motion(buffer, frames, fps)]
    write_file(path, gltf, buffer, [QUANTIZATION] if frames > 1 else [])


def looks(buffer: Buffer, moving: MovingMesh, lit: bool, small: bool = False) -> dict[str, Any]:
    """The material, and its texture if there is one: a PNG, or, `small`, a JPEG."""
    if moving.texture is None:
        return {"materials": [material("vertex colours", lit)]}
    picture, kind = io.BytesIO(), "jpeg" if small else "png"
    Image.fromarray(moving.texture).save(picture, kind, **SAVED[kind])
    view = buffer.view(picture.getvalue())
    return {
        "materials": [material("texture", lit, baseColorTexture={"index": 0})],
        "textures": [{"sampler": 0, "source": 0}],
        "images": [{"name": "colours", "mimeType": f"image/{kind}", "bufferView": view}],
        # no smaller copies of the picture: they would mix the atlas's islands
        "samplers": [{"magFilter": LINEAR, "minFilter": LINEAR, "wrapS": CLAMP, "wrapT": CLAMP}],
    }


def _target(buffer: Buffer, moving: MovingMesh, i: int) -> dict[str, int]:
    """Frame i, as steps from the first."""
    places, normals = moving.places, moving.normals
    still = STILL * float(np.ptp(places[0], axis=0).max())
    return {
        "POSITION": _add_steps(buffer, places[i] - places[0], still),
        "NORMAL": _add_turns(buffer, normals[i] - normals[0]),
    }


def _add_steps(buffer: Buffer, steps: Float[np.ndarray, "V 3"], still: float) -> int:
    """Positions' steps; those below `still` left out if the file is smaller so."""
    steps = steps.astype("<f4")
    moved = np.flatnonzero(np.linalg.norm(steps, axis=-1) >= still)
    kind, component = ("<u2", UNSIGNED_SHORT) if len(steps) <= MOST_SHORT else ("<u4", UNSIGNED_INT)
    index_size = np.dtype(kind).itemsize
    if len(moved) * (12 + index_size) >= len(steps) * 12:
        return buffer.add(steps, FLOAT, VERTEX_DATA, bounds=True)
    sparse = np.zeros_like(steps)
    sparse[moved] = steps[moved]
    described: dict[str, Any] = {"componentType": FLOAT, "count": len(steps), "type": "VEC3"}
    described |= extremes(sparse)
    if len(moved):
        places = {"bufferView": buffer.view(moved.astype(kind).tobytes()), "byteOffset": 0}
        described["sparse"] = {
            "count": len(moved),
            "indices": {**places, "componentType": component},
            "values": {"bufferView": buffer.view(steps[moved].tobytes()), "byteOffset": 0},
        }
    return buffer.accessor(**described)


def _add_turns(buffer: Buffer, turns: Float[np.ndarray, "V 3"]) -> int:
    """Normals' steps in bytes, each padded to four; one that is longer than 1 along an axis (a
    normal that turns by more than 60 degrees) is cut there."""
    padded = np.zeros((len(turns), 4), np.int8)
    padded[:, :3] = np.rint(turns.clip(-1, 1) * 127)
    return buffer.accessor(
        bufferView=buffer.view(padded.tobytes(), byteStride=4, target=VERTEX_DATA),
        componentType=BYTE,
        normalized=True,
        count=len(turns),
        type="VEC3",
    )


def _motion(buffer: Buffer, frames: int, fps: float) -> dict[str, Any]:
    """Frame i at i / fps seconds: there weight i is 1 and the others are 0."""
    times = (np.arange(frames) / fps).astype("<f4")
    weights = np.eye(frames, dtype="<f4")[:, 1:].reshape(-1)
    sampler = {
        "input": buffer.add(times, FLOAT, bounds=True),
        "output": buffer.add(weights, FLOAT),
        "interpolation": "LINEAR",
    }
    channel = {"sampler": 0, "target": {"node": 1, "path": "weights"}}
    return {"name": "motion", "samplers": [sampler], "channels": [channel]}
