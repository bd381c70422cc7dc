"""A GLB of a mesh that a skeleton moves: vertices once, with their bones and weights, and of each
frame only where the bones are. A fraction of the size of a file with all tracks, and editable: in
Blender or a game engine the bones are ordinary ones.

Keys are linear in time; between two frames the bones go their shortest way, and the mesh bends
with them, where morph targets move each vertex along a line."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .gltf import (
    FACING_Z_UP_Y,
    FLOAT,
    UNSIGNED_BYTE,
    VERTEX_DATA,
    Buffer,
    add_surface,
    write_file,
)
from .morph_glb import looks
from .moving_mesh import MovingMesh
from .skeleton import Skeleton

ROOT, SURFACE, FIRST_BONE = 0, 1, 2  # nodes


def write_skinned_glb(
    path: Path,
    moving: MovingMesh,
    skeleton: Skeleton,
    fps: float = 16.0,
    lit: bool = False,
    name: str = "scene",
) -> None:
    """One .glb: the mesh at its first frame, posed by the bones to frame i at i / fps seconds.

    lit: shaded by the viewer's lights, instead of the colours as they are.

    Raises:
        ValueError: more than 256 bones, which bytes can't number.
    """
    bones = len(skeleton.parents)
    if bones > 256:
        raise ValueError(f"{bones} bones are more than bytes can number. Ask for 256 or less.")
    buffer = Buffer()
    surface = add_surface(buffer, moving.frame(0))
    surface["attributes"] |= _influences(buffer, skeleton)
    inverse = np.tile(np.eye(4, dtype="<f4"), (bones, 1, 1))  # column by column, as glTF has it
    inverse[:, 3, :3] = -skeleton.pivots
    skin = {
        "name": f"{name}_skeleton",
        "inverseBindMatrices": buffer.add(inverse, FLOAT),
        "joints": list(range(FIRST_BONE, FIRST_BONE + bones)),
        "skeleton": ROOT,
    }
    gltf: dict[str, Any] = {
        "scenes": [{"nodes": [ROOT, SURFACE]}],  # a skinned mesh ignores what it hangs on
        "nodes": [
            {"name": name, "rotation": FACING_Z_UP_Y},
            {"name": f"{name}_mesh", "mesh": 0, "skin": 0},
            *_bones(skeleton),
        ],
        "meshes": [{"name": name, "primitives": [surface]}],
        "skins": [skin],
        **looks(buffer, moving, lit, small=True),
    }
    gltf["nodes"][ROOT]["children"] = _children(skeleton, -1)
    if len(moving.taus) > 1:
        gltf["animations"] = [_motion(buffer, skeleton, fps)]
    write_file(path, gltf, buffer)


def _influences(buffer: Buffer, skeleton: Skeleton) -> dict[str, int]:
    """Four bones a vertex, in bytes; a bone without weight is number 0."""
    joints, weights = np.zeros((2, len(skeleton.joints), 4), "u1")
    influences = skeleton.joints.shape[1]
    weights[:, :influences] = np.rint(255 * skeleton.weights)
    joints[:, :influences] = skeleton.joints
    joints[weights == 0] = 0
    return {
        "JOINTS_0": buffer.add(joints, UNSIGNED_BYTE, VERTEX_DATA),
        "WEIGHTS_0": buffer.add(weights, UNSIGNED_BYTE, VERTEX_DATA, normalized=True),
    }


def _children(skeleton: Skeleton, bone: int) -> list[int]:
    """Nodes of the bones that hang on a bone; -1: on the root."""
    return (FIRST_BONE + np.flatnonzero(skeleton.parents == bone)).tolist()


def _bones(skeleton: Skeleton) -> list[dict[str, Any]]:
    """Their nodes as they rest: unturned, each at its pivot."""
    nodes = []
    for bone, parent in enumerate(skeleton.parents):
        offset = skeleton.pivots[bone] - (skeleton.pivots[parent] if parent >= 0 else 0)
        node = {"name": f"bone_{bone:02d}", "translation": offset.tolist()}
        children = _children(skeleton, bone)
        nodes.append(node | {"children": children} if children else node)
    return nodes


def local_motion(
    skeleton: Skeleton,
) -> tuple[Float[np.ndarray, "K F 3 3"], Float[np.ndarray, "K F 3"]]:
    """Each bone's rotation and translation in its parent's frame."""
    turned = skeleton.rotations
    placed = np.einsum("kfij,kj->kfi", turned, skeleton.pivots) + skeleton.translations
    rotations, translations = turned.copy(), placed.copy()
    for bone, parent in enumerate(skeleton.parents):
        if parent >= 0:
            back = turned[parent].transpose(0, 2, 1)
            rotations[bone] = back @ turned[bone]
            translations[bone] = (back @ (placed[bone] - placed[parent])[..., None])[..., 0]
    return rotations, translations


def quaternions(rotations: Float[np.ndarray, "F 3 3"]) -> Float[np.ndarray, "F 4"]:
    """x y z w; each on the side of the one before, so that keys are interpolated the short way."""
    from scipy.spatial.transform import Rotation

    found = Rotation.from_matrix(rotations).as_quat()
    flips = np.sign((found[1:] * found[:-1]).sum(-1))
    signs = np.concatenate([[1.0], np.cumprod(np.where(flips == 0, 1, flips))])
    return found * signs[:, None]


def _motion(buffer: Buffer, skeleton: Skeleton, fps: float) -> dict[str, Any]:
    """Rotation and translation of each bone at each frame."""
    frames = skeleton.rotations.shape[1]
    times = buffer.add((np.arange(frames) / fps).astype("<f4"), FLOAT, bounds=True)
    samplers, channels = [], []
    rotations, translations = local_motion(skeleton)
    for bone in range(len(skeleton.parents)):
        keys = {"rotation": quaternions(rotations[bone]), "translation": translations[bone]}
        for what, values in keys.items():
            output = buffer.add(values.astype("<f4"), FLOAT)
            target = {"node": FIRST_BONE + bone, "path": what}
            channels.append({"sampler": len(samplers), "target": target})
            samplers.append({"input": times, "output": output, "interpolation": "LINEAR"})
    return {"name": "motion", "samplers": samplers, "channels": channels}
