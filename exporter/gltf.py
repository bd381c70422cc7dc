"""Binary glTF 2.0 (.glb) of a mesh that changes its triangles from frame to frame.

glTF has no animation of varying topology. So every frame is a node of its own, and an animation
with STEP interpolation shows one after the other by scaling it from 0 to 1 and back: three.js and
Blender play it. glTF is y up and faces +z; the scene is z up and its reference camera stands on +x:
the root node turns one into the other. COLOR_0 is linear light by definition, so sRGB colours are
converted; the material is unlit (KHR_materials_unlit), because the colours of a radiance field have
their shading already."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .surface import Mesh

FLOAT, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5123, 5125  # componentType
VERTEX_DATA, INDEX_DATA = 34962, 34963  # bufferView.target
LARGEST_FILE = 2**32 - 1  # bytes: the header has 32 bits for the length
FACING_Z_UP_Y = [-0.5, -0.5, -0.5, 0.5]  # quaternion x y z w: (x, y, z) -> (y, z, x)


def linear_light(srgb: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """sRGB's transfer function undone (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


class _Buffer:
    """The file's one buffer, and the views and accessors into it."""

    def __init__(self):
        self.data = bytearray()
        self.views: list[dict] = []
        self.accessors: list[dict] = []

    def add(self, array: np.ndarray, component: int, target=None, bounds=False, **more) -> int:
        """Appends an array and describes it; returns the accessor's index."""
        self.data += bytes(-len(self.data) % 4)  # every view starts at a multiple of 4
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": array.nbytes}
        self.views.append(view if target is None else view | {"target": target})
        self.data += np.ascontiguousarray(array).tobytes()
        columns = 1 if array.ndim == 1 else array.shape[1]
        accessor = {
            "bufferView": len(self.views) - 1,
            "componentType": component,
            "count": len(array),
            "type": {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[columns],
            **more,
        }
        if bounds:
            table = array.reshape(len(array), columns)
            accessor |= {"min": table.min(0).tolist(), "max": table.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _add_mesh(buffer: _Buffer, mesh: Mesh) -> dict:
    """One glTF mesh; 16-bit colours, since 8 bits of linear light show bands in the dark."""
    attributes = {
        "POSITION": buffer.add(mesh.vertices.astype("<f4"), FLOAT, VERTEX_DATA, bounds=True),
        "NORMAL": buffer.add(mesh.normals.astype("<f4"), FLOAT, VERTEX_DATA),
    }
    if mesh.colours is not None:
        linear = np.rint(linear_light(np.clip(mesh.colours, 0, 1)) * 65535)
        rgba = np.concatenate([linear, np.full((len(linear), 1), 65535.0)], -1).astype("<u2")
        attributes["COLOR_0"] = buffer.add(rgba, UNSIGNED_SHORT, VERTEX_DATA, normalized=True)
    faces = buffer.add(mesh.faces.astype("<u4").reshape(-1), UNSIGNED_INT, INDEX_DATA)
    return {"primitives": [{"attributes": attributes, "indices": faces, "material": 0}]}


def _one_after_the_other(buffer: _Buffer, nodes: Sequence[int], fps: float) -> dict:
    """Node i has scale 1 from i / fps to (i + 1) / fps, else 0; the last one stays to the end."""
    samplers, channels = [], []
    for i, node in enumerate(nodes):
        last = i == len(nodes) - 1
        keys = [(i / fps, 1.0), ((i + 1) / fps, 1.0 if last else 0.0)]
        if i > 0:
            keys.insert(0, (0.0, 0.0))
        times, scales = np.array(keys, "<f4").T
        samplers.append(
            {
                "input": buffer.add(times, FLOAT, bounds=True),
                "output": buffer.add(np.repeat(scales[:, None], 3, axis=1), FLOAT),
                "interpolation": "STEP",
            }
        )
        channels.append({"sampler": i, "target": {"node": node, "path": "scale"}})
    return {"name": "frames", "samplers": samplers, "channels": channels}


def write_glb(path: Path, frames: Sequence[Mesh], fps: float = 16.0, name: str = "scene") -> None:
    """One .glb: a still mesh for one frame, else an animation of all frames at `fps`."""
    buffer = _Buffer()
    meshes = [_add_mesh(buffer, mesh) for mesh in frames]
    nodes: list[dict] = [
        {"name": name, "rotation": FACING_Z_UP_Y, "children": list(range(1, len(frames) + 1))}
    ]
    for i in range(len(frames)):
        node = {"name": f"frame_{i:04d}", "mesh": i}
        nodes.append(node if i == 0 else node | {"scale": [0.0, 0.0, 0.0]})  # for still viewers
    gltf = {
        "asset": {"version": "2.0", "generator": "threestudio-animate124"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": [
            {
                "name": "vertex colours",
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
    }
    if len(frames) > 1:
        gltf["animations"] = [_one_after_the_other(buffer, range(1, len(frames) + 1), fps)]
    gltf |= {
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    _write_chunks(path, json.dumps(gltf, separators=(",", ":")).encode(), bytes(buffer.data))


def _write_chunks(path: Path, text: bytes, binary: bytes) -> None:
    """The container: a header, the JSON chunk (padded with spaces), the binary one (with 0)."""
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    if length > LARGEST_FILE:
        raise ValueError(
            f"The animation would take {length / 2**30:.1f} GiB; a .glb holds less than 4. Lower "
            "system.exporter.resolution or num_frames, or export a mesh a frame: formats=[ply]."
        )
    with open(path, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, length))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", len(binary), b"BIN\0") + binary)
