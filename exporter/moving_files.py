"""Which file each format of a moving mesh is, and who writes it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.whole import check_room
from .alembic import load_alembic, write_alembic
from .moving_mesh import MovingMesh
from .skeleton import fit_skeleton, skinning_error
from .skinned_glb import write_skinned_glb
from .tracks_file import write_tracks
from .usd import load_usd, write_usd


@dataclass
class Playing:
    """What the formats are told beside the mesh."""

    fps: float  # frames a second
    lit: bool  # shaded by a viewer's lights; else colours as they are
    bones: int  # of a skeleton


def _write_skinned(path: Path, mesh: MovingMesh, playing: Playing) -> dict[str, Any]:
    """With how far the skeleton is from the tracks, in shares of the scene's size."""
    skeleton = fit_skeleton(mesh, playing.bones)
    write_skinned_glb(path, mesh, skeleton, playing.fps, playing.lit)
    errors = zip(("rms_error", "max_error"), skinning_error(skeleton, mesh), strict=True)
    rounded = {name: float(f"{error:.4g}") for name, error in errors}
    return {"skeleton": {"bones": len(skeleton.parents), **rounded}}


# format -> (file name, writer; it returns what is to be said of the file in frames.json)
Writer = Callable[[Path, MovingMesh, Playing], dict[str, Any] | None]
MOVING_WRITERS: dict[str, tuple[str, Writer]] = {
    "skinned-glb": ("skinned.glb", _write_skinned),
    "usd": ("animation.usdc", lambda path, mesh, how: write_usd(path, mesh, how.fps, how.lit)),
    "usdz": ("animation.usdz", lambda path, mesh, how: write_usd(path, mesh, how.fps, how.lit)),
    "alembic": ("animation.abc", lambda path, mesh, how: write_alembic(path, mesh, how.fps)),
    "tracks": ("tracks.npz", lambda path, mesh, how: write_tracks(path, mesh, how.fps)),
}
LIBRARIES = {"usd": load_usd, "usdz": load_usd, "alembic": load_alembic}
TEXTURE = "animation.png"  # beside USD and Alembic
MOVING_FILES = (*(name for name, _ in MOVING_WRITERS.values()), TEXTURE)


def check_moving_formats(formats: Collection[str], can_follow: bool) -> None:
    """Before anything is computed: can these be written?

    Raises:
        ImportError: a library is missing; says what to install.
        ValueError: some need tracks, which the scene doesn't have.
    """
    asked = [name for name in MOVING_WRITERS if name in formats]
    for name in asked:
        LIBRARIES.get(name, lambda: None)()
    if asked and not can_follow:
        raise ValueError(
            f"Format {', '.join(asked)}: these hold one mesh that moves, and the points of this "
            "scene can't be followed through time. Try animated-glb, glb, ply, obj or points, "
            "which hold a mesh a frame; or train the scene with --field deformation."
        )


def write_moving_files(
    folder: Path,
    formats: Collection[str],
    mesh: MovingMesh,
    playing: Playing,
    done: Callable[[], None],
) -> dict[str, Any]:
    """Those of `formats` that hold a moving mesh; returns what is to be said of them. `done` is
    called after each."""
    said: dict[str, Any] = {}
    for kind, (name, write) in MOVING_WRITERS.items():
        if kind in formats:
            # USD would leave a part of a file, and Alembic end the process; a .usdz is packed
            check_room(folder / name, mesh.size * (2 if kind == "usdz" else 1))
            said |= write(folder / name, mesh, playing) or {}
            done()
    return said
