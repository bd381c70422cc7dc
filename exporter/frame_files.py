"""Which file each format of a mesh a frame is, and who writes it."""

from collections.abc import Callable
from pathlib import Path

from .flip_book import write_glb
from .mesh_files import write_obj, write_ply
from .moving_files import MOVING_WRITERS
from .surface import Mesh

OBJ = "obj"  # with a texture, where what moves has one
# format -> (file name, writer of one frame)
FRAME_WRITERS: dict[str, tuple[str, Callable[[Path, Mesh], None]]] = {
    "glb": ("meshes/frame_{:04d}.glb", lambda path, mesh: write_glb(path, [mesh])),
    "ply": ("meshes/frame_{:04d}.ply", write_ply),
    OBJ: ("meshes/frame_{:04d}.obj", write_obj),
    "points": ("points/frame_{:04d}.ply", write_ply),
}
FRAME_FOLDERS = tuple(dict.fromkeys(name.partition("/")[0] for name, _ in FRAME_WRITERS.values()))
ANIMATED = "animated-glb"  # all frames, whether they are one mesh that moves or a mesh each
FORMATS = (ANIMATED, *MOVING_WRITERS, *FRAME_WRITERS)
