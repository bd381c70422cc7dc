"""Binary glTF 2.0 (.glb): its buffer, its container, and what all of our files have in common.

glTF is y up and faces +z; the scene is z up and its reference camera stands on +x: the root node
turns one into the other. COLOR_0 is linear light by definition, so sRGB colours are converted;
textures are sRGB. Materials are unlit (KHR_materials_unlit) unless asked for, because the colours
of a radiance field have their shading already."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from .surface import Mesh

BYTE, UNSIGNED_BYTE, UNSIGNED_SHORT = 5120, 5121, 5123  # componentType
UNSIGNED_INT, FLOAT = 5125, 5126
VERTEX_DATA, INDEX_DATA = 34962, 34963  # bufferView.target
LARGEST_FILE = 2**32 - 1  # bytes: the header has 32 bits for the length
MOST_SHORT = 65535  # vertices that 16 bits can number: the last number has another meaning
FACING_Z_UP_Y = [-0.5, -0.5, -0.5, 0.5]  # quaternion x y z w: (x, y, z) -> (y, z, x)
COLUMNS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
UNLIT, QUANTIZATION = "KHR_materials_unlit", "KHR_mesh_quantization"


def linear_light(srgb: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """sRGB's transfer function undone (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


class Buffer:
    """The file's one buffer, and the views and accessors into it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict] = []
        self.accessors: list[dict] = []

    def view(self, data: bytes, **more: Any) -> int:
        """Appends bytes; returns the view's index."""
        self.data += bytes(-len(self.data) % 4)  # every view starts at a multiple of 4
        self.views.append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **more}
        )
        self.data += data
        return len(self.views) - 1

    def accessor(self, **description: Any) -> int:
        self.accessors.append(description)
        return len(self.accessors) - 1

    def add(
        self,
        array: np.ndarray,
        component: int,
        target: int | None = None,
        bounds: bool = False,
        **more: Any,
    ) -> int:
        """Appends an array and describes it; returns the accessor's index."""
        table = np.ascontiguousarray(array).reshape(len(array), -1)
        return self.accessor(
            bufferView=self.view(table.tobytes(), **({} if target is None else {"target": target})),
            componentType=component,
            count=len(table),
            type=COLUMNS[table.shape[1]],
            **more,
            **(extremes(table) if bounds else {}),
        )

    def add_faces(self, faces: Integer[np.ndarray, "T 3"]) -> int:
        """Indices, in 16 bits where they fit."""
        if faces.size and faces.max() < MOST_SHORT:
            return self.add(faces.astype("<u2").reshape(-1), UNSIGNED_SHORT, INDEX_DATA)
        return self.add(faces.astype("<u4").reshape(-1), UNSIGNED_INT, INDEX_DATA)

    def add_colours(self, colours: Float[np.ndarray, "V 3"]) -> int:
        """sRGB as COLOR_0; in 16 bits, since 8 bits of linear light show bands in the dark."""
        linear = np.rint(linear_light(np.clip(colours, 0, 1)) * 65535)
        rgba = np.concatenate([linear, np.full((len(linear), 1), 65535.0)], -1).astype("<u2")
        return self.add(rgba, UNSIGNED_SHORT, VERTEX_DATA, normalized=True)


def add_surface(buffer: Buffer, mesh: Mesh) -> dict[str, Any]:
    """A mesh as a primitive of the first material."""
    attributes = {
        "POSITION": buffer.add(mesh.vertices.astype("<f4"), FLOAT, VERTEX_DATA, bounds=True),
        "NORMAL": buffer.add(mesh.normals.astype("<f4"), FLOAT, VERTEX_DATA),
    }
    if mesh.uv is not None:  # glTF's v goes down
        down = np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], -1)
        attributes["TEXCOORD_0"] = buffer.add(down.astype("<f4"), FLOAT, VERTEX_DATA)
    elif mesh.colours is not None:
        attributes["COLOR_0"] = buffer.add_colours(mesh.colours)
    return {"attributes": attributes, "indices": buffer.add_faces(mesh.faces), "material": 0}


def extremes(table: np.ndarray) -> dict[str, list]:
    """An accessor's min and max."""
    return {"min": table.min(0).tolist(), "max": table.max(0).tolist()}


def material(name: str, lit: bool = False, **metallic_roughness: Any) -> dict[str, Any]:
    """Colours as they are, or, `lit`, a rough surface in whatever light the viewer has."""
    rough = {"metallicFactor": 0.0, "roughnessFactor": 1.0, **metallic_roughness}
    described: dict[str, Any] = {"name": name, "pbrMetallicRoughness": rough}
    return described if lit else described | {"extensions": {UNLIT: {}}}


def write_file(
    path: Path, gltf: dict[str, Any], buffer: Buffer, required: Sequence[str] = ()
) -> None:
    """What is in the file beside its buffer, and the buffer.

    required: extensions without which a reader understands nothing; others are named for it.

    Raises:
        ValueError: it is longer than the format can say.
    """
    used = {name for described in gltf["materials"] for name in described.get("extensions", {})}
    extensions = {"extensionsUsed": sorted(used.union(required)), "extensionsRequired": required}
    gltf = {
        "asset": {"version": "2.0", "generator": "threestudio-animate124"},
        **{key: list(names) for key, names in extensions.items() if names},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        **gltf,
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    text, binary = json.dumps(gltf, separators=(",", ":")).encode(), bytes(buffer.data)
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
