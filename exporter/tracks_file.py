"""The tracks of a mesh as one .npz: what numpy, and with it most of research, reads."""

from pathlib import Path

import numpy as np

from .moving_mesh import MovingMesh


def write_tracks(path: Path, mesh: MovingMesh, fps: float) -> None:
    """Arrays by name, positions in the scene's frame (z up), colours sRGB:

    `points` [F V 3] float32, `colours` [V 3] float32 in [0, 1], `faces` [T 3] int32, `taus` [F]
    (time of the scene, 0 to 1) and `times` [F] (seconds: frame i is shown from i / fps on). With a
    texture also `uv` [V 2] float32 and `texture` [H W 3] uint8.
    """
    arrays = {
        "points": mesh.places.astype(np.float32),
        "colours": mesh.colours.astype(np.float32),
        "faces": mesh.faces.astype(np.int32),
        "taus": mesh.taus.astype(np.float64),
        "times": np.arange(len(mesh.taus)) / fps,
    }
    if mesh.uv is not None and mesh.texture is not None:
        arrays |= {"uv": mesh.uv.astype(np.float32), "texture": mesh.texture}
    with open(path, "wb") as file:  # savez would add a suffix to another name
        np.savez_compressed(file, **arrays)
