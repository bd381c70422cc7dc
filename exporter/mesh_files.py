"""Meshes and point clouds as .ply (binary) and .obj (text): z up, colours sRGB."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from .surface import Mesh

MATERIAL, TEXTURE = "texture.mtl", "texture.png"  # beside OBJ files, which share them


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
    """OBJ with normals; with uv it names what `write_material` writes beside it, else colours stand
    behind the positions: `v x y z r g b`, as most readers do."""
    head, corner = ["# threestudio-animate124"], "{0}//{0}"
    tables = {"v": mesh.vertices, "vn": mesh.normals}
    if mesh.uv is not None:
        head += [f"mtllib {MATERIAL}", "usemtl texture"]
        tables["vt"], corner = mesh.uv, "{0}/{0}/{0}"
    elif mesh.colours is not None:
        tables["v"] = np.concatenate([mesh.vertices, mesh.colours], -1)
    lines = [
        f"{name} " + " ".join(f"{x:.6g}" for x in row)
        for name, table in tables.items()
        for row in table
    ]
    lines += ["f " + " ".join(corner.format(i) for i in row) for row in mesh.faces + 1]
    Path(path).write_text("\n".join([*head, *lines]) + "\n")


def write_material(folder: Path, texture: UInt8[np.ndarray, "H W 3"], lit: bool = False) -> None:
    """The material of a folder's OBJ files, and its picture; without light unless `lit`."""
    lines = ["newmtl texture", f"illum {int(lit)}", "Kd 1 1 1", f"map_Kd {TEXTURE}"]
    (folder / MATERIAL).write_text("\n".join(lines) + "\n")
    Image.fromarray(texture).save(folder / TEXTURE, optimize=True)
