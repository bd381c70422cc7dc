"""Meshes and point clouds as .ply (binary) and .obj (text): z up, colours sRGB."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from .surface import Mesh


def colour_bytes(colours: Float[np.ndarray, "V 3"]) -> np.ndarray:
    """[0, 1] -> 0..255, rounded."""
    return np.clip(np.rint(colours * 255), 0, 255).astype(np.uint8)


def write_ply(path: Path, mesh: Mesh) -> None:
    """Binary PLY with normals and 8-bit colours; without faces it is a point cloud."""
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    columns = [*mesh.vertices.T, *mesh.normals.T]
    if mesh.colours is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
        columns += [*colour_bytes(mesh.colours).T]
    vertices = np.rec.fromarrays(columns, dtype=fields)
    faces = np.zeros(len(mesh.faces), [("n", "u1"), ("indices", "<i4", 3)])
    faces["n"], faces["indices"] = 3, mesh.faces

    ply_names = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property {ply_names[kind]} {name}" for name, kind in fields]
    if len(faces):
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    header += ["end_header", ""]
    Path(path).write_bytes("\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


def write_obj(path: Path, mesh: Mesh) -> None:
    """OBJ with normals, and colours behind the positions: `v x y z r g b`, as most readers do."""
    vertices = mesh.vertices
    if mesh.colours is not None:
        vertices = np.concatenate([vertices, mesh.colours], -1)
    lines = ["v " + " ".join(f"{x:.6g}" for x in row) for row in vertices]
    lines += ["vn " + " ".join(f"{x:.6g}" for x in row) for row in mesh.normals]
    lines += ["f " + " ".join(f"{i}//{i}" for i in row) for row in mesh.faces + 1]
    Path(path).write_text("\n".join(lines) + "\n")
