"""The files of a result."""

from ..exporter.frame_files import FRAME_FOLDERS
from ..exporter.moving_files import MOVING_FILES

ANIMATION, REFERENCE, TURNTABLE = "animation.mp4", "reference_view.mp4", "turntable.mp4"
SHEET = "contact_sheet.png"
MESH = "animation.glb"
PLAYBACK = "playback.json"  # how the motion plays, and how far its end is from its start
EXPORTED = "frames.json"  # what the exporter says of the mesh and the files beside it
REPORT = ("report.json", "report.html")  # what report.py writes beside them
# what the task "assets" may write beside the others' files
ASSETS = (MESH, EXPORTED, *MOVING_FILES, *FRAME_FOLDERS)


def file_names(static: bool) -> list[str]:
    """What is rendered; a scene that stands still has no video in which time runs."""
    still = [TURNTABLE, SHEET]
    return still if static else [ANIMATION, REFERENCE, PLAYBACK, *still]
