"""A small .glb, written by hand: a textured box with a morph target a frame, linear in between."""

import json
import struct
from itertools import pairwise

import cv2
import numpy as np

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32) / 2
SIDES = [  # corners of each side, counter-clockwise seen from outside
    *([0, 1, 3, 2], [4, 6, 7, 5]),
    *([0, 4, 5, 1], [2, 3, 7, 6]),
    *([0, 2, 6, 4], [1, 5, 7, 3]),
]
COLOURS = [
    (40, 40, 220),
    (220, 60, 40),
    (40, 180, 60),
    (200, 200, 40),
    (200, 40, 200),
    (60, 200, 220),
]


def box() -> dict[str, np.ndarray]:
    """Each side has its own corners, its own direction and a sixth of the texture."""
    places = np.concatenate([CORNERS[side] for side in SIDES])
    normals = np.repeat([CORNERS[side].mean(0) * 2 for side in SIDES], 4, axis=0)
    uv = np.array(
        [[(n + u) / 6, v] for n in range(6) for u, v in ((0.1, 0), (0.9, 0), (0.9, 1), (0.1, 1))]
    )
    faces = np.concatenate([[[n, n + 1, n + 2], [n, n + 2, n + 3]] for n in range(0, 24, 4)])
    return {
        "POSITION": places.astype("<f4"),
        "NORMAL": normals.astype("<f4"),
        "TEXCOORD_0": uv.astype("<f4"),
        "indices": faces.astype("<u2").reshape(-1),
    }


def write(path, frames: int = 5, seconds: float = 2.0) -> None:
    """The box rises by its height over time, and its top leans over."""
    arrays = box()
    moves = [np.zeros_like(arrays["POSITION"])]
    for tau in np.linspace(0, 1, frames)[1:]:
        lean = np.where(arrays["POSITION"][:, 1:2] > 0, 0.6, 0.0)
        moves.append(
            np.float32(tau) * np.concatenate([lean, lean * 0 + 1, lean * 0], -1).astype("<f4")
        )
    arrays |= {f"move{n}": move for n, move in enumerate(moves[1:], 1)}
    arrays["times"] = np.linspace(0, seconds, frames).astype("<f4")
    arrays["weights"] = np.eye(frames, dtype="<f4")[:, 1:].reshape(-1)
    picture = np.full((16, 96, 3), 0, np.uint8)
    for n, colour in enumerate(COLOURS):
        picture[:, n * 16 : (n + 1) * 16] = colour
    chunks = [array.tobytes() for array in arrays.values()] + [
        cv2.imencode(".png", picture)[1].tobytes()
    ]
    ends = np.cumsum([0] + [len(chunk) + -len(chunk) % 4 for chunk in chunks])
    views = [
        {"buffer": 0, "byteOffset": int(start), "byteLength": len(chunk)}
        for (start, _), chunk in zip(pairwise(ends), chunks, strict=True)
    ]
    at = {name: n for n, name in enumerate(arrays)}
    accessors = [
        {
            "bufferView": n,
            "componentType": 5123 if name == "indices" else 5126,
            "count": len(array),
            "type": "SCALAR" if array.ndim == 1 else f"VEC{array.shape[1]}",
            "min": array.reshape(len(array), -1).min(0).tolist(),
            "max": array.reshape(len(array), -1).max(0).tolist(),
        }
        for n, (name, array) in enumerate(arrays.items())
    ]
    attributes = {name: at[name] for name in ("POSITION", "NORMAL", "TEXCOORD_0")}
    targets = [{"POSITION": at[f"move{n}"]} for n in range(1, frames)]
    primitive = {
        "attributes": attributes,
        "indices": at["indices"],
        "material": 0,
        "targets": targets,
    }
    sampler = {"input": at["times"], "output": at["weights"], "interpolation": "LINEAR"}
    channel = {"sampler": 0, "target": {"node": 0, "path": "weights"}}
    gltf = {
        "asset": {"version": "2.0"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive], "weights": [0.0] * (frames - 1)}],
        "materials": [
            {
                "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "textures": [{"source": 0}],
        "images": [{"bufferView": len(views) - 1, "mimeType": "image/png"}],
        "animations": [{"samplers": [sampler], "channels": [channel]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": int(ends[-1])}],
    }
    text = json.dumps(gltf).encode()
    text += b" " * (-len(text) % 4)
    binary = b"".join(chunk + bytes(-len(chunk) % 4) for chunk in chunks)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary)))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", len(binary), b"BIN\0") + binary)
