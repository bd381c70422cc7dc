"""A GLB of a mesh that changes its triangles from frame to frame.

glTF has no animation of varying topology. So every frame is a node of its own, and an animation
with STEP interpolation shows one after the other by scaling it from 0 to 1 and back: three.js and
Blender play it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .gltf import FACING_Z_UP_Y, FLOAT, Buffer, add_surface, material, write_file
from .surface import Mesh


def _one_after_the_other(buffer: Buffer, nodes: Sequence[int], fps: float) -> dict:
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


def write_glb(
    path: Path,
    frames: Sequence[Mesh],
    fps: float = 16.0,
    lit: bool = False,
    name: str = "scene",
) -> None:
    """One .glb: a still mesh for one frame, else an animation of all frames at `fps`.

    lit: shaded by the viewer's lights, instead of the colours as they are."""
    buffer = Buffer()
    meshes = [{"primitives": [add_surface(buffer, mesh)]} for mesh in frames]
    children = list(range(1, len(frames) + 1))
    nodes: list[dict] = [{"name": name, "rotation": FACING_Z_UP_Y, "children": children}]
    for i in range(len(frames)):
        node = {"name": f"frame_{i:04d}", "mesh": i}
        nodes.append(node if i == 0 else node | {"scale": [0.0, 0.0, 0.0]})  # for still viewers
    gltf = {
        "nodes": nodes,
        "meshes": meshes,
        "materials": [material("vertex colours", lit)],
    }
    if len(frames) > 1:
        gltf["animations"] = [_one_after_the_other(buffer, children, fps)]
    write_file(path, gltf, buffer)
