"""Wavefront's .obj and .mtl, as lines of text."""

from collections.abc import Mapping

import numpy as np

MAPS = {  # a material's maps -> what their files are called
    "map_Kd": "kd",
    "map_Ks": "ks",
    "map_Bump": "nrm",
    "map_Pm": "metallic",
    "map_Pr": "roughness",
}


def rows(prefix: str, values: np.ndarray) -> list[str]:
    return [f"{prefix} " + " ".join(f"{x:.7g}" for x in row) for row in values]


def lines(
    positions: np.ndarray,
    faces: np.ndarray,
    *,
    colours: np.ndarray | None = None,
    normals: np.ndarray | None = None,
    uv: np.ndarray | None = None,
    texture_faces: np.ndarray | None = None,
) -> list[str]:
    """Vertices [V 3] and faces [F 3]; colours [V 3] in [0, 1], normals [V 3], and texture
    coordinates [T 2] (v upwards in the file) with their own faces [F 3]."""
    made = rows("v", positions if colours is None else np.concatenate([positions, colours], -1))
    if normals is not None:
        made += rows("vn", normals)
    if uv is not None:
        made += rows("vt", np.stack([uv[:, 0], 1 - uv[:, 1]], axis=-1))
    for i, face in enumerate(faces):
        texture = [""] * 3 if texture_faces is None else texture_faces[i] + 1
        normal = [""] * 3 if normals is None else face + 1
        corners = zip(face + 1, texture, normal, strict=True)
        made.append("f " + " ".join(f"{p}/{t}/{n}".rstrip("/") for p, t, n in corners))
    return made


def material(files: Mapping[str, str]) -> list[str]:
    """The material `default`; files: map -> the texture's file. What has no map is black, and the
    diffuse colour white."""
    made = ["newmtl default", "Ka 0.0 0.0 0.0"]
    made += [f"{key} {file}" for key, file in files.items()]
    made += [] if "map_Kd" in files else ["Kd 1.0 1.0 1.0"]
    return made + ([] if "map_Ks" in files else ["Ks 0.0 0.0 0.0"])
