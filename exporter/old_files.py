"""What an earlier export into the same folder left: frames that the new one doesn't have."""

import json
import re
from pathlib import Path

from .mesh_files import MATERIAL, TEXTURE
from .moving_files import MOVING_FILES

# the names of FRAME_WRITERS in frame_files.py; whatever else lies there is a person's
FRAME = re.compile(r"meshes/frame_\d{4}\.(glb|ply|obj)|points/frame_\d{4}\.ply")


def drop_old_files(folder: Path) -> list[Path]:
    """Removes frames and animations of earlier exports that `frames.json` doesn't name; returns
    what was removed. Nothing else is touched."""
    held = json.loads((folder / "frames.json").read_text())
    named = {str(value) for row in held["frames"] for value in row.values()}
    ours = [
        path
        for path in [*folder.glob("meshes/*"), *folder.glob("points/*")]
        if FRAME.fullmatch(path.relative_to(folder).as_posix())
    ]
    old = [path for path in ours if path.relative_to(folder).as_posix() not in named]
    whole = {"animation.glb", *MOVING_FILES, f"meshes/{MATERIAL}", f"meshes/{TEXTURE}"}
    old += [folder / name for name in whole - {*held["files"]} if (folder / name).is_file()]
    for path in old:
        path.unlink()
    return old
